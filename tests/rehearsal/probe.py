"""Whether a trained model, saved and loaded by another process, gives the logits that it had when training ended.

    python tests/rehearsal/probe.py train FILE SCRIPT ARGUMENTS...    # a recipe, and FILE at its end
    python -I tests/rehearsal/probe.py load FOLDER FILE               # FOLDER's logits against FILE's

The second one has not this project: it takes the code that was saved with the model. Both compute in float32, whatever
the weights were trained in, on two prompts of unequal length with X-rays of unequal shape. Prints one line of JSON.
"""

import json
import runpy
import sys

import numpy as np
import torch
import transformers
from PIL import Image


class Absent:
    """An editable install would find the project from anywhere."""

    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("modeling", "rewards", "recipes"):
            raise ModuleNotFoundError(name)


@torch.no_grad()
def compute_logits(model: torch.nn.Module, processor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens (2, length) of two prompts, and the logits (2, length, vocabulary) of `model` at real tokens, else 0.

    Where the processor takes several images and a prior report, the second prompt has them.
    """
    rng = np.random.default_rng(0)
    shapes = (
        [[(420, 512)], [(512, 300), (333, 512)]]
        if getattr(processor, "fusion", "") == "atf"
        else [[(420, 512)], [(512, 300)]]
    )
    texts = ["Write the report.", "Write the findings and the impression of the report on this chest X-ray."]
    if getattr(processor, "fusion", "") == "atf":
        texts[1] = f"<prior_report>There is a small left pleural effusion.</prior_report>\n{texts[1]}"
    images = [
        [Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).convert("RGB") for shape in study]
        for study in shapes
    ]
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}] * len(study) + [{"type": "text", "text": text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for study, text in zip(images, texts, strict=True)
    ]
    inputs = processor(images=images, text=prompts, padding=True, padding_side="left", return_tensors="pt")
    tensors = [*model.parameters(), *model.buffers()]
    dtypes = [tensor.dtype for tensor in tensors]
    logits = model.float().eval()(**inputs).logits
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        tensor.data = tensor.data.to(dtype)  # what bfloat16 held it holds again
    return inputs["input_ids"], logits * inputs["attention_mask"][..., None]


def train(file: str, script: str) -> None:
    """Runs a recipe; when its trainer has trained, writes tokens and logits to `file`."""
    original = transformers.Trainer.train

    def train_and_write(self, *arguments, **options):
        result = original(self, *arguments, **options)
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        torch.save(compute_logits(model, self.processing_class), file)
        return result

    transformers.Trainer.train = train_and_write
    runpy.run_path(script, run_name="__main__")


def load(folder: str, file: str) -> None:
    """Prints how far the loaded model's logits are from those in `file`, and how far those spread."""
    sys.meta_path.insert(0, Absent)
    options = {"trust_remote_code": True, "dtype": torch.float32}
    model, loaded = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, **options
    )
    if misfits := {name: sorted(keys) for name, keys in loaded.items() if keys and name.endswith("_keys")}:
        raise SystemExit(f"{folder}: {misfits}")
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    ids, logits = compute_logits(model, processor)
    trained_ids, trained_logits = torch.load(file, weights_only=True)
    if not torch.equal(ids, trained_ids):
        raise SystemExit(f"{folder}: its processor makes other tokens than the one that it was trained with")
    print(
        json.dumps(
            {
                "difference": float((logits - trained_logits).abs().max()),
                "deviation": float(trained_logits.std()),
                "dtype": str(model.dtype).removeprefix("torch."),
            }
        )
    )


if __name__ == "__main__":
    action, *words = sys.argv[1:]
    if action == "train":
        file, script = words[:2]
        sys.argv = words[1:]
        train(file, script)
    else:
        load(*words)
