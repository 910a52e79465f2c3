"""What a report says that its input cannot show: LLM-RG4's four categories, DiscBERT as their judge, and the rate of
input-agnostic hallucinations.

The tables stand here and not beside the data pipeline because the rate needs them and `rewards` never imports
`recipes`.
"""

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import BertTokenizer

from modeling.configuration_discbert import DiscBertConfig
from modeling.modeling_discbert import DiscBertModel
from rewards.chexbert import MAX_TOKENS, encode
from rewards.encoders import process_device

CATEGORIES = ("prior_comparison", "prior_procedure", "view", "communication")
COLUMNS = ("PC", "PP", "View", "Comm")  # what the paper's Table 1 calls them
SCENARIOS = ("sn", "sw", "mn", "mw")  # single/multi view, no/with longitudinal (the previous report)
# What the input of a scenario supports (LLM-RG4, "Problem formulation"; where that is silent, REQUIREMENTS A-29):
# procedures and communications never, comparisons with the previous report, views where there is more than one.
ALLOWED = {"sn": (), "sw": ("prior_comparison",), "mn": ("view",), "mw": ("prior_comparison", "view")}
FORBIDDEN = {
    scenario: tuple(category for category in CATEGORIES if category not in allowed)
    for scenario, allowed in ALLOWED.items()
}
MODES = ("scenario", "any")
DISCBERT = "outputs/discbert"  # where recipes/train_discbert.py writes by its examples
HOW_TO_GET = "train one with recipes/train_discbert.py"


class DiscBertJudge:
    """A DiscBERT as a judge: which of `CATEGORIES` each report holds.

    `model` is a folder with config, safetensors and tokenizer, or a Hub id. A text is cleaned and cut to 512 tokens as
    for CheXbert. Equal texts go through the network once, sorted by length, in batches of `batch_size`, in float32,
    without gradients. Raises ValueError where the model is missing, incomplete, or another architecture.
    """

    def __init__(self, model: str | os.PathLike, device: str | torch.device | None = None, batch_size: int = 32):
        name = str(model)
        try:
            kind = DiscBertConfig.get_config_dict(name)[0].get("model_type")
            if kind != "discbert":
                raise ValueError(f"{name} is no DiscBERT (its model_type is {kind}); {HOW_TO_GET}")
            self.tokenizer = BertTokenizer.from_pretrained(name)
            self.model, notes = DiscBertModel.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        except (OSError, RuntimeError, SafetensorError) as error:  # no such folder, no Hub, other shapes, damaged
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"no DiscBERT could be loaded from {name} ({reason}); {HOW_TO_GET}") from error
        if wrong := sorted(notes["missing_keys"]) or sorted(notes["unexpected_keys"]):
            raise ValueError(f"{name} is no complete DiscBERT ({len(wrong)} weights such as {wrong[0]}); {HOW_TO_GET}")
        if len(self.tokenizer) != self.model.config.vocab_size:
            raise ValueError(f"{name} has no tokenizer, or another model's; {HOW_TO_GET}")
        self.name, self.batch_size = f"discbert:{name}", batch_size
        self.device = torch.device(device) if device is not None else process_device()
        self.max_tokens = min(MAX_TOKENS, self.model.config.max_position_embeddings)
        self.model.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """0 (absent) or 1 (present), int8, shape (n, 4), in the order of `CATEGORIES`. Any string is judged."""
        texts = list(texts)
        ids = [tuple(each) for each in encode(self.tokenizer, texts, self.max_tokens)]
        distinct = sorted(dict.fromkeys(ids), key=len)
        found = {}
        for start in range(0, len(distinct), self.batch_size):
            chosen = distinct[start : start + self.batch_size]
            batch = self.tokenizer.pad({"input_ids": [list(each) for each in chosen]}, return_tensors="pt")
            found |= zip(chosen, self.model(**batch.to(self.device)).labels.tolist(), strict=True)
        return np.array([found[each] for each in ids], dtype=np.int8).reshape(len(texts), len(CATEGORIES))


def hall_rate(
    reports: Sequence[str],
    scenario: str | Sequence[str],
    mode: str = "scenario",
    judge: Callable[[Sequence[str]], np.ndarray] | str = DISCBERT,
) -> float:
    """Share of `reports`, 0 to 1, that hold input-agnostic information: LLM-RG4's "hall.", lower is better.

    Args:
        reports: n generated reports.
        scenario: one of `SCENARIOS`, or one for each report.
        mode: "scenario" counts the categories that the report's scenario forbids; "any" counts all four whatever the
            scenario, as the published script does (REQUIREMENTS RG-044, A-29).
        judge: maps n texts to (n, 4) of 0 and 1, or the folder or Hub id of a DiscBERT.

    Raises ValueError without reports, on another scenario or mode, and where the DiscBERT cannot be loaded.
    """
    scenarios = [scenario] * len(reports) if isinstance(scenario, str) else list(scenario)
    if not reports or len(scenarios) != len(reports):
        raise ValueError(f"hall_rate got {len(reports)} reports and {len(scenarios)} scenarios")
    if wrong := set(scenarios) - set(SCENARIOS):
        raise ValueError(f"scenario must be one of {', '.join(SCENARIOS)}, not {min(wrong)!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be 'scenario' or 'any', not {mode!r}")
    judge = DiscBertJudge(judge) if isinstance(judge, str) else judge
    counted = {each: [mode == "any" or category in FORBIDDEN[each] for category in CATEGORIES] for each in SCENARIOS}
    found = np.asarray(judge(reports)) > 0
    return float((found & [counted[each] for each in scenarios]).any(1).mean())
