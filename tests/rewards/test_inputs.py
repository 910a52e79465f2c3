import numpy as np
import pytest

from rewards.ce_f1 import make_ce_f1_reward
from rewards.inputs import TextCache, cached, label_pairs, score_texts
from rewards.mccs import make_mccs_reward


def test_texts_are_computed_once_and_forgotten_in_order():
    seen = []
    lengths = TextCache(lambda texts: seen.append(list(texts)) or [len(text) for text in texts], size=2)
    assert lengths(["a", "bb", "a"]) == [1, 2, 1] and seen == [["a", "bb"]]
    assert lengths(["a", "ccc"]) == [1, 3] and seen[1:] == [["ccc"]]  # "bb" is the oldest now and goes
    assert lengths(["bb", "a", "dddd"]) == [2, 1, 4] and seen[2:] == [["bb", "dddd"]]
    assert lengths([]) == [] and len(lengths.results) == 2
    assert lengths(["\ud800"]) == [1]  # a lone surrogate has no UTF-8 encoding
    assert cached(lengths) is lengths and cached(len) is not len


def test_rows_of_an_array_are_results():
    rows = TextCache(lambda texts: np.array([[len(text), 0] for text in texts]))
    assert np.array_equal(rows(["ab", "c", "ab"]), [[2, 0], [1, 0], [2, 0]])


def test_pairs_are_scored_once_and_null_references_left_out():
    asked = []

    def score(generated, references):
        asked.extend(zip(generated, references, strict=True))
        return np.array([len(g) - len(r) for g, r in asked], float)

    completions = ["<report>abc</report>", "abc", "<think>x</think><report>abc</report>", [{"content": "z"}]]
    assert score_texts("name", score, completions, ["a", "a", None, "a"]) == [2.0, 2.0, None, 0.0]
    assert asked == [("abc", "a"), ("z", "a")]
    asked.clear()
    assert score_texts("name", score, ["abc"], ["a"], untagged="zero") == [-1.0]
    assert score_texts("name", score, ["abc"], [None]) == [None]
    with pytest.raises(ValueError, match="name needs the data set's column 'report'"):
        score_texts("name", score, ["abc"], None)


def states_of(texts):
    """As many states as the text has letters are positive: int, shape (n, 14)."""
    return np.array([[int(i < len(text)) for i in range(14)] for text in texts], dtype=int).reshape(-1, 14)


@pytest.mark.parametrize("column", ["labels", "report"])
def test_labels_where_no_row_has_a_reference(column):
    """Nothing is labelled, and what comes back are states all the same: integers, (0, 14)."""
    asked = []
    labeler = TextCache(lambda texts: asked.extend(texts) or states_of(texts))
    references = {"labels": None, "report": None, column: [None, None]}
    generated, truth, rows = label_pairs("name", labeler, ["a", "b"], ["a", "b"], **references)
    assert rows == asked == []
    for states in (generated, truth):
        assert states.shape == (0, 14) and np.issubdtype(states.dtype, np.integer)
    assert make_mccs_reward(labeler=labeler)(["a", "b"], **{column: [None, None]}) == [None, None]
    assert make_ce_f1_reward(labeler=labeler)(["a", "b"], **{column: [None, None]}) == [None, None]


def test_labels_of_the_rows_that_have_a_reference():
    """Texts are labelled in one call, the column `labels` wins over `report`, and each row keeps its place."""
    asked = []
    labeler = TextCache(lambda texts: asked.append(list(texts)) or states_of(texts))
    texts = ["a", "bb", "ccc"]
    generated, truth, rows = label_pairs("name", labeler, texts, texts, None, ["dddd", None, "eeeee"])
    assert rows == [0, 2] and asked == [["a", "ccc", "dddd", "eeeee"]]
    assert generated.sum(1).tolist() == [1, 3] and truth.sum(1).tolist() == [4, 5]
    labels = [None, [2] * 14, [3] * 14]
    generated, truth, rows = label_pairs("name", labeler, texts, texts, labels, ["x", "y", "z"])
    assert rows == [1, 2] and generated.sum(1).tolist() == [2, 3] and truth.tolist() == labels[1:]
    with pytest.raises(ValueError, match="name: row 2 of column 'labels' holds 13 states, not 14"):
        label_pairs("name", labeler, texts, texts, [None, [2] * 14, [3] * 13], None)
    with pytest.raises(ValueError, match="name needs the data set's column 'labels'"):
        label_pairs("name", labeler, texts, texts, None, None)
