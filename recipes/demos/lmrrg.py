"""LM-RRG's demo: from one stage 1 the rows of its Table 3 on reinforcement learning.

CQRL, the same with BLEU-4 as the reward, the same with a fixed lambda_KL.
"""

from typing import ClassVar

import numpy as np

from recipes.demos.figures import MICRO, Demo, Reports, check_difference, differences
from recipes.demos.plans import Levels, make_job, side_by_side, train
from recipes.demos.tables import Table, with_interval
from recipes.evaluation.bootstrap import QUANTITIES, efficacy_name, means_part
from rewards.bleu import bleu
from rewards.radcliq import make_lexical_parts, radcliq_score

STAGE1, CQRL, BLEU = "stage 1 (w/o CQRL)", "CQRL", "CQRL, reward: BLEU-4"
FIXED, SHUFFLED = "CQRL, fixed lambda", "CQRL, shuffled images"
RADCLIQ, BLEU4 = "RadCliQ (lite)", "BLEU-4 of a report"
PAIRS = ((CQRL, STAGE1), (BLEU, STAGE1), (FIXED, STAGE1), (BLEU, CQRL), (CQRL, FIXED), (CQRL, SHUFFLED))
COLUMNS = {  # of Table 3; the averages are those of A-14
    "BLEU-4": "bleu-4",
    "ROUGE-L": "rouge-l",
    **{quantity: efficacy_name("14", "negative", "example", quantity) for quantity in QUANTITIES},
    RADCLIQ: "radcliq_lite-v1",
}
CHANGES = {CQRL: "", BLEU: "--rewards bleu --theta 0.4", FIXED: "--kl_controller fixed"}
PHANTOM = "recipes/build_phantom.py --scenarios sn --shapes square --n_validation 1"
TINY = "recipes/build_tiny.py --system lmrrg --prompt_file prompts/lmrrg.txt"
SFT = "sft_lmrrg.py --config recipes/configs/lmrrg/demo.yaml --max_steps 200"
PPO = "ppo_lmrrg.py --config recipes/configs/lmrrg/demo_cqrl.yaml --max_steps 64"


def radcliq_lite(generated: list[str], references: list[str]) -> np.ndarray:
    """RadCliQ v1 (n,) of the parts that need no weights; lower is better, an empty report has four zeros."""
    has_text = np.array([bool(text.strip()) for text in generated])
    parts = {name: np.asarray(part(generated, references)) * has_text for name, part in make_lexical_parts().items()}
    return radcliq_score(**parts)


class LMRRGDemo(Demo):
    """Stage 1, and PPO on RadCliQ or BLEU-4, with an adaptive or a fixed lambda_KL."""

    data = f"{PHANTOM} --abnormal 0.6 --seed 60 --n_train 2500 --n_test 1000"
    balanced = f"{PHANTOM} --balanced --seed 61 --n_train 3000 --n_test 1"
    systems: ClassVar = {STAGE1: "stage1", CQRL: "cqrl", BLEU: "cqrl_bleu", FIXED: "cqrl_fixed"}
    best, beside, shuffled = CQRL, STAGE1, SHUFFLED
    generate = "--prompt_file prompts/lmrrg.txt --views frontal --split test --batch_size 250 --max_new_tokens 100"
    curves: ClassVar = {
        "reward": "Reward",
        "kl": "KL to stage 1",
        "kl_lambda/mean": "lambda_KL",
        "value/loss": "Value loss",
    }
    minutes = 8
    on_screen = "table3"
    columns: ClassVar = {
        title: name for title, name in Demo.columns.items() if title != "format"
    }  # LM-RRG writes no tags

    def train(self, folder: str, seeds: list[int]) -> Levels:
        """The tiny models, stage 1, and PPO from it: of all seeds side by side."""
        return side_by_side([self._train_seed(folder, seed) for seed in seeds])

    def _train_seed(self, folder: str, seed: int) -> Levels:
        name, home, data = f"seed {seed}: ", f"{folder}/seed{seed}", f"{folder}/data"
        tiny, stage1 = f"{home}/tiny", f"{home}/stage1"
        yield [make_job(f"{name}tiny model", tiny, TINY, dataset=data, warm_up=f"{folder}/balanced", seed=seed)]
        yield [train(f"{name}stage 1", stage1, f"{SFT} --seed {seed}", tiny, data)]
        models = {system: f"{home}/{self.systems[system]}" for system in CHANGES}
        for systems in ((CQRL, BLEU), (FIXED,)):  # of three, one would leave a core idle: beside it go the reports
            yield [
                train(name + system, models[system], f"{PPO} {CHANGES[system]} --seed {seed}", stage1, data)
                for system in systems
            ]

    def measure(self, reports: Reports) -> dict:
        """`table3`: system -> `COLUMNS` and the mean BLEU-4 of a report; `gains`: `differences` of `PAIRS`."""
        references = reports.rows["report"][:] * len(reports.seeds)
        scores = {RADCLIQ: radcliq_lite, BLEU4: bleu}
        measures = {
            title: reports.parts(lambda texts, _, title=title: means_part({title: scores[title](texts, references)}))
            for title in scores
        }
        return {
            "table3": {
                system: {title: reports.mean(system, figure) for title, figure in COLUMNS.items()}
                | {BLEU4: float(measures[BLEU4][system].reports[BLEU4].mean())}
                for system in reports.texts
            },
            "gains": differences(measures, PAIRS, reports.seeds),
        }

    def check(self, figures: dict) -> list[dict]:
        """What Table 3 says of the rows, and that reports come from looking."""
        gains, scores = figures["gains"], figures["differences"]
        return [
            check_difference(gains, CQRL, STAGE1, RADCLIQ, "< 0"),  # Table 3: 1.023 to 0.865; lower is better
            check_difference(gains, BLEU, STAGE1, BLEU4, "> 0"),  # 0.117 to 0.127
            check_difference(gains, BLEU, CQRL, RADCLIQ, "> 0"),  # 1.102 and 0.865
            check_difference(gains, CQRL, SHUFFLED, RADCLIQ, "< 0"),
            check_difference(gains, BLEU, CQRL, BLEU4, "> 0", "aim: "),  # 0.127 and 0.122
            check_difference(gains, CQRL, FIXED, RADCLIQ, "< 0", "aim: "),  # 0.865 and 0.901
            check_difference(scores, CQRL, SHUFFLED, MICRO, "> 0.2"),
            check_difference(scores, CQRL, STAGE1, MICRO, "> -0.02", "aim: "),
        ]

    def tables(self, figures: dict) -> dict[str, Table]:
        """Table 3, and the differences of all seeds together."""
        rows = [[system, *(f"{value:.3f}" for value in row.values())] for system, row in figures["table3"].items()]
        gains = [
            [
                f"{gain['system']} minus {gain['minus']}",
                gain["measure"],
                with_interval(gain["difference"], gain["low"], gain["high"], "+.3f"),
            ]
            for gain in figures["gains"]
            if gain["seed"] == "pooled"
        ]
        return {
            "table3": Table(["system", *figures["table3"][CQRL]], rows, CQRL),
            "gains": Table(["difference", "measure", "mean"], gains),
        }
