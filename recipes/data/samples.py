"""From a row of the schema to what TRL's trainers read: `prompt`, `images` and, for SFT, `completion`."""

from datasets import Dataset, Image, List

from recipes.cli import InputError
from rewards.labels import FINDINGS, CheXpertState

VIEWS = ("each", "frontal", "all")


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


def to_samples(
    rows: Dataset, prompt: str, views: str = "each", completion: str | None = None, keep: tuple[str, ...] = ()
) -> Dataset:
    """Samples with `prompt` (chat messages), `images` and the columns `keep`.

    `views`: `each` makes every image a sample of its own with the study's report (MRG-R1 section IV-A), `frontal`
    keeps a study's first image, `all` gives all of them at once. `completion`: `plain` adds the report as the
    assistant's message, `reasoning` adds `write_answer` of it.
    """
    if views not in VIEWS:
        raise InputError(f"views must be one of {', '.join(VIEWS)}, not {views!r}")
    message = [{"role": "user", "content": prompt.strip()}]
    encoded = rows.cast_column("images", List(Image(decode=False)))  # moved about without decoding

    def explode(batch: dict) -> dict:
        out = {name: [] for name in ("prompt", "images", *keep, *(("completion",) if completion else ()))}
        for i, images in enumerate(batch["images"]):
            if not images:
                raise InputError(f"study {batch['study_id'][i]} has no image")
            report = batch["report"][i]
            text = report
            if completion == "reasoning":
                text = write_answer(batch["labels"][i], report)
            for chosen in {"each": [[image] for image in images], "frontal": [images[:1]], "all": [images]}[views]:
                out["prompt"].append(message)
                out["images"].append(chosen)
                for name in keep:
                    out[name].append(batch[name][i])
                if completion:
                    out["completion"].append([{"role": "assistant", "content": text}])
        return out

    samples = encoded.map(explode, batched=True, batch_size=256, remove_columns=encoded.column_names)
    return samples.cast_column("images", List(Image()))
