import importlib.util
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.inputs import TextCache
from rewards.lexical_graph import LexicalGraph, graph_words
from rewards.radgraph import LEVELS, make_radgraph_part, make_radgraph_reward, radgraph_f1, radgraph_reward

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SHORT = {"A": "Anatomy::definitely present", "+": "definitely present", "-": "definitely absent", "?": "uncertain"}


def read(path: str):
    if not (DATA / path).exists():
        pytest.skip(f"needs {path} in $RRG_DATA")
    return json.loads((DATA / path).read_text())


def graph(*entities: str) -> dict:
    """A graph from "tokens label [relation target]...", where a target is a place in the list: "effusion + at 1"."""
    types = {"mod": "modify", "at": "located_at", "sug": "suggestive_of"}
    out = {}
    for i, entity in enumerate(entities):
        tokens, label, *rest = entity.split()
        relations = [[types[kind], rest[j + 1]] for j, kind in enumerate(rest) if kind in types]
        full = SHORT[label] if label == "A" else f"Observation::{SHORT[label]}"
        out[str(i)] = {"tokens": tokens, "label": full, "start_ix": i, "end_ix": i, "relations": relations}
    return {"text": " ".join(entity.split()[0] for entity in entities), "entities": out}


NO_EFFUSION = graph("pleural A", "effusion - at 0")
EFFUSION = graph("pleural A", "effusion + at 0")
SMALL = graph("small + mod 2", "pleural A", "effusion + at 1")
UNRELATED = graph("pleural A", "effusion +")
NOTHING = graph()


@pytest.mark.parametrize(
    ("generated", "reference", "expected"),
    [  # simple, partial, complete, radcliq: by hand, 2 * common / (sum of sizes)
        (EFFUSION, EFFUSION, (1, 1, 1, 1)),  # an exact match
        (NO_EFFUSION, EFFUSION, (1 / 2, 1 / 2, 1 / 2, (1 / 2 + 0) / 2)),  # a flip keeps the anatomy only
        (EFFUSION, SMALL, (4 / 5, 4 / 5, 4 / 5, (4 / 5 + 2 / 3) / 2)),  # an omitted size
        (UNRELATED, EFFUSION, (1, 1 / 2, 1 / 2, (1 + 0) / 2)),  # the same entities, one without its relation
        (graph("edema +"), graph("edema +"), (1, 1, 1, 1 / 2)),  # the published rule: no relation on either side is 0
        (NOTHING, EFFUSION, (0, 0, 0, 0)),
        (NOTHING, NOTHING, (0, 0, 0, 0)),  # the published rule
        (graph("edema +", "edema +"), graph("edema +"), (1, 1, 1, 1 / 2)),  # sets: a repetition counts once
        (graph("Edema +"), graph("edema +"), (0, 0, 0, 0)),  # case counts ...
        (graph("Edema + at 1", "lung A"), graph("edema + at 1", "lung A"), (1 / 2, 1 / 2, 1, 1 / 4)),  # ... but here
        (graph("edema + at 1", "Lung A"), graph("edema + at 1", "lung A"), (1 / 2, 1 / 2, 1 / 2, 1 / 4)),  # or here
        # the relation's type: what is common is "lung"
        (graph("edema + at 1", "lung A"), graph("edema + mod 1", "lung A"), (1, 1, 1 / 2, (1 + 0) / 2)),
        # its direction: (edema, at, lung) and lung, or (lung, at, edema) and edema
        (graph("edema + at 1", "lung A"), graph("edema +", "lung A at 0"), (1, 0, 0, (1 + 0) / 2)),
        (graph("edema + at 1", "lung A mod 0"), graph("edema + mod 1", "lung A at 0"), (1, 1, 0, (1 + 0) / 2)),
        # the label of its source, and of its target, which counts by radcliq alone
        (graph("edema + at 1", "lung A"), graph("edema ? at 1", "lung A"), (1 / 2, 1 / 2, 1 / 2, (1 / 2 + 0) / 2)),
        (graph("edema + sug 1", "mass ?"), graph("edema + sug 1", "mass +"), (1 / 2, 1 / 2, 1 / 2, (1 / 2 + 0) / 2)),
        # a second relation of an entity: partial sees only that there is one
        (
            graph("edema + at 1 sug 2", "lung A", "mass +"),
            graph("edema + at 1", "lung A", "mass +"),
            (1, 1, 2 * 3 / (4 + 3), (1 + 2 / 3) / 2),
        ),
    ],
)
def test_levels(generated, reference, expected):
    for level, value in zip(LEVELS, expected, strict=True):
        assert radgraph_f1([generated], [reference], level)[0] == pytest.approx(value, abs=1e-12), level


