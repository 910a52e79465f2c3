"""CIDEr-D of one report as a TRL reward, with document frequencies of the training references (MRG-R1, Table II)."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

from rewards.bleu import tokenize
from rewards.inputs import TextReward, check_untagged

TABLE = "RRG_CIDER_TABLE"  # environment variable: the saved table of the default instance


class DocumentFrequencies(NamedTuple):
    """In how many of `documents` texts each n-gram of 1 to 4 tokens occurs; n-grams of a single text are left out.

    CIDEr counts an n-gram that it does not know as one of a single text, so leaving them out changes no score.
    """

    documents: int
    counts: Counter[tuple[str, ...]]


def document_frequencies(references: Iterable[str], tokens: Callable[[str], str] = tokenize) -> DocumentFrequencies:
    """Counts the n-grams of the training references: of the training split only, or the reward leaks test reports.

    Raises ValueError on fewer than two texts (every n-gram would weigh 0) and on an empty one.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    documents = 0
    for documents, text in enumerate(references, 1):
        if not text or not text.strip():
            raise ValueError(f"reference {documents - 1} is empty: leave studies without a report out")
        counts.update(cook_test(tokens(text)).keys())
    if documents < 2:
        raise ValueError(f"CIDEr needs the references of a training split, not {documents} text(s)")
    return DocumentFrequencies(documents, Counter({ngram: n for ngram, n in counts.items() if n > 1}))


def save_document_frequencies(table: DocumentFrequencies, file: str | Path) -> None:
    """Writes the table as JSON. It quotes phrases of the reports: treat it as credentialed where they are."""
    counts = {" ".join(ngram): n for ngram, n in table.counts.items()}
    Path(file).write_text(json.dumps({"documents": table.documents, "counts": counts}))


def load_document_frequencies(file: str | Path) -> DocumentFrequencies:
    """Reads what `save_document_frequencies` wrote. Raises FileNotFoundError, or ValueError on any other content."""
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"there is no table of document frequencies {file}: write one with save_document_frequencies"
        )
    try:
        saved = json.loads(Path(file).read_text())
        counts = Counter({tuple(map(sys.intern, ngram.split(" "))): n for ngram, n in saved["counts"].items()})
        return DocumentFrequencies(saved["documents"], counts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no table of document frequencies: {error}") from error


@lru_cache(maxsize=64)  # n-grams of one group's reference: about 50 kB for 60 tokens
def _reference_counts(text: str, tokens: Callable[[str], str]) -> list:
    return cook_refs([tokens(text)])


def cider_d(
    generated: Sequence[str],
    references: Sequence[str],
    table: DocumentFrequencies,
    tokens: Callable[[str], str] = tokenize,
) -> list[float]:
    """CIDEr-D of each of n pairs (Vedantam et al. 2015; n-grams to 4, sigma 6), each in [0, 10].

    The mean is pycocoevalcap's corpus CIDEr where `table` is that of the corpus's own references. An exact match
    scores 10, less 2.5 for each length of n-gram that it lacks or of which all stand in every document.
    """
    scores = []
    for text, reference in zip(generated, references, strict=True):
        scorer = CiderScorer()
        scorer.document_frequency = table.counts  # a Counter: looking an n-gram up does not add it
        scorer.ctest = [cook_test(tokens(text))]
        # The scorer takes the number of documents from the length of this list, and pairs only its first entry.
        scorer.crefs = [_reference_counts(reference, tokens)] + [None] * (table.documents - 1)
        scores.append(float(scorer.compute_cider()[0]))
    return scores


def make_cider_reward(
    references: Iterable[str] | DocumentFrequencies | str | os.PathLike,
    scale: float = 0.1,
    tokens: Callable[[str], str] = tokenize,
    untagged: str = "whole",
) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: `cider_d` of each completion's report times `scale`, higher is better.

    `references`: the texts of the training split, their `document_frequencies`, or the file of a saved table (made
    with the same `tokens`). With the default scale the reward lies in [0, 1] and weighs as much as BLEU and ROUGE
    do (A-24); scale 1 gives the published figures, in [0, 10]. An empty report scores 0. Raises as
    `document_frequencies` and `load_document_frequencies` do, and ValueError on a wrong `untagged` mode.

    Example:
        >>> reward = make_cider_reward(["Small left effusion.", "The lungs are clear.", "No acute disease."])
        >>> reward(["Small left effusion.", "No acute disease."], report=["Small left effusion."] * 2)
        [1.0, 0.0]
    """
    check_untagged(untagged)
    if isinstance(references, (str, os.PathLike)):
        table = load_document_frequencies(references)
    elif isinstance(references, DocumentFrequencies):
        table = references
    else:
        table = document_frequencies(references, tokens)
    return TextReward("cider_reward", partial(_scaled, scale=scale, table=table, tokens=tokens), untagged)


def _scaled(generated: list[str], references: list[str], scale: float, **settings) -> list[float]:
    return [scale * value for value in cider_d(generated, references, **settings)]


@lru_cache(maxsize=1)
def _default_reward() -> Callable[..., list[float | None]]:
    if TABLE not in os.environ:
        raise ValueError(
            f"cider_reward needs the document frequencies of the training references: set {TABLE} to a table that "
            "save_document_frequencies wrote, or use make_cider_reward(references)"
        )
    return make_cider_reward(os.environ[TABLE])


def cider_reward(completions: list, *, report: list[str | None] | None = None, **kwargs) -> list[float | None]:
    """The reward of `make_cider_reward` with the saved table that the environment variable RRG_CIDER_TABLE names.

    A dotted path takes no arguments, and there are no document frequencies that suit every data set. Raises ValueError
    where the variable is not set, FileNotFoundError where it names no file.

    Example:
        >>> # it needs that table
        >>> cider_reward(["Clear lungs."], report=["The lungs are clear."])  # doctest: +SKIP
    """
    return _default_reward()(completions, report=report, **kwargs)
