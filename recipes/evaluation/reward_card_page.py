"""The reward card as one HTML page with its plots, and as a Markdown table."""

import base64
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from recipes.evaluation.error_injection import INJECTIONS
from recipes.files import replacing
from recipes.templates import html_environment

GAMES = (
    "best fixed report",
    "its negatives alone",
    "a list of keywords",
    "another study's report",
    "twice the length",
)


def forest(rows: dict[str, dict]) -> Figure:
    """Tau with its 95 % interval, a line for each row of the agreement."""
    figure = Figure(figsize=(8, 0.8 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows.values()):
        axes.plot(row["interval"], [place, place], color="#1f5f8b", linewidth=2)
        axes.plot(row["tau"], place, "o", color="#1f5f8b")
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("Kendall tau-b with the mean rating of the radiologists, 95 % interval over studies")
    return figure


def heat_map(sensitivity: dict[str, dict]) -> Figure:
    """How far each reward falls for each kind of error: Open-i."""
    kinds = [*INJECTIONS, "paraphrase"]
    falls = np.array([[row["Open-i"][kind]["fall"] or 0.0 for kind in kinds] for row in sensitivity.values()])
    figure = Figure(figsize=(8, 1.4 + 0.36 * len(falls)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(falls, cmap="Blues", vmin=0, vmax=max(falls.max(), 1e-9), aspect="auto")
    for (i, j), value in np.ndenumerate(falls):
        colour = "white" if value > falls.max() / 2 else "black"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(falls)), sensitivity, fontsize=8)
    axes.set_xticks(range(len(kinds)), kinds, rotation=20, ha="right", fontsize=8)
    axes.set_title("by how much the reward falls (Open-i)", fontsize=9)
    return figure


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(card: dict) -> list[list[str]]:
    """The card's summary: a head and a row for each reward and baseline."""
    head = ["", "tau", "95 %", "r", "preferred", "strict", "equal", "best fixed", "negatives", "unmoved", "ms"]
    rows = [head]
    for name in [*card["cost"], *(name for name in card["agreement"] if name not in card["cost"]), *card["failed"]]:
        agreed, judged = card["agreement"].get(name), card["radjudge"].get(name)
        games, moved = card["gaming"].get(name), card["sensitivity"].get(name)
        shares = [moved["Open-i"][kind]["unmoved"] for kind in INJECTIONS] if moved else []
        shares = [share for share in shares if share is not None]
        fixed = games and games["RadPref" if "RadPref" in games else "Open-i"]
        rows.append(
            [
                name + (": failed" if name in card["failed"] else ""),
                _number(agreed and agreed["tau"]),
                f"{agreed['interval'][0]:.2f} to {agreed['interval'][1]:.2f}" if agreed else "-",
                _number(agreed and agreed["r"]),
                _number(agreed and agreed["preferred"], 2),
                *(f"{judged[kind][0]} of {judged[kind][1]}" if judged else "-" for kind in ("strict", "equal")),
                _number(fixed and fixed["best fixed report"], 2),
                _number(fixed and fixed["its negatives alone"], 2),
                _number(float(np.mean(shares)) if shares else None, 2),
                _number(card["cost"][name]["ms"], 2) if name in card["cost"] else "-",
            ]
        )
    return rows


def markdown(rows: list[list[str]]) -> str:
    """`rows` as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def write_card(card: dict, out: Path) -> None:
    """Writes `out`/index.html and `out`/table.md."""
    pictures = [_picture(forest(card["agreement"]))] if card["agreement"] else []
    pictures += [_picture(heat_map(card["sensitivity"]))] if card["sensitivity"] else []
    out.mkdir(parents=True, exist_ok=True)
    page = (
        html_environment(Path(__file__).parent)
        .get_template("reward_card.html.jinja")
        .render(
            card=card,
            rows=table(card),
            pictures=pictures,
            kinds=[*INJECTIONS, "paraphrase"],
            games=GAMES,
            number=_number,
        )
    )
    for name, text in (("index.html", page), ("table.md", markdown(table(card)))):
        with replacing(out / name) as file:
            file.write_text(text, encoding="utf-8")
