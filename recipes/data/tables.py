"""Records of any table that a lab or a public project keeps its studies in, as plain dicts with their place.

| file | what it holds |
|---|---|
| `.csv`, `.tsv`, `.txt` (also `.gz`) | a header and a row per study or image; comma, semicolon, tab or bar between |
| `.xlsx`, `.xls`, `.ods` | the first sheet, read as a CSV is |
| `.parquet` | a row per study; images may be inside, as `datasets` stores them |
| `.jsonl`, `.json` | objects; a list of them; lists by split (R2Gen); or an object by id (ReXrank, ReXGradient) |
| a folder | `metadata.csv`, `.jsonl` or `.parquet` beside the images, perhaps in a folder per split (imagefolder) |
| a folder | `train.report.tok`, `train.image.tok`, ... (ViLMedic): a line per study in each, images between commas |

An object with `conversations` (LLaVA) or `messages` (chat form) gives its last answer as the report; one with
`APPA_imagepath` is of LLM-RG4's annotation (`_llmrg4`).
"""

import codecs
import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recipes.files import InputError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SHEETS = (".xlsx", ".xls", ".xlsm", ".ods")
DELIMITERS = ",;\t|"
ABSENT = {"", "none", "nan", "null", "n/a", "na", "<na>", "nat", "-", "."}
_LLMRG4 = ("finding", "impression", "history", "indication", "last_finding", "last_impression")  # texts of an entry
IMAGE_MARK = re.compile(r"<image>\s*")


class Record(NamedTuple):
    """One row or object of a table: its values by column, and `place`, its line or key for a message."""

    values: dict[str, object]
    place: str


def absent(value: object) -> bool:
    """Whether a cell says nothing: empty, a missing number, or a word such as "None", "nan" or "N/A".

    >>> absent(" None. "), absent("No change.")
    (True, False)
    """
    if value is None or value != value:
        return True
    return isinstance(value, str) and value.strip().lower().removesuffix(".") in ABSENT


def decode(content: bytes, name: str, encoding: str | None = None) -> str:
    """The text of a file by its byte-order mark, else as `encoding` (default UTF-8).

    Raises InputError where it is not, with the lines of UTF-8 that are not, and where Python knows no such encoding.
    """
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    kind = next((kind for mark, kind in marks.items() if content.startswith(mark)), encoding)
    if kind is None and content.count(0) * 4 > len(content):
        raise InputError(
            f"{name} is UTF-16 or UTF-32 without its mark, or no text: save it as UTF-8, or name --encoding"
        )
    try:
        return content.decode(kind or "utf-8")
    except LookupError as error:
        raise InputError(f"--encoding: Python knows no encoding {encoding}") from error
    except UnicodeDecodeError as error:
        place = f"{kind} in line {content[: error.start].count(10) + 1}"
        if kind in (None, "utf-8-sig"):  # whose lines can be read one by one
            lines = content.split(b"\n")
            faults = [number for number, line in enumerate(lines, 1) if not _is_utf8(line)]
            place = f"UTF-8 in {len(faults)} of {len(lines)} lines, line {faults[0]} first"
        raise InputError(
            f"{name} is not {place}; no encoding is guessed, least of all a mixture: save it as UTF-8, or name its "
            "encoding, such as --encoding cp1252"
        ) from error


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_records(table: str | Path, encoding: str | None = None) -> list[Record]:
    """All records of `table` (a file or a folder of the kinds above), in their order.

    A record that stands below a split's name has it as `split`. Raises InputError naming the file, and the line where
    there is one, on what cannot be read, and where there is no record.
    """
    path = Path(table)
    if path.is_dir():
        records = list(_folder_records(path, encoding))
    elif path.is_file():
        records = list(_file_records(path, encoding))
    else:
        raise InputError(f"there is no table {table}")
    if not records:
        raise InputError(f"{table} holds no record")
    return [Record(_llmrg4(_answer(record.values)), record.place) for record in records]


