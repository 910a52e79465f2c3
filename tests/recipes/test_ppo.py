"""PPOTrainer: GAE and Eq. 5 by hand, a batch's loss in numpy, a bandit, the reference, E, resuming, processes."""

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from scipy.signal import lfilter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    set_seed,
)
from trl import GRPOTrainer

from modeling.tiny_lmrrg import build_lmrrg
from recipes.cli import run
from recipes.data.samples import to_samples
from recipes.data.schema import read_split
from recipes.files import InputError
from recipes.trainers.ppo import STATE_FILE, PPOConfig, PPOTrainer, generalized_advantages, threshold_weight

WORDS = ["<pad>", "<eos>", "pull", "an", "arm", "left", "right"]
PROMPTS = ["pull", "pull an arm", "an arm", "arm pull pull an"]  # of several lengths, so that there is padding


# Advantages and Eq. 5


@pytest.mark.parametrize(
    ("rewards", "values", "mask", "gamma", "lam", "expected"),
    [
        ([0, 0, 1], [0, 0, 0], [1, 1, 1], 1.0, 1.0, [1, 1, 1]),  # the return, wherever the token is
        ([0, 0, 1], [0, 0, 0], [1, 1, 1], 0.5, 1.0, [0.25, 0.5, 1]),  # discounted once per token
        ([0, 0, 1], [0, 0, 0], [1, 1, 1], 1.0, 0.95, [0.9025, 0.95, 1]),  # a new value head: first words look worse
        ([0, 0, 1], [0.5, 0.2, 0.6], [1, 1, 1], 1.0, 0.0, [-0.3, 0.4, 0.4]),  # one step: r + V' - V
        # deltas -.3, .4, .4; then .4, .4 + .5 x .4 = .6, -.3 + .5 x .6 = 0
        ([0, 0, 1], [0.5, 0.2, 0.6], [1, 1, 1], 1.0, 0.5, [0.0, 0.6, 0.4]),
        # deltas .9 x .2 - .5 = -.32, .9 x .6 - .2 = .34, .4; each x .9 x .5 = .45 to the one before
        ([0, 0, 1], [0.5, 0.2, 0.6], [1, 1, 1], 0.9, 0.5, [-0.086, 0.52, 0.4]),
        ([0, 1, 7], [0.5, 0.2, 9], [1, 1, 0], 1.0, 0.5, [0.1, 0.8, 0]),  # padding has neither reward nor value
        ([0, 5, 1], [0.5, 9, 0.6], [1, 0, 1], 1.0, 0.5, [0.3, 0, 0.4]),  # a tool's answer is passed over: .1 + .5 x .4
        ([3, 5, 1], [1, 2, 3], [0, 0, 0], 1.0, 0.95, [0, 0, 0]),  # nothing to learn from
    ],
)
def test_advantages_by_hand(rewards, values, mask, gamma, lam, expected):
    rewards, values, expected = (torch.tensor([row], dtype=torch.float64) for row in (rewards, values, expected))
    found = generalized_advantages(rewards, values, torch.tensor([mask]), gamma, lam)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (0.9, 0.0), (1.0, 1.0)])
def test_advantages_are_scipys_filter(gamma, lam):
    """The discounted sum of the deltas is a one-pole filter run backwards; tokens left out are cut out of the row."""
    chance = np.random.default_rng(0)
    rewards, values = chance.normal(size=(6, 20)), chance.normal(size=(6, 20))
    mask = chance.random((6, 20)) < 0.7
    found = generalized_advantages(*map(torch.tensor, (rewards, values, mask)), gamma, lam).numpy()
    for row in range(6):
        reward, value = rewards[row, mask[row]], values[row, mask[row]]
        delta = reward + gamma * np.append(value[1:], 0) - value
        expected = lfilter([1.0], [1.0, -gamma * lam], delta[::-1])[::-1]
        np.testing.assert_allclose(found[row, mask[row]], expected, atol=1e-12)
        assert not found[row, ~mask[row]].any()


@pytest.mark.parametrize(
    ("reward", "theta", "expected"),
    [
        (0.25, 0.5, 0.5),  # reward / theta
        (0.5, 0.5, 1.0),  # at theta both cases of Eq. 5 agree
        (0.499999, 0.5, 0.999998),  # continuous there
        (0.8, 0.5, 1.0),  # above it 1, however much
        (0.0, 0.5, 0.0),  # the loss is the reward's alone
        (-3.0, 0.5, 0.0),  # a negative reward, which the paper leaves out
        (40.0, 60.0, 2 / 3),  # any scale of reward
    ],
)
def test_threshold_weight(reward, theta, expected):
    rewards = torch.tensor([reward], dtype=torch.float64, requires_grad=True)
    found = threshold_weight(rewards, theta)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert not found.requires_grad


def test_threshold_weight_is_monotone_and_within_0_and_1():
    found = threshold_weight(torch.linspace(-2, 2, 401), 0.7)
    assert (found.diff() >= 0).all()
    assert found.min() == 0 and found.max() == 1


# A small language model of seven words


@pytest.fixture(scope="module")
def words():
    return make_words()


def make_words() -> PreTrainedTokenizerFast:
    whole = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>")


def small_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    set_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **sizes, **special, **changes))


def settings(folder, **changes) -> PPOConfig:
    values = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2,
        "per_device_train_batch_size": 8, "max_completion_length": 4, "learning_rate": 0.01, "save_strategy": "no",
        "lr_scheduler_type": "constant", "logging_steps": 1, "disable_tqdm": True, "gradient_checkpointing": False,
    }  # fmt: skip
    return PPOConfig(**values | changes)


def arm_reward(completions, **kwargs):
    """1 for the better arm, .2 for the other one."""
    first = [(completion.split() or [""])[0] for completion in completions]
    return [{"right": 1.0, "left": 0.2}.get(word, 0.0) for word in first]


def some_arms_reward(completions, **kwargs):
    """arm_reward, and none where the number of words is odd."""
    rewards = zip(completions, arm_reward(completions), strict=True)
    return [None if len(completion.split()) % 2 else reward for completion, reward in rewards]


def make_trainer(folder, words, model=None, rewards=arm_reward, prompts=PROMPTS, extra=None, **changes) -> PPOTrainer:
    data = Dataset.from_dict({"prompt": list(prompts) * 8})
    model = small_llama() if model is None else model
    return PPOTrainer(model, rewards, settings(folder, **changes), data, processing_class=words, **extra or {})


def chance_of(model, word: str) -> float:
    with torch.no_grad():
        return float(model(torch.tensor([[WORDS.index("pull")]])).logits[0, -1].softmax(-1)[WORDS.index(word)])


def spoken_to(folder, words, **changes) -> tuple[PPOTrainer, dict]:
    """A trainer that was taken away from its reference, and a batch from before, whose values are not the present."""
    trainer = make_trainer(folder, words, **changes)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    generator = torch.Generator().manual_seed(1)

    def shake(parameters, by):
        for parameter in parameters:
            parameter.data += by * torch.randn(parameter.shape, generator=generator)

    if trainer.value_head is not None:
        shake(trainer.value_head.parameters(), 0.5)
    shake([trainer.model.lm_head.weight, *trainer.model.model.parameters()], 0.1)
    batch = trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS for _ in range(2)])
    trainer.before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    shake(trainer.model.parameters(), 0.05)
    return trainer, batch


