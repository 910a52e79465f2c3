"""Weighted SFT whose rows come by scenario, as in LLM-RG4's two stages."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Sampler

from recipes.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer
from rewards.scenarios import SCENARIOS


class RoundRobinSampler(Sampler[int]):
    """Blocks of `block` rows of one scenario, the scenarios in turn, until each row has come at least once.

    `scenarios`: of each row, by name; they take turns in the order of `order`. A scenario's rows come in a new random
    order each time it begins again. An epoch ends with the block that completes the largest scenario, so it has as
    many blocks of each (authors' code: 4 x 172,608 rows an epoch; A-36). Equal `seed` and epoch
    give equal orders in every process. Raises ValueError where `block` is below 1, or a scenario not in `order`.
    """

    def __init__(self, scenarios: Sequence[str], order: Sequence[str], block: int, seed: int = 0):
        if block < 1:
            raise ValueError(f"block must be at least 1, not {block}")
        if unknown := sorted(set(scenarios) - set(order)):
            raise ValueError(f"there are rows of {unknown[0]!r}, which is not in the order {', '.join(order)}")
        rows = {name: [i for i, scenario in enumerate(scenarios) if scenario == name] for name in order}
        self.rows = [torch.tensor(numbers) for numbers in rows.values() if numbers]
        self.block, self.seed, self.epoch = block, seed, 0
        self.rounds = -(-max(map(len, self.rows)) // block)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next order is of; accelerate calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rounds * self.block * len(self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        orders = []
        for rows in self.rows:
            times = -(-self.rounds * self.block // len(rows))
            orders.append(torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(times)]))
        for start in range(0, self.rounds * self.block, self.block):
            for order in orders:
                yield from order[start : start + self.block].tolist()


@dataclass
class ScenarioSFTConfig(WeightedSFTConfig):
    """WeightedSFTConfig, and the order in which scenarios come.

    Example:

        ScenarioSFTConfig("out", scenario_sampling="round_robin", key_weight=1.75)
    """

    scenario_sampling: str = field(
        default="mixed",
        metadata={
            "help": "Order of the rows. mixed: all shuffled; round_robin: batches of one scenario, in turn, small "
            "ones used again.",
            "choices": ["mixed", "round_robin"],
        },
    )


class ScenarioSFTTrainer(WeightedSFTTrainer):
    """WeightedSFTTrainer on rows with a column `scenario`, in the order of `args.scenario_sampling`.

    With round_robin an optimizer step has one scenario, whatever the number of processes and accumulation steps. The
    log, and so trainer_state.json, says what this process's batches cost: `batch/seconds` forward and backward,
    `batch/input_tokens` of a sample (image, prompt and report) and `batch/largest_input`, since the last entry.

    Example:

        rows = {"prompt": [...], "completion": [...], "images": [...], "key_spans": [[[0, 9]]], "scenario": ["sn"]}
        trainer = ScenarioSFTTrainer(model, ScenarioSFTConfig("out"), Dataset.from_dict(rows))
    """

    def training_step(self, model, inputs, num_items_in_batch=None):
        """TRL's step, timed."""
        tokens = inputs["attention_mask"].sum(1).tolist()
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        loss.item()  # waits for the device, as Trainer does after each step to see whether the loss is finite
        metrics = self._metrics["train"]  # TRL logs the mean of each list
        metrics["batch/seconds"].append(time.perf_counter() - start)
        metrics["batch/input_tokens"] += tokens
        metrics["batch/largest_input"] = [max(metrics["batch/largest_input"] + tokens)]
        return loss

    def _get_train_sampler(self, train_dataset=None):
        """TRL's sampler, or the round-robin in its place."""
        sampler = super()._get_train_sampler(train_dataset)
        if self.args.scenario_sampling == "mixed":
            return sampler
        block = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        return RoundRobinSampler(self.train_dataset["scenario"], SCENARIOS, block, self.args.seed)
