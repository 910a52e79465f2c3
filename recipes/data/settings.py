"""What a setting may be: YAML and command line go through one check, and one table has the ranges of numbers.

`parse` of recipes/cli.py asks for every argument of a script; the configs of recipes/trainers ask for their own fields
(trainers/config.py), so that Python is told the same.
"""

import math
from dataclasses import fields
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from recipes.files import InputError

if TYPE_CHECKING:
    from trl import TrlParser


class Range(NamedTuple):
    """The numbers from `low` to `high`; `above` leaves out `low`, `below` leaves out `high`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.low < number if self.above else self.low <= number) and (
            number < self.high if self.below else number <= self.high
        )

    def __str__(self) -> str:
        if self.high == math.inf and not self.above:
            return f"{self.low:g} or more" if self.low > -math.inf else "a finite number"
        ends = [f"{'above' if self.above else 'at least'} {self.low:g}"] * (self.low > -math.inf)
        ends += [f"{'below' if self.below else 'at most'} {self.high:g}"] * (self.high < math.inf)
        return " and ".join(ends)


COUNT, POSITIVE, NOT_NEGATIVE = Range(1), Range(0, above=True), Range(0)
UP_TO_1, BELOW_1 = Range(0, 1, above=True), Range(0, 1, below=True)
RANGES = {
    name: allowed
    for allowed, names in {
        COUNT: "batch_size per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
        "effective_batch_size generation_batch_size steps_per_generation eval_accumulation_steps num_iterations "
        "num_generations_eval max_samples limit save_total_limit min_pixels max_pixels max_length max_new_tokens "
        "max_completion_length clinical_max_new_tokens num_beams num_visual_tokens region_chunk_size lora_r "
        "lora_alpha tensor_parallel_size vllm_tensor_parallel_size texts token_budget neighbours",
        Range(2): "num_generations",
        POSITIVE: "num_train_epochs logging_steps save_steps eval_steps repetition_penalty key_weight epsilon "
        "epsilon_high delta timeout diagnostic_weight oracle_gamma oracle_beta label_beta",
        NOT_NEGATIVE: "learning_rate value_learning_rate weight_decay adam_epsilon max_grad_norm warmup_steps beta "
        "std_epsilon lambda_disease missing_eos_penalty neftune_noise_alpha temperature top_k min_new_tokens "
        "clinical_samples stop_on_collapse eval_delay dataloader_num_workers seed data_seed num_completions_to_print "
        "export_annotation_sheet retries judge_retries backoff warm_up_steps",
        UP_TO_1: "top_p vllm_gpu_memory_utilization oracle_smoothing",
        Range(0, 1): "min_p oracle_weight_min oracle_weight_max edit_threshold",
        Range(0, 0.5): "edit_share",
        BELOW_1: "lora_dropout label_smoothing_factor adam_beta1 adam_beta2",
    }.items()
    for name in names.split()
}
MAY_BE_INFINITE = ("max_grad_norm",)
CHOICES = {"dtype": ("auto", "bfloat16", "float16", "float32")}  # of texts that no Literal stands for
NEVER_NULL = ("num_generations",)  # where the type would let it through


def kinds_of(hint: Any) -> set[type]:
    """The types that a value of the type `hint` may have: of a union its parts, of a Literal those of its values."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*map(kinds_of, get_args(hint)))
    if get_origin(hint) is Literal:
        return {type(value) for value in get_args(hint)}
    return {get_origin(hint) or hint}


def choices_of(hint: Any) -> tuple:
    """The values of a Literal, which may be None too; nothing where other values are possible."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    parts = [part for part in parts if part is not NoneType]
    return get_args(parts[0]) if len(parts) == 1 and get_origin(parts[0]) is Literal else ()


def check_settings(arguments: Any) -> None:
    """Raises InputError on a field of the dataclass `arguments` that is not among its choices, or out of its range.

    Every number must be finite, and within `RANGES`, or within the `ranges` of the class where it has its own; what a
    field has by default is always allowed. The sentence has the name, the value and what is allowed.
    """
    ranges, hints = RANGES | getattr(arguments, "ranges", {}), get_type_hints(type(arguments))
    for field in fields(arguments):
        name, value = field.name, getattr(arguments, field.name)
        if value == field.default:  # such as a limit of 0, which is none
            continue
        choices = field.metadata.get("choices") or choices_of(hints[name]) or CHOICES.get(name)
        if choices and value not in choices:
            raise InputError(f"--{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
        if value is None and name in NEVER_NULL:
            raise InputError(f"--{name} must be {ranges[name]}, not null")
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                allowed = ranges.get(name, Range())
                if number not in allowed or (math.isinf(number) and name not in MAY_BE_INFINITE):
                    raise InputError(f"--{name} must be {allowed}, not {number}")
    steps = getattr(arguments, "max_steps", -1)
    if steps != -1 and steps < 1:
        raise InputError(f"--max_steps must be at least 1, or -1 for num_train_epochs, not {steps}")
    low, high = getattr(arguments, "min_pixels", None), getattr(arguments, "max_pixels", None)
    if low and high and low > high:
        raise InputError(f"--min_pixels must be at most --max_pixels, which is {high}, not {low}")


def make_parser(types: tuple[type, ...]) -> "TrlParser":
    """TRL's parser, which takes no abbreviated names, and of an Enum its values alone."""
    from trl import TrlParser  # not at the top: a worker of a builder reads ranges alone

    parser = TrlParser(types, allow_abbrev=False)
    hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}
    for action in parser._actions:
        for kind in kinds_of(hints.get(action.dest)):
            if isinstance(kind, type) and issubclass(kind, Enum):
                action.choices, action.metavar = [item.value for item in kind], action.dest.upper()
    return parser


def read_values(values: dict, types: tuple[type, ...], refuse) -> dict:
    """`values` of a YAML as the command line would read them; calls `refuse` with a sentence on one that it would not.

    null goes where the type or the default has None, a mapping where the type has one.
    """
    parser = make_parser(types)
    parser.error = refuse
    for action in parser._actions:
        action.required = False
    nargs = {action.dest: action.nargs for action in parser._actions}
    hints = {kind: get_type_hints(kind) for kind in types}
    settings = {field.name: (field, hints[kind][field.name]) for kind in types for field in fields(kind)}
    result = {}
    for name, value in values.items():
        field, hint = settings[name]
        kinds = kinds_of(hint)
        items = value if isinstance(value, list) else [value]
        if value is None:
            if NoneType not in kinds and field.default is not None:
                refuse(f"{name} must have a value, not null")
            result[name] = None
        elif isinstance(value, dict):
            if dict not in kinds:
                refuse(f"{name} must be a value, not the mapping {value}")
            result[name] = value
        elif isinstance(value, bool) and bool in kinds:
            result[name] = value
        elif isinstance(value, list) and list not in kinds:
            refuse(f"{name} must be one value, not the list {value}")
        elif isinstance(value, bool):
            refuse(f"{name} must not be {str(value).lower()}, which YAML makes of words such as no and on: quote them")
        elif not items or any(item is None or isinstance(item, (dict, list)) for item in items):
            refuse(f"{name} must be a list of one value or more, not {value}")
        elif isinstance(value, list) and nargs[name] != "+":
            result[name] = value
        else:
            words = [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
            result[name] = getattr(parser.parse_known_args(words)[0], name)
    return result
