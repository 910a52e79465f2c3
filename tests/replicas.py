"""Miniatures of the checkpoints that a YAML, README or converter names, each in the form in which it is published.

    from replicas import huatuo, vicuna          # tests/conftest.py puts this folder on the path
    huatuo(folder, form="B", texts=reports)

A replica has the files that are loaded (no README, LICENSE or pictures), the JSON settings, token ids, weight names,
dtype and shards of the published repository; widths are small and weights are random. The JSON values here are the
published ones, and what is made smaller stands beside them in a table of its own, so that tests/test_replicas.py puts
the published widths back and compares the sizes of the files in bytes. `texts` train the tokenizers, so that a report
is cut into words; default: a few sentences of ours.

What no published file or its size could confirm is in FROM_MEMORY: `python tests/replicas.py` prints it.
"""

import io
import json
import re
import shutil
import sys
import types
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Dinov2Config,
    Dinov2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    RobertaConfig,
    RobertaForMaskedLM,
    set_seed,
)

SENTENCES = (
    "The heart is normal in size. The lungs are clear. There is no pleural effusion or pneumothorax.",
    "There is a small left pleural effusion with adjacent atelectasis. No pneumothorax is seen.",
    "The heart is enlarged. There is mild pulmonary edema and a right lower lobe consolidation.",
    "Compared with the prior examination, the opacity in the right lung has increased.",
    "A left pacemaker and sternal wires are unchanged. No acute fracture.",
    "Findings: the mediastinum is not widened. Impression: no acute disease of the chest.",
)

FROM_MEMORY = {
    "qwen2_5_vl_7b, qwen2_5_vl_3b": (
        "rope_scaling's type mrope (copies that were saved again say default)",
        "the vision tower's depth, heads, widths, window and full-attention blocks (the class's defaults)",
        "the 3B's 151,936 rows, and that its index is of 2 shards",
        "tokenizer_config.json: no padding_side, the chat template in it, the added tokens by name",
        "that there is no special_tokens_map.json, added_tokens.json, processor_config.json or chat_template.jinja",
        "the chat template, whose words are ours and whose output is the published one's as remembered",
        "which of the two generation_config.json is there today (the replica: temperature 1e-06)",
    ),
    "cxr_bert": ("special_tokens_map_file in tokenizer_config.json, a path of which only the length is known",),
    "rad_dino": ("what is in backbone_compatible.safetensors and dino_head.safetensors, which are not read",),
    "blip2_opt": (
        "the old revision's config.json, of which more settings than these are in the published 6.96 kB",
        "the vision tower's and the Q-Former's settings (the class's defaults)",
        "that tokenizer.json writes </s> before a text (a template) and has the special tokens as normalized",
        "that special_tokens_map.json is the same in both revisions",
        "that main has the new form today",
    ),
    "bert_base_uncased": ("gamma and beta as names of layer norms, and which weights are written twice",),
    "biomedbert": (
        "everything but the name and that it is a BERT-base, uncased: files, tokenizer settings, special ids, pickle",
    ),
    "cxr_bert_general": ("tokenizer_config.json, of which 228 bytes are known", "the special tokens' ids"),
    "biomedclip": ("the order of the keys in tokenizer_config.json", "the vocabulary's special ids"),
    "chexbert_pth": ("that it is pickled in the old way and without position_ids (from the versions that wrote it)",),
    "crepe": (
        "the file set, that its weights are safetensors and its tokenizer's settings; names and settings are those "
        "that the authors' code reads",
    ),
    "modernbert_base": ("everything: config, tokenizer, ids and file set",),
    "radgraph_archive": (
        "which encoder the first RadGraph names, and that its label set is called radgraph",
        "that radgraph-xl names CXR-BERT-general and modern-radgraph-xl ModernBERT-base (users' offline copies do)",
        "config.json, whose keys are those of DyGIE++'s template",
    ),
    "distilroberta": ("that position_ids is in neither weights file", "which weights are written twice"),
    "llmrg4_pth": (
        "that the released file is of stage 2 with the LoRA of the script (rank 32, alpha 64) in it, in float32",
        "that tensors on the drive have no CUDA place (the replica's have none)",
    ),
    "discbert_pth": ("whether the buffer bert.embeddings.position_ids is in it (the replica: no)",),
    "medgemma": (
        "the original's file set (the files are those of copies that were saved again), 2 shards",
        "generation_config.json, tokenizer_config.json, the template's output, the tokens' ids below 255999",
        "that weights are called language_model.model and vision_tower.vision_model",
        "heads, key-value heads and their width are not in the published config.json (the class's defaults)",
    ),
    "qwen3_vl": (
        "which keys config.json has (1.51 kB for the 2B)",
        "2 shards, today's weight names, the deepstack layers and widths of the 4B's vision tower",
        "video_preprocessor_config.json, of which 385 bytes are known; the template's output; the last four tokens",
    ),
    "huatuo": (
        "everything but that it is a Qwen2.5-VL of 8B: files, shards, config, generation and image settings, padding",
        "forms A to D stand for what a Trainer of early 2025 may have written",
    ),
}


################
# Files
################


def write_json(file: Path, values: dict, indent: int | None = 2, end: str = "\n") -> None:
    """`values` as JSON in the order in which they stand."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=indent, ensure_ascii=False) + end)


def write_weights(folder: Path, weights: dict[str, torch.Tensor], shards: int, pickled: bool = False) -> None:
    """`weights` in as many files as the published ones, with the index where they are several."""
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    names = list(weights)
    files = [f"{stem}.{suffix}"]
    if shards > 1:
        files = [f"{stem}-{number:05}-of-{shards:05}.{suffix}" for number in range(1, shards + 1)]
    place = {name: files[position * shards // len(names)] for position, name in enumerate(names)}
    for file in files:
        part = {name: weights[name].contiguous() for name in names if place[name] == file}
        if pickled:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    if shards > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
        write_json(folder / f"{stem}.{suffix}.index.json", index)


def byte_level_bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str] = ()) -> tuple[dict, list]:
    """Vocabulary and merges of a byte-level BPE of at most `vocab_size` entries; `specials` come first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def with_fillers(vocab: dict[str, int], size: int) -> dict[str, int]:
    """`vocab` up to `size` entries, so that what comes after them has the published ids; no text becomes a filler."""
    return vocab | {f"filler{number}": number for number in range(len(vocab), size)}


def token(content: str, **settings) -> dict:
    """A token as special_tokens_map.json has it."""
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False} | settings


################
# Qwen2.5-VL and HuatuoGPT-Vision
################

QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)  # ids 151643 to 151664; from <tool_call> on they are not special
QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_7B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
QWEN_3B = QWEN_7B | {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_window_layers": 70,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vision_config": QWEN_7B["vision_config"] | {"out_hidden_size": 2048},
    "vocab_size": 151936,
}
QWEN_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vision_config": QWEN_7B["vision_config"]
    | {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
}
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
QWEN_PREPROCESSOR = {  # 350 bytes, without a line's end
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
QWEN_GENERATION = {  # 214 bytes
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "repetition_penalty": 1.05,
    "temperature": 1e-06,
    "transformers_version": "4.49.0",
}
QWEN_GENERATION_EARLY = {  # 249 bytes
    **{key: QWEN_GENERATION[key] for key in list(QWEN_GENERATION)[:5]},
    **{"temperature": 0.1, "top_k": 1, "top_p": 0.001, "transformers_version": "4.49.0.dev0"},
}
QWEN_SAVED_PREPROCESSOR = {  # 578 bytes: what save_pretrained of transformers 4.49.0.dev0 wrote
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": CLIP_MEAN,
    "image_processor_type": "Qwen2_5_VLImageProcessor",
    "image_std": CLIP_STD,
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 12845056, "shortest_edge": 3136},
    "temporal_patch_size": 2,
}


