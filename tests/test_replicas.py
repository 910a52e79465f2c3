"""The replicas have the published form: files, sizes in bytes with the published widths put back, and they load."""

import io
import json
import math
import pickle
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import replicas
import torch
from PIL import Image
from replicas import SENTENCES
from safetensors import safe_open
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from modeling import LLMRG4ForConditionalGeneration, LMRRGForConditionalGeneration
from modeling.modeling_discbert import DiscBertModel
from recipes import (
    convert_biomedclip,
    convert_chexbert,
    convert_discbert,
    convert_llmrg4,
    convert_radgraph,
    generate,
    grpo_mrgr1,
)
from recipes.build_phantom import BuildArguments, build_row
from recipes.data.model_files import check_model
from recipes.data.pickles import read_published
from recipes.data.processors import load_processor
from recipes.data.schema import write_dataset
from recipes.files import InputError
from rewards.bertscore import BERTScore
from rewards.chexbert import CheXbertLabeler
from rewards.discbert import DiscBertJudge
from rewards.radgraph_parser import RadGraphParser


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    """`replica(name, **arguments)`: the folder of a replica, written once."""
    folders = {}

    def make(name: str, /, **arguments) -> Path:
        key = (name, *arguments.values())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(name)
            getattr(replicas, name)(folders[key], **arguments)
        return folders[key]

    return make


def size_of(file: Path, **widths) -> int:
    """The bytes of a JSON file, once the values `widths` stand in it in place of the small ones."""
    text = file.read_text()
    values = json.loads(text)
    indent = (4 if text[2:6] == "    " else 2) if "\n  " in text else None
    again = json.dumps(values, indent=indent, ensure_ascii=False) + text[len(text.rstrip("\n")) :]
    assert again == text  # the form is kept, so that only the values make a difference
    return len(
        (json.dumps(values | widths, indent=indent, ensure_ascii=False) + text[len(text.rstrip("\n")) :]).encode()
    )


def widths(original: dict, small: dict) -> dict:
    return {key: original[key] for key in small}


VICUNA_WIDTHS = widths(replicas.VICUNA, replicas.VICUNA_SMALL)
CXR_BERT_WIDTHS = widths(replicas.CXR_BERT, replicas.BERT_SMALL) | {"projection_size": 128}
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
    ("cxr_bert", {}, "config.json", 843, CXR_BERT_WIDTHS),
    ("cxr_bert", {}, "tokenizer_config.json", 659, {}),
    ("cxr_bert", {}, "special_tokens_map.json", 112, {}),
    ("rad_dino", {}, "config.json", 879, widths(replicas.RAD_DINO, replicas.RAD_DINO_SMALL)),
    ("rad_dino", {}, "preprocessor_config.json", 756, {}),
    ("blip2_opt", {"revision": "old"}, "tokenizer_config.json", 904, {}),
    ("blip2_opt", {"revision": "old"}, "preprocessor_config.json", 432, {}),
    ("blip2_opt", {"revision": "new"}, "preprocessor_config.json", 432, {}),
    ("blip2_opt", {"revision": "new"}, "generation_config.json", 141, {}),
    ("blip2_opt", {"revision": "new"}, "processor_config.json", 68, {}),
    ("blip2_opt", {"revision": "new"}, "added_tokens.json", 23, {}),
    ("biomedclip", {}, "open_clip_config.json", 707, {"model_cfg": replicas.BIOMED_CLIP["model_cfg"]}),
    ("biomedclip", {}, "tokenizer_config.json", 394, {}),
    ("biomedclip", {}, "special_tokens_map.json", 125, {}),
    ("bert_base_uncased", {}, "config.json", 570, widths(replicas.BERT, replicas.BERT_SMALL)),
    ("bert_base_uncased", {}, "tokenizer_config.json", 48, {}),
    ("cxr_bert_general", {}, "config.json", 473, widths(replicas.BERT, replicas.BERT_SMALL)),
    ("cxr_bert_general", {}, "tokenizer_config.json", 228, {}),
    ("distilroberta", {}, "config.json", 480, widths(replicas.DISTIL_ROBERTA, replicas.BERT_SMALL)),
    ("distilroberta", {}, "tokenizer_config.json", 25, {}),
    ("medgemma", {}, "preprocessor_config.json", 570, {"size": {"height": 896, "width": 896}}),
    ("medgemma", {}, "processor_config.json", 70, {}),
    ("medgemma", {}, "added_tokens.json", 35, {}),
    ("qwen3_vl", {}, "preprocessor_config.json", 390, {}),
    ("qwen3_vl", {}, "video_preprocessor_config.json", 385, {}),
    ("qwen3_vl", {}, "generation_config.json", 269, {}),
]


