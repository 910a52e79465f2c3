"""The plumbing of recipes/generate.py: what is left to write, one file from many processes, and two engines."""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from PIL import Image
from pyarrow.compute import list_value_length
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BatchFeature,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from recipes.data import processors
from recipes.data.images import pixel_range
from recipes.data.model_files import read_adapter
from recipes.data.samples import check_images, report_enlarged
from recipes.files import InputError, replacing
from recipes.progress import follow
from rewards.completions import parse_completion

PATIENCE = timedelta(days=7)  # how long a process waits for the others: one may have far longer reports to write
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM (0.33) has room for
OWN_MODELS = ("llmrg4", "lmrrg")  # which vLLM does not know
SAMPLE = 16  # prompts of the first batch that are compared with what vLLM made of them
VLLM_CHUNK = 32  # batches handed over at once: vLLM forms its own
BEGINS = b'{"study_id": '


class Written(NamedTuple):
    """One completion, how many tokens it has, and how many the decoder read before it: image, prompt and all."""

    completion: str
    tokens: int
    input_tokens: int


def image_counts(samples: Dataset) -> list[int]:
    """How many images each sample has; none is decoded for it."""
    return list_value_length(samples.with_format("arrow")[:]["images"]).to_pylist()


def most_images(samples: Dataset) -> int:
    """How many images a sample has at most."""
    return max(image_counts(samples))


def shuffled_images(samples: Dataset, seed: int) -> Dataset:
    """`samples` with the images exchanged between studies around random cycles, so that no study keeps its own.

    A cycle joins the studies whose samples have as many images; one that is alone in that goes into the first cycle.
    """
    studies: dict[str, list[int]] = {}
    for row, study in enumerate(samples["study_id"]):
        studies.setdefault(study, []).append(row)
    if len(studies) < 2:
        raise InputError("--shuffle_images needs at least two studies")
    sizes = image_counts(samples)
    alike: dict[int, list[list[int]]] = {}
    for rows in studies.values():
        alike.setdefault(max(sizes[row] for row in rows), []).append(rows)
    cycles = [group for group in alike.values() if len(group) > 1] or [[]]
    cycles[0] += [rows for group in alike.values() if len(group) == 1 for rows in group]
    generator, partner = torch.Generator().manual_seed(seed), [0] * len(samples)
    for rows in cycles:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for study, source in zip(order, order[1:] + order[:1], strict=True):
            for position, row in enumerate(rows[study]):  # frontal takes frontal where both have it
                partner[row] = rows[source][position % len(rows[source])]
    plain = samples.with_format(None)
    images = plain.select_columns("images").select(partner)
    controls = concatenate_datasets([plain.remove_columns("images"), images], axis=1)
    return controls.with_format(samples.format["type"], **samples.format["format_kwargs"])  # which reads the images


################
# Resuming
################


def finished_samples(out: Path, arguments: dict) -> int:
    """How many samples `out` already holds; a line cut off by an interruption is removed."""
    if not out.is_file():
        return 0
    lines = out.read_bytes().splitlines(keepends=True)
    complete = [line for line in lines if line.endswith(b"\n")]
    try:
        if lines and lines[0][: len(BEGINS)] != BEGINS[: len(lines[0])]:
            raise ValueError("a line of another kind")
        used = json.loads(complete[0])["arguments"] if complete else arguments
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out} exists and was not written by generate.py; name another --out") from error
    if changed := [name for name in arguments if used.get(name) != arguments[name]]:
        raise InputError(f"{out} was begun with another --{changed[0]} ({used.get(changed[0])}); name another --out")
    if len(complete) < len(lines):
        out.write_bytes(b"".join(complete))
    return len(complete)


