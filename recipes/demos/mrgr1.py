"""MRG-R1's demo: SFT, then GRPO, and as much time spent on more SFT; on a phantom, or on Open-i's reports."""

from typing import ClassVar

from recipes.demos.figures import COLUMNS, MCCS, MICRO, Demo, Reports, check_difference, make_check
from recipes.demos.page import read_history
from recipes.demos.plans import Levels, make_job, train

SFT, SFT_MORE, GRPO, SHUFFLED = "SFT", "SFT, more steps", "GRPO", "GRPO, shuffled images"
PHANTOM = "recipes/build_phantom.py --scenarios sn --n_validation 1"
BALANCED = f"{PHANTOM} --balanced --seed 7 --n_train 3000 --n_test 1"


def steps_of_equal_time(grpo: str, sft: str) -> int:
    """How many SFT steps take as long as the GRPO run in folder `grpo` did, at the pace of the SFT run in `sft`."""
    times = [read_history(folder)[-1] for folder in (grpo, sft)]
    return max(1, round(times[0]["train_runtime"] / (times[1]["train_runtime"] / times[1]["step"])))


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
    tiny: ClassVar = {"warm_up_steps": 450}
    sft = "sft_mrgr1.py --config recipes/configs/mrgr1/sft_demo.yaml"
    grpo = "grpo_mrgr1.py --config recipes/configs/mrgr1/demo.yaml"

    def train(self, folder: str, seeds: list[int]) -> Levels:
        """One job at a time, for SFT's pace is measured."""
        data = f"{folder}/data"
        for seed in seeds:
            name, options = f"seed {seed}: ", f"--seed {seed}"
            start, first, best, more = (
                f"{folder}/seed{seed}/{stage}" for stage in ("tiny", "sft", "grpo", "sft_more")
            )
            build = {"dataset": data, "warm_up": f"{folder}/balanced", **self.tiny, "seed": seed}
            yield [make_job(f"{name}tiny model", start, "recipes/build_tiny.py", **build)]
            yield [train(f"{name}SFT", first, f"{self.sft} {options}", start, data)]
            yield [train(f"{name}GRPO", best, f"{self.grpo} {options}", first, data)]
            last = f"--max_steps {steps_of_equal_time(best, first)}"
            yield [train(f"{name}SFT, as long as GRPO", more, f"{self.sft} {options}", first, data, last)]

    def measure(self, reports: Reports) -> dict[str, float]:
        """The share of GRPO's answers in the format, of the seed that has the fewest."""
        shares = (metrics["systems"][GRPO]["figures"][COLUMNS["format"]]["value"] for metrics in reports.metrics)
        return {"lowest format": min(shares)}

    def check(self, figures: dict) -> list[dict]:
        """GRPO against SFT, as much time of SFT, and other images; the format."""
        checks = [
            check_difference(figures["differences"], GRPO, rival, measure, "> 0", prefix)
            for rival, prefix in ((SFT, ""), (SFT_MORE, "aim: "), (SHUFFLED, ""))
            for measure in (MCCS, MICRO)
        ]
        return [*checks, make_check("GRPO, format (lowest seed)", figures["lowest format"], ">= 0.95")]


class OpenIDemo(PhantomDemo):
    """The same on Open-i's reports, with stand-in images."""

    data = "recipes/build_iu_xray.py --image_source phantom --target findings+impression"
    balanced = f"{BALANCED} --shapes square"
    minutes = 40
    tiny: ClassVar = {"warm_up_steps": 500, "vocab_size": 1024}
    sft = f"{PhantomDemo.sft} --max_steps 800"
    grpo = f"{PhantomDemo.grpo} --max_steps 120 --max_completion_length 160"
