"""LexicalGraph: RadGraph-like graphs of reports by a lexicon and clause scope, without weights.

Every word that the lexicon knows is an entity, as it is written, so sides, sizes and severity are seen. Negation and
doubt are the LexicalLabeler's: its cues and scopes resolve each sentence. Relations follow from word order. What is an
entity and which relations there are follows RadGraph's schema (Jain et al. 2021, section 3); lexicon and rules are
ours.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter

from rewards import labelers
from rewards.labelers import word_set
from rewards.labels import CheXpertState

ANATOMY = "anatomy"
PLACE = "place"  # anatomy that modifies other anatomy: "right", "size"
OBSERVATION = "observation"
MODIFIER = "modifier"  # modifies an observation, and is one where there is none to modify: "heart is stable"

# "a|b|c" are words for the same thing, which the first name tells apart from others; plurals, and adverbs in -ly, are
# understood. One word may stand for two: "cardiomegaly" for "enlarged heart".
LEXICON = {
    ANATOMY: """heart|cardiac|cardio, lung|pulmonary|pulmonic, pleura|pleural, pleuroparenchymal,
        pericardium|pericardial, mediastinum|mediastinal, heart mediastinum|cardiomediastinum|cardiomediastinal,
        heart lung|cardiopulmonary, hilum|hilar|hila|hilus, aorta|aortic, arch, knob, diaphragm|diaphragmatic,
        hemidiaphragm, rib|ribs, spine|spinal, vertebra|vertebral|vertebrae, clavicle|clavicular, joint, disc|disk,
        bone|bony|osseous|skeletal|skeleton, shoulder|humerus|humeral|glenohumeral|acromioclavicular, endplate,
        sternum|sternal, scapula, trachea|tracheal, carina, bronchus|bronchial|bronchi, peribronchial, bronchovascular,
        airway, vessel|vascular|vasculature|vascularity, artery|arterial, vein|venous, svc|cavoatrial, subclavian,
        jugular, atrium|atrial, ventricle|ventricular, thorax|chest|thoracic|intrathoracic, thoracolumbar, lumbar,
        cervical, interstitium|interstitial, septal, airspace, alveolus|alveolar|alveoli, parenchyma|parenchymal,
        costophrenic, angle, sulcus|sulci, fissure|fissural, lobe|lobar, base|basilar|basal, apex|apical|apices, zone,
        bilateral base|bibasilar|bibasal, bilateral apex|biapical, lingula|lingular, tissue, subcutaneous, breast,
        abdomen|abdominal, stomach|gastric, esophagus|esophageal, neck, hemithorax, structure, border, wall, space,
        field, perihilar, suprahilar, infrahilar, retrocardiac, paratracheal, marking, volume, lymph, axilla|axillary,
        azygos, body|bodies, bihilar, hiatal, segment""",
    PLACE: """right|rightward, left|leftward, bilateral|both, upper|superior, lower|inferior, middle|mid, medial,
        lateral, anterior, posterior, central, peripheral, proximal, distal, size, silhouette, contour""",
    OBSERVATION: """effusion, pneumothorax|pneumothoraces|ptx, hydropneumothorax, hemothorax, empyema, fluid,
        edema|oedema, opacity|opacification|opacified, density, infiltrate|infiltration|infiltrative,
        consolidation|consolidative, atelectasis|atelectatic|atelectases, pneumonia|pneumonic, infection|infectious,
        pneumonitis, aspiration, collapse|collapsed, enlarged|enlargement|enlarging, enlarged heart|cardiomegaly,
        normal|unremarkable, clear, intact, abnormality|abnormal, disease, process, finding, change, injury,
        nodule|nodular|nodularity, mass|masses, lesion, malignancy|malignant|neoplasm|tumor|carcinoma,
        metastasis|metastatic|metastases, granuloma|granulomatous|granulomata, calcification|calcified|calcific,
        fracture|fractured, deformity, dislocation|subluxation, scoliosis|dextroscoliosis|levoscoliosis,
        kyphosis|kyphotic, spondylosis, osteophyte|spurring, osteopenia|osteopenic|demineralization,
        arthritis|arthritic, hernia, scar|scarring, fibrosis|fibrotic, thickening|thickened, plaque, blunting|blunted,
        elevation|elevated, congestion|congested|congestive, engorgement|engorged, redistribution|cephalization,
        lead, clip, wire,
        prominence|prominent, cuffing, widening|widened, tortuosity|tortuous, ectasia|ectatic, unfolding|unfolded,
        dilatation|dilated, atherosclerosis|atherosclerotic, aneurysm, emphysema|emphysematous|copd, device, valve,
        bulla|bullous|bullae, bronchiectasis, crowding, flattening|flattened, shift|shifted, deviation|deviated,
        hyperinflation|hyperinflated|hyperexpanded|hyperexpansion|hyperaeration, rotation, eventration, silhouetting,
        hypoinflation|hypoinflated|hypoventilation, lucency|lucent|hyperlucent, cavity|cavitation|cavitary, cyst,
        contusion, hemorrhage, tuberculosis, failure|chf|overload, adenopathy|lymphadenopathy, pneumomediastinum,
        pneumoperitoneum, air|gas, haziness|haze, tube|et|ett|endotracheal|tracheostomy|thoracostomy, catheter|picc,
        nasogastric|enteric|ng|orogastric|dobhoff|feeding, pacemaker|pacer|pacing|icd|aicd|defibrillator, sternotomy,
        line, port, stent, prosthesis|prosthetic,
        drain|pigtail, hardware|screw, suture|staple, cabg, replacement, surgery|surgical|postsurgical|postoperative,
        cholecystectomy, pectus, mineralization, inflated|expanded|aerated|aeration, obscured, foreign, midline""",
    MODIFIER: """small, large, tiny|trace|minimal|minute, mild|slight|minor, moderate, severe|marked|gross, massive,
        extensive, subtle, acute, chronic, old|remote|healed, new, stable|unchanged|similar, subacute, recurrent,
        increased|increase|increasing|worse|worsening|worsened|progression|progressing, residual, persistent, few,
        decreased|decrease|decreasing|improved|improving|improvement|resolving, low, high, focal, diffuse, multifocal,
        patchy, streaky, linear|platelike, hazy, dense, confluent, scattered, multiple|several, discrete, displaced,
        nondisplaced, layering, loculated, active, overt, subsegmental, discoid, segmental, degenerative, free, lytic,
        reticular, reticulonodular, rounded|round, sclerotic, compression|compressive, borderline, suspicious, tension,
        significant, well, coarse|coarsened, noncalcified, ground, glass""",
}


SUGGESTIVE = word_set("""suggest suggests suggesting suggestive represent represents representing reflect reflects
    reflecting consistent compatible concerning suspicious worrisome indicating indicative favor favors due
    secondary""")
BARRIERS = word_set(", but with without although however no not")  # no relation but suggestive_of crosses one
FUNCTION_WORDS = word_set(
    """, : . ; ! ? / a an the and or but of in at on to for by with without within no not is are was were be been has
    have there this that which these it as may could can cannot seen noted identified evidence present appears
    appear remains again demonstrates shows limits from s"""
)
LABELS = {
    CheXpertState.POSITIVE: "Observation::definitely present",
    CheXpertState.NEGATIVE: "Observation::definitely absent",
    CheXpertState.UNCERTAIN: "Observation::uncertain",
}
ANATOMY_LABEL = "Anatomy::definitely present"

_ENDS = frozenset(".;!?\n")
_LISTS = word_set(", and or the a are is")
_SCOPING = frozenset(
    {labelers.NEGATE, labelers.GONE, labelers.NOT, labelers.REVOKE, labelers.DOUBT, labelers.MAY, labelers.SUSPECT}
    | {labelers.EXCLUDE, labelers.EXCLUDED, labelers.UNSAID, labelers.OR, labelers.VERSUS}
)
_REPLACED = frozenset((labelers.MENTION, labelers.GENERAL))  # the labeler's findings: ours take their place
_WINDOW = 12  # entities farther apart than so many words are not related
_LONGEST = 200  # words; a longer sentence is cut, so that the time stays linear in the text


def _lexicon() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Word to its kind and its canonical words. A word of the tables wins over another one's plural or adverb."""
    listed, derived = {}, {}
    for kind, table in LEXICON.items():
        for entry in table.split(","):
            names = [name.strip() for name in entry.split("|")]
            value = kind, tuple(names[0].split())
            for name in names:
                listed[name] = derived[name + "ly"] = derived[labelers._plural(name)] = value
    return derived | listed