def test_skip_empty_leaves_out_what_neither_graph_has():
    edema, opacity = graph("edema +"), graph("opacity +")
    assert radgraph_f1([edema, opacity, NOTHING], [edema] * 2 + [NOTHING], "radcliq", skip_empty=True).tolist() == [
        *(1, 0, 1)
    ]


def test_graphs_written_for_a_pair_have_its_published_scores():
    """Pair 5 of the RadGraph package's test, of which the scores are published and the graphs are not.

    The graphs here are ours, written so that they have the score of the first level: four of 6 and 8 entities are the
    same, 2 * 4 / 14. That the two other levels then have their published values as well is what is tested; nothing is
    said of a parser, nor that the model's graphs are these.
    """
    expected = read("radeval_expected/expected_values_from_tests.json")["f1radgraph_original_model"]
    assert expected["hyps"][4] == "no evidence of acute cardiopulmonary process moderate hiatal hernia"
    hypothesis = graph("acute - mod 2", "cardiopulmonary A", "process - at 1", "moderate + mod 5", "hiatal A",
                       "hernia + at 4")  # fmt: skip
    reference = graph("acute - mod 2 mod 1", "pulmonary A", "process -", "moderately + mod 4", "large + mod 7",
                      "size A mod 7", "hiatal A", "hernia + at 6")  # fmt: skip
    for level in ("simple", "partial", "complete"):
        assert radgraph_f1([hypothesis], [reference], level)[0] == pytest.approx(expected[level][4], abs=1e-12)


labels = st.sampled_from(list("A+-?"))


@st.composite
def graphs(draw) -> dict:
    size = draw(st.integers(0, 6))
    entities = []
    for _ in range(size):
        relations = draw(
            st.lists(st.tuples(st.sampled_from(["mod", "at", "sug"]), st.integers(0, size - 1)), max_size=2)
        )
        word = draw(st.sampled_from(["effusion", "Effusion", "lung", "small", "left"]))
        entities.append(" ".join([word, draw(labels), *(f"{kind} {target}" for kind, target in relations)]))
    return graph(*entities)


@given(graphs(), graphs(), st.booleans())
def test_properties(a, b, skip_empty):
    for level in LEVELS:
        score, mirrored, same = radgraph_f1([a, b, a], [b, a, a], level, skip_empty)
        assert score == mirrored and 0 <= score <= same + 1e-12  # nothing beats the reference itself
        if skip_empty or (level != "radcliq" and a["entities"]):
            assert same == 1


@pytest.fixture(scope="module")
def radeval() -> dict:
    """Functions of radeval (its copy of radgraph's rewards, its RadCliQ) from their files: to import the package
    reaches for the network, and its RadCliQ does not import as published."""
    spec = importlib.util.find_spec("radeval")
    if spec is None:
        pytest.skip("needs radeval: make .venv/oracles")
    metrics = Path(spec.submodule_search_locations[0]) / "metrics"
    functions: dict = {}
    exec((metrics / "radgraph/_vendor/rewards.py").read_text(), functions)
    source = (metrics / "RadCliQv1/radcliq.py").read_text()
    exec(source[source.index("def compute_f1") : source.index("class CompositeMetric")], functions)
    return functions


