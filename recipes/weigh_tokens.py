"""Finds the sentences that weigh more in training (LLM-RG4's token weighting, Algorithm 1).

    python recipes/weigh_tokens.py --dataset outputs/data/phantom --out outputs/data/phantom_weighed
    python recipes/weigh_tokens.py --dataset outputs/data/rg4/sn --model outputs/chexbert \
        --out outputs/data/rg4_weighed/sn --bf16 --tolerance 0.05 --token_budget 32768          # on a GPU

`--model` is a CheXbert of recipes/convert_chexbert.py (the published one) or of recipes/train_chexbert.py. `--out`
then holds the data set with the column `key_spans`: of each report the [start, end) characters of the sentences that
its positive and uncertain labels rest on, for WeightedSFTTrainer and any tokenizer. token_weights.json tells how many
there are, and how well the attributions add up. A run that was stopped goes on where it was when the same command is
given again, with the same bytes in the end; what is finished lies beside `--out` until then.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from recipes.cli import parse, run
from recipes.data.labels import CHEXBERT
from recipes.data.schema import read_build, read_dataset
from recipes.files import InputError, replacing
from recipes.progress import follow
from recipes.rg4 import token_weights


@dataclass
class WeighArguments:
    dataset: str = field(metadata={"help": "Built data set, a folder or a Hub id."})
    out: str = field(metadata={"help": "Folder to write; an earlier result of the same settings there is replaced."})
    model: str = field(default=CHEXBERT, metadata={"help": "CheXbert that is explained, a folder or a Hub id."})
    splits: list[str] | None = field(
        default=None, metadata={"help": "Splits to weigh, all when not given; the others stay as they are."}
    )
    threshold: float = field(
        default=token_weights.THRESHOLD, metadata={"help": "Score from which a sentence counts as a key sentence."}
    )
    tolerance: float = field(default=0.01, metadata={"help": "Largest error of the sum of a label's attributions."})
    max_nodes: int | None = field(
        default=None,
        metadata={"help": "Largest number of points on a label's path; when not given 1025, or 65 with --bf16."},
    )
    token_budget: int = field(
        default=4096, metadata={"help": "Number of tokens of a pass; BERT-base takes 1 MB for each."}
    )
    bf16: bool = field(
        default=False, metadata={"help": "Compute attributions in bfloat16, which needs a larger tolerance."}
    )


def main() -> None:
    (args,) = parse(WeighArguments)
    out = Path(args.out)

    ################
    # Dataset
    ################
    splits = read_dataset(args.dataset, ("report",))
    if missing := [split for split in args.splits or () if split not in splits]:
        raise InputError(f"{args.dataset} has no split {missing[0]!r} (has {', '.join(splits)})")
    weighed_splits = {split: splits[split] for split in args.splits or splits}
    reports = {split: rows["report"][:] for split, rows in weighed_splits.items()}

    ################
    # Model
    ################
    weigher = token_weights.TokenWeigher(
        args.model, args.threshold, args.tolerance, args.max_nodes, args.token_budget, args.bf16
    )
    settings = {"dataset": args.dataset, "splits": sorted(weighed_splits), **weigher.settings}
    token_weights.check_out(out, args.dataset, settings)

    ################
    # Weights
    ################
    texts = list(dict.fromkeys(text for split_reports in reports.values() for text in split_reports))
    shards = [texts[i : i + token_weights.SHARD] for i in range(0, len(texts), token_weights.SHARD)]
    parts = out.with_name(f".{out.name}.parts")
    weighed = {}
    for shard in follow(shards, f"{len(texts):,} reports, in parts"):
        weighed |= weigher.weigh_shard(shard, parts)

    ################
    # Writing
    ################
    figures = {split: token_weights.summarise(split_reports, weighed) for split, split_reports in reports.items()}
    with replacing(out, marker="build.json") as folder:
        folder.mkdir()
        for split, rows in splits.items():
            rows = token_weights.with_spans(rows, weighed) if split in weighed_splits else rows
            rows.to_parquet(folder / f"{split}.parquet")
        build = read_build(args.dataset) | {"key_spans": settings}
        (folder / "build.json").write_text(json.dumps(build, indent=2) + "\n")
        (folder / "token_weights.json").write_text(json.dumps(settings | {"figures": figures}, indent=2) + "\n")
    shutil.rmtree(parts)
    for split, split_figures in figures.items():
        print(f"{split}: " + ", ".join(f"{name} {value:.4g}" for name, value in split_figures.items()))


if __name__ == "__main__":
    run(main)
