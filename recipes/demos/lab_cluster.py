"""The lab on a cluster: its plan as jobs of Slurm, whose results recipes/lab.py --judge_only merges.

`slurm/` in the system's folder gets the commands, a line each: shared.txt (one after the other), bases.txt (a line a
seed), rows.txt (a line a row and seed, an array job), a batch script of each, judge.sbatch, and submit.sh, which hands
them to sbatch with their dependencies. Nothing is submitted here.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from recipes.demos.lab_jobs import base_jobs, judging_jobs, row_jobs, shared_jobs
from recipes.demos.lab_plan import Plan
from recipes.demos.stages import Job, failure_of
from recipes.files import replacing

HEAD = """#!/bin/bash
#SBATCH --job-name=lab-{system}-{name}
cd "${{SLURM_SUBMIT_DIR:-.}}" || exit 1
[ -f .venv/bin/activate ] && source .venv/bin/activate
"""
ONE_LINE = 'eval "$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {lines})"\n'
ALL_LINES = "set -e\nsource {lines}\n"


def shell(job: Job, launch: str) -> str:
    """The command of a job for a shell; `launch`: words between `accelerate launch` and a script that trains."""
    launcher = ["accelerate", "launch", *shlex.split(launch)] if "--output_dir" in job.command else ["python"]
    return shlex.join([*launcher, *job.command])


def make_lines(
    plan: Plan, folder: str, seeds: Sequence[int], rows: Sequence[str], launch: str
) -> dict[str, list[str]]:
    """The lines of shared, bases and rows. A row's trainings and reports are one line, which ends in # SEED/ROW.

    What several rows of a seed read is made in the line of its base. A test set outside, or a CREPE, that cannot
    be made stops nothing. Rows that are trained as long as another, and those without their files, are left out.
    """
    lines = {
        "shared": [
            *(shell(job, launch) for job in shared_jobs(plan, folder)),
            *(f"{shell(job, launch)} || true" for job in judging_jobs(plan, folder)),
        ],
        "bases": [],
        "rows": [],
    }
    for seed in seeds:
        jobs = {
            row: row_jobs(plan, folder, seed, row)
            for row in rows
            if not plan.rows[row].time_of and not plan.missing_files(row)
        }
        outs = [job.out for row in jobs.values() for job in row]
        common = {job.out: job for row in jobs.values() for job in row if outs.count(job.out) > 1}
        common |= {job.out: job for row in jobs.values() for job in row if "samples" in Path(job.out).name}
        base = [shell(job, launch) for job in [*base_jobs(plan, folder, seed), *common.values()]]
        if base:
            lines["bases"].append(" && ".join(base))
        for row, row_of_jobs in jobs.items():
            mine = [job for job in row_of_jobs if job.out not in common]
            reports = [shell(job, launch) for job in mine if "recipes/generate.py" in job.command]
            trainings = [shell(job, launch) for job in mine if "recipes/generate.py" not in job.command]
            lines["rows"].append(" && ".join([*trainings, f"{{ {'; '.join(reports)}; }}"]) + f" # seed{seed}/{row}")
    return {name: commands for name, commands in lines.items() if commands}


def write_slurm(
    plan: Plan,
    folder: str,
    seeds: Sequence[int],
    rows: Sequence[str],
    launch: str,
    options: str,
    judging: Sequence[str],
) -> list[str]:
    """Writes the scripts to `folder`/slurm; returns the commands that submit them.

    `options`: words for every sbatch, such as "--gpus 1 --time 8:00:00"; `judging`: arguments of recipes/lab.py that
    judge the rows afterwards.
    """
    home = Path(folder) / "slurm"
    (home / "logs").mkdir(parents=True, exist_ok=True)
    commands, before = [], ""
    lines = make_lines(plan, folder, seeds, rows, launch)
    for name, texts in lines.items():
        file = home / f"{name}.txt"
        _write(file, "\n".join(texts) + "\n")
        body = ALL_LINES if name == "shared" else ONE_LINE
        _write(
            home / f"{name}.sbatch", (HEAD + body).format(system=plan.system, name=name, lines=shlex.quote(_at(file)))
        )
        array = "" if name == "shared" else f"--array=1-{len(texts)}"
        log = shlex.quote(f"--output={home}/logs/{name}{'-%a' * bool(array)}.txt")
        words = ["sbatch --parsable", options, log, array, before, shlex.quote(f"{home}/{name}.sbatch")]
        command = " ".join(filter(None, words))
        commands.append(f"{name}=$({command})")
        before = f"--dependency=afterok:${name}"
    words = shlex.join(["python", "recipes/lab.py", *judging])
    _write(home / "judge.sbatch", HEAD.format(system=plan.system, name="judge") + words + "\n")
    log = shlex.quote(f"--output={home}/logs/judge.txt")
    after = before.replace("afterok", "afterany")  # rows that failed are named on the page
    command = " ".join(filter(None, ["sbatch", options, log, after, shlex.quote(f"{home}/judge.sbatch")]))
    commands.append(command)
    _write(home / "submit.sh", "#!/bin/bash\nset -e\n" + "\n".join(commands) + "\n")
    return commands


def _at(file: Path) -> str:
    """`file` as `source` takes it, which looks for a name without a slash elsewhere."""
    return str(file) if "/" in str(file) else f"./{file}"


def _write(file: Path, text: str) -> None:
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cluster_failure(folder: str, row: str, seed: int) -> str:
    """Why a row of an array job has no reports, by its log; nothing where there was no such job."""
    home = Path(folder) / "slurm"
    if not (home / "rows.txt").is_file():
        return ""
    for number, line in enumerate((home / "rows.txt").read_text(encoding="utf-8").splitlines(), 1):
        log = home / f"logs/rows-{number}.txt"
        if line.endswith(f" # seed{seed}/{row}") and log.is_file():
            return failure_of(log.read_text(encoding="utf-8", errors="replace"))
    return ""
