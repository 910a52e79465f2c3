"""LM-RRG's first stage: two losses from one pass, exact under accumulation and processes, Table 3, configs, errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from datasets import Dataset
from pyarrow import parquet
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, OPTConfig, OPTForCausalLM, set_seed
from trl import ModelConfig, SFTConfig, SFTTrainer

from modeling.processing_lmrrg import DEFAULT_INSTRUCTION
from modeling.tiny import train_tokenizer
from modeling.tiny_lmrrg import build_biomedclip, build_lmrrg
from recipes import generate, ppo_lmrrg, sft_lmrrg
from recipes.cli import parse, run
from recipes.data.samples import to_samples
from recipes.data.schema import read_split
from recipes.files import InputError, read_prompt
from recipes.trainers.config import SFTRecipeConfig
from recipes.trainers.disease_sft import UNKNOWN, DiseaseCollator, DiseaseSFTTrainer
from recipes.trainers.lmrrg import CQRLConfig, ModelParts, report_boxes
from rewards.table import RewardArguments

CONFIGS = Path(sft_lmrrg.__file__).parent / "configs/lmrrg"
PROMPT = read_prompt("prompts/lmrrg.txt")
EXTRACTOR, TRANSFER, DECODER = "model.visual_extractor.", "model.visual_transfer.", "model.language_model."


def make_tiny(texts: list[str], **config):
    return build_lmrrg([*texts, PROMPT], text_layers=1, vision_layers=1, vocab_size=400, **config)


@pytest.fixture(scope="module")
def reports(phantom) -> list[str]:
    return read_split(str(phantom), "train")["report"][:]


@pytest.fixture(scope="module")
def tiny_lmrrg(tmp_path_factory, reports) -> str:
    folder = str(tmp_path_factory.mktemp("models") / "lmrrg")
    for part in make_tiny(reports):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def train(call, phantom):
    """Runs stage 1 by demo.yaml; `changed` overrides arguments."""

    def train(model: str | None, out, *words, **changed) -> str:
        given = {"config": CONFIGS / "demo.yaml", "model_name_or_path": model, "dataset": phantom, "output_dir": out}
        given |= {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01, "disable_tqdm": "true"}
        given |= {"logging_steps": 1, **changed}
        named = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
        call(sft_lmrrg.main, *named, *words)
        return str(out)

    return train


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/model.safetensors")


def changed_weights(before: str, after: str) -> set[str]:
    """Names of the weights that differ; all must be in both."""
    old, new = weights(before), weights(after)
    assert set(old) == set(new)
    return {name for name in old if not torch.equal(old[name], new[name])}


# The stage


def test_everything_but_the_region_texts_is_trained(train, tiny_lmrrg, tmp_path):
    out = train(tiny_lmrrg, tmp_path / "out", lambda_disease=0.5)
    still = set(weights(tiny_lmrrg)) - changed_weights(tiny_lmrrg, out)
    # one key: its softmax is 1 whatever the weights; the class token's patch is dropped
    ignored = re.compile(r"region_(features|mask)$|cross_(norm|attention\.(query|key))\.|key\.bias|k_proj\.bias")
    assert not [name for name in still if not ignored.search(name)]
    rows = [row for row in json.loads(Path(out, "trainer_state.json").read_text())["log_history"] if "loss" in row]
    assert len(rows) == 2
    for row in rows:
        total, parts = float(row["loss"]), float(row["report_loss"]) + 0.5 * float(row["disease_loss"])
        assert total == pytest.approx(parts, rel=1e-5)
    model, loaded = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.lambda_disease == 0.5 and AutoProcessor.from_pretrained(out).num_visual_tokens == 30


def test_lora_is_merged(train, tiny_lmrrg, tmp_path):
    out = train(tiny_lmrrg, tmp_path / "out", "--use_peft")
    changed = changed_weights(tiny_lmrrg, out)
    decoder = {name for name in changed if name.startswith(DECODER)}
    assert decoder == {f"{DECODER}decoder.layers.0.self_attn.{name}_proj.weight" for name in ("q", "v")}
    assert all(any(name.startswith(part) for name in changed) for part in (EXTRACTOR, TRANSFER))
    assert any("disease_head" in name for name in changed)
    assert not Path(out, "adapter_config.json").exists()


def test_without_disease_loss_there_is_no_head_and_no_label(train, tiny_lmrrg, tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.data.samples.read_labelled", None)  # it may not be asked
    out = train(tiny_lmrrg, tmp_path / "out", lambda_disease=0)
    assert not any("disease_head" in name for name in weights(out))
    again = train(out, tmp_path / "again", lambda_disease=0)
    assert AutoModelForImageTextToText.from_pretrained(again).config.lambda_disease == 0
    rows = json.loads(Path(out, "trainer_state.json").read_text())["log_history"]
    assert not any("disease_loss" in row for row in rows)


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_ends_where_the_whole_one_does(lora, train, tiny_lmrrg, tmp_path):
    """The ViT too, to which transformers gives other names when it saves."""
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "use_peft": lora}
    whole = train(tiny_lmrrg, tmp_path / "whole", **options)
    shutil.copytree(f"{whole}/checkpoint-2", tmp_path / "resumed/checkpoint-2")
    options |= {"resume_from_checkpoint": "latest", "dataloader_num_workers": 2}
    resumed = train(tiny_lmrrg, tmp_path / "resumed", **options)
    assert changed_weights(whole, resumed) == set()


@pytest.mark.parametrize("seed", [7, 11])
def test_new_modules_follow_the_seed(seed, train, tmp_path, monkeypatch):
    """Region blocks, VTrans and the disease head are new: two runs with one seed would begin with other weights."""

    def load(*arguments, **config):
        raise InputError(f"seed {torch.initial_seed()}")

    monkeypatch.setattr(sft_lmrrg, "load_stage1", load)
    with pytest.raises(InputError, match=f"^seed {seed}$"):
        train("x", tmp_path, seed=seed)


def test_a_frozen_extractor_learns_again(train, tiny_lmrrg, tmp_path):
    """A model that stage 2 saved has E frozen; another stage 1 trains it."""
    frozen = str(tmp_path / "frozen")
    AutoModelForImageTextToText.from_pretrained(tiny_lmrrg, freeze_extractor=True).save_pretrained(frozen)
    AutoProcessor.from_pretrained(tiny_lmrrg).save_pretrained(frozen)
    out = train(frozen, tmp_path / "out")
    assert any(name.startswith(f"{EXTRACTOR}vision_model") for name in changed_weights(frozen, out))


# The loss


@pytest.fixture(scope="module")
def samples(phantom) -> Dataset:
    return make_samples(str(phantom))


def make_samples(phantom: str) -> Dataset:
    """Eight studies; of the first four only a few labels are known, of one none; of the last two no boxes."""
    rows = read_split(phantom, "train").select(range(8)).rename_column("labels", "disease_labels")
    dataset = to_samples(rows, PROMPT, "frontal", completion="plain", keep=("disease_labels", "boxes"))
    labels = [list(each) for each in dataset["disease_labels"]]
    for i in range(4):
        labels[i][i + 1 :] = [UNKNOWN] * (13 - i)
    labels[4] = None
    boxes = [list(each)[: 3 * i + 1] for i, each in enumerate(dataset["boxes"][:6])] + [[], None]
    read = dataset.format["format_kwargs"]["transform"]
    dataset = dataset.remove_columns("disease_labels").add_column("disease_labels", labels)
    dataset = dataset.remove_columns("boxes").add_column("boxes", boxes, feature=rows.features["boxes"])
    return dataset.with_transform(read)


def trained(samples, folder, size: int, accumulation: int, trainer_class=DiseaseSFTTrainer, **config):
    texts = [row["completion"][0]["content"] for row in samples.remove_columns("images")]
    model, processor = make_tiny(texts, **config)
    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        max_steps=2, optim="sgd", learning_rate=0.1, use_cpu=True, bf16=False, max_length=None, report_to="none",
        disable_tqdm=True, logging_steps=1, save_strategy="no", train_sampling_strategy="sequential",
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trainer_class(model=model, args=args, train_dataset=samples, processing_class=processor)
    trainer.train()
    return trainer


def logged(trainer) -> list[list[float]]:
    names = ("loss", "report_loss", *trainer.loss_weights)
    return [[float(row[name]) for name in names] for row in trainer.state.log_history if "report_loss" in row]


def test_the_loss_is_that_of_the_whole_batch_whatever_its_parts(samples, tmp_path):
    """Both losses are means over what the eight rows have together: by torch, from the model's logits."""
    texts = [row["completion"][0]["content"] for row in samples.remove_columns("images")]
    model, _ = make_tiny(texts, lambda_disease=0.25)
    whole = trained(samples, tmp_path, 8, 1, lambda_disease=0.25)
    batch = whole.data_collator([dict(row) for row in samples])
    with torch.no_grad():
        out = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")})
    report = nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    disease = nn.functional.cross_entropy(out.disease_logits.flatten(0, 1), batch["disease_labels"].flatten())
    assert batch["disease_labels"].ne(UNKNOWN).sum() == 1 + 2 + 3 + 4 + 3 * 14
    expected = [float(report + 0.25 * disease), float(report), float(disease)]
    assert logged(whole)[0] == pytest.approx(expected, rel=1e-4)
    parts = trained(samples, tmp_path, 2, 4, lambda_disease=0.25)
    torch.testing.assert_close(torch.tensor(logged(parts)), torch.tensor(logged(whole)), rtol=1e-4, atol=1e-5)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


