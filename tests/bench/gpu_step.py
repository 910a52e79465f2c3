"""Times a training step of the papers' real sizes on one GPU, beside what recipes/cluster.md computes for it.

    python tests/bench/gpu_step.py                # one GPU of 80 GB, at most 8 minutes
    python tests/bench/gpu_step.py --only grpo    # or llmrg4, lmrrg
    python tests/bench/gpu_step.py --tiny         # the same with miniatures on a CPU, which measures nothing

A step of GRPO on Qwen2.5-VL-7B with LoRA (mrgr1/mimic.yaml), of LLM-RG4's stage 2 (llmrg4/mimic_rg4_stage2.yaml) and
of LM-RRG's PPO (lmrrg/mimic_cqrl.yaml), by the recipes' own trainers with the YAMLs' settings. Weights are random and
made on the GPU, the studies are the phantom's: nothing is downloaded. Untrained policies do not end their reports, so
every completion has its full length. Prints a table of seconds, tokens, share of the GPU's peak in the update and peak
memory, and writes outputs/bench/gpu_step/results.json; exits 0 whether or not the bars hold.
"""

import argparse
import gc
import os
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import yaml
from accelerate.utils import is_peft_model
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import (
    BertConfig,
    Dinov2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Trainer,
    TrainerCallback,
)
from trl import GRPOConfig, ModelConfig, get_peft_config

from modeling import LLMRG4Config, LMRRGConfig
from modeling.configuration_lmrrg import OPT_2_7B
from modeling.tiny import build_qwen2_5_vl, train_tokenizer
from modeling.tiny_llmrg4 import build_llmrg4
from modeling.tiny_lmrrg import build_lmrrg
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import report, run
from recipes.data.samples import prepare_images, to_samples
from recipes.data.schema import FEATURES
from recipes.files import InputError, read_prompt
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.memory import memory_of_step
from recipes.trainers.ppo import PPOConfig, PPOTrainer
from recipes.trainers.run_summary import longest_row
from recipes.trainers.scenario_sft import ScenarioSFTConfig, ScenarioSFTTrainer

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
GPUS = {  # dense bf16 operations and bytes of memory a second, as their makers state them (SXM)
    "A100": (312e12, 2.039e12),
    "H100": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "L40S": (362e12, 0.864e12),
    "L20": (119.5e12, 0.864e12),
}
EASYR1 = (8 / 6 * 0.16, 8 / 6 * 0.232)  # of the operations that checkpointing makes: see recipes/cluster.md
ASSUMED = 0.4  # of the peak, cluster.md's
MARGIN = 1.3  # measured memory / computed, which leaves out CUDA, gaps and frozen encoders
QWEN_TEXT = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
TINY = {
    "use_cpu": True, "bf16": False, "optim": "adamw_torch", "effective_batch_size": 4, "num_generations": 2,
    "per_device_train_batch_size": 2, "max_completion_length": 6,
}  # fmt: skip


class Meter(TrainerCallback):
    """Seconds, seconds of writing and tokens of the steps after the first `skipped`; ends the run after `limit` s."""

    def __init__(self, trainer, skipped: int, limit: float):
        self.trainer, self.skipped, self.limit, self.writing = trainer, skipped, limit, 0.0
        self.marks: list[tuple[float, float, int]] = []
        self.begin = time.perf_counter()
        generate = getattr(trainer, "_generate", None)

        def timed(prompts):
            start = self.now()
            result = generate(prompts)
            self.writing += self.now() - start
            return result

        if generate is not None:
            trainer._generate = timed

    def now(self) -> float:
        """Seconds, when the GPU has done all that it was asked for."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        tokens = getattr(self.trainer, "_total_train_tokens", 0) or state.num_input_tokens_seen
        self.marks.append((self.now(), self.writing, tokens))
        if self.now() - self.begin > self.limit and len(self.marks) > self.skipped:
            control.should_training_stop = True

    def figures(self) -> dict[str, float]:
        """Means of a step: `seconds`, `writing` seconds, `tokens`; and the number of `steps` that were measured."""
        first, last = self.marks[self.skipped - 1], self.marks[-1]
        steps = len(self.marks) - self.skipped
        seconds, writing, tokens = ((end - start) / steps for start, end in zip(first, last, strict=True))
        return {"seconds": seconds, "writing": writing, "tokens": tokens, "steps": steps}


def letters_reward(completions: list, **kwargs) -> list[float]:
    """Costs nothing, and differs between completions. In [0, 1]."""
    return [len(set(completion[0]["content"])) % 10 / 10 for completion in completions]


def read_settings(file: str, config_class: type, folder: str, tiny: bool, steps: int) -> tuple:
    """The trainer's config and the ModelConfig of a YAML, for `steps` steps that save nothing."""
    values = yaml.safe_load((CONFIGS / file).read_text())

    def known(kind: type, values: dict) -> dict:
        names = {field.name for field in fields(kind)}
        return {name: value for name, value in values.items() if name in names}

    changes = {
        "output_dir": folder,
        "max_steps": steps,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
    }
    changes |= {"dataloader_num_workers": 0, "log_completions": False, "disable_tqdm": True, "reward_weights": None}
    changes |= TINY if tiny else {}
    return (
        config_class(**known(config_class, values | changes)),
        ModelConfig(**known(ModelConfig, values)),
        values,
    )


def make_rows(scenario: str, number: int, size: int) -> Dataset:
    """Phantom studies with images about `size` pixels wide; no span is a key one."""
    args = BuildArguments(size=size, shapes="square")
    rows = [dict.fromkeys(FEATURES) | build_row("train", i, scenario, args) for i in range(number)]
    return Dataset.from_list(rows, features=FEATURES)


def texts_of(rows: Dataset, prompt: str) -> list[str]:
    """What a tokenizer is made from, so that its tokens are words, as those of the real one."""
    return [*rows["report"], *filter(None, rows["prior_report"]), *[prompt] * 20]


def write_on(args: GRPOConfig, processor) -> None:
    """Has completions of full length and without an image's placeholder, either of which a random policy may draw."""
    args.generation_kwargs = {"suppress_tokens": sorted(processor.tokenizer.added_tokens_decoder)}


