"""What a run says before its first step, the memory that it computes, and when it stops."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from test_long_runs import make_trainer, small_llama
from torch.utils.data import IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, Trainer, TrainingArguments

from recipes.files import InputError
from recipes.trainers import run_summary
from recipes.trainers.base import RecipeTrainer
from recipes.trainers.memory import StepMemory, memory_of_step, optimizer_bytes
from recipes.trainers.run_summary import RunSummary

GB = 1e9
STEP = StepMemory(
    weights=16 * GB, gradients=1 * GB, optimizer=2 * GB, reference=3 * GB, copies=0.5 * GB, layers=10, width=1000,
    mlp_width=4000, key_value_width=500, vocabulary=100_000, rows=8, tokens=1000, answer_tokens=250, written=16,
)  # fmt: skip


def test_parts_worked_by_hand():
    """8 rows of 1,000 tokens are 8,000 places of 2 bytes: 16,000 bytes for each number of a token's state."""
    assert STEP.parts() == {
        "weights": 16e9,
        "gradients": 1e9,
        "optimizer": 2e9,
        "reference model": 3e9,
        "keys and values": 16 * 1000 * 2 * 10 * 500 * 2,  # 16 rows are written at once; a key and a value in 10 layers
        "activations between layers": 16_000 * 1000 * 10,
        "activations within layers": 16_000 * (8 * 1000 + 3 * 4000),  # of one layer at a time
        "16-bit copies": 0.5e9,
        "logits": 8 * 250 * 32_768 * 4,  # TRL has 32,768 of the 100,000 words at once
    }
    assert STEP.standing == 22e9
    assert STEP.peak == 22e9 + 0.16e9 + 0.5e9  # 0.5 of copies is more than 0.32 of a layer and 0.26 of logits
    assert replace(STEP, copies=0).peak == 22e9 + 0.16e9 + 0.32e9
    assert replace(STEP, written=160).peak == 22e9 + 3.2e9  # while 160 reports are written
    assert replace(STEP, checkpointing=False).peak == 22e9 + 3.2e9 + 0.5e9  # ten layers, all of them kept
    assert replace(STEP, value=4, copies=0).peak == 22e9 + 2 * (0.16e9 + 0.32e9)
    shared = replace(STEP, rows_of_a_prompt=3)  # 3 prompts of 750 tokens and 8 answers of 250: 4,250 places
    assert shared.parts()["activations between layers"] == 8_500 * 1000 * 10


@pytest.mark.parametrize(
    ("step", "total", "sentence"),
    [
        (STEP, 22.7 * GB, None),
        (STEP, 22.6 * GB, r"takes 22\.7 GB .* \(weights 16\.0 GB, reference model 3\.0 GB, .*this GPU has 22\.6 GB: "
         r"with per_device_train_batch_size 4 it takes 22\.6 GB$"),
        (replace(STEP, copies=0, written=0), 22.2 * GB, "with per_device_train_batch_size 2 it takes 22.1 GB$"),
        (replace(STEP, checkpointing=False, copies=0), 24 * GB, "with per_device_train_batch_size 4 it takes 23.7 GB"),
        (replace(STEP, checkpointing=False, copies=0, rows=1), 22.4 * GB,
         r"with gradient_checkpointing true it takes 22\.3 GB"),
        (replace(STEP, checkpointing=False, copies=0, written=0), 22.2 * GB,
         r"with gradient_checkpointing true and per_device_train_batch_size 2 it takes 22\.1 GB"),
        (STEP, 21 * GB, r"what no batch size changes is 22\.0 GB; train LoRA \(use_peft\), share it among more GPUs"),
        (replace(STEP, written=160), 23 * GB, "no batch size is small enough"),  # what is written at once stays
    ],
)  # fmt: skip
def test_advice(step, total, sentence):
    """A GPU that is too small is told in one line what would fit, the least change first."""
    advice = step.advice(total)
    if sentence is None:
        assert advice is None
    else:
        assert re.search(sentence, advice) and "\n" not in advice


