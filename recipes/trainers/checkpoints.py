"""The checkpoints of a run: which of them are whole, which one to go on from, what could not be saved."""

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model, parse_flag_from_env
from peft import get_peft_model
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.core_model_loading import WeightConverter
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config
from trl.trainer.utils import RepeatSampler

from recipes.files import InputError

STAGING = ".checkpoints.tmp"  # in a run's folder: what is being written or deleted
WEIGHTS = ("*.safetensors", "pytorch_model*", "global_step*")  # of a model or adapter, of FSDP, of DeepSpeed


def find_damage(checkpoint: str | Path) -> str | None:
    """What is wrong with a checkpoint folder of Trainer, or None where every file of it is whole.

    No weight is read: a safetensors file says at its start how long it is, a file of torch.save has its list of
    contents at its end. Trainer writes trainer_state.json after everything else.
    """
    checkpoint = Path(checkpoint)
    state = checkpoint / "trainer_state.json"
    try:
        json.loads(state.read_text())
    except OSError:
        return "has no trainer_state.json"
    except ValueError:
        return "has half a trainer_state.json"
    if not any(next(checkpoint.glob(pattern), None) for pattern in WEIGHTS):
        return "has no weights"
    optimizer, generators = (any(checkpoint.glob(pattern)) for pattern in ("optimizer*", "rng_state*"))
    if optimizer and not generators:  # neither: save_only_model
        return "has no rng_state.pth"
    if generators and not optimizer and not any(checkpoint.glob("global_step*")):  # DeepSpeed's holds the optimizer
        return "has no optimizer.pt"
    for file in sorted(checkpoint.rglob("*")):
        try:
            if file.suffix == ".safetensors":
                safe_open(file, "pt").__exit__(None, None, None)
        except SafetensorError:
            return f"has half a {file.name}"
        if file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
            return f"has half a {file.name}"
    return None


def all_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, the latest one first."""
    checkpoints = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    return sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def remove_checkpoint(checkpoint: Path) -> None:
    """Deletes a checkpoint folder, renamed first: what a kill leaves of it has no checkpoint's name any more."""
    doomed = checkpoint.parent / STAGING / f"{checkpoint.name}.old"
    doomed.parent.mkdir(exist_ok=True)
    shutil.rmtree(doomed, ignore_errors=True)  # of an earlier kill
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed.parent)


def resume_from(training_args) -> str | None:
    """The checkpoint that `--resume_from_checkpoint DIR` or `--resume_from_checkpoint latest` names, or None.

    A damaged one (`find_damage`) is passed over by `latest`; InputError where it is named, or where no other is. With
    a `save_total_limit`, which would count them, all such ones of the run are removed.
    """
    request, output_dir = training_args.resume_from_checkpoint, training_args.output_dir
    if not request:
        return None
    processes = PartialState()
    with processes.main_process_first(), processes.local_main_process_first():  # nobody looks at what another removes
        damages = {checkpoint: find_damage(checkpoint) for checkpoint in all_checkpoints(output_dir)}
        latest = next((str(checkpoint) for checkpoint, damage in damages.items() if damage is None), None)
        start = latest if request == "latest" else request
        fault = find_damage(request) if request != "latest" else None  # the latest was just looked at
        for checkpoint, damage in damages.items():
            if damage and start and not fault and training_args.save_total_limit:
                remove_checkpoint(checkpoint)
                print(f"{checkpoint} {damage}: it is removed, since save_total_limit would count it", flush=True)
            elif damage and request == "latest":
                print(f"{checkpoint} {damage}: it was not written to its end and is passed over", flush=True)
    if fault:
        raise InputError(f"--resume_from_checkpoint: {start} is no checkpoint to go on from: it {fault}")
    if start is None:
        raise InputError(f"--resume_from_checkpoint latest: there is no checkpoint in {output_dir}")
    return start


def limit_checkpoints(run_dir: Path, limit: int, protected: set[Path]) -> None:
    """Removes the checkpoints of a run that were written first until `limit` are there, but none of `protected`."""
    checkpoints = sorted(all_checkpoints(run_dir), key=lambda path: path.stat().st_mtime)
    removable = [path for path in checkpoints if path not in protected]
    for path in removable[: max(0, len(checkpoints) - max(limit, len(protected)))]:
        remove_checkpoint(path)


