"""RadCliQ (Yu et al. 2023), a composite of four report metrics, and the reward that LM-RRG makes of it (section 2.3).

A part is `part(generated, references)`: m numbers for m pairs of texts. Its attribute `lite` says whether it stands in
for the metric that RadCliQ was fitted on; with any lite part the reward is named `radcliq_lite_reward`, else
`radcliq_reward`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rewards.bleu import bleu as sentence_bleu
from rewards.inputs import TextCache, TextReward, cached, check_untagged, score_texts
from rewards.labelers import LexicalLabeler
from rewards.labels import to_signed
from rewards.lexical_graph import LexicalGraph, graph_words
from rewards.radgraph import CACHE_SIZE, is_lite, make_radgraph_part

Part = Callable[[list[str], list[str]], Sequence[float]]
NAMES = ("radgraph", "bertscore", "semb", "bleu")
# Published with CXR-Report-Metric (github.com/rajpurkarlab/CXR-Report-Metric, commit 9c9ecad, MIT): mean and scale of
# the normalizer, then coefficients and intercept of the regression, in the order of NAMES.
PARAMETERS = {
    "v0": (
        (0.5398376019082272, 0.6312549595000001, 0.7716797866672277, 0.4607372064809605),
        (0.3018344440559102, 0.22466950746141123, 0.24750333805236252, 0.30336670936092264),
        (-0.4796252644863446, -0.6762170542369337, -0.46366575161751994, 0.2165861905287535),
        1.641666666666666,
    ),
    "v1": (
        (0.5379231241355762, 0.6175725628125001, 0.7647942121140658, 0.44738335396242174),
        (0.3028258411486429, 0.22430938459304575, 0.2539439110169773, 0.2989271671041838),
        (-0.37708368261038905, -0.37030009974480316, -0.25261621789593225, 4.315048405024756e-12),
        2.466552561323256e-10,
    ),
}
TRANSFORMS = ("affine", "neg", "exp", "reciprocal")
EMBEDDINGS = 2048  # remembered; 768 numbers each take 6 MB


def radcliq_score(radgraph, bertscore, semb, bleu, version: str = "v1") -> np.ndarray:
    """RadCliQ of any shape (...) from four arrays of that shape; lower is better, float64.

    `radgraph`: mean of entity and relation F1; `bertscore`: rescaled F1 of distilroberta-base; `semb`: cosine of the
    CheXbert embeddings; `bleu`: BLEU-2. Four ones give -0.2421 (v0) or -1.4407 (v1), four zeros 5.5162 or 2.4501. BLEU
    counts nothing in v1 and, as published, the wrong way in v0: more BLEU, higher RadCliQ. LM-RRG's figures are on the
    scale of v1 (A-10). Leaderboards that rank by 1 / RadCliQ invert this value.
    Raises ValueError on a version that does not exist.
    """
    if version not in PARAMETERS:
        raise ValueError(f"version must be one of {', '.join(PARAMETERS)}, not {version!r}")
    # The regression was fitted on normalised metrics, so each is taken to the normaliser's mean and scale first.
    means, scales, coefficients, intercept = PARAMETERS[version]
    parts = zip((radgraph, bertscore, semb, bleu), means, scales, coefficients, strict=True)
    return (
        sum((np.asarray(x, dtype=np.float64) - mean) / scale * weight for x, mean, scale, weight in parts) + intercept
    )


def radcliq_to_reward(score, version: str = "v1", transform: str = "affine") -> np.ndarray:
    """A reward, higher is better, from RadCliQ of shape (...).

    With `perfect` and `zero` the RadCliQ of four ones and four zeros: `affine`, (zero - score) / (zero - perfect),
    clipped to [0, 1], so that 0.865 is 0.407 in v1; `exp`, exp(perfect - score), at most 1; `reciprocal`,
    1 / (1 + score - perfect), at most 1 (1 / RadCliQ itself jumps where RadCliQ crosses 0); `neg`, -score.
    Raises ValueError on a version or a transform that does not exist.
    """
    score = np.asarray(score, dtype=np.float64)
    # RadCliQ predicts a number of errors, without a natural 0 or 1: its values at four zeros and four ones anchor it.
    zero, perfect = radcliq_score(0, 0, 0, 0, version), radcliq_score(1, 1, 1, 1, version)
    if transform == "affine":
        return np.clip((zero - score) / (zero - perfect), 0.0, 1.0)
    if transform == "exp":
        return np.minimum(np.exp(perfect - score), 1.0)
    if transform == "reciprocal":
        return 1 / (1 + np.maximum(score - perfect, 0.0))
    if transform == "neg":
        return -score
    raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, not {transform!r}")


class CosinePart:
    """`part(generated, references)`: cosines of m pairs of embeddings, (m,); 0 where one is all zero.

    `embed` maps n texts to n rows of d numbers. RadCliQ's are CheXbert's: the last layer's state of [CLS]. The part
    has its `name`, and its `lite` unless that is given; raises ValueError where neither says whether it is lite.
    """

    def __init__(self, embed: Callable[[list[str]], np.ndarray], lite: bool | None = None):
        self.lite, self.embed = is_lite(embed) if lite is None else lite, cached(embed, EMBEDDINGS)
        self.name = self.embed.name

    def __call__(self, generated: list[str], references: list[str]) -> np.ndarray:
        vectors = np.asarray(self.embed([*generated, *references]), dtype=np.float64)
        a, b = vectors[: len(generated)], vectors[len(generated) :]
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0)


make_semb_part = CosinePart


def bleu2(generated: list[str], references: list[str]) -> list[float]:
    """RadCliQ's BLEU-2 of m pairs: lower case, full stops split off, smoothed by method 1 (epsilon 0.1)."""
    return sentence_bleu(generated, references, 2, 0.1, lambda text: text.lower().replace(".", " ."))


