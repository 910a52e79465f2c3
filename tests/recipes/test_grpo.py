"""MRG-R1's trainer: Eq. 2's advantages, Eq. 1's loss, and what it relies on in TRL."""

import ast
import inspect
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from test_long_runs import make_trainer as make_trainer_of_words
from test_long_runs import make_words, small_llama
from transformers import AutoProcessor
from trl import GRPOTrainer, ModelConfig, get_peft_config

from recipes import grpo_mrgr1
from recipes.cli import run
from recipes.data.samples import to_samples
from recipes.data.schema import read_dataset
from recipes.files import InputError
from recipes.sft_mrgr1 import MRGR1SFTTrainer
from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer, paper_advantages
from recipes.trainers.ppo import PPOConfig, PPOTrainer
from rewards.labelers import LexicalLabeler
from rewards.table import REWARDS, make_rewards

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")
PAPER = [1.5213, 0.1690, -0.5071, -1.1832]  # MR-011: rewards 1, .5, .25, 0; population variance
TRL = [1.3172, 0.1464, -0.4391, -1.0245]  # the same with Bessel's correction and 1e-4 outside the root


@pytest.mark.parametrize(
    ("rewards", "generations", "expected"),
    [
        ([1, 0.5, 0.25, 0], 4, PAPER),  # MR-011
        ([0.7] * 4, 4, [0, 0, 0, 0]),  # a group without spread carries no signal, and 0 / 0 must not appear
        ([1, 0], 2, [1, -1]),  # mean .5, population deviation .5
        ([1, 0, 3, 5], 2, [1, -1, -1, 1]),  # each group by itself
        ([NAN, 1, 0, NAN], 4, [0, 1, -1, 0]),  # unscorable completions take no part
        ([NAN, NAN, 1, 0], 2, [0, 0, 1, -1]),  # nor does a wholly unscorable group
        ([NAN, 1], 2, [0, 0]),  # one scored completion is its own mean
    ],
)
def test_paper_advantages(rewards, generations, expected):
    found = paper_advantages(torch.tensor(rewards, dtype=torch.float32), generations)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("std_epsilon", "expected"),
    [
        (0.75, 0.5),  # deviation .5, sigma sqrt(.25 + .75) = 1; outside the root it would be .5 / 1.25 = .4
        (1e-8, 1.0),  # negligible
    ],
)
def test_epsilon_stands_inside_the_root(std_epsilon, expected):
    found = paper_advantages(torch.tensor([1.0, 0.0]), 2, std_epsilon)
    torch.testing.assert_close(found, torch.tensor([expected, -expected]), atol=1e-5, rtol=0)


def text_of(completion) -> str:
    return completion[0]["content"]


def letters_reward(completions, **kwargs):
    """Differs between completions, so that no group is without spread."""
    return [len(set(text_of(completion))) / 10 for completion in completions]


