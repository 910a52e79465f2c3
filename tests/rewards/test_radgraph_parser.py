import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from radgraph_models import HOW_TO_GET, original, save_tiny
from transformers import BertConfig

from rewards import check_reward, radgraph
from rewards.encoders import plan_batches, process_device
from rewards.radcliq import make_lexical_parts, make_radcliq_reward
from rewards.radgraph import RadGraphParser, make_radgraph_part, make_radgraph_reward
from rewards.radgraph_parser import split_words

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TEXTS = [
    "Small left pleural effusion. The heart is enlarged.",
    "No pneumothorax.",
    "FINDINGS: The lungs are clear, with no focal consolidation; 5% smaller (was 10%).",
    "Right lower lobe opacity may represent pneumonia or atelectasis.\nHeart size is normal.",
    "Edema.",
    "No acute cardiopulmonary process. The mediastinum is normal. No effusion or edema. Old left rib fracture.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("radgraph"), TEXTS)


@pytest.fixture(scope="module")
def parser(folder) -> RadGraphParser:
    return RadGraphParser(folder, device="cpu")


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "xl"),
    [  # the first RadGraph splits off / , : . ! ? ( ); RadGraph-XL whatever is no letter or digit
        ("No edema.", "No edema .", "No edema ."),
        ("right-sided", "right-sided", "right - sided"),
        ("up (now 5%).", "up ( now 5% ) .", "up ( now 5 % ) ."),
        ("10%, x-ray", "10% , x-ray", "10 % , x - ray"),
        ("4:45 p.m. a/b", "4 : 45 p . m . a / b", "4 : 45 p . m . a / b"),
        ("well?! ...", "well ? ! . . .", "well ?! ..."),
        ("said 'it is.'", "said 'it is . '", "said ' it is . '"),
        ("one\ntwo\\nthree", "one two\\nthree", "one two three"),
        ("\ud800", "?", "?"),
        (" \n\t", "", ""),
    ],
)
def test_split_words(text, first, xl):
    assert " ".join(split_words(text, "radgraph")) == first
    assert " ".join(split_words(text, "radgraph-xl")) == xl


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("aB1 .,:;!?()%/'\"`-\\nfu2_\n\té心\u2122")))
def test_split_words_equals_the_package(text):
    core = original()
    if core is None:
        pytest.skip(f"needs the original: {HOW_TO_GET}")
    for kind in ("radgraph", "radgraph-xl"):
        assert split_words(text, kind) == core.preprocess_reports([text], kind)[0]["sentences"][0]


# --- graphs ---------------------------------------------------------------------------------------------------------


def test_graphs_have_the_published_structure(parser):
    graphs = parser(TEXTS)
    relations = 0
    for text, graph in zip(TEXTS, graphs, strict=True):
        words = split_words(text)
        assert graph["text"] == " ".join(words)
        spans = [(each["start_ix"], each["end_ix"]) for each in graph["entities"].values()]
        assert list(graph["entities"]) == [str(i + 1) for i in range(len(spans))] and spans == sorted(set(spans))
        for each in graph["entities"].values():
            assert each["tokens"] == " ".join(words[each["start_ix"] : each["end_ix"] + 1])
            assert each["end_ix"] - each["start_ix"] < 4 and each["label"] in parser.config.entity_labels
            for kind, target in each["relations"]:
                assert kind in parser.config.relation_labels and target in graph["entities"]
                relations += 1
    assert sum(len(graph["entities"]) for graph in graphs) > 10 and relations > 10


@pytest.mark.parametrize("budget", [1, 40, 8192])
def test_batches_change_nothing(folder, parser, budget):
    expected = [parser([text])[0] for text in TEXTS]
    texts = TEXTS * 3
    random.Random(0).shuffle(texts)
    found = RadGraphParser(folder, device="cpu", token_budget=budget)(texts)
    assert found == [expected[TEXTS.index(text)] for text in texts]


