"""What every script does at its edges."""

import errno
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.numpy import save_file
from transformers import BertConfig, Gemma3Config, Qwen2_5_VLConfig
from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS
from transformers.training_args import OptimizerNames

from recipes import cli, files
from recipes.cli import check_hardware, parse, read_setting, report, run
from recipes.data.model_files import check_model
from recipes.files import InputError, read_prompt, replacing
from recipes.trainers.checkpoints import resume_from
from recipes.trainers.setup import save_run


@dataclass
class Arguments:
    size: int = field(default=1)
    name: str = field(default="a")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("row 3 of x.csv is empty"), "error: row 3 of x.csv is empty"),  # a user's mistake
        (OSError(errno.ENOSPC, "No space left on device", "out"), "error: cannot write out: No space left on device"),
        (OSError(errno.EACCES, "Permission denied", "out"), "error: cannot write out: Permission denied"),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.89 GiB of which "
                "1.44 GiB is free.\nSee the documentation"
            ),
            "error: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.89 GiB: lower",
        ),
        (KeyboardInterrupt(), 130),  # the shell's code for Ctrl-C
    ],
)
def test_run_ends_with_one_sentence(error, code):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit, match=rf"\A{re.escape(str(code))}.*\Z"):  # no line break
        run(main)


@pytest.mark.parametrize("error", [ZeroDivisionError("0/0"), OSError(errno.EIO, "I/O error"), ValueError("a bug")])
def test_run_hides_no_bug(error):
    def main() -> None:
        raise error

    with pytest.raises(type(error), match=rf"\A{re.escape(str(error))}\Z"):
        run(main)


def test_replacing_a_file(tmp_path):
    target = tmp_path / "new" / "out.txt"
    with replacing(target) as file:
        file.write_text("one")
        assert not target.exists()
    with replacing(target) as file:
        file.write_text("two")
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["out.txt"]


def test_replacing_a_folder(tmp_path):
    for name in ("old", "new"):
        with replacing(tmp_path / "out", marker="build.json") as folder:
            folder.mkdir()
            (folder / name).write_text("x")
            (folder / "build.json").write_text("{}")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["build.json", "new"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_replacing_leaves_nothing_half_written(tmp_path, kind):
    target = tmp_path / "out"
    target.write_text("before")
    with pytest.raises(InputError, match="a bad row"), replacing(target) as temporary:
        temporary.write_text("half") if kind == "file" else temporary.mkdir()
        raise InputError("a bad row")
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_replacing_never_deletes_a_foreign_folder(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(InputError, match="no earlier result"), replacing(tmp_path / "thesis", marker="build.json"):
        pass
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_report_writes_and_prints_the_checks(tmp_path, capsys):
    checks = [{"name": "speed", "value": 1.23456, "bar": ">= 1", "holds": True}]
    report(tmp_path / "bench", {"seconds": 2}, checks)
    assert json.loads((tmp_path / "bench/results.json").read_text()) == {"seconds": 2, "checks": checks}
    assert "1.235" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("", "default"),
        ("--config one.yaml", "one"),
        ("--config one.yaml --config=two.yaml", "two"),  # the last file that has it
        ("--config two.yaml --config none.yaml", "two"),
        ("--config one.yaml --name three", "three"),  # the command line wins
        ("--name=three --config one.yaml --quiet", "three"),
        ("--name three --name four", "four"),  # as argparse has it
        ("--named three", "default"),
        ("--name", "default"),  # which parse refuses
        ("--help", "default"),
    ],
)
def test_a_setting_before_the_others(words, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("one", "name: one\n"), ("two", "name: two\nsize: 2\n"), ("none", "# nothing\n")):
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["script", *words.split()])
    monkeypatch.delenv("RRG_QUIET", raising=False)
    monkeypatch.setenv("RRG_QUIET", "")
    assert read_setting("name", "default") == value


