"""Turns the published CREPE into a transformers folder: safetensors, config, tokenizer and code.

    python recipes/convert_crepe.py --out outputs/crepe                                     # downloads the checkpoint
    python recipes/convert_crepe.py --checkpoint crepe-biomedbert --out outputs/crepe       # a folder that you have

`rewards.crepe.Crepe("outputs/crepe")`, `--crepe outputs/crepe` of recipes/evaluate.py and the reward `crepe` read it.
CREPE's repository names no licence: ask its authors before you pass the weights on.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedConfig

from modeling import CrepeConfig, CrepeModel
from recipes.cli import parse, run
from recipes.data.conversion import are_tensors, load_exactly, save_folder
from recipes.data.pickles import read_pickle
from recipes.files import InputError

HUB = "gihuncho/crepe-biomedbert"
FILES = ("*.json", "vocab.txt", "model.safetensors", "pytorch_model.bin")
SETTINGS = ("num_error_categories", "use_poisson_loss", "use_presence_loss", "presence_loss_weight")
UNUSED = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")  # buffers that older transformers save


@dataclass
class ConvertArguments:
    marker: ClassVar[str] = "config.json"

    out: str = field(metadata={"help": "Folder of the converted model."})
    checkpoint: str = field(
        default=HUB,
        metadata={"help": "The published model: a folder with config, weights and tokenizer, or a Hub id."},
    )


def read_folder(checkpoint: str) -> tuple[dict[str, torch.Tensor], CrepeConfig, Path]:
    """Weights, configuration and folder of a published CREPE, downloaded where `checkpoint` is a Hub id.

    Raises InputError where it is not there, has no CREPE's settings, no weights or damaged ones; no code is run.
    """
    try:
        folder = Path(checkpoint)
        folder = folder if folder.is_dir() else Path(snapshot_download(checkpoint, allow_patterns=list(FILES)))
        settings = PreTrainedConfig.get_config_dict(folder)[0]
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--checkpoint {checkpoint}: no such folder, or the Hub is out of reach ({reason})"
        ) from error
    if missing := [name for name in SETTINGS if name not in settings]:
        raise InputError(f"{checkpoint} is no CREPE: its config.json has no {missing[0]}")
    weights = [folder / name for name in FILES[2:] if (folder / name).is_file()]
    if not weights:
        raise InputError(f"{checkpoint} has no weights (no model.safetensors and no pytorch_model.bin): copy it again")
    try:
        tensors = load_file(weights[0]) if weights[0].suffix == ".safetensors" else read_pickle(weights[0])
    except SafetensorError as error:
        raise InputError(f"{weights[0]} is damaged ({error}): download it again") from error
    if not are_tensors(tensors):
        raise InputError(f"{weights[0]} holds no weights by name, so it is no CREPE checkpoint")
    settings = {name: value for name, value in settings.items() if name not in ("model_type", "architectures")}
    return tensors, CrepeConfig.from_dict(settings), folder


def convert(weights: dict[str, torch.Tensor], config: CrepeConfig) -> CrepeModel:
    """A CrepeModel in evaluation mode with exactly the published `weights`; InputError where they are another's.

    The original loads without looking, so that a checkpoint without its heads would count errors at random.
    """
    weights = {name: tensor.float() for name, tensor in weights.items() if name not in UNUSED}
    return load_exactly(CrepeModel(config), weights, "the checkpoint is no CREPE of its config.json")


def main() -> None:
    (args,) = parse(ConvertArguments)
    weights, config, source = read_folder(args.checkpoint)
    model = convert(weights, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, config=config)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{args.checkpoint} has no tokenizer that can be read ({reason}): copy it there") from error
    if len(tokenizer) != config.vocab_size:
        raise InputError(
            f"{args.checkpoint} has no tokenizer of its own: {len(tokenizer)} tokens and {config.vocab_size} rows"
        )
    save_folder(args.out, model, tokenizer)


if __name__ == "__main__":
    run(main)
