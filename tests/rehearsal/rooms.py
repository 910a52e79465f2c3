"""The folders that a rehearsal's commands run in: replicas by their Hub names, raw data, one room for each system."""

from collections.abc import Iterable
from pathlib import Path

import replicas
from transformers import BertConfig

from modeling.tiny import build_chexbert

from .raw_data import write_labelled_csv, write_mimic, write_openi, write_reports

TEXTS = ["The heart is normal in size.", "No pleural effusion or pneumothorax.", "The lungs are clear."]
HUATUO = "FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL"


def build_replicas(shelf: Path) -> None:
    import torch
    from transformers import BertModel

    (shelf / "StanfordAIMI/RRG_scorers").mkdir(parents=True)
    replicas.huatuo(shelf / HUATUO, vocab_size=4096)
    model, tokenizer = build_chexbert(TEXTS * 3, vocab_size=80, hidden_size=16, heads=4)
    config = BertConfig(**{key: value for key, value in model.config.to_dict().items() if key != "model_type"})
    config.save_pretrained(shelf / "google-bert/bert-base-uncased")
    tokenizer.save_pretrained(shelf / "google-bert/bert-base-uncased")
    weights = model.state_dict()
    pooler = {f"bert.{name}": tensor for name, tensor in BertModel(config).state_dict().items() if "pooler" in name}
    content = {f"module.{name}": tensor for name, tensor in {**weights, **pooler}.items()}
    torch.save({"epoch": 3, "model_state_dict": content}, shelf / "StanfordAIMI/RRG_scorers/chexbert.pth")


def prepare_rooms(folder: Path, rooms: Iterable[str], studies: int) -> None:
    """Builds what the rooms need once, on a shelf beside them, and links it into each."""
    shelf = folder / "shelf"
    shelf.mkdir(parents=True)
    build_replicas(shelf)
    write_openi(shelf / "images", studies)
    write_mimic(shelf / "physionet.org/files")
    write_labelled_csv(shelf / "labelled_reports.csv", 200)
    write_reports(shelf / "reports.jsonl", 8)
    for room in rooms:
        (folder / room).mkdir()
        for entry in shelf.iterdir():
            (folder / room / entry.name).symlink_to(entry)
