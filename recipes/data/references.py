"""Which labeler judges a run, and reference labels that come from the same one."""

from collections.abc import Callable

from datasets import Dataset

from recipes.cli import InputError
from recipes.data.schema import read_build
from rewards.labelers import LexicalLabeler


def load_labeler(name: str) -> Callable:
    """The labeler of that name (`lexical`, or `chexbert`), a callable from n texts to CheXpert states (n, 14)."""
    if name == "lexical":
        return LexicalLabeler()
    if name == "chexbert":
        raise InputError("labeler chexbert is not part of this version yet; set `labeler: lexical` to run without it")
    raise InputError(f"there is no labeler {name!r}; choose lexical or chexbert")


def with_labels(rows: Dataset, dataset: str, labeler: Callable) -> Dataset:
    """`rows` whose column `labels` comes from `labeler`: kept where the data set was built with it, else made once."""
    if "labels" in rows.column_names and read_build(dataset).get("labeler") == labeler.name:
        return rows
    print(f"labelling {len(rows)} reference reports of {dataset} with the labeler {labeler.name}", flush=True)
    labels = labeler(rows["report"]).tolist()
    if "labels" in rows.column_names:
        rows = rows.remove_columns("labels")
    return rows.add_column("labels", labels)
