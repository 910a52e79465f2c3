"""The policies that recipes/rl.py and dpo.py train, each as its own scripts set it up, and rl.py's algorithms."""

from dataclasses import dataclass, field
from typing import NamedTuple

from peft import PeftConfig
from transformers import AutoConfig, PreTrainedModel, ProcessorMixin
from trl import ModelConfig

from recipes.data.model_files import check_model, read_adapter
from recipes.data.samples import ImageArguments
from recipes.files import InputError
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.llmrg4 import VIEWS
from recipes.trainers.lmrrg import load_stage2, lora_of_decoder
from recipes.trainers.ppo import PPOConfig, PPOTrainer
from recipes.trainers.rloo import RLOORecipeConfig, RLOORecipeTrainer
from recipes.trainers.setup import load_base_processor

ALGORITHMS = {
    "grpo": (MRGR1Config, MRGR1Trainer),
    "rloo": (RLOORecipeConfig, RLOORecipeTrainer),
    "ppo": (PPOConfig, PPOTrainer),
}


class System(NamedTuple):
    """What a model of one type was trained with: its prompt file, and the views it takes, its usual ones first."""

    name: str
    prompt_file: str
    views: tuple[str, ...]


SYSTEMS = {  # of our own, by the model type in config.json
    "llmrg4": System("LLM-RG4", "prompts/llmrg4.txt", (VIEWS,)),
    "lmrrg": System("LM-RRG", "prompts/lmrrg.txt", ("frontal", "each")),
}
VISION_LANGUAGE = System("a vision-language model", "prompts/mrgr1_reasoning.txt", ("each", "frontal", "all"))


@dataclass
class PolicyArguments(ImageArguments):
    """ImageArguments of any policy; what is None is as in the policy's own scripts."""

    prompt_file: str | None = field(
        default=None,
        metadata={"help": "Prompt file: a path, or a name beside the recipes; none: that of the policy's scripts."},
    )
    views: str | None = field(
        default=None,
        metadata={
            "help": "Images of a sample. Qwen2.5-VL: each alone, the frontal one, or all at once; LM-RRG: frontal or "
            "each; LLM-RG4: frontal+lateral; none: the first of these."
        },
    )


def choose_algorithm(name: str) -> tuple[type, type]:
    """The config and the trainer of an algorithm. Raises InputError on an unknown name.

    >>> [kind.__name__ for kind in choose_algorithm("rloo")]
    ['RLOORecipeConfig', 'RLOORecipeTrainer']
    """
    if name not in ALGORITHMS:
        raise InputError(
            f"there is no algorithm {name!r}: choose among {', '.join(ALGORITHMS)} (preference learning: "
            "recipes/dpo.py)"
        )
    return ALGORITHMS[name]


def find_model_type(args: ImageArguments, model_args: ModelConfig) -> str:
    """The model type in the config.json of the model that `model_args` names, or of an adapter's base model.

    Raises InputError where no model is named, it cannot be loaded, reads no images, or has no range of pixels.
    """
    name, revision = model_args.model_name_or_path, model_args.model_revision
    check_model(name, attention=model_args.attn_implementation)
    adapter = read_adapter(name)
    base, revision = (adapter["base_model_name_or_path"], None) if adapter else (name, revision)
    model_type = AutoConfig.from_pretrained(base, revision=revision).model_type
    if model_type in SYSTEMS and (args.min_pixels or args.max_pixels):
        raise InputError(
            f"the images of {SYSTEMS[model_type].name} have one size: leave out --min_pixels and --max_pixels"
        )
    return model_type


def complete_arguments(args: PolicyArguments, training_args, model_args: ModelConfig) -> None:
    """Gives `args` the prompt and the views of the policy where they are None.

    Raises InputError as `find_model_type`, and on a setting that the policy cannot be trained with.
    """
    model_type = find_model_type(args, model_args)
    system = SYSTEMS.get(model_type, VISION_LANGUAGE)
    args.prompt_file = args.prompt_file or system.prompt_file
    args.views = args.views or system.views[0]
    if args.views not in system.views:
        raise InputError(f"--views of {system.name} must be one of {', '.join(system.views)}, not {args.views}")
    if model_type in SYSTEMS and training_args.use_vllm:
        raise InputError(f"vLLM does not know {system.name}: set use_vllm: false")


def load_policy(
    args: ImageArguments, training_args, model_args: ModelConfig
) -> tuple[str | PreTrainedModel, ProcessorMixin, PeftConfig | None]:
    """The model, loaded or by name, its processor and its LoRA, if any, as the trainers of RL and DPO take them.

    LoRA is in the decoder alone, on queries and values unless `model_args` names others; what connects the images to
    it, LLM-RG4's fusion and LM-RRG's VTrans, is trained as a whole beside it. The image encoders of both are frozen.
    `training_args` gets what TRL loads a model by name with. Raises InputError as `load_base_processor` and
    `load_stage2`.
    """
    model_type, revision = find_model_type(args, model_args), model_args.model_revision
    if model_type == "lmrrg":
        if revision:
            training_args.model_init_kwargs = {"revision": revision}  # of the reference, which TRL loads by name
        return load_stage2(model_args)
    training_args.model_init_kwargs = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "revision": revision,
    }
    modules = ["token_fusion"] if model_type == "llmrg4" else model_args.lora_modules_to_save
    processor = load_base_processor(model_args, args.min_pixels, args.max_pixels)
    return model_args.model_name_or_path, processor, lora_of_decoder(model_args, modules)
