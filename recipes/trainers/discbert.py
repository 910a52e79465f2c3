"""The trainer of a DiscBERT: four heads that judge whether a report holds what its input cannot show."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import BertTokenizer, DataCollatorWithPadding, EvalPrediction, Trainer

from modeling.modeling_discbert import DiscBertModel
from recipes.data.model_files import load_bert
from recipes.files import InputError
from recipes.rg4.judgements import build_discbert, measure, print_scores, score_heads
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.labelers import LabelerArguments
from rewards.chexbert import encode


@dataclass
class DiscBertArguments(LabelerArguments):
    """LabelerArguments, and files of judgements. Raises InputError on an evaluation without its files."""

    judgements: str | None = field(
        default=None, metadata={"help": "Judged reports, CSV or provenance.parquet; none: the rules judge."}
    )
    eval_file: str | None = field(
        default=None, metadata={"help": "CSV labelled by hand, with the column report and one for each head."}
    )
    eval_only: bool = field(
        default=False, metadata={"help": "Evaluation of --model on --eval_file, without any training."}
    )
    export_annotation_sheet: int = field(
        default=0, metadata={"help": "Number of reports in a sheet written for annotators; 0: no sheet, but training."}
    )

    def __post_init__(self):
        if self.eval_only and not (self.model and self.eval_file):
            raise InputError("--eval_only needs --model, a trained DiscBERT, and --eval_file, a CSV labelled by hand")


def mean_f1(prediction: EvalPrediction) -> dict[str, float]:
    """`mean_f1`, 0 to 1: the mean F1 of the four heads; `prediction` holds states, (n, 4), beside logits."""
    return {"mean_f1": score_heads(prediction.predictions[1], prediction.label_ids)["mean"]["f1"]}


class DiscBertTrainer(RecipeTrainer, Trainer):
    """Trainer with atomic checkpoints (a killed run never leaves a partial one) on rows of `input_ids` and `labels`.

    Pads a batch to its longest row, and evaluates `mean_f1`.

    Example:

        model, tokenizer = DiscBertTrainer.load_start("bert-base-uncased", reports, seed=0)
        rows = DiscBertTrainer.rows_of(tokenizer, ["Unchanged effusion."], [[1, 0, 0, 0]])
        trainer = DiscBertTrainer(model, LabelerConfig("out"), train_dataset=rows, processing_class=tokenizer)
    """

    def __init__(self, model, args, processing_class, **kwargs):
        super().__init__(
            model=model,
            args=args,
            data_collator=DataCollatorWithPadding(processing_class),
            compute_metrics=mean_f1,
            processing_class=processing_class,
            **kwargs,
        )

    @staticmethod
    def load_start(name: str | None, reports: Sequence[str], seed: int) -> tuple[DiscBertModel, BertTokenizer]:
        """The BERT `name`, a folder or Hub id, with new heads where it has none, and its tokenizer.

        Without a name a tiny one, of random weights drawn by `seed`, and a tokenizer trained on `reports`. Raises
        InputError as `load_bert`.
        """
        if name:
            return load_bert(name, BertTokenizer, DiscBertModel)
        return build_discbert(reports, seed=seed)

    @staticmethod
    def rows_of(tokenizer: BertTokenizer, texts: Sequence[str], labels: Sequence[list[int]]) -> list[dict]:
        """Rows to train on: the tokens of each text and its verdicts, 0 or 1, in the order of `CATEGORIES`."""
        rows = zip(encode(tokenizer, texts), labels, strict=True)
        return [{"input_ids": ids, "labels": verdicts} for ids, verdicts in rows]

    def measure(self, title: str, verdicts: dict[str, list[int]]) -> dict[str, dict[str, float]]:
        """Precision, recall and F1 of each head of the saved model on reports whose `verdicts` are known; printed."""
        scores = measure(self.args.output_dir, verdicts, self.args.device)
        print_scores(title, scores)
        return scores
