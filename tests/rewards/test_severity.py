"""The severity reward: what is read from a report, hand-worked values of the formula, and what it must never pay."""

import json
import os
import pickle
import random
import time
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from rewards import severity_reward
from rewards.findings import FindingReader
from rewards.guard import check_reward
from rewards.severity import SeverityReward, attribute_errors, compare, severity_in_context

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
read = FindingReader()


def data(path: str):
    if not (DATA / path).is_file():
        pytest.skip(f"RRG_DATA has no {path}")
    return json.loads((DATA / path).read_text())


def findings(text: str) -> str:
    """The findings of a text in short, such as "actionable effusion left 1"."""
    lines = []
    for finding in read([text])[0].findings:
        parts = [finding.severity, "/".join(sorted(finding.concepts))]
        for name in ("sides", "places", "sizes", "millimeters", "changes"):
            parts += [str(value).removesuffix(".0") for value in sorted(getattr(finding, name))]
        marks = [mark for mark in ("bad", "denied") if getattr(finding, mark)]
        lines.append(" ".join([*parts, *marks, *([] if finding.certain else ["?"])]))
    return "; ".join(lines)


def value(report: str, reference: str, **context) -> float:
    return compare(*read([report, reference]), **context).value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Small left pleural effusion.", "actionable effusion left 1"),
        ("There is a trace effusion on the right.", "minor effusion right 1"),
        ("Moderate bilateral effusions and left basilar atelectasis.", "actionable effusion left right 2; "
         "minor atelectasis left lower"),
        ("No effusion. The heart is not enlarged.", ""),
        ("The cardiac silhouette is mildly enlarged.", "actionable cardiomegaly 1"),
        ("Heart size is stable.", ""),  # says nothing of its size
        ("The cardiomediastinal silhouette is enlarged.", "actionable cardiomegaly/wide mediastinum"),
        ("Opacities consistent with pulmonary edema.", "actionable edema"),  # explained
        ("Right opacity which may be pneumonia.", "actionable consolidation/opacity right ?"),  # in doubt
        ("Right basilar opacity. This may represent atelectasis.", "actionable atelectasis/opacity right lower ?"),
        ("Nodular airspace opacities.", "actionable lesion/opacity"),
        ("12 mm nodule in the right lower lobe.", "actionable lesion right lower 12"),
        ("Mass of 3.2 x 2.1 cm.", "actionable lesion 32"),
        ("Possible pneumothorax.", "urgent pneumothorax ?"),
        ("Small apical pneumothorax.", "actionable pneumothorax upper 1"),
        ("Tension pneumothorax.", "urgent pneumothorax 3"),
        ("Old healed rib fractures.", "minor fracture"),
        ("Enlarged bilateral hilar lymph nodes.", "actionable adenopathy left right middle"),
        ("The effusion has increased since the prior study.", "actionable effusion worse"),
        ("Increased opacity at the left base.", "actionable opacity left lower"),  # more than what?
        ("Unchanged small effusion without significant change.", "actionable effusion 1 same"),
        ("Endotracheal tube tip 5 cm above the carina.", "minor endotracheal tube 50"),
        ("Endotracheal tube in the right mainstem bronchus.", "urgent endotracheal tube right bad"),
        ("Endotracheal tube 9 cm above the carina.", "urgent endotracheal tube 90 bad"),
        ("Right PICC, tip in the SVC.", "minor central line right"),
        ("Left pacemaker with leads in the right atrium.", "minor pacemaker left"),
        ("Aortic atherosclerosis. Degenerative changes of the spine.", "expected aorta; expected degenerative"),
        ("Effusion. Small left effusion. The effusion is stable.", "actionable effusion left 1 same"),  # one thing
        ("No effusion. Large effusion.", "actionable effusion 3 denied"),
        ("No right effusion. Left effusion.", "actionable effusion left"),  # no contradiction
        ("No acute fracture. Old rib fracture.", "minor fracture"),
        ("Vascular congestion without overt edema.", "actionable edema"),
        ("The lungs are clear. Right pneumonia.", "actionable consolidation right denied"),
        ("The lungs are otherwise clear. Right pneumonia.", "actionable consolidation right"),
        ("INDICATION: Pneumonia.\n\nFINDINGS: Scarring.", "minor scar"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_is_read(text, expected):
    assert findings(text) == expected


@pytest.mark.parametrize(("text", "speaks"), [("Lungs are clear.", True), ("No effusion.", True), ("Hello.", False)])
def test_speaks(text, speaks):
    assert read([text])[0].speaks == speaks


# Weights: urgent 1, actionable .5, minor .25, expected .1, a normal chest .05. Credit w²/(w + errors), errors .1 to 1.
HAND = [
    ("Left effusion.", "Left effusion.", (0.5 + 0.05) / (0.5 + 0.05)),
    ("No effusion.", "Left effusion.", 0.05 / 0.55),  # missed: C is 0
    ("No effusion.", "The lungs are clear.", 1.0),  # normal and normal
    ("Left effusion.", "The lungs are clear.", 0.05 / 0.55),  # false: F is .5
    ("Effusion. Edema.", "Effusion.", 0.55 / 1.05),
    ("Effusion. Pneumothorax.", "Effusion.", 0.55 / 1.55),  # the urgent one costs twice as much
    ("Effusion. Blunted costophrenic angle.", "Effusion.", 0.55 / 0.8),  # another name for it: half of .5
    ("Right effusion.", "Left effusion.", (0.25 / 1.5 + 0.05) / 0.55),  # the opposite side: 1
    ("Right effusion.", "Bilateral effusions.", (0.25 / 1.0 + 0.05) / 0.55),  # one of two: .5
    ("Effusion.", "Left effusion.", (0.25 / 0.6 + 0.05) / 0.55),  # left out: .1
    ("Left effusion.", "Effusion.", 1.0),  # detail that the reference does not have is no error
    ("Large effusion.", "Small effusion.", (0.25 / 1.0 + 0.05) / 0.55),  # two grades: .5
    ("Moderate effusion.", "Small effusion.", (0.25 / 0.6 + 0.05) / 0.55),  # one: .1
    ("Left upper lobe opacity.", "Left lower lobe opacity.", (0.25 / 1.0 + 0.05) / 0.55),
    ("Right opacity.", "Right pneumonia.", (0.25 / 1.5 + 0.05) / 0.55),  # a sign for the diagnosis: 1
    ("Consolidation.", "Pneumonia.", 1.0),
    ("14 mm nodule.", "12 mm nodule.", 1.0),  # 4 mm are nothing
    ("17 mm nodule.", "12 mm nodule.", (0.25 / 1.0 + 0.05) / 0.55),
    ("28 mm nodule.", "32 mm mass.", (0.25 / 1.0 + 0.05) / 0.55),  # across 3 cm
    ("Possible effusion.", "Effusion.", (0.25 / 0.6 + 0.05) / 0.55),
    ("Effusion has increased since the prior study.", "Effusion has decreased since the prior study.",
     (0.25 / 1.0 + 0.05) / 0.55),
    ("Stable effusion.", "Effusion.", (0.25 / 0.6 + 0.05) / 0.55),  # an invented comparison: .1
    ("Endotracheal tube in standard position.", "Endotracheal tube in the right mainstem bronchus.",
     (1 / 2.1 + 0.05) / 1.05),  # position 1, and the side is left out: .1
    ("No effusion. Large effusion.", "Large effusion.", 0.05 / 1.05),  # denied: no credit, and costs .5
    ("Atelectasis.", "Atelectasis. Left effusion. Aortic atherosclerosis.", (0.25 + 0.05) / (0.85 + 0.05)),
    ("", "Left effusion.", 0.0),
    ("", "The lungs are clear.", 0.0),
    ("Good morning.", "The lungs are clear.", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("report", "reference", "expected"), HAND)
def test_values_worked_by_hand(report, reference, expected):
    assert value(report, reference) == pytest.approx(expected)
    assert severity_reward([report], report=[reference]) == pytest.approx([expected])


def test_a_comparison_says_where_the_value_comes_from():
    found = compare(*read(["Large left effusion. Edema.", "Small left effusion. Fracture."]))
    ((effusion, _, errors, credit),) = found.matches
    assert effusion.sides == {"left"} and errors == {"size": 0.5} and credit == pytest.approx(0.25)
    assert [finding.concepts for finding in found.missing] == [{"fracture"}]
    assert [(finding.concepts, cost) for finding, cost in found.false] == [({"edema"}, 0.5)]
    assert (found.earned, found.attainable, found.cost) == pytest.approx((0.25, 1.0, 0.5))
    assert found.value == pytest.approx(0.3 / 1.55)


# RadJudge's ten kinds of case in sentences of our own: best report first, then worse ones, "=" where they are equal.
KINDS = [
    ("Atelectasis.", ["Fracture.", "Fracture. Edema. Effusion."], "false findings add up"),
    ("Right effusion.", ["Edema. Fracture.", "Edema. Fracture. Pneumothorax."], "by severity"),
    ("8 mm nodule. No effusion. Heart size is normal.",
     ["8 mm nodule.", "No effusion. Heart size is normal."], "the finding, not the negatives"),
    ("Rib fracture.", ["Rib fracture.", "=", "Rib fracture. No pneumothorax. The heart is normal."], "add nothing"),
    ("Pneumothorax.", ["No effusion. Heart size is normal.", "=", "Clear lungs. No fracture."], "nor when missed"),
    ("Large left effusion. Mild cardiomegaly.",
     ["The heart is mildly enlarged. There is a large collection of pleural fluid on the left.", "=",
      "Mild cardiac enlargement with large left effusion."], "paraphrases"),
    ("The lungs are clear. The heart and mediastinum are normal. No effusion or pneumothorax. No fracture.",
     ["No acute abnormality.", "=", "Normal heart size. No consolidation."], "a normal study in any words"),
    ("Opacity.", ["Left opacity.", "=", "Opacity."], "detail beyond the reference"),
    ("Bilateral consolidation.", ["Consolidation in both lungs.", "Left consolidation.", "Clear lungs."], "one side"),
    ("4.0 cm mass.", ["4.4 cm mass.", "1.0 cm nodule.", "No mass."], "measurements"),
    ("2.0 cm pneumothorax.", ["1.6 cm pneumothorax.", "6 cm pneumothorax."], "of another finding"),
    ("Left pneumonia.", ["Left pneumonia.", "Left opacity.", "The lungs are clear."], "precision"),
    ("Pneumothorax.", ["Pneumothorax.", "Lucency.", "Normal."], "a sign for the diagnosis"),
    ("Tension pneumothorax. Small effusion.",
     ["Tension pneumothorax. Large effusion.", "Small pneumothorax. Small effusion."], "the graver error"),
    ("Endotracheal tube in the right mainstem bronchus. Atelectasis.",
     ["Endotracheal tube in the right mainstem bronchus.", "Endotracheal tube well placed. Atelectasis."], "devices"),
    ("Significant effusion.", ["Significant effusion.", "Small effusion.", "No effusion."], "degrees"),
    ("Endotracheal tube in appropriate position.",
     ["Endotracheal tube in appropriate position.", "=", "Endotracheal tube tip 4 cm above the carina."], "place"),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "reports", "reason"), KINDS)
def test_kinds_of_radjudge(reference, reports, reason):
    ranks = [report for report in reports if report != "="]
    values = [value(report, reference) for report in ranks]
    for i, (better, worse) in enumerate(pairwise(values)):
        if "=" in reports and reports.index("=") == i + 1:
            assert better == pytest.approx(worse, abs=0.01), reason
        else:
            assert better > worse + 0.01, reason


@pytest.mark.parametrize(
    ("text", "age", "indication", "expected"),
    [
        ("Aortic atherosclerosis.", None, None, "expected"),
        ("Aortic atherosclerosis.", 82, "Preoperative evaluation", "expected"),
        ("Aortic atherosclerosis.", 25, "Chest pain", "minor"),
        ("Osteopenia.", 80, None, "expected"),
        ("Rib fracture.", 4, "Crying", "urgent"),
        ("Rib fracture.", 80, "After resuscitation", "minor"),
        ("Rib fracture.", 40, "Cough", "actionable"),
        ("Pneumomediastinum.", 60, "After open heart surgery", "minor"),
        ("Pneumomediastinum.", 30, "Road accident", "urgent"),
        ("Tension pneumothorax.", 60, "After biopsy", "urgent"),  # no procedure explains that away
        ("Trace effusion.", 30, "Fall from a ladder", "actionable"),
    ],
)
def test_severity_in_context(text, age, indication, expected):
    assert severity_in_context(read([text])[0].findings[0], age, indication) == expected


def test_context_columns_are_used_where_there_are_any():
    missed = {"completions": ["No effusion."] * 3, "report": ["Rib fracture."] * 3}
    values = severity_reward(**missed, age=["004Y", 80.0, None], indication=["Crying", "After resuscitation", None])
    assert values == pytest.approx([0.05 / 1.05, 0.05 / 0.3, 0.05 / 0.55])
    assert severity_reward(**missed) == pytest.approx([0.05 / 0.55] * 3)
    assert severity_reward(["No effusion."], report=["Rib fracture."], age=["018M"]) == pytest.approx([0.05 / 1.05])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "needs the data set's column 'report'"),
        ({"report": ["a", "b"]}, "1 completions but 2 references"),
        ({"report": [" "]}, "row 0 of column 'report' is an empty text"),
        ({"report": ["Edema."], "age": [1, 2]}, "1 completions but 2 of 'age'"),
        ({"report": ["Edema."], "indication": []}, "1 completions but 0 of 'indication'"),
        ({"report": ["Edema."], "age": ["old"]}, "row 0: age must be a number of years or a DICOM age"),
    ],
)
def test_bad_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        severity_reward(["Edema."], **columns)
    with pytest.raises(ValueError, match="untagged must be"):
        SeverityReward(untagged="half")


