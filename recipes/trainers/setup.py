"""What a run is set up with: its rewards, and the record of its settings."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from recipes.files import InputError, read_commit, replacing


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
    try:
        with PartialState().main_process_first():  # what has to be downloaded comes once
            return make_rewards(settings, cached(labeler), references)
    except (OSError, ValueError) as error:
        raise InputError(f"rewards {', '.join(names)}: {str(error).splitlines()[0]}") from error


def save_run(folder: str | Path, *arguments, sources: list[str] | None = None) -> None:
    """Writes `run_config.json` beside a checkpoint: every argument, the package versions and the git commit.

    `changed` are the arguments that differ from their defaults, as a `--config` file would have them. `sources` are
    those of the data that the checkpoint is made of (recipes/hub/push.py: `sources_of`). Tokens are left out.
    """
    from dataclasses import MISSING, asdict
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "datasets", "accelerate")}
    settings = {
        type(each).__name__: {name: value for name, value in asdict(each).items() if not name.endswith("_token")}
        for each in arguments
    }
    changed = {}
    for each in arguments:
        kept = settings[type(each).__name__]
        for field in fields(each):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            value = kept.get(field.name, default)
            if str(value) != str(default) and not isinstance(value, dict):  # dicts: what the libraries fill in
                changed[field.name] = value
    noted = {"script": Path(sys.argv[0]).name, "commit": read_commit(), "packages": packages, "sources": sources or []}
    Path(folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(folder) / "run_config.json") as file:
        file.write_text(json.dumps({**noted, **settings, "changed": changed}, indent=2, default=str) + "\n")
