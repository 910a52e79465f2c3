"""The folders that a rehearsal's commands run in: replicas by their Hub names, raw data, one room for each system."""

from collections.abc import Iterable
from pathlib import Path

import replicas

from .raw_data import read_texts, write_labelled_csv, write_mimic, write_openi, write_reports

ROWS = 4096  # of decoders' embeddings; the published 32,000 to 152,064 take most of a step's time and 4 GB


def build_replicas(shelf: Path) -> None:
    """Every checkpoint that a YAML or a converter names, in `shelf` under its name on the Hub."""
    texts = read_texts(60)
    replicas.huatuo(shelf / "FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL", texts=texts, vocab_size=ROWS)
    replicas.qwen3_vl(shelf / "Qwen/Qwen3-VL-4B-Instruct", texts, ROWS)
    replicas.medgemma(shelf / "google/medgemma-4b-it", texts, vocab_size=2 * ROWS)  # its special ids are 6,145 apart
    replicas.rad_dino(shelf / "microsoft/rad-dino")
    replicas.cxr_bert(shelf / "microsoft/BiomedVLP-CXR-BERT-specialized", texts)
    replicas.vicuna(shelf / "lmsys/vicuna-7b-v1.5", texts, ROWS)
    replicas.biomedclip(shelf / "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", texts)
    replicas.biomedbert(shelf / "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", texts)
    replicas.blip2_opt(shelf / "Salesforce/blip2-opt-2.7b", texts=texts, fewer=50304 - ROWS)
    for name in ("google-bert/bert-base-uncased", "bert-base-uncased"):
        replicas.bert_base_uncased(shelf / name, texts)
    replicas.crepe(shelf / "gihuncho/crepe-biomedbert", texts)
    replicas.chexbert_pth(shelf / "StanfordAIMI/RRG_scorers")
    replicas.radgraph_archive(shelf / "StanfordAIMI/RRG_scorers", "radgraph", texts)
    (shelf / "StanfordAIMI/RRG_scorers/encoder").rename(shelf / replicas.RADGRAPH_ENCODERS["radgraph"][0])
    replicas.distilroberta(shelf / "distilroberta-base", texts)


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
