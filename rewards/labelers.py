"""LexicalLabeler: the 14 CheXpert conditions read off a report by phrases and clause scope, without weights.

A report is cut into words once; phrases and cues are found by their first word (the longest match wins), and the few
hits of each sentence are resolved from left to right, so that the time is linear in the length of the text.

What counts as a mention, as negated and as uncertain follows the CheXpert labeler (Irvin et al. 2019 and the rules
published with it), on whose output CheXbert was trained: "likely" is positive and "probable" uncertain, a heart that
is only called stable is uncertain, vascular congestion is uncertain edema, a granuloma is no lung lesion, lungs that
are clear leave Lung Opacity blank. Two rules differ, since human indexers of Open-i read them otherwise: "no new
opacity" is negative, and "A or B" leaves both uncertain only where they are rival diagnoses (see `_Scopes`). A third
rule is ours: a mediastinum or a cardiomediastinal silhouette that is only called stable is blank, since its size is
not said; uncertain, it would earn a reward as a finding. Where those rules are silent: clips and wires are support
devices, a rib's deformity is an uncertain fracture, an illness of the past and what an earlier study showed are not
said of this image, and what is said of a tube's tip or position is not said of the tube.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise, product

import numpy as np

from rewards.labels import CONDITIONS, NO_FINDING, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = (int(state) for state in CheXpertState)
UNSIZED = len(CheXpertState)  # "the mediastinum is stable": neither wide nor normal
_STRENGTH = (BLANK, UNSIZED, NEGATIVE, UNCERTAIN, POSITIVE)  # rising: of several mentions, the strongest decides
OTHER = len(CONDITIONS)  # stands for an abnormality outside the 13, which only blocks No Finding
MEDIASTINUM = OTHER + 1  # stands for Enlarged Cardiomediastinum where the heart is not named
ENLARGED_CARDIOMEDIASTINUM = CONDITIONS.index("Enlarged Cardiomediastinum")
LUNG_OPACITY = CONDITIONS.index("Lung Opacity")
SUPPORT_DEVICES = CONDITIONS.index("Support Devices")

# What a phrase does in its sentence. Strings, because a name is compared for every hit and an enum's is slow to fetch.
MENTION = "mention"  # names conditions
SUBJECT = "subject"  # names anatomy that a PREDICATE may call abnormal
PREDICATE = "predicate"  # says what a SUBJECT looks like
GENERAL = "general"  # "acute disease", "clear": no condition, but proves that the text speaks of findings
NEGATE = "negate"  # negates what follows: "no"
GONE = "gone"  # as NEGATE, of its noun phrase alone: "clearing of", "rather than"
NOT = "not"  # as NEGATE; with SEEN it negates what precedes: "is not seen"
REVOKE = "revoke"  # negates what follows or, as a predicate, what precedes: "resolved"
DOUBT = "doubt"  # makes what follows uncertain: "suspicious for"
MAY = "may"  # as DOUBT; with SEEN it doubts what precedes: "may be present"
SUSPECT = "suspect"  # makes what follows or, as a predicate, what precedes uncertain: "possible"
EXCLUDE = "exclude"  # uncertain, whether asked for or negated: "to exclude", "cannot exclude"
EXCLUDED = "excluded"  # negates what precedes; negated itself, makes it uncertain
SEEN = "seen"
CLEARLY = "clearly"  # "not clearly seen" is uncertain
CHANGE = "change"  # "no change in" negates no finding
PART = "part"  # where a device is or ends: "tip of"; what is said of it is not said of the device
UNSAID = "unsaid"  # "history of", "if": what follows is not said of this image
EARLIER = "earlier"  # "on the previous study": with a verb of the past, what the clause says is not said of this image
VERB = "verb"
THERE = "there"  # "there is" opens a statement
ASSERT = "assert"  # a size or an article, which opens a statement after a comma: "no edema, small effusion"
COMMA = "comma"
AND = "and"
OR = "or"
SITE = "site"  # a side or a place; notes at the comma before it that the item has one, and is no hit itself
SLASH = "slash"  # joins a list and asserts: "scar/atelectasis"
VERSUS = "versus"
WITH = "with"
COLON = "colon"
AFTER = "after"  # "status post": ends an open scope
BREAK = "break"  # "but": opens a statement
STOP = "stop"  # ends the sentence
QUERY = "query"  # "?": doubts what precedes and ends the sentence
IGNORE = "ignore"  # hides the words of a shorter phrase: "heart rate"

# What a PREDICATE says.
ENLARGED = "enlarged"
PROMINENT = "prominent"
NORMAL = "normal"
BORDERLINE = "borderline"
OBSCURED = "obscured"
STABLE = "stable"
LARGE = "large"  # as ENLARGED, but said of findings too: in "no edema, large effusion" it opens no statement
NO_CHANGE = "no change"  # as STABLE; of "no change in A or B" neither is asserted

# What a VERB is, where it matters. An INCREASE is a CHANGE that says of a subject that it is large.
PAST = "past"
PRESENT = "present tense"
MODAL = "modal"  # "should be removed" is still there
TRANSITIVE = "transitive"  # what follows is its object: "clearing of the effusion shows atelectasis"
PERSISTS = "persists"
INCREASE = "increase"

# Phrases are separated by commas; "a|b c" stands for "a c" and "b c", "-" for no word. Plurals are understood.
MENTIONS = {
    ("Enlarged Cardiomediastinum",): """mediastinal|cardiomediastinal widening|enlargement|prominence""",
    ("Cardiomegaly",): """cardiomegaly, cardiomegally, cardiac enlargement, megalocardia""",
    ("Lung Opacity",): """opacity, opacification, opacified, infiltrate, infiltration, infiltrative, haziness, hazy,
        airspace disease|process|pattern, air space disease|process|pattern, alveolar disease|process|pattern,
        interstitial disease|pattern|change|prominence|thickening|abnormality|process|infiltrate|density,
        interstitial lung disease, reticular|reticulonodular pattern|marking|change|density, reticulation,
        septal|peribronchial|bronchial thickening, bronchial wall thickening, peribronchial cuffing, cuffing,
        parenchymal|lung|pulmonary|airspace|focal|increased|patchy|hazy|streaky|linear|basilar density,
        parenchymal disease, ground glass, scar, scarring""",
    ("Lung Lesion",): """nodule, nodular, nodularity, nodular|rounded|masslike density, mass like density,
        nodular|lung|pulmonary|cavitary|parenchymal lesion, mass, lump, cavitation, cavity, carcinoma, neoplasm,
        neoplastic, tumor, tumour, malignancy, lung cancer, cancer, metastasis, metastases, metastatic disease""",
    ("Lung Lesion", "Lung Opacity"): """nodular|rounded|masslike opacity|opacification, mass like opacity""",
    ("Edema",): """edema, oedema, edematous, heart|cardiac failure, chf, congestive heart|cardiac|- failure,
        congestive change, fluid|volume overload, cardiac decompensation""",
    ("Consolidation",): """consolidation, consolidative, consolidated, consolidating""",
    ("Pneumonia",): """pneumonia, pneumonic, bronchopneumonia, pneumonitis, infection, superinfection, infectious,
        infectious process|etiology|disease""",
    ("Atelectasis",): """atelectasis, atelectases, atelectatic, atelectatic change, collapse, collapsed""",
    ("Pneumothorax",): """pneumothorax, pneumothoraces, ptx, pleural air, air in|within the left|right|- pleural space,
        pleural space is|are largely|completely|partially|- filled with air""",
    ("Pleural Effusion",): """effusion, pleural effusion, pleural fluid, pleural|fluid collection, hydrothorax,
        hemothorax, haemothorax, hemothoraces, empyema, pleural or|and|/ pericardial effusion, fissural fluid,
        fluid in the right|left|major|minor|- fissure""",
    ("Pneumothorax", "Pleural Effusion"): """hydropneumothorax, hydropneumothoraces, hemopneumothorax""",
    ("Pleural Other",): """pleural thickening|scar|scarring|plaque|calcification|disease|abnormality|lesion|fibrosis,
        pleural parenchymal scar|scarring, pleuroparenchymal scar|scarring, pleural based density|opacity|mass|nodule,
        calcified pleural plaque, apical cap|capping, thickening of the pleura, pleural cap|capping,
        fibrothorax, fibrosis, fibrotic""",
    ("Fracture",): """fracture, fractured""",
    ("Support Devices",): """pacemaker, pacer, cardiac pacemaker|device|lead|monitor, aicd, icd, defibrillator, lead,
        generator, electrode, stimulator, loop recorder, lvad, iabp, ecmo, catheter, picc, swan ganz, sheath, cannula,
        central|venous|jugular|subclavian|ij|femoral|picc|arterial|dialysis|vascular|port|monitoring|support line,
        line and tube, lines and tube, port, port a cath, port a, infusion port, mediport, portacath, tube, tubing,
        ett, ngt, dobhoff, dobbhoff, tracheostomy, drain, pigtail, pump, device,
        support|monitoring equipment|apparatus, hardware, screw, surgical|metallic plate, arthroplasty, prosthesis,
        prosthetic, stent, coil, filter, wire, clip, staple, suture, annuloplasty, valve replacement|prosthesis|ring,
        prosthetic|mechanical|artificial|bioprosthetic valve""",
}
UNCERTAIN_MENTIONS = {
    ("Edema",): """pulmonary|central vascular|venous congestion, vascular|venous|pulmonary|hilar|central congestion,
        pulmonary|central|- vascular|venous congestive change|pattern,
        pulmonary|hilar|central congestive change|pattern, congested vessel|vasculature|vascularity|vein,
        vessel|vessels|vasculature|vascularity is|are|appears|appear congested, vascular prominence, indistinctness""",
    ("Fracture",): """rib deformity, deformity of the|- left|right|- rib""",
}
# An illness of the past is a mention that states nothing, unless it persists.
PAST_MENTIONS = {
    (
        "Pneumonia",
    ): """prior|previous|old|remote|past left|right|bilateral|- upper|middle|lower|- lobe|lung|- infection,
        prior|previous|old|remote|past left|right|bilateral|- upper|middle|lower|- lobe|lung|- pneumonia,
        prior|previous|old|remote|past pulmonary|lung|viral|bacterial|fungal|tb infection,
        prior|previous|old|remote|past tuberculous|mycobacterial|inflammatory|- infection,
        prior|previous|old|remote|past infectious process|disease|etiology, prior|previous|old|remote|past pneumonitis,
        prior|previous|old|remote|past healed|treated|resolved pneumonia|infection,
        prior|previous|old|remote|past infection|inflammation or|and|/ inflammation|infection|pneumonia""",
    ("Edema",): """prior|previous|remote|past heart|cardiac|congestive failure,
        prior|previous|past congestive heart failure, prior|previous|remote|past chf""",
    ("Pleural Effusion",): "prior|previous|old|remote|past empyema|hemothorax",
    ("Lung Lesion",): """prior|previous|remote|past malignancy|carcinoma|cancer|neoplasm|tumor,
        prior|previous|remote|past lung cancer|carcinoma""",
}
OTHER_FINDINGS = """emphysema, emphysematous, emphysematous change, hyperinflation, hyperinflated, hyperexpansion,
    hyperexpanded, hyperaeration, hyperlucent, hyperlucency, copd, cystic fibrosis, bullae, bulla, bullous, asthma,
    bronchitis, bronchiolitis, bronchospasm, bronchiectasis, bronchiectatic, hernia, granuloma, granulomata,
    granulomatous, granulomatous infection|disease, calcification, calcified, calcific,
    calcified|calcific granuloma|nodule|density,
    scoliosis, dextroscoliosis, levoscoliosis, kyphosis, degenerative, degeneration, spondylosis, arthritis, arthritic,
    arthropathy, osteophyte, osteophytosis, osteopenia, osteopenic, osteoporosis, demineralization, deformity,
    compression deformity, dislocation, subluxation, lytic, sclerotic, pectus, tortuous, tortuosity, ectasia, ectatic,
    unfolded, atherosclerosis, atherosclerotic, aneurysm, aneurysmal, hypertension, cephalization, engorgement,
    redistribution, elevation, elevated, eventration, blunting, blunted, volume loss, low|lower lung|- volume,
    low inspiratory volume, hypoinflated, hypoinflation, adenopathy, lymphadenopathy, pneumomediastinum,
    pneumoperitoneum, free air, subcutaneous emphysema|air|gas, shift, fissural thickening, contusion, hemorrhage,
    hematoma, aspiration, radiation|aspiration|chemical|hypersensitivity pneumonitis, foreign body, foreign bodies,
    density, plaque, pericardial effusion, cyst, cystic, lesion"""
SUBJECTS = {
    ("Cardiomegaly",): """heart, heart size|silhouette|contour|shadow, cardiac silhouette size,
        cardiac size|silhouette|contour|shadow|outline|configuration, cardiopericardial silhouette,
        cardiac and hilar|pulmonary|aortic contour|silhouette""",
    ("mediastinum",): """mediastinum, superior|upper mediastinum,
        mediastinal and|or hilar|aortic|cardiac contour|silhouette|structure|border,
        mediastinal contour|silhouette|width|size|configuration|border|outline|structure""",
    ("Enlarged Cardiomediastinum",): """cardiomediastinum, cardiomediastinal,
        cardiomediastinal silhouette|contour|structure|size, cardio mediastinal|mediastinum,
        cardio mediastinal silhouette|contour, pericardial silhouette""",
    ("Cardiomegaly", "mediastinum"): """cardiac and|or mediastinal contour|silhouette|structure|size|-,
        cardiac / mediastinal contour|silhouette|-, cardiac mediastinal contour|silhouette|-""",
    ("Lung Opacity",): """interstitial|- lung|pulmonary|bronchovascular|interstitial marking, interstitium""",
    (): """lung, lung field, vascularity, vasculature, vessel, artery, aorta, aortic, hilum, hila, hilar, bihilar,
        bone, bony, osseous, spine, thorax, pleura, diaphragm, hemidiaphragm, trachea, tissue, costophrenic, rib,
        chest, abdomen, stomach, atrium, ventricle, azygos, vein, thyroid, node, trunk, esophagus, bowel,
        liver, spleen""",
}
PREDICATES = {
    ENLARGED: """enlarged, enlargement, borderline enlarged|enlargement, enlarging, widened, widening, dilated,
        globular, coarsened, coarse, thickened""",
    LARGE: """large, larger, increased, increase, wide, massive""",
    PROMINENT: """prominent, prominence, fullness""",
    NORMAL: """normal, unremarkable, top|upper|high normal, upper limit|limits of|- normal, nonenlarged, non enlarged,
        within limits, midline""",
    BORDERLINE: """borderline, borderline normal""",
    OBSCURED: """obscured, obscuration, obscuring, poorly evaluated|visualized|assessed|seen,
        difficult to evaluate|assess, not well evaluated|assessed|visualized|seen|defined,
        cannot be well|adequately|fully|- evaluated|assessed""",
    STABLE: """stable, unchanged, similar, not significantly|- changed""",
    NO_CHANGE: """no|without change""",
}
CUES = {
    NEGATE: """no, without, w / o, nor, neither, never, none of, negative for, free of|from, clear of, absence of, non,
        lack of, lacks, devoid of""",
    GONE: """rather than, instead of, clearing of, disappearance of, removal of, drainage of,
        with|- interval|complete|- resolution of""",
    NOT: """not, no longer, cannot, can't, isn't, aren't, doesn't, don't, didn't, wasn't, weren't, hasn't,
        haven't, hadn't""",
    REVOKE: """resolved, cleared, absent, removed, disappeared, none, removal, negative, withdrawn,
        with|- interval|complete|- resolution""",
    DOUBT: """can represent|reflect|be, perhaps, maybe, possibly, probably, probable, presumably, potentially, favor,
        favors, favored, favoring, suspicious for|of, suspicion of|for, concern for|of, concerning for, worrisome for,
        equivocal,
        question of, questioning, suggestion of, possibility of, consider, evaluate|assess for, evaluation for,
        assessment for, cannot|can't confirm|verify,
        unable to confirm|verify, correlate clinically|- for, correlation for, symptoms of, r / o, differential,
        differential diagnosis""",
    MAY: """may, might, could, would""",
    SUSPECT: """possible, possibility, presumed, potential, questionable, question, questioned, suspected, suspect,
        unlikely, less likely, not|isn't very|- likely, considered, consideration, doubtful, in the differential,
        to|must|should be excluded, difficult|hard to entirely|completely|- exclude""",
    EXCLUDE: """exclude, excludes, excluding, rule out""",
    EXCLUDED: """excluded, ruled out""",
    SEEN: """seen, identified, visualized, visualised, demonstrated, appreciated, evident, present, detected, noted,
        found, observed, apparent, recognized, visible, discernible, shown""",
    CLEARLY: """clearly, well""",
    CHANGE: """change, changed, worsening, worsened, progression, improvement, decrease in,
        malposition|misplacement|migration|displacement|kink|kinking of|in""",
    PART: """tip|tips|end|position|positions|location|placement|course|termination of, side port|hole of, tip, tips,
        position, location, placement, course, side port|hole""",
    EARLIER: """on|in|from|by the|a|- most|- recent|- prior|previous|earlier|preceding|old
        study|studies|exam|examination|examinations|film|films|radiograph|radiographs|image|images|imaging|ct|mri|scan,
        on|in|from|by the|a|- prior|previous|earlier|preceding|old chest
        study|exam|examination|film|radiograph|radiographs|ct|x|xray""",
    GENERAL: """abnormality, disease, process, finding, clear, intact""",
    UNSAID: """history of, h / o, sequela|sequelae of, if, to detect, detecting, detection of, sensitivity for,
        for evaluation of,
        evaluation of the presence of""",
    VERB: """be, been, contains""",
    THERE: """there""",
    ASSERT: """a, an, small, mild, mildly, moderate, minimal, trace, tiny, slight, slightly, subtle, severe, extensive,
        persistent, residual, chronic, old, healed, improved, decreased, low, scattered, multiple, bilateral,
        bibasilar, this, these, it""",
    AND: """and, as well as, along with, plus""",
    SITE: """left, right, lobe, lobes, base, bases, basilar, basal, bibasilar, bibasal, lingula, lingular, apex,
        apices, apical, biapical, retrocardiac, perihilar, suprahilar, infrahilar, zone, zones, midlung""",
    OR: """or, and / or, and or""",
    VERSUS: """versus, vs, vs.""",
    WITH: """with""",
    AFTER: """status post, s / p, after, following, since, otherwise""",
    BREAK: """but, however, although, though, while, whereas, except, yet, nevertheless, other than, apart from,
        aside from""",
    STOP: """findings :, impression :, conclusion :""",
    IGNORE: """joint|knee effusion|fluid, soft tissue|peripheral|subcutaneous edema, mass effect, plate like,
        vertebral|vertebra collapse, vertebral body collapse, collapsed vertebra, open heart, heart rate|valve,
        over|behind|overlying the|- heart, heart disease|transplant, right|left|- heart border,
        cardiac apex|border|surgery|arrest|chamber, bone|bony|osseous|mineral density,
        bone mineral density, breast|nipple shadow, lead to, leads to, no doubt,
        consistent|compatible|associated with, c / w, cholecystectomy clip, near complete|- resolution,
        nearly|almost|partially|incompletely|partial|incomplete resolved|cleared|resolution|clearing,
        nearly|almost completely resolved|cleared, partial clearing of,
        recommend|recommended|consider|suggest|advise|advised removal|removing|withdrawing|withdrawal of|-,
        slightly|somewhat|partially|partly withdrawn|removed|retracted,
        withdrawn by|about|approximately|slightly|somewhat|partially|back|to|into|cm|mm|centimeter|centimeters,
        withdrawn and|, now|its|terminates,
        withdrawn several|few|at least|one|two|three|four|five cm|centimeter|centimeters, withdrawn a few|couple""",
}
VERBS = {
    PAST: "was, were, had",
    PRESENT: "is, are, appears, appear",
    PERSISTS: "has, have, remains, remain, persists, persist",
    MODAL: "should, must, needs, need, ought, can|could be removed|withdrawn|retracted",
    TRANSITIVE: "shows, show, demonstrates, demonstrate, reveals, reveal",
}
SYMBOLS = {".": STOP, ";": STOP, "!": STOP, "?": QUERY, ",": COMMA, ":": COLON, "/": SLASH}


def word_set(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


def _phrases(table: str) -> Iterator[tuple[str, ...]]:
    """The word tuples that a table of phrases stands for."""
    for pattern in table.split(","):
        for words in product(*(word.split("|") for word in pattern.split())):
            yield tuple(word for word in words if word != "-")


def _plural(word: str) -> str:
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch")) else "s")


def _tables() -> Iterator[tuple[str, str, object]]:
    """Every table with what its phrases do and are worth: a MENTION (condition indices, state), a SUBJECT indices."""
    for state, mentions in ((POSITIVE, MENTIONS), (UNCERTAIN, UNCERTAIN_MENTIONS), (BLANK, PAST_MENTIONS)):
        for names, table in mentions.items():
            yield table, MENTION, (tuple(CONDITIONS.index(name) for name in names), state)
    yield OTHER_FINDINGS, MENTION, ((OTHER,), POSITIVE)
    for names, table in SUBJECTS.items():
        yield table, SUBJECT, tuple(MEDIASTINUM if name == "mediastinum" else CONDITIONS.index(name) for name in names)
    for look, table in PREDICATES.items():
        yield table, PREDICATE, look
    for kind, table in CUES.items():
        yield table, kind, None
    for value, table in VERBS.items():
        yield table, VERB, value
    yield "increase in|of", CHANGE, INCREASE


def _trie() -> dict[str, list]:
    """Words to nodes [(kind, value) of the phrase that ends here or None, the next words' nodes]."""
    phrases = {phrase: (kind, value) for table, kind, value in _tables() for phrase in _phrases(table)}
    for phrase, does in list(phrases.items()):
        if does[0] in (MENTION, SUBJECT, GENERAL, IGNORE):
            phrases.setdefault((*phrase[:-1], _plural(phrase[-1])), does)
    phrases |= {(symbol,): (kind, None) for symbol, kind in SYMBOLS.items()}
    root: dict[str, list] = {}
    for phrase, does in phrases.items():
        children = root
        for word in phrase:
            node = children.setdefault(word, [None, {}])
            children = node[1]
        node[0] = does
    return root


_TRIE = _trie()


def _words(nodes: dict[str, list]) -> Iterator[str]:
    for word, (_, children) in nodes.items():
        yield word
        yield from _words(children)


_WORDS = frozenset(_words(_TRIE))
# A decimal keeps its point; a new line ends a sentence only before an empty line, a list item or a "heading:".
_WORD = re.compile(r"vs\.|[a-z]+(?:'t\b)?|\.(?!\d)|[,;:!?/]")
_SENTENCE_END = re.compile(
    r"(?<=[.;!?\n])(?:(?<=[;!?])|(?<=\.)(?!\d)(?<!(?<![a-z])vs\.)"
    r"|(?<=\n)(?=[^\S\n]*(?:\n|[-*•]|\d{1,2}[.)]|[a-z][a-z ]{2,30}:)))"
)
# Headings of the body are also known without a full stop before them, since some corpora join all lines.
_HEADING = re.compile(
    r"(?:^|(?<=[\n.:]))\s{0,20}([A-Z][A-Za-z]{1,20}(?: [A-Za-z/&,()-]{1,20}){0,6})\s?:"
    r"|\b((?:FINDINGS?|IMPRESSIONS?|CONCLUSIONS?|Findings|Impression|Conclusion))\s?:"
)
_SECTIONS_OF_THE_ORDER = frozenset(
    ("INDICATION", "INDICATIONS", "HISTORY", "REASON", "TECHNIQUE", "COMPARISON", "COMPARISONS", "NOTIFICATION")
)
_WORDS_OF_THE_ORDER = _SECTIONS_OF_THE_ORDER | frozenset(
    ("CLINICAL", "INFORMATION", "EXAM", "EXAMINATION", "STUDY", "PROCEDURE", "REFERENCE", "DATE", "FOR", "OF", "THE")
)


# What typesetting does to letters. Each character stands for what follows it; NFKC knows ligatures and full width.
_TYPESET = {
    **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),  # soft hyphen, zero width
    **dict.fromkeys("\u2018\u2019\u201b\u02bc\u00b4", "'"),
    **dict.fromkeys("\u2010\u2011", "-"),
    **{"\u0153": "oe", "\u0152": "OE", "\u00e6": "ae", "\u00c6": "AE"},
}
_BROKEN = re.compile(r"([A-Za-z]+)-[^\S\n]*\n[^\S\n]*([a-z]+)")


