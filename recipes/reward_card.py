"""The reward card: agreement with radiologists, what rewards see, how they are gamed, their cost.

    python recipes/reward_card.py                                  # or make bench NAME=reward_card
    python recipes/reward_card.py --rewards severity_reward my_package.rewards.my_reward
    RRG_DATA=../shared/data python recipes/reward_card.py          # the folder with radpref/ and radjudge/

Writes index.html, table.md and results.json. Without the judgements it measures the rest and says what is missing; a
reward that raises loses its row and nothing else.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from recipes.cli import parse, report, run
from recipes.data.settings import COUNT, Range
from recipes.evaluation.reward_card import DEFAULT, make_card
from recipes.evaluation.reward_card_page import write_card


@dataclass
class CardArguments:
    """Arguments of the card."""

    ranges: ClassVar[dict[str, Range]] = {"reports": Range(10), "resamples": COUNT}

    rewards: list[str] = field(
        default_factory=lambda: list(DEFAULT),
        metadata={"help": "Rewards by their names in the package rewards, or by dotted paths."},
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
    card = make_card(args.rewards, Path(args.data), args.reports, args.resamples)
    write_card(card, Path(args.out))
    for problem in card["problems"]:
        print(f"not measured: {problem}")
    fixed = card["gaming"].get("severity_reward", {}).get("RadPref", {}).get("best fixed report")
    tau = card["agreement"].get("severity_reward", {}).get("tau")
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
