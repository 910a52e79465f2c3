"""A table that is written once: for the page, for Markdown and for the screen."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import Markup, escape
from rich.table import Table as Screen

COLOURED = {  # what a line says, up to a comma -> class of the page's style
    **dict.fromkeys(("yes", "holds", "agree"), "yes"),
    **dict.fromkeys(("no", "does not hold", "disagree"), "no"),
}


def with_interval(value: float, low: float, high: float, form: str = ".3f") -> str:
    """The text of a cell: a value and its interval."""
    return f"{value:{form}}\t{low:{form}} to {high:{form}}"


@dataclass
class Table:
    """Rows of cells under titles. The first cell of the row to be marked is `marked`.

    A cell may have lines, below the first one in small print. Behind a tab stands an interval: in small print on the
    page, in brackets in Markdown. `best`: cells to be underlined, by row and column. `shades`: of cells, -1 (red) to 1
    (green), for the page.
    """

    columns: list[str]
    rows: list[list[str]]
    marked: str | None = None
    best: frozenset[tuple[int, int]] = frozenset()
    shades: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def __html__(self) -> Markup:
        """For Jinja, which asks a value that is not a text for its markup."""
        head = Markup("").join(map(Markup("<th>{}</th>").format, self.columns))
        rows = Markup("\n").join(
            Markup("<tr{}>{}</tr>").format(
                Markup(' class="marked"') if row[0] == self.marked else "",
                Markup("").join(
                    _to_html(text, (i, j) in self.best, self.shades.get((i, j), 0.0)) for j, text in enumerate(row)
                ),
            )
            for i, row in enumerate(self.rows)
        )
        table = '<div class="scroll">\n<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>\n</div>'
        return Markup(table).format(head, rows)

    def to_markdown(self) -> list[str]:
        """Lines of Markdown. Of the first cell the first line alone; of the marked row it is bold."""
        lines = [f"| {' | '.join(self.columns)} |", "|---" * len(self.columns) + "|"]
        for name, *cells in self.rows:
            title = name.split("\n")[0].replace("|", "\\|")
            texts = [f"**{title}**" if name == self.marked else title, *cells]
            texts = [re.sub(r"\t([^\n]*)", r" (\1)", text).replace("\n", "<br>") for text in texts]
            lines.append("|" + "".join(f" {text} |" if text else " |" for text in texts))
        return lines

    def to_screen(self, title: str) -> Screen:
        """For a terminal: of each cell the value alone."""
        screen = Screen(self.columns[0], title=title)
        for column in self.columns[1:]:
            screen.add_column(column, justify="right")
        for row in self.rows:
            screen.add_row(*(re.split("[\t\n]", text)[0] for text in row))
        return screen


def _to_html(text: str, best: bool, shade: float) -> Markup:
    first, *notes = re.split("[\t\n]", text)
    style = _style(first) + _background(shade)
    value = Markup('<b class="best">{}</b>').format(first) if best else escape(first)
    lines = (Markup("<small{}>{}</small>").format(_style(note), note) for note in notes)
    return Markup("<td{}>{}{}</td>").format(style, value, Markup("").join(lines))


def _style(text: str) -> Markup:
    style = COLOURED.get(text.split(",")[0])
    return Markup(' class="{}"').format(style) if style else Markup("")


def _background(shade: float) -> Markup:
    colour = "46, 122, 62" if shade > 0 else "160, 35, 35"
    return Markup(' style="background: rgba({}, {:.2f})"').format(colour, abs(shade) / 2) if shade else Markup("")
