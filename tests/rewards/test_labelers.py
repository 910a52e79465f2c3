"""LexicalLabeler: expected states are the CheXpert labeler's published rows and rules, or read by hand."""

import csv
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, NO_FINDING, CheXpertState

DATA = Path(os.environ.get("RRG_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SIGNS = {"+": CheXpertState.POSITIVE, "-": CheXpertState.NEGATIVE, "?": CheXpertState.UNCERTAIN}
SHORT = {
    "EC": "Enlarged Cardiomediastinum",
    "CM": "Cardiomegaly",
    "LO": "Lung Opacity",
    "LL": "Lung Lesion",
    "ED": "Edema",
    "CO": "Consolidation",
    "PN": "Pneumonia",
    "AT": "Atelectasis",
    "PX": "Pneumothorax",
    "EF": "Pleural Effusion",
    "PO": "Pleural Other",
    "FX": "Fracture",
    "SD": "Support Devices",
    "NF": "No Finding",
}


@pytest.fixture(scope="module")
def labeler():
    return LexicalLabeler()


def states(notation: str) -> list[int]:
    """States of a notation such as "+EF -CM ?PN"; conditions not named are blank."""
    named = {SHORT[item[1:]]: SIGNS[item[0]] for item in notation.split()}
    return [int(named.get(condition, CheXpertState.BLANK)) for condition in CONDITIONS]


# The sample reports and labels published with the CheXpert labeler (github.com/stanfordmlgroup/chexpert-labeler,
# MIT) and, with the same values, as CheXbert's output (github.com/rajpurkarlab/CXR-Report-Metric, MIT).
PUBLISHED = [
    (
        "Heart size normal and lungs are clear. No edema or pneumonia. No effusion",
        "-CM -ED -PN -EF +NF",
    ),
    (
        "1. Left pleural effusion with adjacent atelectasis. Right effusion is also present.\n\n"
        "2. Cardiomegaly without overt edema.",
        "+CM -ED +AT +EF",
    ),
    (
        "Minimal patchy airspace disease within the lingula, may reflect atelectasis or consolidation.",
        "+LO ?CO ?AT",
    ),
    ("1. Stable mild cardiomegaly. 2. Hyperexpanded but clear lungs.", "+CM"),
]

NEGATION = [
    ("No edema, effusion or pneumothorax.", "-ED -EF -PX", "one negation, a whole list"),
    ("No focal consolidation, pleural effusion, or pneumothorax is seen.", "-CO -EF -PX", "the verb ends the list"),
    ("No pneumonia effusions edema pneumothorax or masses", "-PN -EF -ED -PX -LL", "commas lost in cleaning"),
    ("Lungs are clear without focal infiltrate.", "-LO", "without"),
    ("The lungs are free of focal airspace disease.", "-LO", "free of"),
    ("The lungs are clear of consolidation, effusion and pneumothorax.", "-CO -EF -PX", "clear of"),
    ("Negative for pneumothorax or pleural effusion.", "-PX -EF", "negative for"),
    ("There is no evidence of pneumothorax.", "-PX", "no evidence of"),
    ("Neither effusion nor pneumothorax.", "-EF -PX", "neither, nor"),
    ("Absence of pneumothorax.", "-PX", "absence of"),
    ("This is atelectasis rather than pneumonia.", "+AT -PN", "rather than"),
    ("A pleural effusion is not seen.", "-EF", "negation after the mention"),
    ("Pneumothorax is no longer visualized.", "-PX", "no longer visualized"),
    ("Pneumothorax not identified.", "-PX", "no verb before the negation"),
    ("Edema and large effusion not seen.", "-ED -EF", 'what stands after an "and" is no statement of its own'),
    ("Edema and effusion not seen.", "-ED -EF", "negation after two mentions"),
    ("The right effusion has resolved.", "-EF", "has resolved"),
    ("Left lower lobe pneumonia has cleared.", "-PN", "has cleared"),
    ("Resolved left pneumothorax.", "-PX", "resolved as an adjective"),
    ("Interval resolution of pulmonary edema.", "-ED", "resolution of"),
    ("Pneumothorax with interval resolution.", "-PX", "interval resolution after the mention"),
    ("Nearly completely resolved right effusion.", "+EF", "nearly resolved is still there"),
    ("The right jugular catheter has been removed.", "-SD", "removed device"),
    ("Interval removal of the chest tube.", "-SD", "removal of"),
    ("Pneumothorax: none. Effusion: no.", "-PX -EF", "a form's fields"),
    ("Pneumothorax has been excluded.", "-PX", "excluded"),
    ("No change in the left pleural effusion.", "+EF", "no change negates the change"),
    ("The effusion has not significantly changed.", "+EF", "not changed"),
    ("Resolution of the effusion and decrease in edema.", "-EF +ED", "a decrease leaves some"),
    ("The effusion has not resolved.", "+EF", "a negated negation"),
    ("No pneumothorax, small left pleural effusion.", "-PX +EF", "a size opens a new statement"),
    ("No large effusion, consolidation or pneumothorax.", "-EF -CO -PX", "large does not"),
    ("No pneumothorax but a moderate effusion.", "-PX +EF", "but"),
    ("No pneumothorax. However, effusion is seen.", "-PX +EF", "however"),
    ("No pneumothorax, however effusions persist.", "-PX +EF", "however inside a sentence"),
    ("No edema, the left effusion is small.", "-ED +EF", "a clause with its own verb"),
    ("No edema and there is a left effusion.", "-ED +EF", "there is"),
    ("There is cardiomegaly with no identified effusion.", "+CM -EF", "no identified looks forward"),
    ("No findings to suggest pneumonia.", "-PN", "no ... to suggest"),
    ("No suspected rib fracture.", "-FX", "negation wins over suspicion"),
    ("No new consolidation.", "-CO", "no new"),
    ("No effusion other than a small left one.", "-EF", "other than"),
    ("Lungs: clear.\nPleura: No effusion.\nHeart: Normal.", "-EF -CM", "lines of a structured report"),
    ("No pneumothorax status post chest tube placement.", "-PX +SD", "status post ends the scope"),
    ("History of pneumonia.", "", "not said of this image"),
    ("If there is concern for fracture, obtain dedicated views.", "", "a condition states nothing"),
    ("No pneumothorax, although sensitivity to detect pneumothorax is low.", "-PX", "detectability"),
]

UNCERTAINTY = [
    ("Possible left lower lobe pneumonia.", "?PN", "possible"),
    ("Pneumonia is possible.", "?PN", "possible as a predicate"),
    ("Opacity may represent atelectasis, pneumonia, or edema.", "+LO ?AT ?PN ?ED", "may, a list"),
    ("There may be a small effusion.", "?EF", "may be"),
    ("A small effusion may be present.", "?EF", "may be present, after the mention"),
    ("Cannot exclude pneumonia.", "?PN", "cannot exclude"),
    ("A small pneumothorax cannot be excluded.", "?PX", "cannot be excluded"),
    ("Consolidation with air bronchograms cannot be excluded.", "?CO", "with and no finding is no border"),
    ("Pneumonia is not entirely excluded.", "?PN", "not excluded"),
    ("Infection must be excluded.", "?PN", "must be excluded"),
    ("Small effusion, pneumonia cannot be excluded.", "+EF ?PN", "doubt reaches back to its comma"),
    ("Left basilar opacity suspicious for pneumonia.", "+LO ?PN", "suspicious for"),
    ("Opacities concerning for edema with small effusions.", "+LO ?ED +EF", "with ends the doubt"),
    ("Atelectasis versus pneumonia.", "?AT ?PN", "versus"),
    ("Atelectasis vs. infiltrate in the left base.", "?AT ?LO", "vs. is no end of sentence"),
    ("Edema or pneumonia.", "?ED ?PN", "or between diagnoses (CheXpert)"),
    ("Atelectasis and/or pneumonia.", "?AT ?PN", "and/or as or"),
    ("Atelectasis with mild residual or recurrent pneumonia.", "+AT +PN", "or between adjectives"),
    ("Pneumothorax? None seen.", "?PX", "a question"),
    ("Scarring or atelectasis at the base.", "+LO +AT", "or between descriptions"),
    ("Probable small right effusion.", "?EF", "probable is uncertain in CheXpert"),
    ("Left basilar opacity, likely atelectasis.", "+LO +AT", "likely is positive in CheXpert"),
    ("Infection is less likely.", "?PN", "less likely"),
    ("Pneumothorax is not clearly seen.", "?PX", "not clearly seen"),
    ("Mild pulmonary vascular congestion.", "?ED", "congestion is uncertain edema in CheXpert"),
    ("No pulmonary vascular congestion.", "-ED", "unless negated"),
    ("Consolidation is compatible with pneumonia.", "+CO +PN", "compatible with asserts"),
    ("Opacity which may be compatible with edema.", "+LO ?ED", "unless it only may be"),
]

# Where a negation ends. Of the same kind come sentences in which it goes on, so that it does not end too soon.
COMMAS = [
    ("No pneumothorax, right lower lobe pneumonia.", "-PX +PN", "an item with a side is affirmed"),
    ("No effusion, edema, left basilar atelectasis.", "-EF -ED +AT", "the last of three"),
    ("No edema, pneumonia in the left base.", "-ED +PN", "the place after the finding"),
    ("Without pneumothorax, retrocardiac opacity.", "-PX +LO", "without, and a place that is no side"),
    ("No pneumothorax or effusion, left lung nodule.", "-PX -EF +LL", "after a list that is complete"),
    ("No consolidation, pleural effusion, pneumothorax.", "-CO -EF -PX", "a list without a coordinator"),
    ("No pneumothorax, left effusion or consolidation.", "-PX -EF -CO", "a side within a list that ends in or"),
    ("No edema, left effusion, or right pneumothorax.", "-ED -EF -PX", "the same with a comma"),
    ("No pneumothorax is seen, right lower lobe pneumonia.", "-PX +PN", "seen ends the scope"),
    ("No pneumothorax seen, pneumonia.", "-PX +PN", "without a verb"),
    ("No pneumothorax has developed, cardiomegaly.", "-PX +CM", "a verb ends it"),
    ("No effusion is seen and cardiomegaly.", "-EF +CM", "at an and too"),
    ("No focal consolidation is seen, pleural effusion, or pneumothorax.", "-CO -EF -PX", "unless the list goes on"),
    ("No evidence is seen of edema, effusion, or pneumothorax.", "-ED -EF -PX", "a verb before the list"),
    ("No opacity is seen to suggest pneumonia.", "-LO -PN", "no comma"),
]

CLAUSES = [
    ("Rather than pneumonia, this is atelectasis.", "-PN +AT", "rather than A, this is B"),
    ("Instead of edema, it shows consolidation.", "-ED +CO", "instead of"),
    ("Rather than effusion, atelectasis, or edema, this is pneumonia.", "-EF -AT -ED +PN", "a list of three"),
    ("This is edema rather than pneumonia, effusion, or hemothorax.", "+ED -PN -EF", "the list goes on"),
    ("This is edema rather than pneumonia, left effusion is unchanged.", "+ED -PN +EF", "the next statement"),
    ("Without edema, this is pneumonia.", "-ED +PN", "a pronoun opens a statement"),
    ("Clearing of the right effusion shows underlying atelectasis.", "-EF +AT", "clearing of A shows B"),
    ("Clearing of the left base shows residual atelectasis.", "+AT", "whatever A is"),
    ("Disappearance of the pneumothorax reveals a nodule.", "-PX +LL", "disappearance"),
    ("Interval resolution of edema, effusion persists.", "-ED +EF", "a verb in the next statement"),
    ("Clearing of the edema with left effusion.", "-ED +EF", "with"),
    ("Clearing of the effusion and edema.", "-EF -ED", "and joins"),
    ("Removal of the endotracheal tube and the feeding tube.", "-SD", "both devices"),
    ("Cardiomegaly with no evidence of failure or pneumonia.", "+CM -PN", "or reaches back to no other scope"),
]

DEVICES = [
    ("The tube should be withdrawn 2 cm.", "+SD", "moved, not gone"),
    ("The catheter could be withdrawn slightly.", "+SD", "could"),
    ("The tube needs to be partially withdrawn.", "+SD", "needs"),
    ("The ET tube has been withdrawn by 3 cm.", "+SD", "a distance"),
    ("The catheter was withdrawn to the brachiocephalic vein.", "+SD", "a place"),
    ("The catheter should be removed.", "+SD", "still there"),
    ("Recommend removal of the chest tube.", "+SD", "still there"),
    ("The chest tube has been removed.", "-SD", "gone"),
    ("Interval removal of the chest tube.", "-SD", "gone"),
    ("Cannot confirm the position of the feeding tube.", "+SD", "the position is what is not confirmed"),
    ("Cannot confirm tube position.", "+SD", "in another order"),
    ("I do not see the tip of the catheter.", "+SD", "nor is the tip's absence the catheter's"),
    ("Unable to confirm placement of the tube.", "+SD", "placement"),
    ("The tip of the catheter is not seen.", "+SD", "the tip is what is not seen"),
    ("The feeding tube tip is not seen, small left effusion.", "+SD +EF", "nor is what follows denied"),
    ("No malposition of the catheter.", "+SD", "a change of place is denied"),
    ("No change in position of the tube.", "+SD", "the same"),
    ("The tube is not seen.", "-SD", "the device itself"),
    ("No pacemaker is seen.", "-SD", "the device itself"),
    ("Cannot confirm a pneumothorax.", "?PX", "the finding itself"),
    ("The pneumothorax may have resolved.", "?PX", "may"),
]

CHANGE = [
    ("No significant change in effusion or edema.", "?EF ?ED", "both alike"),
    ("No significant change in the opacity or effusion.", "?LO ?EF", "whatever A and B are"),
    ("No change in effusion, edema, or atelectasis.", "?EF ?ED ?AT", "nor how many"),
    ("No interval change in effusion and atelectasis.", "+EF +AT", "and: both are there"),
    ("No change, no effusion or edema.", "-EF -ED", "a new negation"),
    ("There has been an increase in heart size.", "+CM", "increase in"),
    ("Marked interval increase in size of the cardiac silhouette.", "+CM", "increase in size of"),
    ("Possible increase in heart size.", "?CM", "doubt"),
    ("No increase in heart size.", "", "denied"),
    ("Decrease in heart size.", "", "the opposite"),
    ("Increase in interstitial markings.", "+LO", "another subject"),
    ("Stable heart size, enlarged aorta.", "?CM", "the adjective of the next noun"),
    ("Stable heart size, prominent azygos vein.", "?CM", "another noun"),
    ("Stable heart size, enlarged thyroid.", "?CM", "and one of the neck"),
    ("Normal heart size, dilated esophagus.", "-CM", "and one behind it"),
    ("Heart size is stable, mildly enlarged.", "+CM", "no next noun"),
    ("Biapical pleural capping.", "+PO", "pleural capping"),
    ("No pleural cap.", "-PO", "denied"),
]

EARLIER = [
    ("Scarring from prior infection.", "+LO", "an illness of the past"),
    ("Prior TB infection.", "", "of a kind"),
    ("Changes of prior granulomatous infection.", "", "with an adjective"),
    ("Sequela of old left lower lobe pneumonia.", "", "with a place"),
    ("Calcification suggestive of old empyema.", "", "another"),
    ("Previous pneumonia persists.", "+PN", "unless it persists"),
    ("The previous pneumonia is no longer seen.", "-PN", "or is denied"),
    ("Old rib fractures.", "+FX", "an old fracture is seen on this image"),
    ("Pneumonia.", "+PN", "of today"),
    ("On the previous study there was a pneumothorax.", "", "of an earlier study"),
    ("On the prior radiograph, a right effusion was seen.", "", "with a comma"),
    ("A pneumothorax was present on the prior exam.", "", "at the end"),
    ("On the prior study, pneumonia was seen, and there is now an effusion.", "+EF", "then and now"),
    ("On the previous study there was edema, but now effusion.", "+EF", "but"),
    ("The effusion seen on the previous study is unchanged.", "+EF", "a verb of the present"),
    ("The effusion was larger on the previous study.", "+EF", "compared: it is there still"),
    ("The nodule was not present on the prior exam.", "+LL", "new"),
    ("Compared with the previous study, the effusion is larger.", "+EF", "compared"),
    ("Effusion, as on the prior study.", "+EF", "no verb of the past"),
    ("Effusion on the prior study has resolved.", "-EF", "gone"),
]

TYPESET = [
    ("There isn\u2019t a pneumothorax.", "-PX", "typographic apostrophe"),
    ("Effusion can\u2018t be excluded.", "?EF", "another"),
    ("\uff2e\uff4f \uff45\uff46\uff46\uff55\uff53\uff49\uff4f\uff4e\uff0e Edema.", "-EF +ED", "full width"),
    ("E\ufb00usion without \ufb01brosis.", "+EF -PO", "ligatures"),
    ("Pneumo\u00adthorax.", "+PX", "soft hyphen"),
    ("\u0152dema, h\u00e6mothorax.", "+ED +EF", "old spellings"),
    ("There is a pneumo-\nthorax.", "+PX", "broken at the end of a line"),
    ("No pneumo- \n  thorax, cardio-\nmegaly or consoli-\ndation.", "-PX -CM -CO", "with blanks, three times"),
    ("Right-\nsided effusion.", "+EF", "a hyphen that is one"),
    ("Air-\nspace disease.", "+LO", "and one that is read either way"),
    ("Mild effusion -\nno edema.", "+EF -ED", "a dash"),
]

IMPROBABLE = [
    ("Opacity not likely secondary to edema.", "+LO ?ED", "as unlikely"),
    ("Pneumonia is not likely.", "?PN", "behind the finding"),
    ("This is not very likely pneumonia.", "?PN", "not very likely"),
    ("Likely pneumonia.", "+PN", "likely alone is positive in CheXpert"),
]

PLEURAL_AIR = [
    ("The right pleural space is largely filled with air.", "+PX", "what a pneumothorax is"),
    ("Air in the left pleural space.", "+PX", "in the space"),
    ("No air within the pleural space.", "-PX", "denied"),
    ("Air in the stomach.", "", "elsewhere"),
]

CONGESTION = [
    ("Vascular congestive changes.", "?ED", "as vascular congestion"),
    ("Mild central pulmonary venous congestive changes.", "?ED", "as venous congestion"),
    ("The vessels are congested.", "?ED", "as a predicate"),
    ("No vascular congestive changes.", "-ED", "denied"),
    ("Congestive heart failure.", "+ED", "the illness"),
    ("Opacity favoring atelectasis.", "+LO ?AT", "as favored"),
]

HEART = [
    ("The heart is normal in size. The mediastinum is unremarkable.", "-CM -EC", "normal"),
    ("Heart size and mediastinal contours are within normal limits.", "-CM -EC", "one predicate, two subjects"),
    ("Normal heart size and mediastinal contours.", "-CM -EC", "one adjective, two subjects"),
    ("Cardiac and mediastinal silhouettes are unremarkable.", "-CM -EC", "a shared noun"),
    ("The cardiomediastinal silhouette is normal.", "-EC", "as CheXpert: not Cardiomegaly"),
    ("The heart is not enlarged.", "-CM", "not enlarged"),
    ("No mediastinal widening.", "-EC", "no widening"),
    ("The heart size is at the upper limits of normal.", "-CM", "negative in CheXpert"),
    ("Borderline heart size.", "?CM", "uncertain in CheXpert"),
    ("Heart size is stable.", "?CM", "uncertain: the example of the CheXpert paper"),
    ("Stable mediastinal silhouette.", "", "its size is not named"),
    ("The heart and mediastinum are stable.", "?CM", "the heart alone"),
    ("The mediastinum is widened and stable.", "+EC", "stable yields to a finding"),
    (
        "Stable cardiomediastinal silhouette with normal heart size.",
        "-CM",
        "the heart has a size, the silhouette none",
    ),
    ("The cardiomediastinal silhouette is unchanged.", "", "as little a finding as a stable mediastinum"),
    ("The cardiomediastinal silhouette is stable. The mediastinum is normal.", "-EC", "normal says more"),
    ("The heart is stable in size and mildly enlarged.", "+CM", "stable yields to a finding"),
    ("The cardiac silhouette is mildly enlarged.", "+CM", "enlarged"),
    ("Mild enlargement of the cardiac silhouette.", "+CM", "enlargement of"),
    ("Heart normal, mediastinum widened.", "-CM +EC", "each its own, no verbs"),
    ("the heart is normal mediastinum is widened", "-CM +EC", "without punctuation"),
    ("The aorta is enlarged and the heart is normal.", "-CM", "another organ's predicate"),
    ("The heart is normal. Large effusion.", "-CM +EF", "large belongs to the effusion"),
    ("The heart size is normal or mildly enlarged.", "?CM", "both"),
    ("The left heart border is obscured by opacity.", "+LO", "a border is no size"),
    ("Multiple clips project over the heart.", "+SD", "a place, not a subject"),
    ("The interstitial markings are prominent.", "+LO", "markings"),
    ("The interstitial markings are normal.", "-LO", "normal markings"),
]

MENTIONED = [
    ("Small bilateral pleural effusions.", "+EF", "plural"),
    ("Pericardial effusion.", "", "not pleural"),
    ("No pleural or pericardial effusion.", "-EF", "a shared noun"),
    ("Right hydropneumothorax.", "+PX +EF", "both"),
    ("Bibasilar atelectatic changes.", "+AT", "adjective"),
    ("Compression fracture with vertebral body collapse.", "+FX", "a vertebra's collapse is no atelectasis"),
    ("Deformity of the right rib. Old rib deformity.", "?FX", "an old fracture, perhaps"),
    ("A 6 mm nodule in the right upper lobe.", "+LL", "nodule"),
    ("Nodular opacity at the left base.", "+LL +LO", "a lesion and an opacity, as in CheXpert"),
    ("Calcified granuloma.", "", "no lesion in CheXpert"),
    ("Hazy interstitial opacities.", "+LO", "opacity"),
    ("Biapical pleural thickening.", "+PO", "pleural thickening"),
    ("Blunting of the left costophrenic angle.", "", "no effusion in CheXpert"),
    ("Dual-lead pacemaker and sternotomy wires.", "+SD", "devices"),
    ("Port-A-Cath tip in the SVC.", "+SD", "hyphens"),
    ("Low lung volumes.", "", "not a condition"),
    ("Degenerative changes of the spine.", "", "not a condition"),
    ("Soft tissue edema.", "", "not of the lung"),
    ("Mass effect on the trachea.", "", "no mass"),
    ("Air-space disease.", "+LO", "hyphen"),
    ("ATELECTASIS", "+AT", "capitals"),
    ("Cardiomegaly/edema", "+CM +ED", "a slash asserts both"),
]

SECTIONS = [
    ("INDICATION: Pneumonia.\n\nFINDINGS: No effusion.", "-EF", "indication is not read"),
    ("INDICATION: Pneumonia. FINDINGS: No effusion.", "-EF", "on one line"),
    ("INDICATION: rule out pneumonia FINDINGS: No effusion.", "-EF", "without a full stop"),
    ("FINAL REPORT\n HISTORY: Effusion.\n \n The heart is enlarged.", "+CM", "an empty line ends the section"),
    ("Clinical history: edema.\nImpression: Pneumothorax.", "+PX", "small letters"),
    ("FINDINGS: Effusion.\n\nCOMPARISON: Edema before.", "+EF", "after the body"),
    ("REASON FOR EXAM: fracture?\nIMPRESSION: 1. Atelectasis.", "+AT", "several words"),
    ("Compared to the prior exam: effusion is larger.", "+EF", "a sentence with a colon is no heading"),
    ("CHEST, TWO VIEWS: There is edema.", "+ED", "a heading of the body"),
]


READ_WRONGLY_ONCE = [*COMMAS, *CLAUSES, *DEVICES, *CHANGE, *EARLIER, *TYPESET, *CONGESTION, *IMPROBABLE, *PLEURAL_AIR]


@pytest.mark.parametrize(
    "heading",
    [
        *("INDICATION", "INDICATIONS", "HISTORY", "REASON", "TECHNIQUE", "COMPARISON", "COMPARISONS", "NOTIFICATION"),
        *("Indication", "History", "Reason", "Technique", "Comparison", "Notification"),
        *(
            "CLINICAL INFORMATION",
            "EXAMINATION",
            "STUDY DATE",
            "PROCEDURE",
            "Reason for the exam",
            "Reference of study",
        ),
        *("PATIENT HISTORY", "RELEVANT COMPARISON"),  # in capitals one of the words is enough
    ],
)
def test_headings_of_what_is_not_said_of_the_image(labeler, heading):
    assert labeler([f"{heading}: Edema.\n\nFINDINGS: No effusion."])[0].tolist() == states("-EF +NF")


@pytest.mark.parametrize(
    "heading",
    [
        *("FINDINGS", "IMPRESSION", "CONCLUSION", "LUNGS", "HEART", "CHEST", "BONES", "REPORT", "PORTABLE CHEST"),
        *("Findings", "Impression", "Lungs", "Old history", "Old HISTORY", "Comparison with lateral", "Clinical note"),
        *("CLINICAL NOTE", "EXAM FINDINGS", "THE LUNGS"),  # in capitals, and no word of the first list
    ],
)
def test_headings_of_what_is(labeler, heading):
    assert labeler([f"{heading}: Edema.\n\nIMPRESSION: No effusion."])[0].tolist() == states("+ED -EF")


@pytest.mark.parametrize(("text", "expected"), PUBLISHED)
def test_published_rows(labeler, text, expected):
    assert labeler([text])[0].tolist() == states(expected)


@pytest.mark.parametrize(
    ("text", "expected", "reason"),
    [*NEGATION, *UNCERTAINTY, *HEART, *MENTIONED, *SECTIONS, *READ_WRONGLY_ONCE],
    ids=lambda value: value,
)
def test_states(labeler, text, expected, reason):
    assert labeler([text])[0][:NO_FINDING].tolist() == states(expected)[:NO_FINDING], reason


@pytest.mark.parametrize(
    ("text", "positive", "reason"),
    [
        ("The lungs are clear. No effusion.", True, "nothing found"),
        ("No acute cardiopulmonary abnormality.", True, "said in general"),
        ("Right PICC in the SVC. Lungs are clear.", True, "devices do not count"),
        ("Lungs are clear. Possible nodule.", False, "uncertain counts"),
        ("Lungs are clear. Cardiomegaly.", False, "positive counts"),
        ("Lungs are clear. Emphysema.", False, "an abnormality outside the 13"),
        ("No emphysema.", True, "unless negated"),
        ("Heart size normal. Calcified granuloma.", False, "another"),
        ("The hila are prominent. No effusion.", False, "another organ's"),
        ("Stable mediastinal silhouette. Lungs are clear.", True, "says nothing of a finding"),
        ("The cardiomediastinal silhouette is stable. Lungs are clear.", True, "nor does this"),
        ("The cardiomediastinal silhouette is obscured. Lungs are clear.", False, "this does"),
        ("Heart size is stable. Lungs are clear.", False, "and the heart: uncertain in CheXpert"),
        ("Lungs are clear. Scarring from prior infection.", False, "the scar"),
        ("Lungs are clear. Evidence of prior infection.", True, "of the past"),
        ("On the previous study there was a pneumothorax.", False, "nothing of this image"),
        ("", False, "an empty text says nothing"),
        (" \n\t", False, "nor does a blank one"),
        ("the the the", False, "nor one without a finding"),
        ("no no no no", False, "nor bare negation"),
    ],
)
def test_no_finding(labeler, text, positive, reason):
    expected = CheXpertState.POSITIVE if positive else CheXpertState.BLANK
    assert labeler([text])[0, NO_FINDING] == expected, reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Effusion. No effusion.", "+EF"),
        ("No effusion. Possible effusion.", "?EF"),
        ("Possible effusion. Effusion.", "+EF"),
    ],
)
def test_strongest_mention_decides(labeler, text, expected):
    assert labeler([text])[0].tolist() == states(expected)


