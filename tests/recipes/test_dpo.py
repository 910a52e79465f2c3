"""Preference pairs by hand, DPO's known optimum, and what reaches a policy and its reference."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from small_policies import END, PAIRS, log_probability, make_policy, make_tokenizer, probabilities
from test_uneven_batches import ROWS, VIEWS, encode, load, studies, write_model
from torch.nn.functional import logsigmoid
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from modeling.tiny_llmrg4 import build_llmrg4
from recipes import build_preferences, dpo
from recipes.build_phantom import BuildArguments, build_row
from recipes.cli import run
from recipes.data.processors import load_processor
from recipes.data.samples import to_samples
from recipes.data.schema import read_split, write_dataset
from recipes.evaluation.preferences import (
    COUNTS,
    jaccard,
    nearest_texts,
    rank_completions,
    read_pairs,
    retrieve_rejected,
    score_completions,
    with_conflicts,
)
from recipes.files import InputError
from recipes.trainers.dpo import SPANS, PreferenceConfig, PreferenceTrainer, with_pairs
from rewards.labels import CONDITIONS, CheXpertState

SETTINGS = {
    "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "gradient_checkpointing": False,
    "disable_tqdm": True, "logging_strategy": "no", "max_length": None,
}  # fmt: skip
STUDIES = {name: {"study_id": name, "report": text, "labels": [0] * 14} for name, text in (("a", "xx"), ("b", "y"))}


def length(completions, **columns):
    """A letter is worth 1; a text with a question mark cannot be scored."""
    texts = [completion[0]["content"] for completion in completions]
    return [None if "?" in text else float(len(text)) for text in texts]


def match(completions, report, **columns):
    return [float(completion[0]["content"] == text) for completion, text in zip(completions, report, strict=True)]


def test_scores_are_the_weighted_sum():
    texts, studies = ["xx", "abc", "?"], [STUDIES["a"], STUDIES["b"], STUDIES["b"]]
    assert score_completions([length, match], [2.0, 10.0], texts, studies) == [14.0, 6.0, 0.0]
    assert [math.isnan(score) for score in score_completions([length], [1.0], texts, studies)] == [False, False, True]


def test_pairs_by_hand():
    """Of a: the longest and the shortest, the first of equal ones. Of b: one length, so no pair."""
    completions = {"a": ["cc", "e", "dd", "f"], "b": ["g", "h"]}
    pairs, counts = rank_completions(completions, STUDIES, [length], [1.0])
    assert pairs == [{"study_id": "a", "chosen": "cc", "rejected": "e", "chosen_score": 2.0, "rejected_score": 1.0}]
    assert counts == {COUNTS[0]: 0, COUNTS[1]: 1, COUNTS[2]: 0}
    assert rank_completions(completions, STUDIES, [length], [1.0], margin=1.0)[0] == []
    pairs, _ = rank_completions(completions, STUDIES, [length], [-1.0])  # a weight below zero turns the order round
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("e", "cc")


def test_the_reference_may_be_chosen():
    """One completion is enough then; what no reward can score gives no pair."""
    pairs, counts = rank_completions({"a": ["c"], "b": ["?"]}, STUDIES, [length], [1.0], reference=True)
    assert [(pair["study_id"], pair["chosen"], pair["rejected"]) for pair in pairs] == [("a", "xx", "c")]
    assert counts == {COUNTS[0]: 0, COUNTS[1]: 0, COUNTS[2]: 1}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no pair"),
        ('{"study_id": "a", "chosen": "x"', "line 1 of .* is no JSON"),
        ('{"study_id": "a", "chosen": "x", "rejected": null}', "line 1 of .* needs the texts"),
        ('{"study_id": "a", "chosen": "x", "rejected": "y"}\n' * 2, "line 2 of .* a second pair of study a"),
    ],
)
def test_files_of_pairs_that_are_none(tmp_path, content, sentence):
    (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(InputError, match=r"recipes/build_preferences\.py writes one"):
        read_pairs(tmp_path / "none.jsonl")


def test_known_optimum(tmp_path):
    """Where an annotator prefers one arm with the chance p, log(policy/reference) of the two differs by logit(p)/beta.

    That is where the gradient of DPO's loss (Rafailov et al., 2023, Eq. 7) over such pairs is zero.
    """
    beta, chance = 0.5, 0.75
    first, second = (list(PAIRS).index((word, END)) for word in (0, 1))  # the collator ends a text with <eos>
    pairs = [("zero", "one")] * 3 + [("one", "zero")]
    rows = [{"prompt": "ask ", "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs] * 4
    model, reference = make_policy(PAIRS, 0), make_policy(PAIRS, 0)
    before = probabilities(reference, PAIRS)
    args = PreferenceConfig(
        str(tmp_path), beta=beta, per_device_train_batch_size=16, max_steps=150, learning_rate=0.02, **SETTINGS
    )
    trainer = PreferenceTrainer(
        model, reference, args, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer()
    )
    trainer.train()
    after = probabilities(model, PAIRS)
    gain = np.log(after / before)
    assert gain[first] - gain[second] == pytest.approx(math.log(chance / (1 - chance)) / beta, abs=0.05)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    """An LLM-RG4 of one layer, and samples of studies with laterals and prior reports."""
    args = BuildArguments(size=64)
    rows = [build_row("train", number, "mw", args) for number in range(4)]
    folder = tmp_path_factory.mktemp("mw")
    write_dataset({"train": lambda: iter(rows)}, folder / "data", {"builder": "build_phantom"})
    texts = [text for row in rows for text in (row["report"], row["prior_report"])]
    model, processor = build_llmrg4(texts, vocab_size=400, num_visual_tokens=4, text_layers=1)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    prompt = "Prior: {prior_report} Report."
    samples = to_samples(read_split(str(folder / "data"), "train"), prompt, "frontal+lateral", keep=("study_id",))
    return folder / "model", samples


def test_laterals_and_priors_reach_policy_and_reference(scenarios, tmp_path, monkeypatch):
    """The loss has a gradient through both perceivers, and a reference that read something else would start off 0."""
    folder, samples = scenarios
    pairs = {study: {"chosen": "No edema.", "rejected": "Large effusion."} for study in samples["study_id"]}
    model, reference = (AutoModelForImageTextToText.from_pretrained(folder).eval() for _ in range(2))
    args = PreferenceConfig(str(tmp_path), per_device_train_batch_size=4, max_steps=1, **SETTINGS)
    trainer = PreferenceTrainer(
        model,
        reference,
        args,
        train_dataset=with_pairs(samples, pairs),
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape[:2] == (8, 2) and bool(batch["view_mask"].all())
    assert len(batch["prior_input_ids"]) == 8
    model.eval()  # no dropout: policy and reference are one model
    loss = trainer.compute_loss(model, dict(batch))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    loss.backward()
    fusion = model.model.token_fusion
    for part in (fusion.lateral_perceiver, fusion.prior_perceiver):
        assert max(float(weight.grad.abs().max()) for weight in part.parameters() if weight.grad is not None) > 0


def test_from_reports_to_a_model(call, phantom, tiny, tmp_path, capsys):
    """The scripts: two files of samples, pairs by a reward, one step; the model that comes out differs and loads."""
    studies = read_split(str(phantom), "train")["study_id"]
    for number, text in enumerate(("No pneumothorax.", "Large right pneumothorax and edema.")):
        lines = [json.dumps({"study_id": study, "completion": text}) for study in studies]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    files = [tmp_path / f"{number}.jsonl" for number in (0, 1)]
    pairs = tmp_path / "pairs.jsonl"
    words = ["--dataset", phantom, "--rewards", "ce_f1"]
    call(build_preferences.main, *words, "--predictions", *files, "--out", pairs)
    ranked = read_pairs(pairs)
    assert 0 < len(ranked) <= len(studies)
    assert all(pair["chosen_score"] > pair["rejected_score"] for pair in ranked.values())
    with pytest.raises(InputError, match="no study has two completions"):
        call(build_preferences.main, *words, "--predictions", files[0], "--out", tmp_path / "none.jsonl")
    out = tmp_path / "dpo"
    (tmp_path / "cpu.yaml").write_text("dtype: float32\nuse_cpu: true\nbf16: false\ngradient_checkpointing: false\n")
    call(
        dpo.main, "--config", tmp_path / "cpu.yaml", "--dataset", phantom, "--pairs", pairs, "--views", "frontal",
        "--model_name_or_path", tiny, "--output_dir", out, "--max_steps", 1, "--per_device_train_batch_size", 2,
        "--learning_rate", "0.001", "--max_length", "null", "--report_to", "none", "--lr_scheduler_type", "constant",
    )  # fmt: skip
    [(prompt, answer)] = re.findall(r"longest prompt (\d+) tokens, longest answer (\d+)", capsys.readouterr().out)
    tokenizer = AutoProcessor.from_pretrained(tiny).tokenizer
    longest = max(
        len(tokenizer(pair[name])["input_ids"]) for pair in ranked.values() for name in ("chosen", "rejected")
    )
    assert int(answer) - longest in (1, 2, 3) and int(prompt) > 0  # the end of the turn, and a line's
    before, after = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (tiny, out))
    assert any(not torch.equal(old, new) for old, new in zip(before.parameters(), after.parameters(), strict=True))


def test_no_study_has_a_pair(call, phantom, tiny, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"study_id": "stranger", "chosen": "x", "rejected": "y"}\n')
    with pytest.raises(InputError, match=r"no study of .* has a pair"):
        call(
            dpo.main, "--config", "recipes/configs/mrgr1/dpo.yaml",
            "--dataset", phantom, "--pairs", tmp_path / "pairs.jsonl", "--model_name_or_path", tiny,
            "--use_cpu", "true", "--bf16", "false", "--dtype", "float32", "--attn_implementation", "sdpa",
            "--output_dir", tmp_path / "out", "--prompt_file", "prompts/mrgr1_tiny.txt", "--min_pixels", 3136,
            "--max_pixels", 3136,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


################
# RRG-DPO and CheXalign
################


def states(**findings: CheXpertState) -> list[int]:
    """14 states; `findings` by the names' first words."""
    return [findings.get(name.split()[0].lower(), CheXpertState.BLANK) for name in CONDITIONS]


