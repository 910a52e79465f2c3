"""generate.py: the batch size changes nothing, an interrupted file is continued, a foreign one is left alone."""

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BertConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    set_seed,
)

from recipes import generate
from recipes.build_phantom import BuildArguments, build_row
from recipes.data.samples import ImageArguments
from recipes.data.schema import read_split, write_dataset
from recipes.evaluation.decoding import ask_as_trained, trained_with
from recipes.evaluation.generation import describe_cost, finished_samples, shuffled_images, usual_dtype
from recipes.files import InputError
from recipes.trainers.config import PolicyConfig, SFTRecipeConfig
from recipes.trainers.setup import save_run
from rewards.completions import parse_completion

ROOT = Path(__file__).resolve().parents[2]
LORA = r".*language_model.*\.(q|v)_proj"


def untimed(rows: list[dict]) -> list[dict]:
    """`rows` without what no two runs share."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six studies with one and two images in turn, so that a batch needs padding."""
    args = BuildArguments(size=64, seed=1)
    rows = lambda: (build_row("test", index, ("sn", "mn")[index % 2], args) for index in range(6))  # noqa: E731
    out = tmp_path_factory.mktemp("generate") / "data"
    write_dataset({"test": rows}, out, {"labeler": "lexical"})
    return out


@pytest.fixture
def write(call, tiny, dataset, tmp_path):
    """Runs the script and returns the rows of its file; `changed` overrides arguments."""

    def write(file: str = "out.jsonl", **changed) -> list[dict]:
        given = {
            "model": tiny,
            "dataset": dataset,
            "out": tmp_path / file,
            "views": "all",
            "prompt_file": "prompts/mrgr1_tiny.txt",
            "max_new_tokens": 5,
        } | changed
        given = {name: value for name, value in given.items() if value is not None}
        call(generate.main, *(word for name, value in given.items() for word in (f"--{name}", value)))
        return [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]

    return write


def test_batched_equals_one_by_one(write):
    together, alone = write("together.jsonl", batch_size=4), write("alone.jsonl", batch_size=1)
    assert len(together) == 6
    assert [row["completion"] for row in together] == [row["completion"] for row in alone]
    assert [row["study_id"] for row in together] == [f"phantom-1-test-{index:06d}" for index in range(6)]


