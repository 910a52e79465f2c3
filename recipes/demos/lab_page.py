"""The lab's results as one HTML page, as a short Markdown table and as a picture."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from recipes.demos.ablation_matrix import JUDGES, MATRIX, judge_title, matrix_table, titles_of
from recipes.demos.ablation_page import habits_table
from recipes.demos.lab_costs import SCORES, cost_axis
from recipes.demos.lab_judges import OUTSIDERS, gains_of, outsiders_of
from recipes.demos.lab_plan import BASE, TEST
from recipes.demos.page import draw_curve, read_history, render, to_svg
from recipes.demos.reward_habits import NAMED
from recipes.demos.tables import Table, with_interval
from recipes.files import replacing

PARTS_OF_A_ROW = ("recall", "negative_recall")  # habits beside the outsiders in the table of drops
COST = {
    "processor_seconds": "processor seconds",
    "seconds": "seconds of training",
    "samples": "reports learned from",
    "generated": "tokens written",
    "read": "tokens read",
}
GAINS = (
    "A row minus the base on the same studies, with the 95 % interval over studies and seeds; coloured where 0 lies "
    "outside. * marks a reward that the row was trained on, all others it never saw."
)
DROPS = (
    "A row there minus the same row on the test split; in the second line that minus the base's: below 0 the row lost "
    "more than the base did, coloured where 0 lies outside. Other studies have other findings: the second line "
    "says more than the drop."
)
LOOKING = (
    "The images of the study minus those of another one: what a row has not by looking, it has by habit. Coloured "
    "where 0 lies outside."
)
FRONT = "No row on the line has another one that costs less and scores more."


def title_of(site: str, sites: Mapping[str, str]) -> str:
    """What a test set is called."""
    return "the test split" if site == TEST else sites[site]


def shade(figure: Mapping[str, float], largest: float) -> float:
    """The colour of a difference, -1 to 1; 0 where 0 lies within its interval."""
    is_sure = figure["low"] is not None and figure["low"] * figure["high"] > 0
    return figure["value"] / largest if is_sure and largest else 0.0


def differences_table(
    rows: Mapping[str, dict], titles: Mapping[str, str], stars: Mapping[str, Iterable[str]]
) -> Table:
    """Rows by figures, coloured; `rows`: row -> figure -> `value`, `low`, `high`; `stars`: a row's own rewards."""
    largest = {name: max((abs(figures[name]["value"]) for figures in rows.values()), default=0) for name in titles}
    cells, shades = [], {}
    for i, (row, figures) in enumerate(rows.items()):
        line = [row]
        for j, name in enumerate(titles, 1):
            text = with_interval(
                *(figures[name][key] for key in ("value", "low", "high")), "+.1f" if name == "words" else "+.3f"
            )
            line.append(text.replace("\t", "*\t") if name in stars.get(row, ()) else text)
            shades[i, j] = shade(figures[name], largest[name])
        cells.append(line)
    return Table(["row", *titles.values()], cells, shades=shades)


def drops_table(drops: Mapping[str, dict], titles: Mapping[str, str], stars: Mapping[str, Iterable[str]]) -> Table:
    """Rows by figures: the drop, and below it the change against the base's, by which cells are coloured."""
    changes = {
        row: {name: entry.get("change", entry) for name, entry in figures.items()} for row, figures in drops.items()
    }
    table = differences_table(changes, titles, stars)
    for line, (row, figures) in zip(table.rows, drops.items(), strict=True):
        for j, name in enumerate(titles, 1):
            star = "*" * (name in stars.get(row, ()))
            change = line[j].replace("*", "").replace("\t", " (") + ")" if row != BASE else ""
            line[j] = f"{figures[name]['value']:+.3f}{star}" + f"\n{change}" * bool(change)
    return table


def costs_table(results: dict) -> Table:
    """Every row's cost beyond the base and its clinical scores; underlined those on a Pareto front."""
    scores = [name for name in SCORES if name in results["matrices"][TEST]["judges"]]
    rows, best, matrix = [], set(), results["matrices"][TEST]["rows"]
    for i, (row, cost) in enumerate(results["costs"].items()):
        cells = ["–" if cost[name] is None else f"{cost[name]:,.0f}" for name in COST]
        rows.append([row, *cells, *(f"{matrix[row][name]['value']:.3f}" for name in scores)])
        best |= {(i, len(COST) + 1 + j) for j, name in enumerate(scores) if row in results["fronts"][name]}
    return Table(["row", *COST.values(), *(judge_title(name) for name in scores)], rows, best=frozenset(best))


