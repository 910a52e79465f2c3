"""BLEU, ROUGE-L, CIDEr-D and METEOR: values by hand, pycocoevalcap's figures, and what only a reward needs."""

import json
import math
import os
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge, my_lcs

from recipes.evaluation.meteor import meteor_lite, meteor_of_sums, meteor_statistics
from rewards.bleu import bleu, bleu_reward, make_bleu_reward, tokenize
from rewards.cider import (
    _default_reward,
    cider_d,
    cider_reward,
    document_frequencies,
    load_document_frequencies,
    make_cider_reward,
    save_document_frequencies,
)
from rewards.rouge import common_subsequence, make_rouge_reward, rouge_l, rouge_reward

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
REFERENCE = "the heart is normal in size . no pleural effusion ."


@pytest.fixture(scope="module")
def openi() -> tuple[list[str], list[str]]:
    """382 reports of one system and their references (Open-i), on `tokenize`d text."""
    folder = DATA / "mrg_rl" / "dev" / "result"
    if not folder.is_dir():
        pytest.skip("the Open-i outputs are not shipped: set RRG_DATA")
    truth, found = (json.loads((folder / name).read_text()) for name in ("test_refs.json", "test_result.json"))
    assert truth.keys() == found.keys() and len(truth) == 382
    return [tokenize(found[key][0]) for key in truth], [tokenize(texts[0]) for texts in truth.values()]


def coco(texts: list[str]) -> dict[int, list[str]]:
    return {i: [text] for i, text in enumerate(texts)}


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("No effusion.Heart is normal!", "no effusion . heart is normal !"),  # also without a space behind the stop
        ("right-sided T9-T10, patient's", "right-sided t9-t10 , patient's"),  # joined words stay whole
        ("1.5 cm, 2.", "1.5 cm , 2 ."),  # a decimal, and the end of a sentence
        ("a/b (c) 50%\n\n- d  .  .", "a / b ( c ) 50 % - d . ."),  # white space only separates
        ("___ Ödem \u200b\U0001f4a9\ud800\x00", "___ ödem \u200b \U0001f4a9 \ud800 \x00"),  # nothing is lost
        (" \n", ""),
    ],
)
def test_tokens(text, tokens):
    assert tokenize(text) == tokens == tokenize(tokens)


def test_published_tokens_come_back(openi):
    folder = DATA / "mrg_rl" / "dev" / "result"
    texts = [
        t[0]
        for name in ("test_refs", "test_result")
        for t in json.loads((folder / f"{name}.json").read_text()).values()
    ]
    other = [text for text in texts if tokenize(text).split() != text.split()]
    assert len(texts) == 764 and len(other) == 2  # "xxxx-" and a stray "</think>"


# --- pycocoevalcap's figures ----------------------------------------------------------------------------------------


def test_equal_to_pycocoevalcap(openi):
    generated, references = openi
    _, items = Bleu(4).compute_score(coco(references), coco(generated), verbose=0)
    for order in (1, 2, 3, 4):
        assert bleu(generated, references, order, smoothing=0) == pytest.approx(items[order - 1], rel=0, abs=1e-12)
    mean, items = Rouge().compute_score(coco(references), coco(generated))
    assert rouge_l(generated, references) == pytest.approx(list(items), rel=0, abs=1e-12)
    corpus, items = Cider().compute_score(coco(references), coco(generated))
    scores = cider_d(generated, references, document_frequencies(references))
    assert scores == pytest.approx(list(items), rel=0, abs=1e-12)
    assert sum(scores) / 382 == pytest.approx(corpus, rel=0, abs=1e-12)
    assert 0.3 < mean < 0.35 and 0.19 < corpus < 0.2  # real text: neither 0 nor 1 throughout


def test_the_rewards_are_these_figures(openi):
    generated, references = (texts[:40] for texts in openi)
    tagged = [f"<think>No effusion.</think><report>{text}</report>" for text in generated]
    assert make_bleu_reward(smoothing=0)(tagged, report=references) == bleu(generated, references, smoothing=0)
    assert rouge_reward(tagged, report=references) == rouge_l(generated, references)
    table = document_frequencies(references)
    assert make_cider_reward(references, scale=1)(tagged, report=references) == cider_d(generated, references, table)
    tenth = [value / 10 for value in cider_d(generated, references, table)]
    assert make_cider_reward(table)(tagged, report=references) == pytest.approx(tenth)


