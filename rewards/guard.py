"""`check_reward`: what a reward must keep to before it trains anything, tried out on the reward itself."""

import asyncio
import inspect
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.completions import completion_text

STRANGE = {
    "an empty completion": "",
    "a blank completion": " \n\t",
    "a completion of 10,000 tokens": "effusion " * 10_000,
    "an unclosed tag": "<think>effusion <report>",
    "tags out of order": "</report>effusion</think><report></report><think>",
    "1,000 tags": "<report><think>" * 500,
    "a lone surrogate": "effusion \ud800.",
    "NUL characters": "\x00effusion\x00",
    "emoji": "\U0001f468\u200d\u2695\ufe0f \U0001f4a9",
    "text from right to left": "\u202eאין תפליט\u202c",
}
# What a faulty reward raises. Anything else (KeyboardInterrupt, MemoryError) ends the check.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def check_reward(
    reward: Callable[..., list[float | None]],
    examples: Mapping[str, Sequence] | Sequence[Mapping[str, Any]],
    references: Sequence[str] = ("report", "labels"),
    tolerance: float = 1e-6,
) -> str:
    """Tries a TRL reward function (plain or async) on `examples` and returns a summary line.

    `examples`: columns of equal length, among them `completions` (strings or chat messages), or rows with a
    `completion` each; at least two rows, and such that their rewards differ. `references` names the columns that hold
    what a completion is compared with; those that the examples have are tested. Scores are equal within `tolerance`,
    relative or absolute.

    Checked: a finite float or None for every row; the same score when called again, in another order, one by one, in
    halves, with every row twice, with one completion in every row, beside strange completions, and as strings or chat
    messages; a finite score for every completion of `STRANGE`; None for a null reference, which leaves the other rows
    alone; an error on a reference column that is too short or too long; a `__name__`, and the same scores after
    `pickle`, by which TRL's asynchronous trainer hands a reward to its workers. Raises AssertionError that lists every
    violation, a sentence each, and ValueError on examples that cannot be used.

    Example:
        >>> from rewards import format_reward
        >>> check_reward(format_reward, {"completions": ["<report>Clear.</report>", "Clear."]})
        'format_reward passed: 2 rows, ... calls, scores from 0 to 0.25'
    """
    trial = _Trial(reward, _columns(examples), tolerance)
    if trial.score_examples():
        trial.try_batches()
        trial.try_pickle()
        trial.try_strange_completions()
        for column in references:
            if column in trial.columns:
                trial.try_reference(column)
    return trial.summary()


