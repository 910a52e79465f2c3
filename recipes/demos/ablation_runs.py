"""What recipes/ablations.py runs: of each system its ablation rows on the phantom, as jobs of `demo_stages.Stages`.

Rows share as much as they can: one data set, one start model per seed, and of LM-RRG and LLM-RG4 the first stage where
the row changes the second. The numbers of steps are chosen so that a system with one seed takes 20 minutes at most on
two cores, two jobs side by side.
"""

from recipes.files import InputError

GRPO_STEPS = 40  # of 64 completions, for 16 studies; the row SFT has as many steps of 16 studies
STAGE1_STEPS, PPO_STEPS = 200, 64  # LM-RRG; 64 steps are 16 batches of completions, 4 epochs each
MIXED_STEPS = 400  # LLM-RG4's stage 2 on four settings; on one the same number of epochs, a quarter of the steps
TAGGED = 0.15  # of the base's answers: few enough to leave the format to be learned, enough to be sampled

TEST = ["--shapes", "square", "--n_validation", "1", "--n_test", "500"]
SN = ["recipes/build_phantom.py", "--scenarios", "sn", *TEST]
PROSE = ["recipes/build_phantom.py", "--balanced", "--style", "prose", *TEST]
WARM_UP = ["--balanced", "--n_train", "3000"]
LAUNCH = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
GENERATE = ["recipes/generate.py", "--split", "test", "--batch_size", "64"]
TINY_PROMPT = ["--prompt_file", "prompts/mrgr1_tiny.txt"]  # in every row: a tiny model learns no instruction

ROWS = {
    "mrgr1": ("mccs_reasoning", "base", "nlg", "ce_f1", "reasoning", "ce_f1_reasoning", "mccs", "mccs_margin_0",
              "radcliq_lite", "deepseekmath_kl", "whole_report",
              "sft"),  # the short one last: what runs side by side takes as long as the longer one
    "lmrrg": ("full", "without_global", "without_region", "names", "without_instruction", "without_disease",
              "without_cqrl", "bleu", "fixed_lambda"),
    "llmrg4": ("stage2_atf_tlw", "stage1_tlw", "stage1_without_tlw", "stage2_interleaved_without_tlw",
               "stage2_interleaved_tlw", "stage2_atf_without_tlw", "single_sn", "single_sw", "single_mn", "single_mw",
               "stage1_authors_perceiver", "stage2_authors_perceiver"),
}  # fmt: skip
MADE_OTHERWISE = ("without_global", "without_region", "names", "without_instruction")  # LM-RRG: another network

Job = tuple[str, str, list[str]]  # name, out, command: see Stages.run


def choose_rows(system: str, names: list[str]) -> list[str]:
    """`names`, all rows where there are none; the whole system first. Raises InputError on a row that is not there."""
    if unknown := [name for name in names if name not in ROWS[system]]:
        raise InputError(f"{system} has no row {unknown[0]!r}; choose among {', '.join(ROWS[system])}")
    return [name for i, name in enumerate(ROWS[system]) if i == 0 or not names or name in names]


def row_file(system: str, row: str) -> str:
    """The YAML of a row, from the project's root."""
    return f"recipes/configs/{system}/ablations/{row}.yaml"


def plan(system: str, out: str, seed: int, rows: list[str]) -> tuple[list[list[Job]], dict[str, str]]:
    """The jobs of one seed in folder `out`, and row -> folder of its model.

    The jobs of a list do not need each other, but those of the lists before it. `shared_jobs` come first.
    """
    return {"mrgr1": _plan_mrgr1, "lmrrg": _plan_lmrrg, "llmrg4": _plan_llmrg4}[system](out, seed, rows)