def _folder_records(folder: Path, encoding: str | None) -> Iterator[Record]:
    if tokens := sorted(folder.glob("*.*.tok")):
        yield from _line_records(folder, tokens, encoding)
        return
    names = [f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet")]
    files = [path for name in names for path in sorted(folder.rglob(name))]
    if not files:
        raise InputError(
            f"the folder {folder} holds no {', '.join(names)} (the form of datasets' imagefolder), and no "
            "train.report.tok (ViLMedic's)"
        )
    for file in files:
        parts = file.relative_to(folder).parent.parts
        split = next((SPLIT_NAMES[part.lower()] for part in parts if part.lower() in SPLIT_NAMES), None)
        for record in _file_records(file, encoding):
            values = dict(record.values)
            for name in ("file_name", "file_names"):
                if name in values and not absent(values[name]):
                    paths = values[name] if isinstance(values[name], list) else [values[name]]
                    values[name] = [str(Path(*parts, path)) for path in map(str, paths)]
            yield Record(({"split": split} if split else {}) | values, record.place)


def _line_records(folder: Path, files: list[Path], encoding: str | None) -> Iterator[Record]:
    """ViLMedic's form: SPLIT.COLUMN.tok, line by line; InputError where the files of a split differ in length."""
    splits: dict[str, dict[str, list[str]]] = {}
    for file in files:
        name, column = file.name.split(".")[:2]
        if name.lower() not in SPLIT_NAMES:
            raise InputError(f"{file}: {name!r} is no name of a split, such as train, validate or test")
        splits.setdefault(name, {})[column] = decode(file.read_bytes(), str(file), encoding).splitlines()
    for name, columns in splits.items():
        if len(set(map(len, columns.values()))) > 1:
            lengths = ", ".join(f"{name}.{column}.tok has {len(lines)}" for column, lines in columns.items())
            raise InputError(f"{folder}: the files of one split need a line for each study: {lengths} lines")
        for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
            values: dict[str, object] = {"split": SPLIT_NAMES[name.lower()]} | dict(zip(columns, cells, strict=True))
            if isinstance(values.get("image"), str):
                values["image"] = [path.strip() for path in values["image"].split(",")]
            yield Record(values, f"{name}, line {number}")


def _file_records(path: Path, encoding: str | None) -> Iterator[Record]:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in SHEETS:
        yield from _sheet_records(path)
    elif suffix == ".parquet":
        yield from _parquet_records(path)
    else:
        content = path.read_bytes()
        if path.suffix == ".gz":
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError) as error:
                raise InputError(f"{path} is no complete .gz file: {error}") from error
        text = decode(content, str(path), encoding)
        if suffix in (".json", ".jsonl") or text.lstrip()[:1] in ("{", "["):
            yield from _json_records(path, text)
        else:
            yield from _delimited_records(path, text)


def _sheet_records(path: Path) -> Iterator[Record]:
    import pandas

    try:
        from python_calamine import CalamineError
    except ImportError as error:
        raise InputError(f"{path}: sheets need the package python-calamine: pip install python-calamine") from error
    try:
        frame = pandas.read_excel(path, dtype=object, engine="calamine")
    except (CalamineError, ValueError, OSError) as error:
        raise InputError(f"{path} is no workbook that can be read: {error}") from error
    for number, values in enumerate(frame.to_dict("records"), start=2):
        yield Record({str(name): _cell(value) for name, value in values.items()}, f"{path.name}, row {number}")


def _cell(value: object) -> object:
    """A sheet's cell as a CSV would have it: a date in ISO's form, a whole number without its point."""
    if hasattr(value, "isoformat"):
        return value.isoformat(sep=" ") if hasattr(value, "hour") else value.isoformat()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parquet_records(path: Path) -> Iterator[Record]:
    from pyarrow import ArrowInvalid, parquet

    try:
        file = parquet.ParquetFile(path)
        for group in range(file.num_row_groups):
            for number, values in enumerate(file.read_row_group(group).to_pylist()):
                yield Record(values, f"{path.name}, row {number + 1} of group {group + 1}")
    except (ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no Parquet file that can be read: {error}") from error


def _delimited_records(path: Path, text: str) -> Iterator[Record]:
    header = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=header.count)
    limit = csv.field_size_limit(2**31 - 1)  # a report may be longer than csv's default of 131,072 characters
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        if twice := sorted({name for name in names if name and names.count(name) > 1}):
            raise InputError(f"{path} has the column {twice[0]} twice")
        end = reader.line_num
        for row in reader:
            place, end = f"{path.name}, line {end + 1}", reader.line_num  # a row's text may have several lines
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(names):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} cells under {len(names)} columns; a text with "
                    f"{delimiter!r} or a line break needs quotes around it"
                )
            yield Record(dict(zip(names, row, strict=False)), place)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _json_records(path: Path, text: str) -> Iterator[Record]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":  # one object per line reads as one object and more
            raise InputError(f"{path}, line {error.lineno}: this is no JSON: {error.msg}") from error
        content = list(_json_lines(path, text))
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply to be a table") from error
    yield from _json_objects(path, content)