REGIONS = {"region_attn_mode": "text_query", "lambda_region": 0.5}


def test_the_region_loss_is_that_of_the_whole_batch_too(samples, tmp_path):
    """The mean over all regions with boxes of eight rows, from the attention, whatever the batch is cut into."""
    texts = [row["completion"][0]["content"] for row in samples.remove_columns("images")]
    model, processor = make_tiny(texts, lambda_disease=0.25, **REGIONS)
    whole = trained(samples, tmp_path, 8, 1, lambda_disease=0.25, **REGIONS)
    batch = whole.data_collator([dict(row) for row in samples])
    names, losses = model.config.region_names, []
    with torch.no_grad():
        attention = model.model.get_image_features(batch["pixel_values"], region_attention=True).attentions.exp()
    for number, row in enumerate(samples):
        for box in row["boxes"] or ():
            cover = processor.cover_patches([box], row["images"][0].size, names, 16)
            place = names.index(box["region"])
            losses.append(-(attention[number, place] @ cover[place]).log())
    assert len(losses) == 1 + 4 + 7 + 10 + 13 + 16
    _, report, disease, region = logged(whole)[0]
    assert region == pytest.approx(float(sum(losses)) / len(losses), rel=1e-4)
    assert logged(whole)[0][0] == pytest.approx(report + 0.25 * disease + 0.5 * region, rel=1e-4)
    assert logged(whole)[1][3] < region  # a step later
    parts = trained(samples, tmp_path, 2, 4, lambda_disease=0.25, **REGIONS)  # one of which has no box at all
    torch.testing.assert_close(torch.tensor(logged(parts)), torch.tensor(logged(whole)), rtol=1e-4, atol=1e-5)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_boxes_without_their_loss_change_nothing(samples, tmp_path):
    """To the last bit, as lambda_region is 0 unless somebody asks."""
    boxed, plain = (
        trained(rows, tmp_path, 4, 2, region_attn_mode="text_query").model.state_dict()
        for rows in (samples, samples.remove_columns("boxes"))
    )
    assert all(torch.equal(value, plain[name]) for name, value in boxed.items())