# --- gaming ---------------------------------------------------------------------------------------------------------

REFERENCES = [
    "Large left effusion. No pneumothorax. The heart is normal in size.",
    "Cardiomegaly with mild edema. No effusion.",
    "The lungs are clear. No effusion or pneumothorax. Heart size is normal.",
    "Right upper lobe nodule. Old rib fractures. No consolidation.",
    "Endotracheal tube 4 cm above the carina. Bibasilar atelectasis. No pneumothorax.",
    "Aortic atherosclerosis. The lungs are clear.",
]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(
    ("denial", "finding"),
    [
        ("No effusion.", "Large effusion."),
        ("No pneumothorax.", "There is a pneumothorax."),
        ("The heart is normal in size.", "The heart is enlarged."),
        ("The heart is normal in size.", "Cardiomegaly."),
        ("No nodule.", "Right upper lobe nodule."),
        ("The lungs are clear.", "Right lower lobe pneumonia."),
        ("No aortic atherosclerosis.", "Aortic atherosclerosis."),
        ("No atelectasis.", "Bibasilar atelectasis."),
    ],
)
def test_a_contradiction_earns_less_than_either_half(reference, denial, finding):
    for text in (f"{denial} {finding}", f"{finding} {denial}"):
        assert value(text, reference) < min(value(denial, reference), value(finding, reference))


