"""What `--help` and `python -m recipes` print."""

import ast
import shutil
import sys
import textwrap
from argparse import Action, ArgumentParser, _HelpAction
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from pathlib import Path

MOST_LINES = 60  # of --help
SHORTEST = 5  # of these that the config's part of TRL's arguments has where texts would be cut for it
WIDEST = 120  # columns
LIBRARIES = ("trl", "transformers")


def screen_width() -> int:
    """Columns of the terminal, from 80 to 120; 120 where the output is none."""
    columns = shutil.get_terminal_size((WIDEST, 24)).columns if sys.stdout.isatty() else WIDEST
    return min(max(columns, 80), WIDEST)


def docstring_lines(script: str | Path) -> list[str]:
    """The lines of a script's docstring as they stand in the file, which is not imported: commands are two lines."""
    source = Path(script).read_text(encoding="utf-8")
    node = ast.parse(source).body[0]
    return "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno]).strip('"\n').splitlines()


def help_page(
    types: Sequence[type],
    parser: ArgumentParser,
    files: Sequence[str],
    configured: Collection[str],
    width: int,
    is_full: bool,
) -> str:
    """The page of a script whose first dataclass of `types` is defined in it.

    Its docstring; the recipe's arguments with the defaults of `parser`, which read the config `files`; of TRL's and
    transformers' arguments the `configured` ones, which `files` set, or with `is_full` all of them with their texts.
    Without `is_full` the page has at most `MOST_LINES` lines of `width` columns, for which a text may be cut, and the
    last paragraphs of the docstring.
    """
    libraries = {name for kind in types for name in names_of_libraries(kind)}
    hidden = [action for action in parser._actions if isinstance(action, _HelpAction) or is_opposite(action)]
    actions = [action for action in parser._actions if action not in hidden]
    ours = [action for action in actions if action.dest not in libraries]
    ours.sort(key=lambda action: not action.required)
    theirs = [action for action in actions if action.dest in libraries]

    paragraphs = "\n".join(docstring_lines(sys.modules[types[0].__module__].__file__)).split("\n\n")
    named = f", with the defaults of {' + '.join(map(short_path, files))}" if files else ""
    heading = wrap(f"Arguments{named} (--config FILE.yaml reads them from a file, --quiet shows no progress):", width)
    if is_full:
        bottom = ["", "TRL's and transformers' arguments:", *rows(theirs, width)] if theirs else []
        return "\n".join(["\n\n".join(paragraphs), "", *heading, *rows(ours, width), *bottom])
    bottom, most = pointer(theirs, configured, width), 99
    while True:
        top = [*"\n\n".join(paragraphs).splitlines(), "", *heading, *rows(ours, width, most)]
        if len(top + bottom[:SHORTEST]) <= MOST_LINES:
            break
        bottom = bottom or ["", "--help all has every text in full."]
        if most > 1:
            most = min(most - 1, 2)
        elif len(paragraphs) > 1:
            paragraphs.pop()
        else:
            break
    room = max(MOST_LINES - len(top), 2)
    if len(bottom) > room:
        bottom[room - 1 :] = [textwrap.shorten(bottom[room - 1], width - 2, placeholder="") + " …"]
    return "\n".join(top + bottom)


def names_of_libraries(kind: type) -> set[str]:
    """Names of the fields of the dataclass `kind` that a class of TRL's or of transformers' declares."""
    names = set()
    for field in fields(kind):
        owner = next(base for base in kind.__mro__ if field.name in vars(base).get("__annotations__", {}))
        if owner.__module__.partition(".")[0] in LIBRARIES:
            names.add(field.name)
    return names


def is_opposite(action: Action) -> bool:
    """Whether `action` is the --no_NAME that transformers' parser adds to each flag that is true by default."""
    return action.option_strings[0] == f"--no_{action.dest}"


def short_path(file: str) -> str:
    """`file` as seen from the folder of the recipes, where it lies below that."""
    path, home = Path(file), Path(__file__).parent
    return str(path.relative_to(home.parent)) if path.is_relative_to(home) else file


def show(value: object) -> str:
    """A default as a YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(getattr(value, "value", value))


def describe_value(action: Action) -> str:
    """What stands in brackets after the text of an argument: its choices where the text lacks one, and its default."""
    parts, text = [], action.help or ""
    choices = [show(choice) for choice in action.choices or ()]
    if not all(choice in text for choice in choices):
        parts.append(" | ".join(choices))
    if action.required:
        parts.append("required")
    elif action.default is None or action.default == []:
        parts.append("optional")
    else:
        parts.append(f"default: {show(action.default)}")
    return f"({'; '.join(parts)})"


def rows(actions: Iterable[Action], width: int, most: int = 99) -> list[str]:
    """Lines of `width` columns for each argument, at most so many; a text is cut where it needs more."""
    lines, indent = [], " " * 26
    for action in actions:
        head = f"  {action.option_strings[0]} ".ljust(len(indent))
        text = " ".join((action.help or "").replace("%%", "%").split())
        value = describe_value(action)
        room = most * (width - len(indent))
        entry = wrap(f"{text} {value}", width, head, indent)
        while len(entry) > most:
            room -= 1
            entry = wrap(f"{textwrap.shorten(text, room - len(value), placeholder=' …')} {value}", width, head, indent)
        lines += entry
    return lines


def wrap(text: str, width: int, head: str = "", indent: str = "") -> list[str]:
    """`text` in lines of `width` columns, none of its words broken; the first begins with `head`, others `indent`."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def pointer(actions: Sequence[Action], configured: Collection[str], width: int) -> list[str]:
    """Lines, the first one empty, that say which of TRL's and transformers' arguments the config sets, and where all
    are; none where there are no `actions`."""
    if not actions:
        return []
    settings = [f"--{action.dest} {show(action.default)}" for action in actions if action.dest in configured]
    text = f"--help all has every text in full, and the {len(actions)} arguments of TRL and transformers."
    if settings:
        text += f" The config sets {', '.join(settings)}."
    return ["", *wrap(text, width)]
