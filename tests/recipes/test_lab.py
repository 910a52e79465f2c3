"""The lab's judges and page, on reports that are made by hand."""

import doctest
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes import lab
from recipes.build_phantom import BuildArguments, build_row
from recipes.data.schema import write_dataset
from recipes.demos import lab_costs, lab_judges, lab_page
from recipes.demos.ablation_matrix import compare, make_judges, resample
from recipes.demos.lab_costs import pareto_front
from recipes.demos.lab_jobs import site_reports
from recipes.demos.lab_judges import choose_seeds, drops, flags, hypotheses, judge_lab, rank_correlation
from recipes.demos.lab_page import differences_table, shade, write_markdown, write_page
from recipes.demos.lab_plan import BASE, SHUFFLED, TEST, Plan, read_plan
from recipes.demos.tables import Table
from recipes.evaluation.baselines import NORMAL_REPORT
from recipes.evaluation.references import Truth
from rewards.labelers import LexicalLabeler

ROOT = Path(__file__).resolve().parents[2]
LABELER = LexicalLabeler()
EFFUSION, CLEAR, HEART = "There is a right pleural effusion.", "No pneumothorax.", "The heart is enlarged."
ROWS = [BASE, "grpo_severity", "grpo_mccs", "grpo_ce_f1", "grpo_radcliq_lite", "sft"]


def make_truth(reports: list[str]) -> Truth:
    ids = [str(i) for i in range(len(reports))]
    return Truth(ids, reports, np.asarray(LABELER(reports)), [None] * len(ids), np.arange(len(ids)))


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(str(ROOT / "recipes/demos/lab.yaml"), "mrgr1", "phantom")


@pytest.mark.parametrize("module", [lab_costs, lab_judges])
def test_examples_are_true(module):
    tried = doctest.testmod(module)
    assert tried.attempted and not tried.failed


def test_drop_by_hand():
    """Recall of findings: the row names all inside and one of two outside; the base one of two, then none."""
    inside, outside = make_truth([EFFUSION, HEART]), make_truth([EFFUSION, HEART])
    judges = make_judges(["ce_f1"], LABELER, [])
    first = resample(inside, {"row": [[EFFUSION, HEART]], BASE: [[EFFUSION, CLEAR]]}, judges, LABELER)
    second = resample(outside, {"row": [[EFFUSION, CLEAR]], BASE: [[CLEAR, CLEAR]]}, judges, LABELER, draw=1)
    table = drops(first, second, ["row", BASE, "absent"])
    assert set(table) == {"row", BASE}
    assert table["row"]["recall"]["value"] == table[BASE]["recall"]["value"] == -0.5
    assert table["row"]["recall"]["change"]["value"] == 0  # it lost as much as the base
    assert table["row"]["recall"]["low"] == -1 and table["row"]["recall"]["high"] == 0  # one study, drawn twice
    assert table["row"]["words"]["value"] == (6 + 2) / 2 - (6 + 4) / 2


def test_seeds_are_drawn_together_in_both_test_sets():
    """Seed 0 is right in both sets and seed 1 in neither: no drawn seed loses anything, the interval has no width."""
    truth = make_truth([EFFUSION, EFFUSION])
    runs = {"row": [[EFFUSION] * 2, [CLEAR] * 2]}
    judges = make_judges(["ce_f1"], LABELER, [])
    values = [resample(truth, runs, judges, LABELER, draw) for draw in (0, 1)]
    drop = drops(*values, ["row"])["row"]["recall"]
    assert (drop["low"], drop["value"], drop["high"]) == (0, 0, 0) and "change" not in drop
    row = compare(values[0], {}, judges)["rows"]["row"]["recall"]
    assert (row["low"], row["value"], row["high"]) == (0, 0.5, 1)


def figure(low: float, high: float) -> dict:
    return {"value": (low + high) / 2, "low": low, "high": high, "by_seed": []}


def gains(**figures: dict) -> dict:
    usual = dict.fromkeys(("mccs", "severity", "radcliq_lite", "radgraph_lexical"), figure(-0.1, 0.1))
    entry = {"system": "row", "minus": BASE, "figures": usual | figures}
    return {"judges": [*usual], "differences": [entry]}


