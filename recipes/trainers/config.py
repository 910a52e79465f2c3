"""What the configs of all training recipes share: checked settings, and a batch that holds on any number of GPUs."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import GRPOConfig, RLOOConfig, SFTConfig

from recipes.data.settings import POSITIVE, Range, check_settings
from recipes.files import InputError
from recipes.trainers.checkpoints import weights_are_split

RL_CONFIGS = (GRPOConfig, RLOOConfig)  # of runs whose model writes completions for prompts


@dataclass
class RecipeConfig:
    """Before a TrainingArguments among a class's bases: its settings are checked, its batch is of all processes.

    `ranges` are numbers that a class allows otherwise than recipes/data/settings.py, `metrics` the names that its
    trainer logs in an evaluation, without `eval_`. Raises InputError on a setting that is not allowed, and where
    `effective_batch_size` cannot be shared by the processes.

    Example:

        @dataclass
        class MyConfig(RecipeConfig, TrainingArguments):
            ranges: ClassVar[dict[str, Range]] = {"my_weight": NOT_NEGATIVE}
            my_weight: float = 1.0

        MyConfig("out", effective_batch_size=16)  # over all processes
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
    gradient_accumulation_steps: int | None = field(
        default=None,
        metadata={"help": "Batches of each process per optimizer step; none: 1, or effective_batch_size's number."},
    )

    def __post_init__(self):
        check_settings(self)
        if self.effective_batch_size is not None:
            self._share_batch()
        elif self.gradient_accumulation_steps is None:
            self.gradient_accumulation_steps = 1
        super().__post_init__()
        check_trackers(self.report_to)

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
        if self.gradient_accumulation_steps not in (None, batch // share):
            raise InputError(
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}) contradicts effective_batch_size "
                f"({batch}), which makes it {batch // share}: set effective_batch_size alone"
            )
        self.gradient_accumulation_steps = batch // share


@dataclass
class SFTRecipeConfig(RecipeConfig, SFTConfig):
    """TRL's SFTConfig with what RecipeConfig adds, and evaluations that write reports (`ClinicalEvaluation`).

    Example:

        SFTRecipeConfig("out", eval_strategy="epoch", clinical_samples=64, metric_for_best_model="clinical_f1")
    """

    clinical_samples: int = field(
        default=0,
        metadata={
            "help": "Number of reports written and scored at each evaluation; metric_for_best_model can then be "
            "clinical_f1 or mccs."
        },
    )
    clinical_labeler: str = field(
        default="lexical", metadata={"help": "Labeler of these reports: lexical, chexbert or chexbert:MODEL."}
    )
    clinical_max_new_tokens: int = field(default=256, metadata={"help": "Largest number of tokens of such a report."})

    @property
    def metrics(self) -> tuple[str, ...]:
        """What an evaluation logs, without `eval_`."""
        return (
            "entropy",
            "mean_token_accuracy",
            "num_tokens",
            *(("clinical_f1", "mccs") * bool(self.clinical_samples)),
        )

    def __post_init__(self):
        super().__post_init__()
        if self.clinical_samples and weights_are_split(self):
            raise InputError(
                "--clinical_samples needs the whole model in each process: take accelerate_configs/multi_gpu.yaml, "
                "zero1.yaml or zero2.yaml, or leave it out and score checkpoints with generate.py and evaluate.py"
            )
        if self.clinical_samples and self.eval_strategy == "no":
            raise InputError("--clinical_samples writes reports at each evaluation: set eval_strategy and eval_steps")


@dataclass
class PolicySettings(RecipeConfig):
    """RecipeConfig of policies that write reports and are rewarded for them; a base before one of `RL_CONFIGS`."""

    ranges: ClassVar[dict[str, Range]] = {"temperature": POSITIVE}  # completions are sampled

    stop_on_collapse: int = field(
        default=256,
        metadata={"help": "Number of last completions, the run ending once 0.95 of them are one report; 0: never."},
    )


@dataclass
class PolicyConfig(PolicySettings, GRPOConfig):
    """TRL's GRPOConfig with what PolicySettings adds.

    Example:

        PolicyConfig("out", stop_on_collapse=0)  # trains on, whatever the policy writes
    """


@dataclass
class LabelerConfig(RecipeConfig, TrainingArguments):
    """transformers' TrainingArguments with what RecipeConfig adds, of a CheXbert or a DiscBERT, which fit any GPU.

    Example:

        LabelerConfig("outputs/chexbert", effective_batch_size=64, num_train_epochs=3)
    """

    def __post_init__(self):
        super().__post_init__()
        if weights_are_split(self):
            raise InputError(
                "a labeler is too small to be split: take accelerate_configs/multi_gpu.yaml, no FSDP or ZeRO-3"
            )


def check_trackers(names: str | Iterable[str] | None) -> None:
    """Raises InputError where one of `names`, those of report_to, is none that transformers knows or is installed."""
    names = [names] if isinstance(names, str) else names or ()
    for name in set(names) - {"none", "all"}:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to must be none, or some of {', '.join(INTEGRATION_TO_CALLBACK)}, not {name}")
        if name not in (*get_available_reporting_integrations(), "flyte"):  # flyte: known inside its own tasks alone
            remedy = f"pip install {name}, or set report_to: none"
            raise InputError(f"report_to {name}: its package is not installed: {remedy}")


def check_run(
    args: TrainingArguments, samples: int, metrics: Iterable[str] = (), rewards: Iterable[Callable] = ()
) -> None:
    """Raises InputError where a run would train nothing, or choose the best checkpoint by what no evaluation has.

    `samples`: rows of the training data. `metrics`: names that an evaluation logs beside those of the config's class;
    `rewards`: the reward functions, whose own names count too.
    """
    need, why = 1, "a step takes"
    if isinstance(args, RL_CONFIGS):
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
    figures = {"loss", *metrics, *getattr(args, "metrics", ())}
    names = [reward.__name__ for reward in rewards]
    figures |= {f"rewards/{name}/{figure}" for name in names for figure in ("mean", "std")}
    names = [name.removesuffix("_reward") for name in names]  # what a reward logs of its parts begins with it
    figure = metric.removeprefix("eval_")
    if figure not in figures and figure.partition("/")[0] not in names:
        raise InputError(f"metric_for_best_model must be one of {', '.join(sorted(figures))}, not {metric}")
