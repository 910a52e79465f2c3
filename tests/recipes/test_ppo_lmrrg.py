"""LM-RRG's second stage as a script: what it starts from, what it trains, what it saves, what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from radgraph_models import save_tiny
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, RobertaConfig, RobertaModel
from trl import ModelConfig

from modeling.processing_lmrrg import IMAGE_TOKEN
from modeling.tiny import build_chexbert, train_tokenizer
from modeling.tiny_lmrrg import build_lmrrg
from recipes import generate, ppo_lmrrg, sft_lmrrg
from recipes.data.schema import read_split
from recipes.files import InputError
from recipes.trainers.checkpoints import find_damage
from recipes.trainers.lmrrg import check_trained, load_checkpoint
from recipes.trainers.ppo import STATE_FILE
from recipes.trainers.setup import choose_rewards
from rewards import make_radcliq_reward
from rewards.labelers import LexicalLabeler
from rewards.table import RewardArguments

CONFIGS = Path(ppo_lmrrg.__file__).parent / "configs/lmrrg"
EXTRACTOR, TRANSFER, DECODER = "model.visual_extractor.", "model.visual_transfer.", "model.language_model."


def run_script(call, main, config: str, model, dataset, out, *words, **changed) -> str:
    given = {"config": CONFIGS / config, "model_name_or_path": model, "dataset": dataset, "output_dir": out}
    given |= {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, "disable_tqdm": "true"}
    named = [word for name, value in (given | changed).items() for word in (f"--{name}", value)]
    call(main, *named, *words)
    return str(out)


def split_over_two(torchrun, under: str | None):
    """Stands for `call`: the script as two processes under a file of accelerate_configs, or as they are."""

    def split(main, *words) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, *torchrun(main.__globals__["__file__"], *words, under=under)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-5000:]

    return split


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, phantom) -> str:
    """A model that was never trained."""
    folder = str(tmp_path_factory.mktemp("models") / "fresh")
    reports = read_split(str(phantom), "train")["report"][:]
    for part in build_lmrrg(reports, text_layers=1, vision_layers=1, vocab_size=400):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def stage1(tmp_path_factory, call, fresh, phantom) -> str:
    folder = tmp_path_factory.getbasetemp() / "lmrrg_stage1"
    if not (folder / "config.json").is_file():
        run_script(call, sft_lmrrg.main, "demo.yaml", fresh, phantom, folder)
    return str(folder)


@pytest.fixture
def train(call, phantom):
    """Runs stage 2 by demo_cqrl.yaml; `changed` overrides arguments."""

    def train(model, out, *words, **changed) -> str:
        given = {"max_completion_length": 6, "logging_steps": 1, "log_completions": "false", "warmup_steps": 0}
        return run_script(call, ppo_lmrrg.main, "demo_cqrl.yaml", model, phantom, out, *words, **given | changed)

    return train


def changed_weights(before: str, after: str) -> set[str]:
    old, new = (load_file(f"{folder}/model.safetensors") for folder in (before, after))
    assert set(old) == set(new)  # nothing of the value head, and the disease head is kept
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_a_newline_ends_no_report(fresh, tmp_path):
    """A folder whose generation_config has OPT's newline, as BLIP-2's decoder does, trains to the tokenizer's end."""
    folder = tmp_path / "model"
    shutil.copytree(fresh, folder)
    file = folder / "generation_config.json"
    tokenizer = AutoProcessor.from_pretrained(fresh).tokenizer
    newline = tokenizer.convert_tokens_to_ids("\u010a")  # how byte-level tokenizers write it
    assert newline not in (None, tokenizer.unk_token_id, tokenizer.eos_token_id)
    ends = [newline, tokenizer.eos_token_id]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))
    model, _ = load_checkpoint(str(folder), ModelConfig(dtype="float32"))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("words", [(), ("--use_peft", "true", "--lora_r", "4")], ids=["whole", "LoRA"])
def test_g_is_trained_and_e_is_not(words, train, stage1, call, phantom, tmp_path):
    out = train(stage1, tmp_path / "out", *words)
    changed = changed_weights(stage1, out)
    assert not [name for name in changed if name.startswith(EXTRACTOR)]  # to the last bit, text features included
    decoder = {name for name in changed if name.startswith(DECODER)}
    if words:
        assert decoder == {f"{DECODER}decoder.layers.0.self_attn.{name}_proj.weight" for name in ("q", "v")}
    else:
        assert any("fc1" in name for name in decoder)
    assert any(name.startswith(TRANSFER) for name in changed)
    rows = [row for row in json.loads(Path(out, "trainer_state.json").read_text())["log_history"] if "kl" in row]
    assert len(rows) == 2 and "kl_lambda/mean" in rows[0] and "rewards/radcliq_lite_reward/mean" in rows[0]
    assert AutoProcessor.from_pretrained(out).image_token == IMAGE_TOKEN
    file = tmp_path / "reports.jsonl"
    call(generate.main, "--model", out, "--dataset", phantom, "--out", file, "--views", "frontal",
         "--prompt_file", "prompts/lmrrg.txt", "--max_new_tokens", 3, "--shuffle_images", "true")  # fmt: skip
    assert len(file.read_text().splitlines()) == 6


@pytest.mark.parametrize("words", [(), ("--use_peft", "true", "--lora_r", "4")], ids=["whole", "LoRA"])
@pytest.mark.parametrize("under", ["fsdp2.yaml", "zero1.yaml", "zero2.yaml", "zero3.yaml"])
def test_split_weights(under, words, stage1, phantom, tmp_path, torchrun):
    """What each process writes, its rewards and KL terms, the final weights: those of processes with whole models."""
    given = {"max_completion_length": 6, "logging_steps": 1, "log_completions": "false", "warmup_steps": 0}
    given |= {"save_strategy": "steps", "save_steps": 2, "num_iterations": 2, "max_steps": 4, "optim": "sgd"}
    found, models = [], []
    for config in (under, None):
        main, out = split_over_two(torchrun, config), tmp_path / str(config)
        run_script(main, ppo_lmrrg.main, "demo_cqrl.yaml", stage1, phantom, out, *words, **given)
        history = json.loads(Path(out, "trainer_state.json").read_text())["log_history"]
        names = ("loss", "rewards/radcliq_lite_reward/mean", "kl", "value/mean", "value/loss")
        found.append([[row.get(name, 0.0) for name in names] for row in history if "kl" in row])
        assert find_damage(out / "checkpoint-4") is None
        model, loaded = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
        assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loaded
        models.append(model.state_dict())
    torch.testing.assert_close(*map(torch.tensor, found), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(*models, atol=1e-5, rtol=1e-4)
    assert changed_weights(stage1, str(tmp_path / "None"))


def test_images_are_encoded_once_a_batch(train, stage1, tmp_path, monkeypatch):
    """Two batches of two studies x two completions, two epochs each: E sees four images."""
    seen, forward = [], torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    train(stage1, tmp_path / "out", max_steps=4, num_iterations=2, share_prefix="true")
    assert seen == [2, 2]


def test_a_resumed_run_ends_where_the_whole_one_does(train, stage1, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "num_iterations": 2}
    whole = train(stage1, tmp_path / "whole", **options)
    assert (Path(whole) / "checkpoint-2" / STATE_FILE).is_file()
    shutil.copytree(f"{whole}/checkpoint-2", tmp_path / "resumed/checkpoint-2")
    options |= {"resume_from_checkpoint": "latest", "dataloader_num_workers": 2}
    resumed = train(stage1, tmp_path / "resumed", **options)
    assert changed_weights(whole, resumed) == set()


@pytest.mark.parametrize(
    ("changed", "reward"),
    [
        ({"rewards": "bleu", "theta": 0.15}, "bleu_reward"),  # Table 3, reward: BLEU4
        ({"kl_controller": "fixed"}, "radcliq_lite_reward"),  # Table 3, fixed lambda_KL
        ({"rewards": "mccs"}, "mccs_reward"),  # labels come along
        ({"kl_direction": "ref_policy"}, "radcliq_lite_reward"),  # the order of Eq. 3
    ],
    ids=str,
)
def test_rows_and_rewards(changed, reward, train, stage1, tmp_path):
    out = train(stage1, tmp_path / "out", **changed, max_steps=1)
    row = json.loads(Path(out, "trainer_state.json").read_text())["log_history"][0]
    assert f"rewards/{reward}/mean" in row
    assert ("kl_lambda/min" in row) == (changed.get("kl_controller") != "fixed")


@pytest.mark.parametrize(("version", "transform"), [("v1", "affine"), ("v0", "affine"), ("v1", "exp")])
def test_the_settings_of_radcliq_reach_it(version, transform, train, stage1, tmp_path, monkeypatch):
    """The lexical one; two reports, of which no two settings think the same."""
    rewards, text = {}, ["There is a left pleural effusion.", "The heart is enlarged. There is a pleural effusion."]

    def stop(*arguments):
        rewards["radcliq_lite"] = choose_rewards(*arguments)[0]
        raise InputError("far enough")

    monkeypatch.setattr(ppo_lmrrg, "choose_rewards", stop)
    with pytest.raises(InputError, match="far enough"):
        train(stage1, tmp_path / "out", radcliq_version=version, reward_transform=transform)
    settings = [("v1", "affine"), ("v0", "affine"), ("v1", "exp")]
    values = {
        each: make_radcliq_reward(version=each[0], transform=each[1])(text[:1], report=text[1:]) for each in settings
    }
    assert len({value[0] for value in values.values()}) == 3
    assert rewards["radcliq_lite"](text[:1], report=text[1:]) == values[version, transform]


def test_the_published_radcliq(phantom, tmp_path):
    """With the architectures that it was fitted on, at random weights, it is RadCliQ by name, and 1 for a match."""
    texts = read_split(str(phantom), "train")["report"][:]
    for part in build_chexbert(texts, hidden_size=32, layers=1, heads=2):
        part.save_pretrained(tmp_path / "chexbert")
    tokenizer = train_tokenizer(texts, 400)
    config = RobertaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=5, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=514, pad_token_id=1)  # fmt: skip
    tokenizer.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    model = RobertaModel(config)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "distilroberta-base")
    settings = RewardArguments(
        rewards=["radcliq", "radgraph", "bertscore"], radgraph=str(save_tiny(tmp_path / "radgraph", texts)),
        chexbert=str(tmp_path / "chexbert"), bertscore=str(tmp_path / "distilroberta-base"),
    )  # fmt: skip
    reward, *others = choose_rewards(settings, LexicalLabeler(), texts, None)
    assert [each.__name__ for each in (reward, *others)] == ["radcliq_reward", "radgraph_reward", "bertscore_reward"]
    assert all(other(texts[:1], report=texts[:1]) == [pytest.approx(1, abs=1e-5)] for other in others)
    same, other = reward(texts[:2], report=[texts[0], texts[2]])
    assert 0 <= other < same <= 1


def test_a_model_that_was_never_trained(train, fresh, tmp_path):
    with pytest.raises(InputError, match=r"was never trained .* recipes/sft_lmrrg.py .* or pass --allow_scratch"):
        train(fresh, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert changed_weights(fresh, train(fresh, tmp_path / "out", allow_scratch="true", max_steps=1))


@pytest.mark.parametrize("text", ["{bad", "{}", "[1]"])
def test_a_damaged_state_of_stage_1(text, train, stage1, tmp_path):
    shutil.copytree(stage1, tmp_path / "stage1")
    (tmp_path / "stage1/trainer_state.json").write_text(text)
    with pytest.raises(InputError, match=r"trainer_state.json is damaged"):
        train(tmp_path / "stage1", tmp_path / "out")


def test_no_model_is_named():
    with pytest.raises(InputError, match=r"no model is named: give --model_name_or_path"):
        check_trained(None)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model_name_or_path": "nowhere/at_all"}, "nowhere/at_all cannot be loaded"),
        ({"theta": 0}, "theta must be above 0, not 0.0"),
        ({"rewards": "radclick"}, "there is no reward 'radclick'; choose among mccs, ce_f1"),
        ({"rewards": "radcliq", "radgraph": "./none"}, "rewards radcliq: "),  # no weights, and which
        ({"reward_weights": "0.5 0.5"}, "reward_weights has 2 values for 1 rewards"),
        ({"reward_range": "0.9 1.0"}, "which is not in reward_range [0.9, 1.0] (radcliq_lite_reward"),
        ({"resume_from_checkpoint": "latest"}, "there is no checkpoint in"),
        ({"use_vllm": "true"}, "vLLM does not know LM-RRG"),
    ],
    ids=str,
)
def test_starts_to_refuse(changed, sentence, train, stage1, tmp_path):
    words = [word for name, value in changed.items() for word in (f"--{name}", *str(value).split())]
    with pytest.raises(InputError, match=re.escape(sentence)):
        train(stage1, tmp_path / "out", *words)


def test_another_systems_model(train, tiny, tmp_path):
    with pytest.raises(InputError, match="is a qwen2_5_vl model, not an LM-RRG"):
        train(str(tiny), tmp_path / "out", "--allow_scratch")
