"""RLOO (Ahmadian et al., 2024) on TRL's RLOOTrainer: each completion against the mean of the others of its prompt.

Of G completions of a prompt with the rewards r, those less beta x the log-ratio of the whole completion to the
reference, the advantage of the i-th is r_i - (sum of r - r_i) / (G - 1) = (G r_i - sum of r) / (G - 1). The ratio is
of whole completions, so that all their tokens weigh alike.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from trl import RLOOConfig, RLOOTrainer

from recipes.trainers.base import RecipeTrainer
from recipes.trainers.checkpoints import shuffle_by_epoch
from recipes.trainers.clinical_f1 import ClinicalF1
from recipes.trainers.config import PolicySettings
from recipes.trainers.grpo import EVALUATED
from recipes.trainers.setup import remove_dropout
from recipes.trainers.shared_prefix import SharePrefixConfig, SharesPrefix
from recipes.trainers.study_inputs import StudyInputs
from recipes.trainers.vllm_images import ImageGeneration
from rewards.completions import parse_completion


@dataclass
class RLOORecipeConfig(SharePrefixConfig, PolicySettings, RLOOConfig):
    """TRL's RLOOConfig with what PolicySettings adds. Raises InputError as RecipeConfig.

    Example:

        RLOORecipeConfig("out", beta=0.05, num_generations=4, effective_batch_size=16)
    """

    metrics: ClassVar[tuple[str, ...]] = (*EVALUATED, "completions/untagged")

    disable_dropout: bool = field(
        default=True,
        metadata={"help": "Training without dropout, so that the ratio of whole completions is 1 at first."},
    )


class RLOORecipeTrainer(StudyInputs, ClinicalF1, SharesPrefix, RecipeTrainer, RLOOTrainer):
    """RLOOTrainer as it is, with the inputs of LLM-RG4's studies, shared prompts, and the recipes' checks and saves.

    `reward_funcs` are TRL's, `args` an RLOORecipeConfig. The tokenizer of `processing_class` pads on the left from
    here on. Raises InputError on prompts of which the model would read more when it writes than in training.

    Example:

        def short_reward(completions, **kwargs):
            return [1 / (1 + len(completion[0]["content"].split())) for completion in completions]

        dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "Report."}]] * 8})
        trainer = RLOORecipeTrainer("Qwen/Qwen2.5-VL-3B-Instruct", [short_reward], RLOORecipeConfig("out"), dataset)
    """

    _loss_is_sum = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._tokenizer.padding_side = "left"  # TRL's prompts are; a processor's mm_token_type_ids must be too
        if self.use_vllm:
            self.vllm_generation = ImageGeneration.of(self.vllm_generation)
        if self.args.disable_dropout:
            remove_dropout(self.model)
            remove_dropout(self.ref_model)
        self._share_prefix()

    def _get_train_sampler(self, dataset=None):
        return shuffle_by_epoch(super()._get_train_sampler(dataset))

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        tagged = [parse_completion(completion).tagged for completion in completions]
        self._log_metric("completions/untagged", tagged.count(False) / len(tagged))
        return rewards
