"""Rewards for radiology report generation: plain functions with TRL's signature."""

import os

from rewards.bleu import bleu_reward, make_bleu_reward
from rewards.ce_f1 import ce_f1_reward, make_ce_f1_reward
from rewards.cider import cider_reward, make_cider_reward
from rewards.format import format_reward, make_format_reward
from rewards.guard import check_reward
from rewards.mccs import make_mccs_reward, mccs_reward
from rewards.radcliq import make_radcliq_reward, radcliq_lite_reward
from rewards.radgraph import make_radgraph_reward, radgraph_reward
from rewards.rouge import make_rouge_reward, rouge_reward
from rewards.severity import SeverityReward, severity_reward

# A repository with pickled weights alone makes transformers ask the Hub, in a thread, for a bot that converts them.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

__all__ = [
    "SeverityReward",
    "bertscore_reward",
    "bleu_reward",
    "ce_f1_reward",
    "check_reward",
    "cider_reward",
    "format_reward",
    "make_bertscore_reward",
    "make_bleu_reward",
    "make_ce_f1_reward",
    "make_cider_reward",
    "make_format_reward",
    "make_mccs_reward",
    "make_radcliq_reward",
    "make_radgraph_reward",
    "make_rouge_reward",
    "mccs_reward",
    "radcliq_lite_reward",
    "radgraph_reward",
    "rouge_reward",
    "severity_reward",
]


def __getattr__(name: str):
    """BERTScore needs torch, which the other rewards do not wait for."""
    if name in ("bertscore_reward", "make_bertscore_reward"):
        from rewards import bertscore

        return getattr(bertscore, name)
    raise AttributeError(f"module 'rewards' has no attribute {name!r}")
