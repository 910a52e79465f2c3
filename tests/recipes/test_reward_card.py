"""The reward card: injected errors by hand, agreement of known scores, and what is missing or broken."""

import json
import sys

import numpy as np
import pytest

from recipes import reward_card
from recipes.evaluation.error_injection import INJECTIONS, paraphrase
from recipes.evaluation.reward_card import (
    RadPref,
    Scorer,
    agreement,
    gaming,
    make_card,
    make_scorers,
    normal_share,
    preferred,
    radjudge,
    read_judgements,
    sensitivity,
)
from recipes.evaluation.reward_card_page import markdown, table
from recipes.files import InputError
from rewards import severity_reward
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, CheXpertState
from rewards.table import RewardArguments

REPORT = "Stable small left pleural effusion. The heart is normal. Right upper lobe nodule."


@pytest.mark.parametrize(
    ("kind", "report", "expected"),
    [
        ("false finding", "Small effusion. No pneumothorax.", "Small effusion. No pneumothorax. "
         "There is a fracture of the left sixth rib."),  # pneumothorax and effusion are spoken of already
        ("omission", REPORT, "The heart is normal. Right upper lobe nodule."),
        ("omission", "The heart is normal.", None),
        ("wrong place", REPORT, "Stable small right pleural effusion. The heart is normal. Right upper lobe nodule."),
        ("wrong place", "Left lung is clear.", None),  # no finding
        ("wrong severity", "Small effusion. Nodule.", "large effusion. Nodule."),
        ("invented comparison", REPORT, "Stable small left pleural effusion. The heart is normal. "
         "Right upper lobe nodule, increased since the prior study."),
        ("missing comparison", REPORT, "small left pleural effusion. The heart is normal. Right upper lobe nodule."),
        ("missing comparison", "Nodule.", None),
    ],
)  # fmt: skip
def test_injections(kind, report, expected):
    assert INJECTIONS[kind](report) == expected


def test_paraphrase_says_the_same():
    assert paraphrase("Cardiomegaly is noted.") == "enlarged heart is visible."
    assert paraphrase("Nodule.") is None
    texts = ["Cardiomegaly. Small left pleural effusion. No evidence of pneumothorax.", "Degenerative changes."]
    assert severity_reward([paraphrase(text) for text in texts], report=texts) == pytest.approx([1.0, 1.0])


def test_sensitivity_and_gaming_of_known_rewards():
    equal = Scorer("equal", lambda texts, report, **_: [float(a == b) for a, b in zip(texts, report, strict=True)])
    rows = sensitivity(equal, [REPORT, "Nodule."])
    assert rows["omission"] == {"reports": 1, "fall": 1.0, "unmoved": 0.0}  # of "Nodule." nothing would be left
    assert rows["wrong place"]["reports"] == 1
    blind = Scorer("blind", lambda texts, **_: [0.5] * len(texts))
    assert sensitivity(blind, [REPORT])["wrong severity"] == {"reports": 1, "fall": 0.0, "unmoved": 1.0}
    games = gaming(equal, [REPORT, "Nodule."])
    assert games["the correct report"] == 1 and games["best fixed report"] == 0
    assert games["its negatives alone"] == 0 and gaming(blind, [REPORT])["an empty report"] == 0.5


def studies(count: int = 6) -> list[dict]:
    """Studies whose C1 is right and rated 5, and whose C2 misses everything and is rated 1."""
    judged = {"finding_errors": {}, "missing_findings": {}}
    missed = {"0": {"clinical_significance": "urgent"}}
    return [
        {
            "ground_truth_report": f"{i + 3} mm nodule.",
            "C1_report": f"{i + 3} mm nodule.",
            "C2_report": "Clear lungs. No effusion.",
            "annotations": [{"C1": {**judged, "rating": 5}, "C2": {**judged, "missing_findings": missed, "rating": 1}}]
            * 3,
        }
        for i in range(count)
    ]