def label_words(texts: list[str]) -> np.ndarray:
    """Edema, and a large heart: positive where the word is there, negative after "no"; a clear text has no finding."""
    rows = []
    for text in map(str.lower, texts):
        found = {}
        for word, name in (("edema", "edema"), ("heart", "cardiomegaly")):
            if word in text:
                found[name] = CheXpertState.NEGATIVE if f"no {word}" in text else CheXpertState.POSITIVE
        if "clear" in text:
            found["no"] = CheXpertState.POSITIVE
        rows.append(states(**found))
    return np.array(rows)


def test_sentences_in_conflict_by_hand():
    """Edema is positive in one report only, so that both sentences on it conflict; what both say alike does not."""
    pairs = {
        "a": {"chosen": "There is edema. A large heart.", "rejected": "No edema. A large heart. All clear."},
        "b": {"chosen": "All clear.", "rejected": "A large heart. All clear."},  # silence denies
        "c": {"chosen": "No edema.", "rejected": "All clear."},  # neither has it
    }
    marked = with_conflicts(pairs, label_words)
    assert [marked[name][side] for name in "abc" for side in SPANS] == [[[0, 15]], [[0, 9]], [], [[0, 14]], [], []]
    assert marked["a"]["chosen"] == pairs["a"]["chosen"] and "chosen_spans" not in pairs["a"]