words = st.lists(st.sampled_from("abcd"), max_size=12)


@given(words, words)
def test_common_subsequence(a, b):
    assert common_subsequence(a, b) == (my_lcs(a, b) if a and b else 0)


# --- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "order", "smoothing", "value"),
    [
        (REFERENCE, 4, 0.1, 1),  # the same text
        ("No pleural effusion.", 4, 0.1, math.exp(1 - 11 / 4)),  # all 4-grams there; too short: 4 tokens of 11
        ("no heart", 2, 0, math.exp(1 - 11 / 2) * 1e-15**0.5),  # 2/2, 0/1: practically 0 without smoothing
        ("no heart", 2, 0.1, math.exp(1 - 11 / 2) * 0.1**0.5),  # 0.1/1 in place of 0/1
        ("no heart", 4, 0.1, math.exp(1 - 11 / 2) * 0.1**0.5),  # two tokens have no 3-grams to miss
        ("the the the lungs " * 5, 4, 0.1, (1 / 20 * 0.1 / 19 * 0.1 / 18 * 0.1 / 17) ** 0.25),  # "the" counts once
        ("pneumothorax", 4, 0.1, 0),  # no common word
        ("", 4, 0.1, 0),
        ("", 4, 0, 0),
    ],
)
def test_bleu_by_hand(text, order, smoothing, value):
    assert bleu([text], [REFERENCE], order, smoothing) == pytest.approx([value], rel=1e-6, abs=1e-12)


SHORTNESS = math.exp(1 - 11 / 4)  # 4 tokens of 11


@pytest.mark.parametrize(
    ("options", "value"),
    [  # of "no pleural effusion heart": 4/4 words, 2/3 pairs, 1/2 triples, and 0/1, for which 0.1/1 is counted
        ({}, (2 / 3 * 1 / 2 * 0.1) ** (1 / 4)),
        ({"order": 3}, (2 / 3 * 1 / 2) ** (1 / 3)),
        ({"order": 2}, (2 / 3) ** (1 / 2)),
        ({"order": 1}, 1),
        ({"smoothing": 0.3}, (2 / 3 * 1 / 2 * 0.3) ** (1 / 4)),
        ({"smoothing": 0}, (2 / 3 * 1 / 2 * 1e-15) ** (1 / 4)),
        ({"tokens": lambda text: tokenize(text.replace("heart", "."))}, (1 * 1 * 1) ** (1 / 4)),  # "effusion ." too
        ({"untagged": "zero"}, 0),
    ],
)
def test_options_of_the_bleu_factory(options, value):
    rewards = make_bleu_reward(**options)(["no pleural effusion heart"], report=[REFERENCE])
    assert rewards == [pytest.approx(SHORTNESS * value, rel=1e-6)]
    if not options:
        assert bleu(["no pleural effusion heart"], [REFERENCE]) == rewards


def test_bleu_of_a_short_reference():
    """Identical texts of three words: 1, where unsmoothed BLEU-4 gives 0.03 (ORACLES.md: radeval's value)."""
    assert bleu(["No acute disease"], ["no acute disease"]) == pytest.approx([1])
    assert bleu(["No acute disease"], ["no acute disease"], smoothing=0) == pytest.approx([1e-6**0.25], rel=1e-6)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (REFERENCE, 1),
        ("no effusion , heart normal", 2.44 * (3 / 5) * (3 / 11) / (3 / 11 + 1.44 * 3 / 5)),  # "no effusion" or ...
        ("no pneumothorax", 2.44 * (1 / 2) * (1 / 11) / (1 / 11 + 1.44 * 1 / 2)),  # one word of 2, of 11
        ("cardiomegaly", 0),
        ("", 0),
    ],
)
def test_rouge_by_hand(text, value):
    if text.startswith("no effusion"):  # longest common subsequence: "no effusion", 2 words of 5 and of 11
        value = 2.44 * (2 / 5) * (2 / 11) / (2 / 11 + 1.44 * 2 / 5)
    assert rouge_l([text], [REFERENCE]) == pytest.approx([value])
    assert make_rouge_reward()([text], report=[REFERENCE]) == pytest.approx([value])
    assert make_rouge_reward(untagged="zero")([f"<report>{text}</report>"], report=[REFERENCE]) == [
        pytest.approx(value)
    ]


