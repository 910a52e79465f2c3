"""Pairs of a preferred and a rejected report, ranked by rewards."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recipes.files import InputError

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
