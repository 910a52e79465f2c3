"""What the converters of published checkpoints share: weights that fit exactly, the BERT behind them, the folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from recipes.files import InputError, replacing


def are_tensors(weights: object) -> bool:
    """Whether `weights` is a dict of tensors."""
    return isinstance(weights, dict) and all(map(torch.is_tensor, weights.values()))


def load_bert(name: str) -> tuple[PreTrainedTokenizerBase, dict]:
    """The tokenizer of the BERT that --tokenizer names, and its configuration's values without its model's names.

    Raises InputError where it cannot be loaded or is no BERT.
    """
    try:
        config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--tokenizer {name}: no such folder, or the Hub is out of reach ({reason})") from error
    if config.model_type != "bert":
        raise InputError(f"--tokenizer {name} is a {config.model_type} model, and the checkpoint's is a BERT")
    names = ("model_type", "architectures")
    return tokenizer, {key: value for key, value in config.to_dict().items() if key not in names}


def load_exactly(model: PreTrainedModel, weights: Mapping[str, torch.Tensor], problem: str) -> PreTrainedModel:
    """`model` in evaluation mode with exactly `weights`.

    Where names or shapes differ, raises InputError: `problem`, how many do, and the first one's two shapes.
    """
    shapes, expected = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (weights, model.state_dict())
    )
    if differences := sorted(dict(shapes.items() ^ expected.items())):
        shape, needed = (sizes.get(differences[0], "none") for sizes in (shapes, expected))
        raise InputError(
            f"{problem}: {len(differences)} weights differ, such as {differences[0]} (shape {shape}, and {needed} is "
            "expected)"
        )
    model.load_state_dict(weights)
    return model.eval()


def save_folder(out: str | Path, model: PreTrainedModel, *processors) -> None:
    """Writes `model` and its processors to the folder `out`, whole or not at all, and says how large the model is."""
    with replacing(out, marker="config.json") as folder:
        for part in (model, *processors):
            part.save_pretrained(folder)
    print(f"{out}: {sum(weight.numel() for weight in model.parameters()):,} parameters")
