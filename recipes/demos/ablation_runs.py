"""What recipes/ablations.py runs: of each system its ablation rows on one of `DATA`, as levels of jobs.

Rows share as much as they can: one data set, one start model per seed, and of LM-RRG and LLM-RG4 the first stage where
the row changes the second. The numbers of steps are chosen so that a system with one seed takes 20 minutes at most on
two cores, two jobs side by side. On Open-i, which takes longer, MRG-R1's start model has learned the reports' words by
SFT, as in the demo.
"""

from pathlib import Path

import yaml

from recipes.demos.llmrg4 import job_of_labeler, job_of_token_weights
from recipes.demos.mrgr1 import SFT_SCRIPT, OpenIDemo
from recipes.demos.plans import Levels, make_job, report_file, side_by_side, train, write_reports
from recipes.demos.stages import Job
from recipes.files import InputError

GRPO_STEPS = 40  # of 64 completions, for 16 studies; the row SFT has as many steps of 16 studies
OPENI_STEPS, OPENI_TOKENS = 40, 160  # the same on Open-i, whose reports are longer; the demo's tokens
STAGE1_STEPS, PPO_STEPS = 200, 64  # LM-RRG; 64 steps are 16 batches of completions, 4 epochs each
MIXED_STEPS = 400  # LLM-RG4's stage 2 on four settings; on one the same number of epochs, a quarter of the steps
TAGGED = 0.15  # of the base's answers: few enough to leave the format to be learned, enough to be sampled

TEST = "--shapes square --n_validation 1 --n_test 500"
SN = f"recipes/build_phantom.py --scenarios sn {TEST}"
PROSE = f"recipes/build_phantom.py --balanced --style prose {TEST}"
PHANTOM, OPENI = "phantom", "openi"
DATA = {  # data set -> system -> words of the commands that make data and balanced data
    PHANTOM: {
        "mrgr1": (f"{SN} --abnormal 0.6 --seed 80 --n_train 2500", f"{SN} --balanced --n_train 3000 --seed 81"),
        "lmrrg": (f"{SN} --abnormal 0.6 --seed 82 --n_train 2500", f"{SN} --balanced --n_train 3000 --seed 83"),
        "llmrg4": (
            f"{PROSE} --scenarios sn,sw,mn,mw --seed 84 --n_train 4000",
            f"{PROSE} --scenarios mn,mw --seed 85 --n_train 4000",
        ),
    },
    OPENI: {"mrgr1": (OpenIDemo.data, OpenIDemo.balanced)},
}
GENERATE = "--split test --batch_size 64 --prompt_file"
MRGR1_PROMPT = "--prompt_file prompts/mrgr1_tiny.txt"  # in every row: a tiny model learns no instruction
CHANGED_NETWORKS = (  # of LM-RRG
    "without_global", "without_region", "names", "without_instruction", "text_query", "region_loss",
)  # fmt: skip

TABLES = yaml.safe_load((Path(__file__).parent / "ablations.yaml").read_text(encoding="utf-8"))
ROWS = {  # of each system all rows, the whole one first
    system: list(dict.fromkeys([tables["full"], *(row for group in tables["groups"] for row in group["rows"])]))
    for system, tables in TABLES.items()
}


def choose_rows(system: str, names: list[str]) -> list[str]:
    """`names`, all rows where there are none; the whole system first. Raises InputError on a row that is not there."""
    if unknown := [name for name in names if name not in ROWS[system]]:
        raise InputError(f"{system} has no row {unknown[0]!r}; choose among {', '.join(ROWS[system])}")
    return [name for i, name in enumerate(ROWS[system]) if i == 0 or not names or name in names]


def row_file(system: str, row: str) -> str:
    """The YAML of a row, from the project's root."""
    return f"recipes/configs/{system}/ablations/{row}.yaml"


def row_reports(folder: str, seed: int, row: str, shuffled: bool = False) -> str:
    """Where the reports of a row stand in the folder of a system; `shuffled`: for the images of other studies."""
    return report_file(f"{folder}/seed{seed}/{row}", shuffled)


def home_of(system: str, data: str) -> str:
    """What a system's folder and files are called on a data set: its name, with that of the data unless phantom."""
    return system if data == PHANTOM else f"{system}_{data}"