def shared_jobs(system: str, out: str) -> list[list[Job]]:
    """The jobs of all seeds together: data sets, and LLM-RG4's labeler and token weights."""
    data, balanced = f"{out}/data", f"{out}/balanced"
    made = {
        "mrgr1": ([*SN, "--abnormal", "0.6", "--seed", "80", "--n_train", "2500"], [*SN, *WARM_UP, "--seed", "81"]),
        "lmrrg": ([*SN, "--abnormal", "0.6", "--seed", "82", "--n_train", "2500"], [*SN, *WARM_UP, "--seed", "83"]),
        "llmrg4": (
            [*PROSE, "--scenarios", "sn,sw,mn,mw", "--seed", "84", "--n_train", "4000"],
            [*PROSE, "--scenarios", "mn,mw", "--seed", "85", "--n_train", "4000"],
        ),
    }[system]
    jobs = [[("data", data, [*made[0], "--out", data]), ("balanced data", balanced, [*made[1], "--out", balanced])]]
    if system == "llmrg4":
        labeler, weighed = f"{out}/labeler", f"{out}/weighed"
        learn = ["recipes/train_chexbert.py", "--texts", "20000", "--bar", "0.9", "--dataset", data]
        weigh = ["recipes/weigh_tokens.py", "--splits", "train", "--dataset", data, "--model", labeler]
        jobs.append([("labeler", labeler, [*learn, "--output_dir", labeler])])
        jobs.append([("token weights", weighed, [*weigh, "--out", weighed])])
    return jobs


def _plan_mrgr1(out: str, seed: int, rows: list[str]) -> tuple[list[list[Job]], dict[str, str]]:
    name, own, data = f"seed {seed}: ", f"{out}/seed{seed}", f"{out}/data"
    models = {row: f"{own}/{row}" for row in rows}
    start = models["base"] = f"{own}/base"
    build = ["recipes/build_tiny.py", *TINY_PROMPT, "--dataset", data, "--warm_up", f"{out}/balanced"]
    build += ["--warm_up_steps", "400", "--tagged", str(TAGGED), "--seed", str(seed), "--out", start]
    jobs = []
    for row in (row for row in rows if row != "base"):
        script, base, more = "grpo_mrgr1", "demo", ["--stop_on_collapse", "0"]
        if row == "sft":
            script, base, more = "sft_mrgr1", "sft_demo", []
        command = _train(script, f"mrgr1/{base}", row_file("mrgr1", row), seed, start, data, models[row])
        jobs.append((name + row, models[row], [*command, *TINY_PROMPT, "--max_steps", str(GRPO_STEPS), *more]))
    options = [*TINY_PROMPT, "--views", "frontal", "--max_new_tokens", "160"]
    return [
        [(f"{name}base", start, build)],
        jobs,
        _reports(name, own, data, models, dict.fromkeys(rows, options)),
    ], models


def _plan_lmrrg(out: str, seed: int, rows: list[str]) -> tuple[list[list[Job]], dict[str, str]]:
    name, own, data = f"seed {seed}: ", f"{out}/seed{seed}", f"{out}/data"
    tiny = f"{own}/tiny"
    build = ["recipes/build_tiny.py", "--system", "lmrrg", "--prompt_file", "prompts/lmrrg.txt", "--dataset", data]
    build += ["--seed", str(seed)]
    first = {row: row if row in (*MADE_OTHERWISE, "without_disease") else "full" for row in rows}
    others, stage1, stage2, models = [], [], [], {}
    for row in dict.fromkeys(first.values()):
        start = f"{tiny}_{row}" if row in MADE_OTHERWISE else tiny
        changed = row_file("lmrrg", row) if row != "full" else None
        if row in MADE_OTHERWISE:
            command = [*build, "--config", changed, "--parts_of", tiny, "--out", start]
            others.append((f"{name}tiny model {row}", start, command))
        command = _train("sft_lmrrg", "lmrrg/demo", changed, seed, start, data, f"{own}/{row}_stage1")
        steps = ["--max_steps", str(STAGE1_STEPS)]
        stage1.append((f"{name}stage 1 {row}", f"{own}/{row}_stage1", command + steps))
    for row in rows:
        start = f"{own}/{first[row]}_stage1"
        models[row] = start if row == "without_cqrl" else f"{own}/{row}"
        if row != "without_cqrl":
            changed = row_file("lmrrg", row) if row in ("full", "bleu", "fixed_lambda") else None
            command = _train("ppo_lmrrg", "lmrrg/demo_cqrl", changed, seed, start, data, models[row])
            command += ["--max_steps", str(PPO_STEPS), "--stop_on_collapse", "0"]
            if row == "bleu":  # reports of templates have more BLEU-4 than real ones
                command += ["--theta", "0.4"]
            stage2.append((name + row, models[row], command))
    options = ["--prompt_file", "prompts/lmrrg.txt", "--views", "frontal", "--max_new_tokens", "100"]
    built = [(f"{name}tiny model", tiny, [*build, "--warm_up", f"{out}/balanced", "--out", tiny])]
    return [built, others, stage1, stage2, _reports(name, own, data, models, dict.fromkeys(rows, options))], models