_LEXICON = _lexicon()


def graph_words(graph: dict) -> Counter:
    """The words of a graph's text as (word, certainty) with their counts.

    Words for the same thing are one word, function words are left out, and an observation's words carry its label,
    so that "effusion" and "no effusion" share nothing; other words have certainty None.
    """
    labels = {entity["start_ix"]: entity["label"] for entity in graph["entities"].values()}
    bag: Counter = Counter()
    for i, word in enumerate(graph["text"].split(" ")):
        if word.strip() and word not in FUNCTION_WORDS:
            for name in _LEXICON[word][1] if word in _LEXICON else (word,):
                observed = name in _LEXICON and _LEXICON[name][0] in (OBSERVATION, MODIFIER)
                bag[name, labels.get(i) if observed else None] += 1
    return bag


class _Sentence:
    """The entities of one sentence and their relations.

    `at`, `kinds`: each entity's word and kind, in the order of the text. `relations`: each entity's list of (type,
    target entity).
    """

    __slots__ = ("at", "kinds", "relations", "segments", "words")

    def __init__(self, words: list[str], at: list[int]):
        self.words, self.at = words, at
        self.kinds = [_LEXICON[words[i]][0] for i in at]
        self.segments = [0] * len(at)  # entities of different segments have a barrier between them
        if not BARRIERS.isdisjoint(words):
            barriers = list(accumulate(word in BARRIERS for word in words))
            self.segments = [barriers[i] for i in at]
        self.relations: list[list[tuple[str, int]]] = [[] for _ in at]
        self._relate()

    def _nearest(self, k: int, kinds: tuple[str, ...], step: int) -> int | None:
        """The next entity of `kinds` after (`step` 1) or before (-1) entity `k` in its segment."""
        j = k + step
        while 0 <= j < len(self.at) and self.segments[j] == self.segments[k]:
            if abs(self.at[j] - self.at[k]) > _WINDOW:
                break
            if self.kinds[j] in kinds:
                return j
            j += step
        return None

    def _adjoin(self, j: int, k: int) -> bool:
        """Whether the entity `k` follows `j` without a word between them."""
        return j >= 0 and k < len(self.at) and self.at[k] == self.at[j] + 1

    def _nearest_either(self, k: int, kinds: tuple[str, ...]) -> int | None:
        """The next entity of `kinds` after entity `k` in its segment, or else before it."""
        following = self._nearest(k, kinds, 1)
        return self._nearest(k, kinds, -1) if following is None else following

    def _of_kind(self, kind: str) -> list[int]:
        return [k for k, kind_of_k in enumerate(self.kinds) if kind_of_k == kind]

    def _relate(self) -> None:
        for k in self._of_kind(MODIFIER):
            head = self._nearest_either(k, (OBSERVATION,))
            if head is None:
                self.kinds[k] = OBSERVATION
            else:
                self.relations[k].append(("modify", head))
        heads = self._join_anatomy()
        self._attach_places(heads)
        self._locate_observations(heads)
        self._link_suggestions()

    def _join_anatomy(self) -> list[int]:
        """Each entity's head: "lung base", the last of adjoining anatomy words is the head of the others."""
        heads = list(range(len(self.at)))
        for k in range(len(self.at) - 2, -1, -1):
            if self.kinds[k] == self.kinds[k + 1] == ANATOMY and self._adjoin(k, k + 1):
                heads[k] = heads[k + 1]
                self.relations[k].append(("modify", heads[k]))
        return heads

    def _attach_places(self, heads: list[int]) -> None:
        for k in self._of_kind(PLACE):
            if self._adjoin(k - 1, k) and self.kinds[k - 1] == ANATOMY and not self._adjoin(k, k + 1):
                site = k - 1  # "heart size and ..."
            else:
                site = self._nearest_either(k, (ANATOMY,))
            if site is not None:
                self.relations[k].append(("modify", heads[site]))

    def _locate_observations(self, heads: list[int]) -> None:
        observations = self._of_kind(OBSERVATION)
        sites: dict[int, int] = {}  # "pleural effusion": an observation's own site stands before it
        for k in observations:
            j = k - 1
            while j >= 0 and self.kinds[j] == MODIFIER and self._adjoin(j, j + 1):
                j -= 1
            if self._adjoin(j, j + 1) and self.kinds[j] in (ANATOMY, PLACE):
                sites[k] = j
        claimed = set(sites.values())
        for k in observations:
            site = sites[k] if k in sites else self._find_site(k, claimed)
            if site is not None:
                self.relations[k] += [("located_at", j) for j in self._listed(heads[site])]

    def _find_site(self, k: int, claimed: set[int]) -> int | None:
        """The anatomy after the observation `k`, or before it, that no other has claimed; else a place after it."""
        site = self._nearest(k, (ANATOMY, OBSERVATION), 1)
        if site is None or self.kinds[site] == OBSERVATION or site in claimed:
            site = self._nearest(k, (ANATOMY,), -1)
            site = None if site in claimed else site
        return self._nearest(k, (PLACE,), 1) if site is None else site

    def _link_suggestions(self) -> None:
        if SUGGESTIVE.isdisjoint(self.words):
            return
        observations = self._of_kind(OBSERVATION)
        for i in (i for i, word in enumerate(self.words) if word in SUGGESTIVE):
            before = [k for k in observations if self.at[k] < i]
            after = [k for k in observations if self.at[k] > i]
            if before and after:
                self.relations[before[-1]].append(("suggestive_of", after[0]))

    def _listed(self, site: int) -> list[int]:
        """`site` and the anatomy joined to it by "and" or a comma: "heart and mediastinum are normal"."""
        heads = [site]
        if self.kinds[site] == ANATOMY and ("and" in self.words or "," in self.words):
            for step in (-1, 1):
                last, j = site, site + step
                while 0 <= j < len(self.at) and self.kinds[j] in (ANATOMY, PLACE):
                    low, high = sorted((self.at[last], self.at[j]))
                    between = [word for word in self.words[low + 1 : high] if word not in _LEXICON]
                    if any(word not in _LISTS for word in between):
                        break
                    if self.kinds[j] == ANATOMY and ("and" in between or "," in between):
                        heads.append(j)
                        last = j
                    j += step
        return heads


