"""Figures of the ablation rows: ours with intervals, the papers', and whether the directions agree.

`measure` returns `groups` and `claims`, what the paper says. A group has `title`, `table`, `full` (the row that the
others are compared with), `studies`, `columns`, `names` and `rows`: row -> figure -> `value`, `low`, `high` (95 %,
bootstrap over studies and, with several, over seeds), `by_seed` (one value each), `shuffled` (the value with the
images of other studies), `paper` (its printed values as fractions, one per data set), `difference` to the full row and
`difference_shuffled` ({value, low, high}), `paper_difference`, `verdict`, and `style`: whether at least half of the
difference is there with the images of other studies too.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from modeling import LLMRG4Processor
from recipes.data.prompt_tokens import count_tokens
from recipes.data.samples import columns_of, to_samples
from recipes.data.schema import read_split
from recipes.demos.ablation_runs import TABLES, row_reports
from recipes.demos.figures import RESAMPLES, make_check
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from recipes.evaluation.bootstrap import bootstrap, draw_counts
from recipes.evaluation.figures import describe
from recipes.evaluation.paper_comparison import read_results
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.references import Truth
from recipes.evaluation.scores import Metrics, System, as_interval, measure_systems
from recipes.files import read_prompt

SHUFFLED = ", shuffled images"
AGREE, DISAGREE, OPEN = "agree", "disagree", "not significant"
NOTHING = "the paper gives no direction"


class Group(NamedTuple):
    """Rows on the same studies. `rows`: ours -> the paper's, or None; `columns`: figure -> the paper's."""

    title: str
    table: str
    full: str
    rows: dict[str, str | None]
    columns: dict[str, str | None]
    scenario: str | None = None  # of the studies; None: all


class Claim(NamedTuple):
    """What a paper says, or "(ours)" we: `better` than `worse` in a figure; `level`: or not worse."""

    text: str
    better: str
    worse: str
    figure: str
    group: int = 0
    level: bool = False


GROUPS = {
    system: [Group(**{"full": tables["full"], **group}) for group in tables["groups"]]
    for system, tables in TABLES.items()
}
CLAIMS = {system: [Claim(*claim) for claim in tables["claims"]] for system, tables in TABLES.items()}


def measure(system: str, folder: str, seeds: list[int], rows: list[str], truth: Truth, labeler) -> dict:
    """`groups` and `claims` of a system's rows that were run, from the reports in its folder."""
    ids = dict.fromkeys(truth.ids)
    texts: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for shuffled in (False, True):
            by_study = texts.setdefault(row + SHUFFLED * shuffled, {})
            for seed in seeds:
                reports = read_predictions(row_reports(folder, seed, row, shuffled), ids)
                for study, completions in reports.items():
                    by_study.setdefault(study, []).extend(completions)
    groups, measured = [], []
    for group in GROUPS[system]:
        part = truth.select(
            {study for study, scenario in zip(truth.ids, truth.scenarios, strict=True)
             if group.scenario in (None, scenario)}
        )  # fmt: skip
        systems = _measure_systems(
            part, {row: texts[row] for row in texts if row.split(",")[0] in group.rows}, labeler, len(seeds)
        )
        measured.append(systems)
        groups.append(
            {
                "title": group.title,
                "table": group.table,
                "full": group.full,
                "studies": len(part.ids),
                "columns": list(group.columns),
                "names": {row: name or f"(ours) {row.replace('_', ' ')}" for row, name in group.rows.items()},
                "rows": {row: _row(group, row, systems, system, len(seeds)) for row in group.rows if row in systems},
                "not_run": [row for row in group.rows if row not in systems],
                TEMPLATE: {name: float(systems[TEMPLATE].values[name][0]) for name in group.columns},
            }
        )
    claims = [_check(claim, measured[claim.group], len(seeds)) for claim in CLAIMS[system]]
    return {"groups": groups, "claims": [claim for claim in claims if claim]}


