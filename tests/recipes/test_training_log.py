"""The table that a training run prints, and the picture that it draws."""

import math
import re
from types import SimpleNamespace

import pytest
from PIL import Image
from test_long_runs import make_trainer
from transformers import PrinterCallback, ProgressCallback

from recipes import progress
from recipes.trainers import curves, training_log
from recipes.trainers.curves import Curves, draw_curves, panels_of, read_line, running_mean
from recipes.trainers.training_log import TrainingLog, columns_of, show


@pytest.fixture
def log(monkeypatch):
    """A TrainingLog, and what calls it with a state: `tell(step, seconds, **figures)`, of 100 steps."""
    now = [0.0]
    monkeypatch.setattr(training_log.time, "perf_counter", lambda: now[0])
    callback, args = TrainingLog(shows_bar=False), SimpleNamespace()
    state = SimpleNamespace(global_step=0, max_steps=100, is_world_process_zero=True)
    callback.on_train_begin(args, state, None)

    def tell(step: int, seconds: float, **figures) -> None:
        state.global_step, now[0] = step, seconds
        callback.on_step_end(args, state, None)
        callback.on_log(args, state, None, logs=figures)

    tell.state = state
    return tell


def test_rows_below_their_titles(log, capsys):
    """The first step took 50 s and does not count; then 2 s a step: after step 11 there are 89 left, 178 s."""
    log(1, 50, loss=2.5, grad_norm=0.25, learning_rate=1e-5, entropy=1.0, epoch=0.1)
    log(11, 70, loss=12345.678, grad_norm=0.0, learning_rate=0.001, entropy=1.0, epoch=1.0)
    assert capsys.readouterr().out.splitlines() == [
        "         step  done      left     loss gradient     rate",
        "        1/100    1%         ?    2.500    0.250  1.0e-05",
        "       11/100   11%   0:02:58  1.2e+04    0.000  1.0e-03",
    ]


def test_a_heading_for_other_columns_and_every_25_rows(log, capsys):
    for step in range(1, 28):
        log(step, step, loss=1.0)
    log(28, 28, loss=1.0, grad_norm=1.0)
    log(29, 29, loss=1.0)  # a step that logs less leaves its places empty
    lines = capsys.readouterr().out.splitlines()
    assert [place for place, line in enumerate(lines) if "step" in line] == [0, 26, 29]
    assert lines[-1].split()[-1] == "1.000" and len(lines[-1]) == len(lines[-2])


def test_a_step_of_ppo_without_new_completions(log, capsys):
    """It logs no reward, and its loss is not put in that one's place."""
    log(1, 1, reward=0.5, kl=0.0, loss=0.25)
    log(2, 2, kl=0.125, loss=0.25)
    title, first, second = capsys.readouterr().out.splitlines()
    assert title.endswith("left   reward       KL") and first.endswith("   0.500    0.000")
    assert second.endswith("             0.125")


def test_evaluations_and_the_end(log, capsys):
    log(1, 0.0)
    log(20, 60, eval_loss=1.5, eval_mean_token_accuracy=0.5, eval_runtime=3.0, epoch=2.0)
    log(20, 60, eval_clinical_f1=0.25, eval_mccs=-0.5, epoch=2.0)
    log(20, 60, train_runtime=75.2, train_loss=1.0)
    assert capsys.readouterr().out.splitlines() == [
        "evaluation after step 20: loss 1.500, accuracy 0.500",
        "evaluation after step 20: clinical-F1 0.250, MCCS -0.500",
        "trained 20 steps in 0:01:15",
    ]


def test_other_processes_print_nothing(log, capsys):
    log.state.is_world_process_zero = False
    log(1, 1, loss=1.0)
    assert capsys.readouterr().out == ""


def test_columns_of_a_policy():
    """Parts in the order of the log, and no loss; what nobody reads at a glance is left out."""
    parts = {"rewards/mccs_reward/mean": 0.4, "rewards/mccs_reward/std": 0.1, "rewards/format_reward/mean": 1.0}
    logged = {"loss": 0.0, "kl": 0.1, "step_time": 2.0, **parts, "reward": 0.5, "completions/mean_length": 60.0}
    assert list(columns_of(logged).values()) == ["reward", "mccs", "format", "KL", "length"]


def test_a_row_is_cut_at_a_column(log, capsys):
    """22 parts of 9 characters would be 198: those that fit into 119 columns are whole."""
    parts = {f"rewards/part{number:02}_reward/mean": number / 100 for number in range(22)}
    log(1, 1, reward=0.5, **parts)
    title, row = capsys.readouterr().out.splitlines()
    assert len(title) == len(row) <= 119 and title.endswith("part08") and row.endswith(" 0.080")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.12345, "0.123"), (-0.5, "-0.500"), (61.24, "61.240"), (1234.56, "1234.6"),
     (0.00012, "1.2e-04"), (98765.0, "9.9e+04"), (math.nan, "nan")],
)  # fmt: skip
def test_numbers(value, text):
    assert show(value) == text


