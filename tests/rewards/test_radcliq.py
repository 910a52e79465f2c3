import csv
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.inputs import TextCache
from rewards.radcliq import (
    NAMES,
    PARAMETERS,
    bleu2,
    make_lexical_parts,
    make_radcliq_reward,
    make_semb_part,
    radcliq_lite_reward,
    radcliq_score,
    radcliq_to_reward,
)
from rewards.table import import_reward

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
PERFECT = {"v0": -0.24213342294409346, "v1": -1.4406902828047017}  # published with the parameters
EFFUSION = "Small left pleural effusion. No pneumothorax."
FLIPPED = "No left pleural effusion. Pneumothorax."


def path(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"needs {name} in $RRG_DATA")
    return DATA / name


# --- the composite --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "v0", "v1"),
    [  # worked by hand from the published coefficients
        ((1, 1, 1, 1), PERFECT["v0"], PERFECT["v1"]),
        ((0, 0, 0, 0), 5.5162, 2.4501),
        ((0.2, 0.35, 0.4, 0.2), 3.5384, 1.2254),
    ],
)
def test_composite(parts, v0, v1):
    assert radcliq_score(*parts, "v0") == pytest.approx(v0, abs=1e-4)
    assert radcliq_score(*parts, "v1") == pytest.approx(v1, abs=1e-4)


SLOPES = {"v0": 0.4796253 / 0.3018344, "v1": 0.3770837 / 0.3028258}  # of RadCliQ in RadGraph's F1, downwards
PARTS_ALONE = [  # that part 1, the others 0: RadCliQ of four zeros less coefficient / scale of that part, as published
    ("radgraph", 5.5162 - SLOPES["v0"], 2.4501 - SLOPES["v1"]),
    ("bertscore", 5.5162 - 0.6762171 / 0.2246695, 2.4501 - 0.3703001 / 0.2243094),
    ("semb", 5.5162 - 0.4636658 / 0.2475033, 2.4501 - 0.2526162 / 0.2539439),
    ("bleu", 5.5162 + 0.2165862 / 0.3033667, 2.4501),  # counts nothing in v1 and the wrong way in v0
]


@pytest.mark.parametrize(("name", "v0", "v1"), PARTS_ALONE)
def test_no_part_stands_for_another(name, v0, v1):
    """The four values differ by 0.25 or more: exchanged coefficients or parts would show."""
    parts = [float(each == name) for each in ("radgraph", "bertscore", "semb", "bleu")]
    for version, score in (("v0", v0), ("v1", v1)):
        assert radcliq_score(*parts, version) == pytest.approx(score, abs=1e-4)
        metrics = {}
        given = {each: constant(float(each == name)) for each in NAMES}
        reward = make_radcliq_reward(**given, version=version, transform="neg")
        assert reward(["a"], report=["b"], log_metric=metrics.__setitem__) == [pytest.approx(-score, abs=1e-4)]
        assert metrics.pop("radcliq/score") == pytest.approx(score, abs=1e-4)
        assert metrics == {f"radcliq/{each}": float(each == name) for each in NAMES}


@pytest.mark.parametrize(("version", "error"), [("v0", 0.003), ("v1", 0.002)])
def test_leaderboard_rows(version, error):
    """25 published systems: sub-scores of three digits and RadCliQ itself (not its inverse)."""
    rows = list(csv.DictReader(path("radcliq/leaderboard_rows_dev.csv").open()))
    parts = [[float(row[name]) for row in rows] for name in ("RadGraph", "BertScore", "SembScore", "BLEU")]
    published = [float(row[f"RadCliQ-{version}"]) for row in rows]
    assert len(rows) == 25 and np.abs(radcliq_score(*parts, version) - published).max() <= error


def test_parameters_are_the_published_ones():
    published = json.loads(path("radcliq/radcliq_params.json").read_text())
    for version, values in PARAMETERS.items():
        for name, mine in zip(("mean", "scale", "coef", "intercept"), values, strict=True):
            assert np.array_equal(mine, published[version][name])


unit = st.floats(-1, 1)


