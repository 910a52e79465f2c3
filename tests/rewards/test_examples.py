"""The examples in the docstrings of the rewards: every public reward has one, and it is true."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import rewards

MODULES = [module.name for module in pkgutil.iter_modules(rewards.__path__, "rewards.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    """Those that need weights or a table are skipped by `doctest: +SKIP`, with the reason beside it."""
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", rewards.__all__)
def test_a_public_reward_has_an_example(name):
    reward = getattr(rewards, name)
    if not (inspect.isfunction(reward) or inspect.isclass(reward)):  # an object that a factory or a class made
        reward = getattr(rewards, f"make_{name.replace('_lite', '')}", type(reward))
    assert "Example:\n" in reward.__doc__ and ">>> " in reward.__doc__
