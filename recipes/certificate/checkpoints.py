"""Rows on published checkpoints: through their converters, against published values or another implementation."""

import importlib.util
import shutil

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from modeling import DiscBertModel
from recipes import (
    convert_biomedclip,
    convert_chexbert,
    convert_crepe,
    convert_discbert,
    convert_llmrg4,
    convert_radgraph,
)
from recipes.certificate.laboratory import Absent, Bar, Lab
from recipes.data.pickles import read_published
from rewards.chexbert import CheXbertLabeler
from rewards.crepe import Crepe
from rewards.radcliq import radcliq_score
from rewards.radgraph import radgraph_f1
from rewards.radgraph_parser import RadGraphParser

SENTENCES = (
    "Compared with the prior examination, the effusion has increased.",
    "A chest tube has been removed.",
    "PA and lateral views of the chest.",
    "These findings were discussed with the physician by telephone.",
    "The heart is normal in size.",
)
OPEN_CLIP = "open_clip is not installed: make setup brings it (open_clip_torch, in the extra test)"


def count(equal: int, number: int, noun: str) -> tuple[str, Bar]:
    """A value and a bar: how many of `number` are equal, and that all of them should be."""
    return f"{equal} of {number} {noun}", Bar("=", f"{number} of {number} {noun}")


def chexbert(lab: Lab) -> tuple[str, Bar]:
    """States of CheXbert's four sample reports."""
    checkpoint, bert = lab.checkpoint("chexbert"), lab.checkpoint("bert")
    expected = lab.expected("chexbert")
    folder = lab.convert(convert_chexbert, checkpoint=checkpoint, tokenizer=bert)
    labels = CheXbertLabeler(folder, lab.device)(expected["texts"])
    return count(int((labels == np.array(expected["labels"])).sum()), labels.size, "labels")


def crepe(lab: Lab) -> tuple[float, Bar]:
    """The largest difference of CREPE's counts of errors to those that its authors' example prints."""
    expected = lab.expected("crepe")
    folder = lab.convert(convert_crepe, checkpoint=lab.checkpoint("crepe"))
    counts = Crepe(folder, lab.device).counts(expected["candidates"], expected["references"])
    return float(np.abs(counts - np.array(expected["counts"])).max()), Bar("<=", 1e-3)


def radgraph(lab: Lab, name: str = "radgraph") -> tuple[str, Bar]:
    """F1 of pairs of reports at three levels, and graphs, as the radgraph package publishes them for this archive."""
    archive = lab.checkpoint(name.replace("-", "_"))
    expected = lab.expected(name)
    parser = RadGraphParser(lab.convert(convert_radgraph, archive=archive), lab.device)
    graphs = parser(list(expected["graphs"]))
    checks = [
        graph["entities"] == entities for graph, entities in zip(graphs, expected["graphs"].values(), strict=True)
    ]
    pairs = [parser(expected.get(side, [])) for side in ("hypotheses", "references")]
    for level, values in expected.get("scores", {}).items():
        checks += np.isclose(radgraph_f1(*pairs, level), values, rtol=0, atol=1e-6).tolist()
    for level, mean in expected.get("means", {}).items():
        checks.append(bool(np.isclose(np.mean(radgraph_f1(*pairs, level)), mean, rtol=0, atol=1e-6)))
    return count(sum(checks), len(checks), "scores and graphs")


def radgraph_xl(lab: Lab) -> tuple[str, Bar]:
    return radgraph(lab, "radgraph-xl")


def modern_radgraph_xl(lab: Lab) -> tuple[str, Bar]:
    return radgraph(lab, "modern-radgraph-xl")


def radcliq(lab: Lab) -> tuple[float, Bar]:
    """The largest difference of RadCliQ, v0 and v1, on rows of ReXrank's boards; their parts have three digits."""
    rows = np.array([row[2:] for row in lab.expected("radcliq")["rows"]], dtype=float).T
    differences = [
        abs(radcliq_score(*rows[:4], version) - column) for version, column in zip(("v0", "v1"), rows[4:], strict=True)
    ]
    return float(np.max(differences)), Bar("<=", 0.003)


