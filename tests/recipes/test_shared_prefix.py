"""Each study is read once per group: the plain pass's numbers from fewer tokens, and what is refused."""

import ast
import copy
import inspect
import os
import shutil
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from replicas import SENTENCES, qwen3_vl
from test_long_runs import PROMPTS, make_words, says_clear, small_llama
from test_uneven_batches import GENERATING, PROMPT, ROWS, load, score_length, settings_of, studies, write_model
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM, set_seed
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from recipes.cli import run
from recipes.data.processors import load_processor
from recipes.data.samples import to_samples
from recipes.files import InputError
from recipes.trainers import image_memory
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.image_memory import ImageMemory, fingerprint, image_encoder
from recipes.trainers.shared_prefix import (
    ATTENTION,
    DECODERS,
    Layout,
    SharedPrefix,
    SharesPrefix,
    gather_groups,
    share_out,
)

LORA = {
    "target_modules": r".*language_model.*\.(q_proj|v_proj|down_proj|fc1)", "r": 2, "lora_alpha": 4,
    "lora_dropout": 0.0, "init_lora_weights": False,
}  # fmt: skip


################
# The layout, by hand
################

# Two prompts, "1 2" and "3", of rows 0 and 2, and of row 1; completions "4 5", "6" and "7 8".
IDS = torch.tensor([[1, 2, 4, 5], [0, 3, 6, 0], [1, 2, 7, 8]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]])
PACKED = [1, 2, 3, 4, 5, 6, 7, 8]
ATTENDED = {1: [1], 2: [1, 2], 3: [3], 4: [1, 2, 4], 5: [1, 2, 4, 5], 6: [3, 6], 7: [1, 2, 7], 8: [1, 2, 7, 8]}


def test_layout_by_hand():
    layout = Layout.of(MASK, leaders=[0, 1], prompt_of=[0, 1, 0], tokens=2)
    assert IDS[layout.rows, layout.columns].tolist() == PACKED
    place = torch.arange(len(PACKED))
    allowed = layout.allows(0, 0, place[:, None], place)
    attended = {token: torch.tensor(PACKED)[row].tolist() for token, row in zip(PACKED, allowed, strict=True)}
    assert attended == ATTENDED
    states = torch.tensor(PACKED)[layout.states]  # each token was chosen after the one before it
    assert states[0].tolist() == [2, 4, 5] and states[1, :2].tolist() == [3, 6] and states[2].tolist() == [2, 7, 8]


def test_a_completion_without_tokens_has_a_place_for_its_prompt_alone():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    layout = Layout.of(mask, leaders=[0], prompt_of=[0, 0], tokens=2)
    assert layout.rows.tolist() == [0, 0, 1] and layout.columns.tolist() == [0, 1, 2]
    assert layout.states[:, 0].tolist() == [1, 1] and layout.states[1, 1] == 2


class Attention(torch.nn.Module):
    num_key_value_groups = 2


@pytest.mark.parametrize("prompts", [[0, 1, 0], [0, 0, 0]])  # a prompt that all rows have is not copied
def test_attention_in_parts_is_that_of_the_mask_and_of_flex_attention(prompts):
    mask = MASK if prompts[1] else torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    layout = Layout.of(
        mask, leaders=sorted({prompts.index(number) for number in prompts}), prompt_of=prompts, tokens=2
    )
    length, generator = len(layout.rows), torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, 16, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    place = torch.arange(length)
    allowed = layout.allows(0, 0, place[:, None], place)[None, None]
    expected, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](Attention(), query, key, value, allowed, scaling=0.3)
    blocks = layout.attention_mask("flex_attention", torch.float32)
    flex = flex_attention(
        *(states.detach() for states in (query, key, value)), block_mask=blocks, scale=0.3, enable_gqa=True
    )
    result, _ = ALL_ATTENTION_FUNCTIONS[ATTENTION](
        Attention(),
        query,
        key,
        value,
        layout.attention_mask(ATTENTION, torch.float32),
        shared_prefix=layout,
        scaling=0.3,
    )
    torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(flex.transpose(1, 2), expected, atol=1e-12, rtol=0)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((states * weights).sum(), (query, key, value)) for states in (result, expected)]
    for pair in zip(*gradients, strict=True):
        torch.testing.assert_close(*pair, atol=1e-12, rtol=0)