def test_shape_and_independence(labeler):
    texts = ["No effusion.", "Cardiomegaly.", "No effusion.", ""]
    found = labeler(texts)
    assert found.shape == (4, 14) and np.issubdtype(found.dtype, np.integer)
    assert (found == np.concatenate([labeler([text]) for text in texts])).all()  # no report depends on its batch
    assert labeler([]).shape == (0, 14)
    assert labeler.name == "lexical"


def test_mentions_give_the_evidence(labeler):
    text = "INDICATION: Edema.\n\nFINDINGS: İ No effusion. The heart is mildly enlarged. Emphysema."
    found = [(text[start:end], CONDITIONS[i], state) for start, end, i, state in labeler.mentions(text)]
    assert found == [
        ("effusion", "Pleural Effusion", CheXpertState.NEGATIVE),
        ("heart is mildly enlarged", "Cardiomegaly", CheXpertState.POSITIVE),
    ]


def test_mentions_keep_the_places_of_the_text_as_it_was_written(labeler):
    text = "There isn\u2019t an e\ufb00usion. Pneumo\u00adthorax.\nAtelec-\n tasis; \uff45\uff44\uff45\uff4d\uff41"
    found = [(text[start:end], CONDITIONS[i], state) for start, end, i, state in labeler.mentions(text)]
    assert found == [
        ("e\ufb00usion", "Pleural Effusion", CheXpertState.NEGATIVE),
        ("Pneumo\u00adthorax", "Pneumothorax", CheXpertState.POSITIVE),
        ("Atelec-\n tasis", "Atelectasis", CheXpertState.POSITIVE),
        ("\uff45\uff44\uff45\uff4d\uff41", "Edema", CheXpertState.POSITIVE),
    ]


