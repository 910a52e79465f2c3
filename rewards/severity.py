"""A reward of our own: the findings of a report, weighted by clinical severity, with partial credit for attributes.

CRIMSON's published formula is the starting point (rajpurkarlab/CRIMSON, `_calculate_crimson`): findings weigh by
their severity, a matched finding with weight w and attribute errors A earns w² / (w + ΣA), and every false finding
costs its weight. There a language model lists the findings; here `FindingReader` does, in less than a millisecond.
Two things differ. CRIMSON subtracts what is false, (C - F) / N, and squashes what falls below 0; here it enlarges the
denominator, so that the reward stays in [0, 1] and a report with more errors earns less, however many there are:

    reward = (C + b) / (N + F + b)

with C what is earned, N the weight of the reference's findings, F that of the false ones. And b is the weight of an
otherwise normal chest, which reference and report always share: it makes normal reports score 1 together, and a false
finding cost as much there as it should.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from rewards.findings import ACTIONABLE, EXPECTED, MINOR, RELATED, URGENT, Finding, FindingReader, Report
from rewards.inputs import cached, check_untagged, known_rows, read_reports

WEIGHTS = {URGENT: 1.0, ACTIONABLE: 0.5, MINOR: 0.25, EXPECTED: 0.1}  # CRIMSON's, whose expected findings weigh 0
NORMAL_CHEST = 0.05  # b; the smaller, the less a report earns that misses everything
SIGNIFICANT, SLIGHT = 0.5, 0.1  # of an attribute error; CRIMSON's negligible ones cost 0, so that they are not learnt
_PLACES = ("upper", "middle", "lower")
_CLASSES = (EXPECTED, MINOR, ACTIONABLE, URGENT)
_INJURY = re.compile(r"\b(?:trauma\w*|accident|mva|mvc|fall|fell|collision|injur\w*|assault\w*|crying|abuse)\b", re.I)
_PROCEDURE = re.compile(
    r"\b(?:surgery|surgical|post-?op\w*|postoperative|status post|s/p|after|following|thoracentesis|resuscitation|cpr"
    r"|cabg|sternotomy|thoracotomy|biops\w+|placement|intubat\w+|cardiac arrest)\b",
    re.I,
)
_AIR = frozenset(("pneumothorax", "pneumomediastinum", "free air", "subcutaneous air"))


def _years(age) -> float | None:
    """Years of "72", 72, "072Y" or "003M"; None where it is not known. Raises ValueError on anything else."""
    if age is None or (isinstance(age, float) and age != age) or (isinstance(age, str) and not age.strip()):
        return None
    if isinstance(age, str):
        match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d+)?)\s*([YMWD]?)(?:ears?(?: old)?)?\s*", age, re.I)
        if match is None:
            raise ValueError(f"age must be a number of years or a DICOM age such as '072Y', not {age!r}")
        return float(match[1]) / {"M": 12, "W": 52, "D": 365}.get(match[2].upper(), 1)
    return float(age)


def severity_in_context(finding: Finding, age: float | None = None, indication: str | None = None) -> str:
    """The finding's severity class for a patient of `age` years and with this `indication`, each if known.

    CRIMSON's guidelines: what comes with age is expected from 65 years on and not below 50; air and fractures are
    minor after a procedure that explains them; a fracture in a child is urgent; what an injury may have done is at
    least actionable.
    """
    level = _CLASSES.index(finding.severity)
    asked = indication or ""
    aging = finding.concepts & {"aorta", "degenerative", "osteopenia"}
    if aging and age is not None:
        level = _CLASSES.index(EXPECTED if age >= 65 else MINOR if age < 50 else finding.severity)
    if "fracture" in finding.concepts and age is not None and age < 16:
        return URGENT
    explained = _PROCEDURE.search(asked) is not None and not finding.bad
    if explained and ("fracture" in finding.concepts or (finding.concepts & _AIR and 3 not in finding.sizes)):
        level = min(level, _CLASSES.index(MINOR))
    elif _INJURY.search(asked) and finding.concepts & (_AIR | {"fracture", "effusion", "dislocation"}):
        level = max(level, _CLASSES.index(ACTIONABLE))
    return _CLASSES[level]


def attribute_errors(finding: Finding, reference: Finding) -> dict[str, float]:
    """The errors of a matched finding by kind, each `SIGNIFICANT` (0.5), twice that, or `SLIGHT` (0.1).

    Detail that only the report gives is no error; what both give and differ in is one, and detail that only the
    reference gives is a slight one. Measurements have CRIMSON's tolerances: a nodule 4 mm (2 mm below 6 mm), a mass
    20 % and never across 3 cm; other lengths 20 % or 5 mm.
    """
    places = [{_PLACES.index(place) for place in side.places} for side in (finding, reference)]
    changed = finding.changes != reference.changes
    errors = {
        "specificity": _specificity_error(finding.concepts, reference.concepts),
        "side": _side_error(finding.sides, reference.sides),
        "place": _step_error(*places),
        "size": _step_error(finding.sizes, reference.sizes),
        "measurement": _length_error(finding.millimeters, reference.millimeters, "lesion" in reference.concepts),
        "certainty": SLIGHT * (finding.certain != reference.certain),
        "change": (SIGNIFICANT if _opposed(finding.changes, reference.changes) else SLIGHT) * changed,
        "position": 2 * SIGNIFICANT * (finding.bad != reference.bad),
    }
    return {kind: error for kind, error in errors.items() if error}


def _opposed(a: frozenset, b: frozenset) -> bool:
    return bool(a and b) and a.isdisjoint(b)


def _specificity_error(concepts: frozenset[str], reference: frozenset[str]) -> float:
    """The share of names that do not fit, and double where none does: a vague word for many things must not pay."""
    spare = concepts - reference
    return SIGNIFICANT * len(spare) / len(concepts) if len(spare) < len(concepts) else 2 * SIGNIFICANT


def _side_error(sides: frozenset[str], reference: frozenset[str]) -> float:
    if not reference or sides == reference:
        return 0.0
    if not sides:
        return SLIGHT
    return SIGNIFICANT if sides & reference else 2 * SIGNIFICANT


def _step_error(steps: Set[int], reference: Set[int]) -> float:
    """Of places or sizes on a scale: one step aside is slight, as is "small" once and "large" once for one of them."""
    if not reference:
        return 0.0
    if reference.isdisjoint(steps):
        distance = min((abs(a - b) for a in steps for b in reference), default=1)
        return SIGNIFICANT if distance > 1 else SLIGHT
    return SLIGHT if steps - reference else 0.0


def _length_error(lengths: frozenset[float], reference: frozenset[float], lesion: bool) -> float:
    """Of the longest measurements in mm, within the tolerances of `attribute_errors`."""
    if not (lengths and reference):
        return 0.0
    length, expected = max(lengths), max(reference)
    if lesion and expected < 30:
        tolerance = 2.0 if expected < 6 else 4.0
    else:
        tolerance = 0.2 * expected if lesion else max(0.2 * expected, 5.0)
    across = lesion and (expected < 30) != (length < 30)  # 3 cm tells a nodule from a mass
    return SIGNIFICANT if across or abs(length - expected) > tolerance else 0.0


@dataclass(frozen=True)
class Comparison:
    """A report against its reference.

    `matches`: (finding, reference finding, attribute errors, credit earned); `missing`: reference findings without a
    match; `false`: (finding, cost). `earned`, `attainable` and `cost` are the sums of credits, of the reference's
    weights and of costs, C, N and F of the formula; `value` is the reward in [0, 1].
    """

    matches: tuple[tuple[Finding, Finding, dict[str, float], float], ...]
    missing: tuple[Finding, ...]
    false: tuple[tuple[Finding, float], ...]
    earned: float
    attainable: float
    cost: float
    value: float


def _near(finding: Finding, reference: Finding) -> bool:
    """The same concept, or one for the other with an error."""
    return any(a == b or b in RELATED[a] for a in finding.concepts for b in reference.concepts)


def compare(report: Report, reference: Report, age: float | None = None, indication: str | None = None) -> Comparison:
    """The report's findings matched with the reference's, and what that is worth.

    Each finding matches at most one other, those that earn most first, the same concept before a related one
    ("opacity" for "pneumonia": an error of specificity). A false finding costs its weight, or half of it
    where it is only another name for what the reference has. A finding that the same report denies earns nothing and
    costs its weight once more, unless the reference contradicts itself as well. A report that speaks of no finding is
    worth 0.

    >>> read = FindingReader()
    >>> compare(*read(["Large left effusion.", "Small left effusion."])).value  # (.5² / (.5 + .5) + .05) / (.5 + .05)
    0.545...
    """
    weights = [
        [WEIGHTS[severity_in_context(finding, age, indication)] for finding in side.findings]
        for side in (report, reference)
    ]
    pairs = []
    for i, target in enumerate(reference.findings):
        for k, finding in enumerate(report.findings):
            if _near(finding, target):
                errors = attribute_errors(finding, target)
                weight = weights[1][i]
                credit = weight * weight / (weight + sum(errors.values()))
                if finding.denied and not target.denied:
                    credit = 0.0
                pairs.append((finding.concepts.isdisjoint(target.concepts), -credit, i, k, errors))
    matched: dict[int, tuple[int, dict[str, float], float]] = {}
    taken: set[int] = set()
    for _, negative, i, k, errors in sorted(pairs, key=lambda pair: pair[:4]):
        if i not in matched and k not in taken:
            matched[i] = (k, errors, -negative)
            taken.add(k)
    near = {k for _, _, _, k, _ in pairs}
    agreed = {k for i, (k, _, _) in matched.items() if reference.findings[i].denied}
    false = []
    for k, finding in enumerate(report.findings):
        cost = 0.0 if k in taken else weights[0][k] * (SIGNIFICANT if k in near else 1.0)
        cost += weights[0][k] if finding.denied and k not in agreed else 0.0
        if cost:
            false.append((finding, cost))
    earned, attainable = sum(credit for _, _, credit in matched.values()), sum(weights[1])
    cost = sum(cost for _, cost in false)
    value = (earned + NORMAL_CHEST) / (attainable + cost + NORMAL_CHEST) if report.speaks else 0.0
    return Comparison(
        tuple(
            (report.findings[k], reference.findings[i], errors, credit) for i, (k, errors, credit) in matched.items()
        ),
        tuple(finding for i, finding in enumerate(reference.findings) if i not in matched),
        tuple(false),
        earned,
        attainable,
        cost,
        value,
    )


class SeverityReward:
    """A TRL reward: `compare` of each completion's report with the column `report`, in [0, 1], higher is better.

    Columns `age` (years, or a DICOM age such as "072Y") and `indication` (text) are used where the data set has them.
    `reader`: n texts to n `Report`s; default FindingReader. `untagged` as in `make_mccs_reward`. Pickles without the
    reports that it remembers. Raises ValueError on a mode that does not exist, on a column of another length, on an
    empty reference and on an age that is none.

    Example:
        >>> reward = SeverityReward()
        >>> reward(["Small left effusion."], report=["Small left effusion. No pneumothorax."])
        [1.0]
    """

    __name__ = "severity_reward"  # what TRL logs it by

    def __init__(self, reader: "FindingReader | None" = None, untagged: str = "whole"):
        check_untagged(untagged)
        self.reader, self.untagged = cached(reader or FindingReader()), untagged

    def __call__(
        self,
        completions: list,
        *,
        report: list[str | None] | None = None,
        age: Sequence | None = None,
        indication: Sequence[str | None] | None = None,
        **kwargs,
    ) -> list[float | None]:
        """One reward a completion; None where the reference is null, which TRL leaves out."""
        rows = known_rows(self.__name__, completions, report)
        for column, values in (("age", age), ("indication", indication)):
            if values is not None and len(values) != len(completions):
                raise ValueError(f"{self.__name__} got {len(completions)} completions but {len(values)} of {column!r}")
        texts, _ = read_reports(completions, self.untagged)
        read = self.reader([*(texts[row] for row in rows), *(report[row] for row in rows)])
        rewards: list[float | None] = [None] * len(completions)
        worked_out: dict[tuple, float] = {}
        for place, row in enumerate(rows):
            try:
                years = _years(age[row]) if age is not None else None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.__name__}, row {row}: {error}") from None
            asked = indication[row] if indication is not None else None
            key = texts[row], report[row], years, asked
            if key not in worked_out:
                worked_out[key] = compare(read[place], read[len(rows) + place], years, asked).value
            rewards[row] = worked_out[key]
        return rewards


severity_reward = SeverityReward()