def test_images_go_to_the_rows_that_have_places_for_them():
    places = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]).bool()
    assert share_out(places, 3, [2, 1, 3]) == [range(2), range(2, 2), range(2, 3)]
    assert share_out(places, 2, None) == [range(1), range(1, 1), range(1, 2)]  # equally many each
    for images, sizes in ((2, [2, 1]), (4, [2, 1, 3, 1]), (3, [2, 2, 2])):  # one too few, too many, cut
        with pytest.raises(InputError, match="places for the features of images"):
            share_out(places, images, sizes)


def test_completions_of_one_prompt_and_one_image_come_together():
    batches = [
        {
            "prompt_ids": torch.tensor(prompts)[:, None],
            "prompt_mask": torch.ones(2, 1),
            "completion_ids": torch.tensor(numbers)[:, None],
            "num_items_in_batch": torch.tensor(9),
            "pixel_values": torch.cat([torch.full((4, 2), float(image)) for image in images]),
            "image_grid_thw": torch.tensor([[1, 2, 2]] * 2),
            "num_images": [1, 1],
            "old_per_token_logps": None,
        }
        for prompts, images, numbers in (([5, 5], [1, 2], [0, 1]), ([6, 5], [1, 1], [2, 3]), ([5, 6], [2, 1], [4, 5]))
    ]
    result = gather_groups(batches, window=3)
    assert [batch["completion_ids"].flatten().tolist() for batch in result] == [[0, 3], [1, 4], [2, 5]]
    assert [batch["pixel_values"][::4, 0].tolist() for batch in result] == [[1, 1], [2, 2], [1, 1]]
    assert all(batch["num_items_in_batch"] == 9 and batch["old_per_token_logps"] is None for batch in result)
    windows = gather_groups(batches[:2], window=1)  # an optimizer step's completions stay in it
    assert [batch["completion_ids"].flatten().tolist() for batch in windows] == [[0, 1], [2, 3]]


################
# Models without images
################


