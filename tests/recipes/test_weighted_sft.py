"""WeightedSFTTrainer against SFTTrainer, against Eq. 10 written out, and against itself on other batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image, List
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from modeling.tiny import train_tokenizer
from recipes.cli import run
from recipes.data.samples import prepare_images, to_samples
from recipes.data.schema import read_split
from recipes.files import InputError
from recipes.trainers.weighted_sft import KeyTokenCollator, WeightedSFTConfig, WeightedSFTTrainer, weighted_text

LOSSES = {  # of all tokens' losses, 1 where a token is key, and key_weight - 1
    "token_mean": lambda loss, key, extra: (loss * (1 + extra * key)).sum() / len(loss),  # Eq. 10
    "weight_mean": lambda loss, key, extra: (loss * (1 + extra * key)).sum() / (1 + extra * key).sum(),
    "official": lambda loss, key, extra: loss.mean() + extra * loss[key.bool()].mean(),  # the authors' code (A-39)
}
REDUCTIONS = list(LOSSES)
TEXTS = [
    "The heart is normal. There is a small left pleural effusion. No pneumothorax.",
    "Mild edema.",
    "The lungs are clear. No effusion. The heart is mildly enlarged. Stable rib fracture.",
    "No acute findings.",
]
KEYS = [[[21, 60]], [[0, 11]], [[34, 63], [64, 84]], None]
ROWS = [
    {"prompt": f"View {number}: ", "completion": text, "key_spans": spans}
    for number, (text, spans) in enumerate(zip(TEXTS, KEYS, strict=True))
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 2, 300)


def small_llama(tokenizer) -> LlamaForCausalLM:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def settings(tmp_path, kind=WeightedSFTConfig, **changes):
    values = {
        "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2,
        "per_device_train_batch_size": 2, "learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "max_length": None,
        "gradient_checkpointing": False, "seed": 3,
    }  # fmt: skip
    return kind(**values | changes)


def trained(trainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def logged_losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("text", 1.0),
        ("images", 1.0),
        ("no spans", 1.75),  # a share of 0, which `official` divides by
        ("no column", 1.75),
    ],
)
def test_weight_1_is_sft_to_the_last_bit(kind, weight, reduction, tokenizer, tiny, phantom, tmp_path):
    rows, processing = Dataset.from_list(ROWS), tokenizer
    if kind == "images":
        rows, processing = with_images(phantom), AutoProcessor.from_pretrained(tiny)
    elif kind == "no spans":
        rows = Dataset.from_list([row | {"key_spans": spans} for row, spans in zip(ROWS, [[], None] * 2, strict=True)])
    elif kind == "no column":
        rows = rows.remove_columns("key_spans")
    results = []
    for trainer, config, changes in (
        (SFTTrainer, SFTConfig, {}),
        (WeightedSFTTrainer, WeightedSFTConfig, {"key_weight": weight, "weight_reduction": reduction}),
    ):
        model = small_llama(tokenizer) if kind != "images" else AutoModelForImageTextToText.from_pretrained(tiny)
        args = settings(tmp_path, config, **changes)
        data = rows
        if kind == "images" and trainer is SFTTrainer:  # ours scales images to the processor's range itself
            data = prepare_images({"train": rows}, processing)["train"]
        results.append(trained(trainer(model, args, train_dataset=data, processing_class=processing)))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def with_images(phantom) -> Dataset:
    rows = read_split(str(phantom), "train").cast_column("images", List(Image(decode=False)))
    spans = [[[0, report.index(".") + 1]] for report in rows["report"]]
    rows = rows.remove_columns("key_spans").add_column("key_spans", spans)
    return to_samples(rows, "Describe.", "frontal", completion="plain", keep=("key_spans",))


def losses_by_hand(model, tokenizer) -> list[tuple[torch.Tensor, list[bool]]]:
    """Of each row the losses of its completion's tokens, one by one, and which of them touch a key span."""
    rows = []
    for row in ROWS:
        prompt, completion = row["prompt"], row["completion"] + tokenizer.eos_token
        encoded = tokenizer(prompt + completion, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])
        with torch.no_grad():
            log_probs = model(ids[None]).logits[0, :-1].log_softmax(-1)
        places = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt)]
        spans = [(len(prompt) + start, len(prompt) + end) for start, end in row["key_spans"] or ()]
        offsets = [encoded["offset_mapping"][i] for i in places]
        keys = [any(first < end and start < last for start, end in spans) for first, last in offsets]
        rows.append((torch.stack([-log_probs[i - 1, ids[i]] for i in places]), keys))
    return rows


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_loss_by_hand(reduction, tokenizer, tmp_path):
    args = settings(tmp_path, per_device_train_batch_size=4, max_steps=1, weight_reduction=reduction)
    trainer = WeightedSFTTrainer(
        small_llama(tokenizer), args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
    )
    losses, keys = zip(*losses_by_hand(trainer.model.eval(), tokenizer), strict=True)
    keys = torch.tensor([key for row in keys for key in row]).float()
    assert 0 < keys.mean() < 1
    expected = float(LOSSES[reduction](torch.cat(losses), keys, 0.75))  # key_weight is 1.75
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_accumulation_changes_nothing(reduction, tokenizer, tmp_path):
    results, losses = [], []
    for size, steps in ((4, 1), (2, 2), (1, 4)):  # rows have from none to most of their tokens in key spans
        args = settings(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, weight_reduction=reduction
        )
        rows = Dataset.from_list(ROWS)
        trainer = WeightedSFTTrainer(small_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
        results.append(trained(trainer))
        losses.append(logged_losses(trainer))
        assert losses[-1] == pytest.approx(losses[0], rel=1e-5)
    start = small_llama(tokenizer).state_dict()
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(start[name], value) for name, value in results[0].items())


