"""The phantom's second site: the same findings, and all else differs from the first. Its pictures and boxes are held
to the same tests as the first site's in test_phantom.py."""

import re
import sys
from itertools import product

import numpy as np
import pytest
from PIL import Image

from modeling.tiny import train_tokenizer
from recipes import build_phantom
from recipes.data.phantom import STYLES, Sign, Study, earlier, make_study, with_no_finding
from recipes.data.phantom_site_b import WARD
from recipes.data.phantom_site_b_reports import ABSENT, WHOLE_SENTENCES, write_report
from recipes.data.phantom_sites import SITES
from recipes.data.schema import read_build, read_dataset
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, FINDINGS, CheXpertState

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = CheXpertState


@pytest.fixture(scope="module")
def labeler():
    return LexicalLabeler()


def reports(site: str, number: int, seed: int = 0) -> list[str]:
    rng, texts = np.random.default_rng(seed), []
    for index in range(number):
        study = make_study(SITES[site].sample_states(rng, 0.8, balanced=index % 2 == 0), rng)
        texts.append(SITES[site].write_report(study, rng, None, earlier(study, rng) if index % 3 == 0 else None))
    return texts


def sentences(texts: list[str]) -> set[str]:
    """Sentences without the headings of a systematic report and without sides, in lower case."""
    parts = (part for text in texts for part in re.split(r"(?<=\.)\s+", text))
    return {re.sub(r"^[\w ]+: |\b(left|right)\b", "", part).strip().lower() for part in parts}


@pytest.mark.parametrize("name", FINDINGS)
def test_every_wording_of_a_finding_is_read_as_the_finding(labeler, name):
    """All sides, sizes, zones and devices, sure, doubted and denied, with and without a comparison, in every style."""
    texts, expected = [], []
    places = product(("left", "right", "bilateral"), ("small", "moderate", "large"), ("upper", "mid", "lower"))
    signs = [Sign(*place) for place in places if name == "Pleural Effusion" or place[0] != "bilateral"]
    if name == "Lung Lesion":
        signs.append(Sign("left", "small", "retrocardiac"))
    devices = ("pacemaker", "central venous catheter", "endotracheal tube", "chest tube")
    for state, sign in product((POSITIVE, UNCERTAIN, NEGATIVE), signs):
        states = with_no_finding([state if finding == name else BLANK for finding in FINDINGS])
        other = with_no_finding([POSITIVE if finding == name else BLANK for finding in FINDINGS])
        for index, style in enumerate(STYLES * 3):  # a draw of its own for each, so that all wordings come up
            rng = np.random.default_rng((len(texts), index))
            device = devices[index % 4] if name == "Support Devices" else devices[0]
            study = Study(tuple(states.tolist()), {name: sign}, device)
            prior = (None, Study(tuple(other.tolist()), {name: sign}, device), Study((BLANK,) * 14, {}, device))
            texts.append(write_report(study, rng, style, prior[index % 3]))
            expected.append(study.states)
    wrong = [(texts[i], CONDITIONS[j]) for i, j in np.argwhere(labeler(texts) != np.array(expected))]
    assert not wrong, wrong[:3]


def test_every_denial_and_normal_sentence_is_read(labeler):
    for (name, state), texts in WHOLE_SENTENCES.items():
        assert (labeler(texts)[:, CONDITIONS.index(name)] == state).all(), texts
    for name, nouns in ABSENT.items():
        for frame in ("Negative for {}.", "Without {}.", "Absence of {}.", "Interval disappearance of {}."):
            read = labeler([frame.format(noun) for noun in nouns])
            assert (read[:, CONDITIONS.index(name)] == NEGATIVE).all(), (frame, nouns)


def test_no_sentence_of_one_site_is_written_at_the_other():
    ours, theirs = (sentences(reports(site, 600)) for site in "ab")
    assert len(ours) > 150 and len(theirs) > 150 and not ours & theirs


def test_headings_and_order_differ():
    every = with_no_finding([POSITIVE] * 13)
    texts = [SITES[site].write_report(every, np.random.default_rng(0), "systematic") for site in "ab"]
    first, second = (re.findall(r"([A-Z][A-Za-z ]+):", text) for text in texts)
    assert first == ["Heart", "Mediastinum", "Lungs", "Pleura", "Bones", "Other"]
    assert second == ["FOREIGN MATERIAL", "SKELETON", "PLEURAL SPACES", "PARENCHYMA", "CENTRAL ORGANS"]


def test_comparison_with_the_prior():
    def states(state: int) -> Study:
        chest = make_study([BLANK] * 9 + [state] + [BLANK] * 3, np.random.default_rng(0))
        return Study(chest.states, {**chest.signs, "Pleural Effusion": Sign("left", "large", "lower")}, chest.device)

    effusion, none = states(POSITIVE), states(NEGATIVE)
    rng = np.random.default_rng(1)
    assert any("ecently developed extensive left-sided" in write_report(effusion, rng, None, none) for _ in range(20))
    assert any("ersistent extensive left-sided" in write_report(effusion, rng, None, effusion) for _ in range(20))
    assert write_report(none, rng, "terse", effusion) == "Interval disappearance of pleural fluid."