def test_only_the_first_image_of_a_study_has_boxes(phantom):
    """With views each the lateral film is a sample too, and boxes are of the frontal one."""
    rows = read_split(str(phantom), "train").select(range(3))
    each = to_samples(rows, PROMPT, "each", completion="plain", keep=("boxes",))
    assert [len(boxes or ()) for boxes in each["boxes"]] == [27, 0] * 3


def test_one_pass_serves_both_losses(samples, tmp_path, monkeypatch):
    calls = []
    forward = nn.Conv2d.forward  # the patch embedding: once per pass
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    trained(samples, tmp_path, 4, 1)
    assert calls == [4, 4]


def test_lambda_0_is_trls_own_training(samples, tmp_path):
    without = samples.remove_columns(["disease_labels", "boxes"])
    ours, trls = (
        trained(each, tmp_path, 4, 2, trainer, lambda_disease=0.0).model.state_dict()
        for each, trainer in ((without, DiseaseSFTTrainer), (without, SFTTrainer))
    )
    assert all(torch.equal(value, trls[name]) for name, value in ours.items())


def test_evaluation_logs_both_losses(samples, tmp_path):
    trainer = trained(samples, tmp_path, 4, 1)
    figures = trainer.evaluate(samples)
    assert figures["eval_loss"] == pytest.approx(figures["eval_report_loss"] + figures["eval_disease_loss"], rel=1e-4)


