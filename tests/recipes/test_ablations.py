"""The ablation rows: each changes what the papers' tables say and no more; their figures on reports that are known."""

import doctest
import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from recipes import ablations, build_tiny, grpo_mrgr1, ppo_lmrrg, sft_llmrg4, sft_lmrrg, sft_mrgr1
from recipes.build_phantom import BuildArguments, build_row
from recipes.data.schema import read_split, write_dataset
from recipes.demos import ablation_figures as figures_of
from recipes.demos import ablation_matrix, ablation_page
from recipes.demos import reward_habits as reward_habits_of
from recipes.demos.ablation_figures import AGREE, DISAGREE, GROUPS, NOTHING, OPEN, is_style, measure, verdict
from recipes.demos.ablation_matrix import goal_checks, judge_reports, make_judges, measure_matrix, rewards_of
from recipes.demos.ablation_page import draw_claims, sample_reports, update_results, write_markdown, write_page
from recipes.demos.ablation_runs import OPENI, PHANTOM, ROWS, choose_rows, home_of, plan, row_file, row_reports
from recipes.demos.figures import make_check
from recipes.demos.mrgr1 import OpenIDemo
from recipes.demos.reward_habits import REFERENCES, habits_part, read_runs, report_habits, reward_habits
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from recipes.evaluation.bootstrap import efficacy_name
from recipes.evaluation.paper_comparison import read_results
from recipes.evaluation.references import Truth, read_truth
from recipes.files import InputError
from rewards import format_reward
from rewards.labelers import LexicalLabeler

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes/configs"
REWARDS, PLAIN = {"rewards", "reward_weights"}, {"prompt_file", "rewards", "reward_weights"}
IU_MIMIC = ("iu", "mimic")
CHANGES = [  # rows of the papers' ablations: row, its script, its bases, the arguments that differ from them
    ("mrgr1/sft", sft_mrgr1, ("sft_iu", "sft_mimic"), set()),  # what sft_iu.yaml is already
    ("mrgr1/sft", sft_mrgr1, ("sft_demo",), {"prompt_file", "target"}),
    ("mrgr1/nlg", grpo_mrgr1, (*IU_MIMIC, "demo"), PLAIN),
    ("mrgr1/ce_f1", grpo_mrgr1, (*IU_MIMIC, "demo"), PLAIN),
    ("mrgr1/reasoning", grpo_mrgr1, (*IU_MIMIC, "demo"), REWARDS),
    ("mrgr1/ce_f1_reasoning", grpo_mrgr1, IU_MIMIC, {"rewards"}),  # weighed 0.75 and 0.25 as MCCS and format
    ("mrgr1/mccs", grpo_mrgr1, (*IU_MIMIC, "demo"), PLAIN),
    ("mrgr1/mccs_reasoning", grpo_mrgr1, IU_MIMIC, set()),  # the whole system
    ("mrgr1/mccs_reasoning", grpo_mrgr1, ("demo",), REWARDS),  # without the demo's third reward
    ("mrgr1/mccs_margin_0", grpo_mrgr1, (*IU_MIMIC, "demo"), {*PLAIN, "margin"}),
    ("mrgr1/radcliq_lite", grpo_mrgr1, (*IU_MIMIC, "demo"), PLAIN),
    ("mrgr1/severity", grpo_mrgr1, (*IU_MIMIC, "demo"), PLAIN),
    ("mrgr1/severity_format", grpo_mrgr1, IU_MIMIC, {"rewards"}),  # in MCCS's place
    ("mrgr1/severity_format", grpo_mrgr1, ("demo",), REWARDS),
    ("mrgr1/deepseekmath_kl", grpo_mrgr1, IU_MIMIC, {"use_bias_correction_kl"}),
    ("mrgr1/deepseekmath_kl", grpo_mrgr1, ("demo",), {*REWARDS, "use_bias_correction_kl"}),
    ("mrgr1/whole_report", grpo_mrgr1, IU_MIMIC, {"loss_type"}),
    ("mrgr1/whole_report", grpo_mrgr1, ("demo",), {*REWARDS, "loss_type"}),
    ("lmrrg/full", ppo_lmrrg, ("iu_cqrl", "mimic_cqrl", "demo_cqrl"), set()),
    ("lmrrg/without_global", sft_lmrrg, (*IU_MIMIC, "demo"), {"use_global_feature"}),
    ("lmrrg/without_region", sft_lmrrg, (*IU_MIMIC, "demo"), {"use_region_features"}),
    ("lmrrg/names", sft_lmrrg, (*IU_MIMIC, "demo"), {"region_prompt"}),
    ("lmrrg/without_instruction", sft_lmrrg, (*IU_MIMIC, "demo"), {"use_instruction"}),
    ("lmrrg/without_disease", sft_lmrrg, (*IU_MIMIC, "demo"), {"lambda_disease"}),
    ("lmrrg/text_query", sft_lmrrg, (*IU_MIMIC, "demo"), {"region_attn_mode"}),
    ("lmrrg/region_loss", sft_lmrrg, (*IU_MIMIC, "demo"), {"region_attn_mode", "lambda_region"}),
    ("lmrrg/without_cqrl", sft_lmrrg, (*IU_MIMIC, "demo"), set()),  # stage 1 alone
    ("lmrrg/bleu", ppo_lmrrg, ("iu_cqrl", "mimic_cqrl", "demo_cqrl"), {"rewards", "theta"}),
    ("lmrrg/fixed_lambda", ppo_lmrrg, ("iu_cqrl", "mimic_cqrl", "demo_cqrl"), {"kl_controller"}),
    ("llmrg4/stage1_tlw", sft_llmrg4, ("mimic_rg4_stage1", "demo_stage1"), set()),
    ("llmrg4/stage1_without_tlw", sft_llmrg4, ("mimic_rg4_stage1", "demo_stage1"), {"key_weight"}),
    ("llmrg4/stage2_interleaved_without_tlw", sft_llmrg4, ("mimic_rg4_stage2", "demo_stage2"),
     {"key_weight", "fusion"}),
    ("llmrg4/stage2_interleaved_tlw", sft_llmrg4, ("mimic_rg4_stage2", "demo_stage2"), {"fusion"}),
    ("llmrg4/stage2_atf_without_tlw", sft_llmrg4, ("mimic_rg4_stage2", "demo_stage2"), {"key_weight"}),
    ("llmrg4/stage2_atf_tlw", sft_llmrg4, ("mimic_rg4_stage2", "demo_stage2"), set()),
    ("llmrg4/stage1_authors_perceiver", sft_llmrg4, ("mimic_rg4_stage1", "demo_stage1"), {"perceiver"}),
    ("llmrg4/stage2_authors_perceiver", sft_llmrg4, ("mimic_rg4_stage2", "demo_stage2"), {"perceiver"}),
    *((f"llmrg4/single_{name}", sft_llmrg4, ("mimic_rg4_stage2", "demo_stage2"), {"scenarios"})
      for name in ("sn", "sw", "mn", "mw")),
]  # fmt: skip
LABELER = LexicalLabeler()
MICRO, RADCLIQ = efficacy_name("14", "positive", "micro", "f1"), "radcliq_lite-v1"
TIME = "wall time of one seed without installation, minutes"


