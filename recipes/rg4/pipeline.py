"""LLM-RG4's data pipeline ("Dataset generation pipeline", Fig. 2): judge, rewrite, judge again; guard; scenarios.

The tables of what each scenario allows are in rewards/discbert.py, where the evaluation needs them too.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
from datasets import Dataset, Image, List
from pyarrow import parquet

from recipes.data.images import read_png
from recipes.data.mimic_sections import clean_mimic
from recipes.data.privacy import private_among
from recipes.data.schema import CORE, has_text, read_build, read_dataset
from recipes.data.sections import target_of, target_text
from recipes.data.sources import MIMIC_RG4
from recipes.data.views import is_lateral
from recipes.files import InputError, read_prompt
from recipes.rg4.llm import Answers, Endpoint, InProcess, LLMJudge, LLMRewriter, check_url, is_loopback
from recipes.rg4.rules import RuleJudge, RuleRewriter
from rewards.labels import CONDITIONS, CheXpertState
from rewards.scenarios import CATEGORIES, FORBIDDEN, SCENARIOS

MAX_ROUNDS = 3  # rewrites, LLM-RG4: "We set the maximum iterations to 3 rounds"
GUARDS = ("impression", "findings", "report")
BATCH = 256  # reports labelled at once
SAMPLE = 500  # reports judged for an estimate
NOTES = 4096  # reports whose provenance is written at once
CHARACTERS_PER_TOKEN = 4  # of English prose in an LLM's vocabulary, roughly
BARE = "nothing is left of the report"
WHY_MINE = (
    "The machine at --endpoint is yours. MIMIC-CXR's data use agreement forbids passing its text to a third party, so "
    "rows of any source but phantom go to this machine only, unless you say that the other one is run by people whom "
    "the agreement covers and keeps nothing."
)
_NOTE = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("study_id", "scenario", "split")),
        ("rounds", pyarrow.int64()),
        ("satisfied", pyarrow.bool_()),
        *((name, pyarrow.string()) for name in ("discarded", "history", "judge", "rewriter", "labeler")),
    ]
)
PROMPTS = {"judge": "prompts/rg4_judge.txt", "rewriter": "prompts/rg4_rewrite.txt"}


@dataclass
class Case:
    """One report on its way through the loop.

    `texts`: the sections before and after each rewrite, {"findings", "impression"} (those that exist) or {"report"}.
    `judged`: the forbidden categories found in each of `texts` that was judged. `failed`: why it is left out, or None.
    """

    scenario: str
    texts: list[dict[str, str]]
    judged: list[tuple[str, ...]] = field(default_factory=list)
    failed: str | None = None

    @property
    def rounds(self) -> int:
        """Rewrites made, 0 to `max_rounds`."""
        return len(self.texts) - 1

    @property
    def satisfied(self) -> bool:
        """Whether the last judgement found nothing that the scenario forbids."""
        return not self.failed and not self.judged[-1]


def join_sections(texts: dict[str, str]) -> str:
    """The sections as one text, as it is judged."""
    return " ".join(text for text in texts.values() if text)


def run_loop(
    texts: Sequence[dict[str, str]], scenario: str, judge: Callable, rewriter: Callable, max_rounds: int = MAX_ROUNDS
) -> list[Case]:
    """Judges every report, rewrites those with a category that `scenario` forbids, judges these again, and so on.

    A report is rewritten `max_rounds` times at most (the first judgement is no round); the rewriter sees its earlier
    texts and judgements. `judge` maps n texts to (n, 4) of 0, 1, or -1 where it has no answer. `rewriter` maps n cases
    to their new sections, or to a sentence that says why there are none. All reports take a step together, so that a
    network gets full batches and an endpoint many requests at once.
    """
    cases = [Case(scenario, [dict(sections)]) for sections in texts]
    pending = cases
    for rounds_left in range(max_rounds, -1, -1):
        for case, verdict in zip(pending, judge([join_sections(case.texts[-1]) for case in pending]), strict=True):
            if min(verdict) < 0:
                case.failed = f"the judge {judge.name} gave no valid answer"
                continue
            present = [category for category, state in zip(CATEGORIES, verdict, strict=True) if state > 0]
            case.judged.append(tuple(category for category in present if category in FORBIDDEN[scenario]))
        pending = [case for case in pending if not case.failed and case.judged[-1]]
        if not rounds_left or not pending:
            break
        for case, answer in zip(pending, rewriter(pending), strict=True):
            if isinstance(answer, str):
                case.failed = answer
            else:
                case.texts.append({name: answer.get(name, "") for name in case.texts[0]})
                if not join_sections(answer).strip():
                    case.failed = BARE
        pending = [case for case in pending if not case.failed]
    return cases


def guard(cases: Sequence[Case], labeler: Callable, section: str = "impression") -> None:
    """Marks the rewritten cases whose labels changed as failed: LLM-RG4 discards them.

    `section` is compared, of a report without it the findings, else the whole text (A-29).
    """
    rewritten = [case for case in cases if case.rounds and not case.failed]
    preferred = () if section == "report" else (section, "findings")
    names = [next((name for name in preferred if case.texts[0].get(name)), None) for case in rewritten]
    pairs = [
        [(text.get(name, "") if name else join_sections(text)) for text in (case.texts[0], case.texts[-1])]
        for case, name in zip(rewritten, names, strict=True)
    ]
    before, after = (np.asarray(labeler([pair[i] for pair in pairs])) for i in (0, 1))
    for case, name, old, new in zip(rewritten, names, before, after, strict=True):
        if changed := np.flatnonzero(old != new).tolist():
            state = [
                f"{CONDITIONS[i]} {CheXpertState(old[i]).name.lower()} -> {CheXpertState(new[i]).name.lower()}"
                for i in changed
            ]
            case.failed = f"the labels of the {name or 'report'} changed: {', '.join(state)}"


def can_serve(available: str | None, scenario: str) -> bool:
    """Whether a row of scenario `available` has what `scenario` needs: a lateral image for m, a prior report for w.

    A row without a scenario (it has no frontal view) serves none.
    """
    return (
        bool(available) and (scenario[0] == "s" or available[0] == "m") and (scenario[1] == "n" or available[1] == "w")
    )


def read_rows(dataset: str, limit: int | None = None) -> dict[str, Dataset]:
    """The splits of a built data set with encoded images, of each the first `limit` rows."""
    splits = {}
    for split, rows in read_dataset(dataset, CORE).items():
        if unknown := set(rows.unique("scenario")) - {*SCENARIOS, None}:
            raise InputError(
                f"split {split} of {dataset} has the scenario {unknown.pop()!r}, which is none of {SCENARIOS}"
            )
        for name in {"images", "prior_images"} & set(rows.column_names):
            rows = rows.cast_column(name, List(Image(decode=False)))
        splits[split] = rows.select(range(min(limit or len(rows), len(rows))))
    return splits


def check_private(splits: dict[str, Dataset], endpoint: str | None, mine: bool) -> None:
    """Raises InputError where text that is not free would go to another machine that is not said to be the user's."""
    if endpoint:
        check_url(endpoint)
    private = private_among(name for rows in splits.values() for name in rows.unique("source"))
    if private and endpoint and not is_loopback(endpoint) and not mine:
        raise InputError(
            f"--endpoint {endpoint} is not on this machine, and text of source {private[0]} goes to a model that "
            "runs locally only; if that machine is your own, say so with --endpoint_is_mine (--help says why)"
        )


