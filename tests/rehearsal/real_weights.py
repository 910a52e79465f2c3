"""LLM-RG4 and LM-RRG on real text weights and a random image encoder: 30 steps each, saved, loaded, written with.

SmolLM2-135M-Instruct writes, MiniLM reads prior reports and region descriptions, the reports are Open-i's and the
X-rays real ones (real_parts.py). The runs begin with papers' YAMLs; what TRAININGS changes in them is printed. They
show whether the recipes train, save and load what real text weights and tokenizers are like. They do not show that a
model learns to see: its image encoder is random, and the X-rays are not those of the reports.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from .overrides import read_config
from .plan import CONFIGS, LAUNCH, RECIPES, recipe, words
from .real_parts import find_absent
from .runs import ROOT, Failed, Job, Stage

STEPS, LENGTH = 30, 80  # of a training; tokens of a report
PROBE, PARTS = Path(__file__).with_name("probe.py"), Path(__file__).with_name("real_parts.py")
SHORT = {
    "use_cpu": "true",
    "max_steps": STEPS,
    "effective_batch_size": 4,  # by accumulation; the papers' 16 to 48 take half an hour here
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": "false",
    "logging_steps": 1,
    "save_total_limit": 1,
}
HELD_OUT = {"eval_strategy": "steps", "eval_steps": STEPS, "eval_on_start": "true", "per_device_eval_batch_size": 2}
TRAININGS = {  # script, YAML and what is changed in it, by the folder that the run ends in
    "outputs/llmrg4_stage1": (
        "sft_llmrg4.py",
        "llmrg4/mimic_rg4_stage1.yaml",
        {
            **{"vision": "dinov2", "text": "minilm", "decoder": "smollm2", "num_visual_tokens": 8},
            **{"dataset": "outputs/data/rg4", "learning_rate": 1e-3, **SHORT, **HELD_OUT},
        },
    ),
    "outputs/llmrg4_stage2": (
        "sft_llmrg4.py",
        "llmrg4/mimic_rg4_stage2.yaml",
        {
            **{"model_name_or_path": "outputs/llmrg4_stage1", "dataset": "outputs/data/rg4"},
            **{"learning_rate": 1e-3, **SHORT, **HELD_OUT},
        },
    ),
    "outputs/lmrrg": (
        "sft_lmrrg.py",
        "lmrrg/iu.yaml",
        {"biomedclip": "biomedclip", "decoder": "smollm2_float32", "labeler": "lexical", **SHORT, **HELD_OUT},
    ),
    "outputs/lmrrg_cqrl": (
        "ppo_lmrrg.py",
        "lmrrg/iu_cqrl.yaml",
        {
            **{"model_name_or_path": "outputs/lmrrg", "rewards": "radcliq_lite", **SHORT, "max_steps": 4},
            **{
                "effective_batch_size": 8,
                "per_device_train_batch_size": 4,
                "num_iterations": 1,
                "max_completion_length": 32,
            },
        },
    ),
}
ROUNDING = {"outputs/llmrg4_stage2": 0.25}  # LoRA's product is added to bfloat16 weights; logits spread by about 7
EQUAL = 1e-4  # in float32
FALL = 0.9  # of the loss of held-out studies: after the training to before it
MOST_TIMES = 3  # that a sentence stands in one report; after 30 steps beam search says some things thrice
IN_VOCABULARY = 0.75  # share of the words written that a training report has; English of another kind: 0.3 to 0.5


def real_weights() -> list[Job]:
    """The jobs, each skipped where a package is absent."""
    absent = find_absent()
    room = "real_text_random_vision"
    data = recipe("build_iu_xray.py", image_root="xrays", image_size=256, out="outputs/data/iu_xray")
    parts = Job(
        f"{room}: parts",
        room,
        [
            Stage("parts", [sys.executable, PARTS]),
            Stage("data", data),
            Stage("scenarios", [sys.executable, PARTS, "scenarios"]),
        ],
    )
    llmrg4 = {"dataset": "outputs/data/rg4", "views": "frontal+lateral", "prompt_file": "prompts/llmrg4.txt"}
    llmrg4 |= {"num_beams": 3, "repetition_penalty": 2.0, "length_penalty": 2.0}
    lmrrg = {"dataset": "outputs/data/iu_xray", "views": "frontal", "prompt_file": "prompts/lmrrg.txt", "num_beams": 3}
    scores = [sys.executable, "-m", "pytest", ROOT / "tests/rewards/test_bertscore.py", "-k", "minilm"]
    needs = [f"{room}: parts"]
    jobs = [
        Job(
            f"{room}/llmrg4",
            room,
            [
                *trained("outputs/llmrg4_stage1"),
                *trained("outputs/llmrg4_stage2"),
                written("outputs/llmrg4_stage2", llmrg4),
            ],
            needs,
            in_table=True,
        ),
        Job(
            f"{room}/lmrrg",
            room,
            [*trained("outputs/lmrrg"), written("outputs/lmrrg", lmrrg)],
            needs,
            in_table=True,
        ),
        Job(
            f"{room}/lmrrg_cqrl",
            room,
            [*trained("outputs/lmrrg_cqrl"), written("outputs/lmrrg_cqrl", lmrrg)],
            [f"{room}/lmrrg"],
            in_table=True,
        ),
        Job(f"{room}/bertscore", room, [Stage("orderings", scores, check_passed)], in_table=True),
    ]
    for job in (parts, *jobs):
        job.skipped = absent
    return [parts, *jobs]


def trained(run: str) -> list[Stage]:
    """The training that ends in the folder `run`, and its model in a process that has not this project."""
    script, config, changes = TRAININGS[run]
    arguments = words({**changes, "output_dir": run})
    command = [*LAUNCH, PROBE, "train", f"{run}.pt", RECIPES / script, "--config", CONFIGS / config, *arguments]
    name = Path(run).name
    learned = check_rewards(run) if script.startswith("ppo") else check_loss(run)
    loading = [sys.executable, "-I", PROBE, "load", run, f"{run}.pt"]
    return [Stage(f"train {name}", command, learned), Stage(f"load {name}", loading, check_logits(run))]


def written(run: str, decoding: dict) -> Stage:
    """Reports of six test studies, decoded as the system's README does."""
    file = f"{run}.jsonl"
    command = recipe("generate.py", model=run, split="test", out=file, limit=6, max_new_tokens=LENGTH, **decoding)
    return Stage("generate", command, check_texts(file))