def one_of_two(folder: str, phantom: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = trained(make_samples(phantom), folder, 4 // processes, 2, lambda_disease=0.5, **REGIONS)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        torch.save({"weights": weights, "rows": logged(trainer)}, Path(folder) / f"{processes}.pt")


@pytest.mark.parametrize("under", [None, "fsdp2.yaml", "zero1.yaml", "zero2.yaml", "zero3.yaml"])
def test_two_processes_are_one(under, phantom, tmp_path, torchrun):
    command = [sys.executable, *torchrun(__file__, tmp_path, phantom, under=under)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one_of_two(str(tmp_path), str(phantom))
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (1, 2))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(one["rows"]), torch.tensor(two["rows"]), rtol=1e-4, atol=1e-5)


# Parts and the rows of Table 3


@pytest.fixture(scope="module")
def parts(tmp_path_factory, reports) -> list[str]:
    """Folders of a tiny BiomedCLIP and of a tiny OPT."""
    folder = tmp_path_factory.mktemp("parts")
    regions = json.loads(Path(sft_lmrrg.__file__).parents[1].joinpath("modeling/region_descriptions.json").read_text())
    words = [region[key] for region in regions for key in ("name", "description")]
    for part in build_biomedclip(words, vision_layers=1, text_layers=1):
        part.save_pretrained(folder / "biomedclip")
    set_seed(0)
    tokenizer = train_tokenizer([*reports, PROMPT], 400)
    config = OPTConfig(vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=1,
                       num_attention_heads=2, word_embed_proj_dim=32, max_position_embeddings=512)  # fmt: skip
    for part in (OPTForCausalLM(config), tokenizer):
        part.save_pretrained(folder / "opt")
    return [str(folder / "biomedclip"), str(folder / "opt")]


def from_parts(parts: list[str]) -> dict:
    """mimic.yaml's run on a CPU."""
    return {"biomedclip": parts[0], "decoder": parts[1], "config": CONFIGS / "mimic.yaml", "labeler": "lexical",
            "bf16": "false", "use_cpu": "true", "gradient_checkpointing": "false"}  # fmt: skip


@pytest.mark.parametrize(
    ("switch", "visual"),
    [
        ({}, 30),  # LM-RRG
        ({"use_global_feature": "false"}, 29),  # w/o F_global
        ({"use_region_features": "false"}, 1),  # w/o F_region
        ({"region_prompt": "name"}, 30),  # text: descriptions -> names
        ({"use_instruction": "false"}, 30),  # w/o F_inst
        ({"lambda_disease": 0}, 30),  # w/o L_disease
    ],
    ids=str,
)
def test_rows_of_table_3_train_and_write(switch, visual, parts, call, train, phantom, tmp_path):
    out = train(None, tmp_path / "out", **from_parts(parts), **switch, max_steps=1)
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.config.num_visual_tokens == AutoProcessor.from_pretrained(out).num_visual_tokens == visual
    for name, value in switch.items():
        assert str(getattr(model.config, name)).lower() in (str(value), f"{value}.0")
    file = tmp_path / "reports.jsonl"
    call(generate.main, "--model", out, "--dataset", phantom, "--split", "test", "--out", file, "--views", "frontal",
         "--prompt_file", "prompts/lmrrg.txt", "--max_new_tokens", 3, "--num_beams", 2)  # fmt: skip
    assert len(file.read_text().splitlines()) == 6


# Boxes


def rewrite(phantom, folder: Path, change) -> Path:
    """The phantom with `change` made to the table of each split."""
    folder.mkdir()
    for file in Path(phantom).glob("*.parquet"):
        parquet.write_table(change(parquet.read_table(file)), folder / file.name)
    return folder


def test_a_run_with_the_region_loss(train, parts, tmp_path, capsys):
    options = from_parts(parts) | {"region_attn_mode": "text_query", "lambda_region": 0.5}
    out = train(None, tmp_path / "out", **options)
    assert "12 of 12 training rows have boxes of regions\n" in capsys.readouterr().out
    rows = [row for row in json.loads(Path(out, "trainer_state.json").read_text())["log_history"] if "loss" in row]
    for row in rows:
        total = float(row["report_loss"]) + float(row["disease_loss"]) + 0.5 * float(row["region_loss"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert (model.config.lambda_region, model.config.region_attn_mode) == (0.5, "text_query")
    again = train(out, tmp_path / "again", max_steps=1)  # a later run without it
    assert AutoModelForImageTextToText.from_pretrained(again).config.lambda_region == 0


def test_boxes_of_other_names_are_counted(capsys):
    sides = {"x0": 0.0, "y0": 0.0, "x1": 9.0, "y1": 9.0}
    rows = {
        "study_id": ["a", "b", "c"],
        "boxes": [[{"region": "svc", **sides}, {"region": "neck", **sides}], None, []],
    }
    assert report_boxes(Dataset.from_dict(rows), ["carina", "svc"]) == {"svc": 1, "neck": 1}
    assert capsys.readouterr().out == (
        "1 of 3 training rows have boxes of regions; 1 boxes have other names (neck, ...)\n"
    )
    with pytest.raises(InputError, match=r"no row has a box of a region \(carina, ...\), which --lambda_region needs"):
        report_boxes(Dataset.from_dict(rows), ["carina"])
    rows["boxes"][2] = [{"region": "svc", **sides, "y1": None}]
    with pytest.raises(InputError, match=r"study c: the box of svc has the sides .*None"):
        report_boxes(Dataset.from_dict(rows), ["svc"])


def test_data_sets_without_boxes(phantom, train, parts, tmp_path):
    """One that was built before there were boxes is read as ever; the loss alone needs them."""
    old = rewrite(phantom, tmp_path / "old", lambda table: table.drop_columns(["boxes", "age", "sex"]))
    train(None, tmp_path / "out", **from_parts(parts), dataset=old, max_steps=1)
    options = from_parts(parts) | {"region_attn_mode": "text_query", "lambda_region": 0.5}
    with pytest.raises(InputError, match="old has no column boxes"):
        train(None, tmp_path / "out2", **options, dataset=old)
    empty = parquet.read_table(phantom / "test.parquet").schema.field("boxes").type
    change = lambda table: table.drop_columns(["boxes"]).append_column("boxes", pa.nulls(len(table), empty))  # noqa: E731
    with pytest.raises(InputError, match="no row has a box of a region"):
        train(None, tmp_path / "out3", **options, dataset=rewrite(phantom, tmp_path / "nulls", change))


# Bad input


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0] * 13, "14 CheXpert states"),  # one too few
        ([4] + [0] * 13, "not [4"),  # no state
        ([0] * 13 + [2], "No Finding 0 or 1"),  # it is there or blank
        ([-1] * 14, "not [-1"),  # another encoding's uncertain
    ],
)
def test_labels_to_refuse(labels, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        DiseaseCollator(lambda rows: {})([{"disease_labels": labels}])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model_name_or_path": "nowhere/at_all"}, "nowhere/at_all cannot be loaded"),
        ({"biomedclip": "nowhere/clip"}, "stage 1 cannot start: biomedclip='nowhere/clip' cannot be loaded"),
        ({"biomedclip": "an OPT"}, "is a opt model; convert BiomedCLIP"),
        ({"use_global_feature": "false", "use_region_features": "false"}, "cannot both be false"),
        ({"lambda_disease": -1}, "lambda_disease must be 0 or more"),
        ({"lambda_region": -1}, "lambda_region must be 0 or more"),
        ({"lambda_region": 1}, "stage 1 cannot start: lambda_region needs regions that weigh patches"),
        ({"dtype": "auto"}, "--dtype auto: name float32 or bfloat16"),
        ({"labeler": "chexbert:nowhere"}, "labeler chexbert:nowhere"),
        ({"prompt_file": "prompts/none.txt"}, "there is no prompt file prompts/none.txt"),
        ({"dataset": "./nowhere"}, "there is no data set at ./nowhere"),
    ],
    ids=str,
)
def test_starts_to_refuse(changed, sentence, train, parts, tmp_path):
    given = from_parts(parts) | changed
    given = {name: parts[1] if value == "an OPT" else value for name, value in given.items()}
    with pytest.raises(InputError, match=re.escape(sentence)):
        train(given.pop("model_name_or_path", None), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changed",
    [{"use_global_feature": "false"}, {"region_prompt": "name"}, {"region_descriptions": "some.json"}],
    ids=str,
)
def test_a_model_that_was_made_otherwise(changed, train, tiny_lmrrg, tmp_path):
    with pytest.raises(InputError, match=f"--{next(iter(changed))} .* is for a model that is put together"):
        train(tiny_lmrrg, tmp_path / "out", **changed)
    train(tiny_lmrrg, tmp_path / "out", use_global_feature="true", region_chunk_size=7, max_steps=1)  # as it is


