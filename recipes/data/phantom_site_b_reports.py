"""The words of the phantom's second site: no finding, denial or normal sentence is put as at the first site."""

from collections.abc import Sequence

import numpy as np

from recipes.data.phantom import RESOLVING, STRENGTH, STYLES, Sign, Study, Wording, finding_sentence, make_study
from rewards.labels import CheXpertState

REGIONS = {
    "Foreign material": ("Support Devices",),
    "Skeleton": ("Fracture",),
    "Pleural spaces": ("Pneumothorax", "Pleural Other", "Pleural Effusion"),
    "Parenchyma": ("Edema", "Atelectasis", "Lung Lesion", "Lung Opacity", "Pneumonia", "Consolidation"),
    "Central organs": ("Enlarged Cardiomediastinum", "Cardiomegaly"),
}
WHOLE_SENTENCES = {  # as phantom.WHOLE_SENTENCES
    ("Enlarged Cardiomediastinum", CheXpertState.POSITIVE): (
        "Mediastinal widening.",
        "Mediastinal enlargement is evident.",
        "The upper mediastinum looks too wide.",
    ),
    ("Enlarged Cardiomediastinum", CheXpertState.UNCERTAIN): (
        "Mediastinal widening is suspected.",
        "Questionable mediastinal enlargement.",
        "Suspicion of mediastinal widening.",
    ),
    ("Enlarged Cardiomediastinum", CheXpertState.NEGATIVE): (
        "Without mediastinal widening.",
        "Normal mediastinal width.",
        "The mediastinal outline is within normal limits.",
    ),
    ("Cardiomegaly", CheXpertState.POSITIVE): (
        "Cardiac enlargement.",
        "The cardiac shadow is dilated.",
        "Globular heart.",
    ),
    ("Cardiomegaly", CheXpertState.UNCERTAIN): (
        "Borderline heart size.",
        "Questionable cardiac enlargement.",
        "The cardiac shadow is borderline.",
    ),
    ("Cardiomegaly", CheXpertState.NEGATIVE): (
        "Without cardiac enlargement.",
        "Normal cardiac shadow.",
        "The cardiac outline is unremarkable.",
    ),
}
ABSENT = {
    "Lung Opacity": ("infiltrate", "airspace disease"),
    "Lung Lesion": ("lung lesion", "tumor"),
    "Edema": ("fluid overload", "interstitial oedema"),
    "Consolidation": ("consolidative change", "consolidated lobe"),
    "Pneumonia": ("infection", "bronchopneumonia"),
    "Atelectasis": ("collapse", "atelectatic change"),
    "Pneumothorax": ("pleural air",),
    "Pleural Effusion": ("pleural fluid", "hydrothorax"),
    "Pleural Other": ("pleural plaque", "pleural scarring"),
    "Fracture": ("fractured rib",),
    "Support Devices": ("indwelling catheter", "tubing"),
}
FRAMES = {
    ("terse", CheXpertState.POSITIVE): ("{bare}.", "evidence of {bare}."),
    ("terse", CheXpertState.UNCERTAIN): ("probable {bare}.", "suspicion of {bare}.", "equivocal for {bare}."),
    ("prose", CheXpertState.POSITIVE): ("one sees {noun}.", "{noun} {is_} apparent.", "the film shows {noun}."),
    ("prose", CheXpertState.UNCERTAIN): ("{noun} {is_} suspected.", "there might be {noun}.", "perhaps {noun}."),
    ("mimic", CheXpertState.POSITIVE): (
        "{noun} {is_} evident.",
        "note is made of {noun}.",
        "{noun} {is_} identified.",
    ),
    ("mimic", CheXpertState.UNCERTAIN): (
        "appearances could reflect {noun}.",
        "{noun} {is_} suspected.",
        "question of {noun}.",
    ),
}
DENIALS = ("negative for {}.", "without {}.", "neither {} nor {}.", "absence of {}.")
NOTHING = ("Unremarkable radiograph.", "The film is within normal limits.")
INDICATIONS = (
    "Dyspnea on exertion.",
    "Hemoptysis.",
    "Night sweats.",
    "Postoperative day two.",
    "Syncope.",
    "Palpitations.",
    "Transfer from another ward.",
    "Pleuritic pain.",
)
CONDITIONS_OF_HISTORY = (
    "atrial fibrillation",
    "cirrhosis",
    "rheumatoid arthritis",
    "a recent stroke",
    "long-term dialysis",
    "a hip replacement",
    "no illness that is on file",
)


