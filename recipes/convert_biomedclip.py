"""Turns BiomedCLIP's open_clip checkpoint into a transformers folder, with both processors.

    python recipes/convert_biomedclip.py --out outputs/biomedclip                          # downloads the checkpoint
    python recipes/convert_biomedclip.py --checkpoint biomedclip --text biomedbert --out outputs/biomedclip

`LMRRGForConditionalGeneration.from_pretrained_parts("outputs/biomedclip")` reads it, and so does `AutoModel`. The
image processor is open_clip's: the shorter side to 224 pixels, then the centre, so a wide X-ray loses its margins.
"""

import json
import math
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessor, PreTrainedConfig, ViTConfig

from modeling import BiomedCLIPConfig, BiomedCLIPModel
from recipes.cli import parse, run
from recipes.data.conversion import are_tensors, load_exactly, save_folder
from recipes.files import InputError

HUB = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
CONFIG, WEIGHTS = "open_clip_config.json", ("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
UNUSED = ("text.transformer.pooler.", "text.transformer.embeddings.position_ids")
NAMES = {  # parts of open_clip's names and of BiomedCLIPModel's, replaced in this order
    r"^visual\.trunk\.(cls_token)": r"vision_model.embeddings.\1",
    r"^visual\.trunk\.pos_embed": r"vision_model.embeddings.position_embeddings",
    r"^visual\.trunk\.patch_embed\.proj": r"vision_model.embeddings.patch_embeddings.projection",
    r"^visual\.trunk\.blocks\.": r"vision_model.layers.",
    r"^visual\.trunk\.norm\.": r"vision_model.layernorm.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.attn\.proj\.": ".attention.o_proj.",
    r"^visual\.head\.proj\.": "visual_projection.",
    r"^text\.transformer\.": "text_model.",
    r"^text\.proj\.": "text_projection.",
}


@dataclass
class ConvertArguments:
    marker: ClassVar[str] = "config.json"

    out: str = field(metadata={"help": "Folder of the converted model."})
    checkpoint: str | None = field(
        default=None, metadata={"help": f"Folder with {CONFIG}; downloaded from the Hub when not given."}
    )
    text: str | None = field(
        default=None,
        metadata={"help": f"Text encoder, a folder or Hub id; the one that {CONFIG} names when not given."},
    )


def read_checkpoint(folder: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """open_clip's configuration and weights; nothing but tensors is unpickled."""
    config, file = (Path(folder) / CONFIG, *filter(Path.is_file, map(Path(folder).joinpath, WEIGHTS)), None)[:2]
    if file is None or not config.is_file():
        raise InputError(f"--checkpoint {folder} must be a folder with {CONFIG} and {' or '.join(WEIGHTS)}")
    try:
        weights = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        config = json.loads(config.read_text())
    except pickle.UnpicklingError as error:
        raise InputError(f"{file} holds code or is no PyTorch checkpoint, so it was not opened") from error
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, SafetensorError) as error:
        raise InputError(f"{file} or {CONFIG} is damaged; get it again ({error!r:.100})") from error
    if not are_tensors(weights) or not isinstance(config, dict) or "model_cfg" not in config:
        raise InputError(f"{file} is no dict of tensors, or {CONFIG} has no model_cfg: it is not open_clip's")
    return config, weights


def read_config(config: dict, weights: dict[str, torch.Tensor], text: PreTrainedConfig) -> BiomedCLIPConfig:
    """BiomedCLIPModel's configuration; the ViT's sizes are those of its weights, heads being 64 wide as in timm."""
    try:
        model, pixels = config["model_cfg"], config["preprocess_cfg"]
        vision, words = model["vision_cfg"], model["text_cfg"]
        expected = {  # of the published checkpoint: others would need another network
            "timm_model_name": vision["timm_model_name"].startswith("vit_"),
            "timm_pool": vision["timm_pool"] in ("", "token"),
            "timm_proj": vision["timm_proj"] == "linear" and not vision.get("timm_proj_bias"),
            "hf_proj_type": words["hf_proj_type"] == "mlp",
            "hf_pooler_type": words["hf_pooler_type"] == "cls_last_hidden_state_pooler",
            "preprocess_cfg": {"mean", "std"} <= pixels.keys() and pixels.get("resize_mode", "shortest") == "shortest",
            "hf_model_name": text.model_type == "bert",
        }
        width, patch = (weights[f"visual.trunk.{name}"].shape[-1] for name in ("cls_token", "patch_embed.proj.weight"))
        positions, hidden = (weights[f"visual.trunk.{name}"] for name in ("pos_embed", "blocks.0.mlp.fc1.weight"))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the checkpoint is no BiomedCLIP of open_clip: it has no {error.args[0]}") from error
    if different := [name for name, fits in expected.items() if not fits]:
        raise InputError(f"{CONFIG} has a {different[0]} that is not BiomedCLIP's")
    return BiomedCLIPConfig(
        vision_config=ViTConfig(
            hidden_size=width,
            num_hidden_layers=len({name.split(".")[3] for name in weights if name.startswith("visual.trunk.blocks.")}),
            num_attention_heads=width // 64,
            intermediate_size=hidden.shape[0],
            patch_size=patch,
            image_size=math.isqrt(positions.shape[1] - 1) * patch,
            layer_norm_eps=1e-6,
        ),
        text_config=text,
        projection_dim=model["embed_dim"],
        context_length=words.get("context_length", 256),
    )


def convert(weights: dict[str, torch.Tensor], config: BiomedCLIPConfig) -> BiomedCLIPModel:
    """A BiomedCLIPModel in evaluation mode with exactly `weights`; InputError where names or shapes differ."""
    renamed = {}
    for name, tensor in ((name, tensor) for name, tensor in weights.items() if not name.startswith(UNUSED)):
        for old, new in NAMES.items():
            name = re.sub(old, new, name)
        thirds = zip("qkv", tensor.chunk(3), strict=True) if ".attn.qkv." in name else [("", tensor)]
        renamed |= {name.replace("attn.qkv", f"attention.{part}_proj"): third for part, third in thirds}
    problem = "the checkpoint is no BiomedCLIP of its config and --text"
    return load_exactly(BiomedCLIPModel(config), renamed, problem)


def main() -> None:
    (args,) = parse(ConvertArguments)
    folder = args.checkpoint
    try:
        folder = folder or [Path(hf_hub_download(HUB, name)).parent for name in (CONFIG, WEIGHTS[0])][-1]
        config, weights = read_checkpoint(folder)
        name = args.text or config.get("model_cfg", {}).get("text_cfg", {}).get("hf_model_name", "")
        text, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        option, reason = f"--text (not {name!r})" if folder else "--checkpoint FOLDER", str(error).splitlines()[0]
        raise InputError(f"no such folder, or the Hub is out of reach: give {option} ({reason})") from error
    model = convert(weights, read_config(config, weights, text))
    tokenizer.model_max_length = model.config.context_length
    size = model.config.vision_config.image_size
    pixels = {f"image_{statistic}": config["preprocess_cfg"][statistic] for statistic in ("mean", "std")}
    image_processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size, **pixels)
    save_folder(args.out, model, tokenizer, image_processor)


if __name__ == "__main__":
    run(main)