def test_a_setting_in_a_file_that_is_not_there(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--config", "absent.yaml"])
    with pytest.raises(InputError, match=r"there is no config file absent\.yaml"):
        read_setting("name", "default")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("configs/mrgr1/iu.yaml", r"run `make demo` .*, take --config recipes/configs/mrgr1/phantom\.yaml, or give"),
        ("configs/mrgr1/dpo.yaml", r"there is none: take --config recipes/configs/mrgr1/dpo_phantom\.yaml, or give"),
        ("configs/llmrg4/grpo.yaml", r"there is none: take --config recipes/configs/llmrg4/grpo_phantom\.yaml, or"),
        ("configs/rl/ppo.yaml", r"there is none: take --config recipes/configs/rl/mrgr1\.yaml \(or llmrg4"),
        (None, r"there is none: give --use_cpu true --bf16 false"),
    ],
)
def test_without_a_gpu_a_config_for_the_cpu_is_named(config, sentence):
    assert re.search(sentence, cli.no_gpu(config))


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        (["--config", "good.yaml"], 3),
        (["--config=good.yaml"], 3),  # both spellings of argparse
        (["--config", "good.yaml", "--size", "5"], 5),  # the command line wins
        ([], 1),  # no file is needed
    ],
)
def test_parse(monkeypatch, tmp_path, arguments, size):
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text("size: 3\n")
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    assert parse(Arguments)[0].size == size


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("siez: 3", [], ["file.yaml", "siez"]),  # an unknown key is named, not ignored
        ("size: [", [], ["file.yaml"]),  # no YAML
        ("- size", [], ["file.yaml", "mapping"]),  # a list
        ("", [], ["file.yaml", "mapping"]),  # empty
        ("size: 3", ["--siez", "4"], ["--siez"]),  # an unknown argument
        ("size: 3", ["--size", "four"], ["--size", "four"]),  # no number
    ],
)
def test_parse_names_the_mistake(monkeypatch, tmp_path, text, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["script", "--config", "file.yaml", *arguments])
    with pytest.raises(InputError, match=r"\A.+\Z") as caught:  # no line break
        parse(Arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("arguments", [["--config", "absent.yaml"], ["--config"]])
def test_parse_without_the_file(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(InputError, match="no config file"):
        parse(Arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "base.yaml", "--config", "row.yaml"], (3, "row")),  # the later file wins, the rest is kept
        (["--config", "row.yaml", "--config=base.yaml"], (3, "base")),  # the other way round, the other spelling
        (["--size", "5", "--config", "base.yaml", "--config", "row.yaml"], (5, "row")),  # the command line over both
        (["--config", "base.yaml", "--config", "row.yaml", "--name", "own"], (3, "own")),  # wherever it stands
        (["--config", "base.yaml", "--config", "comment.yaml"], (3, "base")),  # a row that changes nothing
    ],
)
def test_parse_several_files(monkeypatch, tmp_path, arguments, expected):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("size: 3\nname: base\n")
    Path("row.yaml").write_text("name: row\n")
    Path("comment.yaml").write_text("# the base as it stands\n")
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    (parsed,) = parse(Arguments)
    assert (parsed.size, parsed.name) == expected


@pytest.mark.parametrize(
    ("row", "words", "absent"),
    [
        ("siez: 3", ["row.yaml", "siez"], "base.yaml"),  # the file with the unknown key, not the other one
        ("- siez", ["row.yaml", "mapping"], "base.yaml"),  # a list
        ("size: [", ["row.yaml"], "base.yaml"),  # no YAML
        (None, ["no config file row.yaml"], "base.yaml"),  # absent
        ("size: four", ["base.yaml + row.yaml", "four"], "siez"),  # a bad value: either may hold it
    ],
)
def test_parse_names_the_file_of_several(monkeypatch, tmp_path, row, words, absent):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("size: 3\n")
    if row is not None:
        Path("row.yaml").write_text(row)
    monkeypatch.setattr(sys, "argv", ["script", "--config", "base.yaml", "--config", "row.yaml"])
    with pytest.raises(InputError, match=r"\A.+\Z") as caught:
        parse(Arguments)
    assert all(word in str(caught.value) for word in words)
    assert absent not in str(caught.value)


