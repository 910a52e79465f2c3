"""The one path that studies of any source take to the schema: sections, splits, priors, images, labels, writing.

A reader (recipes/data/columns.py for a lab's table, recipes/data/public_sets.py for the public sets) yields
`PlainStudy`s and knows nothing of Parquet; `build` writes what `recipes/data/schema.py` describes.
"""

import csv
import hashlib
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from recipes.data.images import SIDES, image_to_store
from recipes.data.mimic_sections import CLEANINGS, clean_mimic, read_sections
from recipes.data.schema import SPLITS, has_text, read_build, write_dataset
from recipes.data.sections import TARGETS, clean, target_text
from recipes.data.settings import COUNT, NOT_NEGATIVE, Range
from recipes.data.special_tokens import special_token
from recipes.data.views import is_frontal, order_views, rank_view, scenario_of
from recipes.files import InputError, replacing
from recipes.progress import follow

SECTIONS = ("findings", "impression")
REQUEST = ("indication", "history", "comparison", "technique")


class Moment(NamedTuple):
    """When a study was made: the day as YYYYMMDD (or a place in an order), and seconds since midnight if known."""

    day: float
    seconds: float | None = None


class PlainImage(NamedTuple):
    """A file, its content where the table holds it, what returns the bytes to store, or None; the view; and what
    returns the boxes in the stored bytes, where the source has boxes of each image."""

    file: Path | bytes | Callable[[], bytes] | None  # None: the view is known, and no image is stored
    view: str  # in the schema's words
    boxes: Callable[[bytes], list[dict] | None] | None = None


class Skipped(NamedTuple):
    """What was left out (a study, an image, a prior) of which study, where it stands in the source, and why."""

    study_id: str
    place: str
    left_out: str
    reason: str
    detail: str = ""


@dataclass
class PlainStudy:
    """One study as its source tells it: raw texts, files, and what orders it among its subject's studies."""

    study_id: str
    subject_id: str | None
    place: str  # its line or key in the source, for messages
    images: list[PlainImage] = field(default_factory=list)
    findings: str | None = None
    impression: str | None = None
    report: str | None = None  # a whole text, with headers or without
    indication: str | None = None
    history: str | None = None
    comparison: str | None = None
    technique: str | None = None
    prior_report: str | None = None
    prior_study_id: str | None = None
    split: str | None = None
    moment: Moment | None = None
    age: float | None = None  # years
    sex: str | None = None  # "F" or "M"
    labels: list[int] | None = None
    boxes: list[dict] | None = None  # region, x0, y0, x1, y1 in pixels of the first image's file
    prior_images: list[PlainImage] = field(default_factory=list)
    findings_from: str | None = None  # as of `read_sections`
    unknown_headers: str | None = None  # a line each


@dataclass(frozen=True)
class Settings:
    """How `build` turns studies into rows; the defaults are those of the builders' arguments."""

    source: str
    license: str
    target: str = "findings+impression"  # or "report": the whole text as it stands
    cleaning: str = "plain"
    r2gen: str = "mimic"  # variant of the cleaning r2gen: mimic or iu_xray
    image_size: int = 512
    image_size_of: str = "longest"
    max_images: int = 0
    sample_unit: str = "study"  # what a row is; image: each image with its study's report
    fractions: tuple[float, float] = (0.1, 0.1)  # of the subjects, to validate and to test on
    seed: int = 0
    split_by_subject: bool = False
    labeler: str = "lexical"
    prior_images: bool = False
    workers: int = 2


