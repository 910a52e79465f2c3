"""What a tiny LLM-RG4 or LM-RRG knows before its first stage, as the real parts do: to see, and to write reports."""

import time
from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling import (
    CheXbertModel,
    LLMRG4Config,
    LLMRG4ForConditionalGeneration,
    LLMRG4Processor,
    LMRRGForConditionalGeneration,
    LMRRGProcessor,
)
from modeling.processing_llmrg4 import IMAGE_TOKEN, PRIOR_END, PRIOR_START
from recipes.data.samples import fill_prompt
from recipes.evaluation.generation import image_counts
from recipes.files import InputError
from rewards.labels import FINDINGS


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
    renewed = LLMRG4ForConditionalGeneration(LLMRG4Config.from_dict({**model.config.to_dict(), **changed}))
    renewed.generation_config = model.generation_config
    weights = {name: value for name, value in reader.bert.state_dict().items() if f"layer.{layers}." not in name}
    renewed.model.prior_encoder.load_state_dict(weights)
    return renewed, processor


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
    Then the encoder is frozen, and fusion and decoder write the report as `prompt` asks (`fusion: interleaved`), while
    one head goes on, so that the fusion's tokens keep the findings which the decoder has not learned to tell yet: from
    the frontal image, the lateral one or both, in turn by pairs of studies, and from the prior report, where there is
    one, as the decoder's own text. What ATF needs for lateral images and prior reports stays untrained.
    """
    with torch.no_grad():  # a perceiver learns in few steps where to look if places differ and attention is sharp
        nn.init.normal_(model.model.vision_encoder.embeddings.position_embeddings, std=0.5)
        nn.init.normal_(model.model.token_fusion.queries)
        for layer in model.model.token_fusion.frontal_perceiver.layers:
            layer.attention.in_proj_weight[: -layer.attention.embed_dim] *= 2  # of queries and keys
    counts, pixels, filled = image_counts(rows), None, 0
    for batch in rows.select_columns("images").iter(64):
        images = [image for study in batch["images"] for image in study]
        values = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        if pixels is None:
            pixels = values.new_empty(sum(counts), *values.shape[1:])  # a list of batches would be held twice
        pixels[filled : filled + len(values)] = values
        filled += len(values)
    targets = presence(rows).repeat_interleave(torch.tensor(counts), dim=0)
    encoder = model.model.vision_encoder
    patches = (pixels.shape[-1] // encoder.config.patch_size) ** 2
    reader = model.model.token_fusion.requires_grad_(True)
    by_place = nn.Linear(patches * encoder.config.hidden_size, len(FINDINGS))
    by_reader = nn.Linear(model.config.text_config.hidden_size, len(FINDINGS))  # of the mean token: easy to attend to

    def encode(images: torch.Tensor | slice) -> torch.Tensor:
        return encoder(pixels[images]).last_hidden_state[:, -patches:]

    def see(images: torch.Tensor) -> torch.Tensor:
        features = encode(images)
        return findings_loss(targets[images], by_place(features.flatten(1)), by_reader(reader(features).mean(1)))

    encoder.requires_grad_(True)
    trained = [*encoder.parameters(), *by_place.parameters(), *reader.parameters(), *by_reader.parameters()]
    train_part("image encoder", see, trained, len(pixels), steps, batch_size)
    model.train(model.training)  # freezes the encoders again
    with torch.no_grad():
        features = torch.cat([encode(slice(i, i + 64)) for i in range(0, len(pixels), 64)])

    places, pairs, first = [], [], 0  # of the images that a study is described from, and what is asked and answered
    for number, (row, count) in enumerate(zip(rows.remove_columns("images"), counts, strict=True)):
        views = [[0], [0, 1], [1], [0, 1]][number // 2 % 4]
        places.append([first + view for view in views if view < count] or [first])
        pairs.append((fill_prompt(prompt, row), row["report"]))
        first += count
    encoded, labels = encode_answers(processor, pairs, [len(images) for images in places])

    def write(studies: torch.Tensor) -> torch.Tensor:
        length = int(encoded["attention_mask"][studies].sum(1).max())
        inputs = {key: value[studies, :length] for key, value in encoded.items()}
        images = [place for study in studies.tolist() for place in places[study]]
        tokens = reader(features[images])
        findings = findings_loss(targets[images], by_reader(tokens.mean(1)))
        outputs = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
        return model(**inputs, labels=labels[studies, :length], mm_encoder_outputs=outputs).loss + findings

    parts = [*reader.parameters(), *by_reader.parameters(), *model.model.language_model.parameters()]
    train_part("fusion and decoder", write, parts, len(pairs), steps, batch_size // 2)


def encode_answers(
    processor: LLMRG4Processor, pairs: Sequence[tuple[str, str]], images: Sequence[int]
) -> tuple[dict, torch.Tensor]:
    """`input_ids` and `attention_mask` of questions about so many `images` with their answers, and labels."""

    def write(parts: int, ask: bool) -> list[list[int]]:
        turns = [
            [
                {"role": "user", "content": [{"type": "image"}] * number + [{"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ][:parts]
            for (question, answer), number in zip(pairs, images, strict=True)
        ]
        texts = processor.apply_chat_template(turns, add_generation_prompt=ask, tokenize=False)
        for old, new in ((IMAGE_TOKEN, IMAGE_TOKEN * processor.num_visual_tokens), (PRIOR_START, ""), (PRIOR_END, "")):
            texts = [text.replace(old, new) for text in texts]
        return processor.tokenizer(texts, add_special_tokens=False)["input_ids"]

    questions, texts = write(1, True), write(2, False)
    encoded = processor.tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    for row, question in zip(labels, questions, strict=True):
        row[: len(question)] = -100
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}, labels


def warm_up_lmrrg(
    model: LMRRGForConditionalGeneration,
    processor: LMRRGProcessor,
    rows: Dataset,
    prompt: str,
    steps: int,
    batch_size: int = 32,
) -> None:
    """Trains the image encoder and the decoder of `model` in place, each by itself; region blocks and VTrans stay new.

    `rows`: of a built data set, best a balanced phantom. The encoder, for BiomedCLIP's, tells from frontal images
    which findings are there, through two heads that are dropped: one reads all projected patches, the other their
    mean, which F_global is. The text features of the regions stay random. The decoder, for BLIP-2's, writes the
    findings of a study from its impression, in every other study with `prompt` after it: no image.
    """
    targets = presence(rows)
    pixels = processor.image_processor([study[0] for study in rows["images"]], return_tensors="pt")["pixel_values"]
    extractor, width = model.model.visual_extractor, model.config.projection_dim
    patches = (pixels.shape[-1] // model.config.vision_config.patch_size) ** 2
    heads = nn.ModuleList([nn.Linear(patches * width, len(FINDINGS)), nn.Linear(width, len(FINDINGS))])

    def see(images: torch.Tensor) -> torch.Tensor:
        features = extractor.visual_projection(extractor.vision_model(pixels[images]).last_hidden_state)[:, 1:]
        return findings_loss(targets[images], heads[0](features.flatten(1)), heads[1](features.mean(1)))

    trained = [*extractor.vision_model.parameters(), *extractor.visual_projection.parameters(), *heads.parameters()]
    train_part("image encoder", see, trained, len(pixels), 2 * steps, batch_size)

    texts = []
    for number, row in enumerate(rows.remove_columns("images")):
        turns = [{"role": "user", "content": f"{row['impression']} {prompt if number % 2 else ''}"}]
        turns += [{"role": "assistant", "content": row["report"]}]
        texts += processor.apply_chat_template([turns], tokenize=False)
    encoded = processor(text=texts, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]

    def write(studies: torch.Tensor) -> torch.Tensor:
        length = int(mask[studies].sum(1).max())
        inputs = {"input_ids": ids[studies, :length], "attention_mask": mask[studies, :length]}
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return model(**inputs, labels=labels).loss

    decoder = [*model.model.language_model.parameters()]
    train_part("decoder", write, decoder, len(texts), steps, batch_size)


def presence(rows: Dataset) -> torch.Tensor:
    """How sure the first 13 findings are, (n, 13)."""
    value = torch.tensor([0.0, 1.0, 0.0, 0.5])  # blank, positive, negative, uncertain
    return value[torch.tensor(rows["labels"])][:, : len(FINDINGS)]


def findings_loss(targets: torch.Tensor, *logits: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of what several heads say of the findings."""
    stacked = torch.stack(logits)
    return nn.functional.binary_cross_entropy_with_logits(stacked, targets.expand_as(stacked))


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
