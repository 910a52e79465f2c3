"""Teaching CheXbert not only a report's labels but also where they stand in it."""

import torch
from torch.nn import functional as F
from transformers import Trainer

from modeling.modeling_chexbert import STATES
from recipes.trainers.checkpoints import WholeCheckpoints
from rewards.labels import FINDINGS


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
            known = [
                (number, *each)
                for number, row in enumerate(rows)
                for each in row["evidence"]
                if each[0] < words.shape[1]  # else it was cut off
            ]
            if known:
                numbers, tokens, conditions, states = torch.tensor(known).unbind(1)
                words[numbers, tokens, conditions] = states
            batch["word_labels"] = words.masked_fill(batch["attention_mask"][..., None] == 0, -100)
        return batch


class EvidenceTrainer(WholeCheckpoints, Trainer):
    """A Trainer whose model learns `word_labels` beside `labels`, with the same heads.

    The last layer's [CLS] collects what the layer below says of the words, so the heads read that layer's words too;
    whole reports alone would need many times the text to teach what a negation reaches. The words' loss is their
    cross-entropy, summed over the 13 findings and averaged over the tokens, times `weight`. The average is over all
    tokens of a step, under any accumulation and in any processes. The model's own is over a batch's labels, so equal
    batches with all labels known are as one large one.
    """

    weight = 1.0

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
