"""What every reward does before it scores: take the reports out of the completions, find their references, and see to
it that a text is labelled, embedded or parsed once."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewards.completions import parse_completion
from rewards.labels import CONDITIONS

UNTAGGED = ("whole", "zero")


class TextCache:
    """`compute` with a memory: equal texts are computed once, and the last `size` texts are not computed again.

    `compute` maps a list of n texts to a sequence of n results (an array's rows count); so does this. Results are
    shared, so do not write into them. Texts are kept as digests: long ones take no memory.
    """

    def __init__(self, compute: Callable[[list[str]], Sequence], size: int = 8192):
        self.compute, self.size = compute, size
        self.name = getattr(compute, "name", type(compute).__name__)
        self.results: OrderedDict[bytes, Any] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> list:
        keys = [hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts]
        by_key = {key: self.results[key] for key in keys if key in self.results}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in by_key}
        if new:
            results = self.compute(list(new.values()))
            if isinstance(results, np.ndarray):
                results = [row.copy() for row in results]  # a view would keep its whole batch
            by_key |= zip(new, results, strict=True)
        for key in by_key:
            self.results[key] = by_key[key]
            self.results.move_to_end(key)
        while len(self.results) > self.size:
            self.results.popitem(last=False)
        return [by_key[key] for key in keys]

    def __getstate__(self) -> dict:
        """A pickle takes the computation along, and not the memory."""
        return self.__dict__ | {"results": OrderedDict()}


def cached(compute: Callable, size: int = 8192) -> TextCache:
    """`compute` with a memory, unless it has one already: rewards given the same TextCache share it."""
    return compute if isinstance(compute, TextCache) else TextCache(compute, size)


def read_reports(completions: list, untagged: str = "whole") -> tuple[list[str], list[bool]]:
    """Each completion's report, and whether it stood in `<report>` tags.

    `untagged`: without the tag the `whole` text outside `<think>` is the report, or with `zero` it is empty (A-22).
    """
    parsed = [parse_completion(completion) for completion in completions]
    return [p.report if p.tagged or untagged == "whole" else "" for p in parsed], [p.tagged for p in parsed]


def check_untagged(untagged: str) -> None:
    """Raises ValueError on a mode that does not exist."""
    if untagged not in UNTAGGED:
        raise ValueError(f"untagged must be 'whole' or 'zero', not {untagged!r}")


def known_rows(name: str, completions: list, references: list | None, column: str = "report") -> list[int]:
    """Rows that have a reference (not null). Raises ValueError where the column is missing, too long or too short, or
    where a reference text is empty: there is no score for it."""
    if references is None:
        raise ValueError(f"{name} needs the data set's column {column!r}")
    if len(references) != len(completions):
        raise ValueError(f"{name} got {len(completions)} completions but {len(references)} references")
    rows = [row for row, reference in enumerate(references) if reference is not None]
    if empty := [row for row in rows if isinstance(references[row], str) and not references[row].strip()]:
        raise ValueError(f"{name}: row {empty[0]} of column {column!r} is an empty text; give null to leave it out")
    return rows


def score_texts(
    name: str,
    score: Callable[[list[str], list[str]], Sequence[float]],
    completions: list,
    report: list[str | None] | None,
    untagged: str = "whole",
) -> list[float | None]:
    """The rewards of a function that compares texts.

    `score` takes m generated and m reference reports, each pair once, and gives m finite numbers. A row whose
    reference is null gives None, which TRL leaves out. Raises ValueError as `known_rows` does.
    """
    rows = known_rows(name, completions, report)
    texts, _ = read_reports(completions, untagged)
    pairs = {(texts[row], report[row]): 0.0 for row in rows}
    if pairs:
        generated, references = zip(*pairs, strict=True)
        pairs = dict(zip(pairs, map(float, score(list(generated), list(references))), strict=True))
    return [None if report[row] is None else pairs[texts[row], report[row]] for row in range(len(completions))]


class TextReward:
    """A TRL reward that compares a completion's report with its reference: `score_texts` of `score`, an object.

    Such a reward goes through `pickle` where `score` does (a function of a module, a `partial` of one, an object), as
    a trainer that scores in another process needs it; a function within a function does not. TRL logs it by `name`.
    Raises ValueError on an `untagged` mode that does not exist (see `make_mccs_reward`).

    Example:
        >>> reward = TextReward("same_reward", lambda texts, references: [a == b for a, b in zip(texts, references)])
        >>> reward(["<report>Clear.</report>"], report=["Clear."])
        [1.0]
    """

    def __init__(self, name: str, score: Callable[[list[str], list[str]], Sequence[float]], untagged: str = "whole"):
        check_untagged(untagged)
        self.__name__, self.score, self.untagged = name, score, untagged

    def __call__(self, completions: list, *, report: list[str | None] | None = None, **kwargs) -> list[float | None]:
        """The reward of each completion's report against the column `report`; a null reference gives None."""
        return score_texts(self.__name__, self.score, completions, report, self.untagged)


def label_pairs(
    name: str, labeler: TextCache, completions: list, texts: list[str], labels: list | None, report: list | None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """CheXpert states of generated and reference reports, each (m, 14), and the m rows that have a reference.

    The reference is the column `labels` (14 states a row), or else `report` (texts, labelled once and remembered).
    Raises ValueError as `known_rows` does, and on a row of `labels` that holds no 14 states.
    """
    if labels is None and report is None:
        raise ValueError(f"{name} needs the data set's column 'labels', or 'report', whose texts are then labelled")
    column = "report" if labels is None else "labels"
    rows = known_rows(name, completions, report if labels is None else labels, column)
    generated = [texts[row] for row in rows]
    if labels is None:
        states = labeler([*generated, *(report[row] for row in rows)])  # in one call, for fuller batches
        generated, truth = states[: len(rows)], states[len(rows) :]
    else:
        truth = [labels[row] for row in rows]
        if bad := [row for row, states in zip(rows, truth, strict=True) if len(states) != len(CONDITIONS)]:
            raise ValueError(f"{name}: row {bad[0]} of column 'labels' holds {len(labels[bad[0]])} states, not 14")
        generated = labeler(generated)
    return *(np.asarray(s, dtype=None if rows else int).reshape(-1, len(CONDITIONS)) for s in (generated, truth)), rows


class LabelReward:
    """A TRL reward that compares the CheXpert labels of a completion's report with those of its reference.

    `score` maps the states of m generated and m reference reports, (m, 14), to m numbers; `labeler` maps n texts to
    states (n, 14). TRL logs the reward by `name`. It goes through `pickle` where `score` and `labeler` do. Raises
    ValueError on an `untagged` mode that does not exist (see `make_mccs_reward`).
    """

    def __init__(self, name: str, score: Callable[..., np.ndarray], labeler: Callable, untagged: str = "whole"):
        check_untagged(untagged)
        self.__name__, self.score, self.labeler, self.untagged = name, score, cached(labeler), untagged

    def __call__(
        self,
        completions: list,
        *,
        labels: list | None = None,
        report: list[str] | None = None,
        log_metric: Callable | None = None,
        log_extra: Callable | None = None,
        **kwargs,
    ) -> list[float | None]:
        """The reward of each completion's report against its reference.

        The reference is the data set's column `labels` (14 CheXpert states a row), or else `report` (texts, labelled
        once and remembered). A row whose reference is null gives None, which TRL leaves out.
        """
        texts, tagged = read_reports(completions, self.untagged)
        generated, truth, rows = label_pairs(self.__name__, self.labeler, completions, texts, labels, report)
        rewards: list[float | None] = [None] * len(completions)
        for row, value in zip(rows, self.score(generated, truth).tolist(), strict=True):
            rewards[row] = value
        self.log(texts, tagged, generated, truth, log_metric, log_extra)
        return rewards

    def log(
        self,
        texts: list[str],
        tagged: list[bool],
        generated: np.ndarray,
        truth: np.ndarray,
        log_metric: Callable | None,
        log_extra: Callable | None,
    ) -> None:
        """What TRL shall log beside the reward itself: nothing, unless a reward has more to say."""
