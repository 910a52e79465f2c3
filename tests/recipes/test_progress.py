"""What runs says how far it is: a bar where somebody watches, lines elsewhere, nothing with --quiet."""

import os
import re
import sys
from dataclasses import dataclass, field

import datasets
import huggingface_hub.utils
import pytest
import transformers.utils.logging

from recipes import progress
from recipes.cli import parse
from recipes.demos.stages import read_count, read_reached
from recipes.progress import follow, silence_libraries, take_quiet


@dataclass
class Arguments:
    size: int = field(default=1)


@pytest.fixture
def clock(monkeypatch):
    """A function that lets so many seconds pass."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_lines_every_thirty_seconds(clock, capsys):
    """Of 8 items, 12 s each: after the 3rd (36 s) five are left, 60 s; after the 6th (72 s) two, 24 s."""
    items = []
    for item in follow(list("abcdefgh"), "reading", reached=lambda: f"{len(items)} read"):
        clock(12)
        items.append(item)
    assert "".join(items) == "abcdefgh"
    out, errors = capsys.readouterr()
    assert out == "reading: 3/8, 0:01:00 left, 3 read\nreading: 6/8, 0:00:24 left, 6 read\n" and errors == ""
    assert read_count(out) == (6, 8)  # as the demo's display reads it


def test_of_an_unknown_number(clock, capsys):
    for _ in follow(iter("ab"), "rows"):
        clock(40)
    assert capsys.readouterr().out == "rows: 1\nrows: 2\n"


def test_a_short_work_says_nothing(clock, capsys):
    for _ in follow("abc", "reading"):
        clock(1)
    assert capsys.readouterr().out == ""


def test_quiet(clock, capsys, monkeypatch):
    monkeypatch.setenv(progress.QUIET, "1")
    for _ in follow("abc", "reading"):
        clock(100)
    assert capsys.readouterr().out == ""


def test_a_bar_where_somebody_watches(capsys, monkeypatch):
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    assert "".join(follow("abc", "reading", reached=lambda: "so far")) == "abc"
    out = capsys.readouterr().out
    assert "reading" in out and "3/3" in out and "so far" in out


def test_quiet_is_for_every_script(monkeypatch):
    monkeypatch.setenv(progress.QUIET, "0")  # so that it is put back
    monkeypatch.setattr(sys, "argv", ["script", "--size", "3", "--quiet"])
    (arguments,) = parse(Arguments)
    assert arguments.size == 3 and progress.is_quiet()
    monkeypatch.setenv(progress.QUIET, "0")
    assert take_quiet(["--size", "3"]) == ["--size", "3"] and not progress.is_quiet()


@pytest.mark.parametrize("watched", [True, False])
def test_libraries_draw_no_bars_into_a_file(watched, monkeypatch):
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(progress, "is_terminal", lambda: watched)
    datasets.enable_progress_bars()
    huggingface_hub.utils.enable_progress_bars()
    transformers.utils.logging.enable_progress_bar()
    silence_libraries()
    assert datasets.are_progress_bars_disabled() != watched
    assert huggingface_hub.utils.are_progress_bars_disabled() != watched
    assert transformers.utils.logging.is_progress_bar_enabled() == watched
    assert ("HF_HUB_DISABLE_PROGRESS_BARS" in os.environ) != watched


LOG = """This run:
         step  done      left   reward     mccs       KL
          1/3   33%         ?    0.104    0.104    0.000
a table of completions with 5/9 in it
          2/3   67%   0:00:07    0.250    0.104    0.000
          3/3  100%   0:00:00                      0.001
"""


@pytest.mark.parametrize(
    ("log", "reached", "count"),
    [(LOG, "reward 0.250", (3, 3)), (re.sub(r"(?s)a table.*", "", LOG), "reward 0.104", (1, 3)),
     (LOG.replace("step", "stop"), "", (3, 3)), ("", "", None)],
)  # fmt: skip
def test_what_a_stage_has_reached(log, reached, count):
    """A step without new completions logs no reward: the last one stands."""
    assert read_reached(log) == reached and read_count(log) == count
