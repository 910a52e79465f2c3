"""What a rehearsal changes in a paper's YAML, and nothing else: one rule for each key, by the reason that it has.

A YAML's own paths and Hub ids are not changed: every command runs in a folder that holds the replicas by those names
(`microsoft/rad-dino`) and in which outputs/ lies.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

import yaml

from recipes.cli import BITSANDBYTES

STEPS = 3
LENGTH = 32  # tokens of a completion
TEXTS = 400

DEVICE, LENGTHS = "no GPU here", "three steps, each saved and logged"


class Override(NamedTuple):
    """One change: the YAML's value (None: it has none), the rehearsal's, and why."""

    key: str
    published: object
    value: object
    reason: str


def overrides_of(config: Mapping) -> list[Override]:
    """The changes of one YAML's values."""
    trains = "output_dir" in config
    rules = [
        ("use_cpu", trains and not config.get("use_cpu"), True, DEVICE),
        ("attn_implementation", config.get("attn_implementation") == "flash_attention_2", "sdpa", DEVICE),
        ("optim", config.get("optim") in BITSANDBYTES, "adamw_torch", DEVICE),
        ("max_steps", trains, STEPS, LENGTHS),
        ("save_strategy", trains and config.get("save_strategy", "steps") != "steps", "steps", LENGTHS),
        ("save_steps", trains, 1, LENGTHS),
        ("eval_strategy", config.get("eval_strategy") == "epoch", "steps", LENGTHS),
        ("eval_steps", config.get("eval_strategy") == "epoch", 1, LENGTHS),
        ("logging_steps", trains and config.get("logging_steps") != 1, 1, LENGTHS),
        ("max_completion_length", config.get("max_completion_length", 0) > LENGTH, LENGTH, "short completions"),
        ("texts", "texts" in config, TEXTS, "few texts"),
        ("endpoint", "endpoint" in config, "the port of a server that answers by rules", "no LLM here"),
    ]
    return [Override(key, config.get(key), value, reason) for key, holds, value, reason in rules if holds]


ALLOWED = frozenset(
    {
        *("use_cpu", "attn_implementation", "optim", "max_steps", "save_strategy", "save_steps", "eval_strategy"),
        *("eval_steps", "logging_steps", "max_completion_length", "texts", "endpoint"),
    }
)


def read_config(file) -> dict:
    """The values of a YAML."""
    return yaml.safe_load(file.read_text())


def as_text(value: object) -> str:
    """A value as a YAML or as run_config.json may write it: lists are joined, none of a kind is nothing, and what is
    JSON in a text (lr_scheduler_kwargs) is read; 1 is 1.0."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    values = value if isinstance(value, list) else [value]
    texts = [repr(float(each)) if type(each) in (int, float) else str(each).lower() for each in values]
    return ",".join(text for text in texts if text != "none")


def differences(config: Mapping, run: Mapping) -> dict[str, tuple]:
    """The keys of a YAML that a run had other values of: by key the YAML's value and the one in run_config.json."""
    run_values = {
        key: value for settings in run.values() if isinstance(settings, dict) for key, value in settings.items()
    }
    return {
        key: (value, run_values.get(key))
        for key, value in config.items()
        if as_text(run_values.get(key)) != as_text(value)
    }
