"""Sections of a MIMIC-CXR report: where its headers are, which text is the final report's, and R2Gen's cleaning.

The idea of the section parser that MIMIC-CXR's authors published (headers by name, headers of a view count as
findings, else what follows the first paragraph), with rules of our own for what it leaves open:

- wet reads, preliminary reports and addenda are set aside: they never reach findings or impression;
- of several final reports in a file the last one with findings or impression counts;
- a header that is not in the list is known by its form (`section_of`): compounds, qualifiers, misspellings;
- one that stays unknown ("LUNGS:") ends any section but findings and impression, of which it is a part, and is named;
- a view's header after the impression ("PORTABLE CHEST, 5 PM:") ends it and continues the findings;
- indication and history end with their first paragraph: they are a model's input, and what follows without a header
  is mostly what the images show.
"""

import re
from difflib import get_close_matches

from recipes.data.sections import clean, clean_as_r2gen

CLEANINGS = ("plain", "r2gen", "rg4")
_NAMES = {
    "findings": "findings, finding, reference findings, findins, findngs, findnings, finidngs",
    "impression": """impression, impressions, conclusion, conclusions, findings and impression, findings/impression,
        findings / impression, impression and findings, impression and recommendation,
        impression and recommendations, impresson, impresion, impession, imprssion, imprression""",
    "indication": """indication, indications, clinical indication, reason for exam, reason for examination,
        reason for study, reason for the exam, indication and history, idication""",
    "history": "history, clinical history, patient history, clinical information, medical history",
    "comparison": """comparison, comparisons, comparison exam, comparison film, comparison films, reference exam,
        comparision, comparsion""",
    "technique": "technique, procedure",
    "examination": "examination, exam, type of examination, type of exam, study",
    "other": """notification, notifications, recommendation, recommendations, recommendation(s), comment, comments,
        date, dose, communication, attending, radiologist""",
}
_SECTION = {" ".join(name.split()): section for section, names in _NAMES.items() for name in names.split(",")}
_ANY_NAME = "|".join(re.escape(name).replace(r"\ ", r"[ \t]+") for name in sorted(_SECTION, key=len, reverse=True))
_KNOWN = re.compile(
    rf"""^[ \t]*(?P<line>{_ANY_NAME})(?:[ \t]*[:;](?!\d)|[ \t]+-+(?=\s)|(?=\s|$))  # "Findings:", "IMPRESSION"
    | (?<=[.;?!)\]_])[ \t]+(?P<sentence>{_ANY_NAME})[ \t]*:(?!\d)  # "... chest. Impression: ..."
    | (?<![A-Za-z:])(?<!:[ ])(?<!:[ ]{{2}})(?P<capitals>{_ANY_NAME})[ \t]*:(?!\d)  # "... NONE FINDINGS: ..."
    """,
    re.MULTILINE | re.VERBOSE | re.IGNORECASE,
)
_FORMS = (  # in this order: "COMPARISON/FINDINGS:" are findings
    ("impression", re.compile(r"IMPRESSION|CONCLUSION|OPINION|\bSUMMARY\b")),
    ("findings", re.compile(r"FINDING|^(?:RADIOLOGY |X-?RAY )?REPORT$")),
    ("indication", re.compile(r"\bINDICATION|^REASON\b")),
    ("history", re.compile(r"HISTORY|\bCLINICAL (?:INFORMATION|DATA|DETAILS)\b")),
    ("comparison", re.compile(r"COMPARISON")),
)
_CLOSE = ("findings", "finding", "impression", "impressions", "indication", "comparison", "conclusion", "technique")
_NEAR = 0.87  # of difflib's ratio: a letter or two of ten wrong; IMPRESSION is .86 near COMPRESSION, another word
_CAPITALS = re.compile(r"^[ \t]*([A-Z](?:[A-Z0-9 ()/,&.'#_-]|(?<=\d):(?=\d\d))+?)[ \t]*:(?=\s|$)", re.MULTILINE)
_VIEW = re.compile(r"\b(?:chest|portable|radiographs?|views?|pa|ap|lateral|frontal|supine|upright|ribs)\b", re.I)
_RULE = re.compile(r"^[ \t]*[_=]{10,}[ \t]*$", re.MULTILINE)
_MARK = re.compile(
    r"^[ \t]*(?:(?P<final>final[ \t]+report)\b|(?P<addendum>(?:final[ \t]+)?addendum)\b"
    r"|(?P<preliminary>wet[ \t]*read|preliminary[ \t]+report|provisional[ \t]+findings|pfi\b))(?P<end>[ \t]*(?::|$))?",
    re.MULTILINE | re.IGNORECASE,
)
_TARGETS = ("findings", "impression")
_ALONE = re.compile(r"[ \t]*(?:\n|$)")
_UNMARKED = re.compile(r"[ \t]*(?:\n|$)|[ \t]+[A-Z]")  # "IMPRESSION  No change."
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def read_sections(text: str) -> dict[str, str]:
    """Lower-case section name -> raw text, of the final report in the file `text`; a section without words is absent.

    Names: findings, impression, indication, history, comparison, technique, examination, and `findings_from`, which
    says where the findings stood: "header", "view header" ("PORTABLE CHEST:") or "last paragraph" (reports without
    findings and impression headers), and `unknown_headers`, a line for each header in capitals that is not known and
    stands in findings or impression. Empty where the file holds no final report (a wet read alone).
    """
    reports = [_read_report(report) for report in _final_reports(text.replace("\r\n", "\n").replace("\r", "\n"))]
    complete = [report for report in reports if "findings" in report or "impression" in report]
    return (complete or reports or [{}])[-1]