# One batch in plain numpy


def by_hand(model, weights, batch, temperature) -> tuple[np.ndarray, np.ndarray]:
    """log p (rows, tokens, words) and values (rows, tokens) of the completions' tokens under `weights`."""
    twin = small_llama()
    head = {name.removeprefix("value_head."): weights.get(name) for name in ("value_head.weight", "value_head.bias")}
    twin.load_state_dict({name: value for name, value in weights.items() if not name.startswith("value_head")})
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        output = twin(ids, attention_mask=seen, output_hidden_states=True)
    start = batch["prompt_ids"].shape[1] - 1
    log_probs = (output.logits.double() / temperature).log_softmax(-1)[:, start:-1].numpy()
    if head["weight"] is None:
        return log_probs, np.zeros(log_probs.shape[:2])
    states = output.hidden_states[-1][:, start:-1].double().numpy()
    return log_probs, states @ head["weight"][0].double().numpy() + head["bias"].item()


@pytest.mark.parametrize(
    "changes",
    [
        {},  # Eqs. 3 to 5 as the paper has them
        {"loss_type": "grpo", "lam": 0.5, "gamma": 0.9},  # mean over completions
        {"kl_direction": "ref_policy", "temperature": 0.7},  # the order of Eq. 3, the whole vocabulary
        {"kl_direction": "policy_ref_exact", "temperature": 0.7},  # the whole vocabulary, for later tokens too
        {"kl_mode": "reward", "kl_controller": "fixed", "beta": 0.3, "vf_coef": 0.7},  # RLHF's usual place
        {"kl_mode": "reward", "theta": 0.8},  # there too, each completion has its weight
        {"beta": 0.0, "kl_controller": "fixed", "missing_eos_penalty": 0.4},
        {"value_model": "none", "kl_controller": "fixed", "beta": 0.1},  # the batch's mean is the baseline
        {"value_model": "none", "whiten_advantages": True, "gamma": 0.9},
        {"whiten_advantages": True},  # both parts of Eq. 4 are divided
        {"whiten_advantages": True, "kl_mode": "reward"},  # the KL part is in the rewards already
        {"cliprange_value": 0.01, "epsilon": 0.02},  # both clips act
        {"num_iterations": 1},  # TRL makes no pass for the old log-probabilities
        {"rewards": some_arms_reward},  # completions without a reward take part in nothing
        {"rewards": some_arms_reward, "loss_type": "grpo", "whiten_advantages": True, "missing_eos_penalty": 0.4},
    ],
)
def test_the_loss_of_a_batch_in_numpy(changes, words, tmp_path):
    trainer, batch = spoken_to(tmp_path, words, **changes)
    args = trainer.args
    tokens, ids = batch["completion_mask"].numpy().astype(float), batch["completion_ids"].numpy()
    chosen = lambda whole: np.take_along_axis(whole, ids[..., None], -1)[..., 0]  # noqa: E731
    old, old_values = by_hand(trainer, trainer.before, batch, args.temperature)
    new, new_values = by_hand(trainer, trainer.model.state_dict(), batch, args.temperature)
    reference, _ = by_hand(trainer, small_llama().state_dict(), batch, args.temperature)

    reward = changes.get("rewards", arm_reward)
    scores = np.array(reward(words.batch_decode(batch["completion_ids"], skip_special_tokens=True)), dtype=float)
    scored = ~np.isnan(scores)
    assert scored.all() == ("rewards" not in changes) and scored.sum() > 2
    mask, scores = tokens * scored[:, None], np.nan_to_num(scores)
    own, lengths = mask > 0, list(enumerate(mask.sum(1).astype(int)))
    assert len(set(tokens.sum(1))) > 1  # or a wrong mean could pass
    weight = scored * args.beta
    if args.kl_controller == "reward_threshold":
        weight = weight * np.where(scores >= args.theta, 1, scores / args.theta)
    rewards = np.zeros_like(mask)
    for row, length in lengths:
        if length == 0:
            continue
        cut = ids[row, length - 1] != WORDS.index("<eos>")
        rewards[row, length - 1] = scores[row] - (args.missing_eos_penalty or 0) * cut
    cost = weight[:, None] * (chosen(old) - chosen(reference)) * mask
    if args.kl_direction == "policy_ref_exact":
        cost = weight[:, None] * (np.exp(old) * (old - reference)).sum(-1) * mask
    elif args.kl_direction == "ref_policy":
        cost = cost * 0
    rewards -= cost

    lam = 1.0 if args.value_model == "none" else args.lam
    advantages = np.zeros_like(mask)
    for row, length in lengths:
        for t in range(length):
            for later in range(t, length):
                following = old_values[row, later + 1] if later + 1 < length else 0.0
                delta = rewards[row, later] + args.gamma * following - old_values[row, later]
                advantages[row, t] += (args.gamma * lam) ** (later - t) * delta
    returns = (advantages + old_values) * mask
    if args.kl_mode == "loss":
        advantages += cost  # of later tokens' KL terms alone
    advantages -= advantages[own].mean()
    deviation = np.sqrt((advantages[own] ** 2).mean() + 1e-8) if args.whiten_advantages else 1.0
    advantages /= deviation

    ratio = np.exp(chosen(new) - chosen(old))
    surrogate = np.minimum(ratio * advantages, np.clip(ratio, 1 - args.epsilon, 1 + args.epsilon) * advantages)
    clipped = np.clip(new_values, old_values - args.cliprange_value, old_values + args.cliprange_value)
    free, bound = (new_values - returns) ** 2, (clipped - returns) ** 2
    value_loss = 0.5 * np.maximum(free, bound)
    if args.value_model == "none":
        value_loss = value_loss * 0
    if args.kl_direction == "policy_ref_exact":
        kl = (np.exp(new) * (new - reference)).sum(-1)
    elif args.kl_direction == "ref_policy":
        kl = torch.nn.functional.kl_div(  # "input" is the second argument of KL
            torch.tensor(new), torch.tensor(reference), log_target=True, reduction="none"
        )
        kl = kl.sum(-1).numpy()
    else:
        gap = chosen(reference) - chosen(new)
        kl = (np.exp(gap) - gap - 1) * ratio
    assert (kl >= 0).all()
    in_loss = kl * (args.kl_mode == "loss")
    per_token = (-surrogate + args.vf_coef * value_loss + weight[:, None] / deviation * in_loss) * mask
    if args.loss_type == "grpo":
        expected = (per_token.sum(1) / tokens.sum(1)).mean()
    else:
        expected = per_token.sum() / tokens.sum()
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(expected, abs=2e-5)

    logged = trainer._metrics["train"]
    figures = {"completions/unscored_ratio": 1 - scored.mean(), "returns/mean": returns[own].mean()}
    if args.value_model != "none":
        figures["value/mean"] = old_values[own].mean()
        figures["value/explained_variance"] = 1 - (returns - old_values)[own].var() / returns[own].var()
        figures["value/loss"] = value_loss[own].mean()
        figures["value/clip_ratio"] = (bound > free)[own].mean()
    if args.beta:
        figures |= {"kl_coef": args.beta, "kl": kl[own].mean()}
    if args.beta and args.kl_controller == "reward_threshold":
        shares = weight[scored] / args.beta
        figures |= {f"kl_lambda/{name}": getattr(shares, name)() for name in ("mean", "min", "max")}
        figures["kl_lambda/share_at_1"] = (shares >= 1).mean()
    assert {name: logged[name] for name in figures} == {
        name: [pytest.approx(value, rel=1e-5, abs=1e-5)] for name, value in figures.items()
    }
    if changes.get("epsilon"):
        assert logged["clip_ratio/region_mean"][0] > 0 and figures["value/clip_ratio"] > 0


