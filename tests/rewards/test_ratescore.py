"""RaTEScore by hand: spans of entities, the score of two lists, texts without entities, and the reward.

The original itself, unmodified (MAGIC-AI4Med/RaTEScore a970406, medspaCy replaced by our splitter), agreed on random
weights to 1e-7, and on the spans of every label sequence of up to five tokens; it is not here. Of two entities with
one name and two types it takes one or the other by rounding, and ours that of the same type.
"""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from ratescore_networks import LABELS, save_networks
from transformers import DebertaV2ForTokenClassification

from rewards.ratescore import (
    AFFINITY,
    NEGATION,
    TYPES,
    RaTEScore,
    entity_score,
    make_ratescore_reward,
    read_spans,
    split_sentences,
)
from rewards.table import RewardArguments, make_rewards

TEXTS = [
    "There is a small left pleural effusion. No pneumothorax.",
    "The heart is normal in size.\nThe lungs are clear.",
    "Mild cardiomegaly; right lower lobe pneumonia.",
    "no",
    "",
    "edema " * 700,
    "half \ud800 a pair",
]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ratescore")
    save_networks(folder, TEXTS[:5])
    return folder


@pytest.fixture(scope="module")
def score(networks) -> RaTEScore:
    return RaTEScore(networks / "ner", networks / "encoder", device="cpu")


@pytest.mark.parametrize(
    ("labels", "spans"),  # [CLS] and [SEP] are the first and the last
    [
        ("O B-A I-A O O", [(1, 2, "A")]),
        ("O B-A O B-B O", [(1, 1, "A"), (3, 3, "B")]),
        ("O B-A B-B O O", [(1, 1, "A"), (2, 2, "B")]),
        ("O B-A I-B I-A O", [(1, 3, "A")]),  # an I of another type continues
        ("O I-A I-A O O", []),  # nothing has begun
        ("O B-A I-A I-A I-A", [(1, 3, "A")]),  # open at the end: [SEP] is no part of it
        ("O B-A I-A B-B I-B", [(1, 2, "A")]),  # the original forgets the last one here
        ("B-A O O", []),  # [CLS] is no token of the text
        ("O O O O", []),
        ("O O", []),
    ],
)
def test_spans(labels, spans):
    assert read_spans(labels.split()) == spans


@pytest.mark.parametrize("matrix", ["long", "short"])
def test_the_score_of_two_lists_by_hand(matrix):
    """A disease meets the same disease denied (cosine 0.6 against 0 of the anatomy), an anatomy its like (1)."""
    disease, anatomy, denied = (TYPES.index(name) for name in ("DISEASE", "ANATOMY", "NON-DISEASE"))
    table = AFFINITY[matrix]
    first = np.array([[1.0, 0.0], [0.0, 1.0]])
    second = np.array([[0.6, 0.8], [0.0, 1.0]])
    found = entity_score(["DISEASE", "ANATOMY"], first, ["NON-DISEASE", "ANATOMY"], second, matrix)
    weights = table[disease][denied], table[anatomy][anatomy]
    assert found == pytest.approx((0.6 * weights[0] * NEGATION[matrix] + weights[1]) / sum(weights))
    same = entity_score(["DISEASE", "ANATOMY"], first, ["DISEASE", "ANATOMY"], first, matrix)
    assert same == pytest.approx(1)
    other = entity_score(["ANATOMY"], first[:1], ["NON-DISEASE"], second[:1], matrix)
    assert other == pytest.approx(0.6)  # anatomy denies nothing


def test_of_one_name_with_two_types_the_same_type_is_nearest():
    vectors = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert entity_score(["DISEASE", "NON-DISEASE"], vectors, ["NON-DISEASE", "DISEASE"], vectors, "long") == 1
    found = entity_score(["ANATOMY"], vectors[:1], ["NON-DISEASE", "DISEASE"], vectors * [[0.5, 1], [0.5, 1]], "long")
    assert found == 0.5


def test_published_weights():
    assert {name: np.array(table).shape for name, table in AFFINITY.items()} == {"long": (5, 5), "short": (5, 5)}
    assert AFFINITY["long"][1][4] == 0.00013736314126696204  # ANATOMY against NON-DISEASE
    assert AFFINITY["short"][4][0] == 0.9555801066212176  # NON-DISEASE against ABNORMALITY; no matrix is symmetric