def check_data(data: str, systems: list[str]) -> None:
    """Raises InputError where a system has no rows on `data`, one of `DATA`."""
    if missing := [system for system in systems if system not in DATA[data]]:
        raise InputError(
            f"--data {data} is for --system {' and '.join(DATA[data])}; {missing[0]} has --data phantom alone"
        )


def plan(system: str, folder: str, seeds: list[int], rows: list[str], source: str = PHANTOM) -> Levels:
    """The jobs of a system's rows on the data set `source`, one of `DATA`.

    Data sets, LLM-RG4's labeler and token weights, then those of every seed.
    """
    data, balanced = DATA[source][system]
    yield [make_job("data", f"{folder}/data", data), make_job("balanced data", f"{folder}/balanced", balanced)]
    if system == "llmrg4":
        yield [job_of_labeler(folder)]
        yield [job_of_token_weights(folder)]
    plans = {"mrgr1": _plan_openi if source == OPENI else _plan_mrgr1, "lmrrg": _plan_lmrrg, "llmrg4": _plan_llmrg4}
    yield from side_by_side([plans[system](folder, seed, rows) for seed in seeds])


def _report_jobs(folder: str, seed: int, row: str, model: str, prompt: str, options: str) -> list[Job]:
    """The reports of a row, and its control: those of the images of other studies."""
    words = f"{GENERATE} prompts/{prompt}.txt {options}"
    return [
        write_reports(
            f"seed {seed}: reports of {row}{', shuffled images' * shuffled}",
            row_reports(folder, seed, row, shuffled),
            words,
            model,
            f"{folder}/data",
            shuffled,
        )
        for shuffled in (False, True)
    ]


def _plan_mrgr1(folder: str, seed: int, rows: list[str]) -> Levels:
    build = {"warm_up_steps": 400, "tagged": TAGGED}
    yield [_tiny_job(f"seed {seed}: base", folder, seed, f"{folder}/seed{seed}/base", build)]
    yield from _rows_of_mrgr1(folder, seed, rows, f"--max_steps {GRPO_STEPS}", "--max_new_tokens 160")


def _plan_openi(folder: str, seed: int, rows: list[str]) -> Levels:
    """The base is the demo's model after SFT: it has the reports' words, and all of its answers have the format."""
    name, home = f"seed {seed}: ", f"{folder}/seed{seed}"
    yield [_tiny_job(f"{name}tiny model", folder, seed, f"{home}/tiny", OpenIDemo.tiny)]
    words = f"{SFT_SCRIPT} --max_steps {OpenIDemo.sft_steps} --seed {seed}"
    yield [train(f"{name}base", f"{home}/base", words, f"{home}/tiny", f"{folder}/data", MRGR1_PROMPT)]
    last = f"--max_steps {OPENI_STEPS} --max_completion_length {OPENI_TOKENS}"
    yield from _rows_of_mrgr1(folder, seed, rows, last, f"--max_new_tokens {OPENI_TOKENS}")


def _tiny_job(name: str, folder: str, seed: int, out: str, options: dict) -> Job:
    build = {"dataset": f"{folder}/data", "warm_up": f"{folder}/balanced", **options, "seed": seed}
    return make_job(name, out, f"recipes/build_tiny.py {MRGR1_PROMPT}", **build)


def _rows_of_mrgr1(folder: str, seed: int, rows: list[str], length: str, tokens: str) -> Levels:
    """The trainings from the base, each of them of `length`, and their reports; the base itself is trained before."""
    name, home, data = f"seed {seed}: ", f"{folder}/seed{seed}", f"{folder}/data"
    jobs = []
    for row in rows:
        script, last = "grpo_mrgr1.py --config recipes/configs/mrgr1/demo.yaml", f"{length} --stop_on_collapse 0"
        if row == "sft":
            script, last = "sft_mrgr1.py --config recipes/configs/mrgr1/sft_demo.yaml", length.split(" --max_com")[0]
        if row != "base":
            words = f"{script} --config {row_file('mrgr1', row)} --seed {seed}"
            jobs.append(train(name + row, f"{home}/{row}", words, f"{home}/base", data, f"{MRGR1_PROMPT} {last}"))
    yield jobs
    options = f"--views frontal {tokens}"
    yield [job for row in rows for job in _report_jobs(folder, seed, row, f"{home}/{row}", "mrgr1_tiny", options)]