def test_a_run_prints_its_table(tmp_path, capsys):
    """Of three steps three rows, without dictionaries and carriage returns."""
    trainer = make_trainer("grpo", tmp_path, max_steps=3)
    assert not {PrinterCallback, ProgressCallback} & {type(each) for each in trainer.callback_handler.callbacks}
    trainer.train()
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    (title,) = (line for line in lines if line.lstrip().startswith("step "))
    assert title.split()[:5] == ["step", "done", "left", "reward", "says_clear"]
    rows = [line for line in lines if re.match(r" +\d/3 ", line)]
    assert [row.split()[:2] for row in rows] == [["1/3", "33%"], ["2/3", "67%"], ["3/3", "100%"]]
    assert all(len(row) == len(title) for row in rows)
    assert sum(line.startswith("trained 3 steps in 0:00:") for line in lines) == 1
    assert "{" not in out and "\r" not in out


def test_quiet(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(progress.QUIET, "1")
    make_trainer("grpo", tmp_path, max_steps=1).train()
    out, _ = capsys.readouterr()
    assert "1/1" not in out and "{" not in out and "This run" in out


def test_a_bar_moves_where_somebody_watches(capsys):
    callback, args = TrainingLog(shows_bar=True), SimpleNamespace()
    state = SimpleNamespace(global_step=0, max_steps=2, is_world_process_zero=True)
    callback.on_train_begin(args, state, None)
    for state.global_step in (1, 2):
        callback.on_step_end(args, state, None)
        callback.on_log(args, state, None, logs={"loss": 0.5})
    callback.on_train_end(args, state, None)
    out, bar = capsys.readouterr()
    assert [line.split()[0] for line in out.replace("\r", "").splitlines() if line.strip()] == ["step", "1/2", "2/2"]
    assert "2/2" in bar and "loss 0.500" in bar


################
# The picture
################


def policy(steps: int) -> list[dict]:
    rows = [{"step": step, "reward": step / 10, "loss": 0.0, "kl": 0.01 * step, "rewards/mccs_reward/mean": 0.5,
             "completions/clinical_f1": 0.25}
            for step in range(1, steps + 1)]  # fmt: skip
    return [*rows, {"step": steps, "eval_clinical_f1": 0.5, "eval_runtime": 3.0}]


def test_what_a_policys_picture_shows():
    titles = {panel.title: list(panel.lines.values()) for panel in panels_of(policy(3))}
    assert titles == {
        "Reward": ["reward", "mccs"], "KL to the reference": ["KL"],
        "Findings in sampled completions, micro-F1": ["training"], "Findings in validation reports": ["micro-F1"],
    }  # fmt: skip


def test_what_the_picture_of_sft_shows():
    history = [{"step": 1, "loss": 3.0, "grad_norm": 1.0}, {"step": 1, "eval_loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert [panel.title for panel in panels_of(history)] == ["Loss"]
    (axes,) = (axes for axes in draw_curves(history, "a run").axes if axes.get_visible())
    training, validation = axes.lines
    assert (list(training.get_xdata()), list(training.get_ydata())) == ([1, 2], [3.0, 1.0])
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([1], [2.0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]


def test_a_step_that_was_trained_twice():
    """Killed after its checkpoint of step 1, a run trains step 2 anew: what it then logs counts."""
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}]
    assert read_line(history, "loss") == ([1, 2], [3.0, 2.0])


def test_many_points_have_a_mean():
    """Of 40 points the mean of three; at the ends of two."""
    values = [float(place) for place in range(40)]
    assert running_mean(values)[:3] == [0.5, 1.0, 2.0] and running_mean(values)[-1] == 38.5
    axes = draw_curves(policy(40), "a run").axes[0]
    assert len(axes.lines) == 4 and len(axes.get_legend().get_texts()) == 2  # the points and their mean, of two names


def test_the_picture_of_a_policy_names_its_temperature(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(curves, "draw_curves", lambda history, title: titles.append(title))
    state = SimpleNamespace(log_history=[], global_step=2, max_steps=5, is_world_process_zero=True)
    Curves().on_train_end(SimpleNamespace(output_dir="out", num_generations=4, temperature=0.7), state, None)
    assert titles == ["out, step 2 of 5; completions sampled at temperature 0.7"]


def test_nothing_to_draw():
    assert draw_curves([{"step": 1, "train_runtime": 3.0}], "a run") is None


@pytest.mark.parametrize(
    ("times", "drawn"),
    [([0, 30, 59.9], 1), ([0, 60, 100, 120], 3), ([0], 1)],
)
def test_once_a_minute_and_at_the_end(times, drawn, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(curves.time, "monotonic", lambda: now[0])
    pictures = []
    monkeypatch.setattr(curves, "draw_curves", lambda *words: pictures.append(words) or draw_curves(*words))
    callback, args = Curves(), SimpleNamespace(output_dir=str(tmp_path))
    state = SimpleNamespace(log_history=policy(2), global_step=2, max_steps=5, is_world_process_zero=True)
    for now[0] in times:
        callback.on_log(args, state, None)
    assert len(pictures) == drawn
    callback.on_train_end(args, state, None)
    assert len(pictures) == drawn + 1 and pictures[-1][1].endswith("step 2 of 5")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_resumed_run_draws_what_was_before(tmp_path, monkeypatch):
    """Two steps, then a new process to the fourth: the picture has all four."""
    make_trainer("ppo", tmp_path, max_steps=2).train()
    assert Image.open(tmp_path / "curves.png").size[0] > 1000
    (tmp_path / "curves.png").unlink()
    histories = []
    monkeypatch.setattr(curves, "draw_curves", lambda *words: histories.append(words[0]) or draw_curves(*words))
    make_trainer("ppo", tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert read_line(histories[-1], "kl").steps == [1, 2, 3, 4]
    assert (tmp_path / "curves.png").is_file()
