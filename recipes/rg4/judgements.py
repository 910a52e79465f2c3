"""Judged reports: what DiscBERT learns from, what it is measured on, and the sheet that radiologists fill in."""

import csv
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet
from sklearn.metrics import precision_recall_fscore_support
from transformers import BertTokenizer

from modeling.configuration_discbert import DiscBertConfig
from modeling.modeling_discbert import DiscBertModel
from modeling.tiny import build_chexbert
from recipes.data.schema import has_text, say_bare
from recipes.files import InputError, csv_records, replacing
from recipes.rg4.pipeline import join_sections
from recipes.rg4.rules import RuleRewriter, split_sentences
from rewards.chexbert import clean_text
from rewards.discbert import DiscBertJudge
from rewards.scenarios import CATEGORIES, COLUMNS

_STATES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


def read_judgements(file: str) -> dict[str, list[int]]:
    """Verdicts (0 or 1 in the order of `CATEGORIES`) by cleaned report; of equal reports the first counts.

    `file` is a CSV with the columns `report` and `CATEGORIES`, or a provenance.parquet of recipes/build_mimic_rg4.py,
    of which the scenario sn is read, since only there every category is judged: each report before and after each of
    its rewrites. Raises InputError naming the file and the row.
    """
    if not Path(file).is_file():
        raise InputError(f"there is no file of judgements {file}")
    verdicts: dict[str, list[int]] = {}
    if Path(file).suffix == ".parquet":
        try:
            notes = parquet.read_table(file, columns=["scenario", "history"]).to_pylist()
        except (pyarrow.ArrowInvalid, KeyError) as error:
            raise InputError(f"{file} is no provenance.parquet of recipes/build_mimic_rg4.py ({error})") from error
        for note in notes:
            for texts, judged in json.loads(note["history"]) if note["scenario"] == "sn" else []:
                verdicts.setdefault(
                    clean_text(join_sections(texts)), [int(category in judged) for category in CATEGORIES]
                )
    else:
        rows = csv_records(file, "the judgements")
        if missing := [name for name in ("report", *CATEGORIES) if not rows or name not in rows[0]]:
            raise InputError(
                f"{file} has no column {missing[0]!r} (or no row); it needs report, {', '.join(CATEGORIES)}"
            )
        for number, row in enumerate(rows, 2):
            states = [_STATES.get((row[name] or "").strip()) for name in CATEGORIES]
            if None in states:
                category = CATEGORIES[states.index(None)]
                raise InputError(f"{file}, record {number}: {category} must be 0 or 1, not {row[category]!r}")
            if has_text(row["report"]):
                verdicts.setdefault(clean_text(row["report"]), states)
        bare = [number for number, row in enumerate(rows, 2) if not has_text(row["report"])]
        say_bare(len(bare), f"{len(rows)} records of {file}", f"record {bare[0]}" if bare else "")
    verdicts.pop("", None)
    if not verdicts:
        raise InputError(f"{file} holds no judged report")
    return verdicts


def mix(reports: Sequence[str], count: int, judge: Callable, rng: random.Random) -> list[str]:
    """`count` texts for `judge` to judge: reports, and one to five sentences put together.

    One in four is a report. Of the sentences every second is drawn so that each category is as frequent as any other,
    as it stands or rewritten: the two differ in little but the verdict. In every second sentence some words give way
    to words of another, which teaches which words matter.
    """
    sentences = list(dict.fromkeys(sentence for report in reports for sentence in split_sentences(report)))
    rewriter = RuleRewriter()
    verdicts = judge(sentences)
    by_category = [
        [s for s, verdict in zip(sentences, verdicts[:, i], strict=True) if verdict] for i in range(len(CATEGORIES))
    ]
    by_category = [group for group in by_category if group]

    def draw() -> str:
        if not by_category or rng.random() < 0.5:
            return rng.choice(sentences)
        sentence = rng.choice(rng.choice(by_category))
        return sentence if rng.random() < 0.6 else rewriter.rewrite(sentence, CATEGORIES)

    def alter() -> str:
        words = draw().split()
        if rng.random() < 0.5:
            donor = draw().split()
            first, at = rng.randrange(len(donor) + 1), rng.randrange(len(words) + 1)
            words[at : at + rng.choice((0, 1, 2, 3))] = donor[first : first + rng.randint(1, 5)]
        return " ".join(words)

    texts = []
    while len(texts) < count:
        parts = [alter() for _ in range(rng.choice((1, 1, 2, 3, 5)))]
        text = rng.choice(reports) if rng.random() < 0.25 else " ".join(filter(None, parts))
        texts += [text] if text else []  # what was rewritten may have left nothing
    return texts