@dataclass
class StudyArguments:
    """Arguments that all builders of plain studies share."""

    ranges: ClassVar[dict[str, Range]] = {
        **dict.fromkeys(("image_size", "max_images", "limit"), NOT_NEGATIVE),
        "workers": COUNT,
    }

    target: Literal[*TARGETS] = field(
        default="findings+impression", metadata={"help": "Sections that are the report to write."}
    )
    cleaning: Literal[CLEANINGS] = field(default="plain", metadata={"help": "Cleaning of the sections."})
    image_size: int = field(
        default=512, metadata={"help": "Pixels of the side that --image_size_of names; 0 stores all pixels."}
    )
    image_size_of: Literal[SIDES] = field(default="longest", metadata={"help": "Side that is shrunk to --image_size."})
    max_images: int = field(
        default=0, metadata={"help": "Images per study: a frontal one, a lateral one, then others; 0 for all."}
    )
    prior_images: bool = field(
        default=False, metadata={"help": "Storing of the frontal image of the study before, too."}
    )
    labeler: str = field(
        default="lexical", metadata={"help": "Labeler of the reports without labels: lexical, or chexbert:MODEL."}
    )
    limit: int = field(default=0, metadata={"help": "Number of studies to build, for a first look; 0 for all."})
    workers: int = field(
        default=2, metadata={"help": "Processes that read images; the result is the same for any number."}
    )
    check: bool = field(
        default=False, metadata={"help": "Three studies and the counts are shown, and nothing is written."}
    )

    def settings(self, source: str, license: str, labeler: str, **split) -> Settings:
        """The `Settings` of these arguments, of data of that source and licence; `split`: fractions and the like."""
        names = {name for name in Settings.__dataclass_fields__ if hasattr(self, name)} - {"labeler"}
        values = {name: getattr(self, name) for name in names}
        return Settings(source=source, license=license, labeler=labeler, **values, **split)


################
# Text
################


def with_sections(study: PlainStudy) -> PlainStudy:
    """`study` with the sections of its whole report, where that has headers and the source names no sections."""
    if not study.report or study.findings or study.impression:
        return study
    sections = read_sections(study.report)
    if sections.get("findings_from") == "last paragraph" or not set(SECTIONS) & set(sections):
        return study
    for name in (*SECTIONS, *REQUEST, "findings_from", "unknown_headers"):
        setattr(study, name, getattr(study, name) or sections.get(name))
    return study


def text_columns(study: PlainStudy, settings: Settings) -> dict[str, str | None]:
    """The text columns of a row: cleaned sections, and `report`, the target, which is None where it has none.

    A report without headers is the target as it stands; so there `findings` and `impression` are null.
    """
    row = {name: clean(getattr(study, name)) for name in REQUEST}
    row |= {name: clean_text(getattr(study, name), settings) for name in SECTIONS}
    row["prior_report"] = study.prior_report
    if study.findings or study.impression:
        row["report"] = target_text(row, settings.target)
    else:
        row["report"] = clean_text(study.report, settings)
    return row


def clean_text(text: str | None, settings: Settings) -> str | None:
    """A section or report as `settings` want it, or None where no word is left."""
    cleaned = clean if settings.r2gen == "iu_xray" else clean_mimic
    return cleaned(text, settings.cleaning)


def plain_report(study: PlainStudy) -> str | None:
    """Findings and impression, or the whole report: what a later study has as its prior."""
    sections = {name: clean(getattr(study, name)) for name in SECTIONS}
    return target_text(sections, "findings+impression") or clean(study.report)


################
# Order
################


