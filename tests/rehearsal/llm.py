"""What stands in for Llama-3-70B behind a server: the rules of recipes/rg4/rules.py, asked over HTTP."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from rg4_server import serve

from recipes.files import read_prompt
from recipes.rg4.pipeline import PROMPTS
from recipes.rg4.rules import RuleJudge, RuleRewriter
from rewards.scenarios import CATEGORIES


@contextmanager
def answering() -> Iterator[str]:
    """The URL of a server that judges and rewrites reports for the length of the block."""
    judge, rewriter, judge_prompt = RuleJudge(), RuleRewriter(), read_prompt(PROMPTS["judge"])

    def answer(messages: list[dict], times: int) -> str:
        if messages[0]["content"] == judge_prompt:
            verdict = judge([messages[1]["content"]])[0]
            return json.dumps({name: bool(value) for name, value in zip(CATEGORIES, verdict, strict=True)})
        sections = next(text for text in reversed(messages) if text["content"].startswith("{"))["content"]
        sections = json.loads(sections.split("\nJudgement:")[0])
        categories = [
            name for name in CATEGORIES if name.replace("_", " ") in messages[-1]["content"].rpartition(":")[2]
        ]
        return json.dumps(rewriter.rewrite_sections(sections, categories))

    with serve(answer) as server:
        yield server.url