@lru_cache(maxsize=1024)
def _typeset(character: str) -> str:
    """The ASCII that a typeset character stands for ("\ufb01": "fi"), or the character."""
    if character in _TYPESET:
        return _TYPESET[character]
    letters = unicodedata.normalize("NFKC", character)
    return letters if letters.isascii() else character


def _plain(text: str) -> tuple[str, list[int] | None]:
    """`text` with typographic characters and words broken at a line's end put right, and the place in `text` of each
    of its characters; None where the text is the same.

    A word is broken where the two parts together are a word of the tables, or neither part is one: "pneumo-\\nthorax"
    is, "right-\\nsided" is not.
    """
    if text.isascii() and ("-" not in text or _BROKEN.search(text) is None):
        return text, None
    parts = [_typeset(character) if character > "\x7f" else character for character in text]
    plain, at = "".join(parts), [i for i, part in enumerate(parts) for _ in part]
    pieces, places, last = [], [], 0
    for match in _BROKEN.finditer(plain):
        head, tail = match[1].lower(), match[2]
        if head + tail in _WORDS or not (head in _WORDS or tail in _WORDS):
            pieces.append(plain[last : match.end(1)])
            places += at[last : match.end(1)]
            last = match.start(2)
    return "".join(pieces) + plain[last:], places + at[last:]