def test_batches_hold_the_budget(folder):
    parser = RadGraphParser(folder, device="cpu", token_budget=60)
    shapes = []
    parser.model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    parser(TEXTS * 2)
    assert all(rows * length <= 60 or rows == 1 for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) == len(TEXTS)  # equal texts are parsed once
    assert len(shapes) < len(TEXTS)


def test_plan_batches_is_optimal():
    def cost(sizes, batches):
        return sum(sum(sizes[i][0] for i in batch) * sizes[batch[0]][1] + 10 for batch in batches)

    rng = random.Random(0)
    for _ in range(30):
        lengths = sorted((rng.randint(3, 40) for _ in range(7)), reverse=True)
        sizes = [(rng.choice([1, 1, 2]), length) for length in lengths]
        best = np.inf
        for cuts in range(2**6):  # every way to cut seven reports
            ends = [i + 1 for i in range(6) if cuts >> i & 1]
            batches = [range(a, b) for a, b in zip([0, *ends], [*ends, 7], strict=True)]
            tokens = [sum(sizes[i][0] for i in batch) * sizes[batch[0]][1] for batch in batches]
            if all(number <= 90 or len(batch) == 1 for number, batch in zip(tokens, batches, strict=True)):
                best = min(best, cost(sizes, batches))
        assert cost(sizes, plan_batches(sizes, 90, 10)) == best
    assert plan_batches([], 90, 10) == []


