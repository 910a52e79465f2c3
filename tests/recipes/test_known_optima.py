"""PPO, GRPO and RLOO on policies whose optimum is known, and their KL terms' gradients, exactly enumerated."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_policies import (
    ARMS,
    PAIRS,
    distance,
    log_probability,
    make_policy,
    make_trainer,
    of_the_opposite_kl,
    probabilities,
    tilted,
    tilted_by_mean,
    tilted_one_by_one,
    word_by_word,
)
from trl import GRPOConfig, GRPOTrainer

from recipes.cli import run
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.ppo import PPOConfig, PPOTrainer, threshold_weight
from recipes.trainers.rloo import RLOORecipeConfig, RLOORecipeTrainer

NEAR = 0.05  # total variation
SEEDS = range(3)
THETA = 0.8
FIXED = {"kl_controller": "fixed", "beta": 0.5}
TWO_WORDS = {"kl_controller": "fixed", "beta": 0.25, "learning_rate": 0.01, "value_learning_rate": 0.1}
THRESHOLD = {"kl_controller": "reward_threshold", "beta": 1.0, "theta": THETA, "completions": 256, "max_steps": 160}
ARM_REWARDS, PAIR_REWARDS = np.array(list(ARMS.values())), np.array(list(PAIRS.values()))
ARM_WEIGHTS = threshold_weight(torch.tensor(ARM_REWARDS), THETA).numpy()


def trained(folder, task, seed, **changes) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the task's completions under the reference and after training with PPO."""
    trainer = make_trainer(PPOTrainer, PPOConfig, folder, task, seed, **changes)
    before = probabilities(trainer.model, task)
    trainer.train()
    return before, probabilities(trainer.model, task)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("value_model", ["head", "none"])
@pytest.mark.parametrize("kl_mode", ["loss", "reward"])
@pytest.mark.parametrize("controller", ["fixed", "reward_threshold"])
def test_eight_arms(controller, kl_mode, value_model, seed, tmp_path):
    changes = FIXED if controller == "fixed" else THRESHOLD
    before, after = trained(tmp_path, ARMS, seed, kl_mode=kl_mode, value_model=value_model, **changes)
    optimum = tilted(before, ARM_REWARDS, 0.5)
    if controller == "reward_threshold":
        optimum = tilted_one_by_one(before, ARM_REWARDS, ARM_WEIGHTS)
    assert distance(before, optimum) > 4 * NEAR
    assert distance(after, optimum) < NEAR


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("changes", "optimum"),
    [
        # both parts of Eq. 4 are divided by the deviation
        (FIXED | {"whiten_advantages": True}, lambda before: tilted(before, ARM_REWARDS, 0.5)),
        # summed over the vocabulary, the KL term does not depend on the arm, so that only the weights' mean is left
        (
            THRESHOLD | {"kl_direction": "policy_ref_exact"},
            lambda before: tilted_by_mean(before, ARM_REWARDS, ARM_WEIGHTS),
        ),
        (FIXED | {"kl_direction": "ref_policy"}, lambda before: of_the_opposite_kl(before, ARM_REWARDS, 0.5)),
    ],
)
def test_eight_arms_with_other_settings(changes, optimum, seed, tmp_path):
    before, after = trained(tmp_path, ARMS, seed, **changes)
    assert distance(before, optimum(before)) > 4 * NEAR
    assert distance(after, optimum(before)) < NEAR


def test_the_readings_of_equation_5_differ():
    before = probabilities(make_policy(ARMS, 0), ARMS)
    readings = (tilted_one_by_one, tilted_by_mean)
    one, mean = (reading(before, ARM_REWARDS, ARM_WEIGHTS) for reading in readings)
    assert one.sum() == pytest.approx(1) and mean.sum() == pytest.approx(1)
    assert one[4] == 0 and mean[4] > 0.01  # a report without reward is not held at all, or as all others are
    assert distance(one, mean) > 0.1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"lam": 0.0},  # the first word learns from the value of the second one's state alone
        {"kl_mode": "reward", "lam": 0.5, "completions": 256},
        {"kl_direction": "policy_ref_exact", "lam": 0.5},
    ],
)
def test_two_words(changes, seed, tmp_path):
    """The optimum of Eq. 4 with the KL of whole reports."""
    before, after = trained(tmp_path, PAIRS, seed, **TWO_WORDS | changes)
    assert distance(after, tilted(before, PAIR_REWARDS, 0.25)) < NEAR


