"""The project's shape: top level, arrows between packages and rooms, thin scripts, no blanket handlers."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {
    "README.md",
    "recipes",
    "rewards",
    "modeling",
    "accelerate_configs",
    "tests",
    "Makefile",
    "requirements.txt",
    "requirements.lock",
    "requirements-gpu.txt",
    "requirements-vllm.txt",
    "pyproject.toml",
    "LICENSE",
    "CITATION.cff",
    "CONTRIBUTING.md",
}
PACKAGES = ("recipes", "rewards", "modeling")
FORBIDDEN = {"recipes": set(), "rewards": {"recipes"}, "modeling": {"recipes", "rewards"}}
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALL_PYTHON = MODULES + sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
# In recipes/, but nobody's script
LIBRARY = {"__init__.py", "__main__.py", "cli.py", "files.py", "progress.py", "templates.py", "usage.py"}
# A module imports from rooms of lower numbers and from its own: scripts -> demos -> viewer | trainers -> hub ->
# evaluation -> rg4 -> data -> the files of every room -> rewards -> modeling.
LEVELS = {
    "certificate": 10, "examples": 10, "scripts": 9, "demos": 8, "viewer": 7, "trainers": 7, "hub": 6, "evaluation": 5,
    "rg4": 4, "data": 3, "files": 2, "rewards": 1, "modeling": 0,
}  # fmt: skip
LARGEST = 0.2  # of all lines in one room: more, and it has two jobs
TRAINING = (
    "grpo_mrgr1", "sft_mrgr1", "sft_llmrg4", "sft_lmrrg", "ppo_lmrrg", "dpo", "rl", "rl_llmrg4",
    "train_chexbert", "train_crepe", "train_discbert",
)  # fmt: skip
MOST_LINES, MOST_NAMES = 60, 10  # of code in a training script, and of ours that it imports
PLUMBING = {  # of a run, which recipes/trainers/base.py does
    "resume_from", "save_run", "SaveOnInterrupt", "StopOnCollapse", "ClinicalEvaluation", "save_final", "save_merged",
    "sources_of", "prepare_push", "push_checkpoint", "check_hardware", "check_run", "prepare_images", "exit",
}  # fmt: skip
SCRIPTS = sorted(path for path in (ROOT / "recipes").glob("*.py") if path.name not in LIBRARY)


def parsed(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


def imported(module: Path) -> set[str]:
    """Top-level names that the module imports; a relative import counts as its own package."""
    names = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(module.parts[0] if node.level else node.module.split(".")[0])
    return names


def test_top_level_is_what_the_design_lists():
    git = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if git.returncode:
        pytest.skip("not a git checkout, so ignored outputs cannot be told from files")
    present = {line.split("/")[0] for line in git.stdout.splitlines() if (ROOT / line).exists()}
    assert {name for name in present if not name.startswith(".")} == TOP_LEVEL


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_arrows_point_one_way(module):
    assert not imported(module) & FORBIDDEN[module.parts[0]]


def room(parts: tuple[str, ...]) -> str:
    """The room of a module, by the parts of its dotted name. certify.py runs other scripts and stands above them."""
    if parts == ("recipes", "certify"):
        return "certificate"
    if parts[0] != "recipes":
        return parts[0]
    if (len(parts) == 2 and parts[1] not in LEVELS) or parts[1] == "files":
        return "files" if parts[1] in ("files", "progress", "templates", "usage") else "scripts"
    return parts[1]


def imported_rooms(module: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in PACKAGES:
            parts = tuple(node.module.split("."))
            rooms |= {room(parts if len(parts) > 1 else (*parts, name.name)) for name in node.names}
    return rooms


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_arrows_between_rooms_point_one_way(module):
    """recipes/cli.py is for scripts; nothing else imports it."""
    home = room(module.with_suffix("").parts)
    for other in imported_rooms(module) - {home}:
        assert LEVELS[other] < LEVELS[home], f"{module} of {home} imports from {other}"


def test_no_script_hides_a_module_of_python():
    """Python looks beside a script first: a recipes/html.py would be what every library gets that imports html."""
    assert not {path.stem for path in (ROOT / "recipes").iterdir()} & sys.stdlib_module_names


def test_no_room_is_too_large():
    lines = dict.fromkeys(LEVELS, 0)
    for module in MODULES:
        if module.name != "__init__.py":
            lines[room(module.with_suffix("").parts)] += len((ROOT / module).read_text().splitlines())
    assert max(lines.values()) <= LARGEST * sum(lines.values()), lines


@pytest.mark.parametrize("module", [path for path in MODULES if path.parts[0] == "modeling"], ids=str)
def test_modeling_files_import_siblings_relatively(module):
    if module.name != "tiny.py":  # never copied into a checkpoint, unlike the others
        assert "modeling" not in {
            node.module.split(".")[0]
            for node in ast.walk(parsed(module))
            if isinstance(node, ast.ImportFrom) and not node.level
        }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_thin(script):
    """Its end is the call; ruff's C901 sees to it that no function branches too much."""
    assert script.read_text().endswith('if __name__ == "__main__":\n    run(main)\n')


