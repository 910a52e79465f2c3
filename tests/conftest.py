"""What all tests share: no network, and one tiny model with one small data set, built once a session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: begun last, it would leave one of two processes idle for eight minutes.

    pytest-xdist keeps this order with --no-loadscope-reorder alone.
    """
    items.sort(key=lambda item: item.path.name != "test_rehearsal.py")


def pytest_configure() -> None:
    """SHARE_PREFIX=false: in the tests' own process trainers that do not set `share_prefix` take the plain pass."""
    if os.environ.get("SHARE_PREFIX") == "false":
        from recipes.trainers.shared_prefix import SharesPrefix

        share = SharesPrefix._share_prefix
        SharesPrefix._share_prefix = lambda self: share(self) if self.args.share_prefix else None


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """A built phantom data set of 12, 4 and 6 studies, frontal and lateral, 64 pixels wide."""
    from recipes.build_phantom import BuildArguments, build_row
    from recipes.data.schema import write_dataset

    args = BuildArguments(size=64)
    sizes = {"train": 12, "validation": 4, "test": 6}
    out = tmp_path_factory.mktemp("data") / "phantom"
    splits = {
        split: lambda split=split, size=size: (build_row(split, index, "mn", args) for index in range(size))
        for split, size in sizes.items()
    }
    write_dataset(splits, out, {"builder": "build_phantom", "labeler": "lexical"})
    return out


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, phantom) -> Path:
    """The smallest Qwen2.5-VL that `modeling.tiny` builds: one layer each, width 64, 4 or 6 tokens an image."""
    from datasets import load_dataset

    from modeling.tiny import build_qwen2_5_vl, train_tokenizer

    reports = load_dataset(
        "parquet",
        data_files=str(phantom / "train.parquet"),
        split="train",
        cache_dir=str(tmp_path_factory.mktemp("cache")),
    )["report"]
    model, processor = build_qwen2_5_vl(train_tokenizer(reports, 400), hidden_size=64, text_layers=1, vision_layers=1)
    out = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


@pytest.fixture
def call(monkeypatch):
    """Runs a script's `main` in this process with the given command line."""

    def call(main, *arguments) -> None:
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        main()

    return call


class Parsed(Exception):
    """Raised in place of what a script does after its arguments are read."""


@pytest.fixture
def read(monkeypatch):
    """All arguments of a script's command line, by name, as its own `parse` call understands them."""

    def read(script, words: list[str]) -> dict:
        from recipes import cli

        values = {}

        def stop(*types, **options):
            for arguments in cli.parse(*types, **options):
                values.update({field.name: getattr(arguments, field.name) for field in fields(arguments)})
            raise Parsed

        monkeypatch.setattr(script, "parse_run" if hasattr(script, "parse_run") else "parse", stop)
        monkeypatch.setattr(sys, "argv", ["script", *words])
        monkeypatch.chdir(Path(__file__).resolve().parents[1])
        with pytest.raises(Parsed):
            script.main()
        return values

    return read


@pytest.fixture(scope="session")
def torchrun():
    """A command of two processes on a free port, without `python` before it: `torchrun(script, *arguments)`.

    `under` is a file of accelerate_configs/, which tests/sharding.py then hands to them.
    """

    def torchrun(*arguments: str | Path, under: str | None = None) -> list[str]:
        launcher = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr",
            "127.0.0.1",
            "--nproc_per_node",
            "2",
        ]
        if under:
            if under.startswith("zero"):
                pytest.importorskip("deepspeed", reason="needs deepspeed, which make setup-gpu installs")
            arguments = (Path(__file__).with_name("sharding.py"), under, *arguments)
        return [*launcher, *map(str, arguments)]

    return torchrun


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium as Debian packages it, 1280 x 900; it never reaches for a network."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
    for switch in (*switches.split(), "disable-component-update", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(driver))
    yield driver
    driver.quit()


FOREIGN = """
import sys, torch
class Absent:  # an editable install would find the project from anywhere
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("modeling", "rewards", "recipes"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
from transformers import AutoModel
"""


@pytest.fixture
def run_without_project(tmp_path):
    """Runs a script in a process in `tmp_path` that has `AutoModel` and `torch` and cannot find the project.

    Offline, unless an `environment` says otherwise.
    """

    def run(script: str, **environment: str) -> None:
        defaults = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        environment = defaults | environment
        command = [sys.executable, "-I", "-c", FOREIGN + script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run