def test_jaccard_and_the_nearest_texts_by_hand():
    assert jaccard(frozenset({1, 2, 3}), frozenset({3, 4})) == 1 / 4
    assert jaccard(frozenset(), frozenset()) == 1 and jaccard(frozenset(), frozenset({1})) == 0
    texts = ["edema heart", "edema heart lungs", "heart", "pneumothorax"]
    assert nearest_texts(texts, 2)[0] == [1, 2]
    assert nearest_texts(texts, 9)[3] == [0, 1, 2]  # like none; the first texts first, never itself
    many = [f"word{number} common" for number in range(600)]  # more than one batch
    assert all(number not in row and len(row) == 3 for number, row in enumerate(nearest_texts(many, 3)))
    with pytest.raises(InputError, match="no report has a word"):
        nearest_texts([".", "!"], 1)


def test_the_rejected_report_by_hand():
    """Of the two nearest the one whose findings differ more; where none differs, the second nearest."""
    positive = CheXpertState.POSITIVE
    rows = {
        "a": ("edema and a large heart", states(edema=positive, cardiomegaly=positive)),
        "b": ("edema and a large heart today", states(edema=positive, cardiomegaly=positive)),  # Jaccard 1
        "c": ("edema and a small heart", states(edema=positive)),  # 1/2
        "d": ("nothing at all", states(no=positive)),  # 0, and far away
        "e": ("Edema  and a large HEART", states(edema=positive, cardiomegaly=positive)),  # a's words
    }
    studies = {name: {"report": report, "labels": labels} for name, (report, labels) in rows.items()}
    pairs, counts = retrieve_rejected(studies, neighbours=2)
    rejected = {pair["study_id"]: pair["rejected"] for pair in pairs}
    assert rejected["a"] == rejected["e"] == rows["c"][0] and counts == {"whose neighbours have the same findings": 0}
    assert {pair["study_id"]: pair["jaccard"] for pair in pairs}["a"] == 1 / 2
    everywhere, _ = retrieve_rejected(studies, neighbours=20)
    assert next(pair["rejected"] for pair in everywhere if pair["study_id"] == "a") == rows["d"][0]
    alike = {name: studies[name] | {"labels": states(no=positive)} for name in "abc"}  # no positive finding: all 1
    pairs, counts = retrieve_rejected(alike, neighbours=2)
    assert pairs[0]["rejected"] == rows["c"][0] and counts == {"whose neighbours have the same findings": 3}
    assert retrieve_rejected({name: studies[name] for name in "ae"}) == ([], {"without another report": 2})


