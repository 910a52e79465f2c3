"""The reward card: agreement with radiologists, what rewards see, how they are gamed, their cost.

    python recipes/reward_card.py                                  # or make bench NAME=reward_card
    python recipes/reward_card.py --rewards severity my_lab.rewards.mine
    python recipes/reward_card.py --rewards mccs crepe --labeler lexical chexbert --crepe outputs/crepe
    RRG_DATA=../shared/data python recipes/reward_card.py          # the folder with radpref/ and radjudge/

Writes index.html, table.md and results.json. Without the judgements it measures the rest and says what is missing; a
reward that raises loses its row and nothing else.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from recipes.cli import parse, report, run
from recipes.data.labels import load_labeler
from recipes.data.settings import COUNT, Range
from recipes.evaluation.reward_card import WEIGHTLESS, make_card
from recipes.evaluation.reward_card_page import write_card
from rewards.table import REWARDS, RewardArguments


@dataclass
class CardArguments(RewardArguments):
    """Arguments of the card; what a reward is made of is said as in a recipe."""

    ranges: ClassVar[dict[str, Range]] = {"reports": Range(10), "resamples": COUNT}

    rewards: list[str] = field(
        default_factory=lambda: list(WEIGHTLESS),
        metadata={"help": f"Rewards: {', '.join(REWARDS)}, or dotted paths; by default all that have no weights."},
    )
    labeler: list[str] = field(
        default_factory=lambda: ["lexical"],
        metadata={
            "help": "Labelers of mccs, ce_f1 and positive_f1, which have a row for each: lexical, chexbert or "
            "chexbert:MODEL."
        },
    )
    data: str = field(
        default=os.environ.get("RRG_DATA", "../shared/data"),
        metadata={"help": "Folder that holds radpref/ and radjudge/ with the judgements as JSON."},
    )
    out: str = field(
        default="outputs/reward_card", metadata={"help": "Folder for the page, the table and the figures."}
    )
    reports: int = field(default=200, metadata={"help": "Number of reports of Open-i, and as many of the phantom."})
    resamples: int = field(default=500, metadata={"help": "Number of bootstrap samples."})


def main() -> None:
    (args,) = parse(CardArguments)
    labelers = [load_labeler(name) for name in dict.fromkeys(args.labeler)]
    card = make_card(args, labelers, Path(args.data), args.reports, args.resamples)
    write_card(card, Path(args.out))
    for problem in card["problems"]:
        print(f"not measured: {problem}")
    fixed = card["gaming"].get("severity", {}).get("RadPref", {}).get("best fixed report")
    tau = card["agreement"].get("severity", {}).get("tau")
    checks = [
        {
            "name": "severity reward: tau with radiologists",
            "value": tau,
            "bar": ">= 0.66",
            "holds": tau and tau >= 0.66,
        },
        {"name": "best fixed report", "value": fixed, "bar": "<= 0.25", "holds": fixed and fixed <= 0.25},
        {"name": "rewards that failed", "value": len(card["failed"]), "bar": "0", "holds": not card["failed"]},
    ]
    report(args.out, card, checks)


if __name__ == "__main__":
    run(main)
