"""The lab's plan (lab.yaml): of a system its rows, policy x algorithm x reward.

A plan that names what does not exist is refused before anything runs. A script or a config file that is not there
costs its row alone.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import yaml

from recipes.demos.ablation_matrix import PARTS
from recipes.files import InputError
from rewards.table import REWARDS

BASE, TEST, SHUFFLED = "base", "test", "shuffled"
PLACES = ("folder", "home", "seed", "pairs")  # what words may name in braces
SAMPLED, RETRIEVED = "sampled", "retrieved"
COUNTED = ("effective_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations")


@dataclass(frozen=True)
class Algorithm:
    """`train`: words of the trainings, one after the other; `texts`: reports in a row of their batches; `pairs`: of
    preference learning, whether its pairs are `sampled` from the base or `retrieved` (RRG-DPO)."""

    train: list[str]
    texts: int = 1
    pairs: str | None = None

    @property
    def is_supervised(self) -> bool:
        """Whether it learns from the references."""
        return all(words.startswith("sft_") for words in self.train)


@dataclass(frozen=True)
class Row:
    """A row; the base has no algorithm. `time_of`: it is trained as long as that row; `rate_of`: at the pace of this
    one; `options`: further words of its trainings."""

    algorithm: str | None = None
    reward: str | None = None
    time_of: str | None = None
    rate_of: str | None = None
    options: str = ""


@dataclass(frozen=True)
class Outside:
    """A test set that nothing was trained on: `title`, and the words that `build` it."""

    title: str
    build: str


@dataclass
class Data:
    """What is built of a data set, see lab.yaml; `crepe`: words that train that judge, in {folder}/crepe; `minutes`:
    what one seed may take."""

    samples: int
    generate: str
    sample: str = ""
    train: str = ""
    rl: str = ""
    start: str = "{home}/base"
    dataset: str = "{folder}/data"
    crepe: str = ""
    minutes: float | None = None
    shared: dict[str, str] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)
    outside: dict[str, Outside] = field(default_factory=dict)


@dataclass
class Plan:
    """The rows of a system on one of its data sets. `better`: pairs of rows; `tau`: reward -> its agreement with
    radiologists, by `tau_source`."""

    system: str
    source: str
    title: str
    algorithms: dict[str, Algorithm]
    rows: dict[str, Row]
    data: Data
    rewards: dict[str, dict[str, float]]
    better: list[tuple[str, str]]
    tau: dict[str, float]
    tau_source: str

    def choose(self, names: list[str]) -> list[str]:
        """`names`, all rows where there are none, with the base and what a row's time follows from.

        Raises InputError on a row that is not there.
        """
        for name in names:
            check_name(name, self.rows, f"--row {name}", "rows")
        needed = {BASE, *(names or self.rows)}
        for name in [name for name in self.rows if name in needed]:
            needed |= {other for other in (self.rows[name].time_of, self.rows[name].rate_of) if other}
        return [name for name in self.rows if name in needed]

    def rewards_of(self, name: str) -> list[str]:
        """The rewards that a row is trained on, and what they are made of; those of its config files, if it has none.

        Empty for the base and for supervised training.
        """
        row = self.rows[name]
        if not row.algorithm:
            return []
        files = [file for words in self.algorithms[row.algorithm].train for file in config_files(words.split())]
        rewards = self.rewards.get(row.reward or "") or {
            reward: 1 for file in files if Path(file).is_file() for reward in read_yaml(file).get("rewards", [])
        }
        return [*rewards, *(part for reward in rewards for part in PARTS.get(reward, ()) if part not in rewards)]

    def missing_files(self, name: str) -> list[str]:
        """The scripts and config files of a row that are not there."""
        row = self.rows[name]
        trainings = self.algorithms[row.algorithm].train if row.algorithm else []
        files = [f"recipes/{words.split()[0]}" for words in trainings]
        files += [file for words in trainings for file in config_files(words.split())]
        return [file for file in dict.fromkeys(files) if not Path(file).is_file()]


def check_name(name: str, names: Iterable[str], place: str, kind: str) -> None:
    """Raises InputError where `name` is none of `names`; `place`: where it stands, `kind`: what they are."""
    names = list(names)
    if name not in names:
        likely = get_close_matches(name, names, 1)
        remedy = f"did you mean {likely[0]}?" if likely else f"there are {', '.join(names)}"
        raise InputError(f"{place}: {name!r} is none of the {kind}; {remedy}")


def make(kind: type, values: object, place: str):
    """The dataclass `kind` of a mapping in the plan; raises InputError on a key that it lacks or does not know."""
    fields = kind.__dataclass_fields__
    if not isinstance(values, dict):
        raise InputError(f"{place}: it must be a mapping of {', '.join(fields)}, not {values!r}")
    for key in values:
        check_name(key, fields, place, "settings")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{place}: {str(error).partition('() ')[2] or error}") from error


def read_yaml(file: str | Path) -> dict:
    """The mapping in a YAML file, empty where it has comments alone; raises InputError where it is none."""
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the file {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values or {}, dict):
        raise InputError(f"{file} must hold a YAML mapping")
    return values or {}


def read_plan(file: str, system: str, source: str, samples: int | None = None) -> Plan:
    """The plan of a system on a data set; `samples`: reports that every row learns from, instead of the file's.

    Raises InputError, naming the place in `file`, on any name in it that does not exist, and where `samples` are no
    whole number of a row's steps.
    """
    values = read_yaml(file)
    for key in ("systems", "rewards"):
        if not isinstance(values.get(key), dict):
            raise InputError(f"{file} lacks {key}, a mapping")
    for key in values:
        check_name(key, ("agreement", "rewards", "better", "systems"), file, "settings")
    check_name(system, values["systems"], "--system", f"systems of {file}")
    place, entry = f"{file}, {system}", values["systems"][system]
    for key in ("title", "algorithms", "rows", "data"):
        if key not in entry:
            raise InputError(f"{place}: it lacks {key}")
    check_name(source, entry["data"], f"--data for --system {system}", "data sets")
    algorithms = {
        name: make(Algorithm, entry, f"{place}, algorithm {name}") for name, entry in entry["algorithms"].items()
    }
    rows = {name: make(Row, row, f"{place}, row {name}") for name, row in entry["rows"].items()}
    data = make(Data, entry["data"][source], f"{place}, data {source}")
    data.outside = {name: make(Outside, part, f"{place}, {name}") for name, part in data.outside.items()}
    data.samples = samples or data.samples
    agreement = values.get("agreement", {"source": "", "tau": {}})
    better = [tuple(pair) for pair in values.get("better", []) if set(pair) <= set(rows)]
    plan = Plan(
        *(system, source, entry["title"], algorithms, rows, data, values["rewards"], better),
        agreement["tau"],
        agreement["source"],
    )
    check_plan(plan, file)
    return plan


def check_plan(plan: Plan, file: str) -> None:
    """Raises InputError on a row, a reward, an algorithm or a place in braces that `plan` names and does not have."""
    place = f"{file}, {plan.system}"
    check_name(BASE, plan.rows, place, "rows")
    for name, rewards in plan.rewards.items():
        for reward in [reward for reward in rewards if "." not in reward]:
            check_name(reward, REWARDS, f"{file}, reward {name}", "rewards of rewards/table.py")
    for name, row in plan.rows.items():
        names = {"algorithms": row.algorithm, "rewards of the plan": row.reward}
        for (kind, value), names_of_kind in zip(names.items(), (plan.algorithms, plan.rewards), strict=True):
            if value:
                check_name(value, names_of_kind, f"{place}, row {name}", kind)
        for other in filter(None, (row.time_of, row.rate_of)):
            check_name(other, plan.rows, f"{place}, row {name}", "rows")
        if bool(row.time_of) != bool(row.rate_of):
            raise InputError(f"{place}, row {name}: time_of and rate_of go together")
    for name, algorithm in plan.algorithms.items():
        if algorithm.pairs:
            check_name(algorithm.pairs, (SAMPLED, RETRIEVED), f"{place}, algorithm {name}", "sources of pairs")
    check_words(plan, place)
    for name in plan.rows:
        if not plan.missing_files(name):
            steps_of(plan, name)


def check_words(plan: Plan, place: str) -> None:
    """Raises InputError on words of a command that have something else than `PLACES` in braces, or an open quote."""
    data = plan.data
    words = [*data.shared.values(), *data.base.values(), *(part.build for part in data.outside.values())]
    words += [text for algorithm in plan.algorithms.values() for text in algorithm.train]
    words += [row.options for row in plan.rows.values()]
    for text in [*words, data.start, data.dataset, data.generate, data.sample, data.train, data.rl, data.crepe]:
        try:
            fill(text, **dict.fromkeys(PLACES, ""))
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(f"{place}: {text!r} cannot be read; braces may hold {', '.join(PLACES)}") from error


def fill(words: str, **places: object) -> list[str]:
    """The words of a command with what stands in braces put in; a path that is put in may have spaces."""
    return [word.format(**places) for word in shlex.split(words)]


def config_files(words: list[str]) -> list[str]:
    """The files that `--config` names."""
    return [after for word, after in pairwise(words) if word == "--config"]


def batch_of(text: str, options: str = "") -> tuple[int, int]:
    """Rows of a training's optimizer step, and the epochs over each batch of completions, by its files and options."""
    words = [*shlex.split(text), *shlex.split(options)]
    settings: dict[str, int] = {}
    for file in config_files(words):
        settings |= {key: value for key, value in read_yaml(file).items() if key in COUNTED and value is not None}
    pairs = pairwise(words)
    settings |= {word[2:]: int(value) for word, value in pairs if word[:2] == "--" and word[2:] in COUNTED}
    batch = settings.get("per_device_train_batch_size", 8) * settings.get("gradient_accumulation_steps", 1)
    return settings.get("effective_batch_size", batch), settings.get("num_iterations", 1)


def steps_of(plan: Plan, name: str, share: float = 1.0) -> list[int]:
    """Optimizer steps of each training of a row, which together learn from `samples` reports.

    A batch counts its reports, those of PPO's later epochs (`num_iterations`) only once. `share`: of the samples, then
    rounded. Raises InputError where the samples are no whole number of steps.
    """
    row, steps = plan.rows[name], []
    algorithm = plan.algorithms[row.algorithm] if row.algorithm else Algorithm([])
    for text in algorithm.train:
        batch, epochs = batch_of(text, row.options)
        reports = batch * algorithm.texts * len(algorithm.train)
        if plan.data.samples * epochs % reports:
            raise InputError(
                f"row {name} of {plan.system}: {plan.data.samples} samples are no whole number of steps; choose a "
                f"multiple of {reports}"
            )
        steps.append(max(1, round(plan.data.samples * epochs / reports * share)))
    return steps
