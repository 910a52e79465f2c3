"""Builds a data set from a lab's own table of studies and folder of images, in the project's schema.

    python recipes/build_from_table.py --table studies.csv --images images --source "St. Elsewhere CXR" \
        --license "internal, not to be shared" --out outputs/data/mine

The table is a CSV, TSV, sheet, JSON, JSONL or Parquet file, conversations (LLaVA, `messages`), R2Gen's or LLM-RG4's
annotation.json, a folder of ViLMedic's, or an imagefolder with its metadata. Columns are known by their usual names,
or named:

    python recipes/build_from_table.py --table befunde.xlsx --images "scans/{study_id}/*" \
        --columns report=Befund study_id=AccNr subject_id=Patient date=Datum --date_format %d.%m.%Y ...

Reports and images in two tables, such as Kaggle's of Open-i:

    python recipes/build_from_table.py --table indiana_reports.csv --image_table indiana_projections.csv \
        --images images_normalized --columns study_id=uid subject_id=uid --source openi --license "CC BY-NC-ND 4.0" ...

`--check` shows three studies and the counts, and writes nothing. `--out` then holds train, validation and
test.parquet, build.json (arguments, counts), and skipped.csv: what was left out, and why.
"""

import json
from dataclasses import dataclass, field
from typing import ClassVar

from recipes.cli import parse, run
from recipes.data.columns import TableReader, join_images, match_columns
from recipes.data.labels import load_labeler
from recipes.data.studies import StudyArguments, build
from recipes.data.tables import Record, read_records
from recipes.files import InputError


def argument(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    marker: ClassVar[str] = "build.json"

    table: str = field(metadata={"help": "Table of the studies: a file, or a folder with metadata.csv or .jsonl."})
    images: str = field(metadata={"help": 'Folder of the images, or a pattern such as "images/{study_id}/*".'})
    source: str = field(metadata={"help": "Name of where the data come from, as a row and a card will say it."})
    license: str = field(metadata={"help": "Licence or terms of the data, as a row and a card will say it."})
    out: str = field(metadata={"help": "Folder to write; an earlier build there is replaced."})
    image_table: str | None = argument(None, "Second table, with a row for each image and its study's id.")
    columns: list[str] = field(default_factory=list, metadata={"help": "Columns by meaning, such as report=Befund."})
    reports: str | None = argument(None, "Folder of the text files that the column report_file names.")
    encoding: str | None = argument(None, "Encoding of a text table without a byte-order mark; default UTF-8.")
    date_format: str | None = argument(None, "Form of the dates where it is not ISO's, such as %%d/%%m/%%Y.")
    subjects: bool = argument(True, "Subjects are named by the table; --no_subjects takes each study as one.")
    fractions: list[float] = field(
        default_factory=lambda: [0.1, 0.1], metadata={"help": "Shares of the subjects to validate and to test on."}
    )
    split_by_subject: bool = argument(False, "Move of a subject in two splits to the split of its first study.")
    seed: int = argument(0, "Seed of the split where the table names none.")


def main() -> None:
    arguments, study_args = parse(BuildArguments, StudyArguments)
    if len(arguments.fractions) != 2 or min(arguments.fractions) < 0 or sum(arguments.fractions) >= 1:
        raise InputError("--fractions takes two shares, to validate and to test on, that leave some to train on")
    requested = dict(pair.partition("=")[::2] for pair in arguments.columns)
    labeler = load_labeler(study_args.labeler)

    # Records, columns, studies
    records = read_records(arguments.table, arguments.encoding)
    records = records[: study_args.limit] if study_args.limit else records
    if arguments.image_table:
        image_records = read_records(arguments.image_table, arguments.encoding)
        matched = match_two_tables(records, image_records, requested, arguments)
    else:
        matched = match_columns(names_of(records), requested)
    if arguments.reports and "report_file" not in matched:
        raise InputError(
            f"--reports is a folder of files that a column names, and {arguments.table} has no such column: name it, "
            "as in --columns report_file=Datei"
        )
    print("columns:", ", ".join(f"{meaning} = {column}" for meaning, column in matched.items()), flush=True)
    reader = TableReader(matched, arguments.images, arguments.reports, arguments.date_format)
    studies, skipped = reader.studies(records, arguments.subjects)

    # Splits, priors, images, labels, writing
    split = {name: getattr(arguments, name) for name in ("fractions", "split_by_subject", "seed")}
    settings = study_args.settings(arguments.source, arguments.license, labeler.name, **split)
    note = {
        "table": arguments.table,
        "columns": matched,
        "reading": dict(reader.notes),
        "subjects": arguments.subjects,
    }
    sizes = build(studies, arguments.out, settings, note, skipped, labeler, show, study_args.check)
    total = "would be written" if study_args.check else "written"
    print(f"{arguments.out}: {sizes} {total}; {len(skipped)} entries left out", flush=True)
    for reason, number in sorted(dict(reader.notes).items()):
        print(f"  {number} {reason}", flush=True)


def names_of(records: list[Record]) -> list[str]:
    """Names of the columns of the first thousand records."""
    return list(dict.fromkeys(str(name) for record in records[:1000] for name in record.values))


def match_two_tables(
    records: list[Record], image_records: list[Record], requested: dict[str, str], arguments: BuildArguments
) -> dict[str, str]:
    """Gives `records` the images of --image_table and returns their columns by meaning, as `match_columns` does.

    A column of `requested` that only the second table has is meant there. Raises InputError where either table names
    no study, or the second one no image.
    """
    names, image_names = names_of(records), names_of(image_records)
    theirs = {meaning: column for meaning, column in requested.items() if column in image_names}
    columns = match_columns(image_names, theirs)
    matched = match_columns(
        names, {key: name for key, name in requested.items() if name in names or key not in theirs}
    )
    for table, known, needed in (
        (arguments.table, matched, ("study_id",)),
        (arguments.image_table, columns, ("study_id", "images")),
    ):
        if lacking := [meaning for meaning in needed if meaning not in known]:
            raise InputError(
                f"{table} has no column for {lacking[0]}, which joins the two tables: name it in --columns"
            )
    lost = join_images(records, matched["study_id"], image_records, columns)
    print(f"{arguments.image_table}: {len(image_records)} images, {lost} of no study in {arguments.table}", flush=True)
    return matched | {"images": "images", "views": "views"}


def show(rows: list[dict]) -> None:
    """Prints three studies, so that a wrong column is seen before anything is written."""
    for row in rows:
        print(
            json.dumps({name: value for name, value in row.items() if value is not None}, indent=2, ensure_ascii=False)
        )


if __name__ == "__main__":
    run(main)