def draw_front(axes, results: dict, name: str) -> None:
    """Cost against one clinical score, every row named, the Pareto front as a line."""
    rows, costs, front = results["matrices"][TEST]["rows"], results["costs"], results["fronts"][name]
    axis = cost_axis(costs)
    points = {
        row: (cost[axis] / 60, rows[row][name]["value"]) for row, cost in costs.items() if cost[axis] is not None
    }
    order = sorted(points, key=lambda row: points[row][1])
    for height, row in zip(np.linspace(0.02, 0.98, len(order)), order, strict=True):  # beside the points names overlap
        color = "#1f5f8b" if row in front else "#9aa4ad"
        axes.plot(*points[row], "o", color=color, markersize=4)
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.4, "relpos": (0, 0.5)}
        place = {"xytext": (1.03, height), "textcoords": "axes fraction", "va": "center", "arrowprops": line}
        axes.annotate(row, points[row], fontsize=6, color="#333333", **place)
    axes.plot(*zip(*(points[row] for row in front), strict=True), color="#1f5f8b", linewidth=1)
    axes.set_title(f"{judge_title(name)} against cost", fontsize=9, loc="left")
    axes.set_xlabel(
        ("processor" if axis == "processor_seconds" else "training") + " minutes beyond the base", fontsize=8
    )
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee", linewidth=0.6)


def reward_curves(folder: str, seeds: Iterable[int], rows: Iterable[str]) -> list[Markup]:
    """The reward of every row over its training, a line a seed; of rows that logged one."""
    curves = []
    for row in rows:
        places = {seed: Path(f"{folder}/seed{seed}/{row}") for seed in seeds}
        logs = {
            seed: read_history(place) for seed, place in places.items() if (place / "trainer_state.json").is_file()
        }
        if curve := draw_curve(logs, "reward", row):
            curves.append(curve)
    return curves


def draw_picture(file: str | Path, results: dict) -> None:
    """Writes a PNG: the gains over the base on the test split and outside as heat, and the first Pareto front."""
    sites = [site for site, matrix in results["matrices"].items() if gains_of(matrix)]
    names = [name for name in results["matrices"][TEST]["judges"] if name in (*JUDGES, *OUTSIDERS)]
    size = len(results["costs"])
    widths = [*(len(names) for _ in sites), 9]
    picture = Figure(figsize=(2 + 0.42 * sum(widths), 1.9 + 0.26 * size), layout="constrained")
    panels = picture.subplots(1, len(widths), width_ratios=widths)
    for axes, site in zip(np.atleast_1d(panels), sites, strict=False):
        gains = gains_of(results["matrices"][site])
        values = np.array([[gains[row][name]["value"] for name in names] for row in gains])
        colours = np.array(
            [[gains[row][name]["low"] * gains[row][name]["high"] > 0 for name in names] for row in gains]
        )
        axes.imshow(np.where(colours, values, 0), cmap="PiYG", vmin=-0.15, vmax=0.15, aspect="auto", alpha=0.6)
        for i, row in enumerate(gains):
            for j, name in enumerate(names):
                star = "*" * (name in results["rows"][row]["trained"])
                axes.text(j, i, f"{values[i, j]:+.2f}{star}", ha="center", va="center", fontsize=5.5)
        axes.set_xticks(range(len(names)), [judge_title(name) for name in names], rotation=40, ha="right", fontsize=7)
        axes.set_yticks(range(len(gains)), [*gains] if site == TEST else [""] * len(gains), fontsize=7)
        axes.set_title(f"gain over the base,\n{title_of(site, results['sites'])}", fontsize=8, loc="left")
        axes.tick_params(length=0)
    draw_front(np.atleast_1d(panels)[-1], results, next(iter(results["fronts"])))
    with replacing(file) as temporary:
        picture.savefig(temporary, format="png", dpi=150)


def checks_table(checks: Iterable[dict]) -> Table:
    """What should come out, and whether it did."""
    rows = []
    for check in checks:
        gain = check.get("gain")
        value = with_interval(gain["value"], gain["low"], gain["high"], "+.3f") if gain else f"{check['value']:.3g}"
        rows.append([f"{check['name']} ({check['bar']})", value, "holds" if check["holds"] else "does not hold"])
    return Table(["what should come out", "here", ""], rows)


def flags_table(results: dict) -> Table:
    """The rows whose own reward rises while others fall."""
    titles = lambda names: ", ".join(judge_title(name) for name in names)  # noqa: E731
    rows = [
        [flag["row"], titles(flag["risen"]), titles(flag["fallen"]), title_of(flag["site"], results["sites"])]
        for flag in results["flags"]
    ]
    return Table(["row", "its reward rises, there or on the test split", "and these fall", "on"], rows)


