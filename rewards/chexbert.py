"""CheXbertLabeler: the 14 CheXpert conditions of reports, and their embeddings, from a CheXbert (Smit et al. 2020)."""

import os
from collections.abc import Iterable

import numpy as np
import torch
from transformers import BatchEncoding

from modeling import CheXbertModel
from rewards.encoders import fingerprint, load_checkpoint, map_rows
from rewards.inputs import TextCache
from rewards.labels import CONDITIONS

MAX_TOKENS = 512
CACHE_SIZE = 2048  # texts: 768 numbers each take 6 MB
HOW_TO_GET = (
    "make one from the published weights with recipes/convert_chexbert.py, or train one with recipes/train_chexbert.py"
)


def clean_text(text: str) -> str:
    """The text as CheXbert was trained on it: no white space at the ends, single spaces within, and no line breaks.

    A character that has no encoding (half of a surrogate pair) becomes "?", since a tokenizer refuses it.
    """
    return " ".join(text.encode(errors="replace").decode().split())


def encode(tokenizer, texts: list[str], max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    """Token ids of each cleaned text with [CLS] and [SEP]; of a long one the first `max_tokens` - 1, then [SEP]."""
    if not texts:
        return []
    ids = tokenizer([clean_text(text) for text in texts], return_attention_mask=False, verbose=False)["input_ids"]
    return [row if len(row) <= max_tokens else [*row[: max_tokens - 1], tokenizer.sep_token_id] for row in ids]


class CheXbertLabeler:
    """CheXpert states of reports by a CheXbert; the call of LexicalLabeler, and embeddings beside it.

    `model` is a folder with config, safetensors and tokenizer, or a Hub id. A text is cleaned and cut as in the
    original, and so an empty one goes through the network too, as [CLS] [SEP]. Equal texts go through it once, in
    batches of little padding and at most `token_budget` tokens, in float32, without gradients. `name` tells
    checkpoints apart: "chexbert-" and a digest of its heads; `checkpoint` is what was loaded. Raises ValueError where
    the model is missing, incomplete, or another architecture.
    """

    def __init__(self, model: str | os.PathLike, device: str | torch.device | None = None, token_budget: int = 2048):
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}")
        self.checkpoint, self.token_budget = str(model), token_budget
        self.model, self.tokenizer = load_checkpoint(
            self.checkpoint, "CheXbert", CheXbertModel, HOW_TO_GET, device=device
        )
        self.device = self.model.device
        self.max_tokens = min(MAX_TOKENS, self.model.config.max_position_embeddings)
        self.name = f"chexbert-{fingerprint(self.model.linear_heads)}"
        self.cache = TextCache(self._pass, CACHE_SIZE)

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """`CheXpertState` values, int64, shape (n, 14), in the order of `CONDITIONS`. Any string is labelled."""
        return self.labels_and_embeddings(texts)[0]

    def embed(self, texts: Iterable[str]) -> np.ndarray:
        """[CLS] states, float32, shape (n, hidden)."""
        return self.labels_and_embeddings(texts)[1]

    def labels_and_embeddings(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Labels (n, 14) and embeddings (n, hidden) of `texts` from one pass.

        The last 2,048 texts are remembered, so that rewards which share a labeler share its passes.
        """
        rows = self.cache(list(texts))
        labels, embeddings = zip(*rows, strict=True) if rows else ((), ())
        return (
            np.array(labels, dtype=np.int64).reshape(-1, len(CONDITIONS)),
            np.array(embeddings, dtype=np.float32).reshape(-1, self.model.config.hidden_size),
        )

    def truncated(self, texts: Iterable[str]) -> list[bool]:
        """Whether each text has more tokens than the network reads: what follows them is neither labelled nor seen."""
        return [len(ids) > self.max_tokens for ids in encode(self.tokenizer, list(texts), self.max_tokens + 1)]

    @torch.inference_mode()
    def _pass(self, texts: list[str]) -> list[tuple[list[int], np.ndarray]]:
        """Labels and embedding of each text, those of equal tokens from one row of a batch."""
        rows = [(tuple(row),) for row in encode(self.tokenizer, texts, self.max_tokens)]
        return map_rows(self._label_batch, rows, self.tokenizer, self.token_budget, self.device)

    def _label_batch(self, batch: BatchEncoding) -> Iterable[tuple[list[int], np.ndarray]]:
        output = self.model(**batch)
        # copies, since a row that is a view would keep its whole batch
        return zip(output.labels.tolist(), map(np.array, output.embedding.cpu().numpy()), strict=True)
