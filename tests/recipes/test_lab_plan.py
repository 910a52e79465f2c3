"""The lab's plan: what its rows are, that they are trained alike, and that one that fails costs itself alone."""

import importlib
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from recipes import lab
from recipes.demos.lab_cluster import cluster_failure, write_slurm
from recipes.demos.lab_jobs import all_jobs, base_jobs, equal_time_jobs, into_levels, row_jobs
from recipes.demos.lab_plan import BASE, Plan, batch_of, fill, read_plan, steps_of
from recipes.demos.stages import Job, Stages, failure_of
from recipes.files import InputError

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "recipes/demos/lab.yaml"
PLANS = [("mrgr1", "phantom"), ("mrgr1", "openi"), ("lmrrg", "phantom"), ("llmrg4", "phantom")]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the script goes itself


@pytest.fixture(params=PLANS, ids=lambda pair: "_".join(pair))
def plan(request) -> Plan:
    return read_plan(str(FILE), *request.param)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_rows_of_the_issue():
    rows = {system: {*read_plan(str(FILE), system, "phantom").rows} for system, _ in PLANS}
    grpo = {f"grpo_{reward}" for reward in ("mccs", "ce_f1", "severity", "radcliq_lite", "composite")}
    published = {"ditpo_severity", "orapo", "editgrpo", "unirg", "rrg_dpo"}
    others = {"rloo_severity", "ppo_severity", "dpo_severity"}
    assert rows["mrgr1"] >= {BASE, "sft"} | grpo | published | others
    assert rows["lmrrg"] >= {BASE, "ppo_radcliq_lite", "grpo_severity"} | others
    assert rows["llmrg4"] >= {BASE, "grpo_ce_f1", "grpo_severity"} | others


def test_every_command_parses_and_has_its_inputs(read, plan):
    jobs, needed = all_jobs(plan, "out", [3], list(plan.rows))
    outs, earlier = {job.out for job in jobs}, set()
    assert len({job.name for job in jobs}) == len(jobs) == len(outs) and needed <= outs
    for level in into_levels(jobs):
        for job in level:
            words = job.command[job.command.index(next(word for word in job.command if word.startswith("recipes/"))) :]
            script = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
            values = read(script, words[1:])
            assert job.out in (values.get("out"), values.get("output_dir"))
            assert (set(job.command) & outs) - {job.out} <= earlier  # all that it reads was made at an earlier level
        earlier |= {job.out for job in level}
    assert earlier == outs


def test_rows_start_at_one_base_and_learn_from_as_many_reports(plan):
    """Counted by hand from the commands: batches of the config files times the steps that the command names."""
    for name, row in plan.rows.items():
        if plan.missing_files(name) or not row.algorithm or row.time_of:
            continue
        trainings = [job for job in row_jobs(plan, "out", 0, name) if "--output_dir" in job.command]
        assert option(trainings[0].command, "--model_name_or_path") == "out/seed0/base"
        assert {option(job.command, "--dataset") for job in trainings} == {"out/data"}
        reports = 0.0
        for job, text in zip(trainings, plan.algorithms[row.algorithm].train, strict=True):
            batch, epochs = batch_of(text)
            reports += int(option(job.command, "--max_steps")) * batch / epochs
        assert reports * (2 if "dpo" in name else 1) == plan.data.samples, name  # a pair is two reports