@pytest.mark.parametrize(
    ("optim", "size", "expected"),
    [
        ("adamw_torch", 4, 8),
        ("adamw_torch_fused", 2, 4),  # moments in the weight's type
        ("adamw_bnb_8bit", 4, 2),
        ("adamw_8bit", 4, 2),
        ("lion_32bit", 4, 4),
        ("ademamix_8bit", 4, 3),
        ("rmsprop_bnb", 4, 4),
        ("sgd", 4, 0),
        ("adafactor", 4, 0),
        ("paged_adamw_8bit", 4, 0),  # may be in the CPU's memory
        ("galore_adamw", 4, 0),
        ("adamw_torch_4bit", 4, 0),
    ],
)
def test_optimizer_bytes(optim, size, expected):
    assert optimizer_bytes(optim, size) == expected


LLAMA = 2 * 8 * 16 + 4 * 16 * 16 + 3 * 16 * 32 + 3 * 16  # words in and out, attention, MLP, norms of small_llama


@pytest.mark.parametrize(
    ("kind", "trained", "reference", "written", "shared"),
    [
        ("grpo", LLAMA, 0, 8, 2),  # TRL's beta is 0
        ("ppo", LLAMA + 17, LLAMA, 8, 2),  # a value head; the reference is a copy of all that is trained
        ("weighted_sft", LLAMA, 0, 0, 1),
    ],
)
def test_memory_of_a_trainer(kind, trained, reference, written, shared, tmp_path):
    trainer = make_trainer(kind, tmp_path, optim="adamw_torch")
    assert memory_of_step(trainer, 12, 5) == StepMemory(
        weights=4 * trained, gradients=4 * trained, optimizer=8 * trained, reference=4 * reference, layers=1, width=16,
        mlp_width=32, key_value_width=16, vocabulary=8, rows=8, tokens=12, answer_tokens=5, written=written, value=4,
        checkpointing=False, rows_of_a_prompt=shared,
    )  # fmt: skip


def test_memory_of_lora(tmp_path):
    """Trained are 2 x 16 + 16 x 2 numbers of one projection, in float32 with a 16-bit copy; generation is by vLLM."""
    model = get_peft_model(small_llama().to(torch.bfloat16), LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = make_trainer("grpo", tmp_path, model=model, optim="adamw_torch", steps_per_generation=4)
    trainer.args.bf16 = True
    step = memory_of_step(trainer, 12, 5)
    assert (step.weights, step.gradients, step.optimizer) == (2 * LLAMA + 4 * 64, 4 * 64, 8 * 64)
    assert (step.copies, step.value, step.written) == (2 * 64, 2, 4 * 8)
    trainer.args.use_vllm = True
    assert memory_of_step(trainer, 12, 5).written == 0


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 1, 1, 1), (1, 1, 1, 4), (2, 1, 4, 4), (3, 4, 4, 4), ("fsdp", 4, 4, 4)],  # what four processes share
)
def test_memory_of_split_weights(stage, weights, gradients, optimizer, tmp_path):
    trainer = make_trainer("weighted_sft", tmp_path, optim="adamw_torch")
    plugin = SimpleNamespace(zero_stage=stage)
    stub = SimpleNamespace(
        args=trainer.args,
        model=trainer.model,
        is_fsdp_enabled=stage == "fsdp",
        is_deepspeed_enabled=stage not in (0, "fsdp"),
        accelerator=SimpleNamespace(
            num_processes=4, unwrap_model=lambda model: model, state=SimpleNamespace(deepspeed_plugin=plugin)
        ),
    )
    step = memory_of_step(stub, 12, 5)
    assert step.weights == 4 * LLAMA / weights
    assert (step.gradients, step.optimizer) == (4 * LLAMA / gradients, 8 * LLAMA / optimizer)


class PlainTrainer(RecipeTrainer, Trainer):
    """The base that all recipes share, alone."""


