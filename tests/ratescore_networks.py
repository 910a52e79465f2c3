"""Tiny networks in the architectures of RaTEScore's published two: a DeBERTa that classifies tokens, and a BERT."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, DebertaV2Config, DebertaV2ForTokenClassification

from modeling.tiny import build_chexbert
from rewards.ratescore import TYPES

LABELS = ["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")]


def save_networks(folder: Path, texts: Sequence[str]) -> None:
    """Writes `folder`/ner and `folder`/encoder with tokenizers made of `texts`; random, entities in most sentences."""
    _, tokenizer = build_chexbert(list(texts) * 5, vocab_size=150, hidden_size=32, heads=4)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    config = DebertaV2Config(
        **sizes, hidden_size=32, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16,
        type_vocab_size=0, pad_token_id=0, id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )  # fmt: skip
    for name, network in (
        ("ner", DebertaV2ForTokenClassification(config)),
        ("encoder", BertModel(BertConfig(**sizes, hidden_size=24))),
    ):
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        if name == "ner":
            network.classifier.weight.data *= 5  # so that labels differ from token to token
            network.classifier.bias.data[1::2] += 8  # and entities begin
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