@pytest.mark.parametrize("seed", [0, 2])  # with seed 1 the two optima are .04 apart
def test_two_words_are_not_two_bandits(seed):
    before = probabilities(make_policy(PAIRS, seed), PAIRS)
    assert distance(tilted(before, PAIR_REWARDS, 0.25), word_by_word(PAIRS, before, 0.25)) > 2 * NEAR


def one_of_two(folder: str) -> None:
    processes = int(os.environ["WORLD_SIZE"])
    for name, task, changes in (
        ("arms", ARMS, FIXED),
        ("pairs", PAIRS, TWO_WORDS | {"lam": 0.5, "completions": 256}),
    ):
        trainer = make_trainer(PPOTrainer, PPOConfig, Path(folder) / name, task, 0, processes=processes, **changes)
        before = probabilities(trainer.model, task)
        trainer.train()
        if trainer.is_world_process_zero():
            after = probabilities(trainer.accelerator.unwrap_model(trainer.model), task)
            np.savez(Path(folder) / f"{name}.npz", before=before, after=after)


def test_two_processes(tmp_path, torchrun):
    subprocess.run([sys.executable, *torchrun(__file__, tmp_path)], check=True, timeout=300)
    for name, rewards, weight in (("arms", ARM_REWARDS, 0.5), ("pairs", PAIR_REWARDS, 0.25)):
        figures = np.load(tmp_path / f"{name}.npz")
        assert distance(figures["after"], tilted(figures["before"], rewards, weight)) < NEAR


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("corrected", "optimum"),
    [
        (True, tilted),  # Eq. 1
        (False, of_the_opposite_kl),  # DeepSeekMath's estimator
    ],
)
def test_eight_arms_with_grpo(corrected, optimum, seed, tmp_path):
    """Advantages that are not divided by a deviation, so that the optimum can be written down."""
    changes = {"beta": 0.25, "use_bias_correction_kl": corrected, "advantage_norm": "trl", "scale_rewards": "none"}
    changes |= {"completions": 256}
    trainer = make_trainer(MRGR1Trainer, MRGR1Config, tmp_path, ARMS, seed, **changes)
    before = probabilities(trainer.model, ARMS)
    trainer.train()
    assert distance(tilted(before, ARM_REWARDS, 0.25), of_the_opposite_kl(before, ARM_REWARDS, 0.25)) > 1.5 * NEAR
    assert distance(probabilities(trainer.model, ARMS), optimum(before, ARM_REWARDS, 0.25)) < NEAR


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("task", [ARMS, PAIRS], ids=["eight arms", "two words"])
def test_rloo(task, seed, tmp_path):
    """Its KL term is of whole reports and taken off the reward, so that two words have the optimum of Eq. 4 too."""
    changes = {"beta": 0.25, "completions": 256, "max_steps": 160}
    trainer = make_trainer(RLOORecipeTrainer, RLOORecipeConfig, tmp_path, task, seed, **changes)
    before = probabilities(trainer.model, task)
    trainer.train()
    optimum = tilted(before, np.array(list(task.values())), 0.25)
    assert distance(before, optimum) > 3 * NEAR
    assert distance(probabilities(trainer.model, task), optimum) < NEAR


# Gradients of the KL terms


