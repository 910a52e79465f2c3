"""GREEN, CRIMSON and RadFact over a scripted server: what is asked, kept, counted, and never taken for a zero."""

import json
import logging
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rg4_server import DIE, serve

from recipes.evaluate import main
from recipes.evaluation import judges as module
from recipes.evaluation.judges import (
    LONGEST,
    Judges,
    answered_part,
    check_sources,
    green_reward,
    make_judge_reward,
    pair_scores,
    read_entailment,
)
from recipes.files import InputError
from recipes.rg4.llm import Endpoint, Refused

GREEN = """[Clinically Significant Errors]:
(a) false finding: {errors}. x

[Clinically Insignificant Errors]:
No errors

[Matched Findings]:
{matched}. y
"""
CRIMSON = {
    "reference_findings": [{"id": "R1", "clinical_significance": "actionable_not_urgent"}],
    "predicted_findings": [{"id": "P1", "clinical_significance": "actionable_not_urgent"}],
    "matched_findings": [{"ref_id": "R1", "pred_id": "P1"}],
    "errors": {"attribute_errors": [{"ref_id": "R1", "pred_id": "P1", "severity": "significant"}]},
}  # .5


def green(errors: int, matched: int) -> str:
    return GREEN.format(errors=errors, matched=matched)


def open_judges(server, tmp_path, *names: str) -> Judges:
    return Judges(names, Endpoint(server.url, "m", retries=0, timeout=5), str(tmp_path / "answers.sqlite"))


def user(messages: list[dict]) -> str:
    """The first question of a conversation."""
    return next(each["content"] for each in messages if each["role"] == "user")


def test_green_asks_of_each_pair_once_and_keeps_the_answers(tmp_path):
    with serve(lambda messages, times: green(1, 3 if "effusion" in user(messages) else 1)) as server:
        judges = open_judges(server, tmp_path, "green")
        reports, references = ["A small effusion.", "Clear.", "word " * 400], ["Effusion.", "Clear lungs.", "x"]
        scores = judges("green", reports, references)
        assert scores.values["green"].tolist() == [0.75, 0.5, 0.5] and not scores.failed.any()
        assert len(server.asked) == 3
        sent = {user(messages) for messages in server.asked}
        assert "Reference report:\nEffusion.\n\nCandidate report:\nA small effusion." in sent
        assert max(text.count("word") for text in sent) == 300  # as GREEN cuts
        again = open_judges(server, tmp_path, "green")("green", reports, references)
        assert again.values["green"].tolist() == [0.75, 0.5, 0.5] and len(server.asked) == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("I think that both reports agree well.", "Clinically Significant Errors"),  # prose
        (green(1, 3)[:60], "is missing"),  # half an answer
        ("x" * (LONGEST + 1), "100,001 characters, more than 100,000"),
        ("", "is missing or empty|no valid answer"),
        (400, r"the first: the endpoint refused the request \(400\)$"),  # whose words may quote the report
    ],
)
def test_an_answer_that_cannot_be_read_is_none_and_counted(tmp_path, bad, reason):
    with serve(lambda messages, times: bad if "bad" in user(messages) else green(0, 2)) as server:
        judges = open_judges(server, tmp_path, "green")
        scores = judges("green", ["good", "bad", "good too"], ["a", "b", "c"])
        assert scores.failed.tolist() == [False, True, False]
        assert scores.values["green"][[0, 2]].tolist() == [1.0, 1.0] and np.isnan(scores.values["green"][1])
        (part,) = judges.parts("ours", ["good", "bad", "good too"], ["a", "b", "c"])
        figures = part.figures(part.statistics.sum(0)[None])
        assert figures["green"][0] == 1.0 and figures["green/failed"][0] == pytest.approx(1 / 3)  # no zero is averaged
        assert "green: 1 of 3 pairs of ours have no usable answer" in judges.notes[0]
        assert re.search(reason, judges.notes[0]) and len(judges.notes) == 1


def test_a_server_that_dies_costs_what_was_not_answered(tmp_path):
    """Nothing that was answered is lost, and the next run asks for the rest."""
    with serve(lambda messages, times: DIE if "second" in user(messages) else green(0, 1)) as server:
        judges = open_judges(server, tmp_path, "green")
        judges.chat.concurrency = 1
        scores = judges("green", ["first", "second", "third"], ["a", "b", "c"])
        assert scores.failed.tolist() == [False, True, True] and "cannot be reached" in scores.reason
    with serve(lambda messages, times: green(1, 1)) as server:
        scores = open_judges(server, tmp_path, "green")("green", ["first", "second", "third"], ["a", "b", "c"])
        assert scores.values["green"].tolist() == [1.0, 0.5, 0.5]
        assert len(server.asked) == 2