def test_steps_by_hand():
    """2,560 reports: GRPO has 64 completions a step, SFT 16 answers, DPO 16 pairs; PPO's batch is read four times."""
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    assert [steps_of(plan, name) for name in (BASE, "sft", "grpo_mccs", "dpo_severity")] == [[], [160], [40], [80]]
    assert steps_of(plan, "grpo_severity_equal_time", share=1.26) == [50]
    assert steps_of(read_plan(str(FILE), "lmrrg", "phantom"), "ppo_severity") == [2048 // 128 * 4]
    assert batch_of("rl.py --per_device_train_batch_size 4 --gradient_accumulation_steps 3 --num_iterations 2") == (
        12,
        2,
    )
    with pytest.raises(InputError, match=r"2500 samples are no whole number of steps; choose a multiple of \d+"):
        read_plan(str(FILE), "mrgr1", "phantom", samples=2500)


def test_rewards_of_a_row():
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    assert plan.rewards_of(BASE) == plan.rewards_of("sft") == []
    assert plan.rewards_of("grpo_radcliq_lite") == ["radcliq_lite", "radgraph_lexical", "bleu"]  # what it is made of
    assert plan.rewards_of("grpo_composite") == ["mccs", "positive_f1", "format"]
    command = next(job for job in row_jobs(plan, "out", 0, "grpo_composite") if "--output_dir" in job.command).command
    place = command.index("--rewards")
    weights = ["--rewards", "mccs", "positive_f1", "format", "--reward_weights", "0.15", "0.75", "0.1"]
    assert command[place : place + 8] == weights


def test_agreement_is_the_reward_cards():
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    titles = {"severity": "severity (ours)", "ce_f1": "CE-F1", "radcliq_lite": "RadCliQ (lite)", "mccs": "MCCS"}
    titles["radgraph_lexical"] = "RadGraph (lexical)"
    lines = (ROOT / "rewards/README.md").read_text().splitlines()
    for name, title in titles.items():
        (line,) = [line for line in lines if line.startswith(f"| {title} | 0.")]
        assert float(line.split("|")[2].split()[0]) == plan.tau[name]


def test_chosen_rows_bring_what_they_need():
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    assert plan.choose(["sft"]) == [BASE, "sft"]
    chosen = plan.choose(["grpo_severity_equal_time"])
    assert chosen == [BASE, "grpo_severity", "ditpo_severity", "grpo_severity_equal_time"]
    with pytest.raises(InputError, match="'grpo_mcs' is none of the rows; did you mean grpo_mccs"):
        plan.choose(["grpo_mcs"])


def test_pairs_of_several_rows_are_sampled_once():
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    plan.rows["dpo_mccs"] = plan.rows["dpo_severity"].__class__("dpo", "mccs")
    jobs, _ = all_jobs(plan, "out", [0], [BASE, "dpo_severity", "dpo_mccs"])
    names = Counter(job.name.rpartition(": ")[2].split(" of ")[0] for job in jobs)
    assert names["pairs"] == 2 and [names[f"samples {number}"] for number in (1, 2, 3, 4, 5)] == [1, 1, 1, 1, 0]
    pairs = next(job for job in jobs if job.out == "out/seed0/dpo_mccs_pairs.jsonl")
    assert option(pairs.command, "--rewards") == "mccs"
    training = next(job for job in jobs if job.out == "out/seed0/dpo_mccs")
    assert option(training.command, "--pairs") == pairs.out and "--rewards" not in training.command


def test_equal_time():
    """DiTPO took half as long again as GRPO: 40 steps become 60; without a time there is no row."""
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    seconds = {"ditpo_severity": 150.0, "grpo_severity": 100.0}
    name = "grpo_severity_equal_time"
    jobs = equal_time_jobs(plan, "out", [0], [BASE, name], lambda row, seed: seconds[row])
    training = next(job for job in jobs if "--output_dir" in job.command)
    assert option(training.command, "--max_steps") == "60" and training.out == f"out/seed0/{name}"
    assert equal_time_jobs(plan, "out", [0], [BASE, name], lambda row, seed: None) == []
    assert name not in {Path(job.out).name for job in all_jobs(plan, "out", [0], [BASE, name])[0]}


def changed(values: dict, path: str, value) -> dict:
    """`values` with another value at the keys of `path`; None: without it."""
    *keys, last = path.split("/")
    place = values
    for key in keys:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (
            "rewards/mccs",
            {"mcs": 1},
            "reward mccs: 'mcs' is none of the rewards of rewards/table.py; did you mean mccs",
        ),
        (
            "systems/mrgr1/rows/sft",
            {"algorithm": "sft2"},
            "row sft: 'sft2' is none of the algorithms; did you mean sft",
        ),
        (
            "systems/mrgr1/rows/sft",
            {"algorithm": "grpo", "reward": "mcss"},
            "'mcss' is none of the rewards of the plan",
        ),
        ("systems/mrgr1/rows/sft", {"algoritm": "sft"}, "'algoritm' is none of the settings; did you mean algorithm"),
        ("systems/mrgr1/rows/sft", ["sft"], "row sft: it must be a mapping of algorithm"),
        ("systems/mrgr1/rows/sft", {"algorithm": "sft", "time_of": "base"}, "time_of and rate_of go together"),
        ("systems/mrgr1/rows/sft", {"algorithm": "sft", "time_of": "x", "rate_of": "y"}, "'x' is none of the rows"),
        ("systems/mrgr1/rows/base", None, "'base' is none of the rows"),
        ("systems/mrgr1/algorithms/dpo/pairs", "sample", "'sample' is none of the sources of pairs"),
        ("systems/mrgr1/algorithms/sft", {"texts": 1}, "algorithm sft: missing 1 required"),
        ("systems/mrgr1/data/phantom/generate", "--model {model}", "braces may hold folder, home, seed, pairs"),
        ("systems/mrgr1/data/phantom/generate", "--model 'x", "braces may hold"),  # an open quote
        ("systems/mrgr1/data/phantom/generat", "", "'generat' is none of the settings; did you mean generate"),
        ("systems/mrgr1/data", None, "it lacks data"),
        ("systems", None, "lacks systems"),
        ("agreemen", {}, "'agreemen' is none of the settings; did you mean agreement"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(call, tmp_path, path, value, sentence):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(changed(yaml.safe_load(FILE.read_text()), path, value)))
    with pytest.raises(InputError, match=sentence):
        call(lab.main, "--plan", file, "--seeds", 0, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--system", "mrg"], "--system: 'mrg' is none of the systems"),
        (["--row", "mccs"], "--row mccs: 'mccs' is none of the rows"),
        (["--seeds", "0", "0"], "different numbers"),
        (["--system", "lmrrg", "--data", "openi"], "'openi' is none of the data sets; there are phantom"),
        (["--submit", "pbs"], "argument --submit: invalid choice: 'pbs'"),
        (["--plan", "none.yaml"], "none.yaml cannot be read"),
        (["--judge_only", "true"], "there is nothing to judge in .*mrgr1: run the lab"),
    ],
)
def test_mistakes(call, tmp_path, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        call(lab.main, *arguments, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_row_without_its_files_is_left_out():
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    plan.algorithms["new"] = plan.algorithms["sft"].__class__(["rl_new.py --config recipes/configs/none.yaml"])
    plan.rows["new"] = plan.rows["sft"].__class__("new")
    assert plan.missing_files("new") == ["recipes/rl_new.py", "recipes/configs/none.yaml"]
    assert "out/seed0/new" not in {job.out for job in all_jobs(plan, "out", [0], ["new", "sft"])[0]}


def write(folder: Path, name: str, *reads: Path, error: str = "") -> Job:
    """A job that reads files and writes one, or refuses."""
    code = f"import sys; open(sys.argv[1], 'w'); {f'sys.exit({error!r})' if error else ''}"
    return Job(name, str(folder / name), ["-c", code, str(folder / name), *map(str, reads)])


def test_a_job_that_fails_costs_what_reads_it(tmp_path):
    data, bad, good = write(tmp_path, "data"), write(tmp_path, "bad", error="error: no model"), write(tmp_path, "good")
    reports = [write(tmp_path, f"{name}.jsonl", tmp_path / name) for name in ("bad", "good")]
    for _ in range(2):  # what has failed is tried again, what is done is not run again
        with Stages(tmp_path) as stages:
            for level in into_levels([data, bad, good, *reports]):
                stages.run(*level, needed={data.out})
        assert stages.failures == dict.fromkeys((bad.out, f"{bad.out}.jsonl"), "no model")
        assert {*stages.seconds()} == {"data", "good", "good.jsonl"}
        assert not (tmp_path / "bad.jsonl").exists() and (tmp_path / "good.jsonl").exists()
    with Stages(tmp_path) as stages:
        stages.run(write(tmp_path, "bad"), needed=())
        assert stages.failures == {} and not (tmp_path / "failures.json").exists()
    with pytest.raises(SystemExit, match="stage 'data' failed"), Stages(tmp_path) as stages:
        stages.run(write(tmp_path, "data", error="error: full"), needed={data.out})


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("loading\nerror: there is no model x\n", "there is no model x"),
        ("Traceback\n  File\nValueError: bad\n", "ValueError: bad"),
        ("error: first\nsubprocess.CalledProcessError: exit status 1\n", "first"),  # accelerate's own end
        ("", "it wrote nothing"),
    ],
)
def test_failure_of(log, sentence):
    assert failure_of(log) == sentence


