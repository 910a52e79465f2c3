"""Rows on the three systems, put together from their published parts and trained for a step or two on phantoms."""

import gc
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BatchFeature,
    Blip2ForConditionalGeneration,
)
from transformers.utils import is_flash_attn_2_available

from modeling import LLMRG4ForConditionalGeneration, LMRRGForConditionalGeneration
from recipes import convert_biomedclip, grpo_mrgr1
from recipes.certificate.checkpoints import count, gap
from recipes.certificate.laboratory import Absent, Bar, Lab, run_script
from recipes.data.processors import load_processor
from recipes.data.samples import to_samples
from recipes.data.schema import read_split
from recipes.evaluation.generation import chat_texts
from recipes.files import read_prompt
from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.disease_sft import DiseaseSFTTrainer
from recipes.trainers.scenario_sft import ScenarioSFTConfig, ScenarioSFTTrainer

PROMPTS = {"llmrg4": "prompts/llmrg4.txt", "lmrrg": "prompts/lmrrg.txt"}
VIEWS = {"llmrg4": "frontal+lateral", "lmrrg": "frontal"}
GIGABYTES = {"llmrg4": 40, "lmrrg": 24, "qwen": 40}  # free on the GPU: float32 is computed in, else bfloat16
COMPUTED = "24.3 GB computed (recipes/cluster.md, 7B)"
SECONDS = "12.4 s computed, about 20 s expected (recipes/cluster.md, the same 16 completions on two A100)"


def precision(lab: Lab, system: str) -> tuple[torch.dtype, float]:
    """The type to compute in, and the share of the largest logit that differences may have."""
    if lab.device.type == "cpu" or torch.cuda.mem_get_info()[0] > GIGABYTES[system] * 1e9:
        return torch.float32, 1e-4
    return torch.bfloat16, 0.03


def samples_of(lab: Lab, system: str):
    """Phantoms as samples of a system, with what its trainer asks for."""
    rows = read_split(str(lab.phantoms()), "train")
    keep = ("scenario", "key_spans")
    if system == "lmrrg":
        rows, keep = rows.rename_column("labels", "disease_labels"), ("disease_labels",)
    return to_samples(rows, read_prompt(PROMPTS[system]), VIEWS[system], completion="plain", keep=keep)


def assemble(lab: Lab, system: str, dtype: torch.dtype) -> tuple:
    """A system's model and processor from its parts; new modules are drawn with seed 0."""
    torch.manual_seed(0)
    if system == "llmrg4":
        parts = [lab.checkpoint(name) for name in ("vision", "text", "decoder")]
        return LLMRG4ForConditionalGeneration.from_pretrained_parts(*parts, dtype, fusion="atf")
    biomedclip = lab.convert(convert_biomedclip, checkpoint=lab.checkpoint("biomedclip"))
    return LMRRGForConditionalGeneration.from_pretrained_parts(str(biomedclip), lab.checkpoint("opt"), dtype=dtype)


def read_inputs(lab: Lab, processor, samples, number: int) -> BatchFeature:
    """What a model reads for one sample: images, prompt and report."""
    sample = samples[number]
    text = chat_texts(processor, [sample["images"]], [sample["prompt"][0]["content"]])[0]
    text += sample["completion"][0]["content"]
    return processor(images=[sample["images"]], text=[text], return_tensors="pt").to(lab.device)


@torch.no_grad()
def logits_of(lab: Lab, model, processor, samples) -> list[torch.Tensor]:
    """Logits of two samples, one after the other, on the CPU."""
    model.to(lab.device).eval()
    with computing_in(lab, model.dtype):
        return [model(**read_inputs(lab, processor, samples, number)).logits[0].float().cpu() for number in (0, 1)]