@pytest.mark.parametrize(
    ("gpu", "bfloat16", "dtype"),
    [(False, True, "float32"), (True, True, "bfloat16"), (True, False, "float32")],  # the last: before Ampere
)
def test_numbers_that_nobody_names(gpu, bfloat16, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    assert usual_dtype() == dtype


def test_numbers_and_place_of_the_weights(write, monkeypatch):
    """The argument wins; each process loads onto its own device at once."""
    load, loads = AutoModelForImageTextToText.from_pretrained, []

    def watch(name, **options):
        model = load(name, **options)
        loads.append((options["device_map"], model.dtype))
        return model

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", watch)
    assert write("a.jsonl", limit=1)[0]["arguments"]["dtype"] == "float32"
    monkeypatch.setattr(generate, "usual_dtype", lambda: "bfloat16")
    assert write("b.jsonl", limit=1)[0]["arguments"]["dtype"] == "bfloat16"
    assert write("c.jsonl", limit=1, dtype="float32")[0]["arguments"]["dtype"] == "float32"
    device = {"": torch.device("cpu")}
    assert loads == [(device, torch.float32), (device, torch.bfloat16), (device, torch.float32)]


def test_views_each_writes_one_line_per_image(write):
    assert len(write(views="each", batch_size=9)) == 9  # three studies with one image, three with two


@pytest.mark.parametrize("kept", [0, 1, 3, 6])
def test_an_interrupted_file_is_continued(write, tmp_path, kept):
    whole = write("whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    cut = lines[kept][:20] if kept < 6 else ""  # the line being written when the process ended
    (tmp_path / "out.jsonl").write_text("".join(lines[:kept]) + cut)
    assert untimed(write()) == untimed(whole)


def test_a_line_holds_what_was_asked_and_answered(write, tiny, dataset):
    processor, studies = AutoProcessor.from_pretrained(tiny), read_split(str(dataset), "test", ())
    for place, row in enumerate(write(max_new_tokens=7, temperature=1.0)):
        pictures = studies[place]["images"]
        image = "<|vision_start|><|image_pad|><|vision_end|>"
        text = f"<|im_start|>user\n{image * len(pictures)}{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        assert row["input_tokens"] == len(processor(images=pictures, text=[text])["input_ids"][0])  # without padding
        assert list(row)[:6] == ["study_id", "sample", "prompt", "completion", "think", "report"]
        assert row["sample"] == place
        assert row["prompt"] == "Report the findings of this chest X-ray."
        assert (row["think"], row["report"]) == parse_completion(row["completion"])[1::-1]
        assert 1 <= row["tokens"] <= 7 and row["seconds"] > 0
        assert row["arguments"]["temperature"] == 1.0


def test_what_writing_cost():
    assert describe_cost(60, [100, 140, 150], [1.0, 3.0]) == (
        "15.0 tokens a second; a batch: 2.00 s, 3.00 s at most; input tokens of a sample: 130, 150 at most"
    )
    assert describe_cost(0, [], []) == "nothing was left to write"


@pytest.mark.parametrize("changed", [{"temperature": 1.5, "top_p": 0.9}, {"num_beams": 3}])
def test_decoding_goes_on_as_if_not_interrupted(write, tmp_path, changed):
    """Beams and sampling: the second batch of two does not depend on whether the first was drawn in this run."""
    whole = write("whole.jsonl", batch_size=2, **changed)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_text("".join(lines[:2]))
    assert untimed(write(batch_size=2, **changed)) == untimed(whole)
    if "temperature" in changed:
        assert len({row["completion"] for row in whole}) > 1


def test_the_parts_of_several_processes_are_taken_up(write, tmp_path):
    whole = write("whole.jsonl", limit=5)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_text(lines[0])
    (tmp_path / "out.jsonl.part0").write_text(lines[1] + lines[3])
    (tmp_path / "out.jsonl.part1").write_text(lines[4] + lines[2][:30])  # cut off while it was written
    assert untimed(write(limit=5)) == untimed(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]
    assert (tmp_path / "out.jsonl").read_text().splitlines()[4] == lines[4].strip()  # not written again


def test_a_part_begun_otherwise_is_refused(write, tmp_path):
    write(limit=1, seed=1)
    (tmp_path / "out.jsonl").rename(tmp_path / "out.jsonl.part0")
    with pytest.raises(InputError, match=r"out\.jsonl\.part0 was begun with another --seed"):
        write()


def test_two_processes_write_what_one_does(write, tiny, dataset, tmp_path, torchrun):
    one = write("one.jsonl", batch_size=2)
    given = {"model": tiny, "dataset": dataset, "out": "two.jsonl", "views": "all", "batch_size": 2}
    given |= {"prompt_file": "prompts/mrgr1_tiny.txt", "max_new_tokens": 5}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *torchrun(ROOT / "recipes/generate.py", *words)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert untimed(two) == untimed(one)
    assert not list(tmp_path.glob("*.part*"))
    assert done.stdout.count("two.jsonl: 6 samples") == 1


def test_a_checkpoints_own_decoding_does_not_count(write, tiny, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(tiny)
    ends = {"eos_token_id": model.generation_config.eos_token_id, "pad_token_id": model.generation_config.pad_token_id}
    model.generation_config = GenerationConfig(no_repeat_ngram_size=1, bad_words_ids=[[10]], min_length=3, **ends)
    model.save_pretrained(tmp_path / "own")
    AutoProcessor.from_pretrained(tiny).save_pretrained(tmp_path / "own")
    plain, own = write("plain.jsonl", max_new_tokens=12), write("own.jsonl", model=tmp_path / "own", max_new_tokens=12)
    assert [row["completion"] for row in plain] == [row["completion"] for row in own]


def test_an_adapter_equals_the_model_it_is_merged_into(write, tiny, tmp_path):
    set_seed(3)
    base = AutoModelForImageTextToText.from_pretrained(tiny)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=LORA, init_lora_weights=False, lora_alpha=8))
    model.save_pretrained(tmp_path / "adapter")  # without a processor: its base model has one
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoProcessor.from_pretrained(tiny).save_pretrained(tmp_path / "merged")
    plain, adapter, merged = (
        [row["completion"] for row in write(f"{name}.jsonl", model=where, max_new_tokens=12)]
        for name, where in (("a", tiny), ("b", tmp_path / "adapter"), ("c", tmp_path / "merged"))
    )
    assert adapter == merged != plain


@pytest.fixture(scope="module")
def llava(tmp_path_factory, tiny):
    """Another family, as the Hub's baselines are: a LLaVA of CLIP and Qwen2 whose tokenizer is the tiny model's."""
    tokenizer = AutoProcessor.from_pretrained(tiny).tokenizer
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.pad_token = None  # as LLaMA's
    set_seed(0)
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    size = {"height": 28, "width": 28}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}",
    )
    out = tmp_path_factory.mktemp("models") / "llava"
    LlavaForConditionalGeneration(config).save_pretrained(out)
    processor.save_pretrained(out)
    return out


