"""What a reward knows and what it pays for: agreement with radiologists, RadJudge, injected errors, gaming, cost.

The judgements are RadPref's and RadJudge's (rajpurkarlab/CRIMSON). A figure that cannot be had is None, and why stands
in the card's `problems`: a file that is missing or of another layout, a reward that raises.
"""

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau, pearsonr

from recipes.data.openi import read_studies
from recipes.data.phantom import sample_states, write_report
from recipes.evaluation.error_injection import INJECTIONS, SENTENCES, paraphrase
from recipes.files import InputError
from rewards.findings import FindingReader
from rewards.guard import FAILURES
from rewards.inputs import LabelReward, cached
from rewards.labelers import LexicalLabeler
from rewards.table import REWARDS, RewardArguments, make_rewards

WEIGHTLESS = (
    *("severity", "ce_f1", "positive_f1", "mccs", "radgraph_lexical", "radcliq_lite", "bleu", "rouge", "cider"),
    "format",
)
CRIMSON_WEIGHTS = {
    "urgent": 1.0,
    "actionable_not_urgent": 0.5,
    "not_actionable_not_urgent": 0.25,
    "benign_expected": 0.0,
}
FIXED = (
    "The heart is normal in size and contour. No focal consolidation, effusion or pneumothorax.",
    "No acute cardiopulmonary abnormality.",
    "Mild cardiomegaly. Bibasilar opacities.",
    "Cardiomegaly. Low lung volumes. Atelectasis.",
    "Small bilateral pleural effusions with bibasilar atelectasis.",
    "Degenerative changes of the spine.",
)
KEYWORDS = "effusion pneumothorax edema pneumonia cardiomegaly atelectasis opacity nodule fracture"
SENTENCE = 300  # characters of a reward's error
DENIAL, FINDING = "No pleural effusion.", "Large pleural effusion."
Reward = Callable[..., list[float | None]]
_READ = FindingReader()


class Scorer:
    """A reward's scores of pairs of texts; InputError with one sentence where it raises or gives no number.

    `labeler`: makes the references' column `labels`, by default the lexical one.
    """

    def __init__(self, name: str, reward: Reward, labeler: Callable | None = None):
        self.name, self.reward, self.labeler = name, reward, cached(labeler or LexicalLabeler())

    def __call__(self, reports: Sequence[str], references: Sequence[str], **context) -> np.ndarray:
        """Scores of n reports, float64 of shape (n,)."""
        try:
            labels = [row.tolist() for row in self.labeler(references)]
            values = self.reward(
                list(reports), report=list(references), labels=labels, prompts=[""] * len(labels), **context
            )
            scores = np.array([math.nan if value is None else float(value) for value in values])
        except FAILURES as error:
            raise InputError(f"{self.name} raises {_one_line(error)}") from error
        if scores.shape != (len(references),) or not np.isfinite(scores).all():
            raise InputError(f"{self.name} gives {np.isfinite(scores).sum()} numbers for {len(references)} reports")
        return scores


def _one_line(error: BaseException) -> str:
    """The error as one sentence, however long a text it quotes."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:SENTENCE]}"


def make_scorers(
    settings: RewardArguments, labelers: Sequence[Callable], references: Sequence[str]
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """A scorer for each row of the card, by its name, and why the others could not be made (weights are missing).

    A reward of labels has a row for each of `labelers`, named by it unless that is the lexical one. `references`:
    reports that CIDEr takes its document frequencies from. Raises InputError where there is no such reward.
    """
    scorers, failed = {}, {}
    for name in settings.rewards:
        for labeler in labelers:
            try:
                (reward,) = make_rewards(replace(settings, rewards=[name]), labeler, references)
            except (OSError, ValueError) as error:
                if name not in REWARDS:
                    raise InputError(str(error)) from error
                failed[name] = f"{name} cannot be made: {_one_line(error)}"
                break
            labelled = isinstance(reward, LabelReward) and name in REWARDS
            row = f"{name}, {labeler.name}" if labelled and labeler.name != LexicalLabeler.name else name
            scorers[row] = Scorer(row, reward, labeler)
            if not labelled:
                break
    return scorers, failed


def read_judgements(folder: Path, keys: set[str]) -> list[dict]:
    """The rows of every .json in `folder`. Raises InputError where there is none or a row lacks one of `keys`."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"{folder} holds no .json: the judgements are in github.com/rajpurkarlab/CRIMSON (MIT)")
    rows = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise InputError(f"{file} is no JSON that can be read: {error}") from error
        listed = isinstance(content, list) and all(isinstance(row, dict) for row in content)
        bad = next((i for i, row in enumerate(content) if not keys <= row.keys()), None) if listed else 0
        if bad is not None:
            lacking = ", ".join(sorted(keys - content[bad].keys())) if listed else "a list of objects"
            raise InputError(f"{file}, row {bad}, has another layout: it lacks {lacking}")
        rows += content
    return rows


