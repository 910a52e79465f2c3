"""LLM-RG4's demo: two stages with and without token weights (TLW), on four input scenarios.

By scenario: the scores, and how many of the findings are told that only a lateral view or a prior report shows.
"""

import re
from itertools import product
from typing import ClassVar

import numpy as np

from recipes.data.phantom import Study, make_study, sample_states
from recipes.data.schema import SPLITS, read_build
from recipes.demos.figures import COLUMNS, MCCS, MICRO, Demo, Reports, check_difference, make_check
from recipes.demos.plans import Levels, make_job, train
from recipes.demos.stages import Job
from recipes.demos.tables import Table
from recipes.evaluation.baselines import TEMPLATE
from recipes.evaluation.bootstrap import QUANTITIES, efficacy_name, efficacy_part
from rewards.labels import FINDINGS, to_binary
from rewards.scenarios import SCENARIOS

TLW, PLAIN, SHUFFLED = "SFT with TLW", "SFT", "TLW, shuffled images"
CHANGES = re.compile(r"\b(new|unchanged|resolved)\b", re.IGNORECASE)
HIDDEN = ("Lung Lesion", "Pleural Effusion")  # what may show on the lateral view alone
PHANTOM = "recipes/build_phantom.py --balanced --style prose --n_validation 1 --shapes square"
CONFIG = "recipes/configs/llmrg4/demo_stage{}.yaml"
TINY = "recipes/build_tiny.py --system llmrg4 --prompt_file prompts/llmrg4.txt --warm_up_steps 550"


def job_of_labeler(folder: str) -> Job:
    """The CheXbert that the token weights rest on."""
    words = "recipes/train_chexbert.py --texts 20000 --bar 0.9"
    return make_job("labeler", f"{folder}/labeler", words, to="output_dir", dataset=f"{folder}/data")


def job_of_token_weights(folder: str) -> Job:
    """The data set with token weights."""
    options = {"dataset": f"{folder}/data", "model": f"{folder}/labeler"}
    return make_job("token weights", f"{folder}/weighed", "recipes/weigh_tokens.py --splits train", **options)


def find_changes(report: str, labeler) -> set[tuple[str, str]]:
    """(finding, new | unchanged | resolved) of each sentence of a report that has such a word."""
    matches = [(sentence, CHANGES.search(sentence)) for sentence in re.split(r"(?<=\.)\s", report)]
    matches = [(sentence, match[1].lower()) for sentence, match in matches if match]
    labels = np.asarray(labeler([sentence for sentence, _ in matches]))[:, : len(FINDINGS)] if matches else []
    return {(FINDINGS[i], word) for (_, word), row in zip(matches, labels, strict=True) for i in np.flatnonzero(row)}


def drawn_study(study_id: str, build: dict) -> Study:
    """What recipes/build_phantom.py drew for a study: the same random numbers again."""
    _, _, split, index = study_id.split("-")
    rng = np.random.default_rng((build["seed"], SPLITS.index(split), int(index)))
    return make_study(sample_states(rng, build["abnormal"], build["balanced"]), rng)


def _ratio(above: int, below: int, defined: object) -> float | None:
    return float(above / below) if defined else None


