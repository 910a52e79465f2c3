"""Every run of the rehearsal: the READMEs' commands in their order, one job for each YAML and each preparation.

A job runs in its system's room, a folder with the replicas under their Hub names, where outputs/ comes to lie. Only
`recipes/` and `accelerate launch` have their full paths, and what overrides.py lists is appended.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from rewards.scenarios import SCENARIOS

from .overrides import ALLOWED, STEPS, differences, overrides_of, read_config
from .runs import (
    ROOT,
    Failed,
    Job,
    Stage,
    check_equal,
    check_lines,
    check_loaded,
    check_scenarios,
    check_scores,
    check_trained,
)

CHEXBERT, RADGRAPH = "StanfordAIMI/RRG_scorers/chexbert.pth", "StanfordAIMI/RRG_scorers/radgraph.tar.gz"
CREPE = "gihuncho/crepe-biomedbert"
BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
RECIPES, CONFIGS = ROOT / "recipes", ROOT / "recipes" / "configs"
ACCELERATE = Path(sys.executable).with_name("accelerate")
LAUNCH = (ACCELERATE, "launch", "--quiet", "--cpu", "--num_processes", "1")
LOAD = (sys.executable, "-I", Path(__file__).with_name("load.py"))


def words(arguments: Mapping) -> list[str]:
    """Command line arguments; a list becomes several words."""
    found = []
    for name, value in arguments.items():
        found += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return found


def recipe(script: str, **arguments) -> list:
    """A command of one of the recipes' scripts."""
    return [sys.executable, RECIPES / script, *words(arguments)]


def training(script: str, config: str, repeatable: bool = True, **required) -> list[Stage]:
    """A YAML's training, killed after its first checkpoint, gone on with, and compared with one that was not killed.

    `repeatable`: the last; not of PPO with several epochs on a batch, whose completions are written anew after a
    resume, nor of a model whose tokenizer is trained first. `required`: what a README adds.
    """
    values = read_config(CONFIGS / config)
    changes = {change.key: change.value for change in overrides_of(values)}
    if wrong := changes.keys() - ALLOWED | required.keys() & values.keys():
        raise ValueError(f"{config}: {min(wrong)} is not to be changed")
    command = [*LAUNCH, RECIPES / script, "--config", CONFIGS / config, *words(changes | required)]

    def as_published(run: dict) -> None:
        if different := {key: pair for key, pair in differences(values, run).items() if key not in changes}:
            raise Failed(f"{config} was not run as it is: {different}")

    out = values["output_dir"]
    resume = Stage("resume", [*command, "--resume_from_checkpoint", "latest"], check_trained(out, STEPS, as_published))
    whole = Stage("whole", [*command, "--output_dir", f"{out}_whole"], check_equal(out, f"{out}_whole"))
    return [Stage("kill", command, kill_in=out), resume, *([whole] if repeatable else [])]


def scored(model: str, system: str, generate: Mapping, evaluate: Mapping, load: str = "") -> list[Stage]:
    """Loads a trained folder elsewhere, writes reports with it, and scores them."""
    file, out = f"{model}_test.jsonl", f"{model}_scores"
    loading = [*LOAD, model, "AutoModelForImageTextToText", *filter(None, [load])]
    return [
        Stage("load", loading, check_loaded),
        Stage("generate", recipe("generate.py", model=model, split="test", out=file, **generate), check_lines(file)),
        Stage(
            "evaluate",
            recipe("evaluate.py", split="test", out=out, predictions=f"{system}={file}", **evaluate),
            check_scores(out, system),
        ),
    ]


