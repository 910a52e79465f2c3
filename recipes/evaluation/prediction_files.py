"""Predictions and references from every kind of file that they come in, each fault counted and the first one named.

| file | holds |
|---|---|
| JSONL of recipes/generate.py | a line per sample: `study_id`, `completion`, perhaps `scenario` |
| CSV, TSV, Excel, Parquet, JSONL, JSON | id, prediction, perhaps reference, by `NAMES` or --columns |
| the same without ids | predictions and references, which are paired in their order |
| ReXrank's JSON | study id to `model_prediction`, with `section_findings` and `section_impression`, or `report` |
| R2Gen's pair `res` and `gts` | two files, JSON of id to text (or a list of one), or CSV of row number and text |
| any other text | a report in each line, paired with the references of the same lines |

Text is UTF-8, UTF-16 with its mark, or in the encoding that is named. A report may be empty, and as long as it likes.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recipes.data.columns import NAMES as STUDY_NAMES
from recipes.data.columns import identity
from recipes.data.tables import DELIMITERS, SHEETS, decode, read_records
from recipes.files import InputError
from rewards.scenarios import SCENARIOS

PLAIN = ("caption", "report", "text", "0")  # what a text is called where it is the only one
OUTPUTS = ("completion", "prediction")  # beside which `report` may be the generated one
IDS = f"""{STUDY_NAMES["study_id"]} image_id dicom_id img_id image image_path filename file_name file path key index
    idx"""
PREDICTIONS = """model_prediction predictions predicted pred preds hyp hyps hypothesis generated_report generated
    generated_text generation predicted_report model_output output response candidate res"""
REFERENCES = """reference ground_truth references ref refs gt gts reference_report reference_text gt_report
    ground_truth_report true_report target gold original_report"""
NAMES = {  # of a column by its role, as files have it; the first one that an entry has counts
    "id": (*IDS.split(), "Unnamed: 0", ""),  # at last pandas' row numbers
    "prediction": (*OUTPUTS, *PREDICTIONS.split(), *PLAIN),
    "reference": tuple(REFERENCES.split()),
}
SECTIONS = ("section_findings", "section_impression")  # ReXrank's
LONG = 10_000  # characters; a report of 500 words has 3,500
HTML = re.compile(r"<(?!/?(?:think|report)>)[/!]?[a-zA-Z][^<>]*>")
LONE = re.compile("[\ud800-\udfff]")
HALF = "holds half a character (a lone surrogate), which no file can store"
COSTS = ("input_tokens", "tokens", "seconds")  # of a sample, as recipes/generate.py notes them
SAMPLES = "a line of study_id and completion for each sample"
SCENARIO = re.compile(rf"({'|'.join(SCENARIOS)})/(?=.)")  # before an id: one study under several scenarios
ROW = re.compile(r"row (\d+)")  # the id of an entry of a file without ids

Entry = tuple[str, object]  # where it stands in the file, for a message; and what stands there


@dataclass(frozen=True)
class Reading:
    """What a user says of the files: `columns` by role (id, prediction, reference), and the `encoding` of text."""

    columns: dict[str, str] = field(default_factory=dict)
    encoding: str | None = None

    @classmethod
    def of(cls, pairs: Sequence[str], encoding: str | None = None) -> "Reading":
        """From --columns, each ROLE=NAME; raises InputError on anything else.

        >>> Reading.of(["prediction=output"]).columns
        {'prediction': 'output'}
        """
        columns = {}
        for pair in pairs:
            role, _, name = pair.partition("=")
            if role not in NAMES or not name or role in columns:
                raise InputError(f"--columns takes id=NAME, prediction=NAME and reference=NAME, and not {pair!r}")
            columns[role] = name
        return cls(columns, encoding)


USUAL = Reading()


def read_text(file: str | Path, encoding: str | None = None) -> str:
    """The decoded file. Raises InputError where it is missing, a folder, or in no encoding or in several."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no predictions file {file}")
    return decode(path.read_bytes(), str(file), encoding)


