"""Builds a tiny Qwen2.5-VL for a data set: tokenizer from its reports, random weights, then a warm-up.

    python recipes/build_tiny.py --dataset outputs/data/phantom --warm_up outputs/data/balanced \\
        --out outputs/phantom/tiny

Real systems start from a medical image encoder and a language model that knows the field. The warm-up stands for both:
on another built data set (best a balanced phantom, where no finding is rare) the vision tower learns to tell the
findings apart, and the language model to name and to describe them. recipes/sft_mrgr1.py comes next.
"""

from dataclasses import dataclass, field

import torch

from modeling.tiny import build_qwen2_5_vl, train_tokenizer, warm_up
from recipes.cli import InputError, parse, read_prompt, replacing, run
from recipes.data.samples import write_answer
from recipes.data.schema import read_split
from rewards.labels import FINDINGS


@dataclass
class TinyArguments:
    dataset: str = field(metadata={"help": "The built data set whose reports make the tokenizer."})
    out: str = field(metadata={"help": "Folder of the new model."})
    warm_up: str | None = field(default=None, metadata={"help": "A built data set for the warm-up; none: no warm-up."})
    warm_up_steps: int = field(default=300)
    prompt_file: str = field(default="prompts/mrgr1_tiny.txt", metadata={"help": "The prompt of the later training."})
    image_size: int = field(default=112, metadata={"help": "Pixels, a multiple of 28."})
    hidden_size: int = field(default=128, metadata={"help": "Width of the language model, a multiple of 64."})
    vocab_size: int = field(default=768, metadata={"help": "Entries of the tokenizer, at least 280."})
    seed: int = field(default=0)


def main() -> None:
    (args,) = parse(TinyArguments)
    if args.image_size % 28 or args.hidden_size % 64 or args.vocab_size < 280:
        raise InputError("--image_size is a multiple of 28, --hidden_size a multiple of 64, --vocab_size at least 280")
    rows = read_split(args.dataset, "train", ("report", "labels"))
    answers = [write_answer(row["labels"], row["report"]) for row in rows.select_columns(["labels", "report"])]
    tokenizer = train_tokenizer([*answers, read_prompt(args.prompt_file)], args.vocab_size)
    model, processor = build_qwen2_5_vl(tokenizer, args.image_size, args.hidden_size, seed=args.seed)
    if args.warm_up:
        columns = ["images", "labels", "report"]
        rows = list(read_split(args.warm_up, "train", columns).select_columns(columns))
        value = torch.tensor([0.0, 1.0, 0.0, 0.5])  # blank, positive, negative, uncertain
        targets = value[torch.tensor([row["labels"] for row in rows])][:, : len(FINDINGS)]
        images = [row["images"][0] for row in rows]
        answers = [write_answer(row["labels"], row["report"]) + "<|im_end|>" for row in rows]
        warm_up(model, processor, images, targets, read_prompt(args.prompt_file), answers, args.warm_up_steps)
    with replacing(args.out, marker="config.json") as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    run(main)
