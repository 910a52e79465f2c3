"""Model folders as they come: whatever is wrong with one is told in a sentence before a run's first step."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import replicas
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel

from modeling.tiny import build_chexbert
from modeling.tiny_llmrg4 import build_llmrg4
from modeling.tiny_lmrrg import build_lmrrg
from recipes import generate, grpo_mrgr1, ppo_lmrrg, sft_llmrg4, sft_lmrrg, sft_mrgr1, train_chexbert, train_discbert
from recipes.build_phantom import BuildArguments, build_row
from recipes.data.model_files import find_unreadable
from recipes.data.schema import write_dataset
from recipes.files import InputError
from recipes.viewer.systems import load_system

TEXTS = ["The heart is normal in size. No effusion.", "Left pleural effusion.", "Describe the findings."] * 3
CONFIGS = Path(grpo_mrgr1.__file__).parent / "configs"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Studies that every recipe takes: as many as a generation batch of LM-RRG's PPO has prompts."""
    rows = [build_row("train", number, "sn", BuildArguments(size=64)) for number in range(32)]
    rows = [row | {"key_spans": [[0, 5]]} for row in rows]
    folder = tmp_path_factory.mktemp("data") / "sn"
    write_dataset({"train": lambda: iter(rows), "test": lambda: iter(rows)}, folder, {"labeler": "lexical"})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny) -> dict[str, Path]:
    """A folder of each kind of model, whole."""
    folder = tmp_path_factory.mktemp("whole")
    llmrg4 = build_llmrg4(TEXTS, vocab_size=400, num_visual_tokens=2, fusion="interleaved", text_layers=1)
    lmrrg = build_lmrrg(
        TEXTS, vocab_size=400, text_layers=1, vision_layers=1, num_region_layers=1, num_vtrans_layers=1
    )
    bert = build_chexbert(TEXTS, vocab_size=200, hidden_size=12, layers=1, heads=2)
    for name, parts in (("llmrg4", llmrg4), ("lmrrg", lmrrg), ("bert", bert)):
        for part in parts:
            part.save_pretrained(folder / name)
    return {"qwen": tiny} | {name: folder / name for name in ("llmrg4", "lmrrg", "bert")}


################
# Damages
################


class Attack:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("touch attacked",)


def pickled(folder: Path, content=None) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    torch.save(content or weights, folder / "pytorch_model.bin")


