"""What the files of a model's folder tell before its weights are read, in a sentence where they tell of a fault."""

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from recipes.data.pickles import read_pickle
from recipes.files import InputError
from rewards.encoders import has_vocabulary

NAMES = (
    *("config.json", "adapter_config.json", "generation_config.json", "preprocessor_config.json"),
    *("processor_config.json", "video_preprocessor_config.json", "chat_template.json", "tokenizer_config.json"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "*.index.json"),
)
CONFIGS = ("config.json", "adapter_config.json")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
VOCABULARIES = ("vocab.txt", "tokenizer.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
BERTS = ("bert", "cxr-bert", "chexbert", "discbert", "crepe")  # their encoder's weights have the same names
PICKLES = ("pytorch_model*.bin", "adapter_model.bin")


def find_unreadable(folder: Path, images: bool = False, weights: bool = True) -> str | None:
    """What in a model's folder could not be read, and what to do, or None; weights are looked at, not read.

    It has a config.json, or an adapter's; JSON files parse, generation settings are of the right types, a safetensors
    file is as long as it says, every shard of an index is there, and a pickle, read where there is no safetensors
    file, names nothing but tensors. `images`: an image processor is there. `weights`: False leaves all weights out.
    """
    if not any(folder.iterdir()):
        return "is empty: copy the model's files there"
    if not any((folder / name).is_file() for name in CONFIGS):
        return f"is no model's folder (no {' or '.join(CONFIGS)}): name another, or copy it again"
    if fault := _find_bad_settings(folder):
        return fault
    if images and not any((folder / name).is_file() for name in PROCESSORS):
        return f"has no processor for images (no {' or '.join(PROCESSORS)}): copy that of the model it was made from"
    return _find_bad_weights(folder) if weights else None


def _find_bad_settings(folder: Path) -> str | None:
    for file in sorted(file for pattern in NAMES for file in folder.glob(pattern)):
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            return f"has a damaged {file.name}, which is no JSON: copy it again"
        if not isinstance(settings, dict) or (file.name == "tokenizer.json" and "added_tokens" not in settings):
            return f"has a damaged {file.name}, which does not hold what it should: copy it again"
    if (folder / "generation_config.json").is_file():
        try:
            GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            return f"has an invalid generation_config.json ({reason}): correct it"
    return None


def _find_bad_weights(folder: Path) -> str | None:
    pickled = not any(folder.glob("*.safetensors*"))
    for index in folder.glob("*.bin.index.json" if pickled else "*.safetensors.index.json"):
        shards = sorted(set(json.loads(index.read_text()).get("weight_map", {}).values()))
        if missing := [shard for shard in shards if not (folder / shard).is_file()]:
            return f"has no {missing[0]}, which its {index.name} names: copy it again"
    weights = sorted(file for pattern in (PICKLES if pickled else ["*.safetensors"]) for file in folder.glob(pattern))
    if not weights:
        return "has no weights (no .safetensors and no pytorch_model.bin): copy it again"
    for file in weights:
        if not pickled:
            try:
                safe_open(file, "pt").__exit__(None, None, None)
            except SafetensorError:
                return f"has a damaged {file.name}, which ends too early: copy it again"
        elif not zipfile.is_zipfile(file):
            read_pickle(file)  # the format before torch 1.6 has no list of contents
        elif code := sorted(get_unsafe_globals_in_checkpoint(file)):
            return f"has {file.name}, a pickle that holds code ({code[0]}): take safetensors instead"
    return None


def check_folder(name: str, images: bool = False, weights: bool = True) -> None:
    """Raises InputError where `name` is a model's folder with a file that cannot be read (`find_unreadable`).

    So it does where `name` is a file, or a folder that is not there and no Hub id either. Of a Hub id nothing is
    looked at: a file is in the cache as a whole or not at all.
    """
    path = Path(name)
    if path.is_file():
        raise InputError(f"{name} is a file, and a model is a folder: name the folder of its config.json")
    if path.is_dir():
        if fault := find_unreadable(path, images, weights):
            raise InputError(f"{name} {fault}")
    elif not HUB_ID.fullmatch(name):
        raise InputError(f"there is no model {name}: no such folder, and no name that the Hub could have")


def check_vocabulary(name: str) -> None:
    """Raises InputError where `name` is a folder of a BERT without its tokenizer, which transformers would make up."""
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in VOCABULARIES):
        raise InputError(f"{name} has no tokenizer (no {' or '.join(VOCABULARIES)}): copy it there")


def load_bert(
    name: str, tokenizer_class: type[PreTrainedTokenizerBase], model_class: type[PreTrainedModel]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The BERT in folder or Hub id `name` as `model_class`, whose heads may be new, and its tokenizer.

    Raises InputError where it is not there, damaged, of another architecture or without a tokenizer.
    """
    check_folder(name, weights=False)
    check_vocabulary(name)
    try:
        model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type", "missing")
        if model_type not in BERTS:
            raise InputError(f"--model {name} is a {model_type} model: name a BERT")
        check_folder(name)
        tokenizer = tokenizer_class.from_pretrained(name)
        model = model_class.from_pretrained(name)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        fault = "" if Path(name).is_dir() else "no such folder, or the Hub is out of reach "
        raise InputError(f"--model {name} cannot be loaded: {fault}({reason})") from error
    if not has_vocabulary(tokenizer):
        raise InputError(f"--model {name} has no tokenizer (no vocab.txt or tokenizer.json): copy it there")
    return model, tokenizer


def read_adapter(model: str) -> dict | None:
    """The settings of the LoRA adapter that `model`, a folder or a Hub id, is; None where it is none."""
    from transformers.utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(model)
    except OSError:  # neither a folder nor a name that the Hub could have
        return None
    return json.loads(Path(file).read_text()) if file else None


def check_model(name: str, trust_remote_code: bool = False, attention: str | None = None) -> None:
    """Raises InputError unless `name` is a vision-language model that transformers can load, with `attention`.

    `name` is a folder or a Hub id of a model, or of a LoRA adapter, whose base model is then looked at. What a model
    with code of its own reads is not checked where `trust_remote_code` is set. `attention`: an attn_implementation.
    Files of a folder are read as far as recipes/data/model_files.py says.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    from transformers.utils.generic import is_flash_attention_requested

    import modeling  # noqa: F401  (registers our own systems)

    if not name:
        raise InputError("no model is named: give --model_name_or_path, a folder or a Hub id")
    check_folder(name, weights=False)
    adapter = read_adapter(name)
    base = adapter["base_model_name_or_path"] if adapter else name
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        sentence = str(error).split("\n")[0]
        raise InputError(
            f"the model {name} cannot be loaded (no such folder, or the Hub is out of reach): {sentence}"
        ) from error
    remote = trust_remote_code and "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
    if not remote and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise InputError(f"{name} is a {config.model_type} model, which reads no images; name a vision-language model")
    check_folder(name)
    check_folder(base, images=True)
    flash = is_flash_attention_requested(requested_attention_implementation=attention)
    if flash and not remote and not MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]._supports_flash_attn:
        raise InputError(
            f"{name} is a {config.model_type} model, which has no {attention}: set attn_implementation: sdpa"
        )