def test_cider_by_hand():
    """Two training texts, so log 2 for an n-gram of one, 0 for one of both, and log 2 for an unknown one."""
    table = document_frequencies(["a b", "a c"])
    assert (table.documents, table.counts) == (2, {("a",): 2})
    # 1-grams: a weighs 0, so b against b is 1; 2-grams: 1; no 3- or 4-grams. Mean over four lengths, times ten.
    assert cider_d(["a b"], ["a b"], table) == pytest.approx([10 * 2 / 4])
    # 1-grams: (b, d) against (b): 1 / sqrt 2; 2-grams: (ab, bd) against (ab): 1 / sqrt 2; a 2-gram more: e^(-1/72)
    assert cider_d(["a b d"], ["a b"], table) == pytest.approx([10 * 2 * 0.5**0.5 * math.exp(-1 / 72) / 4])
    # repeating b: counted once (clipped), 1 * 1 / (2 * 1), and e^(-4/72) for two 2-grams more; ab among ab, bb, bb
    assert cider_d(["a b b b"], ["a b"], table) == pytest.approx([10 * (1 / 3 + 1 / 5**0.5) * math.exp(-4 / 72) / 4])
    assert cider_d(["", "a", "e f"], ["a b"] * 3, table) == [0, 0, 0]
    # the same through the factory, a tenth of it by default; its `tokens` are those of the table, too
    value = 10 * 2 * 0.5**0.5 * math.exp(-1 / 72) / 4
    assert make_cider_reward(["a b", "a c"])(["a b d"], report=["a b"]) == [pytest.approx(value / 10)]
    assert make_cider_reward(["a b", "a c"], scale=3)(["a b d"], report=["a b"]) == [pytest.approx(3 * value)]
    split = make_cider_reward(["a-b", "a-c"], tokens=lambda text: text.replace("-", " "))
    assert split(["a-b-d"], report=["a-b"]) == [pytest.approx(value / 10)]


# What METEOR 1.5's jar answered for four pairs of our own, token counts first, and its scores of them (run by hand: it
# takes 15 s to start). Made up reports: identical; other words in another order; one of two sentences; nothing.
METEOR_PAIRS = [
    ("The heart is normal in size. No pleural effusion.", "The heart is normal in size. No pleural effusion."),
    (
        "Small effusions on the left side, heart enlarged.",
        "There is a small left pleural effusion. The heart is enlarged.",
    ),
    ("There is a pneumothorax.", "No pneumothorax is seen. The lungs are clear."),
    ("", "Clear lungs."),
]
METEOR_ANSWERS = [
    "11 11 6 6 5 5 6 6 0 0 0 0 0 0 0 0 0 0 0 0 1 11 11",
    "10 13 4 7 4 4 2 2 0 0 0 0 0 0 0 0 0 0 0 0 5 6 6",
    "5 10 4 6 1 1 2 2 0 0 0 0 0 0 0 0 0 0 0 0 3 3 3",
    "0 3 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
]
METEOR_SCORES = [1.0, 0.24035775830460007, 0.12232415902140675, 0.0]
METEOR_CORPUS = 0.2950438175733979


@pytest.fixture
def jar(monkeypatch):
    """Stands in for the jar: what it is sent, and the answers that it gives."""

    class Jar:
        sent, answers = [], list(METEOR_ANSWERS)

        def _stat(self, text, references):
            self.sent.append((text, references))
            return self.answers[len(self.sent) - 1]

    monkeypatch.setattr("recipes.evaluation.meteor.Meteor", Jar)
    monkeypatch.setattr("shutil.which", lambda name: name)
    return Jar


