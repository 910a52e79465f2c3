"""Shared by all scripts: argument parsing, one clear sentence for a user's mistake, checks of the machine."""

import errno
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from recipes.files import RAISED, WRITE_FAILED, InputError, check_free, check_writable, replacing
from recipes.progress import take_quiet

NO_GPU = "this config needs a GPU and there is none: {}give --use_cpu true --bf16 false"
CPU_CONFIGS = {  # of each script by its own config: the one for a CPU
    "configs/mrgr1/iu.yaml": "mrgr1/phantom.yaml",
    "configs/mrgr1/sft_iu.yaml": "mrgr1/sft_phantom.yaml",
    "configs/mrgr1/dpo.yaml": "mrgr1/dpo_phantom.yaml",
    "configs/llmrg4/mimic_rg4_stage1.yaml": "llmrg4/demo_stage1.yaml (stage 2: demo_stage2.yaml)",
    "configs/llmrg4/grpo.yaml": "llmrg4/grpo_phantom.yaml",
    "configs/lmrrg/mimic.yaml": "lmrrg/demo.yaml",
    "configs/lmrrg/mimic_cqrl.yaml": "lmrrg/demo_cqrl.yaml",
    "configs/rl/grpo.yaml": "rl/mrgr1.yaml (or llmrg4.yaml, lmrrg.yaml)",
    "configs/rl/rloo.yaml": "rl/mrgr1.yaml (or llmrg4.yaml, lmrrg.yaml)",
    "configs/rl/ppo.yaml": "rl/mrgr1.yaml (or llmrg4.yaml, lmrrg.yaml)",
}
WITHOUT_DEMO = ("configs/mrgr1/dpo.yaml", "configs/llmrg4/grpo.yaml", "configs/rl/")

