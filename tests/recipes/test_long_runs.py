"""Runs that are killed, collapse, or find a full disk: what is left is readable, and going on ends the same."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed

import recipes.trainers.collapse as collapse_module
from modeling.tiny_lmrrg import build_lmrrg
from recipes import grpo_mrgr1, ppo_lmrrg, train_chexbert, train_discbert
from recipes.cli import run
from recipes.data.schema import read_split
from recipes.files import InputError
from recipes.trainers import checkpoints
from recipes.trainers.checkpoints import all_checkpoints, find_damage, remove_checkpoint, resume_from
from recipes.trainers.collapse import commonest
from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.ppo import PPOConfig, PPOTrainer
from recipes.trainers.setup import choose_rewards
from recipes.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from rewards.table import REWARDS, RewardArguments

WORDS = ["<pad>", "<eos>", "lungs", "clear", "heart", "large", "no", "effusion"]
PROMPTS = ["lungs", "heart large", "no effusion", "heart"]
KINDS = ("grpo", "ppo", "weighted_sft")
KILLS = 10
STEPS = 32  # ten kills come before the end: one lets a run go on by two steps on average, by four at most


def make_words() -> PreTrainedTokenizerFast:
    whole = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>")


def small_llama(seed: int = 0) -> LlamaForCausalLM:
    set_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **sizes, **special))


def says_clear(completions, **kwargs):
    """The share of a completion's words that are "clear"."""
    return [each.split().count("clear") / max(1, len(each.split())) for each in completions]


def make_trainer(kind: str, folder, reward=says_clear, validation: int = 0, model=None, **changes):
    """A trainer of a language model of eight words that saves at each step."""
    values = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": STEPS,
        "per_device_train_batch_size": 8, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 1,
        "logging_steps": 1, "disable_tqdm": True, "gradient_checkpointing": False, "seed": 3,
    }  # fmt: skip
    if kind == "weighted_sft":
        texts = {"prompt": [f"{each} " for each in PROMPTS] * 8, "completion": ["no effusion", "heart large"] * 16}
        data = Dataset.from_dict(texts | {"key_spans": [[[0, 2]], None] * 16})
        args = WeightedSFTConfig(**values | {"max_length": None, "save_total_limit": 2} | changes)
        return WeightedSFTTrainer(model or small_llama(), args, data, processing_class=make_words())
    values |= {"max_completion_length": 4, "num_generations": 2, "save_total_limit": 2, "stop_on_collapse": 0}
    data = Dataset.from_dict({"prompt": PROMPTS * 8, "report": ["heart large effusion"] * 32})
    trainer_class, args = MRGR1Trainer, MRGR1Config
    if kind == "ppo":
        trainer_class, args = PPOTrainer, PPOConfig
        values |= {"num_iterations": 2, "save_steps": 2}  # between two generations a run has to write anew
    own = {"eval_dataset": data.select(range(validation)) if validation else None, "processing_class": make_words()}
    return trainer_class(model or small_llama(), reward, args(**values | changes), data, **own)


################
# Kill -9
################


class Counting(TrainerCallback):
    """Tells the other end of a pipe of each step, before its checkpoint is written."""

    def __init__(self, pipe: int):
        self.pipe = pipe

    def on_step_end(self, args, state, control, **kwargs):
        os.write(self.pipe, b".")


class Once(TrainerCallback):
    """Does something after the third step."""

    def __init__(self, act):
        self.act = act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.act()