def test_meteor_equals_the_jar(jar):
    counts = meteor_statistics(*zip(*METEOR_PAIRS, strict=True))
    assert meteor_of_sums(counts).tolist() == pytest.approx(METEOR_SCORES, abs=1e-12)
    assert meteor_of_sums(counts.sum(0)) == pytest.approx(METEOR_CORPUS, abs=1e-12)


def test_meteor_gets_tokens(jar):
    texts = ["The heart is  normal |||\nin size.", "no pneumothorax", "left " * 5000, "effusions\ud800"]
    meteor_statistics(texts, [REFERENCE] * 4)
    lines = ["the heart is normal | | | in size .", "no pneumothorax", " ".join(["left"] * 2000), "effusions ?"]
    assert jar.sent == [(line, [REFERENCE]) for line in lines]  # one line, no separator, not too long


def test_meteor_whose_java_gives_up(jar):
    jar.answers = [METEOR_ANSWERS[0], ""]
    with pytest.raises(RuntimeError, match="no answer for pair 1: it ended"):
        meteor_statistics([REFERENCE] * 2, [REFERENCE] * 2)


def test_meteor_without_java(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=r"METEOR needs Java .* install"):
        meteor_statistics([REFERENCE], [REFERENCE])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="not 1 and 0 texts"):
        meteor_statistics([REFERENCE], [])


def test_meteor_lite_by_hand():
    """P R / (0.9 P + 0.1 R), less half the cube of chunks / matches of it."""

    def f(precision: float, recall: float) -> float:
        return precision * recall / (0.9 * precision + 0.1 * recall)

    pairs = [
        ("No effusion.", "no effusion .", 1 - 0.5 / 3**3),  # one chunk of three
        ("No effusions.", "No effusion.", 1 - 0.5 / 3**3),  # by the stem
        ("effusion no .", "no effusion .", f(1, 1) * (1 - 0.5 * (3 / 3) ** 3)),  # three chunks
        ("no large effusion", "no effusion . heart", f(2 / 3, 2 / 4) * (1 - 0.5 * (2 / 2) ** 3)),  # "large" between
        ("no effusion", "no effusion . heart", f(2 / 2, 2 / 4) * (1 - 0.5 * (1 / 2) ** 3)),
        ("big heart", "large heart", f(1 / 2, 1 / 2) * (1 - 0.5)),  # no synonyms
        ("pneumothorax", "no effusion", 0),
        ("", "no effusion", 0),
    ]
    generated, references, scores = zip(*pairs, strict=True)
    assert meteor_lite(generated, references) == pytest.approx(scores)
    assert meteor_lite(["left " * 5000, "effusions\ud800"], ["left " * 2000, "effusion ?"])[0] > 0.999  # cut at 2,000


# --- as rewards -----------------------------------------------------------------------------------------------------


def test_reports_only_and_null_references():
    tagged = f"<think>cardiomegaly edema</think><report>{REFERENCE}</report>"
    for reward in (bleu_reward, rouge_reward, make_cider_reward([REFERENCE, "lungs are clear ."])):
        assert reward([tagged, tagged], report=[REFERENCE, None]) == [pytest.approx(1), None]
        assert reward([""], report=[REFERENCE]) == [0]
        with pytest.raises(ValueError, match="needs the data set's column 'report'"):
            reward([tagged])
        with pytest.raises(ValueError, match="row 0 of column 'report' is an empty text"):
            reward([tagged], report=[" "])
    for make in (make_bleu_reward, make_rouge_reward, lambda **kwargs: make_cider_reward(["a b", "c d"], **kwargs)):
        assert make(untagged="zero")([REFERENCE], report=[REFERENCE]) == [0]
        with pytest.raises(ValueError, match="untagged"):
            make(untagged="report")


def test_other_tokens():
    """RadCliQ's BLEU-2 cuts at spaces after a space before each full stop: `tokens` is any such function."""
    radcliq = make_bleu_reward(order=2, smoothing=0, tokens=lambda text: text.lower().replace(".", " ."))
    assert radcliq(["Heart, normal."], report=["heart, normal ."]) == [pytest.approx(1)]
    assert make_rouge_reward(tokens=str)(["a  b"], report=["a  b c"])[0] == Rouge().calc_score(["a  b"], ["a  b c"])


