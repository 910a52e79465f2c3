"""CREPE (Cho et al., EMNLP 2025): BERT reads a reference and a generated report as a pair, linear heads count errors.

The six heads stand in the order of ReXVal's categories: false finding, omission, wrong place, wrong severity, invented
comparison, omitted comparison. The score of a pair is the sum of the counts, lower is better.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertModel, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_crepe import CrepeConfig
from .modeling_chexbert import CLSLayer


@dataclass
class CrepeOutput(ModelOutput):
    """`loss`: scalar, only where labels were given. `counts`: (n, categories) float, at least 0, the predicted number
    of errors. `logits`: (n, categories) float, what `counts` were before they were made non-negative. `presence`: (n,
    categories) float, logits of there being any error. `hidden_states`: only with `output_hidden_states`, as
    CheXbert's: the last layer's is (n, 1, hidden)."""

    loss: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    presence: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class CrepeModel(PreTrainedModel):
    """CREPE. Its parameters have the published names: `bert.*`, `error_regressors.0` to `.5`, `error_presence.*`."""

    config_class = CrepeConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, as Trainer's gradient accumulation must know

    def __init__(self, config: CrepeConfig):
        super().__init__(config)
        self.bert = BertModel(config)
        self.bert.encoder.layer[-1] = CLSLayer(config, config.num_hidden_layers - 1)  # the pooler reads [CLS] alone
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        heads = range(config.num_error_categories)
        self.error_regressors = nn.ModuleList([nn.Linear(config.hidden_size, 1) for _ in heads])
        self.error_presence = nn.ModuleList([nn.Linear(config.hidden_size, 1) for _ in heads])
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> CrepeOutput:
        """Error counts of n pairs, and the loss where `labels` (n, categories), the true counts, are given.

        `input_ids`, `attention_mask` and `token_type_ids` are (n, length): [CLS] reference [SEP] report [SEP]; other
        arguments are BERT's. The loss is (1 - w) x the mean of the categories' squared errors (or Poisson losses) plus
        w x the mean of the binary cross-entropies of presence, w `presence_loss_weight` (section 3.3).
        """
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, **kwargs)
        features = self.dropout(states.pooler_output)
        logits = torch.cat([head(features) for head in self.error_regressors], dim=1)
        presence = torch.cat([head(features) for head in self.error_presence], dim=1)
        rates = F.softplus(logits) if self.config.use_poisson_loss else logits
        loss = None
        if labels is not None:
            labels = labels.to(logits.dtype)
            if self.config.use_poisson_loss:
                loss = F.poisson_nll_loss(rates, labels, log_input=False)
            else:
                loss = F.mse_loss(rates, labels)
            if self.config.use_presence_loss:
                weight = self.config.presence_loss_weight
                presence_loss = F.binary_cross_entropy_with_logits(presence, (labels > 0).to(presence.dtype))
                loss = (1 - weight) * loss + weight * presence_loss
        return CrepeOutput(loss, rates.clamp(min=0), logits, presence, states.hidden_states)


CrepeModel.register_for_auto_class("AutoModel")