def build_discbert(texts: Iterable[str], seed: int = 0) -> tuple[DiscBertModel, BertTokenizer]:
    """A random-weight, tiny DiscBERT and its tokenizer, with the encoder of `modeling.tiny.build_chexbert`."""
    chexbert, tokenizer = build_chexbert(texts, seed=seed)
    kind = {"model_type": DiscBertConfig.model_type}
    model = DiscBertModel(DiscBertConfig.from_dict(chexbert.config.to_diff_dict() | kind))
    model.bert = chexbert.bert
    return model, tokenizer


def score_heads(predicted: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 (0 to 1; 0 where undefined) and `support` of each category, and their `mean`.

    `predicted` and `truth` are (n, 4) of 0 and 1. The mean is that of the four heads, of each measure its own.
    """
    measured = [
        precision_recall_fscore_support(truth[:, i], predicted[:, i], average="binary", zero_division=0)[:3]
        for i in range(len(CATEGORIES))
    ]
    names = ("precision", "recall", "f1")
    scores = {
        column: {**dict(zip(names, map(float, row), strict=True)), "support": int(truth[:, i].sum())}
        for i, (column, row) in enumerate(zip(COLUMNS, measured, strict=True))
    }
    scores["mean"] = {name: float(np.mean([row[i] for row in measured])) for i, name in enumerate(names)}
    return scores


def measure(model: str, verdicts: dict[str, list[int]], device=None) -> dict[str, dict[str, float]]:
    """`score_heads` of the DiscBERT `model` on reports whose `verdicts` are known."""
    try:
        predicted = DiscBertJudge(model, device)(verdicts)
    except ValueError as error:
        raise InputError(str(error)) from error
    return score_heads(predicted, np.array(list(verdicts.values())))


def print_scores(title: str, scores: dict[str, dict[str, float]]) -> None:
    """One row per head."""
    print(f"{title}\n{'':6}{'precision':>11}{'recall':>9}{'f1':>9}{'positives':>11}")
    for name, row in scores.items():
        print(f"{name:6}{row['precision']:11.3f}{row['recall']:9.3f}{row['f1']:9.3f}{row.get('support', ''):>11}")


def write_sheet(reports: Sequence[str], count: int, judge: Callable, file: str | Path, rng: random.Random) -> int:
    """Writes `count` reports for radiologists to label, a row each, with empty columns for `CATEGORIES`.

    Stratified: a fifth each holds a category by `judge`, and a fifth none, as far as there are so many; the rest is
    drawn at random. The order is random and the judge's verdict is left out, so that the sheet is blind. Returns how
    many rows were written.
    """
    reports = list(dict.fromkeys(reports))
    verdicts = np.asarray(judge(reports)) > 0
    strata = [np.flatnonzero(verdicts[:, i]).tolist() for i in range(len(CATEGORIES))]
    strata.append(np.flatnonzero(~verdicts.any(1)).tolist())
    selected: dict[int, None] = {}
    for stratum in sorted(strata, key=len):  # the rarest first, so that it is not used up by others
        remaining = [row for row in stratum if row not in selected]
        selected |= dict.fromkeys(rng.sample(remaining, min(len(remaining), count // len(strata))))
    remaining = [row for row in range(len(reports)) if row not in selected]
    selected |= dict.fromkeys(rng.sample(remaining, min(len(remaining), count - len(selected))))
    rows = rng.sample(list(selected), len(selected))
    with replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["report", *CATEGORIES, "comment"])
        writer.writerows([reports[row], *[""] * len(CATEGORIES), ""] for row in rows)
    return len(rows)
