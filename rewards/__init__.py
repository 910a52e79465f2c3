"""Rewards for radiology report generation: plain functions with TRL's signature."""

from rewards.format import format_reward, make_format_reward
from rewards.mccs import make_mccs_reward, mccs_reward

__all__ = ["format_reward", "make_format_reward", "make_mccs_reward", "mccs_reward"]
