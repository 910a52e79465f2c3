"""RadGraphParser: the published RadGraph (Jain et al. 2021) and RadGraph-XL (Delbrouck et al. 2024) on batches."""

import os
import re
from collections.abc import Iterable
from itertools import chain

import torch

from modeling import RadGraphModel
from rewards.encoders import fingerprint, load_checkpoint, pass_cost, plan_batches
from rewards.inputs import TextCache

HOW_TO_GET = "make one from the published archive with recipes/convert_radgraph.py"
TEXTS = 512  # planned and read at a time, which bounds the memory of any number of texts
WORDS = 2**15  # whose tokens are remembered
# RadGraph-XL's rules: before words are told from punctuation, and after
BEFORE = (("\\n", "  "), ("\\f", "  "), ("\\u2122", "      "), ("\n", " "), ('\\"', "``"))
AFTER = ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )"))


def split_words(text: str, cleaning: str = "radgraph-xl") -> list[str]:
    """A report's words as the radgraph package has them, for `radgraph` (the first) or `radgraph-xl`.

    A character that has no encoding (half of a surrogate pair) becomes "?", since a tokenizer refuses it.
    """
    text = text.encode(errors="replace").decode()
    if cleaning == "radgraph":
        return re.sub(r"([/,:.!?()])", r" \1 ", text).split()
    for old, new in BEFORE:
        text = text.replace(old, new)
    text = " ".join(re.findall(r"\w+|[^\w\s]+", text))
    for old, new in AFTER:
        text = text.replace(old, new)
    return text.split()


class RadGraphParser:
    """Graphs of reports by a RadGraph, in the structure of `rewards.radgraph`; for its `parser` arguments.

    `model` is a folder with config, safetensors and tokenizer (recipes/convert_radgraph.py), or a Hub id. A report is
    one sentence, cleaned and split as by the radgraph package, whose entities and relations these are, in order. As
    there, a report of more than 510 tokens (the model's segments) is read in segments, which entities and relations
    may join. A report without a token has an empty graph; the package parses "" as the word "None", and fails on
    white space. Equal reports are parsed once; the others in batches of about the same length, of at most
    `token_budget` tokens with padding, in float32, without gradients. Labels are the model's own: RadGraph-XL's, or
    ANAT-DP, OBS-DP, OBS-DA and OBS-U of the first RadGraph. `name` tells models apart: the cleaning and a digest of
    the scorers. Raises ValueError where the model is missing, incomplete, or another architecture.
    """

    lite = False

    def __init__(self, model: str | os.PathLike, device: str | torch.device | None = None, token_budget: int = 8192):
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}")
        self.checkpoint, self.token_budget = str(model), token_budget
        self.model, self.tokenizer = load_checkpoint(
            self.checkpoint, "RadGraph", RadGraphModel, HOW_TO_GET, spare_embeddings=True, device=device
        )
        self.config = self.model.config
        scorers = (self.model.entity_scorer, self.model.pruner, self.model.relation_scorer)
        self.name = f"{self.config.cleaning}-{fingerprint(*scorers)}"
        self.device = self.model.device
        self.pass_cost = pass_cost(self.device)
        self.tokens = TextCache(self._tokens, WORDS)

    def __call__(self, texts: Iterable[str]) -> list[dict]:
        """The graph of each of n texts; equal texts share one, so do not write into it. Any string is parsed."""
        texts = list(texts)
        words = {text: split_words(text, self.config.cleaning) for text in dict.fromkeys(texts)}
        distinct = list(dict.fromkeys(chain(*words.values())))
        tokens = dict(zip(distinct, self.tokens(distinct), strict=True))
        graphs, pending = {}, []
        for text, row in words.items():
            graphs[text] = {"text": " ".join(row), "entities": {}}
            if any(tokens[word] for word in row):
                pending.append(text)
        for start in range(0, len(pending), TEXTS):
            group = pending[start : start + TEXTS]
            rows = {text: self._rows([tokens[word] for word in words[text]]) for text in group}
            group.sort(key=lambda text: -len(rows[text][0][0]))
            sizes = [(len(rows[text]), len(rows[text][0][0])) for text in group]
            for batch in plan_batches(sizes, self.token_budget, self.pass_cost):
                members = [group[i] for i in batch]
                parsed = self._pass([rows[text] for text in members], [len(words[text]) for text in members])
                for text, (entities, relations) in zip(members, parsed, strict=True):
                    graphs[text]["entities"] = self._entities(words[text], entities, relations)
        return [graphs[text] for text in texts]

    def _tokens(self, words: list[str]) -> list[list[int]]:
        """The tokens of each word, which are none for a word of control characters."""
        plain = [word[1:] if word in ("/.", "/?") else word for word in words]  # as DyGIE++ reads them
        return self.tokenizer(plain, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]

    def _rows(self, tokens: list[list[int]]) -> list[tuple[list[int], list[int]]]:
        """The segments of a report, each its token ids with special tokens and the word of each, -1 for these."""
        flat = list(chain(*tokens))
        words = [word for word, pieces in enumerate(tokens) for _ in pieces]
        size, cls, sep = self.config.segment_length - 2, self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [
            ([cls, *flat[start : start + size], sep], [-1, *words[start : start + size], -1])
            for start in range(0, len(flat), size)
        ]

    @torch.inference_mode()
    def _pass(self, reports: list[list], counts: list[int]) -> list[tuple[list, list]]:
        """Of each report its entities (first word, last word, label) and relations (source, target, label), where
        source and target are numbers of entities."""
        rows = [row for report in reports for row in report]
        length = max(len(ids) for ids, _ in rows)
        ids, words = torch.full((len(rows), length), self.tokenizer.pad_token_id), torch.full((len(rows), length), -1)
        mask = torch.zeros_like(ids)
        number, before = 0, 0
        for report, count in zip(reports, counts, strict=True):
            for tokens, places in report:
                ids[number, : len(tokens)], mask[number, : len(tokens)] = torch.tensor(tokens), 1
                words[number, 1 : len(tokens) - 1] = torch.tensor(places[1:-1]) + before
                number += 1
            before += count
        inputs = (tensor.to(self.device) for tensor in (ids, mask, words, torch.tensor(counts)))
        output = self.model(*inputs)
        labels, names = output.entity_logits.argmax(1), self.config.entity_labels
        entity_spans = labels.nonzero().squeeze(1)
        results: list[tuple[list, list]] = [([], []) for _ in reports]
        places = {}
        rows = zip(
            entity_spans.tolist(), output.spans[entity_spans].tolist(), labels[entity_spans].tolist(), strict=True
        )
        for span, (report, first, last), label in rows:
            entities = results[report][0]
            places[span] = report, len(entities)
            entities.append((first, last, names[label - 1]))
        types, names = output.relation_logits.argmax(1).tolist(), self.config.relation_labels
        for (source, target), label in zip(output.relations.tolist(), types, strict=True):
            report, number = places[source]
            results[report][1].append((number, places[target][1], names[label - 1]))
        return results

    @staticmethod
    def _entities(words: list[str], entities: list, relations: list) -> dict[str, dict]:
        """The published format: entities by their number from 1, relations beside their source."""
        graph = {}
        for number, (first, last, label) in enumerate(entities, 1):
            tokens = " ".join(words[first : last + 1])
            graph[str(number)] = {
                "tokens": tokens, "label": label, "start_ix": first, "end_ix": last, "relations": []
            }  # fmt: skip
        for source, target, label in relations:
            graph[str(source + 1)]["relations"].append([label, str(target + 1)])
        return graph