class EitherJudge:
    """Finds what one of its judges finds: for a rewriter that does no harm where a judge is mistaken."""

    def __init__(self, *judges: Callable):
        self.judges, self.name = judges, "+".join(judge.name for judge in judges)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """0 or 1, int8, shape (n, 4)."""
        return np.max([judge(texts) for judge in self.judges], axis=0)


def load_judge(name: str) -> Callable:
    """The judge `rule`, `discbert` (in outputs/discbert), `discbert:MODEL`, or rule+discbert, which is either.

    Raises InputError on another name, and where the model is missing.
    """
    if name.startswith("rule+"):
        return EitherJudge(RuleJudge(), load_judge(name.removeprefix("rule+")))
    if name == "rule":
        return RuleJudge()
    kind, _, model = name.partition(":")
    if kind != "discbert":
        raise InputError(
            f"there is no judge {name!r}; choose rule, discbert:MODEL or rule+discbert:MODEL (a build: or llm)"
        )
    from rewards.discbert import DISCBERT, DiscBertJudge  # imports torch, which the rest of this file works without

    try:
        return DiscBertJudge(model or DISCBERT)
    except ValueError as error:
        raise InputError(f"the judge {name}: {error}; or name the judge rule, which needs no model") from error


def load_pair(args, file: str | Path) -> tuple[Callable, Callable, Answers | None]:
    """The judge, the rewriter, and the memory of the LLM's answers in `file` where there is an LLM.

    `args` are those of recipes/build_mimic_rg4.py. Raises InputError on another judge, and where a model is missing.
    """
    judge = None if args.judge == "llm" else load_judge(args.judge)
    if "llm" not in (args.judge, args.rewriter):
        return judge, RuleRewriter(), None
    if not args.llm:
        raise InputError("--judge llm and --rewriter llm need --llm, the model's name (and --endpoint, its server)")
    if args.endpoint:
        options = (args.timeout, args.retries, args.backoff, args.concurrency, args.max_tokens)
        chat = Endpoint(args.endpoint, args.llm, *options)
    else:
        chat = SimpleNamespace(name=args.llm) if args.dry_run else InProcess(args.llm, args.max_tokens)
    answers = Answers(chat, ":memory:" if args.dry_run else file)
    judge = judge or LLMJudge(answers, read_prompt(PROMPTS["judge"]))
    rewriter = LLMRewriter(answers, read_prompt(PROMPTS["rewriter"])) if args.rewriter == "llm" else RuleRewriter()
    return judge, rewriter, answers


