"""RadGraphs with random weights that find entities and relations: the original of the test-only package radeval, for
the parity tests and the bench, and a tiny one of ours, which needs no package."""

import importlib
import importlib.util
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from transformers import BertConfig, BertTokenizer, set_seed

from modeling import RadGraphConfig, RadGraphModel
from rewards.radgraph_parser import RadGraphParser

NEEDED = ("radeval", "appdirs", "dotmap", "jsonpickle", "nltk")
HOW_TO_GET = "make .venv/oracles"
ENTITIES = {
    "radgraph-xl": [
        *("Anatomy::definitely present", "Observation::definitely present"),
        *("Observation::definitely absent", "Observation::uncertain"),
    ],
    "radgraph": ["ANAT-DP", "OBS-DP", "OBS-DA", "OBS-U"],
}
ENTITIES["modern-radgraph-xl"] = ENTITIES["radgraph-xl"]
RELATIONS = ["modify", "located_at", "suggestive_of"]
PACKAGE = "RadEval.metrics.radgraph"


def original() -> ModuleType | None:
    """The vendored package's `core`, or None where something that it imports is not installed.

    It imports itself as RadEval, which is not its name on a case-sensitive disk, and packages whose __init__ imports a
    dozen others; h5py only for a layer that RadGraph does not have.
    """
    if not all(map(importlib.util.find_spec, NEEDED)):
        return None
    if PACKAGE not in sys.modules:
        root = next(iter(importlib.util.find_spec("radeval").submodule_search_locations))
        for name in ("RadEval", "RadEval.metrics", PACKAGE):
            package = ModuleType(name)
            package.__path__ = [str(Path(root, *name.split(".")[1:]))]
            sys.modules[name] = package
        if importlib.util.find_spec("h5py") is None:
            sys.modules["h5py"] = ModuleType("h5py")
    return importlib.import_module(f"{PACKAGE}._vendor.core")


def save_encoder(folder: Path, texts: list[str], vocab_size: int, **sizes) -> BertConfig:
    """Configuration and uncased tokenizer of a BERT, as the archive's config names them."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    word_piece = BertTokenizer(dict(zip(specials, range(5), strict=True))).backend_tokenizer
    words = Counter(
        word
        for text in texts
        for word, _ in word_piece.pre_tokenizer.pre_tokenize_str(word_piece.normalizer.normalize_str(text))
    )
    letters = sorted(set("".join(words)))  # no trainer: its choice among equal pairs differs from run to run
    common = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    vocab = [*specials, *letters, *(f"##{letter}" for letter in letters), *common[: vocab_size // 2]]
    tokenizer = BertTokenizer({word: number for number, word in enumerate(vocab)}, model_max_length=512)
    tokenizer.save_pretrained(folder)
    config = BertConfig(vocab_size=len(tokenizer), **sizes)
    config.initializer_range = 0.5 * config.hidden_size**-0.5  # states differ from word to word
    config.save_pretrained(folder)
    return config


def pick_biases(scorers: list, shares: tuple, run) -> None:
    """Sets the biases of output layers so that `run()` prefers each class to the null class, whose score is 0, for the
    given share of all spans, or pairs. The weights are drawn anew: as usual, they would leave deep layers constant."""
    with torch.no_grad():
        for scorer, share in zip(scorers, shares, strict=True):
            scorer.bias.zero_()
            scores = []
            keep = scorer.register_forward_hook(lambda module, args, output, scores=scores: scores.append(output))
            run()
            keep.remove()
            scores = torch.cat([each.flatten(0, -2) for each in scores])
            scorer.bias -= scores.quantile(1 - share, dim=0)


def draw(*parts: torch.nn.Module) -> None:
    """Weights with which every layer of the parts keeps the variance of its input."""
    for module in (each for part in parts for each in part.modules()):
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)


def save_tiny(folder: Path, texts: list[str], **settings) -> Path:
    """A tiny RadGraph of ours, whose graphs of `texts` have all labels, as a folder for RadGraphParser."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    set_seed(0)
    config = save_encoder(folder, texts, 300, **sizes)
    defaults = {"max_span_width": 4, "feature_size": 6, "feedforward_sizes": [24, 24]}
    model = RadGraphModel(RadGraphConfig(config, **defaults | settings)).eval()
    draw(model.entity_scorer, model.pruner, model.relation_scorer)
    model.save_pretrained(folder)
    parser = RadGraphParser(folder, device="cpu")
    outputs = [parser.model.entity_scorer.output, parser.model.relation_scorer.output]
    pick_biases(outputs, (0.1, 0.05), lambda: parser(texts))
    parser.model.save_pretrained(folder)
    return folder