def _body(text: str) -> str:
    """`text` in lower case with the sections that do not describe the image blanked; same length.

    Such a section (indication, history, technique, comparison ...) ends at the next heading or at an empty line.
    """
    headings = list(_HEADING.finditer(text)) if ":" in text else []
    pieces, last = [], 0
    for i, heading in enumerate(headings):
        words = re.findall("[A-Za-z]+", heading[1] or "")
        if not words or heading.start() < last:
            continue
        shouted = heading[1].isupper() and any(word in _SECTIONS_OF_THE_ORDER for word in words)
        if shouted or all(word.upper() in _WORDS_OF_THE_ORDER for word in words):
            end = headings[i + 1].start() if i + 1 < len(headings) else len(text)
            empty_line = re.compile(r"\S[^\S\n]*\n[^\S\n]*\n").search(text, heading.end(), end)
            end = empty_line.end() if empty_line else end
            pieces += [text[last : heading.start()], ".".ljust(end - heading.start())]
            last = end
    body = "".join(pieces) + text[last:] if pieces else text
    return body.replace("İ", "I").lower()  # the one character whose lower case is longer than itself


_LONGEST_SENTENCE = 200  # hits; degenerate text is cut there, since a sentence's time may grow with its square


def _longest_phrases(words: list[str]) -> Iterator[tuple]:
    """(kind, value, first word, last word) of the phrases of the tables, the longest at each place."""
    i, count = 0, len(words)
    while i < count:
        node = _TRIE.get(words[i])
        if node is None:
            i += 1
            continue
        does, children = node
        end, j = i, i + 1
        while children and j < count:
            node = children.get(words[j])
            if node is None:
                break
            if node[0] is not None:
                does, end = node[0], j
            children = node[1]
            j += 1
        if does is not None:
            yield *does, i, end
        i = end + 1


