"""LLM-RG4's demo: its figures by scenario on studies whose answers are known, and its page; nothing is trained."""

import json
import re

import numpy as np
import pytest

from recipes.build_phantom import BuildArguments, build_row
from recipes.data.schema import read_split, write_dataset
from recipes.demos import scenarios as demo_scenarios
from recipes.demos.figures import compare_systems
from recipes.demos.page import choose_studies, write_page
from recipes.demos.scenarios import PLAIN, SHUFFLED, TLW
from rewards.labelers import LexicalLabeler
from rewards.scenarios import SCENARIOS

LABELER = LexicalLabeler()
NOTHING = "The heart is normal in size."


@pytest.fixture(scope="module")
def args() -> BuildArguments:
    return BuildArguments(size=64, seed=5, balanced=True)


@pytest.fixture(scope="module")
def rows(args) -> list[dict]:
    return [build_row("test", i, SCENARIOS[i % 4], args) for i in range(48)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, rows, args) -> str:
    folder = tmp_path_factory.mktemp("demo") / "data"
    build = {"labeler": "lexical", **vars(args)}
    write_dataset({"test": lambda: iter(rows)}, folder, build)
    return str(folder)


@pytest.fixture
def predictions(rows, tmp_path) -> dict:
    """Two seeds: with TLW the reference itself, without it that no finding is there, shuffled that of the next."""
    reports = [row["report"] for row in rows]
    texts = {TLW: reports, PLAIN: [NOTHING] * len(rows), SHUFFLED: reports[4:] + reports[:4]}
    files = {}
    for seed in (0, 1):
        for number, (name, own) in enumerate(texts.items()):
            file = tmp_path / f"{seed}-{number}.jsonl"
            lines = [{"study_id": row["study_id"], "completion": text} for row, text in zip(rows, own, strict=True)]
            file.write_text("\n".join(map(json.dumps, lines)))
            files.setdefault(seed, {})[name] = str(file)
    return files


def test_the_drawn_study_is_the_row_again(rows, args):
    for row in rows:
        assert list(demo_scenarios.drawn_study(row["study_id"], vars(args)).states) == row["labels"]


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
    assert demo_scenarios.find_changes(report, LABELER) == changes


def test_corpus_bleu_by_hand():
    # 4 of 4 words, 3 of 3 pairs, 2 of 2 triples, 1 of 1 quadruples, one word short of 5: brevity penalty exp(1 - 5/4)
    assert demo_scenarios.corpus_bleu(["a b c d"], ["a b c d e"]) == pytest.approx(np.exp(-0.25), rel=1e-6)


def test_figures_by_scenario(dataset, predictions, rows):
    figures = demo_scenarios.compare_scenarios(dataset, predictions, LABELER)
    for scenario in SCENARIOS:
        right = figures["scenarios"][TLW][scenario]
        assert right["studies"] == 12
        assert [right[name] for name in ("precision", "recall", "f1", "bleu-4", "rouge-l")] == pytest.approx([1] * 5)
        assert figures["scenarios"][PLAIN][scenario]["f1"] == 0
    lateral = figures["lateral_only"]
    number = sum(lateral[TLW][scenario]["findings"] for scenario in SCENARIOS)
    studies = [
        demo_scenarios.drawn_study(row["study_id"], {"seed": 5, "abnormal": 0.4, "balanced": True}) for row in rows
    ]
    assert number == sum(len(study.lateral_only) for study in studies) > 0
    known = [row for row in lateral[TLW].values() if row["findings"]]
    assert all(row["recall"] == 1 for row in known)
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


def test_checks_and_page(dataset, predictions, rows, tmp_path):
    figures = compare_systems(dataset, predictions, LABELER, own=TLW)
    figures |= demo_scenarios.compare_scenarios(dataset, predictions, LABELER)
    checks = demo_scenarios.make_checks(figures, minutes=13.0, minutes_bar=12, memory_gb=1.0)
    held = [check["holds"] for check in checks if not check["name"].startswith("recall of lateral-only")]
    assert held == [True, True, True, True, False, True]  # the references are right, and 13 minutes too many
    assert sum(check["name"].startswith("aim:") for check in checks) == 1

    results = {"data": "phantom", "seeds": [0, 1], "stages": {"data": 3.0}, **figures}
    history = [{"step": step, "loss": "1.0"} for step in range(1, 6)]
    file, curves = tmp_path / "index.html", {"loss": "Loss"}
    write_page(file, results, checks, read_split(dataset, "test"), predictions[0], {0: history, 1: history},
               template="demo_llmrg4.html.jinja", own=TLW, beside=PLAIN, curves=curves)  # fmt: skip
    page = file.read_text()
    assert page.count('<section class="study">') == 12 and page.count("<svg") == 1
    assert "GRPO" not in page and "SFT with TLW minus this" in page
    shown = [rows[i] for i in choose_studies(np.asarray([row["labels"] for row in rows]))]
    assert page.count("prior report: ") == sum(row["scenario"][1] == "w" for row in shown)
    for tag in ("table", "tr", "td", "div", "section", "p"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag
