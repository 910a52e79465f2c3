"""CREPE (Cho et al., EMNLP 2025) as a metric and a TRL reward: a network counts six kinds of errors in a report."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch

from modeling import CrepeModel
from rewards.encoders import fingerprint, load_checkpoint, map_rows, token_rows
from rewards.inputs import TextReward, check_untagged

CATEGORIES = (
    *("false finding", "omission", "wrong place", "wrong severity"),
    *("invented comparison", "missing comparison"),
)  # A to F of ReXVal, the order of the published heads
CREPE = "outputs/crepe"  # where recipes/convert_crepe.py and train_crepe.py write by their examples
MAX_TOKENS = 512
HOW_TO_GET = (
    "make one from the published weights with recipes/convert_crepe.py, or train one with recipes/train_crepe.py"
)


class Crepe:
    """The predicted number of errors of n generated reports against their references: `score(generated, references)`.

    `model` is a folder with config, safetensors and tokenizer, or a Hub id. A pair is the reference, then the report,
    cut to 512 tokens, the longer one first, as in the original. Equal pairs go through the network once, in batches of
    little padding and at most `token_budget` tokens, in float32, without gradients. `name` tells checkpoints apart.
    Raises ValueError where the model is missing, incomplete, or another architecture, heads of the counts included.

        crepe = Crepe("outputs/crepe")
        crepe(["Large effusion."], ["No effusion."])  # (1,), at least 0, lower is better
    """

    def __init__(self, model: str | os.PathLike, device: str | torch.device | None = None, token_budget: int = 2048):
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}")
        self.checkpoint, self.token_budget = str(model), token_budget
        self.model, self.tokenizer = load_checkpoint(self.checkpoint, "CREPE", CrepeModel, HOW_TO_GET, device=device)
        if self.model.config.num_error_categories != len(CATEGORIES):
            raise ValueError(
                f"{model} counts {self.model.config.num_error_categories} kinds of errors, not {len(CATEGORIES)}; "
                f"{HOW_TO_GET}"
            )
        self.max_tokens = min(MAX_TOKENS, self.model.config.max_position_embeddings)
        self.name = f"crepe-{fingerprint(self.model.error_regressors)}"

    def __call__(self, generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """The sum of the six counts of each pair, float64 of shape (n,), at least 0; lower is better."""
        return self.counts(generated, references).sum(1)

    @torch.inference_mode()
    def counts(self, generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """The predicted number of errors of each of `CATEGORIES`, float64 of shape (n, 6), at least 0.

        Raises ValueError where the two differ in length.
        """
        if len(generated) != len(references):
            raise ValueError(f"CREPE got {len(generated)} reports and {len(references)} references")
        rows = token_rows(self.tokenizer, list(references), list(generated), self.max_tokens)
        counts = map_rows(
            lambda batch: self.model(**batch).counts.tolist(),
            rows,
            self.tokenizer,
            self.token_budget,
            self.model.device,
        )
        return np.array(counts, dtype=np.float64).reshape(len(rows), len(CATEGORIES))


class CrepeScore:
    """1 / (1 + errors) of each pair, in (0, 1], and 0 for a report without text."""

    def __init__(self, crepe: Crepe):
        self.crepe = crepe

    def __call__(self, generated: list[str], references: list[str]) -> np.ndarray:
        worded = np.array([bool(text.strip()) for text in generated])
        return worded / (1 + self.crepe(generated, references))


def make_crepe_reward(
    model: str | os.PathLike = CREPE, untagged: str = "whole", **settings
) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: 1 / (1 + CREPE) of each completion's report, in [0, 1], higher is better.

    CREPE counts errors, so that it is turned round; off the reports that it was trained on its counts fall back to the
    mean of its training, which an empty report would earn, so that one earns 0. Arguments and errors are those of
    `Crepe` (`settings`: device, token_budget); ValueError also on an `untagged` mode that does not exist (see
    `make_mccs_reward`).

        reward = make_crepe_reward("outputs/crepe")
        reward(["<report>Clear lungs.</report>"], report=["The lungs are clear."])
    """
    check_untagged(untagged)  # before the network is loaded
    return TextReward("crepe_reward", CrepeScore(Crepe(model, **settings)), untagged)