def test_prevalence_is_a_wards():
    rng = np.random.default_rng(0)
    first, second = (np.array([SITES[site].sample_states(rng, 0.5) for _ in range(3000)]) for site in "ab")
    share = lambda states, name: np.isin(states[:, CONDITIONS.index(name)], (POSITIVE, UNCERTAIN)).mean()  # noqa: E731
    for name in ("Support Devices", "Edema", "Pleural Effusion", "Pneumothorax"):
        assert share(second, name) > 1.5 * share(first, name), name
    for name in ("Lung Lesion", "Lung Opacity"):
        assert share(second, name) < 0.7 * share(first, name), name
    for states in (first, second):  # the share of studies with a finding is the caller's at both sites
        assert 0.46 < np.isin(states[:, :13], (POSITIVE, UNCERTAIN)).any(axis=1).mean() < 0.54
    assert set(WARD.frequencies) == set(FINDINGS) and sum(WARD.counts) == pytest.approx(1)


def test_films_are_noisier_and_harder():
    noise, black, middle = {}, {}, {}
    for site in "ab":
        images = [np.asarray(SITES[site].render([0] * 13, "frontal", np.random.default_rng(i), 224)) for i in range(6)]
        images = np.array(images, dtype=float)[:, 20:-20, 20:-20]
        # of white noise of variance s^2 the second difference has 6 s^2; what is smooth falls out of it
        second = images[:, :, 2:] - 2 * images[:, :, 1:-1] + images[:, :, :-2]
        noise[site] = np.median(np.abs(second)) / 0.6745 / np.sqrt(6)
        middle[site] = np.median(images)
        black[site] = np.mean(images < 40)
    assert noise["b"] > 1.5 * noise["a"]
    assert abs(middle["b"] - middle["a"]) > 5 or abs(black["b"] - black["a"]) > 0.05


def test_lateral_views_face_the_other_way():
    """The heart lies in front: on the image's left at the first site, on its right at the second."""
    for site, front in (("a", slice(20, 50)), ("b", slice(62, 92))):
        rear = slice(62, 92) if front.start == 20 else slice(20, 50)
        enlarged = [POSITIVE if name == "Cardiomegaly" else BLANK for name in FINDINGS]
        images = [
            np.asarray(SITES[site].render(states, "lateral", np.random.default_rng(3)), dtype=float)
            for states in (enlarged, [BLANK] * 13)
        ]
        change = np.abs(images[0] - images[1])
        assert change[:, front].sum() > 4 * change[:, rear].sum()


def test_a_tokenizer_of_the_first_site_reads_the_second():
    """It is of bytes: words that the vocabulary never saw are spelt out, without an unknown token."""
    tokenizer = train_tokenizer(reports("a", 200), 768)
    texts = [*reports("b", 100), "Ödem, 5 µm, ½ \u2014 \u6c34."]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    length = {site: np.mean([len(tokenizer(text)["input_ids"]) / len(text) for text in reports(site, 60, 1)])
              for site in "ab"}  # fmt: skip
    assert length["b"] > 1.2 * length["a"]


def test_build_of_the_second_site(monkeypatch, tmp_path, labeler):
    sizes = ["--n_train", "8", "--n_validation", "1", "--n_test", "1", "--size", "64", "--scenarios", "sn,sw,mn,mw"]
    for name, site in (("plain", []), ("a", ["--site", "a"]), ("b", ["--site", "b"])):
        monkeypatch.setattr(sys, "argv", ["build_phantom.py", "--out", str(tmp_path / name), *sizes, *site])
        build_phantom.main()
    plain, first, second = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
                            for name in ("plain", "a", "b"))  # fmt: skip
    assert plain == first and plain.keys() == second.keys()
    assert read_build(tmp_path / "b")["site"] == "b" and "site" not in read_build(tmp_path / "a")
    rows = {name: read_dataset(str(tmp_path / name))["train"] for name in "ab"}
    assert not {*rows["a"]["study_id"]} & {*rows["b"]["study_id"]}
    for row in rows["b"]:
        assert row["labels"] == labeler([row["report"]])[0].tolist()
        assert row["prior_report"] is None or labeler([row["prior_report"]]).any()
        assert len(row["boxes"]) == 27 and (row["source"], row["license"]) == ("phantom", "CC0-1.0")
        assert "not medical data" in row["images"][0].text["Description"]


def test_contact_sheet_of_the_second_site():
    sheets = [SITES[site].contact_sheet(64) for site in "ab"]
    assert isinstance(sheets[1], Image.Image) and sheets[0].size == sheets[1].size
    assert sheets[0].tobytes() != sheets[1].tobytes()
