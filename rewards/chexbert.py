"""CheXbertLabeler: the 14 CheXpert conditions of reports, and their embeddings, from a CheXbert (Smit et al. 2020)."""

import hashlib
import logging
import os
from collections.abc import Iterable

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from modeling import CheXbertConfig, CheXbertModel
from rewards.inputs import Remembered
from rewards.labels import CONDITIONS

logger = logging.getLogger(__name__)
MAX_TOKENS = 512
REMEMBERED = 2048  # texts: 768 numbers each take 6 MB
USUAL_TOKENS = 64  # of a text: batches of longer ones hold fewer, so that none needs much memory
LEAST_FILLED = 0.85  # of a row: a shorter text waits for the next batch, since padding costs what text does
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
    return [each if len(each) <= max_tokens else [*each[: max_tokens - 1], tokenizer.sep_token_id] for each in ids]


def process_device() -> torch.device:
    """The accelerator of this process (that of `LOCAL_RANK` where a launcher set it), or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", torch.accelerator.current_device_index()))
    return torch.device(accelerator.type, rank % torch.accelerator.device_count())


def _load(name: str) -> tuple[CheXbertModel, object]:
    try:
        found, _ = CheXbertConfig.get_config_dict(name)
        if found.get("model_type") != "chexbert":
            kind = found.get("model_type", "missing")
            raise ValueError(f"{name} is no CheXbert (the model_type of its config.json is {kind}); {HOW_TO_GET}")
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, notes = CheXbertModel.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError) as error:  # no such folder, no Hub, other shapes, a damaged file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no CheXbert could be loaded from {name} ({reason}); {HOW_TO_GET}") from error
    if wrong := sorted(notes["missing_keys"]) or sorted(notes["unexpected_keys"]):
        raise ValueError(f"{name} is no complete CheXbert ({len(wrong)} weights such as {wrong[0]}); {HOW_TO_GET}")
    if len(tokenizer) != model.config.vocab_size:  # without its files transformers makes an empty tokenizer
        sizes = f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}"
        raise ValueError(f"{name} has no tokenizer, or another model's ({sizes}); {HOW_TO_GET}")
    return model, tokenizer


class CheXbertLabeler:
    """CheXpert states of reports by a CheXbert; the call of LexicalLabeler, and embeddings beside it.

    `model` is a folder with config, safetensors and tokenizer, or a Hub id. A text is cleaned and cut as in the
    original, and so an empty one goes through the network too, as [CLS] [SEP]. Equal texts go through it once, in
    batches of `batch_size` at most of about the same length, in float32, without gradients. `name` tells checkpoints
    apart: "chexbert-" and a digest of its heads; `checkpoint` is what was loaded. Raises ValueError where the model
    is missing, incomplete, or another architecture.
    """

    def __init__(self, model: str | os.PathLike, device: str | torch.device | None = None, batch_size: int = 16):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.checkpoint, self.batch_size = str(model), batch_size
        self.model, self.tokenizer = _load(self.checkpoint)
        self.max_tokens = min(MAX_TOKENS, self.model.config.max_position_embeddings)
        heads = b"".join(each.detach().numpy().tobytes() for each in self.model.linear_heads.parameters())
        self.name = f"chexbert-{hashlib.blake2b(heads, digest_size=4).hexdigest()}"
        self.device = torch.device(device) if device is not None else process_device()
        self.model.eval().requires_grad_(False).to(self.device)
        self.remembered = Remembered(self._pass, REMEMBERED)

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
        rows = self.remembered(list(texts))
        labels, embeddings = zip(*rows, strict=True) if rows else ((), ())
        return (
            np.array(labels, dtype=np.int64).reshape(-1, len(CONDITIONS)),
            np.array(embeddings, dtype=np.float32).reshape(-1, self.model.config.hidden_size),
        )

    @torch.inference_mode()
    def _pass(self, texts: list[str]) -> list[tuple[list[int], np.ndarray]]:
        """Labels and embedding of each text, those of equal tokens from one row of a batch."""
        ids = [tuple(each) for each in encode(self.tokenizer, texts, self.max_tokens)]
        left = sorted(dict.fromkeys(ids), key=len)
        found = {}
        while left:
            longest = len(left[-1])
            count = max(1, min(self.batch_size, self.batch_size * USUAL_TOKENS // longest))
            chosen = [each for each in left[-count:] if len(each) >= LEAST_FILLED * longest]
            del left[-len(chosen) :]
            batch = self.tokenizer.pad({"input_ids": [list(each) for each in chosen]}, return_tensors="pt")
            output = self.model(**batch.to(self.device))
            # copies, since a row that is a view would keep its whole batch
            found |= zip(
                chosen,
                zip(output.labels.tolist(), map(np.array, output.embedding.cpu().numpy()), strict=True),
                strict=True,
            )
        return [found[each] for each in ids]