def qwen2_5_vl_7b(folder: Path, texts: Sequence[str] = SENTENCES, vocab_size: int = 152064) -> Path:
    """Qwen/Qwen2.5-VL-7B-Instruct: 5 safetensors shards under the names of early 2025, bfloat16, a flat config.

    `vocab_size`: rows of the embeddings. With fewer than the published ones, for speed, the special tokens keep their
    distance from the last row, and their ids become smaller.
    """
    return _qwen2_5_vl(folder, QWEN_7B, 5, texts, vocab_size)


def qwen2_5_vl_3b(folder: Path, texts: Sequence[str] = SENTENCES, vocab_size: int = 151936) -> Path:
    """Qwen/Qwen2.5-VL-3B-Instruct: 2 shards, embeddings tied; else as the 7B."""
    return _qwen2_5_vl(folder, QWEN_3B, 2, texts, vocab_size)


def huatuo(folder: Path, form: str = "A", texts: Sequence[str] = SENTENCES, vocab_size: int = 152064) -> Path:
    """FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL in one of four forms; which one it has is not known.

    A: as Qwen2.5-VL-7B. B: saved by a Trainer with transformers 4.49.0.dev0. C: saved with 4.52. D: C with left
    padding written into tokenizer_config.json.
    """
    if form not in ("A", "B", "C", "D"):
        raise ValueError(f"form is A, B, C or D, not {form!r}")
    _qwen2_5_vl(folder, QWEN_7B, 5 if form == "A" else 4, texts, vocab_size)
    if form == "A":
        return folder
    _, ids = _qwen_ids(QWEN_7B, vocab_size)
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    scaling = {"mrope_section": config["rope_scaling"]["mrope_section"], "rope_type": "default", "type": "default"}
    config |= {"rope_scaling": scaling, "transformers_version": "4.49.0.dev0"}
    settings |= {"extra_special_tokens": {}, "processor_class": "Qwen2_5_VLProcessor", "split_special_tokens": False}
    names = sorted(QWEN_TOKENS, key=ids.get)
    write_json(folder / "added_tokens.json", {name: ids[name] for name in sorted(names)})  # 605 bytes
    specials = {"additional_special_tokens": list(names[1:14]), "eos_token": token("<|im_end|>")}
    write_json(folder / "special_tokens_map.json", specials | {"pad_token": token("<|endoftext|>")})  # 613 bytes
    preprocessor, generation = QWEN_SAVED_PREPROCESSOR, QWEN_GENERATION_EARLY
    if form in ("C", "D"):
        preprocessor = preprocessor | {"image_processor_type": "Qwen2VLImageProcessor"}
        generation = QWEN_GENERATION
        video = {**preprocessor, "do_sample_frames": False, "video_processor_type": "Qwen2VLVideoProcessor"}
        write_json(folder / "video_preprocessor_config.json", video)
        (folder / "chat_template.json").unlink()
        (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)
        del settings["chat_template"]
        text = {
            key: config[key] for key in config if not key.startswith(("vision", "image", "video", "arch", "trans"))
        }
        config["text_config"] = text | {"model_type": "qwen2_5_vl_text"}
        config["transformers_version"] = "4.52.4"
    if form == "D":
        settings["padding_side"] = "left"
    write_json(folder / "config.json", dict(sorted(config.items())))
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_json(folder / "generation_config.json", _with_ids(generation, QWEN_7B, vocab_size))
    write_json(folder / "tokenizer_config.json", dict(sorted(settings.items())))
    return folder


def _qwen2_5_vl(folder: Path, original: dict, shards: int, texts: Sequence[str], vocab_size: int) -> Path:
    first, ids = _qwen_ids(original, vocab_size)
    vision = QWEN_SMALL["vision_config"]
    config = _with_ids(
        original | QWEN_SMALL | {"vision_config": vision, "vocab_size": vocab_size}, original, vocab_size
    )
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _with_ids(QWEN_GENERATION, original, vocab_size))
    write_json(folder / "preprocessor_config.json", QWEN_PREPROCESSOR, end="")
    write_json(folder / "chat_template.json", {"chat_template": QWEN_TEMPLATE})
    write_qwen_tokenizer(folder, texts, first, ids)

    set_seed(0)
    settings = Qwen2_5_VLConfig(**config)
    settings.text_config.initializer_range = settings.vision_config.initializer_range = 0.5 * 32**-0.5
    model = Qwen2_5_VLForConditionalGeneration(settings).to(torch.bfloat16)
    weights = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        if name != "lm_head.weight" or not original["tie_word_embeddings"]:
            weights[name] = tensor
    write_weights(folder, weights, shards)
    return folder


def write_qwen_tokenizer(
    folder: Path, texts: Sequence[str], first: int, ids: dict[str, int], template: str = QWEN_TEMPLATE
) -> None:
    """The tokenizer files of Qwen2.5; `ids` are those of the added tokens, the first of which is `first`."""
    vocab, merges = byte_level_bpe(texts, min(2000, first))
    vocab = with_fillers(vocab, first)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab | ids, merges=merges, unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokens = {name: AddedToken(name, normalized=False, special=position < 14) for position, name in enumerate(ids)}
    tokenizer.add_tokens(list(tokens.values()))
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["vocab"] = vocab
    (folder / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False, indent=2))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in merges) + "\n")
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(ids[name]): token(name, special=special.special) for name, special in tokens.items()
        },
        "additional_special_tokens": list(ids)[1:14],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _qwen_ids(original: dict, vocab_size: int) -> tuple[int, dict[str, int]]:
    """The first added token's id, and all of theirs by name."""
    first = 151643 - original["vocab_size"] + vocab_size
    return first, {name: first + position for position, name in enumerate(QWEN_TOKENS)}


def _with_ids(values: dict, original: dict, vocab_size: int) -> dict:
    """`values` whose token ids are as far from the last row as the published ones."""
    less = original["vocab_size"] - vocab_size

    def shift(value):
        return [one - less for one in value] if isinstance(value, list) else value - less

    return {key: shift(value) if key.endswith("_token_id") else value for key, value in values.items()}


################
# Vicuna
################

VICUNA = {  # 615 bytes
    "_name_or_path": "vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 32000,
}
VICUNA_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
}
VICUNA_GENERATION = {  # 162 bytes; no do_sample, so that temperature and top_p contradict greedy decoding
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_length": 4096,
    "pad_token_id": 0,
    "temperature": 0.9,
    "top_p": 0.6,
    "transformers_version": "4.31.0",
}
VICUNA_TOKENIZER = {  # 749 bytes
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": {"__type": "AddedToken", **token("<s>")},
    "clean_up_tokenization_spaces": False,
    "eos_token": {"__type": "AddedToken", **token("</s>")},
    "legacy": False,
    "model_max_length": 4096,
    "pad_token": None,
    "padding_side": "right",
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": {"__type": "AddedToken", **token("<unk>")},
}
VICUNA_SPECIALS = {  # 438 bytes
    "bos_token": token("<s>"),
    "eos_token": token("</s>"),
    "pad_token": "<unk>",
    "unk_token": token("<unk>"),
}


def vicuna(folder: Path, texts: Sequence[str] = SENTENCES, vocab_size: int = 32000) -> Path:
    """lmsys/vicuna-7b-v1.5: two pickled shards in float16 with the rotary tables as float32 buffers, and a
    SentencePiece model alone, without tokenizer.json and chat template."""
    config = VICUNA | VICUNA_SMALL | {"vocab_size": vocab_size}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", VICUNA_GENERATION)
    write_json(folder / "tokenizer_config.json", VICUNA_TOKENIZER)
    write_json(folder / "special_tokens_map.json", VICUNA_SPECIALS)
    write_sentencepiece(folder / "tokenizer.model", texts, vocab_size)

    set_seed(0)
    settings = LlamaConfig(**config)
    settings.initializer_range = 0.5 * settings.hidden_size**-0.5
    weights = {}
    tables = 1e4 ** -(torch.arange(0, settings.head_dim, 2) / settings.head_dim)
    for name, tensor in LlamaForCausalLM(settings).half().state_dict().items():
        weights[name] = tensor
        if name.endswith("self_attn.o_proj.weight"):
            weights[name.replace("o_proj.weight", "rotary_emb.inv_freq")] = tables.clone()
    write_weights(folder, weights, 2, pickled=True)
    return folder


def write_sentencepiece(file: Path, texts: Iterable[str], vocab_size: int) -> None:
    """A SentencePiece BPE as Llama's: <unk> 0, <s> 1, </s> 2, then 256 bytes; fillers fill it up to `vocab_size`.

    With a `vocab_size` of 0 it has as many pieces as the texts give.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    buffer = io.BytesIO()
    texts = list(texts)
    letters = len(set("".join(texts)) - {" "}) + 1
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=min(vocab_size or 10**6, 259 + letters + len(set(" ".join(texts).split()))),
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(buffer.getvalue())
    for number in range(len(model.pieces), vocab_size):
        model.pieces.add(piece=f"filler{number}", score=-float(number - 259))
    file.write_bytes(model.SerializeToString())


################
# BERT and RAD-DINO
################


def word_pieces(texts: Iterable[str], specials: Sequence[str], size: int) -> list[str]:
    """An uncased WordPiece vocabulary: `specials`, letters, the words of `texts` by frequency, and fillers."""
    words = Counter(re.findall(r"\w+|[^\w\s]", " ".join(texts).lower()))
    letters = sorted(set("".join(words)) | set("abcdefghijklmnopqrstuvwxyz0123456789.,:;-/()"))
    common = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    vocab = [*specials, *letters, *(f"##{letter}" for letter in letters), *common][:size]
    return vocab + [f"[unused{number}]" for number in range(len(vocab), size)]


def bert_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a BERT as files of before transformers 4.31 have them: with the positions as a buffer."""
    positions = torch.arange(model.config.max_position_embeddings)[None]
    return {f"{model.base_model_prefix}.embeddings.position_ids": positions} | model.state_dict()


BERT_SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}  # the published 12 heads divide 48
CXR_BERT = {  # 843 bytes
    "_name_or_path": "microsoft/BiomedVLP-CXR-BERT-specialized",
    "architectures": ["CXRBertModel"],
    "attention_probs_dropout_prob": 0.25,
    "auto_map": {
        "AutoConfig": "configuration_cxrbert.CXRBertConfig",
        "AutoModel": "modeling_cxrbert.CXRBertModel",
    },
    "classifier_dropout": None,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.25,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "cxr-bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "projection_size": 128,
    "torch_dtype": "float32",
    "transformers_version": "4.18.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
CXR_BERT_SPECIALS = {  # 112 bytes; ids 0 to 4 in another order, and not BERT's 100 to 103
    **{"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"},
    **{"mask_token": "[MASK]"},
}
CXR_BERT_TOKENIZER = {  # 659 bytes; no model_max_length
    "do_lower_case": True,
    **CXR_BERT_SPECIALS,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "do_basic_tokenize": True,
    "never_split": None,
    "special_tokens_map_file": "/mnt/batch/".ljust(226, "x"),  # a longer path on the authors' machine
    "tokenizer_file": None,
    "name_or_path": "",
    "auto_map": {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]},
    "tokenizer_class": "CXRBertTokenizer",
}
NOT_RUN = 'raise RuntimeError("the code of a published repository was run")\n'  # theirs stands here


def cxr_bert(folder: Path, texts: Sequence[str] = SENTENCES) -> Path:
    """microsoft/BiomedVLP-CXR-BERT-specialized: pickled, with a masked-language and a projection head, code of its own
    and no pooler; its image model biovil_image_resnet50_proj_size_128.pt is left out."""
    config = CXR_BERT | BERT_SMALL | {"projection_size": 16}
    write_json(folder / "config.json", config)
    write_json(folder / "special_tokens_map.json", CXR_BERT_SPECIALS, indent=None, end="")
    write_json(folder / "tokenizer_config.json", CXR_BERT_TOKENIZER, indent=None, end="")
    for name in ("configuration_cxrbert.py", "modeling_cxrbert.py"):
        (folder / name).write_text(NOT_RUN)
    vocab = word_pieces(texts, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), config["vocab_size"])
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")

    set_seed(0)
    scale = {"initializer_range": 0.5 * config["hidden_size"] ** -0.5}
    settings = BertConfig(**{key: config[key] for key in config if key not in ("model_type", "auto_map")} | scale)
    weights, size = bert_weights(BertForMaskedLM(settings)), config["projection_size"]
    for part, shape in {
        "dense_to_hidden.weight": (size, config["hidden_size"]),
        "dense_to_hidden.bias": (size,),
        "LayerNorm.weight": (size,),
        "LayerNorm.bias": (size,),
        "dense_to_output.weight": (size, size),
        "dense_to_output.bias": (size,),
    }.items():
        weights[f"cls_projection_head.{part}"] = torch.randn(shape)
    write_weights(folder, weights, 1, pickled=True)
    return folder


RAD_DINO = {  # 879 bytes
    "apply_layernorm": True,
    "architectures": ["Dinov2Model"],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 518,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "out_features": ["stage12"],
    "out_indices": [12],
    "patch_size": 14,
    "qkv_bias": True,
    "reshape_hidden_states": True,
    "stage_names": ["stem", *(f"stage{number}" for number in range(1, 13))],
    "torch_dtype": "float32",
    "transformers_version": "4.34.0",
    "use_swiglu_ffn": False,
}
RAD_DINO_SMALL = {  # as wide as CXR-BERT, and LLM-RG4's 12 perceiver heads divide it
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "out_features": ["stage2"],
    "out_indices": [2],
    "stage_names": ["stem", "stage1", "stage2"],
}
RAD_DINO_PREPROCESSOR = {  # 756 bytes
    "_valid_processor_keys": [
        *("images", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
        *("do_normalize", "image_mean", "image_std", "do_convert_rgb", "return_tensors", "data_format"),
        "input_data_format",
    ],
    "crop_size": {"height": 518, "width": 518},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5307, 0.5307, 0.5307],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.2583, 0.2583, 0.2583],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 518},
}


def rad_dino(folder: Path, image_size: int = 518) -> Path:
    """microsoft/rad-dino: a DINOv2 of 37 x 37 patches, or `image_size` / 14; the shortest edge is resized, then the
    centre is taken. Beside model.safetensors stand two files of DINOv2's own code that transformers does not read."""
    config = RAD_DINO | RAD_DINO_SMALL | {"image_size": image_size}
    write_json(folder / "config.json", config)
    sizes = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    write_json(folder / "preprocessor_config.json", RAD_DINO_PREPROCESSOR | sizes)
    set_seed(0)
    settings = Dinov2Config(**config)
    settings.initializer_range = 0.5 * settings.hidden_size**-0.5
    save_file(Dinov2Model(settings).state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("backbone_compatible.safetensors", "dino_head.safetensors"):
        save_file({"cls_token": torch.zeros(1, 1, config["hidden_size"])}, folder / name)
    return folder


################
# BLIP-2
################

OPT = {
    "_name_or_path": "facebook/opt-2.7b",
    "activation_dropout": 0.0,
    "architectures": ["OPTForCausalLM"],
    "eos_token_id": 50118,  # a line's end, while the tokenizer's is </s>, 2
    "ffn_dim": 10240,
    "hidden_size": 2560,
    "model_type": "opt",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "vocab_size": 50304,
    "word_embed_proj_dim": 2560,
}
BLIP2 = {  # the new revision's; 1.17 kB
    "architectures": ["Blip2ForConditionalGeneration"],
    "image_text_hidden_size": 256,
    "image_token_index": 50265,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "model_type": "blip-2",
    "num_query_tokens": 32,
    "qformer_config": {"classifier_dropout": None, "model_type": "blip_2_qformer"},
    "text_config": OPT,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "use_decoder_only_language_model": True,
    "vision_config": {
        "dropout": 0.0,
        "initializer_factor": 1.0,
        "model_type": "blip_2_vision_model",
        "num_channels": 3,
        "projection_dim": 512,
    },
}
BLIP2_OLD_TEXT = OPT | {  # the old revision wrote every setting, 6.96 kB in all; these are OPT's own
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "enable_bias": True,
    "init_std": 0.02,
    "layer_norm_elementwise_affine": True,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "pad_token_id": 1,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 50272,
    "_remove_final_layer_norm": False,
    "activation_function": "relu",
}
BLIP2_OLD_VISION = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1408,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 1e-10,
    "intermediate_size": 6144,
    "layer_norm_eps": 1e-05,
    "model_type": "blip_2_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 39,
    "patch_size": 14,
    "projection_dim": 512,
    "qkv_bias": True,
}
OPT_SMALL = {
    "ffn_dim": 64,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "word_embed_proj_dim": 32,
}
BLIP2_VISION_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
BLIP2_QFORMER_SMALL = BLIP2_VISION_SMALL | {"encoder_hidden_size": 32}
BLIP2_PREPROCESSOR = {  # 432 bytes
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": CLIP_MEAN,
    "image_processor_type": "BlipImageProcessor",
    "image_std": CLIP_STD,
    "processor_class": "Blip2Processor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
BLIP2_GENERATION = {  # 141 bytes
    "_from_model_config": True,
    "bos_token_id": 2,
    "eos_token_id": 50118,
    "pad_token_id": 1,
    "transformers_version": "4.47.0.dev0",
}
BLIP2_TOKENIZER = {  # 904 bytes: the old revision's
    "add_bos_token": True,
    "add_prefix_space": False,
    "bos_token": {"__type": "AddedToken", **token("</s>", normalized=True)},
    "eos_token": {"__type": "AddedToken", **token("</s>", normalized=True)},
    "errors": "replace",
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": {"__type": "AddedToken", **token("<pad>", normalized=True)},
    "processor_class": "Blip2Processor",
    "special_tokens_map_file": None,
    "tokenizer_class": "GPT2Tokenizer",
    "unk_token": {"__type": "AddedToken", **token("</s>", normalized=True)},
}


def blip2_opt(folder: Path, revision: str = "new", texts: Sequence[str] = SENTENCES, fewer: int = 0) -> Path:
    """Salesforce/blip2-opt-2.7b in float32, safetensors and pickles side by side, as of March 2024 ("old": every
    setting in config.json, 50,272 rows, the tied head written too, no generation_config.json) or December 2024
    ("new": an image token, 50,304 rows).

    The decoder's end is a line's end, 50118, and begin, end and unknown of the tokenizer are all </s>, 2. `fewer`:
    how many rows fewer it has than the published one, for speed; 50118 and the image token's id become as much less.
    """
    if revision not in ("old", "new"):
        raise ValueError(f"revision is old or new, not {revision!r}")
    text = (OPT if revision == "new" else BLIP2_OLD_TEXT) | OPT_SMALL
    text |= {"vocab_size": text["vocab_size"] - fewer, "eos_token_id": 50118 - fewer}
    vision = (BLIP2["vision_config"] if revision == "new" else BLIP2_OLD_VISION) | BLIP2_VISION_SMALL
    config = BLIP2 | {"text_config": text, "vision_config": vision, "image_token_index": 50265 - fewer}
    config["qformer_config"] = BLIP2["qformer_config"] | BLIP2_QFORMER_SMALL
    if revision == "old":
        for key in ("image_token_index", "image_text_hidden_size"):
            del config[key]
        config |= {"tie_word_embeddings": False, "transformers_version": None, "use_decoder_only_language_model": True}
    else:
        write_json(folder / "added_tokens.json", {"<image>": 50265 - fewer})  # 23 bytes
        write_json(folder / "generation_config.json", BLIP2_GENERATION | {"eos_token_id": 50118 - fewer})
        write_json(folder / "processor_config.json", {"num_query_tokens": 32, "processor_class": "Blip2Processor"})
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", BLIP2_PREPROCESSOR)
    _write_opt_tokenizer(folder, texts, revision, fewer)

    set_seed(0)
    settings = Blip2Config(**config)
    settings.text_config.init_std = 0.5 * 32**-0.5
    model = Blip2ForConditionalGeneration(settings)
    weights = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    head = weights.pop("language_model.lm_head.weight")
    for pickled in (False, True):
        tied = revision == "old" or pickled  # the new revision left the old pickles where they were
        rows = 50272 - fewer
        content = weights | ({"language_model.lm_head.weight": head.clone()} if tied else {})
        if pickled:
            names = ("language_model.lm_head.weight", "language_model.model.decoder.embed_tokens.weight")
            content |= {name: content[name][:rows].clone() for name in names}
        write_weights(folder, content, 2, pickled)
    return folder


def _write_opt_tokenizer(folder: Path, texts: Sequence[str], revision: str, fewer: int) -> None:
    line_end = 50118 - fewer
    vocab, merges = byte_level_bpe(texts, min(2000, line_end), ("<s>", "<pad>", "</s>", "<unk>"))
    vocab = with_fillers(vocab, 50265 - fewer)
    ids = {number: name for name, number in vocab.items()}
    vocab |= {"Ċ": line_end, ids[line_end]: vocab["Ċ"]}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    backend.add_special_tokens([AddedToken(name, normalized=True) for name in ("<pad>", "</s>")])
    settings, specials = BLIP2_TOKENIZER, {"bos_token": "</s>", "eos_token": "</s>"}
    specials = {name: token("</s>", normalized=True) for name in ("bos_token", "eos_token")}
    specials |= {"pad_token": token("<pad>", normalized=True), "unk_token": token("</s>", normalized=True)}
    if revision == "new":
        backend.add_special_tokens([AddedToken("<image>", normalized=False)])
        names = {1: "<pad>", 2: "</s>", 50265 - fewer: "<image>"}
        tokens = {str(number): token(name, normalized=number < 3, special=True) for number, name in names.items()}
        strings = {f"{name}_token": "</s>" for name in ("bos", "eos", "unk")} | {"pad_token": "<pad>"}
        settings = settings | {"added_tokens_decoder": tokens, "clean_up_tokenization_spaces": False} | strings
        del settings["special_tokens_map_file"]
    backend.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    write_json(folder / "tokenizer_config.json", dict(sorted(settings.items())))
    write_json(folder / "special_tokens_map.json", dict(sorted(specials.items())))


################
# BiomedCLIP, CheXbert, RadGraph and the BERTs that they name
################

BERT = {  # 570 bytes: google-bert/bert-base-uncased
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
BERT_SPECIALS = ("[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PLAIN_BERT = {
    key: BERT[key] for key in BERT if key not in ("gradient_checkpointing", "transformers_version", "use_cache")
}
GENERAL_TOKENIZER = {  # 228 bytes
    **{"do_lower_case": True, "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]"},
    **{"cls_token": "[CLS]", "mask_token": "[MASK]", "tokenize_chinese_chars": True, "model_max_length": 512},
    "tokenizer_class": "BertTokenizer",
}


def bert_base_uncased(folder: Path, texts: Sequence[str] = SENTENCES) -> Path:
    """google-bert/bert-base-uncased: [CLS] is 101; safetensors and pickle with pooler and both heads, and layer norms
    whose weights are called gamma and beta."""
    write_json(folder / "config.json", BERT | BERT_SMALL)
    write_json(
        folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512}, None, ""
    )  # 48 bytes
    vocab = word_pieces(texts, BERT_SPECIALS, BERT["vocab_size"])
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    backend = BertTokenizer({word: number for number, word in enumerate(vocab)}).backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    set_seed(0)
    model = BertForPreTraining(_bert_settings(BERT | BERT_SMALL))
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {}
    for name, tensor in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        if name != "cls.predictions.decoder.bias":
            weights[name] = tensor.clone()
    write_weights(folder, weights, 1)
    write_weights(folder, weights, 1, pickled=True)
    return folder


def biomedbert(folder: Path, texts: Sequence[str] = SENTENCES) -> Path:
    """microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract, whose tokenizer and configuration BiomedCLIP names: a
    pickle, and vocab.txt alone."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return _pickled_bert(folder, texts, PLAIN_BERT, {"do_lower_case": True}, specials)


def cxr_bert_general(folder: Path, texts: Sequence[str] = SENTENCES) -> Path:
    """microsoft/BiomedVLP-CXR-BERT-general, the encoder of RadGraph-XL: a pickle, and vocab.txt alone."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return _pickled_bert(folder, texts, PLAIN_BERT, GENERAL_TOKENIZER, specials)


def _pickled_bert(folder: Path, texts: Sequence[str], config: dict, tokenizer: dict, specials: tuple) -> Path:
    write_json(folder / "config.json", config | BERT_SMALL, end="")  # 473 bytes
    write_json(folder / "tokenizer_config.json", tokenizer, None, "")
    (folder / "vocab.txt").write_text("\n".join(word_pieces(texts, specials, config["vocab_size"])) + "\n")
    set_seed(0)
    write_weights(folder, bert_weights(BertForMaskedLM(_bert_settings(config | BERT_SMALL))), 1, pickled=True)
    return folder


def _bert_settings(config: dict) -> BertConfig:
    """The configuration with which random weights keep the size of what they are applied to."""
    return BertConfig(**config | {"initializer_range": 0.5 * config["hidden_size"] ** -0.5})


BIOMED_CLIP = {  # 707 bytes
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    },
    "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD},
}
BIOMED_CLIP_TOKENIZER = {  # 394 bytes
    **{"clean_up_tokenization_spaces": True, "cls_token": "[CLS]", "do_basic_tokenize": True, "do_lower_case": True},
    **{"mask_token": "[MASK]", "model_max_length": 1000000000000000019884624838656, "never_split": None},
    **{"pad_token": "[PAD]", "sep_token": "[SEP]", "strip_accents": None, "tokenize_chinese_chars": True},
    **{"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]"},
}
CLIP_SMALL = {"embed_dim": 16}


def biomedclip(folder: Path, texts: Sequence[str] = SENTENCES) -> Path:
    """microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224: open_clip's configuration and names, pickled, without
    config.json. `biomedbert` with the same texts is the BERT that it names."""
    config = {"model_cfg": BIOMED_CLIP["model_cfg"] | CLIP_SMALL, "preprocess_cfg": BIOMED_CLIP["preprocess_cfg"]}
    write_json(folder / "open_clip_config.json", config, end="")
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocab = word_pieces(texts, specials, PLAIN_BERT["vocab_size"])
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    backend = BertTokenizer({word: number for number, word in enumerate(vocab)}).backend_tokenizer
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", BIOMED_CLIP_TOKENIZER)
    names = ("cls", "mask", "pad", "sep", "unk")
    write_json(folder / "special_tokens_map.json", {f"{name}_token": f"[{name.upper()}]" for name in names})  # 125

    set_seed(0)
    bert = BertModel(_bert_settings(PLAIN_BERT | BERT_SMALL), add_pooling_layer=False)
    weights = {"text.transformer.embeddings.position_ids": torch.arange(bert.config.max_position_embeddings)[None]}
    weights |= {f"text.transformer.{name}": tensor for name, tensor in bert.state_dict().items()}
    width, words, joint = 64, BERT_SMALL["hidden_size"], CLIP_SMALL["embed_dim"]  # a head of timm's ViT is 64 wide
    middle = (words + joint) // 2
    shapes = {
        "visual.trunk.cls_token": (1, 1, width),
        "visual.trunk.pos_embed": (1, 1 + (224 // 16) ** 2, width),
        "visual.trunk.patch_embed.proj.weight": (width, 3, 16, 16),
        "visual.trunk.patch_embed.proj.bias": (width,),
        "visual.trunk.norm.weight": (width,),
        "visual.trunk.norm.bias": (width,),
        "visual.head.proj.weight": (joint, width),
        "text.proj.0.weight": (middle, words),
        "text.proj.2.weight": (joint, middle),
    }
    for layer in range(2):
        layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
        for name, shape in layers.items():
            shapes[f"visual.trunk.blocks.{layer}.{name}.weight"] = shape
            shapes[f"visual.trunk.blocks.{layer}.{name}.bias"] = shape[:1]
    for name, shape in shapes.items():
        if "norm" in name:
            weights[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        else:
            weights[name] = 0.5 * shape[-1] ** -0.5 * torch.randn(shape)
    weights["logit_scale"] = torch.tensor(4.6052)  # ln 100
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    return folder


def chexbert_pth(folder: Path) -> Path:
    """chexbert.pth of StanfordAIMI/RRG_scorers, for `bert_base_uncased`: a DataParallel's names, the optimizer beside
    them, pickled as before torch 1.6, without the positions."""
    set_seed(0)
    model = torch.nn.Module()
    model.bert = BertModel(_bert_settings(BERT | BERT_SMALL))
    width = BERT_SMALL["hidden_size"]
    model.linear_heads = torch.nn.ModuleList([torch.nn.Linear(width, 4) for _ in range(13)])
    model.linear_heads.append(torch.nn.Linear(width, 2))
    model = torch.nn.ModuleDict({"module": model})
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-5)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    content = {"epoch": 4, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "chexbert.pth", _use_new_zipfile_serialization=False)
    return folder


CREPE = {
    "_name_or_path": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
    **PLAIN_BERT,
    "architectures": ["BertForCategoryErrorRegression"],
    "num_error_categories": 6,
    "presence_loss_weight": 0.5,
    "use_poisson_loss": False,
    "use_presence_loss": True,
}


def crepe(folder: Path, texts: Sequence[str] = SENTENCES) -> Path:
    """gihuncho/crepe-biomedbert: a BERT's configuration with four settings more, six heads that count errors and six
    that say whether there are any."""
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocab = word_pieces(texts, specials, CREPE["vocab_size"])
    tokenizer = BertTokenizer({word: number for number, word in enumerate(vocab)}, model_max_length=512)
    tokenizer.save_pretrained(folder)
    write_json(folder / "config.json", CREPE | BERT_SMALL)
    set_seed(0)
    model = torch.nn.Module()
    model.bert = BertModel(_bert_settings(PLAIN_BERT | BERT_SMALL))
    for name in ("error_regressors", "error_presence"):
        heads = [torch.nn.Linear(BERT_SMALL["hidden_size"], 1) for _ in range(CREPE["num_error_categories"])]
        setattr(model, name, torch.nn.ModuleList(heads))
    write_weights(folder, model.state_dict(), 1)
    return folder


MODERN_BERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "sep_token_id": 50282,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}


def modernbert_base(folder: Path, texts: Sequence[str] = SENTENCES) -> Path:
    """answerdotai/ModernBERT-base, the encoder of Modern-RadGraph-XL: a byte-level BPE whose special tokens come last,
    without a tokenizer class of its own."""
    write_json(folder / "config.json", MODERN_BERT | BERT_SMALL)
    names = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")  # 50280 to 50284
    vocab, merges = byte_level_bpe(texts, 2000)
    backend = Tokenizer(models.BPE(with_fillers(vocab, 50280), merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False, lstrip=name == "[MASK]") for name in names])
    pair = "[CLS] $A [SEP] $B [SEP]"
    ids = [("[CLS]", 50281), ("[SEP]", 50282)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ids)
    backend.save(str(folder / "tokenizer.json"))
    settings = {f"{name[1:-1].lower()}_token": name for name in names}
    settings |= {"clean_up_tokenization_spaces": True, "model_max_length": 8192}
    settings |= {"model_input_names": ["input_ids", "attention_mask"], "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", {key: settings[key] for key in settings if key.endswith("_token")})
    set_seed(0)
    scale = 0.5 * BERT_SMALL["hidden_size"] ** -0.5
    model = ModernBertForMaskedLM(ModernBertConfig(**MODERN_BERT | BERT_SMALL | {"initializer_range": scale}))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "decoder.weight"}
    write_weights(folder, weights, 1)
    write_weights(folder, weights, 1, pickled=True)
    return folder