def _sentences(words: list[str]) -> Iterator[list[tuple]]:
    """The hits (kind, value, first word, last word) of each sentence that has any."""
    hits: list[tuple] = []
    comma = -1
    for hit in _longest_phrases(words):
        kind, _, start, end = hit
        if hits and (kind in (STOP, QUERY) or len(hits) == _LONGEST_SENTENCE):
            if kind == QUERY:
                hits.append((SUSPECT, None, start, end))
            yield hits
            hits, comma = [], -1
        if kind == SITE:
            if comma >= 0:
                hits[comma] = (COMMA, SITE, *hits[comma][2:])
        elif _counts(hit, hits, words):
            if kind == COMMA:
                comma = len(hits)
            elif kind in _SEPARATORS or kind in (OR, VERB):
                comma = -1
            hits.append(hit)
    if hits:
        yield hits


def _counts(hit: tuple, hits: list[tuple], words: list[str]) -> bool:
    """Whether a phrase is a hit after those before it: "small" only after a comma, "tip" only of a device."""
    kind, _, start, end = hit
    if kind == ASSERT:
        return bool(hits) and hits[-1][0] in _SEPARATORS
    if kind == PART:
        return words[end] == "of" or (bool(hits) and _is_device(hits[-1]) and start - hits[-1][3] <= 2)  # "tube's tip"
    return kind not in (IGNORE, STOP, QUERY)