def read_entries(file: str | Path, encoding: str | None = None) -> list[Entry]:
    """What a file of any of the kinds above holds, an entry per sample: its place and its fields.

    A text that stands alone has the field `text`. Raises InputError on a table that cannot be read or has a row longer
    than its header, on JSON that is cut off or too deep to read, and on an id that a JSON object has twice; entries
    that are no objects are returned as they are.
    """
    name = Path(file).name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if not Path(file).is_file():
        raise InputError(f"there is no predictions file {file}")
    if suffix in (*SHEETS, ".parquet") or name.endswith((".csv.gz", ".tsv.gz")):
        return _table_entries(file, encoding)
    content = read_text(file, encoding)
    if suffix in (".json", ".jsonl") or content.lstrip()[:1] in ("{", "["):
        return _json_entries(file, content)
    if suffix in (".csv", ".tsv") or _has_header(content):
        return _table_entries(file, encoding)
    lines = content.removesuffix("\n").split("\n") if content else []  # a report may hold other ends of lines
    return [(f"line {number}", {"text": line.rstrip("\r")}) for number, line in enumerate(lines, 1)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _has_header(content: str) -> bool:
    """Whether the first line names an id and a text."""
    cells = re.split(f"[{re.escape(DELIMITERS)}]", content.split("\n", 1)[0])
    return all(any(_is_called(cell, *roles) for cell in cells) for roles in (("id",), ("prediction", "reference")))


def _table_entries(file: str | Path, encoding: str | None) -> list[Entry]:
    empty = Path(file).suffix.lower() in SHEETS  # where an empty cell is a number, NaN
    entries, line = [], 2
    for values, record_place in read_records(file, encoding):
        place = record_place.removeprefix(f"{Path(file).name}, ")
        if len(values) == 1 and place.startswith("line "):  # of one column, an empty row is an empty text
            name, text = next(iter(values.items()))
            entries += [(f"line {blank}", {name: ""}) for blank in range(line, int(place[5:]))]
            line = int(place[5:]) + 1 + text.count("\n")
        entries.append((place, {name: "" if empty and value != value else value for name, value in values.items()}))
    return entries


def _json_entries(file: str | Path, content: str) -> list[Entry]:
    try:
        document = json.loads(content, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        return _json_lines(file, content, error)
    if isinstance(document, list):
        texts = bool(document) and all(isinstance(value, str) for value in document)
        values = [{"text": value} for value in document] if texts else document
        return [(f"entry {number}", value) for number, value in enumerate(values, 1)]
    if not isinstance(document, dict):
        return [("line 1", document)]
    if document.repeated:
        raise InputError(f"{file} has {len(document.repeated)} ids more than once, {document.repeated[0]!r} first")
    if any(_is_called(name, *NAMES) for name in document):
        return _json_columns(file, document)
    if document and all(map(_holds_entries, document.values())):
        return [  # lists of objects, by split or under one name
            (f"{key}, entry {number}", value)
            for key, values in document.items()
            for number, value in enumerate(values, 1)
        ]
    return [(f"entry {key!r}", {"id": key, **_fields(value)}) for key, value in document.items()]


def _json_columns(file: str | Path, document: dict) -> list[Entry]:
    """The entries of one object whose keys are columns: one entry, or lists (or objects by row) of all entries."""
    values = list(document.values())
    if not all(isinstance(value, list) for value in values) and not all(isinstance(value, dict) for value in values):
        return [("line 1", document)]
    columns = {name: list(value.values()) if isinstance(value, dict) else value for name, value in document.items()}
    if len(set(map(len, columns.values()))) > 1:
        lengths = ", ".join(f"{name} {len(value)}" for name, value in columns.items())
        raise InputError(f"{file} has columns of different lengths: {lengths}")
    rows = zip(*columns.values(), strict=True)
    return [(f"entry {number}", dict(zip(columns, row, strict=True))) for number, row in enumerate(rows, 1)]


def _is_called(name: str, *roles: str) -> bool:
    """Whether a column of that name has one of `roles`; pandas' row numbers do not count."""
    return name not in ("", "0") and _plain(name) in {_plain(usual) for role in roles for usual in NAMES[role]}


def _holds_entries(value: object) -> bool:
    """Whether `value` is a list of objects that name their studies."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(_is_called(name, "id") for name in first)


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


def split_id(study: str) -> tuple[str | None, str]:
    """The scenario before an id, or None, and the id alone."""
    match = SCENARIO.match(study)
    return (match[1], study[match.end() :]) if match else (None, study)


class _Layout:
    """Which columns of a file's `entries` are ids, predictions and references, the first ones first.

    `numbered`: there are no ids, and an entry's is "row" and its number. `fields`: all columns, for a message.
    """

    def __init__(self, file: str | Path, entries: list[Entry], reading: Reading):
        self.file, self.reading = file, reading
        self.fields = list(
            dict.fromkeys(str(name) for _, entry in entries if isinstance(entry, dict) for name in entry)
        )
        self.columns = {role: self._columns(role) for role in NAMES}
        taken = self.columns["id"][:1] + self.columns["reference"]
        self.columns["prediction"] = [name for name in self.columns["prediction"] if name not in taken]
        self.numbered = not self.columns["id"] and all(isinstance(entry, dict) for _, entry in entries)

    def _columns(self, role: str) -> list[str]:
        if name := self.reading.columns.get(role):
            return [name]
        by_name: dict[str, str] = {}
        for name in self.fields:
            by_name.setdefault(_plain(name) if name else "", name)
        matches = [by_name[key] for name in NAMES[role] if (key := _plain(name)) in by_name]
        return [name for name in dict.fromkeys(matches) if name not in self.reading.columns.values()]

    def check(self, role: str, unnamed: bool = True) -> None:
        """Raises InputError where no entry has a column of `role`, and names the columns that there are.

        Without `unnamed` only where --columns names it.
        """
        name = self.reading.columns.get(role)
        if not self.fields or any(column in self.fields for column in self.columns[role]):
            return
        fields = ", ".join(self.fields[:8]) + " ..." * (len(self.fields) > 8)
        if name:
            raise InputError(f"{self.file} has no column {name!r} (--columns {role}={name}); it has {fields}")
        if unnamed:
            remedy = f"name the column with --columns {role}=NAME"
            raise InputError(f"{self.file} has no {role} by a usual name; it has {fields}: {remedy}")

    def identify(self, entry: object, number: int, role: str) -> tuple[str | None, str]:
        """The study of entry `number` (from 1), behind its scenario and a slash where there is one beside it.

        Or None and what is wrong: the entry has no id, or no prediction where that is its `role`.
        """
        if not isinstance(entry, dict):
            return None, f"not a JSON object with an id and a {role}"
        fields = f"its fields: {', '.join(list(map(str, entry))[:8])}"
        if role == "prediction" and self.prediction(entry) is None:
            return None, f"no prediction ({fields})"
        study = f"row {number}" if self.numbered else self._study(entry)
        if study is None:
            return None, f"no id ({fields})"
        return (None, f"the id {study!r} {HALF}") if LONE.search(study) else (study, "")

    def _study(self, entry: dict) -> str | None:
        study = None
        for name in self.columns["id"]:
            try:
                study = study or identity(entry.get(name))
            except ValueError:  # a list or an object
                return None
        scenario = entry.get("scenario")
        return f"{scenario}/{study}" if study and scenario in SCENARIOS and not SCENARIO.match(study) else study

    def prediction(self, entry: dict) -> str | None:
        """The column of the entry's prediction, if it has one."""
        return next((name for name in self.columns["prediction"] if name in entry), None)

    def why_foreign(self, entry: dict) -> str:
        """What is wrong with an entry whose study is not scored."""
        empty = next((name for name in self.columns["reference"] if name in entry), None)
        if empty is not None and not self.reference(entry):
            return f"has no reference, its {empty} is empty"
        return "is not in this split or file of references, or its reference is empty"

    def reference(self, entry: dict, beside: bool = False) -> str | None:
        """The reference of an entry, or "", or None for a list.

        `beside`: whether predictions stand in this file too, so that a text that is alone is one of them, and `report`
        beside `completion` or `prediction` may be the generated one.
        """
        keys = [name for name in self.columns["reference"] if name in entry][:1]
        prediction = self.prediction(entry)
        strong = prediction not in (None, *PLAIN)
        if not keys and "model_prediction" in entry:
            keys = [key for key in SECTIONS if str(entry.get(key) or "").strip()] or ["report"]
        elif not keys and strong and (prediction not in OUTPUTS or "prediction" in self.reading.columns):
            keys = ["report"]
        elif not keys and not strong and not beside:
            keys = [prediction] if prediction else []
        texts = [entry.get(key) for key in keys]
        if any(isinstance(text, list) for text in texts):
            return None
        return " ".join(text.strip() for text in texts if isinstance(text, str))


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
    reading: Reading = USUAL,
) -> dict[str, list[str]]:
    """Completions by study id, in the file's order.

    `studies`: the ids of all studies, or "SCENARIO/ID" where an id has several; perhaps with their references, which
    those of a file without ids must equal. Every one must be there and no other; with `only_common` it may lack some,
    and what else it holds is left out, which a sentence added to `notes` counts.
    `costs` receives the `COSTS` of each completion whose entry has all three, by study id.
    Several lines of a study are several samples under `completion`, and a mistake elsewhere, or without `several`.
    Raises InputError with the number of wrong entries and the first one.
    """
    entries, faults, foreign, repeated = read_entries(file, reading.encoding), [], [], []
    layout = _Layout(file, entries, reading)
    layout.check("prediction")
    layout.check("id", unnamed=False)
    if layout.numbered and entries:
        _check_order(layout, entries, studies)
    strangers: dict[str, None] = {}
    by_scenario = any(SCENARIO.match(study) for study in studies)
    completions: dict[str, list[str]] = {}
    for number, (place, entry) in enumerate(entries, 1):
        study, fault = layout.identify(entry, number, "prediction")
        if study is None:
            faults.append((place, fault))
            continue
        key = layout.prediction(entry)
        if not by_scenario and study not in studies:
            study = split_id(study)[1]
        if not isinstance(entry[key], str):
            many = isinstance(entry[key], list)
            fault = f"a list of {len(entry[key])}: give one text, or {SAMPLES}" if many else "no text"
            faults.append((place, f"the {key} of {study!r} is {fault}"))
        elif study not in studies:
            foreign.append((place, f"{study!r} {layout.why_foreign(entry)}"))
            strangers[study] = None
        else:
            samples = completions.setdefault(study, [])
            if samples and not (several and key == "completion"):
                repeated.append((place, f"{study!r} is there more than once"))
            samples.append(entry[key])
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


def _check_order(layout: _Layout, entries: list[Entry], studies: Collection[str]) -> None:
    """Raises InputError where entries without ids cannot be those of `studies` in their order."""
    last = max((int(match[1]) for match in map(ROW.fullmatch, studies) if match), default=0)
    if not last:
        if layout.fields == ["text"]:
            remedy = "has texts without ids: name the references in the same order with --references, or give ids"
            raise InputError(f"{layout.file} {remedy}")
        layout.check("id")
    if len(entries) != last:
        raise InputError(
            f"{layout.file} has {len(entries)} entries and the references end at the {last}th: without ids they are "
            "paired in their order, so that both need as many"
        )
    for number, (place, entry) in enumerate(entries, 1):
        expected = studies.get(f"row {number}") if isinstance(studies, Mapping) else None
        if expected and (reference := layout.reference(entry, beside=True)) and reference != expected:
            raise InputError(
                f"{layout.file}, {place}: another reference than that of row {number} before, and there are no ids: "
                "are the files in the same order? Give ids"
            )


def read_references(
    file: str | Path,
    reading: Reading = USUAL,
    beside: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """Reference reports by study id, and what a reader must know, as sentences.

    From a file of any of the kinds above: the references beside its predictions, or, unless it is read for both
    (`beside`), a text that stands alone. Studies without one are left out and counted. Raises InputError on two
    references of one study that differ, on a list of them, and where there are none.
    """
    entries, faults, empty = read_entries(file, reading.encoding), [], []
    layout = _Layout(file, entries, reading)
    for role in ("id", "reference"):
        layout.check(role, unnamed=False)
    references: dict[str, str] = {}
    for number, (place, entry) in enumerate(entries, 1):
        study, fault = layout.identify(entry, number, "reference")
        if study is None:
            faults.append((place, fault))
            continue
        text = layout.reference(entry, beside)
        if text is None:
            faults.append((place, f"the reference of {study!r} is a list: give one text"))
        elif not text:
            empty.append(study)
        elif references.setdefault(study, text) != text:
            faults.append((place, f"another reference of {study!r} than before"))
    _refuse(file, faults, len(entries))
    if not references:
        fields = f" (its fields: {', '.join(layout.fields[:8])})" if layout.fields else ""
        raise InputError(
            f"{file} holds no references{fields}: name a data set with --dataset, their file with --references, or "
            "their column with --columns reference=NAME"
        )
    empty = [study for study in dict.fromkeys(empty) if study not in references]
    notes = [f"{len(empty)} studies of {file} have no reference and are left out, {empty[0]!r} first"] if empty else []
    if layout.numbered:
        notes.append(f"{file} names no study: predictions and references are paired in their order")
    return references, notes


def odd_texts(name: str, texts: Sequence[str]) -> list[str]:
    """What a reader of a system's figures should know about its reports, as sentences with counts."""
    counts = {
        "empty and score 0": sum(not text.strip() for text in texts),
        f"longer than {LONG:,} characters": sum(len(text) > LONG for text in texts),
        "with HTML tags, which are shown as text": sum(bool(HTML.search(text)) for text in texts),
    }
    return [f"{name}: {count} of {len(texts)} reports are {oddity}" for oddity, count in counts.items() if count]
