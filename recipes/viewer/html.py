"""The pieces of HTML that recipes/app.py shows. What was typed and what a model writes is escaped."""

import base64
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

from recipes.evaluation.agreement import WORDS, group_mentions
from recipes.viewer.attribution import Attention, Look
from recipes.viewer.study import Picture
from recipes.viewer.systems import READ, System
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, FINDINGS, CheXpertState

Findings = Sequence[tuple[str, str, list[str]]]  # of list_findings
EMPTY = '<div class="written soft">The report is written here.</div>'
SILENT = WORDS[CheXpertState.BLANK]
KINDS = {
    CheXpertState.POSITIVE: "present",
    CheXpertState.UNCERTAIN: "possible",
    CheXpertState.NEGATIVE: "absent",
}
BOXES = (
    "Boxes of anatomy that came with the study; the words of the report choose them, so they show what it says, not "
    "where the model looked."
)
LOOK = (
    "Input gradient: the more orange, the more a small change of these pixels would change how probable the model "
    "finds this sentence. It is no outline of a finding, and no evidence that there is one."
)
ATTENTION = (
    "Region attention: the more orange, the more weight the region's text gives to what the model saw there. X-ray "
    "and text decide it before a word is written, and what the model saw at a place depends on the whole X-ray. It is "
    "no outline of a finding, and no evidence that there is one."
)
NO_ATTENTION = (
    "This LM-RRG has no region attention to draw: that needs region_attn_mode text_query, or region_pool text_attn."
)


def join_words(words: Sequence[str]) -> str:
    """ "a", "a and b", or "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def embed(png: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def show_picture(picture: Picture) -> Markup:
    """The X-ray, its file's name and size, and the warnings about it."""
    warnings = [Markup('<p class="warning">{}</p>').format(warning) for warning in picture.warnings]
    width, height = picture.size
    return Markup(
        '<figure class="xray"><img src="{}" alt="{}"><figcaption>{} · {} × {}</figcaption>{}</figure>'
    ).format(embed(picture.png), picture.name, picture.name, width, height, Markup("").join(warnings))


def show_report(report: str, complete: bool, cut: int | None = None) -> Markup:
    """The report as text; once `complete`, with its findings marked. `cut`: at how many tokens it was cut off."""
    note = Markup('<p class="warning">Cut off after {} tokens (--max_new_tokens).</p>').format(cut) if cut else ""
    if not report:
        return Markup('<div class="written soft">{}</div>{}').format("(an empty report)" if complete else "…", note)
    pieces, place = [], 0
    for group in group_mentions(LexicalLabeler().mentions(report)) if complete else ():
        states = [state for *_, state in group]
        kind = KINDS[next(candidate for candidate in KINDS if candidate in states)]
        start, end = group[0][0], max(mention[1] for mention in group)
        pieces += [escape(report[place:start]), Markup('<mark class="{}">{}</mark>').format(kind, report[start:end])]
        place = end
    text = Markup("").join([*pieces, escape(report[place:])])
    return Markup('<div class="written report{}">{}</div>{}').format("" if complete else " growing", text, note)


def tone(name: str, state: str) -> str:
    """The class of a state's colour; No Finding has that of what is absent."""
    return "absent" if name == CONDITIONS[-1] else state


def show_findings(rows: Findings) -> Markup:
    """The table of a report's findings and their sentences."""
    if not rows:
        return Markup('<p class="soft">The report mentions none of the 13 findings.</p>')
    lines = [
        Markup('<tr class="{}"><th scope="row">{}</th><td class="state">{}</td><td>{}</td></tr>').format(
            tone(name, state), name, state, Markup("<br>").join(escape(sentence) for sentence in sentences)
        )
        for name, state, sentences in rows
    ]
    silent = [name for name in FINDINGS if name not in {row[0] for row in rows}]
    return Markup(
        '<table class="findings"><thead><tr><th>Finding</th><th>State</th><th>The report says</th></tr></thead>'
        '<tbody>{}</tbody></table><p class="soft">Not mentioned: {}.</p>'
    ).format(Markup("").join(lines), ", ".join(silent) or "none")


