"""Published algorithms as settings of MRGR1Trainer: EditGRPO's copies, all three on uneven batches, the YAMLs."""

import ast
import inspect
import math
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from test_uneven_batches import (
    PROMPT,
    ROWS,
    encode,
    load,
    log_probs_alone,
    make_generating,
    studies,
    write_model,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOTrainer

from recipes import grpo_mrgr1
from recipes.data.samples import to_samples
from recipes.files import InputError
from recipes.trainers.checkpoints import all_checkpoints
from recipes.trainers.diagnostic_tokens import WeighsDiagnosticTokens
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.oracle_preference import STATE_FILE, PrefersReferences
from recipes.trainers.sentence_edits import EditsSentences
from rewards.labelers import LexicalLabeler
from rewards.table import RewardArguments, make_rewards

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes/configs/mrgr1"
PREFERENCES = {"rrg_dpo"}  # rows of recipes/dpo.py, which test_dpo.py has
FILES = [file for file in sorted((CONFIGS / "algorithms").glob("*.yaml")) if file.stem not in PREFERENCES]

################
# EditGRPO
################

WORDS = ["<pad>", "<eos>", "Small", "No", "effusion", "edema", "is", "seen", ".", "Normal", "heart", "Report"]
PAD, END = 0, 1


def ids_of(text: str, end: bool = True) -> list[int]:
    return [WORDS.index(word) for word in text.split()] + [END] * end


def make_words() -> PreTrainedTokenizerFast:
    whole = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>")


SMALL, HEART = "Small effusion .", "Normal heart ."
GROUPS = {  # reference, and the four completions of its group; without its end one was cut off
    "No effusion.": [SMALL, HEART, "Small edema .", "No edema ."],
    "Small edema.": [f"{HEART} {SMALL}", HEART, HEART, HEART],
}


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """`edited(groups, cut_off, **settings)`: the trainer, what it has made of them, and what was rewarded."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def edited(groups: list[tuple], cut_off=(), training: bool = True, **settings):
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        special = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **sizes, **special))
        texts = [text for _, group in groups for text in group]
        rows = [{"prompt": "Report", "report": reference} for reference, group in groups for _ in group]

        def answer(prompts, trainer) -> dict:
            ids = [ids_of(text, row not in cut_off) for row, text in enumerate(texts)]
            return {"prompt_ids": [[WORDS.index("Report")]] * len(ids), "completion_ids": ids, "logprobs": None}

        seen = []

        def reward(completions, report, **kwargs):
            seen.append(list(completions))
            return [float(len(text)) for text in completions]

        values = {
            "per_device_train_batch_size": len(rows), "num_generations": len(groups[0][1]), "use_cpu": True,
            "bf16": False, "report_to": "none", "max_completion_length": 16, "edit_share": 0.5, "seed": 0,
        }  # fmt: skip
        trainer = MRGR1Trainer(
            model, reward, MRGR1Config(str(tmp_path), **values | settings), Dataset.from_list(rows),
            processing_class=make_words(),
        )  # fmt: skip
        trainer.rollout_func = answer
        trainer.model.train(training)
        output = trainer._generate_and_score_completions(rows)
        written = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(output["completion_ids"], output["completion_mask"], strict=True)
        ]
        return trainer, written, seen[0]

    return edited


def test_the_last_half_are_edits_of_the_first(edited):
    trainer, written, rewarded = edited(list(GROUPS.items()))
    # Of the first group: a conflict; the second completion has no error, so that the fourth stays as it was sampled.
    assert written[:4] == [ids_of(text) for text in (SMALL, HEART, "No effusion .", "No edema .")]
    # Of the second: nothing is similar to the false effusion, which goes; the missed edema is appended.
    assert written[4:] == [ids_of(text) for text in (f"{HEART} {SMALL}", HEART, HEART, f"{HEART} Small edema .")]
    assert [text.replace(" ", "") for text in rewarded] == ["".join(WORDS[i] for i in ids[:-1]) for ids in written]
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name.startswith("edits/")}
    assert metrics == {
        "edits/share": 3 / 8, "edits/conflict": 1 / 8, "edits/replacement": 0, "edits/deletion": 1 / 8,
        "edits/addition": 1 / 8, "edits/insertion": 0,
    }  # fmt: skip


def test_best_are_those_with_the_fewest_errors(edited):
    """Errors against "Small effusion.": 1, 0, 2, 1. The third is replaced by an edit of the second, which has none."""
    group = [HEART, SMALL, "No effusion . Small edema .", "No effusion ."]
    _, written, _ = edited([("Small effusion. No edema.", group)], edit_source="best", edit_share=0.5)
    # in order 1 (0 errors), 0 (1), 3 (1), 2 (2 or more): sources 1 and 0, targets 3 and 2
    assert written[0] == ids_of(HEART) and written[1] == ids_of(SMALL)
    assert written[3] == ids_of("No effusion .")  # its copy would be of the completion without an error
    assert written[2] == ids_of(f"{HEART} {SMALL}")


def test_what_is_not_edited(edited):
    reference, group = next(iter(GROUPS.items()))
    sampled = [ids_of(text) for text in group]
    assert edited([(None, group)])[1] == sampled
    assert edited([(reference, group)], training=False)[1] == sampled
    assert edited([(reference, group)], cut_off=[0])[1] == [sampled[0][:-1], *sampled[1:]]
    assert edited([(reference, group)], edit_share=0.0)[1] == sampled
    assert edited([("No effusion is seen.", group)], max_completion_length=5)[1] == sampled  # five words and the end


def test_data_without_references_are_refused(edited):
    trainer, *_ = edited([("No effusion.", [SMALL] * 4)])
    with pytest.raises(InputError, match="the data need a column 'report'"):
        trainer._generate_and_score_completions([{"prompt": "Report"}] * 4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"edit_share": 0.6}, "--edit_share must be at least 0 and at most 0.5, not 0.6"),
        ({"edit_share": 0.1}, "edit_share 0.1 edits none of 4 completions"),
        ({"edit_source": "worst"}, "--edit_source must be one of sampled, best, not 'worst'"),
        (
            {"use_vllm": True},
            "edit_share and vLLM's importance correction exclude each other, .* set vllm_importance_sampling_corr",
        ),
    ],
)
def test_refused_settings(changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        MRGR1Config(str(tmp_path), use_cpu=True, bf16=False, num_generations=4, **{"edit_share": 0.5} | changes)


def test_a_group_in_two_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(MRGR1Config, "world_size", 2)
    with pytest.raises(
        InputError, match=r"needs whole groups in each process: .* \(2\) must be a multiple of .* \(4\)"
    ):
        MRGR1Config(
            str(tmp_path), use_cpu=True, bf16=False, num_generations=4, edit_share=0.5, per_device_train_batch_size=2
        )


################
# All three, on uneven batches
################

ALL = {
    "diagnostic_weight": 2.0, "oracle_preference": True, "oracle_weight_min": 0.3, "oracle_weight_max": 0.6,
    "edit_share": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module", params=["huatuo A", "llmrg4-atf"])
def policy(request, tmp_path_factory):
    """A trainer that has written, edited and compared; half of its completions failed."""
    folder = tmp_path_factory.mktemp("models") / request.param
    write_model(request.param, folder)
    priors = request.param.startswith("llmrg4")
    samples = to_samples(studies(priors), PROMPT, "frontal+lateral" if priors else "all", keep=("report",))
    halves = {"steps_per_generation": 2, "gradient_accumulation_steps": 2}
    trainer = make_generating("grpo", folder, samples, tmp_path_factory.mktemp("run"), **halves, **ALL)
    trainer.reward_funcs = [lambda completions, **kwargs: [float(row % 4 == 0) for row in range(len(completions))]]
    rows, batches, losses, passes = [samples[number // 2] for number in range(2 * ROWS)], [], [], []
    preference_loss = trainer._preference_loss

    def remember(inputs):
        passes.append((inputs, trainer._log_probs.detach()))
        return preference_loss(inputs)

    trainer._preference_loss = remember
    for step in range(2):
        trainer._step = step
        batches.append(trainer._prepare_inputs(rows))
        losses.append(trainer._compute_loss(trainer.model, batches[-1]))
    return trainer, load(folder), samples, batches, losses, passes


def test_answers_have_the_log_probabilities_of_the_row_alone(policy):
    """Under the policy in the loss's own pass, and under the reference; the images are those of their own study."""
    trainer, model, samples, _, _, passes = policy
    prompts = [encode(trainer.processing_class, sample)["input_ids"][0].tolist() for sample in samples]
    checked = set()
    for inputs, log_probs in passes:
        rows = len(inputs["prompt_ids"])
        leaders = dict.fromkeys(inputs["oracle_groups"][inputs["oracle_pairs"]].tolist())
        for place, group in enumerate(leaders):
            row = next(r for r in range(rows) if inputs["oracle_groups"][r] == group and inputs["oracle_pairs"][r])
            prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
            sample = samples[prompts.index(prompt)]
            answer = inputs["chosen_ids"][row][inputs["chosen_mask"][row].bool()].tolist()
            assert trainer._tokenizer.decode(answer[:-1]) == sample["report"]
            assert answer[-1] in trainer.eos_token_ids
            alone = log_probs_alone(model, encode(trainer.processing_class, sample, answer), len(answer))
            torch.testing.assert_close(log_probs[rows + place, : len(answer)], alone, atol=1e-5, rtol=0)
            torch.testing.assert_close(inputs["chosen_ref_logps"][row], alone.mean(), atol=1e-5, rtol=0)
            checked.add(group)
    assert len(checked) == ROWS


def test_losses_have_gradients(policy):
    trainer, _, _, batches, losses, _ = policy
    assert all(math.isfinite(loss.item()) for loss in losses)
    for batch in batches:
        assert batch["advantages"].shape == (ROWS,) and batch["token_weights"].shape == batch["completion_ids"].shape
        lengths = batch["completion_mask"].sum(1)
        torch.testing.assert_close(batch["token_weights"].sum(1), lengths.float())
    sum(losses).backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in trainer.model.parameters())


################
# YAMLs
################

NEEDED = {"rewards", "reward_weights", "output_dir"}
CHANGES = {
    "ditpo": {"diagnostic_weight"},
    "orapo": {"oracle_preference", "oracle_answer", "advantage_norm", "scale_rewards", "loss_type"},
    "editgrpo": {"edit_share", "advantage_norm", "scale_rewards", "loss_type", "beta"},
    "unirg_stage1": {"beta", "allow_no_kl", "epsilon_high"},
    "unirg_stage2": {"model_name_or_path", "beta", "epsilon_high"},
}


def words_of(file: Path) -> list[str]:
    return ["--config", str(CONFIGS / "demo.yaml"), "--config", str(file)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_changes_its_keys_alone(file, read):
    end = ["--use_cpu", "true", "--bf16", "false"]
    before, after = read(grpo_mrgr1, [*words_of(file)[:2], *end]), read(grpo_mrgr1, [*words_of(file), *end])
    assert {key for key in before if before[key] != after[key]} == NEEDED | CHANGES[file.stem]
    text = file.read_text()
    assert text.startswith("# ") and "arXiv" in text and set(yaml.safe_load(text)) >= NEEDED


def test_every_row_is_listed():
    assert {file.stem for file in FILES} == set(CHANGES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rewards_of_a_row_need_no_weights(file):
    values = yaml.safe_load(file.read_text())
    rewards = make_rewards(RewardArguments(values["rewards"]), LexicalLabeler(), ["Small effusion."])
    assert len(rewards) == len(values["reward_weights"])
    for reward in rewards:
        assert reward(["<report>Small effusion.</report>"], report=["Small effusion."]) == [pytest.approx(1.0)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_row_trains(file, tiny, phantom, tmp_path, call):
    """Two steps through the script, LoRA on, with a checkpoint."""
    call(
        grpo_mrgr1.main, *words_of(file), "--model_name_or_path", tiny, "--dataset", phantom, "--output_dir", tmp_path,
        "--max_steps", 2, "--effective_batch_size", 8, "--per_device_train_batch_size", 4, "--stop_on_collapse", 0,
        "--log_completions", "false", "--max_completion_length", 8, "--save_strategy", "steps", "--save_steps", 2,
        "--use_peft", "true", "--lora_target_modules", r".*language_model.*\.(q_proj|v_proj)", "--lora_r", 2,
        "--disable_tqdm", "true",
    )  # fmt: skip
    (checkpoint,) = all_checkpoints(tmp_path)
    assert (checkpoint / STATE_FILE).is_file() == (file.stem == "orapo")


################
# Overrides
################


@pytest.mark.parametrize("mixin", [WeighsDiagnosticTokens, PrefersReferences, EditsSentences])
def test_every_override_calls_super_once(mixin):
    """And has TRL's signature: an upgrade of TRL fails here."""
    overrides = 0
    for node in ast.parse(textwrap.dedent(inspect.getsource(mixin))).body[0].body:
        if isinstance(node, ast.FunctionDef) and hasattr(GRPOTrainer, node.name) and node.name != "__init__":
            calls = [
                call.func.attr
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and isinstance(call.func.value, ast.Call)
                and getattr(call.func.value.func, "id", "") == "super"
            ]
            assert calls == [node.name]
            theirs = list(inspect.signature(getattr(GRPOTrainer, node.name)).parameters)
            ours = list(inspect.signature(getattr(mixin, node.name)).parameters)
            assert ours == theirs[: len(ours)] or ours[-2:] == ["args", "kwargs"]
            overrides += 1
    assert overrides >= 2