def test_a_value_that_is_not_clipped_is_not_counted(words, tmp_path):
    """However its distance to the old one is rounded."""
    trainer, batch = spoken_to(tmp_path, words, cliprange_value=1e3)
    batch["values"] = batch["values"] + torch.linspace(-30, 30, batch["values"].numel()).view_as(batch["values"])
    trainer._compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["value/clip_ratio"] == [0.0]


def test_old_log_probs_are_those_of_the_sampling_policy(words, tmp_path):
    ratios = []
    trainer = make_trainer(tmp_path, words, num_iterations=3, max_steps=6)
    compute = trainer._compute_loss

    def look(model, inputs):
        loss = compute(model, inputs)
        ratios.append(trainer._metrics["train"]["clip_ratio/region_mean"][-1])
        old.append(inputs["old_per_token_logps"].clone())
        return loss

    old = []
    trainer._compute_loss = look
    trainer.train()
    assert len(old) == 6
    assert torch.equal(old[0], old[1]) and torch.equal(old[1], old[2])  # one batch of completions, three epochs
    assert ratios[0] == ratios[3] == 0  # at its first epoch a policy is the one that spoke


@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_with_dropout_of_its_own_has_none(adapter, words, tmp_path):
    """OPT, LM-RRG's decoder, has no Dropout modules: TRL alone leaves .1 of its states out of every pass."""
    set_seed(0)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "num_attention_heads": 2}
    rates = {"dropout": 0.3, "attention_dropout": 0.3}
    model = OPTForCausalLM(OPTConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes, **special, **rates))
    extra = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])} if adapter else None
    trainer = make_trainer(tmp_path, words, model, max_steps=1, num_iterations=1, epsilon=1e-4, extra=extra)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["clip_ratio/region_mean"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-7)  # before its first step the policy is the reference


@pytest.mark.parametrize(("disable", "rate"), [(True, 0.0), (False, 0.3)])
def test_dropout_stays_where_it_is_wanted(disable, rate, words, tmp_path):
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "num_attention_heads": 2}
    model = OPTForCausalLM(
        OPTConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes, **special, dropout=0.3)
    )
    trainer = make_trainer(tmp_path, words, model, disable_dropout=disable)
    for each in (trainer.model, trainer.ref_model):
        assert each.model.decoder.layers[0].dropout == rate


# What it learns


@pytest.mark.parametrize("seed", range(5))
def test_a_bandit_finds_the_better_arm(seed, words, tmp_path):
    model = small_llama(seed)
    changes = {"max_steps": 60, "per_device_train_batch_size": 16, "max_completion_length": 1, "seed": seed}
    trainer = make_trainer(
        tmp_path, words, model, prompts=["pull"], beta=0.0, kl_controller="fixed", logging_steps=60, **changes
    )
    assert chance_of(model, "right") < 0.4
    trainer.train()
    assert chance_of(model, "right") > 0.95


@pytest.mark.parametrize(
    ("beta", "kl_mode", "stays"),
    [
        (100.0, "loss", True),
        (100.0, "reward", True),
        (0.0, "loss", False),  # so that it is the KL term that holds it
    ],
)
def test_a_large_kl_weight_keeps_the_reference(beta, kl_mode, stays, words, tmp_path):
    model = small_llama()
    before = chance_of(model, "right")
    make_trainer(
        tmp_path, words, model, prompts=["pull"], max_steps=40, max_completion_length=1, logging_steps=40,
        per_device_train_batch_size=16, beta=beta, kl_mode=kl_mode, kl_controller="fixed",
    ).train()  # fmt: skip
    assert (abs(chance_of(model, "right") - before) < 0.1) == stays