def link_priors(studies: list[PlainStudy], skipped: list[Skipped]) -> None:
    """Gives studies the report and the images of the subject's last study that is certainly earlier.

    A prior that the source names wins over the dates. Earlier is an earlier day, or the same day and an earlier time;
    two studies of one day have no order where a time is missing or equal. Of two priors of one moment the one with the
    greater id is taken. Prior reports are plain afterwards (`plain_report`), whatever the cleaning of the target.
    """
    by_id = {study.study_id: study for study in studies}
    by_subject: dict[str, list[PlainStudy]] = defaultdict(list)
    for study in studies:
        if study.subject_id is not None and study.moment is not None:
            by_subject[study.subject_id].append(study)
    for group in by_subject.values():
        group.sort(key=_rank)
    days = {subject: [study.moment.day for study in group] for subject, group in by_subject.items()}
    priors = {}
    for study in studies:
        if study.prior_study_id:
            priors[study.study_id] = by_id.get(study.prior_study_id)
            if priors[study.study_id] is None and not study.prior_report:
                reason = "the study before it is not in the table"
                skipped.append(Skipped(study.study_id, study.place, "prior", reason, study.prior_study_id))
        elif not study.prior_report and study.subject_id in by_subject and study.moment is not None:
            group, moment = by_subject[study.subject_id], study.moment
            end = bisect_left(days[study.subject_id], moment.day)
            same_day = [
                earlier
                for earlier in group[end : bisect_left(days[study.subject_id], moment.day + 1)]
                if None not in (moment.seconds, earlier.moment.seconds) and earlier.moment.seconds < moment.seconds
            ]
            priors[study.study_id] = same_day[-1] if same_day else group[end - 1] if end else None
    for study in studies:
        study.prior_report = clean(study.prior_report)
        if prior := priors.get(study.study_id):
            study.prior_report = study.prior_report or plain_report(prior)
            study.prior_images = study.prior_images or frontal_images(prior)
            if not study.prior_report and study.split and plain_report(study):
                reason = "the study before it has no report with findings or impression"
                skipped.append(Skipped(study.study_id, study.place, "prior", reason, prior.study_id))


def _rank(study: PlainStudy) -> tuple:
    """What orders studies that have a moment: ids that are numbers as numbers."""
    seconds = -1.0 if study.moment.seconds is None else study.moment.seconds
    return study.moment.day, seconds, len(study.study_id), study.study_id


def frontal_images(study: PlainStudy) -> list[PlainImage]:
    """The first frontal image of `study`, if it has one."""
    pairs = sorted((image.view, number) for number, image in enumerate(study.images) if is_frontal(image.view))
    return [study.images[min(pairs, key=lambda pair: rank_view(pair[0]))[1]]] if pairs else []


def assign_splits(studies: list[PlainStudy], settings: Settings) -> None:
    """Gives every study its split: the source's, or by subject, in the order of a hash of `settings.seed`.

    Subjects are cut by their number, so that a small set too has one to validate and one to test on where it has
    three. Raises InputError where some studies have a split and others none, and where a subject is in two splits,
    which `split_by_subject` moves to that of its first study.
    """
    split_studies = [study for study in studies if study.split]
    if split_studies and len(split_studies) < len(studies):
        bare = next(study for study in studies if not study.split)
        raise InputError(
            f"{len(studies) - len(split_studies)} of {len(studies)} studies have no split, study {bare.study_id} "
            f"({bare.place}) first: fill the column, or leave it out to split by subject"
        )
    groups: dict[str, list[PlainStudy]] = defaultdict(list)
    for study in studies:
        groups[study.subject_id if study.subject_id is not None else f"study {study.study_id}"].append(study)
    if split_studies:
        for subject, group in groups.items():
            splits = list(dict.fromkeys(study.split for study in group))
            if len(splits) > 1 and not settings.split_by_subject:
                raise InputError(
                    f"subject {subject} is in the splits {' and '.join(splits)}, so that a model would be tested on "
                    "patients that it was trained on: mend the column, or give --split_by_subject, which moves a "
                    "subject to the split of its first study"
                )
            for study in group:
                study.split = splits[0]
        return
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{settings.seed}:{name}".encode()).hexdigest())
    numbers = [max(1, round(share * len(order))) if share and len(order) > 2 else 0 for share in settings.fractions]
    for place, subject in enumerate(order):
        split = "validation" if place < numbers[0] else "test" if place < sum(numbers) else "train"
        for study in groups[subject]:
            study.split = split


################
# Images
################


def stored_image(file: object, size: int, side: str) -> tuple[bytes | None, float] | InputError:
    """`image_to_store` of a `PlainImage`'s file, or why not; what a function returns is stored as it is."""
    try:
        if file is None or callable(file):
            return file and file(), 1.0
        return image_to_store(file, size, side)
    except InputError as error:
        return error