@pytest.mark.parametrize("reference", REFERENCES)
def test_what_is_no_report_earns_little(reference):
    correct = value(reference, reference)
    assert correct == 1
    negatives = " ".join(
        part + "." for part in reference.split(".") if part.strip().lower().startswith(("no ", "the"))
    )
    assert value(negatives, reference) <= correct
    assert value("effusion pneumothorax edema cardiomegaly nodule fracture pneumonia", reference) < 0.25
    assert value(" ".join([reference] * 5), reference) == correct  # to repeat it earns nothing


def test_a_self_contradictory_reference_can_still_be_met():
    text = "No effusion. Large effusion."
    assert value(text, text) == 1


def test_no_fixed_report_earns_much():
    """On the references of RadPref: the vaguest words for what is most frequent, alone and together."""
    references = read([study["ground_truth_report"] for study in data("radpref/dev.json")])
    parts = [
        "Mild cardiomegaly.",
        "Opacity.",
        "Bibasilar opacities.",
        "Atelectasis.",
        "Effusion.",
        "Low lung volumes.",
    ]
    texts = [
        "Lungs are clear.",
        *parts,
        *map(" ".join, combinations(parts, 2)),
        *map(" ".join, combinations(parts, 3)),
    ]
    means = [np.mean([compare(report, reference).value for reference in references]) for report in read(texts)]
    assert max(means) <= 0.25, texts[int(np.argmax(means))]