def rows_for(rows: Dataset, scenario: str | None) -> Dataset:
    """The rows that have what `scenario` needs (`can_serve`); for None those without a scenario."""
    suitable = (
        not available if scenario is None else can_serve(available, scenario) for available in rows["scenario"]
    )
    return rows.select([i for i, serves in enumerate(suitable) if serves])


def read_sections(rows: Dataset) -> list[dict[str, str]]:
    """`sections_of` each row."""
    return [sections_of(row)[0] for row in rows.select_columns(["findings", "impression", "report"])]


def sections_of(row: dict) -> tuple[dict[str, str], str | None]:
    """What the loop rewrites of a row, and the target (of `sections.TARGETS`) that its report is.

    The findings and the impression where the report is made of them, else the report itself, with None.
    """
    sections = {name: row.get(name) for name in ("findings", "impression")}
    if target := target_of(sections, row["report"]):
        return {name: text for name, text in sections.items() if text}, target
    return {"report": row["report"]}, None


def discard_unsatisfied(cases: Sequence[Case]) -> None:
    """Marks the cases that still hold something forbidden as failed."""
    for case in cases:
        if not case.failed and not case.satisfied:
            case.failed = f"after {case.rounds} rewrites it is still judged to hold {', '.join(case.judged[-1])}"


def write_rows(rows: Dataset, cases: Sequence[Case], labeler: Callable, cleaning: str = "none") -> Iterator[dict]:
    """The rows of the cases that did not fail: their last text and its labels, and the inputs of their scenario.

    The text and the prior report are cleaned by `cleaning` (of `CLEANINGS`) after they are labelled.
    """
    passed = [i for i, case in enumerate(cases) if not case.failed]
    for start in range(0, len(passed), BATCH):
        yield from _label_rows([_to_row(rows[i], cases[i]) for i in passed[start : start + BATCH]], labeler, cleaning)


def _label_rows(rows: list[dict], labeler: Callable, cleaning: str) -> Iterator[dict]:
    """`rows` with the labels of their reports, then cleaned: the labelers read punctuation and capitals."""
    labels = labeler([row["report"] for row in rows]).tolist()
    yield from (clean_row(row, cleaning) | {"labels": states} for row, states in zip(rows, labels, strict=True))


def clean_row(row: dict, cleaning: str) -> dict:
    """`row` with the sections, the report and the prior report under `cleaning`; "none" leaves all as it is.

    As the authors do when they load a report, and after the rewriter, which needs the points of "3.5 cm".
    """
    if cleaning == "none":
        return row
    cleaned = {name: clean_mimic(row[name], cleaning) for name in ("findings", "impression", "prior_report")}
    target = target_of(row, row["report"])
    report = target_text(cleaned, target) if target else clean_mimic(row["report"], cleaning)
    return row | cleaned | {"report": report}


