"""What a tiny LM-RRG knows before its first stage, as the real one's parts do: to see, and to write reports."""

import torch
from datasets import Dataset
from torch import nn

from modeling import LMRRGForConditionalGeneration, LMRRGProcessor
from recipes.demos.warm_up import train_part
from rewards.labels import FINDINGS


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
    value = torch.tensor([0.0, 1.0, 0.0, 0.5])  # blank, positive, negative, uncertain
    targets = value[torch.tensor(rows["labels"])][:, : len(FINDINGS)]
    pixels = processor.image_processor([study[0] for study in rows["images"]], return_tensors="pt")["pixel_values"]
    extractor, width = model.model.visual_extractor, model.config.projection_dim
    patches = (pixels.shape[-1] // model.config.vision_config.patch_size) ** 2
    heads = nn.ModuleList([nn.Linear(patches * width, len(FINDINGS)), nn.Linear(width, len(FINDINGS))])

    def see(chosen: torch.Tensor) -> torch.Tensor:
        seen = extractor.visual_projection(extractor.vision_model(pixels[chosen]).last_hidden_state)[:, 1:]
        logits = torch.stack([heads[0](seen.flatten(1)), heads[1](seen.mean(1))])
        return nn.functional.binary_cross_entropy_with_logits(logits, targets[chosen].expand_as(logits))

    trained = [*extractor.vision_model.parameters(), *extractor.visual_projection.parameters(), *heads.parameters()]
    train_part("image encoder", see, trained, len(pixels), 2 * steps, batch_size)

    texts = []
    for number, row in enumerate(rows.remove_columns("images")):
        turns = [{"role": "user", "content": f"{row['impression']} {prompt if number % 2 else ''}"}]
        turns += [{"role": "assistant", "content": row["report"]}]
        texts += processor.apply_chat_template([turns], tokenize=False)
    encoded = processor(text=texts, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]

    def write(chosen: torch.Tensor) -> torch.Tensor:
        length = int(mask[chosen].sum(1).max())
        own = {"input_ids": ids[chosen, :length], "attention_mask": mask[chosen, :length]}
        return model(**own, labels=own["input_ids"].masked_fill(own["attention_mask"] == 0, -100)).loss

    decoder = [*model.model.language_model.parameters()]
    train_part("decoder", write, decoder, len(texts), steps, batch_size)