def test_the_value_head_learns_a_constant_reward(words, tmp_path):
    trainer = make_trainer(
        tmp_path, words, rewards=lambda completions, **_: [0.7] * len(completions), max_steps=40, num_iterations=1,
        value_learning_rate=0.05, vf_coef=1.0, gamma=1.0, lam=1.0, beta=0.0, kl_controller="fixed",
    )  # fmt: skip
    trainer.train()
    losses = [row["value/loss"] for row in trainer.state.log_history if "value/loss" in row]
    assert losses[0] == pytest.approx(0.5 * 0.7**2, abs=1e-4)  # it starts at 0
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize(
    ("shift", "rewards", "factor"),
    [
        (0.0, [1.0, 1.0], 1 - 0.2 * 8 / 40),  # at the reference: KL 0, the miss of -1 is clipped
        (2.7, [1.0, 1.0], 1 - 0.1 * 8 / 40),  # a tenth below the target
        (3.3, [1.0, 1.0], 1 + 0.1 * 8 / 40),  # a tenth above
        (9.0, [1.0, 1.0], 1 + 0.2 * 8 / 40),  # far above
        (3.3, [None, 1.0], 1 + 0.1 * 4 / 40),  # half have no reward: neither in the mean nor in the number
    ],
)
def test_ziegler_steers_to_its_target(shift, rewards, factor, words, tmp_path, monkeypatch):
    """Ziegler et al. 2019, section 2.2: the miss is clipped to .2, times 8 completions / the horizon of 40."""
    trainer = make_trainer(
        tmp_path, words, kl_controller="ziegler", beta=0.5, kl_target=3.0, kl_horizon=40.0,
        rewards=lambda completions, **_: rewards * (len(completions) // 2),
    )  # fmt: skip
    trainer.model.train()
    inputs = [{"prompt": prompt} for prompt in PROMPTS for _ in range(2)]
    generate = GRPOTrainer._generate_and_score_completions

    def shifted(self, inputs):
        """The reference finds each completion less likely by `shift` nats."""
        output = generate(self, inputs)
        output["ref_per_token_logps"][:, 0] -= shift
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", shifted)
    batch = trainer._generate_and_score_completions(inputs)
    present = [reward is not None for reward in rewards] * 4
    assert batch["kl_weight"].tolist() == [pytest.approx(0.5 * each) for each in present]  # this batch's coefficient
    assert trainer.kl_coef == pytest.approx(0.5 * factor, abs=1e-6)
    later = trainer._generate_and_score_completions(inputs)
    assert later["kl_weight"].tolist() == [pytest.approx(0.5 * factor * each, abs=1e-6) for each in present]
    coefficient = trainer.kl_coef
    trainer.model.eval()
    trainer._generate_and_score_completions(inputs)
    assert trainer.kl_coef == coefficient  # evaluation steers nothing


# The reference, E, and the models it is for


def test_the_reference_is_a_copy_of_what_is_trained(words, tmp_path):
    model = small_llama()
    model.model.embed_tokens.requires_grad_(False)
    trainer = make_trainer(tmp_path, words, model, num_iterations=1)
    before = {name: value.clone() for name, value in trainer.ref_model.state_dict().items()}
    trainer.train()
    assert trainer.ref_model.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert trainer.ref_model.lm_head.weight is not model.lm_head.weight
    assert trainer.beta == trainer.args.beta == 1.0  # which a checkpoint's arguments hold
    assert all(torch.equal(value, before[name]) for name, value in trainer.ref_model.state_dict().items())
    kls = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert kls[0] == pytest.approx(0, abs=1e-6) and kls[1] > 0


LORA = {"r": 2, "target_modules": r".*(self_attn|self_attention)\.(q|k|v|o|out)_proj"}


@pytest.fixture(scope="module")
def studies(phantom):
    return to_samples(read_split(str(phantom), "train"), "Report.", "frontal", keep=("study_id", "report"))


def letters_reward(completions, **kwargs):
    return [len(set(completion[0]["content"])) / 30 for completion in completions]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", ["qwen", "lmrrg"])
def test_images(kind, lora, tiny, studies, tmp_path):
    """Both vision-language models: E as it was, to the bit; the language model and the value head are trained."""
    if kind == "qwen":
        model, processor = AutoModelForImageTextToText.from_pretrained(tiny), AutoProcessor.from_pretrained(tiny)
        encoder = model.model.visual
    else:
        model, processor = build_lmrrg(studies["report"], vision_layers=1, text_layers=1)
        encoder = model.model.visual_extractor
    modes = []
    encoder.register_forward_hook(lambda module, *args: modes.append(module.training))
    trainer = PPOTrainer(
        model, letters_reward,
        settings(tmp_path, max_steps=4, num_iterations=2, per_device_train_batch_size=4, share_prefix=True),
        studies, processing_class=processor, peft_config=LoraConfig(**LORA) if lora else None,
    )  # fmt: skip
    assert (trainer.ref_model is None) == lora
    if not lora:
        copied = {id(parameter) for parameter in trainer.ref_model.parameters()}
        assert all(id(parameter) in copied for parameter in encoder.parameters())  # the reference has no E of its own
    whole = trainer.model.state_dict()
    before = {name: value.clone() for name, value in whole.items()}
    extra = {name: value.clone() for name, value in encoder.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, extra[name]) for name, value in encoder.state_dict().items())
    assert not any(modes)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("value_head" in name for name in changed)
    assert any(("lora_" if lora else "proj") in name for name in changed)
    assert len(modes) == 2  # two batches of completions: generation, old, reference and both epochs share them
    rows = [row for row in trainer.state.log_history if "kl" in row]
    assert len(rows) == 4 and all(np.isfinite(row["loss"]) for row in rows)


def test_an_image_encoder_that_is_trained(tiny, studies, tmp_path):
    model, processor = AutoModelForImageTextToText.from_pretrained(tiny), AutoProcessor.from_pretrained(tiny)
    before = {name: value.clone() for name, value in model.model.visual.state_dict().items()}
    args = settings(tmp_path, num_iterations=1, per_device_train_batch_size=4, freeze_image_encoder=False)
    PPOTrainer(model, letters_reward, args, studies, processing_class=processor).train()
    assert any(not torch.equal(value, before[name]) for name, value in model.model.visual.state_dict().items())


def test_an_encoder_that_is_trained_is_asked_each_time(studies, tmp_path):
    """LM-RRG's features are not remembered: they change."""
    model, processor = build_lmrrg(studies["report"], vision_layers=1, text_layers=1)
    args = settings(tmp_path, per_device_train_batch_size=4, freeze_image_encoder=False)
    PPOTrainer(model, letters_reward, args, studies, processing_class=processor)
    assert any(each.requires_grad for each in model.model.visual_extractor.parameters())
    pixels = torch.zeros(2, 3, 64, 64)
    seen = []
    model.model.visual_extractor.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for _ in range(2):
        model.model.encode_images(pixels).sum().backward()
    assert seen == [2, 2]