def make_plain(folder, model, **changes) -> PlainTrainer:
    values = {"output_dir": str(folder), "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 12}
    values |= {"save_strategy": "no", "logging_strategy": "no", "per_device_train_batch_size": 1}
    rows = [{"input_ids": [1] * length, "labels": [-100] * 2 + [1] * (length - 2)} for length in (3, 7, 5, 4)]
    return PlainTrainer(model, TrainingArguments(**values | changes), train_dataset=rows)


@pytest.mark.parametrize(
    ("model", "mlp_width"),
    [
        (OPTForCausalLM(OPTConfig(vocab_size=8, hidden_size=16, ffn_dim=24, num_hidden_layers=1,
                                  num_attention_heads=2, word_embed_proj_dim=16, max_position_embeddings=16)), 24),
        (GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=16)), 64),  # 4 x 16
    ],
)  # fmt: skip
def test_widths_under_other_names(model, mlp_width, tmp_path):
    step = memory_of_step(make_plain(tmp_path, model), 4, 2)
    assert (step.width, step.mlp_width, step.key_value_width) == (16, mlp_width, 16)


################
# The block before the first step
################


def test_grpo_says_what_it_will_do(tmp_path, capsys):
    changes = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "save_steps": 5}
    make_trainer("grpo", tmp_path, **changes).train()
    block = capsys.readouterr().out.split("This run:\n")[1].splitlines()[:5]
    assert [re.sub(" +", " ", line).strip() for line in block] == [
        f"model LlamaForCausalLM, {LLAMA:,} of {LLAMA:,} parameters are trained",
        "data 32 samples; longest prompt 2 tokens, longest answer 4 (looked at: all of them)",
        "steps 8 (2 epochs); 16 completions a step, 2 for a prompt",  # 32 prompts x 2 / 16 a step, twice
        f"writes to {tmp_path}, a checkpoint every 5 steps",
        "memory less than 0.1 GB for a process at least",
    ]


def test_ppo_says_how_often_it_writes(tmp_path, capsys):
    make_trainer("ppo", tmp_path, max_steps=2, num_iterations=3, save_strategy="no").train()
    printed = capsys.readouterr().out
    assert "2; 8 completions a step, 2 for a prompt; new ones every 3 steps\n" in printed
    assert "no checkpoint before the end\n" in printed


def test_sft_counts_prompt_and_report(tmp_path, capsys):
    """ "heart large" and "no effusion" are two words of the prompt; of the report two words and the end."""
    make_trainer("weighted_sft", tmp_path, max_steps=1, save_strategy="epoch").train()
    printed = capsys.readouterr().out
    assert "32 samples; longest prompt 2 tokens, longest answer 3 (looked at: all of them)\n" in printed
    assert "1; 8 samples a step\n" in printed and "a checkpoint after every epoch\n" in printed


def test_of_many_samples_some_are_looked_at(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_summary, "LOOKED_AT", 2)
    make_plain(tmp_path, small_llama(), max_steps=1).train()  # rows of 3, 7, 5 and 4 tokens, two of them the prompt
    line = "4 samples; longest prompt 2 tokens, longest answer 3 (looked at: 2 of them, spread over all)\n"
    assert line in capsys.readouterr().out  # the first and the third


class Stream(IterableDataset):
    def __iter__(self):
        while True:
            yield {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}


def test_a_stream_has_no_places(tmp_path, capsys):
    trainer = make_plain(tmp_path, small_llama(), max_steps=1)
    trainer.train_dataset = Stream()
    trainer.train()
    assert "data       samples of unknown number\n" in capsys.readouterr().out


def test_once_for_a_call(tmp_path, capsys):
    trainer = make_plain(tmp_path, small_llama(), max_steps=1)
    for _ in range(2):
        trainer.train()
        assert capsys.readouterr().out.count("This run:") == 1


@pytest.mark.parametrize(
    ("device", "places", "expected"),
    [
        ("cpu", None, None),
        ("cuda:1", None, 40),
        ("cuda:0", {"visual": 0, "layers.0": "cuda:1", "layers.1": 1, "layers.2": "cpu"}, 24 + 40),  # device_map auto
    ],
)
def test_gpu_memory(device, places, expected, monkeypatch):
    sizes = {"cuda:0": 24, "cuda:1": 40}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=sizes[str(device)])
    )
    trainer = SimpleNamespace(
        args=SimpleNamespace(device=torch.device(device)),
        is_model_parallel=places is not None,
        model=SimpleNamespace(hf_device_map=places),
    )
    assert run_summary.gpu_memory(trainer) == expected