def mrgr1() -> list[Job]:
    """recipes/configs/mrgr1/README.md."""
    decoding = {"dtype": "bfloat16", "max_new_tokens": 32}
    pixels = {"min_pixels": 200704, "max_pixels": 1003520}
    more_pixels = {"min_pixels": 262144, "max_pixels": 1310720}  # Qwen3-VL's; Gemma's images are all of one size
    trees = {"root": "physionet.org/files", "images": "physionet.org/files/mimic-cxr-jpg/2.1.0", "image_size": 512}
    jobs = [
        preparation("mrgr1: data, iu", recipe("build_iu_xray.py", image_root="images", out="outputs/data/iu_xray")),
        preparation(
            "mrgr1: data, mimic", recipe("build_mimic_cxr.py", **trees, workers=1, out="outputs/data/mimic_cxr")
        ),
        preparation("mrgr1: chexbert", recipe("convert_chexbert.py", checkpoint=CHEXBERT, out="outputs/chexbert")),
    ]
    for name, data, size in (
        ("iu", "iu", pixels),
        ("mimic", "mimic", pixels),
        ("qwen3_vl", "iu", more_pixels),
        ("medgemma", "iu", {}),
    ):
        dataset = {"dataset": "outputs/data/iu_xray" if data == "iu" else "outputs/data/mimic_cxr"}
        scores = {**dataset, "labeler": "chexbert", "preset": "mrgr1", "compare": "mrgr1"}
        needs = (f"mrgr1: data, {data}", "mrgr1: chexbert")
        grpo = training("grpo_mrgr1.py", f"mrgr1/{name}.yaml")
        grpo += scored(f"outputs/mrgr1/{name}", "mrgr1", {**dataset, **decoding, **size}, scores)
        jobs.append(Job(f"mrgr1/{name}.yaml", "mrgr1", grpo, needs, in_table=True))
        sft = training("sft_mrgr1.py", f"mrgr1/sft_{name}.yaml")
        plain = {**dataset, **decoding, **size, "prompt_file": "prompts/mrgr1_plain.txt"}
        sft += scored(f"outputs/mrgr1/sft_{name}", "sft", plain, scores)
        jobs.append(Job(f"mrgr1/sft_{name}.yaml", "mrgr1", sft, needs, in_table=True))
    return jobs


def lmrrg() -> list[Job]:
    """recipes/configs/lmrrg/README.md."""
    physionet = "physionet.org/files"
    trees = {"root": physionet, "images": f"{physionet}/mimic-cxr-jpg/2.1.0", "image_size": 224, "workers": 1}
    jobs = [
        preparation("lmrrg: data, iu", recipe("build_iu_xray.py", image_root="images", out="outputs/data/iu_xray")),
        preparation("lmrrg: data, mimic", recipe("build_mimic_cxr.py", **trees, out="outputs/data/mimic_cxr")),
        preparation(
            "lmrrg: biomedclip", recipe("convert_biomedclip.py", checkpoint=BIOMEDCLIP, out="outputs/biomedclip")
        ),
        preparation("lmrrg: chexbert", recipe("convert_chexbert.py", checkpoint=CHEXBERT, out="outputs/chexbert")),
        preparation("lmrrg: radgraph", recipe("convert_radgraph.py", archive=RADGRAPH, out="outputs/radgraph")),
    ]
    for name, data, length in (("iu", "iu_xray", 60), ("mimic", "mimic_cxr", 100)):
        generate = {"dataset": f"outputs/data/{data}", "views": "frontal", "prompt_file": "prompts/lmrrg.txt"}
        generate |= {"dtype": "bfloat16", "num_beams": 3, "max_new_tokens": length}
        evaluate = {"dataset": f"outputs/data/{data}", "labeler": "chexbert", "radgraph": "outputs/radgraph"}
        evaluate |= {"bertscore": "distilroberta-base", "preset": "lmrrg", "compare": "lmrrg"}
        first = training("sft_lmrrg.py", f"lmrrg/{name}.yaml")
        first += scored(f"outputs/lmrrg/{name}", "lmrrg", generate, evaluate, "trust")
        needs = (f"lmrrg: data, {name}", "lmrrg: biomedclip", "lmrrg: chexbert", "lmrrg: radgraph")
        jobs.append(Job(f"lmrrg/{name}.yaml", "lmrrg", first, needs, in_table=True))
        second = training("ppo_lmrrg.py", f"lmrrg/{name}_cqrl.yaml", repeatable=False)
        second += scored(f"outputs/lmrrg/{name}_cqrl", "lmrrg", generate, evaluate, "trust")
        jobs.append(Job(f"lmrrg/{name}_cqrl.yaml", "lmrrg", second, [f"lmrrg/{name}.yaml"], in_table=True))
    return jobs