def name_case(value) -> str:
    """The start of a value, the same in every process: sets have no order of their own."""
    return str(sorted(value) if isinstance(value, set) else value)[:40]


@pytest.mark.parametrize(("row", "script", "bases", "changed"), CHANGES, ids=name_case)
def test_a_row_changes_its_keys_alone(read, row, script, bases, changed):
    system, name = row.split("/")
    for base in bases:
        words = ["--config", f"{CONFIGS}/{system}/{base}.yaml"]
        end = ["--use_cpu", "true", "--bf16", "false"]
        before = read(script, [*words, *end])
        after = read(script, [*words, "--config", row_file(system, name), *end])
        assert {key for key in before if before[key] != after[key]} == changed, base


@pytest.mark.parametrize(
    ("row", "key", "value"),
    [
        ("mrgr1/nlg", "rewards", ["bleu", "rouge", "cider"]),
        ("mrgr1/ce_f1_reasoning", "reward_weights", [0.75, 0.25]),
        ("mrgr1/mccs_reasoning", "reward_weights", [0.75, 0.25]),
        ("mrgr1/reasoning", "rewards", ["format"]),
        ("mrgr1/severity", "rewards", ["severity"]),
        ("mrgr1/severity_format", "rewards", ["severity", "format"]),
        ("lmrrg/names", "region_prompt", "name"),
        ("lmrrg/without_disease", "lambda_disease", 0),
        ("lmrrg/region_loss", "lambda_region", 0.1),
        ("lmrrg/bleu", "rewards", ["bleu"]),
        ("lmrrg/fixed_lambda", "kl_controller", "fixed"),
        ("llmrg4/stage1_without_tlw", "key_weight", 1),
        ("llmrg4/stage2_interleaved_tlw", "fusion", "interleaved"),
        ("llmrg4/stage1_authors_perceiver", "perceiver", "authors"),
        ("llmrg4/stage2_authors_perceiver", "perceiver", "authors"),  # else another stage 1 would go unnoticed
        ("llmrg4/single_mn", "scenarios", ["mn"]),
    ],
)
def test_values_of_the_rows(row, key, value):
    assert yaml.safe_load((ROOT / row_file(*row.split("/"))).read_text())[key] == value


def test_every_row_of_the_tables_has_its_file():
    """And the other way round: no file that no table and no page has."""
    tables = {"mrgr1": ["Table II"], "lmrrg": ["Table 3"], "llmrg4": ["Table 4", "Table 5"]}
    for system, names in tables.items():
        published = {
            (entry["table"], entry["row"], entry["setting"] if entry["table"] == "Table 5" else None)
            for entry in read_results()["rows"]
            if entry["paper"] == system and entry["table"] in names
        }
        ours = {
            (group.table, name, group.scenario if group.table == "Table 5" else None)
            for group in GROUPS[system]
            for name in group.rows.values()
            if name
        }
        assert ours == published
        assert {row for group in GROUPS[system] for row in group.rows} == set(ROWS[system])
        assert {file.stem for file in (CONFIGS / system / "ablations").iterdir()} == set(ROWS[system])
    assert len(published) == 6 + 8  # the last: Tables 4 and 5


@pytest.mark.parametrize(("system", "data"), [*((system, PHANTOM) for system in ROWS), ("mrgr1", OPENI)])
def test_every_command_of_the_plan_parses_and_has_its_inputs(read, system, data):
    earlier = set()
    levels = list(plan(system, "out", [3], choose_rows(system, []), data))
    outs = {out for jobs in levels for _, out, _ in jobs}
    for jobs in levels:
        for _, out, command in jobs:
            words = command[command.index(next(word for word in command if word.startswith("recipes/"))) :]
            script = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
            values = read(script, words[1:])
            assert out in (values.get("out"), values.get("output_dir"))
            assert (set(command) & outs) - {out} <= earlier  # all that it reads was made at an earlier level
            assert "seed3" not in out or values["seed"] == 3 or "generate" in words[0]
        earlier |= {out for _, out, _ in jobs}
    names = [name for jobs in levels for name, _, _ in jobs]
    assert len(set(names)) == len(names) and earlier == outs