def lines_of_code(source: str) -> int:
    """Lines of `source` but docstrings, blank lines, comments, and lines that hold brackets alone."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [
        node.body[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node)
    ]
    prose = {line for text in docstrings for line in range(text.lineno, text.end_lineno + 1)}
    lines = [line.strip() for number, line in enumerate(source.splitlines(), 1) if number not in prose]
    return sum(not line.startswith("#") and line.strip("()[]{},:") != "" for line in lines)


def names_of_ours(tree: ast.Module) -> list[str]:
    """What a module imports from this project's packages."""
    return [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES
        for alias in node.names
    ]


def test_lines_of_code_are_counted():
    head = '"""Two\nlines."""\n\nimport a  # why\n\n\n# a comment\n'
    body = 'def f(\n    x,\n):\n    """Text."""\n    return [\n        x,\n    ]\n'
    assert lines_of_code(head + body) == 5  # import, def, x, return, x


@pytest.mark.parametrize("script", TRAINING)
def test_training_scripts_are_their_method(script):
    """They end as TRL's do; what all runs need beside their method is hooks of the trainers' base."""
    source = (ROOT / f"recipes/{script}.py").read_text()
    tree = ast.parse(source)
    assert lines_of_code(source) <= MOST_LINES
    assert len(names_of_ours(tree)) <= MOST_NAMES, names_of_ours(tree)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [call.id if isinstance(call, ast.Name) else call.attr for call in calls]
    assert not PLUMBING & set(names)
    assert [name for name in names if name in ("train", "save_model", "push_to_hub")] == [
        "train", "save_model", "push_to_hub"
    ]  # fmt: skip


@pytest.mark.parametrize("module", sorted((ROOT / "recipes/trainers").glob("*.py")), ids=lambda path: path.name)
def test_trainers_and_their_configs_show_an_example(module):
    """One that Python can parse, in the docstring of each public class whose name ends so."""
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Trainer", "Config")):
            example = (ast.get_docstring(node) or "").partition("Example:\n\n")[2]
            assert example, f"{node.name} has no example"
            ast.parse(textwrap.dedent(example))
            assert any(name in example for name in (node.name, "My")), f"{node.name}'s example does not use it"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_say_how_they_are_run(script):
    assert f"recipes/{script.name}" in ast.get_docstring(ast.parse(script.read_text()))


@pytest.mark.parametrize("module", ALL_PYTHON, ids=str)
def test_no_blanket_handler(module):
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ExceptHandler):
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {""}
            assert not caught & {"", "Exception", "BaseException"}, f"line {node.lineno}"


def test_packages_of_pyproject_exist():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.parts) for path in MODULES if path.name == "__init__.py"}
    assert set(listed) == found  # a folder that is not listed would be missing from another directory
