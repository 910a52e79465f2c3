"""Qwen3-VL and MedGemma as policies, on miniatures of the published form: what is theirs alone.

Uneven batches, generation against a row alone, and two processes are in test_uneven_batches.py, prefix sharing of
Qwen3-VL in test_shared_prefix.py, the YAMLs' runs with a kill and a resume in the rehearsal.
"""

import io
import json
import re
import sys
from functools import cache
from pathlib import Path
from shutil import copytree

import pytest
import torch
import yaml
from peft import get_peft_model
from PIL import Image
from replicas import SENTENCES, medgemma, qwen3_vl
from test_uneven_batches import PROMPT, ROWS, draw, encode, load, log_probs_alone, score_length, settings_of, studies
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import ModelConfig, get_peft_config

from recipes import generate, grpo_mrgr1, sft_mrgr1
from recipes.data.processors import load_processor
from recipes.data.samples import to_samples
from recipes.data.schema import write_dataset
from recipes.data.special_tokens import special_token
from recipes.evaluation.generation import chat_texts, encode_prompts
from recipes.files import InputError
from recipes.sft_mrgr1 import MRGR1SFTTrainer
from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.image_memory import image_encoder
from recipes.trainers.study_inputs import right_aligned

CONFIGS = Path(grpo_mrgr1.__file__).parent / "configs/mrgr1"
TEXTS = [PROMPT, *SENTENCES, "Indication: Cough and fever for several days. Pain. Follow-up of an opacity.\n"]
POLICIES = {"qwen3_vl": "visual", "medgemma": "vision_tower"}  # and what their vision towers are called
PROJECTIONS = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(policy)`: the folder of its miniature."""

    @cache
    def models(policy: str) -> Path:
        folder = tmp_path_factory.mktemp("policies") / policy
        if policy == "medgemma":
            return medgemma(folder, TEXTS, vocab_size=8192, sliding_window=96)
        return qwen3_vl(folder, TEXTS, vocab_size=1200)

    return models


def lora_of(policy: str, kind: str = "") -> ModelConfig:
    """The LoRA settings of the policy's YAML, its rank made small, without dropout."""
    values = yaml.safe_load((CONFIGS / f"{kind}{policy}.yaml").read_text())
    settings = {key: value for key, value in values.items() if key in ("use_peft", "lora_alpha")}
    return ModelConfig(**settings, lora_r=2, lora_dropout=0.0, lora_target_modules=values["lora_target_modules"])


def samples_of(**options):
    return to_samples(studies(priors=False), PROMPT, "all", keep=("report",), **options)


def train(models, policy: str, folder: Path, resume: bool | None = None, **settings):
    """An SFT run with the YAML's LoRA, three steps of two rows, saved after each."""
    defaults = {"per_device_train_batch_size": 2, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    defaults |= {"learning_rate": 1e-2, "max_length": None, "logging_steps": 1, "seed": 3}
    parts = {
        "model": load(models(policy)),
        "args": SFTRecipeConfig(**settings_of(folder, **defaults | settings)),
        "train_dataset": samples_of(completion="plain"),
        "processing_class": load_processor(str(models(policy))),
        "peft_config": get_peft_config(lora_of(policy, "sft_")),
    }
    set_seed(3)  # LoRA's first weights are drawn before the trainer sets its seed
    trainer = MRGR1SFTTrainer(**parts)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def adapters(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if "lora_" in name}


################
# LoRA
################


@pytest.mark.parametrize("kind", ["", "sft_"])
@pytest.mark.parametrize("policy", POLICIES)
def test_lora_is_on_the_language_model_alone(models, policy, kind):
    """On every projection of each of its layers, and on none of the vision tower, whose layers have the same names in
    Gemma 3; nor of what lies between."""
    model = get_peft_model(load(models(policy)), get_peft_config(lora_of(policy, kind)))
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    layers = model.config.text_config.num_hidden_layers
    found = {re.fullmatch(r".*\.language_model\.layers\.(\d+)\.(\w+\.\w+)\.lora_A.*", name) for name in names}
    assert None not in found and len(names) == layers * len(PROJECTIONS)
    assert {match.groups() for match in found} == {(str(i), name) for i in range(layers) for name in PROJECTIONS}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    everywhere = [name for name, _ in model.named_modules() if re.fullmatch(r".*\.(q_proj|v_proj)", name)]
    assert policy != "medgemma" or any(f".{POLICIES[policy]}." in name for name in everywhere)  # a short name hits it


@pytest.mark.parametrize("policy", POLICIES)
def test_the_pattern_fits_the_published_sizes(models, policy):
    """The classes that the published checkpoints have, with their numbers of layers; no weight is made."""
    config = AutoConfig.from_pretrained(models(policy))
    layers = {"qwen3_vl": 36, "medgemma": 34}[policy]
    config.text_config.num_hidden_layers = layers
    kinds = getattr(config.text_config, "layer_types", None)
    if kinds:
        config.text_config.layer_types = (kinds * layers)[:layers]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        model = get_peft_model(model, get_peft_config(lora_of(policy)))
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert len(names) == 7 * layers and all(".language_model.layers." in name for name in names)


################
# What reaches the loss
################


@pytest.mark.parametrize("policy", POLICIES)
def test_an_images_tokens_are_read_and_not_learned(models, policy):
    """As many as the image has features; all before the answer, and none among the labels."""
    processor, model = load_processor(str(models(policy))), load(models(policy))
    trainer = MRGR1SFTTrainer(
        model=model,
        args=SFTRecipeConfig(**settings_of("unused", max_length=None)),
        train_dataset=samples_of(completion="plain"),
        processing_class=processor,
    )
    samples = list(trainer.train_dataset)  # their images scaled
    batch = trainer.data_collator([dict(sample) for sample in samples])
    places = batch["input_ids"] == model.config.image_token_id
    if policy == "medgemma":
        expected = [256 * len(sample["images"]) for sample in samples]
        assert torch.equal(places, batch["token_type_ids"] == 1)
        assert len(batch["pixel_values"]) == sum(len(sample["images"]) for sample in samples)
    else:  # one token has 32 x 32 pixels
        sizes = [[image.width * image.height // 1024 for image in sample["images"]] for sample in samples]
        expected = [sum(row) for row in sizes]
        assert torch.equal(places, batch["mm_token_type_ids"] == 1)
        assert batch["image_grid_thw"].prod(-1).tolist() == [4 * size for row in sizes for size in row]
    assert places.sum(1).tolist() == expected
    assert not (places & (batch["labels"] != -100)).any()
    for row, sample in enumerate(samples):
        answer = batch["labels"][row][batch["labels"][row] != -100].tolist()
        text = processor.tokenizer.decode(answer)
        assert text.startswith(sample["completion"][0]["content"])
        end = {"qwen3_vl": "<|im_end|>", "medgemma": "<end_of_turn>"}[policy]
        assert text.count(end) == 1  # the turn's end is learned
    starts = (batch["input_ids"] == processor.tokenizer.bos_token_id).sum(1) if policy == "medgemma" else None
    assert starts is None or starts.tolist() == [1] * ROWS  # <bos> once, although template and tokenizer have it


def test_accumulated_batches_are_one_batch(models, tmp_path):
    """Gemma 3's loss is over all of a step's tokens. That of Qwen-VL is the mean of the micro-batches' means, since
    transformers says accepts_loss_kwargs False of the model."""
    runs = []
    for size, parts in ((4, 1), (2, 2)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 1}
        settings |= {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        runs.append(adapters(train(models, "medgemma", tmp_path / str(parts), **settings)))
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(models, policy, tmp_path):
    whole = train(models, policy, tmp_path / "whole")
    train(models, policy, tmp_path / "stopped", max_steps=3, save_total_limit=None)
    resumed = train(models, policy, tmp_path / "stopped", resume=str(tmp_path / "stopped/checkpoint-1"))
    start = adapters(train(models, policy, tmp_path / "start", max_steps=1, learning_rate=0.0))
    for name, value in adapters(whole).items():
        assert torch.equal(adapters(resumed)[name], value), name
    assert any(not torch.equal(start[name], value) for name, value in adapters(whole).items())
    saved = load_processor(str(tmp_path / "whole/checkpoint-3"))
    assert saved.chat_template == load_processor(str(models(policy))).chat_template


################
# Gemma 3: both directions in an image, windows, one <bos>
################


def test_tokens_of_an_image_see_each_other_in_both_directions(models):
    """Without its types of tokens, or with types that stand one token too far to the right, the model reads another
    sequence."""
    model, processor = load(models("medgemma")), load_processor(str(models("medgemma")))
    inputs = encode(processor, samples_of()[0], [300, 301, 302])
    types = inputs["token_type_ids"]
    right = log_probs_alone(model, inputs, 3)
    causal = log_probs_alone(model, inputs | {"token_type_ids": torch.zeros_like(types)}, 3)
    shifted = log_probs_alone(model, inputs | {"token_type_ids": types.roll(1, dims=1)}, 3)
    assert (right - causal).abs().max() > 1e-4 and (right - shifted).abs().max() > 1e-6


def test_types_of_tokens_that_have_a_column_too_many_are_put_right():
    types = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0]])
    assert torch.equal(right_aligned(types, 5), types[:, 1:]) and torch.equal(right_aligned(types, 6), types)


def make_grpo(models, policy: str, folder, lora: bool = True, **settings):
    defaults = {"per_device_train_batch_size": 2 * ROWS, "num_generations": 2, "beta": 0.04, "num_iterations": 2}
    defaults |= {"max_completion_length": 6, "model_init_kwargs": {"dtype": "float32"}}
    trainer = MRGR1Trainer(
        model=str(models(policy)),
        reward_funcs=[score_length],
        args=MRGR1Config(**settings_of(folder, **defaults | settings)),
        train_dataset=samples_of(),
        processing_class=load_processor(str(models(policy))),
        peft_config=get_peft_config(lora_of(policy)) if lora else None,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def test_types_of_tokens_fit_the_tokens_in_every_pass_of_grpo(models, tmp_path):
    trainer, seen = make_grpo(models, "medgemma", tmp_path), []

    def look(module, arguments, named):
        if named.get("token_type_ids") is not None:
            seen.append((named["input_ids"], named["token_type_ids"]))

    trainer.model.get_base_model().model.register_forward_pre_hook(look, with_kwargs=True)
    batch = trainer._prepare_inputs([trainer.train_dataset[number // 2] for number in range(2 * ROWS)])
    trainer._compute_loss(trainer.model, batch).backward()
    image = trainer.model.config.image_token_id
    assert len(seen) == 4  # generation, old and reference pass, loss
    for ids, types in seen:
        assert torch.equal(types == 1, ids == image)


def test_gemmas_prompts_are_read_in_the_plain_pass_which_is_said(models, tmp_path, capsys):
    trainer = make_grpo(models, "medgemma", tmp_path)
    assert trainer._sharing is None
    sentence = "share_prefix: an image's tokens attend to each other in both directions"
    assert sentence in capsys.readouterr().out
    with pytest.raises(InputError, match="share_prefix true: an image's tokens attend to each other"):
        make_grpo(models, "medgemma", tmp_path, share_prefix=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_frozen_tower_reads_each_image_once(models, policy, tmp_path):
    """For generation, the old and the reference pass, and the loss; which is that of a tower that reads each time."""
    losses = []
    for shared in (None, False):  # False: nothing is remembered
        torch.manual_seed(0)
        trainer, images = make_grpo(models, policy, tmp_path, share_prefix=shared), []
        image_encoder(trainer.model.get_base_model()).register_forward_pre_hook(
            lambda module, arguments, named, images=images: images.append(
                len(named.get("grid_thw", named.get("pixel_values", arguments[0] if arguments else ())))
            ),
            with_kwargs=True,
        )
        torch.manual_seed(1)
        batch = trainer._prepare_inputs([trainer.train_dataset[number // 2] for number in range(2 * ROWS)])
        batch["advantages"] = torch.linspace(-1, 1, 2 * ROWS)
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        gradient = next(value.grad for name, value in trainer.model.named_parameters() if "lora_B" in name)
        losses.append((loss.detach(), gradient))
        distinct = sum(len(row["images"]) for row in trainer.train_dataset)
        assert images == [distinct] if shared is None else sum(images) == 8 * distinct
    for first, second in zip(*losses, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_is_written_as_each_row_alone(models, policy):
    """Images of several sizes, one or two a prompt, prompts of several lengths; greedily, 12 tokens."""
    model, processor = load(models(policy)), load_processor(str(models(policy)))
    samples = list(samples_of())
    images, prompts = [row["images"] for row in samples], [row["prompt"][0]["content"] for row in samples]
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1}
    inputs = encode_prompts(processor, images, prompts, return_tensors="pt", padding=True)
    together = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    for number, (study, prompt) in enumerate(zip(images, prompts, strict=True)):
        alone = encode_prompts(processor, [study], [prompt], return_tensors="pt")
        expected = model.generate(**alone, **settings)[0, alone["input_ids"].shape[1] :]
        assert together[number].tolist() == expected.tolist()


################
# Templates and image sizes
################


def test_gemmas_system_words_stand_in_the_users_turn(models):
    processor = load_processor(str(models("medgemma")))
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " Report. "}]}
    system = {"role": "system", "content": [{"type": "text", "text": "You are a radiologist."}]}
    text = processor.apply_chat_template([system, user], add_generation_prompt=True, tokenize=False)
    assert text == (
        "<bos><start_of_turn>user\nYou are a radiologist.\n\n<start_of_image>Report.<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    assert text.replace("You are a radiologist.\n\n", "") == chat_texts(processor, [[None]], ["Report."])[0]
    ids = encode_prompts(processor, [[draw((90, 60), 1)]], ["Report."])["input_ids"][0]
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    for token in ("<start_of_image>", "<image_soft_token>", "<end_of_turn>"):
        assert special_token(f"Clear. {token}") == token  # a report with one is refused


@pytest.mark.parametrize("size", [(300, 900), (900, 300), (64, 64)])
def test_without_pan_and_scan_an_image_of_any_shape_is_256_tokens(models, size):
    processor = load_processor(str(models("medgemma")))
    inputs = encode_prompts(processor, [[draw(size, 0)]], ["Report."], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)
    assert (inputs["token_type_ids"] == 1).sum() == 256


def test_pan_and_scan_is_refused_since_a_files_word_is_passed_over(models, tmp_path):
    """transformers reads crops only where a call asks for them: what a file says would silently not happen."""
    folder = copytree(models("medgemma"), tmp_path / "model")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_pan_and_scan": True}))
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.new("RGB", (1200, 400))
    text = chat_texts(processor, [[image]], ["Report."])
    counts = [
        processor(images=[[image]], text=text, return_tensors="pt", **options)["pixel_values"].shape[0]
        for options in ({}, {"do_pan_and_scan": True})
    ]
    assert counts == [1, 4]  # the image, and three crops of 400 x 400
    with pytest.raises(InputError, match=r"model asks for pan and scan .*: set it to null there"):
        load_processor(str(folder))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A built data set of the uneven studies."""

    def png(image: Image.Image) -> dict:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    rows = [
        {
            **row,
            "images": [png(image) for image in row["images"]],
            "labels": [0] * 13 + [1],
            "subject_id": row["study_id"],
        }
        for row in studies(priors=False)
    ]
    rows = [{**row, "source": "phantom", "license": "CC0-1.0"} for row in rows]
    folder = tmp_path_factory.mktemp("data") / "data"
    for row in rows:
        del row["key_spans"]
    write_dataset({"train": lambda: iter(rows)}, folder, {"builder": "build_phantom", "labeler": "lexical"})
    return folder


@pytest.mark.parametrize("script", [grpo_mrgr1, sft_mrgr1])
@pytest.mark.parametrize("option", ["--min_pixels", "--max_pixels"])
def test_a_range_of_pixels_is_refused_for_gemma_in_one_sentence(
    models, dataset, tmp_path, monkeypatch, script, option
):
    kind = "sft_" if script is sft_mrgr1 else ""
    words = [
        "script",
        "--config",
        str(CONFIGS / f"{kind}medgemma.yaml"),
        "--model_name_or_path",
        str(models("medgemma")),
    ]
    words += ["--dataset", str(dataset), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--bf16", "false"]
    words += ["--optim", "adamw_torch", "--labeler", "lexical", option, "200704"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(InputError, match=r"medgemma has no range of pixels .* leave out min_pixels and max_pixels"):
        script.main()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", [grpo_mrgr1, sft_mrgr1])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_yamls_run(models, dataset, tmp_path, monkeypatch, script, policy):
    """Each with what a GPU has replaced, one step; then its folder writes a report."""
    kind = "sft_" if script is sft_mrgr1 else ""
    out = tmp_path / "out"
    words = ["script", "--config", str(CONFIGS / f"{kind}{policy}.yaml"), "--model_name_or_path", str(models(policy))]
    words += [
        "--dataset",
        str(dataset),
        "--output_dir",
        str(out),
        "--use_cpu",
        "true",
        "--attn_implementation",
        "sdpa",
    ]
    words += ["--optim", "adamw_torch", "--labeler", "lexical", "--max_steps", "1", "--dataloader_num_workers", "0"]
    words += ["--effective_batch_size", "4"]
    words += [] if kind else ["--max_completion_length", "8", "--log_completions", "false"]
    monkeypatch.setattr(sys, "argv", words)
    script.main()
    file = tmp_path / "reports.jsonl"
    options = ["--model", out, "--dataset", dataset, "--split", "train", "--max_new_tokens", 4, "--out", file]
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, options)])
    generate.main()
    assert len(file.read_text().splitlines()) >= ROWS