def text_reward(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def even_reward(completions, **kwargs):
    """Cannot score some completions."""
    return [None if len(text_of(completion)) % 3 == 0 else 1.0 for completion in completions]


@pytest.fixture(scope="module")
def samples(phantom):
    return to_samples(read_dataset(str(phantom))["train"], "Report.", "frontal", keep=("study_id", "report", "labels"))


@pytest.fixture(scope="module")
def paper_values():
    return yaml.safe_load((ROOT / "recipes/configs/mrgr1/mimic.yaml").read_text())


@pytest.fixture(scope="module")
def make_trainer(tiny, samples, paper_values, tmp_path_factory):
    """A trainer on the tiny model: the paper's LoRA, group size, loss and KL; 8 completions of 6 tokens a step."""
    lora = {"lora_target_modules": paper_values["lora_target_modules"], "lora_r": 2, "lora_alpha": 4}

    def make(trainer_class=MRGR1Trainer, rewards=(letters_reward, even_reward), **changed):
        settings = {
            "output_dir": str(tmp_path_factory.mktemp("grpo")),
            "effective_batch_size": 8,
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 6,
            "reward_weights": [0.75, 0.25][: len(rewards)],
            "max_steps": 2,
            "learning_rate": 0.01,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "log_completions": True,
            "num_completions_to_print": 0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        settings |= {name: paper_values[name] for name in ("loss_type", "beta", "use_bias_correction_kl", "epsilon")}
        return trainer_class(
            model=str(tiny),
            reward_funcs=list(rewards),
            args=MRGR1Config(**settings | changed),
            train_dataset=samples,
            processing_class=AutoProcessor.from_pretrained(tiny),
            peft_config=get_peft_config(ModelConfig(use_peft=True, **lora)),
        )

    return make


@pytest.fixture(scope="module")
def trained(make_trainer):
    trainer = make_trainer()
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    return trainer, before


def test_two_steps_move_the_language_model_only(trained):
    trainer, before = trained
    after = dict(trainer.model.named_parameters())
    assert before and all(".language_model." in name and "lora_" in name for name in before)
    assert {name.split(".")[-4] for name in before} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_plain_names_would_reach_the_vision_tower(trained):
    modules = [name for name, _ in trained[0].model.named_modules()]
    assert any(".visual." in name and name.endswith("gate_proj") for name in modules)  # why the regex is needed


def test_reference_is_the_model_without_its_adapter(trained):
    trainer, _ = trained
    logged = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert trainer.ref_model is None  # LoRA's base is the reference
    assert len(logged) == 2
    assert logged[0] == pytest.approx(0, abs=1e-6)  # MR-010: at the start both are one policy
    assert logged[1] > 0


def test_logged_advantages_are_the_papers(trained):
    trainer, _ = trained
    files = sorted((Path(trainer.args.output_dir) / "completions").glob("*.parquet"))
    assert len(files) == 2
    for file in files:
        table = pd.read_parquet(file)
        scores = table[["letters_reward", "even_reward"]].to_numpy(float)
        rewards = np.nansum(scores * [0.75, 0.25], axis=1).reshape(-1, 4)
        sigma = np.sqrt(rewards.var(axis=1, keepdims=True) + 1e-8)
        expected = (rewards - rewards.mean(axis=1, keepdims=True)) / sigma
        np.testing.assert_allclose(table["advantage"], expected.ravel(), atol=1e-4)
        assert len(table) == 8


def fixed_reward(completions, **kwargs):
    return [1, 0.5, 0.25, 0] * (len(completions) // 4)


@pytest.mark.parametrize(
    ("trainer_class", "norm", "expected"),
    [
        (MRGR1Trainer, "paper", PAPER),  # Eq. 2
        (MRGR1Trainer, "trl", TRL),  # the option leaves TRL's alone
        (GRPOTrainer, "paper", TRL),  # so does the stock trainer: fails when TRL changes its own normalisation
    ],
)
def test_output_of_generation_that_we_rely_on(make_trainer, samples, trainer_class, norm, expected):
    trainer = make_trainer(trainer_class, (fixed_reward,), advantage_norm=norm)
    trainer.model.train()
    inputs = [samples[0]] * 4 + [samples[1]] * 4
    output = trainer._generate_and_score_completions(inputs)
    assert {"prompt_ids", "completion_ids", "completion_mask", "advantages", "ref_per_token_logps"} <= set(output)
    torch.testing.assert_close(output["advantages"], torch.tensor(expected * 2), atol=1e-3, rtol=0)
    assert list(trainer._logs["advantages"])[-8:] == pytest.approx(expected * 2, abs=1e-3)
    assert trainer.reward_weights.shape == (1,)
    assert trainer.num_generations == 4


@pytest.mark.parametrize(
    ("std_epsilon", "expected"),
    [
        (0.421875, [0.5, -0.5]),  # rewards of .75 and 0: deviation .375, sigma sqrt(.140625 + .421875) = .75
        (1e-8, [1.0, -1.0]),
    ],
)
def test_the_settings_epsilon_is_the_advantages(make_trainer, samples, std_epsilon, expected):
    def one_of_two_reward(completions, **kwargs):
        return [1.0, 0.0] * (len(completions) // 2)

    trainer = make_trainer(rewards=(one_of_two_reward,), std_epsilon=std_epsilon)
    trainer.model.train()
    output = trainer._generate_and_score_completions([samples[0]] * 4 + [samples[1]] * 4)
    torch.testing.assert_close(output["advantages"], torch.tensor(expected * 4), atol=1e-4, rtol=0)


def test_evaluation_groups_by_its_own_size(make_trainer, samples):
    trainer = make_trainer(rewards=(fixed_reward,), num_generations_eval=2, per_device_eval_batch_size=4)
    trainer.model.eval()
    output = trainer._generate_and_score_completions([samples[0]] * 2 + [samples[1]] * 2)
    torch.testing.assert_close(output["advantages"], torch.tensor([1.0, -1.0, 1.0, -1.0]), atol=1e-3, rtol=0)


def test_loss_is_equation_1(make_trainer, monkeypatch):
    """MR-009: 1 prompt, 4 completions, 3 tokens (one is padding); ratios inside and outside the clip range."""
    trainer = make_trainer()
    trainer.current_gradient_accumulation_steps = 1
    new = np.log([[0.5, 0.4, 0.3], [0.2, 0.6, 0.5], [0.9, 0.1, 0.7], [0.3, 0.3, 0.5]])
    ratio = np.array([[1.0, 1.5, 0.5], [1.1, 0.7, 1.3], [0.9, 1.25, 0.75], [2.0, 1.0, 1.0]])
    reference = np.log([[0.4, 0.4, 0.6], [0.3, 0.5, 0.5], [0.8, 0.2, 0.7], [0.3, 0.6, 0.5]])
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]])
    advantages = np.array(PAPER)[:, None]

    surrogate = np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
    kl = (np.exp(reference - new) - (reference - new) - 1) * ratio  # so that its gradient is KL(policy || reference)'s
    objective = surrogate - 0.04 * kl
    expected = -np.mean((objective * mask).sum(1) / mask.sum(1))

    tensor = lambda values: torch.tensor(values, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda *args, **kwargs: (tensor(new), torch.zeros(4, 3, dtype=torch.float64), None),
    )
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": torch.ones(4, 2, dtype=torch.long),
            "prompt_mask": torch.ones(4, 2, dtype=torch.long),
            "completion_ids": torch.ones(4, 3, dtype=torch.long),
            "completion_mask": torch.tensor(mask),
            "advantages": tensor(PAPER),
            "old_per_token_logps": tensor(new - np.log(ratio)),
            "ref_per_token_logps": tensor(reference),
            "num_items_in_batch": torch.tensor(11),
        },
    )
    assert loss.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale_rewards": "batch"}, "scale_rewards batch has no effect with advantage_norm paper"),
        ({"scale_rewards": False}, "scale_rewards none has no effect with advantage_norm paper"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            "multi_objective_aggregation normalize_then_sum has no effect .* leave it at sum_then_normalize",
        ),
    ],
)
def test_settings_without_effect_are_refused(changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        MRGR1Config(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)
    MRGR1Config(output_dir=str(tmp_path), use_cpu=True, bf16=False, advantage_norm="trl", **changes)


def test_no_reward_is_not_a_reward_of_0(make_trainer, samples):
    """Two of four completions have no reward: they take no part, and the other two are not compared with 0."""

    def half(completions, **kwargs):
        return [None, 1.0, None, 1.0] * (len(completions) // 4)

    def spread(completions, **kwargs):
        return [None, 1.0, None, 0.5] * (len(completions) // 4)

    def tenth(completions, **kwargs):
        return [0.1] * len(completions)

    for rewards, expected in (
        ((half,), [0, 0, 0, 0]),
        ((spread,), [0, 1, 0, -1]),
        ((half, tenth), [-1, 1, -1, 1]),  # one of two functions is enough, and the sums are .025, .775 by turns
    ):
        trainer = make_trainer(rewards=rewards)
        trainer.model.train()
        output = trainer._generate_and_score_completions([samples[0]] * 4 + [samples[1]] * 4)
        expected = torch.tensor(expected * 2, dtype=torch.float32)
        torch.testing.assert_close(output["advantages"], expected, atol=1e-4, rtol=0)


@pytest.fixture
def rewards_of_the_recipe(call, tiny, phantom, tmp_path, monkeypatch):
    """`rewards_of_the_recipe(*arguments)`: all reward functions as recipes/grpo_mrgr1.py makes them."""

    def rewards_of_the_recipe(*arguments) -> dict:
        functions = {}

        def stop(settings, labeler, references, weights):
            weights_needed = ("bertscore", "radgraph", "radcliq", "crepe", "ratescore")
            names = [name for name in REWARDS if name not in weights_needed]
            functions.update(
                zip(names, make_rewards(replace(settings, rewards=names), labeler, references), strict=True)
            )
            raise InputError("far enough")

        monkeypatch.setattr(grpo_mrgr1, "choose_rewards", stop)
        config = ROOT / "recipes/configs/mrgr1/phantom.yaml"
        with pytest.raises(InputError, match="far enough"):
            call(
                grpo_mrgr1.main, "--config", config, "--model_name_or_path", tiny, "--dataset", phantom,
                "--output_dir", tmp_path, *arguments,
            )  # fmt: skip
        return functions

    return rewards_of_the_recipe


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0.0, 0.8165),  # two of three positive findings
        (0.2, 0.7706),
        (0.5, 0.6330),
        (0.9, 0.0),
    ],
)
def test_the_margin_reaches_mccs(margin, expected, rewards_of_the_recipe):
    functions = rewards_of_the_recipe("--margin", margin)
    report = "There is a left pleural effusion. There is a pneumothorax."
    (found,) = LexicalLabeler()([report])
    assert sorted(found[:13]) == [0] * 11 + [1, 1]
    truth = list(found)
    truth[list(found[:13]).index(0)] = 1  # a third finding in the reference
    assert functions["mccs"]([report], labels=[truth])[0] == pytest.approx(expected, abs=1e-4)