def _mean_efficacy(labels: list[np.ndarray], states: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of the first 13 labels, which metrics.json does not have by scenario."""
    parts = [efficacy_part(run, states) for run in labels]
    runs = [part.figures(part.statistics.sum(0)) for part in parts]
    names = {quantity: efficacy_name("13", "positive", "micro", quantity) for quantity in QUANTITIES}
    return {quantity: float(np.mean([run[name] for run in runs])) for quantity, name in names.items()}


class LLMRG4Demo(Demo):
    """Two stages with and without token weights, from the same start."""

    data = f"{PHANTOM} --scenarios sn,sw,mn,mw --seed 42 --n_train 3500 --n_test 1000"
    balanced = f"{PHANTOM} --scenarios mn,mw --seed 43 --n_train 2500 --n_test 1"
    systems: ClassVar = {TLW: "stage2", PLAIN: "stage2_plain"}
    best, beside, shuffled = TLW, PLAIN, SHUFFLED
    generate = (
        "--prompt_file prompts/llmrg4.txt --views frontal+lateral --split test --batch_size 250 --max_new_tokens 100"
    )
    curves: ClassVar = {"loss": "Loss, key tokens weighed", "mean_token_accuracy": "Token accuracy"}
    minutes = 8
    on_screen = "scenarios"

    def train(self, folder: str, seeds: list[int]) -> Levels:
        """The labeler, token weights, tiny models, and two stages with and without the weights."""
        yield [job_of_labeler(folder)]
        yield [job_of_token_weights(folder)]  # beside it one tiny model would have one core for all its time
        inputs = {"chexbert": f"{folder}/labeler", "dataset": f"{folder}/data", "warm_up": f"{folder}/balanced"}
        yield [
            make_job(f"seed {seed}: tiny model", f"{folder}/seed{seed}/tiny", TINY, **inputs, seed=seed)
            for seed in seeds
        ]
        for stage, before in ((1, "tiny"), (2, "stage1")):
            jobs = []
            for seed in seeds:
                home = f"{folder}/seed{seed}"
                for system, suffix, weight in ((TLW, "", ""), (PLAIN, "_plain", "--key_weight 1")):
                    start = f"{home}/{before}{suffix * (stage == 2)}"
                    words = f"sft_llmrg4.py --config {CONFIG.format(stage)} --seed {seed} {weight}"
                    name = f"seed {seed}: stage {stage}, {system}"
                    jobs.append(train(name, f"{home}/stage{stage}{suffix}", words, start, f"{folder}/weighed"))
            yield jobs

    def measure(self, reports: Reports) -> dict[str, dict[str, dict[str, dict]]]:
        """Figures of generated test reports of a phantom, by system and scenario, means over seeds.

        - `scenarios`: system -> scenario -> studies, precision, recall and F1 (micro, 13 findings, uncertain as
          positive), MCCS, BLEU-4 of the corpus, ROUGE-L;
        - `lateral_only`: system -> scenario -> recall of the findings that only the lateral view shows, recall of the
          same two findings where the frontal view shows them, and how many of either there are;
        - `prior`: system (and the references) -> scenario -> share of the reports that compare; micro-F1 of the pairs
          (finding, new | unchanged | resolved), and recall of the resolved ones: None where the references have none.
        """
        build = read_build(reports.dataset)
        scenarios = np.array(reports.rows["scenario"])
        places = {scenario: np.flatnonzero(scenarios == scenario).tolist() for scenario in SCENARIOS}
        studies = [drawn_study(study, build) for study in reports.rows["study_id"]]
        hidden = np.array([[name in study.lateral_only for name in FINDINGS] for study in studies])
        frontal = to_binary(reports.states)[:, : len(FINDINGS)] & ~hidden
        frontal[:, [i for i, name in enumerate(FINDINGS) if name not in HIDDEN]] = False
        references = reports.rows["report"][:]
        systems = {"references": [references] * len(reports.seeds), **reports.texts}
        del systems[TEMPLATE]
        changes = {  # (seed, study, finding, word)
            system: {
                (run, row, *change)
                for run, texts in enumerate(by_seed)
                for row, text in enumerate(texts)
                for change in find_changes(text, reports.labeler)
            }
            for system, by_seed in systems.items()
        }

        figures = {"scenarios": {}, "lateral_only": {}, "prior": {}}
        for system, scenario in product(systems, SCENARIOS):
            rows, members = places[scenario], set(places[scenario])
            generated, reference = (
                {change for change in changes[name] if change[1] in members} for name in (system, "references")
            )
            resolved = {change for change in reference if change[-1] == "resolved"}
            figures["prior"].setdefault(system, {})[scenario] = {
                "reports that compare": len({change[:2] for change in generated}) / (len(rows) * len(reports.seeds)),
                "comparisons, F1": _ratio(2 * len(generated & reference), len(generated) + len(reference), reference),
                "resolved findings, recall": _ratio(len(generated & resolved), len(resolved), resolved),
            }
            if system == "references":
                continue
            labels = [run[rows] for run in reports.labels[system]]
            figures["scenarios"].setdefault(system, {})[scenario] = {
                "studies": len(rows),
                **_mean_efficacy(labels, reports.states[rows]),
                "mccs": reports.mean(system, COLUMNS[MCCS], scenario),
                "bleu-4": reports.mean(system, "bleu-4", scenario),
                "rouge-l": reports.mean(system, "rouge-l", scenario),
            }
            present = np.stack([to_binary(run)[:, : len(FINDINGS)] for run in labels])
            lateral, front = hidden[rows], frontal[rows]
            figures["lateral_only"].setdefault(system, {})[scenario] = {
                "recall": _ratio(present[:, lateral].sum(), lateral.sum() * len(labels), lateral.any()),
                "findings": int(lateral.sum()),
                "recall from the front": _ratio(present[:, front].sum(), front.sum() * len(labels), front.any()),
                "findings from the front": int(front.sum()),
            }
        return figures

    def check(self, figures: dict) -> list[dict]:
        """TLW against none and other images; findings of the lateral view, and comparisons with the prior report."""

        def mean(block: str, key: str, *scenarios: str) -> float:
            """Mean over scenarios of a figure of the system with TLW."""
            values = [figures[block][TLW][scenario][key] for scenario in scenarios]
            return float(np.mean([value for value in values if value is not None] or [0.0]))

        lateral = mean("lateral_only", "recall", "mn") - mean("lateral_only", "recall", "sn")  # priors tell them too
        compared = "reports that compare"
        return [
            check_difference(figures["differences"], TLW, PLAIN, MICRO, "> 0", "aim: "),
            check_difference(figures["differences"], TLW, SHUFFLED, MICRO, "> 0"),
            make_check("aim: recall of lateral-only findings, mn minus sn", lateral, ">= 0.2"),
            make_check(
                "reports that compare with a prior that there is not, share",
                mean("prior", compared, "sn", "mn"),
                "<= 0.01",
            ),
            make_check(
                "reports that compare where there is a prior, share", mean("prior", compared, "sw", "mw"), ">= 0.3"
            ),
        ]

    def tables(self, figures: dict) -> dict[str, Table]:
        """The scores by scenario, and what only one input shows."""

        def number(value: float | None) -> str:
            return "–" if value is None else f"{value:.3f}"

        scores = [
            [
                system,
                scenario,
                str(row["studies"]),
                *(number(value) for name, value in row.items() if name != "studies"),
            ]
            for system, by_scenario in figures["scenarios"].items()
            for scenario, row in by_scenario.items()
        ]
        inputs = []
        for system, by_scenario in figures["prior"].items():
            for scenario, row in by_scenario.items():
                recalls = ["", ""]
                if lateral := figures["lateral_only"].get(system, {}).get(scenario):
                    recalls = [
                        f"{number(lateral[f'recall{view}'])}\nof {lateral[f'findings{view}']}"
                        for view in ("", " from the front")
                    ]
                inputs.append([system, scenario, *recalls, *map(number, row.values())])
        titles = ["lateral-only findings,\nrecall", "the same findings, seen\nfrom the front, recall"]
        titles += ["reports that\ncompare", "comparisons,\nF1", "resolved findings,\nrecall"]
        columns = ["studies", "precision", "recall", "F1", "MCCS", "BLEU-4", "ROUGE-L"]
        return {
            "scenarios": Table(["system", "scenario", *columns], scores),
            "inputs": Table(["system", "scenario", *titles], inputs),
        }
