"""What a tiny LLM-RG4 knows before its first stage, as the real one's parts do: to see, and to write reports."""

import time
from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup

from modeling import CheXbertModel, LLMRG4Config, LLMRG4ForConditionalGeneration, LLMRG4Processor
from recipes.cli import InputError
from recipes.data.samples import fill_prompt, write_reasoning
from rewards.labels import FINDINGS

NAMING = "Name the findings."


def read_priors_with(
    chexbert: str, model: LLMRG4ForConditionalGeneration, processor: LLMRG4Processor
) -> tuple[LLMRG4ForConditionalGeneration, LLMRG4Processor]:
    """A new `model`, without what was learned, whose prior reports a tiny `chexbert` reads, for CXR-BERT.

    All of its layers but the last, which computes [CLS] alone: below it the words carry what is said of a finding.
    The perceivers have no dropout, which is too much for so few features. Raises InputError on another model.
    """
    try:
        reader = CheXbertModel.from_pretrained(chexbert)
        processor.prior_tokenizer = AutoTokenizer.from_pretrained(chexbert)
    except (OSError, ValueError) as error:
        raise InputError(f"--chexbert {chexbert} cannot be loaded: {str(error).splitlines()[0]}") from error
    layers = reader.config.num_hidden_layers - 1
    prior = {**reader.config.to_dict(), "model_type": "bert", "num_hidden_layers": layers}
    changed = {"prior_config": prior, "perceiver_dropout": 0.0}
    made = LLMRG4ForConditionalGeneration(LLMRG4Config.from_dict({**model.config.to_dict(), **changed}))
    made.generation_config = model.generation_config
    weights = {name: value for name, value in reader.bert.state_dict().items() if f"layer.{layers}." not in name}
    made.model.prior_encoder.load_state_dict(weights)
    return made, processor


def warm_up_llmrg4(
    model: LLMRG4ForConditionalGeneration,
    processor: LLMRG4Processor,
    rows: Dataset,
    prompt: str,
    steps: int,
    batch_size: int = 32,
) -> None:
    """Trains the image encoder, the frontal part of the fusion and the decoder of `model` in place.

    `rows`: of a built data set, best a balanced phantom with both views. First the encoder, for RAD-DINO, and the
    fusion predict from single images of either view which findings are there, through two heads that are dropped.
    Then all three write from a frontal image the study's report as `prompt` asks or, for every other study, name its
    findings: for twice as many steps of half the batch. What lateral images and prior reports need stays untrained.
    """
    with torch.no_grad():  # a perceiver learns in few steps where to look if places differ and attention is sharp
        nn.init.normal_(model.model.vision_encoder.embeddings.position_embeddings, std=0.5)
        nn.init.normal_(model.model.token_fusion.queries)
        for layer in model.model.token_fusion.frontal_perceiver.layers:
            layer.attention.in_proj_weight[: -layer.attention.embed_dim] *= 2  # of queries and keys
    value = torch.tensor([0.0, 1.0, 0.0, 0.5])  # blank, positive, negative, uncertain
    states = value[torch.tensor(rows["labels"])][:, : len(FINDINGS)]
    images = [(image, number) for number, study in enumerate(rows["images"]) for image in study]
    pixels = processor.image_processor([image for image, _ in images], return_tensors="pt")["pixel_values"]
    targets = states[[number for _, number in images]]
    encoder = model.model.vision_encoder
    patches = (pixels.shape[-1] // encoder.config.patch_size) ** 2
    width = encoder.config.hidden_size
    by_place = nn.Linear(patches * width, len(FINDINGS))
    reader = model.model.token_fusion.requires_grad_(True)
    by_reader = nn.Linear(reader.queries.shape[0] * model.config.text_config.hidden_size, len(FINDINGS))

    def see(chosen: torch.Tensor) -> torch.Tensor:
        seen = encoder(pixels[chosen]).last_hidden_state[:, -patches:]
        logits = torch.stack([by_place(seen.flatten(1)), by_reader(reader(seen).flatten(1))])
        return nn.functional.binary_cross_entropy_with_logits(logits, targets[chosen].expand_as(logits))

    encoder.requires_grad_(True)
    trained = [*encoder.parameters(), *by_place.parameters(), *reader.parameters(), *by_reader.parameters()]
    train_part("image encoder", see, trained, len(images), steps, batch_size)

    texts = []
    for number, row in enumerate(rows.remove_columns("images")):
        asked, answer = fill_prompt(prompt, {**row, "prior_report": None}), row["report"]
        if number % 2:
            asked, answer = NAMING, write_reasoning(row["labels"])
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
        turns += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        texts += processor.apply_chat_template([turns], tokenize=False)
    encoded = processor(
        images=[[study[0]] for study in rows["images"]], text=texts, padding=True, padding_side="right",
        return_tensors="pt",
    )  # fmt: skip
    ids, mask = encoded["input_ids"], encoded["attention_mask"]

    def write(chosen: torch.Tensor) -> torch.Tensor:
        length = int(mask[chosen].sum(1).max())
        own = {"input_ids": ids[chosen, :length], "attention_mask": mask[chosen, :length]}
        own |= {name: encoded[name][chosen] for name in ("pixel_values", "view_mask")}
        wrong = (own["attention_mask"] == 0) | (own["input_ids"] == processor.image_token_id)
        return model(**own, labels=own["input_ids"].masked_fill(wrong, -100)).loss

    parts = [*encoder.parameters(), *reader.parameters(), *model.model.language_model.parameters()]
    train_part("all together", write, parts, len(texts), 2 * steps, batch_size // 2)
    model.train(model.training)  # freezes the encoders again


def train_part(
    name: str, loss_of: Callable, parameters: Sequence[nn.Parameter], rows: int, steps: int, batch_size: int
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    losses, started = [], time.monotonic()
    for step in range(1, steps + 1):
        loss = loss_of(torch.randint(rows, (batch_size,)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"{name} step {step}/{steps}: loss {sum(losses[-50:]) / 50:.3f}, {seconds:.0f} s", flush=True)
