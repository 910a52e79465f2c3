"""Configuration of RadGraph: its encoder's, the sizes of DyGIE++'s span and pair scorers, and the labels."""

from typing import ClassVar

from transformers import AutoConfig, BertConfig, PreTrainedConfig

ENTITIES = ("Observation::definitely present", "Anatomy::definitely present")
ENTITIES += ("Observation::definitely absent", "Observation::uncertain")


class RadGraphConfig(PreTrainedConfig):
    """Defaults are DyGIE++'s training template, which RadGraph keeps, with RadGraph-XL's labels.

    `encoder_config`: any encoder's configuration or its dict (default: BERT-base, uncased). `entity_labels` and
    `relation_labels`: the classes after the null class, in the order of the scorers' outputs. `max_span_width`: words
    of the longest span. `feature_size`: of the embedding of a span's width. `feedforward_sizes`: of the hidden layers
    of each scorer. `spans_per_word`: of a report of n words, the ceil(n * spans_per_word) best spans may be ends of
    relations. `segment_length`: tokens of a segment with special tokens; longer reports have several. `cleaning`: how
    a report becomes words, "radgraph" or "radgraph-xl" (the parser's `split_words`).
    """

    model_type = "radgraph"
    sub_configs: ClassVar = {"encoder_config": AutoConfig}

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict | None = None,
        entity_labels: tuple[str, ...] | list[str] = ENTITIES,
        relation_labels: tuple[str, ...] | list[str] = ("modify", "located_at", "suggestive_of"),
        max_span_width: int = 8,
        feature_size: int = 20,
        feedforward_sizes: tuple[int, ...] | list[int] = (150, 150),
        spans_per_word: float = 0.5,
        segment_length: int = 512,
        cleaning: str = "radgraph-xl",
        **kwargs,
    ):
        if isinstance(encoder_config, dict):
            values = dict(encoder_config)
            encoder_config = AutoConfig.for_model(values.pop("model_type"), **values)
        self.encoder_config = encoder_config or BertConfig()
        self.encoder_config.name_or_path = ""  # else the folder that it was read from would be saved
        self.entity_labels, self.relation_labels = list(entity_labels), list(relation_labels)
        self.max_span_width, self.feature_size = max_span_width, feature_size
        self.feedforward_sizes = list(feedforward_sizes)
        self.spans_per_word, self.segment_length, self.cleaning = spans_per_word, segment_length, cleaning
        super().__init__(**kwargs)


RadGraphConfig.register_for_auto_class()