class Shards:
    """The samples that this process has to write, and the one file that they end in.

    A process alone appends to `out`. Several (torchrun, accelerate launch) take the open samples in turn and write to
    OUT.part0, OUT.part1, ... each; `merge` then joins them in the order of the samples. Whatever ends a run, the next
    one, of any number of processes, begins with what is in `out` and in the parts. `arguments`: what all lines must
    have been written with. `samples`: how many there are.
    """

    def __init__(self, out: str, arguments: dict, samples: int, state: PartialState):
        self.out, self.arguments, self.state = Path(out), arguments, state
        with state.main_process_first():
            self.finished = finished_samples(self.out, arguments)
            part_of_sample = {}
            for part in self.parts():
                if finished_samples(part, arguments):
                    part_of_sample |= {json.loads(line)["sample"]: part for line in part.read_bytes().splitlines()}
        state.wait_for_everyone()  # nobody writes before all have read
        open_samples = [i for i in range(self.finished, samples) if i not in part_of_sample]
        self.complete, self.samples = not open_samples, open_samples[state.process_index :: state.num_processes]
        appends = state.num_processes == 1 and not part_of_sample
        self.file = self.out if appends else self.out.with_name(f"{self.out.name}.part{state.process_index}")

    def parts(self) -> list[Path]:
        """The files of processes that a run left behind."""
        return sorted(self.out.parent.glob(f"{self.out.name}.part[0-9]*"))

    def batches(self, size: int) -> Iterator[list[int]]:
        """The open samples of this process, `size` at a time; the first process shows how far it is."""
        starts = range(0, len(self.samples), size)
        if self.state.is_main_process:
            starts = follow(starts, f"{self.out.name}, batches")
        for start in starts:
            yield self.samples[start : start + size]

    def write(self, batch: dict, numbers: list[int], written: list[Written], seconds: float) -> None:
        """Appends the lines of one batch, which took so many `seconds`."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a") as file:
            for i, (number, sample) in enumerate(zip(numbers, written, strict=True)):
                parsed = parse_completion(sample.completion)
                row = {
                    "study_id": batch["study_id"][i],
                    "sample": number,
                    "prompt": batch["prompt"][i][0]["content"],
                    "completion": sample.completion,
                    "think": parsed.think,
                    "report": parsed.report,
                    "input_tokens": sample.input_tokens,
                    "tokens": sample.tokens,
                    "seconds": round(seconds / len(numbers), 4),
                    "arguments": self.arguments,
                }
                file.write(json.dumps(row) + "\n")

    def merge(self) -> None:
        """Waits for all processes; the first one then puts the parts into `out`, as far as no sample is missing."""
        self.state.wait_for_everyone()
        if self.state.is_main_process and (parts := self.parts()):
            count = finished_samples(self.out, self.arguments)
            lines = {json.loads(line)["sample"]: line for part in parts for line in part.read_bytes().splitlines(True)}
            with replacing(self.out) as temporary:
                content = self.out.read_bytes() if self.out.is_file() else b""
                while count in lines:
                    content, count = content + lines[count], count + 1
                temporary.write_bytes(content)
            if max(lines, default=-1) < count:
                for part in parts:
                    part.unlink()
        self.state.wait_for_everyone()


################
# Engines
################


def load_processor(args) -> ProcessorMixin:
    """The processor of `args.model`, padding on the left, with the pixels and the chat template of `args`."""
    processor = processors.load_processor(
        args.model,
        trust_remote_code=args.trust_remote_code,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        needs_template=False,
    )
    if args.chat_template:
        if not Path(args.chat_template).is_file():
            raise InputError(f"there is no chat template {args.chat_template}")
        processor.chat_template = Path(args.chat_template).read_text(encoding="utf-8-sig")
    if not processor.chat_template:
        raise InputError(f"the processor of {args.model} has no chat template; name one with --chat_template FILE")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def chat_texts(processor: ProcessorMixin, images: Sequence[Sequence], prompts: Sequence[str]) -> list[str]:
    """The text that a model reads for each prompt: a place for each of its images, then the prompt."""
    messages = [
        [{"role": "user", "content": [{"type": "image"}] * len(study_images) + [{"type": "text", "text": prompt}]}]
        for study_images, prompt in zip(images, prompts, strict=True)
    ]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def scale_images(processor: ProcessorMixin, images: Sequence[Sequence[Image.Image]]) -> list[list[Image.Image]]:
    """`images` in the pixel range of `processor`, if it has one, as recipes/data/samples.py has those of samples."""
    pixels = pixel_range(processor)
    return [[pixels(image) if pixels else image for image in study] for study in images]


def starts_twice(tokenizer, text: str) -> bool:
    """Whether `tokenizer` would put its first token before `text`, which begins with it already."""
    start = tokenizer.bos_token
    if not start or not text.startswith(start):
        return False
    return tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2


def encode_prompts(
    processor: ProcessorMixin, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str], **options
) -> BatchFeature:
    """What the model reads of each prompt and its images; `options` are those of a processor's call.

    A template that begins with the tokenizer's first token, as Gemma's, has it once.
    """
    texts = chat_texts(processor, images, prompts)
    if starts_twice(processor.tokenizer, texts[0]):
        options["add_special_tokens"] = False
    return processor(images=scale_images(processor, images), text=texts, **options)


def report_settings(model: PreTrainedModel, tokenizer, **settings) -> GenerationConfig:
    """How `model` writes reports, wherever it is asked to: greedily unless `settings` (of GenerationConfig) say else.

    A checkpoint may bring decoding settings of its own (Qwen2.5-VL a repetition penalty, Gemma sampling), and
    `generate` fills with them whatever is not set. Of the checkpoint's only token ids are taken; a completion ends at
    each end that the checkpoint or the tokenizer names. The place of an image is never written, since a text with one
    could not be read again, nor what the checkpoint suppresses (LLM-RG4 and LM-RRG: rows of no token). To be put in
    the place of `model.generation_config`:

        model.generation_config = report_settings(model, processor.tokenizer, max_new_tokens=256)
    """
    ids = {name: value for name, value in model.generation_config.to_dict().items() if name.endswith("token_id")}
    ends = ids.get("eos_token_id")
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    ids["eos_token_id"] = list(dict.fromkeys(end for end in ends if end is not None)) or None
    if tokenizer.pad_token_id is not None:
        ids["pad_token_id"] = tokenizer.pad_token_id
    image = getattr(model.config, "image_token_id", None)
    # top_k 50: not used in greedy search, where transformers warns of any other value
    greedy = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    greedy |= {"repetition_penalty": 1.0, "length_penalty": 1.0}
    suppressed = {*(model.generation_config.suppress_tokens or ()), *([] if image is None else [image])}
    greedy["suppress_tokens"] = sorted(suppressed) or None
    return GenerationConfig(**ids | greedy | settings)


def usual_dtype() -> str:
    """What reports are written in where nobody says: bfloat16 where there is a GPU that computes in it, else float32.

    Other numbers would cost a GPU twice the memory and several times the seconds, a CPU has no gain from bfloat16.
    """
    gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if gpu else "float32"


class TransformersEngine:
    """Writes with transformers, on this process's device.

    `args` are those of recipes/generate.py, `images` is the most that a sample has.
    """

    chunk = 1

    def __init__(self, args, device: torch.device, images: int):
        self.processor, self.device = load_processor(args), device
        self.model = AutoModelForImageTextToText.from_pretrained(
            args.model, dtype=args.dtype, trust_remote_code=args.trust_remote_code, device_map={"": device}
        ).eval()
        names = ("num_beams", "max_new_tokens", "min_new_tokens", "repetition_penalty", "length_penalty")
        settings = {name: getattr(args, name) for name in names}
        if args.temperature > 0:
            settings |= {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": args.top_p}
        self.model.generation_config = report_settings(self.model, self.processor.tokenizer, **settings)
        self.ends = torch.tensor(self.model.generation_config.eos_token_id or [], device=device)

    @torch.no_grad()
    def __call__(self, images: list[list[Image.Image]], prompts: list[str], seed: int, **watching) -> list[Written]:
        """The completion of each prompt, the end that it wrote counted among its tokens.

        `watching`: a streamer or stopping criteria for `generate`.
        """
        torch.manual_seed(seed)
        inputs = encode_prompts(self.processor, images, prompts, return_tensors="pt", padding=True).to(self.device)
        tokens = self.model.generate(**inputs, **watching)
        if not self.model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        completions = self.processor.batch_decode(tokens, skip_special_tokens=True)
        before = torch.isin(tokens, self.ends).cumsum(1).roll(1, dims=1)  # ends before each token
        before[:, 0] = 0
        counts = (before == 0).sum(1).tolist(), inputs["attention_mask"].sum(1).tolist()
        return [Written(*fields) for fields in zip(completions, *counts, strict=True)]


def compare_prompts(references: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]) -> None:
    """Raises InputError where `prompts`, as vLLM reads them, are not the model's processor's, `references`.

    Both with as many tokens for an image as it takes; prompts of token ids.
    """
    for row, (reference, prompt) in enumerate(zip(references, prompts, strict=True)):
        if list(reference) != list(prompt):
            raise InputError(
                f"vLLM reads prompt {row} as {len(prompt)} tokens, the model's processor as {len(reference)} "
                "(https://github.com/huggingface/trl/issues/6294 is one such case): this version of vLLM does not fit "
                "the model; go on without vLLM"
            )


class VLLMEngine:
    """Writes with vLLM, on as many GPUs as it is told to, greedily or by sampling; arguments as above."""

    chunk = VLLM_CHUNK

    def __init__(self, args, device: torch.device, images: int):
        from vllm import LLM, SamplingParams

        self.processor, adapter = load_processor(args), read_adapter(args.model)
        pixels = {name: getattr(args, name) for name in ("min_pixels", "max_pixels") if getattr(args, name)}
        options = {"mm_processor_kwargs": pixels} if pixels else {}
        self.request, self.is_compared = None, False
        if adapter:
            from vllm.lora.request import LoRARequest

            self.request = LoRARequest("adapter", 1, args.model)
            options |= {"enable_lora": True, "max_lora_rank": min(r for r in LORA_RANKS if r >= adapter["r"])}
        self.llm = LLM(
            model=adapter["base_model_name_or_path"] if adapter else args.model,
            dtype=args.dtype,
            seed=args.seed,
            trust_remote_code=args.trust_remote_code,
            tensor_parallel_size=args.tensor_parallel_size,
            limit_mm_per_prompt={"image": images},
            **options,
        )
        self.settings = {
            "temperature": args.temperature,
            "top_p": args.top_p,
            "max_tokens": args.max_new_tokens,
            "min_tokens": args.min_new_tokens,
            "repetition_penalty": args.repetition_penalty,
        }
        token = getattr(self.processor, "image_token_id", None)
        if token is not None:
            self.settings["logit_bias"] = {token: -100.0}
        self.sampling = SamplingParams

    def __call__(self, images: list[list[Image.Image]], prompts: list[str], seed: int) -> list[Written]:
        """As of `TransformersEngine`."""
        texts, images = chat_texts(self.processor, images, prompts), scale_images(self.processor, images)
        if starts_twice(self.processor.tokenizer, texts[0]):
            texts = [text.removeprefix(self.processor.tokenizer.bos_token) for text in texts]
        requests = [
            {"prompt": text, "multi_modal_data": {"image": study_images}}
            for text, study_images in zip(texts, images, strict=True)
        ]
        settings = [self.sampling(**self.settings, seed=seed + i) for i in range(len(requests))]
        answers = self.llm.generate(requests, settings, lora_request=self.request, use_tqdm=False)
        if not self.is_compared:
            first = slice(SAMPLE)
            encoded = encode_prompts(self.processor, images[first], prompts[first])["input_ids"]
            compare_prompts(
                [list(ids) for ids in encoded], [list(answer.prompt_token_ids) for answer in answers[first]]
            )
            self.is_compared = True
        return [
            Written(answer.outputs[0].text, len(answer.outputs[0].token_ids), len(answer.prompt_token_ids))
            for answer in answers
        ]


ENGINES: dict[str, Callable] = {"transformers": TransformersEngine, "vllm": VLLMEngine}


def check_engine(args, state: PartialState) -> None:
    """Raises InputError where `args.engine` cannot do what `args` ask for, or is not installed."""
    if args.engine == "transformers":
        return
    if "vllm" not in sys.modules and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "--engine vllm needs the package vllm: make setup-vllm and start from .venv-vllm, or --engine transformers"
        )
    if args.num_beams > 1 or args.length_penalty != 1:
        raise InputError("--engine vllm has no beam search: use --engine transformers, or --num_beams 1")
    if state.num_processes > 1:
        raise InputError("--engine vllm spreads over GPUs itself: start one process with --tensor_parallel_size N")
    adapter = read_adapter(args.model)
    kind = AutoConfig.from_pretrained(adapter["base_model_name_or_path"] if adapter else args.model).model_type
    if kind in OWN_MODELS:
        raise InputError(f"{args.model} is a {kind} model, which vLLM does not know: use --engine transformers")
    if adapter and adapter["r"] > LORA_RANKS[-1]:
        raise InputError(f"{args.model}: vLLM has no room for a LoRA of rank {adapter['r']}; merge it first")


def write_reports(samples: Dataset, engine: Callable, shards: Shards, batch_size: int, seed: int) -> str:
    """Has `engine` write every open sample of this process; returns what that cost, in words.

    Raises InputError before the first one where an image of `samples` cannot be read (`check_images`).
    """
    check_images(samples, pixel_range(engine.processor))
    if shards.state.is_main_process:
        report_enlarged(samples, engine.processor)
    tokens, inputs, seconds = 0, [], []
    for numbers in shards.batches(batch_size * engine.chunk):
        batch = samples[numbers]
        prompts = [message[0]["content"] for message in batch["prompt"]]
        started = time.perf_counter()
        written = engine(batch["images"], prompts, seed + numbers[0])
        seconds.append(time.perf_counter() - started)
        shards.write(batch, numbers, written, seconds[-1])
        tokens += sum(sample.tokens for sample in written)
        inputs += [sample.input_tokens for sample in written]
    return describe_cost(tokens, inputs, seconds)


def describe_cost(tokens: int, inputs: Sequence[int], seconds: Sequence[float]) -> str:
    """What a process's part cost: `tokens` written, the input tokens of each sample, the seconds of each batch."""
    if not inputs:
        return "nothing was left to write"
    return (
        f"{tokens / sum(seconds):.1f} tokens a second; a batch: {fmean(seconds):.2f} s, {max(seconds):.2f} s at most; "
        f"input tokens of a sample: {fmean(inputs):.0f}, {max(inputs)} at most"
    )
