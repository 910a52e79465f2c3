"""RadGraphModel against the original where radeval is installed, and always against DyGIE++ written out by hand."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from radgraph_models import ENTITIES, HOW_TO_GET, RELATIONS, build, original, pack
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BertConfig, set_seed

from modeling import RadGraphConfig, RadGraphModel, modeling_radgraph
from recipes import convert_radgraph
from rewards.radgraph_parser import RadGraphParser, split_words

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
WIDE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
PUBLISHED = {"width": 8, "feature": 20, "layers": 2, "hidden": 150}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
COUNTS = torch.tensor([4, 1, 7])  # words of three reports; the last has two segments


@pytest.fixture(scope="module")
def model() -> RadGraphModel:
    """Random weights, large enough that every part shows in the output."""
    set_seed(0)
    encoder = BertConfig(vocab_size=60, **{**SMALL, "hidden_size": 24})
    config = RadGraphConfig(encoder, max_span_width=3, feature_size=5, feedforward_sizes=[16, 8], spans_per_word=0.7)
    model = RadGraphModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def inputs() -> tuple[torch.Tensor, ...]:
    """Ids, mask, words of the tokens, and counts; the third word of the first report has no token."""
    words = torch.tensor(
        [[-1, 0, 0, 1, 3, -1], [-1, 4, 4, 4, -1, -1], [-1, 5, 6, 7, 8, -1], [-1, 8, 9, 10, 11, -1]]
    )  # fmt: skip
    set_seed(1)
    ids = torch.where(words >= 0, torch.randint(5, 60, words.shape), 2)
    mask = torch.ones_like(ids)
    ids[1, 5] = mask[1, 5] = 0
    return ids, mask, words, COUNTS


def by_hand(model: RadGraphModel, n: int) -> tuple[list, list]:
    """Spans with scores and pairs with scores of report `n`, span by span, as Wadden et al. (2019) define them."""
    ids, mask, words, counts = inputs()
    states = model.encoder(ids, attention_mask=mask).last_hidden_state
    offset, count = int(counts[:n].sum()), int(counts[n])
    vectors = [states[words == offset + i] for i in range(count)]
    vectors = [each.mean(0) if len(each) else torch.zeros(24) for each in vectors]

    def score(scorer, x):
        for layer in scorer.layers:
            x = F.relu(layer(x))
        return scorer.output(x)

    spans = [(i, j) for i in range(count) for j in range(i, min(i + 3, count))]
    embedded = [torch.cat([vectors[i], vectors[j], model.width_embedding.weight[j - i]]) for i, j in spans]
    entities = [score(model.entity_scorer, x) for x in embedded]
    mentions = [score(model.pruner, x) for x in embedded]
    best = sorted(sorted(range(len(spans)), key=lambda i: -mentions[i])[: -int(-count * 0.7 // 1)])
    pairs = []
    for a in best:
        for b in best:
            x = torch.cat([embedded[a], embedded[b], embedded[a] * embedded[b]])
            pairs.append((spans[a], spans[b], score(model.relation_scorer, x) + mentions[a] + mentions[b]))
    return list(zip(spans, entities, strict=True)), pairs


@torch.no_grad()
@pytest.mark.parametrize("at_a_time", [3, 4096])  # pairs
def test_same_as_dygie_by_hand(model, monkeypatch, at_a_time):
    monkeypatch.setattr(modeling_radgraph, "PAIRS", at_a_time)
    every, found = model(*inputs(), all_pairs=True), model(*inputs())
    spans, pairs = [], []
    for n in range(3):
        own_spans, own_pairs = by_hand(model, n)
        spans += [((n, *span), scores) for span, scores in own_spans]
        pairs += [((n, *source), (n, *target), scores) for source, target, scores in own_pairs]
    assert [tuple(each) for each in every.spans.tolist()] == [span for span, _ in spans]
    scores = F.pad(torch.stack([each for _, each in spans]), (1, 0))
    torch.testing.assert_close(every.entity_logits, scores, atol=1e-5, rtol=1e-5)
    ends = [tuple(tuple(end) for end in pair) for pair in every.spans[every.relations].tolist()]
    assert ends == [pair[:2] for pair in pairs]
    expected = F.pad(torch.stack([pair[2] for pair in pairs]), (1, 0))
    torch.testing.assert_close(every.relation_logits, expected, atol=1e-5, rtol=1e-5)

    entities = {span for (span, _), label in zip(spans, scores.argmax(1), strict=True) if label > 0}
    kept = [i for i, pair in enumerate(ends) if entities.issuperset(pair) and expected[i].argmax() > 0]
    assert 0 < len(kept) < len(ends)
    assert [tuple(map(tuple, pair)) for pair in found.spans[found.relations].tolist()] == [ends[i] for i in kept]
    torch.testing.assert_close(found.relation_logits, expected[kept], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batch_mates_and_padding_change_nothing(model):
    ids, mask, words, counts = inputs()
    together = model(ids, mask, words, counts, all_pairs=True)
    alone = model(ids[1:2, :5], mask[1:2, :5], words[1:2, :5] - 4, counts[1:2], all_pairs=True)
    own = together.spans[:, 0] == 1
    torch.testing.assert_close(together.entity_logits[own], alone.entity_logits, atol=1e-5, rtol=0)
    own = together.spans[together.relations[:, 0], 0] == 1
    torch.testing.assert_close(together.relation_logits[own], alone.relation_logits, atol=1e-5, rtol=0)


def reports() -> list[str]:
    if not (DATA / "radlabels/dev.json").exists():
        pytest.skip("needs radlabels/dev.json in $RRG_DATA")
    return [each["report"] for each in json.loads((DATA / "radlabels/dev.json").read_text()).values()]


FULL = pytest.mark.skipif("RRG_RADGRAPH_FULL" not in os.environ, reason="minutes: set RRG_RADGRAPH_FULL=1 to run it")


@pytest.mark.parametrize(
    ("kind", "count", "sizes"),
    [
        ("radgraph-xl", 200, {**SMALL, "width": 5, "feature": 6, "layers": 2, "hidden": 24}),
        ("radgraph", 30, {**SMALL, "width": 12, "feature": 3, "layers": 3, "hidden": 16}),  # another span width
        ("radgraph", 5, {**WIDE, **PUBLISHED, "num_hidden_layers": 2}),  # the published sizes but for the depth
        pytest.param("radgraph", 200, {**SMALL, "width": 12, "feature": 3, "layers": 3, "hidden": 16}, marks=FULL),
        pytest.param("radgraph", 200, {**WIDE, **PUBLISHED, "num_hidden_layers": 12}, marks=FULL),
        pytest.param("radgraph-xl", 200, {**WIDE, **PUBLISHED, "num_hidden_layers": 12}, marks=FULL),
    ],
    ids=["small", "another-width", "wide", "another-width-200", "published-radgraph", "published-radgraph-xl"],
)
def test_same_as_the_original(tmp_path, call, kind, count, sizes):
    """The original with random weights, through an archive in the published layout and the converter."""
    core = original()
    if core is None:
        pytest.skip(f"needs the original: {HOW_TO_GET}")
    texts = reports()[:count]
    theirs = build(core, tmp_path, reports(), kind, shares=(0.015, 0.02), vocab_size=1500, **sizes)
    archive = pack(tmp_path / kind, tmp_path / "model.tar")
    call(convert_radgraph.main, "--archive", archive, "--out", tmp_path / "out")
    parser = RadGraphParser(tmp_path / "out", device="cpu")

    seen = {}
    relation, scorer = theirs.model._relation, theirs.model._ner._ner_scorers[f"{kind}__ner_labels"]
    scorer.register_forward_hook(lambda module, args, output: seen.setdefault("entities", []).append(output[0]))
    for name in ("_prune_spans", "_compute_relation_scores"):
        method = getattr(relation, name)

        def keep(*args, method=method, name=name):
            result = method(*args)
            seen.setdefault(name, []).append(result)
            return result

        setattr(relation, name, keep)
    with torch.no_grad():
        expected = theirs(texts)
    graphs = parser(texts)
    difference = {"entities": 0.0, "relations": 0.0}
    for i, (text, graph) in enumerate(zip(texts, graphs, strict=True)):
        assert graph == {key: expected[str(i)][key] for key in ("text", "entities")}, f"report {i}"
        words = split_words(text, kind)
        rows = parser._rows(parser._tokens(words))
        if len(rows) > 1:
            continue  # its graph has been compared
        ids, places = (torch.tensor([each]) for each in rows[0])
        with torch.no_grad():
            output = parser.model(ids, torch.ones_like(ids), places, torch.tensor([len(words)]), all_pairs=True)
        top = seen["_prune_spans"][i][4][0]
        assert torch.equal(output.relations, torch.cartesian_prod(top, top)), f"the best spans of report {i}"
        scores = seen["_compute_relation_scores"][i][0].flatten(0, 1)
        found = {
            "entities": (output.entity_logits[:, 1:] - seen["entities"][i]).abs().max().item(),
            "relations": (output.relation_logits - scores).abs().max().item(),
        }
        difference = {key: max(value, found[key]) for key, value in difference.items()}
    assert max(difference.values()) < 1e-4
    entities = Counter(each["label"] for graph in graphs for each in graph["entities"].values())
    types = Counter(t for graph in graphs for each in graph["entities"].values() for t, _ in each["relations"])
    words = sum(len(graph["text"].split()) for graph in graphs)
    assert entities.keys() == set(ENTITIES[kind]) and types.keys() == set(RELATIONS)  # all classes were compared
    assert entities.total() > 0.1 * words and types.total() > 0.1 * words
    print(f"\n{count} reports, {words} words: {dict(entities)}, {dict(types)}; largest difference {difference}")


def test_registered(model):
    assert type(AutoConfig.for_model("radgraph")) is RadGraphConfig
    assert type(AutoModel.from_config(model.config)) is RadGraphModel


@torch.no_grad()
def test_saved_model_needs_no_project(model, tmp_path, run_without_project):
    model.save_pretrained(tmp_path / "saved")
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"model.safetensors", "modeling_radgraph.py", "configuration_radgraph.py"} <= files
    torch.save({"inputs": inputs(), "output": dict(model(*inputs()))}, tmp_path / "expected.pt")
    run_without_project("""
model = AutoModel.from_pretrained("saved", trust_remote_code=True)
expected = torch.load("expected.pt")
with torch.no_grad():
    output = model(*expected["inputs"])
assert type(model).__name__ == "RadGraphModel"
for name, tensor in expected["output"].items():
    torch.testing.assert_close(output[name], tensor)
""")
    back = RadGraphModel.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
