"""Pairs of a preferred and a rejected report: ranked by rewards, or retrieved as RRG-DPO does (A-60)."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from recipes.files import InputError
from recipes.rg4.token_weights import sentence_spans
from rewards.labels import FINDINGS, CheXpertState

BATCH = 256  # texts compared with all others at a time
COUNTS = ("without two completions", "with scores too near to each other", "that no reward could score")


def score_completions(
    rewards: Sequence[Callable], weights: Sequence[float], texts: Sequence[str], studies: Sequence[Mapping]
) -> list[float]:
    """The weighted sum of `rewards` of each text; NaN where all of them are None, as in TRL.

    `studies`: of each text the row with `report` and `labels` that it is compared with.

        >>> length = lambda completions, **columns: [float(len(text[0]["content"])) for text in completions]
        >>> score_completions([length], [2.0], ["abc"], [{"report": "a", "labels": [0] * 14}])
        [6.0]
    """
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns = {
        name: [study[name] for study in studies] for name in ("report", "labels", "study_id") if name in studies[0]
    }
    sums = [math.nan] * len(texts)
    for reward, weight in zip(rewards, weights, strict=True):
        for place, value in enumerate(reward(completions=completions, prompts=[""] * len(texts), **columns)):
            if value is not None:
                sums[place] = weight * value + (0.0 if math.isnan(sums[place]) else sums[place])
    return sums


def rank_completions(
    completions: Mapping[str, Sequence[str]],
    studies: Mapping[str, Mapping],
    rewards: Sequence[Callable],
    weights: Sequence[float],
    reference: bool = False,
    margin: float = 1e-8,
) -> tuple[list[dict], dict[str, int]]:
    """A pair of each study, in the order of `completions`, and how many studies gave none for which reason.

    The chosen text is the completion with the highest score, or with `reference` the study's report; the rejected one
    has the lowest score. Of equal scores the first one counts. `margin`: their scores must differ by more.
    """
    texts = [(study, text) for study, group in completions.items() for text in group]
    if reference:
        texts += [(study, studies[study]["report"]) for study in completions]
    scores = score_completions(rewards, weights, [text for _, text in texts], [studies[study] for study, _ in texts])
    groups: dict[str, list[tuple[float, str]]] = {study: [] for study in completions}
    tops: dict[str, tuple[float, str]] = {}
    generated = sum(map(len, completions.values()))
    for number, ((study, text), score) in enumerate(zip(texts, scores, strict=True)):
        if math.isnan(score):
            continue
        if number < generated:
            groups[study].append((score, text))
        else:
            tops[study] = (score, text)
    pairs, counts = [], dict.fromkeys(COUNTS, 0)
    for study, group in groups.items():
        top = tops.get(study) if reference else max(group, key=lambda pair: pair[0], default=None)
        if len(completions[study]) < 2 - reference:
            counts[COUNTS[0]] += 1
        elif top is None or not group:
            counts[COUNTS[2]] += 1
        else:
            low = min(group, key=lambda pair: pair[0])
            if top[0] - low[0] <= margin:
                counts[COUNTS[1]] += 1
                continue
            pair = {"study_id": study, "chosen": top[1], "rejected": low[1]}
            pairs.append({**pair, "chosen_score": top[0], "rejected_score": low[0]})
    return pairs, counts


def positive_findings(states: Sequence[int]) -> frozenset[int]:
    """The numbers of the findings that are positive, "No Finding" left out; `states`: the 14 of a text."""
    return frozenset(place for place in range(len(FINDINGS)) if states[place] == CheXpertState.POSITIVE)


def jaccard(first: frozenset, second: frozenset) -> float:
    """Common elements by all elements of two sets, 0 to 1; 1 where both are empty.

    >>> jaccard(frozenset({1, 2}), frozenset({2, 3})), jaccard(frozenset(), frozenset())
    (0.3333333333333333, 1.0)
    """
    return len(first & second) / len(first | second) if first | second else 1.0


def nearest_texts(texts: Sequence[str], number: int) -> list[list[int]]:
    """Of each text the places of the `number` others that are most like it, the nearest first.

    Alike is the cosine of the TF-IDF vectors of their words (scikit-learn's, lower case); of two that are equally
    near the first text comes first. Raises InputError where no text has a word.

    >>> nearest_texts(["clear lungs", "large heart", "clear lungs and heart"], 1)
    [[2], [2], [0]]
    """
    try:
        vectors = TfidfVectorizer(token_pattern=r"\w+", dtype=np.float32).fit_transform(texts)
    except ValueError as error:
        raise InputError("no report has a word, so that none is like another") from error
    number = min(number, len(texts) - 1)
    places = []
    for start in range(0, len(texts), BATCH):
        distance = -(vectors[start : start + BATCH] @ vectors.T).toarray()
        rows = np.arange(len(distance))
        distance[rows, start + rows] = np.inf  # a text itself
        likely = np.sort(np.argpartition(distance, number - 1, axis=1)[:, :number], axis=1)
        order = np.argsort(distance[rows[:, None], likely], axis=1, kind="stable")
        places += likely[rows[:, None], order].tolist()
    return places


def retrieve_rejected(studies: Mapping[str, Mapping], neighbours: int = 20) -> tuple[list[dict], dict[str, int]]:
    """A pair of each study, its report chosen and another study's rejected (RRG-DPO), and counts of them.

    Counted are studies without any other report, and those whose neighbours have its findings, all of them.

    `studies`: of each its `report` and its `labels`, 14 states. The rejected report is the one with the smallest
    Jaccard index of positive findings among the `neighbours` reports that are most like the chosen one, the nearest of
    several; where none has other findings, it is the second nearest. Reports with the chosen one's words are none of
    them.
    """
    first: dict[str, int] = {}
    texts, labels, numbers = [], [], {}
    for study, row in studies.items():
        words = " ".join(row["report"].lower().split())
        if words not in first:
            first[words] = len(texts)
            texts.append(row["report"])
            labels.append(positive_findings(row["labels"]))
        numbers[study] = first[words]
    if len(texts) < 2:
        return [], {"without another report": len(studies)}
    nearest, pairs = nearest_texts(texts, neighbours), []
    for study, number in numbers.items():
        findings = positive_findings(studies[study]["labels"])
        scores = [jaccard(findings, labels[place]) for place in nearest[number]]
        place = scores.index(min(scores)) if min(scores) < 1 else min(1, len(scores) - 1)
        pairs.append(
            {
                "study_id": study,
                "chosen": studies[study]["report"],
                "rejected": texts[nearest[number][place]],
                "jaccard": scores[place],
            }
        )
    return pairs, {"whose neighbours have the same findings": sum(pair["jaccard"] == 1 for pair in pairs)}


def with_conflicts(pairs: Mapping[str, Mapping], labeler: Callable) -> dict[str, dict]:
    """`pairs` with `chosen_spans` and `rejected_spans`, [start, end) of the sentences on findings that conflict.

    A finding conflicts that is positive in exactly one of the two reports by `labeler`, (n texts) -> (n, 14) states; a
    sentence is on it where it has any state of it by itself.
    """
    sides = ("chosen", "rejected")
    spans = {text: sentence_spans(text) for pair in pairs.values() for text in (pair[side] for side in sides)}
    parts = {text[start:end] for text, places in spans.items() for start, end in places}
    texts = sorted({*spans, *parts})
    states = dict(zip(texts, np.asarray(labeler(texts)).tolist(), strict=True)) if texts else {}
    marked = {}
    for study, pair in pairs.items():
        conflicts = positive_findings(states[pair["chosen"]]) ^ positive_findings(states[pair["rejected"]])
        marked[study] = dict(pair)
        for side in sides:
            text = pair[side]
            marked[study][f"{side}_spans"] = [
                [start, end]
                for start, end in spans[text]
                if any(states[text[start:end]][number] != CheXpertState.BLANK for number in conflicts)
            ]
    return marked


def read_pairs(file: str | Path) -> dict[str, dict[str, str]]:
    """Study -> its pair, from a file of recipes/build_preferences.py; raises InputError naming the bad line."""
    if not Path(file).is_file():
        raise InputError(f"there is no file of pairs {file}: recipes/build_preferences.py writes one")
    pairs = {}
    for number, line in enumerate(Path(file).read_text().splitlines(), 1):
        try:
            pair = json.loads(line)
        except ValueError as error:
            raise InputError(f"line {number} of {file} is no JSON") from error
        fields = ("study_id", "chosen", "rejected")
        if not isinstance(pair, dict) or not all(isinstance(pair.get(name), str) for name in fields):
            raise InputError(f"line {number} of {file} needs the texts {', '.join(fields)}")
        if pair["study_id"] in pairs:
            raise InputError(f"line {number} of {file} is a second pair of study {pair['study_id']}")
        pairs[pair["study_id"]] = pair
    if not pairs:
        raise InputError(f"{file} has no pair")
    return pairs
