"""A chat server that fails now and then: nothing is lost, nothing is asked twice, and a dead one ends the run."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rg4_server import Server

from recipes.files import InputError
from recipes.rg4.llm import FAILURES, Answers, Endpoint, Refused, read_object, read_verdict
from rewards.scenarios import CATEGORIES

VERDICT = json.dumps(dict.fromkeys(CATEGORIES, True))


def ask(server: Server, file: Path, number: int, **settings) -> tuple[list, Answers]:
    endpoint = Endpoint(server.url, "m", **{"timeout": 0.3, "retries": 1, "backoff": 0.0, "concurrency": 4} | settings)
    answers = Answers(endpoint, file)
    questions = [([{"role": "user", "content": f"report {i}"}], read_verdict) for i in range(number)]
    return answers.all(questions, "judging"), answers


def content(messages: list[dict]) -> str:
    return messages[0]["content"]


@pytest.mark.parametrize("fault", [500, 503, 2.0], ids=str)
def test_one_request_that_always_fails_is_listed_and_the_run_goes_on(tmp_path, fault):
    server = Server(lambda messages, times: fault if content(messages) == "report 3" else VERDICT)
    results, answers = ask(server, tmp_path / "a.sqlite", 12)
    assert [i for i, result in enumerate(results) if isinstance(result, str)] == [3]
    assert "no answer after all retries" in results[3]
    server.answer = lambda messages, times: VERDICT
    again, answers = ask(server, tmp_path / "a.sqlite", 12)
    assert again[3] == [1, 1, 1, 1] and answers.asked == 1 and answers.recalled == 11


def test_a_server_that_is_gone_ends_the_run(tmp_path):
    server = Server(lambda messages, times: 500 if int(content(messages).split()[1]) >= 6 else VERDICT)
    with pytest.raises(InputError, match="kept failing"):
        ask(server, tmp_path / "a.sqlite", 40, concurrency=1)
    asked = {content(messages) for messages in server.asked}
    assert 6 + FAILURES <= len(asked) <= 6 + FAILURES + 1  # one may have begun before the pool was told to stop
    server.answer = lambda messages, times: VERDICT
    results, answers = ask(server, tmp_path / "a.sqlite", 40)
    assert all(result == [1, 1, 1, 1] for result in results) and answers.recalled == 6


def test_a_resumed_run_that_has_hopeless_requests_alone_left_comes_to_its_end(tmp_path):
    """Ten of forty always fail: each is listed in the first run, and again in a second one that asks nothing else."""
    server = Server(lambda messages, times: 500 if int(content(messages).split()[1]) % 4 == 3 else VERDICT)
    for _ in range(2):
        results, answers = ask(server, tmp_path / "a.sqlite", 40, concurrency=1)
        assert [i for i, result in enumerate(results) if isinstance(result, str)] == list(range(3, 40, 4))
    assert answers.recalled == 30 and answers.asked == 10
    server.answer = lambda messages, times: 500  # gone: of what is new, so many fail in a row
    with pytest.raises(InputError, match="kept failing"):
        ask(server, tmp_path / "a.sqlite", 60, concurrency=1)


def test_a_refusal_says_that_the_server_is_there(tmp_path):
    server = Server(lambda messages, times: 400 if int(content(messages).split()[1]) % 4 == 0 else 500)
    results, _ = ask(server, tmp_path / "a.sqlite", 12, concurrency=1)
    assert all(isinstance(result, str) for result in results)


def test_fewer_requests_than_that_which_all_fail_end_the_run_too(tmp_path):
    with pytest.raises(InputError, match="kept failing"):
        ask(Server(lambda messages, times: 502), tmp_path / "a.sqlite", 2)


@pytest.mark.parametrize(
    "answer",
    [
        VERDICT,
        f'<think>Is it {{a}} or {{"view": 1}}?</think>\n{VERDICT}',
        f'First {{"view": false}}, then, after all:\n```json\n{VERDICT}\n```',
        f"A set {{x}} and [1, {{}}] and {VERDICT} with words behind.",
        "{" * 50_000 + VERDICT,
    ],
    ids=["bare", "thoughts", "two", "braces", "many braces"],
)
def test_the_last_object_that_parses_counts(answer):
    assert read_verdict(answer) == [1, 1, 1, 1]


@pytest.mark.parametrize("answer", ["", "Yes.", VERDICT[:-3], "[" * 100_000, "<think>" + VERDICT + "</think> Yes."])
def test_what_is_no_object(answer):
    with pytest.raises(Refused, match=r"no JSON object|is empty"):
        read_object(answer)


def faulty(messages: list[dict], times: int):
    """One fault in twenty of every kind, by the question's number; asked again, most faults are gone."""
    number = int(content(messages).split()[1])
    kind = number % 20
    if times == 0 or number % 200 == kind:  # one in ten of these never gets better
        if kind == 1:
            return 500
        if kind == 2:
            return 503
        if kind == 3:
            return 429
        if kind == 5:
            return "I think so."
        if kind == 6:
            return VERDICT[:-3]
        if kind == 7:
            return ""
        if kind == 8:
            return 400
        if kind == 9:
            return "<think>{</think>" + VERDICT
    return VERDICT


def test_many_requests_with_every_fault(tmp_path):
    number = 2_000
    server = Server(faulty)
    results, _ = ask(server, tmp_path / "a.sqlite", number, timeout=5, retries=2, concurrency=8)
    failed = {i for i, result in enumerate(results) if isinstance(result, str)}
    permanent = {i for i in range(number) if i % 20 in (1, 2, 3, 5, 6, 7, 8) and i % 200 == i % 20}
    refused = {i for i in range(number) if i % 20 == 8}  # a 400 says that the request is at fault: not asked again
    assert failed == permanent | refused
    assert all(results[i] == [1, 1, 1, 1] for i in range(number) if i not in failed)
    before = len(server.asked)
    again, answers = ask(server, tmp_path / "a.sqlite", number, timeout=5, retries=2, concurrency=8)
    assert answers.recalled == number - len(failed)  # none of those is asked twice
    assert len(server.asked) > before and all(again[i] == results[i] for i in range(number) if i not in failed)


KILLED = """
import sys
from recipes.rg4.llm import Answers, Endpoint, read_verdict
answers = Answers(Endpoint(sys.argv[1], "m", timeout=5, retries=2, concurrency=4), sys.argv[2])
answers.all([([{"role": "user", "content": f"report {i}"}], read_verdict) for i in range(400)], "judging")
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    def slow(messages, times):
        time.sleep(random.random() * 0.01)
        return VERDICT

    server, file = Server(slow), tmp_path / "a.sqlite"
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(file)])
    while len(server.asked) < 100:
        assert process.poll() is None or len(server.asked) >= 400
        time.sleep(0.01)
    process.kill()
    process.wait()
    asked = len(server.asked)
    results, answers = ask(server, file, 400, timeout=5)
    assert all(result == [1, 1, 1, 1] for result in results)
    assert answers.recalled >= asked - 2 * 4 and answers.recalled + answers.asked == 400  # but those under way