_BIG = frozenset((ENLARGED, LARGE, PROMINENT))
_STEADY = frozenset((STABLE, NO_CHANGE))
_COMPARED = _STEADY | {LARGE}
_NOUNS = frozenset((MENTION, SUBJECT, GENERAL))
_SEPARATORS = frozenset((COMMA, AND, WITH, BREAK, THERE))
_NEGATIONS = frozenset((NEGATE, GONE, NOT))
_LIST_ENDS = frozenset((VERB, MAY, SEEN, BREAK, THERE, WITH, NEGATE, GONE, NOT))
_JOINS = frozenset((AND, OR, SLASH))


def _is_device(hit: tuple) -> bool:
    return hit[0] == MENTION and SUPPORT_DEVICES in hit[1][0]


def _goes_on(hits: list[tuple], start: int) -> bool:
    """Whether the list that runs on at `start` ends in "or": "no edema, left effusion or pneumothorax"."""
    noun = False
    for kind, *_ in hits[start:]:
        if kind == OR and noun:
            return True
        if kind in _LIST_ENDS:
            return False
        noun = noun or kind in _NOUNS
    return False


def _ends_negation(hits: list[tuple], i: int, start: int, scopes: "_Scopes") -> bool:
    """Whether a negation ends at the comma, "and" or "with" at `i`, after which the clause goes on at `start`."""
    if hits[i][0] == AND:
        return scopes.ended
    if hits[i][0] == WITH:
        return scopes.brief
    signs = (hits[i][1] == SITE) + scopes.ended + scopes.brief
    return signs > 1 or (signs > 0 and not _goes_on(hits, start))


def _opens_statement(hits: list[tuple], i: int, scopes: "_Scopes") -> bool:
    """Whether what follows the comma, "and" or "with" at `i` is a statement that the scope before does not reach.

    "No edema, effusion is small" opens one at the comma; "no edema, effusion or pneumothorax is seen" does not. A
    negation reaches over a comma to an item without side or place, since such an item goes on with the list, and to
    any item of a list that ends in "or", unless a verb has ended it ("no edema is seen, effusion on the left").
    """
    scoped = scopes.scope != POSITIVE
    after_both = hits[i][0] == COMMA and i + 1 < len(hits) and hits[i + 1][0] == AND
    start = i + 2 if after_both else i + 1
    if start >= len(hits):
        return False
    kind, value = hits[start][:2]
    if scopes.scope == NEGATIVE and kind not in _JOINS and _ends_negation(hits, i, start, scopes):
        return True
    if kind == ASSERT or (kind == PREDICATE and value != LARGE):
        return scoped
    if kind in (OR, SLASH) or ((hits[i][0] == AND or after_both) and not scopes.has_predicate):
        return False
    noun = False
    for j in range(start, len(hits)):
        kind = hits[j][0]
        if kind in _SEPARATORS:
            return False
        if kind in _NOUNS:
            noun = True
        elif kind in (VERB, MAY, NOT):
            return noun and not (scoped and j + 1 < len(hits) and hits[j + 1][0] == SEEN)
    return False


