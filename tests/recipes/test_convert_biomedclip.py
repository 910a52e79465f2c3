"""The converter against open_clip: the same random weights give the same features of images and texts."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, BertConfig, GPT2Config

from modeling import BiomedCLIPModel, LMRRGForConditionalGeneration
from modeling.tiny_lmrrg import build_biomedclip, build_lmrrg
from recipes import convert_biomedclip
from recipes.files import InputError

open_clip = pytest.importorskip(
    "open_clip",
    reason="needs open_clip: pip install --no-deps open_clip_torch==3.3.0 timm==1.0.31 ftfy==6.3.1 wcwidth",
)
TEXTS = [
    "The trachea is a vertical band of air in the midline.",
    "No effusion.",
    "The heart is enlarged, and the lungs",
]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def published_config(text: Path) -> dict:
    """As BiomedCLIP's open_clip_config.json, but for a smaller ViT of timm and the BERT in the folder `text`."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "timm_model_name": "vit_tiny_patch16_224",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": 224,
            },
            "text_cfg": {
                "hf_model_name": str(text),
                "hf_tokenizer_name": str(text),
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "hf_model_pretrained": False,
                "context_length": 64,
            },
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict:
    """`model`: open_clip's, with random weights; `folder`: its checkpoint; `text`: its BERT's config and tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    _, tokenizer, _ = build_biomedclip(TEXTS)
    tokenizer.save_pretrained(folder / "text")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    BertConfig(vocab_size=len(tokenizer), **sizes).save_pretrained(folder / "text")
    config = published_config(folder / "text")
    torch.manual_seed(0)
    model = open_clip.model.CustomTextCLIP(**config["model_cfg"]).eval()
    for parameter in model.parameters():  # large enough that every weight shows, biases and norms too
        parameter.data += 0.05 * torch.randn_like(parameter)
    (folder / "open_clip").mkdir()
    (folder / "open_clip/open_clip_config.json").write_text(json.dumps(config))
    extra = {  # what the published file holds beside
        "text.transformer.embeddings.position_ids": torch.arange(512)[None],
        "text.transformer.pooler.dense.weight": torch.zeros(48, 48),
        "text.transformer.pooler.dense.bias": torch.zeros(48),
    }
    torch.save(model.state_dict() | extra, folder / "open_clip/open_clip_pytorch_model.bin")
    return {"model": model, "folder": folder / "open_clip", "text": folder / "text"}


def arguments(published: dict, out: Path, **others) -> list:
    values = {"checkpoint": published["folder"], "out": out} | others
    return [word for name, value in values.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory) -> Path:
    import sys
    from unittest import mock

    out = tmp_path_factory.mktemp("converted") / "biomedclip"
    with mock.patch.object(sys, "argv", ["script", *map(str, arguments(published, out))]):
        convert_biomedclip.main()
    return out


@torch.no_grad()
def test_features_are_open_clips(published, converted):
    original, model = published["model"], AutoModel.from_pretrained(converted).eval()
    assert type(model) is BiomedCLIPModel
    pixels = torch.randn(3, 3, 224, 224)
    expected = original.encode_image(pixels)
    found = model.get_image_features(pixels)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found.pooler_output, expected, atol=1e-5, rtol=1e-5)
    tokens = original.visual.head(original.visual.trunk.forward_features(pixels))  # class token and patches
    assert found.last_hidden_state.shape == (3, 1 + 196, 128)
    torch.testing.assert_close(found.last_hidden_state, tokens, atol=1e-5, rtol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.model_max_length == 64
    encoded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    expected = original.encode_text(encoded["input_ids"])
    found = model.get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    original.output_dict = True
    both = original(pixels, encoded["input_ids"])
    logits = both["logit_scale"] * both["image_features"] @ both["text_features"].T
    outputs = model(encoded["input_ids"], pixels, encoded["attention_mask"])
    torch.testing.assert_close(outputs.logits_per_image, logits, atol=1e-4, rtol=1e-5)


def test_pixels_are_open_clips(converted):
    from open_clip.transform import image_transform

    pixels = np.random.default_rng(0).integers(0, 255, (300, 260), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    image = Image.fromarray(pixels)  # grey, larger than 224 and not square
    expected = image_transform(224, is_train=False, mean=MEAN, std=STD)(image)
    found = AutoImageProcessor.from_pretrained(converted)(image, return_tensors="pt")["pixel_values"][0]
    assert found.shape == expected.shape == (3, 224, 224)
    assert (found - expected).abs().mean() < 0.02  # two libraries' bicubic resizing, of values within about 2


@torch.no_grad()
def test_lmrrg_starts_from_it(published, converted, tmp_path):
    small, processor = build_lmrrg(TEXTS, vocab_size=400)
    small.model.language_model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    model, _ = LMRRGForConditionalGeneration.from_pretrained_parts(str(converted), str(tmp_path), region_prompt="name")
    pixels = torch.randn(1, 3, 224, 224)
    features = model.model.encode_images(pixels)
    assert features.shape == (1, 30, 128)
    trunk = published["model"].visual
    patches = trunk.head(trunk.trunk.forward_features(pixels))[:, 1:]
    torch.testing.assert_close(features[:, 0], patches.mean(1), atol=1e-5, rtol=1e-5)  # F_global


def test_safetensors_and_another_text_will_do(published, converted, tmp_path, call):
    from safetensors.torch import save_file

    weights = torch.load(published["folder"] / "open_clip_pytorch_model.bin", weights_only=True)
    (tmp_path / "source").mkdir()
    save_file(weights, tmp_path / "source/open_clip_model.safetensors")
    config = published_config(Path("microsoft/out-of-reach"))
    (tmp_path / "source/open_clip_config.json").write_text(json.dumps(config))
    changes = {"checkpoint": tmp_path / "source", "text": published["text"]}
    call(convert_biomedclip.main, *arguments(published, tmp_path / "out", **changes))
    one, same = (BiomedCLIPModel.from_pretrained(folder).state_dict() for folder in (converted, tmp_path / "out"))
    assert all(torch.equal(one[name], same[name]) for name in one)


# Bad input


class Attack:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the checkpoint was run')",)


def weights_of(published: dict, **changes) -> dict:
    """The published weights, some replaced, or dropped where None; names with __ for a dot."""
    weights = torch.load(published["folder"] / "open_clip_pytorch_model.bin", weights_only=True)
    weights |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


def config_of(published: dict, part: str | None = None, **changes) -> dict:
    config = published_config(published["text"])
    (config["model_cfg"][part] if part else config).update(changes)
    return config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (None, None), "must be a folder with open_clip_config.json and open_clip_pytorch_model.bin or"),
        (lambda p: (config_of(p), None), "must be a folder with open_clip_config.json"),
        (lambda p: (config_of(p), {"text": Attack()}), "holds code"),
        (
            lambda p: (config_of(p), b"a page of the Hub"),
            "is damaged; get it again|holds code or is no PyTorch checkpoint",
        ),
        (lambda p: (config_of(p), [torch.zeros(2)]), "is no dict of tensors"),
        (lambda p: (config_of(p), {"module.weight": torch.zeros(2)}), "it has no visual.trunk.cls_token"),
        (lambda p: ({"embed_dim": 4}, weights_of(p)), "open_clip_config.json has no model_cfg"),
        (
            lambda p: (config_of(p, "vision_cfg", timm_model_name="resnet50"), weights_of(p)),
            "has a timm_model_name that is not BiomedCLIP's",
        ),
        (lambda p: (config_of(p, "text_cfg", hf_proj_type="linear"), weights_of(p)), "has a hf_proj_type"),
        (lambda p: (config_of(p, preprocess_cfg={"mean": MEAN}), weights_of(p)), "has a preprocess_cfg"),
        (
            lambda p: (config_of(p), weights_of(p, logit_scale=None)),
            "1 weights differ, such as logit_scale .shape none",
        ),
        (
            lambda p: (config_of(p), weights_of(p, text__proj__0__weight=torch.zeros(9, 9))),
            r"such as text_projection.0.weight \(shape \(9, 9\), and \(88, 48\) is expected\)",
        ),
        (
            lambda p: (config_of(p), weights_of(p, visual__trunk__blocks__0__ls1__gamma=torch.zeros(2))),
            "such as vision_model.layers.0.ls1.gamma",
        ),
    ],
)
def test_bad_checkpoints_are_refused(published, tmp_path, call, make, message):
    config, weights = make(published)
    source = tmp_path / "source"
    source.mkdir()
    if config is not None:
        (source / "open_clip_config.json").write_text(json.dumps(config))
    if isinstance(weights, bytes):
        (source / "open_clip_pytorch_model.bin").write_bytes(weights)
    elif weights is not None:
        torch.save(weights, source / "open_clip_pytorch_model.bin")
    with pytest.raises(InputError, match=message) as refused:
        call(convert_biomedclip.main, *arguments(published, tmp_path / "out", checkpoint=source))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_half_a_checkpoint_and_a_pickle(published, tmp_path, call):
    content = (published["folder"] / "open_clip_pytorch_model.bin").read_bytes()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config_of(published)))
    for bad, message in (
        (content[: len(content) // 2], "is damaged; get it again"),
        (pickle.dumps({"text": Attack()}, protocol=2), "holds code"),
    ):
        (tmp_path / "open_clip_pytorch_model.bin").write_bytes(bad)
        with pytest.raises(InputError, match=message) as refused:
            call(convert_biomedclip.main, *arguments(published, tmp_path / "out", checkpoint=tmp_path))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("/no/such/folder", r"give --text \(not '/no/such/folder'\)"), ("gpt2", "has a hf_model_name that is not")],
)
def test_bad_texts_are_refused(published, tmp_path, call, text, message):
    if text == "gpt2":
        text = tmp_path / "gpt2"
        GPT2Config(n_layer=1, n_head=1, n_embd=4).save_pretrained(text)
        for file in published["text"].glob("tokenizer*"):
            (text / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=message):
        call(convert_biomedclip.main, *arguments(published, tmp_path / "out", text=text))


def test_without_the_hub(tmp_path, call):
    with pytest.raises(InputError, match="out of reach: give --checkpoint FOLDER"):  # the tests are offline
        call(convert_biomedclip.main, "--out", tmp_path / "out")


def test_only_an_earlier_result_is_replaced(published, tmp_path, call):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no earlier result"):
        call(convert_biomedclip.main, *arguments(published, tmp_path / "out"))
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
