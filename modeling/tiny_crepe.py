"""A seeded, random-weight miniature of CREPE, which tests and recipes/train_crepe.py start from."""

from collections.abc import Iterable

from transformers import BertTokenizer

from .configuration_crepe import CrepeConfig
from .modeling_crepe import CrepeModel
from .tiny import build_chexbert


def build_crepe(texts: Iterable[str], seed: int = 0, **sizes) -> tuple[CrepeModel, BertTokenizer]:
    """A random-weight CREPE, and its tokenizer made from `texts`, with the encoder of `build_chexbert`.

    `sizes`: `vocab_size`, `hidden_size`, `layers` and `heads` of that function.

        model, tokenizer = build_crepe(["There is a small effusion.", "Clear lungs."], layers=2)
    """
    chexbert, tokenizer = build_chexbert(texts, seed=seed, **sizes)
    settings = chexbert.config.to_diff_dict() | {"model_type": CrepeConfig.model_type}
    model = CrepeModel(CrepeConfig.from_dict(settings))
    model.bert.load_state_dict(chexbert.bert.state_dict(), strict=False)  # all but the pooler, which CheXbert lacks
    return model, tokenizer