class _Scopes:
    """Gives the mentions of one sentence their states, left to right.

    `mentions`: lists [first word, last word, condition indices, state]. `looks`: what each PREDICATE that no mention
    follows says, by its place in `hits`, with negation and doubt applied.
    """

    __slots__ = (
        *("before", "brief", "clause", "ended", "filled", "has_predicate", "hits", "looks"),
        *("mentions", "once", "pending", "scope", "segment", "unchanged"),
    )

    def __init__(self, hits: list[tuple]):
        self.hits = hits
        self.mentions: list[list] = []
        self.looks: dict[int, str] = {}
        self.clause = 0  # first mention of the running clause
        self.segment = 0  # first mention that a cue reaches back to: after the clause's last comma or "with"
        self.scope = POSITIVE  # the state that the last cue gives to what follows
        self.once = False  # that scope ends at the next comma, "and" or "with"
        self.brief = False  # that scope is a noun phrase: it ends at a verb, at "with" and at a comma without "or"
        self.filled = False  # something stands in that scope
        self.ended = False  # and a verb after it, so that the scope ends at the next comma or "and"
        self.pending = -1  # how many mentions there were when a cue of either direction came; -1 when none waits
        self.has_predicate = False  # the running clause has one
        self.unchanged = -1  # how many mentions there were at "no change in"; -1 outside of its clause
        self.before = ""  # kind of the hit before
        for i, (kind, value, *_) in enumerate(hits):
            if kind in _READERS:
                _READERS[kind](self, i, value)
            self.before = kind
        self._settle()
        for i, hit in enumerate(hits):
            if hit[0] == EARLIER:
                self._forget(i)

    def _open(self, state: int, once: bool = False, pending: bool = False, brief: bool = False) -> None:
        self._settle()
        self.scope, self.once, self.brief = state, once, brief
        self.filled = self.ended = False
        self.pending = len(self.mentions) if pending else -1

    def _close(self) -> None:
        self._settle()
        self.scope, self.once, self.brief = POSITIVE, False, False
        self.filled = self.ended = False

    def _end_object(self, value: str | None) -> None:
        """A verb ends a negation that has its object already; "clearing of the left base shows" has it in any case."""
        if self.scope == NEGATIVE and (self.filled or (self.brief and value == TRANSITIVE)):
            if self.brief or value == TRANSITIVE:
                self._close()
            else:
                self.ended = True

    def _settle(self) -> None:
        """A cue of either direction that met no mention after it applies to those before it."""
        if self.pending == len(self.mentions):
            self._reach_back(self.scope)
        self.pending = -1

    def _reach_back(self, state: int) -> None:
        for mention in self.mentions[self.segment :]:
            if mention[3] == POSITIVE or (state == NEGATIVE and mention[3] in (UNCERTAIN, BLANK)):
                mention[3] = state

    def _reaches(self, i: int) -> bool:
        """Whether the cue at `i` has mentions before it to reach back to; "with" and no mention is no border."""
        if len(self.mentions) == self.segment:
            separator = next((hit[0] for hit in reversed(self.hits[:i]) if hit[0] in _SEPARATORS), None)
            if separator == WITH:  # "consolidation with air bronchograms cannot be excluded"
                self.segment = self.clause
        return len(self.mentions) > self.segment

    def _alternatives(self, i: int, conditions: tuple[int, ...], state: int) -> int:
        """The state of the mention at `i`, which follows "or" or "versus"; makes what these join it to uncertain too.

        "Edema or pneumonia" asserts neither. With a mere description on one side ("atelectasis or scarring",
        "infiltrate or atelectasis") "or" asserts both, as human indexers read it; "versus" never does.
        """
        hits = self.hits
        if self.unchanged >= 0 and self.scope == POSITIVE:  # "no change in edema or effusion"
            for mention in self.mentions[self.unchanged :]:
                mention[3] = UNCERTAIN if mention[3] == POSITIVE else mention[3]
            return UNCERTAIN
        if state == NEGATIVE or hits[i - 2][0] in (ASSERT, WITH):
            return state  # "with mild residual or recurrent pneumonia", "edema rather than pneumonia or hemorrhage"
        versus = hits[i - 1][0] == VERSUS
        joined = self.mentions[self.clause :] if hits[i - 2][0] == COMMA else self.mentions[-1:]
        for mention in joined:
            union = {*mention[2], *conditions}
            if mention[3] == POSITIVE and (versus or (LUNG_OPACITY not in union and len(union) > 1)):
                mention[3] = UNCERTAIN
                state = UNCERTAIN if state == POSITIVE else state
        return state

    def _forget(self, i: int) -> None:
        """Takes back what the clause around "on the previous study" at `i` says, where it says it of that study.

        That is a clause whose verbs are of the past and that calls nothing unchanged or larger. "Was not seen on the
        previous study" says that it is seen now.
        """
        hits, start = self.hits, i
        while start > 0 and hits[start - 1][0] not in (COMMA, BREAK):
            start -= 1
        end = i + 1
        if end < len(hits) and start == i and hits[end][0] == COMMA:
            end += 1  # "on the previous study, an effusion was seen"
        while end < len(hits) and hits[end][0] not in (COMMA, BREAK):
            if hits[end][0] == AND and not any(hit[0] in (VERB, PREDICATE) for hit in hits[end + 1 : end + 2]):
                break
            end += 1
        clause = hits[start:end]
        verbs = [value for kind, value, *_ in clause if kind == VERB]
        compared = any(kind == CHANGE or (kind == PREDICATE and value in _COMPARED) for kind, value, *_ in clause)
        if PAST not in verbs or any(value not in (PAST, None) for value in verbs) or compared:
            return
        unseen = any(a[0] == NOT and b[0] == SEEN for a, b in pairwise(clause))
        for mention in self.mentions:
            if clause[0][2] <= mention[0] and mention[1] <= clause[-1][3]:
                mention[3] = POSITIVE if unseen else BLANK

    def _begin_clause(self) -> None:
        self._close()
        self.clause = self.segment = len(self.mentions)
        self.has_predicate, self.unchanged = False, -1

    def _read_mention(self, i: int, value: tuple) -> None:
        hits, (conditions, state) = self.hits, value
        self.filled = True
        if state == BLANK:  # an illness of the past
            if self.before != MENTION and i + 1 < len(hits) and hits[i + 1][1] == PERSISTS:
                state = self.scope
        elif self.scope != POSITIVE:
            state = self.scope
        if self.before in (OR, VERSUS) and len(self.mentions) > self.clause:
            state = self._alternatives(i, conditions, state)
        self.mentions.append([hits[i][2], hits[i][3], conditions, state])
        if self.before == PART and _is_device(hits[i]):
            self.segment = len(self.mentions)

    def _read_general(self, i: int, value: None) -> None:
        self.filled = True

    def _read_verb(self, i: int, value: str | None) -> None:
        self.has_predicate = True
        self._end_object(value)

    def _read_part(self, i: int, value: None) -> None:
        if self.before == MENTION:
            if self.mentions[-1][3] in (NEGATIVE, UNCERTAIN):
                self.mentions[-1][3] = POSITIVE  # "cannot confirm tube position"
            self.segment = len(self.mentions)
        elif self.before in _NEGATIONS or self.before == DOUBT:
            self._close()  # "cannot confirm the position of the tube"

    def _read_separator(self, i: int, value: str | None) -> None:
        kind = self.hits[i][0]
        if self.before != COMMA and _opens_statement(self.hits, i, self):
            self._begin_clause()
            return
        if self.once or (kind == WITH and self.scope == UNCERTAIN):
            self._close()
        if kind == COMMA and i + 1 < len(self.hits) and self.hits[i + 1][0] in _JOINS:
            self.segment = self.clause
        elif kind != AND:
            self._settle()
            self.segment = len(self.mentions)

    def _read_negation(self, i: int, value: None) -> None:
        self.has_predicate, self.unchanged = True, -1
        self._open(NEGATIVE, brief=self.hits[i][0] == GONE)
        if self.before == COLON and i > 1 and self.hits[i - 2][0] == MENTION:
            self.mentions[-1][3] = NEGATIVE  # "Pneumothorax: no"

    def _read_predicate(self, i: int, value: str) -> None:
        self.has_predicate = True
        if value == NO_CHANGE:
            self.unchanged = len(self.mentions)
        if i + 1 == len(self.hits) or self.hits[i + 1][0] != MENTION or value == OBSCURED:
            if value in _BIG and self.scope != POSITIVE:
                self.looks[i] = NORMAL if self.scope == NEGATIVE else BORDERLINE
            elif self.before != NOT:
                self.looks[i] = value

    def _read_seen(self, i: int, value: None) -> None:
        self.has_predicate = True
        cue = i - 1
        while cue > 0 and self.hits[cue][0] in (VERB, CLEARLY):
            cue -= 1
        if cue >= 0 and self.hits[cue][0] in (NOT, MAY) and len(self.mentions) > self.clause:
            reaches = len(self.mentions) > self.segment
            self._close()
            if reaches:
                doubtful = self.hits[cue][0] == MAY or self.before == CLEARLY
                self._reach_back(UNCERTAIN if doubtful else NEGATIVE)
        else:
            self._end_object(value)

    def _read_break(self, i: int, value: None) -> None:
        kind = self.hits[i][0]
        if kind == BREAK or (kind == THERE and self.scope != BLANK) or (kind == AFTER and self.scope != POSITIVE):
            self._begin_clause()

    def _read_may(self, i: int, value: None) -> None:
        self.has_predicate = True
        self._open(UNCERTAIN)

    def _read_doubt(self, i: int, value: None) -> None:
        if self.scope not in (NEGATIVE, BLANK):
            self._open(UNCERTAIN)

    def _read_either_way(self, i: int, value: None) -> None:
        """A cue of either direction: "possible", "resolved"."""
        kind = self.hits[i][0]
        state = UNCERTAIN if kind == SUSPECT else NEGATIVE
        if self.before == NOT:
            self._close()  # "not resolved"
        elif self.scope in (NEGATIVE, BLANK) and kind == SUSPECT:
            pass  # "no suspected fracture"
        elif kind == REVOKE and (wish := _wish(self.hits, i)):
            self._close()
            if wish == MAY and self._reaches(i) and SUPPORT_DEVICES not in self.mentions[-1][2]:
                self._reach_back(UNCERTAIN)  # "may have resolved"
        elif self.before in (VERB, COLON) and self._reaches(i):
            self._close()
            self._reach_back(state)
        else:
            self._open(state, once=True, pending=True)

    def _read_exclusion(self, i: int, value: None) -> None:
        negated = any(hit[0] in _NEGATIONS for hit in self.hits[max(i - 2, 0) : i])
        self._close()
        if self.hits[i][0] == EXCLUDED and self._reaches(i):
            self._reach_back(UNCERTAIN if negated else NEGATIVE)
        else:
            self._open(UNCERTAIN)

    def _read_change(self, i: int, value: str | None) -> None:
        if self.before in _NEGATIONS or self.before in (AND, COMMA):
            if self.scope == NEGATIVE:
                self.unchanged = len(self.mentions)
            self.scope = POSITIVE
        elif value == INCREASE and self.scope in (POSITIVE, UNCERTAIN) and self._subject_follows(i):
            self.has_predicate = True
            if self.hits[i + 1][1]:  # not of "increase in lung volume"
                self.looks[i] = LARGE if self.scope == POSITIVE else BORDERLINE

    def _subject_follows(self, i: int) -> bool:
        return i + 1 < len(self.hits) and self.hits[i + 1][0] == SUBJECT

    def _read_unsaid(self, i: int, value: None) -> None:
        self._open(BLANK, once=True)


