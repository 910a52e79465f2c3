"""Writes reports with any vision-language model: batched, resumable, one JSON line per sample.

    python recipes/generate.py --model outputs/phantom/grpo --dataset outputs/data/phantom --split test \
        --out outputs/phantom/test.jsonl --prompt_file prompts/mrgr1_tiny.txt --views all
    python recipes/generate.py --model Qwen/Qwen2.5-VL-3B-Instruct --dataset outputs/data/iu_xray --dtype bfloat16 ...

Started again with the same arguments it continues where it was stopped. `--shuffle_images` gives every sample the
images of another study: the control that shows how much a model looks at them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from pyarrow.compute import list_value_length
from rich.progress import track
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from recipes.cli import InputError, check_model, parse, read_prompt, run
from recipes.data.samples import columns_of, to_samples
from recipes.data.schema import read_split


@dataclass
class GenerateArguments:
    model: str = field(metadata={"help": "A checkpoint's folder or its Hub id."})
    dataset: str = field(metadata={"help": "A built data set's folder, or its Hub id."})
    out: str = field(metadata={"help": "The JSONL file to write or to continue."})
    split: str = field(default="test")
    prompt_file: str = field(
        default="prompts/mrgr1_reasoning.txt", metadata={"help": "A path, or beside the recipes."}
    )
    views: str = field(default="each", metadata={"help": "each image a sample, frontal, or all at once."})
    batch_size: int = field(default=16)
    max_new_tokens: int = field(default=512)
    min_new_tokens: int = field(default=0)
    num_beams: int = field(default=1)
    repetition_penalty: float = field(default=1.0)
    length_penalty: float = field(default=1.0, metadata={"help": "Of beam search; above 1 favours long reports."})
    temperature: float = field(default=0.0, metadata={"help": "0: greedy or beam search; above: sampling."})
    min_pixels: int | None = field(default=None)
    max_pixels: int | None = field(default=None)
    dtype: str = field(default="float32")
    shuffle_images: bool = field(default=False, metadata={"help": "The control: images of another study."})
    limit: int | None = field(default=None, metadata={"help": "The first so many samples only."})
    seed: int = field(default=42)


def shuffled_images(samples: Dataset, seed: int) -> Dataset:
    """`samples` with the images exchanged between studies around random cycles, so that no study keeps its own.

    A cycle joins the studies whose samples have as many images; one that is alone in that goes into the first cycle.
    """
    studies: dict[str, list[int]] = {}
    for row, study in enumerate(samples["study_id"]):
        studies.setdefault(study, []).append(row)
    if len(studies) < 2:
        raise InputError("--shuffle_images needs at least two studies")
    sizes = list_value_length(samples.with_format("arrow")[:]["images"]).to_pylist()
    alike: dict[int, list[list[int]]] = {}
    for rows in studies.values():
        alike.setdefault(max(sizes[row] for row in rows), []).append(rows)
    cycles = [each for each in alike.values() if len(each) > 1] or [[]]
    cycles[0] += [rows for each in alike.values() if len(each) == 1 for rows in each]
    generator, partner = torch.Generator().manual_seed(seed), [0] * len(samples)
    for rows in cycles:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for study, other in zip(order, order[1:] + order[:1], strict=True):
            for position, row in enumerate(rows[study]):  # frontal takes frontal where both have it
                partner[row] = rows[other][position % len(rows[other])]
    images = samples.select_columns("images").select(partner)
    return concatenate_datasets([samples.remove_columns("images"), images], axis=1)


def finished_samples(out: Path, arguments: dict) -> int:
    """How many samples `out` already holds; a line cut off by an interruption is removed."""
    if not out.is_file():
        return 0
    lines = out.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    begins = b'{"study_id": '
    try:
        if lines and lines[0][: len(begins)] != begins[: len(lines[0])]:
            raise ValueError("a line of another kind")
        used = json.loads(whole[0])["arguments"] if whole else arguments
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out} exists and was not written by generate.py; name another --out") from error
    if changed := [name for name in arguments if used.get(name) != arguments[name]]:
        raise InputError(f"{out} was begun with another --{changed[0]} ({used.get(changed[0])}); name another --out")
    if len(whole) < len(lines):
        out.write_bytes(b"".join(whole))
    return len(whole)


@torch.no_grad()
def main() -> None:
    (args,) = parse(GenerateArguments)
    set_seed(args.seed)
    if args.batch_size < 1 or args.max_new_tokens < 1:
        raise InputError("--batch_size and --max_new_tokens must be at least 1")
    prompt = read_prompt(args.prompt_file)
    rows = read_split(args.dataset, args.split, columns_of(prompt, args.views))
    samples = to_samples(rows, prompt, args.views, keep=("study_id",))
    if args.shuffle_images:
        samples = shuffled_images(samples, args.seed)
    samples = samples.select(range(min(args.limit or len(samples), len(samples))))
    noted = {name: value for name, value in vars(args).items() if name not in ("out", "batch_size", "limit")}
    done = finished_samples(Path(args.out), noted)
    if done >= len(samples):
        print(f"{args.out} is complete ({done} samples)")
        return

    check_model(args.model)
    adapter = Path(args.model) / "adapter_config.json"
    if adapter.is_file() and json.loads(adapter.read_text())["modules_to_save"]:
        raise InputError(f"{args.model} is an adapter that transformers reads in part: name the run's own folder")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype).to(device).eval()
    pixels = {"min_pixels": args.min_pixels, "max_pixels": args.max_pixels}
    processor = AutoProcessor.from_pretrained(
        args.model, padding_side="left", **{name: value for name, value in pixels.items() if value}
    )
    names = ("num_beams", "max_new_tokens", "min_new_tokens", "repetition_penalty", "length_penalty")
    options = {"do_sample": args.temperature > 0, **{name: getattr(args, name) for name in names}}
    if args.temperature > 0:
        options |= {"temperature": args.temperature, "top_k": 0, "top_p": 1.0}
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "a") as file:
        starts = range(done, len(samples), args.batch_size)
        for start in track(starts, description=f"{Path(args.out).name:30}"):
            batch = samples[start : start + args.batch_size]
            messages = [
                [{"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]}]
                for images, text in zip(batch["images"], (m[0]["content"] for m in batch["prompt"]), strict=True)
            ]
            texts = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            inputs = processor(images=batch["images"], text=texts, padding=True, return_tensors="pt").to(device)
            tokens = model.generate(**inputs, **options, suppress_tokens=[model.config.image_token_id])
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
            completions = processor.batch_decode(tokens, skip_special_tokens=True)
            for study_id, completion in zip(batch["study_id"], completions, strict=True):
                row = {"study_id": study_id, "completion": completion, "arguments": noted}
                file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    run(main)
