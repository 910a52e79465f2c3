"""How much of a GPU's memory a training step takes, computed before it; recipes/cluster.md has the paper's run."""

from dataclasses import dataclass, replace

import torch
from transformers import Trainer

from recipes.trainers.config import RL_CONFIGS

LOGIT_COLUMNS = 32_768  # TRL's fused head has the logits of so many words at once
MOMENTS = {"ademamix": 3, "adam": 2, "lion": 1, "rmsprop": 1}  # optimizer state of a weight, in numbers


@dataclass(frozen=True)
class StepMemory:
    """The memory of one process on one GPU; all counts are of that process.

    Bytes: `weights` as they are held, `gradients`, `optimizer` (its state), `reference` (a model of its own; 0 where
    the reference is the policy without its adapter), `copies` (of trained float32 weights in 16 bits, which autocast
    keeps during a forward pass). Of the decoder: `layers`, `width`, `mlp_width`, `key_value_width` (key-value heads x
    width of a head), `vocabulary`. Of a batch: `rows` at once, their `tokens` and the `answer_tokens` among them whose
    probability is asked for, `written` rows that generation writes at once. `value`: bytes of an activation.
    `checkpointing`: gradient checkpointing, which keeps what stands between layers and computes a layer again.
    `rows_of_a_prompt`: how many rows of a batch read one prompt together (shared_prefix.py).

    It leaves out what cannot be known before: CUDA itself, gaps of the allocator, a frozen image encoder's pass, the
    scorers of rewards. So a step takes more than `peak`, and a GPU with less is too small.

        >>> step = StepMemory(weights=16e9, gradients=1e9, optimizer=1e9, layers=2, width=100, mlp_width=300,
        ...                   key_value_width=50, vocabulary=1000, rows=4, tokens=10, answer_tokens=5)
        >>> step.parts()["activations between layers"]  # 4 x 10 x 100 x 2 layers x 2 bytes
        16000
    """

    weights: float
    gradients: float
    optimizer: float
    layers: int
    width: int
    mlp_width: int
    key_value_width: int
    vocabulary: int
    rows: int
    tokens: int
    answer_tokens: int
    reference: float = 0
    copies: float = 0
    written: int = 0
    value: int = 2
    checkpointing: bool = True
    rows_of_a_prompt: int = 1

    def parts(self) -> dict[str, float]:
        """Bytes by name, in the order of cluster.md's table."""
        prompts = -(-self.rows // self.rows_of_a_prompt)
        tokens = prompts * (self.tokens - self.answer_tokens) + self.rows * self.answer_tokens
        places = tokens * self.value
        layer = places * (8 * self.width + 3 * self.mlp_width)
        keys_and_values = self.written * self.tokens * 2 * self.layers * self.key_value_width * self.value
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "reference model": self.reference,
            "keys and values": keys_and_values,
            "activations between layers": places * self.width * self.layers if self.checkpointing else 0,
            "activations within layers": layer if self.checkpointing else layer * self.layers,
            "16-bit copies": self.copies,
            "logits": self.rows * self.answer_tokens * min(self.vocabulary, LOGIT_COLUMNS) * 4,
        }

    @property
    def standing(self) -> float:
        """Bytes that no batch size changes."""
        return self.weights + self.gradients + self.optimizer + self.reference

    @property
    def peak(self) -> float:
        """Bytes at the moment of a step that takes most: while reports are written, or in the update after it.

        With checkpointing a layer is computed again when the logits and the copies are gone.
        """
        writing, between, within, copies, logits = list(self.parts().values())[4:]
        update = between + max(within, copies, logits) if self.checkpointing else within + max(copies, logits)
        return self.standing + max(writing, update)

    def advice(self, total: float) -> str | None:
        """None where `peak` is within `total` bytes, else a sentence with the figures and what to change."""
        if self.peak <= total:
            return None
        parts = describe(self)
        need = f"a step takes {self.peak / 1e9:.1f} GB of GPU memory at least" + (f" ({parts})" if parts else "")
        need += f", and this GPU has {total / 1e9:.1f} GB"
        if self.standing > total:
            return (
                f"{need}: what no batch size changes is {self.standing / 1e9:.1f} GB; train LoRA (use_peft), share it "
                "among more GPUs (accelerate_configs/zero3.yaml), or take a larger GPU"
            )
        sizes = [self.rows >> shift for shift in range(self.rows.bit_length())]
        for checkpointing in sorted({self.checkpointing, True}):
            for size in sizes:
                changed = replace(self, rows=size, checkpointing=checkpointing)
                if changed.peak <= total:
                    names = ["gradient_checkpointing true"] * (checkpointing and not self.checkpointing)
                    names += [f"per_device_train_batch_size {size}"] * (size < self.rows)
                    return f"{need}: with {' and '.join(names)} it takes {changed.peak / 1e9:.1f} GB"
        return (
            f"{need}: no batch size is small enough; share the model among more GPUs (accelerate_configs/zero3.yaml), "
            "shorten prompts and completions, or take a larger GPU"
        )


def describe(step: StepMemory) -> str:
    """The parts of 0.05 GB or more, the largest first: `weights 16.6 GB, gradients 1.3 GB`."""
    parts = sorted(step.parts().items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts if size >= 0.05e9)


def optimizer_bytes(optim: str, element_size: int) -> int:
    """Bytes of state that the optimizer of TrainingArguments' name `optim` has for a weight of `element_size` bytes.

    Moments have the weight's type, or 8 bits. 0 where there are none (SGD, Adafactor), or where they may be smaller or
    lie in the CPU's memory (paged, 4 bits, GaLore, APOLLO).

        >>> optimizer_bytes("adamw_torch", 4), optimizer_bytes("adamw_bnb_8bit", 4), optimizer_bytes("sgd", 4)
        (8, 2, 0)
    """
    if any(word in optim for word in ("paged", "4bit", "galore", "apollo")):
        return 0
    moments = next((number for name, number in MOMENTS.items() if name in optim), 0)
    return moments * (1 if optim.endswith("8bit") else element_size)


def memory_of_step(trainer: Trainer, tokens: int, answer_tokens: int) -> StepMemory:
    """What a step of `trainer`, whose model is loaded, takes of the memory of a GPU.

    `tokens`: of the longest row, prompt and answer; `answer_tokens`: of its answer. What FSDP and DeepSpeed split is
    counted by its share.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    processes, stage = trainer.accelerator.num_processes, 0
    if trainer.is_fsdp_enabled:
        stage = 3
    elif trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
    share = [1 / processes if stage >= level else 1 for level in (3, 2, 1)]  # of weights, gradients, optimizer

    def size(parameter: torch.nn.Parameter) -> int:
        return getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty one in place

    by_identity = {id(parameter): parameter for parameter in model.parameters()}
    trained = [parameter for parameter in by_identity.values() if parameter.requires_grad]
    reference = getattr(trainer, "ref_model", None)
    others = (
        [] if reference is None else [weight for weight in reference.parameters() if id(weight) not in by_identity]
    )
    optim = str(getattr(args.optim, "value", args.optim))
    half = args.bf16 or args.fp16
    config = model.config.get_text_config()
    width, heads = config.hidden_size, getattr(config, "num_attention_heads", 1)
    head_width = getattr(config, "head_dim", None) or width // heads
    shared = getattr(trainer, "_sharing", None) is not None
    written = 0
    if isinstance(args, RL_CONFIGS) and not args.use_vllm:  # vLLM has its share of the memory by its own setting
        written = args.per_device_train_batch_size * args.steps_per_generation
    return StepMemory(
        weights=share[0] * sum(size(weight) * weight.element_size() for weight in by_identity.values()),
        gradients=share[1] * sum(size(weight) * weight.element_size() for weight in trained),
        optimizer=share[2] * sum(size(weight) * optimizer_bytes(optim, weight.element_size()) for weight in trained),
        reference=share[0] * sum(size(weight) * weight.element_size() for weight in others),
        copies=share[0] * sum(2 * size(weight) for weight in trained if half and weight.dtype == torch.float32),
        layers=config.num_hidden_layers,
        width=width,
        mlp_width=getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", 4 * width),  # OPT; GPT-2
        key_value_width=(getattr(config, "num_key_value_heads", None) or heads) * head_width,
        vocabulary=config.vocab_size,
        rows=args.per_device_train_batch_size,
        tokens=tokens,
        answer_tokens=answer_tokens,
        written=written,
        value=2 if half or model.dtype in (torch.bfloat16, torch.float16) else 4,
        checkpointing=args.gradient_checkpointing,
        rows_of_a_prompt=args.num_generations if shared else 1,
    )