def qwen_config(ids: Qwen2_5_VLConfig) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-7B's, with the special tokens of the miniature `ids`."""
    text = {name: getattr(ids.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    places = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return Qwen2_5_VLConfig(
        text_config=QWEN_TEXT | text,
        vision_config=QWEN_VISION,
        tie_word_embeddings=False,
        **{name: getattr(ids, name) for name in places},
    )


def llmrg4_config(ids: LLMRG4Config) -> LLMRG4Config:
    """LLM-RG4's with RAD-DINO, CXR-BERT and Vicuna 7B, with the special tokens of the miniature `ids`."""
    text = {name: getattr(ids.text_config, name) for name in ("eos_token_id", "pad_token_id")}
    return LLMRG4Config(
        vision_config=Dinov2Config(image_size=518, patch_size=14),
        prior_config=BertConfig(),
        text_config=LlamaConfig(vocab_size=32001, bos_token_id=None, **text),
        image_token_id=ids.image_token_id,
    )


def lmrrg_config(ids: LMRRGConfig) -> LMRRGConfig:
    """LM-RRG's with OPT-2.7B, with the special tokens of the miniature `ids`."""
    text = {name: getattr(ids.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = OPTConfig(**OPT_2_7B, vocab_size=50304, word_embed_proj_dim=2560, **text)
    return LMRRGConfig(text_config=config, image_token_id=ids.image_token_id, freeze_extractor=ids.freeze_extractor)


def enlarge(tiny_model: PreTrainedModel, config: PreTrainedConfig, dtype: str, device: str = "cuda"):
    """A model of the miniature's class with random weights in the sizes of `config`, made on `device`."""
    with torch.device(device):
        model = type(tiny_model)._from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model.generation_config = tiny_model.generation_config
    return model


@dataclass
class Step:
    """A trainer whose steps are measured, and what cluster.md's formula of their operations needs."""

    trainer: Trainer
    warm_up: int  # steps that are not measured: all updates on the first batch of completions
    passes: int  # over all tokens without gradients, besides generation: the reference's, the old policy's
    patches: int = 0  # of a sample's images that the frozen encoder takes
    encoded: int = 0  # times


def make_grpo(folder: str, tiny: bool) -> Step:
    """MRG-R1: LoRA on the language model, the reference without it."""
    args, model_args, values = read_settings("mrgr1/mimic.yaml", MRGR1Config, folder, tiny, 3)
    prompt = read_prompt(values["prompt_file"])
    rows = make_rows("sn", 4 if tiny else 32, 64 if tiny else 1024)
    tokenizer = train_tokenizer(texts_of(rows, prompt), 3000)
    model, processor = build_qwen2_5_vl(tokenizer, hidden_size=64, text_layers=1, vision_layers=1)
    if not tiny:
        processor.image_processor.size = {"shortest_edge": values["min_pixels"], "longest_edge": values["max_pixels"]}
        model = enlarge(model, qwen_config(model.config), values["dtype"])
    samples = prepare_images({"train": to_samples(rows, prompt, values["views"])}, processor)["train"]
    write_on(args, processor)
    trainer = MRGR1Trainer(
        model=model,
        reward_funcs=[letters_reward],
        args=args,
        train_dataset=samples,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    patches = int(processor.image_processor(samples[0]["images"], return_tensors="pt")["image_grid_thw"].prod())
    return Step(trainer, 1, passes=1, patches=patches, encoded=3)  # to write, for the reference, for the update


def make_llmrg4(folder: str, tiny: bool) -> Step:
    """LLM-RG4's stage 2: fusion and LoRA; all studies are of the dearest scenario, two views and a prior report."""
    args, model_args, values = read_settings("llmrg4/mimic_rg4_stage2.yaml", ScenarioSFTConfig, folder, tiny, 6)
    prompt = read_prompt(values["prompt_file"])
    rows = make_rows("mw", 4 if tiny else 64, 64 if tiny else 518)
    sizes = {} if tiny else {"image_size": 518, "num_visual_tokens": 128}
    model, processor = build_llmrg4(texts_of(rows, prompt), **sizes)
    if not tiny:
        model = enlarge(model, llmrg4_config(model.config), values["dtype"])
    model.model.token_fusion.float()
    samples = to_samples(rows, prompt, "frontal+lateral", completion="plain", keep=("scenario", "key_spans"))
    lora = get_peft_config(model_args)
    lora.modules_to_save = ["token_fusion"]
    trainer = ScenarioSFTTrainer(
        model=model,
        args=args,
        train_dataset=prepare_images({"train": samples}, processor)["train"],
        processing_class=processor,
        peft_config=lora,
    )
    return Step(trainer, 2, passes=0, patches=2 * 37**2, encoded=1)


def make_lmrrg(folder: str, tiny: bool) -> Step:
    """LM-RRG's PPO: decoder and VTrans trained whole, the reference a copy; an image is encoded once for a batch."""
    args, _, values = read_settings("lmrrg/mimic_cqrl.yaml", PPOConfig, folder, tiny, 8)
    prompt = read_prompt(values["prompt_file"])
    rows = make_rows("sn", 4 if tiny else 64, 64 if tiny else 256)
    model, processor = build_lmrrg(texts_of(rows, prompt), image_size=64 if tiny else 224, freeze_extractor=True)
    if not tiny:
        model = enlarge(model, lmrrg_config(model.config), values["dtype"])
    samples = prepare_images({"train": to_samples(rows, prompt, values["views"])}, processor)["train"]
    write_on(args, processor)
    trainer = PPOTrainer(model, [letters_reward], args, samples, processing_class=processor)
    return Step(trainer, args.num_iterations, passes=2)


MAKERS = {"grpo": make_grpo, "llmrg4": make_llmrg4, "lmrrg": make_lmrrg}
LIMITS = {"grpo": 180, "llmrg4": 60, "lmrrg": 100}  # seconds of training after which no step begins
TITLES = {
    "grpo": "GRPO, Qwen2.5-VL-7B, LoRA",
    "llmrg4": "LLM-RG4, stage 2",
    "lmrrg": "LM-RRG, PPO",
}


def decoder_weights(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights that multiply with each token of the decoder, LoRA's included: all of it but its embeddings, unless
    its head has the same."""
    base = model.get_base_model() if is_peft_model(model) else model
    named = [(name, value) for name, value in base.named_parameters() if "language_model" in name or "lm_head" in name]
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    words = base.get_input_embeddings().weight
    return [value for name, value in named if "embed" not in name or (tied and value is words)]


def operations(step: Step, tokens: float, rows: int) -> float:
    """Operations of an update on `rows` rows with `tokens` tokens in all, as cluster.md counts them.

    A weight of the decoder takes 2 for each token in a forward pass, 2 in a second one (checkpointing), 2 for the
    gradients of activations and 2 for its own gradient, if it has one; LoRA's weights are not counted. `passes`
    without gradients are shared by all updates on a batch.
    """
    args, model = step.trainer.args, step.trainer.accelerator.unwrap_model(step.trainer.model)
    lora = {id(value) for name, value in model.named_parameters() if "lora_" in name}
    weights = [value for value in decoder_weights(model) if id(value) not in lora]
    updates = getattr(args, "num_iterations", 1)
    of_a_token = 2 + 2 * args.gradient_checkpointing + 2 + 2 * step.passes / updates
    total = sum(value.numel() * (of_a_token + 2 * value.requires_grad) for value in weights) * tokens
    if step.encoded:
        base = model.get_base_model() if is_peft_model(model) else model
        encoder = next(getattr(base.model, name) for name in ("visual", "vision_encoder") if hasattr(base.model, name))
        total += 2 * step.encoded * sum(value.numel() for value in encoder.parameters()) * step.patches * rows
    return total


def writing_bytes(step: Step) -> float:
    """Bytes of weights that writing a step's completions reads at least: all of the decoder for each token."""
    args = step.trainer.args
    if not isinstance(args, GRPOConfig):
        return 0.0
    model = step.trainer.accelerator.unwrap_model(step.trainer.model)
    size = sum(value.numel() * value.element_size() for value in decoder_weights(model))
    return size * args.max_completion_length / args.num_iterations


def measure(name: str, tiny: bool) -> dict:
    """Trains some steps of `name`; returns what was measured and what is computed for them, or `reason` why not."""
    with tempfile.TemporaryDirectory() as folder:
        step = MAKERS[name](folder, tiny)
        trainer, args = step.trainer, step.trainer.args
        meter = Meter(trainer, step.warm_up, LIMITS[name])
        trainer.add_callback(meter)
        prompt, answer, _ = longest_row(trainer, trainer.get_train_dataloader())
        if not tiny:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    figures = meter.figures()
    figures["tokens"] *= getattr(args, "num_iterations", 1)  # TRL counts those of a batch of completions once
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    figures["computed_memory"] = memory_of_step(trainer, prompt + answer, answer).peak
    figures["operations"] = operations(step, figures["tokens"], rows)
    figures["writing_bytes"] = writing_bytes(step)
    if not tiny:
        figures["memory"] = torch.cuda.max_memory_allocated()
    return figures


def compare(name: str, figures: dict, speeds: tuple[float, float] | None) -> list[dict]:
    """`figures` of a run beside those of cluster.md's formulas; `speeds`: operations and bytes a second of the GPU.

    Adds `share`, of the peak in all but writing, `computed_seconds` by share of the peak. Returns the checks.
    """
    update = figures["seconds"] - figures["writing"]
    checks = []
    if speeds:
        figures["share"] = figures["operations"] / update / speeds[0]
        least = figures["writing_bytes"] / speeds[1]
        figures["computed_seconds"] = {
            f"{share:.1%}": figures["operations"] / speeds[0] / share + least for share in (ASSUMED, *EASYR1[::-1])
        }
        figures["computed_writing"] = least
        share, low = figures["share"], EASYR1[0]
        checks.append({"name": f"{TITLES[name]}: share of the peak in the update", "value": share,
                       "bar": f">= {low:.3f}, EasyR1's", "holds": share >= low})  # fmt: skip
    if "memory" in figures:
        ratio = figures["memory"] / figures["computed_memory"]
        checks.append({"name": f"{TITLES[name]}: peak memory / computed", "value": ratio,
                       "bar": f"1 to {MARGIN}", "holds": 1 <= ratio <= MARGIN})  # fmt: skip
    return checks or [{"name": TITLES[name], "value": "runs; nothing to compare with", "bar": "-", "holds": None}]


def show(results: dict[str, dict]) -> None:
    """The table of all runs."""
    table = Table("step", "s", "of it writing", "tokens/s", "share of peak", "GB", "computed: s", "writing", "GB")
    for name, row in results.items():
        if "reason" in row:
            table.add_row(TITLES[name], row["reason"])
            continue
        computed = ", ".join(f"{value:.1f} at {share}" for share, value in row.get("computed_seconds", {}).items())
        table.add_row(
            TITLES[name],
            f"{row['seconds']:.2f}",
            f"{row['writing']:.2f}",
            f"{row['tokens'] / row['seconds']:,.0f}",
            f"{row['share']:.1%}" if "share" in row else "-",
            f"{row['memory'] / 1e9:.1f}" if "memory" in row else "-",
            computed or "-",
            f"{row['computed_writing']:.2f}" if "computed_writing" in row else "-",
            f"{row['computed_memory'] / 1e9:.1f}",
        )
    Console(width=160).print(table)
    print(
        f"EasyR1 v0.3.2 (Qwen2.5-VL-7B, GRPO, all weights, 8 x H100): {EASYR1[0]:.1%} to {EASYR1[1]:.1%} of the peak "
        "in the update as counted here, 68 to 72 GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Times a training step of the papers' real sizes on one GPU.")
    parser.add_argument("--tiny", action="store_true", help="Miniatures on the CPU: shows that it runs, no more.")
    parser.add_argument("--only", choices=list(MAKERS), help="One of the steps.")
    args = parser.parse_args()
    if not args.tiny:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU, which is asked for the first time below
    if not args.tiny and not torch.cuda.is_available():
        print("there is no GPU, so no step of the real sizes can be measured: --tiny runs the same with miniatures")
        return
    name = "" if args.tiny else torch.cuda.get_device_name()
    speeds = next((speeds for known, speeds in GPUS.items() if known in name), None)
    results, checks = {}, []
    for step in [args.only] if args.only else MAKERS:
        try:
            results[step] = measure(step, args.tiny)
        except (InputError, torch.OutOfMemoryError) as error:
            results[step] = {"reason": str(error).splitlines()[0]}
            checks.append({"name": TITLES[step], "value": results[step]["reason"], "bar": "-", "holds": None})
        else:
            checks += compare(step, results[step], speeds)
        gc.collect()
        if not args.tiny:
            torch.cuda.empty_cache()
    show(results)
    report("outputs/bench/gpu_step", {"gpu": name or "none", "tiny": args.tiny, "steps": results}, checks)


if __name__ == "__main__":
    run(main)
