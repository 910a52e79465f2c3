"""Prompts with images as TRL sends them to vLLM: an image's token once, and read as the trainer reads it."""

import importlib.util
import io
import json
import os
import random
import shutil
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from recipes.data.processors import load_processor
from recipes.data.samples import prepare_images, to_samples
from recipes.data.schema import FEATURES
from recipes.files import InputError
from recipes.trainers.grpo import MRGR1Config, MRGR1Trainer
from recipes.trainers.vllm_images import ImageGeneration, one_place_each

IMAGE = 9


def encoded(width: int, height: int) -> dict:
    """A grey image, as the schema has it."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("prompt", "short"),
    [
        ([1, 9, 9, 9, 2], [1, 9, 2]),
        ([1, 9, 9, 3, 9, 9, 9, 2], [1, 9, 3, 9, 2]),  # two images, a token between them
        ([9], [9]),
        ([1, 1, 2, 2, 2], [1, 1, 2, 2, 2]),  # no image: runs of words stay
        ([], []),
    ],
)
def test_one_place_each(prompt, short):
    assert one_place_each(prompt, IMAGE) == short


def expand(prompt: list[int], image: int, lengths: list[int]) -> list[int]:
    """What vLLM makes of a prompt: its first places become as many tokens as the images have, one after the other."""
    remaining = list(lengths)
    return [token for place in prompt for token in [place] * (remaining.pop(0) if place == image and remaining else 1)]


@pytest.fixture
def vllm_processor(monkeypatch):
    """vLLM's own module that puts an image's tokens into a prompt, from its wheel, without what it imports."""
    installed = importlib.util.find_spec("vllm")
    source = os.environ.get("VLLM_SOURCE") or (installed and installed.submodule_search_locations[0])
    if not source:
        pytest.skip(
            "vllm is not there: `pip download --no-deps vllm==0.30.0`, unzip, and set VLLM_SOURCE to its vllm/"
        )
    folder = Path(source)

    def load(name: str, file: str) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(name, folder / file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    parents = ("vllm", "vllm.multimodal", "vllm.multimodal.processing", "vllm.utils")
    siblings = ("context", "dummy_inputs", "inputs")
    stubs = ("vllm.inputs", "vllm.logger", "vllm.tokenizers", "vllm.multimodal.inputs", "vllm.multimodal.parse")
    for name in (*parents, *stubs, *(f"vllm.multimodal.processing.{sibling}" for sibling in siblings)):
        monkeypatch.setitem(sys.modules, name, MagicMock(__path__=[]))
    load("vllm.utils.collection_utils", "utils/collection_utils.py")
    for name, classes in (
        ("vllm.multimodal.processing.context", ("BaseProcessingInfo",)),
        ("vllm.multimodal.inputs", ("MultiModalKwargsItem",)),
    ):
        for class_name in classes:
            setattr(sys.modules[name], class_name, type(class_name, (), {}))
    return load("vllm.multimodal.processing.processor", "multimodal/processing/processor.py")


def test_vllm_expands_as_assumed(vllm_processor):
    """Qwen2.5-VL's rule there: one image token is replaced by as many as the image has."""

    def vllm_expand(prompt: list[int], lengths: list[int]) -> list[int]:
        rule = vllm_processor.PromptReplacement(
            modality="image", target=[IMAGE], replacement=lambda number: [IMAGE] * lengths[number]
        )
        updates = {"image": [[rule.resolve(number)] for number in range(len(lengths))]}
        return vllm_processor.apply_token_matches(prompt, updates)[0]

    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.randint(4, 400) for _ in range(draw.randint(1, 3))]
        words = [[draw.randint(1, 8) for _ in range(draw.randint(1, 9))] for _ in range(len(lengths) + 1)]
        short, full = words[0], words[0]
        for length, text in zip(lengths, words[1:], strict=True):
            short, full = [*short, IMAGE, *text], [*full, *[IMAGE] * length, *text]
        assert one_place_each(full, IMAGE) == short
        assert vllm_expand(short, lengths) == expand(short, IMAGE, lengths) == full
        # what TRL 1.16 sends: the tokens of an image that are there already are taken for places of images
        doubled = vllm_expand(full, lengths)
        assert len(doubled) == len(full) + sum(lengths) - len(lengths)
        assert doubled == expand(full, IMAGE, lengths)
    assert len(vllm_expand([IMAGE] * 330, [330])) == 659  # the numbers of the report upstream