@settings(max_examples=200)
@given(a=graphs(), b=graphs())
def test_equals_radeval(radeval, a, b):
    for level in ("simple", "partial", "complete"):
        assert radgraph_f1([a], [b], level)[0] == pytest.approx(radeval["compute_reward"](a, b, level), abs=1e-12)
    takes = (radeval["extract_entities"], radeval["extract_relations"])
    f1s = [radeval["compute_f1"](take(b), take(a)) for take in takes]
    assert radgraph_f1([a], [b], "radcliq")[0] == pytest.approx(sum(f1s) / 2, abs=1e-12)


# --- LexicalGraph ---------------------------------------------------------------------------------------------------

parse = LexicalGraph()


def entities(text: str) -> str:
    """Entities of a text as "word+", "word-" or "word?"; anatomy without a sign."""
    signs = {"present": "+", "absent": "-", "uncertain": "?"}
    found = parse([text])[0]["entities"].values()
    return " ".join(
        e["tokens"] + ("" if e["label"].startswith("Anatomy") else signs[re.findall("[a-z]+", e["label"])[-1]])
        for e in found
    )


def relations(text: str) -> set[str]:
    found = parse([text])[0]["entities"]
    return {f"{e['tokens']} {kind} {found[i]['tokens']}" for e in found.values() for kind, i in e["relations"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Small left pleural effusion.", "small+ left pleural effusion+"),
        ("No pleural effusion or pneumothorax.", "pleural effusion- pneumothorax-"),
        ("No large pleural effusion.", "large- pleural effusion-"),  # a modifier has its observation's state
        ("The heart is not enlarged.", "heart enlarged-"),
        ("Opacity may represent pneumonia.", "opacity+ pneumonia?"),
        ("Lungs are clear without edema.", "lungs clear+ edema-"),
        ("No edema. Effusion is small.", "edema- effusion+ small+"),  # a scope ends with its sentence
        ("No edema, but there is an effusion.", "edema- effusion+"),
        ("The heart is stable.", "heart stable+"),  # nothing to modify: an observation of its own
        ("History of pneumonia. Mild edema.", "mild+ edema+"),  # not said of this image
        ("INDICATION: pneumonia.\n\nFINDINGS: No edema.", "edema-"),  # nor is what was asked
        ("Pneumothorax?", "pneumothorax?"),
        ("No edema, left lobe opacity.", "edema- left lobe opacity+"),  # the labeler's scopes: a side ends the list
        ("Rather than edema, this is pneumonia.", "edema- pneumonia+"),
        ("The tube should be withdrawn.", "tube+"),
        ("There isn\u2019t an e\ufb00usion.", "effusion-"),  # and its eyes
        ("", ""),
        ("Comparison is made to the prior study.", ""),
    ],
)
def test_lexical_entities(text, expected):
    assert entities(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Small left pleural effusion.",
            {"small modify effusion", "left modify pleural", "effusion located_at pleural"},
        ),
        ("Mildly enlarged heart.", {"mildly modify enlarged", "enlarged located_at heart"}),
        (
            "The heart and mediastinum are normal.",
            {"normal located_at heart", "normal located_at mediastinum"},
        ),
        ("Heart size is normal.", {"size modify heart", "normal located_at heart"}),
        (
            "Right lower lobe opacity may represent pneumonia.",
            {
                *("right modify lobe", "lower modify lobe", "opacity located_at lobe"),
                "opacity suggestive_of pneumonia",
            },
        ),
        ("Pneumothorax at the left apex.", {"left modify apex", "pneumothorax located_at apex"}),
        ("No pleural effusion or pneumothorax.", {"effusion located_at pleural"}),  # the pleura is the effusion's own
        ("Lungs: clear.", {"clear located_at lungs"}),
        ("Clear lungs, edema.", {"clear located_at lungs"}),  # nothing crosses the comma
        ("Right pneumothorax.", {"pneumothorax located_at right"}),  # a side stands for missing anatomy
        # past words for its size, which stand between
        ("Left small pneumothorax.", {"small modify pneumothorax", "pneumothorax located_at left"}),
        (
            "Pleural small mild effusion.",
            {"small modify effusion", "mild modify effusion", "effusion located_at pleural"},
        ),
    ],
)
def test_lexical_relations(text, expected):
    assert relations(text) == expected