def _burden(judged: dict) -> float:
    """The severity-weighted errors of one radiologist: CRIMSON's weights; an attribute .5, a negligible one 0."""
    total = sum(CRIMSON_WEIGHTS.get(e.get("clinical_significance"), 0.25) for e in judged["missing_findings"].values())
    for error in judged["finding_errors"].values():
        if error.get("error_type") == "false":
            total += CRIMSON_WEIGHTS.get(error.get("clinical_significance"), 0.25)
        else:
            total += 0.5 * sum(value == "significant" for value in error.get("attributes", {}).values())
    return total


class RadPref:
    """RadPref's studies: texts, and the radiologists' judgements as arrays (studies, 2 candidates)."""

    KEYS = frozenset(("ground_truth_report", "C1_report", "C2_report", "annotations"))

    def __init__(self, folder: Path):
        self.rows = read_judgements(folder, set(self.KEYS))
        try:
            both = [[[judged[c] for judged in row["annotations"]] for c in ("C1", "C2")] for row in self.rows]
            self.ratings = np.array([[[j["rating"] for j in judged] for judged in pair] for pair in both], dtype=float)
            self.burden = np.array([[np.mean([_burden(j) for j in judged]) for judged in pair] for pair in both])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{folder}: an annotation has another layout: {type(error).__name__} {error}") from error
        self.mean = self.ratings.mean(-1)

    def scores(self, scorer: Scorer) -> np.ndarray:
        """A reward's scores, (studies, 2)."""
        reports = [row[f"{c}_report"] for row in self.rows for c in ("C1", "C2")]
        references = [row["ground_truth_report"] for row in self.rows for _ in range(2)]
        context = {
            "age": [row.get("PatientAge") for row in self.rows for _ in range(2)],
            "indication": [row.get("Indication") for row in self.rows for _ in range(2)],
        }
        return scorer(reports, references, **context).reshape(-1, 2)

    def baselines(self) -> dict[str, np.ndarray]:
        """What knows nothing of medicine, or is a radiologist: scores (studies, 2) by name."""
        out = {f"radiologist {k + 1} against the others": self.ratings[..., k] for k in range(self.ratings.shape[-1])}
        out["a constant"] = np.zeros_like(self.mean)
        if all(f"{c}_findings" in row for row in self.rows for c in ("ground_truth", "C1", "C2")):
            out["difference of the finding counts"] = self._by_candidate(
                lambda row, c: -abs(len(row[f"{c}_findings"]) - len(row["ground_truth_findings"]))
            )
        out["fewer sentences"] = self._by_candidate(lambda row, c: -row[f"{c}_report"].count("."))
        if all("C1_source" in row for row in self.rows):
            out["which system wrote it"] = self._by_candidate(lambda row, c: row[f"{c}_source"] == "gpt")
        return out

    def _by_candidate(self, value: Callable[[dict, str], float]) -> np.ndarray:
        return np.array([[float(value(row, c)) for c in ("C1", "C2")] for row in self.rows])


def _tau(scores: np.ndarray, target: np.ndarray) -> float:
    if np.ptp(scores) == 0 or np.ptp(target) == 0:
        return 0.0  # tau-b of a constant is not defined; it tells nothing apart
    return float(kendalltau(scores.ravel(), target.ravel()).statistic)


def preferred(scores: np.ndarray, ratings: np.ndarray) -> float:
    """Share of the studies with a preferred report whose order the scores give; a tie counts one half."""
    gap, target = scores[:, 0] - scores[:, 1], ratings[:, 0] - ratings[:, 1]
    decided = target != 0
    return float(np.mean((np.sign(gap[decided]) * np.sign(target[decided]) + 1) / 2)) if decided.any() else math.nan


