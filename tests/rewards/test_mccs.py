import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rewards import make_mccs_reward, mccs_reward
from rewards.labelers import LexicalLabeler
from rewards.labels import FINDINGS, CheXpertState
from rewards.mccs import ccs, mccs

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState
states = arrays(np.int64, 14, elements=st.integers(0, 3))


def vector(*values: int) -> list[int]:
    """The given states first, the rest blank; No Finding blank."""
    return [*values, *[BLANK] * (14 - len(values))]


IDENTICAL = (vector(POSITIVE, NEGATIVE, NEGATIVE), vector(POSITIVE, NEGATIVE, NEGATIVE))
EMPTY = (vector(), vector())
TWO_OF_THREE = (vector(POSITIVE, NEGATIVE), vector(POSITIVE, NEGATIVE, NEGATIVE))
FLIPPED = (vector(NEGATIVE, NEGATIVE, NEGATIVE), vector(POSITIVE, NEGATIVE, NEGATIVE))
HEDGED = ([UNCERTAIN] * 13 + [BLANK], vector(*[POSITIVE] * 3, *[NEGATIVE] * 5))
MARGINS = (-0.5, 0.0, 0.2, 0.3, 0.5)


@pytest.mark.parametrize(
    ("pair", "cosine", "rewards"),
    [  # by hand from Eqs. 3 to 6
        (IDENTICAL, 1.0, (1, 1, 1, 1, 1)),  # the same labels
        (EMPTY, 0.0, (1 / 3, 0, 0, 0, 0)),  # no label on either side: -m / (1 - m)
        (TWO_OF_THREE, 2 / 6**0.5, tuple(max((2 / 6**0.5 - m) / (1 - m), 0) for m in MARGINS)),  # 2 / (sqrt 2 sqrt 3)
        (FLIPPED, 1 / 3, (5 / 9, 1 / 3, 1 / 6, 1 / 21, 0)),  # (2 - 1) / 3
        (HEDGED, -2 / 104**0.5, (max((-2 / 104**0.5 + 0.5) / 1.5, 0), 0, 0, 0, 0)),  # (3 - 5) / (sqrt 13 sqrt 8)
    ],
)
def test_examples(pair, cosine, rewards):
    assert ccs(*pair) == pytest.approx(cosine, abs=1e-6)
    for margin, reward in zip(MARGINS, rewards, strict=True):
        assert mccs(*pair, margin=margin) == pytest.approx(reward, abs=1e-6)


def test_a_flip_costs_more_than_an_omission():
    assert [float(ccs(*FLIPPED)), float(ccs(*TWO_OF_THREE))] == pytest.approx([0.3333, 0.8165], abs=1e-4)


def test_antipode_and_no_finding():
    assert ccs(vector(POSITIVE, NEGATIVE), vector(NEGATIVE, POSITIVE)) == pytest.approx(-1, abs=1e-6)
    with_no_finding = vector(POSITIVE)
    with_no_finding[13] = POSITIVE
    assert ccs(with_no_finding, vector(POSITIVE)) == pytest.approx(1, abs=1e-6)  # index 13 is dropped (Eq. 4)


def test_options():
    assert mccs(*EMPTY, empty_match=1.0) == 1
    assert mccs(vector(POSITIVE), vector(), empty_match=1.0) == 0  # only where both are empty
    assert ccs(vector(UNCERTAIN), vector(NEGATIVE), uncertain=0.0) == 0
    for margin in (-1, 1, 1.5):
        with pytest.raises(ValueError, match="margin"):
            make_mccs_reward(margin=margin)
    with pytest.raises(ValueError, match="untagged"):
        make_mccs_reward(untagged="report")


@given(states, states, st.floats(-0.9, 0.9))
def test_properties(a, b, margin):
    score = float(mccs(a, b, margin))
    assert 0 <= score <= 1 and score == pytest.approx(float(mccs(b, a, margin)))
    if ccs(a, b) <= margin:
        assert score == 0
    signed = [np.select([s == 1, s == 2, s == 3], [1, -1, 1], 0)[:13] for s in (a, b)]
    if signed[0].any() and signed[1].any():  # MCCS = 1 if and only if the vectors coincide
        assert (score > 1 - 1e-6) == bool((signed[0] == signed[1]).all())