BITSANDBYTES = {  # optimizers that it has
    *("adamw_8bit", "adamw_bnb_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit", "rmsprop_bnb"),
    *("rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
    *(f"paged_{name}_{bits}bit" for name in ("adamw", "ademamix", "lion") for bits in (8, 32)),
}


TOO_SMALL = (
    "lower the batch (per_device_train_batch_size; effective_batch_size keeps that of a step), train LoRA (use_peft), "
    "or share the model among more GPUs (recipes/cluster.md)"
)


def no_gpu(config: str | None) -> str:
    """The sentence for a machine without a GPU; `config` is the script's own one."""
    if config not in CPU_CONFIGS:
        return NO_GPU.format("")
    system = config.split("/")[1]
    demo = "demo" if system == "mrgr1" else f"demo-{system}"
    remedy = f"take --config recipes/configs/{CPU_CONFIGS[config]}, or "
    if not config.startswith(WITHOUT_DEMO):
        remedy = f"run `make {demo}` for the same recipe on a CPU, {remedy}"
    return NO_GPU.format(remedy)


def run(main: Callable[[], None]) -> None:
    """Calls `main`; a user's mistake, a full disk or a GPU that is too small ends the process with one sentence and
    exit status 1."""
    try:
        main()
        distributed = sys.modules.get("torch.distributed")
        if distributed and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
            time.sleep(0.5)  # a thread of gloo that still frees its last tensor while Python ends would abort it
    except InputError as error:
        sys.exit(f"error: {str(error).rpartition(RAISED)[2].strip()}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        sys.exit(f"error: cannot write {error.filename or 'the output'}: {error.strerror}; nothing was replaced")
    except (SafetensorError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            reason = str(error).partition(" of which")[0]
            sys.exit(f"error: {reason}: {TOO_SMALL}")
        if "StreamReader" in str(error) or not any(words in str(error) for words in WRITE_FAILED):  # torch.load failed
            raise
        sys.exit("error: cannot write a checkpoint: no space left on the disk, it seems; those before it are whole")
    except KeyboardInterrupt:
        sys.exit(130)


def report(out: str | Path, figures: dict, checks: list[dict]) -> None:
    """Writes `figures` and `checks` ({name, value, bar, holds}) to `out`/results.json and prints the checks' table.

    `holds` is None for what could not be measured here; the value then says why.
    """
    from rich.console import Console
    from rich.table import Table

    Path(out).mkdir(parents=True, exist_ok=True)
    with replacing(Path(out) / "results.json") as file:
        file.write_text(json.dumps({**figures, "checks": checks}, indent=2) + "\n")
    table = Table("check", "value", "bar", "holds")
    for check in checks:
        value = f"{check['value']:.4g}" if isinstance(check["value"], float) else str(check["value"])
        holds = "-" if check["holds"] is None else "yes" if check["holds"] else "NO"
        table.add_row(check["name"], value, str(check["bar"]), holds)
    Console(width=120).print(table)


def parse(*types: type, default_config: str | None = None, several_processes: bool = False) -> tuple:
    """Parses dataclass arguments with TRL's parser; `--config FILE.yaml` gives defaults, the command line wins.

    `--config` may stand more than once: a later file wins over an earlier one, and may hold nothing but comments.
    Without it, `default_config` (a file beside the recipes) is read. A file goes through the same check as the command
    line, and every setting must be within its range (recipes/data/settings.py). An unreadable file, an unknown key or
    a bad value raises InputError naming the file, and so does an output that could not be written (`check_outputs`).
    `several_processes`: the script may be started by accelerate launch or torchrun; any other would do its work twice.
    `--help` prints the script's page (recipes/usage.py), with the defaults that the files leave, and ends the process;
    `--quiet` is for recipes/progress.py.
    """
    import yaml

    from recipes.data.settings import check_settings, make_parser, read_values
    from recipes.progress import silence_libraries
    from recipes.usage import help_page, screen_width

    if not several_processes and int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise InputError(f"{Path(sys.argv[0]).name} is for one process: start it with python, without a launcher")
    files, words = _config_files(take_quiet(sys.argv[1:]), default_config)
    blamed = " + ".join(files) or "command line"

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{blamed}: {message}; --help lists the arguments")

    parser = make_parser(types)
    silence_libraries()
    configured: set[str] = set()
    parser.error = refuse  # argparse's own prints the usage of two hundred arguments first
    try:
        for file in files:
            blamed = file
            values = _read_yaml(file)
            if values is None and file != files[0]:
                continue
            values = _check_keys(values, file, types, refuse)
            blamed = " + ".join(files)  # of several, either may have led to a value that is refused
            parser.set_defaults_with_config(**read_values(values, types, refuse))
            configured |= values.keys()
        if {"-h", "--help"} & set(words):
            print(help_page(types, parser, files, configured, screen_width(), is_full="all" in words))
            sys.exit(0)
        arguments = parser.parse_args_and_config(words)
        for settings in arguments:
            check_settings(settings)
            check_outputs(settings)
        return arguments
    except InputError:
        raise
    except (ValueError, TypeError, yaml.YAMLError) as error:
        if "bf16/gpu" in str(error):  # transformers' own check comes before ours, which names all that is missing
            arguments = parser.parse_args_and_config([*words, "--bf16", "false"])
            settings = (_with_field(arguments, name) for name in ("optim", "attn_implementation"))
            check_hardware(*settings, default_config)
            raise InputError(no_gpu(default_config)) from error
        if unknown := re.search(r"not used by the HfArgumentParser: \['(.*?)'", str(error)):
            likely = get_close_matches(unknown[1], parser._option_string_actions, 1)
            remedy = f"did you mean {likely[0]}? " if likely else ""
            raise InputError(f"there is no argument {unknown[1]}: {remedy}--help lists the arguments") from error
        raise InputError(f"{blamed}: {' '.join(str(error).split())}") from error


def _config_files(arguments: list[str], default_config: str | None) -> tuple[list[str], list[str]]:
    """The files that `--config` names on the command line, or the default one, and the words beside them."""
    arguments = [part for word in arguments for part in (word.split("=", 1) if word[:9] == "--config=" else [word])]
    if "--config" not in arguments and default_config:
        arguments = ["--config", str(Path(__file__).parent / default_config), *arguments]
    files, rest = [], []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            files.append(next(words, None))
        else:
            rest.append(word)
    for file in files:
        if not Path(file or "").is_file():
            raise InputError(f"there is no config file {file or 'named after --config'}")
    return files, rest


def read_setting(name: str, default: str) -> str:
    """The value of one argument before the others are parsed, for a script whose arguments depend on it.

    Of the command line or, where that has none, of the last `--config` file that has one; else `default`. `parse`
    checks it as any other argument. Raises InputError on a config file that is not there or is no YAML.
    """
    files, words = _config_files(take_quiet(sys.argv[1:]), None)
    documents = [values for file in files if isinstance(values := _read_yaml(file), dict)]
    value = next((values[name] for values in reversed(documents) if name in values), default)
    for number, word in enumerate(words):
        option, _, text = word.partition("=")
        if option == f"--{name}":
            value = text if "=" in word else words[number + 1] if number + 1 < len(words) else default
    return str(value)


def _read_yaml(file: str) -> object:
    """What a YAML `file` holds; raises InputError, or yaml's error, where it is none or has a key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        """yaml's, which lets the last of two equal keys win."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict:
        keys = [key.value for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise InputError(f"{file} has {repeated[0]} twice: leave one of them")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(Path(file).read_text(encoding="utf-8-sig"), Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text ({error.reason}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{file} is no YAML{line}: {reason}") from error


def check_outputs(settings: object) -> None:
    """Raises InputError where what `settings`, a dataclass of arguments, name to be written could not be.

    `out` and `output_dir` are folders, or files where the class lists them in `written_files`. A class whose folder
    replaces an earlier result alone has the name of a file of such a result as `marker`.
    """
    files = getattr(settings, "written_files", ())
    for name in dict.fromkeys(("out", "output_dir", *files)):
        if path := getattr(settings, name, None):
            check_writable(path, name, is_file=name in files)
    if getattr(settings, "marker", None) and settings.out:
        check_free(settings.out, settings.marker)


def _check_keys(values: object, file: str, types: tuple[type, ...], refuse: Callable[[str], NoReturn]) -> dict:
    """`values` of a YAML `file` without its `env`, which is set; every key must be a field of one of `types`."""
    if not isinstance(values, dict):
        raise InputError(f"{file} must contain a YAML mapping of arguments to values, such as seed: 1")
    environment = values.pop("env", {})
    if not isinstance(environment, dict):
        refuse(f"env must be a mapping of variables to values, not {environment!r}")
    if nested := [name for name, value in environment.items() if value is None or isinstance(value, (dict, list))]:
        refuse(f"env must be a mapping of variables to values, and {nested[0]} has {environment[nested[0]]!r}")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    names = {field.name for kind in types for field in fields(kind) if field.init}
    if unknown := [name for name in values if name not in names]:
        refuse(f"there is no argument {unknown[0]}")
    return values


def _with_field(arguments: tuple, name: str) -> object | None:
    """The first of parsed `arguments` that has the field `name`."""
    return next((settings for settings in arguments if hasattr(settings, name)), None)


def parse_run(*types: type, default_config: str | None = None) -> tuple:
    """`parse` of a training run, with what its settings ask of this machine and its disk.

    Where a ModelConfig is among `types`, this machine must have what they ask for (`check_hardware`).
    `resume_from_checkpoint: latest` becomes the run's latest whole checkpoint. Raises InputError as these.
    """
    from recipes.trainers.checkpoints import resume_from

    arguments = parse(*types, default_config=default_config, several_processes=True)
    training_args, model_args = (_with_field(arguments, name) for name in ("optim", "attn_implementation"))
    if model_args:
        check_hardware(training_args, model_args, default_config)
    training_args.resume_from_checkpoint = resume_from(training_args)
    return arguments


def check_hardware(training_args, model_args, config: str | None = None) -> None:
    """Raises InputError where the config asks for what this machine lacks: a GPU, flash-attn, bitsandbytes, vllm.

    `config`: the script's own one, beside which one for a CPU is named.

    Where flash-attn is absent, transformers takes the kernel of the same name from the Hub by the package kernels, and
    so it is accepted once that kernel is loaded, which downloads it the first time.
    """
    import torch
    from transformers import utils
    from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK
    from transformers.utils.generic import is_flash_attention_requested

    attention = getattr(model_args, "attn_implementation", None)
    flash = is_flash_attention_requested(requested_attention_implementation=attention)
    optim = str(getattr(training_args.optim, "value", training_args.optim))
    eight_bit = optim in BITSANDBYTES
    vllm = getattr(training_args, "use_vllm", False)
    if not torch.cuda.is_available() and (flash or eight_bit or vllm or not training_args.use_cpu):
        needs = {
            f"attn_implementation {attention} (flash-attn)": flash,
            f"optim {optim} (bitsandbytes)": eight_bit,
            "use_vllm (vllm)": vllm,
        }
        raise InputError(
            "; ".join([no_gpu(config), *(f"{setting} is for GPUs" for setting, is_set in needs.items() if is_set)])
        )
    packages = {f"flash_attention_{version}": f"is_flash_attn_{version}_available" for version in (2, 3, 4)}
    package = getattr(utils, packages[attention]) if attention in packages else None  # None: a kernel by its own name
    if flash and not utils.is_kernels_available() and not (package and package()):
        raise InputError(
            f"attn_implementation {attention} needs flash-attn or, in a version that transformers takes, kernels, and "
            "this machine has neither: make setup-gpu, or set attn_implementation: sdpa"
        )
    if package and not package(kernels_fallback_ok=True):
        raise InputError(
            f"flash-attn is missing, and {FLASH_ATTN_KERNEL_FALLBACK[attention]}, which transformers takes from the "
            "Hub instead, cannot be loaded: the Hub is out of reach, or has no build of it for this torch and CUDA; "
            "set attn_implementation: sdpa"
        )
    if eight_bit and not utils.is_bitsandbytes_available():
        raise InputError("bitsandbytes is missing: make setup, or set optim: adamw_torch")
    if vllm and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vllm is missing: make setup-vllm, then start the run from .venv-vllm, or set use_vllm: false"
        )
