"""recipes/certify.py on miniatures: every row runs, what is absent is a row, and a row can fail."""

import errno
import json
from importlib.util import find_spec

import certificate_replicas
import pytest
import torch
from replicas import bert_base_uncased, chexbert_pth

from recipes import certify
from recipes.certificate.laboratory import Absent, Bar, Lab
from recipes.certificate.table import run_row, to_markdown
from recipes.files import InputError

GPU_ROWS = {"gpu", "flash_attention", "grpo_memory"}
ORIGINALS = {
    "chexbert": "f1chexbert",
    "radgraph": "radeval",
    "radgraph_xl": "radeval",
    "modern_radgraph_xl": "radeval",
}


def read(folder) -> dict[str, dict]:
    """The rows of a certificate by name."""
    return {row["name"]: row for row in json.loads((folder / "certificate.json").read_text())["rows"]}


def test_every_row_on_miniatures(tmp_path, call):
    out = tmp_path / "certificate"
    call(certify.main, "--replicas", "--out", out)
    rows = read(out)
    assert list(rows) == list(certify.ROWS)
    absent = {name for name, row in rows.items() if str(row["value"]).startswith("not run: ")}
    expected = {name for name, package in ORIGINALS.items() if find_spec(package) is None}
    assert absent == expected | (set() if torch.cuda.is_available() else GPU_ROWS)
    assert all(rows[name]["holds"] for name in rows.keys() - absent - {"grpo_seconds", "grpo_memory"})
    assert rows["grpo_seconds"]["holds"] is None and rows["grpo_seconds"]["value"] > 0
    assert rows["radcliq"]["value"] == pytest.approx(0.0018, abs=1e-4)  # the board's parts have three digits
    assert rows["biomedclip"]["versions"]["--biomedclip"] == "replica"

    page = (out / "certificate.md").read_text()
    assert "| name | value | bar | holds | versions | date |" in page
    assert sum(line.startswith(tuple(f"| {name} |" for name in rows)) for line in page.splitlines()) == len(rows)
    assert str(tmp_path) not in page + (out / "certificate.json").read_text()  # nothing of this machine's folders
    assert [path.name for path in tmp_path.iterdir()] == ["certificate"]