@pytest.fixture
def data(tmp_path):
    for name, rows in (
        ("radpref", studies()),
        (
            "radjudge",
            [
                {
                    "category": "A",
                    "ground_truth": "Nodule.",
                    "candidates": {"C1": {"text": "Nodule."}, "C2": {"text": "Normal.", "context": {"age": "80"}}},
                    "expected_ranking": rule,
                }
                for rule in ("C1 > C2", "C1 = C2", ["C1 > C2", "C2 > C1"])
            ],
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dev.json").write_text(json.dumps(rows))
    return tmp_path


def test_agreement_of_known_scores(data):
    radpref = RadPref(data / "radpref")
    assert radpref.burden.tolist() == [[0.0, 1.0]] * 6
    rows = agreement({"right": radpref.mean, "wrong": -radpref.mean, **radpref.baselines()}, radpref, resamples=20)
    assert rows["right"]["tau"] == pytest.approx(1) and rows["right"]["preferred"] == 1
    assert rows["right"]["burden_tau"] == pytest.approx(1)  # fewer errors, better
    assert rows["wrong"]["tau"] == pytest.approx(-1) and rows["wrong"]["difference"] == pytest.approx([-2, -2])
    assert rows["a constant"]["tau"] == 0 and rows["a constant"]["preferred"] == 0.5
    assert rows["radiologist 1 against the others"]["tau"] == pytest.approx(1)
    assert preferred(np.array([[1, 0], [0, 0], [0, 1]]), np.array([[5, 1], [5, 1], [3, 3]])) == 0.75  # a tie: one half


def test_radjudge_counts_strict_and_equal_apart(data):
    cases = read_judgements(data / "radjudge", {"category"})
    assert radjudge(Scorer("ours", severity_reward), cases)["by_category"] == {"A": [1, 3]}
    constant = radjudge(Scorer("a constant", lambda texts, **_: [0.0] * len(texts)), cases)
    assert constant["strict"] == [0, 2] and constant["equal"] == [1, 1]


def broken(completions, **kwargs):
    raise RuntimeError("no server\nat this address")


def silent(completions, **kwargs):
    return [None] * len(completions)


def verbose(completions, **kwargs):
    return ["a" * 100_000] * len(completions)


def test_a_reward_that_fails_loses_its_row_alone(data, monkeypatch):
    monkeypatch.setattr(
        "recipes.evaluation.reward_card.read_reports", lambda count, seed: {"Open-i": [REPORT, "Nodule."] * 5}
    )
    settings = RewardArguments(["severity", f"{__name__}.broken", f"{__name__}.silent", "crepe"], crepe="no/such")
    settings.rewards.append(f"{__name__}.verbose")
    card = make_card(settings, [LexicalLabeler()], data, resamples=10)
    assert list(card["cost"]) == ["severity"] and card["normal"] == {"Open-i": 0.0}
    assert card["failed"][f"{__name__}.broken"].endswith("raises RuntimeError: no server at this address")
    assert "gives 0 numbers for" in card["failed"][f"{__name__}.silent"]
    assert card["failed"]["crepe"].startswith(
        "crepe cannot be made: ValueError: no CREPE could be loaded from no/such"
    )
    assert len(card["problems"]) == 4 and all(len(sentence) < 700 for sentence in card["problems"])
    rows = table(card)
    assert rows[1][:2] == ["severity", "1.000"] and rows[1][5:7] == ["1 of 2", "0 of 1"]
    assert any(row[0] == f"{__name__}.broken: failed" for row in rows)
    assert markdown(rows).count("\n") == len(rows) + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "lacks a list of objects"),
        ('[{"C1_report": 1}]', "row 0, has another layout: it lacks C2_report, annotations, ground_truth_report"),
        ('[{"ground_truth_report": "a", "C1_report": "", "C2_report": "", "annotations": [{"C1": {}}]}]', "layout"),
    ],
)
def test_judgements_of_another_layout(tmp_path, content, message):
    (tmp_path / "dev.json").write_text(content)
    with pytest.raises(InputError, match=message):
        RadPref(tmp_path)


@pytest.mark.parametrize("name", ["nothing_reward", "no.such.module", "rewards.README", "json.decoder"])
def test_unknown_rewards_are_named(name):
    with pytest.raises(InputError, match=f"{name}"):
        make_scorers(RewardArguments([name]), [LexicalLabeler()], [])


class OpacityLabeler:
    """Everything has a lung opacity, and nothing else."""

    name = "opacity"

    def __call__(self, texts):
        return np.eye(14, dtype=int)[[CONDITIONS.index("Lung Opacity")] * len(texts)] * CheXpertState.POSITIVE


def test_a_reward_of_labels_has_a_row_for_each_labeler():
    """With the second labeler all reports are alike, those of the column `labels` too."""
    settings = RewardArguments(["mccs", "ce_f1", "positive_f1", "severity"])
    scorers, failed = make_scorers(settings, [LexicalLabeler(), OpacityLabeler()], [])
    labelled = [row for name in settings.rewards[:3] for row in (name, f"{name}, opacity")]
    assert list(scorers) == [*labelled, "severity"] and not failed
    for name in settings.rewards[:3]:
        assert scorers[name](["Clear lungs."], ["Large effusion."]) == 0
        assert scorers[f"{name}, opacity"](["Clear lungs."], ["Large effusion."]) == pytest.approx(1)


def test_a_fixed_report_earns_the_share_of_normal_studies():
    texts = ["Clear lungs.", "No effusion.", "Nodule.", "No acute disease."]
    assert normal_share(texts) == 0.75
    scorer = Scorer("ours", severity_reward)
    assert np.mean(scorer(["The heart is normal. No effusion."] * 4, texts)) == pytest.approx((3 + 0.05 / 0.55) / 4)


def test_the_card_without_judgements(tmp_path, monkeypatch, capsys):
    """What the data folder lacks is said; the page, the table and the figures are there."""
    out = tmp_path / "card"
    arguments = ["--rewards", "severity", "--data", tmp_path / "none", "--out", out, "--reports", "12"]
    monkeypatch.setattr(sys, "argv", ["reward_card.py", *map(str, arguments)])
    reward_card.main()
    assert "agreement with radiologists was not measured" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["agreement"] == {} and results["reports"] == {"Open-i": 12, "phantom": 12}
    assert [check["holds"] for check in results["checks"]] == [None, None, True]
    page = (out / "index.html").read_text()
    assert page.count("data:image/png") == 1 and "Not measured:" in page
    assert "severity" in (out / "table.md").read_text()
