"""What a report gets wrong, label by label: MRG-R1's qualitative criteria (section V-B) counted.

Of each finding's state in the reference and in the generated report:

| kind | reference | generated |
|---|---|---|
| polarity flip | positive, or negative | the opposite |
| omission | positive or uncertain | not mentioned |
| hallucination | not mentioned | positive or uncertain |
| uncertainty mismatch | uncertain, or positive or negative | positive or negative, or uncertain |

A negative that only one of the two states is no error. Where both have the finding (positive or uncertain) and both
say a side or a size at its mention, these are compared too: side swapped (left for right), severity changed.
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rewards.findings import GRADES
from rewards.labelers import LexicalLabeler
from rewards.labels import FINDINGS, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
PRESENT = (POSITIVE, UNCERTAIN)
FLIP, OMISSION, HALLUCINATION, DOUBT = "polarity flip", "omission", "hallucination", "uncertainty mismatch"
SIDE, SEVERITY = "side swapped", "severity changed"
KINDS = (FLIP, OMISSION, HALLUCINATION, DOUBT, SIDE, SEVERITY)
STATE_KINDS = KINDS[:4]

_SENTENCE = re.compile(r"[^.!?\n]*(?:\.(?=\d)[^.!?\n]*)*[.!?\n]*")  # "2.5 cm" is no end
KEPT = 300  # characters of a sentence; a longer one is shortened around its mentions
_CLAUSE = re.compile(r"[,;:]|\b(?:and|with|without|but|while|although)\b", re.I)
_BOTH = re.compile(r"\b(?:left and right|right and left|both|bilateral(?:ly)?|bibasilar|bibasal|biapical)\b", re.I)
_ONE_SIDE = re.compile(r"\b(left|right)(?:-sided|ward)?\b")
_WORD = re.compile(r"[a-z]+")


def state_errors(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Each finding's error as its index in `STATE_KINDS`, or -1: int, shape (n, 13), from states (n, 13 or 14)."""
    output, truth = (np.asarray(states)[:, : len(FINDINGS)] for states in (generated, reference))
    present = [np.isin(states, PRESENT) for states in (output, truth)]
    cases = [
        ((output == POSITIVE) & (truth == NEGATIVE)) | ((output == NEGATIVE) & (truth == POSITIVE)),
        (output == BLANK) & present[1],
        present[0] & (truth == BLANK),
        (output != truth) & ((output == UNCERTAIN) | (truth == UNCERTAIN)) & (output != BLANK) & (truth != BLANK),
    ]
    return np.select(cases, range(len(cases)), default=-1)