def two_processes(tokenizer_folder: str, out: str) -> None:
    """What each of the processes of the next test runs: all reductions, since a start takes longer than the steps."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    rows, results = Dataset.from_list(ROWS), {}
    alike = Dataset.from_list([ROWS[0]] * 4)  # each process has the share of all, and must not count the other's
    for reduction in REDUCTIONS:
        for steps, data, average in ((1, rows, True), (2, rows, True), (1, alike, False)):
            args = settings(
                out, per_device_train_batch_size=4 // processes // steps, gradient_accumulation_steps=steps,
                weight_reduction=reduction, average_tokens_across_devices=average,
            )  # fmt: skip
            trainer = WeightedSFTTrainer(small_llama(tokenizer), args, train_dataset=data, processing_class=tokenizer)
            name = f"{reduction}, {steps}, {'all' if average else 'own'}"
            results[name] = {"weights": trained(trainer), "loss": torch.tensor(logged_losses(trainer))}
    if trainer.is_world_process_zero():
        torch.save(results, Path(out) / f"{processes}.pt")


def test_two_processes_are_one(tokenizer, tmp_path, torchrun):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = [__file__, str(tmp_path / "tokenizer"), str(tmp_path)]
    subprocess.run([sys.executable, *torchrun(*arguments)], check=True, timeout=300)
    two_processes(*arguments[1:])
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (1, 2))
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-5)
    for reduction in REDUCTIONS:
        runs = [two[f"{reduction}, {steps}, all"] for steps in (1, 2)]  # with accumulation, and without
        torch.testing.assert_close(*runs, atol=1e-6, rtol=1e-5)
    assert len({float(one[f"{reduction}, 1, all"]["loss"][0]) for reduction in REDUCTIONS}) == len(REDUCTIONS)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_evaluation_weighs_too(reduction, tokenizer, tmp_path):
    """By its own share of key tokens, not by that of the training batch before it, and each time anew."""
    rows = Dataset.from_list(ROWS)
    args = settings(
        tmp_path, per_device_train_batch_size=1, per_device_eval_batch_size=4, key_weight=3.0, learning_rate=0.0,
        max_steps=1, weight_reduction=reduction,
    )  # fmt: skip
    trainer = WeightedSFTTrainer(
        small_llama(tokenizer), args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    losses, keys = zip(*losses_by_hand(trainer.model.eval(), tokenizer), strict=True)
    losses, keys = torch.cat(losses), torch.tensor([key for row in keys for key in row]).float()
    expected = float(LOSSES[reduction](losses, keys, 2.0))
    trainer.train()
    for _ in range(2):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_without_a_token_to_learn(reduction, tokenizer, tmp_path):
    args = settings(tmp_path, weight_reduction=reduction)
    rows = Dataset.from_list(ROWS)
    trainer = WeightedSFTTrainer(small_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch["labels"].fill_(-100)
    batch["key_tokens"].fill_(False)
    number = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert trainer.compute_loss(trainer.model, batch, num_items_in_batch=number).item() == 0


def test_key_tokens_are_those_of_the_sentence(tiny, phantom, tmp_path):
    processor = AutoProcessor.from_pretrained(tiny)
    rows = with_images(phantom)
    trainer = WeightedSFTTrainer(
        AutoModelForImageTextToText.from_pretrained(tiny), settings(tmp_path), train_dataset=rows,
        processing_class=processor,
    )  # fmt: skip
    chosen = [trainer.train_dataset[i] for i in range(4)]
    texts = [(weighted_text(row), row["key_spans"]) for row in chosen]
    batch = trainer.data_collator(chosen)
    for number, (text, [(start, end)]) in enumerate(texts):
        found = processor.tokenizer.decode(batch["input_ids"][number][batch["key_tokens"][number]])
        assert found.strip() == text[start:end]
    assert not (batch["key_tokens"] & (batch["labels"] == -100)).any()


def key_tokens(ids: list[int], text: str, spans: list, tokenizer) -> list[bool]:
    """Of a row whose labelled tokens are `ids`."""

    def collate(rows):
        return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])}

    return KeyTokenCollator(collate, tokenizer)([{"completion": text, "key_spans": spans}])["key_tokens"][0].tolist()


def test_a_text_that_was_cut_off(tokenizer):
    """A key sentence that was cut keeps the tokens that are left of it."""
    encoded = tokenizer(TEXTS[0], return_offsets_mapping=True)
    expected = [end > 21 and start < 60 for start, end in encoded["offset_mapping"]]
    for length in range(1, len(expected) + 1):
        found = key_tokens(encoded["input_ids"][:length], TEXTS[0], KEYS[0], tokenizer)
        assert found == expected[:length]
    chosen = [number for number, key in zip(encoded["input_ids"], expected, strict=True) if key]
    assert tokenizer.decode(chosen).strip() == "There is a small left pleural effusion."


@pytest.mark.parametrize(
    ("span", "first"),
    [
        ([0, 11], True),
        ([0, 1], True),
        ([5, 11], False),  # the second word alone
    ],
)
def test_a_first_token_that_was_merged(span, first, tokenizer):
    """With what stands before the text, as in sentencepiece: the joint token is key where the text's first one is."""
    encoded = tokenizer(TEXTS[1], return_offsets_mapping=True)
    start, merged = tokenizer("The heart")["input_ids"], tokenizer("z")["input_ids"][:1]
    rest, offsets = encoded["input_ids"][1:], encoded["offset_mapping"][1:]
    assert merged[0] != encoded["input_ids"][0]
    expected = [begin < span[1] and span[0] < end for begin, end in offsets]
    found = key_tokens(start + merged + rest, TEXTS[1], [span], tokenizer)
    assert found == [False] * len(start) + [first] + expected


