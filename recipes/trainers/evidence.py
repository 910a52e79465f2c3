"""Teaching CheXbert not only a report's labels but also where they stand in it."""

import random
import re
from bisect import bisect_left
from collections import defaultdict

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer

from modeling.modeling_chexbert import STATES, CheXbertModel
from modeling.tiny import build_chexbert
from recipes.data.model_files import load_bert
from recipes.data.schema import has_text, say_bare
from recipes.files import InputError, csv_records
from recipes.trainers.base import RecipeTrainer
from rewards.chexbert import CheXbertLabeler, clean_text, encode
from rewards.clinical_efficacy import clinical_efficacy
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, FINDINGS, NO_FINDING, CheXpertState, from_csv


def read_csv(file: str, text_column: str) -> dict[str, list[int]]:
    """CheXpert states by report; of equal reports the first counts, rows without a report are left out and counted."""
    rows = csv_records(file, "--csv")
    if missing := [name for name in (text_column, *CONDITIONS) if not rows or name not in rows[0]]:
        raise InputError(f"--csv {file} has no column {missing[0]!r} (or no row); --text_column names the reports'")
    labelled: dict[str, list[int]] = {}
    bare = [number for number, row in enumerate(rows, 2) if not has_text(row[text_column])]
    for number, row in enumerate(rows, 2):
        try:
            states = from_csv([float(row[name] or "nan") for name in CONDITIONS])
        except (TypeError, ValueError) as error:
            raise InputError(f"--csv {file}, record {number}: {error}") from error
        if states[NO_FINDING] != CheXpertState.POSITIVE:
            states[NO_FINDING] = CheXpertState.BLANK  # CheXbert's head knows no other
        if has_text(row[text_column]):
            labelled.setdefault(clean_text(row[text_column]), states.tolist())
    say_bare(len(bare), f"{len(rows)} records of --csv {file}", f"record {bare[0]}" if bare else "")
    return labelled


def mix(reports: list[str], count: int, teacher: LexicalLabeler, rng: random.Random) -> list[str]:
    """`count` texts for `teacher` to label: one in three a report, the others one to six sentences put together.

    Six in ten of the sentences are drawn so that every state of every condition is as frequent as any other; the rare
    ones would not be learned else. In most sentences words were replaced, by some of another sentence or by a phrase
    that the teacher knows: as in "There is no" + "cardiac enlargement" they teach which words matter and how far a
    negation reaches, which the same few phrases in their usual places do not.
    """
    sentences = list({s: None for text in reports for s in re.split(r"(?<=[.?!])\s+", text)})
    mentioning = defaultdict(list)  # sentences by condition and state
    for sentence in sentences:
        for mention in {(condition, state) for _, _, condition, state in teacher.mentions(sentence)}:
            mentioning[mention].append(sentence)
    by_state, phrases = [mentioning[mention] for mention in sorted(mentioning)], teacher.phrases()

    def draw() -> list[str]:
        return rng.choice(rng.choice(by_state) if by_state and rng.random() < 0.6 else sentences).split()

    def altered() -> list[str]:
        words = draw()
        for _ in range(rng.choice((0, 1, 1, 2))):
            if rng.random() < 0.5:
                new = rng.choice(rng.choice(phrases)).split()
            else:
                donor = draw()
                first = rng.randrange(len(donor))
                new = donor[first : first + rng.randint(1, 5)]
            at = rng.randrange(len(words) + 1)
            words[at : at + rng.choice((0, 1, 2, 3, 99))] = new
        return words

    texts = []
    for _ in range(count):
        parts = [" ".join(altered()) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 6)))]
        texts.append(rng.choice(reports) if rng.random() < 0.35 else " ".join(parts))
    return texts