# --- as a reward function -------------------------------------------------------------------------------------------

EFFUSION = "There is a left pleural effusion. No pneumothorax."
CLEAR = "No pleural effusion. No pneumothorax."


def test_reward_reads_labels_or_reports():
    from rewards.labelers import LexicalLabeler

    completions = [f"<think>pneumonia</think><report>{EFFUSION}</report>", CLEAR]
    by_text = mccs_reward(completions, report=[EFFUSION, EFFUSION])
    by_label = mccs_reward(completions, labels=LexicalLabeler()([EFFUSION] * 2).tolist())
    assert by_text == by_label == [pytest.approx(1), 0.0]  # the second: (-1 + 1) / 2 = 0
    assert mccs_reward(completions, labels=[None, LexicalLabeler()([CLEAR])[0].tolist()]) == [None, pytest.approx(1)]


STATES = {
    "one omitted": vector(POSITIVE, NEGATIVE),
    "hedged": vector(UNCERTAIN, POSITIVE),
    "silent": vector(),
    "": vector(),
}


def labeler(texts: list[str]) -> np.ndarray:
    return np.array([STATES[text] for text in texts])


@pytest.mark.parametrize(
    ("text", "reference", "options", "reward"),
    [
        ("one omitted", vector(POSITIVE, NEGATIVE, NEGATIVE), {}, (2 / 6**0.5 - 0.2) / 0.8),  # 2 / (sqrt 2 sqrt 3)
        ("one omitted", vector(POSITIVE, NEGATIVE, NEGATIVE), {"margin": 0.5}, (2 / 6**0.5 - 0.5) / 0.5),
        ("one omitted", vector(POSITIVE, NEGATIVE, NEGATIVE), {"margin": -0.5}, (2 / 6**0.5 + 0.5) / 1.5),
        ("one omitted", vector(POSITIVE, NEGATIVE, NEGATIVE), {"untagged": "zero"}, 0),  # no tags: an empty report
        ("hedged", vector(POSITIVE, POSITIVE), {}, 1),  # uncertain is +1 (Eq. 3)
        ("hedged", vector(POSITIVE, POSITIVE), {"uncertain": 0.0}, (1 / 2**0.5 - 0.2) / 0.8),  # 1 of 2, 1 / (1 sqrt 2)
        ("hedged", vector(POSITIVE, POSITIVE), {"uncertain": -1.0}, 0),  # (-1 + 1) / 2
        ("hedged", vector(UNCERTAIN, POSITIVE), {"uncertain": 0.0}, 1),  # in the reference, too
        ("silent", vector(), {}, 0),  # max(-0.2 / 0.8, 0)
        ("silent", vector(), {"margin": -0.5}, 1 / 3),  # 0.5 / 1.5
        ("silent", vector(), {"empty_match": 0.7}, 0.7),
        ("silent", vector(), {"margin": -0.5, "empty_match": 0.7}, 0.7),
        ("silent", vector(POSITIVE), {"empty_match": 0.7}, 0),
    ],
)
def test_options_of_the_factory(text, reference, options, reward):
    assert make_mccs_reward(labeler=labeler, **options)([text], labels=[reference]) == [pytest.approx(reward)]


def test_defaults_of_the_formula():
    assert mccs(*TWO_OF_THREE) == pytest.approx((2 / 6**0.5 - 0.2) / 0.8)
    assert mccs(vector(UNCERTAIN), vector(POSITIVE)) == pytest.approx(1) and mccs(*EMPTY) == 0


def test_untagged_text():
    assert make_mccs_reward()([EFFUSION], report=[EFFUSION]) == [pytest.approx(1)]
    assert make_mccs_reward(untagged="zero")([EFFUSION], report=[EFFUSION]) == [0.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "'labels'"),  # neither column
        ({"labels": [[0] * 13]}, "row 0 .* 13 states"),  # a label is missing
        ({"labels": [[0] * 14] * 2}, "1 completions but 2"),  # as many rows as completions
        ({"labels": [[9] * 14]}, "states"),  # a foreign encoding
    ],
)
def test_bad_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        mccs_reward([CLEAR], **columns)


