"""LLM-RG4's demo: its figures by scenario on studies whose answers are known, and its page; nothing is trained."""

import re

import numpy as np
import pytest
from demo_folders import score, write_reports

from recipes.build_phantom import BuildArguments, build_row
from recipes.data.schema import write_dataset
from recipes.demos import llmrg4
from recipes.demos.llmrg4 import PLAIN, SHUFFLED, TLW, LLMRG4Demo
from recipes.demos.page import choose_studies, write_page
from rewards.labelers import LexicalLabeler
from rewards.scenarios import SCENARIOS

DEMO, LABELER = LLMRG4Demo(), LexicalLabeler()
NOTHING = "The heart is normal in size."


@pytest.fixture(scope="module")
def args() -> BuildArguments:
    return BuildArguments(size=64, seed=5, balanced=True)


@pytest.fixture(scope="module")
def rows(args) -> list[dict]:
    return [build_row("test", i, SCENARIOS[i % 4], args) for i in range(48)]


@pytest.fixture
def folder(tmp_path, rows, args, call):
    """Two seeds: with TLW the reference itself, without it that no finding is there, shuffled that of the next."""
    write_dataset({"test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "lexical", **vars(args)})
    reports = [row["report"] for row in rows]
    texts = {TLW: reports, PLAIN: [NOTHING] * len(rows), SHUFFLED: reports[4:] + reports[:4]}
    log = [{"step": step, "loss": "1.0"} for step in range(1, 6)]
    write_reports(DEMO, tmp_path, texts, [row["study_id"] for row in rows], log)
    score(call, DEMO, tmp_path)
    return tmp_path


def test_the_drawn_study_is_the_row_again(rows, args):
    for row in rows:
        assert list(llmrg4.drawn_study(row["study_id"], vars(args)).states) == row["labels"]


@pytest.mark.parametrize(
    ("report", "changes"),
    [
        ("New pulmonary edema is seen. No effusion.", {("Edema", "new")}),
        ("The previously seen pneumothorax has resolved.", {("Pneumothorax", "resolved")}),
        ("There is an unchanged left pleural effusion. New pneumonia.",
         {("Pleural Effusion", "unchanged"), ("Pneumonia", "new")}),
        ("A renewed look shows edema.", set()),  # a word within a word
        ("New lines.", set()),  # of no finding
        ("", set()),
    ],
)  # fmt: skip
def test_find_changes(report, changes):
    assert llmrg4.find_changes(report, LABELER) == changes


def test_figures_by_scenario(folder, rows):
    figures = DEMO.measure(DEMO.read(str(folder), [0, 1], LABELER))
    for scenario in SCENARIOS:
        right = figures["scenarios"][TLW][scenario]
        assert right["studies"] == 12
        assert [right[name] for name in ("precision", "recall", "f1", "bleu-4", "rouge-l")] == pytest.approx([1] * 5)
        assert figures["scenarios"][PLAIN][scenario]["f1"] == 0
    lateral = figures["lateral_only"]
    number = sum(lateral[TLW][scenario]["findings"] for scenario in SCENARIOS)
    studies = [llmrg4.drawn_study(row["study_id"], {"seed": 5, "abnormal": 0.4, "balanced": True}) for row in rows]
    assert number == sum(len(study.lateral_only) for study in studies) > 0
    present = [row for row in lateral[TLW].values() if row["findings"]]
    assert all(row["recall"] == 1 for row in present)
    assert all(row["recall"] == 0 for row in lateral[PLAIN].values() if row["findings"])
    assert all(row["recall from the front"] == 1 for row in lateral[TLW].values())

    prior = figures["prior"]
    assert prior["references"] == prior[TLW]
    for scenario in ("sn", "mn"):
        assert prior[TLW][scenario]["reports that compare"] == 0
        assert prior[TLW][scenario]["comparisons, F1"] is None
    for scenario in ("sw", "mw"):
        assert prior[TLW][scenario]["comparisons, F1"] == 1
        assert prior[PLAIN][scenario]["comparisons, F1"] == 0
        assert prior[TLW][scenario]["reports that compare"] == np.mean(
            [bool(re.search(r"\b([Nn]ew|[Uu]nchanged|resolved)\b", row["report"])) for row in rows
             if row["scenario"] == scenario]
        )  # fmt: skip


def test_checks_and_page(folder, rows, tmp_path):
    reports = DEMO.read(str(folder), [0, 1], LABELER)
    figures = DEMO.compare(reports)
    checks = DEMO.check_all(figures, minutes=13.0, memory_gb=1.0)
    holds = [check["holds"] for check in checks if not check["name"].startswith("aim: recall of lateral-only")]
    assert holds == [True, True, True, True, False, True]  # the references are right, and 13 minutes too many
    assert sum(check["name"].startswith("aim:") for check in checks) == 2

    results = {"data": "phantom", "seeds": [0, 1], "stages": {"data": 3.0}, **figures}
    file = tmp_path / "index.html"
    write_page(file, "llmrg4", DEMO, results, checks, reports, str(folder))
    page = file.read_text()
    assert page.count('<section class="study box">') == 12 and page.count("<svg") == 1
    assert "GRPO" not in page and "SFT with TLW minus this" in page and "What only one input shows" in page
    shown = [rows[i] for i in choose_studies(np.asarray([row["labels"] for row in rows]))]
    assert page.count("prior report: ") == sum(row["scenario"][1] == "w" for row in shown)
    for tag in ("table", "tr", "td", "div", "section", "p"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag
