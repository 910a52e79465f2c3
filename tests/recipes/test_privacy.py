"""One list of free sources, asked by every guard: pushes, trackers, endpoints. What it does not name is private."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from recipes.data.privacy import is_credentialed, private_among
from recipes.files import InputError
from recipes.hub.push import check_allowed, prepare_push, sources_of
from recipes.rg4.pipeline import check_private

SOURCES = [  # name, is text free, are weights free, why
    ("phantom", True, True, "drawn by this project"),
    (" Phantom\n", True, True, "the same in another spelling"),
    ("ｐｈａｎｔｏｍ", True, True, "full-width letters are the same under NFKC"),
    ("openi", False, True, "CC BY-NC-ND: no changed copies; a model is none"),
    ("OpenI ", False, True, "the same in another spelling"),
    ("mimic-cxr", False, False, "credentialed"),
    ("MIMIC-CXR", False, False, "capitals passed both guards once"),
    (" mimic-cxr", False, False, "so did a space"),
    ("ＭＩＭＩＣ-CXR", False, False, "full-width letters"),
    ("mimic-rg4", False, False, "derived"),
    ("St. Elsewhere Hospital", False, False, "a hospital's own data"),
    ("phantom-and-mimic", False, False, "a name that only begins as a free one"),
    ("my phantom", False, False, "a name that only ends as a free one"),
    ("рhantom", False, False, "its first letter is Cyrillic"),
    ("unknown", False, False, "nobody says what it is"),
    (None, False, False, "null"),
    ("", False, False, "empty"),
    (" \t", False, False, "white space alone"),
    ("nan", False, False, "what pandas makes of null"),
]


@pytest.mark.parametrize(("source", "text", "weights", "why"), SOURCES, ids=lambda value: repr(value)[:30])
def test_the_list(source, text, weights, why):
    assert bool(private_among([source])) is not text, why
    assert bool(private_among([source], weights=True)) is not weights, why
    assert private_among(["phantom", source]) == private_among([source])  # a free one beside it frees nothing


def test_nothing_named_is_unknown():
    assert private_among([]) == private_among([None, " ", "unknown"], weights=True) == ["unknown"]
    assert private_among(["openi", "MIMIC-CXR", "phantom"]) == ["MIMIC-CXR", "openi"]  # as written, sorted


@pytest.mark.parametrize(
    ("source", "credentialed"), [("MIMIC-CXR", True), (" mimic-rg4", True), ("openi", False), (None, False)]
)
def test_mimic_by_name(source, credentialed):
    assert is_credentialed(source) is credentialed


@pytest.mark.parametrize(("source", "text", "weights", "why"), SOURCES, ids=lambda value: repr(value)[:30])
def test_pushes_ask_the_list(source, text, weights, why):
    for kind, free in (("dataset", text), ("model", weights)):
        check_allowed("me/x", kind, ["phantom", source], False, None)  # private may always be
        if free:
            check_allowed("me/x", kind, ["phantom", source], True, None)
            continue
        with pytest.raises(InputError, match=r"^me/x.*(private|never published)") as refused:
            check_allowed("me/x", kind, ["phantom", source], True, None)
        assert "\n" not in str(refused.value)


def test_a_hospitals_data_are_public_for_a_reason_only():
    with pytest.raises(InputError, match=r"'Elsewhere' is not among the sources known to be free \(phantom, openi\)"):
        check_allowed("me/x", "model", ["Elsewhere"], True, None)
    with pytest.raises(InputError, match=r"known to be free \(phantom\): push it private, or say with --public_bec"):
        check_allowed("me/x", "dataset", ["Elsewhere"], True, None)
    check_allowed("me/x", "dataset", ["Elsewhere"], True, "ours, and anonymous")
    with pytest.raises(InputError, match="never published"):
        check_allowed("me/x", "dataset", [" OPENI"], True, "no reason is enough")


def training(tmp_path, **values) -> SimpleNamespace:
    defaults = {"push_to_hub": False, "hub_private_repo": None, "report_to": [], "trackio_space_id": None}
    return SimpleNamespace(**(defaults | {"output_dir": str(tmp_path / "run"), "log_completions": True} | values))


@pytest.mark.parametrize(("source", "text", "weights", "why"), SOURCES, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("tracker", ["wandb", "comet_ml", "mlflow"])
def test_completions_ask_the_list(tmp_path, tracker, source, text, weights, why):
    args = training(tmp_path, report_to=["tensorboard", tracker])
    if text:
        assert prepare_push(args, ["phantom", source], None) is None
        return
    with pytest.raises(InputError, match=f"^--report_to {tracker} with log_completions .*--log_completions false, or"):
        prepare_push(args, ["phantom", source], None)
    args.log_completions = False
    assert prepare_push(args, ["phantom", source], None) is None  # figures alone


@pytest.mark.parametrize("report_to", [[], ["tensorboard"], ["trackio"], ["codecarbon", "kubeflow"]])
def test_trackers_of_this_machine_may_have_completions(tmp_path, monkeypatch, report_to):
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    assert prepare_push(training(tmp_path, report_to=report_to), ["mimic-cxr"], None) is None


@pytest.mark.parametrize(
    ("place", "source", "refused"),
    [
        ("argument", "mimic-cxr", True),
        ("TRACKIO_SPACE_ID", "mimic-cxr", True),
        ("TRACKIO_SERVER_URL", "mimic-cxr", True),  # a server of one's own
        ("argument", "phantom", False),
    ],
)
def test_trackio_elsewhere(tmp_path, monkeypatch, place, source, refused):
    args = training(tmp_path, report_to=["trackio"])
    if place == "argument":
        args.trackio_space_id = "me/space"
    else:
        monkeypatch.setenv(place, "me/space")
    if refused:
        with pytest.raises(InputError, match="the Space me/space: set --log_completions false"):
            prepare_push(args, [source], None)
    else:
        prepare_push(args, [source], None)


@pytest.mark.parametrize(
    ("tracker", "variable", "value", "source", "refused"),
    [
        ("wandb", "WANDB_LOG_MODEL", "end", "mimic-cxr", True),
        ("wandb", "WANDB_LOG_MODEL", "checkpoint", None, True),
        ("wandb", "WANDB_LOG_MODEL", "false", "mimic-cxr", False),
        ("wandb", None, None, "mimic-cxr", False),  # its default
        ("wandb", "WANDB_LOG_MODEL", "end", "openi", False),  # a model is no copy of a report
        ("clearml", None, None, "mimic-cxr", True),  # uploads unless it is told not to
        ("clearml", "CLEARML_LOG_MODEL", "FALSE", "mimic-cxr", False),
        ("mlflow", "HF_MLFLOW_LOG_ARTIFACTS", "1", "Elsewhere", True),
    ],
)
def test_trackers_take_no_private_weights(tmp_path, monkeypatch, tracker, variable, value, source, refused):
    monkeypatch.delenv("WANDB_LOG_MODEL", raising=False)
    monkeypatch.delenv("CLEARML_LOG_MODEL", raising=False)
    if variable:
        monkeypatch.setenv(variable, value)
    args = training(tmp_path, report_to=[tracker], log_completions=False)
    if refused:
        with pytest.raises(InputError, match=f"^--report_to {tracker} would upload a model trained on "):
            prepare_push(args, [source], None)
    else:
        assert prepare_push(args, [source], None) is None


@pytest.mark.parametrize(("source", "text", "weights", "why"), SOURCES, ids=lambda value: repr(value)[:30])
def test_endpoints_ask_the_list(source, text, weights, why):
    splits = {"train": Dataset.from_dict({"source": ["phantom", source]})}
    for endpoint, mine in (("http://127.0.0.1:8000/v1", False), ("http://10.0.0.5/v1", True), (None, False)):
        check_private(splits, endpoint, mine)
    if text:
        check_private(splits, "http://10.0.0.5/v1", False)
    else:
        with pytest.raises(InputError, match=r"goes to a model that runs locally only; .*--endpoint_is_mine"):
            check_private(splits, "http://10.0.0.5/v1", False)


def test_sources_of_all_splits_count():
    rows = {
        name: Dataset.from_dict({"source": [source]}) for name, source in (("train", "phantom"), ("validation", " "))
    }
    assert sources_of(rows) == ["phantom", "unknown"]  # completions of an evaluation are of its rows
    assert sources_of(rows["train"]) == ["phantom"]
