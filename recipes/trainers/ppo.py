"""PPO for text and vision-language models on TRL's GRPOTrainer, with LM-RRG's weight of the KL term (Eqs. 3 to 5).

    trainer = PPOTrainer(model=..., reward_funcs=[...], args=PPOConfig(...), train_dataset=dataset)

TRL has no PPO any more. What GRPOTrainer does is left to it: prompts, images, generation, vLLM, rewards,
log-probabilities, the clipped surrogate, LoRA, logging. Added are a value head, generalized advantage estimation, the
clipped value loss and the KL term. README.md beside this file has the equations and an example.
"""

import copy
import os
import types
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, NamedTuple

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, get_config_model_id

from recipes.files import InputError
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.checkpoints import shuffle_by_epoch, weights_are_split
from recipes.trainers.clinical_f1 import ClinicalF1
from recipes.trainers.config import PolicyConfig
from recipes.trainers.grpo import EVALUATED
from recipes.trainers.image_memory import image_encoder
from recipes.trainers.setup import remove_dropout
from recipes.trainers.shared_prefix import SharePrefixConfig, SharesPrefix
from recipes.trainers.study_inputs import PASS_INPUTS, StudyInputs
from recipes.trainers.vllm_images import ImageGeneration

STATE_FILE = "ppo_state.safetensors"
LOGIT_CHANGES = (
    "final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling",
)  # fmt: skip