def test_parse_falls_back_on_the_default_config(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.setattr(cli, "__file__", str(Path(__file__)))  # a folder without that file
    with pytest.raises(InputError, match=r"absent\.yaml"):
        parse(Arguments, default_config="absent.yaml")


def test_check_model_accepts_the_tiny_model(tiny):
    check_model(str(tiny))


def test_check_model_refuses_a_text_model(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="bert model, which reads no images"):
        check_model(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        None,  # an empty folder
        "{}",  # a config.json that names no architecture
        '{"model_type": "no_such_model"}',
        "{half",  # a config.json cut off
    ],
)
def test_check_model_refuses_a_folder_without_model(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"\A.*{re.escape(str(tmp_path))}.*\Z"):  # no line break
        check_model(str(tmp_path))


def test_bitsandbytes_has_these_optimizers():
    assert {each.value for each in _BITSANDBYTES_OPTIMIZERS} == cli.BITSANDBYTES


def test_check_model_without_a_name():
    with pytest.raises(InputError, match=r"no model is named: give --model_name_or_path"):
        check_model(None)


FLASH = {"attn_implementation": "flash_attention_2"}
KERNEL = {"attn_implementation": "kernels-community/flash-attn2"}


@pytest.mark.parametrize(
    ("cuda", "packages", "settings", "sentence"),
    [
        (False, "flash bitsandbytes", {}, "needs a GPU and there is none"),  # no GPU at all
        (False, "flash bitsandbytes", {"use_cpu": True} | FLASH, "needs a GPU and there is none"),
        (False, "flash bitsandbytes", {"use_cpu": True} | FLASH, "flash-attn"),  # by name
        (False, "kernels hub", {"use_cpu": True} | KERNEL, "kernels-community/flash-attn2 .flash-attn. is for GPUs"),
        (
            False,
            "flash bitsandbytes",
            {"use_cpu": True, "optim": "adamw_bnb_8bit"},
            "needs a GPU and there is none",
        ),  # 8 bits want a GPU
        (
            False,
            "flash bitsandbytes",
            {"use_cpu": True, "optim": "adamw_bnb_8bit"},
            "adamw_bnb_8bit .bitsandbytes. is for GPUs",
        ),
        (
            False,
            "flash bitsandbytes",
            {"use_cpu": True, "optim": OptimizerNames.ADAMW_BNB},
            "optim adamw_bnb_8bit .bitsandbytes.",
        ),
        (False, "bitsandbytes", {"use_cpu": True, "optim": "paged_adamw_8bit"}, "paged_adamw_8bit .bitsandbytes."),
        (False, "bitsandbytes", {"use_cpu": True, "optim": "adamw_torch_8bit"}, None),  # torchao's
        (False, "bitsandbytes", {"use_cpu": True, "use_vllm": True}, "use_vllm .vllm. is for GPUs"),
        (True, "flash bitsandbytes", {"use_vllm": True}, "vllm is missing: make setup-vllm"),
        (True, "flash", FLASH, None),
        (True, "kernels hub", FLASH, None),  # transformers takes the Hub's kernel
        (True, "kernels", FLASH, "flash-attn2, which transformers takes from the Hub instead, cannot be loaded"),
        (True, "bitsandbytes", FLASH, "needs flash-attn or, .* kernels, and this machine has neither: make setup-gpu"),
        (True, "flash", {"attn_implementation": "flash_attention_3"}, "flash_attention_3 needs"),  # flash-attn is 2
        (True, "flash", KERNEL, "kernels-community/flash-attn2 needs"),  # a kernel by name needs kernels
        (True, "kernels", KERNEL, None),  # asked for by name: transformers says what it finds
        (True, "flash", {"optim": "adamw_bnb_8bit"}, "bitsandbytes is missing: make setup"),
        (True, "", {}, None),  # nothing missing that was asked for
        (False, "", {"use_cpu": True}, None),
    ],
)
def test_check_hardware(monkeypatch, cuda, packages, settings, sentence):
    """`packages` are those that are installed; hub: the kernel can be downloaded."""
    packages = packages.split()

    def has_flash(kernels_fallback_ok: bool = False) -> bool:
        return "flash" in packages or (kernels_fallback_ok and "hub" in packages)

    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", has_flash)
    monkeypatch.setattr("transformers.utils.is_flash_attn_3_available", lambda kernels_fallback_ok=False: False)
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: "kernels" in packages)
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: "bitsandbytes" in packages)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given = SimpleNamespace(**{"use_cpu": False, "optim": "adamw_torch", "attn_implementation": None} | settings)
    if sentence is None:
        check_hardware(given, given)
    else:
        with pytest.raises(InputError, match=sentence):
            check_hardware(given, given)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, None),  # a fresh run
        ("latest", "checkpoint-10"),  # by number, not by name
        ("checkpoint-9", "checkpoint-9"),
    ],
)
def test_resume_from(tmp_path, monkeypatch, named, expected):
    monkeypatch.chdir(tmp_path)
    for step in (9, 10):
        Path(f"run/checkpoint-{step}").mkdir(parents=True)
        Path(f"run/checkpoint-{step}/trainer_state.json").write_text("{}")
        save_file({}, f"run/checkpoint-{step}/model.safetensors")
    named = f"run/{named}" if named and named != "latest" else named
    found = resume_from(SimpleNamespace(output_dir="run", resume_from_checkpoint=named))
    assert (Path(found).name if found else None) == expected


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("latest", "there is no checkpoint in run"),  # nothing was saved yet
        ("run/absent", "run/absent is no checkpoint"),
    ],
)
def test_resume_from_nothing(tmp_path, monkeypatch, named, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        resume_from(SimpleNamespace(output_dir="run", resume_from_checkpoint=named))


def test_read_commit(monkeypatch, tmp_path):
    """Of a checkout of this project alone: an environment with the wheel may lie in somebody else's repository."""
    git = ("git", "-C", tmp_path, "-c", "user.name=N", "-c", "user.email=E")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run((*git, *command), check=True)
    commit = subprocess.run((*git, "rev-parse", "HEAD"), check=True, capture_output=True, text=True).stdout.strip()
    for file, expected in (("recipes/files.py", commit), ("site-packages/recipes/files.py", "")):
        (tmp_path / file).parent.mkdir(parents=True)
        monkeypatch.setattr(files, "__file__", str(tmp_path / file))
        assert files.read_commit() == expected
    monkeypatch.setenv("PATH", "")  # no git
    assert files.read_commit() == ""


def test_read_prompt(tmp_path):
    (tmp_path / "own.txt").write_text(" Describe.\n")
    assert read_prompt(str(tmp_path / "own.txt")) == "Describe."
    with pytest.raises(InputError, match=r"absent\.txt"):
        read_prompt("prompts/absent.txt")


@pytest.mark.parametrize(
    ("file", "tags"),
    [
        ("prompts/mrgr1_reasoning.txt", True),  # all four tags
        ("prompts/mrgr1_plain.txt", False),  # none
    ],
)
def test_shipped_prompts(file, tags):
    found = [tag in read_prompt(file) for tag in ("<think>", "</think>", "<report>", "</report>")]
    assert found == [tags] * 4


def test_save_run_notes_what_was_run(tmp_path):
    save_run(tmp_path, Arguments(size=7))
    noted = json.loads((tmp_path / "run_config.json").read_text())
    assert noted["Arguments"] == {"size": 7, "name": "a"}
    assert {"torch", "trl", "transformers"} <= set(noted["packages"])


@pytest.mark.parametrize(
    ("config", "attention", "sentence"),
    [
        (Gemma3Config, "flash_attention_2", "a gemma3 model, which has no flash_attention_2: set attn_implementation"),
        (Gemma3Config, "kernels-community/flash-attn2", "a gemma3 model, which has no kernels-community/flash-attn2"),
        (Gemma3Config, "sdpa", None),
        (Gemma3Config, None, None),
        (Qwen2_5_VLConfig, "flash_attention_2", None),
    ],
)
def test_check_model_with_an_attention(tmp_path, config, attention, sentence):
    config().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")  # a folder with all files that it needs
    save_file({}, tmp_path / "model.safetensors")
    if sentence is None:
        check_model(str(tmp_path), attention=attention)
    else:
        with pytest.raises(InputError, match=sentence):
            check_model(str(tmp_path), attention=attention)