def kl_gradients(trainer, task: dict[tuple, float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The expected gradient of a trainer's loss without advantages, and those of KL(policy || reference) and of KL(
    reference || policy): each completion's own, times its probability."""
    model, names = trainer.model, []
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    reference = np.log(probabilities(model, task))
    generator = torch.Generator().manual_seed(0)
    model.lm_head.weight.data += 0.3 * torch.randn(model.lm_head.weight.shape, generator=generator)
    names = [name for name, value in model.named_parameters() if value.requires_grad and "value_head" not in name]
    parameters = [dict(model.named_parameters())[name] for name in names]

    def flat(value: torch.Tensor) -> torch.Tensor:
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        pairs = zip(gradients, parameters, strict=True)
        return torch.cat([(torch.zeros_like(own) if one is None else one).flatten().double() for one, own in pairs])

    found, forward, backward = 0.0, 0.0, 0.0
    for completion, ref_log_prob in zip(task, reference, strict=True):
        row = torch.tensor([completion])
        log_prob = log_probability(model, completion)
        now = log_prob.detach().reshape(1, 1)
        batch = {
            "prompt_ids": torch.tensor([[10]]), "prompt_mask": torch.ones(1, 1, dtype=torch.long),
            "completion_ids": row, "completion_mask": torch.ones_like(row), "num_items_in_batch": torch.tensor(1),
            "advantages": torch.zeros(1, 1), "old_per_token_logps": now,
            "ref_per_token_logps": torch.tensor([[ref_log_prob]], dtype=torch.float32),
            "values": torch.zeros(1, 1), "returns": torch.zeros(1, 1), "kl_weight": torch.ones(1),
            "scored": torch.ones(1, dtype=torch.bool),
        }  # fmt: skip
        chance = now.exp().item()
        found += chance * flat(trainer._compute_loss(model, batch))
        score = flat(log_prob)
        forward += chance * score * (log_prob.item() - ref_log_prob)
        backward -= np.exp(ref_log_prob) * score
    return found, forward, backward


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "changes", "direction"),
    [
        (PPOTrainer, PPOConfig, {"beta": 1.0, "value_model": "none"}, "policy_ref"),
        (MRGR1Trainer, MRGR1Config, {"beta": 1.0, "use_bias_correction_kl": True}, "policy_ref"),  # Eq. 1
        (MRGR1Trainer, MRGR1Config, {"beta": 1.0, "use_bias_correction_kl": False}, "ref_policy"),  # DeepSeekMath
        (GRPOTrainer, GRPOConfig, {"beta": 1.0}, "policy_ref"),  # TRL's default
    ],
)
def test_gradient_of_the_kl_term(trainer_class, config_class, changes, direction, tmp_path):
    trainer = make_trainer(trainer_class, config_class, tmp_path, ARMS, 0, loss_type="grpo", **changes)
    found, policy_ref, ref_policy = kl_gradients(trainer, ARMS)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(policy_ref, ref_policy, dim=0) < 0.98
    torch.testing.assert_close(found, policy_ref if direction == "policy_ref" else ref_policy, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("loss_type", "lowest", "highest"),
    [
        ("grpo", 0.9, 0.99),  # each report's tokens weigh 1 / its length
        ("dr_grpo", 0.9999, 1.0),
        ("dapo", 0.9999, 1.0),  # within one batch
    ],
)
def test_gradient_of_whole_reports(loss_type, lowest, highest, tmp_path):
    """The cosine of a batch's gradient to that of Eq. 1, mean of ratio x advantage with the ratio of whole reports."""
    trainer = make_trainer(
        MRGR1Trainer, MRGR1Config, tmp_path, ARMS, 0, loss_type=loss_type, beta=0.0, max_completion_length=18
    )
    trainer.current_gradient_accumulation_steps = 1
    model, chance = trainer.model, np.random.default_rng(0)
    model.train()
    reports = [tuple(chance.integers(0, 8, size=length)) for length in range(6, 19)]
    advantages = torch.tensor(chance.normal(size=len(reports)), dtype=torch.float32)
    advantages -= advantages.mean()
    ids, mask = torch.full((len(reports), 18), 9), torch.zeros(len(reports), 18, dtype=torch.long)
    for row, report in enumerate(reports):
        ids[row, : len(report)], mask[row, : len(report)] = torch.tensor(report), 1
    batch = {
        "prompt_ids": torch.full((len(reports), 1), 10), "prompt_mask": torch.ones(len(reports), 1, dtype=torch.long),
        "completion_ids": ids, "completion_mask": mask, "advantages": advantages, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    expected = -sum(
        advantage * log_probability(model, report) for report, advantage in zip(reports, advantages, strict=True)
    )
    gradients = []
    for loss in (trainer._compute_loss(model, batch), expected):
        model.zero_grad()
        loss.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
    assert lowest < torch.nn.functional.cosine_similarity(*gradients, dim=0) < highest + 1e-6


if __name__ == "__main__":
    run(lambda: one_of_two(sys.argv[1]))
