"""Builds a data set from a lab's own table of studies and folder of images, in the project's schema.

    python recipes/build_from_table.py --table studies.csv --images images --source "St. Elsewhere CXR" \
        --license "internal, not to be shared" --out outputs/data/mine

The table is a CSV, TSV, sheet, JSON, JSONL or Parquet file, conversations (LLaVA, `messages`), R2Gen's
annotation.json, or an imagefolder with its metadata. Columns are known by their usual names, or named:

    python recipes/build_from_table.py --table befunde.xlsx --images "scans/{study_id}/*" \
        --columns report=Befund study_id=AccNr subject_id=Patient date=Datum --date_format %d.%m.%Y ...

`--check` shows three studies and the counts, and writes nothing. `--out` then holds train, validation and
test.parquet, build.json (arguments, counts), and skipped.csv: what was left out, and why.
"""

import json
from dataclasses import dataclass, field

from recipes.cli import parse, run
from recipes.data.columns import TableReader, match_columns
from recipes.data.labels import load_labeler
from recipes.data.studies import StudyArguments, build
from recipes.data.tables import read_records
from recipes.files import InputError


def argument(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class BuildArguments:
    """Arguments of the builder."""

    table: str = field(metadata={"help": "Table of the studies: a file, or a folder with metadata.csv or .jsonl."})
    images: str = field(metadata={"help": 'Folder of the images, or a pattern such as "images/{study_id}/*".'})
    source: str = field(metadata={"help": "Name of where the data come from, as a row and a card will say it."})
    license: str = field(metadata={"help": "Licence or terms of the data, as a row and a card will say it."})
    out: str = field(metadata={"help": "Folder to write; an earlier build there is replaced."})
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
    matched = match_columns((name for record in records[:1000] for name in record.values), requested)
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


def show(rows: list[dict]) -> None:
    """Prints three studies, so that a wrong column is seen before anything is written."""
    for row in rows:
        print(
            json.dumps({name: value for name, value in row.items() if value is not None}, indent=2, ensure_ascii=False)
        )


if __name__ == "__main__":
    run(main)