def discard_bare(rows: Dataset, cases: Sequence[Case], cleaning: str = "none") -> None:
    """Marks the cases as failed of whose report nothing is left under `cleaning`."""
    for row, case in zip(rows.select_columns(["findings", "impression", "report"]), cases, strict=True):
        text = _last_text(row, case) | {"prior_report": None}
        if not case.failed and not has_text(clean_row(text, cleaning)["report"]):
            case.failed = BARE


def _last_text(row: dict, case: Case) -> dict:
    """The columns findings, impression and report after the last rewrite."""
    target, last = sections_of(row)[1], case.texts[-1]
    sections = {name: last.get(name) or None for name in ("findings", "impression")}
    return {**sections, "report": last["report"] if target is None else target_text(sections, target)}


def _to_row(row: dict, case: Case) -> dict:
    lateral = [is_lateral(view) for view in row["views"]]
    places = [lateral.index(False)] if False in lateral else []
    if case.scenario[0] == "m" and True in lateral:
        places.append(lateral.index(True))
    return {
        **row,
        **_last_text(row, case),
        "images": [row["images"][i] for i in places] if row["images"] else [],
        "views": [row["views"][i] for i in places],
        "prior_report": row["prior_report"] if case.scenario[1] == "w" else None,
        "scenario": case.scenario,
        "key_spans": None,
    }


class Notes:
    """The provenance of each report: what was judged and rewritten, by whom, and what became of it.

    Written to provenance.parquet and discarded.csv in `folder` as the reports come, since those of MIMIC-CXR's four
    scenarios would take gigabytes of memory. `build` names the judge, the rewriter and the labeler. `counts` are those
    of each scenario's outcomes.
    """

    def __init__(self, folder: Path, build: dict):
        self.folder, self.names = folder, {name: build[name] for name in ("judge", "rewriter", "labeler")}
        self.counts: dict[str, Counter] = {}
        self.reasons: Counter[str] = Counter()
        self.table: parquet.ParquetWriter | None = None

    def __enter__(self) -> "Notes":
        self.file = (self.folder / "discarded.csv").open("w", newline="", encoding="utf-8")
        csv.writer(self.file).writerow(["study_id", "scenario", "split", "reason"])
        return self

    def __exit__(self, *error) -> None:
        self.file.close()
        if self.table:
            self.table.close()

    def add(self, rows: Dataset | dict, cases: Sequence[Case], split: str) -> None:
        """Writes down what became of `rows`, whose `cases` these are."""
        for start in range(0, len(cases), NOTES):
            some = slice(start, start + NOTES)
            notes = [
                {
                    "study_id": study,
                    "scenario": case.scenario,
                    "split": split,
                    "rounds": case.rounds,
                    "satisfied": case.satisfied,
                    "discarded": case.failed,
                    "history": json.dumps(
                        [list(pair) for pair in zip(case.texts, case.judged, strict=False)], ensure_ascii=False
                    ),
                    **self.names,
                }
                for study, case in zip(rows["study_id"][some], cases[some], strict=True)
            ]
            table = pyarrow.Table.from_pylist(notes, schema=_NOTE)
            self.table = self.table or parquet.ParquetWriter(self.folder / "provenance.parquet", _NOTE)
            self.table.write_table(table)
        for study, case in zip(rows["study_id"], cases, strict=True):
            if case.failed:
                csv.writer(self.file).writerow([study, case.scenario, split, case.failed])
                self.reasons[case.failed] += 1
            outcome = "discarded" if case.failed else "satisfied" if case.satisfied else "unsatisfied"
            self.counts.setdefault(case.scenario, Counter())[outcome] += 1
            self.counts[case.scenario]["rewritten"] += case.rounds > 0

    def leave_out(self, studies: Sequence[str], scenario: str, split: str, reason: str) -> None:
        """Writes down that `studies` are in no data set, and why."""
        self.add({"study_id": studies}, [Case(scenario, [{}], failed=reason) for _ in studies], split)

    def why(self) -> str:
        """The most frequent reason for discarding, as the end of a sentence."""
        for reason, count in self.reasons.most_common(1):
            return f": of {count} reports, {reason}"
        return ": none has the images or the prior report"


