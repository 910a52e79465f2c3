"""Preference pairs by hand, DPO's known optimum, and what reaches a policy and its reference."""

import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_policies import END, PAIRS, make_policy, make_tokenizer, probabilities
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling.tiny_llmrg4 import build_llmrg4
from recipes import build_preferences, dpo
from recipes.build_phantom import BuildArguments, build_row
from recipes.data.samples import to_samples
from recipes.data.schema import read_split, write_dataset
from recipes.evaluation.preferences import COUNTS, rank_completions, read_pairs, score_completions
from recipes.files import InputError
from recipes.trainers.dpo import PreferenceConfig, PreferenceTrainer, with_pairs

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