@dataclass
class PPOConfig(SharePrefixConfig, PolicyConfig):
    """TRL's GRPOConfig, and what PPO and LM-RRG add. Raises InputError on what cannot be combined.

    From GRPOConfig come `num_iterations` (PPO epochs over one batch of completions), `steps_per_generation`
    (mini-batches of it), `epsilon` (clip range of the policy) and `beta`, the scale of the KL term: with beta = 1 and
    `kl_controller` reward_threshold the weight of a completion's KL term is lambda_KL of Eq. 5.

    Example:

        PPOConfig("out", beta=1.0, theta=0.5, lam=1.0, num_iterations=4, value_learning_rate=1e-4)
    """

    metrics: ClassVar[tuple[str, ...]] = (
        *EVALUATED,
        *("completions/unscored_ratio", "kl_coef", "returns/mean"),
        *(f"kl_lambda/{figure}" for figure in ("mean", "min", "max", "share_at_1")),
        *(f"value/{figure}" for figure in ("mean", "explained_variance", "loss", "clip_ratio")),
    )

    num_iterations: int = field(default=4, metadata={"help": "PPO epochs over one batch of completions."})
    num_generations: int | None = field(
        default=2, metadata={"help": "Completions of a prompt, 2 or more (TRL). Advantages do not depend on groups."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Training without dropout, so that a ratio is 1 until the policy changes."}
    )
    beta: float = field(default=1.0, metadata={"help": "Scale of the KL term; 0: none, and no reference."})
    gamma: float = field(default=1.0, metadata={"help": "Discount of a later token's reward, above 0 to 1."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation, 0 to 1."})
    whiten_advantages: bool = field(
        default=False,
        metadata={
            "help": "Division of the advantages by their deviation over the tokens of all processes, and of kl_mode "
            "loss's KL term by the same number. Their mean is taken off in any case."
        },
    )
    value_model: str = field(
        default="head",
        metadata={
            "help": "Critic. head: a linear layer on the last hidden state. detached: the same, whose loss does not "
            "reach the model. none: no critic; the mean of the batch's returns is the baseline.",
            "choices": ["head", "detached", "none"],
        },
    )
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the value head; none: learning_rate."}
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Largest distance of a value from its old one."})
    kl_controller: str = field(
        default="reward_threshold",
        metadata={
            "help": "Weight of a completion's KL term. reward_threshold: beta x min(1, reward / theta), Eq. 5. "
            "fixed: beta. ziegler: starts at beta and steers the mean KL of a completion to kl_target.",
            "choices": ["reward_threshold", "fixed", "ziegler"],
        },
    )
    theta: float = field(default=0.5, metadata={"help": "Reward from which the KL weight is beta (theta of Eq. 5)."})
    kl_mode: str = field(
        default="loss",
        metadata={
            "help": "Place of a token's KL term. loss: a term of the loss (Eq. 4). reward: taken off its reward.",
            "choices": ["loss", "reward"],
        },
    )
    kl_direction: str = field(
        default="policy_ref",
        metadata={
            "help": "Divergence of the KL term. policy_ref: KL(policy || reference), estimated at the sampled tokens. "
            "policy_ref_exact: the same, summed over the vocabulary at each token. ref_policy: KL(reference || "
            "policy), the order of Eq. 3, summed likewise. The last two need kl_mode loss.",
            "choices": ["policy_ref", "policy_ref_exact", "ref_policy"],
        },
    )
    kl_target: float = field(
        default=6.0, metadata={"help": "Target KL of a whole completion, in nats (ziegler controller)."}
    )
    kl_horizon: float = field(
        default=10000.0, metadata={"help": "Completions over which the weight changes (ziegler controller)."}
    )
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={"help": "Penalty on the reward of a completion cut off at its maximal length; none: 0."},
    )
    reward_range: list[float] | None = field(
        default=None,
        metadata={"help": "Lowest and highest weighted sum of the rewards, one outside being an error; none: any."},
    )
    freeze_image_encoder: bool = field(
        default=True,
        metadata={"help": "Freezing of the image encoder (E), which stays in eval mode (LM-RRG, section 2.3)."},
    )

    def __post_init__(self):
        for name in ("value_model", "kl_controller", "kl_mode", "kl_direction"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)}")
        low, high = self.reward_range if self.reward_range and len(self.reward_range) == 2 else (0.0, 0.0)
        for refused, sentence in (
            (not 0 < self.theta < inf, f"theta must be above 0, not {self.theta}: rewards are divided by it (Eq. 5)"),
            (not 0 <= self.beta < inf, f"beta must not be below 0, and is {self.beta}"),
            (
                self.beta == 0 and self.kl_controller != "fixed",
                f"beta is 0, so there is no reference for kl_controller {self.kl_controller}: set beta (Eq. 5: 1.0), "
                "or kl_controller fixed for training without a KL term",
            ),
            (
                self.kl_mode == "reward" and self.kl_direction != "policy_ref",
                f"kl_mode reward has the log-ratio of the sampled tokens only: kl_direction {self.kl_direction} needs "
                "kl_mode loss",
            ),
            (not 0 < self.gamma <= 1, f"gamma must be above 0 and at most 1, not {self.gamma}"),
            (not 0 <= self.lam <= 1, f"lam must be from 0 to 1, not {self.lam}"),
            (not 0 <= self.vf_coef < inf, f"vf_coef must not be below 0, and is {self.vf_coef}"),
            (not self.cliprange_value > 0, f"cliprange_value must be above 0, not {self.cliprange_value}"),
            (not (self.kl_target > 0 and self.kl_horizon > 0), "kl_target and kl_horizon must be above 0"),
            (
                self.reward_range is not None and not low < high,
                f"reward_range is the lowest and the highest reward, not {self.reward_range}",
            ),
            (
                self.loss_type not in ("dapo", "grpo"),
                f"loss_type is dapo (mean over tokens) or grpo (mean over completions), not {self.loss_type}",
            ),
            (self.importance_sampling_level != "token", "PPO has a ratio per token: importance_sampling_level token"),
            (
                self.multi_objective_aggregation != "sum_then_normalize",
                "PPO takes the weighted sum of the rewards: multi_objective_aggregation sum_then_normalize",
            ),
            (self.sync_ref_model, "the reference stays as it is (LM-RRG, section 2.3): sync_ref_model false"),
        ):
            if refused:
                raise InputError(sentence)
        super().__post_init__()


def threshold_weight(rewards: torch.Tensor, theta: float) -> torch.Tensor:
    """lambda_KL of LM-RRG Eq. 5, one of each reward: 1 from `theta` on, below it reward / theta, and never below 0.

    `rewards`: any shape; the result has the same, in [0, 1], without gradient. A reward is a constant of the loss.
    """
    return (rewards.detach() / theta).clamp(0.0, 1.0)


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> torch.Tensor:
    """Advantages of Schulman et al. 2016 (GAE, Eq. 16), each a sum over its own and the later tokens of its row.

    `rewards`, `values`, `mask`: (rows, tokens); `values[:, t]` is of the state in which token t was chosen. Tokens
    with mask 0 (padding, a tool's answer) are passed over: the token before them is followed by the one after. After
    the last one the value is 0. Returns (rows, tokens), 0 where the mask is.
    """
    advantages = torch.zeros_like(values)
    following, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for token in reversed(range(values.shape[1])):
        answered = mask[:, token].bool()
        delta = rewards[:, token] + gamma * next_value - values[:, token]
        following = torch.where(answered, delta + gamma * lam * following, following)
        next_value = torch.where(answered, values[:, token], next_value)
        advantages[:, token] = following * answered
    return advantages


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `train`, by which Trainer puts the whole model into training mode at each step."""
    return type(module).train(module, False)


class Pass(NamedTuple):
    """What one forward pass of TRL's over some completions left behind."""

    log_probs: torch.Tensor  # (rows, tokens)
    values: torch.Tensor  # (rows, tokens); zeros without a value head and in the reference
    hidden_states: torch.Tensor | None  # (rows, tokens, width), those that chose the tokens; for an exact KL alone


def check_policy(model: str | nn.Module, args: PPOConfig, adapted: bool, sharded: bool) -> None:
    """Raises InputError on a model, a name or loaded, that PPO with `args` cannot train.

    `adapted`: with LoRA. `sharded`: its weights are split over processes.
    """
    config = model.config if not isinstance(model, str) else None
    if config is None:
        try:
            config = AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code)
        except (OSError, ValueError) as error:
            raise InputError(f"the model {model} cannot be loaded: {str(error).splitlines()[0]}") from error
    exact = args.beta > 0 and args.kl_direction != "policy_ref"
    text_config = config.get_text_config()
    for refused, sentence in (
        (config.is_encoder_decoder, f"PPO needs a decoder-only model, and {config.model_type} has an encoder"),
        (
            args.beta > 0 and sharded and not adapted and not get_config_model_id(config),
            "under ZeRO-3 or FSDP the reference is loaded from where the policy was, and this model was made "
            "in memory: save it and give its folder, or train LoRA",
        ),
        (
            exact and sharded,
            f"kl_direction {args.kl_direction} needs the whole output layer: no ZeRO-3 and no FSDP",
        ),
        (
            exact and any(getattr(text_config, name, None) not in (None, 1.0) for name in LOGIT_CHANGES),
            f"{config.model_type} changes its logits after the output layer: kl_direction policy_ref",
        ),
    ):
        if refused:
            raise InputError(sentence)