def show_comparison(names: Sequence[str], findings: Sequence[Findings]) -> Markup:
    """Two reports' findings side by side: those that differ come first, and of these what one has and one denies."""
    states = [{name: state for name, state, _ in rows} for rows in findings]
    rows = [
        (name, *(state.get(name, SILENT) for state in states))
        for name in CONDITIONS
        if any(name in state for state in states)
    ]
    rows.sort(key=lambda row: (row[1] == row[2], SILENT in row[1:]))
    number = sum(first != second for _, first, second in rows)
    lines = [
        Markup('<tr class="{}"><th scope="row">{}</th>{}</tr>').format(
            "same" if first == second else "differs",
            Markup("{} <b>≠</b>").format(name) if first != second else name,
            Markup("").join(
                Markup('<td class="state {}">{}</td>').format("" if state == SILENT else tone(name, state), state)
                for state in (first, second)
            ),
        )
        for name, first, second in rows
    ]
    if not rows:
        return Markup('<p class="soft">Neither report mentions a finding.</p>')
    title = f"The two reports differ in {number} of {len(rows)} labels." if number else "All labels are the same."
    return Markup(
        '<h2 class="verdict">{}</h2><table class="comparison"><thead><tr><th>Label</th><th>{}</th><th>{}</th></tr>'
        "</thead><tbody>{}</tbody></table>"
    ).format(title, *names, Markup("").join(lines))


def show_boxes(png: bytes, size: tuple[int, int], places: Sequence[tuple[str, str, dict]]) -> Markup:
    """The X-ray with the boxes of `place_findings`, in pixels of `size`; nothing without one."""
    if not places:
        return Markup("")
    width, height = size
    shapes, captions = [], {}
    for name, state, box in places:
        captions.setdefault((name, state), []).append(box["region"])
        shapes.append(
            Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
            ).format(
                state, box["x0"], box["y0"], box["x1"] - box["x0"], box["y1"] - box["y0"], f"{name}: {box['region']}"
            )
        )
    lines = [
        Markup('<li class="{}">{} ({}): {}</li>').format(state, name, state, ", ".join(regions))
        for (name, state), regions in captions.items()
    ]
    return Markup(
        '<figure class="xray boxes"><svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<image href="{}" width="{}" height="{}"></image>{}</svg><figcaption><ul>{}</ul>{}</figcaption></figure>'
    ).format(
        width, height, f"X-ray with {len(places)} boxes", embed(png), width, height,
        Markup("").join(shapes), Markup("").join(lines), BOXES,
    )  # fmt: skip


def show_look(png: bytes, look: Look, sentence: str) -> Markup:
    """The X-ray under its `look`, a PNG of `draw_look`, and the regions that the sentence depends on most."""
    regions = ""
    if look.regions:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in look.regions)
        regions = Markup("<p>Features of LM-RRG that the sentence depends on most (gradient times feature): {}.</p>")
        regions = regions.format(shares)
    return Markup(
        '<figure class="xray look"><img src="{}" alt="{}"><figcaption><q>{}</q>{}<p>{}</p></figcaption></figure>'
    ).format(embed(png), f"where the model looked for: {sentence}", sentence, regions, LOOK)


def show_attention(
    png: bytes, attention: Attention, region: str, size: tuple[int, int], boxes: Sequence[dict]
) -> Markup:
    """The X-ray under an `attention`, a PNG of `draw_look`, with the study's boxes of `region` in pixels of `size`."""
    width, height = size
    figures = f"Of {attention.patches} patches the strongest weighs {attention.largest:.0%}"
    figures += f" (all alike: {1 / attention.patches:.1%})."
    if attention.inside is not None:
        figures += f" In the study's box of the region (dashed): {attention.inside:.0%} of the weight"
        figures += f" (all alike: {attention.even:.0%})."
    shapes = [
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"></rect>').format(
            box["x0"], box["y0"], box["x1"] - box["x0"], box["y1"] - box["y0"]
        )
        for box in boxes
        if box["region"] == region
    ]
    return Markup(
        '<figure class="xray attention"><svg viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<image href="{}" width="{}" height="{}"></image>{}</svg>'
        "<figcaption><b>{}</b><p>{}</p><p>{}</p></figcaption></figure>"
    ).format(
        width, height, f"region attention: {region}", embed(png), width, height,
        Markup("").join(shapes), region, figures, ATTENTION,
    )  # fmt: skip


def short_names(systems: Sequence[System]) -> list[str]:
    """The last part of each system's path, or the whole where that is the same."""
    names = [Path(system.name).name for system in systems]
    return names if len(set(names)) == len(names) else [system.name for system in systems]


def describe(system: System) -> Markup:
    """Which model it is, what of a study reaches it, and how it writes."""
    reads = ["the frontal X-ray", *["the lateral X-ray"] * system.reads_lateral]
    reads += [name.replace("_", " ") for name in READ if name in system.fields]
    return Markup('<h2>{}</h2><p class="soft">Reads {}. Prompt: {}. Decoding: {}.</p>').format(
        system.name, join_words(reads), system.prompt_file, system.decoding
    )
