"""BERTScore (Zhang et al. 2020) over any encoder, as a part of RadCliQ and as a TRL reward. Needs torch."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import log
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from rewards.encoders import for_inference, has_vocabulary, pass_cost, plan_batches
from rewards.inputs import TextCache, TextReward, check_untagged

# F1 of unrelated sentence pairs by (encoder, layer), as bert-score 0.3.13 publishes them for its default layers
BASELINES = {
    ("distilroberta-base", 5): 0.8473319,  # RadCliQ's
    ("roberta-large", 17): 0.83122575,
    ("bert-base-uncased", 9): 0.35219112,
    ("distilbert-base-uncased", 5): 0.66620487,
}
PAIRS = 64  # matched at a time: the token vectors of these are all that is held
PREFIX_SPACE = ("roberta", "gpt2", "bart")  # the first word is encoded as if a space stood before it


class BERTScore:
    """`score(generated, references)` gives the BERTScore F1 of each of n pairs, float64 of shape (n,).

    `encoder`: a Hub name or a folder with weights and tokenizer; vectors are those after its first `layer` layers.
    `baseline`: F1 of unrelated texts, by which the score is rescaled to (F1 - baseline) / (1 - baseline): an exact
    match is 1, unrelated text about 0, and less is possible. "published" looks it up in `BASELINES` by the end of
    the name; None gives the raw F1. The defaults are RadCliQ's (A-32: no IDF). `idf_texts`: texts of a
    training split whose inverse document frequencies weigh the tokens; frozen, so no pair depends on its batch mates.
    `device`: default is this process's GPU, else the CPU. Token vectors of the last `cache_size` references are kept:
    90 tokens of 768 numbers take 0.28 MB, so 64 take 18 MB, and never more than 101 MB (512 tokens each).

    Special tokens can be matched but weigh nothing, and longer texts are truncated to the encoder's maximum, as in
    bert-score. A generated text without a token that counts (an empty one) scores 0 (A-43), where bert-score would
    rescale 0 to -5.6. Raises OSError where the encoder or its tokenizer is not there, ValueError where it is no
    encoder, lacks weights or the layer, or has no published baseline. `lite` is False with RadCliQ's settings only.
    """

    def __init__(
        self,
        encoder: str | PathLike = "distilroberta-base",
        layer: int = 5,
        baseline: float | str | None = "published",
        idf_texts: Iterable[str] | None = None,
        token_budget: int = 2048,
        device: str | torch.device | None = None,
        cache_size: int = 64,
    ):
        name = str(encoder)
        default = (Path(name).name, layer, baseline, idf_texts) == ("distilroberta-base", 5, "published", None)
        self.name, self.lite = "bertscore" if default else f"bertscore_{Path(name).name}", not default
        if baseline == "published":
            baseline = BASELINES.get((Path(name).name, layer))
            if baseline is None:
                layers = ", ".join(f"layer {number} of {encoder}" for encoder, number in BASELINES)
                raise ValueError(
                    f"no baseline of BERTScore is published for layer {layer} of {name}, but for {layers}: name that "
                    "encoder (in Python: or give a baseline, None for raw scores)"
                )
        self.baseline, self.token_budget, self.device = float(baseline or 0), token_budget, device
        if self.baseline >= 1:
            raise ValueError(f"baseline must be below 1, the score of an exact match, not {baseline}")
        self.tokenizer, self.encoder = _load(name, layer)
        self.length = _maximum_length(name, self.tokenizer, self.encoder)
        self.weights = torch.ones(len(self.tokenizer))
        if idf_texts is not None:
            self.weights = self._idf(list(idf_texts))
        special = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id} - {None}
        self.weights[list(special)] = 0.0
        self.references = TextCache(self._embed, size=cache_size)

    def __call__(self, generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
        scores = []
        for start in range(0, len(references), PAIRS):
            texts, truth = generated[start : start + PAIRS], references[start : start + PAIRS]
            distinct = list(dict.fromkeys(texts))
            vectors = dict(zip(distinct, self._embed(distinct), strict=True))
            pairs = zip(texts, self.references(truth), strict=True)
            scores.append(torch.stack([self._match(*vectors[text], *reference) for text, reference in pairs]).cpu())
        return torch.cat(scores).double().numpy() if scores else np.zeros(0)

    def _match(
        self, a: torch.Tensor, a_weights: torch.Tensor, b: torch.Tensor, b_weights: torch.Tensor
    ) -> torch.Tensor:
        similarity = a @ b.T
        precision, recall = a_weights @ similarity.amax(1), b_weights @ similarity.amax(0)
        f1 = torch.where(torch.minimum(precision, recall) > 0, 2 * precision * recall / (precision + recall), 0.0)
        return torch.where(a_weights.any() & b_weights.any(), (f1 - self.baseline) / (1 - self.baseline), 0.0)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # The tokenizers refuse lone surrogates, which a decoded byte-level completion may hold.
        clean = [text.encode(errors="replace").decode().strip() for text in texts]
        return self.tokenizer(clean, truncation=True, max_length=self.length)["input_ids"]

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each text the token vectors of length 1, (tokens, width), and their weights, which add up to 1 or 0."""
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")  # at a call: accelerate has set it
        encoder, table = self.encoder.to(device), self.weights.to(device)
        rows = self._encode(texts)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        sizes = [(1, len(rows[i])) for i in order]
        embedded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for span in plan_batches(sizes, self.token_budget, pass_cost(torch.device(device))):
            batch = order[span.start : span.stop]
            ids = torch.full((len(batch), len(rows[batch[0]])), self.tokenizer.pad_token_id or 0)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(rows[i])], mask[row, : len(rows[i])] = torch.tensor(rows[i]), 1
            ids = ids.to(device)
            hidden = encoder(ids, attention_mask=mask.to(device)).last_hidden_state
            for row, i in enumerate(batch):
                weights = table[ids[row, : len(rows[i])]]
                vectors = hidden[row, : len(rows[i])]
                embedded[i] = vectors / vectors.norm(dim=-1, keepdim=True), weights / weights.sum().clamp(min=1e-30)
        return [embedded[i] for i in range(len(rows))]

    def _idf(self, texts: list[str]) -> torch.Tensor:
        """log((n + 1) / (documents with the token + 1)) of every token, from n texts."""
        if not texts:
            raise ValueError("idf_texts holds no text: give the references of the training split")
        counts = Counter(token for ids in self._encode(texts) for token in set(ids))
        return torch.tensor([log((len(texts) + 1) / (counts[token] + 1)) for token in range(len(self.tokenizer))])


