"""Uneven batches: images of several sizes and shapes, one or two a study, prompts and reports of several lengths.

Of each trainer and each model that it trains: a token's log-probability in the trainer's own pass over the batch is
the one that the model alone gives for the row alone, a report written in a batch is the one written alone, and another
image changes the loss of its own row and of no other.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from replicas import SENTENCES, huatuo, medgemma, qwen3_vl
from test_long_runs import PROMPTS, make_words, says_clear, small_llama
from transformers import AutoModelForImageTextToText

from modeling import LLMRG4ForConditionalGeneration
from modeling.tiny_llmrg4 import build_llmrg4
from modeling.tiny_lmrrg import build_lmrrg
from recipes.cli import run
from recipes.data.processors import load_processor
from recipes.data.samples import to_samples
from recipes.evaluation.generation import chat_texts, starts_twice
from recipes.files import InputError
from recipes.sft_mrgr1 import MRGR1SFTTrainer
from recipes.trainers.clinical_evaluation import ClinicalEvaluation
from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.disease_sft import UNKNOWN, DiseaseSFTTrainer
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.ppo import PPOConfig, PPOTrainer
from recipes.trainers.rloo import RLOORecipeConfig, RLOORecipeTrainer
from recipes.trainers.scenario_sft import ScenarioSFTConfig, ScenarioSFTTrainer
from recipes.trainers.study_inputs import check_pass_inputs, with_study_inputs
from recipes.trainers.weighted_sft import WeightedSFTConfig, WeightedSFTTrainer

PROMPT = "{prior_report}{indication}Report the findings of this chest X-ray."
STUDIES = (  # width and height of the images in pixels, indication, prior report
    ([(112, 112)], None, None),
    ([(84, 168), (140, 84)], "Cough and fever for several days.", SENTENCES[0]),
    ([(196, 56)], "Pain.", None),
    ([(56, 140), (112, 112)], "Follow-up of an opacity.", SENTENCES[3]),
)
ROWS = len(STUDIES)
GENERATING = {
    "grpo": (MRGR1Trainer, MRGR1Config),
    "ppo": (PPOTrainer, PPOConfig),
    "rloo": (RLOORecipeTrainer, RLOORecipeConfig),
}
SUPERVISED = {
    "sft": (MRGR1SFTTrainer, SFTRecipeConfig),
    "weighted_sft": (WeightedSFTTrainer, WeightedSFTConfig),
    "scenario_sft": (ScenarioSFTTrainer, ScenarioSFTConfig),
    "disease_sft": (DiseaseSFTTrainer, SFTRecipeConfig),
}
VIEWS = {"llmrg4-atf": "frontal+lateral", "llmrg4-interleaved": "frontal+lateral", "lmrrg": "frontal"}  # else all


def draw(size: tuple[int, int], seed: int) -> Image.Image:
    """An image of noise, of that width and height."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@cache
def studies(priors: bool = True) -> Dataset:
    """Rows of the schema."""
    rows = []
    for number, (sizes, indication, prior) in enumerate(STUDIES):
        report = " ".join(SENTENCES[number : 2 * number + 1])
        rows.append(
            {
                "study_id": f"study-{number}",
                "images": [draw(size, 10 * number + place) for place, size in enumerate(sizes)],
                "views": ["PA", "LATERAL"][: len(sizes)],
                "indication": indication,
                "history": None,
                "prior_report": prior if priors else None,
                "findings": report,
                "impression": None,
                "report": report,
                "scenario": ("sn", "sw", "mn", "mw")[number],
                "key_spans": [[4, 9 + 4 * number]],
                "labels": [number % 4] * 13 + [0],
            }
        )
    return Dataset.from_list(rows)


