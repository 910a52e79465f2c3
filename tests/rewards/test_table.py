"""rewards/table.py: the names that recipes take, one list of them, and rewards of one's own."""

import pickle
import re
import sys
from pathlib import Path

import pytest

import rewards
from rewards.labelers import LexicalLabeler
from rewards.table import REWARDS, RewardArguments, import_reward, make_rewards

TEXTS = ["There is a small left pleural effusion.", "The heart is enlarged. No pneumothorax."]
# tests/recipes/test_ppo_lmrrg.py makes these of tiny networks, and tests of their names the last two
WEIGHTS = {"bertscore", "radgraph", "radcliq", "crepe", "ratescore"}
OWN = """def length_reward(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


class Half:
    def __call__(self, completions, **kwargs):
        return [0.5] * len(completions)


nameless = Half()
number = 3
"""


def make(*names: str, **settings) -> list:
    return make_rewards(RewardArguments(rewards=list(names), **settings), LexicalLabeler(), TEXTS)


def test_the_page_and_the_help_text_name_every_reward():
    page = (Path(rewards.__file__).parent / "README.md").read_text()
    table = page.partition("| setting |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(REWARDS)
    (field,) = (field for field in RewardArguments.__dataclass_fields__.values() if field.name == "rewards")
    assert ", ".join(REWARDS) in field.metadata["help"]


@pytest.mark.parametrize("name", [name for name in REWARDS if name not in WEIGHTS])
def test_a_reward_is_logged_by_its_name_and_goes_through_pickle(name):
    (reward,) = make(name)
    assert reward.__name__ == f"{name}_reward"
    columns = {"completions": [f"<report>{text}</report>" for text in TEXTS], "report": TEXTS[::-1]}
    assert pickle.loads(pickle.dumps(reward))(**columns) == reward(**columns)


def test_rewards_come_in_the_order_of_the_setting_and_share_their_labeler():
    mccs, form, ce_f1 = make("mccs", "format", "ce_f1")
    assert [mccs.__name__, form.__name__, ce_f1.__name__] == ["mccs_reward", "format_reward", "ce_f1_reward"]
    assert mccs.labeler.compute is ce_f1.labeler.compute


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A file of one's own in the working directory, from which a script was not started."""
    (tmp_path / "lab_of_this_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])


def test_a_dotted_path_is_imported_from_the_working_directory(lab):
    _, own = make("bleu", "lab_of_this_test.length_reward")
    assert own(["four"]) == [4.0] and own.__name__ == "length_reward"
    assert import_reward("rewards.mccs.mccs_reward") is rewards.mccs_reward


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "radclick",
            "there is no reward 'radclick'; choose among mccs, .*radcliq, crepe, ratescore, or give the dotted path",
        ),
        ("no_such_lab.mine", "the reward no_such_lab.mine cannot be imported: No module named 'no_such_lab'"),
        ("lab_of_this_test.mine", "the reward lab_of_this_test.mine cannot be imported: .* has no attribute 'mine'"),
        ("lab_of_this_test.number", "the reward lab_of_this_test.number is no function with a name, but 3"),
        ("lab_of_this_test.nameless", "the reward lab_of_this_test.nameless is no function with a name"),
        (".mine", "there is no reward '.mine'"),
    ],
)
def test_no_such_reward(path, sentence, lab):
    with pytest.raises(ValueError, match=sentence):
        make(path)
