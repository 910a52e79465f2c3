"""The YAMLs: the paper's values where the paper gives them, one order of groups, every key known to its script."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from trl import ModelConfig, get_peft_config

from recipes import dpo, grpo_mrgr1, rl, sft_mrgr1
from recipes.cli import CPU_CONFIGS, parse, read_setting
from recipes.files import read_prompt
from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.dpo import PreferenceConfig
from recipes.trainers.grpo import MRGR1Config
from recipes.trainers.memory import StepMemory
from recipes.trainers.policies import ALGORITHMS, choose_algorithm
from rewards.table import RewardArguments

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes/configs/mrgr1"
FILES = sorted(FOLDER.glob("*.yaml"))
PAPER = {  # MRG-R1 section IV-B
    "model_name_or_path": "FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL",
    "use_peft": True,
    "lora_r": 128,
    "lora_alpha": 256,
    "lora_dropout": 0.05,
    "attn_implementation": "flash_attention_2",
    "dtype": "bfloat16",
    "bf16": True,
    "optim": "adamw_bnb_8bit",
    "learning_rate": 5e-6,
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,  # a float below 1 is a share of the steps
    "max_grad_norm": 0.1,
    "num_train_epochs": 1,
    "effective_batch_size": 16,
    "views": "each",
}
PAPER_GRPO = {
    "num_generations": 4,
    "rewards": ["mccs", "format"],
    "reward_weights": [0.75, 0.25],
    "advantage_norm": "paper",  # MR-011
    "use_bias_correction_kl": True,  # MR-010
    "labeler": "chexbert",
}


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_key_is_known_to_the_script(file, monkeypatch):
    of_grpo = (grpo_mrgr1.RecipeArguments, RewardArguments, MRGR1Config)
    types = (sft_mrgr1.RecipeArguments, SFTRecipeConfig) if "sft" in file.name else of_grpo
    types = (dpo.RecipeArguments, PreferenceConfig) if "dpo" in file.name else types
    monkeypatch.setattr(sys, "argv", ["script", "--config", str(file), "--use_cpu", "true"])
    args, *_, training_args, _ = parse(*types, ModelConfig)
    assert args.dataset == load(file.name)["dataset"]
    assert training_args.output_dir == load(file.name)["output_dir"]
    assert read_prompt(args.prompt_file)


@pytest.mark.parametrize("policy", ["mrgr1", "llmrg4", "lmrrg"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("turn", [1, -1])
def test_any_policy_goes_with_any_algorithm(policy, algorithm, turn, monkeypatch):
    """The two files set no argument in common, so that their order says nothing."""
    files = [ROOT / f"recipes/configs/rl/{name}.yaml" for name in (algorithm, policy)][::turn]
    one, other = (yaml.safe_load(file.read_text()) for file in files)
    assert not one.keys() & other.keys()
    monkeypatch.setattr(sys, "argv", ["rl.py", *(word for file in files for word in ("--config", str(file)))])
    config_class, _ = choose_algorithm(read_setting("algorithm", "grpo"))
    args, _, training_args, _ = parse(rl.RecipeArguments, RewardArguments, config_class, ModelConfig)
    assert args.algorithm == algorithm and isinstance(training_args, ALGORITHMS[algorithm][0])
    assert training_args.use_cpu and training_args.num_generations == 4
    assert read_prompt(args.prompt_file)


def test_every_config_for_a_cpu_is_there():
    for name in CPU_CONFIGS.values():
        values = yaml.safe_load((ROOT / "recipes/configs" / name.split(" ")[0]).read_text())
        assert values["use_cpu"] is True and values["bf16"] is False, name


def test_rrg_dpo_goes_over_any_file_of_dpo(monkeypatch):
    """Equation and values: shared REWARDS.md, section 8.5."""
    files = [FOLDER / "dpo_phantom.yaml", FOLDER / "algorithms/rrg_dpo.yaml"]
    monkeypatch.setattr(sys, "argv", ["dpo.py", *(word for file in files for word in ("--config", str(file)))])
    _, args, _ = parse(dpo.RecipeArguments, PreferenceConfig, ModelConfig)
    assert (args.conflict_weight, args.chosen_penalty, args.length_weight, args.beta) == (5.0, 0.1, 0.0, 0.1)
    assert (args.learning_rate, args.num_train_epochs, args.max_grad_norm) == (1e-6, 5, 0.1)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 16


@pytest.mark.parametrize("name", ["iu.yaml", "mimic.yaml", "sft_iu.yaml", "sft_mimic.yaml"])
@pytest.mark.parametrize(("key", "value"), PAPER.items(), ids=str)
def test_values_of_the_paper(name, key, value):
    assert load(name)[key] == value


@pytest.mark.parametrize("name", ["iu.yaml", "mimic.yaml"])
@pytest.mark.parametrize(("key", "value"), PAPER_GRPO.items(), ids=str)
def test_values_of_the_paper_for_grpo(name, key, value):
    assert load(name)[key] == value


LMRRG = {  # what LM-RRG states, and where
    "region_prompt": "description",  # section 2.1
    "region_attn_mode": "image_query",  # the image is the query
    "region_text": "pooled",  # one vector of a region
    "use_global_feature": True,  # section 2.2
    "use_region_features": True,
    "use_instruction": True,
    "prompt_file": "prompts/lmrrg.txt",
    "rewards": ["radcliq"],  # section 2.3
    "kl_controller": "reward_threshold",  # Eq. 5
    "beta": 1.0,  # Eq. 4
    "kl_mode": "loss",
    "freeze_image_encoder": True,
}
LLMRG4 = {  # section Implementation Details, Eq. 10 and section 3.2
    "stage": (1, 2),
    "vision": "microsoft/rad-dino",
    "text": "microsoft/BiomedVLP-CXR-BERT-specialized",
    "decoder": "lmsys/vicuna-7b-v1.5",
    "num_visual_tokens": 128,
    "scenarios": (["sn"], ["sn", "sw", "mn", "mw"]),
    "fusion": "atf",
    "use_peft": True,
    "lora_target_modules": [r".*language_model.*\.(q|v)_proj"],
    "projector": "linear",  # Eqs. 5 to 8
    "key_weight": 1.75,
    "weight_reduction": "token_mean",  # Eq. 10
}
MRGR1 = PAPER | PAPER_GRPO | {"std_epsilon": 1e-8}  # 1e-8 to 1e-6
MRGR1["lora_target_modules"] = [r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"]


@pytest.mark.parametrize(
    ("names", "stated"),
    [
        ("mrgr1/iu mrgr1/mimic mrgr1/sft_iu mrgr1/sft_mimic", MRGR1),
        ("lmrrg/iu lmrrg/mimic lmrrg/iu_cqrl lmrrg/mimic_cqrl", LMRRG),
        ("llmrg4/mimic_rg4_stage1 llmrg4/mimic_rg4_stage2", LLMRG4),
        ("llmrg4/mimic_rg4_findings_stage1 llmrg4/mimic_rg4_findings_stage2", LLMRG4),
    ],
)
def test_every_value_has_its_source(names, stated):
    """A line that calls itself neither ours nor the authors' code has a value of the paper, and no other line has."""
    present = set()
    for name in names.split():
        papers = set()
        file = ROOT / f"recipes/configs/{name}.yaml"
        values = yaml.safe_load(file.read_text())
        for line in file.read_text().splitlines():
            key, colon, rest = line.partition(":")
            if not colon or not key.isidentifier() or re.search(r"# (ours|authors' code)\b", rest):
                continue
            expected = stated.get(key, "a value that the paper does not state")
            assert values[key] in expected if isinstance(expected, tuple) else values[key] == expected, (name, line)
            papers.add(key)
        assert papers == stated.keys() & values, name
        present |= papers
    assert present == set(stated)


