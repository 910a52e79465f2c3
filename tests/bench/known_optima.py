"""Distances of PPOTrainer, MRGR1Trainer and TRL's GRPOTrainer from optima that are known.

    python tests/bench/known_optima.py                  # 600 updates each
    python tests/bench/known_optima.py --updates 200

The tasks are those of tests/recipes/small_policies.py: one word out of eight, and reports of one or two words. A
distance is a total variation, 0 to 1, of the trained policy from the optimum of its row; three seeds give three
references. tests/recipes/test_known_optima.py checks the same with 100 updates. Prints the table of
recipes/trainers/README.md; writes outputs/bench/known_optima/results.json.
"""

import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from trl import GRPOConfig, GRPOTrainer

from recipes.cli import parse, report, run
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.ppo import PPOConfig, PPOTrainer

sys.path.append(str(Path(__file__).resolve().parents[1] / "recipes"))
from small_policies import (
    ARMS,
    PAIRS,
    distance,
    make_trainer,
    of_the_opposite_kl,
    probabilities,
    tilted,
    tilted_by_mean,
    tilted_one_by_one,
    word_by_word,
)

SEEDS, BAR = (0, 1, 2), 0.05
THETA, ARMS_WEIGHT, PAIRS_WEIGHT = 0.8, 0.5, 0.25
ARM_WEIGHTS = np.clip(np.array(list(ARMS.values())) / THETA, 0, 1)
PPO, MRGR1 = (PPOTrainer, PPOConfig), (MRGR1Trainer, MRGR1Config)
GRPO = (GRPOTrainer, GRPOConfig)
FIXED = {"kl_controller": "fixed", "beta": ARMS_WEIGHT}
EQUATION_5 = {"kl_controller": "reward_threshold", "beta": 1.0, "theta": THETA}
TWO_WORDS = {"beta": PAIRS_WEIGHT, "learning_rate": 0.01}
VALUED = TWO_WORDS | {"kl_controller": "fixed", "value_learning_rate": 0.1}
UNSCALED = {"scale_rewards": "none"}  # or the optimum depends on the deviation
TILTED, OPPOSITE = partial(tilted, weight=ARMS_WEIGHT), partial(of_the_opposite_kl, weight=ARMS_WEIGHT)
WHOLE = partial(tilted, weight=PAIRS_WEIGHT)
ROWS = [
    # task, optimum, its formula, trainer, settings
    (ARMS, "ref exp(R / w)", TILTED, PPO, FIXED),
    (ARMS, "ref exp(R / w)", TILTED, PPO, FIXED | {"value_model": "none"}),
    (ARMS, "ref exp(R / w)", TILTED, PPO, FIXED | {"whiten_advantages": True}),
    (ARMS, "ref exp(R / w)", TILTED, PPO, FIXED | {"kl_mode": "reward"}),
    (ARMS, "ref exp(R / w)", TILTED, MRGR1, UNSCALED | {"beta": ARMS_WEIGHT, "advantage_norm": "trl"}),
    (ARMS, "ref exp(R / w)", TILTED, GRPO, UNSCALED | {"beta": ARMS_WEIGHT}),
    (ARMS, "w ref / (c - R)", OPPOSITE, PPO, FIXED | {"kl_direction": "ref_policy"}),
    (ARMS, "w ref / (c - R)", OPPOSITE, GRPO, UNSCALED | {"beta": ARMS_WEIGHT, "use_bias_correction_kl": False}),
    (ARMS, "ref exp(R / w)", TILTED, GRPO, UNSCALED | {"beta": ARMS_WEIGHT, "use_bias_correction_kl": False}),
    (ARMS, "ref exp((R - c) / λ(R))", partial(tilted_one_by_one, weights=ARM_WEIGHTS), PPO, EQUATION_5),
    (ARMS, "ref exp((R - c) / λ(R))", partial(tilted_one_by_one, weights=ARM_WEIGHTS), PPO,
     EQUATION_5 | {"kl_mode": "reward"}),
    (ARMS, "ref exp(R / mean λ)", partial(tilted_by_mean, weights=ARM_WEIGHTS), PPO,
     EQUATION_5 | {"kl_direction": "policy_ref_exact"}),
    (PAIRS, "ref exp(R / w)", WHOLE, PPO, VALUED),
    (PAIRS, "ref exp(R / w)", WHOLE, PPO, VALUED | {"lam": 0.0}),
    (PAIRS, "ref exp(R / w)", WHOLE, PPO, VALUED | {"kl_mode": "reward"}),
    (PAIRS, "ref exp(R / w)", WHOLE, MRGR1, UNSCALED | TWO_WORDS | {"advantage_norm": "trl"}),
    (PAIRS, "ref exp(R / w)", WHOLE, GRPO, UNSCALED | TWO_WORDS),
    (PAIRS, "word by word", None, GRPO, UNSCALED | TWO_WORDS),
]  # fmt: skip


@dataclass
class BenchArguments:
    updates: int = field(default=600, metadata={"help": "Updates of a training; four on a batch of 128 completions."})


def distances(task: dict, optimum, trainer: tuple, settings: dict, updates: int) -> list[float]:
    """Of one row's trainings, one a seed."""
    values = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            trainer_of_seed = make_trainer(*trainer, folder, task, seed, max_steps=updates, **settings)
            reference = probabilities(trainer_of_seed.model, task)
            trainer_of_seed.train()
            after = probabilities(trainer_of_seed.model, task)
        if optimum is None:
            best = word_by_word(task, reference, PAIRS_WEIGHT)
        else:
            best = optimum(reference, np.array(list(task.values())))
        values.append(distance(after, best))
    return values


def main() -> None:
    (args,) = parse(BenchArguments)
    figures, checks = {"updates": args.updates}, []
    print("| task | known optimum | trainer | settings | distance, three seeds |\n|---|---|---|---|---|")
    for task, name, optimum, trainer, settings in ROWS:
        values = distances(task, optimum, trainer, settings, args.updates)
        words = "eight arms" if task is ARMS else "two words"
        changed = ", ".join(f"{key} {value}" for key, value in settings.items())
        label = trainer[0].__name__
        shown = ", ".join(f"{value:.3f}" for value in values)
        print(f"| {words} | {name} | {label} | {changed} | {shown} |", flush=True)
        figures[f"{words}: {name}: {label}: {changed}"] = values
        if trainer is PPO:
            checks.append({"name": f"{words}, {changed}", "value": max(values), "bar": f"<= {BAR}",
                           "holds": max(values) <= BAR})  # fmt: skip
    report("outputs/bench/known_optima", figures, checks)


if __name__ == "__main__":
    run(main)