def agreement(
    scored: Mapping[str, np.ndarray], radpref: RadPref, resamples: int = 500, seed: int = 0
) -> dict[str, dict]:
    """Each row's agreement with the mean rating: tau-b and r, its 95 % interval over studies, the share of preferred
    reports, tau with the error burden, and the difference in tau to the first row, paired.

    A radiologist is compared with the mean of the others.
    """
    draws = np.random.default_rng(seed).integers(len(radpref.mean), size=(resamples, len(radpref.mean)))
    taus: dict[str, np.ndarray] = {}
    rows = {}
    for name, scores in scored.items():
        ratings = radpref.mean
        if name.startswith("radiologist "):
            ratings = np.delete(radpref.ratings, int(name.split()[1]) - 1, axis=-1).mean(-1)
        taus[name] = np.array([_tau(scores[draw], ratings[draw]) for draw in draws])
        first = next(iter(taus))
        constant = np.ptp(scores) == 0
        rows[name] = {
            "tau": _tau(scores, ratings),
            "interval": np.percentile(taus[name], [2.5, 97.5]).tolist(),
            "r": 0.0 if constant else float(pearsonr(scores.ravel(), ratings.ravel())[0]),
            "preferred": preferred(scores, ratings),
            "burden_tau": -_tau(scores, radpref.burden),
            "difference": np.percentile(taus[name] - taus[first], [2.5, 97.5]).tolist() if name != first else None,
        }
    return rows


def radjudge(scorer: Scorer, cases: list[dict]) -> dict:
    """How many cases hold: {"strict": [passed, of], "equal": [passed, of], "by_category": {...}}.

    "A > B" must be better, "A = B" closer than .01; a case of several rules holds where all do.
    """
    counts: dict = {"strict": [0, 0], "equal": [0, 0], "by_category": {}}
    for case in cases:
        names = list(case["candidates"])
        candidates = [case["candidates"][name] for name in names]
        context = [candidate.get("context") or {} for candidate in candidates]
        values = scorer(
            [candidate["text"] for candidate in candidates],
            [case["ground_truth"]] * len(names),
            age=[patient.get("age") for patient in context],
            indication=[patient.get("indication") for patient in context],
        )
        value = dict(zip(names, values, strict=True))
        rules = case["expected_ranking"]
        rules = [rule.split() for rule in ([rules] if isinstance(rules, str) else rules)]
        holds = all(value[a] > value[b] if sign == ">" else abs(value[a] - value[b]) < 0.01 for a, sign, b in rules)
        kind = "equal" if any(sign == "=" for _, sign, _ in rules) else "strict"
        for count in (counts[kind], counts["by_category"].setdefault(case["category"], [0, 0])):
            count[0] += holds
            count[1] += 1
    return counts


def read_reports(count: int, seed: int = 0) -> dict[str, list[str]]:
    """`count` different reports each of Open-i (findings and impression) and of the phantom."""
    generator = random.Random(seed)
    studies, _ = read_studies()
    texts = (" ".join(filter(None, (s.sections.get("findings"), s.sections.get("impression")))) for s in studies)
    openi = sorted({" ".join(text.split()) for text in texts if text.strip()})
    rng = np.random.default_rng(seed)
    phantom = sorted({write_report(sample_states(rng), rng) for _ in range(4 * count)})
    return {
        "Open-i": generator.sample(openi, min(count, len(openi))),
        "phantom": generator.sample(phantom, min(count, len(phantom))),
    }


def sensitivity(scorer: Scorer, texts: Sequence[str]) -> dict[str, dict]:
    """By kind of injected error: over how many reports the reward falls by how much, and in what share not at all."""
    itself = dict(zip(texts, scorer(texts, texts), strict=True))
    rows = {}
    for kind, inject in {**INJECTIONS, "paraphrase": paraphrase}.items():
        changed = [(text, variant) for text in texts if (variant := inject(text)) is not None]
        if not changed:
            rows[kind] = {"reports": 0, "fall": None, "unmoved": None}
            continue
        falls = np.array([itself[text] for text, _ in changed]) - scorer(
            [b for _, b in changed], [a for a, _ in changed]
        )
        rows[kind] = {
            "reports": len(changed),
            "fall": float(falls.mean()),
            "unmoved": float((falls <= 1e-9).mean()),
        }
    return rows


def _negatives(text: str) -> str:
    """The reference's sentences that deny or call normal."""
    return " ".join(sentence for sentence in SENTENCES.split(text) if not _READ([sentence])[0].findings)