def test_a_gpu_that_is_too_small_stops_the_run(tmp_path, monkeypatch, capsys):
    """16 bytes a weight are 45,824; no step is made, and one sentence says what is needed and what there is."""
    monkeypatch.setattr(run_summary, "gpu_memory", lambda trainer: 40_000)
    trainer = make_trainer("weighted_sft", tmp_path, optim="adamw_torch")
    with pytest.raises(
        InputError,
        match=r"^a step takes 0\.0 GB of GPU memory at least, and this GPU has 0\.0 GB: .* train LoRA \(use_peft\)",
    ) as raised:
        trainer.train()
    assert "\n" not in str(raised.value)
    assert trainer.state.global_step == 0
    assert "for a process at least, of 0.0 GB that this GPU has\n" in capsys.readouterr().out
    monkeypatch.setattr(run_summary, "gpu_memory", lambda trainer: 10**9)
    make_trainer("weighted_sft", tmp_path, optim="adamw_torch", max_steps=1).train()


def too_small_in_one_of_two(folder: Path) -> None:
    """Notes how a process of two ends whose first one has a GPU that is too small."""
    rank = PartialState(cpu=True).process_index
    run_summary.gpu_memory = lambda trainer: 40_000 if rank == 0 else None
    trainer = make_trainer("weighted_sft", folder / "run", optim="adamw_torch")
    with pytest.raises(InputError, match="train LoRA") as raised:
        trainer.train()
    (folder / f"{rank}.txt").write_text(str(raised.value))


def test_all_processes_stop(tmp_path, torchrun):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *torchrun(__file__, tmp_path)]
    done = subprocess.run(command, env=environment, check=True, timeout=600, capture_output=True, text=True)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second and first.startswith("a step takes")
    assert done.stdout.count("This run:") == 1 and "; 16 samples a step" in done.stdout


def test_a_bad_row_is_named_before_the_first_step(tmp_path):
    trainer = make_trainer("weighted_sft", tmp_path)
    trainer.data_collator.encode = lambda texts: {
        "input_ids": [[5, 5, 5]] * len(texts),
        "offset_mapping": [[(0, 1)] * 3] * len(texts),
    }
    with pytest.raises(InputError, match="are not in its row"):
        trainer.train()
    assert trainer.state.global_step == 0


################
# Hours
################


@pytest.mark.parametrize(
    ("period", "line"),
    [
        # the first step is not measured; 12 s a step; of 100 steps 89 are left: 1,068 s
        ((1, 1, 1), "10 steps took 12.00 s on average: 0.3 hours for the 89 steps that are left, until "),
        # four updates on a batch of completions: three batches are 12 steps
        ((4, 2, 2), "12 steps took 12.00 s on average: 0.3 hours for the 87 steps that are left, until "),
    ],
)
def test_hours(period, line, tmp_path, monkeypatch, capsys):
    iterations, per_generation, accumulation = period
    trainer = make_trainer("grpo", tmp_path)
    args = trainer.args
    args.num_iterations, args.steps_per_generation, args.gradient_accumulation_steps = (
        iterations,
        per_generation,
        accumulation,
    )
    trainer.state.max_steps = 100
    summary = RunSummary(trainer)
    summary.on_train_begin(args, trainer.state, None, train_dataloader=trainer.get_train_dataloader())
    capsys.readouterr()
    times = []
    for trainer.state.global_step in range(1, 40):
        monkeypatch.setattr(run_summary.time, "perf_counter", lambda: 12.0 * trainer.state.global_step)
        summary.on_step_end(args, trainer.state, None)
        times += [trainer.state.global_step] * bool(printed := capsys.readouterr().out)
        if printed:
            assert printed.startswith(line) and printed.endswith("(0.3 hours in all)\n")
    assert times == [11 if iterations == 1 else 13]


def test_a_short_run_says_nothing_of_hours(tmp_path, capsys):
    make_plain(tmp_path, small_llama(), max_steps=11).train()
    assert "10 steps took" in capsys.readouterr().out  # eleven: the first one is not measured
    make_plain(tmp_path, small_llama(), max_steps=10).train()
    assert "on average" not in capsys.readouterr().out


if __name__ == "__main__":
    too_small_in_one_of_two(Path(sys.argv[1]))
