"""The script that asks a language model for region descriptions: the paper's question, resumed where it stopped."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from modeling.configuration_lmrrg import REGION_NAMES
from modeling.modeling_lmrrg import read_regions
from recipes import generate_region_descriptions as script
from recipes.files import InputError

sys.path.insert(0, str(Path(__file__).parents[1]))
from rg4_server import DIE, serve

PROMPT = Path(script.__file__).parent / "prompts/lmrrg_region_description.txt"


def region_of(messages: list[dict]) -> str:
    return messages[0]["content"].removeprefix("Please description the ").split(" in a chest")[0]


def describe(messages: list[dict], times: int) -> str:
    return f"  The {region_of(messages)} is\n visible.  "


def test_the_question_is_the_papers():
    text = "Please description the {region name} in a chest X-ray image, and summarize it."  # its supplement, sic
    assert PROMPT.read_text().strip() == text


def test_all_regions_are_asked_about_once(tmp_path, call):
    out = tmp_path / "regions.json"
    with serve(describe) as server:
        arguments = ("--llm", "a-model", "--endpoint", server.url, "--out", out)
        call(script.main, *arguments)
        first = out.read_bytes()
        questions = [messages[0]["content"] for messages in server.asked]
        expected = [
            f"Please description the {name} in a chest X-ray image, and summarize it." for name in REGION_NAMES
        ]
        assert sorted(questions) == sorted(expected) and all(len(messages) == 1 for messages in server.asked)
        call(script.main, *arguments)  # a second run asks nothing and writes the same
        assert len(server.asked) == 29 and out.read_bytes() == first
    regions = read_regions(out)
    assert [(each["name"], each["description"]) for each in regions] == [
        (name, f"The {name} is visible.") for name in REGION_NAMES
    ]
    assert regions[0]["origin"].startswith("a-model, prompt: Please description")


def test_it_goes_on_where_it_stopped(tmp_path, call, monkeypatch):
    monkeypatch.setattr(script, "Endpoint", partial(script.Endpoint, retries=0))
    arguments = ["--llm", "a-model", "--out", tmp_path / "regions.json", "--regions", "trachea", "spine", "carina"]

    def die(messages: list[dict], times: int) -> str:
        return DIE if region_of(messages) == "carina" else describe(messages, times)

    with serve(die) as server, pytest.raises(InputError, match="run the same command again"):
        call(script.main, *arguments, "--endpoint", server.url)
    assert not (tmp_path / "regions.json").exists()
    with serve(describe) as server:
        call(script.main, *arguments, "--endpoint", server.url)
        assert "carina" in map(region_of, server.asked) and len(server.asked) < 4
    assert [each["name"] for each in json.loads((tmp_path / "regions.json").read_text())] == arguments[5:]


@pytest.mark.parametrize(
    ("answer", "reason"), [("", "it has 0 words, and 1 to 150 are allowed"), ("air " * 151, "it has 151 words")]
)
def test_unusable_answers(tmp_path, call, answer, reason):
    arguments = ("--llm", "a-model", "--out", tmp_path / "regions.json", "--regions", "spine", "trachea")
    sentence = f"1 of 2 regions have no description, such as spine .*{reason}"
    scripted = lambda messages, _: answer if region_of(messages) == "spine" else "A band of air."  # noqa: E731
    with serve(scripted) as server, pytest.raises(InputError, match=sentence) as error:
        call(script.main, *arguments, "--endpoint", server.url)
    assert "\n" not in str(error.value) and not (tmp_path / "regions.json").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"regions": ["spine", "spine"]}, "--regions names 'spine' more than once"),
        ({"out": "."}, "--out .* is a folder: name a file"),
        ({"prompt": "no/such.txt"}, "there is no prompt file no/such.txt"),
        ({"prompt": "prompts/rg4_judge.txt"}, "has no {region name}, so every region"),
        ({"endpoint": "example"}, "--endpoint must be a URL"),
        ({"llm": "/no/such/model"}, "--llm /no/such/model cannot be loaded"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, call, changes, sentence):
    monkeypatch.chdir(tmp_path)
    values = {"llm": "a-model", "out": "regions.json"} | changes
    words = [
        str(word)
        for name, value in values.items()
        for word in ([f"--{name}", *([value] if isinstance(value, str) else value)])
    ]
    with pytest.raises(InputError, match=sentence) as error:
        call(script.main, *words)
    assert "\n" not in str(error.value)
