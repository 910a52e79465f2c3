"""What a report says that its input cannot show: DiscBERT as the judge of LLM-RG4's four categories, and the rate of
input-agnostic hallucinations. The tables of both are those of `rewards.scenarios`.
"""

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from modeling import DiscBertModel
from rewards.chexbert import MAX_TOKENS, encode
from rewards.encoders import load_checkpoint, map_rows
from rewards.scenarios import CATEGORIES, FORBIDDEN, SCENARIOS

MODES = ("scenario", "any")
DISCBERT = "outputs/discbert"  # where recipes/train_discbert.py writes by its examples
HOW_TO_GET = "train one with recipes/train_discbert.py"


class DiscBertJudge:
    """A DiscBERT as a judge: which of `CATEGORIES` each report holds.

    `model` is a folder with config, safetensors and tokenizer, or a Hub id. A text is cleaned and cut to 512 tokens as
    for CheXbert. Equal texts go through the network once, in batches of little padding and at most `token_budget`
    tokens, in float32, without gradients. Raises ValueError where the model is missing, incomplete, or another
    architecture.
    """

    def __init__(self, model: str | os.PathLike, device: str | torch.device | None = None, token_budget: int = 2048):
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}")
        name = str(model)
        self.model, self.tokenizer = load_checkpoint(name, "DiscBERT", DiscBertModel, HOW_TO_GET, device=device)
        self.name, self.token_budget, self.device = f"discbert:{name}", token_budget, self.model.device
        self.max_tokens = min(MAX_TOKENS, self.model.config.max_position_embeddings)

    @torch.inference_mode()
    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """0 (absent) or 1 (present), int8, shape (n, 4), in the order of `CATEGORIES`. Any string is judged."""
        texts = list(texts)
        rows = [(tuple(row),) for row in encode(self.tokenizer, texts, self.max_tokens)]
        labels = map_rows(
            lambda batch: self.model(**batch).labels.tolist(), rows, self.tokenizer, self.token_budget, self.device
        )
        return np.array(labels, dtype=np.int8).reshape(len(texts), len(CATEGORIES))


def hall_flags(
    reports: Sequence[str],
    scenarios: Sequence[str | None],
    mode: str = "scenario",
    judge: Callable[[Sequence[str]], np.ndarray] | str = DISCBERT,
) -> np.ndarray:
    """Whether each of n reports holds what its input cannot show: boolean, shape (n,).

    Their share is LLM-RG4's "hall.", lower is better.

    Args:
        reports: n generated reports; each is judged once.
        scenarios: one of `SCENARIOS` for each report; None, not known, where `mode` is "any".
        mode: "scenario" counts the categories that the report's scenario forbids; "any" counts all four whatever the
            scenario, as the published script does (A-29).
        judge: maps n texts to (n, 4) of 0 and 1, or the folder or Hub id of a DiscBERT.

    Raises ValueError without reports, on another scenario or mode, and where the DiscBERT cannot be loaded.
    """
    if not reports or len(scenarios) != len(reports):
        raise ValueError(f"hall_flags got {len(reports)} reports and {len(scenarios)} scenarios")
    if mode not in MODES:
        raise ValueError(f"mode must be 'scenario' or 'any', not {mode!r}")
    if unknown := set(scenarios) - {*SCENARIOS, *([None] if mode == "any" else [])}:
        raise ValueError(f"scenario must be one of {', '.join(SCENARIOS)}, not {min(unknown, key=str)!r}")
    judge = DiscBertJudge(judge) if isinstance(judge, str) else judge
    counted = [[mode == "any" or category in FORBIDDEN[scenario] for category in CATEGORIES] for scenario in scenarios]
    return ((np.asarray(judge(reports)) > 0) & counted).any(1)
