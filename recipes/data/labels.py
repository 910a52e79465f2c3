"""Which labeler judges a run, and a data set's labels from it."""

from collections.abc import Callable

from datasets import Dataset

from recipes.data.schema import check_values, read_build, read_split, with_reports
from recipes.files import InputError
from rewards.labelers import LexicalLabeler

CHEXBERT = "outputs/chexbert"  # where recipes/convert_chexbert.py and train_chexbert.py write by their examples


def load_labeler(name: str) -> Callable:
    """The labeler of that name, a callable from n texts to CheXpert states (n, 14).

    `lexical`; `chexbert`, which is in outputs/chexbert; or `chexbert:MODEL`, a folder or Hub id. Raises InputError on
    another name, and where the CheXbert cannot be loaded.
    """
    if name == "lexical":
        return LexicalLabeler()
    kind, _, model = name.partition(":")
    if kind != "chexbert":
        raise InputError(f"there is no labeler {name!r}; choose lexical, chexbert or chexbert:MODEL")
    from rewards.chexbert import CheXbertLabeler  # needs torch, which the lexical one does not wait for

    try:
        return CheXbertLabeler(model or CHEXBERT)
    except ValueError as error:
        raise InputError(f"labeler {name}: {error}; or set `labeler: lexical` to run without it") from error


def with_labels(rows: Dataset, dataset: str, labeler: Callable) -> Dataset:
    """`rows` whose column `labels` comes from `labeler`: kept where the data set was built with it, else made once."""
    if "labels" in rows.column_names and read_build(dataset).get("labeler") == labeler.name:
        check_values(rows, ("labels",), dataset)
        return rows
    print(f"labelling {len(rows)} reference reports of {dataset} with the labeler {labeler.name}", flush=True)
    labels = labeler(rows["report"]).tolist()
    if "labels" in rows.column_names:
        rows = rows.remove_columns("labels")
    return rows.add_column("labels", labels)


def read_labelled(
    dataset: str, split: str, labeler: Callable, columns: tuple[str, ...] = ("report", "images")
) -> Dataset:
    """`read_split(dataset, split, columns)` `with_labels` of `labeler`.

    In this order, since a column that is added once rows have been left out makes datasets copy all others.
    """
    rows = with_labels(read_split(dataset, split, columns, bare=True), dataset, labeler)
    return with_reports(rows, f"split {split} of {dataset}")
