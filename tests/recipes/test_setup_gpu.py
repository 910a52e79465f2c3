"""setup_gpu.py on machines that lack a compiler, a fitting CUDA, a driver or a network: one sentence each."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipes import setup_gpu
from recipes.files import InputError

ROOT = Path(__file__).resolve().parents[2]


def write_command(file: Path, output: str, status: int = 0) -> Path:
    """An executable that prints `output`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {status}\n")
    file.chmod(0o755)
    return file


@pytest.fixture(autouse=True)
def metadata(monkeypatch):
    """What the installed project says that it needs, as pyproject.toml has it today."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [f'{line}; extra == "{extra}"' for extra in extras for line in extras[extra]]
    monkeypatch.setattr(setup_gpu, "requires", lambda package: [*project["dependencies"], *lines])


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a torch for CUDA 13.0, a GPU, nvcc of CUDA 13.1 and a C++ compiler; `PATH` is the folder bin."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (8, 0))
    monkeypatch.setattr(setup_gpu, "version", lambda package: "0.18.2")
    monkeypatch.setattr(setup_gpu.cpp_extension, "CUDA_HOME", str(tmp_path / "cuda"))
    write_command(tmp_path / "cuda/bin/nvcc", "Cuda compilation tools, release 13.1, V13.1.80")
    monkeypatch.setenv("CXX", str(write_command(tmp_path / "bin/c++", "")))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")  # no nvidia-smi
    return tmp_path


@pytest.fixture
def installed(monkeypatch):
    """The extras that are installed, each with its options; nothing is installed."""
    calls = []
    monkeypatch.setattr(setup_gpu, "install", lambda *arguments: calls.append(arguments))
    return calls


def test_order(machine, installed, call, capsys):
    call(setup_gpu.main)
    assert installed == [("gpu",), ("flash-attn", "--no-build-isolation")]
    assert "for CUDA 13.0; GPUs: A100" in capsys.readouterr().out


def test_nothing_is_compiled_where_it_is_not_wanted(machine, installed, call):
    call(setup_gpu.main, "--flash_attn", "false")
    assert installed == [("gpu",)]


def no_toolkit(folder, monkeypatch):
    monkeypatch.setattr(setup_gpu.cpp_extension, "CUDA_HOME", None)


def no_nvcc(folder, monkeypatch):
    (folder / "cuda/bin/nvcc").unlink()  # CUDA_HOME of a run-time package alone


def nvcc_of_cuda_12(folder, monkeypatch):
    write_command(folder / "cuda/bin/nvcc", "Cuda compilation tools, release 12.4, V12.4.131")


def no_cxx(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_toolkit, "there is no nvcc (a toolkit of CUDA 13"),
        (no_nvcc, "there is no nvcc (a toolkit of CUDA 13"),
        (nvcc_of_cuda_12, "is release 12.4, and torch is built for CUDA 13.0"),
        (no_cxx, "there is no no-such-compiler"),
    ],
)
def test_what_flash_attn_lacks(machine, installed, call, capsys, monkeypatch, spoil, sentence):
    spoil(machine, monkeypatch)
    call(setup_gpu.main)
    out = capsys.readouterr().out
    assert installed == [("gpu",)] and sentence in out
    assert "kernels-community/flash-attn2 from the Hub instead" in out


def test_a_failed_build_of_flash_attn_is_no_failed_setup(machine, call, capsys, monkeypatch):
    monkeypatch.setattr(setup_gpu, "install", lambda extra, *_: "its words" if extra == "flash-attn" else None)
    call(setup_gpu.main)
    assert "flash-attn is not installed: its words." in capsys.readouterr().out


def test_kernels_of_a_version_that_transformers_refuses(machine, installed, call, capsys, monkeypatch):
    monkeypatch.setattr(setup_gpu, "version", lambda package: "0.17.2")
    no_toolkit(machine, monkeypatch)
    call(setup_gpu.main)
    out = capsys.readouterr().out
    assert "give runs --attn_implementation sdpa" in out and "from the Hub" not in out


def test_an_old_gpu_is_named(machine, installed, call, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (7, 5))
    call(setup_gpu.main)
    assert "older than Ampere" in capsys.readouterr().out


def test_an_old_driver(machine, installed, call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_command(machine / "bin/nvidia-smi", "550.54.15")
    with pytest.raises(
        InputError, match=r"CUDA 13\.0, which the driver 550\.54\.15 does not run: .*torch-backend auto"
    ):
        call(setup_gpu.main)
    assert not installed


def test_a_torch_without_cuda(machine, installed, call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match="is a build without CUDA"):
        call(setup_gpu.main)
    assert not installed


def test_a_login_node_is_set_up_unseen(machine, installed, call, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    call(setup_gpu.main)
    out = capsys.readouterr().out
    assert "No NVIDIA driver here" in out and "GPUs: none seen" in out and len(installed) == 2


def test_without_network(machine, call, monkeypatch, tmp_path):
    """uv itself, whose index is a port that nobody listens to; nothing is installed."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="cannot be reached from here: on a cluster give the command"):
        call(setup_gpu.main)


def test_the_packages_of_an_extra(monkeypatch):
    assert setup_gpu.read_extra("flash-attn") == ["flash-attn>=2.8.3"]
    assert {line.split(">")[0] for line in setup_gpu.read_extra("gpu")} == {
        "deepspeed",
        "kernels<0.19,",
        "ninja",
        "wheel",
    }
    monkeypatch.setattr(setup_gpu, "requires", lambda package: None)  # installed by an earlier version
    with pytest.raises(InputError, match="lists no extra gpu: make setup"):
        setup_gpu.read_extra("gpu")


def test_what_is_installed_is_the_constraint(monkeypatch):
    """uv is told the versions of the environment, so that a requirement which needs another torch is refused."""
    constraints = []

    def start(command, **settings):
        if "freeze" in command:
            return SimpleNamespace(stdout="torch==2.15.0\n")
        constraints.append(Path(command[command.index("--constraint") + 1]).read_text())
        return SimpleNamespace(stderr="error: No solution found: torch==2.15.0 and torch==2.13.0", returncode=1)

    monkeypatch.setattr(subprocess, "run", start)
    assert "beside what is installed" in setup_gpu.install("gpu")
    assert constraints == ["torch==2.15.0\n"]
    assert setup_gpu.UV[0] == sys.executable
