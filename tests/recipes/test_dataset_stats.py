"""Statistics of rows counted by hand, the paper's Table 1, and the page."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset

from recipes import dataset_stats
from recipes.data.schema import write_dataset
from recipes.files import InputError
from recipes.rg4.rules import RuleJudge
from recipes.rg4.statistics_page import PAPER, measure
from rewards.labels import CONDITIONS

EFFUSION = CONDITIONS.index("Pleural Effusion")


def row(report: str, scenario: str, views: list[str], effusion: int, **changes) -> dict:
    labels = [effusion if i == EFFUSION else 0 for i in range(14)]
    texts = {"findings": report, "impression": None, "report": report}
    return {
        "subject_id": "p",
        "scenario": scenario,
        "views": views,
        "labels": labels,
        "source": "s",
        **texts,
    } | changes


ROWS = [
    row("Stable effusion.", "sn", ["PA"], 1),  # a comparison
    row("Small effusion.", "sn", ["AP"], 1, impression="Effusion."),
    row("No effusion on the lateral view.", "mn", ["PA", "LATERAL"], 2, subject_id="q"),  # a view, which mn allows
    row("Stable. Nurse notified.", "mn", ["PA", "LATERAL"], 0),
]


def test_the_papers_table():  # LLM-RG4, Table 1
    table = [[row["split"], *(row[name] for name in ("PC", "PP", "View", "Comm"))] for row in PAPER]
    assert table == [
        ["train", 39.90, 15.99, 1.17, 4.56],
        ["validation", 38.36, 11.28, 1.50, 3.01],
        ["test", 65.63, 25.78, 3.13, 10.16],
        ["train", 0.30, 0.30, 0.12, 0.00],
        ["validation", 0.07, 0.07, 0.14, 0.00],
        ["test", 0.42, 0.42, 0.04, 0.04],
    ]


def test_figures_by_hand():
    found = measure("data", "train", Dataset.from_list(ROWS), RuleJudge())
    sn, mn = found["categories"]
    assert (sn["scenario"], sn["reports"], sn["PC"], sn["View"], sn["hall"]) == ("sn", 2, 50, 0, 50)
    assert (mn["scenario"], mn["reports"], mn["PC"], mn["View"], mn["Comm"], mn["hall"]) == ("mn", 2, 50, 50, 50, 50)
    assert found["lengths"]["report"]["mean"] == pytest.approx((2 + 2 + 6 + 3) / 4)
    assert found["lengths"]["report"]["longest"] == 6 and found["lengths"]["impression"]["texts"] == 1
    assert found["labels"]["Pleural Effusion"] == {"positive": 2, "uncertain": 0, "negative": 1}
    assert found["views"] == {"PA": 3, "LATERAL": 2, "AP": 1} and found["images"] == {1: 2, 2: 2}
    assert (found["rows"], found["subjects"], found["sources"]) == (4, 2, {"s": 4})


@pytest.fixture
def dataset(tmp_path) -> Path:
    write_dataset({"train": lambda: iter(ROWS), "test": lambda: iter(ROWS[:1])}, tmp_path / "data", {})
    return tmp_path / "data"


def test_page(dataset, tmp_path, call, capsys):
    out = tmp_path / "stats"
    call(dataset_stats.main, "--datasets", dataset, "--out", out)
    printed = capsys.readouterr().out
    assert "39.90" in printed and "paper" in printed and "50.00" in printed
    page = (out / "index.html").read_text()
    assert "paper" in page and "39.90" in page and not re.search(r'(?:src|href)="(?!data:)', page)  # self-contained
    assert {path.name for path in out.iterdir()} == {
        "index.html", "statistics.json", "categories.png", "lengths.png", "labels.png", "views.png",
    }  # fmt: skip
    written = json.loads((out / "statistics.json").read_text())
    assert written["judge"] == "rule" and [each["split"] for each in written["found"]] == ["train", "test"]


def test_a_folder_of_scenarios(tmp_path, call, capsys):
    for scenario in ("sn", "mw"):
        rows = [each | {"scenario": scenario} for each in ROWS[:1]]
        write_dataset({"train": lambda rows=rows: iter(rows)}, tmp_path / "rg4" / scenario, {})
    call(dataset_stats.main, "--datasets", tmp_path / "rg4", "--out", tmp_path / "stats")
    found = json.loads((tmp_path / "stats/statistics.json").read_text())["found"]
    assert [each["data"] for each in found] == ["rg4/sn", "rg4/mw"]
    assert [each["categories"][0]["hall"] for each in found] == [100, 0]  # mw may compare


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--datasets names"),
        (["--datasets", "./absent"], "no data set at ./absent"),
        (["--judge", "oracle", "--datasets", "DATA"], "'oracle'"),
        (["--judge", "discbert:/no/such", "--datasets", "DATA"], "/no/such"),
    ],
)
def test_mistakes(dataset, tmp_path, call, words, said):
    words = [str(dataset) if word == "DATA" else word for word in words]
    with pytest.raises(InputError, match=said):
        call(dataset_stats.main, *words, "--out", str(tmp_path / "stats"))
    assert not (tmp_path / "stats").exists()
