"""Turns the LLM-RG4 of its authors (.pth) into a transformers folder: fusion, decoder, encoders.

    python recipes/convert_llmrg4.py --checkpoint LLM-RG4.pth --out outputs/llmrg4/published

The files (findings with impression, and findings) are on the authors' Google Drive, which their repository
(zh-Wang-Med/LLM-RG4) links. They hold what was trained: the fusion, and LoRA's matrices, which are added to the
decoder's weights here. RAD-DINO, CXR-BERT and Vicuna come from the Hub, or from the folders that are named. A file of
their first stage becomes a model of ours. Nothing is said of a licence.

Their prompt is not ours (recipes/configs/llmrg4/README.md): write reports with theirs.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from modeling import LLMRG4ForConditionalGeneration
from recipes.cli import parse, run
from recipes.data.conversion import save_folder
from recipes.data.pickles import read_published
from recipes.files import InputError

PARTS = {"APPA": "frontal", "lateral": "lateral", "text": "prior"}
MODULES = {
    "crossattention_block": "perceiver.layers.0.attention",
    "layernorm_768_1": "perceiver.layers.0.attention_norm",
    "llama_proj_1": "perceiver.layers.0.linear",
    "layernorm_768_2": "perceiver.layers.0.linear_norm",
    "llama_proj_2": "projection.0",
    "llama_proj_3": "projection.2",
    "layernorm_4096_1": "projection.3",
}
PREFIXES = {f"{part}_{name}.": f"{ours}_{module}." for part, ours in PARTS.items() for name, module in MODULES.items()}
PREFIXES |= {"iit_proj.": "fusion.0.", "iit_layernorm.": "fusion.1."}
QUERIES, DECODER = "APPA_visual_query_tokens", "llama_model.base_model.model.model."
LORA = (".lora_A.default.weight", ".lora_B.default.weight")


@dataclass
class ConvertArguments:
    marker: ClassVar[str] = "config.json"

    checkpoint: str = field(metadata={"help": "Published .pth file."})
    out: str = field(metadata={"help": "Folder of the converted model."})
    vision: str = field(default="microsoft/rad-dino", metadata={"help": "Image encoder: a folder or a Hub id."})
    text: str = field(
        default="microsoft/BiomedVLP-CXR-BERT-specialized",
        metadata={"help": "Text encoder for the prior report: a folder or a Hub id."},
    )
    decoder: str = field(
        default="lmsys/vicuna-7b-v1.5", metadata={"help": "Decoder of the Llama family: a folder or a Hub id."}
    )
    dtype: str = field(default="bfloat16", metadata={"help": "Type of the weights: bfloat16 or float32."})


def split_weights(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of the fusion by their names in TokenFusion, and LoRA's by theirs in the decoder."""
    fusion, lora = {}, {}
    for name, tensor in weights.items():
        prefix = next((start for start in PREFIXES if name.startswith(start)), None)
        if name == QUERIES:
            fusion["queries"] = tensor[0]
        elif prefix:
            fusion[PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
        elif name.startswith(DECODER) and name.endswith(LORA):
            lora[name.removeprefix(DECODER)] = tensor
        else:
            raise InputError(f"the checkpoint has {name}, which LLM-RG4's published code does not train")
    if "queries" not in fusion:
        raise InputError(f"the checkpoint has no {QUERIES}, so it is no LLM-RG4")
    return fusion, lora


@torch.no_grad()
def merge_lora(decoder: torch.nn.Module, lora: dict[str, torch.Tensor], alpha: float) -> None:
    """Adds alpha / r x B A to each weight of `decoder` that `lora` has an A (r, inputs) and a B (outputs, r) of."""
    for name in [key.removesuffix(LORA[0]) for key in lora if key.endswith(LORA[0])]:
        a, b = (lora[name + ending].float() for ending in LORA)
        try:
            weight = decoder.get_parameter(f"{name}.weight")
            weight.copy_(weight.float() + alpha / len(a) * (b @ a))
        except (AttributeError, RuntimeError) as error:
            raise InputError(
                f"--decoder has no {name} of {len(b)} x {a.shape[1]}, as the checkpoint's LoRA"
            ) from error


def main() -> None:
    (args,) = parse(ConvertArguments)
    if args.dtype not in ("bfloat16", "float32"):
        raise InputError(f"--dtype must be bfloat16 or float32, not {args.dtype}")
    weights, settings = read_published(args.checkpoint)
    fusion, lora = split_weights(weights)
    if lora and not settings.get("llm_alpha"):
        raise InputError(f"{args.checkpoint} has LoRA's matrices, but its settings no llm_alpha to scale them by")
    try:
        model, processor = LLMRG4ForConditionalGeneration.from_pretrained_parts(
            args.vision,
            args.text,
            args.decoder,
            getattr(torch, args.dtype),
            max_prior_tokens=settings.get("max_length", 100),
            fusion="atf" if "fusion.0.weight" in fusion else "interleaved",
            projector="mlp",
            projector_hidden_size=len(fusion.get("frontal_projection.0.bias", ())),
            perceiver="authors",
            num_visual_tokens=len(fusion["queries"]),
        )
        model.model.token_fusion.float().load_state_dict(fusion)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{args.checkpoint} and the parts do not fit: {' '.join(str(error).split())}") from error
    merge_lora(model.model.language_model, lora, settings.get("llm_alpha", 0))
    print(f"{args.checkpoint}: {len(fusion)} weights of the fusion, {len(lora) // 2} of the decoder changed by LoRA")
    save_folder(args.out, model, processor)


if __name__ == "__main__":
    run(main)