def test_crimson(tmp_path):
    with serve(lambda messages, times: f"```json\n{json.dumps(CRIMSON)}\n```") as server:
        scores = open_judges(server, tmp_path, "crimson")("crimson", ["a"], ["b"])
        assert scores.values["crimson"].tolist() == [0.5]
    broken = CRIMSON | {"reference_findings": [{"finding": "no id"}]}
    for number, answer in enumerate((json.dumps(CRIMSON)[:100], json.dumps(broken), "prose")):
        with serve(lambda messages, times, answer=answer: answer) as server:
            scores = open_judges(server, tmp_path / str(number), "crimson")("crimson", ["a"], ["b"])
            assert scores.failed.all() and np.isnan(scores.values["crimson"]).all()


def radfact(messages: list[dict], times: int) -> str:
    """Sentences are phrases; a statement is entailed if the other report has it word for word."""
    text = user(messages)
    if text.startswith("Report:\n"):
        return json.dumps({"phrases": [each for each in text.removeprefix("Report:\n").split(". ") if each]})
    statement, _, premises = text.removeprefix("Statement:\n").partition("\n\nStatements of the other report:\n")
    found = statement in json.loads(premises)
    return json.dumps(
        {"status": "entailment" if found else "not_entailment", "evidence": [statement] if found else []}
    )


def test_radfact_is_the_f1_of_the_mean_precision_and_the_mean_recall(tmp_path):
    """Pair 1: 1 of 2 phrases entailed, 1 of 1 of the reference. Pair 2: none of 1, none of 3. Pair 3: no phrases."""
    reports, references = ["A. B", "C", ""], ["A", "D. E. F", "A"]
    with serve(radfact) as server:
        judges = open_judges(server, tmp_path, "radfact")
        scores = judges("radfact", reports, references)
        np.testing.assert_array_equal(scores.values["radfact/precision"], [0.5, 0, np.nan])
        np.testing.assert_array_equal(scores.values["radfact/recall"], [1, 0, 0])
        assert not scores.failed.any()
        np.testing.assert_array_equal(pair_scores(scores), [2 / 3, 0, np.nan])
        part = answered_part("radfact", scores)
        figures = part.figures(part.statistics.sum(0)[None])
        precision, recall = 0.25, 1 / 3
        assert figures["radfact/precision"][0] == precision and figures["radfact/recall"][0] == pytest.approx(recall)
        assert figures["radfact/f1"][0] == pytest.approx(2 * precision * recall / (precision + recall))
        assert len(server.asked) == 5 + 2 + 1 + 1 + 3 + 1  # distinct reports, then the phrases of both sides


def test_an_entailed_statement_needs_evidence():
    assert read_entailment('{"status": "entailment", "evidence": ["No  Edema."]}', ["no edema"]) == (True,)
    assert read_entailment('{"status": "not_entailment"}', []) == (False,)
    for answer in (
        '{"status": "entailment", "evidence": []}',
        '{"status": "entailment", "evidence": ["made up"]}',
        '{"status": "perhaps", "evidence": []}',
        '{"status": "entailment"',
    ):
        with pytest.raises(Refused):
            read_entailment(answer, ["no edema"])


# --- rewards --------------------------------------------------------------------------------------------------------


def test_a_judge_as_a_reward(tmp_path, caplog):
    with serve(lambda messages, times: "prose" if "bad" in user(messages) else green(1, 1)) as server:
        with caplog.at_level(logging.WARNING):
            reward = make_judge_reward("green", server.url, "m", str(tmp_path / "answers.sqlite"))
        assert "slow, and dear" in caplog.text and reward.__name__ == "green_reward"
        logged = {}
        rewards = reward(
            ["<report>fine</report>", "bad", "x"],
            report=["a", "b", None],
            log_metric=lambda k, v: logged.update({k: v}),
        )
        assert rewards == [0.5, None, None] and logged == {"green/failed": 0.5}
        assert pickle.loads(pickle.dumps(reward))(["fine"], report=["a"]) == [0.5]


def test_training_reports_go_to_no_other_machine():
    with pytest.raises(InputError, match="is another machine"):
        make_judge_reward("green", "http://judge.example.org/v1", "m")
    with pytest.raises(InputError, match="there is no judge 'blue'"):
        make_judge_reward("blue", "http://127.0.0.1:1/v1", "m")