def print_changes() -> None:
    """What is changed in the YAMLs, as one list."""
    table, runs = Table("key", "published", "here", "in"), {}
    for _, config, changes in TRAININGS.values():
        published = read_config(CONFIGS / config)
        for key, value in changes.items():
            runs.setdefault((key, str(published.get(key)), str(value)), []).append(config)
    for change, configs in sorted(runs.items()):
        table.add_row(*change, ", ".join(configs))
    Console(width=150).print("Real text weights, random image encoders; what is changed in the YAMLs:", table)


################
# What came out
################


def check_loss(run: str) -> Callable:
    """A check of a training: the held-out studies' loss falls to FALL of what it was."""

    def check(room: Path, output: str) -> dict:
        history = json.loads((room / run / "trainer_state.json").read_text())["log_history"]
        before, after = (row["eval_loss"] for row in history if "eval_loss" in row)
        losses = [row["loss"] for row in history if "loss" in row]
        if len(losses) != STEPS or not after <= FALL * before:
            raise Failed(
                f"after {len(losses)} steps the held-out loss is {after:.3f}, and was {before:.3f} before them"
            )
        return {"held-out loss": [before, after], "losses": losses}

    return check


def check_rewards(run: str) -> Callable:
    """A check of PPO: each step has rewards in [0, 1]; the policy is the reference at first and another at last."""

    def check(room: Path, output: str) -> dict:
        history = json.loads((room / run / "trainer_state.json").read_text())["log_history"]
        rows = [row for row in history if "reward" in row]
        rewards, divergences = [row["reward"] for row in rows], [row["kl"] for row in rows]
        if (
            len(rows) != 4
            or not all(0 <= value <= 1 for value in rewards)
            or divergences[0] > 1e-3
            or not divergences[-1] > 0
        ):
            raise Failed(f"rewards {rewards}, KL {divergences}")
        return {"rewards": rewards, "kl": divergences}

    return check


def check_logits(run: str) -> Callable:
    """A check of probe.py's line: the loaded model's logits are those of the trained one."""

    def check(room: Path, output: str) -> dict:
        figures = json.loads(output.splitlines()[-1])
        if not figures["difference"] <= ROUNDING.get(run, EQUAL):
            raise Failed(f"the loaded model's logits differ from the trained one's by {figures['difference']}")
        return figures

    return check


def check_texts(file: str) -> Callable:
    """A check of reports: known words, nothing over and over, and at least half of them end before they are cut."""

    def check(room: Path, output: str) -> dict:
        table = parquet.read_table(room / "outputs/data/iu_xray/train.parquet", columns=["report"])
        vocabulary = set(split_words(" ".join(table["report"].to_pylist())))
        rows = [json.loads(line) for line in (room / file).read_text().splitlines()]
        texts = [row["completion"] for row in rows]
        print("\n".join(f"    {file}: {text!r}" for text in dict.fromkeys(texts)), flush=True)
        return {**judge_texts(texts, vocabulary, [row["tokens"] < LENGTH for row in rows]), "texts": texts}

    return check


def judge_texts(texts: list[str], vocabulary: set[str], ended: list[bool]) -> dict:
    """Figures of texts that are readable reports; raises Failed on others."""
    written = [word for text in texts for word in split_words(text)]
    share = sum(word in vocabulary for word in written) / max(len(written), 1)
    shortest = min(len(split_words(text)) for text in texts)
    for text in texts:
        sentences = Counter(sentence.strip().lower() for sentence in re.split(r"[.\n]", text) if sentence.strip())
        if again := [sentence for sentence, times in sentences.items() if times > MOST_TIMES]:
            raise Failed(f"{again[0]!r} stands {sentences[again[0]]} times in one report")
        if stammer := re.search(r"\b(\w+)(\W+\1\b){2}", text.lower()):
            raise Failed(f"a report stammers: {stammer[0]!r}")
    if share < IN_VOCABULARY or shortest < 5 or 2 * sum(ended) < len(ended):
        raise Failed(f"{share:.2f} of the words are in a training report, the shortest report has {shortest} words, "
                     f"{sum(ended)} of {len(ended)} end by themselves: {texts[0]!r}")  # fmt: skip
    return {"words of training reports": share, "shortest": shortest, "ended": sum(ended)}


def split_words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def check_passed(room: Path, output: str) -> dict:
    """A check of pytest's last line: tests passed and none was skipped."""
    line = output.strip().splitlines()[-1]
    if "passed" not in line or "skipped" in line:
        raise Failed(line)
    return {"tests": line}
