"""Rewards for radiology report generation: plain functions with TRL's signature."""

from rewards.ce_f1 import ce_f1_reward, make_ce_f1_reward
from rewards.format import format_reward, make_format_reward
from rewards.mccs import make_mccs_reward, mccs_reward

__all__ = [
    "ce_f1_reward",
    "format_reward",
    "make_ce_f1_reward",
    "make_format_reward",
    "make_mccs_reward",
    "mccs_reward",
]
