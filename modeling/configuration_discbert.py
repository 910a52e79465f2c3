"""Configuration of DiscBERT: a BERT's own, since its four heads are always the same."""

from transformers import BertConfig


class DiscBertConfig(BertConfig):
    """A BertConfig under the model type `discbert`; its defaults are BERT-base's, uncased.

    `hidden_dropout_prob` is also the dropout before the heads, 0.1 as in LLM-RG4's published code.
    """

    model_type = "discbert"


DiscBertConfig.register_for_auto_class()