def test_half_of_the_checkpoints_are_absent(tmp_path, call, capsys):
    """CheXbert's files are here, but with random weights, which do not give the published labels."""
    chexbert_pth(tmp_path / "scorers")
    bert_base_uncased(tmp_path / "bert")
    places = ("--chexbert", tmp_path / "scorers/chexbert.pth", "--bert", tmp_path / "bert")
    names = ("chexbert", "radgraph", "radcliq", "biomedclip", "discbert", "llmrg4_step", "lmrrg_decoder", "grpo_steps")
    with pytest.raises(SystemExit, match=r"^1 of them do not hold: chexbert$"):
        call(certify.main, *places, "--out", tmp_path / "out", "--only", *names)
    rows = read(tmp_path / "out")
    assert {name: row["holds"] for name, row in rows.items()} == dict.fromkeys(names) | {
        "chexbert": False,
        "radcliq": True,
    }
    assert rows["chexbert"]["bar"] == "= 56 of 56 labels"
    assert rows["radgraph"]["value"].startswith(
        "not run: --radgraph StanfordAIMI/RRG_scorers/radgraph.tar.gz is no file"
    )
    assert rows["discbert"]["value"].startswith("not run: give --discbert FILE")
    assert rows["llmrg4_step"]["value"].startswith("not run: --vision microsoft/rad-dino is no file or folder here")
    assert "| chexbert | " in (tmp_path / "out/certificate.md").read_text()
    assert "NO  chexbert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--only", "chexbert", "lungs"), "--only has no row 'lungs'; rows are packages, gpu, attention,"),
        (("--out", "notes"), "--out notes exists and is no earlier certificate"),
        (("--out", "notes/mine.txt"), r"--out .*notes/mine\.txt is a file: name a folder"),
        (("--chexpert", "x"), r"there is no argument --chexpert: did you mean --chexbert\?"),
    ],
)
def test_bad_arguments(tmp_path, call, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    with pytest.raises(InputError, match=sentence):
        call(certify.main, *arguments)
    assert [path.name for path in tmp_path.rglob("*")] == ["notes", "mine.txt"]


def test_ctrl_c_tells_what_was_done(tmp_path, call, capsys, monkeypatch):
    def interrupt(laboratory):
        raise KeyboardInterrupt  # not by the signal: a run of another test may have left its handler

    monkeypatch.setitem(certify.ROWS, "radgraph", interrupt)
    with pytest.raises(SystemExit, match=r"^130$"):
        call(certify.main, "--out", tmp_path / "out", "--only", "radcliq", "radgraph", "packages")
    assert not list(tmp_path.iterdir())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("yes radcliq")
    assert lines[-1] == "stopped in radgraph; no certificate is written: go on with --only radgraph packages"


def test_without_a_clone(tmp_path, call, monkeypatch):
    monkeypatch.setattr("recipes.certificate.laboratory.TESTS", tmp_path / "tests")
    with pytest.raises(InputError, match="--replicas needs a clone of the repository"):
        call(certify.main, "--out", tmp_path / "out", "--replicas")
    assert not list(tmp_path.iterdir())


################
# One row
################


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "value", "holds"),
    [
        (Absent("no GPU"), "not run: no GPU", None),
        (ImportError("no open_clip"), "not run: ImportError: no open_clip", None),
        (torch.OutOfMemoryError("24 GB"), "not run: OutOfMemoryError: 24 GB", None),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "not run: OSError: [Errno 28] No space left on device",
            None,
        ),
        (RuntimeError("PytorchStreamWriter failed"), "not run: RuntimeError: PytorchStreamWriter failed", None),
        (caused(InputError("fetch it"), OSError("offline")), "not run: fetch it", None),
        (InputError("it lacks 2 weights"), "failed: it lacks 2 weights", False),
        (caused(InputError("it does not fit"), RuntimeError("size mismatch")), "failed: it does not fit", False),
        (KeyError("hf_proj"), "failed: KeyError: 'hf_proj'", False),
        (InputError("--vision /data/jane/rad-dino is damaged"), "failed: --vision is damaged", False),
        (InputError("/home/jane/a.pth: see https://x.org/a/b"), "failed: .../a.pth: see https://x.org/a/b", False),
    ],
)
def test_faults_and_absences(tmp_path, error, value, holds):
    def row(lab):
        raise error

    result = run_row("row", row, Lab({"vision": "/data/jane/rad-dino", "text": None}, tmp_path))
    assert (result["value"], result["holds"]) == (value, holds)


@pytest.mark.parametrize(
    ("value", "bar", "holds"),
    [
        (0.1, Bar("<=", 0.1), True),
        (0.2, Bar("<=", 0.1), False),
        (8.0, Bar(">=", 8.0), True),
        (7.5, Bar(">=", 8.0), False),
        ("3 of 4", Bar("=", "4 of 4"), False),
        (float("nan"), Bar("<=", 0.1), False),
        (float("inf"), Bar("is", "finite"), False),
        (24.0, "24.3 GB computed", None),
    ],
)
def test_bars(tmp_path, value, bar, holds):
    row = run_row("row", lambda lab: (value, bar), Lab({}, tmp_path))
    assert row["holds"] is holds
    json.dumps(row, allow_nan=False)


def test_a_cell_keeps_to_itself():
    row = {"name": "a", "value": "failed: x | y", "bar": "", "holds": False, "versions": {}, "date": "2026-01-01"}
    machine = {"platform": "Linux", "gpus": [], "cuda": None}
    certificate = {"project": "P", "commit": "", "date": "2026-01-01", "checkpoints": "published"}
    page = to_markdown(certificate | {"machine": machine, "packages": {}, "rows": [row]})
    assert page.splitlines()[-1] == r"| a | failed: x \| y |  | NO |  | 2026-01-01 |"


def test_miniatures_stand_for_every_checkpoint():
    """What has no default, since the Hub has no copy, has a miniature too."""
    without = {name for name, value in vars(certify.Checkpoints()).items() if value is None}
    assert certificate_replicas.PLACES.keys() == without
