"""From a row of the schema to what TRL's trainers read: `prompt`, `images` and, for SFT, `completion`."""

import re
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Image, List

from modeling.processing_llmrg4 import check_views, mark_prior
from recipes.cli import InputError
from recipes.data.images import PixelRange, check_image, decode_image, enlarged_by, pixel_range
from recipes.data.mimic import is_lateral
from recipes.data.sections import TARGETS, target_of
from rewards.labels import FINDINGS, CheXpertState

VIEWS = ("each", "frontal", "all", "frontal+lateral")
FIELD = re.compile(r"\{(prior_report|indication|history|sections|view)\}")  # what a prompt may have of each study
FRONTAL = {"PA": "posteroanterior (PA)", "AP": "anteroposterior (AP)"}


def write_reasoning(labels: list[int]) -> str:
    """The text for `<think>` when no reasoning was ever annotated: the findings by state, in CheXpert's order.

    The policy's own reasoning tends to mirror the label space anyway (MRG-R1 section VI).
    """
    groups = {"Present": CheXpertState.POSITIVE, "Possible": CheXpertState.UNCERTAIN}
    named = {
        title: ", ".join(name for name, value in zip(FINDINGS, labels, strict=False) if value == state)
        for title, state in groups.items()
    }
    return " ".join(f"{title}: {names}." for title, names in named.items() if names) or "No abnormal finding."


def write_answer(labels: list[int], report: str) -> str:
    """What a policy that reasons should answer: `write_reasoning` in `<think>`, then the report in `<report>`."""
    return f"<think>{write_reasoning(labels)}</think>\n<report>{report}</report>"


def fill_prompt(prompt: str, study: dict) -> str:
    """`prompt` with its fields filled from one row of the schema; a prompt without fields comes back as it is.

    `{prior_report}`: marked for LLM-RG4's processor. `{indication}`, `{history}`: a line each. All three are empty
    where the study has none. `{view}`: of the first image. `{sections}`: findings, impression, or both, whichever the
    study's report is made of (findings where of none), so that with `{view}` there are nine instructions (RG-053).
    """

    def fill(field: re.Match) -> str:
        name = field[1]
        if name == "prior_report":
            return mark_prior(study[name])
        if name == "view":
            return FRONTAL.get(study["views"][0], "frontal")
        if name == "sections":
            names = TARGETS[target_of(study, study["report"]) or "findings"]
            return " and ".join(each for each in names if study[each]) or "findings"
        return f"{name.capitalize()}: {study[name].strip()}\n" if study[name] else ""

    return FIELD.sub(fill, prompt)


def columns_of(prompt: str, views: str) -> tuple[str, ...]:
    """The columns that `to_samples` needs for `prompt` and `views`."""
    inputs = ("views", "indication", "history", "prior_report", "findings", "impression") * bool(FIELD.search(prompt))
    return ("study_id", "report", "images", *(inputs or ("views",) * (views == "frontal+lateral")))


def first_views(views: list[str]) -> list[int]:
    """The places of the frontal image and of the first lateral one, as recipes/build_mimic_rg4.py takes them.

    The builders store frontal views first, and any number of either. All places where the first is a lateral one,
    which `check_views` refuses.
    """
    laterals = [place for place, view in enumerate(views) if is_lateral(view)]
    return list(range(len(views))) if 0 in laterals else [0, *laterals[:1]]


def samples_of(study: dict, prompt: str, views: str) -> list[tuple[str, list]]:
    """What one row of the schema becomes, each a sample: the prompt's text and its images; `views` as of `to_samples`.

    `study` needs `study_id`, `images` and what `columns_of` names. Raises InputError naming the study where it has no
    image, or other views than asked for, or a text that `fill_prompt` cannot take.
    """
    images = study["images"]
    if not images:
        raise InputError(f"study {study['study_id']} has no image")
    try:
        if views == "frontal+lateral":
            if len(images) != len(study["views"]):
                raise ValueError(f"{len(images)} images have {len(study['views'])} views")
            places = first_views(study["views"])
            study = study | {"views": [study["views"][place] for place in places]}
            images = [images[place] for place in places]
            check_views(study["views"])
        text = fill_prompt(prompt, study)
    except ValueError as error:
        raise InputError(f"study {study['study_id']}: {error}") from error
    chosen = {"each": [[image] for image in images], "frontal": [images[:1]]}.get(views, [images])
    return [(text, each) for each in chosen]


