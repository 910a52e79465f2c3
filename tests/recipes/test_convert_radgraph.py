"""The converter on archives laid out like the published ones: AllenNLP's names, stray weights, a pickle. That what it
makes computes what the original does is tested in tests/modeling/test_radgraph_model.py."""

import gzip
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from radgraph_models import RELATIONS, pack, save_tiny, write_config
from replicas import RADGRAPH_ENCODERS, radgraph_archive

from modeling import RadGraphModel
from recipes import convert_radgraph
from recipes.files import InputError
from rewards.radgraph import RadGraphParser

TEXTS = ["There is a small pleural effusion.", "No edema or pneumothorax.", "The heart is normal in size."]
SIZES = {"width": 4, "feature": 6, "layers": 2, "hidden": 24}
ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with `tiny` (ours), `encoder`, and `archive`: config.json, vocabulary/ and weights.th of the same."""
    folder = tmp_path_factory.mktemp("published")
    save_tiny(folder / "tiny", TEXTS * 3)
    model = RadGraphModel.from_pretrained(folder / "tiny")
    model.config.encoder_config.save_pretrained(folder / "encoder")
    for file in (folder / "tiny").glob("tokenizer*"):
        shutil.copy(file, folder / "encoder")
    write_config(folder / "archive", str(folder / "encoder"), "radgraph-xl", **SIZES)
    labels = folder / "archive/vocabulary/radgraph-xl__ner_labels.txt"
    labels.write_text("\n".join(["", *model.config.entity_labels]) + "\n")
    torch.save(archived(model), folder / "archive/weights.th")
    return folder


def archived(model: RadGraphModel) -> dict[str, torch.Tensor]:
    """The model's weights by their names in an archive, and some that only an archive has."""
    weights = {
        f"{ENCODER}embeddings.position_ids": torch.arange(512)[None],
        f"{ENCODER}pooler.dense.weight": torch.zeros(32, 32),
        "_coref._distance_embedding.weight": torch.zeros(10, 6),
        "_events._distance_embedding.weight": torch.zeros(10, 6),
    }
    for name, tensor in model.state_dict().items():
        old, new = next(pair for pair in convert_radgraph.PARTS.items() if name.startswith(pair[1]))
        weights[old.format("radgraph-xl") + name.removeprefix(new)] = tensor
    return weights


def arguments(archive: Path, out: Path, **others) -> list:
    return [word for key, value in {"archive": archive, "out": out, **others}.items() for word in (f"--{key}", value)]


@pytest.mark.parametrize("compressed", [".tar.gz", ".tar"])
def test_converted_weights_are_the_published_ones(published, tmp_path, call, compressed):
    archive = pack(published / "archive", tmp_path / f"model{compressed}")
    call(convert_radgraph.main, *arguments(archive, tmp_path / "out"))
    parser, tiny = RadGraphParser(tmp_path / "out", device="cpu"), RadGraphParser(published / "tiny", device="cpu")
    found, expected = parser.model.state_dict(), tiny.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", published / "tiny")
    )
    assert ours == theirs
    assert ours["relation_labels"] == RELATIONS
    assert parser(TEXTS) == tiny(TEXTS) and any(graph["entities"] for graph in parser(TEXTS))
    assert (tmp_path / "out/modeling_radgraph.py").is_file()  # for trust_remote_code


def change(published: Path, folder: Path, file: str, old: str, new: str) -> Path:
    """The archive with another text in one of its files; `file` is left out where `old` is empty."""
    shutil.copytree(published / "archive", folder / "changed")
    if old:
        text = (folder / "changed" / file).read_text()
        assert old in text
        (folder / "changed" / file).write_text(text.replace(old, new))
    else:
        (folder / "changed" / file).unlink()
        (folder / "changed" / f"{file}.bak").touch()
    return folder / "changed"


def weights(published: Path, folder: Path, change) -> Path:
    content = torch.load(published / "archive/weights.th", weights_only=True)
    shutil.copytree(published / "archive", folder / "changed")
    torch.save(change(content), folder / "changed/weights.th")
    return folder / "changed"


class Attack:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the archive was run')",)


def raw_pickle(published: Path, folder: Path) -> Path:
    shutil.copytree(published / "archive", folder / "changed")
    (folder / "changed/weights.th").write_bytes(pickle.dumps({"weight": Attack()}, protocol=2))
    return folder / "changed"


def half_of(part: str):
    def make(published: Path, folder: Path) -> Path:
        if part == "weights":
            shutil.copytree(published / "archive", folder / "changed")
            file = folder / "changed/weights.th"
        else:
            file = pack(published / "archive", folder / part)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return folder / "changed" if part == "weights" else file

    return make