@torch.no_grad()
def test_a_pair_is_scored_as_its_definition_says(networks, score):
    """Sentence by sentence, name by name, without batches."""

    def read(text: str) -> tuple[list[str], np.ndarray]:
        kinds, vectors = [], []
        for sentence in split_sentences(text):
            inputs = score.tokenizer(sentence, truncation=True, max_length=512, return_tensors="pt")
            if "token_type_ids" not in score.tokenizer.model_input_names:
                inputs.pop("token_type_ids", None)
            classes = score.ner(**inputs).logits[0].argmax(-1).tolist()
            tokens = score.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
            for first, last, kind in read_spans([LABELS[each] for each in classes]):
                name = score.tokenizer.convert_tokens_to_string(tokens[first : last + 1])
                short = score.name_tokenizer(name, truncation=True, max_length=30, return_tensors="pt")
                state = score.encoder(**short).last_hidden_state[0, 0].numpy()
                vectors.append(state / np.linalg.norm(state))
                kinds.append(kind)
        return kinds, np.array(vectors)

    for a, b in pairwise(TEXTS[:5]):
        one, two = read(a), read(b)
        if not one[0] or not two[0]:
            expected = 0.5
        else:
            p, r = entity_score(*one, *two, "long"), entity_score(*two, *one, "long")
            expected = 2 * p * r / (p + r)
        assert score([a], [b])[0] == pytest.approx(expected, abs=1e-5)
    assert len(read(TEXTS[0])[0]) > 1 and len(read(TEXTS[2])[0]) > 0


def test_every_pair_has_a_score(networks, score):
    """The original gives fewer scores than pairs where a text is empty or has no sentence of three characters."""
    found = score(TEXTS, TEXTS[::-1])
    assert found.shape == (len(TEXTS),) and np.isfinite(found).all()
    assert score(["", "no", TEXTS[0]], [TEXTS[0], TEXTS[0], TEXTS[0]]).tolist() == [0.5, 0.5, pytest.approx(1)]
    small = RaTEScore(networks / "ner", networks / "encoder", device="cpu", token_budget=30)
    np.testing.assert_allclose(small(TEXTS, TEXTS[::-1]), found, atol=1e-5)
    np.testing.assert_allclose(found[::-1], found, atol=1e-9)  # symmetric
    assert score([], []).shape == (0,)
    with pytest.raises(ValueError, match="1 reports and 2 references"):
        score(["a"], ["a", "b"])


def test_sentences():
    assert split_sentences("No edema. Clear;\nno\n\n 1. Mass") == ["No edema.", "Clear;", "Mass"]


def test_the_reward_pays_nothing_for_gibberish(networks, score):
    reward = make_ratescore_reward(networks / "ner", networks / "encoder", device="cpu")
    assert reward(["<report></report>", TEXTS[0], "x"], report=[TEXTS[0], TEXTS[0], None]) == [
        0.0,
        pytest.approx(1),
        None,
    ]
    assert reward([TEXTS[0]], report=[TEXTS[2]]) == [pytest.approx(score([TEXTS[0]], [TEXTS[2]])[0])]
    assert pickle.loads(pickle.dumps(reward))([TEXTS[0]], report=[TEXTS[0]]) == [pytest.approx(1)]
    assert reward.__name__ == "ratescore_reward"
    settings = {"ratescore_ner": str(networks / "ner"), "ratescore_encoder": str(networks / "encoder")}
    (named,) = make_rewards(RewardArguments(rewards=["ratescore"], **settings), None, [])
    assert named([TEXTS[0]], report=[TEXTS[0]]) == [pytest.approx(1)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"ner": "/no/such"}, "RaTEScore cannot load /no/such .*download"),
        ({"encoder": "/no/such"}, "RaTEScore cannot load /no/such"),
        ({"matrix": "middle"}, "matrix must be 'long' or 'short', not 'middle'"),
        ({"token_budget": 0}, "token_budget must be at least 1"),
        ({"ner": "encoder"}, "is no part of RaTEScore: it lacks classifier"),
    ],
)
def test_what_cannot_be_used(networks, arguments, sentence):
    settings = {"ner": networks / "ner", "encoder": networks / "encoder"} | arguments
    if arguments.get("ner") == "encoder":
        settings["ner"] = networks / "encoder"
    with pytest.raises(ValueError, match=sentence):
        RaTEScore(**settings, device="cpu")


def test_a_classifier_of_other_types_is_refused(networks, tmp_path):
    network = DebertaV2ForTokenClassification.from_pretrained(networks / "ner")
    network.config.id2label = {number: label.replace("DISEASE", "ILLNESS") for number, label in enumerate(LABELS)}
    network.save_pretrained(tmp_path / "ner")
    for file in networks.glob("ner/tokenizer*"):
        (tmp_path / "ner" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="not the types of RaTEScore"):
        RaTEScore(tmp_path / "ner", networks / "encoder", device="cpu")
