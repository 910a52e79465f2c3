"""From a row of the schema to what TRL's trainers read: `prompt`, `images` and, for SFT, `completion`."""

import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from modeling.processing_llmrg4 import check_views, mark_prior
from recipes.data.images import PixelRange, check_image, decode_image, enlarged_by, pixel_range
from recipes.data.labels import load_labeler, read_labelled
from recipes.data.privacy import WHY_PUBLIC
from recipes.data.schema import LATER, read_split
from recipes.data.sections import TARGETS, target_of
from recipes.data.special_tokens import special_token
from recipes.data.views import is_lateral
from recipes.files import InputError, one_process_first, read_prompt
from rewards.labels import FINDINGS, CheXpertState

VIEWS = ("each", "frontal", "all", "frontal+lateral")
FIELD = re.compile(r"\{(prior_report|age|sex|indication|history|sections|view)\}")  # of each study, in a prompt
LONGEST = 10  # times that one side of an X-ray is as long as the other: a film of both legs has 3
SEXES = {"F": "female", "M": "male"}
FRONTAL = {"PA": "posteroanterior (PA)", "AP": "anteroposterior (AP)"}


@dataclass
class DataArguments:
    """What a training recipe reads: the same settings in every recipe."""

    dataset: str = field(metadata={"help": "Built data set: a folder, or a Hub id."})
    prompt_file: str = field(
        default="prompts/mrgr1_plain.txt", metadata={"help": "Prompt file: a path, or a name beside the recipes."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Largest number of training samples; none: all."})
    check_images: bool = field(
        default=False,
        metadata={
            "help": "Decode every image before anything is trained; without it as far as headers and ends show."
        },
    )
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


@dataclass
class ImageArguments(DataArguments):
    """DataArguments of a model that takes any number of images, in a range of pixels."""

    views: str = field(
        default="each", metadata={"help": "Images of a sample: each alone (paper), the frontal one, or all at once."}
    )
    min_pixels: int | None = field(
        default=None,
        metadata={"help": "Number of pixels that smaller images are scaled up to; none: the model's own."},
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Number of pixels that larger images are scaled down to; none: the model's own."},
    )


class TrainingData(NamedTuple):
    """What a run is trained on: by split its rows (of the schema) and the samples made of them.

    `labeler` is what labelled the rows, or None.
    """

    rows: dict[str, Dataset]
    samples: dict[str, Dataset]
    labeler: Callable | None = None

    @property
    def train(self) -> Dataset:
        """Samples that are trained on."""
        return self.samples["train"]

    @property
    def validation(self) -> Dataset | None:
        """Samples of evaluations, or None."""
        return self.samples.get("validation")


def write_reasoning(labels: list[int]) -> str:
    """The text for `<think>` when no reasoning was ever annotated: the findings by state, in CheXpert's order.

    The policy's own reasoning tends to mirror the label space anyway (MRG-R1 section VI).
    """
    groups = {"Present": CheXpertState.POSITIVE, "Possible": CheXpertState.UNCERTAIN}
    names_by_state = {
        title: ", ".join(name for name, value in zip(FINDINGS, labels, strict=False) if value == state)
        for title, state in groups.items()
    }
    return " ".join(f"{title}: {names}." for title, names in names_by_state.items() if names) or "No abnormal finding."


def write_answer(labels: list[int], report: str) -> str:
    """What a policy that reasons should answer: `write_reasoning` in `<think>`, then the report in `<report>`."""
    return f"<think>{write_reasoning(labels)}</think>\n<report>{report}</report>"


def fill_prompt(prompt: str, study: dict) -> str:
    """`prompt` with its fields filled from one row of the schema; a prompt without fields comes back as it is.

    `{prior_report}`: marked for LLM-RG4's processor. `{age}`, `{sex}`, `{indication}`, `{history}`: a line each, such
    as "Age: 63 years" and "Sex: female". All five are empty where the study has none. `{view}`: of the first image.
    `{sections}`: findings, impression, or both, whichever the study's report is made of (findings where of none), so
    that with `{view}` there are nine instructions (RG-053).
    """

    def fill(field: re.Match) -> str:
        name = field[1]
        if name == "prior_report":
            return mark_prior(study[name])
        if name == "view":
            return FRONTAL.get(study["views"][0], "frontal")
        if name == "sections":
            names = TARGETS[target_of(study, study["report"]) or "findings"]
            return " and ".join(section for section in names if study[section]) or "findings"
        if name in ("age", "sex"):
            text = describe_age(study[name]) if name == "age" else SEXES.get(study[name], study[name])
            return f"{name.capitalize()}: {text}\n" if text else ""
        return f"{name.capitalize()}: {study[name].strip()}\n" if study[name] else ""

    return FIELD.sub(fill, prompt)


def describe_age(years: float | None) -> str | None:
    """An age in words, of `years`: completed years, or months below two years; None where it is not known.

    >>> describe_age(63.9), describe_age(1.5), describe_age(float("nan"))
    ('63 years', '18 months', None)
    """
    if years is None or math.isnan(years):
        return None
    return f"{int(years)} years" if years >= 2 else f"{12 * years:.0f} months"


def columns_of(prompt: str, views: str) -> tuple[str, ...]:
    """The columns that `to_samples` needs for `prompt` and `views`."""
    names = FIELD.findall(prompt)
    inputs = ("views", "indication", "history", "prior_report", "findings", "impression") * bool(names)
    inputs += tuple(name for name in ("age", "sex") if name in names)  # which an older data set may lack
    return ("study_id", "report", "images", *(inputs or ("views",) * (views == "frontal+lateral")))


def first_views(views: list[str]) -> list[int]:
    """The places of the frontal image and of the first lateral one, as recipes/build_mimic_rg4.py takes them.

    The builders store frontal views first, and any number of either. All places where the first is a lateral one,
    which `check_views` refuses.
    """
    laterals = [place for place, view in enumerate(views) if is_lateral(view)]
    return list(range(len(views))) if 0 in laterals else [0, *laterals[:1]]


def check_text(text: str | None, name: str) -> None:
    """Raises InputError, calling the text `name`, where it holds what a model or a recipe reads as a mark of its own.

    A tokenizer turns "<|image_pad|>" in a report into the place of an image, and "</report>" ends what is rewarded.
    """
    if token := special_token(text or ""):
        raise InputError(
            f"{name} holds {token!r}, which is no text for a model but a token of its own: mend it, or leave it out"
        )


def samples_of(study: dict, prompt: str, views: str) -> list[tuple[str, list]]:
    """What one row of the schema becomes, each a sample: the prompt's text and its images; `views` as of `to_samples`.

    `study` needs `study_id`, `images` and what `columns_of` names. Raises InputError naming the study where it has no
    image, or other views than asked for, or a text that `fill_prompt` cannot take, or that holds a token of a model's.
    """
    for name in FIELD.findall(prompt):
        if isinstance(study.get(name), str):
            check_text(study[name], f"the {name} of study {study['study_id']}")
    images = study["images"]
    if not images:
        raise InputError(f"study {study['study_id']} has no image")
    try:
        if views == "frontal+lateral":
            if len(images) != len(study["views"] or ()):
                raise ValueError(f"{len(images)} images have {len(study['views'] or ())} views")
            places = first_views(study["views"])
            study = study | {"views": [study["views"][place] for place in places]}
            images = [images[place] for place in places]
            check_views(study["views"])
        text = fill_prompt(prompt, study)
    except ValueError as error:
        raise InputError(f"study {study['study_id']}: {error}") from error
    groups = {"each": [[image] for image in images], "frontal": [images[:1]]}.get(views, [images])
    return [(text, group) for group in groups]


def to_samples(
    rows: Dataset,
    prompt: str,
    views: str = "each",
    completion: str | None = None,
    keep: tuple[str, ...] = (),
    limit: int | None = None,
    check: bool = False,
) -> Dataset:
    """Samples with `prompt` (chat messages), `images` and the columns `keep`; the first `limit` ones, if that is set.

    Of `boxes` a sample has those of its first image: none, where that is not the study's first.

    `prompt` may have the fields of `fill_prompt`. `views`: `each` makes every image a sample of its own with the
    study's report (MRG-R1 section IV-A), `frontal` keeps a study's first image, `all` gives all of them at once,
    `frontal+lateral` its first frontal and first lateral one, as LLM-RG4 takes them: raises InputError naming the
    study where the first image is no frontal one. `completion`: `plain` adds the report as the assistant's message,
    `reasoning` adds `write_answer` of it; with it `length`, the characters of prompt and answer, by which
    `train_sampling_strategy: group_by_length` puts samples into batches.

    No image is copied: a sample holds the places of its images in `rows`, and they are read when it is asked for, mode
    "RGB". The header and the end of each image's file are looked at first, with `check` all of it (`measure_images`,
    which names a bad one). Both that and the texts are kept beside the data set, so that the next run, with another
    prompt or not, looks at no image again. Of several processes one does it, then the others read it: each of them has
    to call this.
    """
    if views not in VIEWS:
        raise InputError(f"views must be one of {', '.join(VIEWS)}, not {views!r}")
    prompt = prompt.strip()
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))  # a row is a sample or several
    images = rows.select_columns([name for name in ("study_id", "images") if name in rows.column_names])
    images = images.with_format("arrow")  # which decodes nothing

    def explode(batch: dict, numbers: list[int]) -> dict:
        out = {name: [] for name in ("prompt", "images", *keep, *(("completion", "length") if completion else ()))}
        for i, report in enumerate(batch["report"]):
            if completion:
                study_id = batch["study_id"][i] if "study_id" in batch else numbers[i]
                check_text(report, f"the report of study {study_id}")
            answer = write_answer(batch["labels"][i], report) if completion == "reasoning" else report
            study = {name: values[i] for name, values in batch.items()}
            study["images"] = [
                {"row": numbers[i], "place": place, "width": width, "height": height}
                for place, (width, height) in enumerate(study["image_sizes"])
            ]
            for text, places in samples_of(study, prompt, views):
                out["prompt"].append([{"role": "user", "content": text}])
                out["images"].append(places)
                for name in keep:  # boxes are those of the study's first image
                    out[name].append(None if name == "boxes" and places[0]["place"] else batch[name][i])
                if completion:
                    out["completion"].append([{"role": "assistant", "content": answer}])
                    out["length"].append(len(text) + len(answer))
        return out

    with one_process_first():
        sizes = images.map(
            measure_images,
            batched=True,
            with_indices=True,
            batch_size=100,
            remove_columns=images.column_names,
            fn_kwargs={"decode": True} if check else None,
        ).with_format(None)
        texts = concatenate_datasets([rows.remove_columns("images"), sizes], axis=1)
        samples = texts.map(
            explode, batched=True, with_indices=True, batch_size=256, remove_columns=texts.column_names
        )
    samples = samples.select(range(min(limit, len(samples)))) if limit is not None else samples
    return samples.with_transform(ImageReader(images))


