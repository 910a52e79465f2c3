"""Scores reports by every paper's protocol, with intervals, baselines, tests, tables and a page.

    python recipes/evaluate.py --dataset outputs/data/phantom --split test --out outputs/phantom/scores \
        --predictions sft=outputs/phantom/sft.jsonl grpo=outputs/phantom/grpo.jsonl \
        --shuffled grpo=outputs/phantom/grpo_shuffled.jsonl --compare paper --write_model_card outputs/phantom/grpo

    python recipes/evaluate.py --dataset outputs/data/rg4 --hall_judge discbert:outputs/discbert --preset llmrg4 \
        --predictions "llmrg4=outputs/llmrg4/{scenario}.jsonl" --original_references outputs/data/mimic_cxr \
        --out outputs/llmrg4/scores

    python recipes/evaluate.py --predictions medversa=rexrank.json --out outputs/scores            # with references
    python recipes/evaluate.py --predictions r2gen=res.json --references gts.json --out outputs/scores

    python recipes/evaluate.py --predictions mine=answers.xlsx --columns id=AccNr prediction=output reference=Befund \
        --out outputs/scores                   # or two text files, a report in each line

    python recipes/evaluate.py --preset rexrank --references ReXRank_IUXray_test.json --predictions mine=mine.jsonl \
        --out outputs/rexrank                  # the board's seven metrics, and a submission, submission_mine.json

    python recipes/evaluate.py --dataset outputs/data/phantom --predictions sft=outputs/phantom/sft.jsonl \
        --judge green radfact --endpoint http://127.0.0.1:8000/v1 --llm Qwen/Qwen2.5-7B-Instruct --out outputs/judged

`--out` is a folder: metrics.json (every figure, labeler, versions, protocol; no report text), tables.md, tables.tex,
errors.jsonl (what each report gets wrong, with the sentences) and report.html; with `--case STUDY_ID` case.html, that
study under all its scenarios. Two baselines stand beside every model: one fixed normal report, and the report of the
training study whose image looks most alike. recipes/scoring.md explains every figure,
recipes/evaluation/prediction_files.py the kinds of files. Research use, not for clinical use.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from recipes.cli import parse, run
from recipes.data.labels import load_labeler
from recipes.evaluation.baselines import NEAREST, TEMPLATE
from recipes.evaluation.comparisons import compare, image_reliance, too_few_resamples
from recipes.evaluation.figures import PRESETS
from recipes.evaluation.inputs import (
    case_rows,
    check_out,
    describe_run,
    gather,
    load_metrics,
    name_files,
    reference_figures,
)
from recipes.evaluation.judges import WHY_MINE
from recipes.evaluation.paper_comparison import PAPERS, compare_with_papers
from recipes.evaluation.prediction_files import Reading
from recipes.evaluation.references import read_originals
from recipes.evaluation.report_page import write_report_page
from recipes.evaluation.rexrank import write_submissions
from recipes.evaluation.score_tables import print_tables, write_latex, write_markdown
from recipes.evaluation.scores import measure_systems, summarise
from recipes.files import replacing
from recipes.hub.model_card import check_card, write_card
from rewards.discbert import MODES


@dataclass
class EvaluateArguments:
    predictions: list[str] = field(
        metadata={"help": "Systems to score, each NAME=FILE; {scenario} in FILE: a file per scenario."}
    )
    out: str = field(metadata={"help": "Folder for all figures; an earlier result there is replaced."})
    dataset: str | None = field(
        default=None, metadata={"help": "Built data set, its Hub id, or build_mimic_rg4.py's folder of four."}
    )
    split: str = field(default="test", metadata={"help": "Split of the data set to score."})
    references: str | None = field(default=None, metadata={"help": "File of references, when there is no data set."})
    columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns of these files, as id=NAME prediction=NAME reference=NAME; none: by usual names."},
    )
    encoding: str | None = field(
        default=None, metadata={"help": "Encoding of text files without a byte-order mark; default UTF-8."}
    )
    original_references: str | None = field(
        default=None, metadata={"help": "File or data set of second references, for LLM-RG4's Original NLG."}
    )
    shuffled: list[str] = field(
        default_factory=list,
        metadata={"help": "Controls, each NAME=FILE: a model's reports for the images of other studies."},
    )
    only_common: bool = field(default=False, metadata={"help": "Score only the studies that every file has."})
    preset: Literal["all", *PRESETS] = field(default="all", metadata={"help": "Protocol that the tables show."})
    labeler: str = field(
        default="lexical", metadata={"help": "Labeler of all reports: lexical, chexbert or chexbert:MODEL."}
    )
    radgraph: str | None = field(
        default=None, metadata={"help": "RadGraph model, a folder of convert_radgraph.py; LexicalGraph without it."}
    )
    bertscore: str | None = field(
        default=None,
        metadata={"help": "Encoder for BERTScore, such as distilroberta-base; words in common without it."},
    )
    semb: str | None = field(
        default=None, metadata={"help": "CheXbert for RadCliQ when the labeler is another: a folder or Hub id."}
    )
    meteor: Literal["auto", "yes", "no"] = field(
        default="auto", metadata={"help": "METEOR: with Java, or none; auto takes nltk's where there is no Java."}
    )
    hall_judge: str | None = field(
        default=None, metadata={"help": "Judge of hallucinations: rule, discbert:MODEL or rule+discbert:MODEL."}
    )
    hall_mode: Literal[MODES] = field(
        default="scenario",
        metadata={
            "help": "Hallucinations: the categories that a report's scenario forbids, or any, as the published script."
        },
    )
    crepe: str | None = field(
        default=None, metadata={"help": "CREPE, a folder of convert_crepe.py or train_crepe.py."}
    )
    ratescore_ner: str | None = field(
        default=None, metadata={"help": "RaTEScore's entity recogniser, such as Angelakeke/RaTE-NER-Deberta."}
    )
    ratescore_encoder: str | None = field(
        default=None, metadata={"help": "RaTEScore's encoder of names, such as FremyCompany/BioLORD-2023-C."}
    )
    judge: list[str] = field(
        default_factory=list,
        metadata={"help": "Judges by language model, some of green, crimson and radfact: one call a report or more."},
    )
    llm: str | None = field(
        default=None, metadata={"help": "The judges' language model: its name at --endpoint, else a folder or Hub id."}
    )
    endpoint: str | None = field(
        default=None, metadata={"help": "The judges' server, as http://127.0.0.1:8000/v1; none: in this process."}
    )
    endpoint_is_mine: bool = field(default=False, metadata={"help": WHY_MINE})
    judge_prompts: str = field(default="prompts", metadata={"help": "Folder of the judges' prompts, judge_*.txt."})
    judge_retries: int = field(default=6, metadata={"help": "Number of times that a failed request is sent again."})
    margin: float = field(default=0.2, metadata={"help": "Margin m of MCCS."})
    compare: Literal["paper", *PAPERS] | None = field(
        default=None,
        metadata={"help": "Published rows beside ours: each paper's own system, or all rows of one paper."},
    )
    train_pool: int = field(
        default=5000, metadata={"help": "Number of training studies that the nearest-image baseline searches."}
    )
    case: str | None = field(
        default=None, metadata={"help": "Study id that case.html shows, with all systems and scenarios."}
    )
    resamples: int = field(default=10000, metadata={"help": "Number of bootstrap samples."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap samples."})
    write_model_card: str | None = field(
        default=None, metadata={"help": "Model folder whose README.md is written, about the first of --predictions."}
    )


def main() -> None:
    (args,) = parse(EvaluateArguments)
    files = name_files(args.predictions, args.shuffled, reserved=(TEMPLATE, NEAREST))
    check_out(args.out)
    if args.write_model_card:
        check_card(args.write_model_card)
    metrics = load_metrics(args, load_labeler(args.labeler))

    ################
    # Data
    ################
    truth, entries, notes = gather(args, files, metrics.labeler)
    originals = None
    if args.original_references:
        reading = Reading.of(args.columns, args.encoding)
        originals = read_originals(args.original_references, args.split, truth, reading)
    about_references = reference_figures(truth, metrics)

    ################
    # Figures
    ################
    systems, missing = measure_systems(truth, entries, metrics, originals)
    figures = {
        **describe_run(args, metrics, truth, systems, notes + missing),
        "systems": summarise(systems, truth, args.resamples, args.seed),
        "references": about_references,
        "differences": compare(systems, truth),
        "image_reliance": image_reliance(systems, len(truth.ids)),
    }
    figures["notes"] += too_few_resamples(figures["differences"], args.resamples)
    figures["paper"] = compare_with_papers(figures, args.compare) if args.compare else []

    ################
    # Tables, page and model card
    ################
    with replacing(args.out, marker="metrics.json") as folder:
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n")
        (folder / "tables.md").write_text(write_markdown(figures))
        (folder / "tables.tex").write_text(write_latex(figures))
        with (folder / "errors.jsonl").open("w") as file:
            for system in systems.values():
                for row, errors in zip(system.rows, system.errors, strict=True):
                    for error in errors:
                        file.write(json.dumps({"system": system.name, "study_id": truth.ids[row], **error}) + "\n")
        write_report_page(folder / "report.html", figures, case_rows(truth, systems), metrics.labeler)
        if args.case is not None:
            cases = case_rows(truth, systems, args.case)
            write_report_page(folder / "case.html", figures, cases, metrics.labeler, args.case)
        if args.preset == "rexrank":
            write_submissions(folder, args.references, systems, truth)
    print_tables(figures)
    if args.write_model_card:
        print(f"{write_card(args.write_model_card, figures)} is the model's card")
    print(f"{Path(args.out) / 'report.html'} shows it all; metrics.json beside it has the figures")


if __name__ == "__main__":
    run(main)
