"""LLM-RG4 and DiscBERT as their authors published them: files with random weights, converted, against the description.

The architectures below are written out from what the published code does, on weights by the published names. That code
itself, unmodified, agreed with the converted model too, in all four scenarios; it is not here.
"""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import gelu, layer_norm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from modeling import DiscBertModel
from modeling.processing_llmrg4 import mark_prior
from modeling.tiny import build_chexbert, train_tokenizer
from modeling.tiny_llmrg4 import build_llmrg4
from recipes import convert_discbert, convert_llmrg4
from recipes.files import InputError
from rewards.discbert import DiscBertJudge
from rewards.scenarios import CATEGORIES

WIDTH, OUT, HIDDEN, TOKENS, HEADS, LENGTH = 48, 64, 80, 5, 12, 20
TEXTS = ["The heart is normal in size. No effusion.", "There is a small left pleural effusion. Mild edema."] * 6


def normal(*shape: int) -> torch.Tensor:
    return 0.3 * torch.randn(*shape)


# LLM-RG4


def published_block(part: str) -> dict[str, torch.Tensor]:
    """Random weights of one perceiver and its projection, by their published names."""
    linear = {"llama_proj_1": (WIDTH, WIDTH), "llama_proj_2": (HIDDEN, WIDTH), "llama_proj_3": (OUT, HIDDEN)}
    norms = {"layernorm_768_1": WIDTH, "layernorm_768_2": WIDTH, "layernorm_4096_1": OUT}
    weights = {f"{name}.weight": normal(*shape) for name, shape in linear.items()}
    weights |= {f"{name}.bias": normal(shape[0]) for name, shape in linear.items()}
    weights |= {f"{name}.weight": 1 + normal(width) for name, width in norms.items()}
    weights |= {f"{name}.bias": normal(width) for name, width in norms.items()}
    attention = {"in_proj_weight": (3 * WIDTH, WIDTH), "in_proj_bias": (3 * WIDTH,), "out_proj.bias": (WIDTH,)}
    attention |= {"bias_k": (1, 1, WIDTH), "bias_v": (1, 1, WIDTH), "out_proj.weight": (WIDTH, WIDTH)}
    weights |= {f"crossattention_block.{name}": normal(*shape) for name, shape in attention.items()}
    return {f"{part}_{name}": tensor for name, tensor in weights.items()}


def attend(weights: dict, part: str, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """A perceiver of one study, (N, width): every key is read, a learned one and a zero one too."""
    w = {
        name: weights[f"{part}_crossattention_block.{name}"]
        for name in ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "out_proj.weight", "out_proj.bias")
    }
    (wq, wk, wv), (bq, bk, bv) = w["in_proj_weight"].split(WIDTH), w["in_proj_bias"].split(WIDTH)
    q, zero = queries @ wq.T + bq, torch.zeros(1, WIDTH)
    k = torch.cat([features @ wk.T + bk, w["bias_k"][0], zero])
    v = torch.cat([features @ wv.T + bv, w["bias_v"][0], zero])
    size = WIDTH // HEADS
    heads = [slice(start, start + size) for start in range(0, WIDTH, size)]
    read = torch.cat([(q[:, h] @ k[:, h].T / math.sqrt(size)).softmax(-1) @ v[:, h] for h in heads], -1)
    x = norm(weights, f"{part}_layernorm_768_1", read @ w["out_proj.weight"].T + w["out_proj.bias"])
    return norm(weights, f"{part}_layernorm_768_2", linear(weights, f"{part}_llama_proj_1", x)) + x


