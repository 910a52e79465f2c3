"""FindingReader: the findings of a report with their attributes and clinical severity, without weights.

A finding is what a radiologist would list: one thing, however often and in however many words the report speaks of
it, with its side, place, size, measurement, certainty and change. Which words are which finding stands in `CONCEPTS`,
what is negated or doubted is the LexicalLabeler's judgement (its cues, scopes and subjects), and the severities are
those of CRIMSON's guidelines (rajpurkarlab/CRIMSON, read in its repository): urgent, actionable, minor and expected.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from rewards import labelers
from rewards.labelers import word_set
from rewards.labels import CONDITIONS

URGENT, ACTIONABLE, MINOR, EXPECTED = "urgent", "actionable", "minor", "expected"

# Concept -> severity and phrases, in the notation of rewards/labelers.py: "a|b c" is "a c" and "b c", "-" is no word.
# Two words for one thing are one concept: consolidation, pneumonia and infiltrate; congestion and edema.
CONCEPTS = {
    "pneumothorax": (URGENT, "pneumothorax, pneumothoraces, ptx, hydropneumothorax, pleural air, pleural space air"),
    "pneumomediastinum": (URGENT, "pneumomediastinum, mediastinal air|emphysema, pneumopericardium"),
    "free air": (
        URGENT,
        """free air, free intraperitoneal|subdiaphragmatic air, pneumoperitoneum,
        intraperitoneal|subdiaphragmatic air, air under|beneath the|- diaphragm|hemidiaphragm""",
    ),
    "aneurysm": (URGENT, "aneurysm, aneurysmal, aortic dissection"),
    "foreign body": (URGENT, "foreign body, foreign bodies, foreign object"),
    "pericardial effusion": (ACTIONABLE, "pericardial effusion|fluid"),
    "wide mediastinum": (
        ACTIONABLE,
        """mediastinal|cardiomediastinal widening|enlargement|prominence|mass,
        widened|enlarged|prominent|wide|abnormal superior|- mediastinal|cardiomediastinal contour|silhouette|-""",
    ),
    "mediastinal shift": (
        ACTIONABLE,
        """mediastinal|tracheal shift|deviation, shift|deviation|displacement of the mediastinum|trachea|heart,
        mediastinum|trachea is|appears|- shifted|deviated, shifted|deviated mediastinum|trachea""",
    ),
    "effusion": (
        ACTIONABLE,
        """effusion, pleural effusion|fluid, hydrothorax, hemothorax, haemothorax, empyema, hydropneumothorax,
        pleural|fluid collection, fluid in the pleural space, fluid in the|- fissure, fissural fluid""",
    ),
    "blunting": (
        ACTIONABLE,
        """blunting, blunted, costophrenic angle|sulcus blunting, meniscus sign, obscured costophrenic""",
    ),
    "consolidation": (
        ACTIONABLE,
        """consolidation, consolidative, consolidated, pneumonia, pneumonic, bronchopneumonia, infection, infectious,
        infectious process|etiology, pneumonitis, infiltrate, infiltration, infiltrative, aspiration,
        aspiration pneumonia|pneumonitis, airspace|alveolar disease|process|consolidation|infiltrate,
        air space disease|process|consolidation|infiltrate, air bronchogram""",
    ),
    "opacity": (
        ACTIONABLE,
        """opacity, opacification, opacified, opacities, haziness, hazy, density, densities, shadowing, whiteout,
        white out, airspace|alveolar|parenchymal|lung opacity|opacification|density|shadowing,
        air space opacity|opacification|density, ground glass, ground glass attenuation|opacity|density""",
    ),
    "interstitial": (
        ACTIONABLE,
        """interstitial disease|pattern|change|prominence|thickening|abnormality|process|infiltrate|density|opacity,
        interstitial lung disease|marking, interstitial type opacity, interstitial, kerley, kerley b, kerley line,
        kerley b line, septal line|thickening, reticular|reticulonodular pattern, reticulation,
        reticular opacity|marking|change|density,
        reticulonodular opacity|marking|change|density, bronchovascular crowding|prominence|thickening,
        thickening of the|- interstitial|bronchovascular marking, increased|prominent|coarse|coarsened|accentuated
        interstitial|bronchovascular|lung|pulmonary marking,
        peribronchial|bronchial|bronchovascular thickening|cuffing,
        bronchial wall thickening, cuffing""",
    ),
    "edema": (
        ACTIONABLE,
        """edema, oedema, edematous, pulmonary|interstitial|alveolar edema, chf, congestive|heart failure,
        congestive heart|cardiac failure, cardiac failure|decompensation, fluid|volume overload, congestion, congested,
        pulmonary|central vascular|venous congestion, vascular|venous|pulmonary congestion,
        vascular|venous|- congestive change, vascular|venous engorgement|redistribution|cephalization, cephalization,
        engorgement, vascular|perihilar indistinctness, indistinctness, pulmonary|- vascular|venous prominence,
        prominent|prominence|distended pulmonary|- vascular|vascularity|vasculature|vessel|vein,
        prominence of the|- pulmonary vasculature|vascularity|vessel, prominent pulmonary|- vascular marking""",
    ),
    "cardiomegaly": (
        ACTIONABLE,
        "cardiomegaly, cardiomegally, cardiac enlargement, megalocardia, enlarged heart, heart enlargement",
    ),
    "lesion": (
        ACTIONABLE,
        """nodule, nodular, nodularity, nodular|rounded|masslike density|opacity, mass like density|opacity,
        lung|pulmonary|parenchymal|nodular|cavitary lesion, mass, masslike, lump, carcinoma, neoplasm, neoplastic,
        tumor, tumour, malignancy, metastasis, metastases, metastatic disease, lung cancer""",
    ),
    "cavity": (ACTIONABLE, "cavity, cavitary, cavitation, abscess"),
    "adenopathy": (
        ACTIONABLE,
        """adenopathy, lymphadenopathy, enlarged|prominent bilateral|right|left|- hilar|mediastinal|- lymph|- node,
        lymph|hilar|mediastinal node enlargement, enlargement of the|- hilar|mediastinal|- lymph node,
        hilar enlargement|prominence|fullness|mass|involvement, enlarged|prominent hila|hilum, full hila""",
    ),
    "fracture": (
        ACTIONABLE,
        """fracture, fractured, compression fracture|deformity, rib|vertebral|vertebra compression,
        anterior|vertebral|- wedging, wedge deformity, loss of vertebral|- height, vertebral body collapse""",
    ),
    "dislocation": (ACTIONABLE, "dislocation, subluxation, subluxed"),
    "bone lesion": (
        ACTIONABLE,
        "lytic, sclerotic, lytic|sclerotic|bone|bony|osseous lesion, bone destruction, erosion",
    ),
    "atelectasis": (
        MINOR,
        """atelectasis, atelectases, atelectatic, atelectatic change|opacity|density, collapse, collapsed,
        volume loss, loss of volume, lung|lobe|lobar|base collapse, plate like, platelike, discoid""",
    ),
    "lucency": (MINOR, "lucency, lucencies, hyperlucency, hyperlucent, lucent"),
    "emphysema": (
        MINOR,
        """emphysema, emphysematous, emphysematous change, copd, hyperinflation, hyperinflated, hyperexpansion,
        hyperexpanded, hyperaeration, overinflated, overinflation, bulla, bullae, bullous, bleb,
        chronic obstructive pulmonary disease, flattening|flattened diaphragm|hemidiaphragm,
        flattening of the diaphragm|hemidiaphragm, increased retrosternal space, bullous change|disease""",
    ),
    "low volumes": (
        MINOR,
        """low|lower|decreased|reduced|small|diminished|shallow lung|- volume,
        low|poor|shallow|reduced|limited|decreased inspiratory effort|volume,
        shallow|poor|low|limited|reduced|suboptimal inspiration, hypoinflation,
        hypoinflated, hypoventilatory, underinflated, hypoexpanded, hypoaeration,
        lung volumes|volume are|is|remain low""",
    ),
    "scar": (
        MINOR,
        """scar, scarring, fibrosis, fibrotic, fibrotic change, bronchiectasis, bronchiectatic,
        pulmonary fibrosis, parenchymal scar, architectural distortion""",
    ),
    "pleural thickening": (
        MINOR,
        """pleural thickening|scar|scarring|plaque|calcification|disease|abnormality|lesion|fibrosis|capping|cap,
        pleuroparenchymal scar|scarring, apical cap|capping, thickening of the pleura, fibrothorax,
        fissural thickening""",
    ),
    "diaphragm": (
        MINOR,
        """elevation, elevated, elevated right|left|- hemidiaphragm|diaphragm, eventration,
        elevation of the right|left|- hemidiaphragm|diaphragm""",
    ),
    "hernia": (MINOR, "hernia, hiatal|hiatus hernia"),
    "subcutaneous air": (MINOR, "subcutaneous emphysema|air|gas, soft tissue emphysema|air|gas"),
    "soft tissue": (MINOR, "soft tissue swelling|edema"),
    "osteopenia": (
        MINOR,
        """osteopenia, osteopenic, osteoporosis, osteoporotic, demineralization, demineralized, mineralization,
        bone demineralization""",
    ),
    "curvature": (
        MINOR,
        """scoliosis, dextroscoliosis, levoscoliosis, kyphosis, kyphoscoliosis, scoliotic, pectus,
        kyphotic curvature, thoracic kyphosis""",
    ),
    "deformity": (MINOR, "deformity, rib deformity|defect, deformity of the|- right|left|- rib"),
    "cyst": (MINOR, "cyst, cystic"),
    "aorta": (
        EXPECTED,
        """tortuous, tortuosity, ectasia, ectatic, unfolded, unfolding, uncoiled, atherosclerosis, atherosclerotic,
        atherosclerotic|aortic|vascular|arterial|mural calcification|disease|change, calcified|calcific aorta,
        calcification of|in the|- aorta|arch, atheromatous, arteriosclerotic""",
    ),
    "degenerative": (
        EXPECTED,
        """degenerative, degenerative change|disease, degeneration, spondylosis, arthritis, arthritic, arthropathy,
        osteoarthritis, osteoarthropathy, osteoarthrosis, osteophyte, osteophytosis, spur, spurring, endplate spur,
        osteophyte formation, spur formation, dish, disc|disk space narrowing""",
    ),
    "granuloma": (
        EXPECTED,
        """granuloma, granulomata, granulomatous, granulomatous disease|change,
        calcified granuloma|nodule|node|density,
        calcified lymph|hilar|mediastinal node, calcification, calcified, calcific, granulomatous calcification""",
    ),
    "surgery": (
        MINOR,
        """sternotomy, median sternotomy, median|- sternotomy wire|suture, surgical|postsurgical|postoperative change,
        surgical|cholecystectomy clip|staple|suture, clip, cabg, bypass graft, lobectomy, mastectomy, thoracotomy,
        prior|previous cardiac|heart surgery, cardiac surgery, vertebral augmentation, vertebroplasty, kyphoplasty,
        resection, chest wall resection, postoperative state, graft, arthroplasty, hardware, spinal fusion""",
    ),
    "endotracheal tube": (MINOR, "endotracheal|et|trach tube, ett, endotracheal, tracheostomy, tracheostomy tube"),
    "enteric tube": (
        MINOR,
        """nasogastric|enteric|ng|og|orogastric|feeding|dobhoff|dobbhoff|gastric tube, ngt, ogt, dobhoff, nasogastric,
        orogastric, enteric, gastrostomy, peg tube""",
    ),
    "central line": (
        MINOR,
        """picc, picc line|catheter, central|venous|jugular|subclavian|ij|femoral|dialysis|port|umbilical|arterial
        line|catheter, central|umbilical|internal venous|jugular|artery|arterial|vein line|catheter,
        central venous catheter|line, internal jugular central venous|- catheter|line, catheter, port,
        port a cath, mediport, portacath, swan ganz, swan ganz catheter, dialysis catheter, cvl, uvc, uac""",
    ),
    "chest tube": (
        MINOR,
        "chest|thoracostomy|pleural tube|drain|catheter, pigtail, pigtail catheter, surgical|- drain",
    ),
    "pacemaker": (
        MINOR,
        """pacemaker, pacer, pacemaker lead|wire, cardiac|pacing device|lead|wire, aicd, icd, defibrillator,
        loop recorder, generator, pacemaker generator, dual chamber|lead pacemaker""",
    ),
    "monitor leads": (
        MINOR,
        """monitor|monitoring|ecg|ekg|cardiac|telemetry|overlying|external|superimposed lead|wire,
        overlying|superimposed monitoring|monitor lead, external monitoring lead""",
    ),
    "valve": (MINOR, "valve replacement|prosthesis|ring, prosthetic|mechanical|artificial|bioprosthetic valve, stent"),
    "shunt": (MINOR, "shunt, vp|ventriculoperitoneal shunt, vp|ventriculoperitoneal|- shunt tubing|catheter"),
    "device": (
        MINOR,
        "device, tube, tubing, wire, lead, support|monitoring apparatus|equipment, pump, coil, filter, balloon",
    ),
}
NAMES = tuple(CONCEPTS)
DEVICES = frozenset(NAMES[NAMES.index("endotracheal tube") :])


# A less specific word for it, or its neighbour: a match with an attribute error.
_RELATED = """opacity: consolidation atelectasis edema lesion interstitial scar cavity
    consolidation: atelectasis cavity interstitial
    interstitial: edema scar
    blunting: effusion, pleural thickening
    lucency: pneumothorax emphysema
    wide mediastinum: aneurysm adenopathy
    lesion: adenopathy granuloma cavity
    atelectasis: scar, low volumes
    deformity: fracture
    device: endotracheal tube, enteric tube, central line, chest tube, pacemaker, monitor leads, shunt
    pleural thickening: scar, effusion
    aorta: aneurysm"""


def _related() -> dict[str, frozenset[str]]:
    pairs: dict[str, set[str]] = {name: set() for name in NAMES}
    for line in _RELATED.splitlines():
        name, rest = line.strip().split(":")
        for neighbour in rest.split(",") if "," in rest else rest.split():
            pairs[name].add(neighbour.strip())
            pairs[neighbour.strip()].add(name)
    return {name: frozenset(others) for name, others in pairs.items()}


RELATED = _related()
# What an image shows, which a diagnosis in the same breath explains: "opacities suggestive of edema" is edema.
DESCRIPTIONS = frozenset(("opacity", "interstitial", "consolidation", "lucency", "blunting"))
EXPLANATIONS = {
    "opacity": frozenset(("consolidation", "atelectasis", "edema", "lesion", "scar", "interstitial")),
    "interstitial": frozenset(("edema", "scar", "consolidation", "atelectasis")),
    "consolidation": frozenset(("atelectasis", "edema")),
    "lucency": frozenset(("pneumothorax", "emphysema")),
    "blunting": frozenset(("effusion", "pleural thickening", "scar")),
}

SIDES = {
    "left": ("left", "leftward"),
    "right": ("right", "rightward"),
    "both": ("bilateral", "bilaterally", "both", "bibasilar", "bibasal", "biapical", "bihilar"),
}
PLACES = {
    "upper": ("upper", "apex", "apices", "apical", "biapical", "superior"),
    "middle": ("middle", "mid", "midlung", "lingula", "lingular", "perihilar", "hilar"),
    "lower": ("lower", "base", "bases", "basilar", "basal", "bibasilar", "bibasal", "retrocardiac", "inferior"),
}
# Error taxonomy's grades: 1 small or mild, 2 moderate, 3 large or severe.
SEVERITIES = {
    1: "tiny trace minimal small mild mildly slight slightly subtle minor minimally",
    2: "moderate moderately",
    3: "large severe severely marked markedly massive extensive gross grossly significant substantial"
    " tension complete",
}
GRADES = {word: grade for grade, words in SEVERITIES.items() for word in words.split()}
CHANGES = {
    "new": ("new", "newly"),
    "worse": ("worse", "worsening", "worsened", "increased", "increasing", "larger", "progressed", "progression"),
    "better": (
        *("improved", "improving", "improvement", "decreased", "decreasing", "smaller", "resolving", "decrease"),
        *("reduced", "clearing"),
    ),
    "same": ("stable", "stably", "unchanged", "similar", "persistent", "persists", "persist", "again", "remains"),
}
# A comparison only beside one of the anchors: "increased opacity" need not be more than before.
_AMBIGUOUS = frozenset(("increased", "larger", "decreased", "smaller", "reduced"))
_ANCHORS = word_set("interval since compared prior previous previously now has have last yesterday")
_ASPECTS = {
    **dict.fromkeys(("tiny", "trace", "minimal"), "trace"),
    **dict.fromkeys(("old", "healed", "chronic", "remote", "healing", "nonacute", "prior"), "old"),
}
_WORDS = {
    **{word: ("side", side) for side, words in SIDES.items() for word in words},
    **{word: ("size", grade) for word, grade in GRADES.items()},
    **{word: ("change", change) for change, words in CHANGES.items() for word in words},
}
_PLACE = {word: place for place, words in PLACES.items() for word in words}
_SUGGESTIVE = word_set(
    """suggest suggests suggesting suggestive represent represents representing reflect reflects reflecting consistent
    compatible concerning suspicious worrisome indicating indicative indicated favor favored favors favoring due
    secondary keeping likely related"""
)
_LINKS = _SUGGESTIVE | {"may", "could"}
_OR = frozenset(("or", "versus", "vs", "vs."))
_POINTERS = frozenset(("this", "these", "it", "they", "which", "findings", "finding", "appearance"))
_BAD_POSITION = re.compile(
    r"malposition|mispositio|misplaced|mainstem|main stem|main bronchus|bronchus intermedius|too (?:low|high|deep)"
    r"|coil|kink|esophag|(?:should|needs? to|must|recommend\w*|could) (?:\w+ )?(?:be )?(?:\w+ )?"
    r"(?:withdraw|advanc|retract|reposition|pull)|\bretract |repositioning|outside the"
    r"|(?:at|below|in|into) the (?:carina|right main|left main|right lower lobe bronch)"
    r"|side ?(?:port|hole)s? (?:is|are|at|above)"
)
_MEASURE = re.compile(
    r"(\d{1,3}(?:\.\d+)?)(?:\s?[x×]\s?\d{1,3}(?:\.\d+)?)*(?:\s|-)?(cm|mm|centimeters?|millimeters?)\b"
)
_CARINA = re.compile(r"(?:above|from|proximal to)(?: the)? (?:carina|level of the carina)")
# "No acute fracture" beside an old one is no contradiction.
_QUALIFIED = re.compile(
    r"\b(?:acute|acutely|displaced|significant|sizable|sizeable|overt|frank|dense|confluent|lobar|suspicious|enlarging"
    r"|convincing|focal|additional|other|active|large|new|progressive|tension|definite|obvious|further)\b"
)
_NO_SIZE_WORDS = re.compile(  # "no significant interval change", "grossly stable"
    r"\b(?:significant|marked|substantial|extensive|gross|complete)(?:ly)? "
    r"(?=(?:interval )?(?:change|improve|increase|decrease|better|worse|clear|normal|stable|intact|unremark))"
)
_CUT = re.compile(r"[,;:]|\b(?:and|with|without|but|while|although|however|no)\b")


@dataclass(frozen=True)
class Finding:
    """One finding of a report.

    `concepts`: what it may be, one concept or the alternatives of a doubt. `sides`: of {"left", "right"}; `places` of
    {"upper", "middle", "lower"}; `sizes`: grades 1 to 3; `millimeters`: measured lengths; `changes` of {"new",
    "worse", "better", "same"}; each empty where the report does not say. `certain`: not only suspected. `bad`: a
    device out of place. `denied`: the same report also says that it is absent. `severity`: CRIMSON's class.
    """

    concepts: frozenset[str]
    severity: str
    sides: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()
    sizes: frozenset[int] = frozenset()
    millimeters: frozenset[float] = frozenset()
    changes: frozenset[str] = frozenset()
    certain: bool = True
    bad: bool = False
    denied: bool = False


@dataclass(frozen=True)
class Report:
    """What a report says: its `findings`, the concepts that it calls `absent`, and whether it `speaks` of any finding,
    present or absent."""

    findings: tuple[Finding, ...]
    absent: frozenset[str]
    speaks: bool


def _tree() -> dict:
    """Words to nodes [concept of the phrase that ends here or None, the next words' nodes]."""
    root: dict[str, list] = {}
    for name, (_, table) in CONCEPTS.items():
        for phrase in labelers._phrases(table):
            for words in (phrase, (*phrase[:-1], labelers._plural(phrase[-1]))):
                nodes = root
                for word in words[:-1]:
                    nodes = nodes.setdefault(word, [None, {}])[1]
                node = nodes.setdefault(words[-1], [None, {}])
                node[0] = node[0] or name
    return root


_TREE = _tree()
# In place of conditions a mention holds its concept's number, beyond the labeler's, and what counts of these.
_FIRST = len(CONDITIONS) + 10
_CONDITIONS = {
    name: (_FIRST + i, labelers.SUPPORT_DEVICES) if name in DEVICES else (_FIRST + i,) for i, name in enumerate(NAMES)
}
for _name in ("opacity", "interstitial", "scar", "consolidation"):  # descriptions: "A or B" asserts both
    _CONDITIONS[_name] += (labelers.LUNG_OPACITY,)
_OF_SUBJECTS = {
    CONDITIONS.index("Cardiomegaly"): "cardiomegaly",
    CONDITIONS.index("Enlarged Cardiomediastinum"): "wide mediastinum",
    labelers.LUNG_OPACITY: "interstitial",
}
_OF_ORGANS = {
    "aorta": ("aorta", "aortic"),
    "adenopathy": ("hilum", "hila", "hilar", "bihilar", "node", "nodes"),
    "edema": ("vascularity", "vasculature", "vessel", "vessels", "artery", "arteries", "vein", "veins", "azygos"),
    "cardiomegaly": ("atrium", "ventricle", "atria", "ventricles"),
}
_HEART_OR_MEDIASTINUM = {"cardiomegaly", "wide mediastinum"}
_WITH_HEART = frozenset(("cardiomediastinal", "cardiomediastinum", "cardio"))
_ORGANS = {word: name for name, words in _OF_ORGANS.items() for word in words}
_DROPPED = frozenset((labelers.MENTION, labelers.GENERAL))
_PRESENT = (labelers.POSITIVE, labelers.UNCERTAIN)
_NO_SIZE = frozenset((labelers.STABLE, labelers.NO_CHANGE, labelers.OBSCURED))


def _find_phrases(words: list[str]) -> Iterator[tuple[int, int, str]]:
    """First word, last word and concept of each phrase, the longest at each place."""
    i, count = 0, len(words)
    while i < count:
        node = _TREE.get(words[i])
        name, end, j = None, i, i + 1
        while node is not None:
            if node[0] is not None:
                name, end = node[0], j - 1
            node = node[1].get(words[j]) if j < count else None
            j += 1
        if name is not None:
            yield i, end, name
        i = end + 1


def _find_mentions(words: list[str]) -> list[tuple[int, int, str, int]]:
    """First word, last word, concept and state of what one sentence speaks of, in the order of the words."""
    phrases = list(_find_phrases(words))
    covered = {i for first, end, _ in phrases for i in range(first, end + 1)}
    judged = []
    start = 0
    sentences = list(labelers._sentences(words)) or [[]]
    for k, cues in enumerate(sentences):
        stop = sentences[k + 1][0][2] if k + 1 < len(sentences) else len(words)
        cues = [cue for cue in cues if cue[0] not in _DROPPED and not covered.intersection(range(cue[2], cue[3] + 1))]
        mentions = [
            (labelers.MENTION, (_CONDITIONS[name], labelers.POSITIVE), first, end)
            for first, end, name in phrases
            if start <= first < stop
        ]
        start = stop
        hits = sorted([*cues, *mentions], key=lambda hit: hit[2])
        scopes = labelers._Scopes(hits)
        judged += [
            (first, end, NAMES[conditions[0] - _FIRST], state) for first, end, conditions, state in scopes.mentions
        ]
        looks = {i: look for i, look in scopes.looks.items() if look not in _NO_SIZE}
        if looks:
            for first, end, (condition,), state in labelers._judge_subjects(hits, looks):
                name = _OF_SUBJECTS.get(condition)
                if name is None:
                    name = next((_ORGANS[word] for word in words[first : end + 1] if word in _ORGANS), None)
                if name is not None:
                    judged.append((first, end, name, state))
                if name == "wide mediastinum" and not _WITH_HEART.isdisjoint(words[first : end + 1]):
                    judged.append((first, end, "cardiomegaly", state))
    return sorted(judged)


def _attributes(chunk: str) -> dict[str, set]:
    """What a stretch of a sentence says of the findings that it names."""
    words = re.findall(r"[a-z]+", _NO_SIZE_WORDS.sub("", chunk))
    attributes: dict[str, set] = {kind: set() for kind in ("side", "size", "change", "place", "mm", "aspect")}
    anchored = not _ANCHORS.isdisjoint(words)
    for word in words:
        if word in _WORDS and (anchored or word not in _AMBIGUOUS):
            kind, value = _WORDS[word]
            attributes[kind] |= {"left", "right"} if value == "both" else {value}
        if word in _ASPECTS:
            attributes["aspect"].add(_ASPECTS[word])
        if word in _PLACE:
            attributes["place"].add(_PLACE[word])
    for match in _MEASURE.finditer(chunk):
        attributes["mm"].add(float(match[1]) * (10 if match[2].startswith("c") else 1))
    return attributes


@dataclass
class _Mention:
    """One mention while its sentence is read."""

    name: str
    state: int
    words: set[str]
    attributes: dict[str, set]
    bad: bool = False
    alternatives: set[str] = field(default_factory=set)
    qualified: bool = False


@lru_cache(maxsize=8192)
def _sentence(sentence: str) -> tuple[tuple[_Mention, ...], bool]:
    """The mentions of one sentence, and whether it only points at the sentence before ("this may be pneumonia")."""
    spans = [(match.start(), match.end(), match[0]) for match in labelers._WORD.finditer(sentence)]
    words = [word for *_, word in spans]
    judged = _find_mentions(words) if words else []
    if not judged:
        return (), False
    # Stretches between commas and conjunctions; one that names no finding belongs to the finding before it.
    cuts = [0, *(match.start() for match in _CUT.finditer(sentence)), len(sentence)]
    chunks = list(pairwise(cuts))
    holders: list[list[int]] = [[] for _ in chunks]
    place = 0
    for k, (first, *_) in enumerate(judged):
        while place + 1 < len(chunks) and chunks[place][1] <= spans[first][0]:
            place += 1
        holders[place].append(k)
    texts = [""] * len(judged)
    before: list[int] = []
    waiting = ""
    for (start, end), members in zip(chunks, holders, strict=True):
        text = sentence[start:end]
        if members:
            for k in members:
                texts[k] += " " + waiting + text
            before, waiting = members, ""
        elif before:
            for k in before:
                texts[k] += " " + text
        elif "clear" not in text and "normal" not in text:
            waiting += text + " "
    mentions = []
    for k, (first, end, name, state) in enumerate(judged):
        attributes = _attributes(texts[k])
        bad = name in DEVICES and _out_of_place(name, texts[k])
        qualified = _QUALIFIED.search(texts[k]) is not None
        mentions.append(_Mention(name, state, set(words[first : end + 1]), attributes, bad, qualified=qualified))
    pointer = not _POINTERS.isdisjoint(words[:2]) and not _LINKS.isdisjoint(words[:5])
    _explain(mentions, judged, words)
    return tuple(mention for mention in mentions if mention.name), pointer


def _out_of_place(name: str, text: str) -> bool:
    """Whether a device is said to be misplaced; an endotracheal tube belongs 2 to 7 cm above the carina."""
    if _BAD_POSITION.search(text):
        return True
    if name == "endotracheal tube" and _CARINA.search(text) and "trach" not in text.replace("endotrach", ""):
        lengths = [float(m[1]) * (10 if m[2].startswith("c") else 1) for m in _MEASURE.finditer(text)]
        return any(length < 20 or length > 70 for length in lengths)
    return False


def _explain(mentions: list[_Mention], judged: list[tuple], words: list[str]) -> None:
    """Joins a description with the diagnosis that the same sentence gives for it, and other names for one finding.

    Certain ("opacities consistent with edema"), the diagnosis takes the description's place; doubtful, both are
    alternatives of one finding ("opacity which may be pneumonia or edema"). A mention without a name is gone.
    """
    _join_diagnoses(mentions, judged, words)
    _join_neighbours(mentions, judged)
    _join_alternatives(mentions, judged, words)


def _absorb(mention: _Mention, absorbed: _Mention, alternative: bool) -> None:
    """Says of `mention` what is said of `absorbed`, which may be an alternative name for it, and takes that out."""
    if alternative:
        mention.alternatives |= {absorbed.name} | absorbed.alternatives
    for kind, values in absorbed.attributes.items():
        mention.attributes[kind] |= values
    absorbed.name = ""


def _join_diagnoses(mentions: list[_Mention], judged: list[tuple], words: list[str]) -> None:
    """Of "opacities suggestive of edema", the edema; only words such as "suggestive" and "may" link the two."""
    for k, description in enumerate(mentions):
        if description.name not in DESCRIPTIONS or description.state not in _PRESENT:
            continue
        for j in range(k + 1, len(mentions)):
            diagnosis = mentions[j]
            if diagnosis.name in EXPLANATIONS[description.name] and diagnosis.state in _PRESENT:
                between = words[judged[k][1] + 1 : judged[j][0]]
                if not _LINKS.isdisjoint(between):
                    _absorb(diagnosis, description, alternative=diagnosis.state == labelers.UNCERTAIN)
                    break


def _join_neighbours(mentions: list[_Mention], judged: list[tuple]) -> None:
    """One finding of "nodular airspace opacity"; the pacemaker of "pacemaker, with leads in the atrium"."""
    for k, (mention, following) in enumerate(pairwise(mentions)):
        if mention.name and following.name and {mention.state, following.state} == {labelers.POSITIVE}:
            names = {mention.name, following.name}
            together = judged[k + 1][0] <= judged[k][1] + 1
            if together and (following.name in RELATED[mention.name] or names == _HEART_OR_MEDIASTINUM):
                _absorb(following, mention, alternative=True)
    hardware = [mention for mention in mentions if mention.name in DEVICES or mention.name == "surgery"]
    if any(mention.name != "device" for mention in hardware):
        for mention in hardware:
            if mention.name == "device":
                mention.name = ""


def _join_alternatives(mentions: list[_Mention], judged: list[tuple], words: list[str]) -> None:
    """One doubt of "pneumonia or edema", "consolidation versus atelectasis"."""
    for k, mention in enumerate(mentions):
        if mention.name and mention.alternatives:
            for j in range(k + 1, len(mentions)):
                alternative = mentions[j]
                between = words[judged[k][1] + 1 : judged[j][0]]
                if alternative.name and alternative.state == labelers.UNCERTAIN and not _OR.isdisjoint(between):
                    mention.alternatives |= {alternative.name}
                    alternative.name = ""


def _severity(concepts: frozenset[str], attributes: dict[str, set], bad: bool) -> str:
    """CRIMSON's class of a finding, by its kind and what is said of it."""
    if bad:
        return URGENT
    order = (URGENT, ACTIONABLE, MINOR, EXPECTED)
    severity = min((CONCEPTS[name][0] for name in concepts), key=order.index)
    if concepts == {"pneumothorax"} and attributes["size"] == {1}:
        return ACTIONABLE
    if concepts == {"pericardial effusion"} and 3 in attributes["size"]:
        return URGENT
    if concepts == {"effusion"} and "trace" in attributes["aspect"]:
        return MINOR
    if concepts == {"fracture"} and "old" in attributes["aspect"]:
        return MINOR
    return severity


# "The lungs are clear" denies these. "Otherwise clear" and "the right lung is clear" do not.
_CLEAR = re.compile(
    r"^\W*(?:the |both |both the |bilateral )?(?:lungs?|lung fields) (?:are |is |appear |appears |remain |remains )?"
    r"(?:both |bilaterally )?clear\b(?! of)|^\W*clear lungs\b"
)
_NOT_IN_CLEAR_LUNGS = ("consolidation", "opacity", "edema", "lesion", "cavity")
_LONGEST = 600  # characters


def _join(mention: _Mention, addition: _Mention) -> _Mention:
    """`mention`, of which `addition` says more; both stay as they are."""
    attributes = {kind: mention.attributes[kind] | addition.attributes[kind] for kind in mention.attributes}
    doubts = mention.alternatives | addition.alternatives
    return _Mention(
        mention.name, mention.state, mention.words | addition.words, attributes, mention.bad or addition.bad, doubts
    )


def _findings(stated: list[_Mention], absent: dict[str, list[_Mention]]) -> Iterator[Finding]:
    """One finding for all mentions of a thing, in the order of the first ones."""
    groups: list[tuple[set[str], list[_Mention]]] = []
    for mention in stated:
        concepts = {mention.name} | mention.alternatives
        group = next((group for group in groups if group[0] & concepts), None)
        if group is None:
            groups.append((concepts, [mention]))
        else:
            group[1].append(mention)
            if not mention.alternatives:  # said more exactly
                group[0].intersection_update(concepts)
    for names, group in groups:
        attributes: dict[str, set] = {
            kind: set().union(*(mention.attributes[kind] for mention in group)) for kind in group[0].attributes
        }
        words = set().union(*(mention.words for mention in group))
        concepts, bad = frozenset(names), any(mention.bad for mention in group)
        denials = [denial for name in names for denial in absent.get(name, ())]
        yield Finding(
            concepts,
            _severity(concepts, attributes, bad),
            *(frozenset(attributes[kind]) for kind in ("side", "place", "size", "mm", "change")),
            certain=any(mention.state == labelers.POSITIVE for mention in group),
            bad=bad,
            denied=any(_denies(denial, attributes, words) for denial in denials),
        )


_IN_OTHER_WORDS = frozenset(("consolidation", "opacity", "interstitial", "edema", "atelectasis", "emphysema"))


def _denies(denial: _Mention, attributes: dict[str, set], words: set[str]) -> bool:
    """Whether "no effusion" contradicts the finding; "no large effusion" and "no right effusion" beside one do not.

    Where a concept has several words, only the same word contradicts: "congestion without edema".
    """
    if denial.qualified or denial.attributes["size"] or denial.attributes["change"] or denial.attributes["place"]:
        return False
    if denial.words and denial.name in _IN_OTHER_WORDS and denial.words.isdisjoint(words):
        return False
    return (
        not denial.attributes["side"] or not attributes["side"] or bool(denial.attributes["side"] & attributes["side"])
    )


def _cut(sentences: Iterable[str]) -> Iterator[str]:
    """The sentences that are not blank, degenerate ones in pieces: the time of one may grow with its square."""
    for sentence in sentences:
        if len(sentence) <= _LONGEST:
            if sentence.strip():
                yield sentence
        else:
            words = iter(re.findall(rf"\S{{1,{_LONGEST}}}", sentence))
            piece = next(words, "")
            for word in words:
                if len(piece) + len(word) >= _LONGEST:
                    yield piece
                    piece = word
                else:
                    piece = f"{piece} {word}"
            yield piece


class FindingReader:
    """`Report` of each text: findings, what is called absent, and whether it speaks of findings at all.

    Any string is read. Sections that do not describe the image are left out, as by LexicalLabeler.

    >>> FindingReader()(["Small left effusion. No pneumothorax."])[0].findings[0].sides
    frozenset({'left'})
    """

    name = "lexical"

    def __call__(self, texts: Iterable[str]) -> list[Report]:
        """The reports of n texts."""
        return [self._report(text) for text in texts]

    @staticmethod
    def _report(text: str) -> Report:
        stated: list[_Mention] = []
        absent: dict[str, list[_Mention]] = {}
        speaks, described = False, False  # described: the last finding is a description without a diagnosis
        for sentence in _cut(labelers._SENTENCE_END.split(labelers._body(labelers._plain(text)[0]))):
            mentions, points = _sentence(sentence)
            if _CLEAR.search(sentence) and not any(mention.state != labelers.NEGATIVE for mention in mentions):
                for name in _NOT_IN_CLEAR_LUNGS:
                    absent.setdefault(name, []).append(_Mention(name, labelers.NEGATIVE, set(), _attributes("")))
            speaks = speaks or bool(mentions or labelers._read_again(sentence))
            for mention in mentions:
                if mention.state == labelers.NEGATIVE:
                    absent.setdefault(mention.name, []).append(mention)
                elif mention.state in _PRESENT:
                    if points and described and mention.name in EXPLANATIONS[stated[-1].name]:
                        last = stated.pop()
                        mention = _join(mention, last)
                        if mention.state == labelers.UNCERTAIN:
                            mention.alternatives.add(last.name)
                    stated.append(mention)
                    described = mention.name in DESCRIPTIONS and not mention.alternatives
        findings = tuple(_findings(stated, absent))
        return Report(findings, frozenset(absent), speaks)