def test_positive_f1_is_of_the_positive_findings_alone(rewards_of_the_recipe):
    """A normal study, which ce_f1 pays for, earns nothing by it."""
    functions, normal = rewards_of_the_recipe(), "The heart is normal. The lungs are clear."
    assert functions["ce_f1"]([normal], report=[normal])[0] == 1
    assert functions["positive_f1"]([normal], report=[normal])[0] == 0


@pytest.mark.parametrize("mode", ["whole", "zero"])
def test_untagged_reaches_every_reward(mode, rewards_of_the_recipe):
    """A completion that is the reference, without a tag, earns something with `whole` and nothing with `zero`."""
    functions = rewards_of_the_recipe("--untagged", mode)
    del functions["format"]
    assert {
        "mccs",
        "ce_f1",
        "positive_f1",
        "label_fbeta",
        "bleu",
        "rouge",
        "cider",
        "radgraph_lexical",
        "severity",
        "radcliq_lite",
    } == set(functions)
    report = "There is a small left pleural effusion. The heart is enlarged."
    for name, function in functions.items():
        (score,) = function([[{"role": "assistant", "content": report}]], report=[report])
        assert (score > 0.5) if mode == "whole" else (score == 0), name


def test_two_epochs_have_different_orders(make_trainer):
    """Each prompt once per epoch, in a new order, and a later run finds the order of its epoch."""

    def orders(epochs) -> list[list[int]]:
        sampler = make_trainer()._get_train_sampler()
        found = []
        for epoch in epochs:
            sampler.set_epoch(epoch)
            found.append(list(dict.fromkeys(sampler)))
        return found

    first, second = orders((0, 1))
    assert sorted(first) == sorted(second) and first != second
    assert orders((1,)) == [second]


@pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(MRGR1Trainer, MRGR1Config), (PPOTrainer, PPOConfig), (MRGR1SFTTrainer, SFTRecipeConfig)],
)
def test_loras_start_follows_the_seed(trainer_class, config_class, tmp_path):
    """Whatever was drawn before; TRL sets the seed before it adds an adapter."""

    def start(seed: int, earlier: int) -> torch.Tensor:
        model = small_llama()
        torch.manual_seed(earlier)
        reward = {} if trainer_class is MRGR1SFTTrainer else {"reward_funcs": text_reward}
        trainer = trainer_class(
            model=model,
            args=config_class(output_dir=str(tmp_path), use_cpu=True, bf16=False, seed=seed),
            train_dataset=Dataset.from_dict({"prompt": ["lungs "] * 8, "completion": ["clear"] * 8}),
            processing_class=make_words(),
            peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
            **reward,
        )
        (value,) = [value for name, value in trainer.model.named_parameters() if "lora_A" in name]
        return value.detach().clone()

    first = start(seed=1, earlier=5)
    assert torch.equal(first, start(seed=1, earlier=6))
    assert not torch.equal(first, start(seed=2, earlier=5))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_get_train_sampler", ["self", "dataset"]),
        ("_tokenize_prompts", ["self", "prompts"]),
    ],
)
def test_overridden_signatures_are_trls(method, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters  # a TRL upgrade fails here
    assert list(inspect.signature(getattr(MRGR1Trainer, method)).parameters) == parameters


def one_of_two(folder: str) -> None:
    """Four steps of plain gradient descent on eight completions; their words depend on the prompt and the place."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer_of_words(
        "grpo", folder, per_device_train_batch_size=8 // processes, max_steps=4, save_strategy="no", optim="sgd",
        learning_rate=0.5, shuffle_dataset=False, max_grad_norm=0.0,
    )  # fmt: skip

    def says(prompts, trainer) -> dict:
        ids = trainer.processing_class(list(prompts))["input_ids"]
        texts = [[2 + (sum(own) + row % 2) % 6, 3, 1][: 2 + len(own) % 2] for row, own in enumerate(ids)]
        return {"prompt_ids": ids, "completion_ids": texts, "logprobs": [[0.0] * len(each) for each in texts]}

    trainer.rollout_func = says
    trainer.train()
    if trainer.is_world_process_zero():
        names = (
            "loss",
            "reward",
            "reward_std",
            "rewards/says_clear/mean",
            "completions/mean_length",
            "grad_norm",
        )
        rows = [[row[name] for name in names] for row in trainer.state.log_history if "reward" in row]
        torch.save({"weights": trainer.model.state_dict(), "rows": rows}, Path(folder) / f"{processes}.pt")


def test_two_processes_are_one(tmp_path, torchrun):
    """A batch of 4 on each of two processes is a batch of 8 on one: weights, rewards, size of the gradients."""
    subprocess.run([sys.executable, *torchrun(__file__, tmp_path)], check=True, timeout=300)
    one_of_two(str(tmp_path))
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (1, 2))
    assert len(one["rows"]) == 4 and all(row[1] > 0 and row[2] > 0 for row in one["rows"])
    np.testing.assert_allclose(two["rows"], one["rows"], atol=1e-5)
    start = small_llama().state_dict()
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-6, rtol=1e-5)
        assert not torch.equal(value, start[name]), name


def test_every_override_calls_super_once():
    class_node = ast.parse(textwrap.dedent(inspect.getsource(MRGR1Trainer))).body[0]
    methods = [node for node in class_node.body if isinstance(node, ast.FunctionDef)]
    assert methods
    for method in methods:
        calls = [
            node
            for node in ast.walk(method)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Call)
            and getattr(node.func.value.func, "id", "") == "super"
        ]
        assert [call.func.attr for call in calls] == [method.name]


if __name__ == "__main__":
    run(lambda: one_of_two(sys.argv[1]))
