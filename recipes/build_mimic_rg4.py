"""Builds the four scenarios of MIMIC-RG4 (LLM-RG4, Fig. 2): judge, rewrite, judge again.

Without any model, by rules (fast, and build.json says so):

    python recipes/build_mimic_rg4.py --dataset outputs/data/mimic_cxr --out outputs/data/rg4

As in the paper: DiscBERT judges, an LLM behind a local OpenAI-compatible server rewrites, CheXbert guards the labels:

    vllm serve meta-llama/Meta-Llama-3-70B-Instruct --tensor-parallel-size 4 --port 8000
    python recipes/build_mimic_rg4.py --config recipes/configs/rg4/mimic.yaml --dry_run
    python recipes/build_mimic_rg4.py --config recipes/configs/rg4/mimic.yaml

The published MIMIC-RG4 (already rewritten) into the same schema:

    python recipes/build_mimic_rg4.py --published sn:sn.json mw:mw.json --image_root mimic-cxr-jpg --image_size 518 \
        --image_size_of shortest --cleaning rg4 --target findings

`--out` then holds a data set for each scenario (sn, sw, mn, mw), provenance.parquet (rounds, satisfied and the history
of each report), discarded.csv (each report left out, and why) and build.json. Answers of an LLM are kept beside it in
OUT.answers.sqlite: after an interruption the same command asks only for what is missing.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from datasets import Dataset

from recipes.cli import parse, run
from recipes.data.images import SIDES
from recipes.data.labels import load_labeler
from recipes.data.mimic_sections import CLEANINGS
from recipes.data.schema import read_build, write_dataset
from recipes.data.sections import TARGETS
from recipes.data.settings import COUNT, Range
from recipes.files import InputError, replacing
from recipes.rg4 import pipeline as rg4
from rewards.scenarios import SCENARIOS


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    ranges: ClassVar[dict[str, Range]] = dict.fromkeys(("max_rounds", "concurrency", "max_tokens"), COUNT)

    dataset: str | None = field(default=None, metadata={"help": "Built data set to rewrite, a folder or a Hub id."})
    published: list[str] = field(default_factory=list, metadata={"help": "Published files, each as SCENARIO:FILE."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the published files' images; text only without it."}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Pixels of the side of a published image that --image_size_of names; 512 when not given."},
    )
    image_size_of: Literal[SIDES] | None = field(
        default=None, metadata={"help": "Side of a published image that is shrunk; the longest when not given."}
    )
    target: Literal[(*TARGETS,)] | None = field(
        default=None, metadata={"help": "Sections of a published report; both when not given."}
    )
    cleaning: Literal["none", *CLEANINGS] = field(
        default="none", metadata={"help": "Cleaning of all texts, after the rewriting; rg4: the authors'."}
    )
    out: str = field(
        default="outputs/data/rg4", metadata={"help": "Folder to write; an earlier build there is replaced."}
    )
    scenarios: list[str] = field(
        default_factory=lambda: list(SCENARIOS), metadata={"help": "Scenarios to build, of sn, sw, mn and mw."}
    )
    judge: str = field(
        default="rule", metadata={"help": "Judge of the reports: rule, discbert:MODEL, rule+discbert:MODEL or llm."}
    )
    rewriter: Literal["rule", "llm"] = field(default="rule", metadata={"help": "Rewriter of the reports."})
    llm: str | None = field(
        default=None, metadata={"help": "LLM: its name at --endpoint, or else a folder or Hub id."}
    )
    endpoint: str | None = field(
        default=None,
        metadata={"help": "URL of a server, as http://127.0.0.1:8000/v1; without it the LLM runs in this process."},
    )
    endpoint_is_mine: bool = field(default=False, metadata={"help": rg4.WHY_MINE})
    concurrency: int = field(default=16, metadata={"help": "Number of requests under way at once."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds to wait for an answer before asking again."})
    retries: int = field(default=6, metadata={"help": "Number of times that a failed request is sent again."})
    backoff: float = field(default=1.0, metadata={"help": "Seconds before the second retry; doubled each time."})
    max_tokens: int = field(default=1024, metadata={"help": "Largest number of tokens of an answer."})
    max_rounds: int = field(default=rg4.MAX_ROUNDS, metadata={"help": "Largest number of rewrites of a report."})
    on_max_rounds: Literal["keep", "discard"] = field(
        default="keep", metadata={"help": "Fate of a report that its judge is never satisfied with."}
    )
    labeler: str = field(
        default="lexical", metadata={"help": "Labeler of the guard and of the rows: lexical or chexbert:MODEL."}
    )
    guard: Literal[rg4.GUARDS] = field(
        default="impression", metadata={"help": "Part of a report whose labels a rewrite must not change."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Number of rows to read, the first ones of each split; all when not given."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Estimate requests and tokens, and write nothing."})


def check_arguments(args: BuildArguments) -> None:
    """Raises InputError on arguments that do not go together, before anything is read."""
    rg4.check_published(args)
    if unknown := set(args.scenarios) - set(SCENARIOS):
        raise InputError(f"--scenarios must be some of {', '.join(SCENARIOS)}, not {min(unknown)!r}")
    if Path(args.out).exists() and not read_build(args.out):
        raise InputError(f"--out {args.out} exists and is no earlier build: name a folder that may be replaced")


def main() -> None:
    (args,) = parse(BuildArguments)
    check_arguments(args)
    out = Path(args.out)
    labeler = load_labeler(args.labeler)
    build = asdict(args) | {"labeler": labeler.name}

    ################
    # Dataset
    ################
    writers, bare = read_published(args, labeler)
    splits, judge, rewriter, answers = {}, None, None, None
    if args.published:
        build |= {"judge": "as published", "rewriter": "as published"}
    else:
        splits = rg4.read_rows(args.dataset, args.limit)
        rg4.check_private(splits, args.endpoint, args.endpoint_is_mine)
        judge, rewriter, answers = rg4.load_pair(args, f"{out}.answers.sqlite")
        build |= {"judge": judge.name, "rewriter": rewriter.name}
        if args.dry_run:
            return rg4.print_estimate(splits, args.scenarios, judge, rewriter, args.max_rounds)

    with replacing(out, marker="build.json") as folder:
        folder.mkdir()
        with rg4.Notes(folder, build) as notes:
            for split, every in splits.items():
                studies = rg4.rows_for(every, None)["study_id"]
                notes.leave_out(studies, "none", split, "it has no scenario: no frontal view")
            for scenario, by_split in bare.items():
                for split, studies in by_split.items():
                    notes.leave_out(studies, scenario, split, f"it has no {args.target}")

            ################
            # Loop
            ################
            sizes = {}
            for scenario in [*writers] or args.scenarios:
                by_split = writers.pop(scenario, {})
                for split, every in splits.items():
                    rows = rg4.rows_for(every, scenario)
                    cases = rewrite(rows, scenario, judge, rewriter, labeler, args)
                    notes.add(rows, cases, split)
                    if not all(case.failed for case in cases):
                        by_split[split] = partial(rg4.write_rows, rows, cases, labeler, args.cleaning)
                if by_split:
                    sizes[scenario] = write_dataset(by_split, folder / scenario, build)
        if answers:
            print(f"{answers.asked} requests, {answers.recalled} answers kept from before, in {answers.file}")
        if not sizes:
            source, scenarios = args.dataset or args.published[0], " ".join(args.scenarios)
            raise InputError(f"no report of {source} is left in scenarios {scenarios}{notes.why()}")
        figures = {"reports": notes.counts}
        (folder / "build.json").write_text(json.dumps({**build, "rows": sizes, **figures}, indent=2) + "\n")
    print(f"{out}: {sizes}; {json.dumps(figures)}")


def read_published(args: BuildArguments, labeler: Callable) -> tuple[dict[str, dict], dict[str, dict]]:
    """Of each file of --published, by its scenario: what writes the rows of its splits, and its studies without the
    target."""
    writers: dict[str, dict] = {}
    bare: dict[str, dict] = {}
    for scenario_file in args.published:
        scenario, rows, studies = rg4.read_published(scenario_file, args, labeler)
        if scenario in writers:
            raise InputError(f"--published names two files of the scenario {scenario}")
        writers[scenario], bare[scenario] = rows, studies
    return writers, bare


def rewrite(
    rows: Dataset, scenario: str, judge: Callable, rewriter: Callable, labeler: Callable, args: BuildArguments
) -> list[rg4.Case]:
    """The reports of `rows` after judge and rewriter, the guard, the cleaning and, as asked, the last round."""
    cases = rg4.run_loop(rg4.read_sections(rows), scenario, judge, rewriter, args.max_rounds)
    rg4.guard(cases, labeler, args.guard)
    rg4.discard_bare(rows, cases, args.cleaning)
    if args.on_max_rounds == "discard":
        rg4.discard_unsatisfied(cases)
    return cases


if __name__ == "__main__":
    run(main)