def test_a_model_of_another_family(write, llava):
    together, alone = (write(f"{size}.jsonl", model=llava, batch_size=size) for size in (6, 1))
    assert len(together) == 6
    assert [row["completion"] for row in together] == [row["completion"] for row in alone]


def test_a_processor_without_chat_template(write, llava, tmp_path):
    processor = AutoProcessor.from_pretrained(llava)
    template, processor.chat_template, processor.tokenizer.chat_template = processor.chat_template, None, None
    AutoModelForImageTextToText.from_pretrained(llava).save_pretrained(tmp_path / "bare")
    processor.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="has no chat template; name one with --chat_template"):
        write(model=tmp_path / "bare")
    with pytest.raises(InputError, match=r"there is no chat template absent\.jinja"):
        write(model=tmp_path / "bare", chat_template="absent.jinja")
    (tmp_path / "chat.jinja").write_text(template)
    given, own = (
        write("given.jsonl", model=tmp_path / "bare", chat_template=tmp_path / "chat.jinja"),
        write(model=llava),
    )
    assert [row["completion"] for row in given] == [row["completion"] for row in own]


################
# vLLM
################


def test_vllm_that_is_absent_is_named(write, tmp_path):
    with pytest.raises(InputError, match="needs the package vllm: make setup-vllm"):
        write(engine="vllm")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def vllm(monkeypatch):
    """Stands in for vLLM (0.33's signatures): answers with what it was asked, and keeps it.

    Like vLLM it cuts the text into tokens itself and puts as many image tokens into each place as the image takes in
    its own processor, that of the model's folder with `mm_processor_kwargs`. `module.expanded` has it do so twice.
    """
    importlib.import_module("trl")  # at its first import it looks for the real one
    module, requests = types.ModuleType("vllm"), types.ModuleType("vllm.lora.request")

    class LLM:
        def __init__(self, model, *, dtype, seed, trust_remote_code, tensor_parallel_size, **options):
            module.loaded = {"model": model, "dtype": dtype, **options}
            module.asked = []
            self.processor = AutoProcessor.from_pretrained(model, **options.get("mm_processor_kwargs", {}))

        def read(self, prompt, multi_modal_data):
            images, ids = iter(multi_modal_data["image"]), []
            for token in self.processor.tokenizer(prompt)["input_ids"]:
                times = 1
                if token == self.processor.image_token_id:
                    width, height = next(images).size
                    times = self.processor.image_processor.get_number_of_image_patches(height, width) // 4
                ids += [token] * times * module.expanded if times > 1 else [token]
            return ids

        def generate(self, prompts, sampling_params, *, lora_request, use_tqdm):
            module.asked += list(zip(prompts, sampling_params, [lora_request] * len(prompts), strict=True))
            texts = [f"<report>{len(each['multi_modal_data']['image'])} images</report>" for each in prompts]
            read = [self.read(**prompt) for prompt in prompts]
            module.lengths = [len(ids) for ids in read]
            return [
                types.SimpleNamespace(
                    prompt_token_ids=ids, outputs=[types.SimpleNamespace(text=text, token_ids=[1, 2, 3])]
                )
                for ids, text in zip(read, texts, strict=True)
            ]

    module.expanded = 1
    module.LLM, module.SamplingParams = LLM, lambda **settings: settings
    requests.LoRARequest = lambda *given: given
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora", types.ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", requests)
    return module