def llmrg4(endpoint: str) -> list[Job]:
    """recipes/configs/llmrg4/README.md; a server at `endpoint` stands in for the LLM."""
    physionet = "physionet.org/files"
    trees = {"root": physionet, "images": f"{physionet}/mimic-cxr-jpg/2.1.0", "image_size": 518}
    trees["image_size_of"] = "shortest"
    build = {"config": CONFIGS / "rg4/mimic.yaml", "endpoint": endpoint}
    judged = {"judge": "llm", "scenarios": "sn", "limit": 10000, "out": "outputs/data/rg4_judged"}
    findings = {"dataset": "outputs/data/mimic_cxr_findings", "out": "outputs/data/rg4_findings"}
    discbert = training("train_discbert.py", "discbert/mimic.yaml")
    discbert += [Stage("load", [*LOAD, "outputs/discbert", "AutoModel", "trust"], check_loaded)]
    discbert += [hallucinations("outputs/discbert")]
    jobs = [
        preparation("llmrg4: data", recipe("build_mimic_cxr.py", **trees, workers=1, out="outputs/data/mimic_cxr")),
        preparation(
            "llmrg4: data, findings",
            recipe("build_mimic_cxr.py", **trees, workers=1, target="findings", out=findings["dataset"]),
        ),
        preparation("llmrg4: chexbert", recipe("convert_chexbert.py", checkpoint=CHEXBERT, out="outputs/chexbert")),
        preparation(
            "llmrg4: judgements",
            recipe("build_mimic_rg4.py", **build, **judged),
            needs=["llmrg4: data", "llmrg4: chexbert"],
        ),
        Job("discbert/mimic.yaml", "llmrg4", discbert, ["llmrg4: judgements"], in_table=True),
        Job(
            "rg4/mimic.yaml",
            "llmrg4",
            [
                Stage("dry run", recipe("build_mimic_rg4.py", **build, dry_run="true")),
                Stage("build", recipe("build_mimic_rg4.py", **build), check_scenarios("outputs/data/rg4")),
            ],
            ["discbert/mimic.yaml"],
            in_table=True,
        ),
        preparation(
            "llmrg4: rg4, findings",
            recipe("build_mimic_rg4.py", **build, **findings),
            needs=["discbert/mimic.yaml", "llmrg4: data, findings"],
        ),
    ]
    decoding = {"views": "frontal+lateral", "dtype": "bfloat16", "num_beams": 3, "min_new_tokens": 50}
    decoding |= {"max_new_tokens": 200, "repetition_penalty": 2.0, "length_penalty": 2.0}
    for kind, data, need in (
        ("mimic_rg4", "rg4", "rg4/mimic.yaml"),
        ("mimic_rg4_findings", "rg4_findings", "llmrg4: rg4, findings"),
    ):
        weigh = [
            Stage(
                f"weigh {name}",
                recipe(
                    "weigh_tokens.py",
                    dataset=f"outputs/data/{data}/{name}",
                    model="outputs/chexbert",
                    out=f"outputs/data/{data}_weighed/{name}",
                ),
            )
            for name in SCENARIOS
        ]
        jobs.append(Job(f"llmrg4: weights, {kind}", "llmrg4", weigh, [need]))
        scores = {"labeler": "chexbert", "preset": "llmrg4", "hall_judge": "discbert"}
        run = f"outputs/llmrg4/{kind}_stage1"
        stages = training("sft_llmrg4.py", f"llmrg4/{kind}_stage1.yaml")
        generate = {"dataset": f"outputs/data/{data}/sn", **decoding, "prompt_file": "prompts/llmrg4_stage1.txt"}
        stages += scored(run, "llmrg4", generate, {"dataset": f"outputs/data/{data}/sn", **scores}, "trust")
        jobs.append(Job(f"llmrg4/{kind}_stage1.yaml", "llmrg4", stages, [f"llmrg4: weights, {kind}"], in_table=True))
        run = f"outputs/llmrg4/{kind}_stage2"
        stages = training("sft_llmrg4.py", f"llmrg4/{kind}_stage2.yaml")
        stages += [Stage("load", [*LOAD, run, "AutoModelForImageTextToText", "trust"], check_loaded)]
        for name in SCENARIOS:
            file = f"{run}_{name}.jsonl"
            generate = {"dataset": f"outputs/data/{data}/{name}", **decoding, "prompt_file": "prompts/llmrg4.txt"}
            command = recipe("generate.py", model=run, split="test", out=file, **generate)
            stages.append(Stage(f"generate {name}", command, check_lines(file)))
        command = recipe(
            "evaluate.py",
            dataset=f"outputs/data/{data}",
            split="test",
            predictions=f"llmrg4={run}_{{scenario}}.jsonl",
            compare="llmrg4",
            out=f"{run}_scores",
            **scores,
        )
        stages.append(Stage("evaluate", command, check_scores(f"{run}_scores", "llmrg4")))
        jobs.append(Job(f"llmrg4/{kind}_stage2.yaml", "llmrg4", stages, [f"llmrg4/{kind}_stage1.yaml"], in_table=True))
    return jobs


