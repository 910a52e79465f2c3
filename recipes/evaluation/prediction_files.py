"""Predictions and references from every kind of file that they come in, each fault counted and the first one named.

| file | holds |
|---|---|
| JSONL of recipes/generate.py | a line per sample: `study_id`, `completion`, perhaps `scenario` |
| JSONL, CSV, or a JSON list of objects | `id` (or `study_id`), `prediction`, perhaps `reference` |
| ReXrank's JSON | study id to `model_prediction`, with `section_findings` and `section_impression`, or `report` |
| R2Gen's pair `res` and `gts` | two files, JSON of id to text (or a list of one), or CSV of row number and text |

Files are UTF-8, or UTF-16 with its mark. A report may be empty, and as long as it likes.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from recipes.files import InputError
from rewards.scenarios import SCENARIOS

IDS = ("study_id", "id")
TEXTS = ("completion", "prediction", "model_prediction", "text")
REFERENCES = ("reference", "ground_truth")
SECTIONS = ("section_findings", "section_impression")  # ReXrank's
PAIR = {"": "id", "Unnamed: 0": "id", "0": "text"}  # DataFrame(texts).to_csv(file), as R2Gen writes its pair
LONG = 10_000  # characters; a report of 500 words has 3,500
HTML = re.compile(r"<(?!/?(?:think|report)>)[/!]?[a-zA-Z][^<>]*>")
LONE = re.compile("[\ud800-\udfff]")
HALF = "holds half a character (a lone surrogate), which no file can store"
COSTS = ("input_tokens", "tokens", "seconds")  # of a sample, as recipes/generate.py notes them
SAMPLES = "a line of study_id and completion for each sample"
WANTED = "not a JSON object with study_id and completion, or id and prediction"

SCENARIO = re.compile(rf"({'|'.join(SCENARIOS)})/(?=.)")  # before an id: one study under several scenarios

Entry = tuple[str, object]  # where it stands in the file, for a message; and what stands there


def read_text(file: str | Path) -> str:
    """The decoded file. Raises InputError where it is missing, a folder, or in no encoding or in several."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no predictions file {file}")
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise InputError(f"{file} begins as UTF-16 and is not ({error.reason}): save it as UTF-8") from error
    if content.count(0) * 4 > len(content):
        raise InputError(f"{file} is UTF-16 or UTF-32 without its mark, or no text at all: save it as UTF-8")
    lines = content.split(b"\n")
    if faults := [number for number, line in enumerate(lines, 1) if not _decodes(line)]:
        raise InputError(
            f"{file} is not UTF-8 in {len(faults)} of {len(lines)} lines, line {faults[0]} first; no encoding is "
            "guessed, least of all a mixture: save it as UTF-8"
        )
    return content.decode("utf-8-sig")


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_entries(file: str | Path) -> list[Entry]:
    """What a file of any of the kinds above holds, an entry per sample: its place and its fields.

    A text that stands alone has the field `text`. Raises InputError on what is no CSV or has a row longer than its
    header, on JSON that is cut off or too deep to read, and on an id that a JSON object has twice; entries that are no
    objects are returned as they are.
    """
    content = read_text(file)
    if Path(file).suffix.lower() == ".csv":
        return _csv_entries(str(file), content)
    try:
        document = json.loads(content, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        return _json_lines(file, content, error)
    if isinstance(document, list):
        return [(f"entry {number}", value) for number, value in enumerate(document, 1)]
    if not isinstance(document, dict) or set(document) & {*IDS, *TEXTS}:
        return [("line 1", document)]
    if document.repeated:
        raise InputError(f"{file} has {len(document.repeated)} ids more than once, {document.repeated[0]!r} first")
    return [(f"entry {key!r}", {"id": key, **_fields(value)}) for key, value in document.items()]


class _Pairs(dict):
    """A JSON object that knows which of its keys stand there twice."""

    def __init__(self, pairs: list[tuple[str, object]]):
        super().__init__(pairs)
        self.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def _fields(value: object) -> dict:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) else {"text": value}


