"""What three metrics by language model make of a model's answer: GREEN, CRIMSON and RadFact, without any model.

The functions read an answer, or what was read of it, and give numbers; who asks is recipes/evaluation/judges.py. An
answer that is not whole is refused, where GREEN's own parser gives one that breaks off the best score.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

GREEN_SECTIONS = ("Clinically Significant Errors", "Clinically Insignificant Errors", "Matched Findings")
GREEN_KINDS = "abcdef"  # false report, missing, place, severity, invented comparison, omitted comparison
SIGNIFICANCE = {  # CRIMSON's weight of a finding
    "urgent": 1.0,
    "actionable_not_urgent": 0.5,
    "not_actionable_not_urgent": 0.25,
    "benign_expected": 0.0,
}
SEVERITY = {"significant": 0.5, "negligible": 0.0}  # and of an error in a finding's attributes
OTHER = 0.25  # of a word that is none of these
_SECTION = re.compile(r"\[([^\[\]\n]{1,60})\]:?[ \t]*")
_COUNT = re.compile(r"^\s*\(([a-f1-6])\)[^\n:]*:\s*(\d+)\b", re.MULTILINE)
_KIND = re.compile(r"^\s*\(([a-f1-6])\)", re.MULTILINE)
_MATCHED = re.compile(r"\s*(\d+)\b")


class Green(NamedTuple):
    """Errors of the kinds (a) to (f), significant and not, and the number of matched findings."""

    significant: tuple[int, ...]
    insignificant: tuple[int, ...]
    matched: int


def read_green(answer: str) -> Green:
    """The counts of an answer in GREEN's form (Ostmeier et al. 2024): sections [Clinically Significant Errors],
    [Clinically Insignificant Errors] and [Matched Findings], lines "(a) ...: 2. ...", or "No errors".

    A kind that is not listed has 0; of a letter that stands twice both are counted. Raises ValueError, saying what is
    missing, where a section is absent or a line has no count: the original counts such an answer as free of errors.
    """
    marks = list(_SECTION.finditer(answer))
    ends = [*(mark.start() for mark in marks[1:]), len(answer)]
    bodies: dict[str, str] = {}
    for mark, end in zip(marks, ends, strict=False):  # without a mark there is an end too many
        bodies.setdefault(mark[1].strip().lower(), answer[mark.end() : end].strip())
    if missing := [name for name in GREEN_SECTIONS if not bodies.get(name.lower())]:
        raise ValueError(f"the section [{missing[0]}] is missing or empty")
    counts = [_count_kinds(name, bodies[name.lower()]) for name in GREEN_SECTIONS[:2]]
    matched = bodies[GREEN_SECTIONS[2].lower()]
    number = _MATCHED.match(matched)
    if number is None and not _denies(matched):
        raise ValueError("[Matched Findings] begins with no number")
    return Green(*counts, int(number[1]) if number else 0)


def _denies(body: str) -> bool:
    return re.match(r"(?:no|none)\b", body, re.IGNORECASE) is not None


def _count_kinds(name: str, body: str) -> tuple[int, ...]:
    counts = [0] * len(GREEN_KINDS)
    entries = _COUNT.findall(body)
    lines = _KIND.findall(body)
    if not lines and not _denies(body):
        raise ValueError(f"[{name}] lists no errors and does not say that there are none")
    if len(entries) < len(lines):
        raise ValueError(f"[{name}] has a line without a number of errors")
    for kind, number in entries:
        counts["abcdef".index(kind) if kind.isalpha() else int(kind) - 1] += int(number)
    return tuple(counts)


def green_score(counts: Green) -> float:
    """matched / (matched + significant errors), 0 to 1, higher is better; 0 without a match (Ostmeier et al.)."""
    return counts.matched / (counts.matched + sum(counts.significant)) if counts.matched else 0.0


def crimson_score(evaluation: dict) -> float:
    """CRIMSON (2026) of an evaluation in its JSON form, in (-1, 1], higher is better, rounded to 4 places.

    `evaluation`: `reference_findings` and `predicted_findings`, lists of {id, clinical_significance};
    `matched_findings`, {ref_id, pred_id}; `errors`: `false_findings` and `missing_findings`, ids, and
    `attribute_errors`, {ref_id, pred_id, severity}. With N the weights of the reference's findings, F of the false
    and M of the missing ones, and C the credit w^2 / (w + its attribute errors) of each matched reference finding:
    S = (C - F) / N; below 0 it is -d / (1 + d) with d = F - C. Without weight in the reference it is 1 where nothing
    is false or missing, else -(F + M + 1) takes the place of S. Raises ValueError on another form.

        crimson_score({"reference_findings": [], "predicted_findings": [], "matched_findings": [], "errors": {}})  # 1
    """
    references, predictions = (_weights(evaluation, name) for name in ("reference_findings", "predicted_findings"))
    errors = evaluation.get("errors", {})
    if not isinstance(errors, dict):
        raise ValueError("errors must be an object")
    false = sum(predictions.get(finding, 0.0) for finding in _texts(errors, "false_findings"))
    missing_ids = _texts(errors, "missing_findings")
    missing = sum(references.get(finding, 0.0) for finding in missing_ids)
    pairs = _objects(evaluation, "matched_findings", ("ref_id",))
    mistakes: dict[str, float] = {}
    for error in _objects(errors, "attribute_errors", ("ref_id",)):
        severity = SEVERITY.get(error.get("severity"), OTHER)
        mistakes[error["ref_id"]] = mistakes.get(error["ref_id"], 0.0) + severity
    credit = 0.0
    for name in dict.fromkeys(pair["ref_id"] for pair in pairs):
        weight, mistake = references.get(name, 0.0), mistakes.get(name, 0.0)
        credit += weight if name not in mistakes else weight**2 / (weight + mistake) if weight + mistake else 0.0
    total = sum(references.values())
    if not total and not references:
        total = len(pairs) + missing
    if total:
        score = (credit - false) / total
    else:
        score = 1.0 if not false and not missing else -(false + missing + 1)
    if score < 0:
        excess = false - credit
        score = -excess / (1 + excess) if excess > 0 else 0.0
    return round(score, 4)


def _objects(where: dict, name: str, keys: Sequence[str]) -> list[dict]:
    objects = where.get(name, [])
    if not isinstance(objects, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys) for entry in objects
    ):
        raise ValueError(f"{name} must be a list of objects with {', '.join(keys)}")
    return objects


def _texts(where: dict, name: str) -> list[str]:
    texts = where.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of ids")
    return texts


def _weights(evaluation: dict, name: str) -> dict[str, float]:
    if name not in evaluation:
        raise ValueError(f"{name} is missing")
    return {
        finding["id"]: SIGNIFICANCE.get(finding.get("clinical_significance"), OTHER)
        for finding in _objects(evaluation, name, ("id",))
    }


def entailed_share(entailed: Sequence[bool]) -> float:
    """RadFact's logical precision of a report (of its phrases, given the reference), or recall the other way round;
    nan where there is no phrase (Bannur et al. 2024)."""
    return sum(entailed) / len(entailed) if entailed else float("nan")
