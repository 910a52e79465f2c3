"""Where a certificate's rows find checkpoints, converted folders and X-rays, and what they take for absent."""

import contextlib
import gc
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import SafetensorError

from recipes.build_phantom import BuildArguments, build_row
from recipes.data.schema import write_dataset
from recipes.files import InputError

PUBLISHED = Path(__file__).with_name("published.json")
TESTS = Path(__file__).resolve().parents[2] / "tests"
TABLES = ("*.json", "*.txt", "*.jinja", "*.model")  # configurations, tokenizers, templates
FILES = {  # of each argument's repository on the Hub, what is read; an argument without an entry names one file
    "bert": TABLES,
    "crepe": (*TABLES, "model.safetensors", "pytorch_model.bin"),
    "biomedclip": ("open_clip_config.json", "open_clip_pytorch_model.bin"),
    "vision": (*TABLES, "model.safetensors"),
    "text": (*TABLES, "pytorch_model.bin"),
    "decoder": (*TABLES, "*.bin", "*.safetensors"),
    "opt": (*TABLES, "*.safetensors"),
    "qwen": (*TABLES, "*.safetensors"),
}


class Absent(Exception):
    """What a row needs and this machine does not have: a checkpoint, a package, a GPU; the message names it."""


ABSENCES = (Absent, OSError, ImportError, torch.OutOfMemoryError)
FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


class Bar(NamedTuple):
    """What a value is held against."""

    relation: str
    limit: float | str

    def __str__(self) -> str:
        limit = f"{self.limit:g}" if isinstance(self.limit, float) else self.limit
        return f"{self.relation} {limit}"

    def holds(self, value: float | str) -> bool:
        """Whether `value` is at most, at least or exactly the limit, or "is finite"; NaN never holds."""
        checks = {
            "<=": lambda: value <= self.limit,
            ">=": lambda: value >= self.limit,
            "=": lambda: value == self.limit,
            "is": lambda: math.isfinite(value),
        }
        return checks[self.relation]()


@dataclass
class Lab:
    """What all rows share.

    `places`: the value of each argument of recipes/certify.py that names a checkpoint. `work`: an empty folder.
    `originals`: tests/certificate_replicas.py, where the checkpoints are its miniatures, else None. `changes`: what is
    done otherwise with them. `versions` collects the checkpoints that the present row reads.
    """

    places: Mapping[str, str | None]
    work: Path
    originals: ModuleType | None = None
    changes: Mapping = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    slot: dict = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def checkpoint(self, argument: str) -> str:
        """The folder or file that `argument` names; of a Hub id the copy in the Hub's cache, downloaded where need be.

        Raises Absent where it is not to be had.
        """
        name = self.places[argument]
        if name is None:
            raise Absent(f"give --{argument} FILE (the authors' Google Drive has it: github.com/zh-Wang-Med/LLM-RG4)")
        if Path(name).exists():
            self.versions[f"--{argument}"] = "replica" if self.originals else "local"
            return name
        try:
            if argument in FILES:
                path, repository = Path(snapshot_download(name, allow_patterns=list(FILES[argument]))), name
                commit = path.name
            else:
                repository, _, file = name.rpartition("/")
                path = Path(hf_hub_download(repository, file))
                commit = path.parent.name
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise Absent(
                f"--{argument} {name} is no file or folder here, nor to be had from the Hub ({reason})"
            ) from error
        self.versions[repository] = commit[:12]
        return str(path)

    def use_replicas(self, stack: contextlib.ExitStack, shelf: Path) -> None:
        """Builds the miniatures in `shelf` and stays in it, so that names of the Hub are folders, until `stack` ends.

        Raises InputError where this is no clone with tests/.
        """
        if not (TESTS / "certificate_replicas.py").is_file():
            raise InputError("--replicas needs a clone of the repository: its tests/ builds the miniatures")
        sys.path.append(str(TESTS))
        stack.callback(sys.path.remove, str(TESTS))
        self.originals = importlib.import_module("certificate_replicas")
        shelf.mkdir()
        self.originals.build(shelf)
        self.changes = self.originals.CHANGES
        self.places = {name: place or self.originals.PLACES[name] for name, place in self.places.items()}
        stack.enter_context(contextlib.chdir(shelf))

    def expected(self, name: str) -> dict:
        """The published values of `name`; with replicas, what the original computes for the same texts."""
        values = json.loads(PUBLISHED.read_text(encoding="utf-8"))[name]
        return getattr(self.originals, f"expect_{name.replace('-', '_')}")(self, values) if self.originals else values

    def convert(self, script: ModuleType, **arguments: str | Path) -> Path:
        """The folder that a converter writes, made once."""
        folder = self.work / "_".join([script.__name__.split(".")[-1], *arguments.get("archive", "").split("/")[-1:]])
        if not folder.exists():
            run_script(script.main, **arguments, out=folder)
        return folder

    def phantoms(self) -> Path:
        """A data set of phantoms, portrait, square and landscape, one and two views, with and without a prior report;
        made once. No patient is in it."""
        folder = self.work / "phantoms"
        if not folder.exists():
            settings = BuildArguments(size=self.changes.get("pixels", 512))
            scenarios = ("sn", "mw", "sw", "mn")
            rows = [build_row("train", number, scenarios[number % 4], settings) for number in range(8)]
            write_dataset({"train": lambda: iter(rows)}, folder, {"builder": "build_phantom", "labeler": "lexical"})
        return folder

    def once(self, key: str, make: Callable):
        """`make()`, or the error that it raised, remembered until another key is asked for, with what it read: rows
        share a training run, and no two models take a GPU's memory at a time."""
        if self.slot.get("key") != key:
            self.slot = {}
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.slot = {"key": key, "result": None, "error": None}
            try:
                self.slot["result"] = make()
            except (*ABSENCES, *FAULTS) as error:
                self.slot["error"] = error
            self.slot["versions"] = dict(self.versions)
        self.versions |= self.slot["versions"]
        if self.slot["error"]:
            raise self.slot["error"]
        return self.slot["result"]


def run_script(main: Callable[[], None], **arguments) -> None:
    """Calls the `main` of a script of recipes/ in this process; lists become several words, True and False words."""
    words = []
    for name, value in arguments.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    before = sys.argv
    sys.argv = [inspect.getfile(main), *words]
    try:
        main()
    except SystemExit as error:  # a training recipe's answer to Ctrl-C
        raise KeyboardInterrupt from error
    finally:
        sys.argv = before
