"""The F1 of the findings that a policy's samples name, logged while it is trained, whatever its rewards are."""

import numpy as np
import torch

from rewards.inputs import cached, read_reports
from rewards.labelers import LexicalLabeler
from rewards.labels import FINDINGS, to_binary

NAME = "completions/clinical_f1"


class ClinicalF1:
    """Before a trainer of TRL's GRPOTrainer among a class's bases: logs `completions/clinical_f1`.

    It is the micro-F1 of the 13 findings, uncertain as positive, in [0, 1]: of all completions since the last log,
    those of all processes, sampled at the run's temperature, against the data's column `report`, both labelled by the
    LexicalLabeler. So it is of training studies, and not that of reports which are written greedily for held-out ones
    (recipes/evaluate.py). Without that column, or where neither side has a finding, nothing is logged.
    """

    def __init__(self, *args, **kwargs):
        self._lexical = cached(LexicalLabeler())  # a study's reference comes once for each of its completions
        self._finding_counts: dict[str, torch.Tensor] = {}  # in training and evaluation: in both, generated, reference
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if "report" in inputs[0]:
            counts = self._count_findings(completions, [row["report"] for row in inputs])
            mode = "train" if self.model.training else "eval"
            counts = self.accelerator.reduce(counts.to(self.accelerator.device), reduction="sum")
            self._finding_counts[mode] = self._finding_counts.get(mode, 0) + counts
        return rewards

    def _count_findings(self, completions: list, references: list[str | None]) -> torch.Tensor:
        """Findings in both, in the completions and in the references, (3,), of those that have a reference."""
        texts, _ = read_reports(completions)
        pairs = [(text, report) for text, report in zip(texts, references, strict=True) if report]
        if not pairs:
            return torch.zeros(3)
        generated, reference = (
            to_binary(np.array(self._lexical(list(side))))[:, : len(FINDINGS)] for side in zip(*pairs, strict=True)
        )
        return torch.tensor([(generated & reference).sum(), generated.sum(), reference.sum()], dtype=torch.float32)

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        both, *sides = self._finding_counts.pop(mode, torch.zeros(3)).tolist()
        if sum(sides):
            self._metrics[mode][NAME].append(2 * both / sum(sides))
        super().log(logs, start_time)