def biomedclip(lab: Lab) -> tuple[float, Bar]:
    """The largest difference of features of two images and two texts to open_clip's, by the largest feature."""
    if importlib.util.find_spec("open_clip") is None:
        raise Absent(OPEN_CLIP)
    from open_clip.model import CustomTextCLIP

    checkpoint = lab.checkpoint("biomedclip")
    folder = lab.convert(convert_biomedclip, checkpoint=checkpoint)
    config, weights = convert_biomedclip.read_checkpoint(checkpoint)
    parts = config["model_cfg"] | {"text_cfg": config["model_cfg"]["text_cfg"] | {"hf_model_pretrained": False}}
    original = CustomTextCLIP(**parts).eval()
    original.load_state_dict(weights, strict=False)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    encoded = tokenizer(list(SENTENCES[:2]), padding=True, return_tensors="pt")
    with torch.no_grad():
        pairs = [
            (model.get_image_features(pixels).pooler_output, original.encode_image(pixels)),
            (
                model.get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output,
                original.encode_text(encoded["input_ids"]),
            ),
        ]
    return max(gap(ours, theirs) for ours, theirs in pairs), Bar("<=", 1e-4)


def gap(values: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference of two tensors by the largest number of `reference`; NaN where one is not finite."""
    values, reference = values.float().cpu(), reference.float().cpu()
    return ((values - reference).abs().max() / reference.abs().max()).item()


def discbert(lab: Lab) -> tuple[float, Bar]:
    """The largest difference of logits to those of transformers' own BertModel with the file's four heads."""
    checkpoint, bert = lab.checkpoint("discbert"), lab.checkpoint("bert")
    model = DiscBertModel.from_pretrained(lab.convert(convert_discbert, checkpoint=checkpoint, tokenizer=bert)).eval()
    weights = {name.removeprefix("labeler."): tensor for name, tensor in read_published(checkpoint)[0].items()}
    encoder = BertModel(BertConfig.from_pretrained(bert), add_pooling_layer=False).eval()
    encoder.load_state_dict(
        {name[5:]: tensor for name, tensor in weights.items() if name.startswith("bert.")}, strict=False
    )
    inputs = AutoTokenizer.from_pretrained(bert)(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        state = encoder(**inputs).last_hidden_state[:, 0]
        heads = [
            (weights[f"{head}_heads.weight"], weights[f"{head}_heads.bias"]) for head in ("ps", "pp", "view", "comm")
        ]
        expected = torch.stack([state @ weight.T + bias for weight, bias in heads], dim=1)
        return gap(model(**inputs).logits, expected), Bar("<=", 1e-4)


def llmrg4_published(lab: Lab) -> tuple[str, Bar]:
    """How many of the file's tensors of the fusion are in the converted model, looked for by their values."""
    checkpoint = lab.checkpoint("llmrg4")
    parts = {name: lab.checkpoint(name) for name in ("vision", "text", "decoder")}
    folder = lab.convert(convert_llmrg4, checkpoint=checkpoint, dtype="bfloat16", **parts)
    converted = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            names = [name for name in content.keys() if ".token_fusion." in name]  # noqa: SIM118
            converted += [content.get_tensor(name).clone() for name in names]
    shutil.rmtree(folder)  # 14 GB
    published = [tensor for name, tensor in read_published(checkpoint)[0].items() if ".lora_" not in name]
    equal = 0
    for tensor in published:
        tensor = tensor[0] if tensor.dim() == 3 and len(tensor) == 1 else tensor
        equal += any(
            torch.equal(tensor.to(ours.dtype).reshape(ours.shape), ours)
            for ours in converted
            if tensor.numel() == ours.numel()
        )
    return count(equal, len(published), "tensors of the fusion")