def _measure_systems(truth: Truth, texts: dict[str, dict[str, list[str]]], labeler, seeds: int) -> dict[str, System]:
    """The rows and the normal report, measured; `values` has each figure's own value and that of every resample.

    A resample draws studies and seeds independently; the same for all systems.
    """
    completions = {name: {study: by_study[study] for study in truth.ids} for name, by_study in texts.items()}
    completions[TEMPLATE] = {study: [NORMAL_REPORT] for study in truth.ids}
    entries = {name: {"completions": by_study, "kind": "model"} for name, by_study in completions.items()}
    systems, _ = measure_systems(truth, entries, Metrics(labeler, meteor=False))
    counts = draw_counts(truth.studies.max() + 1, RESAMPLES, 0)
    seed_counts = draw_counts(seeds, RESAMPLES, 1).astype(float) if seeds > 1 else None
    for name, system in systems.items():
        for part in system.parts:
            drawn = None if name == TEMPLATE else seed_counts
            system.values |= bootstrap(part, truth.studies[system.rows], counts, seed_counts=drawn)
    return systems


def _by_seed(system: System, figure: str, seeds: int) -> list[float]:
    """A figure of each seed's reports alone."""
    (part,) = (part for part in system.parts if figure in part.figures(part.statistics[:1].sum(0)[None]))
    return [float(part.figures(part.statistics[seed::seeds].sum(0)[None])[figure][0]) for seed in range(seeds)]


def _row(group: Group, row: str, systems: dict[str, System], system: str, seeds: int) -> dict:
    figures: dict[str, dict] = {}
    studies = systems[row].rows.max() + 1
    for figure, column in group.columns.items():
        values, control = (systems[row + part].values[figure] for part in ("", SHUFFLED))
        entry = {**as_interval(values, studies), "shuffled": float(control[0])}
        entry["by_seed"] = _by_seed(systems[row], figure, seeds)
        paper = _paper(system, group, group.rows[row], column)
        entry["paper"] = list(paper.values())
        if row != group.full and group.full in systems:
            full = _paper(system, group, group.rows[group.full], column)
            gains = (
                values - systems[group.full].values[figure],
                control - systems[group.full + SHUFFLED].values[figure],
            )
            entry["difference"], entry["difference_shuffled"] = (as_interval(gain, studies) for gain in gains)
            entry["paper_difference"] = [round(paper[data] - full[data], 6) for data in paper]
            entry["verdict"] = verdict(entry["difference"], entry["paper_difference"])
            entry["style"] = is_style(entry["difference"], entry["difference_shuffled"])
        figures[figure] = entry
    return figures


def _paper(system: str, group: Group, row: str | None, column: str | None) -> dict[str, float]:
    """Data set -> the paper's value of a row, as a fraction."""
    results = read_results()
    scale = 100 if results["papers"][system]["unit"] == "per cent" else 1
    return {
        entry["data"]: entry["values"][column] / scale
        for entry in results["rows"]
        if (entry["paper"], entry["table"], entry["row"]) == (system, group.table, row)
        and (group.table != "Table 5" or entry["setting"] == group.scenario)
        and column in entry["values"]
    }


def verdict(difference: dict[str, float], paper: list[float]) -> str:
    """Whether our difference has the sign of the paper's, which must be the same on all its data sets."""
    signs = {np.sign(value) for value in paper}
    if not signs or len(signs) > 1 or signs == {0}:
        return NOTHING
    if difference["low"] <= 0 <= difference["high"]:
        return OPEN
    return AGREE if np.sign(difference["value"]) in signs else DISAGREE


def is_style(difference: dict[str, float], shuffled: dict[str, float]) -> bool:
    """Whether a difference that is not by chance is at least half as large with the images of other studies."""
    sure = difference["low"] * difference["high"] > 0 and shuffled["low"] * shuffled["high"] > 0
    return sure and bool(shuffled["value"] * np.sign(difference["value"]) >= abs(difference["value"]) / 2)


def _check(claim: Claim, systems: dict[str, System], seeds: int) -> dict | None:
    """A claim as `recipes.cli.report` takes a check, with its verdict; None where one of its rows was not run."""
    if not {claim.better, claim.worse} <= set(systems):
        return None
    sign = -1 if describe(claim.figure)["better"] == "lower" else 1
    pairs = [(systems[claim.better + part], systems[claim.worse + part]) for part in ("", SHUFFLED)]
    gains = [sign * (better.values[claim.figure] - worse.values[claim.figure]) for better, worse in pairs]
    gain, shuffled = (as_interval(values, pairs[0][0].rows.max() + 1) for values in gains)
    low, high = gain["low"], gain["high"]
    if claim.level:
        check = {"value": high, "bar": "high end >= 0", "holds": high >= 0}
        judgement = AGREE if high >= 0 else DISAGREE
    else:
        check = {"value": low, "bar": "low end > 0", "holds": low > 0}
        judgement = AGREE if low > 0 else DISAGREE if high < 0 else OPEN
    pair = {"better": claim.better, "worse": claim.worse, "figure": claim.figure}
    better, worse = (_by_seed(systems[row], claim.figure, seeds) for row in (claim.better, claim.worse))
    gain["by_seed"] = [sign * (a - b) for a, b in zip(better, worse, strict=True)]
    return {"name": claim.text, **check, **pair, "gain": gain, "verdict": judgement, "style": is_style(gain, shuffled)}