def test_vllm_is_asked_as_transformers_is(write, tiny, vllm):
    rows = write(engine="vllm", temperature=0.7, top_p=0.9, min_pixels=3136)
    assert [row["report"] for row in rows] == ["1 images", "2 images"] * 3
    assert [row["tokens"] for row in rows] == [3] * 6
    inputs = [row["input_tokens"] for row in rows]
    assert inputs == vllm.lengths
    assert all(two > one for one, two in zip(inputs[::2], inputs[1::2], strict=True))  # a second image
    assert vllm.loaded == {
        "model": str(tiny),
        "dtype": "float32",
        "limit_mm_per_prompt": {"image": 2},
        "mm_processor_kwargs": {"min_pixels": 3136},
    }
    processor = AutoProcessor.from_pretrained(tiny)
    image = "<|vision_start|><|image_pad|><|vision_end|>"  # one place for each image, as the chat template has it
    for place, (prompt, settings, lora) in enumerate(vllm.asked):
        views = 1 + place % 2
        question = f"<|im_start|>user\n{image * views}{rows[0]['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        assert prompt["prompt"] == question
        assert [each.mode for each in prompt["multi_modal_data"]["image"]] == ["RGB"] * views
        assert settings == {
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 5,
            "min_tokens": 0,
            "repetition_penalty": 1.0,
            "logit_bias": {processor.image_token_id: -100.0},
            "seed": 42 + place,
        }
        assert lora is None


def test_vllm_gets_images_in_the_pixel_range(write, tiny, vllm):
    """Phantoms of 64 x 64, 64 x 77 and 64 x 51 in a range of at least 12,544 pixels, in multiples of 28.

    By hand: sides grow by the square root of 12,544 / pixels and are rounded up. 64 x 77: by 1.595, to 102 x 123, so
    112 x 140. 64 x 51: by 1.960, to 125 x 100, so 140 x 112.
    """
    write(engine="vllm", min_pixels=112 * 112, max_pixels=1003520)
    sizes = {image.size for prompt, *_ in vllm.asked for image in prompt["multi_modal_data"]["image"]}
    assert sizes == {(112, 112), (112, 140), (140, 112)}


def test_a_vllm_that_reads_other_prompts_is_refused(write, tiny, vllm, tmp_path):
    vllm.expanded = 2
    with pytest.raises(InputError, match=r"vLLM reads prompt 0 as \d+ tokens, the model's processor as \d+"):
        write(engine="vllm")
    assert not (tmp_path / "out.jsonl").exists()


def test_vllm_with_an_adapter(write, tiny, vllm, tmp_path):
    base = AutoModelForImageTextToText.from_pretrained(tiny)
    get_peft_model(base, LoraConfig(r=20, target_modules=LORA)).save_pretrained(tmp_path / "adapter")
    write(engine="vllm", model=tmp_path / "adapter", limit=1)
    assert vllm.loaded["model"] == str(tiny)
    assert vllm.loaded["max_lora_rank"] == 32  # the least that vLLM offers for rank 20
    assert [lora for _, _, lora in vllm.asked] == [("adapter", 1, str(tmp_path / "adapter"))]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"num_beams": 2}, "no beam search"), ({"length_penalty": 2.0}, "no beam search")],
)
def test_what_vllm_cannot_do_is_named(write, vllm, changed, sentence):
    with pytest.raises(InputError, match=sentence):
        write(engine="vllm", **changed)