pieces = st.sampled_from(
    ["<think>", "</think>", "<report>", "</report>", EFFUSION, CLEAR, "possible edema ", "ü\x00 "]
)
completion = st.lists(pieces, max_size=6).map("".join)


@given(st.lists(st.tuples(completion, states), min_size=1, max_size=6), st.randoms())
def test_a_reward_never_depends_on_batch_mates(rows, random):
    texts, labels = [text for text, _ in rows], [list(map(int, s)) for _, s in rows]
    together = mccs_reward(texts, labels=labels)
    assert together == [mccs_reward([t], labels=[s])[0] for t, s in zip(texts, labels, strict=True)]
    order = random.sample(range(len(rows)), len(rows))
    assert [together[i] for i in order] == mccs_reward([texts[i] for i in order], labels=[labels[i] for i in order])
    assert all(0 <= value <= 1 for value in together)


@pytest.mark.parametrize(
    "text", ["", "effusion " * 10_000, "<report>" * 10_000, "\x00\ufffd\U0001f4a9", "no " * 5_000]
)
def test_strange_completions_are_scored(text):
    (value,) = mccs_reward([text], labels=[vector(POSITIVE)])
    assert 0 <= value <= 1


def test_metrics_and_extra_columns_are_logged():
    metrics, extra = {}, {}
    mccs_reward(
        [f"<report>{CLEAR}</report>", ""],
        report=[CLEAR] * 2,
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
    )
    assert extra["report"] == [CLEAR, ""]
    assert metrics["mccs/empty_reports"] == metrics["mccs/untagged"] == 0.5
    assert metrics["agreement/Pleural Effusion"] == 1.0  # absent in both readings


def test_metrics_by_hand():
    """Of four completions the last has no reference: its labels agree with none, but its text is counted."""
    metrics = {}
    completions = ["one omitted", "one omitted", "<report>hedged</report>", ""]
    references = [vector(POSITIVE, POSITIVE), vector(NEGATIVE, NEGATIVE), vector(POSITIVE, BLANK, POSITIVE), None]
    make_mccs_reward(labeler=labeler)(completions, labels=references, log_metric=metrics.__setitem__)
    shares = {"Enlarged Cardiomediastinum": 2 / 3, "Cardiomegaly": 1 / 3, "Lung Opacity": 2 / 3}  # present or not
    assert {name: metrics.pop(f"agreement/{name}") for name in shares} == pytest.approx(shares)
    assert metrics.pop("mccs/empty_reports") == 1 / 4 and metrics.pop("mccs/untagged") == 3 / 4
    assert metrics.pop("mccs/distinct_reports") == 3 / 4
    assert metrics == dict.fromkeys((f"agreement/{name}" for name in FINDINGS[3:]), 1)  # blank on both sides


def test_the_labeler_is_named_once(caplog):
    reward = make_mccs_reward(margin=0.3)
    for _ in range(2):
        reward([CLEAR], report=[CLEAR])
    assert caplog.messages == ["mccs_reward: labeler lexical, margin 0.3"]


def test_share_of_reports_that_the_labeler_reads_in_part():
    class Short(LexicalLabeler):
        def truncated(self, texts):
            return [len(text) > 20 for text in texts]

    texts = [f"<report>{text}</report>" for text in ("Edema.", "x" * 20, "x" * 21, "x" * 99)] + ["<think>" + "x" * 99]
    for labeler, expected in ((Short(), 2 / 5), (LexicalLabeler(), None)):
        metrics = {}
        make_mccs_reward(labeler=labeler)(texts, report=["Edema."] * 5, log_metric=metrics.__setitem__)
        assert metrics.get("mccs/truncated_reports") == expected  # reasoning is not labelled, so not counted


def test_factory_products_keep_readable_names():
    assert make_mccs_reward().__name__ == "mccs_reward"  # TRL logs by it
