"""The scripts end to end on the tiny model: started as a user starts them, stopped, continued, and misused."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Image, List
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, BertConfig

from recipes import generate, grpo_mrgr1, sft_mrgr1
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import run
from recipes.data.samples import to_samples
from recipes.data.schema import read_dataset, write_dataset
from recipes.trainers.checkpoints import find_damage
from recipes.trainers.clinical_evaluation import ClinicalEvaluation
from recipes.trainers.interrupt import WorkerStart

ROOT = Path(__file__).resolve().parents[2]
GRPO = ROOT / "recipes/grpo_mrgr1.py"
# Beside the scripts, and none
LIBRARY = ("__init__.py", "__main__.py", "cli.py", "files.py", "progress.py", "templates.py", "usage.py")
SCRIPTS = sorted(path for path in (ROOT / "recipes").glob("*.py") if path.name not in LIBRARY)
SECONDS = 120  # for one process; importing the libraries takes most of it


def words(arguments: dict) -> list[str]:
    return [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]


@pytest.fixture
def grpo(tiny, phantom, tmp_path) -> dict:
    """Arguments of a GRPO run of 2 steps of 8 completions of 6 tokens."""
    return {
        "config": ROOT / "recipes/configs/mrgr1/phantom.yaml",
        "model_name_or_path": tiny,
        "dataset": phantom,
        "output_dir": tmp_path / "run",
        "num_generations": 4,
        "effective_batch_size": 8,
        "per_device_train_batch_size": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "num_completions_to_print": 0,
        "save_steps": 1000,
        "disable_tqdm": "true",
    }


@pytest.fixture
def sft(tiny, phantom, tmp_path) -> dict:
    """Arguments of an SFT run of 2 steps."""
    return {
        "config": ROOT / "recipes/configs/mrgr1/sft_phantom.yaml",
        "model_name_or_path": tiny,
        "dataset": phantom,
        "output_dir": tmp_path / "run",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "disable_tqdm": "true",
    }


def start(*command, folder: Path, threads: int = 1, own_group: bool = False) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=own_group,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        _, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, errors


def logged_steps(folder: Path) -> list[Path]:
    """The files of a run's completions; while the run goes on, the last one may not be whole yet."""
    return sorted((folder / "completions").glob("*.parquet"))


def completions(folder: Path) -> list[pd.DataFrame]:
    return [pd.read_parquet(file) for file in logged_steps(folder)]


def check_steps(folder: Path, weights: str = "model") -> None:
    """Two steps of 8 completions each: two prompts with four completions, whose advantages cancel out."""
    tables = completions(folder)
    assert [len(table) for table in tables] == [8, 8]
    for table in tables:
        assert {"mccs_reward", "format_reward", "report"} <= set(table.columns)
        assert table[["mccs_reward", "format_reward", "advantage"]].notna().all(axis=None)
        np.testing.assert_allclose(table["advantage"].to_numpy().reshape(2, 4).sum(axis=1), 0, atol=1e-3)
    assert (folder / f"{weights}.safetensors").is_file()
    assert (folder / "run_config.json").is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit, match=r"\A0\Z"):
        runpy.run_path(str(script), run_name="__main__")
    assert f"recipes/{script.name}" in capsys.readouterr().out


