"""Builds a tiny Qwen2.5-VL, LLM-RG4 or LM-RRG: tokenizer, random weights, then a warm-up.

    python recipes/build_tiny.py --dataset outputs/data/phantom --warm_up outputs/data/balanced \\
        --out outputs/phantom/tiny
    python recipes/build_tiny.py --system llmrg4 --prompt_file prompts/llmrg4.txt --chexbert outputs/chexbert \\
        --dataset outputs/data/phantom_rg4 --warm_up outputs/data/balanced_mn --out outputs/llmrg4/tiny

Real systems start from a medical image encoder and a language model that knows the field. The warm-up stands for both:
on another built data set (best a balanced phantom, where no finding is rare) the vision tower learns to tell the
findings apart, and the language model to name and to describe them. recipes/sft_mrgr1.py comes next, or
recipes/sft_llmrg4.py for `--system llmrg4` and recipes/sft_lmrrg.py for `--system lmrrg`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from recipes.cli import parse, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
import torch
from trl import ModelConfig

from modeling.tiny import build_qwen2_5_vl, train_tokenizer, warm_up
from modeling.tiny_llmrg4 import build_llmrg4
from modeling.tiny_lmrrg import build_lmrrg
from recipes.data.samples import columns_of, fill_prompt, write_answer
from recipes.data.schema import read_split
from recipes.demos.warm_up import read_priors_with, warm_up_llmrg4, warm_up_lmrrg
from recipes.files import InputError, read_prompt, replacing
from recipes.hub.push import sources_of
from recipes.trainers.lmrrg import load_checkpoint
from recipes.trainers.setup import save_run
from rewards.labels import FINDINGS


@dataclass
class TinyArguments:
    marker: ClassVar[str] = "config.json"

    dataset: str = field(metadata={"help": "Built data set whose reports make the tokenizer."})
    out: str = field(metadata={"help": "Folder of the new model."})
    system: Literal["qwen2_5_vl", "llmrg4", "lmrrg"] = field(
        default="qwen2_5_vl", metadata={"help": "Architecture to build."}
    )
    chexbert: str | None = field(
        default=None,
        metadata={
            "help": "Tiny CheXbert that reads prior reports in CXR-BERT's place; random when not given (llmrg4)."
        },
    )
    perceiver: Literal["paper", "authors"] = field(
        default="paper", metadata={"help": "Layout of the perceiver (llmrg4)."}
    )
    warm_up: str | None = field(default=None, metadata={"help": "Built data set for a warm-up; none when not given."})
    warm_up_steps: int = field(default=300, metadata={"help": "Steps of the warm-up."})
    prompt_file: str = field(default="prompts/mrgr1_tiny.txt", metadata={"help": "Prompt file of the later training."})
    image_size: int = field(
        default=112, metadata={"help": "Pixels of an image's side, a multiple of 28 (llmrg4, lmrrg)."}
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of the language model, a multiple of 64."})
    vocab_size: int = field(default=768, metadata={"help": "Number of the tokenizer's entries, at least 280."})
    tagged: float = field(default=1.0, metadata={"help": "Share of warm-up answers in tags, 0 to 1 (qwen2_5_vl)."})
    parts_of: str | None = field(
        default=None, metadata={"help": "Folder of another model whose image encoder and decoder are taken (lmrrg)."}
    )
    use_global_feature: bool = field(
        default=True, metadata={"help": "Give the decoder the feature of the whole image (lmrrg, Table 3)."}
    )
    use_region_features: bool = field(
        default=True, metadata={"help": "Give the decoder the features of the regions (lmrrg, Table 3)."}
    )
    use_instruction: bool = field(
        default=True, metadata={"help": "Give the decoder the instruction (lmrrg, Table 3)."}
    )
    region_prompt: Literal["description", "name"] = field(
        default="description", metadata={"help": "Text that a region is asked for with (lmrrg, Table 3)."}
    )
    region_attn_mode: Literal["image_query", "text_query"] = field(
        default="image_query", metadata={"help": "Query of the regions' cross-attention (lmrrg)."}
    )
    lambda_region: float = field(default=0.0, metadata={"help": "Weight of the region loss of stage 1 (lmrrg)."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights."})


def main() -> None:
    (args,) = parse(TinyArguments)
    if args.image_size % 28 or args.hidden_size % 64 or args.vocab_size < 280:
        raise InputError("--image_size is a multiple of 28, --hidden_size a multiple of 64, --vocab_size at least 280")
    if not 0 <= args.tagged <= 1:
        raise InputError(f"--tagged is a share from 0 to 1, not {args.tagged}")
    make = {"qwen2_5_vl": make_qwen2_5_vl, "llmrg4": make_llmrg4, "lmrrg": make_lmrrg}[args.system]
    model, processor = make(args)
    with replacing(args.out, marker="config.json") as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        data = [read_split(name, "train") for name in (args.dataset, args.warm_up) if name]
        sources = {source for rows in data for source in sources_of(rows, args.chexbert, args.parts_of)}
        save_run(folder, args, sources=sorted(sources))
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens")


def make_qwen2_5_vl(args: TinyArguments) -> tuple:
    """The model, warmed up on images with their reports, and its processor."""
    rows = read_split(args.dataset, "train", ("report", "labels"))
    answers = [write_answer(row["labels"], row["report"]) for row in rows.select_columns(["labels", "report"])]
    tokenizer = train_tokenizer([*answers, read_prompt(args.prompt_file)], args.vocab_size)
    model, processor = build_qwen2_5_vl(tokenizer, args.hidden_size, seed=args.seed)
    if args.warm_up:
        columns = ["images", "labels", "report"]
        rows = list(read_split(args.warm_up, "train", columns).select_columns(columns))
        value = torch.tensor([0.0, 1.0, 0.0, 0.5])  # blank, positive, negative, uncertain
        targets = value[torch.tensor([row["labels"] for row in rows])][:, : len(FINDINGS)]
        images = [row["images"][0] for row in rows]
        tagged = torch.rand(len(rows), generator=torch.Generator().manual_seed(args.seed)) < args.tagged
        answers = [
            (write_answer(row["labels"], row["report"]) if tags else row["report"]) + "<|im_end|>"
            for row, tags in zip(rows, tagged.tolist(), strict=True)
        ]
        warm_up(model, processor, images, targets, read_prompt(args.prompt_file), answers, args.warm_up_steps)
    return model, processor


def make_llmrg4(args: TinyArguments) -> tuple:
    """The model, warmed up on frontal images with their reports, and its processor."""
    prompt = read_prompt(args.prompt_file)
    rows = read_split(args.dataset, "train", columns_of(prompt, "frontal+lateral")).remove_columns("images")
    texts = [text for row in rows for text in (fill_prompt(prompt, row), row["report"])]
    model, processor = build_llmrg4(
        texts,
        image_size=args.image_size,
        hidden_size=args.hidden_size,
        text_layers=3,
        vision_size=args.hidden_size,
        vision_layers=3,
        num_visual_tokens=16,
        fusion="interleaved",
        perceiver=args.perceiver,
        vocab_size=args.vocab_size,
        seed=args.seed,
    )
    if args.chexbert:
        model, processor = read_priors_with(args.chexbert, model, processor)
    if args.warm_up:
        rows = read_split(args.warm_up, "train", (*columns_of(prompt, "all"), "labels", "impression"))
        warm_up_llmrg4(model, processor, rows, prompt, args.warm_up_steps)
    return model, processor


def make_lmrrg(args: TinyArguments) -> tuple:
    """The model, its image encoder and its decoder warmed up each by itself, and its processor."""
    prompt = read_prompt(args.prompt_file)
    model, processor = build_lmrrg(
        [prompt, *read_split(args.dataset, "train", ("report",))["report"]],
        image_size=args.image_size,
        patch_size=28,  # 16 patches see as much as 49 of 16 pixels, and the region blocks take a third of the time
        hidden_size=args.hidden_size,
        text_layers=3,
        vision_size=args.hidden_size,
        vision_layers=3,
        projection_dim=args.hidden_size // 4,
        vocab_size=args.vocab_size,
        seed=args.seed,
        **{name: value for name, value in vars(args).items() if name.startswith(("use_", "region_", "lambda_"))},
    )
    if args.parts_of:
        donor, _ = load_checkpoint(args.parts_of, ModelConfig(dtype="float32"))
        for name in ("visual_extractor.vision_model", "visual_extractor.visual_projection", "language_model"):
            model.model.get_submodule(name).load_state_dict(donor.model.get_submodule(name).state_dict())
    elif args.warm_up:
        rows = read_split(args.warm_up, "train", ("images", "labels", "report", "impression"))
        warm_up_lmrrg(model, processor, rows, prompt, args.warm_up_steps)
    return model, processor


if __name__ == "__main__":
    run(main)
