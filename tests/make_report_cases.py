"""Makes the `metrics` and the `cases` of a report page from the phantom, for its tests and its bench.

Models are made up: they write the report of a study some of whose findings were changed. Synthetic, not medical data.
"""

from collections.abc import Iterator

import numpy as np

from recipes.build_phantom import BuildArguments, build_row
from recipes.data.phantom import make_study, sample_states, write_report
from rewards.clinical_efficacy import clinical_efficacy
from rewards.completions import parse_completion
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, FINDINGS, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
PRESENT = (POSITIVE, UNCERTAIN)
NORMAL = "The heart is normal in size. The lungs are clear. There is no pleural effusion or pneumothorax."
SYSTEMS = {"fixed normal report": "baseline", "grpo": "model", "sft": "model", "grpo.shuffled": "control"}
KINDS = ("polarity flip", "omission", "hallucination", "uncertainty mismatch", "side swapped", "severity changed")
HEADLINE = {
    "ce/14/positive/micro/f1": ("micro-F1 14", "micro", "f1"),
    "ce/14/positive/macro/f1": ("macro-F1 14", "macro", "f1"),
    "ce/14/positive/example/recall": ("example recall 14", "example", "recall"),
}


def error_kind(generated: int, reference: int) -> str | None:
    """The kind of error of one finding, or None."""
    if reference in PRESENT and generated == BLANK:
        return "omission"
    if reference == BLANK:
        return "hallucination" if generated in PRESENT else None
    if generated != BLANK and (generated in PRESENT) != (reference in PRESENT):
        return "polarity flip"
    return "uncertainty mismatch" if generated in PRESENT and generated != reference else None


def sentence_of(text: str, condition: int, labeler: LexicalLabeler) -> str | None:
    """The first sentence of `text` that names the condition."""
    for sentence in text.split(". "):
        if any(mention[2] == condition for mention in labeler.mentions(sentence)):
            return sentence.rstrip(".") + "."
    return None


def make_cases(count: int, scenarios: tuple[str, ...] = ("mn",), size: int = 128, seed: int = 0) -> Iterator[dict]:
    """`count` studies under each of `scenarios`, with images of `size` pixels, reports of SYSTEMS, states and errors.

    Beyond 200 studies the pictures come again, since drawing them takes longest.
    """
    labeler, args = LexicalLabeler(), BuildArguments(size=size, seed=seed)
    pictures: dict[tuple, list[bytes]] = {}
    for index in range(count):
        for scenario in scenarios:
            rng = np.random.default_rng((seed, index, len(pictures) and scenarios.index(scenario)))
            key = (index % 200, scenario)
            if index < 200:
                row = build_row("test", index, scenario, args)
                pictures[key] = [image["bytes"] for image in row["images"]]
            else:
                study = make_study(sample_states(rng), rng)
                row = {"labels": study.states, "report": write_report(study, rng), "prior_report": None}
                row["indication"] = "Cough." if index % 3 else None
            states = np.array(row["labels"])
            completions = {}
            for name, share in (("grpo", 0.12), ("sft", 0.25)):
                drawn = np.where(rng.random(14) < share, rng.integers(0, 4, 14), states)
                said = write_report(make_study(drawn, rng), rng)
                completions[name] = f"<think>Present: {FINDINGS[index % 13]}.</think>\n<report>{said}</report>"
            other = make_study(sample_states(rng), rng)
            completions["grpo.shuffled"] = f"<report>{write_report(other, rng)}</report>"
            completions["fixed normal report"] = NORMAL
            reports = {name: parse_completion(text).report for name, text in completions.items()}
            found = dict(zip(reports, labeler(list(reports.values())).tolist(), strict=True))
            errors = {
                name: [
                    {
                        "label": label,
                        "kind": kind,
                        "generated": sentence_of(reports[name], i, labeler),
                        "reference": sentence_of(row["report"], i, labeler),
                    }
                    for i, label in enumerate(FINDINGS)
                    if (kind := error_kind(own[i], states[i]))
                ]
                for name, own in found.items()
            }
            yield {
                "study_id": f"phantom-{seed}-test-{index:06d}",
                "group": f"phantom-{seed}-test-{index:06d}",
                "scenario": scenario,
                "images": pictures[key],
                "reference": row["report"],
                "prior_report": row["prior_report"],
                "indication": row["indication"],
                "labels": states.tolist(),
                "completions": completions,
                "states": found,
                "errors": errors,
            }


