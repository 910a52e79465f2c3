"""A cut of `make rehearsal` (tests/rehearsal): one YAML of each system, and the rules that the rehearsal keeps."""

import pytest
import yaml
from rehearsal.overrides import ALLOWED, differences, overrides_of
from rehearsal.plan import CONFIGS, labelers, learned_metrics, llmrg4, lmrrg, mrgr1
from rehearsal.real_weights import judge_texts, real_weights, split_words
from rehearsal.rehearse import rehearse
from rehearsal.runs import Failed

CUT = (
    *("mrgr1/iu.yaml", "llmrg4/mimic_rg4_stage1.yaml", "llmrg4/mimic_rg4_stage2.yaml"),
    *("lmrrg/iu.yaml", "lmrrg/iu_cqrl.yaml"),
)
PAPERS = {path.relative_to(CONFIGS).as_posix(): yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*/*.yaml")}
OWN = ("demo", "phantom", "dpo", "llmrg4/grpo", "rl/")  # tiny models, which make demo runs; what no paper has


def test_every_yaml_of_a_paper_is_rehearsed():
    jobs = [*mrgr1(), *llmrg4("http://127.0.0.1:1/v1"), *lmrrg(), *labelers(), *learned_metrics()]
    assert {job.name for job in jobs if job.in_table} == {
        name for name in PAPERS if not any(word in name for word in OWN)
    }


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_nothing_else_is_overridden(name):
    changes = {change.key: change.value for change in overrides_of(PAPERS[name])}
    assert changes.keys() <= ALLOWED
    run = {"Arguments": PAPERS[name] | changes, "script": "x"}
    assert differences(PAPERS[name], run).keys() <= changes.keys()
    assert all(PAPERS[name].get(key) != value for key, value in changes.items())  # each one is needed


@pytest.mark.parametrize(
    ("published", "used", "same"),
    [
        (5e-06, 5e-06, True),
        ("none", [], True),  # report_to, as TrainingArguments has it
        ([".*q_proj"], ".*q_proj", True),  # PEFT takes a list of one pattern as the pattern
        ('{"min_lr": 1.0e-6}', {"min_lr": 1e-6}, True),  # lr_scheduler_kwargs
        (1, 1.0, True),
        (True, False, False),
        (True, 1, False),
        ("adamw_bnb_8bit", "adamw_torch", False),
        (16, None, False),  # an argument that the run does not have
        ([0.75, 0.25], [0.25, 0.75], False),
    ],
)
def test_what_counts_as_a_difference(published, used, same):
    assert (differences({"key": published}, {"Arguments": {"key": used}}) == {}) is same


def test_cut(tmp_path):
    checks = rehearse(tmp_path / "rehearsal", CUT, without=["whole"])  # test_long_runs.py has such runs
    assert {check["name"] for check in checks} == {
        *CUT,
        "discbert/mimic.yaml",
        "rg4/mimic.yaml",
    }  # LLM-RG4 needs these
    assert not [check for check in checks if not check["holds"]], (tmp_path / "rehearsal/results.json").read_text()


VOCABULARY = set(split_words("The heart is normal in size. Lungs are clear. No effusion or pneumothorax."))
NORMAL = "The heart is normal in size. The lungs are clear. No effusion."


@pytest.mark.parametrize(
    ("texts", "ended", "sentence"),
    [
        ([NORMAL, "No effusion or scoliosis. The lungs are clear."], [True, False], None),  # one word is another
        (["I am an assistant and cannot look at the images."] * 2, [True, True], "0.10 of the words"),
        ([NORMAL, "Clear lungs."], [True, True], "the shortest report has 2 words"),
        ([NORMAL + " No effusion." * 3], [True], "'no effusion' stands 4 times"),
        ([NORMAL + " No no no effusion."], [True], "stammers: 'no no no'"),
        ([NORMAL] * 3, [True, False, False], "1 of 3 end by themselves"),  # the end was never learned
    ],
)
def test_what_is_a_readable_report(texts, ended, sentence):
    if sentence is None:
        assert judge_texts(texts, VOCABULARY, ended)["ended"] == 1
    else:
        with pytest.raises(Failed, match=sentence):
            judge_texts(texts, VOCABULARY, ended)


def test_without_the_packages_the_real_weights_have_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("rehearsal.real_weights.find_absent", lambda: "needs gguf: pip install gguf")
    monkeypatch.setattr("rehearsal.rehearse.prepare_rooms", lambda *arguments: None)
    names = [job.name for job in real_weights() if job.in_table]
    checks = rehearse(tmp_path / "rehearsal", names)
    assert [check["name"] for check in checks] == names and len(names) == 4
    assert {(check["value"], check["holds"]) for check in checks} == {("skipped: needs gguf: pip install gguf", None)}
