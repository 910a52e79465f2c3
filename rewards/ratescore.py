"""RaTEScore (Zhao et al. 2024, version 0.6.0): do two reports name the same entities, and of the same kind?

A token classifier finds the entities of each sentence and their types, an encoder of names gives each a vector, and
every entity is compared with the nearest one of the other report. Both networks are published in transformers' form,
so that there is nothing to convert.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer, BatchEncoding

from rewards.encoders import for_inference, map_rows, process_device, token_rows
from rewards.inputs import TextCache, TextReward, check_untagged

NER = "Angelakeke/RaTE-NER-Deberta"
ENCODER = "FremyCompany/BioLORD-2023-C"
TYPES = ("ABNORMALITY", "ANATOMY", "DISEASE", "NON-ABNORMALITY", "NON-DISEASE")
AFFIRMED, DENIED = ("ABNORMALITY", "DISEASE"), ("NON-ABNORMALITY", "NON-DISEASE")
# The published weights of a pair of types, for long texts (reports) and short ones (sentences): rows the type of the
# entity that is compared, columns that of the nearest entity, both in the order of TYPES.
AFFINITY = {
    "long": (
        (0.4276119164393705, 0.6240929990607657, 0.0034478181112993847, 0.5431049700217344, 0.27005425386213877),
        (0.7487824274337533, 0.2856134859160784, 0.4592143222158069, 0.02097055139911715, 0.00013736314126696204),
        (0.8396510075734789, 0.9950209388542061, 0.8460555030578727, 0.9820689020512646, 0.3789136708096537),
        (0.16546764653692908, 0.018670610691852826, 0.719397354576018, 0.0009357166071730684, 0.0927333564267591),
        (0.7759420231214385, 0.1839139293714062, 0.10073046076318157, 0.03860183811876373, 0.34065681486566446),
    ),
    "short": (
        (0.4070293318365468, 0.6952639610605605, 0.28342529466226446, 0.9479148658006686, 0.23875064111146294),
        (0.5829759950441763, 0.7709590751917746, 0.0006059634829551632, 0.794672584951181, 0.27982942400798977),
        (0.8840397619834857, 0.9637659445696822, 0.19018958438059513, 0.6962283914800402, 0.943727057946997),
        (0.1712744286898638, 0.4485149671497294, 0.00045065329822896076, 0.0007887930317199857, 0.8555432840895761),
        (0.9555801066212176, 0.13122106162635216, 0.6072996585919443, 0.05650711141169969, 0.3214769399791204),
    ),
}
NEGATION = {"long": 0.8716553966489615, "short": 0.3611577852354489}  # factor where one denies what the other affirms
MAX_TOKENS = 512  # of a sentence
NAME_TOKENS = 30  # of an entity
TIE = 1e-6  # cosines that differ by less are equal
SHORTEST = 3  # characters of a sentence that is read
CACHE_SIZE = 8192  # sentences, and names of entities: 768 numbers each take 25 MB
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
HOW_TO_GET = f"download {NER} and {ENCODER} while online, or name folders that hold them"


class Entity(NamedTuple):
    """The words of an entity and its type, one of `TYPES`."""

    name: str
    type: str


def split_sentences(text: str) -> list[str]:
    """The sentences of a report, cut behind . ! ? ; and at line ends, without those of fewer than three characters.

    The original cuts with medspaCy's PyRuSH, which needs spaCy; give `RaTEScore` another `split` to use it.
    """
    return [sentence for part in _SENTENCE.split(text) if len(sentence := part.strip()) >= SHORTEST]


def read_spans(labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first, last, type) of the entities among the labels of a sentence's tokens, [CLS] and [SEP] at its ends.

    `labels` are "O", "B-TYPE" or "I-TYPE". As in the original: an I continues whatever entity is open, of any type; a
    B or I before another B is an entity's end, and the next B's start; an entity that is open at the end reaches to
    the last token before [SEP].
    """
    spans, start, kind, ended = [], None, "", False
    for i in range(1, len(labels) - 1):
        label, following = labels[i], labels[i + 1][:1]
        if label == "O":
            continue
        begins = label[0] == "B"
        if begins:
            start, kind = i, label[2:]
        if following == "I":
            continue
        if start is not None:
            spans.append((start, i, kind))
        if following == "B":  # what follows starts anew; were it skipped, this token would be the start
            start, kind, ended = i, label[2:], True
        else:
            start, ended = None, False
    if start is not None and not ended:
        spans.append((start, len(labels) - 2, kind))
    return spans