@pytest.mark.parametrize("kind", ["qwen", "lmrrg"])
def test_the_pass_for_old_log_probabilities_sees_the_images(kind, tiny, studies, tmp_path):
    """Of one epoch, where TRL makes none: before its first step the policy's ratio is 1."""
    if kind == "qwen":
        model, processor = AutoModelForImageTextToText.from_pretrained(tiny), AutoProcessor.from_pretrained(tiny)
    else:
        model, processor = build_lmrrg(studies["report"], vision_layers=1, text_layers=1)
    changes = {"num_iterations": 1, "per_device_train_batch_size": 4}
    trainer = PPOTrainer(model, letters_reward, settings(tmp_path, **changes), studies, processing_class=processor)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    passes, score = [], trainer._get_per_token_logps_and_entropies

    def remember(*args, **kwargs):
        passes.append(score(*args, **kwargs))
        return passes[-1]

    trainer._get_per_token_logps_and_entropies = remember
    batch = trainer._prepare_inputs([studies[number // 2] for number in range(4)])
    trainer._compute_loss(trainer.model, batch)
    mask = batch["completion_mask"].bool()
    torch.testing.assert_close(passes[-1][0][mask], batch["old_per_token_logps"][mask], atol=1e-5, rtol=0)


def test_encode_images_without_an_encoder(words, tmp_path, monkeypatch):
    model = small_llama()
    monkeypatch.setattr(type(model.model), "encode_images", lambda self, pixel_values: pixel_values, raising=False)
    with pytest.raises(InputError, match=r"LlamaForCausalLM has encode_images .* give the class get_encoder"):
        make_trainer(tmp_path, words, model)


@pytest.mark.parametrize("direction", ["policy_ref", "ref_policy"])
def test_an_adapter_of_stage_1_is_the_reference(direction, words, tmp_path):
    """A model that comes with its adapter: the reference is that adapter as it came, not the model without it."""
    from peft import get_peft_model

    model = get_peft_model(small_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.5
    trainer = make_trainer(tmp_path, words, model, num_iterations=1, kl_direction=direction)
    trainer.train()
    kls = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert kls[0] == pytest.approx(0, abs=1e-6) and kls[1] > 0


def test_vllm_is_not_sent_the_value_head(words, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, words)
    names, generate = [], trainer._generate_single_turn
    look = lambda *args: names.extend(dict(trainer.model.named_parameters())) or generate(*args)  # noqa: E731
    monkeypatch.setattr(trainer, "_generate_single_turn", look)
    trainer.train()
    assert names and not any("value_head" in name for name in names)
    assert "value_head.weight" in dict(trainer.model.named_parameters())


# Saving and going on


def test_the_example_runs(words, tmp_path, call):
    from recipes.examples.ppo_text import main

    words.chat_template = "{% for message in messages %}pull an arm {% endfor %}"
    small_llama().save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    call(
        main, "--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "out", "--use_cpu", "--bf16",
        "false", "--max_steps", "2", "--max_completion_length", "4", "--report_to", "none",
    )  # fmt: skip
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_saved_model_is_the_generator_alone(words, tmp_path, caplog):
    trainer = make_trainer(tmp_path, words)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.lm_head.weight, trainer.model.lm_head.weight)


@pytest.mark.parametrize("lora", [True, False])
def test_going_on_after_a_kill(lora, words, tmp_path):
    """Another process goes on from step 4 as the one that was not killed: the same figures, to the last bit."""

    def run(folder, **changes):
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if lora else None
        trainer = make_trainer(
            folder, words, max_steps=8, num_iterations=2, save_strategy="steps", save_steps=4,
            kl_controller="ziegler", kl_horizon=50.0, extra={"peft_config": config}, value_learning_rate=0.1,
        )  # fmt: skip
        trainer.train(**changes)
        rows = [row for row in trainer.state.log_history if "kl" in row]
        changing = ("step_time", "reports/commonest_share")  # the latter's window is filled anew
        return trainer, [{name: row[name] for name in row if name not in changing} for row in rows]

    whole, rows = run(tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    os.rename(tmp_path / "whole" / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    resumed, later = run(tmp_path / "killed", resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-4"))
    assert later == rows
    assert resumed.kl_coef == whole.kl_coef != 1.0
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    head = whole.optimizer.state[whole.value_head.weight]["exp_avg"]
    assert head.abs().sum() > 0
    assert torch.equal(head, resumed.optimizer.state[resumed.value_head.weight]["exp_avg"])


def test_a_fixed_weight_is_the_settings_own_after_a_resume(words, tmp_path):
    """Only ziegler's coefficient is the checkpoint's; and a head is not dropped in silence."""
    changes = {"save_strategy": "steps", "save_steps": 2, "num_iterations": 1}
    make_trainer(tmp_path, words, kl_controller="fixed", beta=0.5, **changes).train()
    checkpoint = {"resume_from_checkpoint": str(tmp_path / "checkpoint-2")}
    trainer = make_trainer(tmp_path, words, kl_controller="fixed", beta=0.25, max_steps=3, **changes)
    trainer.train(**checkpoint)
    assert trainer.kl_coef == 0.25
    with pytest.raises(InputError, match="checkpoint-2 has a value head: go on with the value_model"):
        make_trainer(tmp_path, words, value_model="none", max_steps=3, **changes).train(**checkpoint)


@pytest.mark.parametrize(
    ("split_by", "loaded"), [(None, True), ("is_fsdp_enabled", False), ("is_deepspeed_enabled", False)]
)
def test_who_loads_the_value_head(split_by, loaded, words, tmp_path, monkeypatch):
    """Where the weights are split, they come with the model, and a whole head does not fit into a part."""
    make_trainer(tmp_path, words, max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(tmp_path / "resumed", words)
    assert not trainer.value_head.weight.any()
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
    if split_by:
        monkeypatch.setattr(trainer, split_by, True)
    trainer._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-1"))
    assert bool(trainer.value_head.weight.any()) == loaded


def test_a_checkpoint_that_is_not_ppos(words, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, words, value_model="none", **changes).train()
    with pytest.raises(InputError, match="checkpoint-2 has no value head: go on with the value_model"):
        make_trainer(tmp_path, words, **changes).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    with pytest.raises(InputError, match=f"is no checkpoint of PPO: it has no {STATE_FILE}"):
        make_trainer(tmp_path, words, **changes).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.5, 0.5),
        (0.0, 0.0),  # a head that stays as it is
        (None, 0.01),  # the policy's
    ],
)
def test_the_value_heads_own_learning_rate(rate, expected, words, tmp_path):
    trainer = make_trainer(tmp_path, words, value_learning_rate=rate, weight_decay=0.1)
    trainer.create_optimizer()
    groups = trainer.optimizer.param_groups
    rates = {id(each): (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}
    head = list(trainer.value_head.parameters())
    assert [rates.pop(id(each)) for each in head] == [(expected, 0.0)] * 2
    assert set(rates.values()) == {(0.01, 0.1), (0.01, 0.0)}  # Trainer decays no bias and no norm
    assert sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))  # none twice


def test_evaluation(words, tmp_path):
    data = Dataset.from_dict({"prompt": PROMPTS})
    trainer = make_trainer(tmp_path, words, per_device_eval_batch_size=4, extra={"eval_dataset": data})
    figures = trainer.evaluate()
    assert np.isfinite(figures["eval_loss"]) and figures["eval_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("value_model", "reaches"), [("head", True), ("detached", False)])
def test_whether_the_value_loss_reaches_the_model(value_model, reaches, words, tmp_path):
    """The model's gradient under two weights of the value loss; the head's own follows the weight in both cases."""
    trainer, batch = spoken_to(tmp_path, words, value_model=value_model)
    gradients = {}
    for trainer.args.vf_coef in (0.1, 0.7):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, batch).backward()
        parameters = dict(trainer.model.named_parameters())
        gradients[trainer.args.vf_coef] = {name: value.grad.clone() for name, value in parameters.items()}
    small, large = gradients[0.1], gradients[0.7]
    torch.testing.assert_close(large.pop("value_head.weight"), 7 * small.pop("value_head.weight"))
    del large["value_head.bias"], small["value_head.bias"], large["lm_head.weight"], small["lm_head.weight"]
    changed = {name for name in small if not torch.allclose(small[name], large[name], rtol=1e-4, atol=1e-8)}
    assert changed == (set(small) if reaches else set())


def test_two_epochs_have_different_orders(words, tmp_path):
    """A later run finds the order of its epoch."""
    sampler = make_trainer(tmp_path, words)._get_train_sampler()
    orders = []
    for epoch in (0, 1, 1):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1] == orders[2]


# Several processes and accumulation


def said(prompts, trainer) -> dict:
    """Completions that depend on nothing but the prompt and the place in its group, of one to four words."""
    tokenizer = trainer.processing_class
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    completions = []
    for row, ids in enumerate(prompt_ids):
        answer = [5 + (len(ids) + row) % 2] + [2 + (sum(ids) + 3 * (row % 2)) % 5] * (len(ids) - 1) + [1]
        completions.append(answer[:4])
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completions,
        "logprobs": [[0.0] * len(each) for each in completions],
    }


def trained_on_said(folder: str, size: int, accumulation: int, **changes) -> PPOTrainer:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    changes = {"kl_direction": "ref_policy"} | changes
    trainer = make_trainer(
        folder, make_words(), per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        max_steps=4, num_iterations=2, optim="sgd", learning_rate=0.5, shuffle_dataset=False,
        extra={"rollout_func": said}, **changes,
    )  # fmt: skip
    trainer.value_head.weight.data += 0.1
    trainer.train()
    return trainer


def close(one: dict, two: dict, start: dict) -> None:
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
    assert all(not torch.equal(start[name], one[name]) for name in start)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_accumulation_changes_nothing(loss_type, tmp_path):
    states = [
        trained_on_said(str(tmp_path), size, 8 // size, loss_type=loss_type).model.state_dict() for size in (8, 2)
    ]
    close(*states, start=small_llama().state_dict())


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_mini_batches_of_one_batch_of_completions(loss_type, words, tmp_path):
    """Two updates of four completions each (steps_per_generation twice the accumulation): the mean of their losses is
    the loss of all eight, though the halves have unequal numbers of tokens."""
    losses = {}
    for size, steps in ((8, 1), (4, 2)):
        trainer = make_trainer(
            tmp_path, words, per_device_train_batch_size=size, gradient_accumulation_steps=1,
            steps_per_generation=steps, loss_type=loss_type, extra={"rollout_func": said},
        )  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        trainer.value_head.weight.data += 0.1
        trainer._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS for _ in range(2)])
        trainer.model.lm_head.weight.data += 0.3 * torch.eye(len(WORDS), 16)
        batches = trainer._buffered_inputs
        assert len(batches) == steps
        losses[size] = [trainer._compute_loss(trainer.model, batch).item() for batch in batches]
    assert losses[4][0] != pytest.approx(losses[4][1], abs=1e-3)
    assert np.mean(losses[4]) == pytest.approx(losses[8][0], abs=1e-6)


