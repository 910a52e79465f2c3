"""Any policy by any algorithm: what is trained, what is not, resumes, two processes, RLOO's advantages by hand."""

import ast
import inspect
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from replicas import SENTENCES
from safetensors.torch import load_file
from test_long_runs import make_words, small_llama
from transformers import BertConfig
from trl import GRPOTrainer, ModelConfig, RLOOTrainer

from modeling.tiny_llmrg4 import build_llmrg4
from modeling.tiny_lmrrg import build_lmrrg
from recipes import rl
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import run
from recipes.data.schema import read_split, write_dataset
from recipes.files import InputError
from recipes.trainers.policies import PolicyArguments, complete_arguments, load_policy
from recipes.trainers.rloo import RLOORecipeConfig, RLOORecipeTrainer

CONFIGS = Path(rl.__file__).parent / "configs/rl"
POLICIES, ALGORITHMS = ("mrgr1", "llmrg4", "lmrrg"), ("grpo", "rloo", "ppo")
ELSEWHERE = (("mrgr1", "grpo"), ("llmrg4", "grpo"), ("lmrrg", "ppo"))  # pairs whose own scripts have tests of these
PAIRS = [(policy, algorithm) for policy in POLICIES for algorithm in ALGORITHMS]
NEW = [pair for pair in PAIRS if pair not in ELSEWHERE]
PARTS = {  # what has to learn, and what must not
    "mrgr1": (("model.layers.",), ()),
    "llmrg4": (("lateral_perceiver", "prior_perceiver", "language_model."), ("vision_encoder", "prior_encoder")),
    "lmrrg": (("visual_transfer.", "language_model."), ("visual_extractor.",)),
}


def score_ids(completion_ids, report, **kwargs):
    """In [0, 1), different for two completions of one study."""
    return [((sum(ids) + len(text)) % 17) / 17 for ids, text in zip(completion_ids, report, strict=True)]


@pytest.fixture(scope="module")
def starts(tmp_path_factory, phantom, tiny) -> dict[str, tuple[str, str]]:
    """Of each policy a data set and a model without dropout; LLM-RG4's data have all four scenarios."""
    folder, args = tmp_path_factory.mktemp("policies"), BuildArguments(size=64)
    rows = [build_row("train", number, scenario, args) for number, scenario in enumerate(("sn", "sw", "mn", "mw") * 3)]
    write_dataset({"train": lambda: iter(rows)}, folder / "data", {"builder": "build_phantom"})
    texts = [*SENTENCES, *(row["report"] for row in rows)]
    model, processor = build_llmrg4(texts, vocab_size=400, num_visual_tokens=4, text_layers=1)
    model.config.perceiver_dropout = 0.0
    parts = {"llmrg4": (model, processor)}
    reports = read_split(str(phantom), "train")["report"][:]
    parts["lmrrg"] = build_lmrrg(reports, text_layers=1, vision_layers=1, vocab_size=400)
    for policy, pair in parts.items():
        for part in pair:
            part.save_pretrained(folder / policy)
    return {
        "mrgr1": (str(phantom), str(tiny)),
        "llmrg4": (str(folder / "data"), str(folder / "llmrg4")),
        "lmrrg": (str(phantom), str(folder / "lmrrg")),
    }


def words_of(policy: str, algorithm: str, start: tuple[str, str], out: Path, /, **changed) -> list[str]:
    """The command line of two steps of 8 completions of 6 tokens."""
    settings = {
        "dataset": start[0], "model_name_or_path": start[1], "output_dir": out, "rewards": "test_rl.score_ids",
        "num_generations": 2, "effective_batch_size": 8, "per_device_train_batch_size": 4, "max_completion_length": 6,
        "max_steps": 2, "learning_rate": 0.001, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "log_completions": "false", "stop_on_collapse": 0, "disable_tqdm": "true",
    }  # fmt: skip
    if algorithm == "ppo":
        settings |= {"num_iterations": 2, "max_steps": 4}
    files = [word for name in (algorithm, policy) for word in ("--config", CONFIGS / f"{name}.yaml")]
    named = [word for name, value in (settings | changed).items() for word in (f"--{name}", value)]
    return [*map(str, files), *map(str, named)]