def child(kind: str, folder: Path, resume: str | None, kill: tuple[int, float] | None) -> float:
    """Trains in a process of its own, killed so many steps and seconds after its first; returns the seconds a step.

    A process that is to be killed and ends by itself, or the other way round, is an AssertionError.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        trainer = make_trainer(kind, folder)
        trainer.add_callback(Counting(writer))
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_state()
        torch.save(trainer.model.state_dict(), folder / "end.pt")
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    started = time.monotonic()
    if kill is not None:
        steps, seconds = kill
        for _ in range(steps):
            os.read(reader, 1)  # an end of file where the run is over
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert ended == (0 if kill is None else -signal.SIGKILL), f"{kind} from {resume}, killed at {kill}: {ended}"
    os.close(reader)
    return (time.monotonic() - started) / (STEPS - 1)


def last_whole(folder: Path) -> str | None:
    """What `--resume_from_checkpoint latest` goes on from, or None where there is nothing yet."""
    args = SimpleNamespace(output_dir=str(folder), resume_from_checkpoint="latest", save_total_limit=2)
    try:
        return resume_from(args)
    except InputError:
        return None


def run_with_kills(kind: str, folder: Path) -> None:
    """One run as it is, and one that is killed ten times and goes on each time; kills.json tells where."""
    whole, killed, generator, kills = folder / "whole", folder / "killed", random.Random(kind), []
    seconds = child(kind, whole, None, None)
    for _ in range(KILLS):
        resume = last_whole(killed)
        child(kind, killed, resume, (generator.randrange(3), generator.uniform(0, seconds)))
        found = all_checkpoints(killed)
        kills.append([resume and Path(resume).name, [path.name for path in found], [*map(find_damage, found)]])
    child(kind, killed, last_whole(killed), None)
    (folder / "kills.json").write_text(json.dumps(kills))


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder for each kind; a process of one thread makes them, since OpenMP's threads do not survive a fork."""
    folder = tmp_path_factory.mktemp("kills")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def history(run: Path) -> list[dict]:
    """What a run logged at each step, but for its times."""
    rows = json.loads((run / "trainer_state.json").read_text())["log_history"]
    left_out = ("step_time", "num_tokens")  # TRL's SFTTrainer counts its tokens anew after a resume
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows if "loss" in row]


@pytest.mark.parametrize("kind", KINDS)
def test_ten_kills_change_nothing(kind, killed):
    whole, broken = (history(killed / kind / name) for name in ("whole", "killed"))
    assert len(whole) == STEPS
    assert broken == whole  # losses, rewards, lengths, to the last digit
    assert ("rewards/says_clear/mean" in whole[0]) == (kind != "weighted_sft")
    one, two = (torch.load(killed / kind / name / "end.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    kills = json.loads((killed / kind / "kills.json").read_text())
    assert len(kills) == KILLS
    begun = {resume for resume, _, _ in kills}
    assert len(begun) > 2  # they were spread over the run
    assert not [damage for _, _, damages in kills for damage in damages if damage]
    numbers = [len(damages) for _, _, damages in kills]
    assert all(
        after >= min(2, before) for before, after in pairwise(numbers)
    )  # save_total_limit: 2 keeps two good ones


################
# What is whole
################


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_trainer("weighted_sft", folder, max_steps=1).train()
    return folder / "checkpoint-1"


def cut(name: str):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "trainer_state.json").unlink(), "has no trainer_state.json"),  # killed while saving
        (cut("trainer_state.json"), "has half a trainer_state.json"),
        (cut("model.safetensors"), "has half a model.safetensors"),  # its header says how long it is
        (lambda folder: os.truncate(folder / "model.safetensors", 0), "has half a model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),  # half-deleted
        (cut("optimizer.pt"), "has half a optimizer.pt"),
        (cut("rng_state.pth"), "has half a rng_state.pth"),
        (lambda folder: (folder / "rng_state.pth").unlink(), "has no rng_state.pth"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "has no optimizer.pt"),  # Trainer would start a new one
        (lambda folder: [(folder / name).unlink() for name in ("rng_state.pth", "optimizer.pt")], None),  # never had
    ],
)
def test_damage_is_found(damage, sentence, checkpoint, tmp_path):
    folder = tmp_path / "checkpoint-7"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    assert find_damage(folder) == sentence
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=str(folder), save_total_limit=2)
    if sentence:
        with pytest.raises(InputError, match=f"checkpoint-7 is no checkpoint to go on from: it {sentence}"):
            resume_from(args)
        assert folder.is_dir()  # it may be all that there is
    else:
        assert resume_from(args) == str(folder)


