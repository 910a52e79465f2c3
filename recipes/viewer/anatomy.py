"""Which boxes of a study a report's findings lie in, by the words of the sentence.

Boxes are of anatomical regions, by the names of Chest ImaGenome, which the phantom and LM-RRG use too. A report names
no box: the finding says where it can lie at all, the sentence's side and height which of these regions it means.
"""

import re
from collections.abc import Sequence

# Regions of each finding without their side; the first name stands where the sentence says no height.
PLACES = {
    "Enlarged Cardiomediastinum": ("mediastinum", "upper mediastinum"),
    "Cardiomegaly": ("cardiac silhouette",),
    **dict.fromkeys(
        ("Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax"),
        ("lung", "upper lung zone", "mid lung zone", "lower lung zone", "apical zone", "hilar structures"),
    ),
    "Pleural Effusion": ("costophrenic angle",),
    "Pleural Other": ("lung", "apical zone", "costophrenic angle", "hemidiaphragm"),
    "Fracture": ("clavicle",),
}
HEIGHTS = {  # words of a report, and the regions that they mean
    r"apical|apex|apices|biapical": ("apical zone",),
    r"upper": ("upper lung zone", "upper mediastinum"),
    r"mid|middle|lingula|lingular": ("mid lung zone",),
    r"lower|base|bases|basal|basilar|bibasilar|bibasal|retrocardiac": ("lower lung zone",),
    r"hilum|hila|hilar|perihilar|parahilar": ("hilar structures",),
    r"costophrenic": ("costophrenic angle",),
    r"hemidiaphragm|diaphragmatic": ("hemidiaphragm",),
}


def regions_of(finding: str, sentence: str) -> list[str]:
    """Names of the regions that `finding`, one of FINDINGS, lies in by the words of `sentence`; none for a device.

    >>> regions_of("Pleural Effusion", "There is a small left effusion.")
    ['left costophrenic angle']
    """
    places, words = PLACES.get(finding, ()), sentence.lower()
    if finding == "Fracture" and "clavic" not in words:
        return []  # of a rib: no region has ribs alone
    heights = [
        place
        for pattern, regions in HEIGHTS.items()
        if re.search(rf"\b(?:{pattern})\b", words)
        for place in regions
        if place in places
    ]
    sides = [side for side in ("right", "left") if re.search(rf"\b{side}\b", words)] or ["right", "left"]
    if re.search(r"\bbi(?:lateral|bas|api)|\bboth\b", words):
        sides = ["right", "left"]
    paired = [place for place in heights or places[:1] if place not in PLACES["Cardiomegaly"] and "media" not in place]
    single = [place for place in heights or places[:1] if place not in paired]
    return [*single, *(f"{side} {place}" for place in paired for side in sides)]


def choose_regions(regions: Sequence[str], findings: Sequence[tuple[str, str, list[str]]]) -> list[tuple[str, str]]:
    """A label and the name of each of `regions`: first those that a present or possible finding lies in, with it.

    >>> choose_regions(["left lung", "right lung"], [("Edema", "present", ["Edema on the right."])])
    [('right lung (Edema)', 'right lung'), ('left lung', 'left lung')]
    """
    names = {region: [] for region in regions}
    for name, state, sentences in findings:
        for region in dict.fromkeys(region for sentence in sentences for region in regions_of(name, sentence)):
            if state in ("present", "possible") and region in names:
                names[region].append(name)
    return [(f"{region} ({', '.join(names[region])})", region) for region in regions if names[region]] + [
        (region, region) for region in regions if not names[region]
    ]


def place_findings(
    findings: Sequence[tuple[str, str, list[str]]], boxes: Sequence[dict] | None
) -> list[tuple[str, str, dict]]:
    """Finding, state in words and box of each box that a present or possible finding lies in.

    `findings`: of `list_findings`; `boxes`: of the schema, for the picture that is shown.
    """
    by_region = {box["region"]: box for box in boxes or ()}
    places = {
        (name, region): (name, state, by_region[region])
        for name, state, sentences in findings
        if state in ("present", "possible")
        for sentence in sentences
        for region in regions_of(name, sentence)
        if region in by_region
    }
    return list(places.values())