def print_estimate(splits: dict[str, Dataset], scenarios: Sequence[str], judge, rewriter, max_rounds: int) -> None:
    """Prints for each scenario how many requests and tokens an LLM would see, from one rewrite each to `max_rounds`.

    The share to rewrite is that of `SAMPLE` reports judged by the judge, or by the rules where the judge is an LLM.
    """
    print(f"{'scenario':10}{'reports':>10}{'to rewrite':>12}{'requests':>20}{'million tokens':>20}")
    for scenario in scenarios:
        texts = [sections for rows in splits.values() for sections in read_sections(rows_for(rows, scenario))]
        if not texts:
            continue
        sample = texts[:: max(1, len(texts) // SAMPLE)][:SAMPLE]
        verdicts = (RuleJudge() if isinstance(judge, LLMJudge) else judge)(
            [join_sections(sections) for sections in sample]
        )
        names = [
            [c for c, state in zip(CATEGORIES, row, strict=True) if state and c in FORBIDDEN[scenario]]
            for row in verdicts
        ]
        asked = [
            Case(scenario, [text], [tuple(categories)])
            for text, categories in zip(sample, names, strict=True)
            if categories
        ]
        share = len(asked) / len(sample)
        requests, tokens = [0.0, 0.0], [0.0, 0.0]
        for i, rounds in enumerate((1, max_rounds)):
            if isinstance(rewriter, LLMRewriter) and asked:
                length = np.mean([len(json.dumps(rewriter.question(case))) for case in asked])
                report = np.mean([len(json.dumps(case.texts[0])) for case in asked])
                grown = sum(
                    length + 2 * report * earlier + report for earlier in range(rounds)
                )  # with history and answer
                requests[i] += share * len(texts) * rounds
                tokens[i] += share * len(texts) * grown / CHARACTERS_PER_TOKEN
            if isinstance(judge, LLMJudge):
                length = np.mean([len(json.dumps(judge.question(join_sections(text)))) + 90 for text in sample])
                requests[i] += len(texts) * (1 + share * rounds)
                tokens[i] += len(texts) * (1 + share * rounds) * length / CHARACTERS_PER_TOKEN
        asks, millions = (f"{low:,.0f} to {high:,.0f}" for low, high in (requests, [count / 1e6 for count in tokens]))
        if max(tokens) < 1e8:
            millions = f"{tokens[0] / 1e6:.2f} to {tokens[1] / 1e6:.2f}"
        print(f"{scenario:10}{len(texts):>10,}{share:>12.1%}{asks:>20}{millions:>20}")
    print(
        f"({SAMPLE} reports at most were judged for this, a token taken as {CHARACTERS_PER_TOKEN} characters; "
        "nothing sent)"
    )


# --- the published data set --------------------------------------------------------------------------------------

_PUBLISHED = ("id", "finding", "impression", "history", "indication")
_SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
_MIMIC_PATH = re.compile(r"p(\d{8})/s(\d{8})")


def check_published(args) -> None:
    """Raises InputError where `args`, of recipes/build_mimic_rg4.py, mix what rewrites rows and what imports files.

    Fills in what --published does where nothing is named: the longest side has 512 pixels, findings and impression.
    """
    if bool(args.dataset) == bool(args.published):
        raise InputError(
            "give either --dataset (to rewrite) or --published (MIMIC-RG4's own files, rewritten already)"
        )
    defaults = {"image_size": 512, "image_size_of": "longest", "target": "findings+impression"}
    explicit = [name for name in ("image_root", *defaults) if getattr(args, name) is not None]
    if args.dataset and explicit:
        raise InputError(
            f"--{explicit[0]} is of --published: the rows of --dataset keep the images and the target that they were "
            "built with"
        )
    for name, value in defaults.items():
        if args.published and name not in explicit:
            setattr(args, name, value)
    if args.image_size is not None and args.image_size < 1:
        raise InputError(f"--image_size must be at least 1 pixel, not {args.image_size}")
    cleaning = read_build(args.dataset).get("cleaning", "plain") if args.dataset else "plain"
    if cleaning != "plain":
        raise InputError(
            f"{args.dataset} was built with --cleaning {cleaning}, by which numbers lost their points before anything "
            "is rewritten: build it with --cleaning plain, and clean here with --cleaning"
        )


def read_published(
    argument: str, args, labeler: Callable
) -> tuple[str, dict[str, Callable[[], Iterator[dict]]], dict[str, list[str]]]:
    """The scenario and, by split, the rows of one file of the published MIMIC-RG4; `argument` is SCENARIO:FILE.

    `args` are those of recipes/build_mimic_rg4.py: images, cleaning and target. The third of what is returned are, by
    split, the studies that have no text for the target and so no row.

    A file is {"train", "val", "test": [record]}. Of a record "s" stands for a missing finding or impression and 0 for
    a missing history or indication (RG-102). Its `new_scores` are weights of the tokens of one language
    model and no characters, so `key_spans` stays null: recipes/weigh_tokens.py makes them again. Without
    `args.image_root` the rows have no images. Raises InputError naming the file and the record.
    """
    scenario, _, file = argument.partition(":")
    if scenario not in SCENARIOS or not file:
        raise InputError(
            f"--published takes SCENARIO:FILE with a scenario of {', '.join(SCENARIOS)}, not {argument!r}"
        )
    try:
        published = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"--published: there is no file {file}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f"--published: {file} is no JSON ({error})") from error
    if not isinstance(published, dict) or not {"train", "val", "test"} & set(published):
        raise InputError(f"--published: {file} has no train, val and test as MIMIC-RG4's files have")
    for split, records in published.items():
        for number, record in enumerate(records):
            if missing := [key for key in _PUBLISHED if not isinstance(record, dict) or key not in record]:
                raise InputError(f"--published: {file}, record {number} of {split} has no {missing[0]!r}")
            if record["finding"] == record["impression"] == "s":
                raise InputError(f"--published: {file}, record {number} of {split} has neither finding nor impression")
    rows, without = {}, {}
    for split, name in _SPLIT_NAMES.items():
        texts = [_published_text(record, scenario, args.target) for record in published.get(split, ())]
        written = [has_text(clean_row(text, args.cleaning)["report"]) for text in texts]
        pairs = list(zip(published.get(split, ()), texts, strict=True))
        without[name] = [text["study_id"] for text, filled in zip(texts, written, strict=True) if not filled]
        if any(written):
            rows[name] = partial(_published_rows, list(compress(pairs, written)), scenario, args, labeler)
    return scenario, rows, without


def _published_rows(pairs: list[tuple[dict, dict]], scenario: str, args, labeler: Callable) -> Iterator[dict]:
    for start in range(0, len(pairs), BATCH):
        rows = [text | _published_images(record, scenario, args) for record, text in pairs[start : start + BATCH]]
        yield from _label_rows(rows, labeler, args.cleaning)


def _published_text(record: dict, scenario: str, target: str) -> dict:
    """The columns of `record` but images, views and labels."""

    def text(key: str, missing: str | int) -> str | None:
        return None if record.get(key, missing) in (missing, None, "") else record[key]

    ids = _MIMIC_PATH.search(record.get("APPA_imagepath") or "")
    sections = {"findings": text("finding", "s"), "impression": text("impression", "s")}
    prior = [text(key, "s") for key in ("last_finding", "last_impression")] if scenario[1] == "w" else []
    return {
        "study_id": ids[2] if ids else str(record["id"]),
        "subject_id": ids[1] if ids else str(record["id"]),
        "indication": text("indication", 0),
        "history": text("history", 0),
        "prior_report": " ".join(filter(None, prior)) or None,
        **sections,
        "report": target_text(sections, target),
        "scenario": scenario,
        "source": MIMIC_RG4.name,
        "license": "PhysioNet Credentialed Health Data License 1.5.0",
    }


def _published_images(record: dict, scenario: str, args) -> dict:
    paths = [record.get("APPA_imagepath") or ""]
    views = [record["APPA_flag"] if record.get("APPA_flag") in ("PA", "AP") else "FRONTAL"]
    if scenario[0] == "m":
        paths.append(record.get("lateral_imagepath") or "")
        views.append("LATERAL")
    images = []
    if args.image_root:
        for path in paths:
            file = (Path(args.image_root) / path.lstrip("/")).resolve()
            if not file.is_relative_to(Path(args.image_root).resolve()):
                raise InputError(f"record {record['id']}: the image path {path} leaves --image_root")
            images.append({"bytes": read_png(file, args.image_size, args.image_size_of), "path": None})
    return {"images": images, "views": views}