STUB = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
for word in "$@"; do [ "$word" = "$FAILS" ] && { echo "error: no model" >&2; exit 1; }; done
exit 0
"""
SBATCH = """#!/bin/bash
echo "$*" >> "$CALLS"
echo "$(wc -l < "$CALLS")1"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with a space in its name, two rows of two seeds as scripts, and stubs of the commands in PATH."""
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "rewards"):
        (tmp_path / name).symlink_to(ROOT / name)
    plan = read_plan("recipes/demos/lab.yaml", "mrgr1", "phantom")
    rows = [*plan.choose(["dpo_severity", "grpo_mccs"]), "grpo_severity_equal_time"]  # the last one: on one machine
    folder = "my lab/mrgr1"
    write_slurm(plan, folder, [0, 1], rows, "--num_processes 1 --cpu", "--gpus 1", ["--judge_only", "true"])
    (tmp_path / "bin").mkdir()
    for name, text in {"accelerate": STUB, "python": STUB, "sbatch": SBATCH}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "CALLS": f"{tmp_path}/calls.txt"}

    def bash(*words: str, **variables: str) -> tuple[int, list[str]]:
        calls = tmp_path / "calls.txt"
        calls.write_text("")
        ended = subprocess.run(["bash", *words], env=environment | variables, capture_output=True, text=True)
        return ended.returncode, calls.read_text().splitlines()

    return tmp_path / folder, bash


def test_slurm_scripts_are_valid(cluster):
    folder, bash = cluster
    scripts = {path.name for path in (folder / "slurm").iterdir() if path.suffix in (".sbatch", ".sh")}
    assert scripts == {"shared.sbatch", "bases.sbatch", "rows.sbatch", "judge.sbatch", "submit.sh"}
    for script in [*scripts, "shared.txt", "bases.txt", "rows.txt"]:
        assert bash("-n", str(folder / "slurm" / script))[0] == 0


def test_slurm_submits_in_order(cluster):
    """Shared first, then the bases, the rows when these are well, and the judge whatever became of the rows."""
    folder, bash = cluster
    code, calls = bash(str(folder / "slurm/submit.sh"))
    names = ["shared", "bases", "rows", "judge"]
    assert code == 0 and [Path(call.split()[-1]).stem for call in calls] == names
    assert all(
        "--gpus 1" in call and f"--output=my lab/mrgr1/slurm/logs/{name}" in call
        for call, name in zip(calls, names, strict=True)
    )
    assert "--dependency" not in calls[0] and "--dependency=afterok:11 " in calls[1]
    assert "--array=1-2 " in calls[1] and "--array=1-6 " in calls[2]  # two seeds; of each base, GRPO, DPO
    assert "--dependency=afterok:21 " in calls[2] and "--dependency=afterany:31 " in calls[3]


def test_slurm_runs_a_row_a_line(cluster):
    folder, bash = cluster
    lines = (folder / "slurm/rows.txt").read_text().splitlines()
    rows = [f"seed{seed}/{row}" for seed in (0, 1) for row in (BASE, "grpo_mccs", "dpo_severity")]
    assert [line.rpartition("# ")[2] for line in lines] == rows
    reports = ["python recipes/generate.py"] * 4  # the test split, shuffled, and two test sets outside
    pairs = ["python recipes/build_preferences.py", "accelerate launch --num_processes 1 --cpu recipes/dpo.py"]
    trainings = {"base": [], "grpo_mccs": ["accelerate launch --num_processes 1 --cpu recipes/grpo_mrgr1.py"]}
    for number, row in enumerate(rows, 1):
        code, calls = bash(str(folder / "slurm/rows.sbatch"), SLURM_ARRAY_TASK_ID=str(number))
        starts = [*trainings.get(row.split("/")[1], pairs), *reports]
        assert code == 0 and [call[: len(start)] for call, start in zip(calls, starts, strict=True)] == starts
        assert all(f"--model my lab/mrgr1/{row} " in call for call in calls[-4:])
    code, calls = bash(str(folder / "slurm/bases.sbatch"), SLURM_ARRAY_TASK_ID="2")
    assert code == 0 and [call.split()[-1] for call in calls[2:]] == [
        f"lab/mrgr1/seed1/samples{number}.jsonl" for number in (1, 2, 3, 4)
    ]
    code, calls = bash(str(folder / "slurm/shared.sbatch"))
    assert code == 0 and [call.split()[-1] for call in calls] == [
        f"lab/mrgr1/{name}" for name in ("data", "balanced", "site_b", "openi", "crepe")
    ]
    assert bash(str(folder / "slurm/shared.sbatch"), FAILS="my lab/mrgr1/openi")[0] == 0  # judged without it
    assert bash(str(folder / "slurm/shared.sbatch"), FAILS="my lab/mrgr1/data")[0] == 1
    assert bash(str(folder / "slurm/judge.sbatch"))[1] == ["python recipes/lab.py --judge_only true"]


def test_slurm_of_a_row_that_fails(cluster):
    folder, bash = cluster
    number = [line.endswith("seed1/grpo_mccs") for line in (folder / "slurm/rows.txt").read_text().splitlines()].index(
        True
    ) + 1
    code, calls = bash(str(folder / "slurm/rows.sbatch"), SLURM_ARRAY_TASK_ID=str(number), FAILS="mccs")
    assert code == 1 and len(calls) == 1  # no reports of a model that is not there
    log = folder / f"slurm/logs/rows-{number}.txt"
    log.write_text("step 1\nerror: no model\n")
    assert cluster_failure(str(folder), "grpo_mccs", 1) == "no model"
    assert cluster_failure(str(folder), "grpo_mccs", 0) == "" == cluster_failure(str(folder.parent), "grpo_mccs", 1)


def test_submit_writes_and_submits_nothing(call, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch to be called by mistake
    call(lab.main, "--submit", "slurm", "--row", "sft", "--seeds", 0, "--out", tmp_path / "lab")
    printed = capsys.readouterr().out
    assert "shared=$(sbatch --parsable" in printed and "nothing was submitted" in printed
    assert {path.name for path in (tmp_path / "lab/mrgr1").iterdir()} == {"slurm"}


def test_paths_with_spaces_are_one_word():
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    (tiny, base) = base_jobs(plan, "my lab/mrgr1", 0)
    assert option(tiny.command, "--dataset") == "my lab/mrgr1/data" and base.out == "my lab/mrgr1/seed0/base"
    assert fill("--out {home}/x 'a b'", home="my lab") == ["--out", "my lab/x", "a b"]


class Done:
    """Stands for `Stages`: keeps the jobs, and says how long trainings took."""

    def __init__(self, folder: str, fresh: bool):
        self.jobs: list[Job] = []
        self.finished: dict[str, dict] = {}

    def __enter__(self) -> "Done":
        return self

    def __exit__(self, *error) -> None: ...

    def run(self, *jobs: Job, needed) -> None:
        for job in jobs:
            assert (job.out in needed) == (Path(job.out).name in ("data", "balanced", "tiny", "base"))
            self.jobs.append(job)
            self.finished[job.out] = {"processor_seconds": 150.0 if job.out.endswith("ditpo_severity") else 100.0}

    def seconds(self) -> dict[str, float]:
        return {
            job.name: float(option(job.command, "--max_steps")) for job in self.jobs if "--max_steps" in job.command
        }


def test_the_script_runs_all_rows_and_then_those_of_equal_time(monkeypatch):
    monkeypatch.setattr(lab, "Stages", Done)
    plan = read_plan(str(FILE), "mrgr1", "phantom")
    rows = plan.choose(["grpo_severity_equal_time"])
    if plan.missing_files("ditpo_severity"):
        pytest.skip("the plan's DiTPO is not in this checkout")
    steps = lab.run_rows(plan, "out/mrgr1", [0, 1], rows, fresh=False)
    assert [steps[f"seed 1: {row}"] for row in ("grpo_severity", "ditpo_severity")] == [40, 40]
    assert [steps[f"seed {seed}: grpo_severity_equal_time"] for seed in (0, 1)] == [60, 60]
