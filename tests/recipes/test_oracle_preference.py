"""OraPO: its weights and moving average, its DPO term beside TRL's own, and what it learns where GRPO cannot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_policies import END, WORDS, make_tokenizer, probabilities
from small_policies import make_policy as make_small_policy
from test_long_runs import make_words, small_llama
from transformers import AutoProcessor, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOTrainer

from recipes.cli import run
from recipes.files import InputError
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.oracle_preference import STATE_FILE, encode_answer, preference_weight, token_mean
from rewards.completions import parse_completion

ROWS = [  # prompt, reference
    ("lungs", "lungs clear"),
    ("heart large", "no large heart"),
    ("no effusion", None),
    ("heart", "heart large"),
]
LUNGS, CLEAR, HEART, LARGE, NO, EFFUSION = range(2, 8)
WRITTEN = [  # two completions of each prompt; those that begin with "clear" earn something
    [EFFUSION, LARGE, 1],
    [CLEAR, LUNGS, 1],
    [HEART, HEART, NO, 1],
    [NO, 1],
    [LARGE, LARGE, 1],
    [LARGE, 1],
    [CLEAR, 1],
    [CLEAR, CLEAR, 1],
]


def begins_with_clear(completion_ids, **kwargs):
    return [1.0 if ids[0] == CLEAR else 0.0 for ids in completion_ids]


def writes(prompts, trainer) -> dict:
    """For each prompt two of `WRITTEN`, by its place among `ROWS`."""
    ids = trainer.processing_class(list(prompts))["input_ids"]
    places = [[prompt for prompt, _ in ROWS].index(prompt) for prompt in prompts]
    texts = [WRITTEN[2 * place + row % 2] for row, place in enumerate(places)]
    return {"prompt_ids": ids, "completion_ids": texts, "logprobs": [[0.0] * len(text) for text in texts]}


def make_trainer(folder, reward=begins_with_clear, rows=ROWS, seed=0, start=None, **changes):
    """A trainer of a language model of eight words, whose completions are `WRITTEN`."""
    values = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 4, "beta": 0.2,
        "per_device_train_batch_size": 8, "learning_rate": 0.05, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "gradient_checkpointing": False, "seed": 3, "max_completion_length": 4,
        "num_generations": 2, "stop_on_collapse": 0, "oracle_preference": True, "oracle_beta": 0.7,
        "loss_type": "grpo", "shuffle_dataset": False, "optim": "sgd", "max_grad_norm": 0.0,
    }  # fmt: skip
    if start is None:
        start = Path(folder) / "start"
        small_llama(seed).save_pretrained(start)
    prompts, reports = zip(*rows, strict=True)
    data = Dataset.from_dict({"prompt": prompts * 4, "report": reports * 4})
    trainer = MRGR1Trainer(str(start), reward, MRGR1Config(**values | changes), data, processing_class=make_words())
    trainer.rollout_func = writes
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # of rollout_func


def disturb(trainer) -> None:
    """Moves the policy away from its reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)