def text_file(published: Path, folder: Path) -> Path:
    (folder / "model.tar.gz").write_bytes(gzip.compress(b"<html>Sign in to download</html>" * 40))
    return folder / "model.tar.gz"


LABELS = "vocabulary/radgraph-xl__ner_labels.txt"
SCORER = "_relation._relation_scorers.radgraph-xl__relation_labels."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda published, folder: folder / "none.tar.gz", "there is no archive"),
        (text_file, "is damaged or no .tar.gz"),
        (half_of("model.tar.gz"), "is damaged or no .tar.gz"),
        (half_of("model.tar"), "is damaged or no .tar.gz"),
        (half_of("weights"), "is damaged or no .tar.gz"),
        (lambda p, folder: weights(p, folder, lambda w: {"weight": Attack()}), "holds code"),
        (raw_pickle, "holds code"),
        (lambda p, folder: weights(p, folder, lambda w: [1]), "no dict of tensors"),
        (lambda p, folder: weights(p, folder, lambda w: {"epoch": 3}), "no dict of tensors"),
        (lambda p, folder: change(p, folder, "config.json", "", ""), "has no config.json, so it is no RadGraph"),
        (lambda p, folder: change(p, folder, "config.json", "{", ""), "is damaged"),
        (lambda p, folder: change(p, folder, LABELS, "", ""), "has 0 label sets"),
        (lambda p, folder: change(p, folder, LABELS, "\nObservation", "Observation"), "has 1 label sets"),
        (lambda p, folder: change(p, folder, "config.json", "feature_size", "size"), "no model.feature_size"),
        (lambda p, folder: change(p, folder, "config.json", "model_name", "name"), "no model.embedder.*model_name"),
        (lambda p, folder: change(p, folder, "config.json", '_prop": 0', '_prop": 2'), "a coref_prop that"),
        (lambda p, folder: change(p, folder, "config.json", '"ner": 0.2', '"ner": 0'), "a loss_weights that"),
        (
            lambda p, folder: weights(p, folder, lambda w: {k: v for k, v in w.items() if k != f"{SCORER}bias"}),
            r"1 weights differ, such as relation_scorer.output.bias \(shape none, and \(3,\) is expected",
        ),
        (
            lambda p, folder: weights(p, folder, lambda w: {**w, "_crf.weight": torch.zeros(2)}),
            r"1 weights differ, such as _crf.weight \(shape \(2,\), and none is expected",
        ),
        (
            lambda p, folder: weights(p, folder, lambda w: {**w, f"{SCORER}bias": torch.zeros(7)}),
            r"such as relation_scorer.output.bias \(shape \(7,\), and \(3,\) is expected",
        ),
        (
            lambda p, folder: change(p, folder, "config.json", "encoder", "gone"),
            r"gone is not here: fetch it by `hf download .*` or give --encoder",
        ),
    ],
)
def test_bad_archives_are_refused(published, tmp_path, call, make, message):
    archive = make(published, tmp_path)
    archive = pack(archive, tmp_path / "bad.tar.gz") if archive.is_dir() else archive
    with pytest.raises(InputError, match=message) as refused:
        call(convert_radgraph.main, *arguments(archive, tmp_path / "out"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_another_encoder(published, tmp_path, call):
    archive = pack(change(published, tmp_path, "config.json", "encoder", "gone"), tmp_path / "model.tar.gz")
    call(convert_radgraph.main, *arguments(archive, tmp_path / "out", encoder=published / "encoder"))
    assert (tmp_path / "out/model.safetensors").is_file()


@pytest.mark.parametrize("name", ["radgraph", "radgraph-xl", "modern-radgraph-xl"])
def test_without_the_hub(tmp_path, call, name):
    sentence = f"fetch it by `hf download StanfordAIMI/RRG_scorers {name}.tar.gz` or give --archive"
    with pytest.raises(InputError, match=sentence):  # the tests are offline
        call(convert_radgraph.main, "--archive", name, "--out", tmp_path / "out")


@pytest.mark.parametrize("name, encoder", [(name, encoder) for name, (encoder, _) in RADGRAPH_ENCODERS.items()])
def test_the_encoder_to_fetch_is_named(tmp_path, call, name, encoder):
    archive = radgraph_archive(tmp_path, name) / f"{name}.tar.gz"
    with pytest.raises(InputError, match=f"^{encoder} is not here: fetch it by `hf download {encoder}`"):
        call(convert_radgraph.main, *arguments(archive, tmp_path / "out"))