def labelers() -> list[Job]:
    """The YAMLs that train CheXberts and a DiscBERT on other texts, each in a room of its own."""
    jobs = []
    for config, room, required in (
        ("chexbert/csv.yaml", "chexbert_csv", {"csv": "labelled_reports.csv"}),
        ("chexbert/openi.yaml", "chexbert_openi", {}),
    ):
        stages = training("train_chexbert.py", config, repeatable=room != "chexbert_openi", **required)
        stages += [Stage("load", [*LOAD, "outputs/chexbert", "AutoModel", "trust"], check_loaded)]
        command = recipe("evaluate.py", predictions="x=reports.jsonl", labeler="chexbert", out="outputs/scores")
        stages += [Stage("evaluate", command, check_scores("outputs/scores", "x"))]
        jobs.append(Job(config, room, stages, in_table=True))
    stages = training("train_discbert.py", "discbert/openi.yaml", repeatable=False)
    stages += [Stage("load", [*LOAD, "outputs/discbert", "AutoModel", "trust"], check_loaded)]
    stages += [hallucinations("outputs/discbert")]
    jobs.append(Job("discbert/openi.yaml", "discbert_openi", stages, in_table=True))
    return jobs


def learned_metrics() -> list[Job]:
    """The YAMLs of the metric CREPE: from BiomedBERT on MIMIC-CXR's reports, and the tiny one on Open-i's."""
    physionet = "physionet.org/files"
    trees = {"root": physionet, "images": f"{physionet}/mimic-cxr-jpg/2.1.0", "image_size": 224, "workers": 1}
    jobs = [
        preparation("crepe: data", recipe("build_mimic_cxr.py", **trees, out="outputs/data/mimic_cxr")),
        preparation("crepe: published", recipe("convert_crepe.py", checkpoint=CREPE, out="outputs/published")),
    ]
    for config, room, needs in (
        ("crepe/biomedbert.yaml", "crepe", ("crepe: data", "crepe: published")),
        ("crepe/openi.yaml", "crepe_openi", ()),
    ):
        stages = training("train_crepe.py", config, repeatable=room == "crepe")
        stages += [Stage("load", [*LOAD, "outputs/crepe", "AutoModel", "trust"], check_loaded)]
        for model in ("crepe", "published")[: 1 + bool(needs)]:
            scores = {"predictions": "x=reports.jsonl", "crepe": f"outputs/{model}", "out": f"outputs/{model}_scores"}
            stages.append(
                Stage(f"evaluate {model}", recipe("evaluate.py", **scores), check_scores(scores["out"], "x"))
            )
        jobs.append(Job(config, room, stages, needs, in_table=True))
    return jobs


def hallucinations(model: str) -> Stage:
    """Scores a file of reports with a DiscBERT."""
    command = recipe(
        "evaluate.py", predictions="x=reports.jsonl", hall_judge=f"discbert:{model}", out=f"{model}_scores"
    )
    return Stage("evaluate", command, check_scores(f"{model}_scores", "x"))


def preparation(name: str, command: list, needs=()) -> Job:
    """A job of one command, in the room that its name begins with."""
    return Job(name, name.partition(":")[0], [Stage("build", command)], needs)
