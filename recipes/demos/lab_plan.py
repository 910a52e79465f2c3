"""The lab's plan (lab.yaml): of a system its rows, policy x algorithm x reward, as jobs that all start at one base.

A plan that names what does not exist is refused before anything runs. A script or a config file that is not there
costs its row alone.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import yaml

from recipes.demos.ablation_matrix import PARTS
from recipes.demos.plans import LAUNCH, report_file
from recipes.demos.stages import Job
from recipes.files import InputError
from rewards.table import REWARDS

BASE, TEST, SHUFFLED = "base", "test", "shuffled"
PLACES = ("folder", "home", "seed", "pairs")  # what words may name in braces
SAMPLED, RETRIEVED = "sampled", "retrieved"
SAMPLINGS = 4  # reports of a study that a preference pair is chosen from
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
    """What is built of a data set, see lab.yaml; `minutes`: what one seed may take."""

    samples: int
    generate: str
    sample: str = ""
    train: str = ""
    rl: str = ""
    start: str = "{home}/base"
    dataset: str = "{folder}/data"
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
    for text in [*words, data.start, data.dataset, data.generate, data.sample, data.train, data.rl]:
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


def launched(words: list[str]) -> list[str]:
    """The command of `words`, a script in recipes/ and its arguments: by accelerate where it trains."""
    launcher = LAUNCH.split() if "--output_dir" in words else []
    return [*launcher, f"recipes/{words[0]}", *words[1:]]


def job_of(name: str, words: list[str]) -> Job:
    """The job of `words`, which name what they write by `--out` or `--output_dir`."""
    out = next(after for word, after in pairwise(words) if word in ("--out", "--output_dir"))
    return Job(name, out, launched(words))


def site_reports(home: str, row: str, site: str) -> str:
    """Where a row's reports of a test set stand: of `TEST`, of the images of other studies (`SHUFFLED`), of one
    outside."""
    return report_file(f"{home}/{row}") if site == TEST else f"{home}/{row}_{site}.jsonl"


def shared_jobs(plan: Plan, folder: str) -> list[Job]:
    """What all rows of all seeds need."""
    return [job_of(name, fill(words, folder=folder)) for name, words in plan.data.shared.items()]


def outside_jobs(plan: Plan, folder: str) -> list[Job]:
    """The test sets outside; without one the rows are judged by the others."""
    return [job_of(part.title, fill(part.build, folder=folder)) for part in plan.data.outside.values()]


def base_jobs(plan: Plan, folder: str, seed: int) -> list[Job]:
    """What all rows of a seed need: the base, and the models before it."""
    places = {"folder": folder, "home": f"{folder}/seed{seed}", "seed": seed}
    return [job_of(f"seed {seed}: {name}", fill(words, **places)) for name, words in plan.data.base.items()]


def row_jobs(plan: Plan, folder: str, seed: int, name: str, share: float = 1.0) -> list[Job]:
    """What a row alone needs: pairs, trainings, reports of all test sets. `share`: of the samples, see `steps_of`.

    Rows that learn from pairs name the same jobs that sample the base.
    """
    row, data, home = plan.rows[name], plan.data, f"{folder}/seed{seed}"
    places = {"folder": folder, "home": home, "seed": seed, "pairs": f"{home}/{name}_pairs.jsonl"}
    (model,), (dataset,) = fill(data.start, **places), fill(data.dataset, **places)
    rewards = plan.rewards.get(row.reward or "", {})
    paid = ["--rewards", *rewards, "--reward_weights", *map(str, rewards.values())] if rewards else []
    jobs = []
    if row.algorithm:
        algorithm = plan.algorithms[row.algorithm]
        if algorithm.pairs:
            jobs += pair_jobs(plan, places, seed, name, [model, dataset], paid)
            paid = []
        is_rl = not algorithm.pairs and not algorithm.is_supervised
        steps = steps_of(plan, name, share)
        for number, (words, length) in enumerate(zip(algorithm.train, steps, strict=True), 1):
            last = number == len(steps)
            options = f"{data.train} {data.rl * is_rl} {row.options}"
            command = [*fill(words, **places), *paid, *fill(options, **places)]
            command += ["--max_steps", str(length), "--seed", str(seed), "--model_name_or_path", model]
            model = f"{home}/{name}" + f"_stage{number}" * (not last)
            command += ["--dataset", dataset, "--output_dir", model]
            title = f"seed {seed}: {name}" + f", stage {number}" * (len(steps) > 1)
            jobs.append(job_of(title, command))
    sites = {TEST: dataset, SHUFFLED: dataset, **{site: f"{folder}/{site}" for site in data.outside}}
    for site, place in sites.items():
        command = ["generate.py", *fill(data.generate, **places), "--split", "test", "--model", model]
        command += ["--dataset", place, *["--shuffle_images", "true"] * (site == SHUFFLED)]
        job = job_of(f"seed {seed}: reports of {name}, {site}", [*command, "--out", site_reports(home, name, site)])
        jobs.append(job)
    return jobs


def pair_jobs(
    plan: Plan, places: Mapping[str, object], seed: int, name: str, start: list[str], paid: list[str]
) -> list[Job]:
    """The pairs of a row, and the reports of the base that they are of; `start`: the base and the data set."""
    samples, jobs = [], []
    model, dataset = start
    is_sampled = plan.algorithms[plan.rows[name].algorithm].pairs == SAMPLED
    for number in range(1, SAMPLINGS + 1) if is_sampled else ():
        samples.append(f"{places['home']}/samples{number}.jsonl")
        command = ["generate.py", *fill(f"{plan.data.generate} {plan.data.sample}", **places), "--split", "train"]
        command += ["--seed", str(number), "--model", model, "--dataset", dataset, "--out", samples[-1]]
        jobs.append(job_of(f"seed {seed}: samples {number} of the base", command))
    source = [*paid, "--predictions", *samples] if is_sampled else ["--rejected", "retrieved"]
    command = ["build_preferences.py", "--dataset", dataset, *source]
    jobs.append(job_of(f"seed {seed}: pairs of {name}", [*command, "--out", str(places["pairs"])]))
    return jobs


def all_jobs(plan: Plan, folder: str, seeds: list[int], rows: list[str]) -> tuple[list[Job], set[str]]:
    """All jobs but those of rows whose time follows from another's; and what must be written for any row to go on."""
    needed = [*shared_jobs(plan, folder), *(job for seed in seeds for job in base_jobs(plan, folder, seed))]
    jobs = [*needed, *outside_jobs(plan, folder)]
    for seed in seeds:
        for name in rows:
            if not plan.rows[name].time_of and not plan.missing_files(name):
                jobs += row_jobs(plan, folder, seed, name)
    return list({job.out: job for job in jobs}.values()), {job.out for job in needed}


def into_levels(jobs: list[Job]) -> list[list[Job]]:
    """The jobs by level: each reads what jobs of earlier levels write."""
    level: dict[str, int] = {}
    for job in jobs:  # in an order in which they could be run
        level[job.out] = max((level[word] + 1 for word in job.command if word in level and word != job.out), default=0)
    return [[job for job in jobs if level[job.out] == number] for number in range(max(level.values(), default=-1) + 1)]


def equal_time_jobs(
    plan: Plan, folder: str, seeds: list[int], rows: list[str], seconds: Callable[[str, int], float | None]
) -> list[Job]:
    """The jobs of the rows that are trained as long as another.

    `seconds(row, seed)`: how long a row was trained, or None, and its rows are left out.
    """
    jobs = []
    for seed in seeds:
        for name in rows:
            row = plan.rows[name]
            if row.time_of and not plan.missing_files(name):
                time, rate = seconds(row.time_of, seed), seconds(row.rate_of, seed)
                if time and rate:
                    jobs += row_jobs(plan, folder, seed, name, share=time / rate)
    return jobs
