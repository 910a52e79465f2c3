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


def check_reward(  # noqa: C901
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
    """
    columns = _columns(examples)
    size = len(columns["completions"])
    name = getattr(reward, "__name__", type(reward).__name__)
    findings: list[str] = []
    calls = 0

    def answer(rows: dict[str, list]) -> Any:
        """One call with what TRL passes."""
        nonlocal calls
        calls += 1
        texts = [completion_text(completion) for completion in rows["completions"]]
        passed = {
            "prompts": [""] * len(texts),
            "completion_ids": [list(text.encode(errors="surrogatepass")) for text in texts],
            "trainer_state": None,
            "log_extra": lambda column, values: None,
            "log_metric": lambda metric, value: None,
        }
        values = reward(**{**passed, **rows})
        return asyncio.run(_result(values)) if inspect.isawaitable(values) else values

    def attempt(when: str, rows: dict[str, list]) -> list | None:
        """The rewards of these rows, or None and a finding where there are none that TRL can use."""
        try:
            values = answer(rows)
        except FAILURES as error:
            values = f"raises {type(error).__name__}: {' '.join(str(error).split())}"
        if wrong := values if isinstance(values, str) else _unusable(values, len(rows["completions"])):
            findings.append(f"{when}: {wrong}")
        return None if wrong else values

    def same(a: float | None, b: float | None) -> bool:
        return a is b if a is None or b is None else math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)

    def compare(when: str, expected: list, rows: dict[str, list], batches: list[list[int]]) -> None:
        """Scores `rows` batch by batch (their numbers) and notes the first that misses the `expected` score."""
        for batch in batches:
            values = attempt(when, _take(rows, batch))
            if values is None:
                return
            for row, value in zip(batch, values, strict=True):
                if not same(value, expected[row]):
                    findings.append(f"{when}: row {row} scores {value}, elsewhere {expected[row]}")
                    return

    def summary() -> str:
        if findings:
            raise AssertionError("\n- ".join([f"{name} breaks {len(findings)} rule(s):", *findings]))
        known = [score for score in scores if score is not None]
        return f"{name} passed: {size} rows, {calls} calls, scores from {min(known):.4g} to {max(known):.4g}"

    scores = attempt("the examples as they are", columns)
    if scores is None:
        return summary()
    best = max((row for row in range(size) if scores[row] is not None), key=lambda row: scores[row], default=None)
    if best is None or all(same(score, scores[best]) for score in scores):
        findings.append(f"all rows score {scores[0]}: give examples that it should tell apart")
        return summary()

    every = list(range(size))
    batchings = {
        "called again": [every],
        "in reverse order": [every[::-1]],
        "in another order": [every[1:] + every[:1]],
        "one by one": [[row] for row in every],
        "in two halves": [every[: size // 2], every[size // 2 :]],
        "with every row twice": [[row for row in every for _ in range(2)]],
    }
    for when, batches in batchings.items():
        compare(when, scores, columns, batches)
    texts = [completion_text(completion) for completion in columns["completions"]]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    compare("as strings", scores, {**columns, "completions": texts}, [every])
    compare("as chat messages", scores, {**columns, "completions": messages}, [every])
    when = "one completion in every row"
    repeated = {**columns, "completions": [texts[best]] * size}
    alone = [attempt(when, _take(repeated, [row])) for row in every]
    if None not in alone:
        compare(when, [score for (score,) in alone], repeated, [every])

    if not hasattr(reward, "__name__"):
        findings.append("it has no __name__, by which TRL logs it")
    given = reward
    try:
        reward = pickle.loads(pickle.dumps(given))
        compare("after pickle", scores, columns, [every])
    except (*FAILURES, pickle.PicklingError) as error:
        findings.append(f"pickle refuses it: {' '.join(str(error).split())}")
    reward = given

    for what, text in STRANGE.items():
        strange = attempt(what, {**_take(columns, [best]), "completions": [text]})
        if strange == [None]:
            findings.append(f"{what}: row {best}, which has a reference, scores None")
        elif strange:
            beside = {**_take(columns, [*every, best]), "completions": [*texts, text]}
            compare(f"{what} beside the examples", [*scores, *strange], beside, [[*every, size]])

    for column in [column for column in references if column in columns]:
        when = f"null in every row of {column!r}"
        nulls = attempt(when, {**columns, column: [None] * size})
        if nulls and all(map(same, nulls, scores)):
            continue  # the reward does not read this column
        if scored := [row for row, value in enumerate(nulls or []) if value is not None]:
            findings.append(f"{when}: row {scored[0]} scores {nulls[scored[0]]}, not None")
        holed = {**columns, column: [None if row == best else columns[column][row] for row in every]}
        expected = [None if row == best else scores[row] for row in every]
        compare(f"null in row {best} of {column!r}", expected, holed, [every])
        for values in (columns[column][:-1], [*columns[column], columns[column][0]]):
            try:
                answer({**columns, column: values})
                findings.append(f"{len(values)} rows of {column!r} for {size} completions are scored, not refused")
            except FAILURES:
                pass  # what is wanted
    return summary()


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