RADGRAPH_ENCODERS = {  # the Hub id in an archive's config.json, and its replica
    "radgraph": ("microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext", biomedbert),
    "radgraph-xl": ("microsoft/BiomedVLP-CXR-BERT-general", cxr_bert_general),
    "modern-radgraph-xl": ("answerdotai/ModernBERT-base", modernbert_base),
}


def radgraph_archive(folder: Path, name: str = "radgraph-xl", texts: Sequence[str] = SENTENCES) -> Path:
    """`name`.tar.gz of StanfordAIMI/RRG_scorers, and in `folder`/encoder the encoder that its config.json names.

    Its weights find entities and relations of all labels in `texts`.
    """
    from radgraph_models import draw, pack, pick_biases, write_config

    from modeling import RadGraphConfig, RadGraphModel
    from recipes.convert_radgraph import PARTS
    from rewards.radgraph_parser import RadGraphParser

    hub, encoder = RADGRAPH_ENCODERS[name]
    encoder(folder / "encoder", texts)
    content = folder / "content"
    write_config(content, hub, name, width=4, feature=6, layers=2, hidden=24)
    labels = (content / f"vocabulary/{name}__ner_labels.txt").read_text().splitlines()[1:]
    cleaning = "radgraph" if name == "radgraph" else "radgraph-xl"
    heads = {"max_span_width": 4, "feature_size": 6, "feedforward_sizes": [24, 24], "entity_labels": labels}
    set_seed(0)
    config = AutoConfig.from_pretrained(folder / "encoder")
    model = RadGraphModel(RadGraphConfig(config, cleaning=cleaning, **heads)).eval()
    draw(model.entity_scorer, model.pruner, model.relation_scorer)
    encoder_model = AutoModel.from_pretrained(folder / "encoder")
    model.encoder.load_state_dict(encoder_model.state_dict(), strict=False)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(folder / "encoder").save_pretrained(folder / "model")
    parser = RadGraphParser(folder / "model", device="cpu")
    outputs = [parser.model.entity_scorer.output, parser.model.relation_scorer.output]
    pick_biases(outputs, (0.1, 0.05), lambda: parser(list(texts)))
    weights = {}
    for key, tensor in parser.model.state_dict().items():
        old, new = next(pair for pair in PARTS.items() if key.startswith(pair[1]))
        weights[old.format(name) + key.removeprefix(new)] = tensor
    torch.save(weights, content / "weights.th")
    pack(content, folder / f"{name}.tar.gz")
    shutil.rmtree(content)
    shutil.rmtree(folder / "model")
    return folder


################
# DistilRoBERTa
################