def normal_share(texts: Sequence[str]) -> float:
    """Share of `texts` without a finding: the least that one fixed report earns on average, from any reward in [0, 1]
    that pays 1 for a normal report of a normal study in whatever words."""
    return float(np.mean([not report.findings for report in _READ(texts)]))


def gaming(scorer: Scorer, texts: Sequence[str]) -> dict[str, float]:
    """What earns without knowing the image: means over the references `texts`."""

    def mean(make: Callable[[str], str]) -> float:
        return float(scorer([make(text) for text in texts], texts).mean())

    ways = {
        "the correct report": lambda text: text,
        "its negatives alone": _negatives,
        "a list of keywords": lambda text: KEYWORDS,
        "every sentence twice": lambda text: f"{text} {text}",
        "twice the length": lambda text: f"{text} {texts[(texts.index(text) + 1) % len(texts)]}",
        "another study's report": lambda text: texts[(texts.index(text) + 7) % len(texts)],
        "a denial": lambda text: f"{text} {DENIAL}",
        "a finding": lambda text: f"{text} {FINDING}",
        "both: a contradiction": lambda text: f"{text} {DENIAL} {FINDING}",
        "an empty report": lambda text: "",
    }
    means = {name: mean(make) for name, make in ways.items()}
    fixed = {report: mean(lambda text, report=report: report) for report in FIXED}
    best = max(fixed, key=fixed.get)
    return {"best fixed report": fixed[best], "which": best, **means}


def cost(scorer: Scorer, texts: Sequence[str], group: int = 4) -> dict[str, float]:
    """Milliseconds of this process a report, share of zeros, distinct values, and spread within groups."""
    others = [  # numbered, so that none is remembered
        f"{texts[(i + k + 1) % len(texts)]} Film {i}." for i in range(len(texts)) for k in range(group)
    ]
    references = [text for text in texts for _ in range(group)]
    start = time.process_time()
    values = scorer(others, references)
    seconds = time.process_time() - start
    return {
        "ms": 1000 * seconds / len(values),
        "zeros": float((values == 0).mean()),
        "distinct": len(np.unique(values.round(9))),
        "spread": float(values.reshape(-1, group).std(1).mean()),
    }


def make_card(
    settings: RewardArguments,
    labelers: Sequence[Callable],
    data: Path,
    count: int = 200,
    resamples: int = 500,
    seed: int = 0,
) -> dict:
    """The card of `settings.rewards`: sections by name, a row for each reward, and `problems`, sentences."""
    problems: list[str] = []
    texts = read_reports(count, seed)
    scorers, failed = make_scorers(settings, labelers, texts["Open-i"])
    problems += [f"{sentence}; its row is left out" for sentence in failed.values()]
    radpref = cases = None
    try:
        radpref = RadPref(data / "radpref")
    except InputError as error:
        problems.append(f"agreement with radiologists was not measured: {error}")
    try:
        cases = read_judgements(data / "radjudge", {"category", "ground_truth", "candidates", "expected_ranking"})
    except InputError as error:
        problems.append(f"RadJudge was not measured: {error}")
    card: dict = {"agreement": {}, "radjudge": {}, "sensitivity": {}, "gaming": {}, "cost": {}, "failed": failed}
    scored: dict[str, np.ndarray] = {}
    for name, scorer in scorers.items():
        try:
            row = {
                "sensitivity": {source: sensitivity(scorer, some) for source, some in texts.items()},
                "gaming": {source: gaming(scorer, some) for source, some in texts.items()},
                "cost": cost(scorer, texts["Open-i"]),
            }
            if radpref:
                row["gaming"]["RadPref"] = gaming(scorer, [study["ground_truth_report"] for study in radpref.rows])
            if cases:
                row["radjudge"] = radjudge(scorer, cases)
            scores = radpref.scores(scorer) if radpref else None
        except InputError as error:
            problems.append(f"{error}; its row is left out")
            card["failed"][name] = str(error)
            continue
        for section, values in row.items():
            card[section][name] = values
        if scores is not None:
            scored[name] = scores
    if cases:
        card["radjudge"]["a constant"] = radjudge(Scorer("a constant", lambda texts, **_: [0.0] * len(texts)), cases)
    if radpref:
        card["agreement"] = agreement({**scored, **radpref.baselines()}, radpref, resamples, seed)
        card["studies"] = len(radpref.rows)
    counts = {source: len(some) for source, some in texts.items()}
    normal = {source: normal_share(some) for source, some in texts.items()}
    return {**card, "reports": counts, "normal": normal, "problems": problems}