################
# A step of GRPO
################


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """The tiny model with the range of pixels that Qwen2.5-VL is published with."""
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(tiny, folder)
    for file in folder.glob("*processor*.json"):
        settings = json.loads(file.read_text())
        for part in (settings, settings.get("image_processor", {})):
            if "size" in part:
                part["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
        file.write_text(json.dumps(settings))
    return folder


class Engine:
    """Stands in for vLLM's LLM: puts an image's tokens in as `expand` does, by the range of the model's own files."""

    def __init__(self, folder: Path):
        self.processor, self.prompts, self.settings = AutoProcessor.from_pretrained(folder), [], []

    def generate(self, prompts, sampling_params, use_tqdm):
        outputs = []
        for number, prompt in enumerate(prompts):
            images = prompt["multi_modal_data"]["image"]
            sizes = [image.size for image in (images if isinstance(images, list) else [images])]
            patches = self.processor.image_processor.get_number_of_image_patches
            lengths = [patches(height, width) // 4 for width, height in sizes]
            ids = expand(prompt["prompt_token_ids"], self.processor.image_token_id, lengths)
            words = self.processor.tokenizer(f"{number} lungs")["input_ids"]
            logprobs = [{word: types.SimpleNamespace(rank=1, logprob=-1.0)} for word in words]
            completion = types.SimpleNamespace(token_ids=words, logprobs=logprobs)
            outputs.append(types.SimpleNamespace(prompt_token_ids=ids, outputs=[completion]))
        self.prompts += [output.prompt_token_ids for output in outputs]
        self.settings.append(sampling_params)
        return outputs


@pytest.fixture
def make_trainer(model, tmp_path, monkeypatch):
    """A trainer with `use_vllm` on four studies of one and two images of uneven size; its engine is `Engine`."""
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: setattr(self, "llm", Engine(model)))
    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: None)
    monkeypatch.setattr(vllm_generation, "SamplingParams", lambda **settings: settings, raising=False)

    def make(**pixels) -> MRGR1Trainer:
        sizes = [[(90, 60)], [(200, 120), (64, 150)], [(61, 61)], [(300, 280), (100, 90)]]
        rows = [
            {
                "study_id": f"s{number}",
                "report": "Clear.",
                "images": [encoded(*size) for size in study],
            }
            for number, study in enumerate(sizes)
        ]
        rows = Dataset.from_list([{name: row.get(name) for name in FEATURES} for row in rows], FEATURES)
        processor = load_processor(str(model), **pixels)
        samples = prepare_images({"train": to_samples(rows, "Report.", "all")}, processor)["train"]
        settings = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2, "use_vllm": True}
        settings |= {"effective_batch_size": 8, "max_completion_length": 6, "use_cpu": True, "bf16": False}
        settings |= {"gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        return MRGR1Trainer(
            model=str(model),
            reward_funcs=lambda completions, **columns: [float(len(text[0]["content"])) for text in completions],
            args=MRGR1Config(output_dir=str(tmp_path / "run"), vllm_mode="colocate", **settings),
            train_dataset=samples,
            processing_class=processor,
        )

    return make


def test_colocated_vllm_reads_what_the_trainer_reads(make_trainer):
    trainer = make_trainer(min_pixels=16 * 784, max_pixels=40 * 784)
    trainer.train()
    engine = trainer.vllm_generation.llm
    assert len(engine.prompts) == 8
    places = [prompt.count(engine.processor.image_token_id) for prompt in engine.prompts]
    # 90 x 60 up by sqrt(12544 / 5400) = 1.52 to 140 x 112: 20 tokens; 200 x 120 rounds to 196 x 112: 28; 64 x 150 up
    # by 1.14 to 84 x 196: 21; 61 x 61 to 112 x 112: 16; 300 x 280 down by 1.64 to 168 x 168: 36; 100 x 90 to 140 x
    # 112: 20
    assert sorted(set(places)) == [16, 20, 28 + 21, 36 + 20]
    assert engine.settings[0]["bad_words"] == ["<|image_pad|>"]


def test_trls_own_prompts_are_refused(make_trainer, monkeypatch):
    """TRL 1.16 as it is, if nothing put one token in the place of many: the test that the check can fail."""
    monkeypatch.setattr("recipes.trainers.vllm_images.one_place_each", lambda prompt, image: prompt)
    trainer = make_trainer(min_pixels=16 * 784, max_pixels=40 * 784)
    with pytest.raises(InputError, match=r"vLLM reads prompt 0 as \d+ tokens, the model's processor as \d+"):
        trainer.train()


def test_an_engine_that_scales_images_otherwise_is_refused(make_trainer):
    """28 x 28 pixels are below the range of the model, which is all that vLLM knows."""
    trainer = make_trainer(min_pixels=784, max_pixels=784)
    with pytest.raises(InputError, match="vLLM reads prompt"):
        trainer.train()


@pytest.mark.parametrize(
    ("length", "sentence"), [(3, None), (4, r"as \[2, 4\] tokens, the model's processor as \[2, 3\]")]
)
def test_a_servers_features_are_compared(tiny, monkeypatch, length, sentence):
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: None)
    processor = AutoProcessor.from_pretrained(tiny)
    generation = ImageGeneration.of(VLLMGeneration(None, MagicMock(), processor, mode="server"))
    token = processor.image_token_id
    features = {"mm_placeholders": {"image": [{"offset": 5, "length": 2}, {"offset": 9, "length": length}]}}
    prompt = [1, token, token, 2, token, token, token]
    if sentence is None:
        placed = generation._place_features(features, prompt)["mm_placeholders"]["image"]
        assert [place["offset"] for place in placed] == [1, 4]
    else:
        with pytest.raises(InputError, match=sentence):
            generation._place_features(features, prompt)
    assert generation._place_features(None, [1, 2]) is None


def test_a_text_model_keeps_trls_engine(monkeypatch):
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: None)
    generation = VLLMGeneration(None, MagicMock(), object(), mode="colocate")
    assert type(ImageGeneration.of(generation)) is VLLMGeneration and not generation.generation_kwargs
