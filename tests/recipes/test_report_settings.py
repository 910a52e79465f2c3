"""How reports are written: greedily and to the end that the checkpoint names, whatever else it asks for."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3Config,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from recipes.evaluation.generation import TransformersEngine, chat_texts, encode_prompts, report_settings, starts_twice
from recipes.trainers.clinical_evaluation import ClinicalEvaluation

PROMPT = "Report the findings of this chest X-ray."
LENGTH, SEED = 40, 6

# generation_config.json as the repositories have it, with their token ids.
QWEN25_EARLY = """{"bos_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
    "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "top_p": 0.001}"""
QWEN25_LATE = """{"bos_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
    "repetition_penalty": 1.05, "temperature": 1e-06}"""
QWEN3 = """{"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
    "top_p": 0.8, "top_k": 20, "temperature": 0.7, "repetition_penalty": 1.0}"""
GEMMA3 = """{"bos_token_id": 2, "cache_implementation": "hybrid", "do_sample": true, "eos_token_id": [1, 106],
    "pad_token_id": 0, "top_k": 64, "top_p": 0.95}"""
VICUNA = """{"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "pad_token_id": 0, "temperature": 0.9,
    "top_p": 0.6, "transformers_version": "4.31.0"}"""
OPT = """{"_from_model_config": true, "bos_token_id": 2, "eos_token_id": 50118, "pad_token_id": 1}"""
NEUTRAL = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
NEUTRAL |= {"max_length": None, "cache_implementation": None, "max_new_tokens": LENGTH}


@pytest.mark.parametrize(
    ("text", "end", "pad", "ends"),
    [
        (QWEN25_EARLY, 151645, 151643, [151645, 151643]),
        (QWEN25_LATE, 151645, 151643, [151645, 151643]),
        (QWEN3, 151645, 151643, [151645, 151643]),
        (GEMMA3, 1, 0, [1, 106]),  # 106: <end_of_turn>, which the tokenizer does not call its end
        (VICUNA, 2, 0, [2]),
        (OPT, 2, 1, [50118, 2]),  # a line break and </s>
        ("{}", 7, None, [7]),  # a checkpoint without a generation_config.json
    ],
)
def test_of_a_checkpoint_only_token_ids_are_taken(text, end, pad, ends):
    model = SimpleNamespace(generation_config=GenerationConfig(**json.loads(text)), config=SimpleNamespace())
    tokenizer = SimpleNamespace(eos_token_id=end, pad_token_id=pad)
    settings = report_settings(model, tokenizer, max_new_tokens=LENGTH)
    assert settings.eos_token_id == ends
    assert settings.pad_token_id == pad
    assert {name: getattr(settings, name) for name in NEUTRAL} == NEUTRAL
    settings.validate(strict=True)  # nothing that transformers warns of, which it would say at each call


def test_gemmas_image_token_is_not_written():
    model = SimpleNamespace(generation_config=GenerationConfig(), config=Gemma3Config(image_token_index=262144))
    tokenizer = SimpleNamespace(eos_token_id=1, pad_token_id=0)
    assert report_settings(model, tokenizer).suppress_tokens == [262144]
    model.generation_config.suppress_tokens = [262145, 262207]  # as LLM-RG4 and LM-RRG do with rows of no token
    assert report_settings(model, tokenizer).suppress_tokens == [262144, 262145, 262207]


@pytest.fixture(scope="module")
def loaded(tiny):
    model = AutoModelForImageTextToText.from_pretrained(tiny).eval()
    torch.manual_seed(SEED)  # larger weights than the tiny model's: it writes other tokens again and again
    language = model.model.language_model
    for weight in (language.embed_tokens.weight, *language.layers.parameters()):
        if weight.ndim > 1:
            weight.data = (0.2 if len(weight) == model.config.text_config.vocab_size else 0.5) * torch.randn_like(
                weight
            )
    return model, AutoProcessor.from_pretrained(tiny)


@pytest.fixture(scope="module")
def greedy(loaded) -> list[int]:
    """The likeliest token after each other, one pass of the whole text for each, without `generate`."""
    model, processor = loaded
    inputs = processor(
        images=[IMAGES], text=chat_texts(processor, [IMAGES], [PROMPT]), return_tensors="pt", padding=True
    )
    start = inputs["input_ids"].shape[1]
    for _ in range(LENGTH):
        with torch.no_grad():
            scores = model(**inputs).logits[0, -1]
        scores[model.config.image_token_id] = -torch.inf
        for name, value in (("input_ids", scores.argmax()), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.cat([inputs[name], torch.as_tensor([[value]])], dim=1)
    return inputs["input_ids"][0, start:].tolist()


IMAGES = [Image.linear_gradient("L").convert("RGB")]
FORMS = [json.loads(text) for text in (QWEN25_EARLY, QWEN25_LATE, QWEN3, GEMMA3)]


@pytest.fixture(params=[*FORMS, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1}])
def checkpoint(request, loaded, tmp_path):
    """The model's folder with one of the settings, its own token ids put in."""
    model, processor = loaded
    ids = {name: getattr(model.generation_config, name) for name in ("eos_token_id", "pad_token_id")}
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(request.param | {"bos_token_id": None} | ids))
    return tmp_path


