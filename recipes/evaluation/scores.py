"""All figures of systems that report on the same studies, with intervals: what recipes/evaluate.py writes.

metrics.json holds (an interval is {value, low, high}: 95 %, by a bootstrap over studies):

- `protocol`: presets with their figures and reasons, `headline` figures, resamples, seed, margin, judge; `labeler`,
  `versions`, `dataset`, `split`, `source`, `studies`, `samples`, `notes` (sentences), `labels` (the 14, in order);
- `figures`: figure -> title, short title, which way is better, range, group. recipes/scoring.md explains each;
- `systems`: name -> kind (model, baseline, control), `figures`, `per_label` and `per_label_uncertain_as_negative`
  (precision, recall, f1, support, predicted), `confusion` (4 x 4 counts: rows the reference's state, columns the
  generated one, in the order of CheXpertState), `errors` (finding -> kind -> number), `by_scenario` (headline figures
  of each), `consistency` of the reports of one study under several scenarios, `spread` of a study's several samples,
  `lengths`, `cost` of a report (input tokens, tokens, seconds);
- `references`: the same judge's hallucination rate and the lengths of the references themselves;
- `differences` and `image_reliance` (comparisons.py in this folder), `paper` (paper_comparison.py).

It quotes no report: sentences are in errors.jsonl and on the page only.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import numpy as np

from recipes.evaluation.bootstrap import (
    QUANTITIES,
    READINGS,
    Part,
    bootstrap,
    draw_counts,
    efficacy_part,
    interval,
    label_name,
    means_part,
    ratio,
)
from recipes.evaluation.error_taxonomy import KINDS, Evidence, confusion, count_errors, find_errors
from recipes.evaluation.figures import ORIGINAL, SHOWN
from recipes.evaluation.meteor import meteor_lite, meteor_of_sums, meteor_statistics
from recipes.evaluation.prediction_files import COSTS, HTML, LONG
from recipes.evaluation.references import Truth
from recipes.evaluation.rexrank import board_part, learned_parts
from recipes.files import InputError
from recipes.progress import follow
from rewards.bleu import bleu_of_sums, match_statistics
from rewards.ce_f1 import report_f1
from rewards.cider import cider_d, document_frequencies
from rewards.clinical_efficacy import LABEL_SETS, clinical_efficacy
from rewards.completions import parse_completion
from rewards.labels import CONDITIONS, FINDINGS, to_binary
from rewards.lexical_graph import LexicalGraph
from rewards.mccs import mccs
from rewards.radcliq import NAMES, PARAMETERS, make_lexical_parts, radcliq_score
from rewards.radgraph import CACHE_SIZE, LEVELS, radgraph_f1
from rewards.rouge import rouge_l
from rewards.scenarios import SCENARIOS


@dataclass
class Metrics:
    """What measures the reports: the labeler and what else the user gave or does without."""

    labeler: Callable
    margin: float = 0.2
    radgraph: Callable | None = None  # a parser; None: LexicalGraph
    bertscore: Callable | None = None  # a part of RadCliQ; None: words in common
    semb: Callable | None = None  # a part of RadCliQ; None: labels in common
    judge: Callable | None = None  # of hallucinations
    hall_mode: str = "scenario"
    meteor: bool = True
    crepe: Callable | None = None
    ratescore: Callable | None = None
    judges: Callable | None = None  # recipes.evaluation.judges.Judges
    rexrank: bool = False  # also by the names and definitions of ReXrank's board
    evidence: Evidence = field(default_factory=Evidence)


@dataclass
class System:
    """One system's reports on the studies of a `Truth`, measured. `rows`: the truth's row of each sample."""

    name: str
    kind: str
    rows: np.ndarray
    completions: list[str]
    reports: list[str]
    states: np.ndarray
    errors: list[list[dict]]
    parts: list[Part]
    of: str | None = None
    file: str | None = None
    costs: np.ndarray | None = None  # (samples, 3), see prediction_files.COSTS
    values: dict[str, np.ndarray] = field(default_factory=dict)  # see recipes.evaluation.bootstrap.bootstrap


def score(generated: np.ndarray, reference: np.ndarray, margin: float) -> dict:
    """MCCS and clinical efficacy of labels (n, 14) against reference labels (n, 14)."""
    return {
        "mccs": float(mccs(generated, reference, margin).mean()),
        "clinical_efficacy": {
            f"{size} labels, uncertain as {reading}": clinical_efficacy(
                generated, reference, size, reading == "positive"
            )
            for size in LABEL_SETS
            for reading in READINGS
        },
    }


def score_completions(completions: list[str], reference: np.ndarray, labeler, margin: float) -> dict:
    """`score` of the report part of each completion, with the format's and the diversity's figures."""
    parsed = [parse_completion(completion) for completion in completions]
    reports = [completion.report for completion in parsed]
    return {
        **score(labeler(reports), reference, margin),
        "format_rate": sum(completion.format_score == 1 for completion in parsed) / len(parsed),
        "distinct_reports": len(set(reports)),
        "empty_reports": reports.count(""),
        "samples": len(parsed),
    }


def measure_systems(
    truth: Truth, entries: dict[str, dict], metrics: Metrics, originals: list[str] | None = None
) -> tuple[dict[str, System], list[str]]:
    """Measures every system, and says in sentences what could not be measured.

    `entries`: name -> {"completions": {study: [text, ...]}, "costs": {study: [`COSTS` of each text, ...]}, "kind",
    "of", "file"}. `originals`: a second reference for each of the truth's rows. METEOR's Java starts once for all.
    """
    notes, systems = [], {}
    places = {study: row for row, study in enumerate(truth.ids)}
    table = document_frequencies(truth.reports) if len(truth.ids) > 1 else None
    tables = [table] + ([document_frequencies(originals)] if originals and table else [])
    if table is None:
        notes.append("CIDEr was not computed: its document frequencies need at least two references")
    for name, entry in follow(entries.items(), "scoring systems", len(entries)):
        texts = [(places[study], text) for study, samples in entry["completions"].items() for text in samples]
        rows = np.array([row for row, _ in texts])
        completions = [text for _, text in texts]
        parsed = [parse_completion(text) for text in completions]
        reports = [completion.report for completion in parsed]
        references = [truth.reports[row] for row in rows]
        states = np.asarray(metrics.labeler(reports))
        errors = list(find_errors(states, truth.states[rows], reports, references, metrics.evidence))
        parts = [efficacy_part(states, truth.states[rows]), _own_part(states, truth, rows, parsed, errors, metrics)]
        parts += _text_parts(reports, references, tables[0])
        if originals:
            parts += _text_parts(reports, [originals[row] for row in rows], tables[-1], ORIGINAL)
        parts += _composite_parts(reports, references, metrics)
        parts += learned_parts(name, reports, references, metrics)
        kind = {key: entry.get(key) for key in ("kind", "of", "file")}
        systems[name] = System(name, kind.pop("kind"), rows, completions, reports, states, errors, parts, **kind)
        costs = [cost for study in entry["completions"] for cost in entry.get("costs", {}).get(study, ())]
        if len(costs) == len(texts):  # of a file that lacks some nothing is told
            systems[name].costs = np.array(costs)
    reference_sets = {"": truth.reports, **({ORIGINAL: originals} if originals else {})}
    if metrics.meteor and shutil.which("java"):
        _add_meteor(list(systems.values()), reference_sets)
    elif metrics.meteor:
        for system in systems.values():
            for prefix, texts in reference_sets.items():
                scores = meteor_lite(system.reports, [texts[row] for row in system.rows])
                system.parts.append(means_part({f"{prefix}meteor_lite": scores}))
        notes.append(
            "METEOR was not computed: it needs Java and there is no `java` on the PATH; meteor_lite in its place, "
            "nltk's without synonyms, is not comparable with the papers'"
        )
    notes += metrics.judges.notes if metrics.judges else []
    return systems, notes


def _own_part(
    states: np.ndarray, truth: Truth, rows: np.ndarray, parsed: list, errors: list[list[dict]], metrics: Metrics
) -> Part:
    """Means over reports that need no reference text: MCCS, format, errors of each kind, hallucination rate."""
    values = {
        "mccs": mccs(states, truth.states[rows], metrics.margin),
        "format_rate": [completion.format_score == 1 for completion in parsed],
        "words": [len(completion.report.split()) for completion in parsed],
    }
    for kind in KINDS:
        values[f"errors/{kind}"] = [sum(error["kind"] == kind for error in report_errors) for report_errors in errors]
    if metrics.judge:
        scenarios = [truth.scenarios[row] for row in rows]
        reports = [completion.report for completion in parsed]
        from rewards.discbert import hall_flags  # imports torch, which the rest of this file works without

        values["hall"] = hall_flags(reports, scenarios, metrics.hall_mode, metrics.judge)
    return means_part(values)


def _text_parts(reports: list[str], references: list[str], table, prefix: str = "") -> list[Part]:
    """BLEU of the corpus, and ROUGE-L and CIDEr as means over reports."""
    counts = match_statistics(reports, references)
    names = [f"{prefix}bleu-{order}" for order in (1, 2, 3, 4)]

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, np.moveaxis(bleu_of_sums(sums), -1, 0), strict=True))

    smooth = counts.copy()  # of one report: no match counts a tenth (method 1), or BLEU-4 is 0 for most
    smooth[:, 2:6] = np.where(counts[:, 6:] > 0, np.maximum(counts[:, 2:6], 0.1), 0)
    means = {f"{prefix}rouge-l": rouge_l(reports, references)}
    if table:
        means[f"{prefix}cider"] = cider_d(reports, references, table)
    return [Part(counts, figures, figures(smooth)), means_part(means)]


def _composite_parts(reports: list[str], references: list[str], metrics: Metrics) -> list[Part]:
    """RadGraph F1 of each level, BERTScore or words in common, and RadCliQ of both versions; an empty report is 0."""
    parser, lexical = metrics.radgraph or LexicalGraph(), make_lexical_parts()
    graph_name = "radgraph" if metrics.radgraph else "radgraph_lexical"
    has_text = np.array([bool(text.strip()) for text in reports])
    scores: dict[str, np.ndarray] = {f"{graph_name}/{level}": np.zeros(len(reports)) for level in LEVELS}
    step = CACHE_SIZE // 2
    for start in range(0, len(reports), step):  # graphs take 10 kB each
        batch = slice(start, start + step)
        graphs = parser(reports[batch]), parser(references[batch])
        for level in LEVELS:
            skip = not metrics.radgraph and level == "radcliq"
            scores[f"{graph_name}/{level}"][batch] = radgraph_f1(*graphs, level, skip_empty=skip)
    parts = {"bertscore": metrics.bertscore, "semb": metrics.semb, "bleu": None}
    parts = {name: part or lexical[name] for name, part in parts.items()}
    values = {name: np.asarray(part(reports, references), dtype=np.float64) for name, part in parts.items()}
    values["radgraph"] = scores.pop(f"{graph_name}/radcliq")
    values = {name: values[name] * has_text for name in NAMES}
    published = metrics.radgraph and not any(parts[name].lite for name in ("bertscore", "semb"))
    for version in PARAMETERS:
        scores[f"radcliq{'' if published else '_lite'}-{version}"] = radcliq_score(**values, version=version)
    scores = {name: column * has_text if name.startswith("radgraph") else column for name, column in scores.items()}
    composite = means_part({**scores, parts["bertscore"].name: values["bertscore"]})
    if not metrics.rexrank:
        return [composite]
    stand_ins = {name for name in ("bertscore", "semb") if parts[name].lite} | ({"radgraph"} - {graph_name})
    return [composite, board_part(values, stand_ins)]


def _add_meteor(systems: list[System], references: dict[str, list[str]]) -> None:
    """Adds METEOR against each of `references` (prefix of the figure's name -> texts). Java starts once for all."""
    jobs = [(system, prefix) for system in systems for prefix in references]
    pairs = [
        (text, references[prefix][row])
        for system, prefix in jobs
        for text, row in zip(system.reports, system.rows, strict=True)
    ]
    try:
        counts = meteor_statistics(*map(list, zip(*pairs, strict=True)))
    except RuntimeError as error:
        raise InputError(f"{error}; give --meteor no to do without") from error
    start = 0
    for system, prefix in jobs:
        statistics = counts[start : start + len(system.rows)]
        figures = partial(_meteor_figure, f"{prefix}meteor")
        system.parts.append(Part(statistics, figures, figures(statistics)))
        start += len(system.rows)


def _meteor_figure(name: str, sums: np.ndarray) -> dict[str, np.ndarray]:
    return {name: meteor_of_sums(sums)}


# --- summaries ------------------------------------------------------------------------------------------------------


def as_interval(values: np.ndarray, studies: int) -> dict[str, float | None]:
    """{value, low, high} of what `bootstrap` returns; no interval for fewer than two studies."""
    low, high = interval(values) if studies > 1 else (None, None)
    return {"value": float(values[0]), "low": low, "high": high}


def summarise(systems: dict[str, System], truth: Truth, resamples: int, seed: int) -> dict[str, dict]:
    """The block `systems` of metrics.json; also leaves each system's resampled figures in its `values`."""
    studies = truth.studies.max() + 1
    counts = draw_counts(studies, resamples, seed)
    steps = follow(systems.items(), "drawing intervals", len(systems))
    return {name: _summary(system, truth, counts, seed) for name, system in steps}


def _summary(system: System, truth: Truth, counts: np.ndarray, seed: int) -> dict:
    studies, size = truth.studies[system.rows], counts.shape[1]
    for part in system.parts:
        system.values |= bootstrap(part, studies, counts)
    per_label = {}
    for reading in READINGS:
        per_label[reading] = {}
        for label in CONDITIONS:
            quantities = {
                key: system.values.pop(label_name(label, reading, key))
                for key in (*QUANTITIES, "support", "predicted")
            }
            per_label[reading][label] = {key: as_interval(quantities[key], size) for key in QUANTITIES} | {
                key: int(quantities[key][0]) for key in ("support", "predicted")
            }
    return {
        "kind": system.kind,
        "of": system.of,
        "file": system.file,
        "figures": {name: as_interval(values, size) for name, values in system.values.items()},
        "per_label": per_label["positive"],
        "per_label_uncertain_as_negative": per_label["negative"],
        "confusion": dict(zip(CONDITIONS, confusion(system.states, truth.states[system.rows]).tolist(), strict=True)),
        "errors": count_errors(system.errors),
        "by_scenario": _by_scenario(system, truth, len(counts), seed),
        "consistency": _consistency(system, truth, counts),
        "spread": _spread(system, truth, counts),
        "lengths": lengths(system.reports, [truth.ids[row] for row in system.rows]),
        "cost": _cost(system, truth),
    }


def _cost(system: System, truth: Truth) -> dict[str, dict[str, float]] | None:
    """What a report cost to write, of `all` and of each scenario; None where the file does not say so of every one."""
    if system.costs is None:
        return None
    scenarios = np.array([truth.scenarios[row] for row in system.rows], dtype=object)
    groups = {"all": np.ones(len(scenarios), dtype=bool)}
    groups |= {name: scenarios == name for name in SCENARIOS if name in scenarios}
    return {
        name: {
            "samples": int(rows.sum()),
            **dict(zip(COSTS, map(float, system.costs[rows].mean(0)), strict=True)),
            "largest_input": int(system.costs[rows, 0].max()),
        }
        for name, rows in groups.items()
    }


def _by_scenario(system: System, truth: Truth, resamples: int, seed: int) -> dict[str, dict]:
    result = {}
    scenarios = np.array([truth.scenarios[row] for row in system.rows], dtype=object)
    for scenario in SCENARIOS if len(set(truth.scenarios)) > 1 else ():
        samples = np.flatnonzero(scenarios == scenario)
        if len(samples):
            numbers, studies = np.unique(truth.studies[system.rows[samples]], return_inverse=True)
            counts = draw_counts(len(numbers), resamples, seed)
            figures = {}
            for part in system.parts:
                names = [name for name in SHOWN if name in part.figures(part.statistics[:1])]
                if names:
                    part = part._replace(statistics=part.statistics[samples])
                    values = bootstrap(part, studies, counts, names)
                    figures |= {name: as_interval(values[name], len(numbers)) for name in names}
            figures = {name: figures[name] for name in SHOWN if name in figures}
            result[scenario] = {"studies": len(numbers), "figures": figures}
    return result


def _consistency(system: System, truth: Truth, counts: np.ndarray) -> dict | None:
    """How far the reports of one study under several scenarios agree, beside its references.

    LLM-RG4's case study names disagreement between scenarios as a limitation and measures none of it.

    Of each pair of scenarios of a study: the share of the 13 findings on whose presence (uncertain as present) the two
    reports agree, and the F1 of the findings that they call present. None where no study has two scenarios.
    """
    members: dict[int, dict[str, int]] = {}
    for sample, row in enumerate(system.rows):
        if truth.scenarios[row]:
            members.setdefault(truth.studies[row], {}).setdefault(truth.scenarios[row], sample)
    pairs = [(study, *pair) for study, samples in members.items() for pair in combinations(samples.values(), 2)]
    if not pairs:
        return None
    studies, first, second = map(np.array, zip(*pairs, strict=True))
    result = {"studies": len(set(studies.tolist())), "pairs": len(pairs)}
    for prefix, states in (("", system.states), ("references_", truth.states[system.rows])):
        present = to_binary(states)[:, : len(FINDINGS)]
        a, b = present[first], present[second]
        agreement = (a == b).mean(1)
        columns = [agreement, (a & b).sum(1), a.sum(1) + b.sum(1), np.ones(len(pairs))]

        def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
            return {"agreement": ratio(sums[..., 0], sums[..., 3]), "f1": ratio(2 * sums[..., 1], sums[..., 2])}

        numbers, inverse = np.unique(studies, return_inverse=True)
        values = bootstrap(Part(np.stack(columns, 1), figures, {}), inverse, counts[:, numbers])
        result |= {prefix + name: as_interval(estimates, len(numbers)) for name, estimates in values.items()}
    return result


def _spread(system: System, truth: Truth, counts: np.ndarray) -> dict | None:
    """Standard deviation of MCCS and of the F1 of a report's labels among a study's samples, as means over the studies
    that have several: what group-relative training has to go by (MRG-R1 section VI). None without such studies."""
    groups: dict[int, list[int]] = {}
    for sample, row in enumerate(system.rows):
        groups.setdefault(row, []).append(sample)
    groups = {row: samples for row, samples in groups.items() if len(samples) > 1}
    if not groups:
        return None
    rows = np.array(list(groups))
    margined = next(part.reports["mccs"] for part in system.parts if "mccs" in part.reports)  # by the run's --margin
    scores = {"mccs": margined, "ce_f1": report_f1(system.states, truth.states[system.rows])}
    spreads = {name: [column[samples].std() for samples in groups.values()] for name, column in scores.items()}
    numbers, studies = np.unique(truth.studies[rows], return_inverse=True)
    values = bootstrap(means_part(spreads), studies, counts[:, numbers])
    return {"studies": len(rows)} | {name: as_interval(estimates, len(numbers)) for name, estimates in values.items()}


def lengths(reports: Sequence[str], studies: Sequence[str]) -> dict:
    """Lengths and oddities of n reports, the longest one by its study."""
    words = np.array([len(text.split()) for text in reports])
    longest = int(words.argmax())
    return {
        "samples": len(reports),
        "mean_words": float(words.mean()),
        "median_words": float(np.median(words)),
        "longest_words": int(words[longest]),
        "longest_study": studies[longest],
        "empty": sum(not text.strip() for text in reports),
        "distinct": len(set(reports)),
        "with_html_tags": sum(bool(HTML.search(text)) for text in reports),
        "over_10000_characters": sum(len(text) > LONG for text in reports),
    }