RUNS_OF_TWO = {
    "Eq. 5": {},
    "a mean over completions": {
        "loss_type": "grpo", "kl_controller": "ziegler", "kl_horizon": 20.0, "kl_direction": "policy_ref",
        "whiten_advantages": True, "rewards": some_arms_reward,
    },
}  # fmt: skip


def one_of_two(folder: str) -> None:
    processes, results = int(os.environ.get("WORLD_SIZE", 1)), {}
    names = ("kl", "value/loss", "value/mean", "returns/mean", "value/explained_variance", "kl_coef")
    names += ("kl_lambda/mean", "completions/unscored_ratio")
    for run_name, changes in RUNS_OF_TWO.items():
        trainer = trained_on_said(folder, 8 // processes, 1, **changes)
        rows = [row for row in trainer.state.log_history if "kl" in row]
        rows = [[row.get(name, 0) for name in names] for row in rows]
        results[run_name] = {"weights": trainer.model.state_dict(), "rows": rows}
    if trainer.is_world_process_zero():
        torch.save(results, Path(folder) / f"{processes}.pt")


def test_two_processes_are_one(tmp_path, torchrun):
    subprocess.run([sys.executable, *torchrun(__file__, tmp_path)], check=True, timeout=300)
    one_of_two(str(tmp_path))
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (1, 2))
    for name in RUNS_OF_TWO:
        close(one[name]["weights"], two[name]["weights"], start=small_llama().state_dict())
        np.testing.assert_allclose(one[name]["rows"], two[name]["rows"], atol=1e-5)
    second = one["a mean over completions"]["rows"][2]  # of the second batch of completions, before its second epoch
    assert second[5] != 1 and 0 < second[7] < 1  # the coefficient moved, and some completions had no reward


# Bad input


def test_some_completions_have_no_reward(words, tmp_path):
    """None and NaN: those take part in nothing, and their share is logged."""

    def some(completions, **kwargs):
        return [None if row % 4 == 0 else float("nan") if row % 4 == 1 else row / 8 for row in range(len(completions))]

    trainer = make_trainer(tmp_path, words, rewards=some)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "pull"}] * 8)
    assert batch["scored"].tolist() == [False, False, True, True] * 2
    assert not batch["advantages"][~batch["scored"]].any() and not batch["kl_weight"][~batch["scored"]].any()
    tokens = batch["advantages"][batch["scored"]][batch["completion_mask"][batch["scored"]].bool()]
    assert tokens.mean() == pytest.approx(0, abs=1e-5) and tokens.std() > 0
    assert trainer._metrics["train"]["completions/unscored_ratio"] == [0.5]
    means = (batch["advantages"].sum(dim=1) / batch["completion_mask"].sum(dim=1)).tolist()
    assert list(trainer._logs["advantages"])[-8:] == pytest.approx(means, abs=1e-6)  # the table of completions
    trainer.train()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_no_reward_is_not_a_reward_of_0(words, tmp_path):
    """Scored completions that all have 1 teach nothing; of two functions, one that gives None is left out."""

    def half(completions, **kwargs):
        return [1.0 if row % 2 else None for row in range(len(completions))]

    trainer = make_trainer(tmp_path, words, rewards=half, value_model="none", kl_controller="fixed")
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "pull"}] * 8)
    torch.testing.assert_close(batch["advantages"], torch.zeros_like(batch["advantages"]))
    assert batch["kl_weight"].tolist() == [0.0, 1.0] * 4

    def quarter(completions, **kwargs):
        return [0.25] * len(completions)

    trainer = make_trainer(tmp_path, words, rewards=[half, quarter], reward_weights=[1.0, 2.0])
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "pull"}] * 8)
    assert trainer._scores.tolist() == [0.5, 1.5] * 4
    assert batch["scored"].all()


@pytest.mark.parametrize(
    ("reward", "changes"),
    [
        (lambda completions, **_: [0.3] * len(completions), {}),  # all equal
        (lambda completions, **_: [0.0] * len(completions), {}),  # lambda 0
        (arm_reward, {"max_completion_length": 1}),  # none has room for an end token
        (arm_reward, {"mask_truncated_completions": True, "max_completion_length": 1}),  # nothing is left of them
        (arm_reward, {"missing_eos_penalty": 1.0}),
        (arm_reward, {"generation_kwargs": {"suppress_tokens": [0, 2, 3, 4, 5, 6]}}),  # nothing but the end token
        (arm_reward, {"num_generations": 4, "gradient_accumulation_steps": 2}),
        (arm_reward, {"value_model": "detached", "kl_direction": "ref_policy"}),
        # all advantages are 0, and their deviation with them
        (
            lambda completions, **_: [0.3] * len(completions),
            {"whiten_advantages": True, "lam": 1.0, "beta": 0.0, "kl_controller": "fixed", "value_model": "none"},
        ),
    ],
)
def test_odd_batches_end_in_numbers(reward, changes, words, tmp_path):
    trainer = make_trainer(tmp_path, words, rewards=reward, **changes)
    trainer.train()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows and all(np.isfinite(row["loss"]) for row in rows)


def test_the_penalty_of_a_missing_end(words, tmp_path):
    """The reward stands at the last token; where that is not the end token, the penalty is taken off."""
    trainer = make_trainer(tmp_path, words, missing_eos_penalty=0.4, lam=1.0, rewards=lambda completions, **_: [
        0.5] * len(completions))  # fmt: skip
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "pull"}] * 8)
    ended = (batch["completion_ids"] == 1).any(dim=1)
    assert 0 < ended.sum() < 8
    first = batch["returns"][:, 0]
    torch.testing.assert_close(first, torch.where(ended, 0.5, 0.1))


