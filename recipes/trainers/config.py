"""What the configs of all training recipes share: checked settings, and a batch that holds on any number of GPUs."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from recipes.data.settings import Range, check_settings
from recipes.files import InputError


@dataclass
class RecipeConfig:
    """Before a TrainingArguments among a class's bases: its settings are checked, its batch is of all processes.

    `ranges` are numbers that a class allows otherwise than recipes/data/settings.py, `metrics` the names that its
    trainer logs in an evaluation, without `eval_`. Raises InputError on a setting that is not allowed, and where
    `effective_batch_size` cannot be shared by the processes.
    """

    ranges: ClassVar[dict[str, Range]] = {}
    metrics: ClassVar[tuple[str, ...]] = ()

    effective_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Samples (GRPO, PPO: completions) per optimizer step over all processes. Sets "
            "gradient_accumulation_steps, and lowers per_device_train_batch_size where many processes take more."
        },
    )

    def __post_init__(self):
        check_settings(self)
        if self.effective_batch_size is not None:
            self._share_batch()
        super().__post_init__()

    def _share_batch(self) -> None:
        devices = int(os.environ.get("WORLD_SIZE", 1))
        if devices == 1 and not self.use_cpu:
            devices = max(1, torch.cuda.device_count())  # Trainer shares a lone process's batch among all GPUs
        batch, size = self.effective_batch_size, self.per_device_train_batch_size

        def check_multiple(divisor: int, name: str) -> None:
            if batch % divisor:
                raise InputError(f"effective_batch_size ({batch}) must be a multiple of {name} ({divisor})")

        check_multiple(devices, "the processes")
        if size * devices > batch:
            self.per_device_train_batch_size = batch // devices
            if os.environ.get("RANK", "0") == "0":
                print(
                    f"per_device_train_batch_size is {batch // devices} instead of {size}: effective_batch_size is "
                    f"{batch} over {devices} processes",
                    flush=True,
                )
        share = self.per_device_train_batch_size * devices
        check_multiple(share, "per_device_train_batch_size x processes")
        if self.gradient_accumulation_steps not in (1, batch // share):
            raise InputError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) contradicts effective_batch_size "
                f"({batch}), which makes it {batch // share}: set effective_batch_size alone"
            )
        self.gradient_accumulation_steps = batch // share


@dataclass
class SFTRecipeConfig(RecipeConfig, SFTConfig):
    """TRL's SFTConfig with what RecipeConfig adds."""

    metrics: ClassVar[tuple[str, ...]] = ("entropy", "mean_token_accuracy", "num_tokens")


@dataclass
class LabelerConfig(RecipeConfig, TrainingArguments):
    """transformers' TrainingArguments with what RecipeConfig adds, of a CheXbert or a DiscBERT."""


def check_run(
    args: TrainingArguments, samples: int, metrics: Iterable[str] = (), rewards: Iterable[Callable] = ()
) -> None:
    """Raises InputError where a run would train nothing, or choose the best checkpoint by what no evaluation has.

    `samples`: rows of the training data. `metrics`: names that an evaluation logs beside those of the config's class;
    `rewards`: the reward functions, whose own names count too.
    """
    need, why = 1, "a step takes"
    if isinstance(args, GRPOConfig):
        need = args.generation_batch_size // args.num_generations
        why = f"a generation batch of {args.generation_batch_size} completions, {args.num_generations} of each, takes"
    elif args.dataloader_drop_last:
        need, why = args.train_batch_size * args.world_size, "with dataloader_drop_last a step takes"
    if samples < need:
        raise InputError(
            f"nothing would be trained: there are {samples} training samples, and {why} {need}; lower the batch "
            "(effective_batch_size, per_device_train_batch_size), or use more samples"
        )
    metric = args.metric_for_best_model
    if metric is None:
        return
    if args.eval_strategy == "no":
        raise InputError(f"metric_for_best_model ({metric}) is looked at in evaluations: set eval_strategy")
    figures = {"loss", "runtime", "samples_per_second", "steps_per_second", *metrics, *getattr(args, "metrics", ())}
    names = [reward.__name__ for reward in rewards]
    figures |= {f"rewards/{name}/{figure}" for name in names for figure in ("mean", "std")}
    names = [name.removesuffix("_reward") for name in names]  # what a reward logs of its parts begins with it
    figure = metric.removeprefix("eval_")
    if figure not in figures and figure.partition("/")[0] not in names:
        raise InputError(f"metric_for_best_model must be one of {', '.join(sorted(figures))}, not {metric}")
