"""tests/bench/gpu_step.py without a GPU: it runs with miniatures, its models have the published sizes, and what it
computes is what recipes/cluster.md has."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from trl import get_peft_config

from modeling.tiny import build_qwen2_5_vl, train_tokenizer
from modeling.tiny_llmrg4 import build_llmrg4
from modeling.tiny_lmrrg import build_lmrrg
from recipes.trainers.grpo import MRGR1Config

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
import gpu_step

TEXTS = ["The heart is normal.", "The lungs are clear."]


def make(name: str):
    """The model of the real sizes, without memory."""
    if name == "qwen":
        small, _ = build_qwen2_5_vl(train_tokenizer(TEXTS, 300), hidden_size=64, text_layers=1, vision_layers=1)
    else:
        small, _ = (build_llmrg4 if name == "llmrg4" else build_lmrrg)(TEXTS)
    config = getattr(gpu_step, f"{name}_config")(small.config)
    return gpu_step.enlarge(small, config, "bfloat16", device="meta")


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def stub(model, **changes) -> gpu_step.Step:
    """A step of 16 completions of which all tokens are counted."""
    args = MRGR1Config(output_dir="unused", use_cpu=True, bf16=False, max_completion_length=512, **changes)
    trainer = SimpleNamespace(args=args, model=model, accelerator=SimpleNamespace(unwrap_model=lambda model: model))
    return gpu_step.Step(trainer, 1, passes=1, patches=5120, encoded=3)


def test_grpo_is_computed_as_on_the_cluster_page():
    """P, N, the vision tower and LoRA's A of cluster.md, whose test counts them on transformers' own class."""
    words, tower, lora = 544_997_376, 676_550_144, 322_961_408
    model = make("qwen")
    assert (numbers(model), numbers(model.model.visual)) == (8_292_166_656, tower)
    _, model_args, _ = gpu_step.read_settings("mrgr1/mimic.yaml", MRGR1Config, "unused", True, 1)
    model = get_peft_model(model, get_peft_config(model_args))
    text = 8_292_166_656 - tower - words
    step = stub(model, gradient_checkpointing=True)
    expected = 8 * text * 1900 * 16 + 3 * 2 * tower * 5120 * 16
    assert gpu_step.operations(step, 1900 * 16, 16) == expected
    assert gpu_step.writing_bytes(step) == 512 * (2 * text + 4 * lora)
    no_second_pass = stub(model, gradient_checkpointing=False)
    assert gpu_step.operations(no_second_pass, 1900 * 16, 16) == expected - 2 * text * 1900 * 16


def test_llmrg4_has_vicuna():
    model = make("llmrg4")
    assert numbers(model.model.language_model) + numbers(model.lm_head) == 6_738_415_616 + 2 * 4096  # and <image>
    assert numbers(model.model.prior_encoder) == 109_482_240 - 590_592  # BERT-base without its pooler


def test_lmrrg_has_opt():
    model = make("lmrrg")
    opt = 2_651_596_800 + (50_304 - 50_272) * 2560  # OPT-2.7B, with BLIP-2's rows
    assert numbers(model.model.language_model) == opt  # its head is tied
    step = stub(model, gradient_checkpointing=True, num_iterations=4)
    step.passes, step.encoded = 2, 0
    places = 2560 * (2048 + 2)  # positions are looked up
    assert gpu_step.operations(step, 1000, 16) == (2 + 2 + 2 + 2 + 2 * 2 / 4) * (opt - places) * 1000
    assert gpu_step.writing_bytes(step) == 512 / 4 * 2 * (opt - places)  # four updates on one batch


def test_means_of_the_measured_steps():
    meter = gpu_step.Meter(SimpleNamespace(), skipped=2, limit=0)
    meter.marks = [(9.0, 3.0, 50), (10.0, 3.0, 100), (14.0, 4.0, 200), (18.0, 5.0, 300)]
    assert meter.figures() == {"seconds": 4.0, "writing": 1.0, "tokens": 100.0, "steps": 2}


def test_a_run_ends_when_its_time_is_over():
    meter, control = (
        gpu_step.Meter(SimpleNamespace(), skipped=1, limit=-1),
        SimpleNamespace(should_training_stop=False),
    )
    for stops in (False, True):  # the first step is not measured
        meter.on_step_end(None, SimpleNamespace(num_input_tokens_seen=0), control)
        assert control.should_training_stop is stops


def test_beside_what_is_computed():
    """624e12 operations in 8 s are a quarter of an A100's 312e12 a second; its memory is read for 4 s."""
    figures = {"seconds": 10.0, "writing": 2.0, "operations": 8 * 78e12, "writing_bytes": 4 * 2.039e12}
    figures |= {"memory": 30e9, "computed_memory": 20e9}
    share, memory = gpu_step.compare("grpo", figures, gpu_step.GPUS["A100"])
    assert figures["share"] == pytest.approx(0.25) and figures["computed_writing"] == pytest.approx(4)
    assert figures["computed_seconds"] == pytest.approx(
        {"40.0%": 4 + 2 / 0.4, "30.9%": 4 + 2 / (0.232 * 8 / 6), "21.3%": 4 + 2 / (0.16 * 8 / 6)}
    )
    assert share["holds"] and share["value"] == pytest.approx(0.25)
    assert not memory["holds"] and memory["value"] == 1.5


def test_without_a_gpu(call, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    call(gpu_step.main)
    sentence = "there is no GPU, so no step of the real sizes can be measured: --tiny runs the same with miniatures\n"
    assert capsys.readouterr().out == sentence and not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["grpo", "llmrg4", "lmrrg"])
def test_miniatures(step, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    call(gpu_step.main, "--tiny", "--only", step)
    written = json.loads(Path("outputs/bench/gpu_step/results.json").read_text())
    figures = written["steps"][step]
    assert figures["seconds"] > figures["writing"] >= 0 and figures["tokens"] > 0 and figures["steps"] >= 2
    assert (figures["writing"] > 0) == (figures["writing_bytes"] > 0) == (step != "llmrg4")
    assert figures["operations"] > 0 and figures["computed_memory"] > 0
    assert [check["holds"] for check in written["checks"]] == [None]