def test_lora_on_the_vision_tower_too(tiny):
    """One argument, as the README has it; without it LoRA is in the language model alone (test_grpo.py)."""
    readme = (FOLDER / "README.md").read_text()
    (pattern,) = re.findall(r"--lora_target_modules '(.+?)'", readme)
    model = AutoModelForImageTextToText.from_pretrained(tiny)
    config = get_peft_config(ModelConfig(use_peft=True, lora_target_modules=[pattern.replace("\\|", "|")]))
    names = [name for name, _ in get_peft_model(model, config).named_parameters() if "lora_A" in name]
    for part, layers in (
        (".visual.", ["attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        (
            ".language_model.",
            [*(f"self_attn.{each}_proj" for each in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        ),
    ):
        assert {".".join(name.split(".")[-5:-3]) for name in names if part in name} == set(layers)


@pytest.mark.parametrize(("system", "frames"), [("lmrrg", {"extractor", "cqrl"}), ("mrgr1", set())])
def test_diagrams_are_whole(system, frames):
    """Mermaid draws nothing where a line is wrong: each line is of a kind, and each arrow's ends have a text."""
    readme = (FOLDER.parent / system / "README.md").read_text()
    (block,) = re.findall(r"^```mermaid\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    head, *lines = [line.strip() for line in block.splitlines()]
    assert head == "flowchart LR"
    text = r'(?:subgraph )?(\w+)\["[^"]+"\]'
    names = {match[1] for match in (re.fullmatch(text, line) for line in lines) if match}
    assert sum(line.startswith("subgraph ") for line in lines) == lines.count("end")
    arrows = [line for line in lines if line != "end" and not re.fullmatch(text, line)]
    ends = {end for arrow in arrows for end in re.split(r' (?:-- "[^"]+" -->|-\. "[^"]+" \.->|-->) ', arrow)}
    assert ends | frames == names


@pytest.mark.parametrize("name", ["iu.yaml", "mimic.yaml"])
def test_kl_is_on(name):
    assert load(name)["beta"] > 0  # TRL's default drops the term


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_groups_stand_in_one_order(file):
    headings = re.findall(r"^# (\w+)$", file.read_text(), re.MULTILINE)
    order = ["Model", "LoRA", "Data", "Trainer"]
    assert headings == [title for title in order if title in headings]
    assert {"Model", "Data", "Trainer"} <= set(headings)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_no_key_twice(file):
    keys = re.findall(r"^(\w+):", file.read_text(), re.MULTILINE)
    assert len(keys) == len(set(keys))  # YAML would silently keep the last


@pytest.mark.parametrize(("one", "other"), [("iu.yaml", "mimic.yaml"), ("sft_iu.yaml", "sft_mimic.yaml")])
def test_the_two_data_sets_are_trained_alike(one, other):
    first, second = load(one), load(other)
    assert {key for key in first | second if first.get(key) != second.get(key)} == {"dataset", "output_dir"}


@pytest.mark.parametrize("kind", ["", "sft_"])
@pytest.mark.parametrize(
    ("policy", "others"),
    [
        ("qwen3_vl", {"model_name_or_path", "min_pixels", "max_pixels", "output_dir"}),
        ("medgemma", {"model_name_or_path", "attn_implementation", "min_pixels", "max_pixels", "output_dir"}),
    ],
)
def test_other_policies_are_trained_as_the_papers(kind, policy, others):
    first, second = load(f"{kind}iu.yaml"), load(f"{kind}{policy}.yaml")
    others = others | ({"attn_implementation"} if not kind else set())  # sdpa: prompts are read once
    assert {key for key in first | second if first.get(key) != second.get(key)} == others
    if policy == "qwen3_vl":  # as many tokens for an image: one has 32 x 32 pixels, of Qwen2.5-VL 28 x 28
        for name in ("min_pixels", "max_pixels"):
            assert second[name] / 32**2 == first[name] / 28**2
    else:
        assert "min_pixels" not in second and second["attn_implementation"] == "sdpa"


def test_models_trained_on_mimic_stay_private():
    assert load("mimic.yaml")["hub_private_repo"] is True
    assert load("sft_mimic.yaml")["hub_private_repo"] is True


@pytest.mark.parametrize(
    ("name", "processes", "kind"),
    [
        ("single_gpu.yaml", 1, "NO"),
        ("multi_gpu.yaml", 2, "MULTI_GPU"),  # the paper's 2 x A100
        ("multi_node.yaml", 16, "MULTI_GPU"),  # two machines of eight
        ("zero1.yaml", 2, "DEEPSPEED"),
        ("zero2.yaml", 2, "DEEPSPEED"),
        ("zero3.yaml", 2, "DEEPSPEED"),
        ("fsdp2.yaml", 2, "FSDP"),
    ],
)
def test_accelerate_configs(name, processes, kind):
    file = ROOT / "accelerate_configs" / name
    values = yaml.safe_load(file.read_text())
    assert load_config_from_file(str(file)).num_processes == processes  # accelerate knows every key
    assert (values["num_processes"], values["distributed_type"], values["mixed_precision"]) == (
        processes,
        kind,
        "bf16",
    )
    stage = values.get("deepspeed_config", {}).get("zero_stage")
    assert stage == (int(name[len("zero")]) if kind == "DEEPSPEED" else None)
    assert values.get("fsdp_config", {}).get("fsdp_version") == (2 if kind == "FSDP" else None)


def test_every_accelerate_config_says_when_and_what_was_verified():
    files = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
    assert len(files) == 7
    for file in files:
        comments = " ".join(line for line in file.read_text().splitlines() if line.startswith("#"))
        assert "Take it" in comments and "Verified" in comments, file.name


def test_computed_figures_of_the_cluster_page():
    """The parameters on transformers' and PEFT's own classes; the page's sums from them."""
    text = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    with torch.device("meta"):  # no memory: shapes alone
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        )
    size = lambda module: sum(parameter.numel() for parameter in module.parameters())  # noqa: E731
    whole, tower, words = size(model), size(model.model.visual), model.get_input_embeddings().weight.numel()
    values = load("mimic.yaml")
    settings = {"r": values["lora_r"], "target_modules": values["lora_target_modules"][0]}
    adapted = get_peft_model(model, LoraConfig(**settings))
    lora = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    page = (ROOT / "recipes" / "cluster.md").read_text()
    for number in (whole, tower, words, whole - tower - words, lora):
        assert f"{number:,}" in page

    def table(title: str, figures: int) -> list[list[float]]:
        """The last cells of each row as numbers, rounded as they stand there."""
        rows = page.split(title)[1].split("\n\n")[0].splitlines()[2:]
        return [[float(cell) for cell in row.split("|")[-1 - figures : -1]] for row in rows]

    def rounded(*values: float) -> list[float]:
        return [round(value, 1) for value in values]

    step = StepMemory(
        weights=2 * whole + 4 * lora, gradients=4 * lora, optimizer=2 * lora, copies=2 * lora, layers=28, width=3584,
        mlp_width=18944, key_value_width=4 * 128, vocabulary=152064, rows=4, tokens=1900, answer_tokens=512, written=8,
    )  # fmt: skip
    assert table("| per GPU |", 1) == [
        [value] for value in rounded(*(x / 1e9 for x in (*step.parts().values(), step.peak)))
    ]
    assert f"room for b = 16 (about {replace(step, rows=16).peak / 1e9:.0f} GB)" in page
    shares = (0.4, 8 / 6 * 0.232, 8 / 6 * 0.16)  # EasyR1 counts 6 of the 8 operations that checkpointing makes
    assert f"s at {shares[0]:.0%} | {shares[1]:.1%} | {shares[2]:.1%} |".replace("%", " %") in page
    flops = [2 * 312e12 * share for share in shares]
    text, images = 8 * (whole - tower - words) * 1900 * 16, 3 * 2 * tower * 5120 * 16
    writing = 512 * (2 * (whole - tower - words) + 4 * lora) / 2039e9
    least, slow = ([(text + images) / speed + times * writing for speed in flops] for times in (1, 3))
    assert table("| per optimizer step", 3) == [
        rounded(*(text / speed for speed in flops)),
        rounded(*(images / speed for speed in flops)),
        rounded(*[writing] * 3),
        rounded(*least),
        rounded(*slow),
    ]

    images, studies = 368_960 * 4 // 16, round(222_758 * 4 / 16)  # MIMIC-CXR's official training split
    assert (values["num_generations"], values["effective_batch_size"], values["views"]) == (4, 16, "each")
    day = 24 * 3600
    days = [
        f"{images * low / day:.0f} to {images * high / day:.0f} days" for low, high in zip(least, slow, strict=True)
    ]
    assert f"= {images:,} steps. On two A100 these are {days[0]} at 40 %" in page
    assert f"and {days[1].split()[0]} to {days[2].split()[2]} days at what was measured" in page
    of_eight = [seconds / 4 - writing / 4 + writing for seconds in least[1:]]
    of_eight_slow = [seconds + 2 * writing for seconds in of_eight]
    rows = [
        (images, least[1], slow[2]),
        (studies, least[1], slow[2]),
        (images, of_eight[0], of_eight_slow[1]),
        (studies, of_eight[0], of_eight_slow[1]),
        (images, *least[1:]),
        (images, *of_eight),
    ]
    shown = page.split("| on two A100, unless")[1].split("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ", 1)[1] for row in shown] == [
        f"{steps:,} | {low:.1f} to {high:.1f} | {steps * low / day:.0f} to {steps * high / day:.0f} |"
        for steps, low, high in rows
    ]


def test_cluster_page_names_every_repository_of_a_yaml():
    page = (ROOT / "recipes/cluster.md").read_text().lower()
    named = {
        str(value).lower()
        for file in (ROOT / "recipes/configs").rglob("*.yaml")
        for value in (yaml.safe_load(file.read_text()) or {}).values()
        if re.fullmatch(r"[\w-]+/[\w.-]+", str(value)) and not str(value).startswith(("outputs/", "prompts/"))
    }
    assert len(named) >= 6 and not {name for name in named if name not in page}