def rollout(*rows: tuple[list[int], list[int]]):
    """A rollout function that gives all prompts these completions in turn, and 1 where a token is the model's own."""

    def rollout(prompts, trainer) -> dict:
        chosen = [rows[number % len(rows)] for number in range(len(prompts))]
        return {
            "prompt_ids": [trainer.processing_class(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": [ids for ids, _ in chosen],
            "env_mask": [own for _, own in chosen],
            "logprobs": [[0.0] * len(ids) for ids, _ in chosen],
        }

    return {"rollout_func": rollout}


def test_an_end_token_inside_a_report_is_not_its_end(words, tmp_path, monkeypatch):
    """Rollouts may hold some, as between two turns: a penalty is for what stands last, and the reward stands there."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    rows = [([6, 1, 5, 3], [1] * 4), ([6, 1, 5, 1], [1] * 4), ([6, 3, 1], [1] * 3), ([1], [1])]
    trainer = make_trainer(
        tmp_path, words, missing_eos_penalty=0.25, gamma=0.5, lam=1.0, beta=0.0, kl_controller="fixed",
        rewards=lambda completions, **_: [1.0] * len(completions), extra=rollout(*rows),
    )  # fmt: skip
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "pull"}] * 8)
    expected = [[0.09375, 0.1875, 0.375, 0.75], [0.125, 0.25, 0.5, 1], [0.25, 0.5, 1, 0], [1, 0, 0, 0]]
    torch.testing.assert_close(batch["returns"], torch.tensor(expected * 2))


def test_a_tools_answer_takes_no_part(words, tmp_path, monkeypatch):
    """Of four tokens the second and the last are not the model's: one reward, discounted once, two tokens to learn."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = make_trainer(
        tmp_path, words, gamma=0.5, lam=1.0, beta=0.0, kl_controller="fixed", vf_coef=0.4,
        rewards=lambda completions, **_: [1.0] * len(completions), extra=rollout(([6, 2, 5, 3], [1, 0, 1, 0])),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = trainer._prepare_inputs([{"prompt": "pull"}] * 8)
    torch.testing.assert_close(batch["returns"], torch.tensor([[0.5, 0.0, 1.0, 0.0]] * 8))
    torch.testing.assert_close(batch["advantages"], torch.tensor([[-0.25, 0.0, 0.25, 0.0]] * 8))  # their mean is .75
    loss = trainer._compute_loss(trainer.model, batch).item()
    assert trainer._metrics["train"]["value/loss"] == [pytest.approx((0.5 * 0.25 + 0.5) / 2)]  # the head is at 0
    assert loss == pytest.approx(0.4 * (0.5 * 0.25 + 0.5) / 2)  # the ratio is 1, so the surrogates cancel


@pytest.mark.parametrize(
    ("ends", "goes_on"),
    [
        ([1], True),  # the tokenizer's end token alone
        ([1, 5], False),  # as BLIP-2's OPT, which has the newline too
    ],
)
def test_where_a_completion_ends(ends, goes_on, words, tmp_path):
    """A newline (here word 5) is a word like others unless the model's generation_config has it as an end token."""
    model = small_llama()
    model.generation_config.eos_token_id = ends
    trainer = make_trainer(
        tmp_path, words, model, missing_eos_penalty=0.25, lam=1.0, beta=0.0, kl_controller="fixed",
        rewards=lambda completions, **_: [1.0] * len(completions), per_device_train_batch_size=32,
    )  # fmt: skip
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": "pull"}] * 32)
    rows = [
        ids[: sum(mask)]
        for ids, mask in zip(*(batch[f"completion_{name}"].tolist() for name in ("ids", "mask")), strict=True)
    ]
    assert any(5 in row[:-1] for row in rows) == goes_on
    assert any(5 in row for row in rows)
    for row, returns in zip(rows, batch["returns"].tolist(), strict=True):
        assert not set(row[:-1]) & set(ends)
        expected = 1.0 if row[-1] in ends else 0.75
        assert returns == [pytest.approx(expected)] * len(row) + [0.0] * (len(returns) - len(row))


@pytest.mark.parametrize(
    ("reward", "changes", "sentence"),
    [
        (lambda completions, **_: [None] * len(completions), {}, r"every reward of a whole batch \(8 completions\)"),
        (lambda completions, **_: [float("nan")] * len(completions), {}, "do the data have the columns"),
        (lambda completions, **_: [float("inf")] * len(completions), {}, "is inf, which is not a finite number"),
        (
            lambda completions, **_: [1.5] * len(completions),
            {"reward_range": [0.0, 1.0]},
            r"a completion's reward is 1.5, which is not in reward_range \[0.0, 1.0\] \(<lambda> 1.5\)",
        ),
    ],
)
def test_rewards_to_refuse(reward, changes, sentence, words, tmp_path):
    with pytest.raises(InputError, match=sentence):
        make_trainer(tmp_path, words, rewards=reward, **changes).train()


def test_a_reward_at_the_ends_of_its_range(words, tmp_path):
    """Both ends are within it, and a completion without a reward, whose sum would be 0, is not asked."""
    trainer = make_trainer(
        tmp_path, words, reward_range=[0.25, 1.0], rewards=lambda completions, **_: [None, 0.25, 1.0, 0.5] * 2
    )
    trainer.model.train()
    trainer._generate_and_score_completions([{"prompt": "pull"}] * 8)
    assert trainer._scores.nan_to_num(-1.0).tolist() == [-1.0, 0.25, 1.0, 0.5] * 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"theta": 0.0}, "theta must be above 0, not 0.0"),
        ({"theta": -1.0}, "theta must be above 0"),
        ({"theta": float("nan")}, "theta must be above 0, not nan"),
        ({"vf_coef": float("nan")}, "vf_coef must not be below 0, and is nan"),
        ({"kl_target": float("nan")}, "kl_target and kl_horizon must be above 0"),
        ({"kl_horizon": 0.0}, "kl_target and kl_horizon must be above 0"),
        ({"kl_horizon": float("nan")}, "kl_target and kl_horizon must be above 0"),
        ({"theta": float("inf")}, "theta must be above 0, not inf"),
        ({"beta": float("inf")}, "beta must not be below 0, and is inf"),
        ({"beta": 0.0, "kl_controller": "ziegler"}, "no reference for kl_controller ziegler"),
        ({"beta": -0.1}, "beta must not be below 0"),
        ({"beta": 0.0}, "beta is 0, so there is no reference for kl_controller reward_threshold"),
        ({"kl_mode": "reward", "kl_direction": "ref_policy"}, "kl_direction ref_policy needs kl_mode loss"),
        ({"kl_mode": "reward", "kl_direction": "policy_ref_exact"}, "policy_ref_exact needs kl_mode loss"),
        ({"kl_controller": "adaptive"}, "kl_controller is one of reward_threshold, fixed, ziegler, not adaptive"),
        ({"kl_mode": "both"}, "kl_mode is one of loss, reward, not both"),
        ({"value_model": "tail"}, "value_model is one of head, detached, none, not tail"),
        ({"kl_direction": "both"}, "kl_direction is one of policy_ref, policy_ref_exact, ref_policy, not both"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"gamma": 1.1}, "gamma must be above 0 and at most 1, not 1.1"),
        ({"lam": 1.1}, "lam must be from 0 to 1"),
        ({"lam": -0.1}, "lam must be from 0 to 1"),
        ({"lam": float("nan")}, "lam must be from 0 to 1, not nan"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"vf_coef": -1.0}, "vf_coef"),
        ({"vf_coef": float("inf")}, "vf_coef must not be below 0, and is inf"),
        ({"cliprange_value": 0.0}, "cliprange_value must be above 0, not 0.0"),
        ({"kl_target": 0.0}, "kl_target and kl_horizon"),
        ({"reward_range": [1.0, 0.0]}, r"reward_range is the lowest and the highest reward, not \[1.0, 0.0\]"),
        ({"reward_range": [1.0]}, r"reward_range is the lowest and the highest reward, not \[1.0\]"),
        ({"reward_range": [0.0, 0.5, 1.0]}, "reward_range is the lowest and the highest reward"),
        ({"reward_range": [1.0, 1.0]}, "reward_range is the lowest and the highest reward"),
        ({"loss_type": "cispo"}, r"loss_type is dapo .* or grpo .*, not cispo"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level token"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
        ({"sync_ref_model": True}, "sync_ref_model false"),
    ],
)
def test_settings_to_refuse(changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        settings(tmp_path, **changes)


def test_defaults(tmp_path):
    """Eqs. 3 to 5 as the paper has them; what it leaves open is as in TRL's former PPO, and theta as in its README."""
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    papers = {"kl_controller": "reward_threshold", "beta": 1.0, "kl_mode": "loss", "freeze_image_encoder": True}
    trls = {"num_iterations": 4, "gamma": 1.0, "lam": 0.95, "epsilon": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1}
    trls |= {"kl_target": 6.0, "kl_horizon": 10000.0, "missing_eos_penalty": None, "temperature": 1.0}  # Ziegler's
    ours = {"theta": 0.5, "value_model": "head", "whiten_advantages": False, "kl_direction": "policy_ref"}
    ours |= {"disable_dropout": True, "loss_type": "dapo", "value_learning_rate": None, "reward_range": None}
    expected = papers | trls | ours
    assert {name: getattr(args, name) for name in expected} == expected


def test_models_to_refuse(words, tmp_path):
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=7, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8))
    with pytest.raises(InputError, match="decoder-only model, and t5 has an encoder"):
        make_trainer(tmp_path, words, t5)
    t5.save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match="decoder-only model"):
        make_trainer(tmp_path, words, str(tmp_path / "t5"))
    with pytest.raises(InputError, match=r"the model .*nowhere cannot be loaded"):
        make_trainer(tmp_path, words, str(tmp_path / "nowhere"))

    def capped_anew() -> LlamaForCausalLM:
        model = small_llama()
        model.config.final_logit_softcapping = 30.0
        return model

    capped = capped_anew()
    for changes in ({"kl_direction": "ref_policy"}, {"kl_direction": "policy_ref_exact"}):
        with pytest.raises(InputError, match="llama changes its logits after the output layer: kl_direction policy_r"):
            make_trainer(tmp_path, words, capped, **changes)
    make_trainer(tmp_path, words, capped)  # the sampled tokens' log-probabilities are TRL's
    none = {"beta": 0.0, "kl_controller": "fixed"}  # and without a KL term there is no direction
    make_trainer(tmp_path, words, capped_anew(), kl_direction="ref_policy", **none)
    scaled = small_llama()
    scaled.config.logit_scale = 1.0  # changes nothing
    make_trainer(tmp_path, words, scaled, kl_direction="ref_policy")