def confusion(generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Counts of states, shape (14, 4, 4): label, reference state, generated state, from states (n, 14)."""
    counts = np.zeros((reference.shape[1], len(CheXpertState), len(CheXpertState)), dtype=int)
    for label in range(reference.shape[1]):
        np.add.at(counts[label], (reference[:, label], generated[:, label]), 1)
    return counts


class Evidence:
    """Where reports speak of findings: sentences, sides and severities by the LexicalLabeler's mentions.

    They locate; the states come from whichever labeler judges. A text is read once, in a time and a memory that grow
    with its length: mentions share their sentence and their clause.
    """

    def __init__(self):
        self.labeler, self.cache = LexicalLabeler(), {}

    def __call__(self, text: str) -> dict[int, list[tuple[int, str, str]]]:
        """Of each condition (its index) its mentions: state, sentence, and the clause around it in lower case.

        Of a sentence of more than `KEPT` characters only some around the mention are kept, between ellipses.
        """
        if text not in self.cache:
            spans = [match.span() for match in _SENTENCE.finditer(text) if match[0].strip()]
            mentions: dict[int, list[tuple[int, str, str]]] = {}
            sentences: dict[tuple[int, int], Sentence] = {}
            place = 0
            for start, end, condition, state in self.labeler.mentions(text):
                while place + 1 < len(spans) and spans[place][1] <= start:
                    place += 1
                first, last = spans[place][0], max(spans[place][1], end)
                if (first, last) not in sentences:
                    sentences[first, last] = Sentence(text[first:last])
                sentence, at = sentences[first, last], (start - first, end - first)
                mentions.setdefault(condition, []).append((int(state), sentence.around(*at), sentence.clause(*at)))
            self.cache[text] = mentions
        return self.cache[text]


class Sentence:
    """One sentence of a report, whose mentions come in the order of their starts."""

    def __init__(self, text: str):
        self.text, self.line = text, " ".join(text.split())
        self.plain = _BOTH.sub(lambda match: "b" * len(match[0]), text)  # of the same length, without an "and"
        cuts = [match.span() for match in _CLAUSE.finditer(self.plain)]
        self.begins, self.ends = [0, *(after for _, after in cuts)], [*(before for before, _ in cuts), len(text)]
        self.clauses: dict[tuple[int, int], str] = {}
        self.window, self.shown = (0, 0), ""

    def clause(self, start: int, end: int) -> str:
        """The clause around these characters, in lower case; "left and right" is one word in it."""
        first = self.begins[bisect_right(self.begins, start) - 1]
        last = self.ends[bisect_left(self.ends, end)]
        if (first, last) not in self.clauses:
            self.clauses[first, last] = self.plain[first:last].lower()
        return self.clauses[first, last]

    def around(self, start: int, end: int) -> str:
        """The sentence, or some `KEPT` characters of it that hold the mention, the same for neighbours."""
        if len(self.line) <= KEPT:
            return self.line
        if not (self.window[0] <= start and end <= self.window[1]):
            spare = max(KEPT - (end - start), 0)
            first = max(start - spare // 2, 0)
            last = min(first + KEPT, len(self.text))
            if first:  # no half words, where the sentence has spaces
                first = self.text.find(" ", first, start) + 1 or first
            if last < len(self.text):
                last = max(self.text.rfind(" ", end, last), 0) or last
            self.window = (first, last)
            words = " ".join(self.text[first:last].split())
            self.shown = "… " * (first > 0) + words + " …" * (last < len(self.text))
        return self.shown


def sides(clauses: Sequence[str]) -> set[str]:
    """{"left"}, {"right"}, both, or none, as said in the clauses of a finding."""
    sides_of_clauses = {side for clause in clauses for side in _ONE_SIDE.findall(clause)}
    return {"left", "right"} if any("bbbb" in clause for clause in clauses) else sides_of_clauses


def severities(clauses: Sequence[str]) -> set[int]:
    """The grades said in the clauses of a finding: 1 small or mild, 2 moderate, 3 large or severe."""
    return {GRADES[word] for clause in clauses for word in _WORD.findall(clause) if word in GRADES}


def find_errors(
    generated: np.ndarray, reference: np.ndarray, texts: Sequence[str], references: Sequence[str], evidence: Callable
) -> Iterator[list[dict]]:
    """Of each of n reports its errors: {label, kind, generated, reference}, the last two sentences or None.

    `generated`, `reference`: states (n, 14) of `texts` and `references`. A side is swapped where one report has the
    finding on one side only and the other report on the other side only; a severity has changed where both name one
    grade, and not the same.
    """
    kinds = state_errors(generated, reference)
    for row, (text, truth) in enumerate(zip(texts, references, strict=True)):
        errors = []
        mentions, reference_mentions = evidence(text), evidence(truth)
        for label in np.flatnonzero(kinds[row] >= 0).tolist():
            errors.append((label, STATE_KINDS[kinds[row, label]]))
        both = np.isin(generated[row, : len(FINDINGS)], PRESENT) & np.isin(reference[row, : len(FINDINGS)], PRESENT)
        for label in np.flatnonzero(both).tolist():
            clauses = [
                list(dict.fromkeys(c for s, _, c in conditions.get(label, ()) if s in PRESENT))
                for conditions in (mentions, reference_mentions)
            ]
            if {*map(tuple, map(sorted, map(sides, clauses)))} == {("left",), ("right",)}:
                errors.append((label, SIDE))
            grades = [severities(texts) for texts in clauses]
            if all(len(grade) == 1 for grade in grades) and grades[0] != grades[1]:
                errors.append((label, SEVERITY))
        yield [
            {
                "label": FINDINGS[label],
                "kind": kind,
                "generated": _sentence(mentions.get(label, ()), generated[row, label]),
                "reference": _sentence(reference_mentions.get(label, ()), reference[row, label]),
            }
            for label, kind in sorted(errors)
        ]


def _sentence(mentions: Sequence[tuple[int, str, str]], state: int) -> str | None:
    """The sentence that says the state, else one that speaks of the finding, else None."""
    matches = [sentence for mention_state, sentence, _ in mentions if mention_state == state]
    return next(iter(matches or [sentence for _, sentence, _ in mentions]), None)


def count_errors(errors: Sequence[list[dict]]) -> dict[str, dict[str, int]]:
    """{finding: {kind: number}} with every finding and kind."""
    counts = Counter((error["label"], error["kind"]) for report_errors in errors for error in report_errors)
    return {label: {kind: counts[label, kind] for kind in KINDS} for label in FINDINGS}
