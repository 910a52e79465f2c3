"""How a model is asked for reports: the arguments, and what its training remembers of them (run_config.json)."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import cached_file

from recipes.files import InputError, read_prompt

LENGTH = 512  # tokens of a completion, where nothing says it


@dataclass(kw_only=True)
class DecodingArguments:
    """What recipes/generate.py and recipes/app.py ask alike; None: as in training, or as the help says."""

    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": f"Largest number of tokens of a completion; when not given as in training, else {LENGTH}."},
    )
    min_new_tokens: int = field(default=0, metadata={"help": "Smallest number of tokens of a completion."})
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "Penalty on tokens that were written before; 1: none."}
    )
    temperature: float = field(default=0.0, metadata={"help": "Temperature of sampling; 0: greedy or beam search."})
    top_p: float = field(
        default=1.0, metadata={"help": "Probability mass of the tokens to sample from, above 0 to 1."}
    )
    min_pixels: int | None = field(
        default=None,
        metadata={"help": "Fewest pixels of an image; when not given as in training, else the processor's."},
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Most pixels of an image; when not given as in training, else the processor's."},
    )
    dtype: str | None = field(
        default=None,
        metadata={"help": "Type of the weights; when not given, bfloat16 on a GPU that has it, else float32."},
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Jinja file of a chat template; the processor's own when not given."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the model."})
    seed: int = field(default=42, metadata={"help": "Seed of sampling."})


def trained_with(model: str) -> dict:
    """What a recipe trained `model`, a folder or a Hub id, with, as far as its run_config.json says.

    `prompt_file`, `views`, `min_pixels`, `max_pixels` (None: the processor's), and `max_new_tokens`: the length of
    completions in RL, and of those that an SFT's evaluations wrote. A checkpoint-N has it in its run's folder. Empty
    where there is no such file; raises InputError where it is damaged.
    """
    place = Path(model).parent if Path(model).name.startswith("checkpoint-") else model
    quiet = {f"_raise_exceptions_for_{name}": False for name in ("gated_repo", "missing_entries", "connection_errors")}
    try:
        file = cached_file(str(place), "run_config.json", **quiet)
    except OSError:  # neither a folder nor a name that the Hub could have
        file = None
    if file is None:
        return {}
    try:
        record = json.loads(Path(file).read_text())
        groups = [group for group in record.values() if isinstance(group, dict)]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged; delete it and name prompt and views") from error
    inputs = next((group for group in groups if "prompt_file" in group), None)
    if inputs is None:
        return {}
    if record.get("script") == "sft_llmrg4.py":
        inputs = {"views": "frontal+lateral", **inputs}
    trainer = next((group for group in groups if "output_dir" in group), {})
    length = trainer.get("max_completion_length")
    if trainer.get("clinical_samples"):
        length = trainer.get("clinical_max_new_tokens")
    names = ("prompt_file", "views", "min_pixels", "max_pixels")
    return {name: inputs[name] for name in names if name in inputs} | ({"max_new_tokens": length} if length else {})


def ask_as_trained(args) -> list[str]:
    """Fills in what `args` leave open (None) with what their `model` was trained with (`trained_with`), in place.

    `prompt_file`, `views`, `min_pixels`, `max_pixels` and `max_new_tokens` (at last 512). Returns a sentence for each
    that `args` have otherwise, and for another chat template. Raises InputError where the prompt file of the training
    is not there.
    """
    trained, sentences = trained_with(args.model), []
    for name, value in trained.items():
        chosen = getattr(args, name)
        if chosen is None:
            setattr(args, name, value)
        elif value is not None and chosen != value and not is_same_prompt(name, chosen, value):
            sentences.append(f"--{name} is {chosen}; {args.model} was trained with {value}")
    if args.prompt_file is not None and args.prompt_file == trained.get("prompt_file"):
        try:
            read_prompt(args.prompt_file)
        except InputError as error:
            raise InputError(f"{args.model} was trained with a prompt that is not here: {error}; name it") from error
    template = Path(args.model) / "chat_template.jinja"
    if trained and args.chat_template and Path(args.chat_template).is_file() and template.is_file():
        texts = [Path(file).read_text(encoding="utf-8-sig") for file in (args.chat_template, template)]
        if texts[0] != texts[1]:
            sentences.append(f"--chat_template is {args.chat_template}; {args.model} was trained with its own")
    args.max_new_tokens = args.max_new_tokens or LENGTH
    return sentences


def is_same_prompt(name: str, file: str, other: str) -> bool:
    """Whether `name` is prompt_file and both files, the second of which may be gone, have the same text."""
    if name != "prompt_file":
        return False
    try:
        return read_prompt(file) == read_prompt(other)
    except InputError:
        return False