@given(unit, unit, unit, unit, st.sampled_from(["v0", "v1"]))
def test_transforms(radgraph, bertscore, semb, bleu, version):
    score = radcliq_score(radgraph, bertscore, semb, bleu, version)
    better = radcliq_score(radgraph + 0.1, bertscore + 0.1, semb + 0.1, bleu, version)
    assert better < score
    for transform in ("affine", "exp", "reciprocal"):
        low, high = (radcliq_to_reward(x, version, transform) for x in (score, better))
        assert 0 <= low <= high <= 1
        assert radcliq_to_reward(PERFECT[version], version, transform) == pytest.approx(1)
    assert radcliq_to_reward(score, version, "neg") == -score


def test_the_papers_values():
    """LM-RRG's RadCliQ with and without RL, and R2Gen's (Table 1 and 3), as rewards (A-11)."""
    assert radcliq_to_reward([0.865, 1.023, 1.552]).tolist() == pytest.approx([0.407, 0.367, 0.231], abs=5e-4)
    assert radcliq_to_reward([3.0, -2.0]).tolist() == [0, 1]  # beyond four zeros and four ones: clipped


@pytest.mark.parametrize(("version", "span"), [("v0", 5.5162 + 0.2421), ("v1", 2.4501 + 1.4407)])
def test_transforms_by_hand(version, span):
    """One more than the best RadCliQ, of the `span` between four zeros and four ones."""
    score = PERFECT[version] + 1
    assert radcliq_to_reward(score, version, "affine") == pytest.approx(1 - 1 / span, abs=1e-4)
    assert radcliq_to_reward(score, version, "exp") == pytest.approx(np.exp(-1))
    assert radcliq_to_reward(score, version, "reciprocal") == pytest.approx(1 / 2)
    assert radcliq_to_reward(score, version, "neg") == -score
    for transform, reward in (("affine", 1 - 1 / span), ("exp", np.exp(-1)), ("reciprocal", 1 / 2), ("neg", -score)):
        parts = {"radgraph": 1 - 1 / SLOPES[version], "bertscore": 1, "semb": 1, "bleu": 1}  # 1 worse by the graph
        product = make_radcliq_reward(
            **{name: constant(value) for name, value in parts.items()}, version=version, transform=transform
        )
        assert product(["a"], report=["b"]) == [pytest.approx(reward, abs=1e-4)]


def test_defaults_of_the_formulas():
    assert radcliq_score(1, 1, 1, 1) == pytest.approx(PERFECT["v1"])
    assert radcliq_to_reward(PERFECT["v1"] + 1) == pytest.approx(1 - 1 / 3.8908, abs=1e-4)  # v1, affine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": "v2"}, "version must be one of v0, v1"),
        ({"transform": "inverse"}, "transform must be one of"),
        ({"untagged": "report"}, "untagged"),
        ({"bertscore": lambda generated, references: [0.0] * len(generated)}, "lite"),  # says nothing of itself
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_radcliq_reward(**arguments)


# --- parts ----------------------------------------------------------------------------------------------------------


def constant(value: float, lite: bool = False):
    def part(generated: list[str], references: list[str]) -> np.ndarray:
        return np.full(len(generated), value)

    part.name, part.lite = "constant", lite
    return part


def test_name_says_whether_a_part_is_lite():
    real = dict.fromkeys(NAMES, constant(1.0))
    assert make_radcliq_reward(**real).__name__ == "radcliq_reward"
    for name in NAMES:
        assert make_radcliq_reward(**real | {name: constant(1.0, lite=True)}).__name__ == "radcliq_lite_reward"
    for name in ("radgraph", "bertscore", "semb"):  # left out: the lexical one
        assert make_radcliq_reward(**real | {name: None}).__name__ == "radcliq_lite_reward"
    assert make_radcliq_reward(**real | {"bleu": None}).__name__ == "radcliq_reward"  # BLEU-2 has no stand-in
    assert radcliq_lite_reward.__name__ == "radcliq_lite_reward"


def test_reward_is_the_transform_of_the_parts():
    values = dict(zip(NAMES, (0.2, 0.35, 0.4, 0.2), strict=True))
    parts = {name: constant(value) for name, value in values.items()}
    assert make_radcliq_reward(**parts)(["a"], report=["b"]) == [pytest.approx((2.4501 - 1.2254) / 3.8908, abs=1e-4)]
    assert make_radcliq_reward(**parts, transform="neg")(["a"], report=["b"]) == [pytest.approx(-1.2254, abs=1e-4)]
    assert make_radcliq_reward(**parts, version="v0", transform="neg")(["a"], report=["b"]) == [
        pytest.approx(-3.5384, abs=1e-4)
    ]