def splits_of(training_args) -> tuple[str, ...]:
    """The splits that a run reads: train, and validation where it evaluates."""
    return ("train", "validation") if training_args.eval_strategy != "no" else ("train",)


def read_samples(
    args: DataArguments,
    training_args,
    views: str,
    completion: str | None = None,
    keep: tuple[str, ...] = (),
    labeler: str | None = None,
    labels: str = "labels",
    limited: tuple[str, ...] = ("train",),
) -> TrainingData:
    """The samples of a run (`to_samples`) from the data set and with the prompt that `args` names.

    `labeler`: the name of one (`load_labeler`), whose labels the rows then have in the column `labels`. `limited`: the
    splits of which `max_samples` are taken. Raises InputError naming the file or the column that is missing.

        read_samples(args, training_args, "each", keep=("study_id", "report", "labels"), labeler="lexical")
    """
    prompt = read_prompt(args.prompt_file)
    columns, labeling = columns_of(prompt, views), load_labeler(labeler) if labeler else None
    columns += tuple(name for name in keep if name in LATER)  # which an older data set may lack
    rows, samples = {}, {}
    for split in splits_of(training_args):
        if labeling:
            rows[split] = read_labelled(args.dataset, split, labeling, columns)
            if labels != "labels":
                rows[split] = rows[split].rename_column("labels", labels)
        else:
            rows[split] = read_split(args.dataset, split, columns)
        limit = args.max_samples if split in limited else None
        samples[split] = to_samples(rows[split], prompt, views, completion, keep, limit, args.check_images)
    return TrainingData(rows, samples, labeling)


