"""What a run is set up with: its model's processor, its rewards, and the record of its settings."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from torch import nn
from transformers import ProcessorMixin
from trl import ModelConfig

from recipes.data.model_files import check_model
from recipes.data.processors import load_processor
from recipes.files import InputError, read_commit, replacing
from recipes.hub.push import Repository
from recipes.progress import clock, is_quiet


def load_base_processor(
    model_args: ModelConfig, min_pixels: int | None = None, max_pixels: int | None = None
) -> ProcessorMixin:
    """The processor of the vision-language model that `model_args` names, whose weights are not read.

    `min_pixels`, `max_pixels`: the range of pixels that images are scaled to; None leaves the model's own. Raises
    InputError where there is no such model, it reads no images, lacks the attention, or has no processor.
    """
    check_model(model_args.model_name_or_path, attention=model_args.attn_implementation)
    return load_processor(
        model_args.model_name_or_path, model_args.model_revision, min_pixels=min_pixels, max_pixels=max_pixels
    )


def choose_rewards(settings, labeler: Callable, references: Sequence[str], weights) -> list[Callable]:
    """The rewards that `settings`, RewardArguments of rewards/table.py, name; `weights` are those of the run, if any.

    Each process makes its own, the first process before the others. Raises InputError on an unknown name, another
    number of weights, or a reward that cannot be made.
    """
    from accelerate import PartialState

    from rewards.inputs import cached
    from rewards.table import REWARDS, import_reward, make_rewards

    names = settings.rewards
    try:
        for name in names:
            if name not in REWARDS:
                import_reward(name)  # a name that does not exist is told before anything is loaded
    except ValueError as error:
        raise InputError(str(error)) from error
    if weights and len(weights) != len(names):
        raise InputError(f"reward_weights has {len(weights)} values for {len(names)} rewards")
    processes, start = PartialState(), time.monotonic()
    speaks = processes.is_main_process and not is_quiet()
    if speaks:
        print(f"rewards {', '.join(names)}: getting ready", flush=True)  # some have models to load, or to download
    try:
        with processes.main_process_first():  # what has to be downloaded comes once
            rewards = make_rewards(settings, cached(labeler), references)
        if speaks:
            print(f"rewards {', '.join(names)}: ready after {clock(time.monotonic() - start)}", flush=True)
        return rewards
    except (OSError, ValueError) as error:
        raise InputError(f"rewards {', '.join(names)}: {str(error).splitlines()[0]}") from error


def remove_dropout(model: nn.Module | None) -> None:
    """Sets all probabilities of dropout in `model` to 0.

    TRL's `disable_dropout` reaches modules; OPT and others call the function with a probability of the layer's.
    """
    for module in model.modules() if model is not None else ():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


class RunSetup(NamedTuple):
    """What a trainer's `prepare` returns: the dataclasses that a script was called with, its data's sources, and the
    repository that its model is pushed to, None where this process pushes nothing."""

    arguments: tuple
    sources: list[str]
    repository: Repository | None


def save_run(folder: str | Path, *arguments, sources: list[str] | None = None) -> None:
    """Writes `run_config.json` beside a checkpoint: every argument, the package versions and the git commit.

    `changed` are the arguments that differ from their defaults, as a `--config` file would have them. `sources` are
    those of the data that the checkpoint is made of (recipes/hub/push.py: `sources_of`). Tokens are left out.
    """
    from dataclasses import MISSING, asdict
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate")}
    groups, changed = {}, {}
    for settings in arguments:
        values = {name: value for name, value in asdict(settings).items() if not name.endswith("_token")}
        groups[type(settings).__name__] = values
        for field in fields(settings):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            value = values.get(field.name, default)
            if str(value) != str(default) and not isinstance(value, dict):  # dicts: what the libraries fill in
                changed[field.name] = value
    if changed.get("effective_batch_size"):  # which sets the other one, by the number of processes
        changed.pop("gradient_accumulation_steps", None)
    record = {
        "script": Path(sys.argv[0]).name,
        "commit": read_commit(),
        "packages": packages,
        "sources": sources or [],
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(folder) / "run_config.json") as file:
        file.write_text(json.dumps({**record, **groups, "changed": changed}, indent=2, default=str) + "\n")
