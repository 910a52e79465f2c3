"""How a text's findings stand to a reference: where they are said, which agree, contradict or are missing.

The demos' page and evaluate.py's report page both colour reports by it.
"""

from collections.abc import Sequence

from markupsafe import Markup, escape

from rewards.labels import CONDITIONS, FINDINGS, CheXpertState

PRESENT = (CheXpertState.POSITIVE, CheXpertState.UNCERTAIN)
WORDS = {
    CheXpertState.BLANK: "not mentioned",
    CheXpertState.POSITIVE: "present",
    CheXpertState.NEGATIVE: "absent",
    CheXpertState.UNCERTAIN: "possible",
}
Mention = tuple[int, int, int, int]  # start, end, condition index, state: as `LexicalLabeler.mentions` gives them


def agreement(state: int, reference: int) -> str:
    """`agrees`, `contradicts` or `unsaid` (the reference does not mention it); uncertain counts as present."""
    if reference == CheXpertState.BLANK:
        return "unsaid"
    return "agrees" if (state in PRESENT) == (reference in PRESENT) else "contradicts"


def group_mentions(mentions: Sequence[Mention]) -> list[list[Mention]]:
    """`mentions` in the order of the text, those that overlap in one group."""
    groups: list[list[Mention]] = []
    for mention in sorted(mentions):
        if groups and mention[0] < max(end for _, end, _, _ in groups[-1]):
            groups[-1].append(mention)
        else:
            groups.append([mention])
    return groups


def group_agreement(group: Sequence[Mention], reference: Sequence[int]) -> str:
    """The `agreement` of mentions that share a mark: `contradicts` where one does, else `agrees` where one does."""
    kinds = {agreement(state, reference[condition]) for _, _, condition, state in group}
    return next(kind for kind in ("contradicts", "agrees", "unsaid") if kind in kinds)


def mark_findings(text: str, mentions: Sequence[Mention], reference: Sequence[int]) -> Markup:
    """`text` as escaped HTML with a `<mark>` around each group of mentions, its class the `group_agreement`."""
    pieces, position = [], 0
    for group in group_mentions(mentions):
        start, end = group[0][0], max(mention[1] for mention in group)
        note = "; ".join(
            f"{CONDITIONS[condition]}: {WORDS[state]}, reference: {WORDS[reference[condition]]}"
            for _, _, condition, state in group
        )
        kind = group_agreement(group, reference)
        pieces += [escape(text[position:start]), Markup('<mark class="{}" title="{}">').format(kind, note)]
        pieces += [escape(text[start:end]), Markup("</mark>")]
        position = end
    return Markup("").join([*pieces, escape(text[position:])])


def missed_findings(mentions: Sequence[Mention], reference: Sequence[int]) -> list[str]:
    """Findings that `reference` calls present or possible and no mention names."""
    mentioned_conditions = {condition for _, _, condition, _ in mentions}
    return [name for i, name in enumerate(FINDINGS) if reference[i] in PRESENT and i not in mentioned_conditions]