def test_more_errors_never_earn_more():
    text = "Large left effusion."
    values = []
    for extra in ("", " Edema.", " Rib fracture.", " Cardiomegaly.", " Right nodule."):
        text += extra
        values.append(value(text, "Large left effusion. Atelectasis."))
    assert values == sorted(values, reverse=True) and len(set(values)) == 5


PARTS = [
    *("Small left effusion.", "Large right effusion.", "No effusion.", "Possible pneumonia.", "Stable cardiomegaly."),
    *("12 mm nodule.", "30 mm mass.", "Bibasilar atelectasis.", "Old rib fracture.", "Lungs are clear.", "Edema"),
    *("Endotracheal tube in the right mainstem bronchus.", "which may be", "no", "and", "\u00ad", "HISTORY:", "\n\n"),
]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(PARTS), max_size=9), st.lists(st.sampled_from(PARTS), min_size=1, max_size=9))
def test_properties(report, reference):
    report, reference = " ".join(report), " ".join(reference)
    found = compare(*read([report, reference]))
    assert 0 <= found.value <= 1
    assert found.earned <= found.attainable + 1e-12
    itself = compare(*read([reference, reference]))
    assert itself.value == (1.0 if read([reference])[0].speaks else 0.0)
    errors = [attribute_errors(finding, finding) for finding in read([report])[0].findings]
    assert not any(errors)


