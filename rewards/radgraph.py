"""RadGraph F1: how far the entities and relations of two reports agree, as a TRL reward and as a part of RadCliQ.

A graph has the structure of RadGraph's JSON files: {"text": the report's words joined by spaces, "entities": {id:
{"tokens": str, "label": str, "start_ix": int, "end_ix": int, "relations": [[type, id of the target], ...]}}}.
Labels are the parser's own: RadGraph-XL's, and so LexicalGraph's, are "Anatomy::definitely present" and
"Observation::" with "definitely present", "definitely absent" or "uncertain"; types are modify, located_at and
suggestive_of. A parser maps n texts to n graphs; its `name`, and whether it is `lite`, a stand-in for the published
model, are attributes. `LexicalGraph` needs no weights; `RadGraphParser(folder)`, also exported here, is that model:

    reward = make_radgraph_reward(parser=RadGraphParser("outputs/radgraph-xl"))
"""

from collections.abc import Callable, Sequence

import numpy as np

from rewards.inputs import TextCache, TextReward, cached
from rewards.lexical_graph import LexicalGraph

CACHE_SIZE = 1024  # graphs: 10 kB each


def is_lite(part: Callable) -> bool:
    """Whether a parser or a part says of itself that it is a stand-in; raises ValueError where it says nothing."""
    lite = getattr(part.compute if isinstance(part, TextCache) else part, "lite", None)
    if lite is None:
        raise ValueError(f"{part!r} has no attribute `lite`: set it to False for the published model, else to True")
    return lite


def _simple(graph: dict) -> tuple[set, ...]:
    return ({(entity["tokens"], entity["label"]) for entity in graph["entities"].values()},)


def _partial(graph: dict) -> tuple[set, ...]:
    return ({(e["tokens"], e["label"], bool(e["relations"])) for e in graph["entities"].values()},)


def _complete(graph: dict) -> tuple[set, ...]:
    entities, items = graph["entities"], set()
    for e in entities.values():
        items.update((e["tokens"].lower(), e["label"], t, entities[i]["tokens"].lower()) for t, i in e["relations"])
        if not e["relations"]:
            items.add((e["tokens"], e["label"]))
    return (items,)


def _radcliq(graph: dict) -> tuple[set, ...]:
    names = {i: (entity["tokens"], entity["label"]) for i, entity in graph["entities"].items()}
    relations = {(names[i], names[j], t) for i, e in graph["entities"].items() for t, j in e["relations"]}
    return set(names.values()), relations


LEVELS = {"simple": _simple, "partial": _partial, "complete": _complete, "radcliq": _radcliq}


def radgraph_f1(
    generated: Sequence[dict], references: Sequence[dict], level: str = "partial", skip_empty: bool = False
) -> np.ndarray:
    """RadGraph F1 of m pairs of graphs, float64 of shape (m,) in [0, 1], symmetric.

    `level`: what has to agree, as sets. The rewards of Delbrouck et al. (2022, section 3): `simple`, RG_E, words and
    label of an entity; `partial`, RG_ER, also whether it has relations; `complete`, each relation's source words and
    label, type and target words (an entity without relations as in simple). `radcliq` (Yu et al. 2023, as their
    CXR-Report-Metric computes it): the mean of two F1s, of entities as in simple and of relations with words and label
    of both ends. Where neither graph has anything to agree on, these count 0, so that an exact match without relations
    has 0.5 by `radcliq`; with `skip_empty` such an F1 is left out, and is 1 where there is nothing at all.
    Raises ValueError on a level that does not exist.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    scores = []
    for graphs in zip(generated, references, strict=True):
        sets = zip(*map(LEVELS[level], graphs), strict=True)
        f1s = [2 * len(a & b) / (len(a) + len(b)) if a or b else None for a, b in sets]
        counted = [0.0 if f1 is None else f1 for f1 in f1s if f1 is not None or not skip_empty]
        scores.append(sum(counted) / len(counted) if counted else 1.0)
    return np.array(scores, dtype=np.float64)


class GraphPart:
    """The part that `make_radgraph_part` returns."""

    def __init__(self, parser: Callable[[list[str]], list[dict]], level: str, skip_empty: bool):
        self.lite, self.parser = is_lite(parser), cached(parser, CACHE_SIZE)
        self.name, self.level, self.skip_empty = self.parser.name, level, skip_empty
        radgraph_f1([], [], level)

    def __call__(self, generated: list[str], references: list[str]) -> np.ndarray:
        graphs = self.parser([*generated, *references])
        return radgraph_f1(graphs[: len(generated)], graphs[len(generated) :], self.level, self.skip_empty)


def make_radgraph_part(
    parser: Callable[[list[str]], list[dict]], level: str = "radcliq", skip_empty: bool = False
) -> GraphPart:
    """`part(generated, references)`: `radgraph_f1` of m pairs of texts, (m,), with the parser's `name` and `lite`.

    `parser` maps n texts to n graphs, which are remembered: parts given the same TextCache parse a text once. Raises
    ValueError on a level that does not exist and on a parser that does not say whether it is `lite`.
    """
    return GraphPart(parser, level, skip_empty)


def make_radgraph_reward(
    parser: Callable[[list[str]], list[dict]] | None = None, level: str = "partial", untagged: str = "whole"
) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: `radgraph_f1` of each completion's report, in [0, 1], higher is better.

    `parser`: n texts to n graphs (structure above); default LexicalGraph. With a lite parser its name is in the
    reward's name, `radgraph_lexical_reward`. `untagged` as in `make_mccs_reward`. Raises ValueError on a level or mode
    that does not exist and on a parser that does not say whether it is `lite`.

    Example:
        >>> reward = make_radgraph_reward()
        >>> values = reward(["Small left effusion."], report=["Small left effusion. No edema."])
        >>> round(values[0], 3)  # three of its three entities, three of the reference's four: 2 x 3 / (3 + 4)
        0.857
    """
    part = make_radgraph_part(parser or LexicalGraph(), level)
    return TextReward(f"radgraph_{part.name}_reward" if part.lite else "radgraph_reward", part, untagged)


radgraph_reward = make_radgraph_reward()


def __getattr__(name: str):
    """RadGraphParser needs torch, which LexicalGraph does not wait for."""
    if name == "RadGraphParser":
        from rewards.radgraph_parser import RadGraphParser

        return RadGraphParser
    raise AttributeError(f"module 'rewards.radgraph' has no attribute {name!r}")