def format_check(groups: list[dict]) -> list[dict]:
    """The check on the format reward: the lowest share of well-formed answers of the rows that are paid for them."""
    rows = groups[0]["rows"]
    paid = ("reasoning", "ce_f1_reasoning", "mccs_reasoning", "severity_format")
    lowest = min(rows[row]["format_rate"]["value"] for row in paid if row in rows)
    return [make_check("rows with the format reward: share of answers in the format, lowest", lowest, ">= 0.95")]


def reward_spread(folder: str, seeds: list[int], rows: list[str], steps: int = 5, group: int = 4) -> dict[str, dict]:
    """How much the rewards of one study's samples differ while the policy is still the start model (section VI).

    From the completions that TRL logged in the first `steps` steps of the rows with one such reward alone:
    reward -> `groups`, `std` (mean over groups of the population standard deviation), `equal` (share of groups whose
    rewards are all the same, from which GRPO learns nothing) and `values` (distinct rewards in all).
    """
    spread = {}
    alone = {"ce_f1": "ce_f1_reward", "mccs": "mccs_reward", "mccs_margin_0": "mccs_reward"}
    for row, column in {**alone, "severity": "severity_reward"}.items():
        if row in rows:
            files = [
                f"{folder}/seed{seed}/{row}/completions/completions_{step:05d}.parquet"
                for seed in seeds
                for step in range(1, steps + 1)
            ]
            rewards = np.concatenate([pd.read_parquet(file, columns=[column])[column].to_numpy() for file in files])
            groups = rewards.reshape(-1, group)
            spread[row] = {
                "groups": len(groups),
                "std": float(groups.std(1).mean()),
                "equal": float((np.ptp(groups, axis=1) < 1e-9).mean()),
                "values": len(np.unique(rewards.round(6))),
            }
    return spread


def count_inputs(folder: str, seeds: list[int], rows: list[str]) -> dict[str, dict]:
    """LLM-RG4's input tokens by fusion, of mw, which has all inputs: `visual, largest` and `prompt, largest`."""
    prompt = read_prompt("prompts/llmrg4.txt")
    columns = (*columns_of(prompt, "frontal+lateral"), "scenario", "prior_report")
    studies = read_split(f"{folder}/data", "test", columns)
    studies = studies.select([i for i, scenario in enumerate(studies["scenario"]) if scenario == "mw"])
    samples = to_samples(studies, prompt, "frontal+lateral", keep=("scenario",))
    tokens = {}
    for row in ("stage2_atf_tlw", "stage2_interleaved_tlw"):
        if row in rows:
            counts = count_tokens(samples, LLMRG4Processor.from_pretrained(f"{folder}/seed{seeds[0]}/{row}"))
            tokens[row] = {name: counts["mw"][name] for name in ("visual, largest", "prompt, largest")}
    return tokens


def token_check(tokens: dict[str, dict]) -> list[dict]:
    """The checks that ATF has at most half of interleaved's tokens; none where only one fusion was run.

    Once of the whole longest input, the paper's N, and once without the text that both have, which is most of the
    input where images have few tokens.
    """
    if len(tokens) < 2:
        return []
    atf, interleaved = (tokens[row]["prompt, largest"] for row in ("stage2_atf_tlw", "stage2_interleaved_tlw"))
    text = atf - tokens["stage2_atf_tlw"]["visual, largest"]
    shares = {
        "longest input of ATF, share of interleaved's tokens (the paper: 204 of 502)": atf / interleaved,
        "the same without the instruction: images and prior report": (atf - text) / (interleaved - text),
    }
    return [make_check(name, share, "<= 0.5") for name, share in shares.items()]