@pytest.mark.parametrize(
    ("system", "excepted"),
    [
        ("mrgr1", {}),
        ("lmrrg", {"bleu": {"--theta 0.4"}}),  # said in RESULTS.md
        (
            "llmrg4",
            {f"single_{scenario}": {"--max_steps 100"} for scenario in ("sn", "sw", "mn", "mw")},
        ),  # as many epochs
    ],
)
def test_rows_are_trained_alike_but_for_their_files(system, excepted):
    """Beside its row's file, its folders and its start a training has the same words as the others of its base."""
    trainings = {}
    for jobs in plan(system, "out", [0], choose_rows(system, [])):
        for _, out, command in jobs:
            if command[0].startswith(("recipes/sft_", "recipes/grpo_", "recipes/ppo_")):
                options = " ".join(command).split(" --")
                base = tuple(options[:2])  # script and first config file
                rest = {f"--{text}" for text in options[2:] if "ablations/" not in text and "out/seed0" not in text}
                trainings.setdefault(base, {})[Path(out).name] = rest
    assert sum(map(len, trainings.values())) >= 9
    for rows in trainings.values():
        usual = set.intersection(*(rest for row, rest in rows.items() if row not in excepted))
        for row, rest in rows.items():
            assert rest - usual == excepted.get(row, set()), row


@pytest.mark.parametrize(
    ("system", "rows", "models"),
    [
        ("mrgr1", ["mccs"], {"mccs_reasoning", "mccs"}),
        ("lmrrg", ["without_cqrl"], {"full", "full_stage1"}),  # its stage 1 is the whole system's
        ("lmrrg", ["names"], {"full", "names"}),
        ("llmrg4", ["stage1_tlw"], {"stage2_atf_tlw", "stage1_tlw"}),
        ("llmrg4", ["stage2_authors_perceiver"], {"stage2_atf_tlw", "stage2_authors_perceiver"}),
    ],
)
def test_a_plan_of_some_rows(system, rows, models):
    jobs = [job for level in plan(system, "out", [0], choose_rows(system, rows)) for job in level]
    scored = {job.command[job.command.index("--model") + 1] for job in jobs if "recipes/generate.py" in job.command}
    assert {Path(folder).name for folder in scored} == models
    assert scored <= {job.out for job in jobs}  # nothing is scored that was not trained


def test_the_authors_perceiver_is_another_network_from_the_warm_up_on():
    rows = ["stage2_atf_tlw", "stage1_tlw", "stage2_authors_perceiver"]
    words = {out: " ".join(command) for jobs in plan("llmrg4", "out", [0], rows) for _, out, command in jobs}
    home, file = "out/seed0/", f"--config {row_file('llmrg4', 'stage1_authors_perceiver')} "
    assert {out for out in words if file in words[out]} == {home + "tiny_authors", home + "stage1_authors_perceiver"}
    assert f"--config {row_file('llmrg4', rows[2])} " in words[home + rows[2]]
    assert words[home + "tiny_authors"].replace(file, "") == words[home + "tiny"] + "_authors"
    for start, out in (
        ("tiny", "stage1_tlw"),
        ("stage1_tlw", "stage2_atf_tlw"),
        ("tiny_authors", "stage1_authors_perceiver"),
        ("stage1_authors_perceiver", "stage2_authors_perceiver"),
    ):
        assert f"--model_name_or_path {home}{start} " in words[home + out]


def test_a_plan_on_openi_trains_the_demos_start_and_then_the_phantoms_rows():
    words = {
        source: {
            Path(job.out).name: job
            for level in plan("mrgr1", "out", [0], ["severity", "sft"], source)
            for job in level
        }
        for source in (PHANTOM, OPENI)
    }
    data, balanced = next(OpenIDemo().plan("out", [0]))
    assert (words[OPENI]["data"], words[OPENI]["balanced"]) == (data, balanced)  # the demo's images
    start, base = words[OPENI]["tiny"], words[OPENI]["base"]
    assert "--warm_up_steps 500 --vocab_size 1024" in start.shown and "recipes/sft_mrgr1.py" in base.command
    assert f"--max_steps 800 --seed 0 --model_name_or_path {start.out} " in base.shown
    longer = words[OPENI]["severity"].shown.replace(" --max_completion_length 160", "")
    assert longer == words[PHANTOM]["severity"].shown and f"--model_name_or_path {base.out} " in longer
    assert words[OPENI]["sft"].shown == words[PHANTOM]["sft"].shown  # has no completions


