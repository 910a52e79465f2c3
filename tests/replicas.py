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
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
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
    _, moved = _qwen_ids(QWEN_7B, vocab_size)
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    scaling = {"mrope_section": config["rope_scaling"]["mrope_section"], "rope_type": "default", "type": "default"}
    config |= {"rope_scaling": scaling, "transformers_version": "4.49.0.dev0"}
    settings |= {"extra_special_tokens": {}, "processor_class": "Qwen2_5_VLProcessor", "split_special_tokens": False}
    names = sorted(QWEN_TOKENS, key=moved.get)
    write_json(folder / "added_tokens.json", {name: moved[name] for name in sorted(names)})  # 605 bytes
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


def _qwen2_5_vl(folder: Path, published: dict, shards: int, texts: Sequence[str], vocab_size: int) -> Path:
    first, ids = _qwen_ids(published, vocab_size)
    vision = QWEN_SMALL["vision_config"]
    config = _with_ids(
        published | QWEN_SMALL | {"vision_config": vision, "vocab_size": vocab_size}, published, vocab_size
    )
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _with_ids(QWEN_GENERATION, published, vocab_size))
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
        if name != "lm_head.weight" or not published["tie_word_embeddings"]:
            weights[name] = tensor
    write_weights(folder, weights, shards)
    return folder


def write_qwen_tokenizer(folder: Path, texts: Sequence[str], first: int, ids: dict[str, int]) -> None:
    """The tokenizer files of Qwen2.5; `ids` are those of the added tokens, the first of which is `first`."""
    vocab, merges = byte_level_bpe(texts, min(2000, first))
    vocab = with_fillers(vocab, first)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab | ids, merges=merges, unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    added = {name: AddedToken(name, normalized=False, special=position < 14) for position, name in enumerate(ids)}
    tokenizer.add_tokens(list(added.values()))
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["vocab"] = vocab
    (folder / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False, indent=2))
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in merges) + "\n")
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(ids[name]): token(name, special=special.special) for name, special in added.items()
        },
        "additional_special_tokens": list(ids)[1:14],
        "bos_token": None,
        "chat_template": QWEN_TEMPLATE,
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


def _qwen_ids(published: dict, vocab_size: int) -> tuple[int, dict[str, int]]:
    """The first added token's id, and all of theirs by name."""
    first = 151643 - published["vocab_size"] + vocab_size
    return first, {name: first + position for position, name in enumerate(QWEN_TOKENS)}


def _with_ids(values: dict, published: dict, vocab_size: int) -> dict:
    """`values` whose token ids are as far from the last row as the published ones."""
    less = published["vocab_size"] - vocab_size

    def moved(value):
        return [one - less for one in value] if isinstance(value, list) else value - less

    return {key: moved(value) if key.endswith("_token_id") else value for key, value in values.items()}


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
    """A SentencePiece BPE as Llama's: <unk> 0, <s> 1, </s> 2, then 256 bytes; fillers fill it up to `vocab_size`."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    buffer = io.BytesIO()
    texts = list(texts)
    letters = len(set("".join(texts)) - {" "}) + 1
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=min(vocab_size, 259 + letters + len(set(" ".join(texts).split()))),
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


if __name__ == "__main__":
    for replica, facts in FROM_MEMORY.items():
        print(f"{replica}:", *facts, sep="\n  ")
