import json
import os
from pathlib import Path

import numpy as np
import pytest

from rewards.clinical_efficacy import clinical_efficacy
from rewards.labels import CONDITIONS, CheXpertState

EFFUSION, EDEMA = CONDITIONS.index("Pleural Effusion"), CONDITIONS.index("Edema")


def rows(*findings: dict[int, int]) -> np.ndarray:
    states = np.zeros((len(findings), 14), dtype=int)
    for row, finding in zip(states, findings, strict=True):
        for column, state in finding.items():
            row[column] = state
    return states


def test_worked_by_hand():
    reference = rows({EFFUSION: 1, EDEMA: 1}, {EFFUSION: 1}, {EDEMA: 2})
    generated = rows({EFFUSION: 1}, {EFFUSION: 3, EDEMA: 1}, {})
    result = clinical_efficacy(generated, reference, "13")
    # effusion: tp 2, fp 0, fn 0; edema: tp 0, fp 1, fn 1
    assert result["micro"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})
    assert result["macro"]["f1"] == pytest.approx(1 / 13)  # effusion 1, edema 0, eleven labels 0/0 = 0
    assert result["weighted"]["recall"] == pytest.approx(2 / 3)  # supports 2 and 1
    assert result["example"]["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)  # the third report has no positive
    assert result["Pleural Effusion"] == {"precision": 1, "recall": 1, "f1": 1, "support": 2}
    strict = clinical_efficacy(generated, reference, "13", uncertain_positive=False)
    assert strict["micro"] == pytest.approx({"precision": 0.5, "recall": 1 / 3, "f1": 0.4})  # tp 1, fp 1, fn 2


def test_label_sets():
    states = rows({13: 1})
    assert clinical_efficacy(states, states, "14")["micro"]["f1"] == 1
    assert clinical_efficacy(states, states, "13")["micro"]["f1"] == 0  # No Finding is not among them
    assert set(clinical_efficacy(states, states, "5")) & set(CONDITIONS) == {
        "Cardiomegaly",
        "Edema",
        "Consolidation",
        "Atelectasis",
        "Pleural Effusion",
    }


@pytest.mark.parametrize("shape", [(0, 14), (2, 13), (2,)])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shapes"):
        clinical_efficacy(np.zeros(shape, int), np.zeros(shape, int))


# Labels and published averages of RadEval's test_f1chexbert.py (github.com/jbdel/RadEval, commit e0a39097, MIT).
PUBLISHED_GENERATED = [["No Finding"], ["No Finding"], ["Edema", "Atelectasis"], ["Consolidation"], []]
PUBLISHED_REFERENCE = [
    ["No Finding"],
    ["Cardiomegaly"],
    ["Cardiomegaly"],
    ["Consolidation"],
    ["Lung Opacity", "Lung Lesion"],
]
PUBLISHED = {
    "14": {
        "micro": 0.36363636363636365,
        "macro": 0.11904761904761904,
        "weighted": 0.27777777777777773,
        "example": 0.4,
    },
    "5": {"micro": 0.3333333333333333, "macro": 0.2, "weighted": 0.3333333333333333, "example": 0.2},
}


@pytest.mark.parametrize("label_set", PUBLISHED)
def test_published_averages(label_set):
    generated, reference = (
        rows(*({CONDITIONS.index(name): CheXpertState.POSITIVE for name in names} for names in reports))
        for reports in (PUBLISHED_GENERATED, PUBLISHED_REFERENCE)
    )
    result = clinical_efficacy(generated, reference, label_set)
    assert {name: result[name]["f1"] for name in PUBLISHED[label_set]} == pytest.approx(
        PUBLISHED[label_set], abs=1e-12
    )


# --- published values -----------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def read(name: str) -> dict:
    if not (DATA / name).is_file():
        pytest.skip(f"needs {name} in $RRG_DATA")
    return json.loads((DATA / name).read_text())


def test_averages_published_by_radeval():
    published = read("radeval_expected/expected_values_from_tests.json")["f1chexbert"]
    reference, generated = (
        rows(*({CONDITIONS.index(name): 1 for name in names} for names in published[f"{side}_labels_inferred"]))
        for side in ("ref", "hyp")
    )
    for label_set, theirs in (("14", "all"), ("5", "five")):
        found = clinical_efficacy(generated, reference, label_set)
        ours = {name: found["example" if name == "samples" else name]["f1"] for name in published["expected"][theirs]}
        assert ours == pytest.approx(published["expected"][theirs], abs=1e-12)


def test_figures_published_with_their_counts():
    """382 reports of one system: true and false positives and false negatives of each label, and what follows."""
    published = read("mrg_rl/dev/clinical_metrics.json")["chexbert"]
    reference, generated = np.zeros((382, 14), int), np.zeros((382, 14), int)
    for name, label in published["per_label"].items():
        column, (tp, fp, fn) = CONDITIONS.index(name), (label[count] for count in ("tp", "fp", "fn"))
        generated[: tp + fp, column] = 1
        reference[:tp, column] = reference[tp + fp : tp + fp + fn, column] = 1
    found = clinical_efficacy(generated, reference, "14")
    for name, label in published["per_label"].items():
        assert [found[name][x] for x in ("precision", "recall", "f1")] == pytest.approx(
            [label[x] for x in ("precision", "recall", "f1")], abs=1e-12
        )
    assert found["micro"] == pytest.approx(
        {x: published["micro"][x] for x in ("precision", "recall", "f1")}, abs=1e-12
    )
    assert found["macro"]["f1"] == pytest.approx(published["macro_f1"], abs=1e-12)
