"""The order of a rehearsal's jobs, two at a time, and its table."""

import resource
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recipes.cli import report
from recipes.files import InputError

from .llm import answering
from .overrides import overrides_of, read_config
from .plan import CONFIGS, labelers, learned_metrics, llmrg4, lmrrg, mrgr1
from .real_weights import print_changes, real_weights
from .rooms import prepare_rooms
from .runs import Failed, Job, Processes, run_stage

STUDIES = 30  # of Open-i with images


def select_jobs(jobs: Sequence[Job], only: Sequence[str] | None) -> list[Job]:
    """The jobs named, and all that they need, in the order in which they can run."""
    by_name, order = {job.name: job for job in jobs}, []

    def add(name: str) -> None:
        for need in by_name[name].needs:
            add(need)
        if by_name[name] not in order:
            order.append(by_name[name])

    names = [job.name for job in jobs if job.in_table]
    if unknown := set(only or ()) - set(names):
        raise InputError(f"there is no run {min(unknown)!r}; choose among {', '.join(names)}")
    for name in only or names:
        add(name)
    return order


def print_overrides(names: Sequence[str]) -> None:
    """What is changed in each YAML, as one list."""
    table, configs = Table("key", "published", "rehearsal", "because", "in"), {}
    for name in names:
        for change in overrides_of(read_config(CONFIGS / name)):
            configs.setdefault((change.key, str(change.published), str(change.value), change.reason), []).append(name)
    for change, yamls in sorted(configs.items()):
        table.add_row(*change, "all" if len(yamls) == len(names) else ", ".join(yamls))
    Console(width=150).print("What is changed in the YAMLs, and nothing else:", table)


def run_job(job: Job, out: Path, processes: Processes) -> Job:
    """Runs a job's stages up to one that fails; the job notes what happened."""
    for stage in job.stages:
        start = time.monotonic()
        log = out / "logs" / f"{job.name.replace('/', '_').replace(': ', '_')}.{stage.name}.log"
        try:
            figures = run_stage(stage, out / "rooms" / job.room, log, processes)
            job.successes.append(stage.name)
            job.figures |= {stage.name: figures} if figures else {}
        except (Failed, OSError, ValueError, KeyError) as error:
            job.failure = f"{stage.name}: {error}"
        job.seconds[stage.name] = round(time.monotonic() - start, 1)
        if job.failure:
            break
    seconds = " ".join(f"{name} {value:.0f}" for name, value in job.seconds.items())
    result, reason = ("FAILED", f": {job.failure}") if job.failure else ("done", "")
    print(f"{result}: {job.name} ({seconds} s){reason}", flush=True)
    return job


def run_all(jobs: Sequence[Job], out: Path, workers: int) -> None:
    """Runs all jobs, so many at a time, each after what it needs; whatever ends this, no process is left."""
    processes, queue, active = Processes(), list(jobs), {}
    by_name = {job.name: job for job in jobs}
    pool = ThreadPoolExecutor(workers)
    try:
        while queue or active:
            for job in list(queue):
                prerequisites = [by_name[name] for name in job.needs]
                if broken := next((each for each in prerequisites if each.failure), None):
                    job.failure = f"needs {broken.name}, which failed"
                    queue.remove(job)
                elif len(active) < workers and all(len(each.successes) == len(each.stages) for each in prerequisites):
                    active[pool.submit(run_job, job, out, processes)] = job
                    queue.remove(job)
            if active:
                for future in wait(active, return_when=FIRST_COMPLETED).done:
                    del active[future]
                    future.result()
    finally:
        processes.end()
        pool.shutdown()


def rehearse(
    out: Path, only: Sequence[str] | None = None, workers: int = 2, without: Sequence[str] = ()
) -> list[dict]:
    """Runs the plan, or the YAMLs that `only` names and what they need; returns the checks of results.json.

    `without`: names of stages that are left out.
    """
    start = time.monotonic()
    with answering() as endpoint:
        plan = [*llmrg4(endpoint), *lmrrg(), *mrgr1(), *labelers(), *learned_metrics(), *real_weights()]
        selection = select_jobs(plan, only)
        jobs = [job for job in selection if not job.skipped]
        for job in jobs:
            job.stages = [stage for stage in job.stages if stage.name not in without]
        if out.exists() and not (out / "logs").is_dir():
            raise InputError(f"--out {out} exists and is no earlier rehearsal: name another folder")
        shutil.rmtree(out, ignore_errors=True)
        (out / "logs").mkdir(parents=True)
        print_overrides([job.name for job in jobs if (CONFIGS / job.name).is_file()])
        if any(job.room == "real_text_random_vision" for job in jobs):
            print_changes()
        prepare_rooms(out / "rooms", {job.room for job in jobs}, STUDIES)
        ready = time.monotonic()
        run_all(jobs, out, workers)
    checks = [
        {"name": job.name, "value": len(job.successes), "bar": len(job.stages), "holds": not job.failure}
        for job in jobs
        if job.in_table
    ]
    checks += [
        {"name": job.name, "value": f"skipped: {job.skipped}", "bar": len(job.stages), "holds": None}
        for job in selection
        if job.in_table and job.skipped
    ]
    runs = {
        job.name: {"seconds": job.seconds, "stages": job.successes, "failure": job.failure, **job.figures}
        for job in jobs
    }
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "seconds": round(time.monotonic() - start, 1),
        "seconds of replicas and raw data": round(ready - start, 1),
        "CPU seconds of the commands": round(usage.ru_utime + usage.ru_stime, 1),  # but for those that were killed
        "runs": runs,
    }
    report(out, figures, checks)
    return checks