_READERS = {
    MENTION: _Scopes._read_mention,
    GENERAL: _Scopes._read_general,
    VERB: _Scopes._read_verb,
    PART: _Scopes._read_part,
    **dict.fromkeys((COMMA, AND, WITH), _Scopes._read_separator),
    **dict.fromkeys(_NEGATIONS, _Scopes._read_negation),
    PREDICATE: _Scopes._read_predicate,
    SEEN: _Scopes._read_seen,
    **dict.fromkeys((BREAK, THERE, AFTER), _Scopes._read_break),
    MAY: _Scopes._read_may,
    DOUBT: _Scopes._read_doubt,
    **dict.fromkeys((SUSPECT, REVOKE), _Scopes._read_either_way),
    **dict.fromkeys((EXCLUDE, EXCLUDED), _Scopes._read_exclusion),
    CHANGE: _Scopes._read_change,
    UNSAID: _Scopes._read_unsaid,
}


def _wish(hits: list[tuple], i: int) -> str | None:
    """MODAL or MAY where the verbs before the cue at `i` only ask for it or allow it: "should be removed"."""
    while i > 0 and hits[i - 1][0] == VERB:
        if hits[i - 1][1] == MODAL:
            return MODAL
        i -= 1
    return MAY if i > 0 and hits[i - 1][0] == MAY else None


_STATES = {
    ENLARGED: POSITIVE,
    LARGE: POSITIVE,
    PROMINENT: POSITIVE,
    NORMAL: NEGATIVE,  # CheXpert: also "at the upper limits of normal"
    BORDERLINE: UNCERTAIN,
    OBSCURED: UNCERTAIN,
    STABLE: UNCERTAIN,
    NO_CHANGE: UNCERTAIN,
}
_STATES_OF = {
    ENLARGED_CARDIOMEDIASTINUM: {**_STATES, STABLE: UNSIZED, NO_CHANGE: UNSIZED},
    MEDIASTINUM: {**_STATES, STABLE: UNSIZED, NO_CHANGE: UNSIZED},
    CONDITIONS.index("Cardiomegaly"): {**_STATES, PROMINENT: UNCERTAIN},
    LUNG_OPACITY: {**_STATES, OBSCURED: BLANK, STABLE: BLANK, NO_CHANGE: BLANK},
}


def _judge_subjects(hits: list[tuple], looks: dict[int, str]) -> Iterator[list]:
    """The mentions that follow from anatomy and what is said of it: "normal heart size", "mediastinum is widened"."""
    # Subject to its adjective, which a list shares: "normal heart size and mediastinum".
    attributes: dict[int, int] = {}
    for i, (kind, conditions, first, end) in enumerate(hits):
        if kind != SUBJECT:
            continue
        predicate = _attribute(hits, looks, i)
        shared = predicate is None and i > 1 and hits[i - 1][0] in (AND, COMMA, OR)
        if shared:
            predicate = attributes.get(i - 2)
        if predicate is not None:
            attributes[i] = predicate
        if predicate is None or shared or looks[predicate] in _STEADY:
            after = _predicate_after(hits, looks, i)
            if after is not None and (predicate is None or shared or looks[after] not in _STEADY):
                predicate = after
        if predicate is None:
            continue
        look = looks[predicate]
        following = [hit for hit in hits[predicate + 1 : predicate + 3] if hit[0] != OR]
        if look == NORMAL and following and following[0][0] == PREDICATE and following[0][1] in _BIG:
            look = BORDERLINE  # "normal or mildly enlarged"
        if not conditions and look in _BIG:
            yield [first, end, (OTHER,), POSITIVE]
        for condition in conditions:
            if state := _STATES_OF[condition][look]:
                condition = ENLARGED_CARDIOMEDIASTINUM if condition == MEDIASTINUM else condition
                yield [min(first, hits[predicate][2]), max(end, hits[predicate][3]), (condition,), state]


def _attribute(hits: list[tuple], looks: dict[int, str], i: int) -> int | None:
    """Place of the predicate directly before the subject at `i`; of several, the first that is not "stable"."""
    start = i
    while start - 1 in looks:
        start -= 1
    owner = start - 2 if start > 1 and hits[start - 1][0] == VERB else start - 1
    if owner >= 0 and hits[owner][0] == SUBJECT:
        start += 1  # in "heart is normal mediastinum is wide" the first belongs to the subject before it
    run = range(start, i)
    return next((j for j in run if looks[j] not in _STEADY), run[0] if run else None)


