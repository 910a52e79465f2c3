"""GRPO with the paper's advantage normalisation (MRG-R1 Eq. 2) on TRL's GRPOTrainer.

Two of TRL's settings decide how near its loss is to Eq. 1. `use_bias_correction_kl: true`, TRL's default and the
YAMLs', multiplies the estimate k3 of a token's KL term by the ratio, so that its expected gradient is that of
KL(policy || reference), which Eq. 1 writes; without the ratio it is that of KL(reference || policy). Eq. 1's ratio is
of a whole report, so that all its tokens weigh alike: `loss_type: dr_grpo` does that, `dapo` within one batch, while
`grpo` divides each report by its length. README.md beside this file has figures.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from trl import GRPOTrainer

from recipes.files import InputError
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.checkpoints import shuffle_by_epoch
from recipes.trainers.clinical_f1 import NAME as CLINICAL_F1
from recipes.trainers.clinical_f1 import ClinicalF1
from recipes.trainers.config import PolicyConfig
from recipes.trainers.diagnostic_tokens import DiagnosticTokensConfig, WeighsDiagnosticTokens
from recipes.trainers.oracle_preference import OraclePreferenceConfig, PrefersReferences
from recipes.trainers.sentence_edits import EditsSentences, SentenceEditsConfig
from recipes.trainers.shared_prefix import SharePrefixConfig, SharesPrefix
from recipes.trainers.study_inputs import StudyInputs
from recipes.trainers.vllm_images import ImageGeneration
from rewards.completions import parse_completion

EVALUATED = (  # what is logged in an evaluation, by TRL but for the first one
    CLINICAL_F1,
    *("entropy", "frac_reward_zero_std", "kl", "num_tokens", "reward", "reward_std", "completions/clipped_ratio"),
    *(f"completions/{figure}_length" for figure in ("mean", "min", "max")),
    *(f"completions/{figure}_terminated_length" for figure in ("mean", "min", "max")),
    *(f"clip_ratio/{figure}" for figure in ("low_mean", "low_min", "high_mean", "high_max", "region_mean")),
)


@dataclass
class MRGR1Config(
    DiagnosticTokensConfig, OraclePreferenceConfig, SentenceEditsConfig, SharePrefixConfig, PolicyConfig
):
    """TRL's GRPOConfig plus what the paper adds, and settings of three algorithms that are off by default.

    Raises InputError as its bases do, and on settings of TRL's normalisation that `advantage_norm` paper would pass
    over.

    Example:

        MRGR1Config("out", beta=0.04, advantage_norm="paper", effective_batch_size=16, num_generations=4)
    """

    metrics: ClassVar[tuple[str, ...]] = (*EVALUATED, "completions/untagged")

    advantage_norm: str = field(
        default="paper",
        metadata={
            "help": "Normalisation of advantages. paper: population standard deviation with std_epsilon inside the "
            "root (Eq. 2). trl: TRL's own.",
            "choices": ["paper", "trl"],
        },
    )
    std_epsilon: float = field(default=1e-8, metadata={"help": "Epsilon of Eq. 2; the paper: 1e-8 to 1e-6."})

    def __post_init__(self):
        super().__post_init__()
        for name, value in (("scale_rewards", "group"), ("multi_objective_aggregation", "sum_then_normalize")):
            if self.advantage_norm == "paper" and getattr(self, name) != value:
                raise InputError(
                    f"{name} {getattr(self, name)} has no effect with advantage_norm paper, whose rewards are summed "
                    f"and then normalised in their group (Eq. 2): leave it at {value}, or set advantage_norm trl"
                )


def paper_advantages(rewards: torch.Tensor, num_generations: int, std_epsilon: float = 1e-8) -> torch.Tensor:
    """Group-relative advantages of MRG-R1 Eq. 2: population variance, epsilon inside the root.

    `rewards`: shape (prompts x `num_generations`,), a prompt's completions side by side; NaN marks a completion that
    no reward could score: it takes no part in its group's statistics and gets advantage 0. Returns the same shape.
    """
    groups = rewards.view(-1, num_generations)
    deviation = groups - groups.nanmean(dim=1, keepdim=True)
    sigma = (deviation.square().nanmean(dim=1, keepdim=True) + std_epsilon).sqrt()
    return torch.nan_to_num(deviation / sigma, nan=0.0).view(-1)


class MRGR1Trainer(
    WeighsDiagnosticTokens,
    PrefersReferences,
    EditsSentences,
    StudyInputs,
    ClinicalF1,
    SharesPrefix,
    RecipeTrainer,
    GRPOTrainer,
):
    """GRPOTrainer whose advantages follow `args.advantage_norm`; everything else is TRL's, or what its bases add.

    The tokenizer of `processing_class` pads on the left from here on, however it was loaded or saved. Raises
    InputError on prompts of which the model would read more when it writes than in training (`check_pass_inputs`).

    Example:

        def short_reward(completions, **kwargs):
            return [1 / (1 + len(completion[0]["content"].split())) for completion in completions]

        dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "Report."}]] * 8})
        trainer = MRGR1Trainer("Qwen/Qwen2.5-VL-3B-Instruct", [short_reward], MRGR1Config("out"), dataset)
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._tokenizer.padding_side = "left"  # TRL's prompts are; a processor's mm_token_type_ids must be too
        if self.use_vllm:
            self.vllm_generation = ImageGeneration.of(self.vllm_generation)
        self._share_prefix()

    def _get_train_sampler(self, dataset=None):
        return shuffle_by_epoch(super()._get_train_sampler(dataset))

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        tagged = [parse_completion(completion).tagged for completion in completions]
        self._log_metric("completions/untagged", tagged.count(False) / len(tagged))  # what stands for a report there
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.args.advantage_norm == "paper":
            scores = self._rewards_per_func  # gathered over all processes by TRL
            rewards = (scores * self.reward_weights.to(scores.device)).nansum(dim=1)
            rewards[scores.isnan().all(dim=1)] = torch.nan
            generations = self.num_generations if self.model.training else self.num_generations_eval
            advantages = paper_advantages(rewards, generations, self.args.std_epsilon)
            logged = self._logs["advantages"]
            for i, value in enumerate(advantages.tolist(), start=len(logged) - len(advantages)):
                logged[i] = value
            output["advantages"] = advantages.chunk(self.accelerator.num_processes)[self.accelerator.process_index]
        return output
