"""Makes pairs for recipes/dpo.py: reports that a reward ranks first and last, or retrieved ones.

    python recipes/generate.py --model outputs/phantom/sft --dataset outputs/data/phantom --split train \
        --temperature 1.0 --seed 1 --out outputs/phantom/samples1.jsonl       # and so with other seeds
    python recipes/build_preferences.py --dataset outputs/data/phantom --rewards severity \
        --predictions outputs/phantom/samples1.jsonl outputs/phantom/samples2.jsonl --out outputs/phantom/pairs.jsonl
    accelerate launch recipes/dpo.py --dataset outputs/data/phantom --pairs outputs/phantom/pairs.jsonl \
        --model_name_or_path outputs/phantom/sft --output_dir outputs/phantom/dpo

A line of the file holds `study_id`, `chosen`, `rejected`, as the model wrote them, and the scores of both. A study
whose scores differ by no more than `--min_difference` gives no pair, as in CheXalign (arXiv 2410.07025); such studies,
and those that a reward cannot score, are counted. `--chosen reference` takes the reference report instead.

`--rejected retrieved` needs no model (RRG-DPO, MICCAI 2025): chosen is the reference report, rejected the one with the
smallest Jaccard index of positive findings among the `--neighbours` training reports most like it by TF-IDF.
"""

import json
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from recipes.cli import parse, run
from recipes.data.labels import load_labeler, read_labelled
from recipes.evaluation.prediction_files import read_predictions
from recipes.evaluation.preferences import rank_completions, retrieve_rejected
from recipes.files import InputError, replacing
from recipes.trainers.setup import choose_rewards
from rewards.table import REWARDS, RewardArguments


@dataclass
class PreferenceArguments:
    written_files: ClassVar[tuple[str, ...]] = ("out",)

    dataset: str = field(metadata={"help": "Built data set, a folder or a Hub id."})
    out: str = field(metadata={"help": "JSONL file of pairs to write."})
    predictions: list[str] = field(
        default_factory=list,
        metadata={"help": "JSONL files of recipes/generate.py, together two completions of a study or more."},
    )
    split: str = field(default="train", metadata={"help": "Split that the completions are of."})
    chosen: Literal["best", "reference"] = field(
        default="best", metadata={"help": "Preferred text: the best completion, or the study's reference report."}
    )
    rejected: Literal["worst", "retrieved"] = field(
        default="worst",
        metadata={"help": "Rejected text: the worst completion, or another study's reference report (RRG-DPO)."},
    )
    neighbours: int = field(
        default=20, metadata={"help": "Number of the most similar reports that rejected: retrieved chooses among."}
    )
    reward_weights: list[float] = field(
        default_factory=list, metadata={"help": "Weights of the rewards in their sum; none: 1 each."}
    )
    min_difference: float = field(
        default=1e-8, metadata={"help": "Difference of scores up to which a study gives no pair."}
    )


@dataclass
class PairRewardArguments(RewardArguments):
    rewards: list[str] = field(
        default_factory=list,
        metadata={"help": f"Rewards, added up by reward_weights: {', '.join(REWARDS)}, or dotted paths."},
    )


def check_sources(args: PreferenceArguments, reward_args: PairRewardArguments) -> None:
    """Raises InputError where what makes the pairs is missing, or would be passed over."""
    for name, values in (("predictions", args.predictions), ("rewards", reward_args.rewards)):
        if args.rejected == "retrieved" and values:
            raise InputError(f"--rejected retrieved takes reference reports alone: leave out --{name}")
        if args.rejected == "worst" and not values:
            raise InputError(f"--{name} is missing, which completions are ranked by (--rejected retrieved needs none)")


def rank(args: PreferenceArguments, reward_args: PairRewardArguments, labeler, studies: dict) -> tuple[list, dict]:
    """The pairs of completions, and how many studies gave none for which reason."""
    completions: dict[str, list[str]] = {}
    for file in args.predictions:
        for study, texts in read_predictions(file, studies, only_common=True).items():
            completions.setdefault(study, []).extend(texts)
    if args.chosen == "best" and max(map(len, completions.values()), default=0) < 2:
        raise InputError("no study has two completions: give files of several seeds of recipes/generate.py")
    references = [study["report"] for study in studies.values()]
    rewards = choose_rewards(reward_args, labeler, references, args.reward_weights)
    weights = args.reward_weights or [1.0] * len(rewards)
    return rank_completions(completions, studies, rewards, weights, args.chosen == "reference", args.min_difference)


def main() -> None:
    args, reward_args = parse(PreferenceArguments, PairRewardArguments)
    check_sources(args, reward_args)

    ################
    # Studies
    ################
    labeler = load_labeler(reward_args.labeler)
    rows = read_labelled(args.dataset, args.split, labeler, ("study_id", "report")).select_columns(
        ["study_id", "report", "labels"]
    )
    studies = {row["study_id"]: row for row in rows}

    ################
    # Pairs
    ################
    if args.rejected == "retrieved":
        pairs, counts = retrieve_rejected(studies, args.neighbours)
        remedy = "the split has one distinct report"
    else:
        pairs, counts = rank(args, reward_args, labeler, studies)
        remedy = "sample at a higher --temperature, or lower --min_difference"
    if not pairs:
        raise InputError(f"no study gives a pair: {counts}; {remedy}")
    with replacing(args.out) as file:
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    print(
        f"{args.out}: {len(pairs)} pairs of {len(studies)} studies; "
        + ", ".join(f"{n} {k}" for k, n in counts.items())
    )


if __name__ == "__main__":
    run(main)