def test_lexical_graph_sees_what_labels_are_blind_to():
    part = make_radgraph_part(parse, "partial")
    reference = "Small left pleural effusion. No pneumothorax."
    for changed in ("Small right pleural effusion. No pneumothorax.", "Large left pleural effusion. No pneumothorax."):
        assert part([changed], [reference])[0] == pytest.approx(4 / 5)  # 4 of 5 entities


def test_graph_words():
    same = ["Mild cardiomegaly.", "The heart is mildly enlarged.", "mild cardiac enlargement"]
    bags = [graph_words(graph) for graph in parse(same)]
    assert bags[0] == bags[1] == bags[2] == {("mild", PRESENT): 1, ("heart", None): 1, ("enlarged", PRESENT): 1}
    assert not graph_words(parse(["No effusion."])[0]) & graph_words(parse(["Effusion."])[0])


PRESENT = "Observation::definitely present"


def test_ranks_as_the_published_model_does():
    """RadGraph F1 of 382 pairs by the real model. Unigram F1 has 0.80, 0.74 and 0.73 here, labels alone 0.4."""
    stats = pytest.importorskip("scipy.stats")
    real = read("mrg_rl/dev/clinical_metrics.json")["radgraph"]["per_item"]
    truth, found = (read(f"mrg_rl/dev/result/{name}.json") for name in ("test_refs", "test_result"))
    texts = [[reports[key][0] for key in real] for reports in (found, truth)]
    for level, key, bar in (("simple", "rg_e", 0.88), ("partial", "rg_er", 0.82), ("complete", "rg_bar_er", 0.87)):
        ours = make_radgraph_part(parse, level)(*texts)
        assert stats.spearmanr(ours, [item[key] for item in real.values()]).statistic > bar


def test_polarity_agrees_with_radgraph_xl():
    """Present and absent, word by word, on RadGraph-XL's evidence for 49 findings in 500 reports."""
    import difflib

    agree = {"definitely present": [], "definitely absent": []}
    found = wanted = 0
    for item in list(read("radlabels/dev.json").values()):
        theirs = [token.lower() for token in item["tokens"].split()]
        graph = parse([item["report"]])[0]
        blocks = difflib.SequenceMatcher(None, theirs, graph["text"].split(" "), autojunk=False).get_matching_blocks()
        places = {block.a + i: block.b + i for block in blocks for i in range(block.size)}
        ours = {e["start_ix"]: e["label"] for e in graph["entities"].values()}
        for evidence in item["evidence"]:
            for place in evidence["start_ix"]:
                label = ours.get(places.get(place), "")
                wanted += 1
                found += bool(label)
                if evidence["label"] in agree and label and label.split("::")[1] in agree and "Anatomy" not in label:
                    agree[evidence["label"]].append(label.endswith(evidence["label"]))
    assert found / wanted > 0.95
    assert np.mean(agree["definitely present"]) > 0.98 and np.mean(agree["definitely absent"]) > 0.95


VOCABULARY = "no left small effusion heart is enlarged may and , . \n possible lungs clear with of ü"
words = st.sampled_from(VOCABULARY.split(" "))


@given(st.lists(words, max_size=40).map(" ".join), st.text(max_size=40))
def test_graphs_are_well_formed(text, other):
    for found in parse([text, other]):
        tokens = found["text"].split(" ")
        for entity in found["entities"].values():
            assert tokens[entity["start_ix"]] == entity["tokens"]
            assert all(target in found["entities"] for _, target in entity["relations"])
    assert parse([text, other]) == [parse([text])[0], parse([other])[0]]


