"""Turns the published CheXbert (chexbert.pth) into a transformers folder: safetensors, config, tokenizer and code.

    python recipes/convert_chexbert.py --out outputs/chexbert                          # downloads the checkpoint
    python recipes/convert_chexbert.py --checkpoint chexbert.pth --tokenizer bert-base-uncased --out outputs/chexbert

`rewards.chexbert.CheXbertLabeler("outputs/chexbert")` and `--labeler chexbert:outputs/chexbert` read it. The weights
are under CheXbert's own licence (research use): see its repository before you pass them on.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from modeling import CheXbertConfig, CheXbertModel
from recipes.cli import parse, run
from recipes.data.pickles import read_pickle
from recipes.files import InputError, replacing

HUB = ("StanfordAIMI/RRG_scorers", "chexbert.pth")
UNUSED = ("bert.embeddings.position_ids", "bert.pooler.dense.weight", "bert.pooler.dense.bias")


@dataclass
class ConvertArguments:
    out: str = field(metadata={"help": "Folder of the converted model."})
    checkpoint: str | None = field(default=None, metadata={"help": "The published .pth; default: from the Hub."})
    tokenizer: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "The BERT whose tokenizer and configuration the checkpoint has: a folder or a Hub id."},
    )


def read_checkpoint(file: str | Path) -> dict[str, torch.Tensor]:
    """The checkpoint's weights by their names in CheXbertModel; nothing but tensors is unpickled."""
    content = read_pickle(file)
    weights = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise InputError(f"{file} has no 'model_state_dict' of tensors, so it is no CheXbert checkpoint")
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in weights.items() if name not in UNUSED}


def convert(weights: dict[str, torch.Tensor], config: CheXbertConfig) -> CheXbertModel:
    """A CheXbertModel in evaluation mode with exactly `weights`; InputError where names or shapes differ."""
    model = CheXbertModel(config)
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise InputError(
            f"the checkpoint is no CheXbert of this architecture: it lacks {len(missing)} weights "
            f"({', '.join(missing[:2]) or 'none'}) and has {len(unknown)} others ({', '.join(unknown[:2]) or 'none'})"
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise InputError(f"the checkpoint's {name} has shape {found}, and the --tokenizer's BERT {wanted}")
    model.load_state_dict(weights)
    return model.eval()


def load_bert(name: str) -> tuple[PreTrainedTokenizerBase, CheXbertConfig]:
    """The tokenizer of a BERT, and its configuration as CheXbert's."""
    try:
        config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--tokenizer {name}: no such folder, or the Hub is out of reach ({reason})") from error
    if config.model_type != "bert":
        raise InputError(f"--tokenizer {name} is a {config.model_type} model; CheXbert is a BERT")
    return tokenizer, CheXbertConfig(**{key: value for key, value in config.to_dict().items() if key != "model_type"})


def main() -> None:
    (args,) = parse(ConvertArguments)
    tokenizer, config = load_bert(args.tokenizer)
    try:
        checkpoint = args.checkpoint or hf_hub_download(*HUB)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{'/'.join(HUB)} cannot be downloaded ({reason}); give --checkpoint chexbert.pth") from error
    model = convert(read_checkpoint(checkpoint), config)
    with replacing(args.out, marker="config.json") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    run(main)
