"""Variables are called by the noun of what they hold: pronouns and participles tell a reader nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ("recipes", "rewards", "modeling")
PRONOUNS = """own each found given said told known there held other kept wanted left took made seen alone wrong again
what how here done whole says named chosen noted"""
WORDS = frozenset(PRONOUNS.split())
SHARE = 0.005  # of all variables and arguments; TRL has 0.0008


def names(source: str) -> Iterator[tuple[str, int]]:
    """Each name that the code gives to a variable or an argument, and its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


def count(*folders: str) -> tuple[int, list[str]]:
    """How many names there are below the folders, and where one is of `WORDS`."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    pairs = [(file, name, line) for file in files for name, line in names(file.read_text(encoding="utf-8"))]
    return len(pairs), [f"{file.relative_to(ROOT)}:{line} {name}" for file, name, line in pairs if name in WORDS]


def test_which_names_count():
    source = (
        "def f(own, *, said=1, **given):\n    for each in own:\n        x.found = y.seen(left=each)\n(a, kept) = 1, 2"
    )
    counted = [("a", 4), ("each", 2), ("given", 1), ("kept", 4), ("own", 1), ("said", 1)]
    assert sorted(names(source)) == counted  # no attribute, no argument of a call, no use


@pytest.mark.parametrize("folder", ["rewards", "modeling", "recipes/rg4", "recipes/data"])
def test_rooms_without_a_pronoun(folder):
    assert count(folder)[1] == []


def test_names_of_the_whole_house():
    total, pronouns = count(*HOUSE)
    assert total > 5000 and len(pronouns) <= SHARE * total, "\n".join(pronouns)
