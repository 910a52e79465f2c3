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
from recipes.demos.ablation_runs import report_file
from recipes.evaluation.baselines import NORMAL_REPORT, TEMPLATE
from recipes.evaluation.bootstrap import add_up, draw_counts, efficacy_name
from recipes.evaluation.figures import describe
from recipes.evaluation.paper_comparison import read_results
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.references import Truth
from recipes.evaluation.scores import Metrics, System, as_interval, measure_systems
from recipes.files import read_prompt

RESAMPLES = 2000
SHUFFLED = ", shuffled images"
AGREE, DISAGREE, OPEN = "agree", "disagree", "not significant"
NOTHING = "the paper gives no direction"
MICRO, MACRO = (efficacy_name("14", "positive", average, "f1") for average in ("micro", "macro"))
OF_14 = {efficacy_name("14", "positive", "micro", quantity): quantity for quantity in ("precision", "recall", "f1")}
MCCS, FORMAT, BLEU, RADCLIQ = "mccs", "format_rate", "bleu-4", "radcliq_lite-v1"


class Group(NamedTuple):
    """Rows on the same studies. `rows`: our row -> the paper's, or "" for one of ours; `columns`: figure -> theirs."""

    title: str
    table: str
    full: str
    rows: dict[str, str]
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


TLW_ROWS = {
    f"stage2_{ours}{'' if tlw == 'on' else '_without'}_tlw": f"stage 2, ATF {atf}, TLW {tlw}"
    for ours, atf in (("interleaved", "off"), ("atf", "on"))
    for tlw in ("off", "on")
}
NLG = {"bleu-1": "bleu-1", BLEU: "bleu-4"}
OF_TABLE_4 = {MICRO: "f1", efficacy_name("5", "positive", "micro", "f1"): "f1-5", **NLG}
GROUPS = {
    "mrgr1": [
        Group(
            "Table II",
            "Table II",
            "mccs_reasoning",
            {
                "base": "Base",
                "sft": "Base + SFT",
                "nlg": "Base + NLG",
                "ce_f1": "Base + CE F1",
                "reasoning": "Base + reasoning",
                "ce_f1_reasoning": "Base + CE F1 + reasoning",
                "mccs": "Base + MCCS",
                "mccs_reasoning": "Base + MCCS + reasoning",
                "mccs_margin_0": "",
                "radcliq_lite": "",
                "deepseekmath_kl": "",
                "whole_report": "",
            },
            {**OF_14, MACRO: "f1", MCCS: None, FORMAT: None},
        )
    ],
    "lmrrg": [
        Group(
            "Table 3",
            "Table 3",
            "full",
            {
                "full": "LM-RRG",
                "without_global": "w/o F_I^global",
                "without_region": "w/o F_I^region",
                "names": "text: descriptions → names",
                "without_instruction": "w/o F_inst",
                "without_disease": "w/o L_disease",
                "without_cqrl": "w/o CQRL",
                "bleu": "reward: RadCliQ → BLEU4",
                "fixed_lambda": "w/ fixed lambda_KL",
            },
            {
                BLEU: "bleu-4",
                "rouge-l": "rouge-l",
                **{efficacy_name("14", "negative", "example", each): each for each in ("precision", "recall", "f1")},
                RADCLIQ: "radcliq",
            },
        )
    ],
    "llmrg4": [
        Group(
            "Table 4, stage 1 (sn)",
            "Table 4",
            "stage1_tlw",
            {
                "stage1_without_tlw": "stage 1, TLW off",
                "stage1_tlw": "stage 1, TLW on",
                "stage1_authors_perceiver": "",
            },
            OF_TABLE_4,
            "sn",
        ),
        Group(
            "Table 4, stage 2 (all four settings)",
            "Table 4",
            "stage2_atf_tlw",
            TLW_ROWS | {"stage2_authors_perceiver": ""},
            OF_TABLE_4,
        ),
        *(
            Group(
                f"Table 5, {scenario}",
                "Table 5",
                "stage2_atf_tlw",
                {f"single_{scenario}": "trained on this setting", "stage2_atf_tlw": "trained on all four"},
                {**OF_14, **NLG, "rouge-l": "rouge-l"},
                scenario,
            )
            for scenario in ("sn", "sw", "mn", "mw")
        ),
    ],
}
CLAIMS = {
    "mrgr1": [
        Claim("MCCS is above CE F1 in F1", "mccs", "ce_f1", MICRO),
        Claim("CE F1 is above NLG rewards in F1", "ce_f1", "nlg", MICRO),
        Claim("with the format reward, MCCS is above CE F1 in F1", "mccs_reasoning", "ce_f1_reasoning", MICRO),
        Claim("SFT alone is below GRPO in F1", "mccs_reasoning", "sft", MICRO),
        Claim("SFT alone is below GRPO in MCCS", "mccs_reasoning", "sft", MCCS),
    ],
    "lmrrg": [
        Claim("CQRL is better than none in RadCliQ (lite)", "full", "without_cqrl", RADCLIQ),
        Claim("BLEU-4 as the reward is above RadCliQ in BLEU-4", "bleu", "full", BLEU),
        Claim("BLEU-4 as the reward is above no reward in BLEU-4", "bleu", "without_cqrl", BLEU),
        Claim("BLEU-4 as the reward is worse than RadCliQ in RadCliQ (lite)", "full", "bleu", RADCLIQ),
        Claim("an adaptive lambda is level with a fixed one or better in RadCliQ (lite)", "full", "fixed_lambda",
              RADCLIQ, level=True),
    ],
    "llmrg4": [
        Claim("TLW is above none in F1, stage 1", "stage1_tlw", "stage1_without_tlw", MICRO),
        Claim("TLW is above none in F1, stage 2 with ATF", "stage2_atf_tlw", "stage2_atf_without_tlw", MICRO, 1),
        Claim("TLW is above none in F1, stage 2 interleaved", "stage2_interleaved_tlw",
              "stage2_interleaved_without_tlw", MICRO, 1),
        Claim("ATF is level with interleaved or better in F1", "stage2_atf_tlw", "stage2_interleaved_tlw", MICRO, 1,
              level=True),
        Claim("mixed training is above training on mn alone in F1", "stage2_atf_tlw", "single_mn", MICRO, 4),
        Claim("mixed training is above training on mw alone in F1", "stage2_atf_tlw", "single_mw", MICRO, 5),
        Claim("(ours) the default perceiver is level with the authors' or better in F1, stage 1", "stage1_tlw",
              "stage1_authors_perceiver", MICRO, level=True),
        Claim("(ours) the default perceiver is level with the authors' or better in F1, stage 2", "stage2_atf_tlw",
              "stage2_authors_perceiver", MICRO, 1, level=True),
    ],
}  # fmt: skip