def to_samples(
    rows: Dataset, prompt: str, views: str = "each", completion: str | None = None, keep: tuple[str, ...] = ()
) -> Dataset:
    """Samples with `prompt` (chat messages), `images` and the columns `keep`.

    `prompt` may have the fields of `fill_prompt`. `views`: `each` makes every image a sample of its own with the
    study's report (MRG-R1 section IV-A), `frontal` keeps a study's first image, `all` gives all of them at once,
    `frontal+lateral` its first frontal and first lateral one, as LLM-RG4 takes them: raises InputError naming the
    study where the first image is no frontal one. `completion`: `plain` adds the report as the assistant's message,
    `reasoning` adds `write_answer` of it.

    Images are read when a sample is asked for, mode "RGB": InputError naming the study where that fails.
    """
    if views not in VIEWS:
        raise InputError(f"views must be one of {', '.join(VIEWS)}, not {views!r}")
    prompt = prompt.strip()
    encoded = rows.cast_column("images", List(Image(decode=False)))  # moved about without decoding

    def explode(batch: dict, numbers: list[int]) -> dict:
        out = {name: [] for name in ("prompt", "images", *keep, *(("completion",) if completion else ()))}
        for i, report in enumerate(batch["report"]):
            answer = write_answer(batch["labels"][i], report) if completion == "reasoning" else report
            study = {name: values[i] for name, values in batch.items()}
            place = f"study {study['study_id']}" if "study_id" in study else f"row {numbers[i]}"
            study["images"] = name_images(study["images"], place)
            for text, images in samples_of(study, prompt, views):
                out["prompt"].append([{"role": "user", "content": text}])
                out["images"].append(images)
                for name in keep:
                    out[name].append(batch[name][i])
                if completion:
                    out["completion"].append([{"role": "assistant", "content": answer}])
        return out

    samples = encoded.map(
        explode, batched=True, with_indices=True, batch_size=256, remove_columns=encoded.column_names
    )
    return samples.cast_column("images", List(Image(decode=False))).with_transform(ImageReader())


def name_images(images: list[dict] | None, place: str) -> list[dict]:
    """A row's encoded `images`, each with a name for sentences about it instead of its path; one that is only a path
    keeps it.

    `place`: the row, as a sentence calls it. Raises InputError where there is nothing in the place of an image.
    """
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


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of a batch of samples when it is asked for, scaled to `pixels`, if any.

    Raises InputError naming the study of an image that cannot be read.
    """

    pixels: PixelRange | None = None

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "images" in batch:
            batch["images"] = [[self.read(image) for image in images] for images in batch["images"]]
        return batch

    def read(self, image: dict):
        """The image, mode "RGB"; `image`: what `name_images` makes of it."""
        pixels = decode_image(encoded_image(image), image["path"])
        return self.pixels(pixels, image["path"]) if self.pixels else pixels


def prepare_images(samples: dict[str, Dataset], processor) -> dict[str, Dataset]:
    """The `samples` of each split with images in the pixel range of `processor`, if it has one.

    Every image is opened, but not decoded (`check_image`: 0.05 ms for one of 160 kB). Raises InputError naming the
    study and the image where it is empty, cut short, no image, or a strip that the processor does not take.
    """
    pixels = pixel_range(processor)
    for split in samples.values():
        check_images(split, pixels)
    return {name: split.with_transform(ImageReader(pixels)) for name, split in samples.items()}


def report_enlarged(samples: Dataset, processor, most: int = 200) -> int:
    """Prints how many images of `most` samples, spread over all of them, the image processor of `processor` enlarges.

    By the headers of their files; nothing is printed where there are none. Returns the number.
    """
    shares = range(0, len(samples), max(1, len(samples) // most))[:most]
    rows = samples.select(shares).select_columns("images").with_format(None)
    images = [image for row in rows for image in row["images"]]
    sizes = [check_image(encoded_image(image), image["path"]) for image in images]
    small = [size for size in sizes if enlarged_by(processor, *size)]
    if small:
        width, height = small[0]
        print(f"{len(small)} of {len(images)} images looked at are enlarged by the model's image processor, the first "
              f"from {width} x {height} pixels: build the data set with a larger --image_size, and --image_size_of "
              "shortest for a model that crops", flush=True)  # fmt: skip
    return len(small)


def check_images(samples: Dataset, pixels: PixelRange | None) -> None:
    """Raises InputError as `prepare_images` does."""
    for batch in samples.select_columns("images").with_format("arrow").iter(100):
        for image in batch["images"].combine_chunks().flatten().to_pylist():
            size = check_image(encoded_image(image), image["path"])
            if pixels:
                pixels.size(*size, image["path"])
