"""Miniatures of all checkpoints that recipes/certify.py reads, in folders called as on the Hub, and what the original
implementations, where their packages are installed, compute with them instead of the published values."""

import importlib
import importlib.util
import json
import tarfile
from functools import partial
from pathlib import Path
from unittest import mock

import radgraph_models
import replicas
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel

from recipes.certificate.laboratory import PUBLISHED, Absent, Lab
from recipes.data.pickles import read_pickle

ORACLES = "is not installed: make .venv/oracles"
ROWS = 1200  # of Qwen's embeddings
CHANGES = {  # in runs on miniatures: small images, short completions, a reward that random words can earn
    **{"pixels": 112, "min_pixels": 4 * 28 * 28, "max_pixels": 16 * 28 * 28},
    "grpo": {"max_completion_length": 16, "rewards": ["rouge"], "reward_weights": [1.0]},
}
PLACES = {"llmrg4": "authors/LLM-RG4/checkpoint.pth", "discbert": "authors/DiscBERT/checkpoint.pth"}


def build(shelf: Path) -> None:
    """Writes the miniatures into `shelf`."""
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    texts = [*replicas.SENTENCES, *published["radgraph"]["references"], *published["radgraph-xl"]["hypotheses"]]
    replicas.huatuo(shelf / "FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL", texts=texts, vocab_size=ROWS)
    replicas.rad_dino(shelf / "microsoft/rad-dino", image_size=56)
    replicas.cxr_bert(shelf / "microsoft/BiomedVLP-CXR-BERT-specialized", texts)
    replicas.vicuna(shelf / "lmsys/vicuna-7b-v1.5", texts, vocab_size=ROWS)
    replicas.biomedbert(shelf / "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", texts)
    write_biomedclip(shelf, texts)
    replicas.blip2_opt(shelf / "Salesforce/blip2-opt-2.7b", texts=texts, fewer=50304 - ROWS)
    replicas.bert_base_uncased(shelf / "google-bert/bert-base-uncased", texts)
    replicas.crepe(shelf / "gihuncho/crepe-biomedbert", texts)
    scorers = shelf / "StanfordAIMI/RRG_scorers"
    replicas.chexbert_pth(scorers)
    for name, (encoder, _) in replicas.RADGRAPH_ENCODERS.items():
        replicas.radgraph_archive(scorers, name, texts)
        (shelf / encoder).parent.mkdir(exist_ok=True)
        (scorers / "encoder").rename(shelf / encoder)
    replicas.llmrg4_pth((shelf / PLACES["llmrg4"]).parent, visual_tokens=8)
    replicas.discbert_pth((shelf / PLACES["discbert"]).parent)


def write_biomedclip(shelf: Path, texts: list[str]) -> None:
    """BiomedCLIP's folder with a ViT that timm has by a name: open_clip then builds the original from its config."""
    folder = replicas.biomedclip(shelf / "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", texts)
    if importlib.util.find_spec("open_clip") is None:
        return
    from open_clip.model import CustomTextCLIP

    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    model = config["model_cfg"]
    model["vision_cfg"]["timm_model_name"] = "vit_tiny_patch16_224"
    text = str(shelf / model["text_cfg"]["hf_model_name"])
    here = model["text_cfg"] | {"hf_model_name": text, "hf_tokenizer_name": text, "hf_model_pretrained": False}
    torch.manual_seed(0)
    original = CustomTextCLIP(**model | {"text_cfg": here})
    for parameter in original.parameters():  # large enough that every weight shows, biases and norms too
        parameter.data += 0.05 * torch.randn_like(parameter)
    file.write_text(json.dumps(config))
    torch.save(original.state_dict(), folder / "open_clip_pytorch_model.bin")