def _plan_llmrg4(out: str, seed: int, rows: list[str]) -> tuple[list[list[Job]], dict[str, str]]:
    name, own, data = f"seed {seed}: ", f"{out}/seed{seed}", f"{out}/data"
    weighed = f"{out}/weighed"
    build = ["recipes/build_tiny.py", "--system", "llmrg4", "--prompt_file", "prompts/llmrg4.txt", "--dataset", data]
    build += ["--chexbert", f"{out}/labeler", "--warm_up", f"{out}/balanced", "--warm_up_steps", "650"]
    build += ["--seed", str(seed)]
    models = {row: f"{own}/{row}" for row in rows}
    tiny_models, stage1, stage2, options = {}, {}, [], {}
    for row in rows:
        start, network, kind = f"stage1{'_without' * row.endswith('without_tlw')}_tlw", [], ""
        if row.endswith("authors_perceiver"):  # another network from the warm-up on
            start, kind = "stage1_authors_perceiver", "_authors"
            network = ["--config", row_file("llmrg4", start)]
        tiny = f"{own}/tiny{kind}"
        tiny_models[tiny] = (f"{name}tiny model{kind}", tiny, [*build, *network, "--out", tiny])
        command = _train(
            "sft_llmrg4", "llmrg4/demo_stage1", row_file("llmrg4", start), seed, tiny, weighed, f"{own}/{start}"
        )
        stage1[start] = (name + start, f"{own}/{start}", command)
        if not row.startswith("stage1"):
            steps = ["--max_steps", str(MIXED_STEPS // 4 if row.startswith("single_") else MIXED_STEPS)]
            changed = row_file("llmrg4", row)
            command = _train("sft_llmrg4", "llmrg4/demo_stage2", changed, seed, f"{own}/{start}", weighed, models[row])
            stage2.append((name + row, models[row], command + steps))
        prompt = f"prompts/llmrg4{'_stage1' * row.startswith('stage1')}.txt"
        options[row] = ["--prompt_file", prompt, "--views", "frontal+lateral", "--max_new_tokens", "100"]
    reports = _reports(name, own, data, models, options)
    return [[*tiny_models.values()], [*stage1.values()], stage2, reports], models


def _train(script: str, base: str, row: str | None, seed: int, model: str, data: str, out: str) -> list[str]:
    files = ["--config", f"recipes/configs/{base}.yaml", *(["--config", row] if row else [])]
    starts = ["--seed", str(seed), "--model_name_or_path", model, "--dataset", data, "--output_dir", out]
    return [*LAUNCH, f"recipes/{script}.py", *files, *starts]


def report_file(own: str, row: str, shuffled: bool) -> str:
    """Where the reports of a row stand in the folder `own` of a seed."""
    return f"{own}/{row}{'_shuffled' * shuffled}.jsonl"


def _reports(name: str, own: str, data: str, models: dict[str, str], options: dict[str, list[str]]) -> list[Job]:
    """The reports of each row, and its control: those of the images of other studies."""
    jobs = []
    for row, asked in options.items():
        for shuffled in (False, True):
            file, control = report_file(own, row, shuffled), ["--shuffle_images", "true"] * shuffled
            command = [*GENERATE, *asked, *control, "--model", models[row], "--dataset", data, "--out", file]
            jobs.append((f"{name}reports of {row}{', shuffled images' * shuffled}", file, command))
    return jobs