def _json_lines(file: str | Path, content: str, error: Exception) -> list[Entry]:
    """The lines of what is not one JSON value, for `error`; a line that is none itself is None."""
    entries, deep = [], "has brackets in brackets, too many to be read"
    for number, line in enumerate(content.split("\n"), 1):
        try:
            entries += [(f"line {number}", json.loads(line))] if line.strip() else []
        except ValueError:
            entries.append((f"line {number}", None))
        except RecursionError as too_deep:
            raise InputError(f"{file} {deep}, line {number} first") from too_deep
    if isinstance(error, RecursionError):
        raise InputError(f"{file} {deep}") from error
    if not isinstance(error, json.JSONDecodeError) or not entries or entries[0][1] is not None:
        return entries
    if len(entries) == 1 or (error.lineno > 1 and Path(file).suffix.lower() != ".jsonl"):
        ends = error.pos >= len(content.rstrip()) or error.msg.startswith("Unterminated string")
        fault = "cut off: its JSON breaks off" if ends else f"no JSON: {error.msg}"
        raise InputError(f"{file} is {fault} in line {error.lineno}") from error
    return entries


def _csv_entries(name: str, content: str) -> list[Entry]:
    limit = csv.field_size_limit(2**31 - 1)  # its own, 131,072 characters, is less than a runaway report
    try:
        rows = list(csv.DictReader(io.StringIO(content, newline="")))
    except csv.Error as error:
        raise InputError(f"{name} is no CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    longer = [
        (f"row {number}", f"more fields than the header's {len(row) - 1}: put a text that has commas in quotes")
        for number, row in enumerate(rows, 1)
        if None in row
    ]
    _refuse(name, longer, len(rows))
    if rows and set(rows[0]) <= set(PAIR):
        rows = [{PAIR[key]: value for key, value in row.items()} for row in rows]
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)]


def split_id(study: str) -> tuple[str | None, str]:
    """The scenario before an id, or None, and the id alone."""
    match = SCENARIO.match(study)
    return (match[1], study[match.end() :]) if match else (None, study)


def _study(entry: dict) -> str | None:
    """The entry's study: its id, behind the scenario and a slash where there is one beside it."""
    study = next((entry[key] for key in IDS if entry.get(key) not in (None, "")), None)
    if study is None or isinstance(study, (dict, list)):
        return None
    scenario = entry.get("scenario")
    return f"{scenario}/{study}" if scenario in SCENARIOS and not SCENARIO.match(str(study)) else str(study)


def _refuse(file: str | Path, faults: list[tuple[str, str]], of: int, remedy: str = "") -> None:
    """Raises InputError with the first of the faults (place, what is wrong) and their number, where there are any."""
    if faults:
        more = f" (and {len(faults) - 1} more of {of})" if len(faults) > 1 else ""
        raise InputError(f"{file}, {faults[0][0]}: {faults[0][1]}{more}{remedy}")