def name_images(images: list[dict] | None, study: str | None, row: int) -> list[dict]:
    """The encoded `images` of a row, each with a name for sentences about it instead of its path; one that is only a
    path keeps it.

    The name has the study's id, or the number of the row where that is None. Raises InputError where there is nothing
    in the place of an image.
    """
    place = f"row {row}" if study is None else f"study {study}"
    entries = []
    for number, image in enumerate(images or (), start=1):
        content, path = (image or {}).get("bytes"), (image or {}).get("path")
        if content is None and path is None:
            raise InputError(f"image {number} of {place} is missing; leave it out, or build the data set again")
        entries.append({"bytes": content, "path": path if content is None else f"image {number} of {place}"})
    return entries


def encoded_image(image: dict) -> bytes:
    """The content of an image's file, wherever it is."""
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise InputError(f"the image {image['path']} cannot be read: {error.strerror}") from error


def encoded_rows(table: pa.Table, numbers: list[int]) -> Iterator[list[dict]]:
    """What `name_images` makes of each row of `table`, `images` and perhaps `study_id`; `numbers`: those of rows."""
    studies = table["study_id"].to_pylist() if "study_id" in table.column_names else [None] * len(numbers)
    for images, study, number in zip(table["images"], studies, numbers, strict=True):
        yield name_images(images.as_py(), study, number)


