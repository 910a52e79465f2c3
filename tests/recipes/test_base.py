"""The base of all trainers: what it adds to a run, whatever the run's method."""

import ast
import inspect
import os
import signal
import textwrap
import threading

import pytest
from safetensors.torch import load_file
from test_long_runs import make_trainer
from transformers import Trainer, TrainerCallback

from recipes.files import InputError
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.checkpoints import find_damage


class AtStep2(TrainerCallback):
    """Does something in the second step."""

    def __init__(self, act):
        self.act = act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.act()


def handlers() -> list:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_saved_ends_in_a_sentence_and_goes_on(number, tmp_path):
    before = handlers()
    trainer = make_trainer("weighted_sft", tmp_path, max_steps=4, save_steps=100)
    trainer.callback_handler.callbacks.insert(0, AtStep2(lambda: os.kill(os.getpid(), number)))
    with pytest.raises(SystemExit, match=r"\Astopped at step 2; continue with --resume_from_checkpoint latest\Z"):
        trainer.train()
    assert handlers() == before
    assert find_damage(tmp_path / "checkpoint-2") is None
    trainer = make_trainer("weighted_sft", tmp_path, max_steps=4, save_steps=100)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4


def test_signals_come_back_after_an_error(tmp_path):
    def fail():
        raise KeyError("of a step")

    before = handlers()
    trainer = make_trainer("weighted_sft", tmp_path, max_steps=4, save_strategy="no")
    trainer.add_callback(AtStep2(fail))
    with pytest.raises(KeyError, match="of a step"):
        trainer.train()
    assert handlers() == before


def test_a_trainer_in_another_thread_takes_no_signals(tmp_path):
    trainer = make_trainer("weighted_sft", tmp_path, max_steps=2, save_strategy="no")
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 2


def test_another_call_of_train_adds_nothing_twice(tmp_path):
    trainer = make_trainer("grpo", tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    trainer.train()
    assert [type(callback).__name__ for callback in trainer.callback_handler.callbacks] == names
    assert {"SaveOnInterrupt", "StopOnCollapse", "RunSummary"} <= set(names)
    assert len(set(names)) == len(names)


def test_nothing_is_pushed_that_was_not_prepared(tmp_path):
    trainer = make_trainer("weighted_sft", tmp_path, max_steps=1, save_strategy="no")
    with pytest.raises(InputError, match="no push was prepared: set push_to_hub"):
        trainer.push_to_hub()


def test_a_checkpoints_own_save_is_trainers(tmp_path):
    """Nothing is staged in it: a checkpoint is whole by itself."""
    trainer = make_trainer("weighted_sft", tmp_path, max_steps=1, save_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "end")
    names = {path.name for path in (tmp_path / "end").iterdir()}
    assert ".model.tmp" not in names and "model.safetensors" in names
    saved, checkpoint = (load_file(tmp_path / name / "model.safetensors") for name in ("end", "checkpoint-1"))
    assert all((saved[name] == checkpoint[name]).all() for name in saved)


def test_every_override_calls_super_once():
    """But `push_to_hub`, in whose place ours is: transformers' uploads pickles."""
    class_node = ast.parse(textwrap.dedent(inspect.getsource(RecipeTrainer))).body[0]
    methods = [node for node in class_node.body if isinstance(node, ast.FunctionDef)]
    assert {"train", "save_model", "init_hf_repo", "push_to_hub", "__init__"} <= {method.name for method in methods}
    for method in methods:
        calls = [
            node.func.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Call)
            and getattr(node.func.value.func, "id", "") == "super"
        ]
        overrides = hasattr(Trainer, method.name) and method.name != "push_to_hub"
        assert calls == [method.name] * overrides, method.name
