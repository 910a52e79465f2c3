"""Files of torch.save as their authors published them, read without running what a pickle may hold."""

import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch.serialization import safe_globals

from recipes.files import InputError

# Hyperparameters: argparse's, and Lightning's, a dict whose class had these names; it is read as a dict, without its
# class and without Lightning.
SETTINGS = (
    Namespace,
    *(
        (OrderedDict, f"{module}.AttributeDict")
        for module in (
            "lightning.pytorch.utilities.parsing",
            "lightning.fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
            "lightning_fabric.utilities.data",
        )
    ),
)


def read_pickle(file: str | Path, allowed: tuple = ()) -> object:
    """What torch.save wrote to `file`, as a zip archive or as before torch 1.6; tensors are on the CPU.

    Nothing is unpickled but tensors, containers, numbers, texts and the classes `allowed`: a class, or a pair of what
    to make and the name that stands in the file. Raises InputError on anything else, naming it, and on a damaged file.
    """
    if not Path(file).is_file():
        raise InputError(f"there is no checkpoint {file}")
    try:
        with safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)|function <[\w -]+ ([\w.]+)|class '([\w.]+)'", str(error))
        fault = f"holds code ({next(filter(None, name.groups()))})" if name else "is no PyTorch checkpoint"
        raise InputError(f"{file} {fault}, so it was not opened") from error
    except (OSError, RuntimeError, EOFError, BadZipFile, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{file} is damaged; download it again ({reason})") from error


def read_published(file: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and hyperparameters of a checkpoint of LLM-RG4 or DiscBERT, as their authors' code saves it.

    The file is {"model": state dict, "config": hyperparameters, "epoch": .., "step": ..}; hyperparameters are an
    argparse.Namespace or Lightning's AttributeDict, and come back as a dict. Raises InputError on any other file.

    Example: `weights, settings = read_published("DiscBERT.pth")`.
    """
    content = read_pickle(file, SETTINGS)
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights or not all(map(torch.is_tensor, weights.values())):
        raise InputError(f"{file} has no 'model' of tensors, so it is no checkpoint of LLM-RG4 or DiscBERT")
    settings = content.get("config") or {}
    settings = vars(settings) if isinstance(settings, Namespace) else settings
    if not isinstance(settings, dict):
        raise InputError(f"{file} has a 'config' that is no settings but a {type(settings).__name__}")
    return dict(weights), dict(settings)