def interval(value: float, half: float = 0.03) -> dict[str, float]:
    """An interval of a made-up width around `value`."""
    return {"value": float(value), "low": max(value - half, 0.0), "high": min(value + half, 1.0)}


def make_metrics(cases: list[dict]) -> dict:
    """The `metrics` of `cases`: real values of clinical efficacy, made-up intervals and p-values."""
    reference = np.array([case["labels"] for case in cases])
    systems = {}
    for name, kind in SYSTEMS.items():
        generated = np.array([case["states"][name] for case in cases])
        values = clinical_efficacy(generated, reference)
        per_label = {
            label: {
                **{measure: interval(values[label][measure], 0.08) for measure in ("precision", "recall", "f1")},
                "support": int(values[label]["support"]),
                "predicted": int(np.isin(generated[:, i], PRESENT).sum()),
            }
            for i, label in enumerate(CONDITIONS)
        }
        errors = {label: dict.fromkeys(KINDS, 0) for label in FINDINGS}
        for case in cases:
            for error in case["errors"][name]:
                errors[error["label"]][error["kind"]] += 1
        totals = {each: sum(row[each] for row in errors.values()) for each in KINDS}
        lengths = [len(case["completions"][name].split()) for case in cases]
        figures = {figure: interval(values[average][each]) for figure, (_, average, each) in HEADLINE.items()}
        systems[name] = {
            "kind": kind,
            "of": "grpo" if kind == "control" else None,
            "file": None,
            "figures": figures,
            "per_label": per_label,
            "errors": errors,
            "error_rates": {each: interval(total / len(cases)) for each, total in totals.items()},
            "by_scenario": {
                scenario: {"studies": sum(case["scenario"] == scenario for case in cases), "figures": figures}
                for scenario in dict.fromkeys(case["scenario"] for case in cases)
            },
            "consistency": None,
            "lengths": {
                "mean_words": float(np.mean(lengths)),
                "median_words": float(np.median(lengths)),
                "longest_words": max(lengths),
                "longest_study": cases[int(np.argmax(lengths))]["study_id"],
                "empty": 0,
                "distinct": len({case["completions"][name] for case in cases}),
                "samples": len(cases),
                "with_html_tags": 0,
                "over_10000_characters": 0,
            },
        }
    values = {name: each["figures"] for name, each in systems.items()}
    differences = [
        {
            "system": system,
            "minus": minus,
            "figure": figure,
            "difference": values[system][figure]["value"] - values[minus][figure]["value"],
            "low": values[system][figure]["value"] - values[minus][figure]["value"] - 0.04,
            "high": values[system][figure]["value"] - values[minus][figure]["value"] + 0.04,
            "p_bootstrap": 0.002,
            "p_holm": 0.006,
            "p_wilcoxon": 0.01,
            "p_wilcoxon_holm": 0.02,
        }
        for system, minus in (("grpo", "sft"), ("grpo", "fixed normal report"), ("sft", "fixed normal report"))
        for figure in HEADLINE
    ]
    looking = {
        figure: {
            "score": own["value"],
            "shuffled": values["grpo.shuffled"][figure]["value"],
            "drop": interval(own["value"] - values["grpo.shuffled"][figure]["value"]),
            "share": interval(1 - values["grpo.shuffled"][figure]["value"] / own["value"]) if own["value"] else None,
        }
        for figure, own in values["grpo"].items()
    }
    return {
        "schema": 1,
        "protocol": {
            "preset": "all",
            "presets": {"mrgr1": {"title": "MRG-R1", "figures": list(HEADLINE), "why": "Its averaging is not said."}},
            "headline": list(HEADLINE),
            "per_label_uncertain": "positive",
            "resamples": 1000,
            "seed": 0,
            "unit": "study",
            "margin": 0.2,
            "references": "dataset",
            "hall_judge": None,
        },
        "figures": {
            figure: {
                "title": f"{each}, {average}, 14 labels, uncertain as positive",
                "short": short,
                "better": "higher",
                "range": [0, 1],
                "group": "ce",
            }
            for figure, (short, average, each) in HEADLINE.items()
        },
        "labeler": "lexical",
        "versions": {"python": "3"},
        "dataset": "a phantom",
        "split": "test",
        "source": "phantom",
        "studies": len(cases),
        "samples": len(cases),
        "notes": ["The models are made up, and so are the intervals."],
        "labels": list(CONDITIONS),
        "systems": systems,
        "differences": differences,
        "image_reliance": {"grpo": {"control": "grpo.shuffled", "figures": looking}},
        "paper": [],
    }