def test_a_row_that_is_not_there():
    with pytest.raises(InputError, match="mrgr1 has no row 'mcs'; choose among mccs_reasoning"):
        choose_rows("mrgr1", ["mccs", "mcs"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--system", "mrg"], "no system 'mrg'"),
        (["--row", "mccs"], "give --system too"),  # of which of three systems
        (["--system", "mrgr1", "--seeds", "0", "0"], "different numbers"),
        (["--system", "mrgr1", "--row", "mcs"], "no row 'mcs'"),
        (["--system", "mrgr1", "--data", "mimic"], "argument --data: invalid choice: 'mimic'"),
        (["--data", "openi"], "--data openi is for --system mrgr1; lmrrg has --data phantom alone"),
    ],
)
def test_mistakes(call, tmp_path, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        call(ablations.main, *arguments, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def interval(low: float, value: float, high: float) -> dict:
    return {"low": low, "value": value, "high": high}


@pytest.mark.parametrize(
    ("difference", "paper", "expected"),
    [
        (interval(0.01, 0.02, 0.03), [0.1], AGREE),
        (interval(-0.03, -0.02, -0.01), [0.1], DISAGREE),
        (interval(-0.03, -0.02, -0.01), [-0.1, -0.2], AGREE),  # both of its data sets
        (interval(-0.01, 0.02, 0.03), [0.1], OPEN),  # 0 lies within
        (interval(0.01, 0.02, 0.03), [0.1, -0.1], NOTHING),  # its data sets differ
        (interval(0.01, 0.02, 0.03), [0.0], NOTHING),  # level
        (interval(0.01, 0.02, 0.03), [], NOTHING),  # a row or a figure of ours
    ],
)
def test_verdict(difference, paper, expected):
    assert verdict(difference, paper) == expected


@pytest.mark.parametrize(
    ("difference", "shuffled", "expected"),
    [
        (interval(0.1, 0.2, 0.3), interval(0.05, 0.1, 0.15), True),  # just half
        (interval(0.1, 0.2, 0.3), interval(0.04, 0.09, 0.15), False),  # less
        (interval(-0.3, -0.2, -0.1), interval(-0.3, -0.2, -0.1), True),  # all of it, downwards
        (interval(0.1, 0.2, 0.3), interval(-0.3, -0.2, -0.1), False),  # the other way
        (interval(-0.1, 0.2, 0.3), interval(0.1, 0.2, 0.3), False),  # there is no sure difference
        (interval(0.1, 0.2, 0.3), interval(-0.1, 0.2, 0.3), False),  # nor here
    ],
)
def test_style(difference, shuffled, expected):
    assert is_style(difference, shuffled) is expected


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A folder as after the stages, two seeds: three rows of MRG-R1 with reports whose scores are known."""
    folder = tmp_path_factory.mktemp("ablations") / "mrgr1"
    args = BuildArguments(size=64, seed=5, balanced=True)
    rows = [build_row("test", i, "sn", args) for i in range(40)]
    write_dataset({"test": lambda: iter(rows)}, folder / "data", {"labeler": "lexical"})
    reports = [row["report"] for row in rows]
    moved = reports[1:] + reports[:1]
    tagged = [f"<think>x</think>\n<report>{text}</report>" for text in reports]
    texts = {
        "mccs_reasoning": (tagged, moved),  # the reference, in the format
        "ce_f1": (reports, reports),  # as good, and as good without the images: it cannot look
        "base": ([NORMAL_REPORT] * 40, [NORMAL_REPORT] * 40),
    }
    for seed in (0, 1):
        (folder / f"seed{seed}").mkdir()
        for row, pair in texts.items():
            for shuffled, texts_of_row in zip((False, True), pair, strict=True):
                lines = [
                    json.dumps({"study_id": row["study_id"], "completion": text})
                    for row, text in zip(rows, texts_of_row, strict=True)
                ]
                Path(row_reports(folder, seed, row, shuffled)).write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def results(out) -> dict:
    names = ["mccs_reasoning", "base", "ce_f1"]
    truth = read_truth(f"{out}/data", "test", LABELER)
    measured = measure("mrgr1", str(out), [0, 1], names, truth, LABELER)
    habits = reward_habits(str(out), [0, 1], names, truth, LABELER)
    others = [*figures_of.format_check(measured["groups"]), make_check(TIME, 21.0, "<= 20")]
    extra = {"system": "mrgr1", "data": PHANTOM, "seeds": [0, 1], "labeler": "lexical", "minutes": 21.0}
    figures = {"spread": {}, "habits": habits, "matrix": {}, "tokens": {}, "stages": {"data": 3.0}}
    return {**extra, **measured, "other_checks": others, **figures}


def test_figures_of_a_group(results):
    (group,) = results["groups"]
    rows = group["rows"]
    assert set(rows) == {"mccs_reasoning", "base", "ce_f1"} and "mccs" in group["not_run"]
    assert rows["mccs_reasoning"][MICRO]["value"] == rows["ce_f1"][MICRO]["value"] == 1
    assert rows["base"][MICRO]["value"] == pytest.approx(group[TEMPLATE][MICRO])  # it writes the normal report
    assert rows["base"][MICRO]["paper"] == pytest.approx([0.0652, 0.1945])  # Table II, IU X-Ray and MIMIC-CXR
    base = rows["base"][MICRO]
    assert base["paper_difference"] == pytest.approx([0.0652 - 0.5188, 0.1945 - 0.4039])
    assert base["difference"]["high"] < 0 and base["verdict"] == AGREE and not base["style"]
    same = rows["ce_f1"][MICRO]
    assert same["difference"]["value"] == 0 and same["verdict"] == OPEN
    assert same["difference_shuffled"]["low"] > 0  # without its images it alone is right
    assert rows["mccs_reasoning"]["format_rate"]["value"] == 1 and rows["base"]["format_rate"]["value"] == 0
    assert "verdict" not in rows["mccs_reasoning"][MICRO]  # nothing to be compared with


def test_values_by_seed(out, tmp_path, monkeypatch):
    folder = shutil.copytree(out, tmp_path / "mrgr1")
    monkeypatch.setitem(figures_of.CLAIMS, "mrgr1", [figures_of.Claim("", "ce_f1", "base", MICRO)])
    right = Path(row_reports(folder, 1, "ce_f1"))
    shutil.copy(right, row_reports(folder, 1, "base"))  # the references; the normal report with seed 0
    truth = read_truth(f"{folder}/data", "test", LABELER)
    measured = measure("mrgr1", str(folder), [0, 1], ["base", "ce_f1"], truth, LABELER)
    (group,) = measured["groups"]
    base, template = group["rows"]["base"][MICRO], group[TEMPLATE][MICRO]
    assert base["by_seed"] == pytest.approx([template, 1])
    assert template < base["value"] < 1
    assert base["low"] < template + 0.05 and base["high"] == 1  # one draw of two is a seed alone, twice
    (claim,) = measured["claims"]
    assert claim["gain"]["by_seed"] == pytest.approx([1 - template, 0])
    assert claim["gain"]["value"] > 0 and claim["verdict"] == OPEN  # 40 studies agree, two seeds do not
    assert group["rows"]["ce_f1"][MICRO]["by_seed"] == [1, 1]


def test_claims_of_rows_that_were_run_alone(results):
    assert results["claims"] == []  # each needs a row that was not run
    format_reward, time = results["other_checks"]
    assert format_reward["value"] == 1 and format_reward["holds"]
    assert not time["holds"]  # 21 of 20 minutes


@pytest.mark.parametrize(
    ("claim", "judgement", "holds"),
    [
        (figures_of.Claim("", "mccs_reasoning", "base", MICRO), AGREE, True),
        (figures_of.Claim("", "base", "mccs_reasoning", MICRO), DISAGREE, False),
        (figures_of.Claim("", "ce_f1", "mccs_reasoning", MICRO), OPEN, False),  # exactly level
        (figures_of.Claim("", "ce_f1", "mccs_reasoning", MICRO, level=True), AGREE, True),
        (figures_of.Claim("", "base", "ce_f1", MICRO, level=True), DISAGREE, False),
        (figures_of.Claim("", "ce_f1", "base", RADCLIQ), AGREE, True),  # lower is better
    ],
)
def test_claim(out, claim, judgement, holds, monkeypatch):
    monkeypatch.setitem(figures_of.CLAIMS, "mrgr1", [claim])
    names = ["mccs_reasoning", "base", "ce_f1"]
    truth = read_truth(f"{out}/data", "test", LABELER)
    (check,) = measure("mrgr1", str(out), [0], names, truth, LABELER)["claims"]
    assert (check["verdict"], check["holds"]) == (judgement, holds)


def test_tables_and_page(results, out, tmp_path):
    table = write_markdown(tmp_path / "mrgr1.md", results)
    assert table == (tmp_path / "mrgr1.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("|")}
    assert "<br>0.065 / 0.195" in lines["Base"] and "agree" in lines["Base"]
    assert "micro F1 14" in table and "micro P 14" not in table  # the page has the rest
    assert lines["Base + MCCS"].split("|")[2].strip() == "not run"  # no row is hidden
    assert "1.000 (1.000–1.000)" in lines["**Base + MCCS + reasoning**"]
    assert lines["*Table II, 40 test studies*"].strip("| ") == "*Table II, 40 test studies*"
    shown = sample_reports(read_split(f"{out}/data", "test"), str(out), 0, ["mccs_reasoning", "base", "ce_f1"])
    assert all({"reference", "base", "mccs_reasoning", "ce_f1"} == set(study) for study in shown)
    spread = {"ce_f1": {"groups": 2, "std": 0.25, "equal": 0.5, "values": 2}}
    write_page(tmp_path / "page.html", results | {"spread": spread}, shown)
    page = (tmp_path / "page.html").read_text()
    assert page.count('<div class="reports box">') == len(shown) and "not medical data" in page
    assert "recall of negatives" in page and "fixed normal report" in page
    assert "&lt;think&gt;" in page and "<think>" not in page  # what a model writes is text
    for tag in ("table", "tr", "td", "div", "p"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


class Done:
    """Stands for `Stages` when all stages are done."""

    def __init__(self, folder: str, fresh: bool):
        self.names: list[str] = []

    def __enter__(self) -> "Done":
        return self

    def __exit__(self, *error) -> None: ...

    def run(self, *jobs) -> None:
        assert jobs
        self.names += [name for name, _, _ in jobs]

    def seconds(self) -> dict[str, float]:
        return dict.fromkeys(self.names, 60.0)


def test_the_script_from_reports_to_pages(call, out, monkeypatch, capsys):
    monkeypatch.setattr(ablations, "Stages", Done)
    monkeypatch.chdir(ROOT)  # where the script goes itself
    call(ablations.main, "--system", "mrgr1", "--row", "base", "--seeds", 0, 1, "--out", out.parent)
    results = json.loads((out.parent / "mrgr1.json").read_text())
    # two data sets; of each seed the base, one trained row, and two files of reports of each: shared by two seeds
    assert sum(results["stages"].values()) - results["stages"]["figures"] == 60 * (2 + 2 * (2 + 4))
    assert results["minutes"] == pytest.approx(2 + 6 + results["stages"]["figures"] / 60)
    summary = json.loads((out.parent / "results.json").read_text())
    assert summary["seeds"] == {"mrgr1": [0, 1]}
    assert {"name", "value", "bar", "holds"} <= set(summary["checks"][0])
    assert set(results["habits"]["rows"]) == {"base", "mccs_reasoning", "references", TEMPLATE}
    assert (out.parent / "mrgr1.md").is_file() and (out.parent / "mrgr1.html").is_file()
    rows = results["matrix"]["rows"]
    assert list(rows) == list(results["habits"]["rows"])
    for row in rows:  # habits and matrix come to their figures by two ways
        assert rows[row]["findings"]["value"] == pytest.approx(results["habits"]["rows"][row]["findings"]["value"])
        assert rows[row]["mccs"]["value"] == pytest.approx(results["habits"]["rows"][row]["mccs"]["value"])
    assert "SYSTEM.html shows it all, for mrgr1" in capsys.readouterr().out


def test_tokens_of_both_fusions(tmp_path):
    """Two images of 4 tokens each are 4 in all by ATF and 8 interleaved, where the prior report is text beside."""
    from modeling.tiny_llmrg4 import build_llmrg4

    args = BuildArguments(size=64)
    rows = [build_row("test", i, ("sn", "mw")[i % 2], args) for i in range(4)]
    write_dataset({"test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "lexical"})
    fusions = {"stage2_atf_tlw": "atf", "stage2_interleaved_tlw": "interleaved"}
    for row, fusion in fusions.items():
        texts = [row["report"] for row in rows]
        _, processor = build_llmrg4(texts, vocab_size=400, num_visual_tokens=4, fusion=fusion, text_layers=1)
        processor.save_pretrained(tmp_path / "seed0" / row)
    counts = figures_of.count_inputs(str(tmp_path), [0], [*fusions])
    atf, interleaved = counts.values()
    assert (atf["visual, largest"], interleaved["visual, largest"]) == (4, 8)
    assert interleaved["prompt, largest"] > atf["prompt, largest"] + 4
    both = {"stage2_atf_tlw": (128, 204), "stage2_interleaved_tlw": (256, 502)}  # Table 4's N
    tokens = {
        row: dict(zip(("visual, largest", "prompt, largest"), counts, strict=True)) for row, counts in both.items()
    }
    assert [check["value"] for check in figures_of.token_check(tokens)] == [204 / 502, 128 / (502 - 76)]
    assert figures_of.token_check({"stage2_atf_tlw": atf}) == []  # one fusion alone was run


def test_one_table_of_groups_with_different_figures():
    """A figure that a group has not is an empty cell, not another group's."""
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "paper": None}
    f1, bleu = MICRO, "bleu-4"
    groups = [
        {"title": "one", "studies": 3, "columns": [f1, bleu], "full": "a", "names": {"a": "A", "b": "B"},
         "rows": {"a": {f1: figure, bleu: figure}}, TEMPLATE: {f1: 0.1, bleu: 0.2}},
        {"title": "two", "studies": 4, "columns": [bleu], "full": "a", "names": {"a": "A"},
         "rows": {"a": {bleu: figure}}, TEMPLATE: {bleu: 0.3}},
    ]  # fmt: skip
    table = ablation_page._headline_table(groups)
    cell = "0.500 (0.400–0.600)"
    assert [row[1:] for row in table.rows] == [
        *(["", ""], [cell, cell], ["not run", ""], ["0.100", "0.200"]),
        *(["", ""], ["", cell], ["", "0.300"]),
    ]
    assert [row[0] for row in table.rows if row[0].startswith("**")] == ["**A**", "**A**"]


def test_picture_of_claims():
    gain = {"value": 0.2, "low": 0.1, "high": 0.4, "by_seed": [0.1, 0.3]}
    claims = [{"name": f"{verdict} claim", "gain": gain, "verdict": verdict} for verdict in (AGREE, DISAGREE, OPEN)]
    figure = draw_claims({"mrgr1": {"claims": claims[:2]}, "lmrrg": {"claims": claims[2:]}})
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["mrgr1: agree claim", "mrgr1: disagree claim", "lmrrg: not significant claim"]
    lines = [list(line.get_xdata()) for line in axes.lines]
    assert lines[:3] == [[0.1, 0.4], [0.2], [0.1, 0.3]]
    assert len({axes.lines[3 * place].get_color() for place in range(3)}) == 3


def test_update_results(tmp_path):
    file = tmp_path / "RESULTS.md"
    file.write_text("a\n<!-- mrgr1 table -->\nold\n<!-- /mrgr1 table -->\nb\n")
    update_results(file, "mrgr1", "new\n")
    assert file.read_text() == "a\n<!-- mrgr1 table -->\nnew\n<!-- /mrgr1 table -->\nb\n"
    with pytest.raises(InputError, match="lmrrg table"):
        update_results(file, "lmrrg", "new\n")


def test_every_table_has_a_place():
    places = {"recipes/RESULTS.md": ROWS, "recipes/configs/mrgr1/README.md": [home_of("mrgr1", OPENI)]}
    for page, name in ((page, name) for page, names in places.items() for name in names):
        text = (ROOT / page).read_text()
        assert text.count(f"<!-- {name} table -->") == text.count(f"<!-- /{name} table -->") == 1


def test_reward_spread(tmp_path):
    """One seed, one step, two groups of four: deviations 0.5 and 0, by hand."""
    file = tmp_path / "seed0/ce_f1/completions/completions_00001.parquet"
    file.parent.mkdir(parents=True)
    pd.DataFrame({"ce_f1_reward": [0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]}).to_parquet(file)
    spread = figures_of.reward_spread(str(tmp_path), [0], ["ce_f1", "nlg"], steps=1)
    assert spread == {"ce_f1": {"groups": 2, "std": 0.25, "equal": 0.5, "values": 3}}


EFFUSION = "There is a right pleural effusion."
CLEAR = "No pneumothorax."


def test_report_habits_by_hand():
    """Three studies, two of them abnormal with one finding each, and two negatives in all; reports of known labels."""
    references = [EFFUSION + " " + CLEAR, "The heart is enlarged.", CLEAR]
    completions = [
        f"<think>{EFFUSION}</think><report>{EFFUSION} {CLEAR}</report>",  # all right, and the reasoning says the same
        f"<think>The heart is enlarged.</think><report>{CLEAR}</report>",  # silent in the report alone
        EFFUSION,  # one too many, its negative left out; no reasoning
    ]
    habits = report_habits(completions, np.asarray(LABELER(references)), LABELER)
    assert habits == pytest.approx({
        "f1": 2 * 1 / (2 * 1 + 1 + 1),
        "findings": 2 / 3,
        "negatives": 2 / 3,
        "negative_recall": 1 / 2,
        "silent": 1 / 2,
        "words": (8 + 2 + 6) / 3,
        "distinct": 1,
        "contradictions": 0,
        "mccs": 1 / 3,  # 1, 0 and 0: the labels of the second and third have no label in common with the reference
        "mccs_abnormal": 1 / 2,
        "think": 1 / 2,
    })  # fmt: skip
    few = report_habits(["", completions[0], ""], np.asarray(LABELER([CLEAR] * 3)), LABELER)
    assert few["distinct"] == pytest.approx(2 / 3)
    both = report_habits([f"{EFFUSION} No pleural effusion.", EFFUSION], np.asarray(LABELER([CLEAR] * 2)), LABELER)
    assert both["contradictions"] == 1 / 2  # states and denies the same finding
    assert few["think"] is None and few["silent"] is None and few["mccs_abnormal"] is None
    assert few["negative_recall"] == pytest.approx(1 / 3)


def test_reward_habits_by_seed(out, tmp_path):
    folder = shutil.copytree(out, tmp_path / "mrgr1")
    shutil.copy(row_reports(folder, 1, "ce_f1"), row_reports(folder, 1, "base"))
    truth = read_truth(f"{folder}/data", "test", LABELER)
    rows = reward_habits(str(folder), [0, 1], ["base", "mccs_reasoning"], truth, LABELER)["rows"]
    for figure in ("f1", "findings", "silent", "mccs"):
        normal, reference = rows[TEMPLATE][figure]["value"], rows["references"][figure]["value"]
        assert rows["base"][figure]["by_seed"] == [normal, reference]
        assert rows["base"][figure]["value"] == pytest.approx((normal + reference) / 2)
    assert rows[TEMPLATE]["silent"]["value"] == 1 and rows["references"]["silent"]["value"] == 0
    assert rows["base"]["think"] == {"value": None, "by_seed": [None, None]}
    assert rows["mccs_reasoning"]["think"]["value"] is not None


def test_habits_part_by_hand():
    """References: one finding and one negative; two findings; none, and No Finding."""
    references = [f"{EFFUSION} {CLEAR}", f"{EFFUSION} The heart is enlarged.", "No acute disease."]
    reports = [CLEAR, f"{EFFUSION} {CLEAR}", "Normal chest. No acute disease."]
    part = habits_part(reports, LABELER(reports), LABELER(references))
    figures = {name: float(value) for name, value in part.figures(part.statistics.sum(0)).items()}
    assert figures == pytest.approx({
        "findings": 1 / 3,
        "negatives": 2 / 3,
        "silent": 1 / 2,  # the first of two abnormal studies
        "recall": 1 / 3,
        "precision": 1,
        "negative_recall": 1,  # of the only one; the second report's has no counterpart
        "normal": 1,
        "words": (2 + 8 + 5) / 3,
    })  # fmt: skip
    assert part.reports["recall"].tolist() == [0, 1 / 2, 0]
    assert part.figures(np.zeros(16))["recall"] == 0  # nothing drawn


@pytest.mark.parametrize("module", [ablation_matrix, reward_habits_of])
def test_examples_are_true(module):
    tried = doctest.testmod(module)
    assert tried.attempted and not tried.failed


def make_truth(reports: list[str]) -> Truth:
    ids = [str(i) for i in range(len(reports))]
    return Truth(ids, reports, np.asarray(LABELER(reports)), [None] * len(ids), np.arange(len(ids)))


def test_matrix_by_hand():
    """Two studies, two seeds: one system is right, once in the format; the other silent, or wrong with seed 1."""
    truth = make_truth([f"{EFFUSION} {CLEAR}", "The heart is enlarged."])
    right = [[f"<think>x</think><report>{truth.reports[0]}</report>", truth.reports[1]], truth.reports]
    poor = [[CLEAR, CLEAR], [f"There is no right pleural effusion. {CLEAR}", EFFUSION]]
    judges = make_judges(["mccs", "ce_f1", "severity", "rewards.format_reward"], LABELER, truth.reports)
    trained = {"right": ["severity", "rewards.format_reward"]}
    matrix = measure_matrix(truth, {"right": right, "poor": poor}, trained, judges, LABELER, [("right", "poor")])
    rows = matrix["rows"]
    assert list(rows) == ["right", "poor", REFERENCES, TEMPLATE]
    best = ("mccs", "ce_f1", "severity", "recall", "negative_recall")
    assert [rows["right"][name]["value"] for name in best] == pytest.approx([1] * 5)
    assert [rows["right"][name]["trained"] for name in judges] == [False, False, True, True]
    # of 4 answers one has the format, of seed 0; the others have a part of it or none
    seed0, seed1 = rows["right"]["rewards.format_reward"]["by_seed"]
    assert (seed0, seed1) == (np.mean(format_reward([right[0][0], right[0][1]])), 0)
    # MCCS of CLEAR against effusion and no pneumothorax: cosine 1 / sqrt 2, margin .2; the rest has nothing in common
    silent = (1 / np.sqrt(2) - 0.2) / 0.8
    assert rows["poor"]["mccs"]["by_seed"] == pytest.approx([silent / 2, 0])
    assert rows["poor"]["mccs"]["value"] == pytest.approx(silent / 4)
    assert rows["poor"]["silent"]["by_seed"] == [1, 1 / 2]
    assert rows["poor"]["findings"]["by_seed"] == [0, 1 / 2] and rows["poor"]["recall"]["value"] == 0
    assert rows["poor"]["negative_recall"]["value"] == 1
    (entry,) = matrix["differences"]
    assert (entry["system"], entry["minus"]) == ("right", "poor")
    assert entry["figures"]["mccs"]["value"] == pytest.approx(1 - silent / 4)
    assert entry["figures"]["mccs"]["by_seed"] == pytest.approx([1 - silent / 2, 1])
    assert entry["figures"]["recall"]["low"] == entry["figures"]["recall"]["high"] == 1  # whatever is drawn
    # the least that a draw can show is the first study alone, with seed 0 alone
    assert entry["figures"]["mccs"]["low"] == pytest.approx(1 - silent)
    assert rows[REFERENCES]["findings"]["value"] == 1 and rows[TEMPLATE]["silent"]["value"] == 1


def test_matrix_of_unequal_seeds_and_judges_without_a_score():
    truth = make_truth([EFFUSION, CLEAR])
    with pytest.raises(InputError, match=r"as many seeds as each other, not \[1, 2\]"):
        measure_matrix(truth, {"a": [truth.reports], "b": [truth.reports] * 2}, {}, {}, LABELER)
    with pytest.raises(InputError, match="a judge cannot be made: there is no reward 'mcs'"):
        make_judges(["mccs", "mcs"], LABELER, truth.reports)
    with pytest.raises(InputError, match="the judge unsure gives 1 of 2 reports no score"):
        judge_reports({"unsure": lambda completions, report: [None, 1.0]}, truth.reports, truth.reports)


def test_rewards_of_a_row():
    assert rewards_of("severity_format") == ["severity", "format"]
    assert rewards_of("radcliq_lite") == ["radcliq_lite", "radgraph_lexical", "bleu"]
    assert rewards_of("base") == rewards_of("sft") == []


@pytest.mark.parametrize(
    ("recall", "negatives", "holds"),
    [(0.01, -0.02, [True, True]), (0.0, 0.1, [False, True]), (0.1, -0.021, [True, False])],
)
def test_goal_of_the_severity_reward(recall, negatives, holds):
    figures = {"recall": {"low": recall, "high": 1.0}, "negative_recall": {"low": negatives, "high": 1.0}}
    pairs = [("severity", "mccs"), ("severity", "ce_f1")]  # the second is no goal
    matrix = {"differences": [{"system": a, "minus": b, "figures": figures} for a, b in pairs]}
    assert [check["holds"] for check in goal_checks(matrix)] == holds


def test_matrix_in_tables(results, out, tmp_path, monkeypatch):
    truth = read_truth(f"{out}/data", "test", LABELER)
    names = ["mccs_reasoning", "base", "ce_f1"]
    judges = make_judges(["mccs", "ce_f1"], LABELER, truth.reports)
    runs, trained = read_runs(str(out), [0, 1], names, truth), {row: rewards_of(row) for row in names}
    matrix = measure_matrix(truth, runs, trained, judges, LABELER, [("ce_f1", "base"), ("base", "ce_f1")])
    monkeypatch.setattr(ablation_page, "PAIRS", (("ce_f1", "mccs_reasoning"),))
    table = write_markdown(tmp_path / "a.md", results | {"matrix": matrix, "data": OPENI})
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("|")}
    assert lines["Base + CE F1"].split("|")[2:4] == [" 1.000 ", " 1.000* "]  # its own reward is marked
    assert lines["Base + MCCS + reasoning"].split("|")[2:4] == [" 1.000* ", " 1.000 "]
    assert "Table II" not in table  # the paper's images are others
    write_page(tmp_path / "a.html", results | {"matrix": matrix, "data": OPENI}, [])
    page = (tmp_path / "a.html").read_text()
    assert "<th>base minus ce_f1</th>" in page  # which has every pair
    assert "judged by others" in page and "on Open-i with stand-in images" in page
    assert "<small>1.000, 1.000</small>" in page  # of each seed
    assert page.count(">1.000*<small>1.000 to 1.000</small>") == 2