def measure(system: str, out: str, seeds: list[int], rows: list[str], truth: Truth, labeler) -> dict:
    """`groups` and `claims` of a system's rows that were run, from the reports in folder `out`."""
    known = dict.fromkeys(truth.ids)
    texts: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for shuffled in (False, True):
            own = texts.setdefault(row + SHUFFLED * shuffled, {})
            for seed in seeds:
                for study, said in read_predictions(report_file(f"{out}/seed{seed}", row, shuffled), known).items():
                    own.setdefault(study, []).extend(said)
    groups, measured = [], []
    for group in GROUPS[system]:
        chosen = [i for i, name in enumerate(truth.scenarios) if group.scenario in (None, name)]
        part = truth.select({truth.ids[i] for i in chosen})
        systems = _measure_systems(
            part, {row: texts[row] for row in texts if row.split(",")[0] in group.rows}, labeler, len(seeds)
        )
        measured.append(systems)
        found = [row for row in group.rows if row in systems]
        groups.append(
            {
                "title": group.title,
                "table": group.table,
                "full": group.full,
                "studies": len(chosen),
                "columns": list(group.columns),
                "names": {row: name or f"(ours) {row.replace('_', ' ')}" for row, name in group.rows.items()},
                "rows": {row: _row(group, row, systems, len(chosen), system, len(seeds)) for row in found},
                "not_run": [row for row in group.rows if row not in systems],
                TEMPLATE: {name: float(systems[TEMPLATE].values[name][0]) for name in group.columns},
            }
        )
    claims = [_check(claim, measured[claim.group], len(seeds)) for claim in CLAIMS[system]]
    return {"groups": groups, "claims": [claim for claim in claims if claim]}


