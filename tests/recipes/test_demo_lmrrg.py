"""LM-RRG's demo: its figures on reports whose scores are known, and its page; nothing is trained."""

import re

import numpy as np
import pytest
from demo_folders import score, write_reports

from recipes.build_phantom import BuildArguments, build_row
from recipes.data.schema import write_dataset
from recipes.demos import lmrrg
from recipes.demos.figures import pooled
from recipes.demos.lmrrg import BLEU, BLEU4, CQRL, FIXED, PAIRS, RADCLIQ, SHUFFLED, STAGE1, LMRRGDemo
from recipes.demos.page import write_page
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from rewards.labelers import LexicalLabeler
from rewards.radcliq import radcliq_lite_reward

DEMO, LABELER = LMRRGDemo(), LexicalLabeler()
ZERO, PERFECT = 2.450143, -1.440690  # RadCliQ v1 of four zeros and of four ones, from the published coefficients


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    args = BuildArguments(size=64, seed=5, balanced=True)
    return [build_row("test", i, "sn", args) for i in range(40)]


@pytest.fixture
def folder(rows, tmp_path, call):
    """Two seeds: after CQRL the reference itself, before it one normal report, with BLEU-4 the reference's half."""
    write_dataset({"test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "lexical"})
    reports = [row["report"] for row in rows]
    texts = {
        STAGE1: [NORMAL_REPORT] * len(rows),
        CQRL: reports,
        BLEU: [" ".join(report.split()[: len(report.split()) // 2]) for report in reports],
        FIXED: reports,
        SHUFFLED: reports[1:] + reports[:1],
    }
    log = [{"step": step, "reward": "0.5", "kl": 0.1} for step in range(1, 6)]
    write_reports(DEMO, tmp_path, texts, [row["study_id"] for row in rows], log)
    score(call, DEMO, tmp_path)
    return tmp_path


@pytest.fixture
def reports(folder):
    return DEMO.read(str(folder), [0, 1], LABELER)


@pytest.fixture
def figures(reports) -> dict:
    return DEMO.compare(reports)


def test_radcliq_is_that_of_the_reward(rows):
    """The reward is the affine transform of the score."""
    references = [row["report"] for row in rows]
    generated = [references[0], "", " ", NORMAL_REPORT, *references[5:]]
    references = references[: len(generated)]
    scores = lmrrg.radcliq_lite(generated, references)
    assert scores[:3] == pytest.approx([PERFECT, ZERO, ZERO], abs=1e-5)
    expected = radcliq_lite_reward(generated, report=references)
    assert np.clip((ZERO - scores) / (ZERO - PERFECT), 0, 1) == pytest.approx(expected, abs=1e-6)


def test_figures(figures, rows):
    table = figures["table3"]
    assert set(table) == {TEMPLATE, STAGE1, CQRL, BLEU, FIXED, SHUFFLED}
    assert table[STAGE1] == table[TEMPLATE]
    right = table[CQRL]
    assert [right[name] for name in ("BLEU-4", "ROUGE-L", BLEU4)] == pytest.approx([1, 1, 1], abs=1e-6)
    assert right[RADCLIQ] == pytest.approx(PERFECT, abs=1e-5)
    some = np.mean([1 in row["labels"] for row in rows])  # a report without a finding has no recall: 0/0 is 0
    assert right["recall"] == right["precision"] == pytest.approx(some)
    entry = pooled(figures["gains"], CQRL, STAGE1, RADCLIQ)
    assert entry["difference"] == pytest.approx(PERFECT - table[STAGE1][RADCLIQ])
    assert entry["low"] < entry["difference"] < entry["high"] < 0
    same = pooled(figures["gains"], CQRL, FIXED, BLEU4)
    assert same["difference"] == same["low"] == same["high"] == 0
    assert len(figures["gains"]) == len(PAIRS) * 2 * 3
    assert "format" not in figures["table"][CQRL]  # it writes no tags


def unseeing(figures: dict) -> dict:
    """The same, had other images given the same findings."""
    differences = [entry | {"low": -0.01} if entry["minus"] == SHUFFLED else entry for entry in figures["differences"]]
    return figures | {"differences": differences}


def test_checks_and_page(figures, reports, folder, tmp_path):
    checks = DEMO.check_all(figures, minutes=16.0, memory_gb=1.0)
    holds = {check["name"]: check["holds"] for check in checks}
    assert holds[f"{CQRL} minus {STAGE1}, {RADCLIQ}, high end of the 95 % interval"]
    assert holds[f"{BLEU} minus {CQRL}, {RADCLIQ}, low end of the 95 % interval"]
    assert holds[f"{CQRL} minus {SHUFFLED}, {RADCLIQ}, high end of the 95 % interval"]
    assert holds[f"{CQRL} minus {SHUFFLED}, micro-F1 13, low end of the 95 % interval"]
    assert not DEMO.check(unseeing(figures))[6]["holds"]
    assert not holds[f"aim: {BLEU} minus {CQRL}, {BLEU4}, low end of the 95 % interval"]  # the reference has BLEU 1
    assert not holds[f"aim: {CQRL} minus {FIXED}, {RADCLIQ}, high end of the 95 % interval"]  # they are the same
    assert not holds["wall time of one seed without installation, minutes"]

    results = {"data": "phantom", "seeds": [0, 1], "stages": {"data": 3.0}, **figures}
    file = tmp_path / "index.html"
    write_page(file, "lmrrg", DEMO, results, checks, reports, str(folder))
    page = file.read_text()
    assert page.count('<section class="study box">') == 12 and page.count("<svg") == 2
    assert "GRPO" not in page and "CQRL minus this" in page and "it is not RadCliQ" in page
    for tag in ("table", "tr", "td", "div", "section", "p"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag
