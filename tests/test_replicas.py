"""The replicas have the published form: files, sizes in bytes with the published widths put back, and they load."""

import json
import shutil
from pathlib import Path

import pytest
import replicas
import torch
from PIL import Image
from replicas import SENTENCES
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from recipes.cli import InputError
from recipes.data.processors import load_processor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name, **arguments)`: the folder of a replica, written once."""
    folders = {}

    def make(name: str, **arguments) -> Path:
        key = (name, *arguments.values())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(name)
            getattr(replicas, name)(folders[key], **arguments)
        return folders[key]

    return make


def size_of(file: Path, **published) -> int:
    """The bytes of a JSON file, once the values `published` stand in it in place of the small ones."""
    text = file.read_text()
    values = json.loads(text)
    indent = 2 if "\n  " in text else None
    again = json.dumps(values, indent=indent, ensure_ascii=False) + text[len(text.rstrip("\n")) :]
    assert again == text  # the form is kept, so that only the values make a difference
    return len(
        (json.dumps(values | published, indent=indent, ensure_ascii=False) + text[len(text.rstrip("\n")) :]).encode()
    )


def widths(published: dict, small: dict) -> dict:
    return {key: published[key] for key in small}


VICUNA_WIDTHS = widths(replicas.VICUNA, replicas.VICUNA_SMALL)
SIZES = [  # replica, arguments, file, bytes of the published file, what is put back
    ("vicuna", {}, "config.json", 615, VICUNA_WIDTHS),
    ("vicuna", {}, "generation_config.json", 162, {}),
    ("vicuna", {}, "tokenizer_config.json", 749, {}),
    ("vicuna", {}, "special_tokens_map.json", 438, {}),
    ("qwen2_5_vl_7b", {}, "preprocessor_config.json", 350, {}),
    ("qwen2_5_vl_7b", {}, "generation_config.json", 214, {}),
    ("qwen2_5_vl_3b", {}, "preprocessor_config.json", 350, {}),
    ("huatuo", {"form": "B"}, "preprocessor_config.json", 578, {}),
    ("huatuo", {"form": "B"}, "generation_config.json", 249, {}),
    ("huatuo", {"form": "B"}, "special_tokens_map.json", 613, {}),
    ("huatuo", {"form": "B"}, "added_tokens.json", 605, {}),
    ("huatuo", {"form": "C"}, "generation_config.json", 214, {}),
]


@pytest.mark.parametrize(
    "name, arguments, file, size, published", SIZES, ids=[f"{row[0]}-{row[2]}-{row[3]}" for row in SIZES]
)
def test_json_files_have_the_published_size(made, name, arguments, file, size, published):
    assert size_of(made(name, **arguments) / file, **published) == size


QWEN_FILES = {
    *("chat_template.json", "config.json", "generation_config.json", "merges.txt", "model.safetensors.index.json"),
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
}
FILES = [  # replica, arguments, its files but for shards, number and suffix of the shards
    ("qwen2_5_vl_7b", {}, QWEN_FILES, 5, "safetensors"),
    ("qwen2_5_vl_3b", {}, QWEN_FILES, 2, "safetensors"),
    ("huatuo", {"form": "A"}, QWEN_FILES, 5, "safetensors"),
    ("huatuo", {"form": "B"}, QWEN_FILES | {"added_tokens.json", "special_tokens_map.json"}, 4, "safetensors"),
    (
        "huatuo",
        {"form": "C"},
        (QWEN_FILES - {"chat_template.json"})
        | {"added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "video_preprocessor_config.json"},
        4,
        "safetensors",
    ),
    (
        "vicuna",
        {},
        {
            *("config.json", "generation_config.json", "pytorch_model.bin.index.json", "special_tokens_map.json"),
            *("tokenizer.model", "tokenizer_config.json"),
        },
        2,
        "bin",
    ),
]


@pytest.mark.parametrize("name, arguments, files, shards, suffix", FILES, ids=[f"{row[0]}{row[1]}" for row in FILES])
def test_files_are_the_published_ones(made, name, arguments, files, shards, suffix):
    stem = "pytorch_model" if suffix == "bin" else "model"
    names = {f"{stem}-{number:05}-of-{shards:05}.{suffix}" for number in range(1, shards + 1)} if shards else set()
    assert {file.name for file in made(name, **arguments).iterdir()} == files | names


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights in the shards of `folder`."""
    weights = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as content:
            weights |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    for file in sorted(folder.glob("pytorch_model*.bin")):
        weights |= torch.load(file, weights_only=True)
    return weights


################
# Qwen2.5-VL and HuatuoGPT-Vision
################


@pytest.mark.parametrize("name, tied, rows", [("qwen2_5_vl_7b", False, 152064), ("qwen2_5_vl_3b", True, 151936)])
def test_qwen_has_the_names_and_ids_of_its_time(made, name, tied, rows):
    folder = made(name)
    weights = tensors(folder)
    assert ("lm_head.weight" in weights) != tied
    assert {weight.split(".")[0] for weight in weights} - {"lm_head"} == {"model", "visual"}
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "visual.merger.mlp.0.weight"} <= set(
        weights
    )
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert weights["model.embed_tokens.weight"].shape[0] == rows
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights.keys()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<|image_pad|>": 151655, "<|file_sep|>": 151664}
    assert tokenizer.convert_tokens_to_ids(list(ids)) == list(ids.values())
    assert len(tokenizer) == 151665
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (None, "<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize(
    "form, type_in_file", [("A", "Qwen2VL"), ("B", "Qwen2_5_VL"), ("C", "Qwen2VL"), ("D", "Qwen2VL")]
)
def test_huatuo_loads_in_every_form(made, form, type_in_file, capsys):
    folder = made("huatuo", form=form)
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"].startswith(
        type_in_file
    )
    processor = load_processor(str(folder), min_pixels=4 * 28**2, max_pixels=16 * 28**2)
    assert (type(processor.image_processor).__name__, processor.tokenizer.padding_side) == (
        "Qwen2VLImageProcessor",
        "left",
    )
    sentence = "its image_processor_type Qwen2_5_VLImageProcessor is read as Qwen2VLImageProcessor"
    assert (sentence in capsys.readouterr().out) == (form == "B")

    model, loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    assert model.config.text_config.rope_parameters["mrope_section"] == [1, 1, 2]
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the lungs."}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    )
    images = [Image.new("L", size, 90).convert("RGB") for size in ((512, 426), (90, 180))]
    inputs = processor(images=[[image] for image in images], text=[text, text], padding=True, return_tensors="pt")
    tokens = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert tokens == [12, 10]  # within 16 x 28 x 28 pixels: 426 x 512 becomes 84 x 112, 180 x 90 becomes 140 x 56
    with torch.no_grad():
        assert model(**inputs).logits.shape[-1] == 152064


def test_fewer_rows_move_the_special_tokens(made):
    folder = made("huatuo", form="B", vocab_size=2000)
    config = json.loads((folder / "config.json").read_text())
    assert (config["vocab_size"], config["image_token_id"], config["eos_token_id"]) == (2000, 1591, 1581)  # - 150064
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|im_end|>"]) == [1591, 1581]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1581, 1579]
    assert tokenizer.decode(tokenizer(SENTENCES[0])["input_ids"]) == SENTENCES[0]


@pytest.mark.parametrize(
    "spelling, is_read",
    [
        ("Qwen2_5_VLImageProcessorFast", True),  # the fast class of the same days
        ("Qwen2_5VLImageProcessor", True),  # the same model
        ("Qwen2VLImageProcessorFast", True),  # transformers' own
        ("LungImageProcessor", False),  # another preprocessing may be behind it
    ],
)
def test_image_processor_called_after_its_model(made, tmp_path, spelling, is_read):
    folder = shutil.copytree(made("huatuo", form="B", vocab_size=2000), tmp_path / "model")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_processor_type": spelling}))
    if not is_read:
        with pytest.raises(
            InputError, match=r"the processor of .*model cannot be loaded: Unrecognized image processor"
        ):
            load_processor(str(folder))
        return
    load_processor(str(folder)).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/processor_config.json").read_text())["image_processor"]
    assert saved["image_processor_type"] == "Qwen2VLImageProcessor"  # which every version reads


################
# Vicuna
################


def test_vicuna_has_pickles_with_rotary_tables(made):
    weights = tensors(made("vicuna"))
    tables = [name for name in weights if name.endswith("self_attn.rotary_emb.inv_freq")]
    assert len(tables) == 2 and all(weights[name].dtype == torch.float32 for name in tables)
    assert {tensor.dtype for name, tensor in weights.items() if name not in tables} == {torch.float16}
    model, loaded = AutoModelForCausalLM.from_pretrained(made("vicuna"), output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, weights[tables[0]])
    assert (model.generation_config.temperature, model.generation_config.do_sample) == (0.9, None)


def test_index_of_vicuna_has_the_published_size():
    """32 layers of 9 weights and one table each: 26,788 bytes, and 23,950 without the tables."""
    index = {
        "metadata": {"total_size": 13476839424},
        "weight_map": dict.fromkeys(sorted(tensors_of_layers(32)), "x" * 32),
    }
    assert len((json.dumps(index, indent=2) + "\n").encode()) == 26788


def tensors_of_layers(count: int):
    yield from ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight")
    for layer in range(count):
        yield f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight"
        for part, letters in (("mlp", ("down", "gate", "up")), ("self_attn", "kqvo")):
            yield from (f"model.layers.{layer}.{part}.{letter}_proj.weight" for letter in letters)


@pytest.mark.parametrize("text", [*SENTENCES, "No effusion, 12 cm.\nü€漢", "<s> unknown ☃ </s>"])
def test_vicuna_tokenizer_is_its_sentencepiece(made, text):
    import sentencepiece

    folder = made("vicuna")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    if "<s>" not in text:  # which SentencePiece takes for letters
        assert tokenizer(text)["input_ids"] == [1, *reference.encode(text)]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() in (text, "unknown ☃")
    assert (tokenizer.pad_token_id, tokenizer.padding_side, len(tokenizer)) == (0, "right", 32000)
    assert tokenizer.chat_template is None