def clean_mimic(text: str | None, cleaning: str) -> str | None:
    """A section under `CLEANINGS`, or None where no word is left; `plain` is that of sections.clean.

    `r2gen` is R2Gen's for MIMIC-CXR, `rg4` LLM-RG4's, which keeps colons as words of their own: lower case, sentences
    separated by " . ", no other punctuation, no underscores, no numbers of lists up to 5. Sources: LM-025, RG-101.
    """
    plain = clean(text)
    if cleaning == "plain" or plain is None:
        return plain
    return clean_as_r2gen(text, "rg4" if cleaning == "rg4" else "mimic")


def _final_reports(text: str) -> list[str]:
    """The final reports of a file; where no line says FINAL REPORT, what is neither wet read nor addendum."""
    finals, untitled = [], ""
    for part in _RULE.split(text):
        marks = [mark for mark in _MARK.finditer(part) if mark["end"] is not None or mark[0].isupper()]
        before = part[: marks[0].start()] if marks else part
        if finals:
            finals[-1] += before  # a line drawn within a report, or one that ends a wet read within it
        else:
            untitled += before
        ends = [mark.start() for mark in marks[1:]] + [len(part)]
        finals += [part[mark.end() : end] for mark, end in zip(marks, ends, strict=False) if mark["final"]]
    return finals or [untitled]


def section_of(name: str) -> str | None:
    """The section that a header in capitals names by its form, or None; "view" where it names a view of the chest.

    >>> section_of("IMPRESSION/RECOMMENDATION"), section_of("FINDINDGS"), section_of("LUNGS")
    ('impression', 'findings', None)
    """
    name = " ".join(name.split())
    if section := _SECTION.get(name.lower()):
        return section
    if section := next((section for section, form in _FORMS if form.search(name)), None):
        return section
    if _VIEW.search(name):
        return "view"
    nearest = get_close_matches(name.lower(), _CLOSE, 1, _NEAR)
    return _SECTION[nearest[0]] if nearest else None


def _headers(text: str) -> list[tuple[int, int, str]]:
    """(start, end, section) of each header; section is "view" or "other" where the name is not known."""
    headers = {}
    for match in _KNOWN.finditer(text):
        kind, name = match.lastgroup, match[match.lastgroup]
        section = _SECTION[" ".join(name.lower().split())]
        before = text[max(0, match.start(kind) - 100) : match.start(kind)]
        if kind == "line":
            header = _opens_line(text, match, before, section)
        elif kind == "sentence":
            header = name[0].isupper()
        else:  # "REFERENCE STUDY:" is another header than "STUDY:"
            last = before.rstrip()[-1:]
            header = name.isupper() and (section in _TARGETS or not (last.isupper() or last == ","))
        if header:
            headers[match.start(kind)] = match.end(), section
    for match in _CAPITALS.finditer(text):
        section = section_of(match[1]) or "unknown"
        start, end = match.start(1), headers.get(match.start(1), (0, ""))[0]
        if start not in headers or (match.end() > end and section in _TARGETS):  # "IMPRESSION AND PLAN:"
            headers = {at: header for at, header in headers.items() if not start < at < match.end()}
            headers[start] = match.end(), section
    return [(start, *headers[start]) for start in sorted(headers)]


def _opens_line(text: str, match: re.Match, before: str, section: str) -> bool:
    """Whether a known name at the start of a line is a header and not a word of a sentence that was wrapped there."""
    name, above = match["line"], before.rstrip()
    if text[match.end() - 1] not in ":;-":
        return name.isupper() and bool((_UNMARKED if section in _TARGETS else _ALONE).match(text, match.end()))
    opens = not above or above.endswith((".", ":")) or _BLANK_LINE.search(before, len(above))
    return name[0].isupper() or bool(opens)


def _read_report(text: str) -> dict[str, str]:
    parts: list[tuple[str, str]] = []
    unknown: list[str] = []
    name, start = "preamble", 0
    for at, end, section in [*_headers(text), (len(text), len(text), "end")]:
        if section == "view" and name == "impression":
            section = "later view"
        elif section in ("unknown", "view") and name in (*_TARGETS, "view", "later view"):
            if section == "unknown":
                unknown.append(" ".join(text[at:end].split()).rstrip(" :"))
            continue
        parts.append((name, text[start:at]))
        name, start = section, end
    parts = [(name, part) for name, part in parts if _has_words(part)]
    sections: dict[str, str] = {}
    titled = any(name == "findings" for name, _ in parts)
    for name, part in parts:
        if name == "later view":
            name = "findings" if titled else "view"
        part = _paragraphs(part)[0] if name in ("indication", "history") else part.strip()
        sections[name] = f"{sections[name]}\n{part}" if name in sections else part
    origin = "header"
    if "findings" not in sections and "view" in sections:
        sections["findings"], origin = sections["view"], "view header"
    if "findings" not in sections and "impression" not in sections and parts:
        name, part = parts[-1]
        paragraphs = _paragraphs(part)
        untitled = paragraphs if name == "preamble" and _is_sentence(paragraphs[0]) else paragraphs[1:]
        if untitled:
            sections["findings"], origin = "\n\n".join(untitled), "last paragraph"
            sections[name] = paragraphs[0]
    output = {name: part for name, part in sections.items() if name not in ("preamble", "view", "other", "unknown")}
    output |= {"findings_from": origin} if "findings" in output else {}
    return output | ({"unknown_headers": "\n".join(dict.fromkeys(unknown))} if unknown else {})


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in _BLANK_LINE.split(text) if part.strip()]


def _has_words(text: str) -> bool:
    return any(character.isalpha() for character in text)


def _is_sentence(paragraph: str) -> bool:
    """Not a title such as "PA AND LATERAL CHEST, ___"."""
    return paragraph.endswith((".", "!", "?")) and any(character.islower() for character in paragraph)