@pytest.mark.parametrize("sign", [1, -1])
def test_length_moves_the_known_optimum(sign, tmp_path):
    """beta x margin + length_weight x (tokens of the chosen less the rejected) is logit(p) at the optimum."""
    beta, chance, weight = 0.5, 0.75, 0.4
    longer, shorter = ("zero zero", "one") if sign == 1 else ("one", "zero zero")
    pairs = [(longer, shorter)] * 3 + [(shorter, longer)]
    rows = [{"prompt": "ask ", "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs] * 4
    model, reference = make_policy(PAIRS, 0), make_policy(PAIRS, 0)
    args = PreferenceConfig(
        str(tmp_path), beta=beta, length_weight=weight, per_device_train_batch_size=16, max_steps=200,
        learning_rate=0.02, **SETTINGS,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        model, reference, args, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer()
    )
    trainer.train()
    gains = [
        (log_probability(model.eval(), words) - log_probability(reference, words)).item()
        for words in ((0, 0, END), (1, END))
    ]
    expected = (math.log(chance / (1 - chance)) - weight * sign) / beta
    assert sign * (gains[0] - gains[1]) == pytest.approx(expected, abs=0.05)


def test_without_the_terms_it_is_trls_trainer_to_the_last_bit(tmp_path):
    rows = [{"prompt": "ask ", "chosen": "zero one", "rejected": "two"}] * 8
    weights = []
    for trainer_class, config_class in ((DPOTrainer, DPOConfig), (PreferenceTrainer, PreferenceConfig)):
        args = config_class(str(tmp_path), per_device_train_batch_size=4, max_steps=3, learning_rate=0.02, **SETTINGS)
        model, data = make_policy(PAIRS, 0), Dataset.from_list(rows)
        trainer_class(
            model, make_policy(PAIRS, 0), args, train_dataset=data, processing_class=make_tokenizer()
        ).train()
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


TEXTS = (  # chosen, rejected and what conflicts of each
    ("There is edema. The lungs are clear.", "No edema.", [[0, 15]], [[0, 9]]),
    ("Normal heart and lungs.", "Large heart. Edema in both lungs. No effusion.", [], [[0, 12], [13, 33]]),
    ("Clear lungs.", "Clear lungs, no effusion.", [], []),
    ("Small effusion on the left. Edema.", "Edema.", [[0, 27]], []),
)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "LoRA"])
@pytest.mark.parametrize("system", ["huatuo A", "llmrg4-atf", "lmrrg", "qwen3-vl", "medgemma"])
def test_the_loss_by_hand(system, lora, tmp_path):
    """Of an uneven batch, from the log-probabilities that policy and reference give each row alone."""
    settings = {"beta": 0.3, "conflict_weight": 5.0, "chosen_penalty": 0.1, "length_weight": 0.05}
    write_model(system, tmp_path / "model")
    samples = to_samples(studies(priors=system.startswith("llmrg4")), "{prior_report}{indication}Report.",
                         VIEWS.get(system, "all"), keep=("study_id",))  # fmt: skip
    pairs = {
        study: dict(zip(("chosen", "rejected", *SPANS), texts, strict=True))
        for study, texts in zip(samples["study_id"], TEXTS, strict=True)
    }
    model, reference = load(tmp_path / "model"), load(tmp_path / "model")
    processor = load_processor(str(tmp_path / "model"))
    lora_config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q|v)_proj") if lora else None
    args = PreferenceConfig(str(tmp_path), per_device_train_batch_size=ROWS, **settings, **SETTINGS)
    trainer = PreferenceTrainer(
        model, None if lora else reference, args, train_dataset=with_pairs(samples, pairs),
        processing_class=processor, peft_config=lora_config,
    )  # fmt: skip
    policy = trainer.model.get_base_model() if lora else trainer.model
    torch.manual_seed(1)
    with torch.no_grad():  # a policy that is not its reference
        for name, weight in trainer.model.named_parameters():
            if weight.requires_grad and ("lora_B" in name or (not lora and "language_model" in name)):
                weight += 0.02 * torch.randn_like(weight)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["token_weights"].sum(1).tolist() == pytest.approx([1.0] * 2 * ROWS)
    loss = trainer.compute_loss(trainer.model, batch)

    losses, tokenizer = [], processor.tokenizer
    for number, sample in enumerate(samples):
        sums, lengths = {}, {}
        for side, spans in zip(("chosen", "rejected"), TEXTS[number][2:], strict=True):
            text = TEXTS[number][side == "rejected"]
            row = list(trainer.train_dataset["study_id"]).index(sample["study_id"])
            assert row == number
            places = [
                place for place in range(2 * ROWS)
                if text == tokenizer.decode(answer(batch, place), skip_special_tokens=True).strip()
            ]  # fmt: skip
            tokens = answer(batch, places[0])
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            heavy = [any(a < end and begin < b for begin, end in spans) for a, b in encoded["offset_mapping"]]
            start = next(i for i in range(len(tokens)) if tokens[i + 1 : i + len(heavy)] == encoded["input_ids"][1:])
            weights = torch.ones(len(tokens))
            weights[start : start + len(heavy)][torch.tensor(heavy)] = 5.0
            inputs = encode(processor, sample, tokens)
            for name, network in (("policy", policy), ("reference", reference)):
                with torch.no_grad():
                    logits = network(**inputs).logits[0, -len(tokens) - 1 : -1].float()
                log_probs = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
                sums[name, side] = (weights * log_probs).sum() / weights.sum()
            lengths[side] = len(tokens)
        chosen, rejected = (sums["policy", side] - sums["reference", side] for side in ("chosen", "rejected"))
        margin = chosen - rejected - 0.1 * max(0.0, -chosen.item())
        losses.append(-logsigmoid(0.3 * margin + 0.05 * (lengths["chosen"] - lengths["rejected"])).item())
    assert loss.item() == pytest.approx(np.mean(losses), abs=2e-5)
    assert np.std(losses) > 0.01
    loss.backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trainer.model.parameters())


