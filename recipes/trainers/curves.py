"""curves.png in a run's folder: how reward, KL, length, findings or loss went, drawn while it goes on."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import TrainerCallback

from recipes.files import replacing

PERIOD = 60  # seconds between two drawings at least
SMOOTHED = 40  # points from which on a mean runs along them


class Panel(NamedTuple):
    """A part of the picture: its title, the names that it draws with their labels; the first line is the thickest."""

    title: str
    lines: dict[str, str]
    is_share: bool = False  # from 0 to 1


class Line(NamedTuple):
    """Steps and values of one name of the log."""

    steps: list[int]
    values: list[float]


def read_line(history: Sequence[dict], name: str) -> Line:
    """What `history`, a trainer's `state.log_history`, has of `name`; of a step that is there twice the later one."""
    points = {entry["step"]: entry[name] for entry in history if name in entry and "step" in entry}
    return Line(sorted(points), [points[step] for step in sorted(points)])


def panels_of(history: Sequence[dict]) -> list[Panel]:
    """What a run's picture shows, as far as `history` has it: rewards for a policy, else the loss."""
    names = list(dict.fromkeys(name for entry in history for name in entry))
    parts = {name: name.split("/")[1].removesuffix("_reward") for name in names if is_reward(name)}
    panels = [
        Panel("Reward", {"reward": "reward", **parts, "eval_reward": "validation"}),
        Panel("KL to the reference", {"kl": "KL"}),
        Panel("Length of a completion, tokens", {
            "completions/mean_length": "mean", "completions/max_length": "longest",
        }),
        Panel("Findings in sampled completions, micro-F1", {
            "completions/clinical_f1": "training", "eval_completions/clinical_f1": "validation",
        }),
        Panel("Share of completions", {
            "completions/clipped_ratio": "cut off", "reports/commonest_share": "the same text",
            "frac_reward_zero_std": "groups of one reward",
        }, is_share=True),
    ] if "reward" in names else [
        Panel("Loss", {
            "loss": "training", "eval_loss": "validation", "report_loss": "of the report",
            "disease_loss": "of the diseases",
        }),
        Panel("Accuracy of the next token", {
            "mean_token_accuracy": "training", "eval_mean_token_accuracy": "validation",
        }, is_share=True),
    ]  # fmt: skip
    panels.append(Panel("Findings in validation reports", {"eval_clinical_f1": "micro-F1", "eval_mccs": "MCCS"}))
    shown = [
        panel._replace(lines={name: label for name, label in panel.lines.items() if name in names}) for panel in panels
    ]
    return [panel for panel in shown if panel.lines]


def is_reward(name: str) -> bool:
    """Whether the log has the mean of one reward under `name`."""
    return name.startswith("rewards/") and name.endswith("/mean")


def draw_curves(history: Sequence[dict], title: str) -> Figure | None:
    """The picture of `history`, two panels in a row; None where it has nothing to draw."""
    panels = panels_of(history)
    if not panels:
        return None
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(11, 0.5 + 3.1 * rows), layout="constrained")
    figure.suptitle(title, fontsize=10, color="#444444")
    grid = figure.subplots(rows, min(len(panels), 2), squeeze=False)
    last = max(entry.get("step", 0) for entry in history)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, history)
        axes.set_xlim(0, 1.02 * last)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    return figure


def _draw(axes: Axes, panel: Panel, history: Sequence[dict]) -> None:
    for place, (name, label) in enumerate(panel.lines.items()):
        line = read_line(history, name)
        color = "#1a1a1a" if place == 0 else f"C{place - 1}"
        width = 2.0 if place == 0 else 1.2
        if len(line.steps) >= SMOOTHED:
            axes.plot(line.steps, line.values, color=color, linewidth=0.6, alpha=0.25)
            axes.plot(line.steps, running_mean(line.values), color=color, linewidth=width, label=label)
        else:
            marker = "o" if len(line.steps) < 12 or name.startswith("eval_") else None
            axes.plot(
                line.steps, line.values, color=color, linewidth=width, marker=marker, markersize=3.5, label=label
            )
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("step", fontsize=9, color="#555555")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.is_share:
        axes.set_ylim(-0.02, 1.02)
    if len(panel.lines) > 1:
        axes.legend(fontsize=8, frameon=False)


def running_mean(values: Sequence[float]) -> list[float]:
    """At each place the mean of what lies around it, a twentieth of all in all.

    >>> running_mean([1.0, 2.0, 6.0])  # of one value each
    [1.0, 2.0, 6.0]
    """
    half = len(values) // 40
    windows = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    return [sum(window) / len(window) for window in windows]


class Curves(TrainerCallback):
    """Writes `curves.png` into a run's `output_dir`: at the end, at checkpoints and evaluations, and now and then.

    At most once a minute but at the end, by the first process. The whole log is drawn, of a resumed run its earlier
    part too, which the checkpoint has.
    """

    def __init__(self):
        self._last = float("-inf")

    def on_log(self, args, state, control, **kwargs):
        self._draw(args, state)

    def on_evaluate(self, args, state, control, **kwargs):
        self._draw(args, state)

    def on_save(self, args, state, control, **kwargs):
        self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._last = float("-inf")
        self._draw(args, state)

    def _draw(self, args, state) -> None:
        if not state.is_world_process_zero or time.monotonic() - self._last < PERIOD:
            return
        title = f"{args.output_dir}, step {state.global_step:,} of {state.max_steps:,}"
        if hasattr(args, "num_generations"):  # of a policy
            title += f"; completions sampled at temperature {args.temperature:g}"
        figure = draw_curves(state.log_history, title)
        if figure is not None:
            with replacing(Path(args.output_dir) / "curves.png") as file:
                figure.savefig(file, format="png", dpi=110)
            self._last = time.monotonic()