def test_a_model_of_another_trainer(words, tmp_path):
    trainer = make_trainer(tmp_path, words)
    with pytest.raises(InputError, match="LlamaForCausalLM has a value_head already: load the model anew"):
        make_trainer(tmp_path, words, trainer.model)


@pytest.mark.parametrize("split_by", ["FSDP", "ZeRO-3"])
def test_a_missing_reference(split_by, words, tmp_path, monkeypatch):
    args = settings(tmp_path)
    if split_by == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # what accelerate launch sets
    else:
        monkeypatch.setattr("recipes.trainers.checkpoints.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(InputError, match="this model was made in memory: save it"):
        PPOTrainer(small_llama(), arm_reward, args, Dataset.from_dict({"prompt": PROMPTS}), processing_class=words)


def test_split_weights_without_a_whole_output_layer(words, tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.trainers.ppo.weights_are_split", lambda args: True)
    lora = {"extra": {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])}}
    for direction in ("ref_policy", "policy_ref_exact"):
        with pytest.raises(
            InputError, match=f"kl_direction {direction} needs the whole output layer: no ZeRO-3 and no"
        ):
            make_trainer(tmp_path, words, kl_direction=direction, **lora)
    trainer = make_trainer(tmp_path, words, **lora)  # the model without its adapter is the reference
    assert trainer.ref_model is None and trainer.beta == trainer.args.beta == 1.0
    make_trainer(tmp_path, words, beta=0.0, kl_controller="fixed")  # there is none
    model = small_llama()
    model.save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")  # TRL loads the reference from there
    assert make_trainer(tmp_path, words, model).ref_model is not None


# What is relied on in TRL


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_calculate_rewards", "self inputs prompts completions completion_ids_list"),
        ("_generate_and_score_completions", "self inputs"),
        ("_tokenize_prompts", "self prompts"),
        ("_compute_loss", "self model inputs"),
        ("_generate", "self prompts"),
        ("_get_train_sampler", "self dataset"),
        ("_load_optimizer_and_scheduler", "self checkpoint"),
        ("_save_optimizer_and_scheduler", "self output_dir"),
    ],
)
def test_overridden_signatures_are_trls(method, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters.split()
    assert list(inspect.signature(getattr(PPOTrainer, method)).parameters) == parameters.split()


def test_the_passes_inputs_are_trls():
    from recipes.trainers.study_inputs import PASS_INPUTS

    names = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert names[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert set(names[8:]) == set(PASS_INPUTS)  # after batch_size, compute_entropy, compute_aux_loss
    asked = set(re.findall(r'inputs\.get\("(\w+)"\)', inspect.getsource(GRPOTrainer._compute_loss)))
    assert set(PASS_INPUTS) <= asked


def test_every_override_calls_super_once():
    class_node = ast.parse(textwrap.dedent(inspect.getsource(PPOTrainer))).body[0]
    for method in [node for node in class_node.body if isinstance(node, ast.FunctionDef)]:
        calls = [
            node.func.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Call)
            and getattr(node.func.value.func, "id", "") == "super"
        ]
        assert calls == ([method.name] if hasattr(GRPOTrainer, method.name) else [])


if __name__ == "__main__":
    run(lambda: one_of_two(sys.argv[1]))
