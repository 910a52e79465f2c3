"""Diagnostic token weights: which tokens, their mean of 1, and the loss that they make."""

import inspect

import numpy as np
import pytest
import torch
from test_long_runs import make_trainer, small_llama
from transformers import AutoTokenizer
from trl import GRPOTrainer

from recipes.files import InputError
from recipes.trainers.diagnostic_tokens import diagnostic_spans, token_places, weigh_tokens
from recipes.trainers.grpo import MRGR1Config


@pytest.mark.parametrize(
    ("text", "unit", "phrases"),
    [
        ("Small effusion. The bones are intact.", "phrase", ["effusion"]),
        ("No pneumothorax or edema.", "phrase", ["pneumothorax", "edema"]),  # whatever is said of it
        ("No pneumothorax. The bones are intact.", "sentence", ["No pneumothorax."]),
        ("<think>Edema?</think>\n<report>Größe: no effusion.</report>", "phrase", ["effusion"]),  # reasoning weighs 1
        ("<think>Edema?</think> No effusion.", "sentence", ["No effusion."]),
        ("Edema. <think>Effusion.</think> Pneumonia.", "phrase", ["Edema", "Pneumonia"]),
        ("<think>Edema", "phrase", []),
        ("<report></report>", "sentence", []),
        ("", "phrase", []),
    ],
)
def test_spans(text, unit, phrases):
    assert [text[start:end] for start, end in diagnostic_spans(text, unit)] == phrases


@pytest.mark.parametrize(
    ("diagnostic", "mask", "weight", "expected"),
    [
        ([1, 0, 0, 0], [1, 1, 1, 0], 2.0, [1.5, 0.75, 0.75, 0]),  # 2, 1, 1 of mean 4 / 3
        ([1, 1, 0, 0], [1, 1, 1, 1], 3.0, [1.5, 1.5, 0.5, 0.5]),
        ([0, 0, 0, 0], [1, 1, 1, 1], 3.0, [1, 1, 1, 1]),
        ([1, 1, 1, 1], [1, 1, 1, 1], 3.0, [1, 1, 1, 1]),
        ([1, 0, 0, 0], [1, 1, 0, 0], 0.5, [2 / 3, 4 / 3, 0, 0]),  # less is possible too
        ([0, 0, 0, 0], [0, 0, 0, 0], 3.0, [0, 0, 0, 0]),  # a masked completion
    ],
)
def test_weights(diagnostic, mask, weight, expected):
    weights = weigh_tokens(torch.tensor([diagnostic]).bool(), torch.tensor([mask]), weight)
    torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float32))


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny)


TEXTS = ["<report>Small effusion.</report>", "Größe é — \U0001fac1 effusion", "effusion", ""]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_places_of_tokens(text, as_bytes, tokenizer):
    """Whether the policy sampled the tokenizer's own tokens or a byte at a time; special tokens have no place."""
    ids = tokenizer(text)["input_ids"]
    if as_bytes:
        pieces = [tokenizer.convert_ids_to_tokens(token) for token in ids]
        ids = [tokenizer.convert_tokens_to_ids(letter) for piece in pieces for letter in piece]
    assert as_bytes == (len(ids) > len(tokenizer(text)["input_ids"])) or not text
    end = tokenizer.eos_token_id
    found, places = token_places(tokenizer, [end, *ids, end])
    assert found == text and len(places) == len(ids) + 2
    assert places[0] == places[-1] == (0, 0)
    covered = {character for start, end in places[1:-1] for character in range(start, end)}
    visible = {place for place, character in enumerate(text) if not character.isspace()}
    assert visible <= covered <= set(range(len(text)))
    (at,) = [text.index("effusion")] if "effusion" in text else [None]
    if at is not None:
        touched = [token for token, (start, end) in zip(ids, places[1:-1], strict=True) if start < at + 8 and at < end]
        assert tokenizer.decode(touched).strip() == "effusion"
    if as_bytes:
        assert all(start < end <= start + 1 for start, end in places[1:-1])