bleu2.name, bleu2.lite = "bleu2", False


class LexicalWords:
    """F1 of the words that `graph_words` counts: the stand-in for BERTScore, over remembered graphs."""

    name, lite = "lexical_words", True

    def __init__(self, graphs: TextCache):
        self.graphs, self.bags = graphs, TextCache(self._bags, CACHE_SIZE)

    def _bags(self, texts: list[str]) -> list:
        return [graph_words(graph) for graph in self.graphs(texts)]

    def __call__(self, generated: list[str], references: list[str]) -> list[float]:
        pairs = zip(self.bags(generated), self.bags(references), strict=True)
        return [2 * (a & b).total() / (a.total() + b.total()) if a or b else 1.0 for a, b in pairs]


class LexicalSigns:
    """LexicalLabeler's signed vectors with a constant at the end: the stand-in for CheXbert's embeddings."""

    name, lite = "lexical_labels", True

    def __init__(self):
        self.labeler = LexicalLabeler()

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.pad(to_signed(self.labeler(texts)), ((0, 0), (0, 1)), constant_values=0.1)


def make_lexical_parts() -> dict[str, Part]:
    """The parts that need no weights, by the names of `make_radcliq_reward`: stand-ins, except for BLEU-2.

    `radgraph`: the graphs of LexicalGraph, and an F1 without anything to agree on left out, so that every exact match
    has 1. `bertscore`: F1 of the words that `graph_words` counts, where words for the same thing are equal and an
    observation is another word when absent or uncertain. `semb`: cosine of LexicalLabeler's signed vectors (absent -1,
    uncertain and present 1) with a constant 0.1 at the end, so that reports without labels have one too.
    """
    graphs = TextCache(LexicalGraph(), CACHE_SIZE)
    return {
        "radgraph": make_radgraph_part(graphs, skip_empty=True),
        "bertscore": LexicalWords(graphs),
        "semb": make_semb_part(LexicalSigns()),
        "bleu": bleu2,
    }


