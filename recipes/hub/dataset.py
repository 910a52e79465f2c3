"""A built data set as a repository of the Hub: its configs, its card, its push.

The configs are the scenarios of a folder of recipes/build_mimic_rg4.py (`sn`, `sw`, `mn`, `mw`), or `default` for any
other data set; `tlw`, the key sentences that recipes/weigh_tokens.py found; and `discbert`, judged reports.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
import yaml
from datasets import Features, Image, List, Value
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pyarrow import compute, parquet

from recipes.data.privacy import UNKNOWN, is_credentialed, normalise
from recipes.data.schema import FEATURES, HOW_TO_BUILD, SPLITS, read_build
from recipes.data.sources import MIMIC, OPENI, PHANTOM, SOURCES
from recipes.evaluation.references import scenario_folders
from recipes.files import InputError
from recipes.hub.push import open_repository, push_files
from recipes.rg4.judgements import read_judgements
from rewards.scenarios import CATEGORIES

FILES = ("README.md", "*.parquet", "*/*.parquet")  # no build.json, manifest.csv, skipped.csv: they name the machine
TLW = ("study_id", "scenario", "report", "key_spans", "source", "license")
NOTES = {
    "study_id": "one study; a study may be in several configs",
    "subject_id": "splits never share a subject",
    "images": "frontal first, then lateral",
    "views": "PA, AP, LATERAL, ...: one per image",
    "findings": "cleaned section",
    "impression": "cleaned section",
    "comparison": "the studies that the report was compared with, as it says",
    "technique": "how the images were taken, as the report says",
    "age": "years",
    "sex": "F or M",
    "prior_report": "findings and impression of the study before, or null",
    "prior_images": "a frontal image of the study before, or null",
    "report": "the target text",
    "scenario": "s/m: one view or several; n/w: without or with a prior report",
    "labels": "CheXpert states of the report: 0 blank, 1 positive, 2 negative, 3 uncertain",
    "key_spans": "[start, end) characters of the sentences that weigh more (TLW), or null",
    "boxes": "region, x0, y0, x1, y1 in pixels of the first image, or null",
    "source": "where the row comes from",
    "license": "its licence",
    **dict.fromkeys(CATEGORIES, "1: the report has this; 0: it has not"),
}
BUILT_BY = (
    "builder",
    "target",
    "cleaning",
    "sample_unit",
    "labeler",
    "judge",
    "rewriter",
    "guard",
    "max_rounds",
    "seed",
)
OPENI_NOTICE = (
    "Open-i's reports are under CC BY-NC-ND 4.0: keep the repository private, and give nobody else access to these "
    "changed texts"
)
MIMIC_NOTICE = "MIMIC-CXR is credentialed: see that everybody who can read the repository has signed its licence"

Configs = dict[str, dict[str, Path]]  # a Parquet file by config and split


def find_configs(dataset: str | Path, judgements: str | None, scratch: Path) -> Configs:
    """The files of each config that the folder `dataset` has; `tlw` and `discbert` are written to `scratch`.

    `judgements` is a file for `judged.read_judgements`; without it the folder's provenance.parquet, if there is one.
    Raises InputError where there is no built data set, or a file has no rows or is damaged.
    """
    configs: Configs = {}
    for prefix, folder in scenario_folders(str(dataset)).items():
        files = {split: Path(folder) / f"{split}.parquet" for split in SPLITS}
        if files := {split: file for split, file in files.items() if file.is_file()}:
            configs[prefix.rstrip("/") or "default"] = files
    if not configs:
        raise InputError(f"--dataset {dataset} holds no train.parquet and no folder of a scenario; {HOW_TO_BUILD}")
    for files in configs.values():
        for file in files.values():
            try:
                if not parquet.read_metadata(file).num_rows:  # datasets reads no empty split
                    raise InputError(f"{file} has no rows; delete the file, or build the data set again")
            except pyarrow.ArrowInvalid as error:
                raise InputError(f"{file} is damaged; build the data set again") from error
    provenance = Path(dataset) / "provenance.parquet"
    if judgements is None and provenance.is_file():
        judgements = str(provenance)
    return configs | _write_tlw(configs, scratch / "tlw") | _write_discbert(judgements, scratch / "discbert")


def _write_tlw(configs: Configs, folder: Path) -> Configs:
    chunks: dict[str, list[pyarrow.Table]] = {}
    for files in configs.values():
        for split, file in files.items():
            if set(TLW) <= set(parquet.read_schema(file).names):
                rows = parquet.read_table(file, columns=list(TLW))
                rows = rows.filter(compute.is_valid(rows["key_spans"])).select(TLW)
                chunks.setdefault(split, []).extend([rows] if len(rows) else [])
    schema = Features({name: FEATURES[name] for name in TLW}).arrow_schema
    tables = {
        split: pyarrow.concat_tables([one.cast(schema) for one in rows]) for split, rows in chunks.items() if rows
    }
    return _write("tlw", tables, folder)


def _write_discbert(judgements: str | None, folder: Path) -> Configs:
    if judgements is None:
        return {}
    verdicts = read_judgements(judgements)
    columns = {"report": list(verdicts), **dict(zip(CATEGORIES, zip(*verdicts.values(), strict=True), strict=True))}
    schema = Features({"report": Value("string"), **dict.fromkeys(CATEGORIES, Value("int8"))}).arrow_schema
    return _write("discbert", {"train": pyarrow.table(columns, schema=schema)}, folder)


def _write(config: str, tables: dict[str, pyarrow.Table], folder: Path) -> Configs:
    folder.mkdir()
    for split, rows in tables.items():
        parquet.write_table(rows, folder / f"{split}.parquet")
    return {config: {split: folder / f"{split}.parquet" for split in tables}} if tables else {}


def read_column(configs: Configs, name: str) -> set[str]:
    """The values of a text column in all rows; `unknown` for null, and for files of a data set without it."""
    values_of_column: set[str] = set()
    for config, files in configs.items():
        for file in files.values() if config != "discbert" else ():
            has_column = name in parquet.read_schema(file).names
            values = parquet.read_table(file, columns=[name])[name].unique().to_pylist() if has_column else [None]
            values_of_column |= {value or UNKNOWN for value in values}
    return values_of_column


def write_card(configs: Configs, sources: set[str], build: dict, repository: str) -> str:
    """The card, Markdown with the YAML block from which `load_dataset(repository, config)` finds the files."""
    places = {
        config: {split: f"{split}.parquet" if config == "default" else f"{config}/{split}.parquet" for split in files}
        for config, files in configs.items()
    }
    first = next(iter(configs))
    names = [MIMIC.name if is_credentialed(source) else normalise(source) for source in sources]
    licences = [SOURCES[name].hub if name in SOURCES else {"license": "other"} for name in names]
    head = {
        "pretty_name": repository,
        **(licences[0] if all(licence == licences[0] for licence in licences) else {"license": "other"}),
        "task_categories": ["image-to-text"],
        "tags": ["chest-x-ray", "radiology-report-generation", "rrg-recipes"],
        "configs": [
            {
                "config_name": config,
                "data_files": [{"split": split, "path": path} for split, path in files.items()],
                **({"default": True} if config == first else {}),
            }
            for config, files in places.items()
        ],
    }
    columns: dict[tuple[str, str], list[str]] = {}
    for config, files in configs.items():
        for name, kind in Features.from_arrow_schema(parquet.read_schema(next(iter(files.values())))).items():
            columns.setdefault((name, _name_type(kind)), []).append(config)
    notices = ["synthetic phantoms are drawings, not medical data"] if PHANTOM.name in names else []
    notices += [OPENI_NOTICE] if OPENI.name in names else []
    notices += [MIMIC_NOTICE] if MIMIC.name in names else []
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # Markdown: nothing of it is a report's text
    return environment.get_template("dataset_card.md.jinja").render(
        head=yaml.safe_dump(head, sort_keys=False),
        repository=repository,
        sources=sorted(sources),
        licenses=sorted(read_column(configs, "license")),
        notices=notices,
        first=first,
        sizes=[
            (config, split, parquet.read_metadata(file).num_rows)
            for config, files in configs.items()
            for split, file in files.items()
        ],
        columns=columns,
        notes=NOTES,
        built={name: build[name] for name in BUILT_BY if build.get(name) is not None},
    )


def _name_type(feature) -> str:
    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, dict):
        return "object"
    return f"list of {_name_type(feature.feature)}" if isinstance(feature, List) else str(feature.dtype)


def push_dataset(dataset: str | Path, name: str, because: str | None = None, judgements: str | None = None) -> str:
    """Pushes the built data set to the repository `name`, private unless there is a reason; returns the commit's URL.

    Raises InputError where the licence of its rows forbids it (`hub.check_allowed`), and as `hub.push_files` does.
    """
    with TemporaryDirectory() as scratch:
        configs = find_configs(dataset, judgements, Path(scratch))
        sources = read_column(configs, "source") | ({UNKNOWN} if judgements else set())
        retry_command = f"complete it with: python recipes/push_dataset.py --dataset {dataset} --repo {name}"
        retry_command += f" --judgements {judgements}" if judgements else ""
        repository = open_repository(name, "dataset", sources, bool(because), because, retry_command=retry_command)
        if OPENI.name in map(normalise, sources):
            print(f"{name}: {OPENI_NOTICE}")
        if any(map(is_credentialed, sources)) and not because:
            print(f"{name}: {MIMIC_NOTICE}")
        card = Path(scratch) / "README.md"
        card.write_text(write_card(configs, sources, read_build(dataset), repository.name))
        files = {
            f"{'' if config == 'default' else f'{config}/'}{split}.parquet": file
            for config, splits in configs.items()
            for split, file in splits.items()
        }
        return push_files(
            repository, {"README.md": card, **files}, FILES, f"{Path(dataset).name}, built by RRG Recipes"
        )