def test_limit_can_grow(write):
    first = write(limit=2)
    assert len(first) == 2
    assert write()[:2] == first


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"max_new_tokens": 4}, "max_new_tokens"),
        ({"views": "frontal"}, "views"),
        ({"shuffle_images": True}, "shuffle_images"),  # control and result must not mix
        ({"seed": 1}, "seed"),
    ],
)
def test_a_file_begun_otherwise_is_refused(write, tmp_path, changed, name):
    write(limit=1)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(InputError, match=f"begun with another --{name}"):
        write(**changed)
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("text", ["a user's notes\n", "[1]\n", '{"study_id": "a"}\n'])
def test_a_foreign_file_is_refused(tmp_path, text):
    (tmp_path / "notes.txt").write_text(text)
    with pytest.raises(InputError, match=r"notes\.txt exists and was not written by generate\.py"):
        finished_samples(tmp_path / "notes.txt", {"seed": 1})
    assert (tmp_path / "notes.txt").read_text() == text


def test_a_foreign_file_without_line_end_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("a user's notes")
    with pytest.raises(InputError, match="not written by"):
        finished_samples(tmp_path / "notes.txt", {"seed": 1})
    assert (tmp_path / "notes.txt").read_text() == "a user's notes"


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_sample_keeps_its_images(count, seed):
    samples = Dataset.from_dict({"study_id": list(range(count)), "images": [[index] for index in range(count)]})
    shuffled = shuffled_images(samples, seed)
    own = [study == images[0] for study, images in zip(shuffled["study_id"], shuffled["images"], strict=True)]
    assert not any(own)
    assert sorted(images[0] for images in shuffled["images"]) == list(range(count))


def test_no_sample_keeps_an_image_of_its_study():
    samples = Dataset.from_dict({"study_id": list("aabbcc"), "images": [[name] for name in "aabbcc"]})
    for seed in range(20):
        shuffled = shuffled_images(samples, seed)
        own = [study == images[0] for study, images in zip(shuffled["study_id"], shuffled["images"], strict=True)]
        assert not any(own)  # with views each, the lateral image of the same study is no control


def test_one_study_cannot_be_shuffled():
    with pytest.raises(InputError, match="at least two studies"):
        shuffled_images(Dataset.from_dict({"study_id": ["a", "a"], "images": [[0], [1]]}), 0)


def test_shuffled_images_run(write):
    assert len(write(shuffle_images=True)) == 6


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"split": "train"}, "no split 'train'"),
        ({"dataset": "./absent"}, "there is no data set at ./absent"),
        ({"model": "./absent"}, "the model ./absent cannot be loaded"),
        ({"views": "both"}, "views must be one of"),
        ({"prompt_file": "absent.txt"}, "there is no prompt file absent.txt"),
        ({"batch_size": 0}, "--batch_size"),
        ({"max_new_tokens": 0}, "--max_new_tokens"),
    ],
)
def test_mistakes_are_named(write, tmp_path, changed, sentence):
    with pytest.raises(InputError, match=sentence):
        write(**changed)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_text_model_is_refused(write, tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="reads no images"):
        write(model=tmp_path / "bert")


################
# What the training says
################


@pytest.fixture
def trained(tiny, tmp_path):
    """A model's folder with the run_config.json that a recipe's settings make."""

    def trained(*settings, name: str = "run", script: str = "sft_mrgr1.py", **changed) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in tiny.iterdir():
            (folder / file.name).symlink_to(file)
        save_run(folder, *settings)
        record = json.loads((folder / "run_config.json").read_text()) | {"script": script} | changed
        (folder / "run_config.json").write_text(json.dumps(record))
        return folder

    return trained


def of_training(**changed) -> ImageArguments:
    return ImageArguments(
        **{"dataset": "x", "prompt_file": "prompts/mrgr1_tiny.txt", "views": "frontal", "max_pixels": 3136} | changed
    )