def measure_images(table: pa.Table, numbers: list[int], decode: bool = False) -> pa.Table:
    """The column `image_sizes` for rows with `images`: (width, height) of each image, in pixels.

    Every image is opened, but not decoded (`check_image`: 0.05 ms for one of 160 kB); with `decode` it is, in as many
    threads as this process has cores. Raises InputError naming the study and the image where it is missing, empty, cut
    short, a strip or no image.
    """
    rows = list(encoded_rows(table, numbers))
    if decode:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(lambda image: decode_image(encoded_image(image), image["path"]), chain(*rows)):
                pass
    sizes = [[_measure(image) for image in images] for images in rows]
    return pa.table({"image_sizes": pa.array(sizes, pa.list_(pa.list_(pa.int32())))})


def _measure(image: dict) -> tuple[int, int]:
    width, height = check_image(encoded_image(image), image["path"])
    if max(width, height) > LONGEST * min(width, height):
        raise InputError(
            f"{image['path']} has {width} x {height} pixels, a strip that is no X-ray (one side is more than "
            f"{LONGEST} times the other): leave the study out, or cut the image to the chest"
        )
    return width, height


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of a batch of samples from `rows` when it is asked for, scaled to `pixels`, if any.

    `rows`: `images` and perhaps `study_id`, in the format arrow. In a batch an image is {row, place, width, height}.
    Raises InputError naming the study of an image that cannot be read.
    """

    rows: Dataset
    pixels: PixelRange | None = None

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "images" in batch:
            batch["images"] = [[self.read(place) for place in places] for places in batch["images"]]
        return batch

    def find(self, place: dict) -> dict:
        """The encoded image at `place`, by `name_images`."""
        [images] = encoded_rows(self.rows[place["row"]], [place["row"]])
        return images[place["place"]]

    def read(self, place: dict):
        """The image at `place`, mode "RGB"."""
        image = self.find(place)
        pixels = decode_image(encoded_image(image), image["path"])
        return self.pixels(pixels, image["path"]) if self.pixels else pixels


def image_reader(samples: Dataset) -> ImageReader | None:
    """What reads the images of `samples` when one is asked for; None where they are not `to_samples`'s."""
    return samples.format["format_kwargs"].get("transform")


def image_places(samples: Dataset) -> Iterator[dict]:
    """{row, place, width, height} of every image of `samples`, of which none is read."""
    for batch in samples.select_columns("images").with_format("arrow").iter(1000):
        yield from batch["images"].combine_chunks().flatten().to_pylist()


def prepare_images(samples: dict[str, Dataset], processor) -> dict[str, Dataset]:
    """The `samples` of each split with images in the pixel range of `processor`, if it has one.

    Raises InputError as `check_images`.
    """
    pixels = pixel_range(processor)
    for split in samples.values():
        check_images(split, pixels)
    return {name: split.with_transform(replace(image_reader(split), pixels=pixels)) for name, split in samples.items()}


def report_enlarged(samples: Dataset, processor, most: int = 200) -> int:
    """Prints how many images of `most` samples, spread over all of them, the image processor of `processor` enlarges.

    Nothing is printed where there are none. Returns the number.
    """
    shares = range(0, len(samples), max(1, len(samples) // most))[:most]
    sizes = [(place["width"], place["height"]) for place in image_places(samples.select(shares))]
    small = [size for size in sizes if enlarged_by(processor, *size)]
    if small:
        width, height = small[0]
        print(f"{len(small)} of {len(sizes)} images looked at are enlarged by the model's image processor, the first "
              f"from {width} x {height} pixels: build the data set with a larger --image_size, and --image_size_of "
              "shortest for a model that crops", flush=True)  # fmt: skip
    return len(small)


def check_images(samples: Dataset, pixels: PixelRange | None) -> None:
    """Raises InputError naming the study and the image of `samples` that is a strip which `pixels` does not take."""
    for place in image_places(samples) if pixels else ():
        try:
            pixels.size(place["width"], place["height"])
        except InputError:
            name = image_reader(samples).find(place)["path"]
            pixels.size(place["width"], place["height"], name)
