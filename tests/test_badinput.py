"""One careless command of each kind; `make badinput` has all of them, and every script."""

import json
import os
import subprocess
import sys
from pathlib import Path

from badinput.commands import ALL, make_commands
from badinput.process import SCRIPTS

ROOT = Path(__file__).resolve().parents[1]


def test_every_script_has_its_careless_users():
    commands = make_commands(Path("shelf"))
    assert set(ALL) == set(SCRIPTS) == {command.script for command in commands}
    assert len(commands) >= 300


def test_a_command_of_each_kind_is_refused_in_a_sentence(tmp_path):
    command = [sys.executable, "-m", "badinput", "--sample", "true", "--out", str(tmp_path / "out")]
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["commands"] == len({command.kind for command in make_commands(tmp_path)})
    assert not results["faults"] and not results["added"]