def test_a_part_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="semb gave a score that is no finite number"):
        make_radcliq_reward(semb=constant(float("nan")))(["a"], report=["b"])


def test_semb():
    vectors = {"a": (1.0, 0.0), "b": (1.0, 1.0), "zero": (0.0, 0.0)}
    calls = []

    def embed(texts: list[str]) -> np.ndarray:
        calls.extend(texts)
        return np.array([vectors[text] for text in texts])

    with pytest.raises(ValueError, match="lite"):
        make_semb_part(embed)
    embed.lite = False
    shared = TextCache(embed)
    part = make_semb_part(shared)
    assert part(["a", "b", "zero"], ["b", "b", "a"]) == pytest.approx([2**-0.5, 1, 0])
    shared(["a", "zero"])  # what another reward embeds is not embedded again
    assert calls == ["a", "b", "zero"] and part.lite is False and make_semb_part(embed, lite=True).lite is True


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [
        ("No pleural effusion.", "No pleural effusion.", 1.0),
        ("Pleural effusion.", "no pleural effusion .", np.exp(1 - 4 / 3)),  # 3 of 3, 2 of 2; brevity penalty
        ("effusion edema", "edema effusion", (1 * 0.1 / 1) ** 0.5),  # no bigram of one: smoothed to 0.1
        ("edema", "effusion", 0.0),
    ],
)
def test_bleu2(generated, reference, expected):
    assert bleu2([generated], [reference])[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("generated", "reference", "radgraph", "bertscore", "semb"),
    [  # by hand; the label vectors end in the constant 0.1
        (EFFUSION, EFFUSION, 1, 1, 1),
        ("Cardiomegaly.", "Cardiomegaly.", 1, 1, 1),  # without a relation
        ("Rotated view.", "Rotated view.", 1, 1, 1),  # without a label
        ("Cardiomegaly.", "The heart is enlarged.", 0, 1, 1),  # other words for the same thing
        ("Pleural effusion.", "No pleural effusion.", 0.25, 0.5, (0.01 - 1) / (1.01 * 2.01) ** 0.5),  # EF; EF, NF
        ("Mild edema.", "Severe edema.", (0.5 + 0) / 2, 0.5, 1),  # severity: no label sees it
    ],
)
def test_lexical_parts(generated, reference, radgraph, bertscore, semb):
    parts = make_lexical_parts()
    for name, expected in (("radgraph", radgraph), ("bertscore", bertscore), ("semb", semb)):
        assert parts[name]([generated], [reference])[0] == pytest.approx(expected, abs=1e-9), name


# --- as a reward function -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_divergence_examples(version):
    """Eight pairs published by RadEval, each with what a reward should make of it."""
    rows = json.loads(path("radeval_expected/divergence_examples.json").read_text())
    reward = make_radcliq_reward(version=version)
    scores = reward([row["hyp"] for row in rows], report=[row["ref"] for row in rows])
    paraphrase, flip, omission, invention, exact, mismatch, severity, opposite = scores
    assert exact == pytest.approx(1) and exact == max(scores)
    assert flip < paraphrase - 0.4
    assert max(flip, mismatch, opposite) < min(paraphrase, omission, invention, severity) - 0.2
    assert severity < 0.8  # seen, by the words and the graph


def test_clinical_changes_are_ordered():
    reference = "Small left pleural effusion. The heart is enlarged. No pneumothorax. No focal consolidation."
    changed = {
        "none": reference,
        "words": "Cardiomegaly. Left small pleural effusion. No focal consolidation. No pneumothorax.",
        "side": reference.replace("left", "right"),
        "size": reference.replace("Small", "Large"),
        "omission": reference.replace("Small left pleural effusion. ", ""),
        "invention": reference + " There is a rib fracture.",
        "flip": reference.replace("Small left", "No"),
    }
    scores = dict(zip(changed, radcliq_lite_reward(list(changed.values()), report=[reference] * 7), strict=True))
    assert scores["none"] == 1
    assert all(scores[name] < scores["words"] for name in changed if name not in ("none", "words"))
    assert scores["flip"] < min(score for name, score in scores.items() if name != "flip")