def pickled_code(folder: Path) -> None:
    pickled(folder, {"weight": Attack()})


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 8)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_a_shard(folder: Path) -> None:
    file = folder / "model.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(file), "model-00001-of-00002.safetensors")}
    index["weight_map"]["last"] = "model-00002-of-00002.safetensors"
    file.rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without_processor(folder: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    for name in ("prior_tokenizer", "vocab.json", "merges.txt"):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def of_another_architecture(folder: Path) -> None:
    GPT2Config(n_layer=1).save_pretrained(folder)


def half_settings(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 2,')


def impossible_settings(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"max_new_tokens": -3}')


SENTENCES = {
    pickled_code: r"has pytorch_model\.bin, a pickle that holds code \((posix|nt)\.system\): take safetensors",
    truncated: r"has a damaged model\.safetensors, which ends too early: copy it again$",
    without_weights: r"has no weights \(no \.safetensors and no pytorch_model\.bin\): copy it again$",
    without_a_shard: r"has no model-00002-of-00002\.safetensors, which its model\.safetensors\.index\.json names: ",
    half_settings: r"has a damaged generation_config\.json, which is no JSON: copy it again$",
    impossible_settings: r"has an invalid generation_config\.json \(.*max_new_tokens.*\): correct it$",
    without_processor: r"has no (processor for images \(no preprocessor_config|tokenizer \(no vocab)",
    without_template: "has no chat template",
    of_another_architecture: "is a gpt2 model",
}


################
# Recipes
################


def small(file: str, model, dataset, out, **changes) -> list:
    values = {"config": CONFIGS / file, "model_name_or_path": model, "dataset": dataset, "output_dir": out}
    values |= {"max_steps": 1, "use_cpu": "true", "bf16": "false", "report_to": "none", "eval_strategy": "no"}
    return [word for name, value in (values | changes).items() for word in (f"--{name}", value)]


def of_app(*words) -> None:
    args = dict(zip(words[::2], words[1::2], strict=True))
    settings = generate.GenerateArguments(model=str(args["--model"]), dataset="", out="")
    settings.prompt_file, settings.views = "prompts/zero_shot.txt", "frontal"
    load_system(settings, torch.device("cpu"), SimpleNamespace())


RECIPES = {
    "grpo_mrgr1": ("qwen", grpo_mrgr1.main, lambda *a: small("mrgr1/phantom.yaml", *a)),
    "sft_mrgr1": ("qwen", sft_mrgr1.main, lambda *a: small("mrgr1/sft_phantom.yaml", *a)),
    "sft_llmrg4": ("llmrg4", sft_llmrg4.main, lambda *a: small("llmrg4/demo_stage1.yaml", *a)),
    "sft_lmrrg": ("lmrrg", sft_lmrrg.main, lambda *a: small("lmrrg/demo.yaml", *a)),
    "ppo_lmrrg": (
        "lmrrg",
        ppo_lmrrg.main,
        lambda *a: small(
            "lmrrg/demo_cqrl.yaml", *a, allow_scratch="true", rewards="bleu", per_device_train_batch_size=64
        ),
    ),
    **{
        name: (
            "bert",
            main,
            lambda model, dataset, out: (
                *("--model", model, "--dataset", dataset, "--output_dir", out, "--texts", 8, "--held_out", 0.5),
                *("--use_cpu", "true", "--max_steps", 1),
            ),
        )
        for name, main in (("train_chexbert", train_chexbert.main), ("train_discbert", train_discbert.main))
    },
    "generate": (
        "qwen",
        generate.main,
        lambda model, dataset, out: (
            *("--model", model, "--dataset", dataset, "--out", out / "test.jsonl", "--limit", 1),
            *("--prompt_file", "prompts/zero_shot.txt", "--max_new_tokens", 2),
        ),
    ),
    "app": ("qwen", None, lambda model, dataset, out: ("--model", model)),
}
TEMPLATED = ("grpo_mrgr1", "sft_mrgr1", "generate", "app")  # LLM-RG4's and LM-RRG's processors have their own


@pytest.mark.parametrize(
    ("recipe", "damage"),
    [
        (recipe, damage)
        for recipe in RECIPES
        for damage in SENTENCES
        if damage is not without_template or recipe in TEMPLATED
    ],
)
def test_a_fault_is_told_before_the_first_step(recipe, damage, whole, dataset, tmp_path, call):
    kind, main, arguments = RECIPES[recipe]
    folder = shutil.copytree(whole[kind], tmp_path / "model")
    damage(folder)
    arguments = arguments(folder, dataset, tmp_path / "run")
    with pytest.raises(InputError, match=SENTENCES[damage]) as error:
        call(main, *arguments) if main else of_app(*arguments)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert not list(tmp_path.rglob("checkpoint-*")) and not list((tmp_path / "run").rglob("*.safetensors"))
    assert not Path("attacked").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_a_fault_the_run_would_begin(recipe, whole, dataset, tmp_path, call, monkeypatch):
    """The same arguments on the whole folder come as far as the first step, or the first report."""

    class Reached(Exception):
        pass

    def reach(*args, **kwargs):
        raise Reached

    kind, main, arguments = RECIPES[recipe]
    monkeypatch.setattr("transformers.Trainer.train", reach)
    monkeypatch.setattr("recipes.generate.write_reports", reach)
    arguments = arguments(whole[kind], dataset, tmp_path / "run")
    if main is None:
        return of_app(*arguments)
    with pytest.raises(Reached):
        call(main, *arguments)


def from_parts(config: str, folder: Path) -> Path:
    """The YAML without the model that it names."""
    lines = (CONFIGS / config).read_text().splitlines(keepends=True)
    (folder / "parts.yaml").write_text("".join(line for line in lines if not line.startswith("model_name_or_path")))
    return folder / "parts.yaml"


@pytest.mark.parametrize("part", ["vision", "text", "decoder"])
def test_parts_of_llmrg4(part, whole, dataset, tmp_path, call):
    folders = {}
    for name in ("vision", "text", "decoder"):
        folders[name] = shutil.copytree(whole["bert"], tmp_path / name)
        (folders[name] / "preprocessor_config.json").write_text("{}")
    truncated(folders[part])
    words = small(
        "llmrg4/demo_stage1.yaml",
        None,
        dataset,
        tmp_path / "run",
        **folders,
        config=from_parts("llmrg4/demo_stage1.yaml", tmp_path),
    )
    del words[2:4]
    with pytest.raises(InputError, match=f"{part} has a damaged model"):
        call(sft_llmrg4.main, *words)


@pytest.mark.parametrize("part", ["biomedclip", "decoder"])
def test_parts_of_lmrrg(part, whole, dataset, tmp_path, call):
    folders = {}
    for name in ("biomedclip", "decoder"):
        folders[name] = shutil.copytree(whole["bert"], tmp_path / name)
        (folders[name] / "preprocessor_config.json").write_text("{}")
    truncated(folders[part])
    words = small(
        "lmrrg/demo.yaml", None, dataset, tmp_path / "run", **folders, config=from_parts("lmrrg/demo.yaml", tmp_path)
    )
    del words[2:4]
    with pytest.raises(InputError, match=f"{part} has a damaged model"):
        call(sft_lmrrg.main, *words)


################
# Folders
################


@pytest.mark.parametrize("kind", ["qwen", "llmrg4", "lmrrg", "bert"])
def test_whole_folders_are_whole(kind, whole, tmp_path):
    assert find_unreadable(whole[kind]) is None
    folder = shutil.copytree(whole[kind], tmp_path / "model")
    pickled(folder)
    assert find_unreadable(folder) is None


def test_a_pickle_of_weights_alone_is_loaded(whole, tmp_path):
    folder = shutil.copytree(whole["qwen"], tmp_path / "model")
    pickled(folder)
    pairs = zip(
        AutoModelForImageTextToText.from_pretrained(folder).state_dict().items(),
        AutoModelForImageTextToText.from_pretrained(whole["qwen"]).state_dict().items(),
        strict=True,
    )
    assert all(name == other and torch.equal(value, same) for (name, value), (other, same) in pairs)


@pytest.mark.parametrize("make", [replicas.vicuna, replicas.qwen2_5_vl_3b])
def test_published_forms_are_whole(make, tmp_path):
    """Two .bin shards, or two safetensors shards with an index; Vicuna's settings can be read, if not saved."""
    folder = make(tmp_path / "published", vocab_size=1200)
    assert find_unreadable(folder) is None
    [last] = [*folder.glob("*-00002-of-00002.*")]
    size = last.stat().st_size
    os.truncate(last, size // 2)
    if last.suffix == ".bin":
        with pytest.raises(InputError, match=r"00002-of-00002\.bin is (damaged|no PyTorch checkpoint)"):
            find_unreadable(folder)
    else:
        assert "has a damaged model-00002-of-00002.safetensors" in find_unreadable(folder)
    last.unlink()
    assert f"has no {last.name}, which its" in find_unreadable(folder)


@pytest.mark.parametrize("code", [False, True])
def test_a_pickle_of_before_torch_1_6(code, tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20))
    model.config.save_pretrained(tmp_path)
    weights = {"weight": Attack()} if code else model.state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    if code:
        with pytest.raises(
            InputError, match=r"pytorch_model\.bin holds code \((posix|nt)\.system\), so it was not opened"
        ):
            find_unreadable(tmp_path)
    else:
        assert find_unreadable(tmp_path) is None
        assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == model.num_parameters()