def test_grpo_from_another_folder(grpo, tmp_path):
    code, errors = finish(start(GRPO, *words(grpo), folder=tmp_path))
    assert code == 0, errors
    check_steps(tmp_path / "run")


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "LoRA"])
@pytest.mark.parametrize("under", ["fsdp2.yaml", "zero1.yaml", "zero2.yaml", "zero3.yaml"])
def test_grpo_on_two_processes(under, lora, grpo, tmp_path, torchrun):
    """Both ways, with the whole model in each process and with split weights: the same completions and weights."""
    if lora:
        grpo |= {"use_peft": "true", "lora_target_modules": r".*language_model.*\.(q|v)_proj", "lora_r": 4}
    grpo |= {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0}
    rewards = ["--rewards", "mccs", "format", "rouge", "--reward_weights", "1", "1", "1"]  # the last is seldom 0
    tables, models = [], []
    for config in (under, None):
        out = tmp_path / str(config)
        command = torchrun(GRPO, *words(grpo | {"output_dir": out}), *rewards, under=config)
        code, errors = finish(start(*command, folder=tmp_path))
        assert code == 0, errors
        check_steps(out, "adapter_model" if lora else "model")  # 8 completions a step, 4 from each process
        tables.append(completions(out))
        model, loaded = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
        assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        models.append(model.state_dict())
    for one, other in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(one, other)
    split, plain = models
    before = AutoModelForImageTextToText.from_pretrained(grpo["model_name_or_path"]).state_dict()
    changed = {
        name for name, value in plain.items() if not torch.equal(value, before.get(name, torch.zeros_like(value)))
    }
    assert any("lora_B" in name for name in changed) if lora else changed
    for name, value in plain.items():
        torch.testing.assert_close(split[name], value, atol=1e-5, rtol=1e-4)


def test_bare_grpo_without_gpu(tmp_path):
    code, errors = finish(start(GRPO, folder=tmp_path))
    sentences = [line for line in errors.splitlines() if line.startswith("error:")]
    assert code == 1
    assert len(sentences) == 1 and "make demo" in sentences[0]
    assert "flash-attn" in sentences[0] and "adamw_bnb_8bit (bitsandbytes)" in sentences[0]  # what iu.yaml asks for
    assert "Traceback" not in errors


def test_interrupted_training_continues(grpo, tmp_path, call):
    """Slurm sends the signal to a run's data loaders' workers too."""
    endless = grpo | {"max_steps": 5000, "dataloader_num_workers": 2}
    process = start(GRPO, *words(endless), folder=tmp_path, own_group=True)
    until = time.monotonic() + SECONDS
    while not logged_steps(tmp_path / "run") and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    code, errors = finish(process)
    assert code == 1, errors
    assert "continue with --resume_from_checkpoint latest" in errors
    assert "Traceback" not in errors
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert not (tmp_path / "run/model.safetensors").exists()

    call(grpo_mrgr1.main, *words(grpo | {"max_steps": step + 1, "resume_from_checkpoint": "latest"}))
    assert (tmp_path / "run/model.safetensors").is_file()
    assert (tmp_path / f"run/completions/completions_{step + 1:05d}.parquet").is_file()  # goes on counting


@pytest.mark.parametrize("main", [grpo_mrgr1.main, sft_mrgr1.main], ids=["grpo", "sft"])
def test_workers_change_nothing(main, grpo, sft, tmp_path, call, monkeypatch):
    """A run with workers, and one that goes on with them, has the losses and weights of one without, to the bit."""
    begin = WorkerStart.__call__
    monkeypatch.setattr(
        WorkerStart, "__call__", lambda self, number: [begin(self, number), (tmp_path / f"{number}.txt").touch()]
    )
    given, rewards = (sft, []) if main is sft_mrgr1.main else (grpo, ["--rewards", "rouge", "--reward_weights", "1"])
    given |= {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "logging_steps": 1, "learning_rate": 1e-3}
    ends = []
    for name, workers in (("plain", 0), ("workers", 2), ("resumed", 2)):
        out = tmp_path / name
        changed = {"output_dir": out, "dataloader_num_workers": workers}
        if name == "resumed":
            shutil.copytree(tmp_path / "workers/checkpoint-2", out / "checkpoint-2")
            changed["resume_from_checkpoint"] = "latest"
        call(main, *words(given | changed), *rewards)
        assert bool(list(tmp_path.glob("*.txt"))) == (workers > 0)  # the trainer's data loader has them
        rows = json.loads((out / "checkpoint-4/trainer_state.json").read_text())["log_history"]
        ends.append(([row["loss"] for row in rows if "loss" in row], load_file(out / "model.safetensors")))
    assert {file.name for file in tmp_path.glob("*.txt")} == {"0.txt", "1.txt"}
    for losses, weights in ends[1:]:
        assert losses == ends[0][0] and len(losses) == 4 and any(losses)
        assert all(torch.equal(value, ends[0][1][name]) for name, value in weights.items())


