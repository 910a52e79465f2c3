"""`--help` and `python -m recipes`: short, true, and of every script."""

import importlib
import re
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from transformers import TrainingArguments

from recipes import __main__ as contents_page
from recipes import usage
from recipes.cli import parse

RECIPES = Path(usage.__file__).parent
LIBRARY = {"__init__", "__main__", "cli", "files", "progress", "templates", "usage"}
SCRIPTS = sorted({path.stem for path in RECIPES.glob("*.py")} - LIBRARY)
TRAINING = ["dpo", "grpo_mrgr1", "ppo_lmrrg", "rl", "rl_llmrg4", "sft_llmrg4", "sft_lmrrg", "sft_mrgr1"]


class Kind(Enum):
    A = "a"
    B = "b"


@dataclass
class Arguments:
    size: int = field(default=1, metadata={"help": "Size of it, 50 %% of the rest."})
    kind: Kind = field(default=Kind.A, metadata={"help": "Kind of it."})
    way: Literal["one", "two"] = field(default="one", metadata={"help": "Way: one, or two."})
    names: list[str] = field(default_factory=list, metadata={"help": "Names of it."})
    file: str | None = field(default=None, metadata={"help": "File of it."})
    is_new: bool = field(default=True, metadata={"help": "Whether it is new."})
    out: str = field(kw_only=True, metadata={"help": "Folder of it."})


@dataclass
class TrainerArguments(TrainingArguments):
    warmth: float = field(default=0.5, metadata={"help": "Warmth " * 30})


@pytest.fixture
def page(monkeypatch, capsys):
    """The lines that a script prints, whose main() calls `parse` with these types and words."""

    def page(*types: type, words: str = "--help", **options) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["script", *words.split()])
        with pytest.raises(SystemExit, match=r"\A0\Z"):
            parse(*types, **options)
        return capsys.readouterr().out.splitlines()

    return page


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script(name, monkeypatch, capsys):
    module = importlib.import_module(f"recipes.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match=r"\A0\Z"):
        module.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 122
    assert lines[0] == module.__doc__.splitlines()[0]
    arguments = [line for line in lines if line.startswith("  --")]
    assert arguments and not re.search(r"default: (None|\[\]|<)|MISSING", "\n".join(lines))
    trains = name in TRAINING or name.startswith("train_")
    assert any("arguments of TRL and transformers" in line for line in lines) == trains
    assert any("--help all has every text" in line for line in lines) or not any(" … (" in line for line in lines)


def test_defaults_in_words(page):
    """Required ones first; a choice is listed unless its text names it; no None, no list in Python's writing."""
    lines = page(Arguments)
    assert lines[0] == "`--help` and `python -m recipes`: short, true, and of every script."
    assert lines[1:] == [
        "",
        "Arguments (--config FILE.yaml reads them from a file, --quiet shows no progress):",
        "  --out                   Folder of it. (required)",
        "  --size                  Size of it, 50 % of the rest. (default: 1)",
        "  --kind                  Kind of it. (a | b; default: a)",
        "  --way                   Way: one, or two. (default: one)",
        "  --names                 Names of it. (optional)",
        "  --file                  File of it. (optional)",
        "  --is_new                Whether it is new. (default: true)",
    ]


def test_the_config_has_the_defaults(page, tmp_path):
    """Those of the default file without another, of the named one with it; TRL's that it sets are named."""
    (tmp_path / "default.yaml").write_text("size: 2\nout: here\nlearning_rate: 0.25\n")
    (tmp_path / "other.yaml").write_text("size: 3\nout: there\n")
    text = "\n".join(page(Arguments, TrainerArguments, default_config=str(tmp_path / "default.yaml")))
    assert "rest. (default: 2)" in text and "Folder of it. (default: here)" in text and "required" not in text
    assert re.search(
        r"\n--help all .* \d+ arguments of TRL and transformers\. The config sets --learning_rate 0\.25\.$", text
    )
    text = "\n".join(page(Arguments, TrainerArguments, words=f"--config {tmp_path}/other.yaml -h"))
    assert "rest. (default: 3)" in text and "learning_rate" not in text


def test_all(page):
    """Our own first, then every one of the library's; without `all` none of these."""
    whole, short = ("\n".join(page(TrainerArguments, words=words)) for words in ("--help all", "--help"))
    ours, _, theirs = whole.partition("TRL's and transformers' arguments:")
    assert "--warmth" in ours and "--warmth" not in theirs
    for name in ("--output_dir", "--learning_rate", "--bf16", "--gradient_checkpointing"):
        assert f"\n  {name} " in theirs and f"\n  {name} " not in short
    assert "--no_" not in whole


def test_too_long_a_text_is_cut(page, monkeypatch):
    monkeypatch.setattr(usage, "MOST_LINES", 6)  # two lines, a heading, the argument, two about the rest
    (argument,) = (line for line in page(TrainerArguments) if line.startswith("  --warmth"))
    assert argument.endswith("Warmth … (default: 0.5)") and 100 < len(argument) <= 120
    monkeypatch.setattr(usage, "MOST_LINES", 60)
    lines = page(TrainerArguments)
    assert sum(line.count("Warmth") for line in lines) == 30


def test_the_contents_have_every_script_once():
    names = " ".join(contents_page.GROUPS.values()).split()
    assert sorted(names) == SCRIPTS
    assert names.index("build_phantom") < names.index("sft_mrgr1") < names.index("generate") < names.index("evaluate")


def test_contents_are_a_line_each():
    process = subprocess.run([sys.executable, "-m", "recipes"], capture_output=True, text=True, check=True)
    lines = process.stdout.splitlines()
    assert max(map(len, lines)) <= 122
    for name in SCRIPTS:
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.removeprefix(f"  {name}").strip().endswith(".")
