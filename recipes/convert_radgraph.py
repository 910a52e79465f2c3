"""Turns a published RadGraph archive (model.tar.gz) into a transformers folder, with its code.

    python recipes/convert_radgraph.py --out outputs/radgraph-xl     # or --archive radgraph, or modern-radgraph-xl
    python recipes/convert_radgraph.py --archive model.tar.gz --encoder bert-base-uncased --out outputs/radgraph

`rewards.radgraph.RadGraphParser("outputs/radgraph-xl")` reads it. The encoder's configuration and tokenizer are in no
archive: they come by the name in its config.json, for radgraph-xl CXR-BERT-general and for modern-radgraph-xl
ModernBERT-base (as far as we know), or by --encoder. The weights have their own licence (the first's: credentialed).
"""

import io
import json
import pickle
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from modeling import RadGraphConfig, RadGraphModel
from recipes.cli import parse, run
from recipes.data.conversion import are_tensors, load_exactly, save_folder
from recipes.files import InputError

HUB, PUBLISHED = "StanfordAIMI/RRG_scorers", ("radgraph", "radgraph-xl", "modern-radgraph-xl")
BERT, NER, RELATION = "model.embedder.token_embedders.bert", "__ner_labels", "__relation_labels"
PARTS = {  # how names begin in the archive, {} being its label set, and in RadGraphModel
    "_embedder.token_embedder_bert._matched_embedder.transformer_model.": "encoder.",
    "_endpoint_span_extractor._span_width_embedding.": "width_embedding.",
    "_ner._ner_scorers.{}__ner_labels.0._module._linear_layers.": "entity_scorer.layers.",
    "_ner._ner_scorers.{}__ner_labels.1._module.": "entity_scorer.output.",
    "_relation._mention_pruners.{}__relation_labels._scorer.0._module._linear_layers.": "pruner.layers.",
    "_relation._mention_pruners.{}__relation_labels._scorer.1._module.": "pruner.output.",
    "_relation._relation_feedforwards.{}__relation_labels._linear_layers.": "relation_scorer.layers.",
    "_relation._relation_scorers.{}__relation_labels.": "relation_scorer.output.",
}


@dataclass
class ConvertArguments:
    marker: ClassVar[str] = "config.json"

    out: str = field(metadata={"help": "Folder of the converted model."})
    archive: str = field(
        default="radgraph-xl", metadata={"help": f"Archive file, or a published one: {', '.join(PUBLISHED)}."}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "Encoder, a folder or Hub id; the one that the archive names when not given."}
    )


def read_archive(file: str | Path) -> tuple[dict, dict[str, list[str]], dict[str, torch.Tensor]]:
    """An archive's config, label sets by their names, and weights; nothing but tensors is unpickled."""
    if not Path(file).is_file():
        raise InputError(f"there is no archive {file}")
    try:
        with tarfile.open(file) as archive:
            members = {member.name.removeprefix("./"): member for member in archive.getmembers() if member.isfile()}
            content = {name: archive.extractfile(member).read() for name, member in members.items()}
        config = json.loads(content["config.json"])
        names = [name for name in content if name.startswith("vocabulary/") and name.endswith("_labels.txt")]
        labels = {Path(name).stem: content[name].decode().removesuffix("\n").split("\n") for name in names}
        weights = torch.load(io.BytesIO(content["weights.th"]), map_location="cpu", weights_only=True)
    except KeyError as error:
        raise InputError(f"{file} has no {error.args[0]}, so it is no RadGraph archive") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"weights.th of {file} holds code or is no PyTorch file, so it was not opened") from error
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:
        raise InputError(f"{file} is damaged or no .tar.gz; get it again ({str(error).splitlines()[0]})") from error
    if not are_tensors(weights):
        raise InputError(f"weights.th of {file} is no dict of tensors, so it is no RadGraph archive")
    return config, labels, weights


def look(config: dict, path: str):
    """The value at a dotted path of the archive's config; InputError where there is none."""
    for key in path.split("."):
        if not isinstance(config, dict) or key not in config:
            raise InputError(f"the archive's config.json has no {path}, so it is no RadGraph's")
        config = config[key]
    return config


def read_config(config: dict, labels: dict[str, list[str]], encoder: PreTrainedConfig) -> tuple[RadGraphConfig, str]:
    """RadGraphModel's configuration from the archive's, and the label set's name."""
    names = [key.removesuffix(NER) for key in labels if key.endswith(NER) and key.replace(NER, RELATION) in labels]
    if len(names) != 1 or labels[names[0] + NER][0]:  # the null class comes first, as an empty line
        raise InputError(f"the archive has {len(names)} label sets for entities and relations, where RadGraph has one")
    (name,), width, length = names, look(config, "model.max_span_width"), look(config, f"{BERT}.max_length")
    sizes, layers = (look(config, f"model.feedforward_params.{key}") for key in ("hidden_dims", "num_layers"))
    different = {  # from the published archives, and so not known to RadGraphModel
        "coref_prop": look(config, "model.modules").get("coref", {}).get("coref_prop", 0) != 0,
        "loss_weights": not all(look(config, f"model.loss_weights.{task}") for task in ("ner", "relation")),
        "max_span_width": look(config, "dataset_reader.max_span_width") != width,
        "max_length": look(config, "dataset_reader.token_indexers.bert.max_length") != length,
    }
    if any(different.values()):
        raise InputError(f"config.json has a {max(different, key=different.get)} that RadGraphModel cannot do")
    return RadGraphConfig(
        encoder_config=encoder,
        entity_labels=labels[name + NER][1:],
        relation_labels=labels[name + RELATION],
        max_span_width=width,
        feature_size=look(config, "model.feature_size"),
        feedforward_sizes=sizes if isinstance(sizes, list) else [sizes] * layers,
        spans_per_word=look(config, "model.modules.relation.spans_per_word"),
        segment_length=length or encoder.max_position_embeddings,
        cleaning="radgraph" if name in ("radgraph", "None") else "radgraph-xl",
    ), name


def convert(weights: dict[str, torch.Tensor], config: RadGraphConfig, name: str) -> RadGraphModel:
    """A RadGraphModel in evaluation mode with the archive's weights for the label set `name`, but for those of
    coreference, events and the pooler; InputError where names or shapes differ."""
    renamed = {}
    for key, tensor in weights.items():
        old = next((old for old in PARTS if key.startswith(old.format(name))), None)
        key = key if old is None else PARTS[old] + key[len(old.format(name)) :]
        if not key.startswith(("_coref.", "_events.", "encoder.pooler.")) and not key.endswith(".position_ids"):
            renamed[key] = tensor
    return load_exactly(RadGraphModel(config), renamed, "the archive is no RadGraph of its config and --encoder")


def main() -> None:
    (args,) = parse(ConvertArguments)
    archive, name = args.archive, args.encoder
    try:
        archive = hf_hub_download(HUB, f"{archive}.tar.gz") if archive in PUBLISHED else archive
        config, labels, weights = read_archive(archive)
        name = name or look(config, f"{BERT}.model_name")
        tokenizer, encoder = AutoTokenizer.from_pretrained(name), AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        source, option = (name, "encoder") if name else (f"{HUB} {archive}.tar.gz", "archive")
        fetch = f"fetch it by `hf download {source}` or give --{option} ({str(error).splitlines()[0]})"
        raise InputError(f"{source} is not here: {fetch}") from error
    model = convert(weights, *read_config(config, labels, encoder))
    save_folder(args.out, model, tokenizer)


if __name__ == "__main__":
    run(main)