def test_a_text_that_stands_twice(tokenizer):
    """In the prompt, which is labelled too, and behind it: the last one is the completion."""
    ids = tokenizer(TEXTS[1])["input_ids"]
    assert key_tokens(ids + ids, TEXTS[1], [[0, 11]], tokenizer) == [False] * len(ids) + [True] * len(ids)


class Pieces:
    """A tokenizer of one text, "No edema. No mass.", whose tokens are known."""

    is_fast = True

    def __call__(self, texts, **options):
        offsets = [(0, 2), (3, 8), (8, 9), (10, 12), (13, 17), (17, 18)]
        return {"input_ids": [[5, 6, 7, 5, 8, 7]] * len(texts), "offset_mapping": [offsets] * len(texts)}


FIRST, SECOND = [0, 9], [10, 18]  # its sentences; 2 ends a row, 9 is the first token together with what precedes it


@pytest.mark.parametrize(
    ("ids", "spans", "keys"),
    [
        ([5, 6, 7, 5, 8, 7, 2], [FIRST, SECOND], [1, 1, 1, 1, 1, 1, 0]),
        ([5, 6, 7, 5, 8, 7, 2], [[2, 3]], [0, 0, 0, 0, 0, 0, 0]),  # the space between two tokens is neither's
        ([5, 6, 7, 5, 8, 7, 2], [[4, 5]], [0, 1, 0, 0, 0, 0, 0]),  # a part of a token
        ([5, 6, 7, 5], [SECOND], [0, 0, 0, 1]),  # cut off after its first token, which is the text's first, too
        ([5, 6], [SECOND], [0, 0]),  # cut off before it
        ([4, 9, 6, 7, 5, 8, 7, 2], [FIRST], [0, 1, 1, 1, 0, 0, 0, 0]),  # merged: the first sentence's, and 4 nobody's
        ([9, 6, 7, 5, 8, 7, 2], [SECOND], [0, 0, 0, 1, 1, 1, 0]),
        ([9, 6, 7, 5], [FIRST], [1, 1, 1, 0]),  # merged and cut off, behind a token that is the text's first
        ([5, 6, 7, 5, 8, 7, 2] * 2, [FIRST], [0] * 7 + [1, 1, 1, 0, 0, 0, 0]),  # said again: the last
        ([5, 6, 7, 5, 8, 7, 2, 5, 6, 7], [FIRST], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]),  # a part of it is no better place
    ],
)
def test_which_tokens_are_key_tokens(ids, spans, keys):
    batch = {"input_ids": torch.tensor([[1, *ids, 0]]), "labels": torch.tensor([[-100, *ids, -100]])}
    collator = KeyTokenCollator(lambda rows: batch, Pieces())
    found = collator([{"completion": "No edema. No mass.", "key_spans": spans}])["key_tokens"]
    assert found.int().tolist() == [[0, *keys, 0]]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "P", "completion": "C"}, "C"),
        ({"prompt": "P", "completion": [{"role": "assistant", "content": "C"}]}, "C"),
        ({"completion": [{"role": "assistant", "content": [{"type": "text", "text": t} for t in "CD"]}]}, "CD"),
        ({"text": "T"}, "T"),
        ({"completion": "C", "text": "T"}, "C"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "A"),
        ({"messages": [{"content": [{"type": "image"}, {"type": "text", "text": "A"}]}]}, "A"),
    ],
)
def test_the_text_that_spans_count_in(row, text):
    assert weighted_text(row) == text


