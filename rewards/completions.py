"""The one parser of `<think>...</think><report>...</report>` completions (MRG-R1 section III-B.1; A-22)."""

import re
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

# MRG-R1's tags, and reasoning as other models mark it: <THINK>, < thinking >, <think step="1">, [THINK], <reasoning>
TAG = re.compile(
    r"(</?report>|<\s*(?:/\s*)?(?:think(?:ing)?|thoughts?|reasoning)(?:/|\s[^<>]*)?>|\[\s*(?:/\s*)?think(?:ing)?\s*\])",
    re.IGNORECASE,
)
TAGS = ["<think>", "</think>", "<report>", "</report>"]


class Completion(NamedTuple):
    """A parsed completion.

    `report` is the text to be labelled: what follows the first `<report>` outside the reasoning, up to the next tag
    or the end; without that tag everything outside the reasoning. Text is reasoning, in whatever spelling the tags
    are, where the nearest tag of reasoning before it opens or the nearest one after it closes: to the end of nested
    reasoning, and from the start where the prompt opened it. Only reasoning that was opened once and never closed ends
    where a report begins. `tagged` tells whether there was such a `<report>`. `format_score` is the graded format
    reward, 1.0, 0.5, 0.25 or 0.0 (`rewards/format.py`).
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
    """Splits a completion into reasoning and report in one linear pass; any text is accepted.

    The format reward is for tags in lower case and no other spelling.
    """
    return _parse(completion_text(completion))[0]


def report_spans(completion: str | list[dict]) -> list[tuple[int, int]]:
    """The characters [start, end) of a completion's text that its report is made of, in one linear pass.

    One span where the report stands in its tag, empty where nothing does; without the tag those outside the
    reasoning, which may be none. White space around them is left out.

        >>> text = "<think>No fluid.</think><report> Clear. </report>"
        >>> [text[start:end] for start, end in report_spans(text)]
        ['Clear.']
    """
    return list(_parse(completion_text(completion))[1])


def _kind(tag: str) -> str:
    """Which of TAGS a tag stands for, or "" for a report tag in another spelling, which is none."""
    if "report" in tag.lower():
        return tag if tag in TAGS else ""
    return "</think>" if tag[1:].lstrip().startswith("/") else "<think>"


@lru_cache(maxsize=256)  # each reward of a step reads the same completions
def _parse(text: str) -> tuple[Completion, tuple[tuple[int, int], ...]]:
    """The parts of a completion, and the spans of its report."""
    before, *rest = TAG.split(text)
    names, after = rest[::2], rest[1::2]  # tags, and the text behind each
    kinds = [_kind(name) for name in names]
    starts = accumulate(
        (len(piece) + len(name) for piece, name in zip([before, *after], names, strict=False)), initial=0
    )

    def nearest(last: str, kind: str) -> str:
        return kind if kind in TAGS[:2] else last

    opening = accumulate(kinds, nearest, initial="")
    closing = list(accumulate(reversed(kinds), nearest, initial=""))[::-1]
    reasoning = [
        last == "<think>" or following == "</think>" for last, following in zip(opening, closing, strict=True)
    ]
    cut_off = kinds.count("<think>") == 1 and "</think>" not in kinds

    think, outside, report, spans = [], [], None, []
    for text_of_tag, start, kind, inside in zip([before, *after], starts, ["", *kinds], reasoning, strict=True):
        span = (start + len(text_of_tag) - len(text_of_tag.lstrip()), start + len(text_of_tag.rstrip()))
        if kind == "<report>" and (not inside or cut_off):
            report, spans = text_of_tag, [span if text_of_tag.strip() else (start, start)]
            break
        (think if inside else outside).append(text_of_tag)
        if not inside and text_of_tag.strip():
            spans.append(span)

    score = 0.0
    if names == TAGS and after[2].strip():
        score = 1.0 if after[0].strip() and not (before + after[1] + after[3]).strip() else 0.5
    elif names == TAGS[2:] and after[0].strip():
        score = 0.25
    completion = Completion(
        report=(" ".join(outside) if report is None else report).strip(),
        think=" ".join(think).strip(),
        tagged=report is not None,
        format_score=score,
    )
    return completion, tuple(spans)