def entity_score(
    first: Sequence[str], first_vectors: np.ndarray, second: Sequence[str], second_vectors: np.ndarray, matrix: str
) -> float:
    """How well m entities of one report are found among n of the other: types, and vectors (m, d) and (n, d) of length
    1. The weighted mean of the cosines with the nearest entity; 0 where all weights are 0 (Zhao et al., Eq. 3)."""
    cosines = first_vectors @ second_vectors.T
    total = weights = 0.0
    for row, kind in enumerate(first):
        # One name may stand there with several types, whose cosines are equal but for rounding, by which the original
        # takes one; the same type first, so that a report has 1 against itself.
        nearest = np.flatnonzero(cosines[row] >= cosines[row].max() - TIE)
        column = next((candidate for candidate in nearest if second[candidate] == kind), nearest[0])
        counterpart = second[column]
        weight = AFFINITY[matrix][TYPES.index(kind)][TYPES.index(counterpart)]
        opposed = (kind in AFFIRMED and counterpart in DENIED) or (kind in DENIED and counterpart in AFFIRMED)
        total += float(cosines[row, column]) * weight * (NEGATION[matrix] if opposed else 1.0)
        weights += weight
    return total / weights if weights else 0.0


class RaTEScore:
    """The RaTEScore of n generated reports against their references: `score(generated, references)`.

    `ner` and `encoder` are folders or Hub ids of the token classifier and of the encoder of names. `matrix`: the
    weights for "long" texts (the original's default) or "short" ones. `split`: a text to its sentences.
    `without_entities`: the score where either report has no entity, 0.5 in the original. Sentences and names go
    through the networks once, in batches of at most `token_budget` tokens. Raises ValueError where a network is
    missing or the classifier has other types, and on a matrix that does not exist.

        score = RaTEScore("RaTE-NER-Deberta", "BioLORD-2023-C")
        score(["Large effusion."], ["No effusion."])  # (1,), at most 1, higher is better
    """

    name = "ratescore"

    def __init__(
        self,
        ner: str | os.PathLike = NER,
        encoder: str | os.PathLike = ENCODER,
        matrix: str = "long",
        split: Callable[[str], Sequence[str]] = split_sentences,
        without_entities: float = 0.5,
        device: str | torch.device | None = None,
        token_budget: int = 2048,
    ):
        if matrix not in AFFINITY:
            raise ValueError(f"matrix must be 'long' or 'short', not {matrix!r}")
        if token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {token_budget}")
        self.matrix, self.split, self.without_entities, self.token_budget = (
            matrix,
            split,
            without_entities,
            token_budget,
        )
        device = torch.device(device) if device is not None else process_device()
        self.tokenizer, self.ner = _load(str(ner), AutoModelForTokenClassification, device)
        self.name_tokenizer, self.encoder = _load(str(encoder), AutoModel, device)
        types = {label[2:] for label in self.ner.config.id2label.values() if label != "O"}
        if types != set(TYPES):
            raise ValueError(
                f"{ner} labels {', '.join(sorted(types))}, not the types of RaTEScore: it is no {NER}; {HOW_TO_GET}"
            )
        self.entities = TextCache(self._read, CACHE_SIZE)
        self.vectors = TextCache(self._embed, CACHE_SIZE)

    def __call__(self, generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Float64 of shape (n,), at most 1; also of texts without words. ValueError where the lengths differ."""
        if len(generated) != len(references):
            raise ValueError(f"RaTEScore got {len(generated)} reports and {len(references)} references")
        texts = list(dict.fromkeys([*generated, *references]))
        sentences = [list(self.split(text)) for text in texts]
        read = iter(self.entities([sentence for group in sentences for sentence in group]))
        reports = {
            text: [entity for _ in group for entity in next(read)]
            for text, group in zip(texts, sentences, strict=True)
        }
        names = list(dict.fromkeys(entity.name for entities in reports.values() for entity in entities))
        vectors = dict(zip(names, self.vectors(names), strict=True))
        return np.array(
            [self._score(reports[a], reports[b], vectors) for a, b in zip(generated, references, strict=True)],
            dtype=np.float64,
        )

    def _score(self, report: list[Entity], reference: list[Entity], vectors: dict[str, np.ndarray]) -> float:
        if not report or not reference:
            return self.without_entities
        sides = [
            ([entity.type for entity in side], np.stack([vectors[entity.name] for entity in side]))
            for side in (report, reference)
        ]
        precision = entity_score(*sides[0], *sides[1], self.matrix)
        recall = entity_score(*sides[1], *sides[0], self.matrix)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    @torch.inference_mode()
    def _read(self, sentences: list[str]) -> list[list[Entity]]:
        rows = token_rows(self.tokenizer, sentences, max_tokens=MAX_TOKENS)
        classes = map_rows(self._classify, rows, self.tokenizer, self.token_budget, self.ner.device)
        entities = []
        for (ids, *_), numbers in zip(rows, classes, strict=True):
            tokens = self.tokenizer.convert_ids_to_tokens(list(ids))
            spans = read_spans([self.ner.config.id2label[number] for number in numbers])
            entities.append(
                [
                    Entity(self.tokenizer.convert_tokens_to_string(tokens[first : last + 1]), kind)
                    for first, last, kind in spans
                ]
            )
        return entities

    @torch.inference_mode()
    def _embed(self, names: list[str]) -> list[np.ndarray]:
        rows = token_rows(self.name_tokenizer, names, max_tokens=NAME_TOKENS)
        return map_rows(self._first_states, rows, self.name_tokenizer, self.token_budget, self.encoder.device)

    def _classify(self, batch: BatchEncoding) -> list[list[int]]:
        classes = self.ner(**batch).logits.argmax(-1).tolist()
        return [row[: int(length)] for row, length in zip(classes, batch["attention_mask"].sum(1), strict=True)]

    def _first_states(self, batch: BatchEncoding) -> list[np.ndarray]:
        """The first token's state of each row at length 1; copies, since a view would keep its whole batch."""
        states = self.encoder(**batch).last_hidden_state[:, 0]
        return [row.copy() for row in torch.nn.functional.normalize(states).cpu().numpy()]


def _load(name: str, auto_class: type, device: torch.device) -> tuple:
    """Tokenizer and network (float32) of a folder or Hub id; ValueError where it is not there or incomplete."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, notes = auto_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"RaTEScore cannot load {name} ({reason}); {HOW_TO_GET}") from error
    if missing := sorted(key for key in notes["missing_keys"] if "pooler" not in key):
        raise ValueError(f"{name} is no part of RaTEScore: it lacks {missing[0]}; {HOW_TO_GET}")
    return tokenizer, for_inference(model).to(device)


class RaTEReward:
    """RaTEScore of each pair, at least 0; 0 also where a report or its reference has no entity."""

    def __init__(self, score: RaTEScore):
        self.score = score

    def __call__(self, generated: list[str], references: list[str]) -> np.ndarray:
        return self.score(generated, references).clip(0, 1)


def make_ratescore_reward(
    ner: str | os.PathLike = NER, encoder: str | os.PathLike = ENCODER, untagged: str = "whole", **settings
) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: RaTEScore of each completion's report, in [0, 1], higher is better.

    A report without entities earns 0 here, where the metric gives 0.5: any gibberish would earn that. Arguments and
    errors are those of `RaTEScore` (`settings`: matrix, split, device, token_budget); ValueError also on an `untagged`
    mode that does not exist (see `make_mccs_reward`).

        reward = make_ratescore_reward()
        reward(["<report>Clear lungs.</report>"], report=["The lungs are clear."])
    """
    check_untagged(untagged)  # before the networks are loaded
    score = RaTEScore(ner, encoder, without_entities=0.0, **settings)
    return TextReward("ratescore_reward", RaTEReward(score), untagged)