def _load(name: str, layer: int) -> tuple:
    """Tokenizer and encoder (float32, its first `layer` layers)."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # else a table of the weights above `layer`; those that lack are checked below
    try:
        config = AutoConfig.from_pretrained(name)
        if config.is_encoder_decoder or not 1 <= layer <= config.num_hidden_layers:
            kind = "an encoder-decoder" if config.is_encoder_decoder else f"{config.num_hidden_layers} layers deep"
            raise ValueError(f"BERTScore needs layer {layer} of an encoder; {name} is {kind}")
        space = {"add_prefix_space": True} if config.model_type in PREFIX_SPACE else {}
        config.num_hidden_layers = layer
        tokenizer = AutoTokenizer.from_pretrained(name, **space)
        encoder, report = AutoModel.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({error}): download or copy them again") from error
    except OSError as error:
        raise OSError(
            f"BERTScore's encoder {name} is not there: name a folder with its config, weights and tokenizer, "
            f"or download it while online ({str(error).splitlines()[0]})"
        ) from error
    finally:
        logging.set_verbosity(level)
    if lacking := [key for key in report["missing_keys"] if not key.startswith("pooler.")]:
        raise ValueError(f"{name} is no checkpoint of a {config.model_type} encoder: it lacks {sorted(lacking)[0]}")
    if not has_vocabulary(tokenizer) or len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{name} has no tokenizer of its own: {len(tokenizer)} tokens for an encoder of {config.vocab_size}"
        )
    return tokenizer, for_inference(encoder)


def _maximum_length(name: str, tokenizer, encoder) -> int:
    """Tokens that the encoder takes. RoBERTa's table of positions starts behind the padding index."""
    modules = {key.split(".")[-1]: module for key, module in encoder.named_modules()}
    length = tokenizer.model_max_length
    if isinstance(positions := modules.get("position_embeddings"), torch.nn.Embedding):
        first = 0 if positions.padding_idx is None else positions.padding_idx + 1
        length = min(length, len(positions.weight) - first)
    if length > 10**6:  # transformers' value for "not said"
        raise ValueError(
            f"{name} does not say how long a text may be: set model_max_length in its tokenizer_config.json"
        )
    return length


def make_bertscore_reward(
    encoder: str | PathLike = "distilroberta-base",
    layer: int = 5,
    baseline: float | str | None = "published",
    idf_texts: Iterable[str] | None = None,
    untagged: str = "whole",
    **settings,
) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: `BERTScore` of each completion's report, at most 1, higher is better.

    Arguments and errors are those of `BERTScore` (`settings`: token_budget, device, cache_size); ValueError also on an
    `untagged` mode that does not exist (see `make_mccs_reward`). An empty report scores 0, and text less like the
    reference than unrelated text scores below it: give a format or length reward beside this one.

    Example:
        >>> # it needs these weights
        >>> reward = make_bertscore_reward("outputs/distilroberta-base")  # doctest: +SKIP
        >>> reward(["Clear lungs."], report=["The lungs are clear."])  # doctest: +SKIP
    """
    check_untagged(untagged)  # before the encoder is loaded
    return TextReward("bertscore_reward", BERTScore(encoder, layer, baseline, idf_texts, **settings), untagged)


_default_reward = lru_cache(maxsize=1)(make_bertscore_reward)


def bertscore_reward(completions: list, *, report: list[str | None] | None = None, **kwargs) -> list[float | None]:
    """The reward of `make_bertscore_reward()`, whose encoder, distilroberta-base, is loaded at the first call.

    Example:
        >>> # it needs the weights
        >>> bertscore_reward(["Clear lungs."], report=["The lungs are clear."])  # doctest: +SKIP
    """
    return _default_reward()(completions, report=report, **kwargs)