def answer(batch: dict, row: int) -> list[int]:
    """The tokens of a row that are no prompt."""
    return batch["input_ids"][row][batch["completion_mask"][row].bool()].tolist()


def test_the_penalty_has_a_gradient(tmp_path):
    """Where the chosen report is less likely than in the reference, its log-probability counts 1 + weight times."""
    rows = [{"prompt": "ask ", "chosen": "zero", "rejected": "one"}] * 2
    model, reference = make_policy(PAIRS, 0), make_policy(PAIRS, 0)
    args = PreferenceConfig(str(tmp_path), beta=0.5, chosen_penalty=0.2, per_device_train_batch_size=2, **SETTINGS)
    trainer = PreferenceTrainer(
        model, reference, args, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer()
    )
    with torch.no_grad():
        model.lm_head.bias[0] -= 1.0  # "zero" is the first word
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    loss = trainer.compute_loss(model, batch)
    chosen, rejected = (log_probability(model, words) - log_probability(reference, words).detach()
                        for words in ((0, END), (1, END)))  # fmt: skip
    assert chosen < 0
    expected = -logsigmoid(0.5 * (chosen - rejected + 0.2 * chosen))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = [torch.autograd.grad(value, model.lm_head.weight)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_rrg_dpo_from_data_to_a_model(call, phantom, tiny, tmp_path):
    """Pairs without a model, then the row's YAML over the CPU's."""
    pairs = tmp_path / "pairs.jsonl"
    words = ["--dataset", phantom, "--rejected", "retrieved", "--neighbours", 5]
    call(build_preferences.main, *words, "--out", pairs)
    reports = {row["study_id"]: row["report"] for row in read_split(str(phantom), "train")}
    read = read_pairs(pairs)
    assert {study: pair["chosen"] for study, pair in read.items()} == reports
    assert all(pair["rejected"] in reports.values() and pair["rejected"] != pair["chosen"] for pair in read.values())
    with pytest.raises(InputError, match="leave out --rewards"):
        call(build_preferences.main, *words, "--rewards", "ce_f1", "--out", pairs)
    with pytest.raises(InputError, match="--predictions is missing"):
        call(build_preferences.main, "--dataset", phantom, "--rewards", "ce_f1", "--out", pairs)
    folder, out = "recipes/configs/mrgr1", tmp_path / "out"
    call(
        dpo.main, "--config", f"{folder}/dpo_phantom.yaml", "--config", f"{folder}/algorithms/rrg_dpo.yaml",
        "--dataset", phantom, "--pairs", pairs, "--model_name_or_path", tiny, "--output_dir", out, "--max_steps", 1,
        "--effective_batch_size", 4, "--per_device_train_batch_size", 4, "--learning_rate", 0.001,
    )  # fmt: skip
    before, after = (AutoModelForImageTextToText.from_pretrained(place) for place in (tiny, out))
    assert any(not torch.equal(old, new) for old, new in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"conflict_weight": 5.0, "loss_type": ["ipo"]}, r"loss_type \[sigmoid\]"),
        ({"chosen_penalty": 0.1, "f_divergence_type": "forward_kl"}, "f_divergence_type reverse_kl"),
        ({"length_weight": 0.1, "ld_alpha": 0.5}, "no ld_alpha"),
        ({"conflict_weight": 5.0, "use_weighting": True}, "use_weighting false"),
        ({"conflict_weight": 0.0}, "conflict_weight must be above 0"),
        ({"chosen_penalty": -1.0}, "chosen_penalty must be 0 or more"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        PreferenceConfig(str(tmp_path), **SETTINGS, **changes)


def test_weights_need_the_spans(tmp_path):
    rows = [{"prompt": "ask ", "chosen": "zero", "rejected": "one"}] * 2
    args = PreferenceConfig(str(tmp_path), conflict_weight=5.0, per_device_train_batch_size=2, **SETTINGS)
    with pytest.raises(
        InputError, match="needs a data set of images with the columns chosen_spans and rejected_spans"
    ):
        PreferenceTrainer(
            make_policy(PAIRS, 0), make_policy(PAIRS, 0), args, train_dataset=Dataset.from_list(rows),
            processing_class=make_tokenizer(),
        )  # fmt: skip


################
# Resumes and processes
################

FOLDER = Path(dpo.__file__).parent / "configs/mrgr1"


def words_of(folder: Path | str, out: Path | str, start: dict, **changed) -> list[str]:
    """The command line of three steps of RRG-DPO on four pairs each."""
    settings = start | {"pairs": f"{folder}/pairs.jsonl", "output_dir": out, "max_steps": 3, "effective_batch_size": 4}
    settings |= {"per_device_train_batch_size": 4, "length_weight": 0.05, "lr_scheduler_type": "constant"}
    settings |= {"learning_rate": 0.5, "optim": "sgd", "max_grad_norm": 0.0, "disable_tqdm": "true"}
    files = ["--config", FOLDER / "dpo_phantom.yaml", "--config", FOLDER / "algorithms/rrg_dpo.yaml"]
    return [
        *map(str, files),
        *(str(word) for pair in (settings | changed).items() for word in (f"--{pair[0]}", pair[1])),
    ]


@pytest.fixture
def start(call, phantom, tiny, tmp_path) -> dict:
    """A file of pairs, and the data set and the model that they are for."""
    call(build_preferences.main, "--dataset", phantom, "--rejected", "retrieved", "--out", tmp_path / "pairs.jsonl")
    return {"dataset": str(phantom), "model_name_or_path": str(tiny)}


def test_a_resumed_run_ends_where_the_whole_one_does(call, start, tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "learning_rate": 0.001}
    call(dpo.main, *words_of(tmp_path, tmp_path / "whole", start, **steps))
    shutil.copytree(tmp_path / "whole/checkpoint-1", tmp_path / "cut/checkpoint-1")
    call(dpo.main, *words_of(tmp_path, tmp_path / "cut", start, **steps, resume_from_checkpoint="latest"))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_two_processes_are_one(start, tmp_path, torchrun):
    (tmp_path / "start.json").write_text(json.dumps(start))
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])  # replicas.py is there
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    for command in ([__file__, str(tmp_path)], torchrun(__file__, tmp_path)):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr[-5000:]
    one, two = (load_file(tmp_path / f"{number}/model.safetensors") for number in (1, 2))
    before = load_file(f"{start['model_name_or_path']}/model.safetensors")
    assert sum(not torch.equal(value, before[name]) for name, value in one.items()) > 5
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)


def one_of_two(folder: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    start = json.loads((Path(folder) / "start.json").read_text())
    out = Path(folder) / str(processes)
    sys.argv = ["dpo.py", *words_of(folder, out, start, per_device_train_batch_size=4 // processes)]
    dpo.main()


if __name__ == "__main__":
    run(lambda: one_of_two(sys.argv[1]))
