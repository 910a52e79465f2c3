"""Writes reports with any vision-language model of transformers, one JSON line per sample.

    python recipes/generate.py --model outputs/phantom/grpo --dataset outputs/data/phantom --split test \
        --out outputs/phantom/test.jsonl

Of a model of these recipes, prompt, views, pixels and length are those of its training (its run_config.json); a
sentence says where an argument differs. Zero-shot baselines, all asked alike (MRG-R1 section IV-D), and several
processes, each with its share of the samples:

    torchrun --nproc_per_node 8 recipes/generate.py --model google/medgemma-4b-it --dataset outputs/data/iu_xray \
        --prompt_file prompts/zero_shot.txt --dtype bfloat16 --out outputs/zero_shot/medgemma-4b.jsonl
    python recipes/generate.py --engine vllm --model Qwen/Qwen2.5-VL-7B-Instruct --dataset outputs/data/iu_xray ...

Started again with the same arguments it continues where it was stopped. `--shuffle_images` gives every sample the
images of another study: the control that shows how much a model looks at them. A line holds `study_id`, `sample` (its
place), `prompt`, the raw `completion`, its parts `think` and `report`, `input_tokens` (of image and prompt), `tokens`,
`seconds` (of its batch, shared out) and the `arguments`.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from recipes.cli import parse, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
import torch
from accelerate import PartialState
from transformers import set_seed

from recipes.data.model_files import check_model, read_adapter
from recipes.data.samples import columns_of, to_samples
from recipes.data.schema import read_split
from recipes.evaluation.decoding import DecodingArguments, ask_as_trained
from recipes.evaluation.generation import (
    ENGINES,
    PATIENCE,
    Shards,
    check_engine,
    most_images,
    shuffled_images,
    usual_dtype,
    write_reports,
)
from recipes.files import InputError, read_prompt

PROMPT, VIEWS = "prompts/mrgr1_reasoning.txt", "each"  # of a model that says nothing of its training
# Arguments that change no report
IGNORED_ON_RESUME = ("out", "batch_size", "limit", "tensor_parallel_size", "check_images")


@dataclass
class GenerateArguments(DecodingArguments):
    written_files: ClassVar[tuple[str, ...]] = ("out",)

    model: str = field(metadata={"help": "Checkpoint or LoRA adapter, a folder or a Hub id."})
    dataset: str = field(metadata={"help": "Built data set, a folder or a Hub id."})
    out: str = field(metadata={"help": "JSONL file to write or to continue."})
    split: str = field(default="test", metadata={"help": "Split to write reports of."})
    prompt_file: str | None = field(
        default=None,
        metadata={
            "help": "Prompt file, a path or a name in the recipes' folder; when not given as in training, else "
            f"{PROMPT}."
        },
    )
    views: str | None = field(
        default=None,
        metadata={
            "help": "Images of a sample: each image alone, frontal, all, or frontal+lateral; when not given as in "
            f"training, else {VIEWS}."
        },
    )
    engine: Literal["transformers", "vllm"] = field(default="transformers", metadata={"help": "Library that writes."})
    batch_size: int = field(default=16, metadata={"help": "Samples that are written at once."})
    num_beams: int = field(default=1, metadata={"help": "Beams of beam search; 1: greedy, or sampling."})
    length_penalty: float = field(
        default=1.0, metadata={"help": "Exponent of the length in beam search; above 1 favours long reports."}
    )
    tensor_parallel_size: int = field(default=1, metadata={"help": "Number of GPUs that vLLM spreads the model over."})
    shuffle_images: bool = field(
        default=False, metadata={"help": "Exchange the images between studies, as a control."}
    )
    check_images: bool = field(
        default=False,
        metadata={
            "help": "Decode every image before anything is written; without it as far as headers and ends show."
        },
    )
    limit: int | None = field(
        default=None, metadata={"help": "Number of samples to write, the first ones; all when not given."}
    )
    seed: int = field(default=42, kw_only=True, metadata={"help": "Seed of sampling and of the exchange of images."})


def main() -> None:
    (args,) = parse(GenerateArguments, several_processes=True)
    args.dtype = args.dtype or usual_dtype()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    set_seed(args.seed)
    for sentence in ask_as_trained(args):
        state.print(sentence)
    args.prompt_file, args.views = args.prompt_file or PROMPT, args.views or VIEWS

    ################
    # Samples
    ################
    prompt = read_prompt(args.prompt_file)
    rows = read_split(args.dataset, args.split, columns_of(prompt, args.views), bare=True)
    limit = None if args.shuffle_images else args.limit  # any study's images may come to one of the first samples
    samples = to_samples(rows, prompt, args.views, keep=("study_id",), limit=limit, check=args.check_images)
    if args.shuffle_images:
        samples = shuffled_images(samples, args.seed)
        samples = samples.select(range(min(args.limit or len(samples), len(samples))))
    settings = {name: value for name, value in vars(args).items() if name not in IGNORED_ON_RESUME}
    shards = Shards(args.out, settings, len(samples), state)
    if shards.complete:
        shards.merge()
        state.print(f"{args.out} is complete ({len(samples)} samples)")
        return

    ################
    # Model
    ################
    check_model(args.model, args.trust_remote_code)
    adapter = read_adapter(args.model)
    if adapter and adapter.get("modules_to_save"):
        raise InputError(f"{args.model} is an adapter that transformers reads in part: name the run's own folder")
    check_engine(args, state)
    engine = ENGINES[args.engine](args, state.device, most_images(samples))

    ################
    # Writing
    ################
    cost = write_reports(samples, engine, shards, args.batch_size, args.seed)
    shards.merge()
    state.print(f"{args.out}: {len(samples)} samples; the first process: {cost}")


if __name__ == "__main__":
    run(main)