def test_trl_gives_what_is_relied_on():
    """A new TRL fails here first: the field that is weighed, and the methods that are extended."""
    assert "log_probs" in FusedCausalLMOutput.__dataclass_fields__
    for name in ("compute_loss", "_get_num_items_in_batch", "_set_signature_columns_if_needed"):
        assert callable(getattr(SFTTrainer, name))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"key_weight": 0.0}, "key_weight must be above 0"),
        ({"key_weight": -1.0}, "key_weight must be above 0"),
        ({"packing": True, "max_length": 64}, "set packing and padding_free to false"),
        ({"padding_free": True}, "set packing and padding_free to false"),
        ({"loss_type": "dft"}, "not dft"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
)
def test_what_cannot_be_combined(changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        settings(tmp_path, **changes)


@pytest.mark.parametrize("span", [[0, 900], [5, 5], [-1, 4], [3], [9, 2]])
def test_a_span_outside_its_text(span, tokenizer, tmp_path):
    rows = Dataset.from_list([ROWS[0], {**ROWS[1], "key_spans": [span]}])
    with pytest.raises(InputError, match=r"row 1: key span \[.*\] is not within its text of 11 characters"):
        WeightedSFTTrainer(small_llama(tokenizer), settings(tmp_path), train_dataset=rows, processing_class=tokenizer)


def test_a_tokenizer_without_offsets():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow tells no offsets, which key_spans need: use a fast one"):
        KeyTokenCollator(None, Slow())


def test_a_template_that_changes_the_text(tokenizer):
    ids = tokenizer(TEXTS[0].upper())["input_ids"]

    def collate(rows):
        return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])}

    with pytest.raises(InputError, match=r"the tokens of 'The heart is normal.* are not in its row"):
        KeyTokenCollator(collate, tokenizer)([{"completion": TEXTS[0], "key_spans": KEYS[0]}])


if __name__ == "__main__":
    run(lambda: two_processes(*sys.argv[1:]))
