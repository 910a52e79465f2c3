"""Measures rewards.labelers.LexicalLabeler against human labels, published labels, RadGraph evidence, and the clock.

    python tests/bench/labeler.py

Reads $RRG_DATA (default: the folder ../shared/data beside the project root) and the Open-i reports inside the
installed torchxrayvision; writes outputs/bench/labeler/results.json. A figure is not a test: exits 0 whether or not
the bars hold.
"""

import csv
import importlib.util
import json
import os
import tarfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from recipes.cli import report, run
from recipes.files import InputError
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, CheXpertState

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("RRG_DATA", ROOT.parent / "shared" / "data"))
GOLD_COLUMNS = {  # condition -> column of the Open-i gold
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Pleural Effusion": "Effusion",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
}
# "air_space_opacity" is left out: its aliases are mostly consolidation and pneumonia, which have labels of their own.
RADLABELS = {
    "Enlarged Cardiomediastinum": ("enlarged_cardiomediastinum",),
    "Cardiomegaly": ("cardiomegaly",),
    "Lung Opacity": ("lung_opacity", "ground_glass_opacity", "infiltration", "interstitial_thickening"),
    "Lung Lesion": ("lung_nodule_or_mass", "lung_lesion"),
    "Edema": ("pulmonary_edema", "pulmonary_congestion_pulmonary_venous_congestion"),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis", "lobar_segmental_collapse", "whole_lung_or_majority_collapse"),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural_effusion",),
    "Pleural Other": ("pleural_thickening", "pleural_other"),
    "Fracture": ("fracture_generic", "acute_rib_fracture", "non_acute_rib_fracture"),
    "Support Devices": (
        "endotracheal_tube",
        "enteric_tube",
        "central_venous_catheter",
        "intercostal_drain",
        "tracheostomy_tube",
        "pacemaker_electronic_cardiac_device_or_wires",
        "implantable_electronic_device",
        "support_devices_generic",
    ),
}
RADLABELS_STATES = {  # strongest last
    "definitely absent": CheXpertState.NEGATIVE,
    "uncertain": CheXpertState.UNCERTAIN,
    "definitely present": CheXpertState.POSITIVE,
}


def _open(path: Path):
    if not path.is_file():
        raise InputError(f"{path} is missing; set RRG_DATA to the folder that holds {path.parent.name}/")
    return path.open(newline="", encoding="utf-8")