def computing_in(lab: Lab, dtype: torch.dtype) -> torch.autocast:
    """As in training: LLM-RG4's fusion is in float32, whatever the type of the others."""
    return torch.autocast(lab.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


@torch.no_grad()
def decoder(lab: Lab, system: str) -> tuple[float, Bar]:
    """The largest difference of an assembled model's logits to those of its decoder alone, which is handed the word
    embeddings with the visual tokens in their places; by the largest logit."""
    dtype, limit = precision(lab, system)
    samples = samples_of(lab, system)

    def run_assembled() -> list[tuple]:
        model, processor = assemble(lab, system, dtype)
        outputs = logits_of(lab, model, processor, samples)
        rows = []
        for number, logits in enumerate(outputs):
            inputs = dict(read_inputs(lab, processor, samples, number))
            ids, _ = inputs.pop("input_ids"), inputs.pop("attention_mask")
            with computing_in(lab, dtype):
                visual = model.model.get_image_features(**inputs).pooler_output
            rows.append((ids, ids == processor.image_token_id, visual.flatten(0, -2), logits))
        return rows

    rows = run_assembled()  # the model is gone before the decoder comes
    plain = load_decoder(lab, system, dtype)
    differences = []
    for ids, places, visual, logits in rows:
        embeddings = plain.get_input_embeddings()(ids.masked_fill(places, 0))
        embeddings[places] = visual.to(embeddings)
        with computing_in(lab, dtype):
            expected = plain(inputs_embeds=embeddings).logits[0].float().cpu()
        differences.append(gap(logits[:, : expected.shape[-1]], expected))
    return max(differences), Bar("<=", limit)


def load_decoder(lab: Lab, system: str, dtype: torch.dtype):
    if system == "llmrg4":
        plain = AutoModelForCausalLM.from_pretrained(lab.checkpoint("decoder"), dtype=dtype)
    else:
        plain = Blip2ForConditionalGeneration.from_pretrained(lab.checkpoint("opt"), dtype=dtype).language_model
    return plain.to(lab.device).eval()


def train_a_step(lab: Lab, system: str) -> dict:
    """One step of a system's first stage: loss, trained tensors that it changed, and the largest difference of logits
    once the model is saved and loaded again."""
    dtype, limit = precision(lab, system)
    model, processor = assemble(lab, system, dtype)
    samples, folder = samples_of(lab, system), lab.work / system
    if system == "llmrg4":  # stage 1 trains the fusion alone, on frontal images without prior reports
        model.model.token_fusion.float()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".token_fusion." in name)
    trainers = {"llmrg4": (ScenarioSFTTrainer, ScenarioSFTConfig), "lmrrg": (DiseaseSFTTrainer, SFTRecipeConfig)}
    trainer_class, config_class = trainers[system]
    before = {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}
    trainer = trainer_class(
        model=model,
        args=config_class(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=4,
            learning_rate=1e-3 if dtype == torch.float32 else 1e-2,  # bfloat16 has no number near 1 + 1e-3
            lr_scheduler_type="constant",
            bf16=lab.device.type == "cuda",
            use_cpu=lab.device.type == "cpu",
            gradient_checkpointing=True,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=samples,
        processing_class=processor,
    )
    trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    changed = sum(not torch.equal(value, model.get_parameter(name).detach().cpu()) for name, value in before.items())
    logits = logits_of(lab, model, processor, samples)
    trainer.save_model(folder)
    del trainer, model
    gc.collect()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    reloaded = logits_of(lab, model, load_processor(str(folder)), samples)
    shutil.rmtree(folder)  # 27 GB of LLM-RG4 in float32
    return {
        "loss": loss,
        # not all: with one text vector a region there is nothing to attend to, and LM-RRG's queries have no gradient
        "changed": (changed / len(before), Bar(">=", 0.9)),
        "reload": (max(gap(*pair) for pair in zip(reloaded, logits, strict=True)), Bar("<=", limit)),
    }


def step(lab: Lab, system: str) -> tuple[float, Bar]:
    """The share of trained tensors that one step changed, if its loss is finite."""
    result = lab.once(system, lambda: train_a_step(lab, system))
    return result["changed"] if math.isfinite(result["loss"]) else (result["loss"], Bar("is", "finite"))


def reload(lab: Lab, system: str) -> tuple[float, Bar]:
    """The largest difference of logits between the trained model and the same one saved and loaded again."""
    return lab.once(system, lambda: train_a_step(lab, system))["reload"]


def make_row(function: Callable, system: str) -> Callable[[Lab], tuple]:
    def row(lab: Lab) -> tuple:
        return function(lab, system)

    row.__doc__ = f"{system}: {function.__doc__}"
    return row


@torch.no_grad()
def qwen_batch(lab: Lab) -> tuple[float, Bar]:
    """The largest difference of a report's log-probabilities, in nats, in a batch of uneven X-rays, one and two a
    study, prompts and reports of several lengths, and alone; float32."""
    name = lab.checkpoint("qwen")
    dtype, _ = precision(lab, "qwen")
    if dtype != torch.float32:
        raise Absent(
            f"needs {GIGABYTES['qwen']} GB free on the GPU for 7B in float32: give --qwen Qwen/Qwen2.5-VL-3B-Instruct"
        )
    processor = load_processor(name, **pixels_of(lab))
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype).to(lab.device).eval()
    rows = read_split(str(lab.phantoms()), "train")
    samples = to_samples(rows, "{prior_report}{indication}Report the findings.", "all", completion="plain").select(
        range(4)
    )
    texts = chat_texts(processor, [row["images"] for row in samples], [row["prompt"][0]["content"] for row in samples])
    answers = [row["completion"][0]["content"] for row in samples]
    images = [row["images"] for row in samples]
    together = log_probs(lab, model, processor, images, texts, answers)
    differences = []
    for number in range(len(texts)):
        single = log_probs(lab, model, processor, *([values[number]] for values in (images, texts, answers)))
        differences.append((together[number] - single[0]).abs().max().item())
    return max(differences), Bar("<=", 1e-3)


