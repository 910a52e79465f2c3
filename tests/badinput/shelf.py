"""What careless users have: data sets, model folders, tables and YAMLs, whole ones and one for each kind of fault."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

CONFIGS = Path(__file__).resolve().parents[2] / "recipes/configs"
TEXTS = ["The heart is normal in size. No effusion.", "Left pleural effusion.", "Describe the findings."] * 3
SCENARIOS = ("mw", "sw", "sn", "mn")  # of rows in turn; the third, which is damaged, is for stage 1 of LLM-RG4
SPLITS = {"train": 16, "validation": 4, "test": 4}


################
# Data sets
################


def replace_rows(table: pa.Table, column: str, value, rows=(2,)) -> pa.Table:
    """`table` whose `column` has `value` in `rows`, of the column's own type."""
    values = table[column].to_pylist()
    for row in rows:
        values[row] = value(values[row]) if callable(value) else value
    array = pa.array(values, table.schema.field(column).type)
    return table.set_column(table.column_names.index(column), table.schema.field(column), array)


def retype(table: pa.Table, column: str, value: Callable) -> pa.Table:
    """`table` whose `column` is `value` of each of its values, of whatever type that has, as a foreign tool writes."""
    values = [value(each) for each in table[column].to_pylist()]
    table = table.set_column(table.column_names.index(column), column, pa.array(values))
    return table.replace_schema_metadata(None)


def with_image(content: bytes | None, path: str | None = None) -> Callable:
    return lambda table: replace_rows(table, "images", lambda images: [{"bytes": content, "path": path}, *images[1:]])


def png(width: int, height: int) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(file, "PNG")
    return file.getvalue()