def _plan_lmrrg(folder: str, seed: int, rows: list[str]) -> Levels:
    name, home, data = f"seed {seed}: ", f"{folder}/seed{seed}", f"{folder}/data"
    tiny = f"{home}/tiny"
    build = "recipes/build_tiny.py --system lmrrg --prompt_file prompts/lmrrg.txt"
    first = {row: row if row in (*CHANGED_NETWORKS, "without_disease") else "full" for row in rows}
    networks, stage1, stage2, reports = [], [], [], []
    for row in dict.fromkeys(first.values()):
        start = f"{tiny}_{row}" if row in CHANGED_NETWORKS else tiny
        changed = f"--config {row_file('lmrrg', row)}" if row != "full" else ""
        if row in CHANGED_NETWORKS:
            options = {"dataset": data, "seed": seed, "config": row_file("lmrrg", row), "parts_of": tiny}
            networks.append(make_job(f"{name}tiny model {row}", start, build, **options))
        words = f"sft_lmrrg.py --config recipes/configs/lmrrg/demo.yaml {changed} --seed {seed}"
        last = f"--max_steps {STAGE1_STEPS}"
        stage1.append(train(f"{name}stage 1 {row}", f"{home}/{row}_stage1", words, start, data, last))
    for row in rows:
        start = f"{home}/{first[row]}_stage1"
        model = start if row == "without_cqrl" else f"{home}/{row}"
        if row != "without_cqrl":
            changed = f"--config {row_file('lmrrg', row)}" if row in ("full", "bleu", "fixed_lambda") else ""
            words = f"ppo_lmrrg.py --config recipes/configs/lmrrg/demo_cqrl.yaml {changed} --seed {seed}"
            last = f"--max_steps {PPO_STEPS} --stop_on_collapse 0"
            last += " --theta 0.4" * (row == "bleu")  # reports of templates have more BLEU-4 than real ones
            stage2.append(train(name + row, model, words, start, data, last))
        reports += _report_jobs(folder, seed, row, model, "lmrrg", "--views frontal --max_new_tokens 100")
    warm_up = f"{folder}/balanced"
    yield [make_job(f"{name}tiny model", tiny, build, dataset=data, seed=seed, warm_up=warm_up)]
    yield from (networks, stage1, stage2, reports)


def _plan_llmrg4(folder: str, seed: int, rows: list[str]) -> Levels:
    name, home, weighed = f"seed {seed}: ", f"{folder}/seed{seed}", f"{folder}/weighed"
    data = {"dataset": f"{folder}/data", "chexbert": f"{folder}/labeler", "warm_up": f"{folder}/balanced"}
    tiny_models, stage1, stage2, reports = {}, {}, [], []
    for row in rows:
        start, network, kind = f"stage1{'_without' * row.endswith('without_tlw')}_tlw", {}, ""
        if row.endswith("authors_perceiver"):  # another network from the warm-up on
            start, kind = "stage1_authors_perceiver", "_authors"
            network = {"config": row_file("llmrg4", start)}
        tiny = f"{home}/tiny{kind}"
        build = "recipes/build_tiny.py --system llmrg4 --prompt_file prompts/llmrg4.txt"
        options = {**data, "warm_up_steps": 650, "seed": seed, **network}
        tiny_models[tiny] = make_job(f"{name}tiny model{kind}", tiny, build, **options)
        words = f"sft_llmrg4.py --config recipes/configs/llmrg4/demo_stage{{}}.yaml --config {{}} --seed {seed}"
        stage1_words = words.format(1, row_file("llmrg4", start))
        stage1[start] = train(name + start, f"{home}/{start}", stage1_words, tiny, weighed)
        if not row.startswith("stage1"):
            last = f"--max_steps {MIXED_STEPS // 4 if row.startswith('single_') else MIXED_STEPS}"
            stage2_words = words.format(2, row_file("llmrg4", row))
            stage2.append(train(name + row, f"{home}/{row}", stage2_words, f"{home}/{start}", weighed, last))
        prompt = f"llmrg4{'_stage1' * row.startswith('stage1')}"
        options = "--views frontal+lateral --max_new_tokens 100"
        reports += _report_jobs(folder, seed, row, f"{home}/{row}", prompt, options)
    yield from ([*tiny_models.values()], [*stage1.values()], stage2, reports)
