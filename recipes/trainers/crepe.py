"""Training a CREPE: pairs of a reference and a report in, the numbers of six kinds of errors out."""

from collections.abc import Sequence

import numpy as np
from transformers import AutoTokenizer, DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase, Trainer

from modeling import CrepeModel
from modeling.tiny_crepe import build_crepe
from recipes.data.model_files import load_bert
from recipes.evaluation.injected_pairs import InjectedPair, score_counts
from recipes.trainers.base import RecipeTrainer
from rewards.crepe import Crepe
from rewards.encoders import COLUMNS, token_rows


class CrepeTrainer(RecipeTrainer, Trainer):
    """A Trainer of a CrepeModel. Evaluations log how well the sums of the six counts agree: `tau`, `error`, `mean`.

    Example:

        reports = ["There is a small left effusion. The heart is normal."]
        model, tokenizer = CrepeTrainer.load_start(None, reports, seed=0)
        rows = CrepeTrainer.rows_of(tokenizer, inject_pairs(reports, 8, random.Random(0)))
        trainer = CrepeTrainer(model, LabelerConfig("out"), train_dataset=rows, processing_class=tokenizer)
    """

    def __init__(self, model, args, data_collator=None, processing_class=None, compute_metrics=None, **kwargs):
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or DataCollatorWithPadding(processing_class),
            processing_class=processing_class,
            compute_metrics=compute_metrics or _score_sums,
            **kwargs,
        )

    @staticmethod
    def load_start(name: str | None, reports: list[str], seed: int) -> tuple[CrepeModel, PreTrainedTokenizerBase]:
        """The BERT `name`, a folder or Hub id, with new heads where it has none, and its tokenizer.

        Without a name a tiny one, of random weights drawn by `seed`, and a tokenizer trained on `reports`. Raises
        InputError as `load_bert`.
        """
        if name:
            return load_bert(name, AutoTokenizer, CrepeModel)
        return build_crepe(reports, seed=seed)

    @staticmethod
    def rows_of(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[InjectedPair]) -> list[dict]:
        """Rows to train on: the tokens of each pair, the reference first, and its six numbers of errors."""
        references, reports, errors = map(list, zip(*pairs, strict=True))
        rows = zip(token_rows(tokenizer, references, reports), errors, strict=True)
        return [dict(zip(COLUMNS, map(list, row), strict=False)) | {"labels": counts} for row, counts in rows]

    def measure(self, pairs: Sequence[InjectedPair]) -> dict[str, dict[str, float]]:
        """How well the counts of the saved model agree with those of `pairs` (`score_counts`)."""
        references, reports, errors = zip(*pairs, strict=True)
        counts = Crepe(self.args.output_dir, device=self.args.device).counts(reports, references)
        return score_counts(counts, np.array(errors))


def _score_sums(prediction: EvalPrediction) -> dict[str, float]:
    return score_counts(prediction.predictions[0], prediction.label_ids)["all"]