def find_evidence(tokenizer, texts: list[str], teacher: LexicalLabeler) -> list[list[tuple[int, int, int]]]:
    """(token, condition, state) of the words in which the teacher found each state of each cleaned text."""
    distinct = list(dict.fromkeys(texts))
    offsets = tokenizer(distinct, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    evidence = {}
    for text, spans in zip(distinct, offsets, strict=True):
        tokens = [(token, *span) for token, span in enumerate(spans) if span[0] < span[1]]  # without [CLS] and [SEP]
        starts = [start for _, start, _ in tokens]
        evidence[text] = [
            (token, condition, int(state))
            for first, last, condition, state in teacher.mentions(text)
            for token, _, end in tokens[bisect_left(starts, first) : bisect_left(starts, last)]
            if end <= last
        ]
    return [evidence[text] for text in texts]


class EvidenceCollator:
    """Pads rows of `input_ids`, `labels` (14 states) and, where known, `evidence` ((token, condition, state) each).

    With evidence the batch has `word_labels`, (n, length, 13), the states of single tokens: -100 at the padding, BLANK
    where a token is no evidence.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
        if "evidence" in rows[0]:
            words = torch.zeros(*batch["input_ids"].shape, len(FINDINGS), dtype=torch.long)
            places = [
                (number, *evidence)
                for number, row in enumerate(rows)
                for evidence in row["evidence"]
                if evidence[0] < words.shape[1]  # else it was cut off
            ]
            if places:
                numbers, tokens, conditions, states = torch.tensor(places).unbind(1)
                words[numbers, tokens, conditions] = states
            batch["word_labels"] = words.masked_fill(batch["attention_mask"][..., None] == 0, -100)
        return batch


class EvidenceTrainer(RecipeTrainer, Trainer):
    """A Trainer whose model learns `word_labels` beside `labels`, with the same heads.

    The last layer's [CLS] collects what the layer below says of the words, so the heads read that layer's words too;
    whole reports alone would need many times the text to teach what a negation reaches. The words' loss is their
    cross-entropy, summed over the 13 findings and averaged over the tokens, times `weight`. The average is over all
    tokens of a step, under any accumulation and in any processes. The model's own is over a batch's labels, so equal
    batches with all labels known are as one large one.

    Example:

        teacher, reports = LexicalLabeler(), ["No pleural effusion.", "Small pneumothorax."]
        model, tokenizer = EvidenceTrainer.load_start(None, reports, seed=0)
        rows = EvidenceTrainer.rows_of(tokenizer, reports, teacher(reports).tolist(), teacher)
        trainer = EvidenceTrainer(model, LabelerConfig("out"), train_dataset=rows, processing_class=tokenizer)
    """

    weight = 1.0

    def __init__(self, model, args, data_collator=None, processing_class=None, **kwargs):
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or EvidenceCollator(processing_class),
            processing_class=processing_class,
            **kwargs,
        )

    @staticmethod
    def load_start(name: str | None, reports: list[str], seed: int) -> tuple[CheXbertModel, PreTrainedTokenizerBase]:
        """The BERT `name`, a folder or Hub id, with new heads where it has none, and its tokenizer.

        Without a name a tiny one, of random weights drawn by `seed`, and a tokenizer trained on `reports`. Raises
        InputError as `load_bert`.
        """
        if name:
            return load_bert(name, AutoTokenizer, CheXbertModel)
        return build_chexbert(reports, seed=seed)

    @staticmethod
    def rows_of(
        tokenizer, texts: list[str], labels: list[list[int]], teacher: LexicalLabeler | None = None
    ) -> list[dict]:
        """Rows to train on: the tokens of each text, its 14 states and, of a `teacher` who names it, the evidence."""
        distinct = list(dict.fromkeys(texts))
        ids = dict(zip(distinct, encode(tokenizer, distinct), strict=True))
        columns = {"input_ids": [ids[text] for text in texts], "labels": labels}
        if teacher:
            columns["evidence"] = find_evidence(tokenizer, texts, teacher)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def measure(self, reports: list[str], labels: list[list[int]]) -> dict[str, dict[str, float]]:
        """Precision, recall and F1 (`clinical_efficacy`) of the saved model on `reports` with known `labels`."""
        states = CheXbertLabeler(self.args.output_dir, device=self.args.device)(reports)
        return clinical_efficacy(states, np.array(labels), "13")

    def _get_num_items_in_batch(self, batch_samples, device):
        number = super()._get_num_items_in_batch(batch_samples, device)
        if batch_samples and "word_labels" in batch_samples[0]:
            tokens = torch.stack([batch["word_labels"][..., 0].ne(-100).sum() for batch in batch_samples])
            # Trainer averages over the step's batches, accelerate over processes: so each divides by the mean batch's
            self._mean_tokens = self.accelerator.gather(tokens.to(device)).float().mean()
        return number

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss, plus the words' where the batch has `word_labels`."""
        words = inputs.pop("word_labels", None)
        inputs["output_hidden_states"] = words is not None
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if words is not None:
            heads = self.accelerator.unwrap_model(model).linear_heads[: len(FINDINGS)]
            weight, bias = torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
            logits = F.linear(outputs.hidden_states[-2], weight, bias).view(-1, STATES)  # of each token and finding
            loss = loss + self.weight * F.cross_entropy(logits, words.flatten(), reduction="sum") / self._mean_tokens
        return (loss, outputs) if return_outputs else loss