class _Trial:
    """One `check_reward`: the reward, the examples and the violations so far."""

    def __init__(self, reward: Callable, columns: dict[str, list], tolerance: float):
        self.reward, self.columns, self.tolerance = reward, columns, tolerance
        self.name = getattr(reward, "__name__", type(reward).__name__)
        self.texts = [completion_text(completion) for completion in columns["completions"]]
        self.rows = list(range(len(self.texts)))
        self.findings: list[str] = []
        self.calls = 0
        self.scores: list[float | None] = []  # of the examples as they are
        self.best = 0  # the row that scores most

    def answer(self, rows: dict[str, list]) -> Any:
        """One call with what TRL passes."""
        self.calls += 1
        texts = [completion_text(completion) for completion in rows["completions"]]
        passed = {
            "prompts": [""] * len(texts),
            "completion_ids": [list(text.encode(errors="surrogatepass")) for text in texts],
            "trainer_state": None,
            "log_extra": lambda column, values: None,
            "log_metric": lambda metric, value: None,
        }
        values = self.reward(**{**passed, **rows})
        return asyncio.run(_result(values)) if inspect.isawaitable(values) else values

    def attempt(self, when: str, rows: dict[str, list]) -> list | None:
        """The rewards of these rows, or None and a finding where there are none that TRL can use."""
        try:
            values = self.answer(rows)
        except FAILURES as error:
            values = f"raises {type(error).__name__}: {' '.join(str(error).split())}"
        fault = values if isinstance(values, str) else _unusable(values, len(rows["completions"]))
        if fault:
            self.findings.append(f"{when}: {fault}")
        return None if fault else values

    def same(self, a: float | None, b: float | None) -> bool:
        if a is None or b is None:
            return a is b
        return math.isclose(a, b, rel_tol=self.tolerance, abs_tol=self.tolerance)

    def compare(self, when: str, expected: list, rows: dict[str, list], batches: list[list[int]]) -> None:
        """Scores `rows` batch by batch (their numbers) and notes the first that misses the `expected` score."""
        for batch in batches:
            values = self.attempt(when, _take(rows, batch))
            if values is None:
                return
            for row, value in zip(batch, values, strict=True):
                if not self.same(value, expected[row]):
                    self.findings.append(f"{when}: row {row} scores {value}, elsewhere {expected[row]}")
                    return

    def score_examples(self) -> bool:
        """Whether the examples have scores, and not all the same, by which the rest can be judged."""
        scores = self.attempt("the examples as they are", self.columns)
        if scores is None:
            return False
        scored = [row for row in self.rows if scores[row] is not None]
        self.scores, self.best = scores, max(scored, key=lambda row: scores[row], default=0)
        if all(self.same(score, scores[self.best]) for score in scores):
            self.findings.append(f"all rows score {scores[0]}: give examples that it should tell apart")
            return False
        return True

    def try_batches(self) -> None:
        rows, scores = self.rows, self.scores
        half = len(rows) // 2
        batchings = {
            "called again": [rows],
            "in reverse order": [rows[::-1]],
            "in another order": [rows[1:] + rows[:1]],
            "one by one": [[row] for row in rows],
            "in two halves": [rows[:half], rows[half:]],
            "with every row twice": [[row for row in rows for _ in range(2)]],
        }
        for when, batches in batchings.items():
            self.compare(when, scores, self.columns, batches)
        messages = [[{"role": "assistant", "content": text}] for text in self.texts]
        self.compare("as strings", scores, {**self.columns, "completions": self.texts}, [rows])
        self.compare("as chat messages", scores, {**self.columns, "completions": messages}, [rows])
        when = "one completion in every row"
        repeated = {**self.columns, "completions": [self.texts[self.best]] * len(rows)}
        singles = [self.attempt(when, _take(repeated, [row])) for row in rows]
        if None not in singles:
            self.compare(when, [score for (score,) in singles], repeated, [rows])

    def try_pickle(self) -> None:
        if not hasattr(self.reward, "__name__"):
            self.findings.append("it has no __name__, by which TRL logs it")
        original = self.reward
        try:
            self.reward = pickle.loads(pickle.dumps(original))
            self.compare("after pickle", self.scores, self.columns, [self.rows])
        except (*FAILURES, pickle.PicklingError) as error:
            self.findings.append(f"pickle refuses it: {' '.join(str(error).split())}")
        self.reward = original

    def try_strange_completions(self) -> None:
        for kind, text in STRANGE.items():
            strange = self.attempt(kind, {**_take(self.columns, [self.best]), "completions": [text]})
            if strange == [None]:
                self.findings.append(f"{kind}: row {self.best}, which has a reference, scores None")
            elif strange:
                beside = {**_take(self.columns, [*self.rows, self.best]), "completions": [*self.texts, text]}
                batch = [*self.rows, len(self.rows)]
                self.compare(f"{kind} beside the examples", [*self.scores, *strange], beside, [batch])

    def try_reference(self, column: str) -> None:
        """Nulls in the column `column`, if the reward reads it, and another length."""
        columns, values, size = self.columns, self.columns[column], len(self.rows)
        when = f"null in every row of {column!r}"
        nulls = self.attempt(when, {**columns, column: [None] * size})
        if nulls and all(map(self.same, nulls, self.scores)):
            return  # the reward does not read this column
        if scored := [row for row, value in enumerate(nulls or []) if value is not None]:
            self.findings.append(f"{when}: row {scored[0]} scores {nulls[scored[0]]}, not None")
        holed = {**columns, column: [None if row == self.best else values[row] for row in self.rows]}
        expected = [None if row == self.best else self.scores[row] for row in self.rows]
        self.compare(f"null in row {self.best} of {column!r}", expected, holed, [self.rows])
        for uneven in (values[:-1], [*values, values[0]]):
            try:
                self.answer({**columns, column: uneven})
                self.findings.append(
                    f"{len(uneven)} rows of {column!r} for {size} completions are scored, not refused"
                )
            except FAILURES:
                pass  # as it should be

    def summary(self) -> str:
        """A line on the reward. Raises AssertionError with the violations, if any."""
        if self.findings:
            raise AssertionError("\n- ".join([f"{self.name} breaks {len(self.findings)} rule(s):", *self.findings]))
        numbers = [score for score in self.scores if score is not None]
        spread = f"scores from {min(numbers):.4g} to {max(numbers):.4g}"
        return f"{self.name} passed: {len(self.rows)} rows, {self.calls} calls, {spread}"


async def _result(awaitable):
    return await awaitable


def _columns(examples: Mapping[str, Sequence] | Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The examples as columns. Raises ValueError where they are too few, uneven or without completions."""
    if isinstance(examples, Mapping):
        columns = {key: list(values) for key, values in examples.items()}
    else:
        keys = examples[0].keys() if examples else []
        if uneven := [row for row, example in enumerate(examples) if example.keys() != keys]:
            raise ValueError(f"check_reward: row {uneven[0]} of the examples has other columns than row 0")
        columns = {key: [example[key] for example in examples] for key in keys}
    if "completion" in columns:
        columns["completions"] = columns.pop("completion")
    if len(columns.get("completions", [])) < 2:
        raise ValueError("check_reward needs at least two examples with completions")
    if uneven := [key for key, values in columns.items() if len(values) != len(columns["completions"])]:
        raise ValueError(f"check_reward: column {uneven[0]!r} of the examples is not as long as the completions")
    return columns


def _take(columns: dict[str, list], rows: Sequence[int]) -> dict[str, list]:
    return {key: [values[row] for row in rows] for key, values in columns.items()}


def _unusable(values: Any, size: int) -> str | None:
    """What is wrong with a reward's answer for `size` completions, if anything."""
    if not isinstance(values, list):
        return f"a {type(values).__name__} comes back, not a list"
    if len(values) != size:
        return f"{len(values)} values come back for {size} completions"
    for row, value in enumerate(values):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return f"row {row} scores {value!r}, a {type(value).__name__}, not a float or None"
        if value is not None and not math.isfinite(value):
            return f"row {row} scores {value}"
    return None