def sample_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of `model` with one number of each weight, in the storage of the weight.

    Weights that share storage still do. Parts of a weight (ZeRO-3) are left out, and so are all weights where saving
    puts several together, for which one number each will not do.
    """
    conversions = getattr(model, "_weight_conversions", None) or ()
    if any(isinstance(conversion, WeightConverter) for conversion in conversions):
        return {}
    return {
        name: value[(slice(1),) * value.dim()]
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and value.numel()
    }


def find_unsavable(trainer: Trainer) -> str | None:
    """Why `trainer` could not save what it trains, in a sentence, or None; process 0 asks before the first step.

    All files of a checkpoint are written as Trainer writes them, but of each weight one number, since 15 GB of them
    would cost minutes on a slow disk and tell no more. Found are generation settings that contradict each other,
    weights that share memory without being declared as tied, a processor or arguments that cannot be written, a folder
    that is not writable and a disk with less space than the weights take. Not found: a quota.
    """
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    adapted = is_peft_model(model)
    base = model.get_base_model() if adapted else model
    merges = needs_merging(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad or not adapted or merges]
    size = sum(getattr(weight, "ds_numel", weight.numel()) * weight.element_size() for weight in weights)
    trial = Path(args.output_dir) / STAGING / "trial"
    part = "the run"
    try:
        trial.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(trial).free
        if free < size:
            return (
                f"{args.output_dir} has {free / 1e9:.1f} GB of free space, and the weights of one checkpoint take "
                f"{size / 1e9:.1f} GB: free some, or name another --output_dir"
            )
        if (merges or not adapted) and isinstance(base, PreTrainedModel) and base.can_generate():
            part = "the model's generation config"
            base.generation_config.validate(strict=True)
            part = "the merged model"
            if merges:
                names = {name.replace(".base_layer.", "."): value for name, value in sample_weights(base).items()}
                base.save_pretrained(trial / "merged", state_dict=names)
        part = "the model or its processor"
        trainer._save(str(trial), state_dict=sample_weights(model))
    except OSError as error:
        return f"cannot write to {args.output_dir}: {error.strerror or error}"
    except (ValueError, TypeError, AttributeError, RuntimeError, pickle.PicklingError, SafetensorError) as error:
        names = re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE)
        if part == "the model's generation config" and names:
            where = base.config.name_or_path or type(base).__name__
            return (
                f"{where} has generation settings without effect ({', '.join(names)}), with which no checkpoint can "
                "be saved: remove them from its generation_config.json, or set do_sample there to true"
            )
        reason = " ".join(str(error).split())[:300]
        return f"{part} cannot be saved, so that training would be lost: {type(error).__name__}: {reason}"
    finally:
        shutil.rmtree(trial.parent, ignore_errors=True)
    return None


@contextmanager
def names_in_memory(model: torch.nn.Module) -> Iterator[None]:
    """Within it `model` is saved by the names that its weights have in memory, not by those that they were loaded by.

    transformers gives weights back their older names (a published BERT's norms have a gamma and a beta), and Trainer
    looks for those in memory when it goes on from a checkpoint or takes the best one: it would leave the others out.
    """
    conversions = vars(model).get("_weight_conversions")
    model._weight_conversions = []
    try:
        yield
    finally:
        model._weight_conversions = conversions


def weights_are_split(args: TrainingArguments) -> bool:
    """Whether a process of this run holds a part of the weights only: FSDP, DeepSpeed's ZeRO-3."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") or bool(args.fsdp) or is_deepspeed_zero3_enabled()


def needs_merging(model: torch.nn.Module) -> bool:
    """Whether `model` is trained by an adapter that has whole modules, which transformers does not read."""
    return is_peft_model(model) and any(config.modules_to_save for config in model.peft_config.values())


def save_merged(trainer: Trainer, folder: Path) -> None:
    """Saves the LoRA model that was trained as an ordinary one, however its weights are split over processes."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes have to ask
    if trainer.is_world_process_zero():
        trained = trainer.accelerator.unwrap_model(trainer.model)
        policy = trained.get_base_model()
        unset_hf_deepspeed_config()  # under ZeRO-3 a new model would be split too
        with torch.device("meta"):
            adapted = get_peft_model(type(policy)(policy.config), trained.peft_config["default"])
        weights = {name: value.to("cpu", copy=True) for name, value in weights.items()}
        missing = adapted.load_state_dict(weights, strict=False, assign=True).missing_keys
        if missing:
            raise RuntimeError(f"the trained model cannot be merged: it has no {missing[0]}")
        adapted.get_base_model().tie_weights()
        adapted.get_base_model().generation_config = policy.generation_config
        adapted.merge_and_unload().save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)


def shuffle_by_epoch(sampler: RepeatSampler) -> RepeatSampler:
    """`sampler`, whose order in an epoch depends on the seed and the epoch alone; the first one is TRL's own.

    TRL draws each epoch's order after the last one's, so that a run that goes on in its second epoch would see the
    first one's order again.
    """
    if sampler.shuffle:
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(sampler.seed + epoch)  # Trainer calls it
    return sampler
