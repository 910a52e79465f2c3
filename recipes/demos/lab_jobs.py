"""The rows of the lab's plan as jobs for `recipes.demos.stages.Stages`, all from one base and one data set."""

from collections.abc import Callable, Mapping
from itertools import pairwise

from recipes.demos.lab_plan import SAMPLED, SHUFFLED, TEST, Plan, fill, steps_of
from recipes.demos.plans import report_file
from recipes.demos.stages import Job

SAMPLINGS = 4  # reports of a study that a preference pair is chosen from


def job_of(name: str, words: list[str]) -> Job:
    """The job of `words`, a script in recipes/ and its arguments, which name what they write by `--out` or
    `--output_dir`."""
    out = next(after for word, after in pairwise(words) if word in ("--out", "--output_dir"))
    return Job(name, out, [f"recipes/{words[0]}", *words[1:]])


def site_reports(home: str, row: str, site: str) -> str:
    """Where a row's reports of a test set stand: of `TEST`, of the images of other studies (`SHUFFLED`), of one
    outside."""
    return report_file(f"{home}/{row}") if site == TEST else f"{home}/{row}_{site}.jsonl"


def shared_jobs(plan: Plan, folder: str) -> list[Job]:
    """What all rows of all seeds need."""
    return [job_of(name, fill(words, folder=folder)) for name, words in plan.data.shared.items()]


def judging_jobs(plan: Plan, folder: str) -> list[Job]:
    """The test sets outside, and CREPE; without one the rows are judged by the others."""
    words = {part.title: part.build for part in plan.data.outside.values()} | {"CREPE": plan.data.crepe}
    return [job_of(title, fill(text, folder=folder)) for title, text in words.items() if text]


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
    jobs = [*needed, *judging_jobs(plan, folder)]
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