def _measure_systems(truth: Truth, texts: dict[str, dict[str, list[str]]], labeler, seeds: int) -> dict[str, System]:
    given = {name: {"completions": {study: own[study] for study in truth.ids}} for name, own in texts.items()}
    given[TEMPLATE] = {"completions": {study: [NORMAL_REPORT] for study in truth.ids}}
    given = {name: {**what, "kind": "model"} for name, what in given.items()}
    systems, _ = measure_systems(truth, given, Metrics(labeler, meteor=False))
    counts = draw_counts(truth.studies.max() + 1, RESAMPLES, 0).astype(float)
    drawn = draw_counts(seeds, RESAMPLES, 1).astype(float) if seeds > 1 else np.ones((RESAMPLES, 1))
    for name, system in systems.items():
        _resample(system, truth.studies[system.rows], counts, np.ones((RESAMPLES, 1)) if name == TEMPLATE else drawn)
    return systems


def _resample(system: System, studies: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> None:
    """Leaves in `system.values` each figure's own value and that of every resample, (1 + resamples,).

    A resample draws studies, `counts` (resamples, studies), and seeds, `drawn` (resamples, seeds), independently; the
    same for all systems. A study's reports follow each other in the order of the seeds.
    """
    for part in system.parts:
        number = drawn.shape[1]
        sums = [add_up(part.statistics[seed::number], studies[seed::number]) for seed in range(number)]
        resampled = sum(drawn[:, seed, None] * (counts @ sums[seed]) for seed in range(number))
        own, rest = part.figures(part.statistics.sum(0)[None]), part.figures(resampled)
        system.values |= {name: np.concatenate([own[name], rest[name]]) for name in own}


def _by_seed(system: System, figure: str, seeds: int) -> list[float]:
    """A figure of each seed's reports alone."""
    (part,) = (each for each in system.parts if figure in each.figures(each.statistics[:1].sum(0)[None]))
    return [float(part.figures(part.statistics[seed::seeds].sum(0)[None])[figure][0]) for seed in range(seeds)]


def _row(group: Group, row: str, systems: dict[str, System], studies: int, system: str, seeds: int) -> dict:
    figures: dict[str, dict] = {}
    for figure, column in group.columns.items():
        own, control = (systems[row + part].values[figure] for part in ("", SHUFFLED))
        entry = {**as_interval(own, studies), "shuffled": float(control[0])}
        entry["by_seed"] = _by_seed(systems[row], figure, seeds)
        paper = _paper(system, group, group.rows[row], column)
        entry["paper"] = list(paper.values())
        if row != group.full and group.full in systems:
            full = _paper(system, group, group.rows[group.full], column)
            gains = own - systems[group.full].values[figure], control - systems[group.full + SHUFFLED].values[figure]
            entry["difference"], entry["difference_shuffled"] = (as_interval(each, studies) for each in gains)
            entry["paper_difference"] = [round(paper[data] - full[data], 6) for data in paper]
            entry["verdict"] = verdict(entry["difference"], entry["paper_difference"])
            entry["style"] = is_style(entry["difference"], entry["difference_shuffled"])
        figures[figure] = entry
    return figures


def _paper(system: str, group: Group, row: str, column: str | None) -> dict[str, float]:
    """Data set -> the paper's value of a row, as a fraction."""
    results = read_results()
    scale = 100 if results["papers"][system]["unit"] == "per cent" else 1
    return {
        each["data"]: each["values"][column] / scale
        for each in results["rows"]
        if (each["paper"], each["table"], each["row"]) == (system, group.table, row)
        and (group.table != "Table 5" or each["setting"] == group.scenario)
        and column in each["values"]
    }


def verdict(difference: dict[str, float], paper: list[float]) -> str:
    """Whether our difference has the sign of the paper's, which must be the same on all its data sets."""
    signs = {np.sign(each) for each in paper}
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
    gain, shuffled = (as_interval(each, systems[claim.better].rows.max() + 1) for each in gains)
    low, high = gain["low"], gain["high"]
    if claim.level:
        check = {"value": high, "bar": "high end >= 0", "holds": high >= 0}
        said = AGREE if high >= 0 else DISAGREE
    else:
        check = {"value": low, "bar": "low end > 0", "holds": low > 0}
        said = AGREE if low > 0 else DISAGREE if high < 0 else OPEN
    pair = {"better": claim.better, "worse": claim.worse, "figure": claim.figure}
    better, worse = (_by_seed(systems[row], claim.figure, seeds) for row in (claim.better, claim.worse))
    gain["by_seed"] = [sign * (a - b) for a, b in zip(better, worse, strict=True)]
    return {"name": claim.text, **check, **pair, "gain": gain, "verdict": said, "style": is_style(gain, shuffled)}


def format_check(groups: list[dict]) -> list[dict]:
    """The check on the format reward: the lowest share of well-formed answers of the rows that are paid for them."""
    rows = groups[0]["rows"]
    paid = [rows[row][FORMAT]["value"] for row in ("reasoning", "ce_f1_reasoning", "mccs_reasoning") if row in rows]
    return [
        {
            "name": "rows with the format reward: share of answers in the format, lowest",
            "value": min(paid),
            "bar": ">= 0.95",
            "holds": min(paid) >= 0.95,
        }
    ]


def reward_spread(out: str, seeds: list[int], rows: list[str], steps: int = 5, group: int = 4) -> dict[str, dict]:
    """How much the rewards of one study's samples differ while the policy is still the start model (section VI).

    From the completions that TRL logged in the first `steps` steps of the rows with one of the two rewards alone:
    reward -> `groups`, `std` (mean over groups of the population standard deviation), `equal` (share of groups whose
    rewards are all the same, from which GRPO learns nothing) and `values` (distinct rewards in all).
    """
    found = {}
    for row, column in (("ce_f1", "ce_f1_reward"), ("mccs", "mccs_reward"), ("mccs_margin_0", "mccs_reward")):
        if row in rows:
            files = [
                f"{out}/seed{seed}/{row}/completions/completions_{step:05d}.parquet"
                for seed in seeds
                for step in range(1, steps + 1)
            ]
            rewards = np.concatenate([pd.read_parquet(file, columns=[column])[column].to_numpy() for file in files])
            groups = rewards.reshape(-1, group)
            found[row] = {
                "groups": len(groups),
                "std": float(groups.std(1).mean()),
                "equal": float((np.ptp(groups, axis=1) < 1e-9).mean()),
                "values": len(np.unique(rewards.round(6))),
            }
    return found


def count_inputs(data: str, out: str, seeds: list[int], rows: list[str]) -> dict[str, dict]:
    """LLM-RG4's input tokens by fusion, of mw, which has all inputs: `visual, largest` and `prompt, largest`."""
    wanted = [row for row in ("stage2_atf_tlw", "stage2_interleaved_tlw") if row in rows]
    prompt = read_prompt("prompts/llmrg4.txt")
    columns = (*columns_of(prompt, "frontal+lateral"), "scenario", "prior_report")
    studies = read_split(data, "test", columns)
    studies = studies.select([i for i, scenario in enumerate(studies["scenario"]) if scenario == "mw"])
    samples = to_samples(studies, prompt, "frontal+lateral", keep=("scenario",))
    found = {}
    for row in wanted:
        counts = count_tokens(samples, LLMRG4Processor.from_pretrained(f"{out}/seed{seeds[0]}/{row}"))
        found[row] = {name: counts["mw"][name] for name in ("visual, largest", "prompt, largest")}
    return found


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
    return [{"name": name, "value": share, "bar": "<= 0.5", "holds": share <= 0.5} for name, share in shares.items()]


def time_check(minutes: float) -> list[dict]:
    """The check on one seed's wall time."""
    name = "wall time of one seed without installation, minutes"
    return [{"name": name, "value": minutes, "bar": "<= 20", "holds": minutes <= 20}]