def says(words: list[list[int]]):
    def says(prompts, trainer) -> dict:
        ids = trainer.processing_class(list(prompts))["input_ids"]
        texts = [words[row % len(words)] for row in range(len(prompts))]
        return {"prompt_ids": ids, "completion_ids": texts, "logprobs": [[0.0] * len(text) for text in texts]}

    return says


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`written(**settings)`: a trainer, and its batch of "no effusion", "lungs clear", "effusion heart effusion"."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def written(**settings):
        small_llama().save_pretrained(tmp_path / "start")  # where TRL loads the reference from
        sizes = {"per_device_train_batch_size": 4, "save_strategy": "no", "model": str(tmp_path / "start")}
        trainer = make_trainer("grpo", tmp_path, **sizes, **settings)
        trainer.rollout_func = says([[6, 7, 1], [2, 3, 1], [7, 4, 7, 1], [2, 3, 3, 3]])
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        rows = [trainer.train_dataset[0]] * 4
        return trainer, trainer._generate_and_score_completions(rows)

    return written


def test_weights_of_a_batch(written):
    trainer, output = written(diagnostic_weight=3.0)
    expected = [[3 / 5, 9 / 5, 3 / 5, 0], [1, 1, 1, 0], [1.5, 0.5, 1.5, 0.5], [1, 1, 1, 1]]
    torch.testing.assert_close(output["token_weights"], torch.tensor(expected))
    assert trainer._metrics["train"]["diagnostic/share"] == [pytest.approx(3 / 14)]
    trainer, output = written(diagnostic_weight=3.0, diagnostic_unit="sentence")
    torch.testing.assert_close(output["token_weights"][0], torch.tensor([9 / 7, 9 / 7, 3 / 7, 0]))


@pytest.mark.parametrize("norm", ["paper", "trl"])
def test_loss_is_the_weighed_one(written, norm, monkeypatch):
    """By numpy: the surrogate of each token times its weight; the KL term is not weighed."""
    trainer, output = written(diagnostic_weight=3.0, loss_type="grpo", beta=0.1, advantage_norm=norm)
    generator = np.random.default_rng(0)
    new, old, reference = (np.log(generator.uniform(0.2, 0.9, (4, 4))) for _ in range(3))
    mask, weights = (output[name].numpy() for name in ("completion_mask", "token_weights"))
    advantages = np.array([1.0, -0.5, 0.75, -1.25])
    ratio = np.exp(new - old)
    weighed = advantages[:, None] * weights
    surrogate = np.minimum(ratio * weighed, np.clip(ratio, 0.8, 1.2) * weighed)
    kl = (np.exp(reference - new) - (reference - new) - 1) * ratio
    expected = -np.mean(((surrogate - 0.1 * kl) * mask).sum(1) / mask.sum(1))
    monkeypatch.setattr(
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        lambda *args, **kwargs: (torch.tensor(new), torch.zeros(4, 4), None),
    )
    batch = output | {
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": torch.tensor(old),
        "ref_per_token_logps": torch.tensor(reference),
    }
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(expected, abs=1e-6)


def test_off_leaves_batch_and_loss_alone(written, monkeypatch):
    trainer, output = written()
    assert "token_weights" not in output
    seen = []
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs: seen.append(inputs) or 0.0)
    assert trainer._compute_loss(trainer.model, output) == 0.0
    assert seen[0] is output


def test_micro_batches_are_the_whole_batch(written):
    """Their rows bring their weights along, through TRL's splitting."""
    trainer, output = written(diagnostic_weight=3.0, loss_type="grpo")
    whole = trainer._compute_loss(trainer.model, output).item()
    parts = [
        {name: value if value.ndim == 0 else value[rows] for name, value in output.items()}
        for rows in ([2, 0], [3, 1])
    ]
    assert np.mean([trainer._compute_loss(trainer.model, part).item() for part in parts]) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"diagnostic_weight": 0.0}, "--diagnostic_weight must be above 0, not 0.0"),
        ({"diagnostic_unit": "word"}, "--diagnostic_unit must be one of phrase, sentence, not 'word'"),
    ],
)
def test_refused(changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        MRGR1Config(str(tmp_path), use_cpu=True, bf16=False, **changes)


def test_overridden_signatures_are_trls():
    assert list(inspect.signature(GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]