def read_predictions(
    file: str | Path,
    studies: Collection[str],
    several: bool = True,
    only_common: bool = False,
    notes: list[str] | None = None,
    costs: dict[str, list[list[float]]] | None = None,
) -> dict[str, list[str]]:
    """Completions by study id, in the file's order.

    `studies`: the ids of all studies, or "SCENARIO/ID" where an id has several. Every one must be there and no other;
    with `only_common` it may lack some, and what else it holds is left out, which a sentence added to `notes` counts.
    `costs` receives the `COSTS` of each completion whose entry has all three, by study id.
    Several lines of a study are several samples under `completion`, and a mistake elsewhere, or without `several`.
    Raises InputError with the number of wrong entries and the first one.
    """
    entries, faults, foreign, repeated = read_entries(file), [], [], []
    strangers: dict[str, None] = {}
    by_scenario = any(SCENARIO.match(study) for study in studies)
    completions: dict[str, list[str]] = {}
    for place, entry in entries:
        keys = [key for key in TEXTS if key in entry] if isinstance(entry, dict) else []
        study = _study(entry) if keys else None
        if study is None:
            fields = f" (its fields: {', '.join(list(map(str, entry))[:8])})" if isinstance(entry, dict) else ""
            faults.append((place, WANTED + fields))
            continue
        if LONE.search(study):
            faults.append((place, f"the id {study!r} {HALF}"))
            continue
        if not by_scenario and study not in studies:
            study = split_id(study)[1]
        if not isinstance(entry[keys[0]], str):
            many = isinstance(entry[keys[0]], list)
            fault = f"a list of {len(entry[keys[0]])}: give one text, or {SAMPLES}" if many else "no text"
            faults.append((place, f"the {keys[0]} of {study!r} is {fault}"))
        elif study not in studies:
            empty = next((key for key in REFERENCES if key in entry and not _reference(entry)), None)
            reason = "is not in this split or file of references, or its reference is empty"
            foreign.append((place, f"{study!r} " + (f"has no reference, its {empty} is empty" if empty else reason)))
            strangers[study] = None
        else:
            samples = completions.setdefault(study, [])
            if samples and not (several and keys[0] == "completion"):
                repeated.append((place, f"{study!r} is there more than once"))
            samples.append(entry[keys[0]])
            if costs is not None and all(isinstance(entry.get(name), int | float) for name in COSTS):
                costs.setdefault(study, []).append([float(entry[name]) for name in COSTS])
    _refuse(file, faults, len(entries))
    _refuse(file, repeated, len(entries))
    if not only_common:
        _refuse(file, foreign, len(entries), "; --only_common scores the others")
        if missing := [study for study in studies if study not in completions]:
            raise InputError(
                f"{file} lacks {len(missing)} of {len(studies)} studies of the split, {missing[0]!r} first; "
                "--only_common scores those that all files have"
            )
    if strangers and notes is not None:
        notes.append(
            f"{len(strangers)} studies of {file} have no reference in this split or file of references and are left "
            f"out, {next(iter(strangers))!r} first"
        )
    return completions


def read_references(file: str | Path) -> tuple[dict[str, str], list[str]]:
    """Reference reports by study id, and what a reader must know, as sentences.

    From a file of any of the kinds above: the references beside its predictions, or a text that stands alone under
    `reference`, `report` or nothing. Studies without one are left out and counted. Raises InputError on two references
    of one study that differ, on a list of them, and where there are none.
    """
    entries, faults, empty = read_entries(file), [], []
    references: dict[str, str] = {}
    for place, entry in entries:
        study = _study(entry) if isinstance(entry, dict) else None
        if study is None:
            faults.append((place, "not a JSON object with an id and a reference"))
            continue
        text = _reference(entry)
        if LONE.search(study):
            faults.append((place, f"the id {study!r} {HALF}"))
        elif text is None:
            faults.append((place, f"the reference of {study!r} is a list: give one text"))
        elif not text:
            empty.append(study)
        elif references.setdefault(study, text) != text:
            faults.append((place, f"another reference of {study!r} than before"))
    _refuse(file, faults, len(entries))
    if not references:
        raise InputError(
            f"{file} holds no references: name a data set with --dataset, or their file with --references"
        )
    empty = [study for study in dict.fromkeys(empty) if study not in references]
    notes = [f"{len(empty)} studies of {file} have no reference and are left out, {empty[0]!r} first"] if empty else []
    return references, notes


def _reference(entry: dict) -> str | None:
    """The reference of an entry, or "", or None for a list.

    `report` beside `completion` or `prediction` may be the generated one.
    """
    keys = [key for key in REFERENCES if key in entry]
    if not keys and "model_prediction" in entry:
        keys = [key for key in SECTIONS if str(entry.get(key) or "").strip()] or ["report"]
    elif not keys:
        keys = ["text"] if "text" in entry else ["report"] if not set(entry) & set(TEXTS) else []
    texts = [entry.get(key) for key in keys]
    if any(isinstance(text, list) for text in texts):
        return None
    return " ".join(text.strip() for text in texts if isinstance(text, str))


def odd_texts(name: str, texts: Sequence[str]) -> list[str]:
    """What a reader of a system's figures should know about its reports, as sentences with counts."""
    counts = {
        "empty and score 0": sum(not text.strip() for text in texts),
        f"longer than {LONG:,} characters": sum(len(text) > LONG for text in texts),
        "with HTML tags, which are shown as text": sum(bool(HTML.search(text)) for text in texts),
    }
    return [f"{name}: {count} of {len(texts)} reports are {oddity}" for oddity, count in counts.items() if count]