def missing_table(results: dict) -> Table:
    """What is not on the page, and why."""
    rows = [[entry["row"] or "all rows", entry["site"], entry["sentence"]] for entry in results["missing"]]
    return Table(["row", "reports of", "why it is missing"], rows)


def make_tables(results: dict) -> list[tuple[str, str, Table]]:
    """All tables of the page, each with its heading and the sentence before."""
    stars = {row: entry["trained"] for row, entry in results["rows"].items()}
    sites, matrices = results["sites"], results["matrices"]
    tables = [("What should come out", "", checks_table(results["checks"]))]
    none = "No row's own reward rises while a judge that it never saw falls, or itself elsewhere."
    sentence = "Over the base, both beyond their intervals." if results["flags"] else none
    heading = "Flags: its own reward rises, others fall, or itself elsewhere"
    tables.append((heading, sentence, flags_table(results)))
    if results["missing"]:
        tables.append(("Missing", "The other rows went on.", missing_table(results)))
    for site, matrix in matrices.items():
        titles = titles_of(matrix)
        heading = f"Trained on one, judged by all: {title_of(site, sites)}"
        if gains := gains_of(matrix):
            tables.append((heading, f"{matrix['studies']} studies. {GAINS}", differences_table(gains, titles, stars)))
    chosen = {name: judge_title(name) for name in outsiders_of(matrices[TEST], ())} | {
        name: NAMED[name] for name in PARTS_OF_A_ROW
    }
    for site, drops in results["drops"].items():
        tables.append((f"Drop out of distribution: {title_of(site, sites)}", DROPS, drops_table(drops, chosen, stars)))
    if results["looking"]:
        tables.append(("Shuffled images", LOOKING, differences_table(results["looking"], chosen, stars)))
    tables.append(("Habits", *habits_table(results["habits"], {})))
    tables.append(("Cost", f"Means over seeds; underlined: on the Pareto front. {FRONT}", costs_table(results)))
    tables.append(("All values", MATRIX, matrix_table(matrices[TEST], {})))
    return tables


def write_page(file: str | Path, results: dict, curves: list[Markup], shown: list[dict[str, str]]) -> None:
    """Writes the self-contained page of a system; `curves`: of its trainings, `shown`: reports of some studies."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(results["fronts"]))), results["fronts"], strict=True):
        draw_front(axes, results, name)
    tables = make_tables(results)
    render(file, "lab.html.jinja", **results, tables=tables, front=to_svg(figure, "front"), curves=curves, shown=shown)


def write_markdown(file: str | Path, results: dict) -> str:
    """Writes the short table of a system to `file`, beside its picture; returns it."""
    matrix, outside = results["matrices"][TEST], next(iter(results["drops"]), None)
    names = [name for name in SCORES if name in matrix["judges"]]
    flagged = {flag["row"] for flag in results["flags"]}
    titles = [judge_title(name) for name in names] + ["recall of findings", "silent"]
    columns = [
        "row",
        *titles,
        *([f"{judge_title(names[-1])} outside, minus the base's drop"] if outside else []),
        "processor s",
        "flag",
    ]
    rows = []
    for row, figures in matrix["rows"].items():
        cells = [f"{figures[name]['value']:.3f}" + "*" * figures[name]["trained"] for name in names]
        cells += [f"{figures['recall']['value']:.3f}", f"{figures['silent']['value']:.3f}"]
        if outside:
            change = results["drops"][outside].get(row, {}).get(names[-1], {}).get("change")
            cells.append(
                with_interval(*(change[key] for key in ("value", "low", "high")), "+.3f")
                if change and row != BASE
                else ""
            )
        seconds = results["costs"].get(row, {}).get("processor_seconds")
        cells += ["" if seconds is None else f"{seconds:,.0f}", "flag" if row in flagged else ""]
        rows.append([row, *cells])
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [
        f"{results['title']}; seeds {seeds}, {matrix['studies']} test studies, {results['samples']:,} reports a row. "
        "* marks a reward that the row was trained on.",
        "",
        *Table(columns, rows).to_markdown(),
        "",
        *checks_table(results["checks"]).to_markdown(),
    ]
    if results["missing"]:
        absent = dict.fromkeys(entry["row"] or entry["site"] for entry in results["missing"])
        lines += ["", f"Missing: {', '.join(absent)}."]
    lines += ["", f"![Gains over the base in and out of distribution, and cost]({Path(file).stem}.png)"]
    text = "\n".join(lines) + "\n"
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text
