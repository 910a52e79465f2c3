"""Which checkpoint a run can go on from: one that a kill left half-written is named, and never loaded."""

import json
import os
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import Trainer
from trl.trainer.utils import RepeatSampler

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
    optimizer, generators = (any(checkpoint.glob(each)) for each in ("optimizer*", "rng_state*"))
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
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def remove_checkpoint(checkpoint: Path) -> None:
    """Deletes a checkpoint folder, its trainer_state.json first: a kill in between leaves what `find_damage` finds."""
    (checkpoint / "trainer_state.json").unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def save_final(trainer: Trainer, folder: str | Path) -> None:
    """Saves the trained model to `folder`, which other files may be in, and Trainer's state beside it.

    All is written elsewhere first and then renamed file by file: a kill leaves each file old or new, never half.
    """
    staging = Path(folder) / ".model.tmp"
    trainer.save_model(str(staging))
    if trainer.is_world_process_zero():
        for file in sorted(path for path in staging.rglob("*") if path.is_file()):
            target = Path(folder) / file.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        shutil.rmtree(staging)
    trainer.save_state()


def shuffle_by_epoch(sampler: RepeatSampler) -> RepeatSampler:
    """`sampler`, whose order in an epoch depends on the seed and the epoch alone; the first one is TRL's own.

    TRL draws each epoch's order after the last one's, so that a run that goes on in its second epoch would see the
    first one's order again.
    """
    if sampler.shuffle:
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(sampler.seed + epoch)  # Trainer calls it
    return sampler