class RadCliQReward:
    """A TRL reward: RadCliQ of each completion's report, turned so that higher is better.

    The parts are those of `radcliq_score`: `radgraph` (see `make_radgraph_part`), `bertscore` (see `BERTScore`),
    `semb` (see `make_semb_part`), `bleu`; those not given are from `make_lexical_parts`. `version`: v0 or v1.
    `transform`: see `radcliq_to_reward`. `untagged` as in `make_mccs_reward`. An empty report has four zeros,
    so it earns 0 by `affine`. The product is named `radcliq_lite_reward` if any part is lite, else
    `radcliq_reward`. Raises ValueError on a version, transform or mode that does not exist and on a part that does not
    say whether it is `lite`; at a call, on a part whose scores are not finite.

    Example:
        >>> reward = make_radcliq_reward(version="v1", transform="affine")
        >>> reward.__name__, reward(["Small effusion.", ""], report=["Small effusion."] * 2)
        ('radcliq_lite_reward', [1.0, 0.0])
    """

    def __init__(
        self,
        radgraph: Part | None = None,
        bertscore: Part | None = None,
        semb: Part | None = None,
        bleu: Part | None = None,
        version: str = "v1",
        transform: str = "affine",
        untagged: str = "whole",
    ):
        check_untagged(untagged)
        radcliq_to_reward(radcliq_score(0, 0, 0, 0, version), version, transform)
        parts = {"radgraph": radgraph, "bertscore": bertscore, "semb": semb, "bleu": bleu}
        lexical = make_lexical_parts()
        self.parts = {name: lexical[name] if part is None else part for name, part in parts.items()}
        self.kind = "radcliq_lite" if {name for name, part in self.parts.items() if is_lite(part)} else "radcliq"
        self.__name__ = f"{self.kind}_reward"
        self.version, self.transform, self.untagged = version, transform, untagged

    def __call__(
        self,
        completions: list,
        *,
        report: list[str | None] | None = None,
        log_metric: Callable | None = None,
        **kwargs,
    ) -> list[float | None]:
        """RadCliQ reward of each completion's report against the column `report`; a null reference gives None.

        Logs RadCliQ and its parts, each as the mean over the batch's distinct pairs of texts.
        """
        score = partial(self._score, log_metric)
        return score_texts(self.__name__, score, completions, report, self.untagged)

    def _score(self, log_metric: Callable | None, generated: list[str], references: list[str]) -> np.ndarray:
        rows = [row for row, text in enumerate(generated) if text.strip()]
        texts, truth = [generated[row] for row in rows], [references[row] for row in rows]
        values = {name: np.zeros(len(generated)) for name in NAMES}
        for name, part in self.parts.items() if rows else ():
            values[name][rows] = part(texts, truth)
            if not np.isfinite(values[name]).all():
                raise ValueError(f"RadCliQ's part {name} gave a score that is no finite number")
        total = radcliq_score(**values, version=self.version)
        if log_metric:
            for name, scores in {"score": total, **values}.items():
                log_metric(f"{self.kind}/{name}", float(scores.mean()))
        return radcliq_to_reward(total, self.version, self.transform)


class PartScore:
    """`part` as the score of a `TextReward`: m numbers for m pairs of texts, 0 of an empty report."""

    def __init__(self, part: Part):
        self.part = part

    def __call__(self, generated: list[str], references: list[str]) -> np.ndarray:
        rows = [row for row, text in enumerate(generated) if text.strip()]
        scores = np.zeros(len(generated))
        if rows:
            scores[rows] = self.part([generated[row] for row in rows], [references[row] for row in rows])
        return scores


make_radcliq_reward = RadCliQReward
radcliq_lite_reward = make_radcliq_reward()
# The stand-ins for BERTScore and for the cosine of CheXbert's embeddings alone, by their dotted path in `rewards`.
lexical_words_reward = TextReward("lexical_words_reward", PartScore(radcliq_lite_reward.parts["bertscore"]))
lexical_semb_reward = TextReward("lexical_semb_reward", PartScore(radcliq_lite_reward.parts["semb"]))