# --- contract -------------------------------------------------------------------------------------------------------


def test_the_contract():
    columns = {
        "completions": ["<report>Small left effusion.</report>", "Clear lungs.", "Edema. Cardiomegaly.", "Effusion."],
        "report": ["Left effusion.", "No pneumothorax.", "Cardiomegaly.", "Large right effusion."],
    }
    assert "passed: 4 rows" in check_reward(severity_reward, columns)
    assert severity_reward.__name__ == "severity_reward"
    assert severity_reward(["Effusion."], report=[None]) == [None]
    assert severity_reward([], report=[]) == []


def test_pickles_without_its_memory():
    reward = SeverityReward(untagged="zero")
    expected = reward(["Effusion.", "<report>Effusion.</report>"], report=["Effusion."] * 2)
    assert expected == [0.0, 1.0]
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.untagged == "zero" and not copy.reader.results
    assert copy(["Effusion.", "<report>Effusion.</report>"], report=["Effusion."] * 2) == expected


@pytest.mark.parametrize(
    "unit", ["effusion ", "no effusion, ", "opacity may be pneumonia or edema ", "left. ", "1 cm "]
)
def test_time_is_linear(unit):
    read([unit * 50])
    start = time.process_time()
    read([unit * 5_000])
    assert time.process_time() - start < 4.0  # seconds on a slow, shared core; quadratic time would take minutes


def test_a_report_takes_less_than_a_millisecond():
    random.seed(1)
    texts = [" ".join(random.sample(PARTS[:12], 6)) + f" {i} mm nodule in the left lobe." for i in range(400)]
    start = time.process_time()
    severity_reward(texts, report=texts[::-1])
    assert (time.process_time() - start) / len(texts) < 2e-3  # twice the bar, for a slow, shared core


# --- radiologists ---------------------------------------------------------------------------------------------------


def test_agrees_with_radiologists():
    ours, ratings = [], []
    for study in data("radpref/dev.json"):
        for candidate in ("C1", "C2"):
            ours += severity_reward([study[f"{candidate}_report"]], report=[study["ground_truth_report"]])
            ratings.append(np.mean([annotation[candidate]["rating"] for annotation in study["annotations"]]))
    assert kendalltau(ours, ratings).statistic >= 0.66


def test_passes_radjudge():
    passed = {"strict": [], "equal": []}
    for case in data("radjudge/dev.json"):
        if case["category"] == "Patient Context Sensitivity":
            continue
        values = {
            name: severity_reward([candidate["text"]], report=[case["ground_truth"]])[0]
            for name, candidate in case["candidates"].items()
        }
        rules = case["expected_ranking"]
        rules = [rule.split() for rule in ([rules] if isinstance(rules, str) else rules)]
        holds = all(
            values[a] > values[b] if sign == ">" else abs(values[a] - values[b]) < 0.01 for a, sign, b in rules
        )
        passed["equal" if any(sign == "=" for _, sign, _ in rules) else "strict"].append(holds)
    assert sum(passed["strict"]) >= 11 and sum(passed["equal"]) >= 5
