import numpy as np
import pytest

from rewards.inputs import Remembered, remembered, score_texts


def test_texts_are_computed_once_and_forgotten_in_order():
    seen = []
    lengths = Remembered(lambda texts: seen.append(list(texts)) or [len(text) for text in texts], size=2)
    assert lengths(["a", "bb", "a"]) == [1, 2, 1] and seen == [["a", "bb"]]
    assert lengths(["a", "ccc"]) == [1, 3] and seen[1:] == [["ccc"]]  # "bb" is the oldest now and goes
    assert lengths(["bb", "a", "dddd"]) == [2, 1, 4] and seen[2:] == [["bb", "dddd"]]
    assert lengths([]) == [] and len(lengths.results) == 2
    assert lengths(["\ud800"]) == [1]  # a lone surrogate has no UTF-8 encoding
    assert remembered(lengths) is lengths and remembered(len) is not len


def test_rows_of_an_array_are_results():
    rows = Remembered(lambda texts: np.array([[len(text), 0] for text in texts]))
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