def _noun(name: str, sign: Sign, device: str, rng: np.random.Generator) -> tuple[str, bool, bool]:
    """As phantom.py's: a noun phrase, whether it takes an article, whether it is a plural."""
    side, zone = sign.side, {"upper": "upper", "mid": "middle"}.get(sign.zone, "lower")
    lobe = f"{side} {'upper' if sign.zone == 'upper' else 'lower'} lobe"
    size = {"small": "trace", "moderate": "medium-sized", "large": "extensive"}[sign.size]
    plural = False
    if name == "Lung Lesion" and sign.zone == "retrocardiac":
        choices = ("retrocardiac lung lesion", "lobulated retrocardiac lung lesion")
    elif name == "Lung Lesion":
        kind = "tumor" if sign.size == "large" else "lung lesion"
        choices = (f"lobulated {kind} of the {side} {zone} zone", f"{kind} projected over the {side} {zone} zone")
    elif name == "Pleural Effusion":
        side = "bilateral" if side == "bilateral" else f"{side}-sided"
        where = " of the posterior recess" if sign.size == "small" else ""
        choices = (f"{size} {side} pleural fluid{where}", f"{size} {side} hydrothorax{where}")
    else:
        choices = {
            "Lung Opacity": (
                f"ground glass infiltrate of the {side} {zone} zone",
                f"infiltrate at the {side} {zone} zone",
            ),
            "Edema": ("fluid overload", "interstitial oedema", "congestive heart failure"),
            "Consolidation": (f"consolidated {lobe}", f"wedge-shaped consolidative process of the {lobe}"),
            "Pneumonia": (f"bronchopneumonia of the {side} {zone} zone", f"infection of the {side} {zone} zone"),
            "Atelectasis": (f"band of collapse at the {side} base", f"atelectatic band of the {side} base"),
            "Pneumothorax": (f"{size} {side}-sided pleural air", f"air in the {side} pleural space"),
            "Pleural Other": (f"pleural plaques along the {side} chest wall", f"{side} pleural plaques"),
            "Fracture": (f"fractured {side} rib", f"{side}-sided costal fracture"),
            "Support Devices": {
                "pacemaker": (f"{side} pectoral generator", f"{side}-sided defibrillator"),
                "central venous catheter": (f"{side} subclavian line", f"{side} arm picc"),
                "endotracheal tube": ("tracheal tube", "tube in the airway"),
                "chest tube": (f"{side} thoracic drain", f"{side}-sided pigtail drain"),
            }[device],
        }[name]
        plural = name == "Pleural Other"
    uncounted = name in ("Edema", "Pneumonia", "Pneumothorax", "Pleural Effusion")
    return str(rng.choice(choices)), not plural and not uncounted, plural


WORDING = Wording(WHOLE_SENTENCES, FRAMES, _noun)


def _denials(names: list[str], rng: np.random.Generator) -> list[str]:
    """Sentences that deny `names`, at most four in one."""
    sentences = []
    while names:
        group, names = names[:4], names[4:]
        nouns = [str(rng.choice(ABSENT[name])) for name in group]
        denial = DENIALS[rng.integers(len(DENIALS))]
        if denial.count("{}") == 2 and len(nouns) == 2:
            text = denial.format(*nouns)
        else:
            listed = ", ".join(nouns[:-1]) + (", or " if len(nouns) > 2 else " or ") + nouns[-1]
            text = (denial if denial.count("{}") == 1 else DENIALS[0]).format(nouns[0] if len(nouns) == 1 else listed)
        sentences.append(text[0].upper() + text[1:])
    return sentences


def write_report(
    states: Sequence[int] | Study,
    rng: np.random.Generator,
    style: str | None = None,
    prior: Study | None = None,
    views: int = 1,
) -> str:
    """As `phantom.write_report`, in the second site's words and order: devices and bones first, the heart last."""
    study = states if isinstance(states, Study) else make_study(states, rng)
    style = str(rng.choice(STYLES)) if style is None else style
    if style not in STYLES:
        raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}")

    def present(name: str) -> str:
        change = ""
        if prior is not None and rng.random() < 0.8:
            change = "recently developed" if prior.state(name) not in STRENGTH else "persistent"
            if change == "persistent" and study.state(name) == CheXpertState.UNCERTAIN:
                change = ""
        return finding_sentence(name, study, rng, style, change, WORDING)

    def absent(names: list[str]) -> list[str]:
        organs = [name for name in names if (name, CheXpertState.NEGATIVE) in WHOLE_SENTENCES]
        resolved = [name for name in names if name in RESOLVING and prior and prior.state(name) in STRENGTH]
        sentences = [f"Interval disappearance of {ABSENT[name][0]}." for name in resolved]
        sentences += _denials([name for name in names if name not in organs + resolved], rng)
        return sentences + [str(rng.choice(WHOLE_SENTENCES[name, CheXpertState.NEGATIVE])) for name in organs]

    order = [name for names in REGIONS.values() for name in names]
    visible = [name for name in order if study.state(name) in STRENGTH]
    denied = [name for name in order if study.state(name) == CheXpertState.NEGATIVE]
    sentences = ["Two projections of the thorax."] if style == "mimic" and views > 1 else []
    if style == "systematic":
        for region, names in REGIONS.items():
            part = absent([name for name in names if name in denied])
            part += [present(name) for name in names if name in visible]
            if part:
                sentences.append(f"{region.upper()}: {' '.join(part)}")
    elif style == "prose":  # what is not there comes first
        sentences += absent(denied) + [present(name) for name in visible]
    else:
        sentences += [present(name) for name in visible] + absent(denied)
    return " ".join(sentences if visible or denied else [*sentences, str(rng.choice(NOTHING))])


def write_impression(study: Study, rng: np.random.Generator) -> str:
    """As `phantom.write_impression`: what there is, or that there is nothing."""
    visible = [name for names in REGIONS.values() for name in names if study.state(name) in STRENGTH]
    return (
        " ".join(finding_sentence(name, study, rng, "terse", "", WORDING) for name in visible)
        or "Within normal limits."
    )


def write_request(rng: np.random.Generator) -> tuple[str | None, str | None]:
    """As `phantom.write_request`: indication and history, each missing in one study of five."""
    sex = rng.choice(["male", "female"])
    history = f"{rng.integers(35, 97)} y/o {sex}, {rng.choice(CONDITIONS_OF_HISTORY)}."
    indication = str(rng.choice(INDICATIONS))
    return (indication if rng.random() < 0.8 else None), (history if rng.random() < 0.8 else None)