def write_model(system: str, folder: Path) -> None:
    """A checkpoint of random weights without dropout: a replica of HuatuoGPT-Vision's forms, or one of our systems."""
    texts = [PROMPT, *SENTENCES, "Indication: Cough and fever for several days. Pain. Follow-up of an opacity.\n"]
    if system.startswith("huatuo"):
        huatuo(folder, system[-1], texts, vocab_size=1200)
        return
    if system == "qwen3-vl":
        qwen3_vl(folder, texts, vocab_size=1200)
        return
    if system == "medgemma":  # a window that ends within an image's 256 tokens, which see each other all the same
        medgemma(folder, texts, vocab_size=8192, sliding_window=96)
        return
    if system == "lmrrg":
        model, processor = build_lmrrg(texts, vocab_size=400, lambda_disease=0.5)
    else:
        model, processor = build_llmrg4(texts, vocab_size=400, fusion=system.removeprefix("llmrg4-"))
        model.config.perceiver_dropout = 0.0
        model = LLMRG4ForConditionalGeneration(model.config)
        model.generation_config.suppress_tokens = [processor.image_token_id]
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(system)`: its folder."""

    @cache
    def models(system: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / system
        write_model(system, folder)
        return folder

    return models


def load(folder: Path):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()


def settings_of(output_dir: Path | str, **settings) -> dict:
    """Arguments of a trainer: four rows a batch on a CPU."""
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": ROWS,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
    } | settings


def encode(processor, sample: dict, answer: list[int] = ()) -> dict[str, torch.Tensor]:
    """What a model reads for one sample alone, as generate.py asks, with the tokens `answer` behind the prompt."""
    texts = chat_texts(processor, [sample["images"]], [sample["prompt"][0]["content"]])
    once = {"add_special_tokens": False} if starts_twice(processor.tokenizer, texts[0]) else {}
    inputs = dict(processor(images=[sample["images"]], text=texts, return_tensors="pt", **once))
    tokens = torch.tensor([answer], dtype=torch.long)
    fillers = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    fillers |= {"mm_token_type_ids": 0 * tokens, "token_type_ids": 0 * tokens}  # Qwen's and Gemma's: 1 in an image
    for name in inputs.keys() & fillers.keys():
        inputs[name] = torch.cat([inputs[name], fillers[name]], dim=1)
    return inputs


@torch.no_grad()
def log_probs_alone(model, inputs: dict[str, torch.Tensor], number: int) -> torch.Tensor:
    """Of the last `number` tokens of one row."""
    logits = model(**inputs).logits[0, -number - 1 : -1].float()
    return logits.log_softmax(dim=-1).gather(1, inputs["input_ids"][0, -number:, None])[:, 0]


def has_changed(before: list[float], after: list[float]) -> list[bool]:
    """Of each row's loss; nothing between rounding and an image's effect may occur."""
    differences = np.abs(np.subtract(after, before))
    assert not ((differences > 1e-6) & (differences < 1e-4)).any(), differences
    return (differences > 1e-5).tolist()


################
# GRPO, PPO and RLOO
################


def score_length(completions, report, **kwargs):
    """Differs between studies."""
    return [len(text) / 400 for text in report]


def make_generating(kind: str, folder: Path | str, samples: Dataset, output_dir: Path | str, **settings):
    """A trainer of the model in `folder`, whose processor was handed in padding right."""
    trainer_class, config_class = GENERATING[kind]
    processor = load_processor(str(folder))
    processor.tokenizer.padding_side = "right"
    trainer = trainer_class(
        model=str(folder),
        reward_funcs=[score_length],
        args=config_class(
            **settings_of(output_dir, **settings),
            num_generations=2,
            beta=0.04,
            max_completion_length=6,
            generation_kwargs={"do_sample": False},
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=samples,
        processing_class=processor,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(
    scope="module",
    params=[
        *(("grpo", f"huatuo {form}") for form in "ABCD"),
        ("grpo", "qwen3-vl"),
        ("grpo", "medgemma"),
        ("grpo", "llmrg4-atf"),
        ("grpo", "llmrg4-interleaved"),
        ("grpo", "lmrrg"),
        ("ppo", "huatuo A"),
        ("ppo", "medgemma"),
        ("ppo", "llmrg4-atf"),
        ("ppo", "lmrrg"),
        ("rloo", "huatuo A"),
        ("rloo", "llmrg4-atf"),
        ("rloo", "lmrrg"),
    ],
    ids=" ".join,
)
def policy(request, models, tmp_path_factory):
    """A trainer that wrote two completions for each study, split into two shuffled batches, and all its passes."""
    kind, system = request.param
    folder = models(system)
    rows = studies(priors=system.startswith("llmrg4"))
    samples = to_samples(rows, PROMPT, VIEWS.get(system, "all"), keep=("report",))
    two_halves = {"steps_per_generation": 2, "gradient_accumulation_steps": 2, "num_iterations": 2}
    trainer = make_generating(kind, folder, samples, tmp_path_factory.mktemp("run"), **two_halves)
    passes, completions, score, write = [], [], trainer._get_per_token_logps_and_entropies, trainer._generate

    def remember_scores(model, ids, mask, number, *arguments, **inputs):
        result = score(model, ids, mask, number, *arguments, **inputs)
        passes.append((ids, mask, number, result[0].detach()))
        return result

    def remember_tokens(prompts):
        result = write(prompts)
        completions.extend(zip(*result[:2], strict=True))
        return result

    trainer._get_per_token_logps_and_entropies, trainer._generate = remember_scores, remember_tokens
    rows, batches = [samples[number // 2] for number in range(2 * ROWS)], []
    for step in range(2):
        trainer._step = step
        batches.append(trainer._prepare_inputs(rows))
        trainer._compute_loss(trainer.model, batches[-1])
    model = load(folder)
    prompts = [encode(trainer.processing_class, sample)["input_ids"][0].tolist() for sample in samples]
    return SimpleNamespace(
        trainer=trainer,
        model=model,
        samples=samples,
        prompts=prompts,
        batches=batches,
        passes=passes,
        completions=completions,
    )


def test_a_generating_trainers_log_probabilities_are_those_of_the_row_alone(policy):
    lengths, rows = [], 0
    for ids, mask, number, log_probs in policy.passes:
        for row, length in enumerate(mask[:, -number:].sum(dim=1).tolist()):
            tokens = ids[row][mask[row].bool()].tolist()
            sample = policy.samples[policy.prompts.index(tokens[:-length])]
            inputs = encode(policy.trainer.processing_class, sample, tokens[-length:])
            expected = log_probs_alone(policy.model, inputs, length)
            torch.testing.assert_close(log_probs[row, :length], expected, atol=1e-5, rtol=0)
            lengths.append(len(tokens) - length)
            rows += 1
    assert rows == 3 * 2 * ROWS  # policy and reference over all, then the loss in two halves
    assert len(set(lengths)) == ROWS  # of the prompts: the rows are padded


def test_a_generating_trainer_writes_what_the_row_alone_gets(policy):
    assert len(policy.completions) == 2 * ROWS
    for number, (prompt, completion) in enumerate(policy.completions):
        assert prompt == policy.prompts[number // 2]
        inputs = encode(policy.trainer.processing_class, policy.samples[number // 2])
        settings = {"max_new_tokens": 6, "do_sample": False, "repetition_penalty": 1.0}
        assert completion == policy.model.generate(**inputs, **settings)[0, len(prompt) :].tolist()
    assert len({tuple(completion) for _, completion in policy.completions}) > 1  # the images make a difference


def row_losses(trainer, batch: dict) -> list[float]:
    """The loss of each row of a batch, the others' tokens left out."""
    losses = []
    for row in range(len(batch["completion_mask"])):
        mask = torch.zeros_like(batch["completion_mask"])
        mask[row] = batch["completion_mask"][row]
        losses.append(trainer._compute_loss(trainer.model, batch | {"completion_mask": mask}).item())
    return losses


def test_another_image_changes_its_own_rows_loss_in_rl(policy):
    trainer, images = policy.trainer, 0
    for batch in policy.batches:
        batch = batch | {"advantages": torch.ones_like(batch["advantages"])}  # in GRPO equal completions have 0
        before, numbers = row_losses(trainer, batch), set()
        for row in range(ROWS):
            prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
            number = policy.prompts.index(prompt)
            if number in numbers:  # the same study again: its images stand in the first row's place
                continue
            numbers.add(number)
            for image in policy.samples[number]["images"]:
                pixels, place = (
                    trainer.processing_class.image_processor(each, return_tensors="pt")["pixel_values"]
                    for each in (image, draw(image.size, 99))
                )
                values = batch["pixel_values"].clone()
                flat = values.view(-1, *pixels.shape[1:])  # LLM-RG4 has a dimension of views
                start = next(i for i in range(len(flat)) if torch.equal(flat[i : i + len(pixels)], pixels))
                flat[start : start + len(pixels)] = place
                changes = has_changed(before, row_losses(trainer, batch | {"pixel_values": values}))
                assert changes == [i == row for i in range(ROWS)]
                images += 1
    assert images >= ROWS


def test_what_trl_would_leave_out_in_training_is_refused():
    check_pass_inputs({"pixel_values": 1, "view_mask": 1, "prior_input_ids": 1, "prior_attention_mask": 1})
    with pytest.raises(InputError, match="reads qformer_input_ids of these prompts to write, and GRPO"):
        check_pass_inputs({"pixel_values": 1, "qformer_input_ids": 1})


def test_rows_of_a_study_go_into_the_call_of_their_chunk():
    """Two calls of two rows and of one; a third has no study."""
    seen = []

    class Model(torch.nn.Module):
        def forward(self, input_ids, view_mask=None):
            seen.append(view_mask.tolist())

    model = Model()
    with with_study_inputs(model, {"view_mask": torch.tensor([1, 2, 3])}):
        model(input_ids=torch.zeros(2, 5))
        model(input_ids=torch.zeros(1, 5))
        with pytest.raises(ValueError, match="more rows than the 3 of its studies"):
            model(input_ids=torch.zeros(1, 5))
    assert seen == [[1, 2], [3]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", GENERATING)
def test_a_tokenizer_pads_left_whatever_it_was_saved_with(tmp_path, kind, side):
    trainer_class, config_class = GENERATING[kind]
    tokenizer = make_words()
    tokenizer.padding_side = side
    settings = {"beta": 0.0} if kind == "rloo" else {}  # whose reference TRL would look for on a disk
    trainer = trainer_class(
        model=small_llama(),
        reward_funcs=[says_clear],
        args=config_class(**settings_of(tmp_path), num_generations=2, **settings),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )
    assert trainer.processing_class(PROMPTS[:2], padding=True)["attention_mask"] == [[0, 1], [1, 1]]


################
# Supervised fine-tuning
################


@pytest.fixture(
    scope="module",
    params=[
        ("sft", "huatuo A"),
        ("sft", "huatuo D"),
        ("sft", "qwen3-vl"),
        ("sft", "medgemma"),
        ("weighted_sft", "huatuo A"),
        ("weighted_sft", "llmrg4-atf"),
        ("weighted_sft", "lmrrg"),
        ("scenario_sft", "llmrg4-atf"),
        ("scenario_sft", "llmrg4-interleaved"),
        ("disease_sft", "lmrrg"),
    ],
    ids=" ".join,
)
def supervision(request, models, tmp_path_factory):
    """A trainer, its samples, and its own batch of them."""
    kind, system = request.param
    trainer_class, config_class = SUPERVISED[kind]
    rows = studies(priors=system.startswith("llmrg4"))
    views = VIEWS.get(system, "all")
    keep = ("scenario", "key_spans", "disease_labels", "report")
    samples = to_samples(rows.rename_column("labels", "disease_labels"), PROMPT, views, completion="plain", keep=keep)
    folder = models(system)
    trainer = trainer_class(
        model=load(folder),
        args=config_class(
            **settings_of(tmp_path_factory.mktemp("run")),
            max_length=None,
            eval_strategy="epoch",
            clinical_samples=ROWS,
            clinical_max_new_tokens=6,
        ),
        train_dataset=samples,
        eval_dataset=samples,
        processing_class=load_processor(str(folder)),
    )
    collate = lambda rows: trainer.data_collator([dict(row) for row in rows])  # noqa: E731
    return SimpleNamespace(
        trainer=trainer,
        model=load(folder),
        samples=list(samples),
        collate=collate,
        evaluation=ClinicalEvaluation(trainer),
    )


def test_a_supervised_trainers_log_probabilities_are_those_of_the_row_alone(supervision):
    trainer, passes = supervision.trainer, []
    batch = supervision.collate(supervision.samples)
    handle = trainer.model.register_forward_hook(
        lambda module, args, output: passes.append(output.log_probs.detach().clone())  # before they are weighed
    )
    trainer.compute_loss(trainer.model.train(), dict(batch))
    handle.remove()
    processor = trainer.processing_class
    lengths = batch["attention_mask"].sum(dim=1)
    assert len(passes) == 1 and len(set(lengths.tolist())) == ROWS
    for row, sample in enumerate(supervision.samples):
        labelled = batch["labels"][row] != -100
        answer = batch["labels"][row][labelled].tolist()
        assert processor.tokenizer.decode(answer).startswith(sample["completion"][0]["content"])
        inputs = encode(processor, sample, answer)
        assert inputs["input_ids"][0].tolist() == batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        expected = log_probs_alone(supervision.model, inputs, len(answer))
        torch.testing.assert_close(passes[0][row][labelled[1:]], expected, atol=1e-5, rtol=0)


def test_an_evaluation_writes_what_the_row_alone_gets(supervision):
    samples = supervision.evaluation.samples
    texts = [supervision.evaluation._write(samples[[number]])[0] for number in range(ROWS)]
    assert supervision.evaluation._write(samples[list(range(ROWS))]) == texts
    assert len(set(texts)) > 1  # the images make a difference


def test_another_image_changes_its_own_rows_loss_in_sft(supervision):
    trainer = supervision.trainer

    def losses(samples: list[dict]) -> list[float]:
        values = []
        for row in range(ROWS):
            batch = supervision.collate(samples)
            for name, ignored in (("labels", -100), ("disease_labels", UNKNOWN)):
                if name in batch:
                    batch[name][[i for i in range(ROWS) if i != row]] = ignored
            with torch.no_grad():
                values.append(trainer.compute_loss(trainer.model, batch).item())
        return values

    before = losses(supervision.samples)
    for row, sample in enumerate(supervision.samples):
        for place, image in enumerate(sample["images"]):
            images = list(sample["images"])
            images[place] = draw(image.size, 99)
            samples = list(supervision.samples)
            samples[row] = sample | {"images": images}
            assert has_changed(before, losses(samples)) == [i == row for i in range(ROWS)]


################
# Two processes
################


def one_of_two(model: str, folder: str) -> None:
    """Two steps of plain gradient descent on all studies' completions, whose words depend on their prompt."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    processes = int(os.environ.get("WORLD_SIZE", 1))
    samples = to_samples(studies(priors=False), PROMPT, "all", keep=("report",))
    trainer = make_generating(
        "grpo", model, samples, folder, per_device_train_batch_size=2 * ROWS // processes, max_steps=2,
        optim="sgd", learning_rate=0.1, shuffle_dataset=False, max_grad_norm=0.0, logging_steps=1,
    )  # fmt: skip

    def answer(prompts, trainer) -> dict:
        ids = trainer._tokenize_prompts(prompts)[0]
        ends = trainer.eos_token_ids[0]
        texts = [
            [300 + (sum(prompt) + row % 2) % 50, 310, 320, ends][: 2 + len(prompt) % 3]
            for row, prompt in enumerate(ids)
        ]
        return {"prompt_ids": ids, "completion_ids": texts, "logprobs": [[0.0] * len(text) for text in texts]}

    def score(completion_ids, **kwargs):
        return [ids[0] % 7 / 7 for ids in completion_ids]

    trainer.rollout_func, trainer.reward_funcs = answer, [score]
    trainer.train()
    if trainer.is_world_process_zero():
        names = ("loss", "reward", "reward_std", "grad_norm", "kl")
        rows = [[row[name] for name in names] for row in trainer.state.log_history if "reward" in row]
        torch.save({"weights": trainer.model.state_dict(), "rows": rows}, Path(folder) / f"{processes}.pt")


@pytest.mark.parametrize("system", ["huatuo A", "qwen3-vl", "medgemma"])
def test_two_processes_are_one(system, models, tmp_path, torchrun):
    model = models(system)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])  # replicas.py is there
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, *torchrun(__file__, model, tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=300)
    one_of_two(str(model), str(tmp_path))
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (1, 2))
    assert len(one["rows"]) == 2 and all(row[2] > 0 and row[3] > 0 for row in one["rows"])
    np.testing.assert_allclose(two["rows"], one["rows"], atol=1e-5)
    start = load(model).state_dict()
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-6, rtol=1e-5)
    patches = next(name for name in start if "patch_embed" in name)  # the images' first layer learns too
    assert not torch.equal(one["weights"][patches], start[patches])


if __name__ == "__main__":
    run(lambda: one_of_two(*sys.argv[1:]))
