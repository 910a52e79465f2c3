"""requirements.lock is what pyproject.toml allows, hashed, and names no host; `make resolve` asks the index."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {extra: [Requirement(line) for line in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
FILES = sorted(path for path in ROOT.glob("requirements*.txt"))


def read_pins() -> list[tuple[Requirement, list[str]]]:
    """The lock's requirements, `name==version ; marker`, each with its SHA-256 sums."""
    lines = re.sub(r"#.*", "", LOCK).replace("\\\n", " ").splitlines()
    entries = [line.split("--hash=") for line in lines if line.strip()]
    return [(Requirement(words), [each.strip() for each in hashes]) for words, *hashes in entries]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_is_within_the_ranges(python):
    machine = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    machine = default_environment() | machine | {"platform_system": "Linux", "platform_machine": "x86_64"}
    versions: dict[str, list[str]] = {}
    for pin, _ in read_pins():
        if pin.marker is None or pin.marker.evaluate(machine):
            (specifier,) = pin.specifier
            assert specifier.operator == "==", pin
            versions.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    assert all(len(each) == 1 for each in versions.values())  # one version for one machine
    for allowed in [*map(Requirement, PROJECT["dependencies"]), *EXTRAS["test"]]:
        (version,) = versions[canonicalize_name(allowed.name)]
        assert allowed.specifier.contains(version), f"{allowed} and {version}: make lock"


def test_every_pin_is_hashed():
    pins = read_pins()
    assert len(pins) > 80
    for pin, hashes in pins:
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), pin


@pytest.mark.parametrize(
    "file", [ROOT / "pyproject.toml", ROOT / "requirements.lock", *FILES], ids=lambda path: path.name
)
def test_no_host_is_named(file):
    """A clone asks the index that its machine is set up for: neither an address nor an option that names one."""
    text = file.read_text()
    assert not re.search(r"://|[a-z0-9-]+\.(org|com|io|net|dev|cn)\b", text)
    options = {line.split()[0] for line in text.splitlines() if line.lstrip().startswith("-")}
    assert options <= {"-e", "-r", *(word for word in options if word.startswith("--hash=sha256:"))}


def test_kernels_ends_where_transformers_ends():
    """A version beyond would be installed and refused; one too old is named by make setup-gpu."""
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

    (allowed,) = (requirement for requirement in EXTRAS["gpu"] if requirement.name == "kernels")
    assert allowed.specifier.contains(KERNELS_MIN_VERSION) and not allowed.specifier.contains(KERNELS_MAX_VERSION)


def test_vllm_is_one_that_trl_takes():
    """Of TRL's own range, as its package states it."""
    from importlib.metadata import requires

    (taken,) = (
        each for each in map(Requirement, requires("trl")) if each.name == "vllm" and "vllm" in str(each.marker)
    )
    (pinned,) = (requirement for requirement in EXTRAS["vllm"] if requirement.name == "vllm")
    (version,) = (each.version for each in pinned.specifier)
    assert taken.specifier.contains(version)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_a_requirements_file_names_the_project_and_its_extras_alone(file):
    """So that pyproject.toml stays the one list."""
    (line,) = (line for line in file.read_text().splitlines() if line and not line.startswith("#"))
    words = re.fullmatch(r"-e \.\[([a-z,-]+)\]", line)
    assert words and set(words[1].split(",")) <= set(EXTRAS)
