"""The one dataset schema: every builder writes these columns as Parquet, every recipe reads them."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from tempfile import gettempdir

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid, parquet

from recipes.files import InputError, one_process_first, replacing
from rewards.labels import CONDITIONS, CheXpertState

SPLITS = ("train", "validation", "test")
HOW_TO_BUILD = (
    'build one of your own table with recipes/build_from_table.py ("Your data in ten minutes" in '
    "recipes/data/README.md), or with build_iu_xray.py, build_mimic_cxr.py or build_phantom.py"
)
BOX = {"region": Value("string"), **{side: Value("float32") for side in ("x0", "y0", "x1", "y1")}}
ROWS_PER_GROUP = 20  # of a Parquet file with images: a reader holds one group at a time
FEATURES = Features(
    {
        "study_id": Value("string"),
        "subject_id": Value("string"),
        "images": List(Image()),  # frontal first, then lateral
        "views": List(Value("string")),  # "PA", "AP", "LATERAL", ...: one per image
        "indication": Value("string"),
        "history": Value("string"),
        "comparison": Value("string"),
        "technique": Value("string"),
        "age": Value("float32"),  # years
        "sex": Value("string"),  # "F" or "M"
        "prior_report": Value("string"),
        "prior_images": List(Image()),  # of the study before, a frontal one
        "findings": Value("string"),
        "impression": Value("string"),
        "report": Value("string"),  # the target text
        "scenario": Value("string"),  # sn, sw, mn, mw: single/multi view, no/with longitudinal; null: no frontal view
        "labels": List(Value("int8"), length=14),  # CheXpertState of the report, in the order of CONDITIONS
        "key_spans": List(List(Value("int32"), length=2)),  # characters of the key sentences (TLW) or null
        "boxes": List(BOX),  # of regions or findings, in pixels of the first image
        "source": Value("string"),
        "license": Value("string"),
    }
)

KINDS = {  # of Arrow types, in words
    pa.types.is_null: "nothing",
    pa.types.is_string: "text",
    pa.types.is_large_string: "text",
    pa.types.is_string_view: "text",
    pa.types.is_integer: "whole numbers",
    pa.types.is_floating: "numbers",
}
STATES = set(map(int, CheXpertState))

LATER = ("comparison", "technique", "age", "sex", "prior_images", "boxes")  # that data sets built before lack
CORE = tuple(name for name in FEATURES if name not in LATER)


def write_dataset(splits: dict[str, Callable[[], Iterator[dict]]], out: str | Path, build: dict) -> dict[str, int]:
    """Writes `{split}.parquet` per split and `build.json` (how it was built, the labeler's name) to folder `out`.

    `splits` maps each split to a function that yields rows; an image is `{"bytes": encoded, "path": None}`.
    Columns that a row lacks become null. The folder appears only when all is written. Returns rows per split.
    """
    with replacing(out, marker="build.json") as folder:
        folder.mkdir()
        sizes = {}
        for split, rows in splits.items():
            encoded = (FEATURES.encode_example(dict.fromkeys(FEATURES) | row) for row in rows())
            sizes[split] = write_rows(encoded, folder / f"{split}.parquet")
        (folder / "build.json").write_text(json.dumps({**build, "rows": sizes}, indent=2) + "\n")
    return sizes


def write_rows(rows: Iterable[dict], file: Path, size: int = ROWS_PER_GROUP, note: Callable[[], dict] = dict) -> int:
    """Writes `rows`, whose images are encoded, to the Parquet `file`, `size` in a group, and returns their number.

    Columns that a row lacks become null. What `note` returns once all rows are written goes into the file's metadata.
    """
    schema, number, rows = FEATURES.arrow_schema, 0, iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, size)):
            writer.write_table(pa.Table.from_pylist(group, schema))
            number += len(group)
        writer.add_key_value_metadata(note())
    return number


def read_build(path: str | Path) -> dict:
    """What `write_dataset` noted about a local data set; empty for a data set on the Hub.

    Raises InputError where its build.json is damaged.
    """
    note = Path(path) / "build.json"
    if not note.is_file():
        return {}
    try:
        build = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"{note} is damaged, since it is no JSON: build the data set again") from error
    if not isinstance(build, dict) or not isinstance(build.get("labeler", ""), str):
        raise InputError(f"{note} is damaged, since it does not say how the data were built: build them again")
    return build


def has_text(report: str | None) -> bool:
    """Whether a report says anything: it has a letter or a digit.

    >>> has_text(" .\n")
    False
    """
    return any(map(str.isalnum, report or ""))


def with_reports(rows: Dataset, where: str) -> Dataset:
    """`rows` without those whose report has no text (`has_text`): they are counted, and the first one is named.

    The first process prints it. Raises InputError where no row is left. `where` names the split and its data set.
    """
    places = [place for place, report in enumerate(rows["report"]) if has_text(report)]
    if len(places) == len(rows):
        return rows
    if not places:
        raise InputError(f"{where} has no reports: none of its {len(rows)} rows has a text in its column report")
    first = next(place for place in range(len(rows)) if place >= len(places) or places[place] != place)
    study = f"study {rows[first : first + 1]['study_id'][0]!r}" if "study_id" in rows.column_names else f"row {first}"
    say_bare(len(rows) - len(places), f"{len(rows)} rows of {where}", study)
    return rows.select(places)


def say_bare(number: int, rows: str, first: str) -> None:
    """Prints once, in the first process, that `number` of `rows` have no report and are left out."""
    if number and os.environ.get("RANK", "0") == "0":
        print(f"{number} of {rows} have no report and are left out, {first} first", flush=True)


def cache_folder(path: str) -> str:
    """Where the copy of the built folder `path` is that its rows are read from.

    HF_DATASETS_CACHE; without it PATH/.cache, which goes with the data set when that is deleted; or the user's own
    cache, where PATH is on a share that cannot be written.
    """
    if os.environ.get("HF_DATASETS_CACHE"):
        return os.environ["HF_DATASETS_CACHE"]
    if os.access(path, os.W_OK):
        return str(Path(path) / ".cache")
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rrg-recipes")


def plain_path(path: str) -> str:
    """`path`, or a link to it among the temporary files where datasets would read it as a pattern or a chain."""
    if not re.search(r"[][*?{}]|::", path):
        return path
    absolute = Path(path).resolve()
    name = hashlib.sha256(str(absolute).encode()).hexdigest()[:32]
    link = Path(gettempdir()) / f"rrg-recipes-{os.getuid()}" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(absolute, target_is_directory=True)
    return str(link)


def check_room(path: str, files: dict[str, str]) -> None:
    """Raises InputError where there is no room, or no right, to write the one copy of `files`, Parquet by split.

    Not where it is there already. It takes what the files hold, uncompressed.
    """
    cache = cache_folder(path)
    if Path(load_dataset_builder("parquet", data_files=files, cache_dir=plain_path(cache)).cache_dir).is_dir():
        return
    contents = map(parquet.read_metadata, files.values())
    size = sum(metadata.row_group(i).total_byte_size for metadata in contents for i in range(metadata.num_row_groups))
    existing = next(folder for folder in (Path(cache), *Path(cache).absolute().parents) if folder.is_dir())
    remedy = "or set the variable HF_DATASETS_CACHE to a folder on another disk"
    if not os.access(existing, os.W_OK):
        raise InputError(
            f"{path}: its rows are read from a copy in {cache}, where nothing can be written: change that, {remedy}"
        )
    free = shutil.disk_usage(existing).free
    if free < size:
        raise InputError(
            f"{path}: its rows are read from a copy in {cache}, which takes {size / 1e9:.2f} GB, and "
            f"{free / 1e9:.2f} GB are free there: free some, {remedy}"
        )


def read_dataset(path: str, columns: tuple[str, ...] = ("report", "images"), bare: bool = False) -> DatasetDict:
    """Loads a built folder, or a Hub id, and checks that it has `columns`; raises InputError with the fix.

    `NAME/x:sn` is the config sn of the Hub's NAME/x. Rows whose report has no text are left out (`with_reports`),
    unless `bare`: for who writes reports of images, or counts the missing ones.

    Rows are read from one copy, an Arrow file in `cache_folder` that is mapped into memory: of several processes,
    each of which has to call this, one writes it.
    """
    name, _, config = path.partition(":")
    if Path(path).is_dir():
        files = {split: str(Path(plain_path(path)) / f"{split}.parquet") for split in SPLITS}
        files = {split: file for split, file in files.items() if Path(file).is_file()}
        if not files:
            raise InputError(f"{path} holds no train.parquet; {HOW_TO_BUILD}")
        read_build(path)  # which says where it is damaged
        try:
            for split, file in files.items():
                _check_columns(parquet.read_schema(file), columns, f"split {split} of {path}")
                if not parquet.read_metadata(file).num_rows:  # datasets reads no empty split
                    raise InputError(f"{file} has no rows; delete the file, or build the data set again")
            with one_process_first():
                check_room(path, files)
                dataset = load_dataset("parquet", data_files=files, cache_dir=plain_path(cache_folder(path)))
        except (ArrowInvalid, DatasetGenerationError) as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
                raise error.__cause__ from None
            raise InputError(
                f"{path}: train.parquet or another split is damaged, or has other columns than the others; build the "
                "data set again"
            ) from error
    elif path.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"there is no data set at {path}; {HOW_TO_BUILD}")
    else:
        try:
            with one_process_first():
                dataset = load_dataset(name, config or None)
        except (OSError, ValueError) as error:  # no such folder and not on the Hub, or the Hub is out of reach
            raise InputError(f"{path} is no local folder and could not be loaded from the Hub: {error}") from error
    for split, rows in dataset.items():
        where = f"split {split} of {path}"
        _check_columns(rows.features.arrow_schema, columns, where)
        if not bare and "report" in columns:
            dataset[split] = with_reports(rows, where)
        check_values(dataset[split], tuple(name for name in columns if name != "labels"), where)
    return dataset


def _check_columns(schema: pa.Schema, columns: tuple[str, ...], where: str) -> None:
    """Raises InputError where one of `columns` is missing, or of another kind than `FEATURES` has it."""
    if missing := [name for name in columns if name not in schema.names]:
        raise InputError(f"{where} has no column {', '.join(missing)} (has {schema.names})")
    for name in columns:
        is_kind, expected = kind_of(schema.field(name).type), kind_of(FEATURES.arrow_schema.field(name).type)
        if is_kind not in (expected, "nothing"):
            raise InputError(f"{where}: the column {name} holds {is_kind}, and {expected} must be there")


def kind_of(kind: pa.DataType) -> str:
    """What values of an Arrow type are, in words; types of one kind can stand for each other.

    >>> kind_of(pa.list_(pa.int8(), 14)), kind_of(pa.large_string())
    ('lists of whole numbers', 'text')
    """
    if pa.types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if any(is_list(kind) for is_list in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        inner = kind_of(kind.value_type)
        return f"lists of {inner}" if inner != "nothing" else inner  # empty lists
    if pa.types.is_struct(kind):
        return "encoded images" if {"bytes", "path"} <= {field.name for field in kind} else "records"
    for is_kind, words in KINDS.items():
        if is_kind(kind):
            return words
    return str(kind)


def check_values(rows: Dataset, columns: tuple[str, ...], where: str) -> None:
    """Raises InputError, naming the study, where one of `columns` has a value that no recipe can read.

    That is no study_id, and labels that are not 14 states of 0 to 3 (0.5 s for 200,000 studies), unless there is no
    report that they could be of.
    """
    reports = rows["report"] if "labels" in columns and "report" in rows.column_names else None
    for name in {"study_id", "labels"}.intersection(columns):
        batches = rows.select_columns([name]).with_format("arrow").iter(10_000)
        for place, value in enumerate(chain.from_iterable(batch[name].to_pylist() for batch in batches)):
            if name == "study_id" and value is None:
                raise InputError(f"{where}: row {place} has no study_id, by which a report is found: give it one")
            good = isinstance(value, list) and len(value) == len(CONDITIONS) and STATES.issuperset(value)
            if name == "labels" and not good and (reports is None or has_text(reports[place])):
                study = rows["study_id"][place] if "study_id" in rows.column_names else f"in row {place}"
                raise InputError(
                    f"{where}: the labels of study {study} must be {len(CONDITIONS)} of CheXpert's states (0 blank, 1 "
                    f"positive, 2 negative, 3 uncertain), not {value}: build the data set again"
                )


def read_split(path: str, split: str, columns: tuple[str, ...] = ("report", "images"), bare: bool = False) -> Dataset:
    """One split of `read_dataset(path, columns, bare)`; raises InputError naming the splits that there are."""
    splits = read_dataset(path, columns, bare=True)
    if split not in splits:
        raise InputError(f"{path} has no split {split!r} (has {', '.join(splits)})")
    rows, where = splits[split], f"split {split} of {path}"
    rows = rows if bare or "report" not in columns else with_reports(rows, where)
    check_values(rows, ("labels",) if "labels" in columns and not bare else (), where)
    return rows
