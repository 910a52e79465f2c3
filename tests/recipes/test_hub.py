"""Pushes to a Hub on this machine (tests/hub_server.py) with the real client: who may see what, faults, downloads."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import huggingface_hub
import pytest
import replicas
import torch
import yaml
from datasets import Dataset
from hub_server import CUT, LOST, TOKEN, Repository, serve
from test_long_runs import make_trainer
from transformers import AutoModel
from transformers.trainer_utils import HubStrategy

from modeling.tiny import build_chexbert
from modeling.tiny_llmrg4 import build_llmrg4
from modeling.tiny_lmrrg import build_lmrrg
from recipes import push_checkpoint, push_dataset, sft_mrgr1
from recipes.build_phantom import BuildArguments, build_row
from recipes.data.schema import write_dataset
from recipes.files import InputError
from recipes.hub.dataset import find_configs
from recipes.hub.push import (
    CHECKPOINT,
    check_allowed,
    files_of,
    open_repository,
    prepare_push,
    push_files,
    read_sources,
    sources_of,
)
from recipes.trainers.setup import save_run
from rewards.labels import CONDITIONS, CheXpertState
from rewards.scenarios import CATEGORIES, SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
BLANK, POSITIVE, *_ = CheXpertState


@pytest.fixture
def hub(monkeypatch):
    """The server, with the client of this process logged in, online and without waiting between its retries."""
    constants = huggingface_hub.constants
    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


WEIGHTS = ("a.safetensors", "b.safetensors", "c.safetensors")


def checkpoint(folder: Path, text: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"text": text}))
    for name in WEIGHTS:
        (folder / name).write_text(f"{name} {text}")
    return folder


def push(folder: Path, name: str = "me/x", sources=("phantom",), public=False, because=None) -> str:
    repository = open_repository(name, "model", sources, public, because)
    return push_files(repository, files_of(folder, CHECKPOINT), CHECKPOINT, "test")


@pytest.mark.parametrize("package", ["modeling", "recipes", "rewards"])
def test_pickled_weights_start_no_conversion(package, hub, monkeypatch, tmp_path):
    folder = replicas.cxr_bert_general(tmp_path / "bert")
    hub.repositories["model", "me/bert"] = repository = Repository(private=False)
    repository.commit({file.name: file.read_bytes() for file in folder.iterdir()})
    threads = []
    monkeypatch.setattr("transformers.modeling_utils.Thread", lambda **options: threads.append(options) or Mock())

    def load() -> list:
        threads.clear()
        AutoModel.from_pretrained("me/bert", cache_dir=tmp_path / "cache")
        return [options["name"] for options in threads]

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION")
    assert load() == ["Thread-auto_conversion"]  # what transformers does by itself
    importlib.reload(importlib.import_module(package))
    assert load() == []


# --- what goes up ----------------------------------------------------------------------------------------------------


def test_a_push_is_private_one_commit_and_no_pickle(hub, tmp_path):
    folder = checkpoint(tmp_path / "x")
    for name in (
        "training_args.bin",  # transformers' own push uploads it, a pickle
        "pytorch_model.bin",  # weights as a pickle
        "optimizer.pt",
        "rng_state.pth",
        "labels.pkl",
        "predictions.json",  # reports
        "completions.parquet",  # GRPO's log, reports
        ".env",
        "checkpoint-5/model.safetensors",
        "checkpoint-5/tokenizer.json",
        "checkpoint-5/optimizer.pt",
        "runs/events.out.tfevents",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    push(folder)
    repository = hub.repositories["model", "me/x"]
    assert repository.private and len(repository.versions) == 2
    assert set(repository.files) == {".gitattributes", "config.json", *WEIGHTS}


def test_what_an_earlier_push_left_goes(hub, tmp_path):
    folder = checkpoint(tmp_path / "x")
    push(folder)
    repository = hub.repositories["model", "me/x"]
    repository.commit(repository.files | {"figure.png": b"mine", "notes/config.json": b"mine"})
    (folder / "c.safetensors").unlink()
    push(folder)
    assert set(repository.files) == {
        *(".gitattributes", "config.json", "a.safetensors", "b.safetensors"),
        *("figure.png", "notes/config.json"),  # not of a checkpoint's files: the owner's
    }


def test_a_push_of_the_same_files_is_no_commit(hub, tmp_path):
    folder = checkpoint(tmp_path / "x")
    push(folder)
    push(folder)
    assert len(hub.repositories["model", "me/x"].versions) == 2


# --- faults ----------------------------------------------------------------------------------------------------------


def on(method: str, place: str, reply):
    """`reply` to each request of this method whose path holds `place`, as a function of the server."""
    return lambda server: lambda asked, path, before: reply if asked == method and place in path else None


def third_upload(reply):
    """`reply` to the third file that goes up, and to each further try of it."""

    def make(server):
        start = len(server.asked)

        def fault(method, path, before):
            puts = list(dict.fromkeys(line for line in before[start:] if line.startswith("PUT ")))
            line = f"{method} {path}"
            return reply if method == "PUT" and (puts.index(line) if line in puts else len(puts)) == 2 else None

        return fault

    return make


def somebody_commits(server):
    def fault(method, path, before):
        if "/preupload/" in path:
            (repository,) = server.repositories.values()
            repository.commit(repository.files | {"theirs.txt": b""})

    return fault


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda server: lambda *asked: 401, "does not know you: log in with `hf auth login`"),  # a token that expired
        (on("POST", "/commit/", 401), "does not know you"),  # ... while the files went up
        (on("POST", "/commit/", 403), "may not write there: take one with write access to me"),  # a read token
        (on("POST", "/preupload/", 403), "may not write there"),
        (on("POST", "/commit/", 409), "a conflict .*another push is under way"),
        (on("POST", "/commit/", 500), "status 500"),
        (third_upload(500), "status 500"),  # two of three files are up; the client tries six times
        (third_upload(CUT), "the connection to the Hub failed"),
        (on("PUT", "/lfs/", 403), "may not write there"),  # an address that ran out
        (on("POST", "/objects/batch", CUT), "the connection to the Hub failed"),
        (on("POST", "/commit/", CUT), "the connection to the Hub failed"),
        (on("GET", "/api/models/me/x", CUT), "the connection to the Hub failed"),
        (somebody_commits, "somebody changed the repository while this push was under way"),  # status 412
    ],
)
def test_faults(hub, tmp_path, fault, said):
    push(checkpoint(tmp_path / "x", "old"))
    repository = hub.repositories["model", "me/x"]
    before = dict(repository.files)
    checkpoint(tmp_path / "x", "new")
    hub.fault = fault(hub)
    with pytest.raises(InputError, match=f"^me/x: .*{said}") as raised:
        push(tmp_path / "x")
    assert "\n" not in str(raised.value) and TOKEN not in str(raised.value)
    assert {path: text for path, text in repository.files.items() if path != "theirs.txt"} == before
    assert repository.private
    hub.fault = lambda *asked: None
    push(tmp_path / "x")
    assert all(repository.files[name].endswith(b"new") for name in WEIGHTS)


def test_files_that_are_up_are_not_sent_again(hub, tmp_path):
    checkpoint(tmp_path / "x")
    hub.fault = on("POST", "/commit/", 500)(hub)
    with pytest.raises(InputError, match="status 500"):
        push(tmp_path / "x")
    hub.fault = lambda *asked: None
    sent = sum(line.startswith("PUT ") for line in hub.asked)
    push(tmp_path / "x")
    assert sent == sum(line.startswith("PUT ") for line in hub.asked) == 3


def test_an_answer_that_is_lost(hub, tmp_path):
    """The commit was made: all is visible at once, and the second run finds nothing to do."""
    checkpoint(tmp_path / "x")
    hub.fault = on("POST", "/commit/", LOST)(hub)
    with pytest.raises(
        InputError, match=r"the connection to the Hub failed.*; nothing half-pushed is visible; the same"
    ):
        push(tmp_path / "x")
    hub.fault = lambda *asked: None
    push(tmp_path / "x")
    repository = hub.repositories["model", "me/x"]
    assert len(repository.versions) == 2 and set(repository.files) >= set(WEIGHTS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other/x", "may not write there: take one with write access to other"),  # somebody else's
        ("a b", "that is no name of a repository"),
        ("me/x/y", "that is no name of a repository"),
        ("", "that is no name of a repository"),
    ],
)
def test_names(hub, tmp_path, name, said):
    with pytest.raises(InputError, match=said) as raised:
        push(checkpoint(tmp_path / "x"), name)
    assert "\n" not in str(raised.value) and not hub.repositories


def test_nobody_is_logged_in(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(InputError, match="does not know you"):
        push(checkpoint(tmp_path / "x"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: unset it to push; nothing was pushed"):
        push(tmp_path / "x")
    assert not hub.repositories


def test_no_server(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^me/x: the connection to the Hub failed .*; nothing was pushed$"):
        push(checkpoint(tmp_path / "x"))


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sources", "because", "said"),
    [
        ("model", ["phantom"], None, None),  # synthetic
        ("model", ["openi"], None, None),  # a model is no copy of the text
        ("model", ["mimic-cxr", "phantom"], None, "mimic-cxr: push it private"),
        ("model", ["mimic-rg4"], None, "mimic-rg4: push it private"),
        ("model", ["mimic-cxr"], "invented text", None),
        ("model", ["unknown"], None, "is not known"),
        ("dataset", ["phantom"], None, None),
        ("dataset", ["mimic-cxr"], None, "mimic-cxr: push it private"),
        ("dataset", ["mimic-cxr"], "invented text", None),
        ("dataset", ["openi"], None, "CC BY-NC-ND"),
        ("dataset", ["openi", "phantom"], "I want to", "never published"),  # no reason is enough
    ],
)
def test_what_may_be_public(hub, tmp_path, kind, sources, because, said):
    check_allowed("me/x", kind, sources, False, because)  # private may always be
    if said is None:
        open_repository("me/x", kind, sources, True, because)
        assert not hub.repositories[kind, "me/x"].private
    else:
        with pytest.raises(InputError, match=f"^me/x.*{said}"):
            open_repository("me/x", kind, sources, True, because)
        assert not hub.asked  # refused before anything leaves the machine


@pytest.mark.parametrize("sources", [["mimic-cxr"], ["phantom"], ["unknown"]])
def test_a_repository_that_is_public_already(hub, tmp_path, sources):
    hub.repositories["model", "me/x"] = Repository(private=False)
    with pytest.raises(
        InputError, match=f"^me/x is public, and would hold what is made of {sources[0]}.*public_because"
    ):
        push(checkpoint(tmp_path / "x"), sources=sources)
    assert not hub.blobs and len(hub.repositories["model", "me/x"].versions) == 1
    push(tmp_path / "x", sources=sources, public=True, because="invented text")
    assert len(hub.repositories["model", "me/x"].versions) == 2


def test_a_repository_that_became_public_while_the_model_was_trained(hub, tmp_path):
    repository = open_repository("me/x", "model", ["mimic-cxr"])
    hub.repositories["model", "me/x"].private = False
    with pytest.raises(InputError, match="me/x is public"):
        push_files(repository, files_of(checkpoint(tmp_path / "x"), CHECKPOINT), CHECKPOINT, "test")
    assert not hub.blobs


def test_openi_in_a_public_repository_is_offered_no_way_out(hub):
    hub.repositories["dataset", "me/x"] = Repository(private=False)
    with pytest.raises(InputError, match=r"make it private in its settings on the Hub$"):
        open_repository("me/x", "dataset", ["openi"])


def run_config(folder: Path, **values) -> Path:
    folder.mkdir(parents=True)
    (folder / "run_config.json").write_text(json.dumps(values))
    return folder


def test_sources_follow_a_model_from_run_to_run(tmp_path):
    rows = Dataset.from_dict({"source": ["phantom", "phantom"]})
    mimic = run_config(tmp_path / "mimic", sources=["mimic-cxr"])
    (mimic / "checkpoint-5").mkdir()
    old = run_config(tmp_path / "old", commit="abc")  # of before sources were noted
    (tmp_path / "bare").mkdir()
    cases = [
        ((rows, None), ["phantom"]),
        ((rows, str(mimic)), ["mimic-cxr", "phantom"]),
        ((rows, str(mimic / "checkpoint-5")), ["mimic-cxr", "phantom"]),  # its run_config.json lies above it
        ((rows, str(old)), ["phantom", "unknown"]),
        ((rows, str(tmp_path / "bare")), ["phantom", "unknown"]),  # weights of a folder that tells nothing
        ((Dataset.from_dict({"source": ["openi", None]}),), ["openi", "unknown"]),
        ((Dataset.from_dict({"report": ["x"]}),), ["unknown"]),  # somebody else's data set
        ((None, None), []),
        ((None, "me/not-in-the-cache"), ["unknown"]),  # offline: nobody can tell
    ]
    for arguments, found in cases:
        assert sources_of(*arguments) == found
    save_run(tmp_path / "child", sources=sources_of(rows, str(mimic)))
    assert sources_of(rows, str(tmp_path / "child")) == ["mimic-cxr", "phantom"]  # and so its descendants


def test_sources_of_a_model_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    push(run_config(checkpoint(tmp_path / "x").parent / "y", sources=["mimic-cxr"]), "me/mimic")
    push(tmp_path / "x", "me/base")
    assert sources_of(None, "me/mimic") == ["mimic-cxr"]
    assert sources_of(None, "me/base") == []  # a published model without a run_config.json
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert sources_of(None, "me/mimic", "me/base") == ["mimic-cxr"]  # both were seen
    assert sources_of(None, "me/other") == ["unknown"]


def training(tmp_path, **values) -> SimpleNamespace:
    defaults = {
        "push_to_hub": True,
        "hub_strategy": HubStrategy.EVERY_SAVE,
        "hub_model_id": None,
        "hub_private_repo": None,
        "report_to": [],
        "trackio_space_id": None,
    }
    more = {"output_dir": str(tmp_path / "run"), "process_index": 0, "hub_token": None, "hub_revision": None}
    return SimpleNamespace(**(defaults | more | values))


@pytest.mark.parametrize(
    ("values", "sources", "because", "private"),
    [
        ({}, ["phantom"], None, True),  # transformers' None would leave it to the organisation
        ({"hub_private_repo": True}, ["mimic-cxr"], None, True),
        ({"hub_private_repo": False}, ["phantom"], None, False),
        ({"hub_private_repo": False}, ["mimic-cxr"], "invented", False),
        ({"hub_private_repo": True}, ["mimic-cxr"], "invented", False),  # the YAML says true, the command line why not
    ],
)
def test_claims(hub, tmp_path, values, sources, because, private):
    args = training(tmp_path, **values)
    repository = prepare_push(args, sources, because)
    assert repository.name == "me/run" and hub.repositories["model", "me/run"].private is private
    assert args.push_to_hub is False  # or Trainer would push its pickles by itself
    assert args.hub_private_repo is True  # of a tracker's Space, also beside a public model


def test_claims_that_are_refused_or_none(hub, tmp_path):
    with pytest.raises(InputError, match="run would be public"):
        prepare_push(training(tmp_path, hub_private_repo=False), ["mimic-cxr"], None)
    with pytest.raises(InputError, match="would be public"):
        prepare_push(
            training(tmp_path, hub_private_repo=False, process_index=1), ["mimic-cxr"], None
        )  # on every process
    with pytest.raises(InputError, match="--public_because is about a push: add --push_to_hub"):
        prepare_push(training(tmp_path, push_to_hub=False), ["phantom"], "why not")
    with pytest.raises(InputError, match="--hub_revision"):
        prepare_push(training(tmp_path, hub_revision="draft"), ["phantom"], None)
    with pytest.raises(InputError, match="--hub_strategy all_checkpoints would push pickles"):
        prepare_push(training(tmp_path, hub_strategy=HubStrategy.ALL_CHECKPOINTS), ["phantom"], None)
    unpushed = training(tmp_path, push_to_hub=False)
    assert prepare_push(unpushed, ["mimic-cxr"], None) is None
    assert unpushed.hub_private_repo is True  # of a tracker's Space
    assert prepare_push(training(tmp_path, process_index=1), ["mimic-cxr"], None) is None  # one process asks the Hub
    assert not hub.asked


def test_a_public_space_is_refused_where_nothing_is_pushed(hub, tmp_path):
    for sources in (["mimic-cxr"], ["phantom"]):
        args = training(tmp_path, push_to_hub=False, hub_private_repo=False)
        with pytest.raises(InputError, match=r"^--hub_private_repo false is about a push: add --push_to_hub"):
            prepare_push(args, sources, None)
    assert not hub.asked


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("private", [None, True, False])
@pytest.mark.parametrize("because", [None, "invented text"])
@pytest.mark.parametrize("config", ["GRPOConfig", "PPOConfig"])
def test_completions_never_go_to_the_hub(hub, tmp_path, config, because, private, pushed):
    """Whatever stands beside it: TRL uploads prompts and reports with or without a push, public if it is told so."""
    args = grpo(tmp_path, config, log_completions_hub_repo="me/log", push_to_hub=pushed, hub_private_repo=private)
    with pytest.raises(InputError, match=r"^--log_completions_hub_repo would .* keeps them in .*run/completions$"):
        prepare_push(args, ["mimic-cxr"], because)
    assert not hub.asked


def grpo(tmp_path, config: str = "GRPOConfig", **values):
    """The real arguments, which log completions, without a tracker that would have to be installed."""
    import trl

    from recipes.trainers.ppo import PPOConfig

    kind = PPOConfig if config == "PPOConfig" else getattr(trl, config)
    given = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "bf16": False, "log_completions": True}
    args = kind(**given, **values)
    args.report_to = ["trackio"]
    return args


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("place", ["argument", "environment"])
def test_completions_go_to_no_space(hub, tmp_path, monkeypatch, place, pushed):
    args = grpo(tmp_path, push_to_hub=pushed)
    if place == "argument":
        args.trackio_space_id = "me/space"
    else:
        monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    with pytest.raises(InputError, match=r"^Trackio would put prompts and reports into the Space me/space: "):
        prepare_push(args, ["mimic-cxr"], None)
    assert not hub.asked
    args.log_completions = False  # figures only
    prepare_push(args, ["mimic-cxr"], None)
    assert args.hub_private_repo is True
    args.log_completions, args.report_to = True, []  # no tracker, no Space
    prepare_push(args, ["mimic-cxr"], None)


def test_trackio_on_this_machine_may_have_completions(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    assert prepare_push(grpo(tmp_path), ["mimic-cxr"], None) is None
    assert not hub.asked


@pytest.mark.parametrize("given", [("--push_to_hub",), ("--log_completions", "--log_completions_hub_repo", "me/log")])
def test_the_example_puts_nothing_on_the_hub(hub, tmp_path, call, monkeypatch, given):
    from recipes.examples import ppo_text

    def make(**arguments):
        raise AssertionError("a trainer was made")

    monkeypatch.setattr(ppo_text, "PPOTrainer", make)
    arguments = ("--output_dir", tmp_path / "run", "--use_cpu", "--bf16", "false")
    with pytest.raises(AssertionError, match="a trainer was made"):
        call(ppo_text.main, *arguments)
    with pytest.raises(InputError, match=r"^an example puts nothing on the Hub"):
        call(ppo_text.main, *arguments, *given)
    assert not hub.asked


def test_a_trainer_without_a_script_is_guarded_too(hub, tmp_path, monkeypatch):
    """Its data are not known, so that its model is private; no pickle goes up, and no checkpoint while it trains."""
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # one of an earlier test knows another server
    settings = {"push_to_hub": True, "hub_model_id": "me/plain", "hub_token": TOKEN, "max_steps": 1, "save_steps": 1}
    trainer = make_trainer("weighted_sft", tmp_path / "run", **settings)
    trainer.train()
    repository = hub.repositories["model", "me/plain"]
    assert not set(repository.files) - {".gitattributes", "README.md"}
    trainer.save_model(tmp_path / "run")
    trainer.push_to_hub()
    assert repository.private and "model.safetensors" in repository.files
    assert not [path for path in repository.files if re.search(r"\.(bin|pt|pth|pkl)$|checkpoint-", path)]
    assert json.loads(repository.files["run_config.json"])["sources"] == ["unknown"]
    with pytest.raises(InputError, match="would be public, and what some of its data are is not known"):
        make_trainer("weighted_sft", tmp_path / "run", **settings, hub_private_repo=False)


def test_run_config_keeps_no_token_and_tells_what_was_changed(tmp_path):
    from transformers import TrainingArguments

    arguments = TrainingArguments(str(tmp_path / "run"), hub_token=TOKEN, learning_rate=0.5, use_cpu=True)
    save_run(tmp_path, arguments, sources=["phantom"])
    text = (tmp_path / "run_config.json").read_text()
    assert TOKEN not in text and read_sources(tmp_path / "run_config.json") == ["phantom"]
    changed = json.loads(text)["changed"]
    assert changed["learning_rate"] == 0.5 and "weight_decay" not in changed and "hub_token" not in changed


TRAINING = (
    *("grpo_mrgr1", "sft_mrgr1", "sft_llmrg4", "sft_lmrrg", "ppo_lmrrg"),
    *("train_chexbert", "train_discbert", "train_crepe"),
)


@pytest.mark.parametrize("script", TRAINING)
def test_every_recipe_prepares_before_its_model_is_loaded(script):
    """The guard of a push and the checks of a run come before the trainer, and before a model that is handed to it."""
    tree = ast.parse((ROOT / f"recipes/{script}.py").read_text())
    calls = [node for node in ast.walk(tree) if type(node) is ast.Call]
    names = {call.func.id if type(call.func) is ast.Name else call.func.attr: call.lineno for call in calls}
    trainer = next(line for name, line in names.items() if name.endswith("Trainer"))
    models = [line for name, line in names.items() if name in ("load_start", "load_stage1", "load_stage2")]
    keywords = [word for call in calls if call.lineno == trainer for word in call.keywords]
    assert len(models) == ("mrgr1" not in script)
    assert all(names["prepare"] < line for line in models)
    assert "setup" in [word.arg for word in keywords]
    assert trainer < names["train"] < names["save_model"] < names["push_to_hub"]


# --- the recipes -----------------------------------------------------------------------------------------------------


def words(arguments: dict) -> list[str]:
    return [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]


def test_a_lora_run_and_its_merged_weights(hub, tiny, phantom, tmp_path, call, monkeypatch):
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    out = tmp_path / "run"
    arguments = {
        "config": ROOT / "recipes/configs/mrgr1/sft_phantom.yaml",
        "model_name_or_path": tiny,
        "dataset": phantom,
        "output_dir": out,
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "warmup_steps": 0,
        "save_strategy": "steps",
        "save_steps": 1,
        "disable_tqdm": "true",
        "use_peft": "true",
        "learning_rate": 0.5,
        "push_to_hub": "true",
        "hub_model_id": "me/lora",
        "hub_token": TOKEN,
    }
    monkeypatch.setenv("HF_TOKEN", "hf_another")  # the argument wins
    call(sft_mrgr1.main, *words(arguments), "--lora_target_modules", "q_proj", "v_proj")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    repository = hub.repositories["model", "me/lora"]
    assert repository.private and len(repository.versions) == 2
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "run_config.json"} <= set(
        repository.files
    )
    assert {"processor_config.json", "preprocessor_config.json"} & set(repository.files)
    assert not [path for path in repository.files if re.search(r"\.(bin|pt|pth|pkl)$|checkpoint-", path)]
    assert (out / "training_args.bin").is_file()  # it is there, and stays there
    assert TOKEN.encode() not in b"".join(repository.files.values())
    card = repository.files["README.md"].decode()
    for said in (
        "Research use, not for clinical use",
        "phantom (CC0-1.0)",
        "unknown (licence not known)",  # the tiny base model does not tell
        "max_steps: 1",  # the run's YAML
        'from_pretrained("me/lora")',
        "LoRA adapter",
    ):
        assert said in card

    call(push_checkpoint.main, "--model", out, "--repo", "me/merged", "--merge")
    merged = hub.repositories["model", "me/merged"]
    assert merged.private and "model.safetensors" in merged.files and "adapter_config.json" not in merged.files
    assert "LoRA adapter" not in merged.files["README.md"].decode()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        adapted, whole, base = (
            AutoModelForImageTextToText.from_pretrained(folder)(input_ids=ids).logits
            for folder in (out, f"{out}_merged", tiny)
        )
    torch.testing.assert_close(adapted, whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(adapted, base, atol=1e-2)  # one step of 0.5 shows

    with pytest.raises(InputError, match=r"me/merged would be public.*not known"):
        open_repository("me/merged", "model", sources_of(None, f"{out}_merged"), True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "absent"}, "there is no such folder"),
        ({"model": "bare", "merge": "true"}, "bare is no LoRA adapter"),
        ({"model": "bare"}, "bare holds no checkpoint"),
    ],
)
def test_push_checkpoint_says_what_is_wrong(hub, tmp_path, call, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=said):
        call(push_checkpoint.main, *words(arguments | {"repo": "me/x"}))


def test_the_card_with_figures_stays(hub, tmp_path, call):
    folder = checkpoint(tmp_path / "x")
    for text in ("tags: [generated-by-evaluate]\nmicro-F1 0.7", "a card of my own"):
        (folder / "README.md").write_text(text)
        call(push_checkpoint.main, "--model", folder, "--repo", "me/x")
        assert hub.repositories["model", "me/x"].files["README.md"].decode() == text
    (folder / "README.md").write_text("[More Information Needed]")  # PEFT's empty form
    call(push_checkpoint.main, "--model", folder, "--repo", "me/x")
    assert "not for clinical use" in hub.repositories["model", "me/x"].files["README.md"].decode()


PAPERS = {
    "grpo_mrgr1": "arXiv:2512.16145",
    "sft_mrgr1": "arXiv:2512.16145",
    "sft_llmrg4": "arXiv:2412.12001",
    "train_discbert": "arXiv:2412.12001",
    "sft_lmrrg": "arXiv:2403.06728",
    "ppo_lmrrg": "arXiv:2403.06728",
    "train_chexbert": "arXiv:2004.09167",
    "train_crepe": "aclanthology.org/2025.emnlp-main.1102",
}


@pytest.mark.parametrize("script", TRAINING)
def test_the_pushed_card_cites_the_paper(hub, tmp_path, call, monkeypatch, script):
    folder = checkpoint(tmp_path / "x")
    monkeypatch.setattr(sys, "argv", [f"/somewhere/recipes/{script}.py"])
    save_run(folder, sources=["phantom"])
    call(push_checkpoint.main, "--model", folder, "--repo", "me/x")
    cite = hub.repositories["model", "me/x"].files["README.md"].decode().split("## Cite")[1]
    assert re.findall(r"(?:arXiv:|aclanthology\.org/)[\w.-]+\d", cite) == [PAPERS[script]]


def test_the_pushed_card_has_the_figures_of_metrics_json(hub, tmp_path, call):
    """Two studies: edema is found, cardiomegaly missed, and nothing is said that is not there.

    Over 13 labels precision is 1 of 1, recall 1 of 2, and F1 2 * 1 * 1/2 / (1 + 1/2) = 2/3. The 14th, No Finding, is
    said of the second study by mistake: then both are 1 of 2. Edema alone scores in the mean over labels, 1/14.
    """
    from recipes import evaluate

    completions = {"a": "There is pulmonary edema.", "b": "The bones are intact."}
    references = {"a": ("There is pulmonary edema.", "Edema"), "b": ("The heart is enlarged.", "Cardiomegaly")}
    lines = [json.dumps({"study_id": study, "completion": report}) for study, report in completions.items()]
    (tmp_path / "said.jsonl").write_text("\n".join(lines))
    rows = []
    for study, (report, finding) in references.items():
        labels = [int(POSITIVE if name == finding else BLANK) for name in CONDITIONS]
        rows.append({"study_id": study, "report": report, "images": [], "labels": labels, "source": "phantom"})
    write_dataset({"test": lambda: iter(rows)}, tmp_path / "data", {"labeler": "lexical"})
    scores = tmp_path / "scores"
    call(
        *(evaluate.main, "--dataset", tmp_path / "data", "--predictions", f"ours={tmp_path}/said.jsonl"),
        *("--out", scores, "--meteor", "no", "--resamples", "100"),
    )
    folder = run_config(tmp_path / "x", sources=["phantom"])
    checkpoint(folder)
    (folder / "metrics.json").write_text((scores / "metrics.json").read_text())
    call(push_checkpoint.main, "--model", folder, "--repo", "me/x")
    repository = hub.repositories["model", "me/x"]
    assert "metrics.json" in repository.files
    card = repository.files["README.md"].decode()
    table = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in card.splitlines() if " | " in line}
    for figure, value in (("micro, 13", "0.667"), ("micro, 14", "0.500"), ("macro, 14", "0.071")):
        assert table[f"F1, {figure} labels, uncertain as positive"][0].split(" (")[0] == value
    found = {finding: [cell.split(" (")[0] for cell in table[finding][:6]] for finding in ("Edema", "Cardiomegaly")}
    assert found == {
        "Edema": ["1.000", "1.000", "1.000", "1", "0", "0"],  # the last: flips, omissions
        "Cardiomegaly": ["0.000", "0.000", "0.000", "1", "0", "1"],
    }
    assert "phantom (CC0-1.0)" in card and 'from_pretrained("me/x")' in card
    assert "pulmonary edema" not in card and "heart is enlarged" not in card


@pytest.fixture(scope="module")
def starts(tmp_path_factory, tiny, phantom) -> dict[str, list]:
    """Of each recipe but the one above the arguments of its shortest run."""
    folder = tmp_path_factory.mktemp("starts")
    args = BuildArguments(size=64)
    rows = [build_row("train", number, scenario, args) | {"key_spans": [[0, 3]]}
            for number, scenario in enumerate(SCENARIOS)]  # fmt: skip
    write_dataset({"train": lambda: iter(rows)}, folder / "rg4", {"labeler": "lexical", "source": "phantom"})
    texts = [row["report"] for row in rows]
    for name, parts in (
        ("llmrg4", build_llmrg4(texts, vocab_size=400, num_visual_tokens=4, fusion="interleaved", text_layers=1)),
        ("lmrrg", build_lmrrg(texts, text_layers=1, vision_layers=1, vocab_size=400)),
    ):
        for part in parts:
            part.save_pretrained(folder / name)
    writes = {"per_device_train_batch_size": 4, "max_completion_length": 4, "log_completions": "false"}
    labels = {"dataset": phantom, "texts": 20, "held_out": 0.5, "bar": 0}
    return {
        "grpo_mrgr1": {"config": "mrgr1/phantom.yaml", "model_name_or_path": tiny, "dataset": phantom, **writes,
                       "num_generations": 2, "effective_batch_size": 4},
        "sft_llmrg4": {"config": "llmrg4/demo_stage1.yaml", "model_name_or_path": folder / "llmrg4",
                       "dataset": folder / "rg4"},
        "sft_lmrrg": {"config": "lmrrg/demo.yaml", "model_name_or_path": folder / "lmrrg", "dataset": phantom},
        "ppo_lmrrg": {"config": "lmrrg/demo_cqrl.yaml", "model_name_or_path": folder / "lmrrg", "dataset": phantom,
                      **writes, "rewards": "bleu", "allow_scratch": "true"},
        "train_chexbert": labels,
        "train_discbert": labels,
        "train_crepe": labels,
    }  # fmt: skip


@pytest.mark.parametrize("script", [name for name in TRAINING if name != "sft_mrgr1"])
def test_a_run_of_every_recipe_is_pushed(hub, script, starts, tmp_path, call, monkeypatch):
    """Private, with what loads it: weights, configuration, processor or tokenizer, custom code, a card; no pickle."""
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    given = starts[script] | {"output_dir": tmp_path / "run", "max_steps": 1, "disable_tqdm": "true"}
    if "config" in given:
        given["config"] = ROOT / "recipes/configs" / given["config"]
    module = importlib.import_module(f"recipes.{script}")
    call(module.main, *words(given), "--push_to_hub", "true", "--hub_model_id", "me/x", "--hub_token", TOKEN)
    repository = hub.repositories["model", "me/x"]
    files = set(repository.files)
    assert repository.private
    assert {"model.safetensors", "config.json", "tokenizer_config.json", "run_config.json", "README.md"} <= files
    assert not [path for path in files if re.search(r"\.(bin|pt|pth|pkl)$|checkpoint-", path)]
    config = json.loads(repository.files["config.json"])
    assert {f"{name.split('.')[0]}.py" for name in config.get("auto_map", {}).values()} <= files
    assert ("auto_map" in config) == (script != "grpo_mrgr1")  # that one is a Qwen2.5-VL
    assert ("processor_config.json" in files or "preprocessor_config.json" in files) == ("train_" not in script)
    card = repository.files["README.md"].decode()
    assert "max_steps: 1" in card and "phantom" in card and "Research use" in card
    assert repository.files["model.safetensors"] == (tmp_path / "run/model.safetensors").read_bytes()


@pytest.mark.parametrize("sources", [["mimic-cxr"], None])
def test_a_checkpoint_of_a_step(hub, tmp_path, call, monkeypatch, sources):
    """Its run_config.json lies above it, or nowhere; what is trained from the pushed repository must know the data."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = checkpoint(tmp_path / "run" / "checkpoint-5")
    if sources:
        monkeypatch.setattr(sys, "argv", ["grpo_mrgr1.py"])
        save_run(tmp_path / "run", sources=sources)
    (folder / "optimizer.pt").write_text("x")
    arguments = ("--model", folder, "--repo", "me/x")
    hub.repositories["model", "me/x"] = Repository(private=False)
    with pytest.raises(InputError, match=f"^me/x is public, and would hold what is made of {(sources or ['unk'])[0]}"):
        call(push_checkpoint.main, *arguments)
    with pytest.raises(InputError, match="would be public"):
        open_repository("me/x", "model", sources_of(None, str(folder)), True)
    assert not hub.blobs
    del hub.repositories["model", "me/x"]
    call(push_checkpoint.main, *arguments)
    repository = hub.repositories["model", "me/x"]
    assert repository.private and "optimizer.pt" not in repository.files
    assert sources_of(None, "me/x") == (sources or ["unknown"])  # by a run that starts from the repository
    card = repository.files["README.md"].decode()
    if sources:
        assert repository.files["run_config.json"] == (tmp_path / "run/run_config.json").read_bytes()
        assert "arXiv:2512.16145" in card
    assert f"- {(sources or ['unknown'])[0]} (" in card


# --- data sets -------------------------------------------------------------------------------------------------------


def row(study: str, scenario: str, source: str = "phantom", spans=None) -> dict:
    labels = [0] * 14
    texts = {"findings": f"Clear, {study}.", "report": f"Clear, {study}.", "key_spans": spans}
    ids = {"study_id": study, "subject_id": study, "scenario": scenario, "images": [], "views": []}
    return {**ids, **texts, "labels": labels, "source": source, "license": "CC0-1.0"}


def scenarios(folder: Path, source: str = "phantom") -> Path:
    """As recipes/build_mimic_rg4.py writes it, weighed in part: sn (2 and 1 rows), mw (1), judged reports."""
    folder.mkdir()
    build = {"labeler": "lexical", "judge": "rule", "dataset": "/home/somebody/mimic"}
    sn = {
        "train": lambda: iter([row("1", "sn", source, [[0, 5]]), row("2", "sn", source)]),
        "test": lambda: iter([row("3", "sn", source, [])]),
    }
    write_dataset(sn, folder / "sn", build)
    write_dataset({"train": lambda: iter([row("1", "mw", source, [[7, 8]])])}, folder / "mw", build)
    (folder / "build.json").write_text(json.dumps(build))
    (folder / "discarded.csv").write_text("study_id\n4\n")
    history = json.dumps([[{"findings": "A! Unchanged.", "impression": ""}, ["prior_comparison"]]])
    Dataset.from_list([{"scenario": "sn", "history": history}]).to_parquet(folder / "provenance.parquet")
    return folder


def test_a_data_set_of_scenarios(hub, tmp_path, call, run_without_project):
    folder = scenarios(tmp_path / "rg4")
    call(push_dataset.main, "--dataset", folder, "--repo", "me/rg4")
    repository = hub.repositories["dataset", "me/rg4"]
    assert repository.private and len(repository.versions) == 2
    assert set(repository.files) - {".gitattributes"} == {
        *("README.md", "sn/train.parquet", "sn/test.parquet", "mw/train.parquet"),
        *("tlw/train.parquet", "tlw/test.parquet", "discbert/train.parquet"),
    }  # no provenance, no discarded.csv, no build.json
    assert repository.files["sn/train.parquet"] == (folder / "sn/train.parquet").read_bytes()
    text = repository.files["README.md"].decode()
    head = yaml.safe_load(text.split("---")[1])
    assert [config["config_name"] for config in head["configs"]] == ["sn", "mw", "tlw", "discbert"]
    assert head["license"] == "cc0-1.0"
    for said in (
        "not for clinical use",
        "- source: `phantom`",
        "- licence: CC0-1.0",
        "not medical data",
        "| sn | train | 2 |",
        "| tlw | train | 2 |",  # study 1 in both scenarios; study 2 has no spans, which is not the same as none found
        "| `labels` | list of int8 | sn, mw |",
        "| `images` | list of image | sn, mw |",
        "| `key_spans` | list of list of int32 | sn, mw, tlw |",
        "- judge: `rule`",
    ):
        assert said in text
    assert "somebody" not in text
    run_without_project(
        f"CATEGORIES = {CATEGORIES}"
        + """
from datasets import load_dataset
sn = load_dataset("me/rg4", "sn")
assert {split: len(rows) for split, rows in sn.items()} == {"train": 2, "test": 1}
assert sn["train"]["report"][:] == ["Clear, 1.", "Clear, 2."] and sn["train"].features["images"].feature.decode
tlw = load_dataset("me/rg4", "tlw", split="train")
assert tlw["key_spans"][:] == [[[0, 5]], [[7, 8]]] and tlw["scenario"][:] == ["sn", "mw"]
(judged,) = load_dataset("me/rg4", "discbert", split="train")
assert judged["report"] == "A! Unchanged." and [judged[name] for name in CATEGORIES] == [1, 0, 0, 0]
""",
        HF_ENDPOINT=hub.url,
        HF_HUB_OFFLINE="0",
        HF_TOKEN=TOKEN,
        HF_HUB_DISABLE_XET="1",
    )


def test_a_plain_data_set(hub, phantom, call):
    call(push_dataset.main, "--dataset", phantom, "--repo", "phantom", "--public_because", "synthetic")
    repository = hub.repositories["dataset", "me/phantom"]
    assert not repository.private
    files = {"README.md", "train.parquet", "validation.parquet", "test.parquet"}
    assert set(repository.files) - {".gitattributes"} == files
    head = yaml.safe_load(repository.files["README.md"].decode().split("---")[1])
    assert [config["config_name"] for config in head["configs"]] == ["default"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (on("POST", "/commit/", 401), "does not know you"),
        (third_upload(500), "status 500"),
        (somebody_commits, "somebody changed the repository while this push was under way"),
    ],
)
def test_faults_of_a_data_set(hub, tmp_path, call, fault, said):
    arguments = ("--dataset", scenarios(tmp_path / "rg4"), "--repo", "me/x")
    hub.fault = fault(hub)
    with pytest.raises(InputError, match=rf"^me/x: .*{said}.*; nothing half-pushed is visible; complete it") as raised:
        call(push_dataset.main, *arguments)
    assert "\n" not in str(raised.value) and TOKEN not in str(raised.value)
    repository = hub.repositories["dataset", "me/x"]
    assert repository.private and set(repository.files) <= {".gitattributes", "theirs.txt"}
    hub.fault = lambda *asked: None
    call(push_dataset.main, *arguments)
    for path in ("sn/train.parquet", "sn/test.parquet", "mw/train.parquet"):
        assert repository.files[path] == (tmp_path / "rg4" / path).read_bytes()
    assert {"README.md", "tlw/train.parquet", "discbert/train.parquet"} <= set(repository.files)


@pytest.mark.parametrize(
    ("source", "because", "said"),
    [
        ("mimic-rg4", None, "MIMIC-CXR is credentialed"),  # private: a notice
        ("mimic-rg4", "invented text", None),
        ("openi", None, "CC BY-NC-ND 4.0: keep the repository private"),  # private: a notice
        ("openi", "I want to", InputError),
        (None, None, None),
    ],
)
def test_whose_data(hub, tmp_path, call, capsys, source, because, said):
    folder = scenarios(tmp_path / "rg4", source)
    arguments = ["--dataset", folder, "--repo", "me/x", *(["--public_because", because] if because else [])]
    if said is InputError:
        with pytest.raises(InputError, match="never published"):
            call(push_dataset.main, *arguments)
        assert not hub.asked
        return
    call(push_dataset.main, *arguments)
    assert hub.repositories["dataset", "me/x"].private is not bool(because)
    assert (said or "me/x") in capsys.readouterr().out


def test_judgements_of_elsewhere_are_of_unknown_source(hub, tmp_path, phantom, call):
    file = tmp_path / "judged.csv"
    file.write_text(f"report,{','.join(CATEGORIES)}\nclear,0,0,0,0\n")
    arguments = ("--dataset", phantom, "--repo", "me/x", "--judgements", file)
    call(push_dataset.main, *arguments)
    assert "discbert/train.parquet" in hub.repositories["dataset", "me/x"].files
    hub.repositories["dataset", "me/x"].private = False
    with pytest.raises(InputError, match="would hold what is made of phantom, unknown"):
        call(push_dataset.main, *arguments)