def write_config(folder: Path, encoder: str, kind: str, width: int, feature: int, layers: int, hidden: int) -> None:
    """config.json and vocabulary/ of an archive, as DyGIE++'s template and AllenNLP write them."""
    bert = {"bert": {"type": "pretrained_transformer_mismatched", "model_name": encoder, "max_length": 512}}
    config = {
        "dataset_reader": {"type": "dygie", "max_span_width": width, "token_indexers": bert},
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": bert},
            "initializer": {"regexes": []},
            "module_initializer": {"regexes": []},
            "feature_size": feature,
            "feedforward_params": {"num_layers": layers, "hidden_dims": hidden, "dropout": 0.4},
            "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
            "max_span_width": width,
            "modules": {
                "coref": {"coref_prop": 0, "max_antecedents": 100, "spans_per_word": 0.3},
                "events": {
                    "argument_spans_per_word": 0.8,
                    "loss_weights": {"arguments": 1.0, "trigger": 0.2},
                    "trigger_spans_per_word": 0.3,
                },
                "ner": {},
                "relation": {"spans_per_word": 0.5},
            },
            "target_task": "relation",
        },
        "trainer": {"num_epochs": 50},
    }
    (folder / "vocabulary").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocabulary/non_padded_namespaces.txt").write_text("*tags\n*labels\n")
    (folder / f"vocabulary/{kind}__ner_labels.txt").write_text("\n".join(["", *ENTITIES[kind]]) + "\n")
    (folder / f"vocabulary/{kind}__relation_labels.txt").write_text("\n".join(RELATIONS) + "\n")


def build(core: ModuleType, folder: Path, texts: list[str], kind: str, shares: tuple = (0.012, 0.012), **sizes):
    """The original's RadGraph with random weights, and its archive's folder `folder`/`kind`.

    `texts` make the tokenizer. An untrained model would find nothing, and prune what it finds: so the pruner prefers
    what the entity scorer does, and biases are chosen (on three texts) such that each class is preferred to the null
    class by a share of all spans, or of all pairs of the best spans. The defaults give about 0.35 entities a word.
    """
    heads = {name: sizes.pop(name) for name in ("width", "feature", "layers", "hidden")}
    save_encoder(folder / "encoder", texts, **sizes)
    write_config(folder / kind, str(folder / "encoder"), kind, **heads)
    set_seed(0)
    with (
        mock.patch.object(core.torch, "load", return_value={}),
        mock.patch.object(core.dygie.DyGIE, "load_state_dict"),
        mock.patch("builtins.print"),
    ):
        theirs = core.RadGraph(model_type=kind, model_cache_dir=str(folder), cuda=-1)
    entities = theirs.model._ner._ner_scorers[f"{kind}__ner_labels"]
    pruner = theirs.model._relation._mention_pruners[f"{kind}__relation_labels"]._scorer
    relations = theirs.model._relation._relation_scorers[f"{kind}__relation_labels"]
    with torch.no_grad():
        draw(theirs.model._ner, theirs.model._relation)
        pruner[0].load_state_dict(entities[0].state_dict())
        entities[1]._module.weight += 2 * pruner[1]._module.weight
    pick_biases([entities[1]._module, relations], shares, lambda: theirs(texts[:3]))
    torch.save(theirs.model.state_dict(), folder / kind / "weights.th")
    return theirs


def pack(folder: Path, archive: Path) -> Path:
    """The archive of a folder with config.json, weights.th and vocabulary/; compressed by its name's ending."""
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as file:
        for path in sorted(folder.iterdir()):
            file.add(path, arcname=path.name)
    return archive