def test_empty_reports_earn_nothing():
    assert radcliq_lite_reward(["", "<report> </report>", "<think>edema</think>"], report=[EFFUSION] * 3) == [0.0] * 3
    lowest = make_radcliq_reward(transform="neg")(["", EFFUSION], report=[EFFUSION, None])
    assert lowest == [pytest.approx(-2.4501, abs=1e-4), None]  # the value of four zeros


def test_reads_the_report_only():
    completions = [
        f"<think>{FLIPPED}</think><report>{EFFUSION}</report>",
        [{"role": "assistant", "content": EFFUSION}],
    ]
    assert radcliq_lite_reward(completions, report=[EFFUSION] * 2) == [pytest.approx(1)] * 2
    assert make_radcliq_reward(untagged="zero")([EFFUSION], report=[EFFUSION]) == [0.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "radcliq_lite_reward needs .*'report'"),
        ({"report": ["a", "b"]}, "1 completions but 2"),
        ({"report": [""]}, "empty"),
    ],
)
def test_bad_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        radcliq_lite_reward(["x"], **columns)


def test_metrics_are_logged():
    metrics = {}
    radcliq_lite_reward([EFFUSION, ""], report=[EFFUSION] * 2, log_metric=metrics.__setitem__)
    assert set(metrics) == {f"radcliq_lite/{name}" for name in ("score", *NAMES)}
    assert metrics["radcliq_lite/semb"] == pytest.approx(0.5)  # 1 and 0
    assert metrics["radcliq_lite/score"] == pytest.approx((2.4501 - 1.4407) / 2, abs=1e-4)


pieces = st.sampled_from(
    ["<think>", "</think>", "<report>", EFFUSION, FLIPPED, "possible edema ", "heart ", "is enlarged. ", "ü\x00 "]
)
report = st.lists(pieces, max_size=6).map("".join)


@pytest.mark.parametrize(("name", "part"), [("lexical_words", "bertscore"), ("lexical_semb", "semb")])
def test_parts_alone_are_rewards(name, part):
    reward = import_reward(f"rewards.radcliq.{name}_reward")
    assert reward.__name__ == f"{name}_reward"
    texts = ["Small effusion.", "<think>No.</think><report>No effusion.</report>", ""]
    scores = reward(texts, report=["Small effusion."] * 3)
    other = make_lexical_parts()[part](["No effusion."], ["Small effusion."])[0]
    assert scores == pytest.approx([1.0, other, 0.0]) and other < 1
    assert pickle.loads(pickle.dumps(reward))(texts, report=texts[:1] * 3) == scores


@settings(deadline=None)
@given(st.lists(st.tuples(report, report.filter(str.strip)), min_size=1, max_size=5), st.randoms())
def test_properties(rows, random):
    texts, references = [text for text, _ in rows], [reference for _, reference in rows]
    together = radcliq_lite_reward(texts, report=references)
    assert together == [radcliq_lite_reward([t], report=[r])[0] for t, r in rows]
    order = random.sample(range(len(rows)), len(rows))
    shuffled = radcliq_lite_reward([texts[i] for i in order], report=[references[i] for i in order])
    assert [together[i] for i in order] == shuffled
    plain = [reference.replace("<", "").replace(">", "") for reference in references]
    best = radcliq_lite_reward(plain, report=plain)
    assert all(0 <= score <= 1 for score in together) and best == pytest.approx([1] * len(rows))


@given(report.filter(str.strip), report.filter(str.strip))
def test_lexical_parts_are_symmetric(a, b):
    for name, part in make_lexical_parts().items():
        if name != "bleu":
            assert part([a], [b]) == pytest.approx(part([b], [a]))


@pytest.mark.parametrize(
    "text",
    ["effusion " * 10_000, "no " * 10_000, "<report>" * 9_000, "\x00\ufffd\ud800", "could be edema or " * 2_500],
)
def test_strange_completions_are_scored(text):
    (value,) = radcliq_lite_reward([text], report=[EFFUSION])
    assert 0 <= value <= 1