def _predicate_after(hits: list[tuple], looks: dict[int, str], i: int) -> int | None:
    """Place of the predicate after the subject at `i`; the first that says more than "stable", or else that one."""
    stable, has_predicate = None, False
    last = len(hits) - 1
    for j in range(i + 1, last + 1):
        kind = hits[j][0]
        if kind == PREDICATE:
            attribute = j < last and hits[j + 1][0] == SUBJECT and hits[j - 1][0] in _SEPARATORS
            if j not in looks or attribute:
                continue
            if looks[j] not in _STEADY:
                return j
            stable, has_predicate = j, True
        elif kind == VERB:
            has_predicate = True
        elif kind in (MENTION, THERE) or (kind == SUBJECT and has_predicate):
            break
        elif kind in _SEPARATORS and (has_predicate or kind in (WITH, BREAK)):
            k = j + 1
            while k < last and hits[k][0] in (ASSERT, AND, NOT):
                k += 1
            if k > last or hits[k][0] != PREDICATE or (k < last and hits[k + 1][0] == SUBJECT):
                break
    return stable


def _judge(hits: list[tuple]) -> list[list] | None:
    """Mentions [first word, last word, condition indices, state] of one sentence; None where it names no finding."""
    kinds = {hit[0] for hit in hits}
    names = MENTION in kinds or PREDICATE in kinds
    if not names and not (CHANGE in kinds and SUBJECT in kinds):
        return [] if GENERAL in kinds else None
    scopes = _Scopes(hits)
    mentions = scopes.mentions
    if scopes.looks and SUBJECT in kinds:
        mentions = mentions + list(_judge_subjects(hits, scopes.looks))
    speaks = PREDICATE in kinds or GENERAL in kinds or any(mention[3] != BLANK for mention in mentions)
    return mentions if speaks else None


def _weigh(hits: tuple[tuple, ...]) -> tuple[tuple[int, int], ...] | None:
    """The conditions of one sentence, of whose hits only (kind, value) are given, with their strengths."""
    mentions = _judge([(kind, value, i, i) for i, (kind, value) in enumerate(hits)])
    if mentions is None:
        return None
    pairs = ((_STRENGTH.index(state), condition) for _, _, conditions, state in mentions for condition in conditions)
    return tuple({condition: strength for strength, condition in sorted(pairs)}.items())


# Reports repeat each other's sentences, and the words that count in them even more; long ones would fill the memory.
_weigh_again = lru_cache(maxsize=8192)(_weigh)


def _read(sentence: str) -> list[tuple[tuple[int, int], ...]]:
    """`_weigh` of the sentences that speak of findings; there is more than one where one was cut."""
    hit_lists = (tuple([hit[:2] for hit in hits]) for hits in _sentences(_WORD.findall(sentence)))
    weighed = (_weigh_again(hits) if len(hits) < 30 else _weigh(hits) for hits in hit_lists)
    return [conditions for conditions in weighed if conditions is not None]


_read_again = lru_cache(maxsize=8192)(_read)


class LexicalLabeler:
    """CheXpert states of reports by phrases and clause scope; needs no weights, labels thousands of reports a second.

    A text may be a whole report: sections that do not describe the image (INDICATION, HISTORY, TECHNIQUE ...) are not
    read. Several mentions of a condition combine as positive > uncertain > negative. No Finding is positive where no
    condition except Support Devices and no other abnormality (emphysema, granuloma ...) is positive or uncertain, else
    blank, as the CheXpert labeler has it; a text that says nothing of findings, such as an empty one, is all blank.
    """

    name = "lexical"

    def __init__(self, stable_mediastinum: CheXpertState = CheXpertState.BLANK):
        """`stable_mediastinum`: the state of a mediastinum, with the heart or without, that is only called stable.
        With CheXpert's, uncertain, it stands against No Finding too."""
        self._output = (BLANK, POSITIVE, NEGATIVE, UNCERTAIN, int(stable_mediastinum))
        doubted = () if stable_mediastinum == BLANK else (UNSIZED,)
        self._abnormal = frozenset(_STRENGTH.index(state) for state in (POSITIVE, UNCERTAIN, *doubted))

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """`CheXpertState` values, int64, shape (n, 14), in the order of `CONDITIONS`. Any string is labelled."""
        texts = list(texts)
        states = {text: self._states(text) for text in dict.fromkeys(texts)}
        return np.array([states[text] for text in texts], dtype=np.int64).reshape(len(texts), len(CONDITIONS))

    @staticmethod
    def phrases() -> list[list[str]]:
        """The phrases that it knows for findings and for the anatomy that they are said of, a list for each."""
        tables = (
            table for table, kind, value in _tables() if kind == SUBJECT or (kind == MENTION and value[1] != BLANK)
        )
        return [[" ".join(phrase) for phrase in _phrases(table)] for table in tables]

    def mentions(self, text: str) -> list[tuple[int, int, int, CheXpertState]]:
        """The evidence: (start, end, condition index, state) with characters of `text`, in the order of `start`.

        Indices are those of `CONDITIONS`; No Finding, which no phrase states, is not among them.
        """
        plain, at = _plain(text)

        def place(first: int, end: int) -> tuple[int, int]:
            return (first, end) if at is None else (at[first], at[end - 1] + 1)

        mentions, start = [], 0
        for sentence in _SENTENCE_END.split(_body(plain)):
            spans = [(start + match.start(), start + match.end()) for match in _WORD.finditer(sentence)]
            mentions += [
                (*place(spans[first][0], spans[end][1]), condition, CheXpertState(self._output[state]))
                for hits in _sentences(_WORD.findall(sentence))
                for first, end, conditions, state in _judge(hits) or ()
                for condition in conditions
                if condition != OTHER and self._output[state] != BLANK
            ]
            start += len(sentence)
        return sorted(mentions)

    def _states(self, text: str) -> list[int]:
        strengths = [0] * (len(CONDITIONS) + 1)
        speaks = False
        for sentence in _SENTENCE_END.split(_body(_plain(text)[0])):
            for conditions in _read_again(sentence) if len(sentence) < 1000 else _read(sentence):
                speaks = True
                for condition, strength in conditions:
                    if strength > strengths[condition]:
                        strengths[condition] = strength
        states = [self._output[_STRENGTH[strength]] for strength in strengths[: len(CONDITIONS)]]
        strengths[SUPPORT_DEVICES] = 0
        if speaks and self._abnormal.isdisjoint(strengths):
            states[NO_FINDING] = POSITIVE
        return states


def __getattr__(name: str):
    """CheXbertLabeler stands beside LexicalLabeler for whoever looks for it here; torch is imported only then."""
    if name == "CheXbertLabeler":
        from rewards.chexbert import CheXbertLabeler

        return CheXbertLabeler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
