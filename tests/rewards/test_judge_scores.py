"""What GREEN, CRIMSON and RadFact make of an answer: published values, and answers that are not whole.

CRIMSON's published code (rajpurkarlab/CRIMSON 07e3331) and ours agreed on 20,000 random evaluations, unknown ids and
words among them.
"""

import math

import pytest

from rewards.judge_scores import crimson_score, entailed_share, green_score, read_green


def green(significant: str, matched: str, insignificant: str = "No errors") -> str:
    return (
        f"[Explanation]:\nBoth agree.\n\n[Clinically Significant Errors]:\n{significant}\n\n"
        f"[Clinically Insignificant Errors]:\n{insignificant}\n\n[Matched Findings]:\n{matched}"
    )


@pytest.mark.parametrize(
    ("significant", "matched", "score"),
    [
        ("(a) false report: 2. A; B\n(b) missing: 1. C", "3. x; y; z", 0.5),  # the parser's own golden
        ("No errors", "4. w; x; y; z", 1.0),
        ("(a) false: 1. A", "No matched findings", 0.0),
        ("(a) left 2 cm: 3. nodule", "2. x; y", 0.4),  # the original reads 1 here, and so .667
        ("(1) false: 1. A\n(6) omitted: 1. B", "2. x; y", 0.5),  # numbers for letters
        ("(a) false: 1. A\n\n(b) missing: 2. B; C", "2. x; y", 0.4),  # a blank line; the original drops what follows
        ("(a) false: 1. A\n(a) false: 2. B; C", "1. x", 0.25),  # the same kind twice; the original keeps one
        ("None", "0.", 0.0),
    ],
)
def test_green(significant, matched, score):
    assert green_score(read_green(green(significant, matched))) == pytest.approx(score)


def test_counts_of_green():
    counts = read_green(green("(b) missing: 1. C", "2. x; y", "(d) severity: 3. A; B; C"))
    assert counts == ((0, 1, 0, 0, 0, 0), (0, 0, 0, 3, 0, 0), 2)
    assert green_score(counts) == pytest.approx(2 / 3)  # insignificant errors do not count


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (green("(a) false: two. A; B", "2. x; y"), "a line without a number"),  # the original: 1
        (green("No errors", "some"), "begins with no number"),
        (green("The reports agree.", "2. x; y"), "lists no errors and does not say"),
        (green("No errors", "2. x").partition("[Matched")[0], "Matched Findings. is missing"),  # the original: 0
        ("[Matched Findings]:\n3. x; y; z", "Clinically Significant Errors. is missing"),  # the original: 1
        ("", "is missing"),
        ("The candidate report is fine. " * 4000, "is missing"),
        ("[" * 100_000, "is missing"),
    ],
)
def test_a_green_answer_that_is_not_whole_is_refused(answer, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_green(answer)


def evaluation(references: str = "", predictions: str = "", matched: str = "", false: str = "", missing: str = "",
               attributes: str = "") -> dict:  # fmt: skip
    """An evaluation by significances, as u(rgent), a(ctionable), m(inor), b(enign), and numbers."""
    words = {"u": "urgent", "a": "actionable_not_urgent", "m": "not_actionable_not_urgent", "b": "benign_expected"}
    severities = {"s": "significant", "n": "negligible"}

    def listed(letters: str, prefix: str) -> list[dict]:
        return [{"id": f"{prefix}{i}", "clinical_significance": words[each]} for i, each in enumerate(letters, 1)]

    return {
        "reference_findings": listed(references, "R"),
        "predicted_findings": listed(predictions, "P"),
        "matched_findings": [{"ref_id": f"R{each}", "pred_id": f"P{each}"} for each in matched],
        "errors": {
            "false_findings": [f"P{each}" for each in false],
            "missing_findings": [f"R{each}" for each in missing],
            "attribute_errors": [
                {"ref_id": f"R{number}", "pred_id": f"P{number}", "severity": severities[kind]}
                for number, kind in (each.split(":") for each in attributes.split())
            ],
        },
    }


@pytest.mark.parametrize(
    ("given", "score"),  # published by its code
    [
        (evaluation(), 1),  # both normal
        (evaluation("", "a", false="1"), -0.3333),
        (evaluation("", "b", false="1"), 1),
        (evaluation("b", missing="1"), 1),
        (evaluation("u", missing="1"), 0),  # a template
        (evaluation("u", "u", "1", attributes="1:s"), 0.6667),
        (evaluation("a", "a", "1", attributes="1:s"), 0.5),
        (evaluation("a", "a", "1", attributes="1:s 1:s"), 0.3333),
        (evaluation("m", "m", "1", attributes="1:s"), 0.3333),
        (evaluation("a", "a", "1", attributes="1:n"), 1),
        (evaluation("ua", "ua", "1", false="2", missing="2"), 0.3333),
        (evaluation("a", "u", false="1", missing="1"), -0.5),
        (evaluation("a", "aa", "1", false="2"), 0),
        (evaluation("", "uuuuu", false="12345"), -0.8333),
    ],
)
def test_crimson(given, score):
    assert crimson_score(given) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"reference_findings": [{"finding": "x"}]}, "reference_findings must be a list of objects with id"),
        ({"predicted_findings": "none"}, "predicted_findings must be a list"),
        ({"errors": []}, "errors must be an object"),
        ({"errors": {"false_findings": [1]}}, "false_findings must be a list of ids"),
        ({"errors": {"attribute_errors": [{"severity": "significant"}]}}, "attribute_errors must be"),
        ({"matched_findings": [{"pred_id": "P1"}]}, "matched_findings must be"),
    ],
)
def test_a_crimson_of_another_form_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        crimson_score(evaluation("a") | change)
    with pytest.raises(ValueError, match="reference_findings is missing"):
        crimson_score({"matched_findings": []})


def test_entailed_share():
    assert entailed_share([True, False, True, True]) == 0.75 and math.isnan(entailed_share([]))