def test_a_stable_mediastinum_is_what_is_asked_for():
    cautious = LexicalLabeler(stable_mediastinum=CheXpertState.UNCERTAIN)
    text = "The mediastinum is stable."
    assert cautious([text, text + " Mediastinum normal."])[:, 0].tolist() == [3, 2]
    assert [state for *_, state in cautious.mentions(text)] == [CheXpertState.UNCERTAIN]
    assert LexicalLabeler().mentions(text) == []


VOCABULARY = [
    *("was", "should", "removed", "withdrawn", "tip of", "on the prior study", "rather than", "clearing of", "shows"),
    *("no change in", "increase in", "old pneumonia", "left", "lobe", "e\ufb00usion", "isn\u2019t", "pneumo-\nthorax"),
    *("no", "not", "without", "and", "or", "versus", "with", "but", "may", "possible", "resolved", "cleared", "seen"),
    *(
        "excluded",
        "is",
        "there",
        "history",
        "of",
        "heart",
        "mediastinum",
        "normal",
        "enlarged",
        "stable",
        "borderline",
    ),
    *("effusion", "edema", "opacity", "pneumonia", "device", "emphysema", "small", "FINDINGS:", "HISTORY:", "XXXX"),
    *(",", ".", ";", ":", "/", "\n", "\n\n", "İ", "肺", "🫁", "\x00"),
]


def test_phrases_are_those_of_findings_and_anatomy(labeler):
    phrases = labeler.phrases()
    assert any("cardiomegaly" in each and "edema" not in each for each in phrases)
    assert any("heart" in each for each in phrases)
    named = [[phrase for phrase in each if labeler.mentions(phrase)] for each in phrases]
    assert sum(map(len, named)) > 200 and all(named[i] in ([], phrases[i]) for i in range(len(phrases)))


def test_any_text_is_labelled_and_mentions_agree(labeler):
    random.seed(0)
    strength = [CheXpertState.BLANK, CheXpertState.NEGATIVE, CheXpertState.UNCERTAIN, CheXpertState.POSITIVE]
    for _ in range(1500):
        text = " ".join(random.choices(VOCABULARY, k=random.randint(1, 25)))
        strongest = [CheXpertState.BLANK] * 13
        for start, end, condition, state in labeler.mentions(text):
            assert 0 <= start < end <= len(text)
            strongest[condition] = max(strongest[condition], state, key=strength.index)
        assert labeler([text])[0, :13].tolist() == strongest, text


@pytest.mark.parametrize(
    "unit",
    [
        "no ",
        "effusion, or ",
        "effusion may be seen ",
        "heart and ",
        "normal heart ",
        "\n",
        "A: ",
        "HISTORY: ",
        "possible ",
        "no effusion, left ",
        "on the prior study was effusion, ",
        "e\ufb00usion pneumo-\nthorax ",
        "x" * 20,
        "🫁 ",
    ],
)
def test_time_is_linear(labeler, unit):
    def seconds(repeats: int) -> float:
        start = time.process_time()
        labeler([unit * repeats])
        return time.process_time() - start

    seconds(100)
    assert seconds(10_000) < 2.0  # seconds on a slow, shared core; quadratic time would take minutes