@pytest.mark.parametrize("settings", [{"order": 0}, {"smoothing": -1}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="order must be at least 1 and smoothing at least 0"):
        make_bleu_reward(**settings)


def test_readable_names():
    names = [reward.__name__ for reward in (make_bleu_reward(), make_rouge_reward(), make_cider_reward(["a", "b"]))]
    assert names == ["bleu_reward", "rouge_reward", "cider_reward"] and cider_reward.__name__ == "cider_reward"


# --- document frequencies -------------------------------------------------------------------------------------------


def test_the_training_split_weighs(openi):
    """Scores depend on the table, not on the texts scored together."""
    generated, references = (texts[:20] for texts in openi)
    reward = make_cider_reward(openi[1][20:])
    together = reward(generated, report=references)
    assert together == [reward([a], report=[b])[0] for a, b in zip(generated, references, strict=True)]
    assert together != make_cider_reward(openi[1][:200])(generated, report=references)


def test_saved_table(tmp_path, openi):
    generated, references = openi
    table = document_frequencies(references)
    save_document_frequencies(table, tmp_path / "table.json")
    assert load_document_frequencies(tmp_path / "table.json") == table
    assert make_cider_reward(tmp_path / "table.json")(generated, report=references) == make_cider_reward(references)(
        generated, report=references
    )


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([], "not 0 text"),
        (["one report"], "not 1 text"),
        (["no effusion .", " "], "reference 1 is empty"),
        (["no effusion .", None], "reference 1 is empty"),
    ],
)
def test_bad_references_are_refused(references, message):
    with pytest.raises(ValueError, match=message):
        make_cider_reward(references)


def test_bad_tables_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="save_document_frequencies"):
        make_cider_reward(tmp_path / "table.json")
    for content in ("{", "[1]", "{}", '{"documents": 3, "counts": 1}'):
        (tmp_path / "table.json").write_text(content)
        with pytest.raises(ValueError, match="is no table of document frequencies"):
            make_cider_reward(tmp_path / "table.json")


def test_default_instance(tmp_path, monkeypatch):
    """It reads the table that the environment names, or says at its first call what it needs."""
    monkeypatch.delenv("RRG_CIDER_TABLE", raising=False)
    with pytest.raises(ValueError, match="set RRG_CIDER_TABLE to a table"):
        cider_reward([REFERENCE], report=[REFERENCE])
    save_document_frequencies(document_frequencies([REFERENCE, "lungs are clear ."]), tmp_path / "table.json")
    monkeypatch.setenv("RRG_CIDER_TABLE", str(tmp_path / "table.json"))
    assert cider_reward([REFERENCE], report=[REFERENCE]) == [pytest.approx(1)]
    _default_reward.cache_clear()


def test_memory_is_bounded():
    """12,000 distinct completions and references; looking an n-gram up does not add it to the table."""
    table = document_frequencies([REFERENCE, "no pleural effusion ."])
    before = dict(table.counts)
    rewards = [make_bleu_reward(), make_rouge_reward(), make_cider_reward(table)]
    sizes = []
    for start in range(0, 4_000, 100):
        texts = [f"nodule {i} in the left lung . no effusion {i} ." for i in range(start, start + 100)]
        for reward in rewards:
            reward(texts, report=texts[1:] + texts[:1])
        sizes.append(psutil.Process().memory_info().rss)
    assert sizes[-1] - sizes[5] < 15e6
    assert table.counts == before


def test_long_completions_are_cheap():
    """10,000 tokens against 300: pycocoevalcap's own ROUGE-L builds a table of three million numbers for it."""
    long, reference = ["effusion no heart " * 3_334], ["no pleural effusion " * 100]
    start = psutil.Process().cpu_times().user
    assert 0 < rouge_l(long, reference)[0] < 1
    assert psutil.Process().cpu_times().user - start < 1
