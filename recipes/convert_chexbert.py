"""Turns the published CheXbert (chexbert.pth) into a transformers folder, with its code.

    python recipes/convert_chexbert.py --out outputs/chexbert                          # downloads the checkpoint
    python recipes/convert_chexbert.py --checkpoint chexbert.pth --tokenizer bert-base-uncased --out outputs/chexbert

`rewards.chexbert.CheXbertLabeler("outputs/chexbert")` and `--labeler chexbert:outputs/chexbert` read it. The weights
are under CheXbert's own licence (research use): see its repository before you pass them on.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import hf_hub_download

from modeling import CheXbertConfig, CheXbertModel
from recipes.cli import parse, run
from recipes.data.conversion import are_tensors, load_bert, load_exactly, save_folder
from recipes.data.pickles import read_pickle
from recipes.files import InputError

HUB = ("StanfordAIMI/RRG_scorers", "chexbert.pth")
UNUSED = ("bert.embeddings.position_ids", "bert.pooler.dense.weight", "bert.pooler.dense.bias")


@dataclass
class ConvertArguments:
    marker: ClassVar[str] = "config.json"

    out: str = field(metadata={"help": "Folder of the converted model."})
    checkpoint: str | None = field(
        default=None, metadata={"help": "Published .pth file; downloaded from the Hub when not given."}
    )
    tokenizer: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "BERT of the checkpoint's tokenizer and configuration: a folder or a Hub id."},
    )


def read_checkpoint(file: str | Path) -> dict[str, torch.Tensor]:
    """The checkpoint's weights by their names in CheXbertModel; nothing but tensors is unpickled."""
    content = read_pickle(file)
    weights = content.get("model_state_dict") if isinstance(content, dict) else None
    if not are_tensors(weights):
        raise InputError(f"{file} has no 'model_state_dict' of tensors, so it is no CheXbert checkpoint")
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in weights.items() if name not in UNUSED}


def convert(weights: dict[str, torch.Tensor], config: CheXbertConfig) -> CheXbertModel:
    """A CheXbertModel in evaluation mode with exactly `weights`; InputError where names or shapes differ."""
    return load_exactly(CheXbertModel(config), weights, "the checkpoint is no CheXbert on the --tokenizer's BERT")


def main() -> None:
    (args,) = parse(ConvertArguments)
    tokenizer, settings = load_bert(args.tokenizer)
    try:
        checkpoint = args.checkpoint or hf_hub_download(*HUB)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{'/'.join(HUB)} cannot be downloaded ({reason}); give --checkpoint chexbert.pth") from error
    save_folder(args.out, convert(read_checkpoint(checkpoint), CheXbertConfig(**settings)), tokenizer)


if __name__ == "__main__":
    run(main)