def test_a_model_whose_regions_weigh_no_patches(train, tiny_lmrrg, tmp_path):
    with pytest.raises(InputError, match="cannot be loaded: lambda_region needs regions that weigh patches"):
        train(tiny_lmrrg, tmp_path / "out", lambda_region=1)


def test_another_systems_model(train, tiny, tmp_path):
    with pytest.raises(InputError, match="is a qwen2_5_vl model, not an LM-RRG"):
        train(str(tiny), tmp_path / "out")


def test_weights_of_another_configuration(train, tiny_lmrrg, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_lmrrg, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_vtrans_layers": 4}))
    with pytest.raises(InputError, match=r"the weights of .* are not those of its config.json: .*vtrans\.3"):
        train(str(folder), tmp_path / "out")


# Configs


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_configs(file, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--config", str(file), "--use_cpu", "true"])
    if "cqrl" in file.name:
        args, _, training_args, model_args = parse(ppo_lmrrg.RecipeArguments, RewardArguments, CQRLConfig, ModelConfig)
        stage1 = yaml.safe_load((CONFIGS / file.name.replace("_cqrl", "")).read_text())
        assert model_args.model_name_or_path == stage1["output_dir"]
        assert training_args.kl_controller == "reward_threshold" and training_args.beta == 1.0  # Eqs. 4 and 5
        assert training_args.freeze_image_encoder
    else:
        args, _, training_args, _ = parse(sft_lmrrg.RecipeArguments, ModelParts, SFTRecipeConfig, ModelConfig)
    assert read_prompt(args.prompt_file) == DEFAULT_INSTRUCTION.strip()
    text = file.read_text()
    assert re.findall(r"^# (\w+)$", text, re.MULTILINE) == ["Model", "Data", "Trainer"]
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert max(map(len, text.splitlines())) < 120
    if "mimic" in file.name:
        assert training_args.hub_private_repo is True


@pytest.mark.parametrize("stage", ["", "_cqrl"])
def test_iu_differs_in_its_data_alone(stage):
    """Section 3.2: the values used on MIMIC-CXR are directly applied on IU X-Ray."""
    first, second = (yaml.safe_load((CONFIGS / f"{name}{stage}.yaml").read_text()) for name in ("mimic", "iu"))
    names = {"dataset", "output_dir", *(["model_name_or_path"] if stage else [])}
    assert {name for name in first | second if first.get(name) != second.get(name)} == names


def test_the_paper_in_the_configs():
    stage1 = yaml.safe_load((CONFIGS / "mimic.yaml").read_text())
    assert all(stage1[name] is True for name in ("use_global_feature", "use_region_features", "use_instruction"))
    assert (stage1["region_prompt"], stage1["region_attn_mode"]) == ("description", "image_query")
    assert yaml.safe_load((CONFIGS / "mimic_cqrl.yaml").read_text())["rewards"] == ["radcliq"]


if __name__ == "__main__":
    run(lambda: one_of_two(*sys.argv[1:]))