def test_open_labels_of_radgraph_agree_in_polarity(labeler):
    path = DATA / "radlabels" / "dev.json"
    if not path.is_file():
        pytest.skip("RRG_DATA has no radlabels/dev.json")
    reports = list(json.loads(path.read_text()).values())
    found = labeler([item["report"] for item in reports])
    names = {"Pneumothorax": "pneumothorax", "Pleural Effusion": "pleural_effusion", "Cardiomegaly": "cardiomegaly"}
    pairs = [
        (states[CONDITIONS.index(condition)] == CheXpertState.NEGATIVE, item["labels"][name] == "definitely absent")
        for item, states in zip(reports, found, strict=True)
        for condition, name in names.items()
        if name in item["labels"] and states[CONDITIONS.index(condition)] != CheXpertState.BLANK
    ]
    assert len(pairs) > 400
    assert np.mean([ours == theirs for ours, theirs in pairs]) >= 0.85


def test_published_files(labeler):
    path = DATA / "chexbert_sample" / "labeled_reports.csv"
    if not path.is_file():
        pytest.skip("RRG_DATA has no chexbert_sample/labeled_reports.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    codes = {"1.0": 1, "0.0": 2, "-1.0": 3, "": 0}
    assert labeler([row["Report Impression"] for row in rows]).tolist() == [
        [codes[row[condition]] for condition in CONDITIONS] for row in rows
    ]