def expect_chexbert(lab: Lab, published: dict) -> dict:
    """f1chexbert's class, which is CheXbert's own, on the same texts."""
    missing = [name for name in ("f1chexbert", "appdirs") if importlib.util.find_spec(name) is None]
    if missing:
        raise Absent(f"{missing[0]}, the original, {ORACLES}")
    package = importlib.import_module("f1chexbert.f1chexbert")
    folder = lab.checkpoint("bert")
    with mock.patch.object(
        package.BertModel, "from_pretrained", lambda path: BertModel(BertConfig.from_pretrained(folder))
    ):
        original = package.bert_labeler(pretrain_path=folder)
    weights = read_pickle(lab.checkpoint("chexbert"))["model_state_dict"]
    original.load_state_dict({name.removeprefix("module."): tensor for name, tensor in weights.items()})
    original.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = []
    for text in published["texts"]:
        ids = tokenizer(" ".join(text.split()), return_tensors="pt")["input_ids"]
        mask = package.generate_attention_masks(ids, [ids.shape[1]], "cpu")
        with torch.no_grad():
            labels.append([head.argmax(1).item() for head in original(ids, mask)])
    return published | {"labels": labels}


def expect_radgraph(lab: Lab, published: dict, name: str = "radgraph") -> dict:
    """radeval's copy of the radgraph package: its graphs, and its F1 of the published pairs."""
    core = radgraph_models.original()
    if core is None:
        raise Absent(f"radeval, which has the original, {ORACLES}")
    folder = lab.work / "original" / name
    if not folder.exists():
        with tarfile.open(lab.checkpoint(name.replace("-", "_"))) as archive:
            archive.extractall(folder, filter="data")
    load = core.dygie.DyGIE.load_state_dict
    with (
        mock.patch.object(core.dygie.DyGIE, "load_state_dict", partial_method(load)),
        mock.patch("builtins.print"),
    ):
        original = core.RadGraph(model_type=name, model_cache_dir=str(folder.parent), cuda=-1)

    def graphs_of(texts: list[str]) -> list[dict]:
        with torch.no_grad():
            graphs = original(texts)
        return [graphs[str(number)] for number in range(len(texts))]

    texts = list(published["graphs"])
    values = {"graphs": {text: graph["entities"] for text, graph in zip(texts, graphs_of(texts), strict=True)}}
    if "hypotheses" in published:
        pairs = list(zip(*(graphs_of(published[side]) for side in ("hypotheses", "references")), strict=True))
        scores = [core.compute_reward(*pair, "all") for pair in pairs]
        columns = dict(zip(("simple", "partial", "complete"), map(list, zip(*scores, strict=True)), strict=True))
        values |= {"scores": columns, "means": {level: sum(row) / len(row) for level, row in columns.items()}}
    return published | values


def partial_method(load):
    """A miniature's archive has no weights of coreference and events, which RadGraph does not run."""

    def load_most(self, weights, strict=True):
        missing, unknown = load(self, weights, strict=False)
        assert not unknown and all(name.startswith(("_coref.", "_events.")) or ".pooler." in name for name in missing)

    return load_most


expect_radgraph_xl = partial(expect_radgraph, name="radgraph-xl")
expect_modern_radgraph_xl = partial(expect_radgraph, name="modern-radgraph-xl")


def expect_crepe(lab: Lab, published: dict) -> dict:
    """transformers' own BertModel with the file's six heads, each pair padded to 512 tokens as the authors' code does.

    Their package is on no registry, and under transformers 5 its class does not load a folder.
    """
    folder = Path(lab.checkpoint("crepe"))
    weights = load_file(folder / "model.safetensors")
    bert = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=True).eval()
    bert.load_state_dict({name[5:]: tensor for name, tensor in weights.items() if name.startswith("bert.")})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    counts = []
    for pair in zip(published["references"], published["candidates"], strict=True):
        inputs = tokenizer(*pair, padding="max_length", truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            pooled = bert(**inputs).pooler_output[0]
        heads = [(weights[f"error_regressors.{i}.weight"][0], weights[f"error_regressors.{i}.bias"]) for i in range(6)]
        counts.append([max(0.0, (weight @ pooled + bias).item()) for weight, bias in heads])
    return published | {"counts": counts}


def expect_radcliq(lab: Lab, published: dict) -> dict:
    """RadCliQ is a formula without weights: the published rows."""
    return published
