"""Loads a trained folder as somebody does who has never seen this project; started with `python -I`.

    python -I tests/rehearsal/load.py FOLDER CLASS [trust]

CLASS is AutoModelForImageTextToText or AutoModel, `trust` passes trust_remote_code. Prints one line of JSON: the
parameters, and how much the logits of two X-rays differ.
"""

import json
import sys

import numpy as np
import torch


class Absent:
    """An editable install would find the project from anywhere."""

    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("modeling", "rewards", "recipes"):
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Absent)

import transformers  # noqa: E402
from PIL import Image  # noqa: E402


def main(folder: str, kind: str, trust: bool) -> None:
    """Loads, and raises SystemExit where a weight is missing or the outputs are not what they should be."""
    options = {"trust_remote_code": True} if trust else {}
    model, loaded = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
    if wrong := {name: sorted(keys) for name, keys in loaded.items() if keys and name.endswith("_keys")}:
        raise SystemExit(f"{folder}: {wrong}")
    model.eval()
    figures = {"class": type(model).__name__, "parameters": sum(each.numel() for each in model.parameters())}
    if kind == "AutoModel":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        inputs = tokenizer(["No effusion.", "There is a small pleural effusion."], padding=True, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        tensors = [each for each in outputs.values() if torch.is_tensor(each)] or list(outputs.to_tuple())
        difference = max(float((each[0].float() - each[1].float()).abs().max()) for each in tensors)
    else:
        processor = transformers.AutoProcessor.from_pretrained(folder, **options)
        rng = np.random.default_rng(0)
        content = [{"type": "image"}, {"type": "text", "text": "Write the report."}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        logits = []
        for _ in range(2):
            image = Image.fromarray(rng.integers(0, 255, (420, 512), dtype=np.uint8)).convert("RGB")
            inputs = processor(images=[[image]], text=[text], return_tensors="pt").to(model.device)
            with torch.no_grad():
                logits.append(model(**inputs).logits.float()[0, -1])
        difference = float((logits[0] - logits[1]).abs().max())
    if not 0 < difference < float("inf"):
        raise SystemExit(f"{folder}: two inputs give outputs that differ by {difference}")
    print(json.dumps(figures | {"difference": difference}))


main(sys.argv[1], sys.argv[2], "trust" in sys.argv[3:])
