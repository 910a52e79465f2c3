"""CheXbert (Smit et al. 2020, section 3.2): BERT and 14 linear heads on its [CLS] state, as a transformers model.

The heads stand in the order of CheXpert's 13 findings, then No Finding. Classes 0 to 3 are blank, positive, negative
and uncertain; No Finding has the first two only.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertModel, PreTrainedModel
from transformers.models.bert.modeling_bert import BertAttention, BertLayer
from transformers.utils import ModelOutput

from .configuration_chexbert import CheXbertConfig

FINDINGS = 13
STATES = 4


@dataclass
class CheXbertOutput(ModelOutput):
    """`loss`: scalar, only where labels were given. `logits`: (n, 14, 4) float. `labels`: (n, 14) int64, their argmax.
    `embedding`: (n, hidden), the [CLS] state of the last layer, which RadCliQ compares. `hidden_states`: only with
    `output_hidden_states`, those of the embeddings and of each layer, (n, length, hidden) each, but for the last
    layer's, which is (n, 1, hidden)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    embedding: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class CLSLayer(BertLayer):
    """A last layer of BERT that computes its [CLS] state alone: the others attend in it and are read by nobody."""

    def __init__(self, config: CheXbertConfig, layer_idx: int | None = None):
        super().__init__(config, layer_idx)
        # attention from one sequence to another has the parameters of attention within one, under the same names
        self.attention = BertAttention(config, layer_idx=layer_idx, is_cross_attention=True)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args, **kwargs):
        """The [CLS] state, (n, 1, hidden), of states (n, length, hidden)."""
        attended, _ = self.attention(
            hidden_states[:, :1],
            encoder_hidden_states=hidden_states,
            encoder_attention_mask=None if attention_mask is None else attention_mask[:, :, :1],
        )
        return self.feed_forward_chunk(attended)


class CheXbertModel(PreTrainedModel):
    """CheXbert. Its parameters have the names of the published checkpoint: `bert.*`, `linear_heads.0` to `.13`."""

    config_class = CheXbertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, as Trainer's gradient accumulation must know

    def __init__(self, config: CheXbertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.bert.encoder.layer[-1] = CLSLayer(config, config.num_hidden_layers - 1)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        sizes = [STATES] * FINDINGS + [2]
        self.linear_heads = nn.ModuleList([nn.Linear(config.hidden_size, size) for size in sizes])
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> CheXbertOutput:
        """Logits, labels and embedding of n reports, and the loss where `labels` (n, 14) are given (-100: unknown).

        `input_ids`, `attention_mask` and `token_type_ids` are (n, length); `inputs_embeds` (n, length, hidden) may
        stand for `input_ids`; other arguments are BERT's. The loss is the cross-entropy averaged over the known labels
        of all heads. The two classes that No Finding lacks have the smallest logit of their type, so probability 0.
        """
        states = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        embedding = states.last_hidden_state[:, 0]
        features = self.dropout(embedding)
        logits = [head(features) for head in self.linear_heads]
        logits[-1] = nn.functional.pad(logits[-1], (0, STATES - 2), value=torch.finfo(logits[-1].dtype).min)
        logits = torch.stack(logits, dim=1)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return CheXbertOutput(loss, logits, logits.argmax(-1), embedding, states.hidden_states)


CheXbertModel.register_for_auto_class("AutoModel")
