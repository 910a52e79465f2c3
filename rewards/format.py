"""Format reward of MRG-R1 (section III-B.1): reasoning in `<think>`, then the report in `<report>`.

The paper gives 1 for full compliance, "partial credit for minor violations", otherwise 0. Our table (A-18):

| completion | score |
|---|---|
| one non-empty `<think>...</think>`, then one non-empty `<report>...</report>`, white space around them | 1.0 |
| the same, but with other text outside the tags, or with an empty `<think>` | 0.5 |
| one non-empty `<report>...</report>` and no think tag | 0.25 |
| anything else: a tag missing, repeated, nested, unclosed or out of order; an empty report | 0.0 |
"""

from collections.abc import Callable

from rewards.completions import parse_completion


class FormatReward:
    """The reward that `make_format_reward` returns."""

    def __init__(self, partial_credit: bool):
        self.__name__, self.partial_credit = "format_reward", partial_credit

    def __call__(self, completions: list, *, log_metric: Callable | None = None, **kwargs) -> list[float]:
        """Scores only the structure of each completion (string or chat messages); never looks at what it says."""
        scores = [parse_completion(completion).format_score for completion in completions]
        if log_metric and scores:
            log_metric("format/violations", sum(score < 1 for score in scores) / len(scores))
        return scores if self.partial_credit else [float(score == 1) for score in scores]


def make_format_reward(partial_credit: bool = True) -> FormatReward:
    """Returns a TRL reward function with values in {0, 0.25, 0.5, 1}; {0, 1} without `partial_credit`.

    Example:
        >>> reward = make_format_reward()
        >>> reward(["<think>No fluid.</think><report>Clear.</report>", "<report>Clear.</report>", "Clear."])
        [1.0, 0.25, 0.0]
    """
    return FormatReward(partial_credit)


format_reward = make_format_reward()
