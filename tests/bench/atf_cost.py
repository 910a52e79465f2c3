"""What adaptive token fusion saves: tokens, prefill and training step of `fusion: atf` against `interleaved`.

    python tests/bench/atf_cost.py

The decoder has the width of SmolLM2-135M and 12 random layers, N is the paper's 128, prior reports have 100 or more
tokens and are cut to 100, prompts have indication, history and instruction. The encoders are small: they read the same
images and reports in either fusion (but for the prior report, which only ATF encodes), so what is timed is what
differs. A training step is the paper's second stage, LoRA on the decoder and the whole fusion. Both fusions are timed
in turn within one process, on studies with both extra inputs (mw) and with none (sn), where they have the same tokens.
Writes outputs/bench/atf_cost/results.json. A figure is not a test: exits 0 whether or not the bars hold.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import BatchFeature, LlamaConfig

from modeling import LLMRG4Config, LLMRG4ForConditionalGeneration, LLMRG4Processor
from modeling.configuration_llmrg4 import FUSIONS
from modeling.processing_llmrg4 import mark_prior
from modeling.tiny_llmrg4 import build_llmrg4
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import report, run

ROUNDS = 8  # each fusion once in each
BATCH = 2
SCENARIOS = {"sn": (False, False), "sw": (False, True), "mn": (True, False), "mw": (True, True)}  # lateral, prior
PROMPT = (
    "INDICATION: cough and fever for three days, question of pneumonia. HISTORY: chronic obstructive pulmonary "
    "disease and coronary artery bypass surgery. Describe the findings and the impression of the chest x-ray."
)
FEWER = 0.5


def build(fusion: str, texts: list[str]) -> tuple[LLMRG4ForConditionalGeneration, LLMRG4Processor]:
    """The model to be timed and its processor."""
    small, processor = build_llmrg4(
        texts, image_size=224, num_visual_tokens=128, fusion=fusion, vocab_size=2000, vision_layers=1
    )
    decoder = LlamaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    config = LLMRG4Config.from_dict({**small.config.to_dict(), "text_config": decoder.to_dict()})
    return LLMRG4ForConditionalGeneration(config), processor


def encode(processor: LLMRG4Processor, scenario: str, prior: str, answer: str = "") -> BatchFeature:
    """A batch of one scenario: the question, or the question and its answer."""
    lateral, with_prior = SCENARIOS[scenario]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224), dtype=np.uint8))
    parts = [{"type": "image"}] * (1 + lateral)
    parts += [{"type": "text", "text": mark_prior(prior if with_prior else None) + PROMPT}]
    message = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False) + answer
    return processor(images=[[image] * (1 + lateral)] * BATCH, text=[text] * BATCH, return_tensors="pt")


def seconds(action: Callable) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    texts = [build_row("train", index, "mn", BuildArguments(size=64))["report"] for index in range(100)]
    texts += [PROMPT] * 20
    prior = " ".join(texts[:20])
    built = {fusion: build(fusion, texts) for fusion in FUSIONS}

    tokens: dict[str, dict[str, int]] = {fusion: {} for fusion in FUSIONS}
    prompts: dict[str, dict[str, int]] = {fusion: {} for fusion in FUSIONS}
    for fusion, (_, processor) in built.items():
        words = processor.tokenizer.tokenize("Human: " + PROMPT + "\nAssistant:\n")
        for scenario in SCENARIOS:
            prompts[fusion][scenario] = encode(processor, scenario, prior)["input_ids"].shape[1]
            tokens[fusion][scenario] = prompts[fusion][scenario] - len(words)  # of images and prior report
    print("tokens of images and prior report (of the whole prompt) by scenario")
    for fusion in FUSIONS:
        row = ", ".join(f"{name} {tokens[fusion][name]} ({prompts[fusion][name]})" for name in SCENARIOS)
        print(f"  {fusion}: {row}")

    actions = {}
    for fusion, (model, processor) in built.items():
        lora = LoraConfig(r=32, target_modules=r".*language_model.*\.(q|v)_proj", modules_to_save=["token_fusion"])
        trained = get_peft_model(model, lora)
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-4)
        for scenario in ("sn", "mw"):
            asked = encode(processor, scenario, prior)
            answered = encode(processor, scenario, prior, " ".join(texts[20:23]))
            labels = answered["input_ids"].clone()
            labels[:, : asked["input_ids"].shape[1]] = -100

            def prefill(model=trained, inputs=asked) -> None:
                with torch.no_grad():
                    model.eval()(**inputs, use_cache=True, logits_to_keep=1)

            def step(model=trained, inputs=answered, labels=labels, optimizer=optimizer) -> None:
                model.train()(**inputs, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            actions[fusion, scenario, "prefill"], actions[fusion, scenario, "training step"] = prefill, step

    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in actions}
    for action in actions.values():
        action()  # warms up
    for number in range(ROUNDS):
        for key in list(actions)[:: 1 if number % 2 == 0 else -1]:
            times[key].append(seconds(actions[key]))

    fewer = 1 - tokens["atf"]["mw"] / tokens["interleaved"]["mw"]
    checks = [
        {"name": "fewer image and prior tokens (mw)", "value": fewer, "bar": f">= {FEWER}", "holds": fewer >= FEWER},
        {
            "name": "different token numbers of ATF in the four scenarios",
            "value": len(set(tokens["atf"].values())),
            "bar": "1",
            "holds": len(set(tokens["atf"].values())) == 1,
        },
    ]
    ratios = {}
    for scenario in ("mw", "sn"):
        for what in ("prefill", "training step"):
            pair = [times[fusion, scenario, what] for fusion in FUSIONS]
            medians = [statistics.median(values) for values in pair]
            of_rounds = np.divide(*pair)
            resampled = np.median(np.random.default_rng(0).choice(of_rounds, (2000, ROUNDS)), axis=1)
            low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
            ratios[f"{scenario} {what}"] = {
                "median_seconds": dict(zip(FUSIONS, medians, strict=True)),
                "ratio": float(np.median(of_rounds)),
                "interval": [low, high],
            }
            named = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in zip(FUSIONS, medians, strict=True))
            print(
                f"{scenario} {what}: {named}; ratio {np.median(of_rounds):.2f}, 95 % interval {low:.2f} to {high:.2f}"
            )
            if scenario == "mw":
                value = ratios[f"{scenario} {what}"]["ratio"]
                checks.append(
                    {"name": f"{what}, ATF / interleaved (mw)", "value": value, "bar": "< 1", "holds": value < 1}
                )
    report("outputs/bench/atf_cost", {"tokens": tokens, "prompt_tokens": prompts, "times": ratios}, checks)


if __name__ == "__main__":
    run(main)