@pytest.mark.parametrize(
    ("figures", "fallen"),
    [
        ({"mccs": figure(0.1, 0.2), "severity": figure(-0.2, -0.1)}, ["severity"]),
        ({"mccs": figure(0.1, 0.2), "severity": figure(-0.2, 0.0)}, None),  # its interval reaches 0
        ({"mccs": figure(0.0, 0.2), "severity": figure(-0.2, -0.1)}, None),  # the own reward has not risen
        ({"mccs": figure(0.1, 0.2), "radcliq_lite": figure(0.1, 0.2)}, None),  # another one rises too
    ],
)
def test_flag(figures, fallen):
    marks = flags({TEST: gains(**figures)}, {"row": ["mccs"]})
    expected = [{"row": "row", "site": "test", "risen": ["mccs"], "fallen": fallen}]
    assert marks == (expected if fallen else [])


def test_an_own_reward_that_falls_is_no_outsider():
    rising = gains(mccs=figure(0.1, 0.2), severity=figure(-0.2, -0.1))
    assert flags({TEST: rising}, {"row": ["mccs", "severity"]}) == []


def test_a_reward_that_rises_at_home_and_falls_elsewhere_is_flagged_there():
    matrices = {TEST: gains(mccs=figure(0.1, 0.2)), "site_b": gains(mccs=figure(-0.2, -0.1)), "openi": gains()}
    [mark] = flags(matrices, {"row": ["mccs"]})
    assert mark == {"row": "row", "site": "site_b", "risen": ["mccs"], "fallen": ["mccs"]}
    matrices[TEST] = gains()  # what did not rise at home may fall elsewhere
    assert flags(matrices, {"row": ["mccs"]}) == []
    matrices["site_b"] = gains(severity=figure(-0.2, -0.1), mccs=figure(0.1, 0.2))  # but what rises there is flagged
    [mark] = flags(matrices, {"row": ["mccs"]})
    assert mark == {"row": "row", "site": "site_b", "risen": ["mccs"], "fallen": ["severity"]}


def test_pareto_front_by_hand():
    points = {"base": (0, 0.5), "dear": (9, 0.6), "good": (5, 0.7), "twin": (5, 0.7), "poor": (5, 0.4)}
    assert pareto_front(points) == ["base", "good", "twin"]  # dear costs more and scores less than good
    assert pareto_front({}) == []


def test_rank_correlation_by_hand():
    """Spearman: 1 - 6 sum d^2 / (n (n^2 - 1)); ranks 1 2 3 4 against 2 1 3 4 have d^2 of 2."""
    values = np.array([[2.0, 4.0, 1.0], [1.0, 3.0, 1.0], [3.0, 2.0, 1.0], [4.0, 1.0, 1.0]])
    rho = rank_correlation([0.1, 0.2, 0.3, 0.9], values)
    assert rho == pytest.approx([1 - 6 * 2 / (4 * 15), -1, 0])


def test_seeds_that_are_judged():
    both = {BASE: [0, 1], "a": [0, 1], "b": [0, 1]}
    assert choose_seeds(both, [0, 1]) == [0, 1]
    assert choose_seeds({**both, "a": [0], "b": [0]}, [0, 1]) == [0]  # three rows of one, or one row of two
    assert choose_seeds({**both, "b": [1]}, [0, 1]) == [0, 1]  # two rows of two, or three of one
    assert choose_seeds({"a": [0]}, [0]) == []  # nothing without the base


