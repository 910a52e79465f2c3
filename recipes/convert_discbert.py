"""Turns the DiscBERT that LLM-RG4's authors published (.pth) into a transformers folder, as train_discbert.py writes.

    python recipes/convert_discbert.py --checkpoint DiscBERT.pth --out outputs/discbert

The file is on the authors' Google Drive, which their repository (zh-Wang-Med/LLM-RG4) links. The folder is for
`evaluate.py --hall_judge discbert:outputs/discbert`, whose hallucination rate is then measured by the judge of the
paper's Tables 1 to 3, and for `build_mimic_rg4.py`. The file says nothing of its licence.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoTokenizer

from modeling import DiscBertConfig, DiscBertModel
from recipes.cli import parse, run
from recipes.data.pickles import read_published
from recipes.files import InputError, replacing

HEADS = ("ps", "pp", "view", "comm")  # prior comparison, prior procedure, view, communication: DiscBertModel's order
BUFFERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")  # which older transformers save


@dataclass
class ConvertArguments:
    checkpoint: str = field(metadata={"help": "The published .pth file."})
    out: str = field(metadata={"help": "Folder of the converted model."})
    tokenizer: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "The BERT whose tokenizer and configuration the checkpoint has: a folder or a Hub id."},
    )


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published weights by their names in DiscBertModel."""
    names = {name: name.removeprefix("labeler.") for name in weights}
    for number, head in enumerate(HEADS):
        names |= {f"labeler.{head}_heads.{kind}": f"heads.{number}.{kind}" for kind in ("weight", "bias")}
    return {names[name]: tensor for name, tensor in weights.items() if names[name] not in BUFFERS}


def convert(weights: dict[str, torch.Tensor], config: DiscBertConfig) -> DiscBertModel:
    """A DiscBertModel in evaluation mode with exactly the published `weights`; InputError where they are another's."""
    model, renamed = DiscBertModel(config), rename(weights)
    expected = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in renamed.items()}
    if misfits := sorted(shapes.items() ^ {name: tuple(tensor.shape) for name, tensor in expected.items()}.items()):
        name, shape = misfits[0]
        raise InputError(
            f"the checkpoint is no DiscBERT on the --tokenizer's BERT: {name} {shape} stands on one side alone "
            f"(and {len(misfits) - 1} others)"
        )
    model.load_state_dict(renamed)
    return model.eval()


def main() -> None:
    (args,) = parse(ConvertArguments)
    weights, _ = read_published(args.checkpoint)
    try:
        bert, tokenizer = AutoConfig.from_pretrained(args.tokenizer), AutoTokenizer.from_pretrained(args.tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--tokenizer {args.tokenizer} cannot be loaded: {reason}") from error
    if bert.model_type != "bert":
        raise InputError(f"--tokenizer {args.tokenizer} is a {bert.model_type} model; DiscBERT is a BERT")
    settings = {key: value for key, value in bert.to_dict().items() if key not in ("model_type", "architectures")}
    model = convert(weights, DiscBertConfig(**settings))
    with replacing(args.out, marker="config.json") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    run(main)