@pytest.mark.parametrize(
    "name, arguments, file, size, original", SIZES, ids=[f"{row[0]}-{row[2]}-{row[3]}" for row in SIZES]
)
def test_json_files_have_the_published_size(replica, name, arguments, file, size, original):
    assert size_of(replica(name, **arguments) / file, **original) == size


QWEN_FILES = {
    *("chat_template.json", "config.json", "generation_config.json", "merges.txt", "model.safetensors.index.json"),
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
}
BLIP2_FILES = {
    *("config.json", "merges.txt", "model.safetensors.index.json", "preprocessor_config.json"),
    *("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
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
    (
        "cxr_bert",
        {},
        {
            *("config.json", "configuration_cxrbert.py", "modeling_cxrbert.py", "pytorch_model.bin"),
            *("special_tokens_map.json", "tokenizer_config.json", "vocab.txt"),
        },
        0,
        "bin",
    ),
    (
        "rad_dino",
        {},
        {
            *("backbone_compatible.safetensors", "config.json", "dino_head.safetensors", "model.safetensors"),
            "preprocessor_config.json",
        },
        0,
        "safetensors",
    ),
    ("blip2_opt", {"revision": "old"}, BLIP2_FILES, 2, "safetensors"),
    (
        "blip2_opt",
        {"revision": "new"},
        BLIP2_FILES | {"added_tokens.json", "generation_config.json", "processor_config.json"},
        2,
        "safetensors",
    ),
    (
        "biomedclip",
        {},
        {
            *("open_clip_config.json", "open_clip_pytorch_model.bin", "special_tokens_map.json", "tokenizer.json"),
            *("tokenizer_config.json", "vocab.txt"),
        },
        0,
        "bin",
    ),
    ("cxr_bert_general", {}, {"config.json", "pytorch_model.bin", "tokenizer_config.json", "vocab.txt"}, 0, "bin"),
    (
        "distilroberta",
        {},
        {
            *("config.json", "merges.txt", "model.safetensors", "pytorch_model.bin", "tokenizer.json"),
            *("tokenizer_config.json", "vocab.json"),
        },
        0,
        "bin",
    ),
    (
        "medgemma",
        {},
        {
            *("added_tokens.json", "chat_template.json", "config.json", "generation_config.json"),
            *("model.safetensors.index.json", "preprocessor_config.json", "processor_config.json"),
            *("special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
        },
        2,
        "safetensors",
    ),
    ("qwen3_vl", {}, QWEN_FILES | {"video_preprocessor_config.json"}, 2, "safetensors"),
]


@pytest.mark.parametrize("name, arguments, files, shards, suffix", FILES, ids=[f"{row[0]}{row[1]}" for row in FILES])
def test_files_are_the_published_ones(replica, name, arguments, files, shards, suffix):
    stem = "pytorch_model" if suffix == "bin" else "model"
    names = {f"{stem}-{number:05}-of-{shards:05}.{suffix}" for number in range(1, shards + 1)} if shards else set()
    assert {file.name for file in replica(name, **arguments).iterdir()} == files | names


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
def test_qwen_has_the_names_and_ids_of_its_time(replica, name, tied, rows):
    folder = replica(name)
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
def test_huatuo_loads_in_every_form(replica, form, type_in_file, capsys, monkeypatch):
    monkeypatch.setattr(IMAGE_PROCESSOR_MAPPING, "_extra_content", {})  # what other tests have let it learn
    folder = replica("huatuo", form=form)
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

    model, notes = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
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


def test_fewer_rows_move_the_special_tokens(replica):
    folder = replica("huatuo", form="B", vocab_size=2000)
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
def test_image_processor_called_after_its_model(replica, tmp_path, spelling, is_read):
    folder = shutil.copytree(replica("huatuo", form="B", vocab_size=2000), tmp_path / "model")
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


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    """Four phantom studies with X-rays of other shapes, as detectors give them."""
    folder = tmp_path_factory.mktemp("data") / "uneven"
    shapes = [(512, 426), (256, 312), (320, 320), (200, 390)]

    def rows(split: str):
        for number, shape in enumerate(shapes):
            row = build_row(split, number, "sn", BuildArguments(size=256))
            buffer = io.BytesIO()
            Image.open(io.BytesIO(row["images"][0]["bytes"])).resize(shape).save(buffer, "PNG")
            yield row | {"images": [{"bytes": buffer.getvalue(), "path": None}]}

    splits = {split: lambda split=split: rows(split) for split in ("train", "validation", "test")}
    write_dataset(splits, folder, {"builder": "build_phantom", "labeler": "lexical"})
    return folder


@pytest.mark.parametrize("form", ["A", "B", "C", "D"])
def test_grpo_and_generation_on_every_form(replica, uneven, call, tmp_path, form):
    """One step of the paper's YAML and its checkpoint, then a report for each image, in every form a base may have."""
    out, base = tmp_path / "out", replica("huatuo", form=form, vocab_size=2000)
    settings = {
        "model_name_or_path": base,
        "dataset": uneven,
        "attn_implementation": "sdpa",  # from here on: no GPU, no weights, a minute
        "optim": "adamw_torch",
        "use_cpu": "true",
        "labeler": "lexical",
        "effective_batch_size": 4,
        "max_completion_length": 8,
        "max_steps": 1,
        "gradient_checkpointing": "false",
        "output_dir": out,
    }
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    call(grpo_mrgr1.main, "--config", "recipes/configs/mrgr1/iu.yaml", *words)
    log = json.loads((out / "trainer_state.json").read_text())["log_history"][0]
    assert math.isfinite(log["loss"]) and log["completions/mean_length"] > 0

    file = tmp_path / "reports.jsonl"
    options = ("--dataset", uneven, "--split", "test", "--max_new_tokens", 4, "--batch_size", 4, "--out", file)
    pixels = ("--min_pixels", 16 * 28 * 28, "--max_pixels", 64 * 28 * 28)
    call(generate.main, "--model", out, *options, *pixels)
    assert len(file.read_text().splitlines()) == 4


################
# Vicuna
################


def test_vicuna_has_pickles_with_rotary_tables(replica):
    weights = tensors(replica("vicuna"))
    tables = [name for name in weights if name.endswith("self_attn.rotary_emb.inv_freq")]
    assert len(tables) == 2 and all(weights[name].dtype == torch.float32 for name in tables)
    assert {tensor.dtype for name, tensor in weights.items() if name not in tables} == {torch.float16}
    model, notes = AutoModelForCausalLM.from_pretrained(replica("vicuna"), output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
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
def test_vicuna_tokenizer_is_its_sentencepiece(replica, text):
    import sentencepiece

    folder = replica("vicuna")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    if "<s>" not in text:  # which SentencePiece takes for letters
        assert tokenizer(text)["input_ids"] == [1, *reference.encode(text)]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() in (text, "unknown ☃")
    assert (tokenizer.pad_token_id, tokenizer.padding_side, len(tokenizer)) == (0, "right", 32000)
    assert tokenizer.chat_template is None


################
# LLM-RG4's and LM-RRG's other parts
################


def test_cxr_bert_reads_priors_without_its_code(replica):
    weights = tensors(replica("cxr_bert"))
    assert weights["bert.embeddings.position_ids"].dtype == torch.int64
    assert any(name.startswith("cls_projection_head.") for name in weights)
    assert not any("pooler" in name for name in weights)
    model, processor = LLMRG4ForConditionalGeneration.from_pretrained_parts(
        str(replica("rad_dino", image_size=56)),
        str(replica("cxr_bert")),
        str(replica("vicuna")),
        num_visual_tokens=8,
    )
    for name, tensor in model.model.prior_encoder.state_dict().items():
        assert torch.equal(tensor, weights[f"bert.{name}"])
    tokenizer = processor.prior_tokenizer
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4]
    assert tokenizer.convert_ids_to_tokens(tokenizer("The heart.")["input_ids"]) == [
        "[CLS]",
        "the",
        "heart",
        ".",
        "[SEP]",
    ]
    assert (processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id) == (0, 2)


@pytest.mark.parametrize("image_size, patches", [(518, 37), (56, 4)])
def test_rad_dino_resizes_the_shortest_edge(replica, image_size, patches):
    folder = replica("rad_dino", image_size=image_size)
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    pixels = Image.new("L", (624, 512), 0)
    pixels.paste(255, (0, 0, 50, 512))  # the margin that the centre crop leaves out: (624 - 512) / 2 = 56 pixels
    inputs = processor(pixels.convert("RGB"), return_tensors="pt")["pixel_values"]
    assert inputs.shape == (1, 3, image_size, image_size)
    black = -0.5307 / 0.2583
    torch.testing.assert_close(inputs, torch.full_like(inputs, black), atol=1e-4, rtol=0)
    with torch.no_grad():
        assert model(inputs).last_hidden_state.shape == (1, patches**2 + 1, 48)


@pytest.mark.parametrize("revision, rows, tokens", [("old", 50272, 50265), ("new", 50304, 50266)])
def test_blip2_has_two_ends(replica, revision, rows, tokens):
    folder = replica("blip2_opt", revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (
        2,
        2,
        2,
        1,
    )
    assert len(tokenizer) == tokens
    assert tokenizer("\n", add_special_tokens=False)["input_ids"] == [50118]
    assert tokenizer.decode(tokenizer(SENTENCES[1])["input_ids"], skip_special_tokens=True) == SENTENCES[1]
    model, notes = Blip2ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32  # although text_config says float16
    assert model.generation_config.eos_token_id == 50118
    assert model.language_model.get_input_embeddings().num_embeddings == rows
    weights = {name for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()}  # noqa: SIM118
    assert ("language_model.lm_head.weight" in weights) == (revision == "old")
    assert {name.split(".")[0] for name in weights} == {
        *("language_model", "language_projection", "qformer", "query_tokens", "vision_model"),
    }


@pytest.fixture(scope="module")
def conversion(replica, tmp_path_factory):
    """`conversion(script, **arguments)`: the folder that a converter writes."""
    folders = {}

    def convert(script, **arguments) -> Path:
        key = (script.__name__, *arguments.values())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("converted") / "model"
            values = {**arguments, "out": folders[key]}.items()
            words = [str(word) for name, value in values for word in (f"--{name}", value)]
            with mock.patch.object(sys, "argv", ["script", *words]):
                script.main()
        return folders[key]

    return convert


@pytest.mark.parametrize("revision", ["old", "new"])
def test_lmrrg_is_assembled(replica, conversion, tmp_path, revision):
    clip = conversion(convert_biomedclip, checkpoint=replica("biomedclip"), text=replica("biomedbert"))
    decoder = replica("blip2_opt", revision=revision)
    model, processor = LMRRGForConditionalGeneration.from_pretrained_parts(str(clip), str(decoder))
    original = torch.load(replica("biomedclip") / "open_clip_pytorch_model.bin", weights_only=True)
    assert original["text.transformer.embeddings.position_ids"].dtype == torch.int64
    vision = model.model.visual_extractor.vision_model
    assert torch.equal(vision.embeddings.cls_token, original["visual.trunk.cls_token"])
    assert processor.image_processor.size == {"shortest_edge": 224}
    assert model.get_output_embeddings().weight.shape[0] >= len(processor.tokenizer)


def test_chexbert_is_converted(replica, conversion):
    file = replica("chexbert_pth") / "chexbert.pth"
    assert file.read_bytes()[:2] != b"PK"  # the pickle of before torch 1.6 is no zip file
    folder = conversion(convert_chexbert, checkpoint=file, tokenizer=replica("bert_base_uncased"))
    labeler = CheXbertLabeler(folder, device="cpu")
    assert labeler(list(SENTENCES)).shape == (len(SENTENCES), 14)
    original = torch.load(file, weights_only=True)
    assert original.keys() == {"epoch", "model_state_dict", "optimizer_state_dict"}
    weights = original["model_state_dict"]
    assert weights["module.linear_heads.13.weight"].shape == (2, 48)
    assert torch.equal(labeler.model.state_dict()["linear_heads.5.bias"], weights["module.linear_heads.5.bias"])


def test_discbert_starts_from_bert_base(replica):
    folder = replica("bert_base_uncased")
    model = DiscBertModel.from_pretrained(folder)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    name = "encoder.layer.1.output.LayerNorm"
    torch.testing.assert_close(model.bert.state_dict()[f"{name}.weight"], weights[f"bert.{name}.gamma"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("no")["input_ids"][0] == 101 and tokenizer.model_max_length == 512


@pytest.mark.parametrize("name", replicas.RADGRAPH_ENCODERS)
def test_radgraph_archives_are_converted(replica, conversion, name):
    folder = replica("radgraph_archive", name=name)
    out = conversion(convert_radgraph, archive=folder / f"{name}.tar.gz", encoder=folder / "encoder")
    graphs = RadGraphParser(out, device="cpu")(list(SENTENCES))
    labels = {entity["label"] for graph in graphs for entity in graph["entities"].values()}
    assert len(labels) >= 3
    assert json.loads((out / "config.json").read_text())["cleaning"] == name.removeprefix("modern-")


def test_distilroberta_scores(replica):
    score = BERTScore(replica("distilroberta"), baseline=None)  # of the fifth of its six layers
    same, different = (score([SENTENCES[0]], [text])[0] for text in SENTENCES[:2])
    assert same > different


@pytest.mark.parametrize("name", ["llmrg4_pth", "discbert_pth"])
def test_the_authors_files_hold_an_object_of_lightning(replica, name):
    file = replica(name) / "checkpoint.pth"
    with pytest.raises(pickle.UnpicklingError, match=r"lightning\.pytorch\.utilities\.parsing\.AttributeDict"):
        torch.load(file, weights_only=True)
    weights, settings = read_published(file)
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    if name == "discbert_pth":
        assert shapes["labeler.comm_heads.weight"] == (2, 48)
        return
    assert shapes["text_crossattention_block.bias_k"] == (1, 1, 48)
    assert shapes["iit_proj.weight"] == (64, 3 * 64)
    assert shapes["llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"] == (64, 32)
    assert settings["llm_r"] == 32


def test_llmrg4_of_the_authors_is_converted(replica, conversion):
    """RAD-DINO, CXR-BERT and Vicuna in their own forms, and the file that goes on them."""
    file = replica("llmrg4_pth", visual_tokens=8) / "checkpoint.pth"
    parts = {"vision": replica("rad_dino", image_size=56), "text": replica("cxr_bert"), "decoder": replica("vicuna")}
    model = AutoModelForImageTextToText.from_pretrained(
        conversion(convert_llmrg4, checkpoint=file, dtype="float32", **parts)
    )
    weights, settings = read_published(file)
    assert torch.equal(model.model.token_fusion.fusion[0].weight, weights["iit_proj.weight"])
    name = "model.layers.1.self_attn.v_proj"
    a, b = (weights[f"llama_model.base_model.model.{name}.lora_{part}.default.weight"] for part in "AB")
    change = settings["llm_alpha"] / settings["llm_r"] * b @ a
    assert change.abs().max() > 0.1
    before = tensors(parts["decoder"])[f"{name}.weight"].float()
    torch.testing.assert_close(model.model.language_model.get_parameter(f"{name[6:]}.weight"), before + change)


def test_discbert_of_the_authors_is_converted(replica, conversion):
    file = replica("discbert_pth") / "checkpoint.pth"
    folder = conversion(convert_discbert, checkpoint=file, tokenizer=replica("bert_base_uncased"))
    assert DiscBertJudge(folder, device="cpu")(list(SENTENCES)).shape == (len(SENTENCES), 4)
    heads = DiscBertModel.from_pretrained(folder).heads
    weights, _ = read_published(file)
    assert torch.equal(heads[2].weight, weights["labeler.view_heads.weight"])


################
# The next base models
################


@pytest.mark.parametrize(
    "name, ids, image_tokens",
    [
        ("medgemma", {"<eos>": 1, "<bos>": 2, "<end_of_turn>": 106, "<image_soft_token>": 262144}, [256, 256]),
        ("qwen3_vl", {"<|im_end|>": 151645, "<|image_pad|>": 151655, "</think>": 151668}, [208, 70]),
    ],  # 426 x 512 is 13 x 16 patches of 32 pixels; 200 x 300 is enlarged to 65,536 pixels: 7 x 10 patches
)
def test_the_next_models_load(replica, name, ids, image_tokens):
    folder = replica(name)
    processor = load_processor(str(folder))
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(list(ids)) == list(ids.values())
    assert tokenizer.decode(tokenizer(SENTENCES[2])["input_ids"], skip_special_tokens=True) == SENTENCES[2]
    model, notes = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the lungs."}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    images = [[Image.new("L", size, 90).convert("RGB")] for size in ((512, 426), (200, 300))]
    inputs = processor(images=images, text=[text, text], padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == image_tokens
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_medgemma_tokenizer_is_its_sentencepiece(replica):
    import sentencepiece

    folder = replica("medgemma")
    reference = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in (*SENTENCES, "<start_of_turn>user", "12 cm"):
        assert tokenizer(text)["input_ids"] == [2, *reference.encode(text)]


@pytest.mark.parametrize("name, has_flash", [("medgemma", False), ("qwen3_vl", True), ("qwen2_5_vl_3b", True)])
def test_flash_attention_is_refused_before_loading(replica, name, has_flash):
    check_model(str(replica(name)), attention="sdpa")
    if has_flash:
        return check_model(str(replica(name)), attention="flash_attention_2")
    with pytest.raises(InputError, match=r"medgemma.* is a gemma3 model, .*: set attn_implementation: sdpa"):
        check_model(str(replica(name)), attention="flash_attention_2")
