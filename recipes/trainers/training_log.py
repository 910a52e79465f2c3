"""The log of a training run as a table: a row for each logging step, a line for each evaluation."""

import time
from collections.abc import Iterable

from transformers import PrinterCallback, ProgressCallback, Trainer

from recipes.progress import clock, is_quiet, is_terminal

WIDTH = 119  # columns of a row
ROWS = 25  # between two headings
FIRST = f"{'step':>13} {'done':>5} {'left':>9}"
TITLES = {  # by what a trainer logs, in order; the parts of a reward come after it
    "reward": "reward",
    "loss": "loss",
    "report_loss": "of-report",
    "disease_loss": "of-diseases",
    "mean_token_accuracy": "accuracy",
    "kl": "KL",
    "kl_lambda/mean": "KL-weight",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cut-off",
    "completions/clinical_f1": "sample-F1",
    "reports/commonest_share": "one-text",
    "value/loss": "value-loss",
    "clinical_f1": "clinical-F1",
    "mccs": "MCCS",
    "grad_norm": "gradient",
    "learning_rate": "rate",
}


def columns_of(figures: Iterable[str]) -> dict[str, str]:
    """Of the names that were logged those that a table shows, with their titles, each a single word.

    With a reward its parts (`rewards/NAME/mean`) stand beside it, and the loss is left out: that of GRPO is near 0
    whatever the policy does.

    >>> columns_of(["loss", "reward", "rewards/mccs_reward/mean", "step_time"])
    {'reward': 'reward', 'rewards/mccs_reward/mean': 'mccs'}
    """
    parts = [name for name in figures if name.startswith("rewards/") and name.endswith("/mean")]
    titles = {}
    for name, title in TITLES.items():
        if name in figures and not (name == "loss" and "reward" in figures):
            titles[name] = title
        if name == "reward":
            titles |= {part: part.split("/")[1].removesuffix("_reward") for part in parts}
    return titles


def show(value: float) -> str:
    """`value` in at most 9 characters: four figures, of small and of large ones the power of ten."""
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


class TrainingLog(ProgressCallback):
    """In the place of transformers' ProgressCallback and PrinterCallback, which print dictionaries.

    The first process prints a row for each entry of the log: the step and how many there are, the share that is done,
    the time that is left (from the second step on, the first one being slow; an evaluation counts as it comes), then
    `columns_of` the entry, as far as they fit. Evaluations and the end are a line each. A bar moves between the rows
    where somebody watches (`disable_tqdm: true`: none). Nothing with --quiet.
    """

    def __init__(self, shows_bar: bool):
        super().__init__()
        self.shows_bar = shows_bar
        self._names: dict[str, None] = {}  # that were logged so far: some steps of PPO log no reward
        self._rows = 0
        self._start: tuple[float, int] | None = None  # time and step after the first step

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Puts one into `trainer`, and takes out what transformers has put there."""
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        if not is_quiet():
            trainer.add_callback(cls(shows_bar=is_terminal() and not trainer.args.disable_tqdm))

    def on_train_begin(self, args, state, control, **kwargs):
        self._names, self._rows, self._start = {}, 0, None
        if self.shows_bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self._start is None:
            self._start = time.perf_counter(), state.global_step
        if self.shows_bar:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.shows_bar:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.shows_bar:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        figures = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
        evaluated = {name.removeprefix("eval_"): value for name, value in figures.items() if name.startswith("eval_")}
        if "train_runtime" in figures:
            steps = state.global_step - (self._start[1] - 1 if self._start else state.global_step)
            self._say(f"trained {steps:,} steps in {clock(figures['train_runtime'])}")
        elif evaluated:
            parts = [f"{title} {show(evaluated[name])}" for name, title in columns_of(evaluated).items()]
            self._say(f"evaluation after step {state.global_step:,}: {', '.join(parts)}")
        elif columns_of(figures):
            before = columns_of(self._names)
            self._names |= dict.fromkeys(figures)
            self._row(state, columns_of(self._names), figures, before)

    def _row(self, state, columns: dict[str, str], figures: dict[str, float], before: dict[str, str]) -> None:
        if columns != before or self._rows % ROWS == 0:
            self._rows = 0
            self._say(_cells(FIRST, columns, columns))
        self._rows += 1
        step, last = state.global_step, state.max_steps
        share = step / last if last else 0
        first = f"{f'{step}/{last}':>13} {share:>5.0%} {self._left(step, last):>9}"
        values = {name: show(figures[name]) if name in figures else "" for name in columns}
        if "learning_rate" in figures:
            values["learning_rate"] = f"{figures['learning_rate']:.1e}"
        self._say(_cells(first, columns, values))
        if self.training_bar is not None:
            name = next(name for name in columns if name in figures)
            self.training_bar.set_postfix_str(f"{columns[name]} {values[name]}", refresh=False)

    def _left(self, step: int, last: int) -> str:
        if self._start is None or step <= self._start[1]:
            return "?"
        seconds = (time.perf_counter() - self._start[0]) / (step - self._start[1])
        return clock(seconds * (last - step))

    def _say(self, line: str) -> None:
        if self.training_bar is None:
            print(line, flush=True)
        else:
            self.training_bar.write(line)


def _cells(first: str, columns: dict[str, str], texts: dict[str, str]) -> str:
    """`first`, then of each of `columns` its part of `texts` below its title, as far as `WIDTH` has room."""
    line = first
    for name, title in columns.items():
        cell = f" {texts[name]:>{max(len(title), 8)}}"
        if len(line) + len(cell) > WIDTH:
            break
        line += cell
    return line