class PPOTrainer(StudyInputs, ClinicalF1, SharesPrefix, RecipeTrainer, GRPOTrainer):
    """PPO with a value head on the policy's last hidden state. `reward_funcs` are TRL's, `args` a PPOConfig.

    The model is decoder-only: a causal language model or a vision-language model that GRPOTrainer takes. The reference
    is the model without its LoRA adapter or, without LoRA, a copy of what is trained; frozen parameters are shared.
    What `model.get_encoder(modality="image")` gives is E; what `ImageMemory` can do with it, it does. The tokenizer of
    `processing_class` pads on the left from here on, however it was loaded or saved. Raises InputError on a model or a
    reward that it cannot train on.

    Example:

        def short_reward(completions, **kwargs):
            return [1 / (1 + len(completion[0]["content"].split())) for completion in completions]

        dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "What is the heart?"}]] * 8})
        trainer = PPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", [short_reward], PPOConfig("out"), dataset)
    """

    _tag_names: ClassVar[list[str]] = ["trl", "ppo"]
    _name = "PPO"
    _paper: ClassVar[dict[str, str]] = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": "@article{schulman2017proximal,\n"
        "    title  = {{Proximal Policy Optimization Algorithms}},\n"
        "    author = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},\n"
        "    year   = 2017,\n"
        "    eprint = {arXiv:1707.06347},\n"
        "}",
    }

    def __init__(self, model, reward_funcs, args: PPOConfig, train_dataset=None, **kwargs):
        adapted = kwargs.get("peft_config") is not None or (not isinstance(model, str) and is_peft_model(model))
        sharded = weights_are_split(args)
        check_policy(model, args, adapted, sharded)

        beta, copied = args.beta, args.beta > 0 and not adapted and not sharded
        args.beta = 0.0 if copied else beta  # TRL would load the reference a second time, image encoder and all
        try:
            super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        finally:
            args.beta = beta
        self._tokenizer.padding_side = "left"  # TRL's prompts are; a processor's mm_token_type_ids must be too
        if self.use_vllm:
            self.vllm_generation = ImageGeneration.of(self.vllm_generation)
        self.beta = beta
        self.kl_coef = beta  # of ziegler; it changes
        if args.disable_dropout:
            remove_dropout(self.model)
            remove_dropout(self.ref_model)
        policy: PreTrainedModel = self.model.get_base_model() if is_peft_model(self.model) else self.model
        self._policy = policy
        self._passes: list[Pass] = []
        self._chunks: list[tuple] = []
        self._hidden_states: torch.Tensor | None = None

        if args.freeze_image_encoder:
            self._freeze_encoder(policy)
        if copied:
            self.ref_model = self._make_reference(policy)
        self.value_head = self._make_value_head(policy) if args.value_model != "none" else None
        for core, model in ((policy, self.model), (self.ref_model, self.ref_model)):
            if core is not None:
                core.base_model.register_forward_hook(self._after_backbone)
                model.register_forward_hook(self._after_model)
        self._share_prefix()

    @staticmethod
    def _freeze_encoder(policy: PreTrainedModel) -> None:
        """E stays as it is."""
        encoder = image_encoder(policy)
        if encoder is not None:
            encoder.requires_grad_(False)
            encoder.train = types.MethodType(_stay_in_eval, encoder)  # the reference's copy has its own
            encoder.eval()
        elif hasattr(policy.base_model, "encode_images"):
            raise InputError(
                f"{type(policy).__name__} has encode_images but does not say what its image encoder is, so "
                "freeze_image_encoder has nothing to freeze: give the class get_encoder(modality), or set it to false"
            )

    def _make_reference(self, policy: PreTrainedModel) -> nn.Module:
        """A copy of what is trained; frozen parameters are the policy's."""
        shared = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
        reference = copy.deepcopy(policy, shared).requires_grad_(False).eval()
        del reference.forward  # TRL's fused head, which is bound to the policy
        add_fused_lm_head(reference, self.temperature, self.args.cast_lm_head_to_fp32)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    @staticmethod
    def _make_value_head(policy: PreTrainedModel) -> nn.Linear:
        """A linear layer on the last hidden state, in the policy, so that every wrapper sees it; zero at first."""
        if hasattr(policy, "value_head"):
            raise InputError(f"{type(policy).__name__} has a value_head already: load the model anew for each trainer")
        width = policy.get_output_embeddings().in_features
        head = policy.value_head = nn.Linear(width, 1, device=policy.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        ignored = {"value_head.weight", "value_head.bias"}  # no part of the generator: see STATE_FILE
        policy._keys_to_ignore_on_save = set(policy._keys_to_ignore_on_save or ()) | ignored
        return head

    def _after_backbone(self, module, args, output):
        self._hidden_states = output.last_hidden_state

    def _after_model(self, module, args, output):
        """Values of the states in which the tokens were chosen, from the hidden states of the pass that TRL makes."""
        hidden_states, self._hidden_states = self._hidden_states, None
        if "log_probs" not in output:  # generation
            return
        hidden_states = hidden_states[:, :-1]
        values = torch.zeros_like(output.log_probs)
        if self.value_head is not None and module is self.model:
            states = hidden_states.detach() if self.args.value_model == "detached" else hidden_states
            with torch.autocast(states.device.type, enabled=False):
                values = self.value_head(states.to(self.value_head.weight.dtype)).squeeze(-1).float()
            output["loss"] = output["loss"] + 0.0 * values.sum()  # DDP finds the parameters in use from the output
        self._chunks.append((values, None if self.args.kl_direction == "policy_ref" else hidden_states))

    def _get_train_sampler(self, dataset=None):
        return shuffle_by_epoch(super()._get_train_sampler(dataset))

    def create_optimizer(self, *args, **kwargs):
        """TRL's, with the value head in a group of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if not hasattr(optimizer, "param_groups"):
            raise InputError(
                "PPO has a value head with a learning rate of its own: no optimizer in DeepSpeed's config"
            )
        if self.value_head is not None:
            head = list(self.value_head.parameters())
            for group in optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if all(weight is not part for part in head)]
            rate = self.args.value_learning_rate
            rate = self.args.learning_rate if rate is None else rate
            optimizer.add_param_group({"params": head, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        state = {"kl_coef": torch.tensor(self.kl_coef, dtype=torch.float64)}
        for name, value in self.value_head.state_dict().items() if self.value_head is not None else ():
            state[f"value_head.{name}"] = value.full_tensor() if isinstance(value, DTensor) else value  # FSDP: all ask
        if self.args.should_save:
            save_file(state, os.path.join(output_dir, STATE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint):
        state, head = {}, {}
        if checkpoint is not None:
            file = os.path.join(checkpoint, STATE_FILE)
            if not os.path.isfile(file):
                raise InputError(f"{checkpoint} is no checkpoint of PPO: it has no {STATE_FILE}")
            state = load_file(file)
            head = {name.removeprefix("value_head."): value for name, value in state.items() if name != "kl_coef"}
            if bool(head) != (self.value_head is not None):
                part = "a value head" if head else "no value head"
                raise InputError(f"{checkpoint} has {part}: go on with the value_model that it was trained with")
        super()._load_optimizer_and_scheduler(checkpoint)
        if head and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):  # those load it with the model
            self.value_head.load_state_dict(head)
        if state and self.args.kl_controller == "ziegler":
            self.kl_coef = state["kl_coef"].item()

    def _generate(self, prompts):
        """TRL's; the value head is away, since vLLM is sent every parameter and knows no such layer."""
        head = self._policy._modules.pop("value_head", None)
        try:
            return super()._generate(prompts)
        finally:
            if head is not None:
                self._policy.value_head = head

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """TRL's; remembers the weighted sum of each completion, NaN where no function gave one, of all processes."""
        per_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        scores = (per_function * self.reward_weights.to(per_function.device)).nansum(dim=1)
        unscored = per_function.isnan().all(dim=1)
        names = ", ".join(self.reward_func_names)
        if unscored.all():
            raise InputError(
                f"{names}: every reward of a whole batch ({len(scores)} completions) is None or NaN, so there is "
                "nothing to learn from: do the data have the columns that the reward needs?"
            )
        low, high = self.args.reward_range or (-torch.inf, torch.inf)
        outside = ~unscored & ~(scores.isfinite() & (scores >= low) & (scores <= high))
        if outside.any():
            row = int(outside.nonzero()[0])
            expected = f"in reward_range {self.args.reward_range}" if self.args.reward_range else "a finite number"
            parts = ", ".join(
                f"{name} {value:g}"
                for name, value in zip(self.reward_func_names, per_function[row].tolist(), strict=True)
            )
            raise InputError(
                f"a completion's reward is {scores[row]:g}, which is not {expected} ({parts}): "
                "transform the reward, or set reward_weights or reward_range"
            )
        self._scores = scores.masked_fill(unscored, torch.nan)
        return per_function

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        """TRL's pass; remembers its log-probabilities and values, and hidden states where they are needed."""
        self._chunks.clear()
        result = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        values, hidden_states = (
            None if chunks[0] is None else torch.cat([chunk[:, -logits_to_keep:] for chunk in chunks])
            for chunks in zip(*self._chunks, strict=True)
        )
        self._chunks.clear()
        self._passes.append(Pass(result[0], values, hidden_states))
        return result

    def _generate_and_score_completions(self, inputs):  # noqa: C901
        """TRL's batch with old log-probabilities and values, advantages and returns (rows, tokens) and KL weights."""
        self._passes.clear()
        output = super()._generate_and_score_completions(inputs)
        passes, args = list(self._passes), self.args
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        completion_mask = output["completion_mask"]
        mask = completion_mask * output.get("tool_mask", 1)

        if "old_per_token_logps" in output:
            old = passes[0]
        else:
            size = args.per_device_train_batch_size if mode == "train" else args.per_device_eval_batch_size
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            attention_mask = torch.cat([output["prompt_mask"], completion_mask], dim=1)
            images = {name: output[name] for name in PASS_INPUTS if name in output}
            with torch.no_grad(), disable_gradient_checkpointing(self.model, args.gradient_checkpointing_kwargs):
                self._get_per_token_logps_and_entropies(
                    self.model, ids, attention_mask, mask.shape[1], batch_size=size, **images
                )
            old = self._passes[-1]
            output["old_per_token_logps"] = old.log_probs
        self._passes.clear()

        rows = slice(self.accelerator.process_index * len(mask), (self.accelerator.process_index + 1) * len(mask))
        all_scores = self._scores
        all_scored = ~all_scores.isnan()
        scores, scored = all_scores[rows].nan_to_num(), all_scored[rows]
        mask = mask * scored[:, None]  # no reward, no lesson: neither policy nor value nor KL
        metrics["completions/unscored_ratio"].append(1 - all_scored.float().mean().item())

        weight = torch.zeros_like(scores)
        if self.beta != 0:
            weight = self.kl_coef * scored
            if args.kl_controller == "reward_threshold":
                weight = weight * threshold_weight(scores, args.theta)
                every = threshold_weight(all_scores[all_scored], args.theta)
                metrics["kl_lambda/mean"].append(every.mean().item())
                metrics["kl_lambda/min"].append(every.min().item())
                metrics["kl_lambda/max"].append(every.max().item())
                metrics["kl_lambda/share_at_1"].append((every == 1).float().mean().item())
            metrics["kl_coef"].append(self.kl_coef)
            log_ratio = (old.log_probs - output["ref_per_token_logps"]) * mask
            kl = log_ratio
            if args.kl_direction != "policy_ref":
                output["ref_hidden_states"] = passes[-1].hidden_states
                with torch.no_grad():
                    kl = self._kl(old.hidden_states, passes[-1].hidden_states) * mask

        order = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * order).argmax(dim=1)
        rewards = torch.zeros_like(old.log_probs)
        if args.missing_eos_penalty is not None:
            final = output["completion_ids"].gather(1, (completion_mask * order).argmax(dim=1, keepdim=True))
            ended = torch.isin(final[:, 0], torch.tensor(self.eos_token_ids, device=final.device))
            scores = scores - args.missing_eos_penalty * ~ended
        rewards.scatter_(1, last[:, None], scores[:, None])
        cost = torch.zeros_like(rewards)
        if self.beta != 0 and args.kl_direction != "ref_policy":  # whose states would have to be the reference's
            cost = weight[:, None] * kl
        rewards = (rewards - cost) * mask

        lam = 1.0 if self.value_head is None else args.lam
        advantages = generalized_advantages(rewards, old.values, mask, args.gamma, lam)
        returns = advantages + old.values * mask
        if args.kl_mode == "loss":
            advantages = advantages + cost  # a token answers here for the KL of later ones; its own is in the loss
        count, total = self._sums(mask, advantages)
        count = count.clamp(min=1)
        advantages = (advantages - total / count) * mask
        if args.whiten_advantages:
            (squares,) = self._sums(advantages.square())
            scale = torch.rsqrt(squares / count + 1e-8)
            advantages, weight = advantages * scale, weight * scale  # one without the other would change Eq. 4
        output |= {
            "advantages": advantages,
            "values": old.values,
            "returns": returns,
            "kl_weight": weight,
            "scored": scored,
        }

        error = (returns - old.values) * mask
        (value, gain, square, errors, error_squares) = self._sums(
            old.values * mask, returns, returns.square() * mask, error, error.square()
        )
        metrics["returns/mean"].append((gain / count).item())
        if self.value_head is not None:
            metrics["value/mean"].append((value / count).item())
            spread = square / count - (gain / count).square()
            if spread > 1e-8:
                unexplained = error_squares / count - (errors / count).square()
                metrics["value/explained_variance"].append((1 - unexplained / spread).item())
        per_row = self.accelerator.gather(advantages.sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        logged = self._logs["advantages"]
        for i, advantage in enumerate(per_row.tolist(), start=len(logged) - len(per_row)):
            logged[i] = advantage

        if self.beta != 0 and args.kl_controller == "ziegler" and mode == "train":  # Ziegler et al. 2019, section 2.2
            (kl,) = self._sums(log_ratio)
            number = int(all_scored.sum())
            miss = min(max(kl.item() / number / args.kl_target - 1, -0.2), 0.2)
            self.kl_coef *= 1 + miss * number / args.kl_horizon
        return output

    def _compute_loss(self, model, inputs):
        """TRL's clipped surrogate, plus vf_coef x the clipped value loss, plus the weighed KL term (Eq. 4)."""
        self._passes.clear()
        self.beta, beta = 0.0, self.beta  # TRL's KL term has one weight for all
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        now, args = self._passes.pop(), self.args
        metrics = self._metrics["train" if self.model.training else "eval"]
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1) * inputs["scored"][:, None]
        count = self._sums(mask)[0].clamp(min=1)

        if self.value_head is not None:
            old, returns = inputs["values"], inputs["returns"]
            clipped = now.values.clamp(old - args.cliprange_value, old + args.cliprange_value)
            free, bound = (now.values - returns).square(), (clipped - returns).square()
            value_loss = 0.5 * torch.max(free, bound)
            loss = loss + args.vf_coef * self._reduced(value_loss, mask, inputs)
            total, outside = self._sums(value_loss.detach() * mask, (bound > free) * mask)
            metrics["value/loss"].append((total / count).item())
            metrics["value/clip_ratio"].append((outside / count).item())

        if self.beta != 0:
            if args.kl_direction == "policy_ref":
                difference = inputs["ref_per_token_logps"] - now.log_probs
                ratio = torch.exp(now.log_probs - inputs["old_per_token_logps"])
                kl = (torch.exp(difference) - difference - 1) * ratio  # the ratio makes its gradient KL's own
            else:
                kl = self._kl(now.hidden_states, inputs["ref_hidden_states"])
            (total,) = self._sums(kl.detach() * mask)
            metrics["kl"].append((total / count).item())
            if args.kl_mode == "loss":
                loss = loss + self._reduced(inputs["kl_weight"][:, None] * kl, mask, inputs)
        return loss

    def _kl(self, hidden_states: torch.Tensor, ref_hidden_states: torch.Tensor) -> torch.Tensor:
        """`kl_direction`'s divergence, summed over the vocabulary, of each token's state: (rows, tokens)."""
        with torch.no_grad():
            reference = self._log_probs(self._policy if self.ref_model is None else self.ref_model, ref_hidden_states)
        policy = self._log_probs(self._policy, hidden_states)
        first, second = (reference, policy) if self.args.kl_direction == "ref_policy" else (policy, reference)
        return (first.exp() * (first - second)).sum(dim=-1)

    def _log_probs(self, model: PreTrainedModel, hidden_states: torch.Tensor) -> torch.Tensor:
        """(rows, tokens, vocabulary) at the temperature of sampling."""
        return torch.log_softmax(model.get_output_embeddings()(hidden_states).float() / self.temperature, dim=-1)

    def _sums(self, *tensors: torch.Tensor) -> torch.Tensor:
        """The sum of each of `tensors` over all processes, (number of tensors,)."""
        return self.accelerator.reduce(torch.stack([tensor.sum().float() for tensor in tensors]), reduction="sum")

    def _reduced(self, per_token: torch.Tensor, mask: torch.Tensor, inputs: dict) -> torch.Tensor:
        """One number from (rows, tokens), as `loss_type` reduces the surrogate: exact under any accumulation."""
        training = self.model.training
        if self.args.loss_type == "grpo":
            loss = ((per_token * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
            return loss / self.current_gradient_accumulation_steps if training else loss
        number = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if training:
            number = number * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return (per_token * mask).sum() / number