def write_batch(trainer) -> dict:
    return trainer._generate_and_score_completions([trainer.train_dataset[row // 2] for row in range(8)])


@pytest.mark.parametrize(("share", "weight"), [(0.0, 0.05), (0.5, 0.075), (1.0, 0.15)])
def test_weight(share, weight):
    """.05 + .1 share^2"""
    assert preference_weight(share, 0.05, 0.15, 2.0) == pytest.approx(weight)


def test_token_mean():
    values, mask = torch.tensor([[1.0, 2.0, 9.0], [5.0, 5.0, 5.0]]), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert token_mean(values, mask).tolist() == [1.5, 0.0]


def test_moving_average(tmp_path):
    """Shares of 3/4, 0 and 1 with alpha .25: .75, .5625, .671875. An evaluation does not count."""
    earns = [[0, 0, 0, 1] * 2, [1] * 8, [0, -1] * 4]
    trainer = make_trainer(tmp_path, reward=lambda completions, **kwargs: earns[0], oracle_smoothing=0.25)
    for share in (0.75, 0.5625, 0.671875):
        output = write_batch(trainer)
        earns.pop(0)
        assert trainer.zero_reward_share == pytest.approx(share)
        assert output["oracle_weight"].item() == pytest.approx(0.05 + 0.1 * share**2)
        assert trainer._metrics["train"]["oracle/zero_reward_share"][-1] == pytest.approx(share)
        earns.append([0] * 8)
        trainer.model.eval()
        assert "oracle_weight" not in write_batch(trainer)
        trainer.model.train()
        earns.pop()
    assert trainer.zero_reward_share == pytest.approx(0.671875)


def test_unscored_completions_are_no_failures(tmp_path):
    rewards = [None, 0.0, None, None, 1.0, 0.0, 1.0, 1.0]
    trainer = make_trainer(tmp_path, reward=lambda completions, **kwargs: rewards)
    output = write_batch(trainer)
    assert trainer.zero_reward_share == pytest.approx(2 / 5)
    assert output["oracle_pairs"].tolist() == [False, True] + [False] * 6  # the sixth has no reference


def test_pairs_and_their_answers(tmp_path):
    output = write_batch(make_trainer(tmp_path))
    assert output["oracle_pairs"].tolist() == [True, False, True, True, False, False, False, False]
    answers = [
        ids[mask.bool()].tolist() for ids, mask in zip(output["chosen_ids"], output["chosen_mask"], strict=True)
    ]
    assert answers[:2] == [[LUNGS, CLEAR, 1]] * 2 and answers[2:4] == [[NO, LARGE, HEART, 1]] * 2
    assert answers[6:] == [[HEART, LARGE, 1]] * 2
    assert output["oracle_groups"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def log_prob_alone(model, prompt: str, ids: list[int]) -> torch.Tensor:
    """The mean log-probability of a completion's tokens, from the model alone."""
    prompt_ids = make_words()(prompt)["input_ids"]
    logits = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean()


@pytest.mark.parametrize("share_prefix", [True, False])
def test_loss_by_hand(share_prefix, tmp_path, monkeypatch):
    """(1 - w) L_GRPO + w sum / 8, every log-probability from a pass of the row alone."""
    trainer = make_trainer(tmp_path, share_prefix=share_prefix)
    disturb(trainer)
    output = write_batch(trainer)
    total = trainer._compute_loss(trainer.model, output)
    terms = []
    for row, answer in ((0, [LUNGS, CLEAR, 1]), (2, [NO, LARGE, HEART, 1]), (3, [NO, LARGE, HEART, 1])):
        prompt = ROWS[row // 2][0]
        chosen, rejected = (
            log_prob_alone(trainer.model, prompt, ids) - log_prob_alone(trainer.ref_model, prompt, ids)
            for ids in (answer, WRITTEN[row])
        )
        terms.append(-torch.nn.functional.logsigmoid(0.7 * (chosen - rejected)))
    weight = 0.05 + 0.1 * (5 / 8) ** 2
    plain = {name: value for name, value in output.items() if not name.startswith("oracle")}
    grpo = trainer._compute_loss(trainer.model, plain)
    assert output["ref_per_token_logps"] is not None and grpo.item() != 0
    expected = (1 - weight) * grpo + weight * torch.stack(terms).sum() / 8
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=1e-6)
    parameters = list(trainer.model.parameters())
    for one, other in zip(*(torch.autograd.grad(loss, parameters) for loss in (total, expected)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_dpo_term_is_trls(tmp_path):
    """DPOTrainer's sigmoid_norm on the same pairs, with the same policy and reference."""
    trainer = make_trainer(tmp_path)
    disturb(trainer)
    trainer.model.save_pretrained(tmp_path / "policy")
    output = write_batch(trainer)
    trainer._with_answers = output
    GRPOTrainer._compute_loss(trainer, trainer.model, output)
    found = trainer._preference_loss(output).item()
    pairs = [(row, ROWS[row // 2]) for row in (0, 2, 3)]
    words = [" ".join(make_words().convert_ids_to_tokens(WRITTEN[row][:-1])) for row, _ in pairs]
    rows = [
        {"prompt": prompt, "chosen": f" {report}", "rejected": f" {text}"}
        for (_, (prompt, report)), text in zip(pairs, words, strict=True)
    ]
    args = DPOConfig(
        str(tmp_path / "dpo"), loss_type=["sigmoid_norm"], beta=0.7, use_cpu=True, bf16=False, report_to="none",
        per_device_train_batch_size=3, disable_dropout=True, gradient_checkpointing=False,
    )  # fmt: skip
    dpo = DPOTrainer(
        str(tmp_path / "policy"), LlamaForCausalLM.from_pretrained(tmp_path / "start"), args,
        train_dataset=Dataset.from_list(rows), processing_class=make_words(),
    )  # fmt: skip
    batch = next(iter(dpo.get_train_dataloader()))
    assert sorted(batch["completion_mask"].sum(1).tolist()) == [2, 3, 3, 4, 4, 4]  # with the end, as WRITTEN
    expected = dpo.compute_loss(dpo.model, batch).item()
    assert found == pytest.approx(3 / 8 * expected, abs=1e-6)


def test_without_failures_the_loss_is_scaled_alone(tmp_path):
    """The KL term too."""
    trainer = make_trainer(tmp_path, reward=lambda completions, **kwargs: [1.0, 2.0] * 4)
    disturb(trainer)
    output = write_batch(trainer)
    plain = {name: value for name, value in output.items() if not name.startswith("oracle")}
    expected = 0.95 * trainer._compute_loss(trainer.model, plain)
    torch.testing.assert_close(trainer._compute_loss(trainer.model, output), expected)
    assert trainer._metrics["train"]["oracle/loss"] == [0.0]


def test_micro_batches_are_the_whole_batch(tmp_path):
    trainer = make_trainer(tmp_path)
    disturb(trainer)
    output = write_batch(trainer)
    whole = trainer._compute_loss(trainer.model, output).item()
    parts = [
        {name: value if value.ndim == 0 else value[rows] for name, value in output.items()}
        for rows in ([5, 2], [0, 7], [1, 3], [4, 6])
    ]
    assert np.mean([trainer._compute_loss(trainer.model, part).item() for part in parts]) == pytest.approx(whole)


def test_several_steps_of_one_generation(tmp_path):
    """TRL shuffles and splits what the pairs are made of; four micro-batches of two are one batch of eight."""
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path / str(size), per_device_train_batch_size=size, gradient_accumulation_steps=steps, num_iterations=1
        )
        trainer.train()
        weights.append([weight.detach() for weight in trainer.model.parameters()])
        assert trainer.state.log_history[0]["oracle/zero_reward_share"] == pytest.approx(5 / 8)
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_off_leaves_batch_and_loss_alone(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, oracle_preference=False)
    output = write_batch(trainer)
    assert not [name for name in output if name.startswith(("oracle", "chosen"))]
    seen = []
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs: seen.append(inputs) or 0.0)
    assert trainer._compute_loss(trainer.model, output) == 0.0
    assert seen[0] is output and trainer.zero_reward_share is None


def test_weights_of_zero_are_off(tmp_path):
    """A run with w = 0 ends where one without ends; only the pass has other rows beside those of the loss."""
    ends = []
    for number, changes in enumerate(({"oracle_preference": False}, {"oracle_weight_min": 0, "oracle_weight_max": 0})):
        trainer = make_trainer(tmp_path / str(number), **changes)
        trainer.train()
        ends.append(trainer.model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-6, rtol=1e-5)


################
# What is learned
################

ARMS = {(arm,): 0.0 for arm in range(8)}
ORACLE = 6


@pytest.mark.parametrize("seed", range(2))
def test_it_learns_where_every_completion_fails(seed, tmp_path):
    """Eight first words, of which one earns a reward and is never sampled: GRPO stays, OraPO goes to the reference."""
    after = {}
    for name in ("grpo", "orapo"):
        model = make_small_policy(ARMS | {(END,): 0.0}, seed)
        model.lm_head.bias.data[ORACLE] = -12.0
        model.config.name_or_path = str(tmp_path / name / "policy")
        model.save_pretrained(model.config.name_or_path)
        before = probabilities(model, ARMS)
        args = MRGR1Config(
            str(tmp_path / name), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
            max_completion_length=2, per_device_train_batch_size=16, num_generations=8, gradient_checkpointing=False,
            learning_rate=0.05, max_steps=60, beta=1e-3, logging_strategy="no", seed=seed, stop_on_collapse=0,
            oracle_preference=name == "orapo",
        )  # fmt: skip
        data = Dataset.from_dict({"prompt": ["ask"] * 64, "report": [WORDS[ORACLE]] * 64})
        reward = lambda completion_ids, **kwargs: [float(ids[0] == ORACLE) for ids in completion_ids]  # noqa: E731
        MRGR1Trainer(model, reward, args, data, processing_class=make_tokenizer()).train()
        after[name] = probabilities(model, ARMS)
    np.testing.assert_allclose(after["grpo"], before, atol=1e-3)
    assert before[ORACLE] < 1e-4 and after["orapo"][ORACLE] > 0.9


################
# Answers
################


@pytest.fixture(scope="module")
def processor(tiny):
    return AutoProcessor.from_pretrained(tiny)


@pytest.mark.parametrize("answer", ["The heart is normal.", "<think>Größe.</think>\n<report>A\n\nB</report>", ""])
def test_an_answer_ends_as_a_turn_of_the_chat_template_does(answer, processor):
    tokenizer = processor.tokenizer
    ids = encode_answer(processor, answer, [tokenizer.eos_token_id], conversational=True)
    assert ids == [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    messages = [{"role": "user", "content": [{"type": "text", "text": "Report."}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turn = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    whole = processor.apply_chat_template(messages + turn, tokenize=False)
    assert whole.startswith(prompt + tokenizer.decode(ids))  # as in supervised fine-tuning


def test_an_answer_without_a_chat_ends_with_the_tokenizers_end():
    words = make_words()
    assert encode_answer(words, "lungs clear", [1], conversational=False) == [LUNGS, CLEAR, 1]


def test_a_template_without_an_end_is_refused(processor):
    with pytest.raises(InputError, match=r"the chat template ends an answer with .* no end token is in it"):
        encode_answer(processor, "Clear.", [processor.tokenizer.pad_token_id + 10_000], conversational=True)


def test_an_answer_with_reasoning_has_the_rewarded_format(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, oracle_answer="reasoning")
    texts = []
    monkeypatch.setattr(
        "recipes.trainers.oracle_preference.encode_answer", lambda processor, answer, *_, **__: texts.append(answer)
    )
    row = {"prompt": "lungs", "report": "Clear.", "labels": [0, 1] + [0] * 11 + [0]}
    trainer._encode(row)
    assert texts == ["<think>Present: Cardiomegaly.</think>\n<report>Clear.</report>"]
    assert parse_completion(texts[0]).format_score == 1.0
    assert trainer._encode(row | {"labels": None}) is None
    with pytest.raises(InputError, match="the data need a column 'labels' to write the chosen answers"):
        trainer._encode({"prompt": "lungs", "report": "Clear."})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"beta": 0.0}, "TRL has for a KL term alone: set beta above 0"),
        ({"oracle_weight_min": 0.2}, r"oracle_weight_min \(0.2\) is above oracle_weight_max \(0.15\)"),
        ({"oracle_weight_max": 1.5}, "--oracle_weight_max must be at least 0 and at most 1, not 1.5"),
        ({"oracle_answer": "tags"}, "--oracle_answer must be one of plain, reasoning, not 'tags'"),
    ],
)
def test_refused_settings(changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        MRGR1Config(str(tmp_path), use_cpu=True, bf16=False, **{"oracle_preference": True, "beta": 0.1} | changes)


def test_answers_without_tags_where_tags_are_rewarded(tmp_path):
    def format_reward(completions, **kwargs):
        return [0.0] * len(completions)

    with pytest.raises(InputError, match=r"the reward format pays for tags, .* set oracle_answer reasoning, or leave"):
        make_trainer(tmp_path, reward=[format_reward])
    make_trainer(tmp_path, reward=[format_reward], oracle_answer="reasoning")


################
# Going on, and two processes
################


def test_a_run_that_goes_on_has_the_moving_average(tmp_path):
    earned = lambda completions, trainer_state, **kwargs: [  # noqa: E731
        float((row + trainer_state.global_step) % 3 == 0) for row in range(len(completions))
    ]
    changes = {"reward": earned, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "max_steps": 4}
    whole = make_trainer(tmp_path / "whole", **changes)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", start=tmp_path / "whole/start", **changes)
    checkpoint = tmp_path / "resumed/checkpoint-2"
    shutil.copytree(tmp_path / "whole/checkpoint-2", checkpoint)
    assert 0 < json.loads((checkpoint / STATE_FILE).read_text())["zero_reward_share"] < 1
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.zero_reward_share == whole.zero_reward_share
    names = ("loss", "oracle/weight", "oracle/loss")
    rows = [[[row[name] for name in names] for row in t.state.log_history if "loss" in row] for t in (whole, resumed)]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    assert all(
        torch.equal(value, resumed.model.state_dict()[name]) for name, value in whole.model.state_dict().items()
    )
    (checkpoint / STATE_FILE).unlink()
    again = make_trainer(tmp_path / "again", start=tmp_path / "whole/start", **changes)
    with pytest.raises(InputError, match=f"no checkpoint of a run with oracle_preference: it has no {STATE_FILE}"):
        again.train(resume_from_checkpoint=str(checkpoint))


def one_of_two(folder: str) -> None:
    """Four steps on all completions; the rows with pairs are not spread evenly over the processes."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer(folder, start=Path(folder) / "start", per_device_train_batch_size=8 // processes)
    trainer.train()
    if trainer.is_world_process_zero():
        names = ("loss", "reward", "kl", "grad_norm", "oracle/zero_reward_share", "oracle/weight", "oracle/loss")
        rows = [[row[name] for name in names] for row in trainer.state.log_history if "reward" in row]
        torch.save({"weights": trainer.model.state_dict(), "rows": rows}, Path(folder) / f"{processes}.pt")


def test_two_processes_are_one(tmp_path, torchrun):
    small_llama().save_pretrained(tmp_path / "start")
    subprocess.run([sys.executable, *torchrun(__file__, tmp_path)], check=True, timeout=300)
    one_of_two(str(tmp_path))
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (1, 2))
    assert len(one["rows"]) == 4 and all(row[-1] > 0 for row in one["rows"])
    np.testing.assert_allclose(two["rows"], one["rows"], atol=1e-5)
    start = small_llama().state_dict()
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-6, rtol=1e-5)
        assert not torch.equal(value, start[name]), name


if __name__ == "__main__":
    run(lambda: one_of_two(sys.argv[1]))
