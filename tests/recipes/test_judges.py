"""The rule judge and the rule rewriter on sentences of our own; what is expected is what a reader would say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.rg4.rules import RuleJudge, RuleRewriter, split_sentences
from rewards.labelers import LexicalLabeler
from rewards.labels import CheXpertState
from rewards.scenarios import CATEGORIES

PC, PP, VIEW, COMM = CATEGORIES


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("There is a small left effusion.", ()),
        ("The small left effusion is unchanged.", (PC,)),
        ("No new consolidation.", (PC,)),
        ("Compared with the study of last week, the lungs are clear.", (PC,)),
        ("The pneumothorax has resolved.", (PC,)),
        ("Follow up to document resolution.", ()),  # a recommendation is kept
        ("Follow up to document complete resolution.", ()),
        ("Fluoroscopy would confirm this.", ()),  # not done yet
        ("High resolution CT is recommended.", ()),
        ("Calcified nodes from prior granulomatous disease.", ()),  # an old disease that is seen now
        ("Right effusion is worse on the left.", ()),  # sides are compared, not times
        ("Soft tissue is asymmetric compared to the right.", ()),
        ("Mild degenerative changes of the spine.", ()),
        ("No acute bony changes.", ()),
        ("The patient is status post CABG.", (PP,)),
        ("The right chest tube has been removed.", (PP,)),
        ("Interval removal of the tube.", (PC, PP)),
        ("Tracheostomy tube in standard position.", ()),  # a device that is seen
        ("Surgical clips in the right axilla.", ()),
        ("The tube should be advanced by 3 cm.", ()),  # a recommendation
        ("PA and lateral views of the chest were obtained.", (VIEW,)),
        ("A nodule is seen on the lateral view only.", (VIEW,)),
        ("Portable technique limits the evaluation.", (VIEW,)),
        ("Opacity in the lateral right base.", ()),  # a place, not a view
        ("PA and lateral views are recommended.", ()),  # not of this image
        ("Increased AP diameter of the chest.", ()),
        ("The findings were discussed with Dr. Smith by phone at 5 p.m.", (COMM,)),
        ("The nurse was notified.", (COMM,)),
        ("Findings as discussed below.", ()),
        ("", ()),
        ("... ?? XXXX ___ \udcff", ()),  # any string is judged
    ],
)
def test_judge(text, held):
    (found,) = RuleJudge()([text])
    assert tuple(category for category, state in zip(CATEGORIES, found, strict=True) if state) == held


def test_judge_of_nothing_and_of_many():
    assert RuleJudge()([]).shape == (0, 4)
    texts = ["Stable.", "Clear.", "Stable."]
    assert RuleJudge()(texts)[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two. Three", 3),
        ("Discussed with Dr. Smith at 5 p.m. on Monday.", 1),
        ("the heart is normal . lungs are clear .", 2),  # R2Gen's cleaning
        ("3.5 cm nodule.", 1),
    ],
)
def test_sentences(text, count):
    assert len(split_sentences(text)) == count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Unchanged small effusion.", "Small effusion."),
        ("No new consolidation.", "No consolidation."),
        ("Compared to the prior study, there is a small effusion.", "There is a small effusion."),
        ("As compared to the previous radiograph, there is a small effusion.", "There is a small effusion."),
        ("The effusion is unchanged.", "The effusion is present."),
        ("Bilateral effusions have slightly increased since the prior exam.", "Bilateral effusions are present."),
        ("Heart remains enlarged.", "Heart is enlarged."),
        ("The pneumothorax has resolved.", "There is no pneumothorax."),
        ("Interval resolution of the left effusion.", "There is no left effusion."),
        ("Again seen are calcified granulomas.", "There are calcified granulomas."),
        ("Chest tube remains in place.", "Chest tube is in place."),
        ("The cardiac silhouette has enlarged since the prior exam.", "The cardiac silhouette is enlarged."),
        ("Mild cardiomegaly, stable.", "Mild cardiomegaly."),
        ("The heart is normal in size and unchanged.", "The heart is normal in size."),
        ("Comparison is made with the study of last year.", ""),
        ("No change.", ""),
        ("Patient is status post CABG.", ""),
        ("Sternal wires are intact in this patient status post CABG.", "Sternal wires are intact."),
        ("Interval placement of a right chest tube.", "There is right chest tube."),
        ("PA and lateral views of the chest were obtained.", ""),
        ("Frontal view of the chest demonstrates a right nodule.", "There is a right nodule."),
        ("A nodule is seen on the lateral view.", "A nodule is seen."),
        ("The heart is normal in size for AP technique.", "The heart is normal in size."),
        ("The findings were communicated to Dr. X at 5 pm.", ""),
        ("The patient is status post CABG and mitral valve replacement.", "There is prosthetic mitral valve."),
        ("The heart size is stable.", "The heart size is not well evaluated."),  # uncertain by CheXpert's rules
        ("Cardiomediastinal contours are unchanged.", "The mediastinal contours are not well evaluated."),
        ("stable heart size and mediastinum .", "the heart size and mediastinal contours are not well evaluated ."),
        ("Mildly enlarged but stable heart.", "Mildly enlarged heart."),  # its size is said: nothing is neutralised
        ("Normal and stable heart size.", "Normal heart size."),
        ("Heart size is stable. Cardiomegaly.", "Cardiomegaly."),  # said elsewhere
        ("Heart size is normal. Stable heart.", "Heart size is normal."),  # no contradiction
        (
            "Stable heart. Heart is unchanged. Stable small effusion.",
            "The heart size is not well evaluated. Small effusion.",  # said once
        ),
        (
            "Mild cardiomegaly, stable mediastinum.",
            "Mild cardiomegaly. The mediastinal contours are not well evaluated.",
        ),
        ("Distended mediastinum is unchanged.", "Distended mediastinum is present."),  # still told of: not neutralised
        ("Clear lungs.", "Clear lungs."),
        ("stable small effusion .", "small effusion ."),  # R2Gen's cleaning stays what it is
        ("", ""),
    ],
)
def test_rewriter(text, expected):
    assert RuleRewriter().rewrite(text, CATEGORIES) == expected


@pytest.mark.parametrize(
    ("text", "categories", "expected"),
    [
        ("Stable effusion on the lateral view.", (VIEW,), "Stable effusion."),  # what was not judged stays
        ("Stable effusion on the lateral view.", (PC,), "Effusion on the lateral view."),
        ("Stable effusion on the lateral view.", (), "Stable effusion on the lateral view."),
    ],
)
def test_rewriter_touches_only_what_was_judged(text, categories, expected):
    assert RuleRewriter().rewrite(text, categories) == expected


REPORT = (
    "PA and lateral views of the chest were obtained. Compared to the prior exam, there is a new small right pleural "
    "effusion. Left pneumothorax has resolved. Possible pneumonia in the left base, increased since yesterday. Heart "
    "remains mildly enlarged. Right PICC is unchanged in position. The patient is status post lobectomy. No new "
    "fracture. These findings were discussed with Dr. Smith at 4 p.m. Follow-up in six weeks is recommended."
)


def test_a_whole_report_keeps_its_labels_and_its_recommendation():
    after = RuleRewriter().rewrite(REPORT, CATEGORIES)
    labeler = LexicalLabeler()
    assert not RuleJudge()([after]).any()
    assert (labeler([REPORT]) == labeler([after])).all()
    assert "recommended" in after and "small right pleural effusion" in after and "no fracture" in after.lower()
    assert RuleRewriter().rewrite(after, CATEGORIES) == after


def test_neutral_wording_is_uncertain_and_nothing_else():
    """By the labeler's general rules, for either organ and both; CheXpert's own: "XXX is not well evaluated"."""
    texts = ["Stable heart.", "Stable mediastinum.", "Heart size and mediastinal contours are stable."]
    after = [RuleRewriter().rewrite(text, CATEGORIES) for text in texts]
    named = [{1}, {0}, {0, 1}]  # Enlarged Cardiomediastinum, Cardiomegaly
    expected = [[CheXpertState.UNCERTAIN if i in each else CheXpertState.BLANK for i in range(14)] for each in named]
    chexpert = LexicalLabeler(stable_mediastinum=CheXpertState.UNCERTAIN)
    assert chexpert(after).tolist() == chexpert(texts).tolist() == expected
    assert not RuleJudge()(after).any()


@pytest.mark.parametrize(
    ("findings", "impression", "expected"),
    [
        ("Stable heart.", "Stable heart.", ["The heart size is not well evaluated."] * 2),  # each for its own labels
        ("Heart is enlarged.", "Stable heart.", ["Heart is enlarged.", ""]),  # no contradiction across sections
        ("Stable heart.", "Edema.", ["The heart size is not well evaluated.", "Edema."]),
    ],
)
def test_sections_of_one_report(findings, impression, expected):
    sections = {"findings": findings, "impression": impression}
    assert list(RuleRewriter().rewrite_sections(sections, CATEGORIES).values()) == expected


def test_what_only_the_sentences_together_hold_is_removed():
    """A capital letter in what was rewritten makes two sentences of one, and takes the view its recommendation."""
    assert RuleRewriter().rewrite("recommended. unchanged PA", CATEGORIES) == ""


ODD = "unchanged Stable PA view. s/p Dr. No and ( XXXX ___ , Heart."


@given(
    st.lists(st.sampled_from(f"{REPORT} {ODD}".split()), max_size=25).map(" ".join),
    st.sets(st.sampled_from(CATEGORIES)),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_said_nothing_judged_stays(text, categories):
    after = RuleRewriter().rewrite(text, categories)
    for judged in (after, *split_sentences(after)):
        held = RuleJudge()([judged])[0]
        assert not any(state and category in categories for category, state in zip(CATEGORIES, held, strict=True))
    assert RuleRewriter().rewrite(text, ()) == " ".join(split_sentences(text))