def _json_lines(path: Path, text: str) -> Iterator[object]:
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if line.strip():
                yield json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: this is no JSON: {error.msg}") from error


def _json_objects(path: Path, content: object) -> Iterator[Record]:
    if isinstance(content, dict) and {str(name).lower() for name in content} <= set(SPLIT_NAMES):
        for name, entries in content.items():
            for number, values in enumerate(entries if isinstance(entries, list) else [entries], start=1):
                split = {"split": SPLIT_NAMES[name.lower()]}
                yield Record(split | _object(path, values, f"{name}, entry {number}"), f"{name}, entry {number}")
    elif isinstance(content, dict) and content and all(isinstance(values, dict) for values in content.values()):
        for key, values in content.items():
            identity = {} if {"id", "study_id"} & set(values) else {"study_id": key}
            yield Record(identity | values, f"entry {key!r}")
    else:
        for number, values in enumerate(content if isinstance(content, list) else [content], start=1):
            yield Record(_object(path, values, f"entry {number}"), f"entry {number}")


def _object(path: Path, values: object, place: str) -> dict:
    if not isinstance(values, dict):
        raise InputError(f"{path}, {place}: {str(values)[:60]!r} is no object of columns and values")
    return values


def _answer(values: dict) -> dict:
    """`values` with the last answer of a conversation as `report`, and its images as `images`."""
    turns = next((values[name] for name in ("conversations", "messages") if isinstance(values.get(name), list)), None)
    if turns is None and isinstance(values.get("completion"), list):
        turns = [*(values.get("prompt") or ()), *values["completion"]]
    if not turns:
        return values
    speeches = [
        (str(turn.get("role") or turn.get("from")), turn.get("content", turn.get("value")))
        for turn in turns
        if isinstance(turn, dict)
    ]
    answers = [_plain(content) for role, content in speeches if role in ("assistant", "gpt", "model")]
    return values | ({"report": answers[-1]} if answers else {})


def _llmrg4(values: dict) -> dict:
    """`values` by the usual names where they are an entry of LLM-RG4's annotation; ids of MIMIC-CXR by its paths.

    An absent text is "s" there, an absent history or indication 0. The image before is not read, its report is.
    """
    if "APPA_imagepath" not in values:
        return values
    texts = {name: None if values.get(name) in ("s", 0, "0") else values.get(name) for name in _LLMRG4}
    prior = [texts[name] for name in ("last_finding", "last_impression") if texts[name]]
    paths = [values["APPA_imagepath"], values.get("lateral_imagepath")]
    views = [values.get("APPA_flag") if values.get("APPA_flag") in ("PA", "AP") else "FRONTAL", "LATERAL"]
    shown = [(path, view) for path, view in zip(paths, views, strict=True) if not absent(path) and path != "s"]
    ids = re.search(r"p(\d{8})/s(\d{8})", str(values["APPA_imagepath"]))
    return {name: value for name, value in values.items() if name in ("split", "subject_id")} | {
        "study_id": ids[2] if ids else values.get("id"),
        **({"subject_id": ids[1]} if ids else {}),
        "findings": texts["finding"],
        **{name: texts[name] for name in ("impression", "history", "indication")},
        "prior_report": " ".join(prior) or None,
        "images": [path for path, _ in shown],
        "views": [view for _, view in shown],
    }


def _plain(content: object) -> str:
    """The text of a turn, which may be a list of parts with a `text`."""
    if isinstance(content, list):
        content = " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return IMAGE_MARK.sub("", str(content or "")).strip()
