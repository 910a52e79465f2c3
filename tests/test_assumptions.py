"""recipes/ASSUMPTIONS.md: every id that the project cites is explained there, once, and no help text cites one."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "recipes/ASSUMPTIONS.md"
ID = re.compile(r"\b(?:PRJ|LM|MR|RG|A)-[0-9]{2,3}\b")
ROW = re.compile(r"^\| ((?:PRJ|LM|MR|RG|A)-[0-9]{2,3}) \|(.*)\|(.*)\|$", re.MULTILINE)
LISTED = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.yaml", "*.md"]
FILES = [
    ROOT / name
    for name in subprocess.check_output(LISTED, cwd=ROOT, text=True).splitlines()
    if (ROOT / name).is_file() and ROOT / name not in (PAGE, Path(__file__))
]


def cited(text: str) -> set[str]:
    """The ids that a text cites."""
    return set(ID.findall(text))


def help_texts(tree: ast.AST) -> list[ast.expr]:
    """The values of every `help` in a module: of a dict, as in `metadata={"help": ...}`, and of an argument."""
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            texts += [
                value for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "help"
            ]  # fmt: skip
        elif isinstance(node, ast.Call):
            texts += [argument.value for argument in node.keywords if argument.arg == "help"]
    return texts


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str, str]]:
    return ROW.findall(PAGE.read_text(encoding="utf-8"))


def test_every_id_is_explained_once_and_cited(rows):
    ids = [row[0] for row in rows]
    assert len(ids) == len(set(ids)), "an id has two rows"
    where = {}
    for path in FILES:
        for name in cited(path.read_text(encoding="utf-8")):
            where.setdefault(name, str(path.relative_to(ROOT)))
    unknown = {name: file for name, file in where.items() if name not in ids}
    assert not unknown, f"explain these in recipes/ASSUMPTIONS.md, or cite the paper instead: {unknown}"
    assert not set(ids) - set(where), "no file cites these: delete their rows"


def test_both_columns_are_filled(rows):
    assert rows and all(paper.strip() and ours.strip() for _, paper, ours in rows)


def test_the_page_stays_short():
    assert len(PAGE.read_text(encoding="utf-8").split()) < 2500


@pytest.mark.parametrize("text, ids", [("A-21 and MR-010, DA-21, A-2", {"A-21", "MR-010"}), ("LM-1234, GPT-4", set())])
def test_what_is_an_id(text, ids):
    assert cited(text) == ids


def test_help_texts_cite_none():
    texts = [
        (path.name, text.lineno, cited(ast.unparse(text)))
        for path in FILES
        if path.suffix == ".py"
        for text in help_texts(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert len(texts) > 250
    assert not [text for text in texts if text[2]]
