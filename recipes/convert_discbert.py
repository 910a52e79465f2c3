"""Turns the DiscBERT of LLM-RG4's authors (.pth) into a folder as train_discbert.py writes.

    python recipes/convert_discbert.py --checkpoint DiscBERT.pth --out outputs/discbert

The file is on the authors' Google Drive, which their repository (zh-Wang-Med/LLM-RG4) links. The folder is for
`evaluate.py --hall_judge discbert:outputs/discbert`, whose hallucination rate is then measured by the judge of the
paper's Tables 1 to 3, and for `build_mimic_rg4.py`. The file says nothing of its licence.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from modeling import DiscBertConfig, DiscBertModel
from recipes.cli import parse, run
from recipes.data.conversion import load_bert, load_exactly, save_folder
from recipes.data.pickles import read_published

HEADS = ("ps", "pp", "view", "comm")  # prior comparison, prior procedure, view, communication: DiscBertModel's order
BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")  # which older transformers save


@dataclass
class ConvertArguments:
    marker: ClassVar[str] = "config.json"

    checkpoint: str = field(metadata={"help": "Published .pth file."})
    out: str = field(metadata={"help": "Folder of the converted model."})
    tokenizer: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "BERT of the checkpoint's tokenizer and configuration: a folder or a Hub id."},
    )


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published weights by their names in DiscBertModel."""
    names = {name: name.removeprefix("labeler.") for name in weights}
    for number, head in enumerate(HEADS):
        names |= {f"labeler.{head}_heads.{kind}": f"heads.{number}.{kind}" for kind in ("weight", "bias")}
    return {names[name]: tensor for name, tensor in weights.items() if names[name] not in BUFFERS}


def convert(weights: dict[str, torch.Tensor], config: DiscBertConfig) -> DiscBertModel:
    """A DiscBertModel in evaluation mode with exactly the published `weights`; InputError where they are another's."""
    problem = "the checkpoint is no DiscBERT on the --tokenizer's BERT"
    return load_exactly(DiscBertModel(config), rename(weights), problem)


def main() -> None:
    (args,) = parse(ConvertArguments)
    weights, _ = read_published(args.checkpoint)
    tokenizer, settings = load_bert(args.tokenizer)
    save_folder(args.out, convert(weights, DiscBertConfig(**settings)), tokenizer)


if __name__ == "__main__":
    run(main)
