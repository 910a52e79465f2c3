"""Policies so small that all their completions can be written down, and the optima of Eqs. 1 and 4 on them.

A task is a dict from each completion, a tuple of word numbers, to its reward. The policy is a Phi of one layer that is
asked one prompt; the bias of its output layer leaves it the words of the task and no others.
"""

import os
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import brentq
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast, set_seed

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "<eos>", "<pad>", "ask"]
END, PAD, ASK = 8, 9, 10
ARMS = {(arm,): reward for arm, reward in enumerate((0.1, 0.55, 0.85, 0.4, 0.0, 0.05, 1.0, 0.7))}
# The first word is worth what the second makes of it; a report may end at once, or after one word.
PAIRS = {(END,): 0.5, (0, 0): 0.9, (0, 1): 0.0, (0, END): 0.6, (1, 0): 0.0, (1, 1): 0.1, (1, END): 1.0}


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def make_policy(task: dict[tuple, float], seed: int) -> PhiForCausalLM:
    set_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None}
    model = PhiForCausalLM(PhiConfig(vocab_size=len(WORDS), **sizes, **special))
    nn.init.normal_(model.lm_head.weight, std=0.2)
    allowed = {word for completion in task for word in completion}
    model.lm_head.bias.data = torch.tensor([0.0 if word in allowed else -1e4 for word in range(len(WORDS))])
    return model


def log_probability(model: nn.Module, completion: tuple, temperature: float = 1.0) -> torch.Tensor:
    """log p of a whole completion, with its gradient."""
    ids = torch.tensor([[ASK, *completion]])
    log_probs = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
    return log_probs.gather(1, ids[0, 1:, None]).sum()


def probabilities(model: nn.Module, task: dict[tuple, float]) -> np.ndarray:
    with torch.no_grad():
        return np.array([log_probability(model, completion).exp().item() for completion in task])


def make_trainer(trainer_class, config_class, folder, task: dict[tuple, float], seed: int, **changes: Any):
    """A trainer of any class on TRL's GRPOTrainer whose policy's completions are those of `task`."""
    processes = changes.pop("processes", 1)
    size = changes.pop("completions", 128) // processes

    def reward(completion_ids, **kwargs):
        return [task[tuple(ids)] for ids in completion_ids]

    values = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no",
        "max_completion_length": max(map(len, task)), "per_device_train_batch_size": size, "num_generations": size,
        "gradient_checkpointing": False, "disable_tqdm": True, "logging_strategy": "no", "seed": seed,
        "learning_rate": 0.02, "lr_scheduler_type": "linear", "num_iterations": 4, "max_steps": 100,
    }  # fmt: skip
    data = Dataset.from_dict({"prompt": ["ask"] * 64})
    model = make_policy(task, seed)
    model.config.name_or_path = os.path.join(folder, "policy")  # where TRL's trainers load the reference from
    model.save_pretrained(model.config.name_or_path)
    return trainer_class(model, reward, config_class(**values | changes), data, processing_class=make_tokenizer())


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Total variation, 0 to 1."""
    return float(np.abs(first - second).sum() / 2)


# Optima. Each is for the reference's probabilities and the rewards of the same completions, as arrays.


def tilted(reference: np.ndarray, rewards: np.ndarray, weight: float) -> np.ndarray:
    """Of E[R] - weight x KL(policy || reference): the reference times exp(R / weight), normalised."""
    optimum = reference * np.exp(rewards / weight)
    return optimum / optimum.sum()


def tilted_one_by_one(reference: np.ndarray, rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Where R - w log(policy / reference) is one number c for all completions, each with a weight w of its own.

    A completion without weight has probability 0 (c is then above its reward).
    """
    held = weights > 0

    def optimum(c: float) -> np.ndarray:
        return np.where(held, reference * np.exp((rewards - c) / np.where(held, weights, 1.0)), 0.0)

    return optimum(brentq(lambda c: optimum(c).sum() - 1, rewards[~held].max(initial=-5.0), 5.0))


def tilted_by_mean(reference: np.ndarray, rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`tilted` with that weight which is the mean of `weights` under the optimum itself."""
    weight = brentq(lambda weight: tilted(reference, rewards, weight) @ weights - weight, 0.02, weights.max())
    return tilted(reference, rewards, weight)


def of_the_opposite_kl(reference: np.ndarray, rewards: np.ndarray, weight: float) -> np.ndarray:
    """Of E[R] - weight x KL(reference || policy): weight x reference / (c - R)."""
    optimum = lambda c: weight * reference / (c - rewards)  # noqa: E731
    return optimum(brentq(lambda c: optimum(c).sum() - 1, rewards.max() + 1e-9, 100.0))


def word_by_word(task: dict[tuple, float], reference: np.ndarray, weight: float) -> np.ndarray:
    """Of PAIRS where no word answers for the KL of later ones: the second by its reward, the first by its mean."""
    rewards, chances = (dict(zip(task, values, strict=True)) for values in (task.values(), reference))
    optimum, first = {}, {(END,): chances[END,] * np.exp(rewards[END,] / weight)}
    for word in {completion[0] for completion in task if len(completion) == 2}:
        rows = [completion for completion in task if completion[0] == word]
        mass = np.array([chances[row] for row in rows])
        second = tilted(mass / mass.sum(), np.array([rewards[row] for row in rows]), weight)
        optimum |= dict(zip(rows, second, strict=True))
        first[word,] = mass.sum() * np.exp(second @ [rewards[row] for row in rows] / weight)
    return np.array([first[row[:1]] * optimum.get(row, 1.0) for row in task]) / sum(first.values())
