"""Adds what a GPU is used with: DeepSpeed, kernels and, where the machine can have it, flash-attn.

    make setup-gpu                                               # make setup, then this in .venv
    .venv-vllm/bin/python recipes/setup_gpu.py                   # in the environment of make setup-vllm
    .venv/bin/python recipes/setup_gpu.py --flash_attn false     # kernels alone; nothing is compiled

What is installed keeps its version, torch above all, against which flash-attn is built. Where flash-attn cannot be
built, one sentence says why, and transformers takes kernels-community/flash-attn2 from the Hub instead, at the first
run: no compiler, nothing to change in a YAML, but a version of kernels that transformers accepts, or a second sentence
says so. A machine without a driver, such as a cluster's login node, is set up unseen.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch.utils import cpp_extension
from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

from recipes.cli import parse, run
from recipes.files import InputError

UV = (sys.executable, "-m", "uv", "pip")
NO_NETWORK = ("Failed to fetch", "error sending request", "dns error", "urlopen error")  # uv's words, and urllib's


@dataclass
class SetupArguments:
    """Arguments of the setup."""

    flash_attn: bool = field(
        default=True, metadata={"help": "Install flash-attn too, where this machine can have it."}
    )


def read_extra(extra: str) -> list[str]:
    """The requirements of one of the project's extras (pyproject.toml), as its installation lists them.

    Raises InputError where the project was installed before it had that extra.
    """
    requirements = [Requirement(line) for line in requires("rrg-recipes") or ()]
    lines = [
        f"{requirement.name}{requirement.specifier}"
        for requirement in requirements
        if requirement.marker and requirement.marker.evaluate({"extra": extra})
    ]
    if not lines:
        raise InputError(f"the installed rrg-recipes lists no extra {extra}: make setup installs it anew")
    return lines


def install(extra: str, *options: str) -> str | None:
    """Installs one of the project's extras beside what is there, whose versions stay; None if it worked.

    Otherwise why not, in one sentence; what uv printed stands above it.
    """
    requirements = read_extra(extra)
    with TemporaryDirectory() as folder:
        installed = Path(folder) / "installed.txt"
        freeze = (*UV, "freeze", "--exclude-editable", "--python", sys.executable)
        installed.write_text(subprocess.run(freeze, check=True, capture_output=True, text=True).stdout)
        command = (*UV, "install", "--python", sys.executable, "--constraint", str(installed), *options)
        process = subprocess.run((*command, *requirements), stderr=subprocess.PIPE, text=True)
    print(process.stderr, end="", file=sys.stderr)
    if not process.returncode:
        return None
    if any(words in process.stderr for words in NO_NETWORK):
        return (
            "the package index, or the host of flash-attn's wheels, cannot be reached from here: on a cluster give "
            "the command where there is a network, mostly the login node, on the same file system"
        )
    return f"uv could not install {', '.join(requirements)} beside what is installed; its words stand above"


def check_driver() -> None:
    """Raises InputError where a GPU is there that the installed torch cannot use."""
    if torch.cuda.is_available():
        return
    if not torch.version.cuda:
        raise InputError(f"the installed torch {torch.__version__} is a build without CUDA: install another one first")
    smi = shutil.which("nvidia-smi")
    if not smi:
        print("No NVIDIA driver here (a login node?): everything is installed, no GPU is looked at.")
        return
    query = (smi, "--query-gpu=driver_version", "--format=csv,noheader")
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    raise InputError(
        f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, which the driver "
        f"{driver[0] if driver else '(nvidia-smi gives no version)'} does not run: update the driver, or take "
        f"PyTorch's build for it, `{sys.executable} -m uv pip install --python {sys.executable} --torch-backend auto "
        "--reinstall torch torchvision`, and give this command again"
    )


def find_obstacle() -> str | None:
    """Why flash-attn cannot be built here against the installed torch, or None."""
    major = torch.version.cuda.split(".")[0]
    home = cpp_extension.CUDA_HOME
    nvcc = Path(home or "", "bin", "nvcc")
    if not home or not nvcc.is_file():
        return f"it needs CUDA's compiler, and there is no nvcc (a toolkit of CUDA {major} under CUDA_HOME brings it)"
    words = subprocess.run((nvcc, "--version"), capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.\d+", words)
    if not release or release[1] != major:
        have = release[0] if release else "of no known release"
        return f"{nvcc} is {have}, and torch is built for CUDA {torch.version.cuda} (set CUDA_HOME to a CUDA {major})"
    if not shutil.which(cpp_extension.get_cxx_compiler()):
        return f"it needs a C++ compiler, and there is no {cpp_extension.get_cxx_compiler()} (set CXX to one)"
    return None


def describe(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def main() -> None:
    (arguments,) = parse(SetupArguments)
    check_driver()
    if failure := install("gpu"):
        raise InputError(failure)

    obstacle = "--flash_attn false" if not arguments.flash_attn else find_obstacle()
    if not obstacle:
        os.environ.setdefault("MAX_JOBS", "4")  # each takes up to 8 GB of memory
        print("flash-attn: minutes where its wheel fits this torch, up to hours where it is compiled")
        obstacle = install("flash-attn", "--no-build-isolation")
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(f"torch {torch.__version__} for CUDA {torch.version.cuda}; GPUs: {', '.join(devices) or 'none seen'}")
    print("; ".join(describe(package) for package in ("deepspeed", "kernels", "flash-attn")))
    if obstacle:
        print(f"flash-attn is not installed: {obstacle}.")
        # transformers' own answer is remembered from before the installation
        if Version(KERNELS_MIN_VERSION) <= Version(version("kernels")) < Version(KERNELS_MAX_VERSION):
            print(
                "Runs take kernels-community/flash-attn2 from the Hub instead; none with --attn_implementation sdpa."
            )
        else:
            accepted = f"{KERNELS_MIN_VERSION} to below {KERNELS_MAX_VERSION}"
            print(f"{describe('transformers')} accepts kernels {accepted}, and here is {describe('kernels')}:")
            print("give runs --attn_implementation sdpa.")
    if any(torch.cuda.get_device_capability(number) < (8, 0) for number in range(len(devices))):
        print("A GPU here is older than Ampere, which neither supports: give runs --attn_implementation sdpa.")


if __name__ == "__main__":
    run(main)
