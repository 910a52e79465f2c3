"""What a run will do, said before its first step, and how long it will take, said once ten steps are measured."""

import math
import time
from datetime import datetime, timedelta

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from trl.data_utils import prepare_multimodal_messages

from recipes.files import InputError
from recipes.trainers.config import RL_CONFIGS
from recipes.trainers.memory import StepMemory, describe, memory_of_step

LOOKED_AT = 100  # samples: reading an X-ray and making its tokens takes up to 30 ms
MEASURED = 10  # steps


def gpu_memory(trainer: Trainer) -> int | None:
    """Bytes of memory of the GPU that `trainer` runs on; None where it runs on none.

    Of all GPUs together among which a lone process has split its model (TRL loads it with device_map auto).
    """
    devices = {trainer.args.device}
    if trainer.is_model_parallel:
        places = set(trainer.model.hf_device_map.values()) - {"cpu", "disk"}
        devices = {torch.device("cuda", place) if isinstance(place, int) else torch.device(place) for place in places}
    sizes = [torch.cuda.get_device_properties(device).total_memory for device in devices if device.type == "cuda"]
    return sum(sizes) or None


def longest_row(trainer: Trainer, loader: DataLoader) -> tuple[int, int, int]:
    """(prompt, answer, samples): tokens of the longest prompt and of the longest answer, and how many were looked at.

    At most `LOOKED_AT` samples, spread over the data set of `loader`. In RL the answer is `max_completion_length`; of
    a classifier the prompt is the text. 0 samples where the data set has no places (an iterable one).
    """
    data, args = loader.dataset, trainer.args
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return 0, 0, 0
    places = range(0, len(data), math.ceil(len(data) / LOOKED_AT))
    longest = [0, 0]
    for place in places:
        row = dict(data[place])
        if isinstance(args, RL_CONFIGS):
            prompt = row["prompt"]
            images = row.get("images") or [image for image in [row.get("image")] if image is not None]
            if images:
                prompt = prepare_multimodal_messages(prompt, images=images)
            lengths = len(trainer._tokenize_prompts([prompt])[0][0]), args.max_completion_length
        else:
            batch = loader.collate_fn([row])
            ids, labels = batch["input_ids"], batch.get("labels")
            if "completion_mask" in batch:  # a pair of answers, padded, with the same prompt
                answer = int(batch["completion_mask"].sum(1).max())
                lengths = int(batch["attention_mask"].sum(1).max()) - answer, answer
            else:
                answer = int(labels.ne(-100).sum()) if labels is not None and labels.shape == ids.shape else 0
                lengths = ids.numel() - answer, answer
        longest = list(map(max, longest, lengths))
    return *longest, len(places)


def steps_of_a_batch(args) -> int:
    """How many optimizer steps use the completions of one generation; 1 where nothing is generated."""
    if not isinstance(args, RL_CONFIGS):
        return 1
    return max(1, args.num_iterations * args.steps_per_generation // args.gradient_accumulation_steps)


def describe_run(trainer: Trainer, loader: DataLoader, memory: StepMemory, row: tuple[int, int, int]) -> str:
    """The block of lines that is printed before the first step; `row` is `longest_row`'s."""
    args, state, model = trainer.args, trainer.state, trainer.accelerator.unwrap_model(trainer.model)
    size = lambda parameter: getattr(parameter, "ds_numel", parameter.numel())  # noqa: E731  (of ZeRO-3)
    total = sum(map(size, model.parameters()))
    trained = sum(size(parameter) for parameter in model.parameters() if parameter.requires_grad)
    base = model.get_base_model() if is_peft_model(model) else model
    name = base.config.name_or_path or type(base).__name__
    prompt, answer, looked_at = row
    number = len(loader.dataset) if looked_at else None
    samples = f"{number:,} samples" if number else "samples of unknown number"
    if looked_at:
        of = "all of them" if looked_at == number else f"{looked_at} of them, spread over all"
        samples += f"; longest prompt {prompt:,} tokens, longest answer {answer:,} (looked at: {of})"
    batch = args.per_device_train_batch_size * max(1, args.n_gpu) * args.world_size * args.gradient_accumulation_steps
    if isinstance(args, RL_CONFIGS):
        uses = steps_of_a_batch(args)
        step = f"{batch:,} completions a step, {args.num_generations} for a prompt"
        step += f"; new ones every {uses} steps" if uses > 1 else ""
    else:
        step = f"{batch:,} samples a step"
    epochs = "" if args.max_steps > 0 else f" ({args.num_train_epochs:g} epoch{'s' * (args.num_train_epochs != 1)})"
    start = f", of which {state.global_step:,} are done" if state.global_step else ""
    saving = {"no": "no checkpoint before the end", "epoch": "a checkpoint after every epoch"}
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    saved = saving.get(strategy, f"a checkpoint every {state.save_steps} steps")
    room = gpu_memory(trainer)
    limit = f", of {room / 1e9:.1f} GB that this GPU has" if room else ""
    need = f"{memory.peak / 1e9:.1f} GB" if memory.peak >= 0.05e9 else "less than 0.1 GB"
    parts = describe(memory)
    lines = {
        "model": f"{name}, {trained:,} of {total:,} parameters are trained",
        "data": samples,
        "steps": f"{state.max_steps:,}{epochs}{start}; {step}",
        "writes to": f"{args.output_dir}, {saved}",
        "memory": f"{need} for a process at least{limit}" + (f": {parts}" if parts else ""),
    }
    return "\n".join(["This run:", *(f"  {name:<11}{text}" for name, text in lines.items())])


class RunSummary(TrainerCallback):
    """Prints what a run of `trainer` will do, stops it where it cannot fit its GPU, and says how long it will take.

    Before the first step the first process prints `describe_run`; every process raises InputError where `StepMemory`
    says that the GPU is too small. Hours are said once, from the seconds of ten steps after the first one (or of so
    many more that generation has its share); evaluations and checkpoints among them count.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._start: float | None = None
        self._first = 0

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        sentence, trainer = None, self.trainer
        if state.is_world_process_zero:
            try:
                row = longest_row(trainer, train_dataloader)
                memory = memory_of_step(trainer, row[0] + row[1], row[1])
                print(describe_run(trainer, train_dataloader, memory, row), flush=True)
                total = gpu_memory(trainer)
                sentence = memory.advice(total) if total else None
            except InputError as error:
                sentence = str(error)
        [sentence] = broadcast_object_list([sentence])
        if sentence:
            raise InputError(sentence)
        period = steps_of_a_batch(args)
        self._steps = period * math.ceil(MEASURED / period)
        self._start = None

    def on_step_end(self, args, state, control, **kwargs):
        if self._start is None:  # the first step warms up
            self._start, self._first = time.perf_counter(), state.global_step
        elif state.global_step == self._first + self._steps and state.is_world_process_zero:
            seconds = (time.perf_counter() - self._start) / self._steps
            remaining = seconds * (state.max_steps - state.global_step)
            end = datetime.now().astimezone() + timedelta(seconds=remaining)
            print(
                f"{self._steps} steps took {seconds:.2f} s on average: {remaining / 3600:.1f} hours for the "
                f"{state.max_steps - state.global_step:,} steps that are left, until {end:%Y-%m-%d %H:%M} "
                f"({seconds * state.max_steps / 3600:.1f} hours in all)",
                flush=True,
            )