def linear(weights: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def project(weights: dict, part: str, x: torch.Tensor) -> torch.Tensor:
    hidden = gelu(linear(weights, f"{part}_llama_proj_2", x))
    return norm(weights, f"{part}_layernorm_4096_1", linear(weights, f"{part}_llama_proj_3", hidden))


def published_tokens(weights: dict, frontal: torch.Tensor, lateral=None, prior=None) -> torch.Tensor:
    """The tokens (N, OUT) that the published second stage gives its decoder for one study."""
    query = attend(weights, "APPA", weights["APPA_visual_query_tokens"][0], frontal)
    parts = [project(weights, "APPA", query)]
    for part, features in (("lateral", lateral), ("text", prior)):
        absent = torch.zeros(TOKENS, OUT)
        parts.append(absent if features is None else project(weights, part, attend(weights, part, query, features)))
    return norm(weights, "iit_layernorm", linear(weights, "iit_proj", torch.cat(parts, -1)))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tiny RAD-DINO, CXR-BERT and Vicuna, the first two of one width, as theirs are."""
    folder = tmp_path_factory.mktemp("parts")
    small, processor = build_llmrg4(TEXTS, vision_size=WIDTH, prior_size=WIDTH, vocab_size=300)
    small.model.vision_encoder.save_pretrained(folder / "vision")
    processor.image_processor.save_pretrained(folder / "vision")
    small.model.prior_encoder.save_pretrained(folder / "text")
    processor.prior_tokenizer.save_pretrained(folder / "text")
    tokenizer = train_tokenizer(TEXTS, 299)
    torch.manual_seed(1)
    sizes = {"hidden_size": OUT, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    return {name: str(folder / name) for name in ("vision", "text", "decoder")}


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """The second stage's state dict, LoRA of rank 2 on one layer's queries and values included."""
    torch.manual_seed(0)
    weights = {"APPA_visual_query_tokens": normal(1, TOKENS, WIDTH)}
    for part in ("APPA", "lateral", "text"):
        weights |= published_block(part)
    weights |= {"iit_proj.weight": normal(OUT, 3 * OUT), "iit_proj.bias": normal(OUT)}
    weights |= {"iit_layernorm.weight": 1 + normal(OUT), "iit_layernorm.bias": normal(OUT)}
    for name in ("q_proj", "v_proj"):
        lora = f"llama_model.base_model.model.model.layers.1.self_attn.{name}"
        weights |= {f"{lora}.lora_A.default.weight": normal(2, OUT), f"{lora}.lora_B.default.weight": normal(OUT, 2)}
    return weights


def save(file, weights: dict, **settings) -> str:
    torch.save({"model": weights, "config": Namespace(**settings), "epoch": 1, "step": 9}, file)
    return str(file)


@pytest.fixture(scope="module")
def converted(tmp_path_factory, parts, published):
    folder = tmp_path_factory.mktemp("converted")
    file = save(folder / "published.pth", published, llm_alpha=8, llm_r=2, max_length=LENGTH)
    arguments = ["convert_llmrg4.py", "--checkpoint", file, "--out", str(folder / "out"), "--dtype", "float32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*arguments, *(word for name in parts for word in (f"--{name}", parts[name]))])
        convert_llmrg4.main()
    return AutoModelForImageTextToText.from_pretrained(folder / "out").eval(), AutoProcessor.from_pretrained(
        folder / "out"
    )


@torch.no_grad()
def test_converted_llmrg4_is_the_published_one_in_all_four_scenarios(converted, published, parts):
    model, processor = converted
    assert (model.config.perceiver, model.config.projector, model.config.fusion) == ("authors", "mlp", "atf")
    prior, rng = "There is a small left pleural effusion.", np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)) for shape in ((80, 60), (56, 70))]
    studies = {"sn": (1, None), "sw": (1, prior), "mn": (2, None), "mw": (2, prior)}
    texts = ["Human: " + "<image>" * views + mark_prior(text) + "Write." for views, text in studies.values()]
    inputs = processor([images[:views] for views, _ in studies.values()], texts, padding=True, return_tensors="pt")
    names = ("pixel_values", "view_mask", "prior_input_ids", "prior_attention_mask")
    tokens = model.model.get_image_features(**{name: inputs[name] for name in names}).pooler_output
    seen = AutoModel.from_pretrained(parts["vision"]).eval()
    frontal, lateral = seen(processor.image_processor(images, return_tensors="pt")["pixel_values"]).last_hidden_state[
        :, 1:
    ]
    tokenizer = AutoTokenizer.from_pretrained(parts["text"])
    text = tokenizer(prior, truncation=True, padding="max_length", max_length=LENGTH, return_tensors="pt")
    encoder = AutoModel.from_pretrained(parts["text"], add_pooling_layer=False).eval()
    states = encoder(**text).last_hidden_state[0]
    assert len(states) == LENGTH > int(text["attention_mask"].sum())  # padding, which the published code reads
    for number, (name, (views, told)) in enumerate(studies.items()):
        expected = published_tokens(published, frontal, lateral if views == 2 else None, states if told else None)
        torch.testing.assert_close(
            tokens[number], expected, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@torch.no_grad()
def test_lora_is_added_to_the_decoder(converted, published, parts):
    decoder = AutoModelForCausalLM.from_pretrained(parts["decoder"])
    for name in ("q_proj", "v_proj"):
        lora = f"llama_model.base_model.model.model.layers.1.self_attn.{name}"
        a, b = (published[f"{lora}.lora_{kind}.default.weight"] for kind in "AB")
        weight = decoder.get_parameter(f"model.layers.1.self_attn.{name}.weight") + 8 / 2 * b @ a
        parameter = converted[0].get_parameter(f"model.language_model.layers.1.self_attn.{name}.weight")
        torch.testing.assert_close(parameter, weight)
    untouched = "layers.0.self_attn.q_proj.weight"
    assert torch.equal(
        converted[0].get_parameter(f"model.language_model.{untouched}"), decoder.get_parameter(f"model.{untouched}")
    )


@pytest.mark.parametrize(
    ("changes", "settings", "sentence"),
    [
        (
            {"visual_encoder.layer.0.weight": torch.zeros(1)},
            {"llm_alpha": 8},
            "has visual_encoder.layer.0.weight, which",
        ),
        ({"APPA_visual_query_tokens": None}, {"llm_alpha": 8}, "no APPA_visual_query_tokens, so it is no LLM-RG4"),
        ({}, {}, "no llm_alpha to scale them by"),
        ({"iit_proj.bias": None}, {"llm_alpha": 8}, "do not fit: .*fusion.0.bias"),
        (
            {"llama_model.base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight": torch.zeros(3, 2)},
            {"llm_alpha": 8},
            "--decoder has no layers.1.self_attn.q_proj of 3 x 64",
        ),
    ],
)
def test_other_files_are_refused(parts, published, tmp_path, call, changes, settings, sentence):
    weights = {name: tensor for name, tensor in (published | changes).items() if tensor is not None}
    file = save(tmp_path / "published.pth", weights, max_length=LENGTH, **settings)
    words = [word for name in parts for word in (f"--{name}", parts[name])]
    with pytest.raises(InputError, match=sentence):
        call(convert_llmrg4.main, "--checkpoint", file, "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


# DiscBERT


@torch.no_grad()
def test_converted_discbert_is_the_published_one(tmp_path, call):
    model, tokenizer = build_chexbert(TEXTS, vocab_size=80, hidden_size=16, heads=2)
    config = BertConfig(**{key: value for key, value in model.config.to_dict().items() if key != "model_type"})
    config.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    torch.manual_seed(2)
    bert = BertModel(config, add_pooling_layer=False).eval()
    heads = {name: nn.Linear(16, 2) for name in ("ps", "pp", "view", "comm")}
    weights = {f"labeler.bert.{name}": tensor for name, tensor in bert.state_dict().items()}
    weights["labeler.bert.embeddings.position_ids"] = torch.arange(config.max_position_embeddings)[None]
    for name, head in heads.items():
        weights |= {f"labeler.{name}_heads.{kind}": tensor for kind, tensor in head.state_dict().items()}
    file = save(tmp_path / "DiscBERT.pth", weights, BertModel="./bert-base-uncased")
    call(convert_discbert.main, "--checkpoint", file, "--tokenizer", tmp_path / "bert", "--out", tmp_path / "out")
    inputs = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    state = bert(**inputs).last_hidden_state[:, 0]
    expected = torch.stack([heads[name](state) for name in ("ps", "pp", "view", "comm")], dim=1)
    converted = DiscBertModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(converted(**inputs).logits, expected)
    assert CATEGORIES == ("prior_comparison", "prior_procedure", "view", "communication")  # in the heads' order
    judged = DiscBertJudge(str(tmp_path / "out"))(TEXTS[:2])
    assert np.array_equal(np.asarray(judged).astype(int), expected.argmax(-1).numpy())
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "discbert"
    del weights["labeler.pp_heads.bias"]
    file = save(tmp_path / "half.pth", weights)
    with pytest.raises(
        InputError, match=r"no DiscBERT on the --tokenizer's BERT: 1 weights differ, such as heads.1.bias"
    ):
        call(convert_discbert.main, "--checkpoint", file, "--tokenizer", tmp_path / "bert", "--out", tmp_path / "x")