def test_ctrl_c_with_two_processes(grpo, tmp_path, torchrun):
    """All processes of a terminal get the signal; torchrun then sends its own another one."""
    endless = grpo | {"max_steps": 5000, "dataloader_num_workers": 1}
    process = start(*torchrun(GRPO, *words(endless)), folder=tmp_path, own_group=True)
    until = time.monotonic() + SECONDS
    while not logged_steps(tmp_path / "run") and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    code, errors = finish(process)
    assert code != 0
    assert "KeyboardInterrupt" not in errors
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert find_damage(checkpoint) is None


def test_sft_then_generate(sft, tmp_path, call):
    call(sft_mrgr1.main, *words(sft))
    out = tmp_path / "out.jsonl"
    arguments = {"model": sft["output_dir"], "dataset": sft["dataset"], "out": out, "max_new_tokens": 3, "limit": 2}
    call(generate.main, *words(arguments))
    assert len(out.read_text().splitlines()) == 2


CLINICAL = {
    "max_steps": 2, "clinical_samples": 3, "clinical_max_new_tokens": 4, "eval_strategy": "steps", "eval_steps": 1,
    "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": "true",
    "metric_for_best_model": "clinical_f1", "greater_is_better": "true",
}  # fmt: skip


def test_the_best_checkpoint_is_the_best_by_its_findings(sft, tmp_path, call, monkeypatch):
    """Step 1 "writes" the references, step 2 nothing: all findings found, then none; step 1's checkpoint stays."""
    ill = BuildArguments(size=64, abnormal=1.0)
    splits = {
        name: lambda name=name: (build_row(name, i, "sn", ill) for i in range(4)) for name in ("train", "validation")
    }
    write_dataset(splits, tmp_path / "ill", {"builder": "build_phantom", "labeler": "lexical"})
    written = iter([lambda batch: batch["report"], lambda batch: [""] * len(batch["report"])])
    step = {}

    def write(evaluation, batch):
        number = evaluation.trainer.state.global_step
        step.setdefault(number, None)
        step[number] = step[number] or next(written)
        return step[number](batch)

    monkeypatch.setattr(ClinicalEvaluation, "_write", write)
    call(sft_mrgr1.main, *words(sft | CLINICAL | {"dataset": tmp_path / "ill"}))
    state = json.loads((tmp_path / "run/trainer_state.json").read_text())
    found = [row["eval_clinical_f1"] for row in state["log_history"] if "eval_clinical_f1" in row]
    assert found == [1.0, 0.0]
    assert [row["eval_mccs"] for row in state["log_history"] if "eval_mccs" in row] == [pytest.approx(1.0), 0.0]
    assert state["best_metric"] == 1.0
    assert Path(state["best_model_checkpoint"]).name == "checkpoint-1"
    assert "checkpoint-1" in {path.name for path in (tmp_path / "run").glob("checkpoint-*")}


def write_every_other_report() -> None:
    """What a process of the next test runs: sft_mrgr1 with "written" reports, of every other study an empty one."""

    def write(evaluation, batch):
        known = evaluation.samples["report"][:]
        return [report if known.index(report) % 2 else "" for report in batch["report"]]

    ClinicalEvaluation._write = write
    sft_mrgr1.main()


