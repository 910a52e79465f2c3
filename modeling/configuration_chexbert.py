"""Configuration of CheXbert: a BERT's own, since the 14 heads are the same in every CheXbert."""

from transformers import BertConfig


class CheXbertConfig(BertConfig):
    """A BertConfig under the model type `chexbert`; its defaults are the published checkpoint's (BERT-base, uncased).

    `hidden_dropout_prob` is also the dropout before the heads, 0.1 as in the original.
    """

    model_type = "chexbert"


CheXbertConfig.register_for_auto_class()