def stored_images(files: list, size: int, side: str) -> list[tuple[bytes | None, float] | InputError]:
    """`stored_image` of several files, in a worker process."""
    return [stored_image(file, size, side) for file in files]


def _read_in_order(batches: Iterator[tuple], settings: Settings) -> Iterator[tuple]:
    """(item, what `stored_images` makes of its files) of each (item, files), in order, read by `workers` processes."""
    work = partial(stored_images, size=settings.image_size, side=settings.image_size_of)
    if settings.workers == 1:
        yield from ((item, work(files)) for item, files in batches)
        return
    with ProcessPoolExecutor(settings.workers, get_context("forkserver")) as pool:
        waiting: list = []
        try:
            for item, files in batches:
                waiting.append((item, pool.submit(work, files)))
                if len(waiting) > 4 * settings.workers:
                    item, future = waiting.pop(0)
                    yield item, future.result()
            for item, future in waiting:
                yield item, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


################
# Building
################


def build(
    studies: list[PlainStudy],
    out: str | Path,
    settings: Settings,
    note: dict,
    skipped: list[Skipped],
    labeler: Callable,
    preview: Callable[[list[dict]], None] | None = None,
    check: bool = False,
) -> dict[str, int]:
    """Writes `studies` to the folder `out` with build.json and skipped.csv; returns the rows per split.

    `note` goes into build.json, `skipped` takes what is left out beside what the reader left out. `preview` is called
    with three rows, without images, before anything is written; with `check` nothing is. Raises InputError where no
    study is left.
    """
    out = Path(out)
    if out.exists() and not read_build(out):
        raise InputError(f"--out {out} exists and is no earlier build: name a folder that may be replaced")
    counts: Counter = Counter()
    assign_splits(studies, settings)
    link_priors(studies if settings.target == "report" else list(map(with_sections, studies)), skipped)
    rows = text_rows(studies, settings, skipped, counts)
    if not rows:
        [(reason, number)] = Counter(entry.reason for entry in skipped if entry.left_out == "study").most_common(1)
        raise InputError(f"none of {len(studies)} studies can be used; of {number} of them: {reason}")
    if preview:
        preview([row | {"study_id": study.study_id, "split": study.split} for study, row in rows[:3]])
    if check:
        return dict(Counter(study.split for study, _ in rows))
    add_labels(rows, settings, labeler)

    def rows_of(split: str, pairs: list[tuple[PlainStudy, dict]]) -> Iterator[dict]:
        return follow(full_rows(pairs, settings, skipped, counts), f"{split}: studies", len(pairs))

    with replacing(out, marker="build.json") as folder:
        splits = {}
        for split in SPLITS:
            if pairs := [(study, row) for study, row in rows if study.split == split]:
                splits[split] = partial(rows_of, split, pairs)
        sizes = write_dataset(splits, folder, note | asdict(settings))
        if not sum(sizes.values()):
            entry = next((entry for entry in skipped if entry.left_out == "image"), skipped[-1])
            raise InputError(f"no study has an image that can be read; {entry.place}: {entry.detail or entry.reason}")
        for split in [split for split, number in sizes.items() if not number]:
            (folder / f"{split}.parquet").unlink()
        counts.update(f"{entry.left_out} left out: {entry.reason}" for entry in skipped)
        more = {"skipped": len(skipped), "counts": dict(sorted(counts.items()))}
        (folder / "build.json").write_text(json.dumps(read_build(folder) | more, indent=2) + "\n")
        with (folder / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([Skipped._fields, *skipped])
    return sizes


def text_rows(
    studies: list[PlainStudy], settings: Settings, skipped: list[Skipped], counts: Counter
) -> list[tuple[PlainStudy, dict]]:
    """(study, text columns of its row) of those studies that have a report to write."""
    rows = []
    for study in studies:
        row = text_columns(study, settings)
        token = next(filter(None, map(special_token, filter(None, row.values()))), None)
        if not has_text(row["report"]):
            skipped.append(Skipped(study.study_id, study.place, "study", f"it has no {settings.target}"))
        elif token:
            reason = "its text holds what a model reads as a token of its own"
            skipped.append(Skipped(study.study_id, study.place, "study", reason, token))
        else:
            counts["reports of sections" if study.findings or study.impression else "reports without sections"] += 1
            if study.findings_from and "findings" in settings.target:
                counts[f"findings from a {study.findings_from}"] += 1
            counts.update(f"header not known: {header}" for header in (study.unknown_headers or "").splitlines())
            rows.append((study, row))
    return rows


def add_labels(rows: list[tuple[PlainStudy, dict]], settings: Settings, labeler: Callable) -> None:
    """Gives every row its labels: the source's, or those of `labeler`, which reads the rest in one call.

    It reads the target before its cleaning: labelers need points and capitals.
    """
    unlabelled = [(study, row) for study, row in rows if study.labels is None]
    if settings.cleaning == "plain":
        texts = [row["report"] for _, row in unlabelled]
    else:
        plain = replace(settings, cleaning="plain")
        texts = [text_columns(study, plain)["report"] for study, _ in unlabelled]
    states = labeler(texts).tolist() if texts else []
    for (_, row), labels in zip(unlabelled, states, strict=True):
        row["labels"] = labels
    for study, row in rows:
        row.setdefault("labels", study.labels)


def full_rows(
    rows: list[tuple[PlainStudy, dict]], settings: Settings, skipped: list[Skipped], counts: Counter
) -> Iterator[dict]:
    """`rows` with their images; a study none of whose images can be read is left out.

    An InputError of two arguments gives the reason and the detail that skipped.csv has of an image.
    """
    for (study, row, shown), stored in _read_in_order(_files_of(rows, settings), settings):
        for error in stored:
            if isinstance(error, InputError):
                reason, detail = error.args if len(error.args) == 2 else ("it cannot be read", str(error))
                skipped.append(Skipped(study.study_id, study.place, "image", reason, detail))
        pairs = zip(shown, stored, strict=False)
        readable = [(image, content) for image, content in pairs if isinstance(content, tuple)]
        if not readable:
            reason = "none of its images can be read" if shown else "it has no image"
            skipped.append(Skipped(study.study_id, study.place, "study", reason))
            continue
        for unit in [[pair] for pair in readable] if settings.sample_unit == "image" else [readable]:
            yield row | _image_columns(study, row, unit, stored[len(shown) :], settings, counts)


def _files_of(rows: list[tuple[PlainStudy, dict]], settings: Settings) -> Iterator[tuple]:
    for study, row in rows:
        pairs = [((number, image), image.view) for number, image in enumerate(study.images)]
        shown = [image for (_, image), _ in order_views(pairs, settings.max_images)]
        earlier = study.prior_images if settings.prior_images else []
        yield (study, row, shown), [image.file for image in (*shown, *earlier)]


def _image_columns(
    study: PlainStudy, row: dict, readable: list[tuple], prior: list, settings: Settings, counts: Counter
) -> dict:
    """The columns of a row that its images decide on, and those that need no work."""
    views = [image.view for image, _ in readable]
    scenario = scenario_of(views, row["prior_report"])
    counts[f"scenario {scenario or 'none (no frontal view)'}"] += 1
    counts.update(f"view {view or 'unknown'}" for view in views)
    image, (content, scale) = readable[0]
    boxes = image.boxes(content) if image.boxes else None
    if study.boxes and study.images and image is study.images[0]:
        sides = ("x0", "y0", "x1", "y1")
        boxes = [box | {side: box[side] * scale for side in sides} for box in study.boxes]
    return {
        "study_id": study.study_id,
        "subject_id": study.subject_id,
        "images": [{"bytes": content, "path": None} for _, (content, _) in readable if content is not None],
        "views": views,
        "scenario": scenario,
        "age": study.age,
        "sex": study.sex,
        "boxes": boxes,
        "prior_images": [{"bytes": entry[0], "path": None} for entry in prior if isinstance(entry, tuple)] or None,
        "source": settings.source,
        "license": settings.license,
    }
