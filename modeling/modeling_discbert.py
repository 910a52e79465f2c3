"""DiscBERT (LLM-RG4, section "Dataset generation pipeline"): BERT and four binary heads on its [CLS] state.

The heads say whether a report holds a prior comparison, a prior procedure, a view and a communication, in this order.
The paper leaves the architecture to its supplement; four 2-way softmax heads on [CLS] and the mean of their four
cross-entropies are what its published code has (RG-010).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertModel, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_discbert import DiscBertConfig

HEADS = 4


@dataclass
class DiscBertOutput(ModelOutput):
    """`loss`: scalar, only where labels were given. `logits`: (n, 4, 2) float, of absent and present. `labels`: (n, 4)
    int64, their argmax. `hidden_states`: only with `output_hidden_states`, (n, length, hidden) each."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class DiscBertModel(PreTrainedModel):
    """DiscBERT. Its parameters are `bert.*` and `heads.0` to `heads.3`."""

    config_class = DiscBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, as Trainer's gradient accumulation must know

    def __init__(self, config: DiscBertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.heads = nn.ModuleList([nn.Linear(config.hidden_size, 2) for _ in range(HEADS)])
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> DiscBertOutput:
        """Logits and labels of n reports, and the loss where `labels` (n, 4) are given: 0, 1, or -100 for unknown.

        `input_ids`, `attention_mask` and `token_type_ids` are (n, length); other arguments are BERT's.
        """
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, **kwargs)
        features = self.dropout(states.last_hidden_state[:, 0])
        logits = torch.stack([head(features) for head in self.heads], dim=1)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return DiscBertOutput(loss, logits, logits.argmax(-1), states.hidden_states)


DiscBertModel.register_for_auto_class("AutoModel")