@pytest.fixture
def train(call, starts, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # where the reward is

    def train(policy: str, algorithm: str, out: Path, /, **changed) -> dict[str, torch.Tensor]:
        call(rl.main, *words_of(policy, algorithm, starts[policy], out, **changed))
        [file] = [*out.glob("*model.safetensors")]
        return load_file(file)

    return train


def history(out: Path) -> list[dict]:
    rows = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [row for row in rows if "reward" in row]


@pytest.mark.parametrize(("policy", "algorithm"), PAIRS, ids=str)
def test_any_pair_trains(policy, algorithm, train, starts, tmp_path):
    after = train(policy, algorithm, tmp_path / "out")
    before = load_file(f"{starts[policy][1]}/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    learns, stays = PARTS[policy]
    for part in learns:
        assert any(part in name for name in changed), part
    assert not [name for name in changed if any(part in name for part in stays)]
    rows = history(tmp_path / "out")
    assert rows and "kl" in rows[0] and "rewards/score_ids/mean" in rows[0]
    assert ("value/loss" in rows[0]) == (algorithm == "ppo")


@pytest.mark.parametrize(("policy", "algorithm"), NEW, ids=str)
def test_a_resumed_run_ends_where_the_whole_one_does(policy, algorithm, train, tmp_path):
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = train(policy, algorithm, tmp_path / "whole", **steps)
    shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "cut/checkpoint-2")
    resumed = train(policy, algorithm, tmp_path / "cut", **steps, resume_from_checkpoint="latest")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("policy", POLICIES)
def test_lora_is_in_the_decoder(policy, train, starts, tmp_path):
    """On queries and values; what connects the images to it is trained whole, and merged into a whole model."""
    after = train(policy, "rloo", tmp_path / "out", use_peft="true", lora_r=4)
    if policy == "mrgr1":
        assert after and all("language_model." in name and "lora_" in name for name in after)
        assert {name.split(".")[-3] for name in after} == {"q_proj", "v_proj"}
        return
    before = load_file(f"{starts[policy][1]}/model.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    whole = {"llmrg4": "token_fusion", "lmrrg": "visual_transfer"}[policy]
    assert any(whole in name for name in changed)
    assert all(whole in name or ("language_model." in name and name.split(".")[-2] in ("q_proj", "v_proj"))
               for name in changed)  # fmt: skip
    assert before.keys() == after.keys()


@pytest.mark.parametrize(
    ("policy", "prompt_file", "views"),
    [
        ("mrgr1", "prompts/mrgr1_reasoning.txt", "each"),
        ("llmrg4", "prompts/llmrg4.txt", "frontal+lateral"),
        ("lmrrg", "prompts/lmrrg.txt", "frontal"),
    ],
)
def test_prompt_and_views_are_those_of_the_policys_scripts(policy, prompt_file, views, starts):
    args, model_args = PolicyArguments(dataset="x"), ModelConfig(model_name_or_path=starts[policy][1])
    complete_arguments(args, SimpleNamespace(use_vllm=False), model_args)
    assert (args.prompt_file, args.views) == (prompt_file, views)
    mine = PolicyArguments(dataset="x", prompt_file="mine.txt", views="frontal" if policy != "llmrg4" else None)
    complete_arguments(mine, SimpleNamespace(use_vllm=False), model_args)
    assert mine.prompt_file == "mine.txt"


def test_lmrrg_is_loaded_with_its_extractor_frozen(starts):
    model, processor, lora = load_policy(
        PolicyArguments(dataset="x"),
        SimpleNamespace(),
        ModelConfig(model_name_or_path=starts["lmrrg"][1], dtype="float32"),
    )
    assert lora is None and model.config.freeze_extractor
    assert not any(weight.requires_grad for weight in model.model.visual_extractor.parameters())
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("policy", "changed", "sentence"),
    [
        ("mrgr1", {"algorithm": "reinforce"}, r"no algorithm 'reinforce': choose among grpo, rloo, ppo \(.*dpo\.py"),
        ("mrgr1", {"views": "side"}, "must be one of each, frontal, all, not side"),
        ("llmrg4", {"views": "each"}, r"--views of LLM-RG4 must be one of frontal\+lateral, not each"),
        ("lmrrg", {"views": "all"}, "--views of LM-RRG must be one of frontal, each, not all"),
        ("lmrrg", {"min_pixels": 3136}, "the images of LM-RRG have one size"),
        ("mrgr1", {"advantage_norm": "paper"}, "there is no argument --advantage_norm"),  # of GRPO alone
        ("mrgr1", {"model_name_or_path": "./absent"}, r"\./absent"),
    ],
    ids=str,
)
def test_what_is_refused(policy, changed, sentence, train, tmp_path):
    with pytest.raises(InputError, match=sentence):
        train(policy, "rloo", tmp_path / "out", **changed)
    assert not (tmp_path / "out").exists()


def test_no_model_and_a_model_of_texts(call, phantom, tmp_path):
    words = ["--algorithm", "rloo", "--dataset", phantom, "--rewards", "rouge", "--use_cpu", "true", "--bf16", "false"]
    with pytest.raises(InputError, match="no model is named: give --model_name_or_path"):
        call(rl.main, *words, "--output_dir", tmp_path / "out")
    BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(
        tmp_path / "b"
    )
    with pytest.raises(InputError, match="is a bert model, which reads no images"):
        call(rl.main, *words, "--output_dir", tmp_path / "out", "--model_name_or_path", tmp_path / "b")


@pytest.mark.parametrize("policy", ["llmrg4", "lmrrg"])
def test_vllm_does_not_know_our_own_systems(policy, starts):
    args, model_args = PolicyArguments(dataset="x"), ModelConfig(model_name_or_path=starts[policy][1])
    with pytest.raises(InputError, match="vLLM does not know"):
        complete_arguments(args, SimpleNamespace(use_vllm=True), model_args)


################
# RLOO
################


def make_rloo(folder: Path, rewards: list[float | None], beta: float = 0.0) -> RLOORecipeTrainer:
    """A trainer of a language model of eight words, whose completions have these rewards, four of each prompt."""
    model = small_llama()
    model.config.name_or_path = str(folder / "start")  # where TRL loads the reference from
    model.save_pretrained(folder / "start")
    args = RLOORecipeConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=len(rewards),
        num_generations=4, max_completion_length=3, gradient_checkpointing=False, beta=beta, share_prefix=False,
    )  # fmt: skip
    trainer = RLOORecipeTrainer(
        model, [lambda completions, **kwargs: rewards], args, Dataset.from_dict({"prompt": ["no heart"] * 8}),
        processing_class=make_words(),
    )  # fmt: skip
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def test_advantages_by_hand(tmp_path):
    """(G r - sum of r) / (G - 1) in each group: of 1, 2, 4, 5 with the sum 12, of 0, 0, 0, 3 with the sum 3."""
    trainer = make_rloo(tmp_path, [1.0, 2.0, 4.0, 5.0, 0.0, 0.0, 0.0, 3.0])
    batch = trainer._generate_and_score_completions([{"prompt": "no heart"}] * 8)
    expected = [-8 / 3, -4 / 3, 4 / 3, 8 / 3, -1, -1, -1, 3]
    assert batch["advantages"].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_completion_without_a_reward_is_nobodys_baseline(tmp_path):
    """Of 1, 2, 6 the other two's means are 4, 3.5 and 1.5; the fourth has advantage 0, and so has a group of one."""
    nan = math.nan
    trainer = make_rloo(tmp_path, [1.0, 2.0, None, 6.0, nan, nan, nan, 3.0])
    batch = trainer._generate_and_score_completions([{"prompt": "no heart"}] * 8)
    assert batch["advantages"].tolist() == pytest.approx([-3, -1.5, 0, 4.5, 0, 0, 0, 0], abs=1e-6)


def test_the_log_ratio_to_the_reference_is_taken_off_the_reward(tmp_path):
    trainer = make_rloo(tmp_path, [0.0] * 4, beta=0.5)
    with torch.no_grad():
        trainer.model.lm_head.weight += 0.5 * torch.randn(trainer.model.lm_head.weight.shape)
    batch = trainer._generate_and_score_completions([{"prompt": "no heart"}] * 4)
    ids, mask = batch["completion_ids"], batch["completion_mask"]
    rows = torch.cat([batch["prompt_ids"], ids], dim=1)
    sums = []
    for model in (trainer.model, small_llama()):
        with torch.no_grad():
            logits = model.eval()(rows).logits[:, -ids.shape[1] - 1 : -1]
        sums.append((logits.log_softmax(-1).gather(2, ids[..., None])[..., 0] * mask).sum(1))
    reward = -0.5 * (sums[0] - sums[1])
    torch.testing.assert_close(batch["advantages"], (4 * reward - reward.sum()) / 3, atol=1e-5, rtol=1e-5)
    assert reward.std() > 0.05


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_calculate_rewards", "self inputs prompts completions completion_ids_list"),
        ("_generate_and_score_completions", "self inputs"),
        ("_tokenize_prompts", "self prompts"),
        ("_compute_loss", "self model inputs"),
        ("_generate", "self prompts"),
        ("_prepare_inputs", "self generation_batch"),
        ("_get_train_sampler", "self dataset"),
    ],
)
def test_overridden_signatures_are_trls(method, parameters):
    for kind in (RLOOTrainer, RLOORecipeTrainer):
        assert list(inspect.signature(getattr(kind, method)).parameters) == parameters.split()


def test_a_pass_of_rloo_takes_what_one_of_grpo_takes():
    """StudyInputs and SharesPrefix put their parts into both."""
    one, other = (
        list(inspect.signature(kind._get_per_token_logps_and_entropies).parameters)
        for kind in (RLOOTrainer, GRPOTrainer)
    )
    assert one == other


def test_every_override_calls_super_once():
    class_node = ast.parse(textwrap.dedent(inspect.getsource(RLOORecipeTrainer))).body[0]
    for method in [node for node in class_node.body if isinstance(node, ast.FunctionDef)]:
        calls = [
            node.func.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "super()"
        ]
        assert calls == [method.name]


################
# Two processes
################


def write(prompt_ids: list[list[int]]) -> list[list[int]]:
    """Completions that depend on the prompt and on the place in its group."""
    return [
        [20 + (sum(ids) + 7 * (row % 2) + place) % 40 for place in range(3 + row % 2)]
        for row, ids in enumerate(prompt_ids)
    ]


def one_of_two(folder: str) -> None:
    """Each new pair by plain gradient descent on completions that no process draws."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    RLOOTrainer._generate_single_turn = lambda self, prompt_ids, *rest: write(prompt_ids)
    GRPOTrainer._generate_single_turn = lambda self, prompt_ids, *rest, **more: (write(prompt_ids), None)
    sys.path.insert(0, str(Path(__file__).parent))
    for policy, start in json.loads((Path(folder) / "starts.json").read_text()).items():
        for algorithm in ALGORITHMS:
            if (policy, algorithm) in NEW:
                words = words_of(
                    policy, algorithm, start, Path(folder) / f"{policy}-{algorithm}-{processes}",
                    per_device_train_batch_size=8 // processes, max_steps=2, optim="sgd", learning_rate=0.5,
                    shuffle_dataset="false", max_grad_norm=0.0, seed=1,
                )  # fmt: skip
                sys.argv = ["rl.py", *words]
                rl.main()


def test_two_processes_are_one(starts, tmp_path, torchrun, monkeypatch):
    (tmp_path / "starts.json").write_text(json.dumps(starts))
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])  # replicas.py is there
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    for command in ([__file__, str(tmp_path)], torchrun(__file__, tmp_path)):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr[-5000:]
    for policy, algorithm in NEW:
        one, two = (load_file(tmp_path / f"{policy}-{algorithm}-{number}/model.safetensors") for number in (1, 2))
        before = load_file(f"{starts[policy][1]}/model.safetensors")
        assert sum(not torch.equal(value, before[name]) for name, value in one.items()) > 5
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=f"{policy} {algorithm} {name}")
        rows = [history(tmp_path / f"{policy}-{algorithm}-{number}") for number in (1, 2)]
        for name in ("reward", "reward_std", "kl", "loss"):
            assert [row[name] for row in rows[0]] == pytest.approx([row[name] for row in rows[1]], abs=1e-5)


if __name__ == "__main__":
    run(lambda: one_of_two(sys.argv[1]))
