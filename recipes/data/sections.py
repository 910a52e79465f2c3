"""Sections of a radiology report: cleaning them and joining them to the target text."""

import html
import re
from functools import lru_cache

from recipes.files import InputError

CLEANINGS = ("plain", "r2gen")
TARGETS = {
    "findings": ("findings",),
    "impression": ("impression",),
    "findings+impression": ("findings", "impression"),
}

_LIST_NUMBER = re.compile(r"(?:^|(?<=[.:;?!]\s))\d{1,2}[.)](?:\s+|(?=[A-Za-z]))")
_SPACE_BEFORE_MARK = re.compile(r"\s+([.,;:])(?!\d)")
_REPEATED_MARK = re.compile(r"([.,;:])(?:\s*\1)+")
_WORD = re.compile(r"[^\W\d_]+")
_DELETED = str.maketrans("", "", ".,?;*!%^&_+()]{}:<=>@[\"/\\'")
_R2GEN = {  # how often two dots become one, and what is deleted
    "iu_xray": (3, _DELETED),
    "mimic": (8, _DELETED),
    "rg4": (8, str.maketrans("", "", ".,?;*!%^&_+()[]{}\"/\\'")),
}


@lru_cache(maxsize=8192)  # a study's sections are cleaned again where they are the prior of the next one
def clean(text: str | None, cleaning: str = "plain") -> str | None:
    """One cleaned section, or None where no word is left (de-identification marks, "XXXX", are no words).

    Args:
        text: a section as it stands in the source; None stays None.
        cleaning: "plain" resolves HTML entities, makes white space single, drops the numbers of lists ("1. ", "2) ")
            and repeated punctuation (". ."), and leaves words, case, measures and XXXX alone. "r2gen" adds
            `clean_as_r2gen`.

    Raises InputError on another `cleaning`.
    """
    if cleaning not in CLEANINGS:
        raise InputError(f"--cleaning must be one of {', '.join(CLEANINGS)}, got {cleaning!r}")
    text = " ".join(html.unescape(text or "").split())
    if cleaning == "r2gen":
        text = clean_as_r2gen(text)
    else:
        text = _LIST_NUMBER.sub("", text)
        text = _REPEATED_MARK.sub(r"\1", _SPACE_BEFORE_MARK.sub(r"\1", text)).lstrip(".,;: ")
    return text if any(set(word.upper()) != {"X"} for word in _WORD.findall(text)) else None


def clean_as_r2gen(text: str, variant: str = "iu_xray") -> str:
    """R2Gen's cleaning of reports: lower case, sentences separated by " . ", no other punctuation.

    Token for token what its tokenizer reads (white space is made single here), its side effects included: the numbers
    1 to 5 are dropped wherever they look like a list's, so "L1. No" becomes "lno", and "3.5" becomes "35". `variant`:
    "iu_xray", "mimic", or LLM-RG4's, "rg4", which keeps colons as words. Sources: LM-025, RG-101; Chen et al. 2020,
    published code of the tokenizer.
    """
    dots, deleted = _R2GEN[variant]
    text = " ".join(text.split())
    for _ in range(dots):
        text = text.replace("..", ".")
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    if variant == "rg4":
        text = text.replace(":", " :")
    sentences = [sentence.translate(deleted) for sentence in text.strip().lower().split(". ")]
    return " ".join(" . ".join([*sentences, ""]).split())


def target_of(sections: dict[str, str | None], report: str | None) -> str | None:
    """The target of `TARGETS` that `report` is, of `sections`; None where it is not made of whole sections.

    >>> target_of({"findings": "No change. Clear.", "impression": "Clear."}, "No change. Clear.")
    'findings'
    """
    return next((target for target in TARGETS if report and target_text(sections, target) == report), None)


def target_text(sections: dict[str, str | None], target: str) -> str | None:
    """The target report of cleaned `sections` ("findings", "impression"); None where every wanted one is missing.

    `target` is "findings" (R2Gen's choice for IU X-Ray), "impression" or "findings+impression", which joins those
    that exist by a space. Raises InputError on another target.
    """
    if target not in TARGETS:
        raise InputError(f"--target must be one of {', '.join(TARGETS)}, got {target!r}")
    return " ".join(filter(None, map(sections.get, TARGETS[target]))) or None