def test_radcliq_alone_trains(call, tiny, phantom, tmp_path):
    arguments = ["--config", CONFIGS / "mrgr1/demo.yaml", "--config", ROOT / row_file("mrgr1", "radcliq_lite")]
    arguments += ["--model_name_or_path", tiny, "--dataset", phantom, "--output_dir", tmp_path / "run"]
    arguments += ["--max_steps", 1, "--per_device_train_batch_size", 4, "--effective_batch_size", 4]
    call(grpo_mrgr1.main, *arguments, "--max_completion_length", 6, "--prompt_file", "prompts/mrgr1_tiny.txt")
    logged = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    assert "rewards/radcliq_lite_reward/mean" in logged[0]
    assert logged[0]["completions/untagged"] == 1  # an untrained model writes no tag


def test_a_row_of_lmrrg_from_warmed_up_parts(call, phantom, tmp_path):
    """Without region features: its own network with the image encoder and decoder of the whole one, then a step."""
    from modeling import LMRRGForConditionalGeneration

    small = ["--system", "lmrrg", "--prompt_file", "prompts/lmrrg.txt", "--dataset", phantom, "--image_size", 56]
    small += ["--hidden_size", 64, "--vocab_size", 400]
    row = ["--config", ROOT / row_file("lmrrg", "without_region")]
    call(build_tiny.main, *small, "--seed", 1, "--out", tmp_path / "other")
    call(build_tiny.main, *small, *row, "--parts_of", tmp_path / "other", "--out", tmp_path / "tiny")
    full, model = (LMRRGForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("other", "tiny"))
    assert model.config.use_region_features is False
    assert (
        model.config.num_visual_tokens == 1 and full.config.num_visual_tokens == 30
    )  # the global one, and 29 regions
    for part in ("visual_extractor.vision_model", "visual_extractor.visual_projection", "language_model"):
        state, expected = (network.model.get_submodule(part).state_dict() for network in (model, full))
        assert all((state[name] == expected[name]).all() for name in expected), part
    arguments = ["--config", CONFIGS / "lmrrg/demo.yaml", *row, "--model_name_or_path", tmp_path / "tiny"]
    arguments += ["--dataset", phantom, "--output_dir", tmp_path / "run", "--max_steps", 1]
    call(sft_lmrrg.main, *arguments, "--per_device_train_batch_size", 2)
    assert (tmp_path / "run/trainer_state.json").is_file()