def test_reports_for_evaluation_are_shared_by_two_processes(sft, tmp_path, torchrun):
    """Five studies, three and two of which a process writes: their figures are those of one process."""
    ill = BuildArguments(size=64, abnormal=1.0)
    rows = [build_row("validation", number, "sn", ill) for number in range(5)]
    write_dataset(
        {name: lambda: iter(rows) for name in ("train", "validation")}, tmp_path / "ill", {"labeler": "lexical"}
    )
    given = sft | CLINICAL | {"dataset": tmp_path / "ill", "clinical_samples": 5, "max_steps": 1}
    found = []
    for name, command in (("one", [__file__]), ("two", torchrun(__file__))):
        code, errors = finish(start(*command, *words(given | {"output_dir": tmp_path / name}), folder=tmp_path))
        assert code == 0, errors
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        found += [(row["eval_clinical_f1"], row["eval_mccs"]) for row in history if "eval_mccs" in row]
    assert found[0] == found[1] and 0 < found[0][0] < 1 and 0 < found[0][1] < 1


def test_clinical_evaluation_writes_as_generate_does(sft, tmp_path, call, monkeypatch):
    written, own = [], ClinicalEvaluation._write

    def write(evaluation, batch):
        texts = own(evaluation, batch)
        written.extend(texts)
        return texts

    monkeypatch.setattr(ClinicalEvaluation, "_write", write)
    changed = {"max_steps": 40, "eval_steps": 40, "save_steps": 40, "load_best_model_at_end": "false"}
    changed |= {"views": "frontal", "clinical_max_new_tokens": 16}  # 40 steps, so that it writes anything at all
    call(sft_mrgr1.main, *words(sft | CLINICAL | changed))
    out = tmp_path / "out.jsonl"
    arguments = {"model": sft["output_dir"], "dataset": sft["dataset"], "out": out, "max_new_tokens": 16, "limit": 3}
    arguments |= {"split": "validation", "views": "frontal", "prompt_file": "prompts/mrgr1_tiny.txt"}
    call(generate.main, *words(arguments))
    assert [json.loads(line)["completion"] for line in out.read_text().splitlines()] == written
    assert any(text.strip() for text in written)


@pytest.mark.parametrize("target", ["plain", "reasoning"])
def test_sft_targets(sft, call, target):
    call(sft_mrgr1.main, *words(sft | {"target": target, "views": "each", "max_samples": 4, "max_steps": 1}))
    assert (sft["output_dir"] / "model.safetensors").is_file()


def test_lora_run_saves_an_adapter(grpo, call):
    lora = {"use_peft": "true", "lora_r": 2, "lora_target_modules": r".*language_model.*\.q_proj"}
    call(grpo_mrgr1.main, *words(grpo | lora | {"max_steps": 1}))
    assert (grpo["output_dir"] / "adapter_model.safetensors").is_file()
    assert not (grpo["output_dir"] / "model.safetensors").exists()


def test_trl_takes_our_rewards_by_name(tiny, phantom, tmp_path, monkeypatch):
    samples = to_samples(read_dataset(str(phantom))["train"], "Report.", "frontal", keep=("report", "labels"))
    (tmp_path / "data").mkdir()
    samples = Dataset.from_list(list(samples)).cast_column("images", List(Image()))  # TRL's script takes them along
    samples.to_parquet(tmp_path / "data/train.parquet")
    monkeypatch.chdir(tmp_path)  # TRL puts the current folder on the path; ours must be found without
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = {
        "model_name_or_path": tiny,
        "dtype": "float32",
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "run",
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 1,
        "logging_steps": 1,
        "log_completions": "true",
        "num_completions_to_print": 0,
        "use_cpu": "true",
        "bf16": "false",
        "gradient_checkpointing": "false",
        "report_to": "none",
    }
    rewards = ["--reward_funcs", "rewards.mccs_reward", "rewards.format_reward"]
    monkeypatch.setattr(sys, "argv", ["grpo.py", *words(settings), *rewards])
    runpy.run_module("trl.scripts.grpo", run_name="__main__")
    (table,) = completions(tmp_path / "run")
    assert table[["mccs_reward", "format_reward"]].notna().all(axis=None)


def text_model(folder: Path) -> Path:
    BertConfig().save_pretrained(folder / "bert")
    return folder / "bert"


def without_report(folder: Path) -> Path:
    (folder / "bare").mkdir()
    Dataset.from_dict({"images": [[]], "study_id": ["s"]}).to_parquet(folder / "bare/train.parquet")
    return folder / "bare"