def _states(sentence: _Sentence) -> dict[int, int]:
    """The state of each observation by its word's place, after the LexicalLabeler's cues and scopes."""
    at = [i for i, kind in zip(sentence.at, sentence.kinds, strict=True) if kind == OBSERVATION]
    states = dict.fromkeys(at, labelers.POSITIVE)
    hits = [hit for hits in labelers._sentences(sentence.words) for hit in hits]
    cues = [hit for hit in hits if hit[0] not in _REPLACED]
    if any(cue[0] in _SCOPING for cue in cues):
        scoping = {i for kind, _, first, end in cues if kind in _SCOPING for i in range(first, end + 1)}  # "clear of"
        devices = {i for hit in hits if labelers._is_device(hit) for i in range(hit[2], hit[3] + 1)}
        # In place of conditions stand the word, negative so that it is none of them, and what counts of them.
        stand_ins = {
            i: (-1 - i, labelers.SUPPORT_DEVICES) if i in devices else (-1 - i,) for i in at if i not in scoping
        }
        mentions = [(labelers.MENTION, (stand_ins[i], labelers.POSITIVE), i, i) for i in stand_ins]
        resolved = labelers._Scopes(sorted(cues + mentions, key=itemgetter(2))).mentions
        states |= {mention[0]: mention[3] for mention in resolved}
    return states


