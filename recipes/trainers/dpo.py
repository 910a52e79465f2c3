"""Preference learning on TRL's DPOTrainer, for any policy whose processor its collator can call."""

from dataclasses import dataclass
from typing import ClassVar

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from recipes.data.samples import image_reader
from recipes.data.settings import NOT_NEGATIVE, Range
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.config import RecipeConfig


@dataclass
class PreferenceConfig(RecipeConfig, DPOConfig):
    """TRL's DPOConfig with what RecipeConfig adds.

    Example:

        PreferenceConfig("out", beta=0.1, loss_type=["sigmoid"], effective_batch_size=16)
    """

    ranges: ClassVar[dict[str, Range]] = {"beta": NOT_NEGATIVE}


class PreferenceTrainer(RecipeTrainer, DPOTrainer):
    """DPOTrainer as it is (Rafailov et al., 2023, Eq. 7), with checkpoints, checks and pushes of the recipes.

    Its collator hands all that a processor makes of a prompt on to the model: an LLM-RG4 gets laterals and prior
    reports, an LM-RRG its images, and the reference too.

    Example:

        pair = {"prompt": "Report: ", "chosen": "Clear lungs.", "rejected": "Large heart."}
        dataset = Dataset.from_list([pair] * 8)
        trainer = PreferenceTrainer("Qwen/Qwen2.5-0.5B-Instruct", args=PreferenceConfig("out"), train_dataset=dataset)
    """


def with_pairs(samples: Dataset, pairs: dict[str, dict[str, str]]) -> Dataset:
    """`samples` (recipes/data/samples.py, with `study_id`) of the studies with a pair, and `chosen` and `rejected`.

    Both are the assistant's message. A study's samples, one an image, all have its pair.
    """
    reader, samples = image_reader(samples), samples.with_format(None)  # no image is read while columns are added
    samples = samples.select([place for place, study in enumerate(samples["study_id"]) if study in pairs])
    for name in ("chosen", "rejected"):
        texts = [pairs[study][name] for study in samples["study_id"]]
        samples = samples.add_column(name, [[{"role": "assistant", "content": text}] for text in texts])
    return samples.with_transform(reader)