def test_the_environment_names_the_server(monkeypatch, tmp_path):
    monkeypatch.delenv("JUDGE_LLM", raising=False)
    module._from_environment.cache_clear()
    with pytest.raises(InputError, match="needs JUDGE_ENDPOINT"):
        green_reward(["x"], report=["y"])
    with serve(lambda messages, times: green(0, 1)) as server:
        for name, value in (("ENDPOINT", server.url), ("LLM", "m"), ("ANSWERS", str(tmp_path / "a.sqlite"))):
            monkeypatch.setenv(f"JUDGE_{name}", value)
        assert green_reward(["x"], report=["y"]) == [1.0]
    module._from_environment.cache_clear()


@pytest.mark.parametrize(
    ("endpoint", "mine", "sources", "refused"),
    [
        ("http://127.0.0.1:8000/v1", False, ["mimic-cxr"], False),
        ("http://judge.example.org/v1", False, ["mimic-cxr"], True),
        ("http://judge.example.org/v1", False, [], True),  # of a file nobody knows
        ("http://judge.example.org/v1", True, ["mimic-cxr"], False),
        ("http://judge.example.org/v1", False, ["phantom"], False),
        (None, False, ["mimic-cxr"], False),  # in this process
    ],
)
def test_reports_of_patients_stay_here(endpoint, mine, sources, refused):
    args = SimpleNamespace(judge=["green"], endpoint=endpoint, endpoint_is_mine=mine)
    if refused:
        with pytest.raises(InputError, match="may go to none"):
            check_sources(args, sources)
    else:
        check_sources(args, sources)


# --- evaluate.py ----------------------------------------------------------------------------------------------------


@pytest.fixture
def predictions(tmp_path):
    lines = [
        {"id": "a", "prediction": "There is a small effusion.", "reference": "Small effusion."},
        {"id": "b", "prediction": "A bad report.", "reference": "The lungs are clear."},
        {"id": "c", "prediction": "No edema.", "reference": "Pulmonary edema."},
    ]
    file = tmp_path / "ours.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return ["--predictions", f"ours={file}", "--meteor", "no", "--resamples", "100"]


def test_evaluate_writes_the_judges_figures(tmp_path, call, predictions):
    with serve(lambda messages, times: "prose" if "A bad" in user(messages) else green(1, 1)) as server:
        arguments = [*predictions, "--judge", "green", "--endpoint", server.url, "--llm", "m", "--judge_retries", 0]
        call(main, *arguments, "--out", tmp_path / "out")
        metrics = json.loads((tmp_path / "out/metrics.json").read_text())
        ours = metrics["systems"]["ours"]["figures"]
        assert ours["green"]["value"] == 0.5 and ours["green/failed"]["value"] == pytest.approx(1 / 3)
        assert any("green: 1 of 3 pairs of ours have no usable answer" in note for note in metrics["notes"])
        assert metrics["protocol"]["judges"] == "green by m" and (tmp_path / "out.answers.sqlite").is_file()
        asked = len(server.asked)
        call(main, *arguments, "--out", tmp_path / "out")
        assert len(server.asked) == asked + 3  # that of the bad report alone, thrice


def test_a_server_that_is_away_costs_no_other_figure(tmp_path, call, predictions):
    arguments = ["--judge", "crimson", "--endpoint", "http://127.0.0.1:9/v1", "--llm", "m", "--judge_retries", 0]
    call(main, *predictions, *arguments, "--out", tmp_path / "out")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert "mccs" in metrics["figures"] and "crimson" not in metrics["figures"]
    (note,) = [note for note in metrics["notes"] if note.startswith("crimson: 3 of 3 pairs of ours")]
    assert "cannot be reached" in note and "\n" not in note


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--judge", "blue", "--llm", "m"], "--judge takes some of green, crimson, radfact, not 'blue'"),
        (["--judge", "green"], "--judge needs --llm"),
        (
            ["--judge", "radfact", "--llm", "m", "--judge_prompts", "/no"],
            "no prompt file /no/judge_radfact_phrases.txt",
        ),
        (["--judge", "green", "--llm", "m", "--endpoint", "localhost"], "--endpoint must be a URL"),
        (["--judge", "green", "--llm", "m", "--endpoint", "http://a.example.org/v1"], "is another machine"),
    ],
)
def test_mistakes(tmp_path, call, predictions, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        call(main, *predictions, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