def test_a_damaged_or_absent_data_set(tmp_path):
    with pytest.raises(InputError, match=r"holds no train\.parquet and no folder of a scenario"):
        find_configs(tmp_path, None, tmp_path)
    (tmp_path / "train.parquet").write_text("x")
    with pytest.raises(InputError, match=r"train\.parquet is damaged"):
        find_configs(tmp_path, None, tmp_path)


# --- downloads -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_models_of_the_hub_need_no_project(hub, tmp_path, run_without_project):
    """Each model saved, pushed, downloaded by a process that cannot find the project, and run: equal logits."""
    from radgraph_models import save_tiny
    from transformers import set_seed

    from modeling import RadGraphModel
    from modeling.tiny import build_chexbert
    from modeling.tiny_llmrg4 import build_llmrg4
    from modeling.tiny_lmrrg import build_lmrrg
    from recipes.rg4.judgements import build_discbert

    set_seed(0)
    texts = ["The heart is normal in size. No effusion.", "Left pleural effusion. Mild edema. Describe."] * 3
    save_tiny(tmp_path / "radgraph", texts)
    made = {
        "llmrg4": build_llmrg4(texts, vocab_size=400, num_visual_tokens=8),
        "lmrrg": build_lmrrg(texts, vocab_size=400),
        "chexbert": build_chexbert(texts),
        "discbert": build_discbert(texts),
    }
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    words = {"word_ids": torch.tensor([[-1, 0, 1, 1, -1]]), "word_counts": torch.tensor([2])}
    made["radgraph"] = (RadGraphModel.from_pretrained(tmp_path / "radgraph"), None)
    expected = {}
    for name, (model, processor) in made.items():
        model.eval().save_pretrained(tmp_path / name)
        expected[name] = {"inputs": text | (words if name == "radgraph" else {}), "state": model.state_dict()}
        if processor:
            processor.save_pretrained(tmp_path / name)
        if name in ("llmrg4", "lmrrg"):
            image = [[torch.randint(0, 255, (70, 60, 3), dtype=torch.uint8).numpy()]]
            inputs = processor(images=image, text=["<image>Describe."], return_tensors="pt")
            expected[name] |= {"image": image, "inputs": dict(inputs)}
        output = model(**expected[name]["inputs"])
        names = output if name == "radgraph" else ["logits"]
        expected[name]["output"] = {key: output[key] for key in names if torch.is_tensor(output[key])}
    torch.save(expected, tmp_path / "expected.pt")
    for name in expected:
        saved = {
            path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*") if path.is_file()
        }
        push(tmp_path / name, f"me/{name}")
        assert saved == set(hub.repositories["model", f"me/{name}"].files) - {".gitattributes"}  # nothing was left out
    run_without_project(
        f"torch.set_num_threads({torch.get_num_threads()})  # or sums differ in their last digit"
        + """
from transformers import AutoModelForImageTextToText, AutoProcessor
expected = torch.load("expected.pt", weights_only=False)
torch.set_grad_enabled(False)
for name, known in expected.items():
    auto = AutoModelForImageTextToText if "image" in known else AutoModel
    model = auto.from_pretrained("me/" + name, trust_remote_code=True).eval()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in known["state"].items())
    inputs = known["inputs"]
    if "image" in known:
        processor = AutoProcessor.from_pretrained("me/" + name, trust_remote_code=True)
        inputs = processor(images=known["image"], text=["<image>Describe."], return_tensors="pt")
        assert set(inputs) == set(known["inputs"])
        assert all(torch.equal(inputs[key], value) for key, value in known["inputs"].items())
    found = model(**inputs)
    assert known["output"]
    for key, value in known["output"].items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)  # memory's alignment decides on more
""",
        HF_ENDPOINT=hub.url,
        HF_HUB_OFFLINE="0",
        HF_TOKEN=TOKEN,
        HF_HUB_DISABLE_XET="1",
    )


LOAD = """if True:
    import sys
    from rewards.chexbert import CheXbertLabeler
    open(sys.argv[1], "w").close()
    import os, time
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    print(CheXbertLabeler("me/chexbert", device="cpu")(["There is a pleural effusion."]).shape)"""


def test_two_processes_download_the_labeler_once(hub, tmp_path):
    """As the ranks of a training run do, at the same moment and with one cache: the second waits for the first."""
    texts = ["There is a pleural effusion.", "The lungs are clear."]
    model, tokenizer = build_chexbert(texts)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    repository = hub.repositories["model", "me/chexbert"] = Repository(private=True)
    repository.commit(files)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    marks = [str(tmp_path / name) for name in ("first", "second")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, *order],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for order in (marks, marks[::-1])
    ]
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert output.strip() == "(1, 14)", errors
    assert sum(line.startswith("GET ") and "model.safetensors" in line for line in hub.asked) == 1