def log_probs(lab: Lab, model, processor, images: list, texts: list, answers: list) -> list[torch.Tensor]:
    """Of each answer's tokens, behind its prompt; rows are padded on the left."""
    lengths = [len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers]
    texts = [text + answer for text, answer in zip(texts, answers, strict=True)]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt").to(lab.device)
    logits = model(**inputs, logits_to_keep=max(lengths) + 1).logits.float().log_softmax(dim=-1)
    ids = inputs["input_ids"]
    scores = logits[:, :-1].gather(2, ids[:, -max(lengths) :, None])[..., 0].cpu()
    return [row[-length:] for row, length in zip(scores, lengths, strict=True)]


def pixels_of(lab: Lab) -> dict[str, int]:
    """The range of recipes/configs/mrgr1/iu.yaml, or a smaller one for miniatures."""
    return {"min_pixels": lab.changes.get("min_pixels", 200704), "max_pixels": lab.changes.get("max_pixels", 1003520)}


def run_grpo(lab: Lab) -> dict:
    """Two steps of recipes/grpo_mrgr1.py with the paper's YAML on phantoms: the log, seconds a step, gigabytes."""
    name, folder, on_gpu = lab.checkpoint("qwen"), lab.work / "grpo", lab.device.type == "cuda"
    flash = on_gpu and is_flash_attn_2_available(kernels_fallback_ok=True)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    run_script(
        grpo_mrgr1.main,
        config=Path(grpo_mrgr1.__file__).parent / "configs/mrgr1/iu.yaml",
        model_name_or_path=name,
        dataset=lab.phantoms(),
        labeler="lexical",
        attn_implementation="flash_attention_2" if flash else "sdpa",
        optim="adamw_bnb_8bit" if on_gpu else "adamw_torch",
        use_cpu=not on_gpu,
        max_steps=2,
        stop_on_collapse=0,
        log_completions=False,
        save_strategy="no",
        disable_tqdm=True,
        output_dir=folder,
        **pixels_of(lab),
        **lab.changes.get("grpo", {}),
    )
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    with safe_open(folder / "adapter_model.safetensors", "pt") as adapter:
        outer = [adapter.get_tensor(name) for name in adapter.keys() if ".lora_B." in name]  # noqa: SIM118
    return {
        "steps": [row for row in log if "loss" in row],
        "changed": sum(bool(tensor.any()) for tensor in outer),  # B of LoRA begins as 0
        "adapters": len(outer),
        "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }


def grpo_steps(lab: Lab) -> tuple[str, Bar]:
    """LoRA's matrices that two steps changed, if loss, gradient, KL and reward are finite in both."""
    result = lab.once("grpo", lambda: run_grpo(lab))
    figures = [row[name] for row in result["steps"] for name in ("loss", "grad_norm", "kl", "reward")]
    if len(figures) != 8 or not all(map(math.isfinite, figures)):
        return f"loss, gradient, KL and reward: {figures}", Bar("=", "8 finite numbers")
    return count(result["changed"], result["adapters"], "LoRA adapters changed")


def grpo_memory(lab: Lab) -> tuple[float, str]:
    """The most memory that tensors took on the GPU in these steps, in GB."""
    gigabytes = lab.once("grpo", lambda: run_grpo(lab))["gigabytes"]
    if gigabytes is None:
        raise Absent("this machine has no GPU that torch sees")
    return gigabytes, COMPUTED


def grpo_seconds(lab: Lab) -> tuple[float, str]:
    """Seconds of the second step, the first one's start-up left out."""
    return lab.once("grpo", lambda: run_grpo(lab))["steps"][-1]["step_time"], SECONDS