def small(kind: str, attention: str = "sdpa"):
    """A decoder of two layers without dropout, with TRL's head."""
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4 if kind == "phi" else 2, "vocab_size": 24, "max_position_embeddings": 64}
    sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "head_dim": 8, "n_embd": 32, "n_head": 4, "n_layer": 2}
    none = dict.fromkeys(("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    config = AutoConfig.for_model(kind, **sizes, **none, **special)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if "bias" in name or "position" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def text_batch() -> dict:
    """Three prompts of one, four and two tokens; three, two and one completions, of none to three tokens."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, 24, (3, 4), generator=generator)[[0, 0, 0, 1, 1, 2]]
    answers = torch.randint(2, 24, (6, 3), generator=generator)
    mask = torch.ones(6, 7, dtype=torch.long)
    for row, (before, after) in enumerate([(1, 3), (1, 2), (1, 0), (4, 1), (4, 3), (2, 2)]):
        mask[row, : 4 - before] = 0
        mask[row, 4 + after :] = 0
    ids = torch.cat([prompts, answers], dim=1) * mask
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True}


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        *((kind, "sdpa") for kind in DECODERS if "vl" not in kind),
        ("llama", "eager"),  # the whole mask
        ("opt", "eager"),
    ],
)
def test_a_decoders_log_probabilities_and_gradients_are_those_of_the_plain_pass(kind, attention):
    plain, shared = small(kind, attention).train(), small(kind, attention).train()
    sharing, batch = SharedPrefix(), text_batch()
    assert sharing.attach(shared)
    expected = plain(**batch)
    with sharing.completions(3):
        result = shared(**batch)
    assert result.log_probs.shape == (6, 3)
    sums = []
    for output in (expected, result):
        for name in ("log_probs", "entropy"):
            torch.testing.assert_close(output[name][:, -3:], expected[name][:, -3:], atol=1e-5, rtol=1e-5)
        sums.append((output.log_probs[:, -3:] * torch.arange(18).view(6, 3)).sum())
        sums[-1].backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in shared.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-4, rtol=1e-4)
    assert sharing.saved == [7 + 11, 42]  # tokens
    torch.testing.assert_close(
        shared(batch["input_ids"]).logits, plain(batch["input_ids"]).logits
    )  # otherwise as it was


@pytest.mark.parametrize(
    ("ids", "prompts"),
    [
        ([[2, 3, 4]] * 3, 1),  # no padding
        ([[0, 2, 3], [4, 5, 6], [0, 2, 3], [0, 2, 7]], 3),  # not side by side
        ([[0, 0, 2], [0, 2, 3], [4, 2, 3]], 3),  # nothing to share
    ],
)
def test_a_generation_reads_each_prompt_once_and_writes_the_same(ids, prompts):
    model, sharing, rows = small("llama").eval(), SharedPrefix(), []
    sharing.attach(model)
    model.model.layers[0].register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    ids = torch.tensor(ids)
    settings = {"attention_mask": (ids > 0).long(), "max_new_tokens": 5, "do_sample": True}
    set_seed(0)
    expected = model.generate(ids, **settings)
    assert rows[0] == len(ids)
    rows.clear()
    set_seed(0)
    with sharing.generation():
        assert torch.equal(model.generate(ids, **settings), expected)
    assert rows[0] == prompts and set(rows[1:]) == {len(ids)}


def test_flex_attention_is_sdpa():
    """Without gradients, which torch computes for it on a GPU only."""
    sdpa, flex, batch = small("llama").eval(), small("llama", "flex_attention").eval(), text_batch()
    sharing = SharedPrefix()
    assert sharing.attach(flex, check=False)
    try:
        with torch.no_grad(), sharing.completions(3):
            result = flex(**batch).log_probs
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this torch has no compiled FlexAttention here: {str(error).splitlines()[0]}")
    with torch.no_grad():
        torch.testing.assert_close(result, sdpa(**batch).log_probs[:, -3:], atol=1e-5, rtol=1e-5)


def test_the_first_batch_finds_a_model_that_ignores_the_mask(monkeypatch):
    model, sharing, batch = small("llama", "eager"), SharedPrefix(), text_batch()
    assert sharing.attach(model)
    attend = modeling_llama.eager_attention_forward

    def causal(module, query, key, value, mask, *arguments, **settings):
        length = query.shape[2]
        if len(mask) == 1:  # the row of all tokens
            mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        return attend(module, query, key, value, mask, *arguments, **settings)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", causal)
    with (
        sharing.completions(3),
        pytest.raises(InputError, match=r"the first batch differ by .*set share_prefix false"),
    ):
        model(**batch)


def test_the_first_batch_may_differ_by_more_in_16_bits():
    model, sharing = small("llama").to(torch.bfloat16), SharedPrefix()
    assert sharing.attach(model)
    with sharing.completions(3):
        model(**text_batch())
    assert sharing.checked


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "gpt2"}, "prompts are not shared for a decoder of the type gpt2"),
        (
            {"attention": "flash_attention_2"},
            "attn_implementation flash_attention_2 takes no mask of this kind: set sdpa",
        ),
        ({"sliding": True}, "the qwen2 has layers with a sliding window"),
    ],
)
def test_a_model_that_cannot_share_takes_the_plain_pass_or_is_refused(change, sentence, capsys):
    model = small(change.get("kind", "qwen2"))
    model.config._attn_implementation = change.get("attention", "sdpa")
    if "sliding" in change:
        model.config.layer_types = ["full_attention", "sliding_attention"]
    sharing, forward = SharedPrefix(), model.forward
    assert not sharing.attach(model) and not sharing.attach(model)
    assert model.forward is forward or model.forward == forward
    assert capsys.readouterr().out.count(sentence) == 1  # once
    with pytest.raises(InputError, match=f"^share_prefix true: {sentence}"):
        SharedPrefix(required=True).attach(model)


def test_a_batch_without_groups_takes_the_plain_pass_or_is_refused(capsys):
    batch = {name: value if value is True else value[[0, 3, 5]] for name, value in text_batch().items()}
    for required in (False, True):
        model, sharing = small("llama"), SharedPrefix(required)
        sharing.attach(model)
        with sharing.completions(3):
            if required:
                with pytest.raises(InputError, match="true: no two completions of a batch have one prompt"):
                    model(**batch)
            else:
                assert model(**batch).log_probs.shape == (3, 6)
    assert "no two completions of a batch have one prompt; the plain pass is taken" in capsys.readouterr().out


################
# Trainers of models with images
################


def write(system: str, folder: Path) -> None:
    if system == "qwen3-vl":
        qwen3_vl(folder, [PROMPT, *SENTENCES], vocab_size=1200)
    else:
        write_model(system, folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(system)`: its folder."""

    @cache
    def models(system: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / system
        folder.mkdir()
        write(system, folder)
        return folder

    return models


@pytest.fixture(scope="module")
def make(models, tmp_path_factory):
    """`make(kind, system)`: a trainer of that model, and its batch of two completions for each of four studies.

    `model`: of its configuration.
    """

    def make(kind: str, system: str, lora: bool = False, model: dict | None = None, **settings):
        views = "all" if "huatuo" in system or "qwen" in system else "frontal"
        samples = to_samples(studies(priors=False), PROMPT, views, keep=("report",))
        trainer_class, config_class = GENERATING[kind]
        defaults = {"num_iterations": 2, "per_device_train_batch_size": 2 * ROWS, "beta": 0.04, "share_prefix": True}
        settings = defaults | settings
        trainer = trainer_class(
            model=str(models(system)),
            reward_funcs=[score_length],
            args=config_class(
                **settings_of(tmp_path_factory.mktemp("run"), **settings),
                num_generations=2,
                max_completion_length=6,
                model_init_kwargs={"dtype": "float32"} | (model or {}),
            ),
            train_dataset=samples,
            processing_class=load_processor(str(models(system))),
            peft_config=LoraConfig(**LORA) if lora else None,
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = trainer._prepare_inputs([samples[number // 2] for number in range(2 * ROWS)])
        # of a sum that is not 0, which RLOO's loss would be where all ratios are 1
        batch["advantages"] = torch.linspace(-1, 2, batch["advantages"].numel()).view(batch["advantages"].shape)
        return trainer, batch

    return make


def step(trainer, batch: dict, shared: bool) -> dict:
    """The loss of a batch, its log-probabilities, entropies and values, and the gradient of every parameter."""
    sharing, results = trainer._sharing, {}
    score = type(trainer)._get_per_token_logps_and_entropies

    def remember(*arguments, **inputs):
        result = score(trainer, *arguments, **inputs)
        results["log_probs"], results["entropies"] = result[0].detach(), result[1].detach()
        if passes := getattr(trainer, "_passes", None):
            results["values"] = (passes[-1].values * batch["completion_mask"]).detach()
        return result

    trainer.model.zero_grad()
    trainer._sharing = sharing if shared else None
    trainer._get_per_token_logps_and_entropies = remember
    try:
        loss = trainer._compute_loss(trainer.model, copy.copy(batch))
        loss.backward()
    finally:
        del trainer._get_per_token_logps_and_entropies
        trainer._sharing = sharing
    results["loss"] = loss.detach()
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            results[name] = parameter.grad.clone()
    return results


def assert_equal(shared: dict, plain: dict) -> None:
    """Tensors of the same names that differ by 1e-4 of their length."""
    assert shared.keys() == plain.keys()
    for name, expected in plain.items():
        difference = (shared[name] - expected).norm()
        assert difference <= 1e-4 * expected.norm() + 1e-7, (name, float(difference), float(expected.norm()))


@pytest.mark.parametrize(
    ("kind", "system", "settings"),
    [
        ("grpo", "huatuo A", {"lora": True, "gradient_checkpointing": True}),  # MRG-R1
        ("grpo", "huatuo A", {}),  # the image encoder is trained too
        ("grpo", "qwen3-vl", {}),  # image features in several layers
        ("grpo", "llmrg4-atf", {"gradient_checkpointing": True}),
        ("rloo", "huatuo A", {"lora": True}),
        ("rloo", "lmrrg", {}),
        ("ppo", "lmrrg", {"gradient_checkpointing": True}),  # LM-RRG, positions that are learned
        ("ppo", "huatuo A", {"lora": True, "kl_direction": "policy_ref_exact"}),
    ],
    ids=str,
)
def test_a_step_is_that_of_the_plain_pass(make, kind, system, settings):
    trainer, batch = make(kind, system, **settings)
    sharing = trainer._sharing
    assert sharing.checked
    assert ATTENTION not in trainer.model.config.to_json_string()  # of a checkpoint
    if kind == "ppo":
        torch.nn.init.normal_(trainer.value_head.weight)
    before = list(sharing.saved)
    shared = step(trainer, batch, shared=True)
    assert sharing.saved[0] - before[0] < 0.8 * (sharing.saved[1] - before[1])
    plain = step(trainer, batch, shared=False)
    assert len(plain) > 10 and plain["log_probs"].abs().sum() > 1
    assert ("values" in plain) == (kind == "ppo")
    assert_equal(shared, plain)

    # Tools' answers are no part of the loss; a completion that is left out has no token at all.
    batch["tool_mask"] = torch.ones_like(batch["completion_mask"])
    batch["tool_mask"][::2, 1:3] = 0
    batch["completion_mask"][3] = 0
    assert_equal(step(trainer, batch, shared=True), step(trainer, batch, shared=False))

    # Passes without gradients, in parts that cut groups; the reference, too.
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    images = {name: batch[name] for name in names if name in batch}
    for model in (trainer.model.eval(), trainer.ref_model):
        scores = []
        for trainer._sharing in (sharing, None) if model is not None else ():
            with torch.no_grad():
                arguments = (model, ids, mask, batch["completion_ids"].shape[1])
                scores.append(trainer._get_per_token_logps_and_entropies(*arguments, batch_size=3, **images)[0])
        if scores:
            torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


FROZEN = {"model": {"freeze_extractor": True}}  # LM-RRG's second stage


@pytest.mark.parametrize(
    ("kind", "system", "settings"),
    [
        ("grpo", "huatuo A", {"lora": True}),  # the reference is the policy without its adapter
        ("grpo", "qwen3-vl", {"lora": True}),
        ("grpo", "lmrrg", FROZEN),  # the reference is a model of its own
        ("grpo", "lmrrg", {"lora": True}),
        ("grpo", "llmrg4-atf", {}),
        ("grpo", "llmrg4-interleaved", {"lora": True}),
        ("ppo", "huatuo A", {}),
        ("ppo", "lmrrg", {"lora": True}),
        ("ppo", "llmrg4-atf", {}),
    ],
    ids=str,
)
def test_a_frozen_encoder_reads_each_image_once_and_a_generation_each_prompt(
    make, kind, system, settings, monkeypatch
):
    trainer, _ = make(kind, system, **settings)
    images, rows = [], []
    policy = trainer.model.get_base_model() if settings.get("lora") else trainer.model
    for model in filter(None, (policy, trainer.ref_model)):
        image_encoder(model).register_forward_pre_hook(
            lambda module, args, named: images.append(len(named.get("grid_thw", args[0]))), with_kwargs=True
        )
    policy.model.language_model.register_forward_pre_hook(
        lambda module, args, named: rows.append(tuple(named["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    samples = [row for row in trainer.train_dataset for _ in range(2)]
    distinct = sum(len(row["images"]) for row in trainer.train_dataset)
    assert distinct == (6 if "q" in system or "huatuo" in system else 4)
    assert (trainer.ref_model is None) == settings.get("lora", False)
    trainer._step = 0
    batch = trainer._prepare_inputs(samples)
    assert images == [distinct]  # for generation, old and reference pass
    assert rows[0][0] == ROWS and rows[1] == (2 * ROWS, 1)  # the first pass of generation and the second
    trainer.model.train()
    batch["advantages"] = torch.linspace(-1, 1, batch["advantages"].numel()).view(batch["advantages"].shape)
    remembered = step(trainer, batch, shared=True)
    assert images == [distinct]
    with monkeypatch.context() as patch:
        patch.setattr(image_memory, "varies", lambda encoder: True)  # nothing is remembered
        plain = step(trainer, batch, shared=False)
        assert images == [distinct, 2 * distinct]  # each row's
    assert len(plain) > 10
    assert_equal(remembered, plain)
    images.clear()
    trainer._step = 2
    trainer._prepare_inputs(samples)
    assert images == [distinct]  # another step, which begins anew


@pytest.mark.parametrize("kind", GENERATING)
def test_without_sharing_every_pass_encodes_its_images(make, kind):
    trainer, _ = make(kind, "lmrrg", **FROZEN, share_prefix=False)
    images = []
    image_encoder(trainer.model).register_forward_pre_hook(lambda module, args: images.append(len(args[0])))
    trainer._step = 0
    trainer._prepare_inputs([row for row in trainer.train_dataset for _ in range(2)])
    assert images and set(images) == {2 * ROWS}


def test_a_generation_writes_the_same(make):
    trainer, _ = make("grpo", "huatuo A", lora=True)
    samples = [row["prompt"] for row in trainer.train_dataset for _ in range(2)]
    images = [row["images"] for row in trainer.train_dataset for _ in range(2)]
    prompts = [
        [
            {
                "role": "user",
                "content": [
                    *({"type": "image", "image": image} for image in study),
                    {"type": "text", "text": row[0]["content"]},
                ],
            }
        ]
        for row, study in zip(samples, images, strict=True)
    ]
    texts = []
    sharing = trainer._sharing
    for trainer._sharing in (sharing, None):
        set_seed(5)
        texts.append(trainer._generate(copy.deepcopy(prompts))[1])
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts[0]}) > ROWS  # sampled


def test_fingerprints_tell_every_bit_shape_and_type():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(70_000, generator=generator)  # more than a block
    for place in (0, 65_535, 65_536, 69_999):
        changed = image.clone()
        changed.view(torch.int32)[place] ^= 1
        assert fingerprint(changed) != fingerprint(image) == fingerprint(image.clone())
    assert fingerprint(image.view(2, -1)) != fingerprint(image)
    assert fingerprint(torch.zeros(4)) != fingerprint(torch.zeros(4, dtype=torch.int32))
    assert fingerprint(image[:0]) == fingerprint(image[:0])
    swapped = image.clone()
    swapped[[0, 65_536]] = image[[65_536, 0]]
    assert fingerprint(swapped) != fingerprint(image)


def remember(memory: ImageMemory) -> tuple:
    """A call of `memory.features`, and the numbers of the images that were encoded."""
    calls = []

    def encode(numbers):
        calls.append(numbers)
        return [torch.tensor(float(number)) for number in numbers]

    return lambda images, state=None: memory.features(images, encode, state), calls


IMAGES = [torch.zeros(2), torch.ones(2), torch.zeros(2)]


def test_the_memory_keeps_precisions_and_states_apart_until_it_is_cleared():
    memory = ImageMemory()
    features, calls = remember(memory)
    assert features(IMAGES) == [2, 1, 2]  # the last of the same
    assert features(IMAGES[1:2]) == [1]
    assert calls == [[2, 1]]
    with torch.autocast("cpu", torch.bfloat16):
        features(IMAGES[:1])
    features(IMAGES[:1], "another")
    assert calls[1:] == [[0], [0]]
    memory.clear()
    features(IMAGES[:1])
    assert calls[3:] == [[0]]


def test_a_process_encodes_with_those_that_have_to(monkeypatch):
    """Of split weights: with nothing new it runs the encoder all the same, where another process has an image."""
    features, calls = remember(ImageMemory(split=True))
    others = 0
    monkeypatch.setattr(image_memory, "reduce", lambda number, reduction: number + others)
    features(IMAGES)
    features(IMAGES[1:])
    assert calls == [[2, 1]]
    others = 1
    assert features(IMAGES[1:]) == [0, 2]  # its first image again
    assert calls == [[2, 1], [0]]


class Seeing(torch.nn.Module):
    """The least that the memory looks at, with an encoder that counts its images."""

    def __init__(self, last: torch.nn.Module | None = None):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(2, 1), last or torch.nn.Dropout(0.0))
        torch.nn.init.ones_(self.encoder[0].weight)
        torch.nn.init.zeros_(self.encoder[0].bias)
        self.encoder.requires_grad_(False)
        self.images = 0

    @property
    def base_model(self):
        return self

    def get_encoder(self, modality: str):
        return self.encoder

    def encode_images(self, pixel_values):
        self.images += len(pixel_values)
        return self.encoder(pixel_values)


ROWS_OF_PIXELS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])


def test_encoders_share_what_they_remember_while_their_weights_are_equal():
    models, memory = [Seeing() for _ in range(4)], ImageMemory()
    models[2].encoder[0].weight.data[0, 1] = 2
    models[3].encoder.requires_grad_(True)
    memory.attach(models[0])
    for model in models[1:3]:
        model.encoder.requires_grad_(True)  # as TRL's references have it
        memory.attach(model, constant=True)
    memory.attach(models[3])
    found = [model.encode_images(ROWS_OF_PIXELS).flatten().tolist() for model in models]
    assert found == [[3, 7, 3], [3, 7, 3], [5, 11, 5], [3, 7, 3]]
    assert [model.images for model in models] == [2, 0, 2, 3]


def test_parts_of_weights_are_never_equal():
    models, memory = [Seeing(), Seeing()], ImageMemory(split=True)
    for model in models:
        memory.attach(model)
        model.encode_images(ROWS_OF_PIXELS)
    assert [model.images for model in models] == [2, 2]


class Dropping(torch.nn.Module):
    """Calls the function with a probability of its own, as transformers' attention does."""

    def __init__(self):
        super().__init__()
        self.attention_dropout = 0.5

    def forward(self, states):
        return torch.nn.functional.dropout(states, self.attention_dropout, self.training)


@pytest.mark.parametrize("last", [torch.nn.Dropout(0.5), Dropping(), torch.nn.BatchNorm1d(1)], ids=repr)
def test_an_encoder_that_varies_in_training_is_asked_each_time_then(last):
    model, memory = Seeing(last), ImageMemory()
    memory.attach(model)
    for _ in range(2):
        model.train().encode_images(ROWS_OF_PIXELS)
    assert model.images == 6
    for _ in range(2):
        model.eval().encode_images(ROWS_OF_PIXELS)
    assert model.images == 8


def test_an_adapter_in_the_encoder_is_no_part_of_the_reference():
    model, memory = Seeing(), ImageMemory()
    adapted = get_peft_model(
        model, LoraConfig(r=1, lora_alpha=1, target_modules=["encoder.0"], init_lora_weights=False)
    )
    adapted.requires_grad_(False)
    memory.attach(model)
    with adapted.disable_adapter():
        assert model.encode_images(ROWS_OF_PIXELS).flatten().tolist() == [3, 7, 3]
    first = model.encode_images(ROWS_OF_PIXELS)
    assert model.images == 4 and not torch.equal(first, torch.tensor([[3.0], [7.0], [3.0]]))
    assert torch.equal(model.encode_images(ROWS_OF_PIXELS), first) and model.images == 4


################
# Whole runs
################


def train(folder, kind: str = "grpo", share: bool = True, processes: int = 1, **changes):
    """Twenty steps of four micro-batches, each of four completions: every prompt has four, shuffled by TRL."""
    trainer_class, config_class = GENERATING[kind]
    values = settings_of(
        folder, per_device_train_batch_size=4 // processes, gradient_accumulation_steps=4, num_generations=4,
        max_completion_length=4, max_steps=20, learning_rate=0.05, optim="sgd", logging_steps=1, seed=3, beta=0.04,
        share_prefix=share,
    )  # fmt: skip
    data, model = Dataset.from_dict({"prompt": PROMPTS * 8}), small_llama()
    model.config.name_or_path = f"{folder}/policy{processes}"  # where TRL reads the reference
    model.save_pretrained(model.config.name_or_path)
    trainer = trainer_class(model, says_clear, config_class(**values | changes), data, processing_class=make_words())
    trainer.train(resume_from_checkpoint=changes.get("resume_from_checkpoint"))
    return trainer


def weights(trainer) -> dict:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_twenty_steps_end_in_the_plain_runs_weights(tmp_path, kind):
    changes = {"steps_per_generation": 8, "num_iterations": 2} if kind == "ppo" else {}
    shared = train(tmp_path / "shared", kind, save_strategy="steps", save_steps=4, **changes)
    plain = train(tmp_path / "plain", kind, share=False, **changes)
    assert plain._sharing is None
    read, of = shared._sharing.saved
    assert read < 0.75 * of
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(shared)[name], value, atol=1e-5, rtol=1e-4)
    assert not torch.equal(weights(shared)["lm_head.weight"], small_llama().lm_head.weight)
    checkpoint = str(tmp_path / "shared" / "checkpoint-12")
    resumed = train(tmp_path / "shared", kind, resume_from_checkpoint=checkpoint, **changes)
    for name, value in weights(shared).items():
        torch.testing.assert_close(weights(resumed)[name], value, atol=1e-6, rtol=1e-5)


def test_a_run_in_16_bits(tmp_path):
    """Weights in float32, passes under autocast, which accelerate puts around the forward that shares."""
    trainer = train(tmp_path, bf16=True, max_steps=1, save_strategy="no")
    read, of = trainer._sharing.saved
    assert trainer._sharing.checked and 0 < read < of


@pytest.mark.parametrize("method", ["_generate", "_generate_and_score_completions", "_prepare_inputs"])
def test_overridden_signatures_are_trls(method):
    trls, ours = (inspect.signature(getattr(kind, method)).parameters for kind in (GRPOTrainer, SharesPrefix))
    assert list(trls) == list(ours)


def test_every_override_calls_super_once():
    class_node = ast.parse(textwrap.dedent(inspect.getsource(SharesPrefix))).body[0]
    methods = [node for node in class_node.body if isinstance(node, ast.FunctionDef)]
    assert len(methods) == 7
    for method in methods:
        calls = [node.attr for node in ast.walk(method) if ast.unparse(node).startswith("super().")
                 and isinstance(node, ast.Attribute)]  # fmt: skip
        assert calls == ([method.name] if hasattr(GRPOTrainer, method.name) else [])


def one_of_two(folder: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))

    def answer(prompts, trainer) -> dict:
        ids = trainer.processing_class(prompts)["input_ids"]
        first = 4 // processes * trainer.accelerator.process_index
        texts = [
            [2 + (sum(prompt) + first + row) % 5, 3, 1][: 1 + (first + row) % 3] for row, prompt in enumerate(ids)
        ]
        return {"prompt_ids": ids, "completion_ids": texts, "logprobs": [[0.0] * len(text) for text in texts]}

    class Written(MRGR1Trainer):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            self.rollout_func = answer

    GENERATING["grpo"] = (Written, MRGR1Config)
    trainer = train(folder, share=processes == 2, processes=processes, max_steps=3, gradient_accumulation_steps=1,
                    shuffle_dataset=False)  # fmt: skip
    if trainer.is_world_process_zero():
        torch.save(
            {"weights": weights(trainer), "shared": trainer._sharing is not None}, Path(folder) / f"{processes}.pt"
        )


def test_two_processes_that_share_are_one_that_does_not(tmp_path, torchrun):
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "TRL_EXPERIMENTAL_SILENCE": "1"}
    for command in (torchrun(__file__, tmp_path), [__file__, str(tmp_path)]):
        subprocess.run([sys.executable, *command], env=environment, check=True, timeout=300)
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (1, 2))
    assert two["shared"] and not one["shared"]
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-6, rtol=1e-5)
    assert not torch.equal(one["weights"]["lm_head.weight"], small_llama().lm_head.weight)


def count_letters(completions, **kwargs):
    return [len(set(completion[0]["content"])) / 10 for completion in completions]


def with_parts_of_the_weights(folder: str) -> None:
    """GRPO steps of LM-RRG, E frozen, in this process of two, with sharing and without.

    The first process has two studies with one image, the second two images: in the reference's pass over the second
    study the one knows its image and the other does not.
    """
    rows, found = [*studies(priors=False)], {}
    rows[1]["images"], rows[1]["views"] = rows[0]["images"], rows[0]["views"]
    samples = to_samples(Dataset.from_list(rows), PROMPT, "frontal", keep=("report",))
    for share in (True, False):
        args = MRGR1Config(
            **settings_of(folder, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2),
            beta=0.04, num_generations=2, max_completion_length=4, learning_rate=0.05, optim="sgd",
            shuffle_dataset=False, share_prefix=share,
            model_init_kwargs={"dtype": "float32", "freeze_extractor": True},
        )  # fmt: skip
        trainer = MRGR1Trainer(
            f"{folder}/model", count_letters, args, samples,
            processing_class=load_processor(f"{folder}/model"),
        )  # fmt: skip
        images = []
        for model in (trainer.model, trainer.accelerator.unwrap_model(trainer.ref_model)):
            image_encoder(model).register_forward_pre_hook(lambda module, args: images.append(len(args[0])))  # noqa: B023
        trainer.train()
        weights = dict(trainer.accelerator.get_state_dict(trainer.model_wrapped))
        found[share] = {"images": images, "weights": weights, "read": trainer._sharing.saved if share else None}
    torch.save(found, f"{folder}/{trainer.args.process_index}.pt")


def test_weights_in_parts_are_shared_too(models, tmp_path, torchrun):
    shutil.copytree(models("lmrrg"), tmp_path / "model")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *torchrun(__file__, tmp_path, "parts", under="fsdp2.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    first, second = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (0, 1))
    # of each step: generation, and the reference's passes over two studies, in both processes
    assert first[True]["images"] == [1, 1, 1] * 2 and second[True]["images"] == [2, 1, 1] * 2
    assert first[False]["images"] == second[False]["images"] == [4, 2, 2, 2, 2] * 2
    read, of = first[True]["read"]
    assert 0 < read < of
    start = load(tmp_path / "model").state_dict()
    changed = 0
    for name, value in first[False]["weights"].items():
        torch.testing.assert_close(first[True]["weights"][name], value, atol=1e-6, rtol=1e-4)
        changed += not torch.equal(value, start[name])
    assert changed > 10


if __name__ == "__main__":
    part = with_parts_of_the_weights if sys.argv[2:] else one_of_two
    run(lambda: part(sys.argv[1]))
