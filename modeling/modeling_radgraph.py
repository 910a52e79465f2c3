"""RadGraph (Jain et al. 2021): entities and relations of reports by DyGIE++'s span model (Wadden et al. 2019).

Words are the means of their tokens' states. Every span of up to `max_span_width` words is [first word; last word;
embedding of its width]. One scorer labels spans, a second picks the best `spans_per_word` of each report, and a third
labels ordered pairs of these from [source; target; source * target], to which the second's scores of both are added.
The null class of spans and pairs has the score 0. Coreference and events, which RadGraph's archive also holds weights
for, are not part of it: they change no entity and no relation.

Nothing is padded behind the encoder: words, spans and pairs of all reports of a batch stand in one row each. The first
layer of a scorer is linear in the parts of a span, so it is applied to words and widths once, not to every span again;
and its product of two spans is the same for both orders of a pair.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_radgraph import RadGraphConfig

PAIRS = 4096  # scored at a time, so that the memory of a long report stays linear in its length


@dataclass
class RadGraphOutput(ModelOutput):
    """`spans`: (s, 3) int64, report, first and last word of every candidate span, by report, first word, last word.
    `entity_logits`: (s, 1 + entity labels), the null class first. `relations`: (r, 2) int64, source and target as rows
    of `spans`, ordered. `relation_logits`: (r, 1 + relation labels), the null class first."""

    spans: torch.Tensor | None = None
    entity_logits: torch.Tensor | None = None
    relations: torch.Tensor | None = None
    relation_logits: torch.Tensor | None = None


class Scorer(nn.Module):
    """A feed-forward network with ReLU, whose first layer's result is given to it as a sum of parts."""

    def __init__(self, inputs: int, outputs: int, config: RadGraphConfig):
        super().__init__()
        sizes = [inputs, *config.feedforward_sizes]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])
        self.output = nn.Linear(sizes[-1], outputs)

    def first(self, sizes: list[int]) -> tuple[torch.Tensor, ...]:
        """The first layer's weight, split by the sizes of the input's parts."""
        return self.layers[0].weight.split(sizes, dim=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores (n, outputs) from the first layer's result (n, size), without its bias and before the ReLU."""
        hidden = (hidden + self.layers[0].bias).relu_()
        for layer in self.layers[1:]:
            hidden = layer(hidden).relu_()
        return self.output(hidden)


class RadGraphModel(PreTrainedModel):
    """RadGraph for inference, without loss or dropout; `rewards.radgraph_parser` turns texts into graphs with it."""

    config_class = RadGraphConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: RadGraphConfig):
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # of BERT; never read
        width = 2 * config.encoder_config.hidden_size + config.feature_size
        self.width_embedding = nn.Embedding(config.max_span_width, config.feature_size)
        self.entity_scorer = Scorer(width, len(config.entity_labels), config)
        self.pruner = Scorer(width, 1, config)
        self.relation_scorer = Scorer(3 * width, len(config.relation_labels), config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        word_ids: torch.Tensor,
        word_counts: torch.Tensor,
        all_pairs: bool = False,
        **kwargs,
    ) -> RadGraphOutput:
        """Entities and relations of n reports, or of n sentences: whatever must share no span and no relation.

        `input_ids`, `attention_mask`: (rows, length), a row for each segment of a report, with special tokens.
        `word_ids`: (rows, length), the word of each token, counted through all reports in their order, and -1 for
        special tokens and padding; a word without tokens is a vector of zeros, as in the original. `word_counts`: (n,)
        words of each report, at least 1. Returned are the relations of spans that are entities, the only ones in
        RadGraph's published format; with `all_pairs` all pairs of the best spans, whether related or not.
        """
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        words = self._pool(states, word_ids, int(word_counts.sum()))
        spans, firsts, widths = self._spans(word_counts)
        entity_logits = F.pad(self._score_spans(self.entity_scorer, words, firsts, widths), (1, 0))
        mentions = self._score_spans(self.pruner, words, firsts, widths).squeeze(1)
        best = self._best(mentions, spans[:, 0], word_counts)
        if not all_pairs:
            best = best[entity_logits[best].argmax(1) > 0]
        vectors = torch.cat(
            [words[firsts[best]], words[(firsts + widths)[best]], self.width_embedding(widths[best])], dim=1
        )
        pairs, relation_logits = self._relate(vectors, mentions[best], spans[best, 0], all_pairs)
        return RadGraphOutput(spans, entity_logits, best[pairs], relation_logits)

    def _pool(self, states: torch.Tensor, word_ids: torch.Tensor, count: int) -> torch.Tensor:
        """The mean state of each word's tokens, (words, hidden)."""
        in_word = word_ids >= 0
        sizes = torch.bincount(word_ids[in_word], minlength=count)
        tokens = torch.arange(int(in_word.sum()), device=states.device)
        return F.embedding_bag(tokens, states[in_word], sizes.cumsum(0) - sizes, mode="mean")

    def _spans(self, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All candidate spans (s, 3) of reports of `counts` words; their first words, and widths less 1, (s,) each."""
        report = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        first = torch.arange(len(report), device=counts.device)
        position = first - (counts.cumsum(0) - counts)[report]
        longest = (counts[report] - position).clamp(max=self.config.max_span_width)
        word = first.repeat_interleave(longest)
        width = torch.arange(len(word), device=counts.device) - (longest.cumsum(0) - longest)[word]
        return torch.stack([report[word], position[word], position[word] + width], dim=1), word, width

    def _score_spans(
        self, scorer: Scorer, words: torch.Tensor, firsts: torch.Tensor, widths: torch.Tensor
    ) -> torch.Tensor:
        hidden, feature = words.shape[1], self.config.feature_size
        of_first, of_last, of_width = scorer.first([hidden, hidden, feature])
        total = F.linear(words, of_first)[firsts]
        total += F.linear(words, of_last)[firsts + widths]
        total += F.linear(self.width_embedding.weight, of_width)[widths]
        return scorer(total)

    def _best(self, scores: torch.Tensor, reports: torch.Tensor, word_counts: torch.Tensor) -> torch.Tensor:
        """Of each report the ceil(words * spans_per_word) spans of highest score, as ascending rows."""
        order = scores.argsort(descending=True, stable=True)
        order = order[reports[order].argsort(stable=True)]
        sizes = torch.bincount(reports, minlength=len(word_counts))
        rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[reports]
        limits = (word_counts.float() * self.config.spans_per_word).ceil().long().clamp(min=1)
        return order[rank < limits[reports]].sort().values

    def _relate(
        self, vectors: torch.Tensor, mentions: torch.Tensor, reports: torch.Tensor, all_pairs: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ordered pairs (r, 2) of spans of one report, as rows of `vectors` (k, width), and their logits."""
        of_source, of_target, of_product = self.relation_scorer.first([vectors.shape[1]] * 3)
        sources, targets = F.linear(vectors, of_source), F.linear(vectors, of_target)
        pairs = [torch.zeros(0, 2, dtype=torch.long, device=vectors.device)]
        logits = [vectors.new_zeros(0, 1 + len(self.config.relation_labels))]
        for a, b in _unordered_pairs(reports):
            product = F.linear(vectors[a] * vectors[b], of_product)
            mention = (mentions[a] + mentions[b])[:, None]
            for i, j, new in ((a, b, a <= b), (b, a, a < b)):
                scores = F.pad(self.relation_scorer(product + sources[i] + targets[j]) + mention, (1, 0))
                selected = new if all_pairs else new & (scores.argmax(1) > 0)
                pairs.append(torch.stack([i, j], dim=1)[selected])
                logits.append(scores[selected])
        pairs, logits = torch.cat(pairs), torch.cat(logits)
        order = (pairs[:, 0] * len(vectors) + pairs[:, 1]).argsort()
        return pairs[order], logits[order]


def _unordered_pairs(reports: torch.Tensor):
    """Index pairs a <= b of one report, about PAIRS at a time; `reports` ascends."""
    numbers = torch.arange(len(reports), device=reports.device)
    ends = torch.searchsorted(reports, reports, right=True)
    counts = ends - numbers
    start, total = 0, counts.cumsum(0)
    emitted = 0
    while start < len(reports):
        stop = max(start + 1, int(torch.searchsorted(total, emitted + PAIRS, right=True)))
        a = numbers[start:stop].repeat_interleave(counts[start:stop])
        yield a, a + torch.arange(len(a), device=a.device) - (total - counts)[a] + emitted
        start, emitted = stop, int(total[stop - 1])


RadGraphModel.register_for_auto_class("AutoModel")