def test_the_latest_whole_checkpoint(checkpoint, tmp_path, capsys):
    for number in (9, 10, 11):  # by number, not by name
        shutil.copytree(checkpoint, tmp_path / f"checkpoint-{number}")
    (tmp_path / "checkpoint-11/trainer_state.json").unlink()
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint="latest", save_total_limit=None)
    assert resume_from(args) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-11 has no trainer_state.json: it was not written to its end" in capsys.readouterr().out
    assert (tmp_path / "checkpoint-11").is_dir()  # nothing was said about removing any


@pytest.mark.parametrize("named", ["latest", "checkpoint-3"])
def test_a_damaged_checkpoint_does_not_take_a_good_ones_place(named, tmp_path, capsys):
    """Checkpoint 1 was being deleted when the run was killed, which makes it the last one that was changed."""
    make_trainer("weighted_sft", tmp_path, max_steps=3, save_total_limit=None).train()
    (tmp_path / "checkpoint-1/optimizer.pt").unlink()
    for step, seconds in ((2, 30), (3, 20), (1, 10)):
        os.utime(tmp_path / f"checkpoint-{step}", times=(time.time() - seconds,) * 2)
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=named, save_total_limit=2)
    if named != "latest":
        args.resume_from_checkpoint = str(tmp_path / named)
    resume = resume_from(args)
    assert resume == str(tmp_path / "checkpoint-3")
    assert "checkpoint-1 has no optimizer.pt: it is removed" in capsys.readouterr().out
    make_trainer("weighted_sft", tmp_path, max_steps=4).train(resume_from_checkpoint=resume)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_a_checkpoint_that_lacks_a_weight(tmp_path):
    """Trainer would warn, and go on with a weight that was never trained."""
    make_trainer("weighted_sft", tmp_path, max_steps=1).train()
    file = tmp_path / "checkpoint-1/model.safetensors"
    weights = {name.replace("model.norm", "model.old_norm"): value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights of the model, model\.norm\.weight first"):
        make_trainer("weighted_sft", tmp_path, max_steps=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_a_kill_while_a_checkpoint_is_removed(checkpoint, tmp_path, monkeypatch):
    """What is left, whichever files went first, has no checkpoint's name; the next removal takes it along."""
    remove = shutil.rmtree

    def die(folder, ignore_errors=False):
        for weights in Path(folder).rglob("model.safetensors"):
            weights.unlink()
            raise KeyboardInterrupt

    for number in (1, 2):
        shutil.copytree(checkpoint, tmp_path / f"checkpoint-{number}")
    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(tmp_path / "checkpoint-1")
    assert all_checkpoints(tmp_path) == [tmp_path / "checkpoint-2"]
    monkeypatch.setattr(shutil, "rmtree", remove)
    shutil.copytree(checkpoint, tmp_path / "checkpoint-1")  # a run that goes on writes it again
    remove_checkpoint(tmp_path / "checkpoint-1")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


SEEN = {"weighted_sft": "optimizer.pt", "grpo": "optimizer.pt", "ppo": "ppo_state.safetensors"}


class Watch:
    """While it is entered: after every call of compiled code that a process makes, what a kill there would leave."""

    def __init__(self, folder: Path):
        self.folder, self.found, self.staged = folder, set(), set()

    def __call__(self, frame, event, argument):
        called = event == "c_return" and (argument.__module__ or type(argument.__self__).__module__)
        if called in (False, "builtins"):  # those touch no file: isinstance, str.join
            return
        sys.setprofile(None)
        for checkpoint in all_checkpoints(self.folder):
            self.found.add((checkpoint.name, *sorted(path.name for path in checkpoint.rglob("*"))))
        staging = self.folder / ".checkpoints.tmp"
        self.staged.add(tuple(sorted(path.name for path in staging.glob("checkpoint-*/*"))))
        sys.setprofile(self)

    def __enter__(self):
        sys.setprofile(self)

    def __exit__(self, *error):
        sys.setprofile(None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_whole_at_any_moment(kind, tmp_path):
    """Looked at after each call that a process makes while it saves: what has a checkpoint's name has all its files.

    The third and the fourth checkpoint make the first and the second one go.
    """
    trainer = make_trainer(kind, tmp_path, max_steps=4, save_steps=1)
    watch, save = Watch(tmp_path), trainer._save_checkpoint

    def watched(model, trial):
        with watch:
            save(model, trial)

    trainer._save_checkpoint = watched
    trainer.train()
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-3"]
    files = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert {"trainer_state.json", "rng_state.pth", "scheduler.pt", "model.safetensors", SEEN[kind]} <= files
    assert watch.found == {(f"checkpoint-{step}", *sorted(files)) for step in (1, 2, 3, 4)}
    assert len(watch.staged) > len(files) / 2  # it was there to see each of them come and go
    assert not (tmp_path / ".checkpoints.tmp").exists()


def test_a_checkpoint_of_the_same_step(tmp_path):
    """A run that begins anew in the folder of another writes over its checkpoints, one by one."""
    make_trainer("weighted_sft", tmp_path, max_steps=2).train()
    (tmp_path / ".checkpoints.tmp/checkpoint-1").mkdir(parents=True)
    (tmp_path / ".checkpoints.tmp/checkpoint-1/left.txt").touch()  # of a kill
    (tmp_path / "checkpoint-1/old.txt").touch()
    (tmp_path / "checkpoint-2/old.txt").touch()
    make_trainer("weighted_sft", tmp_path, max_steps=1).train()
    assert not [*tmp_path.glob("checkpoint-1/*.txt")]
    assert find_damage(tmp_path / "checkpoint-1") is None
    assert (tmp_path / "checkpoint-2/old.txt").exists()
    assert not (tmp_path / ".checkpoints.tmp").exists()


def test_two_processes(tmp_path, torchrun):
    """A checkpoint gets its name when the second process, which is late, has written its generator's state."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *torchrun(__file__, tmp_path, "late", "weighted_sft")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    found = [path.name for path in all_checkpoints(tmp_path / "run")]
    assert found == ["checkpoint-4", "checkpoint-3"]
    for checkpoint in all_checkpoints(tmp_path / "run"):
        assert {"rng_state_0.pth", "rng_state_1.pth"} < {path.name for path in checkpoint.iterdir()}
    assert json.loads((tmp_path / "seen.json").read_text()) == [[], ["1"], ["1", "2"], ["2", "3"]]
    loads = [json.loads((tmp_path / f"loads{rank}.json").read_text()) for rank in (0, 1)]
    [[(first, began)], [(second, followed)]] = loads
    assert (first, second) == (0, 1) and followed >= began + 0.5  # each loads its rewards, one after the other


def test_a_kill_while_the_final_model_is_saved(tmp_path, monkeypatch):
    """What an earlier run left in the folder stays as it was."""
    trainer = make_trainer("weighted_sft", tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    trainer.save_model(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json"} <= set(before)

    def die(output_dir, state_dict=None):
        Path(output_dir).mkdir()
        (Path(output_dir) / "config.json").write_text("{half")
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_model(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    monkeypatch.undo()
    trainer.model.lm_head.weight.data += 1
    trainer.save_model(tmp_path)  # the next run ends as if nothing had been
    assert not (tmp_path / ".model.tmp").exists()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["lm_head.weight"], trainer.model.lm_head.weight)


@pytest.mark.parametrize(("kind", "limit", "left"), [("grpo", 2, "24"), ("ppo", 2, "24"), ("grpo", 1, "2")])
def test_save_total_limit_and_the_best_checkpoint(kind, limit, left, tmp_path):
    """The best step's checkpoint stays whatever came after it; the model at the end is the best one's."""
    rewards = iter([0.1, 0.9, 0.2, 0.3])

    def grows_and_falls(completions, trainer_state, **kwargs):
        grows_and_falls.value = next(rewards) if len(completions) == 4 else 0.0
        return [grows_and_falls.value] * len(completions)

    trainer = make_trainer(
        kind, tmp_path, grows_and_falls, validation=2, max_steps=4, save_steps=1, save_total_limit=limit,
        eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4, load_best_model_at_end=True,
        greater_is_better=True, metric_for_best_model="rewards/grows_and_falls/mean",
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in left]
    best = load_file(tmp_path / "checkpoint-2/model.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items() if name in best)


################
# No room, no right
################


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


FULL = r"\Aerror: cannot write (a checkpoint|the output|/.*): [Nn]o space left on .*\Z"


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(kind, small_disk):
    with pytest.raises(SystemExit, match=FULL):
        run(lambda: make_trainer(kind, small_disk, max_steps=400, save_total_limit=None).train())
    assert last_whole(small_disk) is not None


def test_a_damaged_file_is_no_full_disk(tmp_path):
    """torch.load's words name the same source file as torch.save's."""
    torch.save(torch.zeros(9), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-40])
    with pytest.raises(RuntimeError, match="PytorchStreamReader"):
        run(lambda: torch.load(tmp_path / "a.pt", weights_only=True))


def test_a_folder_that_cannot_be_written(small_disk):
    trainer = make_trainer("weighted_sft", small_disk, max_steps=4, save_steps=2)
    trainer.add_callback(Once(lambda: subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)))
    with pytest.raises(SystemExit, match=r"\Aerror: cannot write .*: Read-only file system"):
        run(trainer.train)
    assert Path(last_whole(small_disk)).name == "checkpoint-2"


def test_the_last_good_checkpoint_survives_a_full_disk(small_disk):
    with pytest.raises(SystemExit, match=FULL):
        run(lambda: make_trainer("weighted_sft", small_disk, max_steps=400, save_total_limit=None).train())
    resume = last_whole(small_disk)
    assert resume is not None
    for other in all_checkpoints(small_disk):
        if str(other) != resume:
            shutil.rmtree(other)
    step = int(resume.rsplit("-", 1)[1])
    trainer = make_trainer("weighted_sft", small_disk, max_steps=step + 1, save_strategy="no")
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == step + 1


################
# Collapse
################


@pytest.mark.parametrize(
    ("reports", "report", "share"),
    [
        (["Clear lungs.", " clear  LUNGS."], "clear lungs.", 1.0),  # case and spacing do not count
        (["a", "b", "a", "c"], "a", 0.5),
        ([""], "", 1.0),  # nothing at all is a report too
    ],
)
def test_commonest(reports, report, share):
    assert commonest(reports) == (report, share)


@pytest.mark.parametrize(
    ("kind", "same", "window", "step"),
    [
        ("grpo", 1.0, 24, 3),  # 8 completions a step
        ("ppo", 1.0, 16, 3),  # the second step trains on the first one's completions
        ("grpo", 0.75, 24, None),  # a common report is no collapse
        ("grpo", 1.0, 0, None),  # switched off
    ],
)
def test_a_policy_of_one_report_ends_the_run(kind, same, window, step, tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = make_trainer(kind, tmp_path, max_steps=5, save_strategy="no", stop_on_collapse=window)

    def says(prompts, trainer) -> dict:
        ids = trainer.processing_class(list(prompts))["input_ids"]
        texts = [[2, 3, 1] if row < same * len(prompts) else [4, 2 + row % 6, 1] for row in range(len(prompts))]
        return {"prompt_ids": ids, "completion_ids": texts, "logprobs": [[0.0] * 3] * len(texts)}

    trainer.rollout_func = says
    if step:
        sentence = rf"stopped at step {step}: 100% of the last {window} reports are the same text, 'lungs clear'"
        with pytest.raises(SystemExit, match=rf"\A{sentence}"):
            trainer.train()
    else:
        trainer.train()
    assert trainer.state.global_step == (step or 5)
    assert trainer.state.log_history[0]["reports/commonest_share"] == same


@pytest.fixture(scope="module")
def lmrrg(tmp_path_factory, phantom) -> Path:
    """A tiny LM-RRG that was never trained."""
    folder = tmp_path_factory.mktemp("models") / "lmrrg"
    reports = read_split(str(phantom), "train")["report"][:]
    for part in build_lmrrg(reports, text_layers=1, vision_layers=1, vocab_size=400):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("window", [16, 0], ids=["on", "off"])
@pytest.mark.parametrize(
    ("script", "config", "own"),
    [
        (grpo_mrgr1, "mrgr1/phantom.yaml", {"num_generations": 4, "effective_batch_size": 8}),
        (ppo_lmrrg, "lmrrg/demo_cqrl.yaml", {"allow_scratch": "true", "rewards": "bleu"}),
    ],
    ids=["grpo_mrgr1", "ppo_lmrrg"],
)
def test_a_recipe_ends_when_its_policy_collapses(
    script, config, own, window, request, phantom, tmp_path, monkeypatch, call
):
    """8 completions a step are all read as one report: 16 of them are there after the second one."""
    reads = SimpleNamespace(report="Clear lungs.")
    monkeypatch.setattr(collapse_module, "parse_completion", lambda completion: reads)
    model = request.getfixturevalue("tiny" if script is grpo_mrgr1 else "lmrrg")
    given = own | {
        "config": Path(script.__file__).parent / "configs" / config, "model_name_or_path": model, "dataset": phantom,
        "output_dir": tmp_path, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 3,
        "log_completions": "false", "max_completion_length": 4, "num_iterations": 1, "save_strategy": "steps",
        "save_steps": 1, "save_total_limit": 2, "disable_tqdm": "true", "stop_on_collapse": window,
    }  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    final = tmp_path / "model.safetensors"
    if window:
        final.write_bytes(b"an earlier run's")
        sentence = "stopped at step 2: 100% of the last 16 reports are the same text, 'clear lungs.'. Go back to"
        with pytest.raises(SystemExit, match=rf"\A{re.escape(sentence)}"):
            call(script.main, *words)
        assert final.read_bytes() == b"an earlier run's"  # the collapsed policy is no result
    else:
        call(script.main, *words)
        assert load_file(final)
    last = 2 if window else 3
    assert all_checkpoints(tmp_path) == [tmp_path / f"checkpoint-{step}" for step in (last, last - 1)]
    assert [*map(find_damage, all_checkpoints(tmp_path))] == [None, None]  # the one before can be gone back to
    rows = json.loads((tmp_path / f"checkpoint-{last}/trainer_state.json").read_text())["log_history"]
    shares = [row["reports/commonest_share"] for row in rows if "reports/commonest_share" in row]
    assert shares == [1.0] * last


################
# Split over processes
################


def split_run(folder: Path) -> None:
    """A run of each kind in this process of several, and one that goes on from the middle of it."""
    for kind in KINDS:
        logged = {}
        for name in ("whole", "resumed"):
            out = folder / kind / name
            sizes = {"per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 2}
            trainer = make_trainer(kind, out, model=str(folder / "start"), **sizes)
            if name == "resumed" and trainer.is_world_process_zero():
                shutil.copytree(folder / kind / "whole/checkpoint-2", out / "checkpoint-2")
            trainer.accelerator.wait_for_everyone()
            trainer.train(resume_from_checkpoint=str(out / "checkpoint-2") if name == "resumed" else None)
            trainer.save_model(out)
            logged[name] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        if trainer.is_world_process_zero():
            (folder / kind / "losses.json").write_text(json.dumps(logged))


@pytest.fixture(scope="module")
def split(tmp_path_factory, torchrun):
    """`split(file)`: the folder of two processes' runs under a file of accelerate_configs."""
    made = {}

    def split(file: str) -> Path:
        if file not in made:
            made[file] = tmp_path_factory.mktemp("split")
            for part in (small_llama(), make_words()):
                part.save_pretrained(made[file] / "start")
            environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            command = [sys.executable, *torchrun(__file__, made[file], "split", under=file)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, done.stderr[-5000:]
        return made[file]

    return split


@pytest.mark.parametrize("file", ["fsdp2.yaml", "zero1.yaml", "zero2.yaml", "zero3.yaml"])
def test_split_over_two_processes(file, split):
    """Losses, weights, the saved model and a resumed run are those of two processes that hold the whole model each."""
    parts, plain = split(file), split("multi_gpu.yaml")
    for kind in KINDS:
        whole, other = (json.loads((folder / kind / "losses.json").read_text()) for folder in (plain, parts))
        assert len(whole["whole"]) == 4 and any(whole["whole"])
        assert whole["resumed"] == whole["whole"]
        for name in ("whole", "resumed"):
            assert other[name] == pytest.approx(whole["whole"], abs=1e-6)
            out = parts / kind / name
            assert [*map(find_damage, all_checkpoints(out))] == [None, None]
            weights = load_file(out / "model.safetensors")
            torch.testing.assert_close(weights, load_file(plain / kind / "whole/model.safetensors"), atol=1e-5, rtol=0)
            LlamaForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("split_by", ["FSDP", "ZeRO-3"])
def test_what_needs_the_whole_model(split_by, tmp_path, monkeypatch, call):
    if split_by == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        monkeypatch.setattr(checkpoints, "is_deepspeed_zero3_enabled", lambda: True)
    for script in (train_chexbert, train_discbert):
        with pytest.raises(InputError, match="a labeler is too small to be split: take accelerate_configs/multi_gpu"):
            call(script.main, "--output_dir", tmp_path)
    with pytest.raises(InputError, match="--clinical_samples needs the whole model in each process"):
        SFTRecipeConfig(str(tmp_path), clinical_samples=2, eval_strategy="epoch", use_cpu=True, bf16=False)


def save_late(folder: Path, kind: str) -> None:
    """Four steps in two processes, the second of which looks what there is, then writes its part late."""
    trainer = make_trainer(kind, folder / "run", max_steps=4)
    rank, loads = trainer.args.process_index, []

    def load():
        loads.append([rank, time.time()])
        time.sleep(0.5)  # a download
        return says_clear

    REWARDS["clear"] = lambda material: load()
    assert choose_rewards(RewardArguments(rewards=["clear"]), says_clear, [], None) == [says_clear]
    (folder / f"loads{rank}.json").write_text(json.dumps(loads))
    write, seen = trainer._save_rng_state, []

    def late(output_dir):
        if trainer.args.process_index:
            time.sleep(0.3)
            seen.append(sorted(path.name.split("-")[1] for path in all_checkpoints(folder / "run")))
        write(output_dir)

    trainer._save_rng_state = late
    trainer.train()
    if trainer.args.process_index:
        (folder / "seen.json").write_text(json.dumps(seen))


def main() -> None:
    if sys.argv[2:3] == ["late"]:
        return save_late(Path(sys.argv[1]), sys.argv[3])
    if sys.argv[2:3] == ["split"]:
        return split_run(Path(sys.argv[1]))
    for kind in KINDS:
        folder = Path(sys.argv[1]) / kind
        folder.mkdir(parents=True)
        run_with_kills(kind, folder)


if __name__ == "__main__":
    run(main)