def write_reports(folder: Path, site: str, texts: dict[str, list[str]], seed: int = 0) -> None:
    ids = [f"phantom-5-test-{i:06d}" for i in range(len(next(iter(texts.values()))))]
    (folder / f"seed{seed}").mkdir(exist_ok=True)
    for row, answers in texts.items():
        lines = [
            json.dumps({"study_id": i, "completion": text, "tokens": 9}) for i, text in zip(ids, answers, strict=True)
        ]
        Path(site_reports(f"{folder}/seed{seed}", row, site)).write_text("\n".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A system's folder as after a run: 20 studies in and outside, rows whose reports are known, their logs.

    The base writes the normal report; severity's row the reference, outside too; MCCS's row falls silent outside.
    """
    home = tmp_path_factory.mktemp("lab") / "mrgr1"
    args = BuildArguments(size=64, seed=5, balanced=True)
    rows = [build_row("test", i, "sn", args) for i in range(20)]
    for name in ("data", "site_b"):
        write_dataset({"test": lambda: iter(rows)}, home / name, {"labeler": "lexical"})
    right, normal = [row["report"] for row in rows], [NORMAL_REPORT] * 20
    texts = {BASE: normal, "grpo_severity": right, "grpo_mccs": right, "grpo_ce_f1": normal, "sft": normal}
    write_reports(home, TEST, texts)
    write_reports(home, "site_b", texts | {"grpo_mccs": ["Clear."] * 20})
    write_reports(home, SHUFFLED, texts | {"grpo_severity": right[1:] + right[:1]})
    log = [
        {"step": 1, "reward": 0.5, "completions/mean_length": 20.0, "num_tokens": 700.0},
        {"step": 2, "reward": 0.6, "completions/mean_length": 30.0, "num_tokens": 1500.0},
        {"step": 2, "train_runtime": 10.0, "train_samples_per_second": 12.8},
    ]
    record = {}
    for number, row in enumerate(ROWS[1:4], 1):
        (home / "seed0" / row).mkdir()
        (home / "seed0" / row / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        out = f"{home}/seed0/{row}"
        record[out] = {"name": f"seed 0: {row}", "command": [], "seconds": 30.0, "processor_seconds": 60.0 * number}
    (home / "stages.json").write_text(json.dumps(record))
    failures = {f"{home}/openi": "no network", f"{home}/seed0/grpo_radcliq_lite.jsonl": "there is no model x"}
    (home / "failures.json").write_text(json.dumps(failures))
    return home


@pytest.fixture(scope="module")
def results(folder, plan) -> dict:
    figures = judge_lab(plan, str(folder), [0], [*ROWS, "grpo_severity_equal_time"], "none", LABELER)
    return figures | {"minutes": 1.5, "stages": {"data": 3.0}}


def test_judgement(results):
    """Severity's row writes the references: every reward is 1, and the gain what the normal report lacks."""
    test, outside = results["matrices"][TEST], results["matrices"]["site_b"]
    assert set(test["rows"]) >= {*ROWS[:4], "sft"} and "grpo_radcliq_lite" not in test["rows"]
    assert "crepe" not in test["judges"] and "CREPE does not judge" in results["notes"][0]
    row, base = test["rows"]["grpo_severity"], test["rows"][BASE]
    assert row["severity"]["value"] == row["recall"]["value"] == 1 and row["severity"]["trained"]
    gain = next(entry for entry in test["differences"] if (entry["system"], entry["minus"]) == ("grpo_severity", BASE))
    assert gain["figures"]["severity"]["value"] == pytest.approx(1 - base["severity"]["value"])
    assert gain["figures"]["severity"]["low"] > 0
    same = next(entry for entry in test["differences"] if (entry["system"], entry["minus"]) == ("sft", BASE))
    assert {value["value"] for value in same["figures"].values()} == {0}  # both write the normal report
    assert results["drops"]["site_b"]["grpo_mccs"]["recall"]["change"]["value"] == -1  # all, then none; the base never
    assert results["looking"]["grpo_severity"]["recall"]["low"] > 0  # right images minus others
    assert results["looking"]["grpo_mccs"]["recall"]["value"] == 0
    assert outside["rows"]["grpo_mccs"]["silent"]["value"] == 1
    assert results["habits"]["rows"][BASE]["distinct"]["value"] == 1 / 20
    assert results["seeds"] == [0]


def test_missing_rows_are_named(results):
    sentences = {(entry["row"], entry["site"]): entry["sentence"] for entry in results["missing"]}
    assert sentences["", "openi"] == "no network"
    assert sentences["grpo_radcliq_lite", TEST] == "there is no model x"
    assert ("grpo_radcliq_lite", "site_b") not in sentences  # once is enough
    assert "as long as ditpo_severity" in sentences["grpo_severity_equal_time", TEST] or "ditpo" in str(sentences)


def test_costs(results):
    """12.8 answers a second in 10 seconds are 128, of 25 tokens each in the mean."""
    cost = results["costs"]["grpo_severity"]
    assert cost == {"seconds": 10, "processor_seconds": 60, "samples": 128, "generated": 128 * 25, "read": 1500}
    assert results["costs"][BASE]["processor_seconds"] == 0
    assert results["costs"]["sft"]["seconds"] is None  # no log
    # sft has no processor seconds, so that rows are compared by those of training; all three took 10
    front = results["fronts"]["severity"]
    assert front[0] == BASE and {*front[1:]} == {"grpo_mccs", "grpo_severity"}  # both have 1


def test_hypotheses_of_what_was_run(results, plan):
    names = [check["name"] for check in results["checks"]]
    pairs = [name for name in names if "minus" in name]
    assert [name.split(",")[0] for name in pairs] == ["grpo_severity minus grpo_mccs"] * 2 + [
        "grpo_severity minus grpo_ce_f1"
    ] * 2
    assert all("severity" not in name.split(",")[1] for name in pairs)  # it is the teacher of one of them
    by_name = dict(zip(names, results["checks"], strict=True))
    assert not by_name[pairs[0]]["holds"] and by_name[pairs[2]]["holds"]  # level with MCCS's, above the normal report
    ranks = [check for check in results["checks"] if "rank correlation" in check["name"]]
    # tau .523 (MCCS), .569 (CE-F1), .689 (severity); own gains outside: below 0, 0, above 0
    assert len(ranks) == 2 and ranks[0]["gain"]["value"] == 1 and "3 rows" in ranks[0]["name"]


def test_too_few_rows_for_a_rank(plan):
    truth = make_truth([EFFUSION, HEART])
    values = resample(truth, {BASE: [[CLEAR] * 2]}, make_judges(["severity"], LABELER, []), LABELER)
    assert hypotheses(plan, {TEST: values, "site_b": values}, {TEST: compare(values, {}, ["severity"])}) == []


def test_page(results, folder, tmp_path):
    shown = [{"reference": "Heart <large>.", BASE: "Clear."}]
    curves = lab_page.reward_curves(str(folder), [0], ROWS)
    assert len(curves) == 3
    write_page(tmp_path / "mrgr1.html", results, curves, shown)
    page = (tmp_path / "mrgr1.html").read_text()
    for words in (
        "Trained on one, judged by all: the test split",
        "judged by all: another phantom site",
        "Drop out of distribution: another phantom site",
        "Shuffled images",
        "Habits",
        "Flags: its own reward rises, others fall",
        "there is no model x",
        "CREPE does not judge",
        "Heart &lt;large&gt;.",
        "the reward card, rewards/README.md",
        "RadCliQ (lite) against cost",
        "background: rgba(46, 122, 62",
    ):
        assert words in page, words
    assert page.count("<svg") == 3 + 1 and not re.search(
        r"(src|href)=.http", page
    )  # curves and the front; self-contained
    table = write_markdown(tmp_path / "mrgr1.md", results)
    (line,) = [line for line in table.splitlines() if line.startswith("| grpo_severity |")]
    assert line.split("|")[2].strip() == "1.000*" and "| 60 |" in line
    assert "Missing: openi, grpo_radcliq_lite" in table and "(mrgr1.png)" in table
    lab_page.draw_picture(tmp_path / "mrgr1.png", results)
    assert Image.open(tmp_path / "mrgr1.png").size[0] > 600


def test_a_flag_on_the_page(results, tmp_path):
    mark = {"row": "grpo_mccs", "site": TEST, "risen": ["mccs"], "fallen": ["severity", "radgraph_lexical"]}
    write_page(tmp_path / "a.html", results | {"flags": [mark]}, [], [])
    assert "<td>severity, RadGraph (lexical)</td>" in (tmp_path / "a.html").read_text()
    (line,) = [
        line
        for line in write_markdown(tmp_path / "a.md", results | {"flags": [mark]}).splitlines()
        if "| grpo_mccs |" in line
    ]
    assert line.rstrip(" |").endswith("flag")


def test_colours():
    assert shade(figure(0.1, 0.3), 0.4) == pytest.approx(0.5) and shade(figure(-0.1, 0.3), 0.4) == 0
    rows = {"a": {"mccs": figure(0.1, 0.3)}, "b": {"mccs": figure(-0.5, -0.3)}}
    table = differences_table(rows, {"mccs": "MCCS"}, {"a": ["mccs"]})
    assert table.rows[0][1] == "+0.200*\t+0.100 to +0.300" and table.shades[0, 1] == pytest.approx(0.5)
    assert 'style="background: rgba(160, 35, 35, 0.50)"' in table.__html__()
    assert "style" not in Table(["a"], [["1"]]).__html__()


def test_the_script_judges_what_is_there(call, folder, capsys):
    call(
        lab.main,
        "--system",
        "mrgr1",
        "--row",
        *ROWS[1:],
        "--seeds",
        0,
        1,
        "--judge_only",
        "true",
        "--out",
        folder.parent,
    )
    printed = capsys.readouterr().out
    assert "missing: grpo_radcliq_lite, test: seed 0, 1: there is no model x" in " ".join(printed.split())
    written = json.loads((folder.parent / "mrgr1.json").read_text())
    assert written["seeds"] == [0] and {"mrgr1.html", "mrgr1.md", "mrgr1.png"} <= {
        path.name for path in folder.parent.iterdir()
    }
    assert "wall time" not in str(written["checks"])  # nothing was run
