"""Each study is read once per group: numbers of the plain pass, fewer tokens, and what is refused."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from test_uneven_batches import PROMPT, ROWS, make_generating, studies, write_model

from recipes.data.samples import to_samples


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(system)`: its folder."""

    @cache
    def models(system: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / system
        write_model(system, folder)
        return folder

    return models


@pytest.fixture(scope="module")
def make(models, tmp_path_factory):
    """`make(kind, system)`: a trainer of that model and a batch of two completions for each of four studies."""

    def make(kind: str, system: str, **settings):
        views = "all" if system.startswith("huatuo") else "frontal"
        samples = to_samples(studies(priors=False), PROMPT, views, keep=("report",))
        settings = {"num_iterations": 2, "per_device_train_batch_size": 2 * ROWS} | settings
        trainer = make_generating(kind, models(system), samples, tmp_path_factory.mktemp("run"), **settings)
        trainer.generation_config.do_sample = True
        batch = trainer._prepare_inputs([samples[number // 2] for number in range(2 * ROWS)])
        batch["advantages"] = torch.linspace(-1, 1, batch["advantages"].numel()).view(batch["advantages"].shape)
        return trainer, batch

    return make


def step(trainer, batch: dict, shared: bool) -> dict:
    """The loss of a batch, its log-probabilities, values and states, and the gradient of every parameter."""
    sharing, results = trainer._sharing, {}
    score = type(trainer)._get_per_token_logps_and_entropies

    def remember(*arguments, **inputs):
        result = score(trainer, *arguments, **inputs)
        results["log_probs"], results["entropies"] = result[0].detach(), result[1].detach()
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


def assert_equal(shared: dict, plain: dict, relative: float = 1e-4) -> None:
    assert shared.keys() == plain.keys()
    for name, expected in plain.items():
        difference = (shared[name] - expected).norm()
        assert difference <= relative * expected.norm() + 1e-7, (name, float(difference), float(expected.norm()))


@pytest.mark.parametrize(
    ("kind", "system"),
    [("grpo", "huatuo A"), ("grpo", "lmrrg"), ("grpo", "llmrg4-atf"), ("ppo", "lmrrg"), ("ppo", "huatuo A")],
)
def test_a_step_is_that_of_the_plain_pass(make, kind, system):
    trainer, batch = make(kind, system)
    assert trainer._sharing.checked
    before = list(trainer._sharing.saved)
    shared = step(trainer, batch, shared=True)
    assert trainer._sharing.saved[0] - before[0] < 0.8 * (trainer._sharing.saved[1] - before[1])
    plain = step(trainer, batch, shared=False)
    assert len(plain) > 20
    assert_equal(shared, plain)