def openi_texts() -> dict[str, str]:
    """Findings and impression of the 3,955 Open-i reports by name ("CXR1"), from the torchxrayvision wheel."""
    found = importlib.util.find_spec("torchxrayvision")
    if found is None:
        raise InputError("the Open-i reports come with torchxrayvision; install it: pip install torchxrayvision")
    texts = {}
    with tarfile.open(Path(found.origin).parent / "data" / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                tree = ElementTree.parse(archive.extractfile(member))
                sections = {node.get("Label"): node.text or "" for node in tree.iter("AbstractText")}
                text = "\n\n".join(filter(None, (sections.get("FINDINGS"), sections.get("IMPRESSION"))))
                texts[f"CXR{Path(member.name).stem}"] = text
    return texts


def _scores(counts: Counter) -> dict[str, float]:
    hits, extra, missed = counts["tp"], counts["fp"], counts["fn"]
    return {
        "precision": hits / max(hits + extra, 1),
        "recall": hits / max(hits + missed, 1),
        "f1": 2 * hits / max(2 * hits + extra + missed, 1),
        "gold": hits + missed,
    }


def _gold_rows() -> list[dict[str, str]]:
    with _open(DATA / "openi_gold" / "dev.csv") as file:
        return list(csv.DictReader(file))


def openi_gold(labeler: LexicalLabeler, texts: dict[str, str]) -> dict[str, dict]:
    """Scores per condition and over all, for uncertain as positive and as negative.

    The bar is on uncertain as negative: the gold is what human indexers assigned, and they leave out what a report
    only suspects (`uncertain_in_gold` is the share of our uncertain states that they did assign).
    """
    rows = _gold_rows()
    states = labeler([texts[row["filename"]] for row in rows])
    scores = {}
    for name, positive in (
        ("uncertain as positive", (CheXpertState.POSITIVE, CheXpertState.UNCERTAIN)),
        ("uncertain as negative", (CheXpertState.POSITIVE,)),
    ):
        counts = {condition: Counter() for condition in (*GOLD_COLUMNS, "all")}
        for row, given in zip(rows, states, strict=True):
            for condition, column in GOLD_COLUMNS.items():
                ours, gold = given[CONDITIONS.index(condition)] in positive, row[column] == "1"
                kind = {(True, True): "tp", (True, False): "fp", (False, True): "fn"}.get((ours, gold), "tn")
                counts[condition][kind] += 1
                counts["all"][kind] += 1
        scores[name] = {condition: _scores(count) for condition, count in counts.items()}
    return scores


def uncertain_in_gold(labeler: LexicalLabeler, texts: dict[str, str]) -> float:
    """Share of the uncertain states of the 7 conditions that the human indexers assigned."""
    rows = _gold_rows()
    states = labeler([texts[row["filename"]] for row in rows])
    assigned = [
        row[column] == "1"
        for row, given in zip(rows, states, strict=True)
        for condition, column in GOLD_COLUMNS.items()
        if given[CONDITIONS.index(condition)] == CheXpertState.UNCERTAIN
    ]
    return sum(assigned) / max(len(assigned), 1)


def sample_rows(labeler: LexicalLabeler) -> tuple[int, int]:
    """How many of the published cells (4 reports, 14 conditions, two publications) match, and of how many."""
    encoding = {"1.0": CheXpertState.POSITIVE, "0.0": CheXpertState.NEGATIVE, "-1.0": CheXpertState.UNCERTAIN}
    equal = cells = 0
    for folder, column in (("chexpert_labeler", "Reports"), ("chexbert_sample", "Report Impression")):
        with _open(DATA / folder / "labeled_reports.csv") as file:
            for row in csv.DictReader(file):
                expected = [encoding.get(row[condition], CheXpertState.BLANK) for condition in CONDITIONS]
                equal += int((labeler([row[column]])[0] == expected).sum())
                cells += len(expected)
    return equal, cells


def radlabels(labeler: LexicalLabeler) -> dict[str, dict]:
    """Per condition, over the reports where both speak: same state, and same polarity (absent against the rest)."""
    with _open(DATA / "radlabels" / "dev.json") as file:
        reports = json.load(file).values()
    states = labeler([item["report"] for item in reports])
    order = list(RADLABELS_STATES.values())
    counts = {condition: Counter() for condition in (*RADLABELS, "all")}
    for item, given in zip(reports, states, strict=True):
        for condition, names in RADLABELS.items():
            ours = CheXpertState(given[CONDITIONS.index(condition)])
            theirs = [RADLABELS_STATES[item["labels"][name]] for name in names if name in item["labels"]]
            theirs = max(theirs, key=order.index, default=CheXpertState.BLANK)
            for count in (counts[condition], counts["all"]):
                if ours == CheXpertState.BLANK or theirs == CheXpertState.BLANK:
                    count["only_ours"] += ours != CheXpertState.BLANK
                    count["only_radlabels"] += theirs != CheXpertState.BLANK
                else:
                    count["both"] += 1
                    count["same_state"] += ours == theirs
                    negative = CheXpertState.NEGATIVE
                    count["same_polarity"] += (ours == negative) == (theirs == negative)
                    certain = CheXpertState.UNCERTAIN not in (ours, theirs)
                    count["both_certain"] += certain
                    count["same_polarity_certain"] += certain and ours == theirs
    return {
        condition: {
            "both_speak": count["both"],
            "same_state": count["same_state"] / max(count["both"], 1),
            "same_polarity": count["same_polarity"] / max(count["both"], 1),
            "both_certain": count["both_certain"],
            "same_polarity_certain": count["same_polarity_certain"] / max(count["both_certain"], 1),
            "only_ours": count["only_ours"],
            "only_radlabels": count["only_radlabels"],
        }
        for condition, count in counts.items()
    }


def reports_per_second(labeler: LexicalLabeler, texts: dict[str, str], passes: int = 5) -> float:
    """Distinct Open-i reports labelled per second of this process's time, median of `passes`."""
    distinct = list(dict.fromkeys(texts.values()))
    rates = []
    for _ in range(passes):
        start = time.process_time()
        labeler(distinct)
        rates.append(len(distinct) / (time.process_time() - start))
    return sorted(rates)[passes // 2]


def _print(title: str, rows: dict[str, dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title, *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)


def main() -> None:
    labeler = LexicalLabeler()
    texts = openi_texts()
    gold = openi_gold(labeler, texts)
    equal, cells = sample_rows(labeler)
    evidence = radlabels(labeler)
    rate = reports_per_second(labeler, texts)
    for name, rows in gold.items():
        _print(f"Open-i gold, {name}", rows)
    _print("RadGraph-XL evidence", evidence)
    f1 = gold["uncertain as negative"]["all"]["f1"]
    share = uncertain_in_gold(labeler, texts)
    print(f"uncertain states that the human indexers assigned: {share:.0%}")
    polarity = evidence["all"]["same_polarity"]
    report(
        ROOT / "outputs" / "bench" / "labeler",
        {
            "labeler": labeler.name,
            "openi_gold": gold,
            "uncertain_in_gold": share,
            "radlabels": evidence,
            "reports_per_second": rate,
        },
        [
            {
                "name": "Open-i gold micro-F1, 7 labels, uncertain as negative",
                "value": f1,
                "bar": ">= 0.93",
                "holds": f1 >= 0.93,
            },
            {"name": "published sample cells equal", "value": equal, "bar": str(cells), "holds": equal == cells},
            {"name": "RadGraph polarity", "value": polarity, "bar": ">= 0.996", "holds": polarity >= 0.996},
            {"name": "distinct reports per second", "value": rate, "bar": ">= 8000", "holds": rate >= 8000},
        ],
    )


if __name__ == "__main__":
    run(main)