def arguments(model) -> SimpleNamespace:
    names = {"dtype": "float32", "trust_remote_code": False, "min_pixels": None, "max_pixels": None}
    names |= {"chat_template": None, "num_beams": 1, "max_new_tokens": LENGTH, "min_new_tokens": 0}
    return SimpleNamespace(
        model=str(model), temperature=0.0, top_p=1.0, repetition_penalty=1.0, length_penalty=1.0, **names
    )


def test_the_checkpoints_settings_would_write_something_else(checkpoint, greedy):
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(checkpoint),
        AutoProcessor.from_pretrained(checkpoint),
    )
    inputs = processor(images=[IMAGES], text=chat_texts(processor, [IMAGES], [PROMPT]), return_tensors="pt")
    torch.manual_seed(0)
    tokens = model.generate(**inputs, max_new_tokens=LENGTH)[0, inputs["input_ids"].shape[1] :]
    assert tokens.tolist() != greedy


def test_generate_writes_the_likeliest_tokens(checkpoint, greedy):
    engine = TransformersEngine(arguments(checkpoint), torch.device("cpu"), 1)
    (completion, count, _), *_ = engine([IMAGES], [PROMPT], 0)
    assert (completion, count) == (engine.processor.decode(greedy, skip_special_tokens=True), LENGTH)


def test_clinical_evaluation_writes_the_likeliest_tokens(checkpoint, greedy):
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(checkpoint),
        AutoProcessor.from_pretrained(checkpoint),
    )
    before = model.generation_config.to_dict()
    evaluation = ClinicalEvaluation.__new__(ClinicalEvaluation)
    evaluation.processor, evaluation.max_new_tokens = processor, LENGTH
    evaluation.trainer = SimpleNamespace(
        model=model, accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped)
    )
    with torch.no_grad():
        written = evaluation._write({"images": [IMAGES], "prompt": [[{"content": PROMPT}]]})
    assert written == [processor.decode(greedy, skip_special_tokens=True)]
    assert model.generation_config.to_dict() == before  # what the next checkpoint is saved with


def test_every_end_ends_a_report(loaded, greedy, tmp_path):
    """The fourth token that it writes is made an end by the checkpoint alone, as Gemma's <end_of_turn> is."""
    model, processor = loaded
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ends = {"eos_token_id": [processor.tokenizer.eos_token_id, greedy[3]], "pad_token_id": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends))
    engine = TransformersEngine(arguments(tmp_path), torch.device("cpu"), 1)
    ((_, count, _),) = engine([IMAGES], [PROMPT], 0)
    assert count == greedy.index(greedy[3]) + 1 < LENGTH


@pytest.mark.parametrize(
    ("template", "text", "twice"),
    [
        ("<s> $A", "<s>heart", True),  # Gemma: its chat template writes <bos>, and its tokenizer too
        ("<s> $A", "heart", False),
        ("$A", "<s>heart", False),
        ("$A", "heart", False),
    ],
)
def test_a_first_token_that_would_stand_twice(template, text, twice):
    core = Tokenizer(WordLevel({"<s>": 0, "heart": 1, "?": 2}, unk_token="?"))
    core.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    assert starts_twice(tokenizer, text) == twice

    class Processor:
        image_processor = None

        def __init__(self):
            self.tokenizer = tokenizer

        def apply_chat_template(self, messages, **settings):
            return [text] * len(messages)

        def __call__(self, images, text, **settings):
            return {"input_ids": tokenizer(text, **settings)["input_ids"]}

    ids = encode_prompts(Processor(), [[]], ["?"])["input_ids"][0]
    assert ids == ([0, 1] if "<s>" in template + text else [1])
