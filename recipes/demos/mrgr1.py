"""MRG-R1's demo: SFT, then GRPO, and SFT on as many answers instead; on Open-i's reports, or on a phantom."""

from pathlib import Path
from typing import ClassVar

import yaml

from recipes.demos.figures import COLUMNS, MCCS, MICRO, Demo, Reports, check_difference, make_check
from recipes.demos.page import read_history
from recipes.demos.plans import Levels, make_job, side_by_side, train
from recipes.demos.tables import Table

SFT, SFT_MORE, GRPO, SHUFFLED = "SFT", "SFT, more steps", "GRPO", "GRPO, shuffled images"
PHANTOM = "recipes/build_phantom.py --scenarios sn --n_validation 1"
BALANCED = f"{PHANTOM} --balanced --seed 7 --n_train 3000 --n_test 1"
SFT_CONFIG, GRPO_CONFIG = (f"recipes/configs/mrgr1/{name}.yaml" for name in ("sft_demo", "demo"))
SFT_SCRIPT, GRPO_SCRIPT = f"sft_mrgr1.py --config {SFT_CONFIG}", f"grpo_mrgr1.py --config {GRPO_CONFIG}"


def steps_of_equal_samples(grpo_steps: int) -> int:
    """How many SFT steps have as many answers as `grpo_steps` have completions, by the demo's YAMLs."""
    sft, grpo = (yaml.safe_load(Path(file).read_text()) for file in (SFT_CONFIG, GRPO_CONFIG))
    return grpo_steps * grpo["effective_batch_size"] // sft["per_device_train_batch_size"]


def cost_of_training(folder: str | Path) -> dict[str, float | None]:
    """The answers and tokens that the training run in `folder` read, and its seconds, by its log.

    No tokens, None, where it did not log them.
    """
    history = read_history(folder)
    seconds = history[-1]["train_runtime"]
    tokens = max((entry["num_tokens"] for entry in history if "num_tokens" in entry), default=None)
    return {"samples": round(history[-1]["train_samples_per_second"] * seconds), "tokens": tokens, "seconds": seconds}


class PhantomDemo(Demo):
    """SFT, GRPO and more SFT on a phantom."""

    data = f"{PHANTOM} --abnormal 0.6 --seed 6 --n_train 2500 --n_test 1000"
    balanced = BALANCED
    systems: ClassVar = {SFT: "sft", SFT_MORE: "sft_more", GRPO: "grpo"}
    best, beside, shuffled = GRPO, SFT, SHUFFLED
    generate = "--prompt_file prompts/mrgr1_tiny.txt --views frontal --split test --batch_size 64 --max_new_tokens 160"
    curves: ClassVar = {
        "reward": "Reward",
        "rewards/mccs_reward/mean": "MCCS",
        "rewards/format_reward/mean": "Format",
        "kl": "KL to the SFT model",
    }
    minutes = 15
    prefixes: ClassVar = {SFT_MORE: "aim: "}  # on a phantom's few phrases SFT goes on learning
    format_bar = 0.95
    tiny: ClassVar = {"warm_up_steps": 450}
    sft_steps, grpo_steps, grpo_options = 300, 60, ""
    memory_gb = 4

    def train(self, folder: str, seeds: list[int]) -> Levels:
        """The tiny models, SFT, and then GRPO beside more SFT: of all seeds side by side."""
        return side_by_side([self._train_seed(folder, seed) for seed in seeds])

    def _train_seed(self, folder: str, seed: int) -> Levels:
        name, data, home = f"seed {seed}: ", f"{folder}/data", f"{folder}/seed{seed}"
        start, first = f"{home}/tiny", f"{home}/sft"
        sft, grpo = (f"{script} --seed {seed}" for script in (SFT_SCRIPT, f"{GRPO_SCRIPT} {self.grpo_options}"))
        build = {"dataset": data, "warm_up": f"{folder}/balanced", **self.tiny, "seed": seed}
        yield [make_job(f"{name}tiny model", start, "recipes/build_tiny.py", **build)]
        yield [train(f"{name}SFT", first, sft, start, data, f"--max_steps {self.sft_steps}")]
        more = f"--max_steps {steps_of_equal_samples(self.grpo_steps)}"
        yield [
            train(f"{name}GRPO", f"{home}/grpo", grpo, first, data, f"--max_steps {self.grpo_steps}"),
            train(f"{name}SFT, as many answers", f"{home}/sft_more", sft, first, data, more),
        ]

    def measure(self, reports: Reports) -> dict:
        """The share of GRPO's answers in the format, of the seed that has the fewest, and what training read.

        `cost`: system -> `samples` (answers that it was trained on), `tokens` (of these with their prompts, as the
        trainers count them) and `seconds` of its training, beside other jobs; means over the seeds.
        """
        shares = (metrics["systems"][GRPO]["figures"][COLUMNS["format"]]["value"] for metrics in reports.metrics)
        folder, cost = Path(reports.dataset).parent, {}
        for system, name in self.systems.items():
            runs = [cost_of_training(folder / f"seed{seed}" / name) for seed in reports.seeds]
            cost[system] = {figure: sum(run[figure] for run in runs) / len(runs) for figure in runs[0]}
        return {"lowest format": min(shares), "cost": cost}

    def check(self, figures: dict) -> list[dict]:
        """GRPO against SFT, SFT on as many answers, and other images; the format; that the control read no less."""
        checks = [
            check_difference(figures["differences"], GRPO, rival, measure, "> 0", self.prefixes.get(rival, ""))
            for rival in (SFT, SFT_MORE, SHUFFLED)
            for measure in (MCCS, MICRO)
        ]
        f1 = {system: row[MICRO] for system, row in figures["table"].items()}
        cost = figures["cost"]
        return [
            *checks,
            make_check(
                "micro-F1 with shuffled images, of that with the right ones", f1[SHUFFLED] / f1[GRPO], "<= 0.5"
            ),
            make_check("GRPO, format (lowest seed)", figures["lowest format"], f">= {self.format_bar}"),
            *(
                make_check(f"{figure} of {SFT_MORE} / of {GRPO}", cost[SFT_MORE][figure] / cost[GRPO][figure], ">= 1")
                for figure in ("samples", "tokens")
            ),
        ]

    def tables(self, figures: dict) -> dict[str, Table]:
        """What training read."""
        rows = [
            [system, f"{cost['samples']:,.0f}", f"{cost['tokens']:,.0f}", f"{cost['seconds'] / 60:.1f}"]
            for system, cost in figures["cost"].items()
        ]
        titles = ["training", "answers", "tokens with prompts", "minutes, beside other jobs"]
        return {"cost": Table(titles, rows, self.best)}


class OpenIDemo(PhantomDemo):
    """The same on Open-i's reports, with stand-in images."""

    data = "recipes/build_iu_xray.py --image_source phantom --target findings+impression"
    balanced = f"{BALANCED} --shapes square"
    prefixes: ClassVar = {}
    format_bar = 0.9
    tiny: ClassVar = {"warm_up_steps": 500, "vocab_size": 1024}
    sft_steps, grpo_steps, grpo_options = 800, 120, "--max_completion_length 160"
