"""LM-RRG's demo: its figures on reports whose scores are known, and its page; nothing is trained."""

import json
import re

import numpy as np
import pytest

from recipes.build_phantom import BuildArguments, build_row
from recipes.data.schema import read_split, write_dataset
from recipes.demos import table3 as demo_table3
from recipes.demos.figures import compare_systems
from recipes.demos.page import write_page
from recipes.demos.table3 import BLEU, BLEU4, CQRL, FIXED, PAIRS, RADCLIQ, SHUFFLED, STAGE1
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from rewards.labelers import LexicalLabeler
from rewards.radcliq import radcliq_lite_reward

LABELER = LexicalLabeler()
ZERO, PERFECT = 2.450143, -1.440690  # RadCliQ v1 of four zeros and of four ones, from the published coefficients


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    args = BuildArguments(size=64, seed=5, balanced=True)
    return [build_row("test", i, "sn", args) for i in range(40)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, rows) -> str:
    folder = tmp_path_factory.mktemp("demo") / "data"
    write_dataset({"test": lambda: iter(rows)}, folder, {"labeler": "lexical"})
    return str(folder)


@pytest.fixture(scope="module")
def predictions(rows, tmp_path_factory) -> dict:
    """Two seeds: after CQRL the reference itself, before it one normal report, with BLEU-4 the reference's half."""
    reports = [row["report"] for row in rows]
    texts = {
        STAGE1: [NORMAL_REPORT] * len(rows),
        CQRL: reports,
        BLEU: [" ".join(report.split()[: len(report.split()) // 2]) for report in reports],
        FIXED: reports,
        SHUFFLED: reports[1:] + reports[:1],
    }
    folder, files = tmp_path_factory.mktemp("reports"), {}
    for seed in (0, 1):
        for number, (name, own) in enumerate(texts.items()):
            file = folder / f"{seed}-{number}.jsonl"
            lines = [{"study_id": row["study_id"], "completion": text} for row, text in zip(rows, own, strict=True)]
            file.write_text("\n".join(map(json.dumps, lines)))
            files.setdefault(seed, {})[name] = str(file)
    return files


@pytest.fixture(scope="module")
def figures(dataset, predictions) -> dict:
    known = compare_systems(dataset, predictions, LABELER, own=CQRL)
    return known | demo_table3.compare_rewards(dataset, predictions, LABELER)


def test_radcliq_is_that_of_the_reward(rows):
    """The reward is the affine transform of the score."""
    references = [row["report"] for row in rows]
    generated = [references[0], "", " ", NORMAL_REPORT, *references[5:]]
    references = references[: len(generated)]
    found = demo_table3.radcliq_lite(generated, references)
    assert found[:3] == pytest.approx([PERFECT, ZERO, ZERO], abs=1e-5)
    expected = radcliq_lite_reward(generated, report=references)
    assert np.clip((ZERO - found) / (ZERO - PERFECT), 0, 1) == pytest.approx(expected, abs=1e-6)


def test_figures(figures, rows):
    table = figures["table3"]
    assert set(table) == {TEMPLATE, STAGE1, CQRL, BLEU, FIXED, SHUFFLED}
    assert table[STAGE1] == table[TEMPLATE]
    right = table[CQRL]
    assert [right[name] for name in ("BLEU-4", "ROUGE-L", BLEU4)] == pytest.approx([1, 1, 1], abs=1e-6)
    assert right[RADCLIQ] == pytest.approx(PERFECT, abs=1e-5)
    some = np.mean([1 in row["labels"] for row in rows])  # a report without a finding has no recall: 0/0 is 0
    assert right["recall"] == right["precision"] == pytest.approx(some)
    entry = demo_table3.gain(figures, CQRL, STAGE1, RADCLIQ)
    assert entry["difference"] == pytest.approx(PERFECT - table[STAGE1][RADCLIQ])
    assert entry["low"] < entry["difference"] < entry["high"] < 0
    same = demo_table3.gain(figures, CQRL, FIXED, BLEU4)
    assert same["difference"] == same["low"] == same["high"] == 0
    assert len(figures["gains"]) == len(PAIRS) * 2 * 3


def unseeing(figures: dict) -> dict:
    """The same, had other images given the same findings."""
    differences = [each | {"low": -0.01} if each["minus"] == SHUFFLED else each for each in figures["differences"]]
    return figures | {"differences": differences}


def test_checks_and_page(figures, dataset, predictions, tmp_path):
    checks = demo_table3.make_checks(figures, minutes=16.0, minutes_bar=15, memory_gb=1.0)
    held = {check["name"]: check["holds"] for check in checks}
    assert held[f"{CQRL} minus {STAGE1}, {RADCLIQ}, high end of the 95 % interval"]
    assert held[f"{BLEU} minus {CQRL}, {RADCLIQ}, low end of the 95 % interval"]
    assert held[f"{CQRL} minus {SHUFFLED}, {RADCLIQ}, high end of the 95 % interval"]
    assert held[f"{CQRL} minus {SHUFFLED}, micro-F1 13, low end of the 95 % interval"]
    assert not demo_table3.make_checks(unseeing(figures), 1.0, 15, 1.0)[6]["holds"]
    assert not held[f"aim: {BLEU} minus {CQRL}, {BLEU4}, low end of the 95 % interval"]  # the reference has BLEU 1
    assert not held[f"aim: {CQRL} minus {FIXED}, {RADCLIQ}, high end of the 95 % interval"]  # they are the same
    assert not held["wall time of one seed without installation, minutes"]

    results = {"data": "phantom", "seeds": [0, 1], "stages": {"data": 3.0}, **figures}
    history = [{"step": step, "reward": "0.5", "kl": 0.1} for step in range(1, 6)]
    file, curves = tmp_path / "index.html", {"reward": "Reward", "kl": "KL"}
    write_page(file, results, checks, read_split(dataset, "test"), predictions[0], {0: history, 1: history},
               template="demo_lmrrg.html.jinja", own=CQRL, beside=STAGE1, curves=curves)  # fmt: skip
    page = file.read_text()
    assert page.count('<section class="study">') == 12 and page.count("<svg") == 2
    assert "GRPO" not in page and "CQRL minus this" in page and "it is not RadCliQ" in page
    for tag in ("table", "tr", "td", "div", "section", "p"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag
