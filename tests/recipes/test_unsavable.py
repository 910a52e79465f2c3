"""A run whose model could not be saved ends before its first step: one sentence, nothing left behind."""

import errno
import shutil
from types import SimpleNamespace

import pytest
import replicas
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling import CheXbertConfig, CheXbertModel
from modeling.tiny_llmrg4 import build_llmrg4
from recipes.files import InputError
from recipes.sft_mrgr1 import MRGR1SFTTrainer
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.checkpoints import STAGING, find_unsavable, sample_weights
from recipes.trainers.discbert import DiscBertTrainer
from recipes.trainers.disease_sft import DiseaseSFTTrainer
from recipes.trainers.evidence import EvidenceTrainer
from recipes.trainers.grpo import MRGR1Trainer
from recipes.trainers.ppo import PPOTrainer
from recipes.trainers.scenario_sft import ScenarioSFTTrainer

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VICUNA = GenerationConfig(**replicas.VICUNA_GENERATION)
SETTINGS = (
    r"generation settings without effect \(temperature, top_p\), with which no checkpoint can be saved: remove them"
)


class StepCounter(TrainerCallback):
    steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.steps += 1


class WholeTrainer(RecipeTrainer, Trainer):
    """The base that all recipes share, alone."""


def make(tmp_path, model, processor=None, **changes) -> WholeTrainer:
    settings = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "save_strategy": "no", "report_to": "none"}
    args = TrainingArguments(use_cpu=True, disable_tqdm=True, **settings | changes)
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
    return WholeTrainer(model, args, train_dataset=rows, processing_class=processor, callbacks=[StepCounter()])


def steps_of(trainer: Trainer) -> int:
    return next(each.steps for each in trainer.callback_handler.callbacks if isinstance(each, StepCounter))


def llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL | changes))


def with_vicunas_settings(tmp_path) -> WholeTrainer:
    model = llama()
    model.generation_config = VICUNA
    return make(tmp_path, model)


def with_vicunas_settings_from_a_file(tmp_path) -> WholeTrainer:
    """Not touched since they were read, save_pretrained takes them; Trainer touches them when it aligns tokens."""
    folder = replicas.vicuna(tmp_path / "vicuna", vocab_size=600)
    return make(tmp_path, LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32))


def with_shared_weights(tmp_path) -> WholeTrainer:
    model = llama()
    model.model.layers[0].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight
    return make(tmp_path, model)


def with_a_processor_that_fails(tmp_path) -> WholeTrainer:
    def save_pretrained(folder):
        raise NotImplementedError("this tokenizer has no files")

    return make(tmp_path, llama(), SimpleNamespace(save_pretrained=save_pretrained))


def with_arguments_that_fail(tmp_path) -> WholeTrainer:
    trainer = make(tmp_path, llama())
    trainer.args.lr_scheduler_kwargs = {"schedule": lambda step: step}
    return trainer


def in_a_file(tmp_path) -> WholeTrainer:
    trainer = make(tmp_path, llama())
    trainer.args.output_dir = str(tmp_path / "taken/run")
    (tmp_path / "taken").write_text("no folder")
    return trainer


def merged_with_vicunas_settings(tmp_path) -> WholeTrainer:
    model = llama()
    model.generation_config = VICUNA
    return make(tmp_path, get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])))


def of_a_vision_language_model_with_vicunas_settings(tmp_path) -> WholeTrainer:
    model, processor = build_llmrg4(["The heart is normal."], vocab_size=300, num_visual_tokens=2)
    model.generation_config.update(temperature=0.9, top_p=0.6)
    return make(tmp_path, model, processor)


@pytest.mark.parametrize(
    ("trainer", "sentence"),
    [
        (with_vicunas_settings, SETTINGS),
        (with_vicunas_settings_from_a_file, SETTINGS),
        (merged_with_vicunas_settings, SETTINGS),
        (of_a_vision_language_model_with_vicunas_settings, SETTINGS),
        (with_shared_weights, r"shared tensors \[\{'model\.layers\.\d\.mlp\.up_proj\.weight', "),
        (with_a_processor_that_fails, "NotImplementedError: this tokenizer has no files"),
        (with_arguments_that_fail, "the model or its processor cannot be saved, .*: AttributeError: Can't pickle"),
        (in_a_file, "cannot write to .*taken/run: Not a directory"),
    ],
)
def test_a_run_that_cannot_be_saved_is_refused(trainer, sentence, tmp_path):
    trainer = trainer(tmp_path)
    with pytest.raises(InputError, match=sentence) as error:
        trainer.train()
    assert "\n" not in str(error.value) and steps_of(trainer) == 0
    assert not (tmp_path / "run" / STAGING).exists()


@pytest.mark.parametrize("change", ["no space", "too little space"])
def test_a_full_disk_is_seen(change, tmp_path, monkeypatch):
    model = llama()
    size = 4 * sum(each.numel() for each in model.parameters())
    if change == "no space":

        def write(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(torch, "save", write)
        sentence = "cannot write to .*run: No space left on device"
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - 1))
        sentence = "of free space, and the weights of one checkpoint take 0.0 GB: free some"
    with pytest.raises(InputError, match=sentence):
        make(tmp_path, model).train()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
    monkeypatch.undo()
    assert find_unsavable(make(tmp_path, model)) is None


def test_an_adapter_alone_needs_no_settings_and_little_space(tmp_path, monkeypatch):
    """Of an adapter without whole modules the base model is never saved."""
    model = llama()
    model.generation_config = VICUNA
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4 * 2 * 2 * 8 * 16))
    trainer = make(tmp_path, model)
    trainer.train()
    assert steps_of(trainer) == 1


def test_what_can_be_saved_trains_and_nothing_is_left(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(replicas.vicuna(tmp_path / "vicuna", vocab_size=600))
    trainer = make(tmp_path, llama(tie_word_embeddings=True), tokenizer)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert find_unsavable(trainer) is None
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    trainer.train()
    assert steps_of(trainer) == 1 and not list((tmp_path / "run").glob(".*"))


def test_encoders_without_generation_settings_train(tmp_path):
    sizes = {"vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert find_unsavable(make(tmp_path, CheXbertModel(CheXbertConfig(**sizes, intermediate_size=8)))) is None


def test_a_sample_of_weights_is_small_and_shares_what_they_share():
    model = llama(tie_word_embeddings=True)
    sample = sample_weights(model)
    assert sample.keys() == model.state_dict().keys() and all(value.numel() == 1 for value in sample.values())
    assert sample["lm_head.weight"].data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(
    "kind",
    [
        *(MRGR1Trainer, MRGR1SFTTrainer, ScenarioSFTTrainer, DiseaseSFTTrainer, PPOTrainer, EvidenceTrainer),
        DiscBertTrainer,
    ],
)
def test_every_recipes_trainer_checks(kind, monkeypatch):
    trainer = object.__new__(kind)
    trainer.accelerator = None
    monkeypatch.setattr(kind, "is_world_process_zero", lambda self: True)
    monkeypatch.setattr("recipes.trainers.base.find_unsavable", lambda trainer: "it cannot be saved")
    with pytest.raises(InputError, match=r"^it cannot be saved$"):
        trainer.train()