@lru_cache(maxsize=1024)  # reports repeat each other's sentences
def _entities(words: tuple[str, ...]) -> list[tuple[int, str, list[tuple[str, int]]]]:
    """A sentence's entities: the word's place, label, relations (type, place in this list)."""
    heading = words[:2] in (("finding", ":"), ("findings", ":"))
    sentence = _Sentence(list(words), [i for i, word in enumerate(words) if word in _LEXICON and (i or not heading)])
    states = _states(sentence) if sentence.at else {}
    labels = []
    for k, kind in enumerate(sentence.kinds):
        judged = sentence.relations[k][0][1] if kind == MODIFIER else k  # a modifier has its observation's state
        labels.append(ANATOMY_LABEL if kind in (ANATOMY, PLACE) else LABELS.get(states[sentence.at[judged]]))
    new = list(accumulate((label is not None for label in labels), initial=0))  # without those that are not said
    return [
        (sentence.at[k], label, [(kind, new[target]) for kind, target in sentence.relations[k] if labels[target]])
        for k, label in enumerate(labels)
        if label
    ]


def _sentences(words: list[str]) -> Iterator[tuple[int, int]]:
    """First word and last plus one of each sentence."""
    start = 0
    for i, word in enumerate(words):
        if word in _ENDS or i - start == _LONGEST - 1:
            yield start, i + 1
            start = i + 1
    yield start, len(words)


class LexicalGraph:
    """Graphs of reports in RadGraph's JSON structure (see `rewards.radgraph`); needs no weights.

    `text` is the report in lower case as words and punctuation, without numbers and without the sections that do not
    describe the image (as LexicalLabeler); `start_ix` and `end_ix` count its words. What the report only says of the
    past ("history of") is no entity. Any string has a graph, perhaps an empty one.
    """

    name = "lexical"
    lite = True  # a stand-in: not the published RadGraph model

    def __call__(self, texts: Iterable[str]) -> list[dict]:
        """The graphs of n texts."""
        return [self._graph(text) for text in texts]

    @staticmethod
    def _graph(text: str) -> dict:
        words = labelers._WORD.findall(labelers._body(labelers._plain(text)[0]))
        entities: dict[str, dict] = {}
        for start, end in _sentences(words):
            first = len(entities) + 1
            for i, label, relations in _entities(tuple(words[start:end])):
                entities[str(len(entities) + 1)] = {
                    "tokens": words[start + i],
                    "label": label,
                    "start_ix": start + i,
                    "end_ix": start + i,
                    "relations": [[kind, str(first + target)] for kind, target in relations],
                }
        return {"text": " ".join(words), "entities": entities}
