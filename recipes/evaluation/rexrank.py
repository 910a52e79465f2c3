"""ReXrank's board: its seven metrics by its names, its files read and written, and figures of learned metrics.

The board scores "Findings: ... Impression: ..." of each study against the prediction, study by study
(CXR-Report-Metric 9c9ecad), and ranks by 1 / RadCliQ-v1 of the mean, which 50 of its published rows show. A submission
is its own file of studies with `model_prediction` added to each.
"""

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from recipes.evaluation.bootstrap import Part, means_part, ratio
from recipes.evaluation.figures import BOARD, BOARD_METRICS, STAND_IN
from recipes.evaluation.prediction_files import SECTIONS, read_text
from recipes.evaluation.references import Truth, number_studies
from recipes.files import InputError
from rewards.completions import parse_completion
from rewards.radcliq import radcliq_score
from rewards.temporal import temporal_f1

NAMES = dict(zip(("bleu", "bertscore", "semb", "radgraph"), BOARD_METRICS[1:5], strict=True))  # ours: the board's


def board_part(values: dict[str, np.ndarray], stand_ins: Collection[str]) -> Part:
    """The board's five figures that RadCliQ is made of, with it.

    `values`: `bleu` (BLEU-2), `bertscore`, `semb` and `radgraph` (mean of entity and relation F1) of n reports, (n,)
    each; `stand_ins`: those that are no published model's, whose figures, and RadCliQ's, are named so. One report has
    no 1 / RadCliQ of its own that could be averaged; in tests of pairs -RadCliQ takes its place.
    """
    radcliq = radcliq_score(values["radgraph"], values["bertscore"], values["semb"], values["bleu"], "v1")
    means = means_part({BOARD + title + STAND_IN * (name in stand_ins): values[name] for name, title in NAMES.items()})
    first = BOARD + BOARD_METRICS[0] + STAND_IN * bool(stand_ins)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {first: ratio(sums[..., -1], sums[..., 0]), **means.figures(sums[..., 1:])}

    return Part(
        np.concatenate([radcliq[:, None], means.statistics], axis=1), figures, {first: -radcliq, **means.reports}
    )


def learned_parts(system: str, reports: list[str], references: list[str], metrics) -> list[Part]:
    """Temporal F1, and CREPE, RaTEScore and the judges that `metrics` (scores.Metrics) has, of a system's reports."""
    parts, values = [], {"temporal_f1": temporal_f1(reports, references)}
    if metrics.crepe:
        values["crepe"] = metrics.crepe(reports, references)
    if metrics.ratescore:
        values["ratescore"] = metrics.ratescore(reports, references)
    parts.append(means_part(values))
    if metrics.judges:
        parts += metrics.judges.parts(system, reports, references)
    if metrics.rexrank:
        renamed = {"ratescore": BOARD + "RaTEScore", "green": BOARD + "GREEN"}
        parts += [part for original in parts for part in _renamed(original, renamed)]
    return parts


def _renamed(part: Part, names: dict[str, str]) -> list[Part]:
    """Those figures of a part that `names` knows, under their other names; nothing where there are none."""
    if not names.keys() & part.figures(part.statistics[:1]).keys():
        return []

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {names[name]: values for name, values in part.figures(sums).items() if name in names}

    return [
        Part(part.statistics, figures, {names[name]: values for name, values in part.reports.items() if name in names})
    ]


def read_board(file: str | Path) -> dict[str, dict] | None:
    """The studies of a file of the board, by id and in its order; None where the file is another kind.

    The file is a JSON object of studies with `section_findings` and `section_impression`; NaN may stand in it.
    """
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        return None
    studies = content.values() if isinstance(content, dict) else ()
    if not studies or not all(isinstance(study, dict) and set(SECTIONS) <= set(study) for study in studies):
        return None
    return content


def board_reference(study: dict) -> str:
    """The reference that the board scores: "Findings: ... Impression: ...", with None for a section that is absent."""
    findings, impression = (study[name] for name in SECTIONS)
    findings, impression = (
        None if text is None or (isinstance(text, float) and math.isnan(text)) else text
        for text in (findings, impression)
    )
    return f"Findings: {findings} Impression: {impression}"


def board_truth(file: str | Path, board: dict[str, dict], labeler: Callable) -> Truth:
    """The board's references, labelled. A note counts the sections that are absent, which it scores as "None"."""
    ids, reports = list(board), [board_reference(study) for study in board.values()]
    absent = [
        study for study, text in zip(ids, reports, strict=True) if "Findings: None" in text or text.endswith(": None")
    ]
    notes = []
    if absent:
        notes.append(
            f"{len(absent)} of {len(ids)} studies of {file} lack a section, {absent[0]!r} first: their references say "
            "None there, as on the board"
        )
    print(f"labelling {len(ids)} reference reports of {file} with the labeler {labeler.name}", flush=True)
    return Truth(ids, reports, np.asarray(labeler(reports)), [None] * len(ids), number_studies(ids), notes=notes)


def write_submissions(folder: Path, references: str | None, systems: dict, truth: Truth) -> list[str]:
    """Writes submission_NAME.json of each model, the board's file with `model_prediction` in each study, and returns
    the names; nothing where the references are no file of the board. Of several samples of a study the first is taken.

    Keys, order and NaN stay as the board has them; studies that were not scored are left out.
    """
    board = read_board(references) if references else None
    written = []
    for system in systems.values() if board else ():
        if system.kind != "model":
            continue
        texts: dict[str, str] = {}
        for row, completion in zip(system.rows, system.completions, strict=True):
            texts.setdefault(truth.ids[row], parse_completion(completion).report)
        studies = {
            study: {**content, "model_prediction": texts[study]} for study, content in board.items() if study in texts
        }
        name = f"submission_{system.name}.json"
        (folder / name).write_text(json.dumps(studies, indent=4) + "\n")
        written.append(name)
    return written
