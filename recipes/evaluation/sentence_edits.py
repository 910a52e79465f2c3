"""One sentence of a report put right by its reference, as EditGRPO edits what a policy has written (arXiv 2509.22812).

By priority, one edit and no more:

| kind | what is wrong | edit |
|---|---|---|
| conflict | a finding is present in one report and absent in the other | the reference's sentence takes its place |
| replacement | a sentence has a finding of which the reference says nothing | its most similar sentence |
| deletion | the same, and no sentence is similar enough | the sentence goes |
| addition | a finding of the reference is missing | the reference's sentence is appended |
| insertion | the report is empty | a sentence of the reference |

The paper reads entities with RaTE's recogniser and compares their embeddings. Here nothing needs weights: findings are
the LexicalLabeler's, an entity is the clause around one, and similar are clauses with the same words of LexicalGraph.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from recipes.evaluation import error_taxonomy
from recipes.evaluation.error_taxonomy import Sentence, state_errors
from recipes.rg4.token_weights import sentence_spans
from rewards.completions import parse_completion, report_spans
from rewards.labelers import LexicalLabeler
from rewards.labels import CheXpertState
from rewards.lexical_graph import LexicalGraph, graph_words

CONFLICT, REPLACEMENT, DELETION, ADDITION, INSERTION = "conflict", "replacement", "deletion", "addition", "insertion"
KINDS = (CONFLICT, REPLACEMENT, DELETION, ADDITION, INSERTION)
SIMILAR = 0.6  # tau of the paper

PRESENT = frozenset(error_taxonomy.PRESENT)

_LABELER, _GRAPH = LexicalLabeler(), LexicalGraph()


class Edit(NamedTuple):
    """The text after an edit, and its kind."""

    text: str
    kind: str


class _Read(NamedTuple):
    """One sentence: its place, its text, of each finding the states of its mentions and the clauses around them."""

    start: int
    end: int
    text: str
    states: dict[int, set[int]]
    clauses: dict[int, list[str]]

    @property
    def key(self) -> str:
        """What equal sentences share."""
        return self.text.lower()


def edit_report(report: str, reference: str, threshold: float = SIMILAR) -> Edit | None:
    """`report` with one sentence put right by `reference`, or None where there is nothing to put right.

    A replacement takes the sentence of the reference whose entities are most similar: the mean, over the entities
    that the reference lacks, of the highest cosine with one of the sentence's, at least `threshold`. A sentence that
    the report has already is never put into it again: what it would replace goes. A deletion that would leave nothing
    is an insertion: the sentence of the reference that has a finding, else its first one.

        >>> edit_report("The heart is normal. Small effusion.", "No effusion is seen. Normal heart.")
        Edit(text='The heart is normal. No effusion is seen.', kind='conflict')
    """
    theirs = _read(reference)
    if not theirs:
        return None
    if not report.strip():
        return Edit(_lead(theirs), INSERTION)
    ours, (states, truth) = _read(report), _LABELER([report, reference]).tolist()
    sources = [sentence for sentence in theirs if sentence.key not in {other.key for other in ours}]

    for sentence, finding in _mentions(ours):
        state = states[finding]
        if state in sentence.states[finding] and _conflict(state, truth[finding]):
            source = next(s for s in theirs if truth[finding] in s.states.get(finding, ()))
            return Edit(_put(report, sentence, source.text if source in sources else None), CONFLICT)
    for sentence in ours:
        false = [
            finding
            for finding, mentioned in sentence.states.items()
            if truth[finding] == CheXpertState.BLANK and states[finding] in PRESENT & mentioned
        ]
        if false:
            source = _most_similar(sentence, false, sources, threshold)
            if source is not None:
                return Edit(_put(report, sentence, source.text), REPLACEMENT)
            rest = _put(report, sentence, None)
            return Edit(rest, DELETION) if rest.strip() else Edit(_lead(theirs), INSERTION)
    for sentence, finding in _mentions(theirs):
        if states[finding] == CheXpertState.BLANK and truth[finding] in PRESENT & sentence.states[finding]:
            text = report.rstrip()
            stop = "" if text.endswith((".", "!", "?")) else "."  # else one sentence of two, and one scope
            return Edit(f"{text}{stop} {sentence.text}", ADDITION)
    return None


def edit_completion(text: str, reference: str, threshold: float = SIMILAR) -> Edit | None:
    """`edit_report` of the report in a completion's `text`, whose reasoning and tags stay as they are.

    None also where the report is no single run of characters (untagged text on both sides of reasoning) and where text
    cannot be put in as a report (in reasoning that never ends).

        >>> text = "<think>a</think><report>Clear lungs.</report>"
        >>> edit_completion(text, "Small effusion.").text
        '<think>a</think><report>Clear lungs. Small effusion.</report>'
    """
    spans = report_spans(text) or [(len(text), len(text))]
    if len(spans) > 1:
        return None
    ((start, end),) = spans
    edit = edit_report(text[start:end], reference, threshold)
    if edit is None:
        return None
    result = text[:start] + edit.text + text[end:]
    return Edit(result, edit.kind) if parse_completion(result).report == edit.text else None


def count_errors(reports: Sequence[str], references: Sequence[str]) -> list[int]:
    """How many of the 13 findings n reports state otherwise than their references (`state_errors`)."""
    states, truth = _LABELER(reports), _LABELER(references)
    return (state_errors(states, truth) >= 0).sum(axis=1).tolist()


def _read(report: str) -> list[_Read]:
    """The sentences of a report, each with what it says of findings."""
    spans = sentence_spans(report)
    sentences = [Sentence(report[start:end]) for start, end in spans]
    states: list[dict[int, set[int]]] = [{} for _ in spans]
    clauses: list[dict[int, list[str]]] = [{} for _ in spans]
    place = 0
    for first, last, finding, state in _LABELER.mentions(report):
        while place + 1 < len(spans) and spans[place + 1][0] <= first:
            place += 1
        start = spans[place][0]
        states[place].setdefault(finding, set()).add(int(state))
        clauses[place].setdefault(finding, []).append(sentences[place].clause(first - start, last - start))
    return [
        _Read(start, end, _closed(report[start:end]), *findings)
        for (start, end), *findings in zip(spans, states, clauses, strict=True)
    ]


def _closed(sentence: str) -> str:
    """A sentence on one line with a full stop, as it can stand between others."""
    line = " ".join(sentence.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _mentions(sentences: Iterable[_Read]) -> Iterator[tuple[_Read, int]]:
    """Each sentence with each of its findings."""
    return ((sentence, finding) for sentence in sentences for finding in sorted(sentence.states))


def _conflict(state: int, truth: int) -> bool:
    """Whether one says present (for certain or perhaps) and the other absent."""
    negative = CheXpertState.NEGATIVE
    return (state in PRESENT and truth == negative) or (state == negative and truth in PRESENT)


def _put(report: str, sentence: _Read, text: str | None) -> str:
    """`report` with `text` in the place of a sentence, or without it."""
    head, tail = report[: sentence.start], report[sentence.end :]
    if text is not None:
        return head + text + tail
    return head + tail.lstrip() if tail.strip() else head.rstrip()


def _lead(sentences: Sequence[_Read]) -> str:
    """The first sentence that has a finding, else the first."""
    findings = (s.text for s in sentences if any(states & PRESENT for states in s.states.values()))
    return next(findings, sentences[0].text)


def _most_similar(sentence: _Read, false: Iterable[int], sources: Sequence[_Read], threshold: float) -> _Read | None:
    """Of `sources` the one most similar to what `sentence` says of the findings `false`; the first of equals."""
    entities = [_words(clause) for finding in false for clause in sentence.clauses[finding]]
    best, closest = threshold, None
    for source in sources:
        others = [_words(clause) for clauses in source.clauses.values() for clause in clauses]
        if others:
            mean = sum(max(_cosine(entity, other) for other in others) for entity in entities) / len(entities)
            if mean > best or (closest is None and mean == best):
                best, closest = mean, source
    return closest


@lru_cache(maxsize=4096)
def _words(clause: str) -> frozenset[str]:
    """The words of a clause, those for one thing being one; without function words and negations."""
    return frozenset(name for name, _ in graph_words(_GRAPH([clause])[0]))


def _cosine(first: frozenset[str], second: frozenset[str]) -> float:
    """The cosine of two sets' indicator vectors; 0 where one is empty."""
    return len(first & second) / math.sqrt(len(first) * len(second)) if first and second else 0.0
