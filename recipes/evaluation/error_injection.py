"""One error put into a report by rule: the six kinds that ReXVal's radiologists counted, and paraphrases without any.

    false finding, omission, wrong place, wrong severity, invented comparison, missing comparison

A rule changes one sentence and leaves the others; None where the report offers no place for it.
"""

import re
from collections.abc import Callable

from rewards.findings import FindingReader

_READ = FindingReader()
SENTENCES = re.compile(r"(?<=[.!?])\s+")
_ADDED = {
    "pneumothorax": "There is a small left pneumothorax.",
    "effusion": "There is a moderate right pleural effusion.",
    "fracture": "There is a fracture of the left sixth rib.",
    "lesion": "There is a nodule in the right upper lobe.",
    "adenopathy": "There is hilar lymphadenopathy.",
    "consolidation": "There is pneumonia in the left lower lobe.",
}
_PLACES = {
    **{"left": "right", "right": "left", "upper": "lower", "lower": "upper", "apical": "basilar", "basilar": "apical"},
    **{"base": "apex", "apex": "base", "bilateral": "left", "bibasilar": "left apical"},
}
_SIZES = {
    **dict.fromkeys(("small", "tiny", "trace", "minimal", "mild", "slight"), "large"),
    **dict.fromkeys(("large", "massive", "severe", "marked", "extensive"), "small"),
    **{
        "mildly": "severely",
        "slightly": "severely",
        "severely": "mildly",
        "markedly": "mildly",
        "moderate": "minimal",
    },
}
_COMPARED = re.compile(
    r"\b(?:(?:again|remains?|persistent|persists?|stable|unchanged|interval|new|newly|improved|improving|worsened"
    r"|worsening|similar|increasing|decreasing|increased|decreased)\b ?|(?:since|compared (?:to|with)|from)"
    r" (?:the |a )?(?:prior|previous|earlier|last)(?: (?:study|exam|examination|film|radiograph))?)",
    re.I,
)
_PARAPHRASES = (
    (r"\bcardiomegaly\b", "enlarged heart"),
    (r"\bpleural effusions?\b", "pleural fluid"),
    (r"\bwithin normal limits\b", "normal"),
    (r"\bno evidence of\b", "no"),
    (r"\bis (?:seen|noted|identified|present)\b", "is visible"),
    (r"\bare (?:seen|noted|identified|present)\b", "are visible"),
    (r"\bunremarkable\b", "normal"),
    (r"\bopacities\b", "opacification"),
    (r"\bdegenerative changes?\b", "spondylosis"),
)


def _abnormal(report: str) -> list[tuple[int, str]]:
    """Place and text of the sentences that state a finding."""
    return [(i, text) for i, text in enumerate(SENTENCES.split(report)) if _READ([text])[0].findings]


def _with(report: str, place: int, sentence: str | None) -> str:
    sentences = SENTENCES.split(report)
    sentences[place : place + 1] = [sentence] if sentence else []
    return " ".join(sentences).strip()


def _swap(words: dict[str, str]) -> Callable[[str], str | None]:
    pattern = re.compile(rf"\b({'|'.join(words)})\b", re.I)

    def change(report: str) -> str | None:
        for place, sentence in _abnormal(report):
            if pattern.search(sentence):
                return _with(report, place, pattern.sub(lambda match: words[match[0].lower()], sentence))
        return None

    return change


def add_finding(report: str) -> str | None:
    """The report with one finding more, of which it says nothing yet."""
    read = _READ([report])[0]
    concepts = read.absent.union(*(finding.concepts for finding in read.findings))
    return next((f"{report} {sentence}" for name, sentence in _ADDED.items() if name not in concepts), None)


def omit_finding(report: str) -> str | None:
    """The report without the first sentence that states a finding."""
    for place, _ in _abnormal(report)[:1]:
        return _with(report, place, None) or None
    return None


def add_comparison(report: str) -> str | None:
    """The report with a comparison at a finding that has none."""
    for place, sentence in _abnormal(report):
        if not _COMPARED.search(sentence):
            return _with(report, place, sentence.rstrip(" .!?") + ", increased since the prior study.")
    return None


def omit_comparison(report: str) -> str | None:
    """The report without the comparison at a finding."""
    for place, sentence in _abnormal(report):
        if _COMPARED.search(sentence):
            return _with(report, place, " ".join(_COMPARED.sub("", sentence).split()))
    return None


def paraphrase(report: str) -> str | None:
    """The report in other words that say the same."""
    changed = report
    for pattern, words in _PARAPHRASES:
        changed = re.sub(pattern, words, changed, flags=re.I)
    return changed if changed != report else None


INJECTIONS: dict[str, Callable[[str], str | None]] = {
    "false finding": add_finding,
    "omission": omit_finding,
    "wrong place": _swap(_PLACES),
    "wrong severity": _swap(_SIZES),
    "invented comparison": add_comparison,
    "missing comparison": omit_comparison,
}