def test_what_is_not_said_is_as_in_training(write, trained, tmp_path, capsys):
    """Prompt, views, pixels and length of the run; of a checkpoint the same, from its run's folder."""
    run = trained(of_training(), PolicyConfig(str(tmp_path / "run"), max_completion_length=3, use_cpu=True))
    open_ones = dict.fromkeys(("prompt_file", "views", "max_new_tokens"))
    rows = write("a.jsonl", model=run, **open_ones)
    assert len(rows) == 6  # the frontal image of each study
    assert rows[0]["prompt"] == "Report the findings of this chest X-ray." and max(row["tokens"] for row in rows) == 3
    used = {"prompt_file": "prompts/mrgr1_tiny.txt", "views": "frontal", "max_pixels": 3136, "max_new_tokens": 3}
    assert used.items() <= rows[0]["arguments"].items()
    assert "was trained with" not in capsys.readouterr().out
    assert trained_with(str(run / "checkpoint-7")) == trained_with(str(run)) == {"min_pixels": None} | used


def test_a_sentence_for_what_differs(write, trained, tmp_path, capsys):
    run = trained(of_training(), PolicyConfig(str(tmp_path / "run"), max_completion_length=3, use_cpu=True))
    copy = tmp_path / "same.txt"
    copy.write_text("Report the findings of this chest X-ray.\n")  # the same words in another file
    write("b.jsonl", model=run, prompt_file=copy, views="all", max_pixels=6272, max_new_tokens=3, limit=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if "was trained with" in line]
    assert lines == [
        f"--views is all; {run} was trained with frontal",
        f"--max_pixels is 6272; {run} was trained with 3136",
    ]
    write("c.jsonl", model=run, prompt_file="prompts/zero_shot.txt", views="frontal", max_new_tokens=2, limit=1)
    out = capsys.readouterr().out
    assert f"--prompt_file is prompts/zero_shot.txt; {run} was trained with prompts/mrgr1_tiny.txt" in out
    assert f"--max_new_tokens is 2; {run} was trained with 3" in out


def test_another_template(write, trained, tiny, tmp_path, capsys):
    run, file = trained(of_training()), tmp_path / "other.jinja"
    text = (tiny / "chat_template.jinja").read_text()
    for content, differs in ((text, False), (text + "{# new #}", True)):
        file.write_text(content)
        write(f"{differs}.jsonl", model=run, chat_template=file, views="frontal", limit=1)
        assert ("--chat_template is" in capsys.readouterr().out) == differs


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"clinical_samples": 8, "clinical_max_new_tokens": 40, "eval_strategy": "steps", "eval_steps": 1}, 40),
        ({}, None),
    ],
)
def test_the_length_of_sft(trained, tmp_path, settings, length):
    """That of the reports that its evaluations wrote; without them nothing says it, and it is 512."""
    run = trained(of_training(), SFTRecipeConfig(str(tmp_path / "run"), use_cpu=True, **settings))
    assert trained_with(str(run)).get("max_new_tokens") == length
    args = types.SimpleNamespace(model=str(run), chat_template=None, **dict.fromkeys(trained_with(str(run))))
    args.max_new_tokens = None
    assert ask_as_trained(args) == [] and args.max_new_tokens == (length or 512)


def test_llmrg4_reads_both_views(trained):
    run = trained(script="sft_llmrg4.py", RecipeArguments={"prompt_file": "prompts/llmrg4.txt"})
    assert trained_with(str(run)) == {"prompt_file": "prompts/llmrg4.txt", "views": "frontal+lateral"}


@pytest.mark.parametrize("name", ["nowhere/at/all", "Qwen/Qwen2.5-VL-3B-Instruct"])
def test_a_model_that_says_nothing(name):
    assert trained_with(name) == {}


def test_a_prompt_that_is_gone(write, trained):
    run = trained(of_training(prompt_file="/gone/prompt.txt"))
    with pytest.raises(InputError, match=r"trained with a prompt that is not here: .*/gone/prompt\.txt"):
        write("d.jsonl", model=run, prompt_file=None)
    (run / "run_config.json").write_text("{")
    with pytest.raises(InputError, match=r"run_config\.json is damaged"):
        write("d.jsonl", model=run)