DISTIL_ROBERTA = {  # 480 bytes
    "architectures": ["RobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}


DISTIL_SMALL = BERT_SMALL | {"num_hidden_layers": 6}  # BERTScore reads the fifth


def distilroberta(folder: Path, texts: Sequence[str] = SENTENCES) -> Path:
    """distilbert/distilroberta-base: no special_tokens_map.json and a tokenizer_config.json of one entry; a masked
    language model's weights, which have no pooler. dict.txt and the files of other frameworks are left out."""
    write_json(folder / "config.json", DISTIL_ROBERTA | DISTIL_SMALL)
    write_json(folder / "tokenizer_config.json", {"model_max_length": 512}, None, "")  # 25 bytes
    vocab, merges = byte_level_bpe(texts, 2000, ("<s>", "<pad>", "</s>", "<unk>"))
    vocab = with_fillers(vocab, 50264) | {"<mask>": 50264}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    backend.add_special_tokens([AddedToken(name, normalized=True) for name in ("<s>", "<pad>", "</s>", "<unk>")])
    backend.add_special_tokens([AddedToken("<mask>", normalized=True, lstrip=True)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    set_seed(0)
    scale = 0.5 * BERT_SMALL["hidden_size"] ** -0.5
    model = RobertaForMaskedLM(RobertaConfig(**DISTIL_ROBERTA | DISTIL_SMALL | {"initializer_range": scale}))
    tied = ("lm_head.decoder.weight", "lm_head.decoder.bias")  # shared with others
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    write_weights(folder, weights, 1)
    write_weights(folder, weights, 1, pickled=True)
    return folder


################
# What LLM-RG4's authors published: files on a drive, not on the Hub
################

LLMRG4_ARGUMENTS = {  # of their script of stage 2, those that name shapes
    "stage_class": 2,
    "llm_use_lora": True,
    "llm_r": 32,
    "llm_alpha": 64,
    "lora_dropout": 0.1,
    "visual_token_number": 128,
    "loss_mode": "sentence",
    "sentence_ratio": 0.75,
    "savedmodel_path": "./save/mimic_cxr/train_stage2",
    "weights": [0.5, 0.5],
    "delta_file": None,
}


def llmrg4_pth(folder: Path, stage: int = 2, visual_tokens: int = 128, rank: int = 32, seed: int = 0) -> Path:
    """checkpoint.pth of LLM-RG4 for `rad_dino`, `cxr_bert` and `vicuna`: only what was trained, that is the fusion and
    the decoder's LoRA, by the names of the authors' models/LLM_RG4.py and of PEFT 0.3."""
    width, middle, wide = RAD_DINO_SMALL["hidden_size"], 56, VICUNA_SMALL["hidden_size"]  # for 768, 2048 and 4096
    set_seed(seed)
    weights = {"APPA_visual_query_tokens": 0.02 * torch.randn(1, visual_tokens, width)}
    for branch in ("APPA", "lateral", "text") if stage == 2 else ("APPA",):
        parts = {
            "crossattention_block": torch.nn.MultiheadAttention(width, 12, add_bias_kv=True, add_zero_attn=True),
            "layernorm_768_1": torch.nn.LayerNorm(width),
            "llama_proj_1": torch.nn.Linear(width, width),
            "layernorm_768_2": torch.nn.LayerNorm(width),
            "llama_proj_2": torch.nn.Linear(width, middle),
            "llama_proj_3": torch.nn.Linear(middle, wide),
            "layernorm_4096_1": torch.nn.LayerNorm(wide),
        }
        for part, module in parts.items():
            weights |= {f"{branch}_{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    if stage == 2:
        fusion = {"iit_proj": torch.nn.Linear(3 * wide, wide), "iit_layernorm": torch.nn.LayerNorm(wide)}
        for part, module in fusion.items():
            weights |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
        for layer in range(VICUNA_SMALL["num_hidden_layers"]):
            for name in ("q_proj", "v_proj"):
                stem = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{name}.lora_"
                weights[f"{stem}A.default.weight"] = wide**-0.5 * torch.randn(rank, wide)
                weights[f"{stem}B.default.weight"] = 0.02 * torch.randn(wide, rank)
    for name in weights:  # as after training: no bias is 0 and no norm 1
        weights[name] = weights[name] + 0.02 * torch.randn(weights[name].shape)
    arguments = LLMRG4_ARGUMENTS | {"stage_class": stage, "visual_token_number": visual_tokens, "llm_r": rank}
    return _save_with_arguments(folder, weights, arguments | {"llm_alpha": 2 * rank, "llm_use_lora": stage == 2})


def discbert_pth(folder: Path, seed: int = 0) -> Path:
    """checkpoint.pth of the authors' DiscBERT for `bert_base_uncased`: labeler.bert without pooler and four heads."""
    set_seed(seed)
    labeler = torch.nn.Module()
    labeler.bert = BertModel(_bert_settings(BERT | BERT_SMALL), add_pooling_layer=False)
    for name in ("ps", "pp", "view", "comm"):
        setattr(labeler, f"{name}_heads", torch.nn.Linear(BERT_SMALL["hidden_size"], 2))
    weights = {f"labeler.{name}": tensor for name, tensor in labeler.state_dict().items()}
    arguments = {"BertModel": "./bert-base-uncased", "learning_rate": 2e-5, "savedmodel_path": "save", "test": False}
    return _save_with_arguments(folder, weights, arguments)


def _save_with_arguments(folder: Path, weights: dict[str, torch.Tensor], arguments: dict) -> Path:
    """As the authors' save_checkpoint: their hparams are an object of Lightning 2.0.5, which is not installed here."""
    module = types.ModuleType("lightning.pytorch.utilities.parsing")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    names = [module.__name__.rsplit(".", count)[0] for count in range(3, -1, -1)]
    content = {"model": weights, "config": module.AttributeDict(arguments), "epoch": 1, "step": 14384}
    folder.mkdir(parents=True, exist_ok=True)
    with mock.patch.dict(sys.modules, {name: types.ModuleType(name) for name in names[:-1]} | {names[-1]: module}):
        torch.save(content, folder / "checkpoint.pth")
    return folder


################
# Gemma 3 and MedGemma, Qwen3-VL: the next base models
################

GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
GEMMA3_TEXT_SMALL = {  # six layers: the sixth has no sliding window
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
}
GEMMA3_VISION_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
GEMMA3_PREPROCESSOR = {  # 570 bytes
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 896, "width": 896},
}
GEMMA3_GENERATION = {
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "do_sample": True,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
    "top_k": 64,
    "top_p": 0.95,
    "transformers_version": "4.50.0.dev0",
}
GEMMA3_TEMPLATE = (  # no system turn: its words stand before the first user's; the roles alternate
    "{{ bos_token }}"
    "{% set system = namespace(words='') %}"
    "{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content %}"
    "{% set system.words = (first if first is string else first[0].text) + '\n\n' %}"
    "{% set messages = messages[1:] %}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}"
    "{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ system.words if loop.first else '' }}"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% elif part.type == 'text' %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA3_TOKENS = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 105: "<start_of_turn>"}
GEMMA3_TOKENS |= {106: "<end_of_turn>", 255999: "<start_of_image>", 256000: "<end_of_image>"}
GEMMA3_TOKENS |= {262144: "<image_soft_token>"}


def medgemma(
    folder: Path,
    texts: Sequence[str] = SENTENCES,
    image_size: int = 224,
    vocab_size: int = 262208,
    sliding_window: int = 1024,
) -> Path:
    """google/medgemma-4b-it, as google/gemma-3-4b-it: names of early 2025, `image_token_index`, the turn's end 106
    beside <eos>, left padding, and a template that writes the <bos> which the tokenizer writes again.

    An image is made square, 896 x 896 in the published one, and always 256 tokens: `image_size` / 14 patches a side,
    pooled to 16. `vocab_size` as of `qwen2_5_vl_7b`; ids below 255999 stay. `sliding_window`: tokens that five of six
    layers see.
    """
    fewer = 262208 - vocab_size
    tokens = {number - fewer * (number >= 255999): name for number, name in GEMMA3_TOKENS.items()}
    ids = {name: number for number, name in tokens.items()}
    vision = GEMMA3["vision_config"] | GEMMA3_VISION_SMALL | {"image_size": image_size}
    text = GEMMA3["text_config"] | GEMMA3_TEXT_SMALL | {"sliding_window": sliding_window}
    config = GEMMA3 | {"text_config": text, "vision_config": vision}
    if fewer:
        config["text_config"]["vocab_size"] = vocab_size
        config["boi_token_index"], config["eoi_token_index"] = ids["<start_of_image>"], ids["<end_of_image>"]
        config["image_token_index"] = ids["<image_soft_token>"]
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", GEMMA3_GENERATION)
    sizes = {"size": {"height": image_size, "width": image_size}}
    write_json(folder / "preprocessor_config.json", GEMMA3_PREPROCESSOR | sizes)
    write_json(folder / "processor_config.json", {"image_seq_length": 256, "processor_class": "Gemma3Processor"})  # 70
    write_json(folder / "added_tokens.json", {"<image_soft_token>": ids["<image_soft_token>"]})  # 35 bytes
    write_json(folder / "chat_template.json", {"chat_template": GEMMA3_TEMPLATE})
    _write_gemma_tokenizer(folder, texts, tokens)

    set_seed(0)
    settings = Gemma3Config(**config)
    settings.text_config.initializer_range = settings.vision_config.initializer_range = 0.5 * 32**-0.5
    weights = {}
    model = Gemma3ForConditionalGeneration(settings)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.5 * 32**-0.5)  # not 0
    for name, tensor in model.to(torch.bfloat16).state_dict().items():
        name = name.replace("model.language_model.", "language_model.model.")
        name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
        name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
        if name != "lm_head.weight" and ".head." not in name:
            weights[name] = tensor
    write_weights(folder, weights, 2)
    return folder


def _write_gemma_tokenizer(folder: Path, texts: Sequence[str], tokens: dict[int, str]) -> None:
    """A SentencePiece model, and the same as tokenizer.json, with fillers between the published ids."""
    from sentencepiece import sentencepiece_model_pb2

    write_sentencepiece(folder / "tokenizer.model", texts, 0)
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
    pieces = [piece for piece in model.pieces if piece.type not in (Piece.CONTROL, Piece.UNKNOWN)]
    del model.pieces[:]
    queue = iter(pieces)
    for number in range(max(tokens)):
        name = tokens.get(number)
        kind = {0: Piece.CONTROL, 1: Piece.CONTROL, 2: Piece.CONTROL, 3: Piece.UNKNOWN}.get(number, Piece.USER_DEFINED)
        if name is None and number > 237 and (piece := next(queue, None)) is not None:
            model.pieces.add(piece=piece.piece, score=piece.score, type=piece.type)
        else:
            model.pieces.add(piece=name or f"<unused{number}>", score=0, type=kind if name else Piece.NORMAL)
    for name, number in {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}.items():
        setattr(model.trainer_spec, name, number)
    model.trainer_spec.pad_piece, model.trainer_spec.eos_piece = "<pad>", "<eos>"
    model.trainer_spec.bos_piece = "<bos>"
    model.normalizer_spec.add_dummy_prefix = False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())

    ranks = {piece.piece: rank for rank, piece in enumerate(pieces)}
    merges = []
    for piece in ranks:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in splits if set(pair) <= ranks.keys()]
        merges += [(ranks[piece], max(ranks[half] for half in pair), pair) for pair in pairs]
    vocab = {piece.piece: number for number, piece in enumerate(model.pieces)}
    backend = Tokenizer(
        models.BPE(vocab, [pair for *_, pair in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in tokens.values()])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    backend.save(str(folder / "tokenizer.json"))
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    specials = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", {**names, **{key: token(name) for key, name in specials.items()}})
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(number): token(name, special=True) for number, name in tokens.items()},
        "boi_token": "<start_of_image>",
        "bos_token": "<bos>",
        "chat_template": GEMMA3_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eoi_token": "<end_of_image>",
        "eos_token": "<eos>",
        "extra_special_tokens": names,
        "image_token": "<image_soft_token>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "Gemma3Processor",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    write_json(folder / "tokenizer_config.json", settings)


QWEN3_VL_4B = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
QWEN3_TEXT_SMALL = {
    **{"head_dim": 8, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2},
    "num_key_value_heads": 2,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"},
}
QWEN3_VISION_SMALL = {
    **{"deepstack_visual_indexes": [0], "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
    "out_hidden_size": 32,
}
QWEN3_PREPROCESSOR = {  # 390 bytes; without min_pixels and max_pixels
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
QWEN3_GENERATION = {  # 269 bytes
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "top_p": 0.8,
    "top_k": 20,
    "temperature": 0.7,
    "repetition_penalty": 1.0,
    "transformers_version": "4.56.0",
}
QWEN3_TOKENS = (*QWEN_TOKENS, "<tool_response>", "</tool_response>", "<think>", "</think>")  # to 151668
QWEN3_TEMPLATE = QWEN_TEMPLATE.replace(
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}",
    "",
)


def qwen3_vl(folder: Path, texts: Sequence[str] = SENTENCES, vocab_size: int = 151936) -> Path:
    """Qwen/Qwen3-VL-4B-Instruct: a nested config, the weight names of today, 16-pixel patches, a range called size,
    and <think> as one token. `vocab_size` as of `qwen2_5_vl_7b`."""
    first = 151643 - QWEN3_VL_4B["text_config"]["vocab_size"] + vocab_size
    original = {"vocab_size": QWEN3_VL_4B["text_config"]["vocab_size"]}
    text = QWEN3_VL_4B["text_config"] | QWEN3_TEXT_SMALL | {"vocab_size": vocab_size}
    config = _with_ids(QWEN3_VL_4B, original, vocab_size)
    config["text_config"] = _with_ids(text, original, vocab_size)
    config["vision_config"] = QWEN3_VL_4B["vision_config"] | QWEN3_VISION_SMALL
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _with_ids(QWEN3_GENERATION, original, vocab_size), 4, "")
    write_json(folder / "preprocessor_config.json", QWEN3_PREPROCESSOR, 4, "")
    video = {"size": {"longest_edge": 25165824, "shortest_edge": 4096}}
    video = QWEN3_PREPROCESSOR | video | {"video_processor_type": "Qwen3VLVideoProcessor"}
    del video["image_processor_type"]
    write_json(folder / "video_preprocessor_config.json", video, 4, "")  # 385 bytes
    write_json(folder / "chat_template.json", {"chat_template": QWEN3_TEMPLATE}, 4, "")
    ids = {name: first + position for position, name in enumerate(QWEN3_TOKENS)}
    write_qwen_tokenizer(folder, texts, first, ids, QWEN3_TEMPLATE)
    set_seed(0)
    settings = Qwen3VLConfig(**config)
    settings.text_config.initializer_range = settings.vision_config.initializer_range = 0.5 * 32**-0.5
    weights = Qwen3VLForConditionalGeneration(settings).to(torch.bfloat16).state_dict()
    write_weights(folder, {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}, 2)
    return folder


if __name__ == "__main__":
    for replica, facts in FROM_MEMORY.items():
        print(f"{replica}:", *facts, sep="\n  ")
