"""Which data may leave this machine: one list of free sources, which every guard asks (`private_among`).

Guards are those of pushes and trackers (hub.py) and of endpoints (rg4.py). What is not on the list is private: MIMIC's
data, a hospital's, and data that name no source.
"""

import os
import unicodedata
from collections.abc import Iterable

from recipes.data.sources import OPENI, PHANTOM
from recipes.files import InputError

WHY_PUBLIC = "Reason why these data may be public, which makes a push public; none: the push is private."
UNKNOWN = "unknown"  # the source of data that do not name theirs
FREE = (PHANTOM.name,)  # for everything: drawings and sentences of this project
FREE_FOR_WEIGHTS = (*FREE, OPENI.name)  # its licence allows no changed copies of the reports; a model is none
SENDS_NO_TEXT = ("tensorboard", "codecarbon", "kubeflow")  # trackers: files on this machine, or progress alone
UPLOADS = {  # what makes a tracker send the weights away, and its value where it is not set
    "wandb": ("WANDB_LOG_MODEL", "false"),
    "comet_ml": ("COMET_LOG_ASSETS", "false"),
    "mlflow": ("HF_MLFLOW_LOG_ARTIFACTS", "false"),
    "dagshub": ("HF_DAGSHUB_LOG_ARTIFACTS", "false"),
    "dvclive": ("HF_DVCLIVE_LOG_MODEL", "false"),
    "swanlab": ("SWANLAB_LOG_MODEL", "false"),
    "clearml": ("CLEARML_LOG_MODEL", "true"),
}


def normalise(source: str | None) -> str:
    """The name of a source as names are compared: NFKC, lower case, single spaces; `unknown` where it names nothing.

    >>> normalise(" MIMIC-CXR ")
    'mimic-cxr'
    """
    return " ".join(unicodedata.normalize("NFKC", str(source or "")).casefold().split()) or UNKNOWN


def private_among(sources: Iterable[str | None], weights: bool = False) -> list[str]:
    """The sources that are not known to be free, as they are written, sorted; `unknown` where none is named at all.

    `weights`: of a model trained on the data, not of texts or images. Nothing is free but what the list names.
    """
    free = FREE_FOR_WEIGHTS if weights else FREE
    names = {source if normalise(source) != UNKNOWN else UNKNOWN for source in sources} or {UNKNOWN}
    return sorted(name for name in names if normalise(name) not in free)


def is_credentialed(source: str | None) -> bool:
    """Whether data of `source` are MIMIC's, under PhysioNet's credentialed licence."""
    return normalise(source).startswith("mimic")


def check_trackers(training_args, sources: Iterable[str | None]) -> None:
    """Raises InputError where a tracker would take text, images or weights that are not free off this machine."""
    sources, trackers = list(sources), training_args.report_to
    space = (
        training_args.trackio_space_id or os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
    )
    private = private_among(sources) if getattr(training_args, "log_completions", False) else []
    if private and space and "trackio" in trackers:
        raise InputError(
            f"Trackio would put prompts and reports into the Space {space}: set --log_completions false, or leave "
            "--trackio_space_id (TRACKIO_SPACE_ID, TRACKIO_SERVER_URL) out, and they stay on this machine"
        )
    remote = [name for name in trackers if name not in (*SENDS_NO_TEXT, "trackio")]
    if private and remote:
        raise InputError(
            f"--report_to {remote[0]} with log_completions would send X-rays and reports of the source {private[0]} "
            "away: set --log_completions false, or --report_to none or tensorboard, and they stay on this machine"
        )
    for name in remote if private_among(sources, weights=True) else ():
        variable, default = UPLOADS.get(name, ("", "false"))
        if os.environ.get(variable, default).lower() not in ("", "0", "false", "no", "off"):
            raise InputError(
                f"--report_to {name} would upload a model trained on {private_among(sources, weights=True)[0]}: set "
                f"{variable}=false in the environment, or --report_to none or tensorboard"
            )