def half_of_image(table: pa.Table) -> pa.Table:
    def half(images: list[dict]) -> list[dict]:
        content = images[0]["bytes"]
        return [{"bytes": content[: len(content) // 2], "path": None}, *images[1:]]

    return replace_rows(table, "images", half)


def holed_image(table: pa.Table) -> pa.Table:
    """Its header and its end are whole; the pixels between are not."""

    def hole(images: list[dict]) -> list[dict]:
        content = images[0]["bytes"]
        middle = len(content) // 2
        return [{"bytes": content[:middle] + bytes(200) + content[middle + 200 :], "path": None}, *images[1:]]

    return replace_rows(table, "images", hole)


COLUMNS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "labels_null": lambda table: replace_rows(table, "labels", None),
    "labels_range": lambda table: replace_rows(table, "labels", [7] * 14),
    "labels_text": lambda table: retype(table, "labels", str),
    "labels_short": lambda table: retype(table, "labels", lambda labels: labels[:13]),
    "report_number": lambda table: retype(table, "report", len),
    "report_list": lambda table: retype(table, "report", str.split),
    "report_null": lambda table: replace_rows(table, "report", None, range(table.num_rows)),
    "images_null": lambda table: replace_rows(table, "images", None),
    "images_text": lambda table: retype(table, "images", lambda images: "image.png"),
    "views_number": lambda table: retype(table, "views", len),
    "views_null": lambda table: replace_rows(table, "views", None),
    "study_id_null": lambda table: replace_rows(table, "study_id", None),
    "study_id_number": lambda table: retype(table, "study_id", len),
    "study_id_twice": lambda table: replace_rows(table, "study_id", "s1", (0, 1)),
    "prior_report_number": lambda table: retype(table, "prior_report", lambda text: 3),
    "scenario_other": lambda table: replace_rows(table, "scenario", "xx", range(table.num_rows)),
    "scenario_null": lambda table: replace_rows(table, "scenario", None, range(table.num_rows)),
    "key_spans_beyond": lambda table: replace_rows(table, "key_spans", [[0, 99999]]),
    "key_spans_reversed": lambda table: replace_rows(table, "key_spans", [[5, 2]]),
    "image_empty": with_image(b""),
    "image_none": with_image(None),
    "image_gone": with_image(None, "images/gone.png"),
    "image_text": with_image(b"<html>404</html>"),
    "image_strip": with_image(png(8, 3000)),
    "image_half": half_of_image,
    "image_holed": holed_image,
}
BUILDS = {
    "build_half": b'{"labeler": "lex',
    "build_list": b'["lexical"]',
    "build_null": b"null",
    "build_latin": '{"labeler": "Für"}'.encode("latin-1"),
    "build_empty": b"",
    "build_number": b'{"labeler": 3}',
}


def make_data(shelf: Path) -> None:
    from recipes.build_phantom import BuildArguments, build_row
    from recipes.data.schema import write_dataset

    args = BuildArguments(size=64)

    def rows(split: str, number: int):
        for index in range(number):
            row = build_row(split, index, SCENARIOS[index % 4], args)
            yield row | {"key_spans": [[0, 5]]}

    good = shelf / "data/good"
    splits = {split: lambda split=split, number=number: rows(split, number) for split, number in SPLITS.items()}
    write_dataset(splits, good, {"builder": "build_phantom", "labeler": "lexical"})
    for name, change in COLUMNS.items():
        folder = shutil.copytree(good, shelf / "data" / name)
        for split in SPLITS:
            parquet.write_table(change(parquet.read_table(good / f"{split}.parquet")), folder / f"{split}.parquet")
    for name, content in BUILDS.items():
        (shutil.copytree(good, shelf / "data" / name) / "build.json").write_bytes(content)
    files = [shutil.copytree(good, shelf / "data" / f"parquet_{name}") for name in ("half", "empty", "text", "none")]
    for file in [files[0] / f"{split}.parquet" for split in SPLITS]:
        os.truncate(file, file.stat().st_size // 2)
    for split in SPLITS:
        (files[1] / f"{split}.parquet").write_bytes(b"")
        (files[2] / f"{split}.parquet").write_text("study_id,report\n1,Clear.\n")
        table = parquet.read_table(good / f"{split}.parquet")
        parquet.write_table(table.slice(0, 0), files[3] / f"{split}.parquet")
    (shelf / "data/nothing").mkdir()
    (shelf / "data/file").write_text("a file\n")
    folder = shutil.copytree(good, shelf / "data/no_train")
    (folder / "train.parquet").unlink()
    (folder / "validation.parquet").unlink()


################
# Models
################


class Attack:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("touch attacked",)


def pickled(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Attack()}, folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 8)


def zeroed(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def without_processor(folder: Path) -> None:
    names = ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "vocab.txt", "vocab.json")
    for name in (*names, "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def half_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def listed_config(folder: Path) -> None:
    (folder / "config.json").write_text('["qwen2_5_vl"]')


def half_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def other_model(folder: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_layer=1).save_pretrained(folder)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    damage.__name__: damage
    for damage in (
        *(pickled, truncated, zeroed, without_weights, without_processor, without_template, without_config),
        *(half_config, listed_config, half_tokenizer, other_model, emptied),
    )
}
KINDS = ("qwen", "llmrg4", "lmrrg", "chexbert", "discbert", "crepe")


def make_models(shelf: Path) -> None:
    from transformers import BertConfig

    from modeling.tiny import build_chexbert, build_qwen2_5_vl, train_tokenizer
    from modeling.tiny_llmrg4 import build_llmrg4
    from modeling.tiny_lmrrg import build_lmrrg
    from recipes.trainers.crepe import CrepeTrainer
    from recipes.trainers.discbert import DiscBertTrainer

    size = {"vocab_size": 400, "text_layers": 1}
    models = {
        "qwen": build_qwen2_5_vl(train_tokenizer(TEXTS, 400), hidden_size=64, text_layers=1, vision_layers=1),
        "llmrg4": build_llmrg4(TEXTS, **size, num_visual_tokens=2, fusion="interleaved"),
        "lmrrg": build_lmrrg(TEXTS, **size, vision_layers=1, num_region_layers=1, num_vtrans_layers=1),
        "chexbert": build_chexbert(TEXTS, vocab_size=200, hidden_size=12, layers=1, heads=2),
        "discbert": DiscBertTrainer.load_start(None, TEXTS, 0),
        "crepe": CrepeTrainer.load_start(None, TEXTS, 0),
    }
    for name, parts in models.items():
        for part in parts:
            part.save_pretrained(shelf / "models" / name)
        for damage in DAMAGES.values():
            damage(shutil.copytree(shelf / "models" / name, shelf / "models" / f"{name}_{damage.__name__}"))
    tokenizer = models["chexbert"][1]
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertConfig(vocab_size=len(tokenizer), **sizes).save_pretrained(shelf / "models/bert")
    tokenizer.save_pretrained(shelf / "models/bert")
    (shelf / "models/file").write_text("weights\n")


################
# Files
################

CONDITIONS = (
    "Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,"
    "Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices,No Finding"
)


def make_files(shelf: Path) -> None:
    files = shelf / "files"
    files.mkdir()
    labelled = f"Report Impression,{CONDITIONS}\n" + "".join(f"Herz größer {i}.{',1' * 14}\n" for i in range(30))
    table = "study_id,report,image\n" + "".join(f"s{i},Herz größer {i}.,{i}.png\n" for i in range(30))
    for name, text in (("labelled", labelled), ("table", table)):
        (files / f"{name}.csv").write_text(text, encoding="utf-8")
        (files / f"{name}_latin.csv").write_bytes(text.encode("latin-1"))
        (files / f"{name}_utf16.csv").write_bytes(text.encode("utf-16"))
        (files / f"{name}_empty.csv").write_bytes(b"")
        (files / f"{name}_binary.csv").write_bytes(bytes(range(256)) * 20)
        (files / f"{name}_head.csv").write_text(text.splitlines()[0] + "\n")
        (files / f"{name}_megabyte.csv").write_text(text.replace("Herz größer 1.", "Herz " * 210_000 + "."))
        (files / f"{name}_columns.csv").write_text("a,b\n1,2\n")
    (files / "labelled_range.csv").write_text(labelled.replace("größer 3.,1", "größer 3.,7"))
    (files / "labelled_word.csv").write_text(labelled.replace("größer 3.,1", "größer 3.,yes"))
    (files / "labelled_short.csv").write_text(labelled + "Zu kurz.,1\n")
    images = shelf / "images"
    images.mkdir()
    for i in range(30):
        (images / f"{i}.png").write_bytes(png(64, 64))
    for name, content in (("empty", b""), ("half", png(64, 64)[:300]), ("strip", png(8, 3000)), ("text", b"<html>")):
        folder = shelf / f"images_{name}"
        folder.mkdir()
        for i in range(30):
            (folder / f"{i}.png").write_bytes(content)
    reports = [{"study_id": f"phantom-0-test-{i:06d}", "completion": "The heart is normal."} for i in range(4)]
    pair = {"study_id": reports[0]["study_id"], "chosen": "No edema.", "rejected": "Edema."}
    (files / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (files / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reports))
    (files / "reports_half.jsonl").write_text(json.dumps(reports[0]) + '\n{"study_id": "a", "rep')
    (files / "reports_twice.jsonl").write_text((json.dumps(reports[0]) + "\n") * 2)
    (files / "reports_number.jsonl").write_text('{"study_id": 1, "report": 2}\n')
    (files / "reports_null.jsonl").write_text('{"study_id": null, "report": null}\n')
    (files / "reports_empty.jsonl").write_text("")
    (files / "reports_list.jsonl").write_text("[1, 2]\n")
    (files / "reports_latin.jsonl").write_bytes('{"study_id": "a", "report": "größer"}\n'.encode("latin-1"))
    (files / "prompt_latin.txt").write_bytes("Schreibe über den Erguß.".encode("latin-1"))
    (files / "pickle.pth").write_bytes(pickle.dumps({"weight": Attack()}))
    (files / "half.pth").write_bytes(b"PK\x03\x04half")
    (files / "empty.pth").write_bytes(b"")
    (files / "text.pth").write_text("weights")
    for script, config in (("sft_llmrg4", "llmrg4/demo_stage1"), ("sft_lmrrg", "lmrrg/demo")):
        lines = (CONFIGS / f"{config}.yaml").read_text().splitlines(keepends=True)
        (files / f"parts_{script}.yaml").write_text("".join(line for line in lines if "model_name" not in line))
    for name, text in YAMLS.items():
        (files / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())


YAMLS = {
    "null": "seed: null\n",
    "list": "- seed\n- 3\n",
    "word": "seed\n",
    "tab": "seed:\t3\n\tother: 2\n",
    "empty": "",
    "env_list": "env: [A, B]\n",
    "env_text": "env: OMP_NUM_THREADS=1\n",
    "env_nested": "env: {A: {B: 1}}\n",
    "unknown": "learning_rat: 1.0e-4\n",
    "key_number": "3: 4\n",
    "key_null": "null: 4\n",
    "value_mapping": "seed: {a: 1}\n",
    "value_list": "seed: [1, 2]\n",
    "value_nan": "seed: .nan\n",
    "value_text": "seed: three\n",
    "value_date": "seed: 2026-11-30\n",
    "unclosed": "seed: [1, 2\n",
    "twice": "seed: 1\nseed: 2\n",
    "python": "seed: !!python/object/apply:os.system ['touch attacked']\n",
    "two": "seed: 1\n---\nseed: 2\n",
    "latin": "# für\nseed: 1\n".encode("latin-1"),
    "binary": bytes(range(256)),
}


def fill(shelf: Path) -> None:
    """Writes everything to the folder `shelf`, which must not be there."""
    shelf.mkdir(parents=True)
    make_data(shelf)
    make_models(shelf)
    make_files(shelf)
