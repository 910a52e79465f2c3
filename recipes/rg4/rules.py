"""A judge and a rewriter of LLM-RG4's four categories that need no model: patterns, sentence by sentence.

They are the embedded default of recipes/build_mimic_rg4.py, the teacher of a tiny DiscBERT, and no substitute for an
LLM: what the patterns do not know they neither find nor rewrite. What counts as what:

- prior comparison: another examination, or a change or its absence over time ("unchanged", "new", "improved",
  "again seen", "remains"); an old disease ("prior granulomatous disease") is none;
- prior procedure: what was done to the patient ("status post", "sternotomy", "has been removed"); a device that is
  seen ("chest tube in place", "surgical clips") is none;
- view: how the image was taken ("PA and lateral views", "on the lateral view"); one that is asked for is none;
- communication: who was told, called or asked, and who dictated.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, FINDINGS, CheXpertState
from rewards.scenarios import CATEGORIES

# --- what the judge knows ----------------------------------------------------------------------------------------

_DEGREE = (
    r"(?:(?:very|relatively|essentially|grossly|largely|overall|basically|generally|mostly|significantly|appreciably|"
    r"substantially|markedly|slightly|mildly|minimally|moderately|somewhat|considerably|greatly|much|further|only|"
    r"also|all|both|completely|nearly|almost|partially|subtotally|apparently|probably|likely|perhaps|dramatically|"
    r"slight|mild|"
    r"minimal|moderate|marked|significant|substantial|appreciable|definite|gross|relevant|major|great|notable|real|"
    r"obvious|apparent|radiographic|little|overt|XXXX|a|an|any|the|other|acute|great|not|interval|subtle|further)\s+)*"
)
_EXAM = (
    r"(?:(?:chest|portable|pa|ap|frontal|lateral|ct|outside|abdominal|available|recent|most|and|XXXX|_{3})[\s/-]+)*"
    r"(?:x-?rays?|radiograph\w*|stud(?:y|ies)|exam(?:ination)?s?|films?|images?|imaging|scans?|cts?|mris?|reports?|"
    r"views?|tomograph\w*)\b"
)
_OLD_DISEASE = (
    r"(?!\s+(?:(?:\w+\s+)?(?:granulom|infect|inflam|trauma|injur|fractur|aspirat|tb\b|tubercul|histoplasm|gunshot|rib|"
    r"hemorrhag|pneumonia|disease|asbestos|exposure|scar|insult|empyema|episode|process|radiation|bouts?|healed|"
    r"surg|operat|proced|\w*ectomy|\w*otomy|\w*plasty|cabg|bypass|resect|repair|replac|graft|valve|stent|placement|"
    r"ligament|fusion|biops|intub|coronary|median|band|clip|mediast)))"
)
_RECENT = r"(?:prior|priors|previous|preceding|earlier|comparison|older|last|yesterday)"
_VIEW_WORD = (
    r"(?:pa|ap|lateral|frontal|portable|supine|upright|(?:(?:semi|non)[- ]?)?(?:erect|upright|supine)|decubitus|"
    r"lordotic|"
    r"oblique|posteroanterior|anteroposterior)"
)
_VIEW_NOUN = r"(?:views?|projections?|radiographs?|films?|images?|techniques?|x-?rays?|radiography|positioning)"
_VIEWS = (
    rf"(?:(?:single|two|three|one|2|3|dual|{_VIEW_WORD})[\s,/-]+)"
    rf"(?:(?:and|or|chest|view|of|the|single|two|{_VIEW_WORD})[\s,/-]+)*{_VIEW_NOUN}"
)
_NO_TUBE = r"(?<!trache)(?<!gastr)(?<!jejun)(?<!nephr)(?<!thorac)"  # these are names of tubes that are seen
_PROCEDURE = (
    rf"\w+(?:ectomy|ectomies|centesis|plasty|odesis|(?<!fluoro)scopy)|\w*{_NO_TUBE}ostomy|\w+(?<!trache)otom(?:y|ies)|"
    r"cabg|coronary bypass|bypass (?:grafts?(?:ing)?|surgery)|surger(?:y|ies)|resections?|transplant(?:ed|ation)?|"
    r"(?:aortic |mitral )?valve (?:replacement|repair)s?|biops(?:y|ies)|fusion procedure|extubat(?:ed|ion)"
).replace(" ", r"\s+")
_DONE = (
    r"placed|removed|inserted|exchanged|replaced|extubated|intubated|withdrawn|repositioned|advanced|retracted|"
    r"pulled back|resected|revised|drained|retrieved"
).replace(" ", r"\s+")
_ACT = r"placement|removal|insertion|(?:ex|in)tubation|exchange|repositioning|drainage|retraction|advancement"

PATTERNS: dict[str, str] = {
    "prior_comparison": rf"""
        \bcompar(?:ed|ing|isons?|e|able)\b(?!\s+(?:to|with)\s+(?:the\s+)?(?:left|right|other|contralateral|
            opposite)) | \bunchanged\b | \bun-?altered\b
      | \b(?:no|little|without)\s+{_DEGREE}change\b(?!s) | \bno\s+{_DEGREE}changes\s+(?:from|since|in)\b
      | \bnot\s+{_DEGREE}changed\b | \b(?:has|have)\s+{_DEGREE}changed\b | \bchange\s+(?:from|since)\b
      | \bstab(?:le|ly|ility)\b | \binterval(?:ly)?\b(?!\s+(?:follow|ct\b)) | \binterim\b | \bagain\b |
          \bre-?\s?demonstrat\w+
      | \bpersist(?:s|ed|ent|ently|ing|ence)?\b | \bremain(?:s|ed)?\b | \bremaining\s+in\b | \bnew(?:ly|
          er)?\b(?!\s+baseline)
      | \bimprov(?:ed|ing|ement|es)\b | \bworse(?:n|ned|ning|ns)\b | \bworse\b(?!\s+(?:on|in|at|
          than)\s+(?:the\s+)?(?:left|right)) | \bsubsequent(?:ly)?\b | \bchange\s+between\b |
          \bbetween\s+(?:the\s+)?(?:stud(?:y|ies)|exam\w*|films|radiographs)\b
      | \bresol(?:ved|ving|ves)\b |
          (?<!to\s)(?<!ensure\s)(?<!document\s)(?<!document\scomplete\s)(?<!high\s)(?<!high-)\bresolution\b(?!\s+(?:ct|
          of\s+(?:the\s+)?(?:chest\s+)?radiograph))
      | \b(?:in|de)creasing(?:ly)?\b | \b(?:has|have|had|been|interval)\s+{_DEGREE}(?:in|de)creased?\b
      | \b(?:in|de)creased?\s+(?:since|from|compared|in\s+(?:size|extent|severity|volume|the\s+interval))\b
      | \b(?:in|de)crease\s+(?:in|of)\b | \b(?:slightly|somewhat|minimally|marginally|significantly|now)\s+(?:in|
          de)creased?\b
      | \b(?:has|have|had)\s+{_DEGREE}(?:enlarged|developed|cleared|grown|moved|migrated|appeared|disappeared|
          become|gone|
          evolved|occurred|diminished|receded)\b
      | \benlarging\b | \bprogress(?:ed|ion|ive|ively|ing)\b | \bregress(?:ed|ion)\b | \bevolving\b |
          \brecurren(?:t|ce)\b
      | \b(?:effusions?|pneumothora(?:x|ces)|edema|opacit(?:y|ies)|consolidations?|atelectasis|size)\s+(?:is\s+|
          are\s+|has\s+|
          have\s+)?{_DEGREE}(?:in|de)creased\b | \b(?:less|more)\s+(?:distinct|conspicuous|apparent|evident|
              pronounced)\b
      | \bnot\s+significantly\s+XXXX | \bre-?accumulat\w+ | \bsince\b(?!\s+(?:there|it|they|this|these|
          the\s+patient)\b) | \bpreviously\b |
          \btoday's\b
      | \bcurrent\s+(?:stud(?:y|ies)|exam\w*|radiograph\w*|films?)\b | \b(?:in|de)creased\s+(?:size|extent)\s+of\b
      | \b(?:seen|noted|identified|demonstrated|visuali[sz]ed|shown|described|reported|evaluated|
          appreciated)\s+(?:on|in|by)\s+
          (?:an?\s+|the\s+)?(?:[\w-]+\s+){{0,3}}?(?:ct|mri?|scan|pet)\b
      | \b(?:scan|ct|mri|pet|radiographs?|film|x-?rays?|study|exam)\s+(?:from|of|dated|on)\s+(?:the\s+)?(?:XXXX|
          _{{3}}|\d)
      | \bdates?\s+from\b | \bthat\s+period\s+of\s+time\b | \bas\s+suggested\b | \b(?:given|
          allowing\s+for)\s+(?:the\s+)?differences?\b | \bbefore\b(?!\s+(?:it|pass|enter|cross))
      | \b(?:prior|previous)\b{_OLD_DISEASE} | \bpriors\b
      | \b(?:earlier|preceding|older|old|last|remote|recent|yesterday(?:'s)?|outside)\s+{_EXAM}
      | \bno\s+longer\b | \bstill\b | \bnow\b | \bcontinu(?:e|es|ed|ing)\b(?!\s+(?:clinical|concern|follow|into)) |
          \bconstant\b | \bonce\s+more\b
      | \bsimilar(?:ly)?\b(?!\s+to\s+the\s+(?:left|right|other|contralateral)) | \b(?:at|from|to)\s+baseline\b
      | \b(?:slightly|somewhat|minimally|marginally)\s+(?:more|less|larger|smaller|greater|better|
          denser)\b(?!\s+(?:\w+\s+)?(?:on|in)\s+the\s+(?:left|right))
      | \b(?:larger|smaller|greater|better|worse|more\s+\w+|less\s+\w+)\s+than\s+(?:on|in|at|it|was|before|seen|
          _{{3}}|XXXX)
      | \b(?:hours?|days?|weeks?|months?|years?)\s+(?:ago|earlier|prior)\b | \bearlier\s+(?:today|in\s+the\s+day|
          the\s+same)\b
      | \bpre-?existing\b | \bdevelop(?:ing|ed)\b | \bdevelopment\s+of\b | \byesterday | \b(?:minimally|
          slightly)\s+changed\b | \bdeteriorat\w+ | \bbetween\s+_{{3}} | \b(?:has|have|had)\s+{_DEGREE}progressed\b
    """,
    "prior_procedure": rf"""
        \bstatus[\s-]+post\b | \bs/p\b | \bpost[\s-]?(?:surgical|surgery|operative|op|procedur\w*|intubation|
            sternotomy|
          thoracentesis|cabg|biopsy|extubation|thoracotomy|resection|pneumonectomy|lobectomy|radiation)\b
      | \bsurgical\s+(?:changes?|repair|removal|history|resection)\b | \b(?:{_PROCEDURE})\b
      | \b(?:has|have|had|was|were)\s+(?:now\s+|also\s+|been\s+|recently\s+|since\s+|partially\s+|
          slightly\s+)*(?:{_DONE})\b
      | \b(?:interval|recent|after|following|prior|previous|new|status|since)\s+(?:\w+\s+){{0,3}}?(?:{_ACT})\b
      | \bunderwent\b | \b(?:ligamentous|hernia|aneurysm|rotator\s+cuff)\s+repair\b | \bchemotherapy\b
      | \bradiation\s+(?:therapy|treatment)\b | \b(?:removal|placement)\s+of\b | \b(?:recently|adequately|
          newly)\s+placed\b |
          \bplaced\s+in\b | \bbeen\s+(?:{_DONE})\b
      | \b(?:prior|previous)\s+(?:[\w-]+\s+){{0,3}}?(?:procedures?|embolization|banding)\b | \binterval\s+(?:ex|
          in)tubation\b
    """,
    "view": rf"""
        (?<!field\sof\s)(?<!out\sof\s)\b(?:views?|projections?|projectional)\b | \b{_VIEWS}\b
      | \b(?:ap|pa)\b(?!\s+(?:diameter|dimension|catheter|pressure|line)) | \bportable\b
      | \b(?:semi|non)-?(?:erect|upright|supine)\b | \b(?:erect|upright|supine|lordotic|decubitus|swimmers?|
          cross-?table)\b
      | \bfrontal\b(?!\s+(?:bones?|sinus))
      | \b(?:on|in)\s+(?:the\s+|a\s+)?lateral\b(?=\s*(?:and\b|only\b|image|XXXX|[,.;)]|$))
      | \bvisuali[sz]ed\s+on\s+(?:the\s+)?lateral\b | \blateral\s+(?:chest\s+)?(?:exam\w*|images?)\b |
          \boblique\s+(?:position\w*|view|projection)\b
    """,
    "communication": r"""
        \b(?:discuss(?:ed|ion)?|communicat(?:ed|ion)|convey(?:ed)?|relay(?:ed)?|report(?:ed)?\s+to|notif(?:y|ied|
            ication)|
          inform(?:ed)|alerted|paged|e-?mail(?:ed)?|telephoned?|phoned?)\b(?<!discussed\sbelow)(?!\s+(?:below|
              above|in\s+the\s+findings))
      | \b(?:was|were|been|is|results?)\s+called\b | \bcalled\s+(?:to|by|and)\b | \bcall\s+(?:to|was)\b | \b(?:dr|
          drs|md|np|rn)\b\.?(?=\s)
      | \bdoctor\b | \bphysicians?\b | \bclinicians?\b | \bnurse\b | \bdictat\w+ | \bmessage\b | \breceipt\b
      | \bwet\s+read\b | \bby\s+(?:tele)?phone\b | \bprimordial\b | \bveriphy\b | \bwebpage\b
      | \battending\b | \bat\s+the\s+time\s+of\s+(?:discovery|interpretation|observation|review)\b | \bread\s+back\b
      | \bpreliminary\s+(?:report|read|interpretation)\b | \bstaff\s+radiologist\b | \b(?:surgical|primary|
          clinical|covering)\s+team\b
    """,
}
_COMPILED = {category: re.compile(PATTERNS[category], re.IGNORECASE | re.VERBOSE) for category in CATEGORIES}
# What is recommended is kept in every scenario, and a view that is recommended is none of this image's.
_RECOMMENDED = re.compile(
    r"\b(?:recommend\w*|advised?|suggest(?:ed)?\s+(?:for|to)|is\s+suggested|consider|if\s+clinically|"
    r"(?:would|could|can|may|might|should)\s+be\s+(?:\w+\s+)?(?:help|obtain|useful|consider|perform|inform|of\b|"
    r"done))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r"(?<=[.?!])(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDrs\.)(?<!\bNo\.)\s+(?=[A-Z0-9_(\[<])|(?<=\s\.)\s+|\n\s*\n"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a report without the white space between them; "Dr. X" is one, " . " separates lower case."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence.strip()]


@lru_cache(maxsize=65536)
def _detect(sentence: str) -> tuple[bool, ...]:
    """Which of `CATEGORIES` one sentence holds."""
    return tuple(
        bool(_COMPILED[category].search(sentence)) and not (category == "view" and _RECOMMENDED.search(sentence))
        for category in CATEGORIES
    )


def _detect_in(text: str) -> tuple[bool, ...]:
    """Which of `CATEGORIES` a text of any number of sentences holds."""
    return (
        tuple(map(any, zip(*(_detect(sentence) for sentence in split_sentences(text)), strict=True))) or (False,) * 4
    )


class RuleJudge:
    """The judge of `PATTERNS`."""

    name = "rule"

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """0 (absent) or 1 (present), int8, shape (n, 4), in the order of `CATEGORIES`. Any string is judged."""
        rows = [_detect_in(text) for text in texts]
        return np.array(rows, dtype=np.int8).reshape(len(rows), len(CATEGORIES))


# --- what the rewriter knows -------------------------------------------------------------------------------------

_TAIL = r"(?:(?!\s(?:but|with|without|which|although|however|there|and\s(?:there|no|the))\b|[,;:)]).)*"
_EXAM_OF_PAST = (
    rf"(?:the\s|a\s|an\s|any\s|that\s|this\s|multiple\s|several\s|patient's\s|most\s|more\s|very\s)*(?:recent\s|"
    rf"remote\s|outside\s|old\s)*(?:{_RECENT}\b|before\b|recent\s{_EXAM}|remote\s{_EXAM}|outside\s{_EXAM}|"
    rf"old\s{_EXAM}|{_EXAM}\s(?:of|from|dated|on)\s(?:the\s)?(?:XXXX|_{{3}}|\d))"
)
_LIKE = (
    r"(?:unchanged|stable|constant|unaltered|similar|(?:not|un)\s+changed|improved|worsened|worse|better|increased|"
    r"decreased|progressed|resolving|improving|worsening|increasing|decreasing|progressive|persistent|new|"
    r"redemonstrated|(?:more|less)\s+(?:distinct|conspicuous|apparent|evident|pronounced)|larger|smaller|more|less|"
    r"denser)"
)
_IN_WHAT = (
    r"(?:\s+in\s+(?:the\s+)?(?:overall\s+|the\s+)?(?:size|appearance|position|positions|positioning|configuration|"
    r"extent|contour|contours|severity|number|location|distribution|morphology|caliber|degree|volume|alignment|"
    r"course|placement)(?:(?:,|\s+and|\s+or)\s+(?:size|appearance|position|configuration|extent|contour|location|"
    r"distribution|morphology|alignment|number|severity))*)?"
)
_BE = r"(?:is|are|was|were|appears?|seems?|looks?|remains?|(?:has|have)\s+(?:remained|been|become))"


_ANATOMY_NOUN = (
    r"(?:silhouettes?|contours?|mediastinum|cardiomediastinum|heart|size|lungs?|chest|aorta|vasculature|vascularity|"
    r"vessels?|exam(?:ination)?|study|shadow|appearance|structures?|hila|thorax|findings|outline|borders?|radiograph|"
    r"patient|markings|skeleton|spine|bones?)\b"
)
_ANATOMY_WORD = (
    rf"(?:{_ANATOMY_NOUN}|(?:the|overall|cardiac|and|or|hilar|mediastinal|cardiomediastinal|cardio|pulmonary|bony|"
    r"osseous|aortic|superior|visuali[sz]ed|both|of|central)\b)"
)
_ANATOMY = rf"(?:{_ANATOMY_WORD}[\s,/]+)*{_ANATOMY_NOUN}"  # "the heart size, and mediastinal contours"


def _be(words: str) -> str:
    """The verb for what `words` name: "are" for a plural or an enumeration."""
    head = re.split(
        r"\s(?:of|in|at|with|within|over|on|from|involving|along|near|to|projecting|adjacent|which|that|whose|"
        r"terminating|extending|coursing|and\s+the)\s|,",
        words,
    )[0]
    last = re.sub(r"[^a-z]", "", head.split()[-1].lower()) if head.split() else ""
    plural = last.endswith("s") and not last.endswith(("ss", "is", "us"))
    return "are" if plural or re.search(r"\band\b", head) else "is"


def _there_is(words: str, negated: bool = False) -> str:
    """ "There is X"; of anatomy, which is always there, only what stands with it."""
    if match := re.match(rf"{_ANATOMY}\s*(?:(?:with|and)\s+(.+))?$", words.strip(), re.IGNORECASE):
        return _there_is(match[1]) if match[1] else ""
    words = re.sub(
        r"^(?:the|an?)\s+" if not negated else r"^(?:the|an?|\d+|one|two|three)\s+", "", words.strip(), flags=re.I
    )
    return f"there {_be(words)} {'no ' if negated else ''}{words}"


def _present(match: re.Match) -> str:
    """ "X is unchanged, ..." without its predicate: "X is present, ..."."""
    subject, verb, rest = match[1], match[2].lower(), match[3] or ""
    if re.match(r"there\s+(?:is|are)\b", subject, re.I):
        return subject + rest
    if re.fullmatch(_ANATOMY, subject.strip(), re.I):
        return _there_is(f"heart{rest}") if re.match(r"\s+(?:with|and)\b", rest) else rest
    plural = verb.startswith(("are", "were", "have")) or verb in ("appear", "remain", "seem", "look")
    return f"{subject} {'are' if plural else 'is'} present{rest}"


# Tried in this order on a sentence without its full stop; what is left is tidied afterwards.
_COMPARISON_STEPS: list[tuple[str, str | object]] = [
    # where another examination is named
    (
        r"^(?:however,?\s+)?(?:(?:as|when|again|overall)[\s,]+)*(?:in\s+|by\s+|direct\s+)?compar(?:ed|ing|"
        r"ison)\b(?:\s+(?:is|was)\s+made)?[^,:]*(?:[,:]\s*)",
        "",
    ),
    (r"^[^,:.]{0,60}\b(?:compar\w+|comparison\s+(?:is|was)\s+made)\s+(?:to|with)\b[^:]*:\s*", ""),
    (r"^(?:since|from|in\s+the\s+interval|in\s+the\s+interim)\b[^,:]*,\s*", ""),
    (
        rf",?\s*\(?\b(?:(?:as|when|again|even|well)\s+)*(?:(?:in|by)\s+)?(?:compared|comparison|comparing|"
        rf"relative)\s+(?:to|with|from)\b{_TAIL}\)?",
        "",
    ),
    (rf",?\s*\bsince\b(?!\s+(?:there|it|they|this|these|the\s+patient)\b){_TAIL}", ""),
    (
        r",?\s*(?:\b(?:which|that|and)\s+(?:\w+\s+)?corresponds?\s+(?:to|with)\s+[\w\s-]*?)?\b(?:(?:as|better|best|"
        r"also)\s+)*"
        r"(?:seen|noted|identified|demonstrated|visuali[sz]ed|shown|described|reported|evaluated|"
        r"appreciated)\s+(?:on|in|by)\s+"
        rf"(?:an?\s+|the\s+)?(?:[\w-]+\s+){{0,3}}?(?:ct|mri?|scan|pet)\b{_TAIL}",
        "",
    ),
    (rf",?\s*\b(?:on|in)\s+(?:today's|the\s+current)\s+{_EXAM}", ""),
    (r"^(?:in|de)creased\s+(?:size|extent)\s+of\s+(?:the\s+)?", ""),
    (r",?\s*\b(?:in|over|during)\s+that\s+period\s+of\s+time\b|^as\s+suggested[^,]*,\s*", ""),
    (
        rf",?\s*\b(?:(?:as|best|better|also|not|previously)\s+)*(?:seen\s+|noted\s+|identified\s+|demonstrated\s+|"
        rf"described\s+|appreciated\s+|visualized\s+|present\s+)?(?:from|than|to|on|over|with|in|"
        rf"as)\s+{_EXAM_OF_PAST}{_TAIL}",
        "",
    ),
    (
        r",?\s*\b(?:from|than|to|through)\s+(?:XXXX|_{3})(?=\s*(?:[,.;]|$))|,?\s*\bon\s+_{3}(?:\s+(?:through|and|"
        r"to)\s+_{3})?",
        "",
    ),
    (r",?\s*\b(?:likely\s+|probably\s+)?(?:given|allowing\s+for)\s+(?:the\s+)?(?:change|differences?)\b.*$", ""),
    (r"^(?:there\s+is\s+)?no\s+[\w\s]{0,40}changes?\s+(?:is|are|was|were|has|have)\b.*$", ""),
    (
        rf"^(.+?)(?:,|,?\s+and)\s+(?:stable|unchanged)\s+{_ANATOMY}{_IN_WHAT}(?=\s*(?:[,;]|$))",
        lambda m: m[0] if re.fullmatch(r"(?:\w+\s+)?(?:normal|unremarkable|enlarged|prominent)", m[1], re.I) else m[1],
    ),
    (r"\b(?:but|yet|and)\s+(?:stable|unchanged|constant)\s+(?=\w)", ""),
    (r"\b(?:stable|unchanged)\s*/\s*", ""),
    (r"\bcontinues\s+to\s+have\b", "has"),
    (r"\b(?:in|of)\s+(?:stable|unchanged|similar)\s+position\b", "in place"),
    (r"\b(?:similar|stable|unchanged)[\s-]+appearing\b", ""),
    (r",?\s*\b(?:in|over|during|for)\s+the\s+(?:short\s+)?(?:interval|interim)\b", ""),
    (r",?\s*\bbetween\s+_{3}\s+and\s+_{3}", ""),
    # changes told as events
    (
        rf"^(?:there\s+(?:has|have)\s+been\s+|there\s+(?:is|"
        rf"was)\s+)?{_DEGREE}(?:interval\s+)?{_DEGREE}(?:resolution|clearing|disappearance|removal)\s+of\s+(.+)$",
        lambda m: _there_is(m[1], negated=True),
    ),
    (
        rf"^(?:there(?:'s|\s+has|\s+have)\s+been\s+|there\s+(?:is|was)\s+|"
        rf"interval\s+){_DEGREE}(?:interval\s+)?{_DEGREE}(?:improvement|worsening|increase|decrease|development|"
        rf"progression|placement|insertion|enlargement|appearance|accumulation|reaccumulation|reduction|growth|"
        rf"change|persistence|recurrence)(?:\s+(?:in|of)\s+(?:the\s+)?(?:size|extent|degree|severity|amount|"
        rf"volume)s?)?\s+(?:in|of)\s+(.+)$",
        lambda m: _there_is(m[1]),
    ),
    (
        rf"^{_DEGREE}(?:interval\s+)?(?:improvement|worsening|increase|decrease|progression|enlargement|reduction|"
        rf"persistence|stability|redemonstration)(?:\s+and\s+stable\s+appearance)?(?:\s+(?:in|"
        rf"of)\s+(?:the\s+)?(?:size|extent|degree|severity|amount|volume)s?)?\s+(?:in|of)\s+(.+)$",
        lambda m: _there_is(m[1]),
    ),
    (rf"\b(?:or|and)\s+{_DEGREE}(?:interval\s+)?change\b", ""),
    (
        rf"^(?:there\s+(?:has|have)\s+been\s+|there\s+is\s+)?(?:no|little|without)\s+{_DEGREE}changes?\s+(?:in|of|"
        rf"to)\s+(?:(?:the\s+)?(?:appearance|position|size|extent)s?\s+of\s+)?(.+)$",
        lambda m: _there_is(m[1]),
    ),
    (rf",?\s*\b(?:with\s+)?(?:no|without|little)\s+{_DEGREE}change\b(?:{_IN_WHAT})", ""),
    (
        r"^(.+?)\s+(?:has|have)\s+(?:now\s+|since\s+|completely\s+|largely\s+|essentially\s+)*(?:resolved|cleared|"
        r"disappeared)\b(.*)$",
        lambda m: _there_is(m[1], negated=True) + m[2],
    ),
    (
        r"^(.+?)\s+(?:is|are|was|were)\s+(?:now\s+|completely\s+)*resolved\b(.*)$",
        lambda m: _there_is(m[1], negated=True) + m[2],
    ),
    (
        rf"\b(heart|silhouette|size|mediastinum)\s+has\s+{_DEGREE}enlarged\b",
        r"\1 is enlarged",
    ),
    (r"\b(?:has|have)\s+(?:now\s+)?become\b", lambda m: "is" if m[0].lower().startswith("has") else "are"),
    (
        rf"\b(?:has|have)\s+{_DEGREE}(?:been\s+)?{_DEGREE}(?:re)?(?:improved|worsened|increased|decreased|"
        rf"progressed|changed|enlarged|regressed|developed|persisted|grown|evolved|diminished|appeared|accumulated|"
        rf"cleared|recurred|receded|resolved){_IN_WHAT}(?:\s+(?:slightly|mildly|minimally|markedly|somewhat|"
        rf"substantially))?",
        lambda m: "is present" if m[0].lower().startswith("has") else "are present",
    ),
    # "again seen are ...", "X persists"
    (
        r"^(?:once\s+)?again,?\s+(?:is\s+|are\s+)?(?:seen|noted|demonstrated|identified|visualized|shown|evident|"
        r"appreciated)\s+(?:is|are|was|were)?\s*(.+)$",
        lambda m: _there_is(m[1]),
    ),
    (r"^redemonstrat(?:ed|ion)\s+(?:is|are|of|and\s+stable\s+appearance\s+of)?\s*(.+)$", lambda m: _there_is(m[1])),
    (
        r"^(?:stable|unchanged|similar|persistent)\s+(?:in\s+)?(?:appearance|position|size|positioning|"
        r"configuration)\s+of\s+(.+)$",
        lambda m: _there_is(m[1]),
    ),
    (r"\b(?:re-?\s?demonstrated|re-?identified|re-?visualized)\b", "seen"),
    (r"\bpersists\b", "is present"),
    (r"\bpersist\b", "are present"),
    (r"\bcontinues\s+to\s+be\b", "is"),
    (r"\bcontinue\s+to\s+be\b", "are"),
    (r"\bcontinues\s+to\s+(\w+)", r"\1s"),
    (r"\bcontinue\s+to\b", ""),
    (r"\bno\s+longer\b", "not"),
    # "X is unchanged"
    (
        rf"\b({_LIKE})\s+and\s+(?=(?:within|normal|unremarkable|enlarged|top|not|clear|mild|moder|tortuous|"
        rf"prominent))",
        "",
    ),
    (rf"\b(?:and|but|,)\s+(?:{_BE}\s+)?{_DEGREE}(?:unchanged|stable|constant|unaltered|similar){_IN_WHAT}\s*$", ""),
    (
        rf",\s*{_DEGREE}(?:unchanged|stable|constant|unaltered|improved|worsened|worse|increased|decreased|similar|"
        rf"new){_IN_WHAT}(?=\s*(?:[,;:]|$))",
        "",
    ),
    (
        rf"^(.+?),?\s+and\s+((?:the\s+)?{_ANATOMY})\s+(?:is|are|remains?|appears?)\s+{_DEGREE}(?:stable|"
        rf"unchanged){_IN_WHAT}\b",
        lambda m: m[0] if re.fullmatch(rf"(?:{_ANATOMY_WORD}[\s,/]*)+", m[1], re.IGNORECASE) else m[1],
    ),
    (
        rf"^(?:an?\s+)?(?:(?:stable|unchanged)\s+{_ANATOMY}|{_ANATOMY}\s+(?:stable|unchanged))\s+with\s+(.+)$",
        lambda m: _there_is(m[1]),
    ),
    (r"\bremained\b", "was"),
    (
        rf"^(.+?)\s+({_BE})\s+(?:again\s+|now\s+|also\s+|all\s+)*{_DEGREE}{_LIKE}{_IN_WHAT}((?:,|\s+with|\s+and|"
        rf"\s+without|\s+which|\s+but|\s+given|\s+at|\s+likely|\s+probably|;).*)?$",
        _present,
    ),
    (r"\bremains\b", "is"),
    (r"\bremain\b", "are"),
    (r"\bremaining\s+in\b", "in"),
    # what is left are adjectives and adverbs
    (r"\bresolved\b(?=\s+\w)", "no"),
    (
        rf"\b(?:(?:very|relatively|essentially|grossly|largely|overall|basically|otherwise|not|slightly|mildly|"
        rf"minimally|moderately|somewhat|significantly|markedly|considerably|interval|also)\s+)*(?:unchanged|"
        rf"unaltered|stable|stably|persistent|persistently|persisting|again|once\s+more|interval|newly|newer|new|"
        rf"still|now|improved|improving|worsened|worsening|progressive|progressively|enlarging|increasingly|"
        rf"increasing|decreasing|continued|constant|recurrent|evolving|resolving|resolved|developing|pre-?existing|"
        rf"subsequent|subsequently|previously\s+(?:seen|noted|described|identified|demonstrated|visualized|"
        rf"mentioned|reported)|previously|prior|previous|similar|similarly)\b{_IN_WHAT}",
        "",
    ),
    (
        rf"\b(?:slightly|somewhat|minimally|marginally|significantly|mildly)\s+(?:more|less|larger|smaller|greater|"
        rf"better|denser|increased|decreased){_IN_WHAT}",
        "",
    ),
    (r"\bmore\s+(?=(?:severe|extensive|pronounced|marked)\b)", ""),
    (r"\bless\s+(?:severe|extensive|pronounced|marked|distinct|conspicuous|apparent|evident)\b", ""),
    (
        r"\s+(?:has\s+|have\s+)?(?:slightly\s+|mildly\s+)?(?:improved|worsened|increased|decreased|progressed|"
        r"developed|resolved)\s*$",
        "",
    ),
    (r"\b(?:increased?|decreased?)\s+in\s+(?:size|extent|severity|volume)\b", ""),
    (r"\b(?:in|de)crease\s+(?:in|of)\s+(?:the\s+)?(?:size\s+of\s+(?:the\s+)?)?", ""),
]
_PROCEDURE_STEPS: list[tuple[str, str | object]] = [
    (r"(?:the\s+)?patient\s+(?:has|was|is)\s+(?:now\s+)?(?:been\s+)?(?:in|ex)tubated", ""),
    (r"\b(?:median\s+|midline\s+)?(?:sternotomy|cabg)\s+(wires?|sutures?|XXXX)", r"sternal \1"),
    (
        rf"\b(?:{_PROCEDURE}|post-?(?:surgical|operative)|(?:prior\s+)?surgical)\s+(clips?|sutures?|staples?|wires?|"
        rf"hardware|material|markers?|coils?)",
        r"surgical \1",
    ),
    (r"\b(aortic|mitral|tricuspid)?\s*valve\s+(?:replacement|repair)s?\b", r" prosthetic \1 valve"),
    (
        rf"^(?:there\s+(?:has|have)\s+been\s+|there\s+is\s+)?(?:the\s+)?{_DEGREE}(?:interval\s+|recent\s+|prior\s+|"
        rf"new\s+)*(?:removal|extubation\s+and\s+removal)\s+of\s+(.+)$",
        lambda m: _there_is(m[1], negated=True),
    ),
    (
        rf"^(?:there\s+(?:has|have)\s+been\s+|there\s+is\s+)?{_DEGREE}(?:interval\s+|recent\s+|prior\s+|"
        rf"new\s+)*(?:placement|insertion|exchange|repositioning|advancement|retraction)\s+of\s+(.+)$",
        lambda m: _there_is(m[1]),
    ),
    (
        r"^(.+?)\s+(?:has|have|was|were)\s+(?:now\s+|also\s+|since\s+|been\s+|recently\s+)*(?:removed|retrieved|"
        r"resected)\b(.*)$",
        lambda m: _there_is(m[1], negated=True) + m[2],
    ),
    (
        r"\b(?:has|have|was|were)\s+(?:now\s+|also\s+|since\s+|been\s+|recently\s+|partially\s+|"
        r"slightly\s+)*(?:placed|inserted|exchanged|replaced|repositioned|advanced|withdrawn|retracted|"
        r"pulled\s+back|revised)\b",
        lambda m: "are present" if m[0].lower().startswith(("have", "were")) else "is present",
    ),
    (
        r"^(?:the\s+)?patient\s+(?:is|has)\s+(?:status[\s-]+post|s/p)\b.*(\bprosthetic\s(?:\w+\s)?\s*valve)\b(?!.*\swith\s).*$",
        lambda m: _there_is(m[1]),
    ),
    (
        rf",?\s*\b(?:(?:likely|probably|which\s+is|most)\s+)*(?:consistent\s+with|compatible\s+with|suggest(?:ing|"
        rf"ive\s+of)|from|related\s+to|reflecting|due\s+to|secondary\s+to|following|after|because\s+of|"
        rf"in\s+keeping\s+with|features\s+of|for|of)\s+(?:the\s+|a\s+|an\s+)?(?:[\w'-]+\s+){{0,4}}?(?:{_PROCEDURE}|"
        rf"radiation\s+(?:therapy|treatment)|fusion\s+procedure|post-?(?:surgical|operative)|surgical|{_ACT}|"
        rf"history\s+of){_TAIL}",
        "",
    ),
    (
        r",?\s*\b(?:in\s+(?:this|a|the)\s+(?:patient\s+)?)?(?:(?:the|this)\s+patient\s+(?:is|"
        r"who\s+is)\s+)?(?:now\s+)?(?:status[\s-]+post|s/p)\b(?:(?!\swith\s(?!cabg)|[.;:]).)*",
        "",
    ),
    (
        rf"\b(?:there\s+are\s+|with\s+)?(?:(?:stable|left|right|median|upper|lower|mild|old|remote|"
        rf"XXXX)\s+)*(?:post-?(?:surgical|operative|op|sternotomy|thoracotomy|radiation)\w*|(?:{_PROCEDURE})|"
        rf"surgical)\s+changes?\b{_TAIL}",
        "",
    ),
    (rf"\b(?:prior|previous|recent)\s+(?:median\s+|right\s+|left\s+)*(?:{_PROCEDURE}|surgical\s+\w+)\b{_TAIL}", ""),
    (r"\bpost-?(?:surgical|operative)\s+", ""),
]
_VIEW_STEPS: list[tuple[str, str | object]] = [
    (rf"\(\s*{_VIEWS}\s*\)", ""),
    (rf"^(?:the\s+|this\s+|an?\s+)?{_VIEWS}\s+(?:is|are|was|were)\b.*$", ""),
    (
        rf"^(?:(?:a|an|the|exam|chest|upright|single|{_VIEW_WORD}|{_VIEW_NOUN}|of|and|two|is|are|was|submitted|at|"
        rf"on|\d+:\d+|[ap]\.?m\.?|_{{3}}|XXXX)[\s,/-]*)+:\s*",
        "",
    ),
    (
        rf"^(?:the\s+|a\s+|these\s+)?(?:{_VIEWS}|{_VIEW_WORD}\s+chest(?:\s+{_VIEW_NOUN})?)(?:\s+of\s+the\s+chest|"
        rf"\s+(?:the\s+)?chest)?(?:\s+(?:was|were)\s+(?:obtained|reviewed|provided|performed|"
        rf"submitted))?\s*(?:again\s+)?(?:show|demonstrate|reveal|depict)s?\s+(?:that\s+)?",
        lambda m: "there is ",
    ),
    (
        rf"^(?:(?:a|an|the|this|is|exam(?:ination)?|with|limited|rotated|technically|XXXX|chest|consists\s+of)\s+)*"
        rf"(?:{_VIEWS}|(?:{_VIEW_WORD}\s+)*(?:projections?|views?|"
        rf"position))(?:\s+(?:of\s+)?the\s+chest)?\s*(?:[,;:]\s*|$)",
        "",
    ),
    (
        r"(?:\s+(?:which\s+)?(?:is|are|may\s+be)\s+(?:\w+\s+)?(?:accentuated|exaggerated|magnified)"
        r"|\s+(?:is|are)\s+(?:likely|probably)(?=\s+due)"
        r"|,?\s+as\s+(?:seen|noted|visuali[sz]ed|evident))?"
        r",?\s*\(?(?:\b(?:only|best|also|well|better|both|even|despite)\s+)*"
        rf"(?:\b(?:on|in|for|from|by|due\s+to|given|with|because\s+of|despite|to)\s+)(?:the\s+|an?\s+|this\s+|"
        rf"these\s+|both\s+)?"
        rf"(?:limited\s+|left\s+|right\s+|current\s+|given\s+)?(?:{_VIEWS}|(?:lateral|frontal)(?:\s+(?:XXXX|images?))?"
        rf"(?=\s*(?:and\b|[,.;)]|$))|(?:{_VIEW_WORD}\s+)+(?:technique|position\w*|patient|XXXX)?|(?:views?|"
        rf"projections?)\b"
        rf"|{_VIEW_NOUN}\s+of\s+the\s+chest)(?:\s+only|\s+alone)?\)?",
        "",
    ),
    (rf"\b(?:single|portable|two|{_VIEW_WORD})\s+(?=(?:{_VIEW_WORD}\s+)*(?:chest\s+)?(?:{_VIEW_NOUN}))", ""),
    (r"\bsemi-?(?:erect|upright|supine)\b|\bportable\b", ""),
]
_COMMUNICATION_STEPS: list[tuple[str, str | object]] = [
    (
        r",?\s*\b(?:as\s+|which\s+|and\s+|these\s+|this\s+|findings?\s+|results?\s+)*(?:was\s+|were\s+|is\s+|"
        r"has\s+been\s+|have\s+been\s+)?(?:discussed|communicated|conveyed|relayed|reported|notified|telephoned|"
        r"phoned|called|informed)\s+(?:with|to|by|of|via|through|at)\b.*$",
        "",
    ),
]
_STEPS = {
    "communication": _COMMUNICATION_STEPS,
    "view": _VIEW_STEPS,
    "prior_procedure": _PROCEDURE_STEPS,
    "prior_comparison": _COMPARISON_STEPS,
}
_COMPILED_STEPS = {
    category: [(re.compile(pattern, re.IGNORECASE), new) for pattern, new in steps]
    for category, steps in _STEPS.items()
}


_EMPTY_WORDS = """the a an is are was were there in on of and or with to at for by as no not be been has have this
    these that it seen noted present evident identified demonstrated appearance position place size chest exam
    examination study finding findings otherwise overall however also which any obtained submitted performed reviewed
    provided radiograph radiographs film films view views x ray patient most recently recommend left right bilateral
    semi am pm hours time two now"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
_TIDY = [
    (re.compile(pattern, re.IGNORECASE), new)
    for pattern, new in (
        (r"\s+", " "),
        (r"\(\s*\)|\[\s*\]", ""),
        (r"\s+([,;:.)])", r"\1"),
        (r"([,;:])(?:\s*[,;:])+", r"\1"),
        (r"^[\s,;:.)-]+", ""),
        (r",?\s*\b(?:which|that)\s+(?:is|are|was|were)$", ""),
        (r"^(?:and|but|or|with|which|although|however|also|then)\b[\s,;:-]+(?=\w)", ""),
        (r"^(?:without|no)\s+(?:any\s+|evidence\s+of\s+(?:an?\s+)?)?(?=\w)", "no "),
        (r"(?:[\s,;:(-]|\b(?:and|but|or|with|which|although|however|in|of|to|from|as|on|at|since|the|than)$)+$", ""),
        (r"\bthere (is|are) (?:there )?(?:is|are|has been|have been)\b", r"there \1"),
        (r"\b(is|are) (?:is|are)(?: present)?\b", r"\1"),
        (r"\bthere (is|are) there (?:is|are)\b", r"there \1"),
        (r"\b(is|are) (?:in )?(?:and|or|but)\b", r"\1"),
        (r"\bno (?:no|significant no)\b", "no"),
        (
            r"\b(?:is|are) present (?=present|in place|seen|noted|within|normal|clear|mild|moder|unremarkable|"
            r"enlarged)",
            "is ",
        ),
        (r"\b(and|or) (?:and|or)\b", r"\1"),
    )
]


_NOTHING_LEFT = re.compile(  # of "Stable heart"
    rf"(?:there\s+(?:is|are)\s+)?(?:an?\s+|the\s+)?{_ANATOMY}(?:\s+(?:is|are)\s+(?:present|seen|noted))?",
    re.IGNORECASE,
)
_BROKEN = re.compile(  # a sentence that ends where no sentence ends
    r"\b(?:been|denotes?|including|an?|the|not|is|are|was|were|mediastinal|cardiac|evidence|may|could|have\s+all)$",
    re.IGNORECASE,
)


def _tidy(words: str) -> str:
    for _ in range(2):
        for pattern, new in _TIDY:
            words = pattern.sub(new, words)
        words = words.strip()
    return words


def _says_something(words: str) -> bool:
    return any(word not in _EMPTY and word != "xxxx" for word in re.findall(r"[a-z]+", words.lower()))


def _holds(text: str, categories: Sequence[str]) -> bool:
    """Whether `RuleJudge` finds one of `categories` in `text`, which may be several sentences."""
    return any(state and category in categories for category, state in zip(CATEGORIES, _detect_in(text), strict=True))


def _like(sentence: str, words: str) -> str:
    """`words` with the full stop and the case of `sentence`, which may be lower case with " . " (R2Gen's cleaning)."""
    if not words:
        return ""
    start = words[0] if sentence == sentence.lower() else words[0].upper()
    return start + words[1:] + (" ." if sentence.endswith(" .") else ".")


# CheXpert's rules call a heart or mediastinum that is only said to be stable uncertain. Without the comparison the
# report says nothing of it any more; "not well evaluated" says that no size is known, and is uncertain by the same
# rules ("XXX is not well visualized/evaluated").
_MEDIASTINUM, _HEART = CONDITIONS.index("Enlarged Cardiomediastinum"), CONDITIONS.index("Cardiomegaly")
_NEUTRAL = {
    (_HEART,): "the heart size is not well evaluated",
    (_MEDIASTINUM,): "the mediastinal contours are not well evaluated",
    tuple(sorted((_HEART, _MEDIASTINUM))): "the heart size and mediastinal contours are not well evaluated",
}
_NAMED = {
    _HEART: re.compile(r"\b(?:heart|cardiac)\b", re.IGNORECASE),
    _MEDIASTINUM: re.compile(r"mediast", re.IGNORECASE),
}
_STEADY = re.compile(r"\b(?:stable|unchanged|similar|changed?)\b", re.IGNORECASE)  # STABLE in rewards/labelers.py


class RuleRewriter:
    """Removes or neutralises what `RuleJudge` finds, sentence by sentence: "unchanged small effusion" becomes "small
    effusion". Of the ways it knows it takes the first that leaves the sentence's labels (LexicalLabeler) as they were.

    A heart or mediastinum of which the report says only that it is stable becomes one that is "not well evaluated".
    What the judge still finds in the result is removed whole, so that it never finds anything in a rewritten text.
    """

    name = "rule"

    def __init__(self):
        self.labeler = LexicalLabeler(stable_mediastinum=CheXpertState.UNCERTAIN)
        self.rewrite_sentence = lru_cache(maxsize=65536)(self._rewrite_sentence)

    def __call__(self, cases: Sequence) -> list[dict[str, str] | str]:
        """The sections of each `recipes.rg4.pipeline.Case` without the categories that it was judged to hold."""
        return [self.rewrite_sections(case.texts[-1], case.judged[-1]) for case in cases]

    def rewrite(self, text: str, categories: Sequence[str]) -> str:
        """`text` without `categories`; sentences that hold none of them stay as they are, word for word."""
        return self.rewrite_sections({"report": text}, categories)["report"]

    def rewrite_sections(self, sections: dict[str, str], categories: Sequence[str]) -> dict[str, str]:
        """`rewrite` of the sections of one report: what another section says of the heart is not contradicted."""
        forbidden = tuple(category for category in CATEGORIES if category in categories)
        split = {name: split_sentences(text) for name, text in sections.items()}
        results = {
            name: [self.rewrite_sentence(sentence, forbidden) for sentence in sentences]
            for name, sentences in split.items()
        }
        unsaid: set[int] = set()
        if any(lost for rewritten in results.values() for _, lost in rewritten):
            (states,) = self.labeler([" ".join(text for rewritten in results.values() for text, _ in rewritten)])
            unsaid = set(np.flatnonzero(states == CheXpertState.BLANK).tolist())
        output = {}
        for name, sentences in split.items():
            texts, missing = [], set(unsaid)
            for sentence, (text, lost) in zip(sentences, results[name], strict=True):
                neutral = tuple(sorted(missing & set(lost)))
                missing -= set(neutral)
                texts += [text, _like(sentence, _NEUTRAL[neutral]) if neutral else ""]
            output[name] = _settle(" ".join(filter(None, texts)), forbidden)
        return output

    def _rewrite_sentence(self, sentence: str, categories: tuple[str, ...]) -> tuple[str, tuple[int, ...]]:
        """The sentence without `categories`, and what of `_NAMED` it only said to be stable."""
        if not _holds(sentence, categories):
            return sentence, ()
        steps = [category for category in _STEPS if category in categories]
        body = sentence.rstrip(" .?!;:,")
        rewritten = cut = body
        for category in steps:
            if not _COMPILED[category].search(body):
                continue
            for pattern, new in _COMPILED_STEPS[category]:
                changed = pattern.sub(new, rewritten)
                rewritten = rewritten if changed == rewritten else _tidy(changed)
        for category in steps:
            cut = _COMPILED[category].sub("", cut)
        if _NOTHING_LEFT.fullmatch(rewritten) or _BROKEN.search(rewritten):
            rewritten = ""
        # in the order of how well they read; the last one may be a broken sentence
        candidates = [rewritten if _says_something(rewritten) else "", "", self._statements(body), _tidy(cut)]
        clean = [text for candidate in candidates if not _holds(text := _like(sentence, candidate), categories)]
        before, *after = self.labeler([sentence, *clean])[:, : len(FINDINGS)]
        if same := [text for text, states in zip(clean, after, strict=True) if (states == before).all()]:
            return same[0], ()
        steady = [
            condition
            for start, end, condition, state in self.labeler.mentions(body)
            if condition in _NAMED and state == CheXpertState.UNCERTAIN and _STEADY.search(body[start:end])
        ]
        for text, states in zip(clean, after, strict=True):
            changed = set(np.flatnonzero(states != before).tolist())
            if changed <= set(steady):  # "mildly enlarged but stable" is no longer uncertain
                return text, tuple(c for c in changed if not states[c] and not _NAMED[c].search(text))
        return clean[0], ()

    def _statements(self, body: str) -> str:
        """What the sentence says of findings, in the plainest words."""
        statements = dict.fromkeys((body[start:end], state) for start, end, _, state in self.labeler.mentions(body))
        sentences = [
            f"possible {words}"
            if state == CheXpertState.UNCERTAIN
            else _there_is(words, state == CheXpertState.NEGATIVE)
            for words, state in statements
        ]
        return ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences if sentence)


def _settle(text: str, categories: Sequence[str]) -> str:
    """`text` without the sentences that hold `categories`, until there are none: new neighbours may make new ones."""
    while True:
        sentences = split_sentences(text)
        clean = [sentence for sentence in sentences if not _holds(sentence, categories)]
        if len(clean) == len(sentences):
            return text
        text = " ".join(clean)