def without_train(folder: Path) -> Path:
    (folder / "test_only").mkdir()
    Dataset.from_dict({"images": [[]], "report": ["x"], "study_id": ["s"]}).to_parquet(
        folder / "test_only/test.parquet"
    )
    return folder / "test_only"


def unknown_key(folder: Path) -> Path:
    (folder / "odd.yaml").write_text((ROOT / "recipes/configs/mrgr1/phantom.yaml").read_text() + "learning_rat: 1\n")
    return folder / "odd.yaml"


@pytest.mark.parametrize(
    ("script", "changed", "named"),
    [
        (grpo_mrgr1, {"config": unknown_key}, ["odd.yaml", "learning_rat"]),
        (grpo_mrgr1, {"config": "absent.yaml"}, ["no config file absent.yaml"]),
        (grpo_mrgr1, {"beta": 0}, ["beta", "--allow_no_kl"]),  # TRL would drop the KL term silently
        (grpo_mrgr1, {"model_name_or_path": text_model}, ["bert", "no images"]),
        (grpo_mrgr1, {"model_name_or_path": "./absent"}, ["./absent"]),
        (grpo_mrgr1, {"dataset": without_report}, ["bare", "report"]),
        (grpo_mrgr1, {"dataset": without_train}, ["test_only", "train"]),
        (grpo_mrgr1, {"dataset": "./absent"}, ["./absent"]),
        (grpo_mrgr1, {"rewards": "meteor"}, ["'meteor'", "mccs, ce_f1, positive_f1, label_fbeta, format"]),
        (grpo_mrgr1, {"labeler": "nlp"}, ["'nlp'"]),
        (grpo_mrgr1, {"labeler": "chexbert"}, ["chexbert", "lexical"]),
        (grpo_mrgr1, {"margin": 2}, ["margin"]),  # m lies in (-1, 1)
        (grpo_mrgr1, {"views": "both"}, ["views", "both"]),
        (grpo_mrgr1, {"prompt_file": "absent.txt"}, ["absent.txt"]),
        (grpo_mrgr1, {"effective_batch_size": 9}, ["effective_batch_size", "9"]),
        (grpo_mrgr1, {"num_generations": 3}, ["num_generations", "3"]),  # 8 completions are no whole groups
        (grpo_mrgr1, {"reward_weights": 1}, ["reward"]),  # two rewards, one weight
        (grpo_mrgr1, {"resume_from_checkpoint": "latest"}, ["no checkpoint"]),
        (grpo_mrgr1, {"learning_rate": "fast"}, ["--learning_rate", "fast"]),
        (sft_mrgr1, {"model_name_or_path": text_model}, ["bert", "no images"]),
        (sft_mrgr1, {"dataset": without_report}, ["bare", "report"]),
        (sft_mrgr1, {"dataset": without_train}, ["test_only", "train"]),
        (sft_mrgr1, {"target": "both"}, ["target", "both"]),
        (sft_mrgr1, {"clinical_samples": 3}, ["--clinical_samples", "eval_strategy"]),  # it would never be called
        (sft_mrgr1, {"labeler": "chexbert"}, ["chexbert"]),
    ],
)
def test_mistakes_end_in_one_sentence(request, monkeypatch, tmp_path, script, changed, named):
    arguments = request.getfixturevalue("grpo" if script is grpo_mrgr1 else "sft")
    arguments |= {key: value(tmp_path) if callable(value) else value for key, value in changed.items()}
    monkeypatch.setattr(sys, "argv", ["script", *words(arguments)])
    with pytest.raises(SystemExit, match=r"\Aerror: .+\Z") as ended:
        run(script.main)  # a text as exit code is printed on stderr, with status 1
    assert all(word in ended.value.code for word in named), ended.value.code
    assert not (tmp_path / "run/model.safetensors").exists()


if __name__ == "__main__":
    run(write_every_other_report)
