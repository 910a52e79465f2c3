"""Figures of LLM-RG4's demo by scenario: scores, and who tells what only a lateral view or a prior report shows."""

import re
from collections.abc import Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from recipes.data.labels import read_labelled
from recipes.data.phantom import Study, make_study, sample_states
from recipes.data.schema import SPLITS, read_build
from recipes.demos.figures import LABELS, pooled, resource_checks
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.scores import score_completions
from rewards.bleu import tokenize
from rewards.labels import FINDINGS, to_binary
from rewards.rouge import rouge_l
from rewards.scenarios import SCENARIOS

TLW, PLAIN, SHUFFLED = "SFT with TLW", "SFT", "TLW, shuffled images"
CHANGES = re.compile(r"\b(new|unchanged|resolved)\b", re.IGNORECASE)
HIDDEN = ("Lung Lesion", "Pleural Effusion")  # what may show on the lateral view alone


def corpus_bleu(generated: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 of a corpus as pycocoevalcap 1.2 computes it, 0 to 1."""
    scorer = BleuScorer(n=4)
    for text, reference in zip(generated, references, strict=True):
        scorer += (tokenize(text), [tokenize(reference)])
    return float(scorer.compute_score(option="closest")[0][3])


def find_changes(report: str, labeler) -> set[tuple[str, str]]:
    """(finding, new | unchanged | resolved) of each sentence of a report that has such a word."""
    sentences = [(sentence, CHANGES.search(sentence)) for sentence in re.split(r"(?<=\.)\s", report)]
    said = [(sentence, word[1].lower()) for sentence, word in sentences if word]
    labels = np.asarray(labeler([sentence for sentence, _ in said]))[:, : len(FINDINGS)] if said else []
    return {(FINDINGS[i], word) for (_, word), row in zip(said, labels, strict=True) for i in np.flatnonzero(row)}


def drawn_study(study_id: str, build: dict) -> Study:
    """What recipes/build_phantom.py drew for a study: the same random numbers again."""
    _, _, split, index = study_id.split("-")
    rng = np.random.default_rng((build["seed"], SPLITS.index(split), int(index)))
    return make_study(sample_states(rng, build["abnormal"], build["balanced"]), rng)


def compare_scenarios(
    dataset: str, predictions: dict[int, dict[str, str]], labeler, margin: float = 0.2
) -> dict[str, dict[str, dict[str, dict]]]:
    """Figures of generated test reports of a phantom, by system and scenario, means over seeds.

    `predictions`: seed -> system -> JSONL file of recipes/generate.py. Returns

    - `scenarios`: system -> scenario -> studies, precision, recall and F1 (micro, 13 findings, uncertain as positive),
      MCCS, BLEU-4 of the corpus, ROUGE-L;
    - `lateral_only`: system -> scenario -> recall of the findings that only the lateral view shows, recall of the
      same two findings where the frontal view shows them, and how many of either there are;
    - `prior`: system (and the references) -> scenario -> share of the reports that compare; micro-F1 of the pairs
      (finding, new | unchanged | resolved), and recall of the resolved ones: None where the references have none.
    """
    rows = read_labelled(dataset, "test", labeler, ("report", "study_id", "scenario"))
    build = read_build(dataset)
    ids, references, states = rows["study_id"], rows["report"], np.asarray(rows["labels"])
    known = dict.fromkeys(ids)
    place = {name: np.flatnonzero([own == name for own in rows["scenario"]]) for name in SCENARIOS}
    studies = [drawn_study(study, build) for study in ids]
    hidden = np.array([[name in study.lateral_only for name in FINDINGS] for study in studies])
    shown = to_binary(states)[:, : len(FINDINGS)] & ~hidden
    shown[:, [i for i, name in enumerate(FINDINGS) if name not in HIDDEN]] = False
    changes = [find_changes(text, labeler) for text in references]

    texts: dict[str, list[list[str]]] = {"references": [references]}
    for files in predictions.values():
        for name, file in files.items():
            said = read_predictions(file, known)
            texts.setdefault(name, []).append([said[study][0] for study in ids])

    figures = {"scenarios": {}, "lateral_only": {}, "prior": {}}
    for system, seeds in texts.items():
        labels = [to_binary(labeler(reports))[:, : len(FINDINGS)] for reports in seeds]
        found = [[find_changes(text, labeler) for text in reports] for reports in seeds]
        for scenario, own in place.items():
            if system != "references":
                parts = [_score([r[i] for i in own], [references[i] for i in own], states[own], labeler, margin)
                         for r in seeds]  # fmt: skip
                mean = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
                figures["scenarios"].setdefault(system, {})[scenario] = {"studies": len(own), **mean}
                figures["lateral_only"].setdefault(system, {})[scenario] = {
                    "recall": _share([each[own][hidden[own]] for each in labels]),
                    "findings": int(hidden[own].sum()),
                    "recall from the front": _share([each[own][shown[own]] for each in labels]),
                    "findings from the front": int(shown[own].sum()),
                }
            pairs = [(each[i], changes[i]) for each in found for i in own]
            resolved = [({p for p in a if p[1] == "resolved"}, {p for p in b if p[1] == "resolved"}) for a, b in pairs]
            figures["prior"].setdefault(system, {})[scenario] = {
                "reports that compare": float(np.mean([bool(a) for a, _ in pairs])),
                "comparisons, F1": _f1(pairs),
                "resolved findings, recall": _recall(resolved),
            }
    return figures


def _score(generated: list[str], references: list[str], states: np.ndarray, labeler, margin: float) -> dict:
    scores = score_completions(generated, states, labeler, margin)
    return {
        **scores["clinical_efficacy"][LABELS]["micro"],
        "mccs": scores["mccs"],
        "bleu-4": corpus_bleu(generated, references),
        "rouge-l": float(np.mean(rouge_l(generated, references))),
    }


def _share(parts: list[np.ndarray]) -> float | None:
    values = np.concatenate(parts)
    return float(values.mean()) if len(values) else None


def _recall(pairs: list[tuple[set, set]]) -> float | None:
    wanted = sum(len(reference) for _, reference in pairs)
    return sum(len(said & reference) for said, reference in pairs) / wanted if wanted else None


def _f1(pairs: list[tuple[set, set]]) -> float | None:
    said, wanted = (sum(len(pair[i]) for pair in pairs) for i in (0, 1))
    return 2 * sum(len(a & b) for a, b in pairs) / (said + wanted) if wanted else None


def make_checks(figures: dict, minutes: float, minutes_bar: float, memory_gb: float) -> list[dict]:
    """What the demo must show, as `recipes.cli.report` takes it; `aim:` marks what is hoped for, not promised."""

    def over(measure: str, key: str, scenarios: tuple[str, ...]) -> float:
        """Mean over scenarios of a figure of the system with TLW."""
        values = [figures[measure][TLW][scenario][key] for scenario in scenarios]
        return float(np.mean([value for value in values if value is not None] or [0.0]))

    checks = []
    for other, prefix in ((PLAIN, "aim: "), (SHUFFLED, "")):
        low = pooled(figures, other, "micro-F1 13")["low"]
        name = f"{prefix}{TLW} minus {other}, micro-F1 13, low end of the 95 % interval"
        checks.append({"name": name, "value": low, "bar": "> 0", "holds": low > 0})
    seen, unseen = (over("lateral_only", "recall", (scenario,)) for scenario in ("mn", "sn"))  # priors tell them too
    with_prior, without = (
        over("prior", "reports that compare", scenarios) for scenarios in (("sw", "mw"), ("sn", "mn"))
    )
    checks += [
        {
            "name": "recall of lateral-only findings, mn minus sn",
            "value": seen - unseen,
            "bar": ">= 0.2",
            "holds": seen - unseen >= 0.2,
        },
        {
            "name": "reports that compare with a prior that there is not, share",
            "value": without,
            "bar": "<= 0.01",
            "holds": without <= 0.01,
        },
        {
            "name": "reports that compare where there is a prior, share",
            "value": with_prior,
            "bar": ">= 0.3",
            "holds": with_prior >= 0.3,
        },
        *resource_checks(minutes, minutes_bar, memory_gb),
    ]
    return checks