# --- as a reward function -------------------------------------------------------------------------------------------

EFFUSION_TEXT = "Small left pleural effusion. No pneumothorax."


def test_reward():
    completions = [f"<think>x</think><report>{EFFUSION_TEXT}</report>", "No left pleural effusion.", "", "x"]
    scores = radgraph_reward(completions, report=[EFFUSION_TEXT] * 3 + [None])
    assert scores == [1.0, pytest.approx(2 * 2 / (3 + 5)), 0.0, None]  # left and pleural of 3 and 5 entities
    assert make_radgraph_reward(untagged="zero")([EFFUSION_TEXT], report=[EFFUSION_TEXT]) == [0.0]


GRAPHS = {  # the same entities, a relation of another type, one left out
    "generated": graph("small + at 2", "pleural A", "effusion +"),
    "reference": SMALL,
    "": NOTHING,
}


def read_graphs(texts: list[str]) -> list[dict]:
    return [GRAPHS[text] for text in texts]


read_graphs.name, read_graphs.lite = "fixed", False


@pytest.mark.parametrize(
    ("options", "reward"),
    [
        ({}, 2 * 2 / (3 + 3)),  # the effusion lacks its relation
        ({"level": "simple"}, 1),
        ({"level": "partial"}, 2 / 3),
        ({"level": "complete"}, 2 * 1 / (3 + 3)),  # "pleural" alone
        ({"level": "radcliq"}, (1 + 0) / 2),
        ({"untagged": "zero"}, 0),
    ],
)
def test_options_of_the_factory(options, reward):
    assert make_radgraph_reward(read_graphs, **options)(["generated"], report=["reference"]) == [pytest.approx(reward)]


def test_options_of_the_part():
    assert make_radgraph_part(read_graphs)(["generated", ""], ["reference", ""]).tolist() == [1 / 2, 0]
    assert make_radgraph_part(read_graphs, skip_empty=True)(["generated", ""], ["reference", ""]).tolist() == [
        1 / 2,
        1,
    ]
    assert make_radgraph_part(read_graphs, "simple")(["generated"], ["reference"]).tolist() == [1]


def test_names_say_which_parser():
    def model(texts: list[str]) -> list[dict]:
        return parse(texts)

    with pytest.raises(ValueError, match="lite"):
        make_radgraph_reward(model)
    model.name, model.lite = "radgraph-xl", False
    assert make_radgraph_reward(model).__name__ == "radgraph_reward"
    assert radgraph_reward.__name__ == "radgraph_lexical_reward"
    part = make_radgraph_part(TextCache(model))
    assert (part.name, part.lite) == ("radgraph-xl", False)


@pytest.mark.parametrize(
    ("arguments", "columns", "message"),
    [
        ({"level": "all"}, {}, "level"),
        ({"untagged": "report"}, {}, "untagged"),
        ({}, {}, "'report'"),  # the column is missing
        ({}, {"report": ["a", "b"]}, "1 completions but 2"),
        ({}, {"report": [" "]}, "empty"),
    ],
)
def test_bad_arguments_are_refused(arguments, columns, message):
    with pytest.raises(ValueError, match=message):
        make_radgraph_reward(**arguments)(["x"], **columns)


def test_a_text_is_parsed_once():
    calls = []

    def counted(texts: list[str]) -> list[dict]:
        calls.extend(texts)
        return parse(texts)

    counted.name, counted.lite = "counted", True
    reward = make_radgraph_reward(counted)
    for _ in range(2):
        reward(["edema", "edema", "effusion"], report=["edema"] * 3)
    assert sorted(calls) == ["edema", "effusion"]


@pytest.mark.parametrize(
    "text", ["effusion " * 10_000, "no " * 10_000, "lung and heart, " * 3_000, "<report>" * 9_000, "\x00\ufffd\ud800"]
)
def test_strange_completions_are_scored(text):
    (value,) = radgraph_reward([text], report=[EFFUSION_TEXT])
    assert 0 <= value <= 1