def test_a_long_report_is_read_in_segments(folder, parser):
    text = " ".join(TEXTS) * 18
    seen = []
    hook = parser.model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    graph = parser([text])[0]
    hook.remove()
    (ids,) = seen
    words = graph["text"].split()
    tokens = [token for own in parser.tokenizer(words, add_special_tokens=False)["input_ids"] for token in own]
    assert ids.shape == (-(-len(tokens) // 510), 512) and len(ids) > 2
    assert ids[(ids != 0) & (ids != 2) & (ids != 3)].tolist() == tokens
    assert max(each["end_ix"] for each in graph["entities"].values()) > len(words) - 100


BAD = {
    "empty": "",
    "blank": " \n\t",
    "control characters": "\x07 \x01",  # no tokens
    "punctuation": "... ?! -- ( ) . ,",
    "5,000 words": (" ".join(TEXTS) + " ") * 72,
    "one word of 20,000 letters": "x" * 20_000,
    "Cyrillic, Japanese, Hebrew": "Выпот 胸水 אין תפליט",
    "special tokens": "[SEP] [CLS] [PAD] effusion [MASK]",
    "lone surrogate": "effusion \ud800.",
    "NUL": "\x00effusion\x00",
}


def test_any_text_has_a_graph(parser):
    graphs = dict(zip(BAD, parser(list(BAD.values())), strict=True))
    for name in ("empty", "blank", "control characters"):
        assert graphs[name]["entities"] == {}, name
    assert graphs["empty"]["text"] == graphs["blank"]["text"] == ""
    assert len(graphs["5,000 words"]["text"].split()) > 5000
    assert parser([]) == []


def test_memory_of_a_long_report_is_bounded_and_torch_waits(folder):
    """2,000 words: the original makes a tensor of all pairs of 1,000 spans, 18 GB at the published size."""
    script = f"""
import re, sys
import rewards.radgraph
assert "torch" not in sys.modules
RadGraphParser = rewards.radgraph.RadGraphParser
parser = RadGraphParser({str(folder)!r}, device="cpu")
parser(["warm up"])
def peak():  # KB; resource.getrusage would count the parent's, too
    return int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
words = len(parser(["The pleural effusion is small . " * 334])[0]["text"].split())
print(words, (peak() - before) // 1024)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("reads its peak memory from /proc, which only Linux has")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words, megabytes = map(int, done.stdout.split()[-2:])
    assert words == 2004 and megabytes < 200


# --- in rewards -----------------------------------------------------------------------------------------------------


def examples() -> dict:
    return {"completions": [*TEXTS[:4], TEXTS[0]], "report": [TEXTS[0], *TEXTS[:3], TEXTS[5]]}


def test_reward_over_the_parser_passes(parser):
    reward = make_radgraph_reward(parser)
    assert reward.__name__ == "radgraph_reward"  # not lite
    assert "passed" in check_reward(reward, examples())
    assert reward(TEXTS, report=TEXTS) == [1 if graph["entities"] else 0 for graph in parser(TEXTS)]


def test_part_of_radcliq(parser):
    part = make_radgraph_part(parser)
    assert (part.name, part.lite) == (parser.name, False) and parser.name.startswith("radgraph-xl-")
    parts = {name: each for name, each in make_lexical_parts().items() if name != "radgraph"}
    for each in parts.values():
        each.lite = False
    reward = make_radcliq_reward(radgraph=part, **parts)
    assert reward.__name__ == "radcliq_reward"
    scores = reward([TEXTS[0], TEXTS[1], ""], report=[TEXTS[0]] * 3)
    assert scores[0] > scores[1] >= scores[2] == 0


def test_empty_report_scores_zero_as_in_the_package(parser):
    assert make_radgraph_reward(parser)([""], report=[TEXTS[0]]) == [0]


def test_no_other_name_is_exported():
    with pytest.raises(AttributeError, match="no attribute 'Parser'"):
        radgraph.Parser  # noqa: B018


def test_device_is_the_process_own(folder):
    assert RadGraphParser(folder).device == process_device()


def broken(folder: Path, tmp_path: Path, name: str) -> Path:
    import shutil

    out = tmp_path / "broken"
    shutil.copytree(folder, out)
    if name == "weights":
        (out / "model.safetensors").unlink()
    elif name == "damaged":
        (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:3000])
    elif name == "tokenizer":
        for file in out.glob("tokenizer*"):
            file.unlink()
    elif name == "other":
        BertConfig().save_pretrained(out)
    elif name == "labels":
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, "entity_labels": ["a", "b"]}))
    return out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights", "no RadGraph could be loaded"),
        ("damaged", "no RadGraph could be loaded"),
        ("tokenizer", "has no tokenizer|could be loaded"),
        ("other", "is no RadGraph .the model_type of its config.json is bert"),
        ("labels", "no RadGraph could be loaded"),
    ],
)
def test_bad_models_are_refused(folder, tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as refused:
        RadGraphParser(broken(folder, tmp_path, name), device="cpu")
    assert "convert_radgraph.py" in str(refused.value) and "\n" not in str(refused.value)


def test_missing_model_is_one_sentence(tmp_path, folder):
    with pytest.raises(ValueError, match=r"no RadGraph could be loaded from .*none .*convert_radgraph.py"):
        RadGraphParser(tmp_path / "none")
    with pytest.raises(ValueError, match="token_budget"):
        RadGraphParser(folder, token_budget=0)


# --- the published model --------------------------------------------------------------------------------------------


@pytest.mark.weights
@pytest.mark.parametrize("level", ["simple", "partial", "complete"])
def test_published_pairs(level):
    """The six pairs of the radgraph package's own test, by the first RadGraph: RRG_RADGRAPH names the folder that
    `recipes/convert_radgraph.py --archive radgraph` makes."""
    if "RRG_RADGRAPH" not in os.environ:
        pytest.skip("needs the published weights of the first RadGraph: set RRG_RADGRAPH to the converted folder")
    file = DATA / "radeval_expected/expected_values_from_tests.json"
    if not file.exists():
        pytest.skip("needs radeval_expected in $RRG_DATA")
    expected = json.loads(file.read_text())["f1radgraph_original_model"]
    reward = make_radgraph_reward(RadGraphParser(os.environ["RRG_RADGRAPH"]), level)
    assert reward(expected["hyps"], report=expected["refs"]) == pytest.approx(expected[level], abs=1e-6)
