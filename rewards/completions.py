"""The one parser of `<think>...</think><report>...</report>` completions (MRG-R1 section III-B.1; A-18, A-22)."""

import re
from functools import lru_cache
from typing import NamedTuple

TAG = re.compile(r"(</?(?:think|report)>)")
TAGS = ["<think>", "</think>", "<report>", "</report>"]


class Completion(NamedTuple):
    """A parsed completion.

    `report` is the text to be labelled: what follows the first `<report>` outside the reasoning, up to the next tag
    or the end; without that tag everything outside `<think>`. Reasoning is never part of it. `tagged` tells whether a
    `<report>` tag was there. `format_score` is the graded format reward, 1.0, 0.5, 0.25 or 0.0 (`rewards/format.py`).
    """

    report: str
    think: str
    tagged: bool
    format_score: float


def completion_text(completion: str | list[dict]) -> str:
    """Text of a TRL completion: a string, or a list of chat messages whose content is a string or a list of parts."""
    if isinstance(completion, str):
        return completion
    parts = []
    for message in completion:
        content = message["content"] or ""
        parts += [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
    return "".join(parts)


def parse_completion(completion: str | list[dict]) -> Completion:
    """Splits a completion into reasoning and report in one linear pass; any text is accepted, tags are lower case."""
    return _parse(completion_text(completion))


@lru_cache(maxsize=256)  # each reward of a step reads the same completions
def _parse(text: str) -> Completion:
    before, *rest = TAG.split(text)
    names, after = rest[::2], rest[1::2]  # tags, and the text behind each

    think, outside, report, thinking = [], [], None, False
    (think if names[:1] == ["</think>"] else outside).append(before)  # else the opening tag stood in the prompt
    last_close = len(names) - 1 - names[::-1].index("</think>") if "</think>" in names else -1
    for i, name in enumerate(names):
        if name in ("<think>", "</think>"):
            thinking = name == "<think>"
        if name == "<report>" and (not thinking or i > last_close):
            report = after[i]
            break
        (think if thinking else outside).append(after[i])

    score = 0.0
    if names == TAGS and after[2].strip():
        score = 1.0 if after[0].strip() and not (before + after[1] + after[3]).strip() else 0.5
    elif names == TAGS[2:] and after[0].strip():
        score = 0.25
    return Completion(
        report=(" ".join(outside) if report is None else report).strip(),
        think=" ".join(think).strip(),
        tagged=report is not None,
        format_score=score,
    )
