"""The F1 of the findings that a policy samples: of counts worked by hand, in GRPO and PPO."""

import pytest
from datasets import Dataset
from test_long_runs import PROMPTS, make_trainer

from recipes.trainers.clinical_f1 import NAME
from rewards.clinical_efficacy import clinical_efficacy
from rewards.labelers import LexicalLabeler

POLICIES = ("grpo", "ppo")
FIRST = [  # completion, reference: findings in both, in the completion, in the reference
    ("Left pleural effusion.", "Left pleural effusion. Pulmonary edema."),  # 1, 1, 2
    ("No pleural effusion.", "Possible pneumonia."),  # 0, 0, 1: uncertain counts
]
SECOND = [
    ("<think>Edema.</think><report>Rib fracture. Cardiomegaly.</report>", "Rib fracture."),  # 1, 2, 1
    ("Pneumothorax.", None),  # no reference
]


def score(trainer, pairs: list[tuple[str, str | None]]) -> None:
    completions, reports = zip(*pairs, strict=True)
    inputs = [{"prompt": "heart", "report": report} for report in reports]
    trainer._calculate_rewards(inputs, ["heart"] * len(pairs), list(completions), [[2]] * len(pairs))


@pytest.fixture
def logs(monkeypatch) -> list[dict]:
    """What Trainer is given to log."""
    entries = []
    monkeypatch.setattr("transformers.Trainer.log", lambda trainer, logs, start_time=None: entries.append(dict(logs)))
    return entries


@pytest.mark.parametrize("kind", POLICIES)
def test_the_f1_of_all_completions_since_the_last_log(kind, tmp_path, logs):
    """Not the mean of the batches' F1, 1/2 and 2/3. Evaluation has counts of its own."""
    trainer = make_trainer(kind, tmp_path)
    trainer.model.train()
    score(trainer, FIRST)
    trainer.model.eval()
    score(trainer, SECOND)
    trainer.model.train()
    score(trainer, SECOND)
    trainer.log({})
    trainer.log({})
    trainer.model.eval()
    trainer.log({})
    assert logs[0][NAME] == pytest.approx(2 * 2 / (3 + 4))
    assert NAME not in logs[1]
    assert logs[2][f"eval_{NAME}"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("pairs", [[("Clear.", "No edema.")], [("Edema.", None)], [("Edema.", "")]])
def test_nothing_is_logged_of_nothing(pairs, tmp_path, logs):
    trainer = make_trainer("grpo", tmp_path)
    score(trainer, pairs)
    trainer.log({})
    assert NAME not in logs[0]


@pytest.mark.parametrize("kind", POLICIES)
def test_a_run_logs_it(kind, tmp_path):
    """Of the first step the completions are still there: against scikit-learn's F1."""
    trainer = make_trainer(kind, tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    completions, labeler = list(trainer._logs["completion"]), LexicalLabeler()
    references = ["heart large effusion"] * len(completions)
    expected = clinical_efficacy(labeler(completions), labeler(references), label_set="13")["micro"]["f1"]
    values = [entry[NAME] for entry in trainer.state.log_history if NAME in entry]
    assert values == pytest.approx([expected])


def test_data_without_reports(tmp_path):
    trainer = make_trainer("grpo", tmp_path, max_steps=1, save_strategy="no")
    trainer.train_dataset = Dataset.from_dict({"prompt": PROMPTS * 8})
    trainer.train()
    assert not any(NAME in entry for entry in trainer.state.log_history)
