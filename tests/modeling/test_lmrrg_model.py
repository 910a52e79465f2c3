"""LM-RRG's network: section 2.1 and Eq. 1 against torch's own layers, Table 3's switches, the contract with TRL."""

import json
import math
import shutil
from itertools import product

import numpy as np
import pytest
import replicas
import torch
from datasets import Dataset, Image, List
from peft import LoraConfig, PeftModel
from PIL import Image as PILImage
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPImageProcessor,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    T5Config,
    ViTConfig,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from modeling import BiomedCLIPModel, LMRRGConfig, LMRRGForConditionalGeneration, LMRRGModel, LMRRGProcessor
from modeling.configuration_lmrrg import REGION_NAMES
from modeling.modeling_lmrrg import REGIONS_FILE, load_biomedclip, read_regions
from modeling.processing_lmrrg import DEFAULT_INSTRUCTION, IMAGE_TOKEN, make_chat_template
from modeling.tiny import train_tokenizer
from modeling.tiny_lmrrg import build_biomedclip, build_lmrrg
from recipes.data.model_files import find_unreadable

pytestmark = [  # what a later transformers takes away; TRL 1.16 and PEFT name gradient_checkpointing themselves
    pytest.mark.filterwarnings("error::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing` is deprecated:FutureWarning"),
]
REPORTS = ["The heart is normal in size. No effusion.", "Left pleural effusion. Mild edema.", "No acute findings."]
TEXTS = [*REPORTS, DEFAULT_INSTRUCTION] * 3
D, WIDTH, K, N = 32, 64, 29, 16  # of the miniature; images have 4 x 4 patches
MODES = {
    "paper": {},
    "text_attn": {"region_pool": "text_attn"},
    "cls": {"region_pool": "cls"},
    "tokens": {"region_text": "tokens"},
    "text_query": {"region_attn_mode": "text_query"},
}


def image(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (70, 60), dtype=np.uint8))


def encode(processor, questions=("Describe.",), answers=None, seed=0, **options):
    """A batch, one image for each question."""
    texts = []
    for number, question in enumerate(questions):
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        if answers:
            chat.append({"role": "assistant", "content": answers[number]})
        texts.append(processor.apply_chat_template(chat, tokenize=False))
    images = [[image(seed + number)] for number in range(len(questions))]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"} | options
    return processor(images=images, text=texts, **options)


QUESTIONS = ("Describe.", "Please generate a radiology report.", "", DEFAULT_INSTRUCTION)


def build(**changes):
    """The miniature with weights large enough that every part shows in its output."""
    model, processor = build_lmrrg(TEXTS, vocab_size=400, **changes)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "vision_model" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval(), processor


@pytest.fixture(scope="module")
def paper():
    return build()


@pytest.fixture(scope="module", params=MODES)
def mode(request):
    return request.param, *build(**MODES[request.param])


# Section 2.1


def torchs_attention(part) -> nn.MultiheadAttention:
    """torch's multi-head attention with the weights of ours."""
    width = part.query.in_features
    twin = nn.MultiheadAttention(width, part.heads, batch_first=True)
    twin.in_proj_weight.data = torch.cat([getattr(part, name).weight.data for name in ("query", "key", "value")])
    twin.in_proj_bias.data = torch.cat([getattr(part, name).bias.data for name in ("query", "key", "value")])
    twin.out_proj.load_state_dict(part.output.state_dict())
    return twin


def torchs_layer(block) -> nn.TransformerEncoderLayer:
    """torch's pre-norm transformer layer with the weights of a block's self-attention and feed-forward network."""
    first, _, second = block.feed_forward
    twin = nn.TransformerEncoderLayer(
        first.in_features,
        block.self_attention.heads,
        first.out_features,
        0.0,
        "gelu",
        batch_first=True,
        norm_first=True,
    )
    twin.self_attn = torchs_attention(block.self_attention)
    twin.norm1, twin.norm2, twin.linear1, twin.linear2 = block.self_norm, block.feed_forward_norm, first, second
    return twin


@torch.no_grad()
def test_region_features_by_torchs_own_layers(mode):
    """Region by region, image by image: F_CA, F_SA, F_FFN three times, then the pooling."""
    name, model, processor = mode
    extractor = model.model.visual_extractor
    pixels = encode(processor, QUESTIONS[:2])["pixel_values"]
    found = model.model.encode_images(pixels)
    states = extractor.visual_projection(extractor.vision_model(pixels).last_hidden_state)
    assert states.shape == (2, 1 + N, D) and found.shape == (2, 1 + K, D)
    blocks = extractor.region_encoder.blocks
    assert len(blocks) == 3
    twins = [(block.cross_norm, torchs_attention(block.cross_attention), torchs_layer(block)) for block in blocks]
    for i, k in product(range(2), (0, 7, 28)):
        patches = states[i : i + 1, 1:]
        length = int(extractor.region_mask[k].sum())
        text = extractor.region_features[k : k + 1, :length]  # F_T
        assert length == 1 or name == "tokens"
        features, keys = (text, patches) if name == "text_query" else (patches, text)
        if name == "cls":
            features = states[i : i + 1]
        for norm, cross, layer in twins:
            attended, _ = cross(norm(features), keys, keys)
            features = layer(attended + features)
        if name == "cls":
            expected = features[0, 0]
        elif name == "text_attn":
            weights = (features[0] @ text[0, 0] / math.sqrt(D)).softmax(0)
            expected = weights @ features[0]
        else:
            expected = features[0].mean(0)
        torch.testing.assert_close(found[i, 1 + k], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[i, 0], patches[0].mean(0))  # F_global


@torch.no_grad()
def test_all_regions_at_once_as_one_by_one_and_in_chunks(mode):
    _, model, processor = mode
    extractor = model.model.visual_extractor
    pixels = encode(processor, QUESTIONS)["pixel_values"]
    expected, _ = extractor(pixels)
    for size in (1, 7, 28, 29, 100):
        model.config.region_chunk_size = size
        torch.testing.assert_close(extractor(pixels)[0], expected, atol=1e-5, rtol=1e-5)
    model.config.region_chunk_size = None
    regions = extractor.region_features, extractor.region_mask
    for k in (0, 28):
        extractor.region_features, extractor.region_mask = (each[k : k + 1] for each in regions)
        alone, _ = extractor(pixels)
        torch.testing.assert_close(alone[:, 1], expected[:, 1 + k], atol=1e-5, rtol=1e-5)
    extractor.region_features, extractor.region_mask = regions


def test_chunks_have_the_same_gradients(paper):
    model, processor = paper
    pixels = encode(processor, QUESTIONS[:2])["pixel_values"]
    gradients = []
    for size, checkpointing in ((None, False), (7, False), (7, True)):
        model.config.region_chunk_size = size
        encoder = model.model.visual_extractor.region_encoder.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.model.encode_images(pixels).square().sum().backward()
        model.activation_checkpointing_disable()
        gradients.append([p.grad.clone() for p in model.model.visual_extractor.parameters() if p.grad is not None])
        model.zero_grad()
        encoder.eval()
    model.config.region_chunk_size = None
    for other in gradients[1:]:
        for one, same in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, same, atol=1e-3, rtol=1e-3)


def test_one_key_shifts_all_patches_alike(mode):
    """A-01: the softmax over one key is 1, so cross-attention to a pooled text adds the same to every patch."""
    name, model, _ = mode
    encoder = model.model.visual_extractor.region_encoder
    block = encoder.blocks[0]
    patches, texts = torch.randn(2, N, D), model.model.visual_extractor.region_features[:3]
    mask = model.model.visual_extractor.region_mask[:3] if name == "tokens" else None
    read = []
    handle = block.cross_attention.register_forward_hook(lambda *args: read.append(args[-1]))
    encoder(patches, texts, mask)[0].sum().backward()
    handle.remove()
    alike = name in ("paper", "text_attn", "cls")
    if name != "text_query":
        assert read[0].shape == (2, 3, N, D)  # of each patch
        assert torch.allclose(read[0], read[0][:, :, :1].expand_as(read[0]), atol=1e-6) == alike
    still = [getattr(block.cross_attention, part).weight.grad.abs().max() < 1e-5 for part in ("query", "key")]
    assert still == [alike, alike]
    assert block.cross_attention.value.weight.grad.abs().max() > 1e-3
    model.zero_grad()


@torch.no_grad()
def test_each_part_of_a_block_has_a_residual():
    model, _ = build()
    block = model.model.visual_extractor.region_encoder.blocks[1]
    for part in (block.cross_attention.output, block.self_attention.output, block.feed_forward[2]):
        part.weight.zero_()
        part.bias.zero_()
    features = torch.randn(2, 3, N, D)
    assert torch.equal(block(features, torch.randn(3, 1, D), None), features)


@torch.no_grad()
def test_texts_tell_regions_apart(mode):
    _, model, processor = mode
    regions = model.model.encode_images(encode(processor)["pixel_values"])[0, 1:]
    assert torch.pdist(regions).min() > 1e-3


# Section 2.2


@torch.no_grad()
def test_vtrans_by_torchs_own_layers(paper):
    transfer = paper[0].model.visual_transfer
    features = torch.randn(2, 1 + K, D)
    found = transfer(features)
    expected = features @ transfer.projection.weight.T + transfer.projection.bias
    assert len(transfer.vtrans) == 3 and found.shape == (2, 1 + K, WIDTH)
    for block in transfer.vtrans:
        expected = torchs_layer(block)(expected)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    order = torch.randperm(1 + K)
    torch.testing.assert_close(transfer(features[:, order]), found[:, order], atol=1e-4, rtol=1e-4)  # no positions
    names = {name for name, _ in transfer.named_parameters()}
    assert all(name.endswith(("weight", "bias")) for name in names)  # and no learned queries, unlike the Q-Former


@torch.no_grad()
def test_the_multimodal_prompt_by_hand(paper):
    """F_multimodal is [global][regions][begin, instruction], and the decoder reads nothing else."""
    model, processor = paper
    inputs = encode(processor, [DEFAULT_INSTRUCTION])
    tokenizer, decoder = processor.tokenizer, model.model.language_model
    words = tokenizer(DEFAULT_INSTRUCTION)["input_ids"]
    assert inputs["input_ids"][0].tolist() == [processor.image_token_id] * (1 + K) + [tokenizer.bos_token_id, *words]
    features = model.model.visual_transfer(model.model.encode_images(inputs["pixel_values"]))
    text = decoder.get_input_embeddings()(torch.tensor([[tokenizer.bos_token_id, *words]]))
    prompt = torch.cat([features, text], dim=1)
    assert prompt.shape == (1, 1 + K + 1 + len(words), WIDTH)
    expected = decoder(inputs_embeds=prompt).last_hidden_state @ model.lm_head.weight.T
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


T_INST = (
    "Please generate a radiology report for this chest X-ray image based on the provided global visual feature and "
    "region visual features. Assistant: "
)


@pytest.mark.parametrize(
    ("chat", "use_instruction", "expected"),
    [
        ([("user", "image", T_INST)], True, f"<image><|im_start|>{T_INST}"),  # the paper's, its last space included
        ([("user", "image", T_INST.strip())], True, f"<image><|im_start|>{T_INST}"),  # a stripped prompt file
        ([("user", "image", T_INST)], False, "<image><|im_start|>"),  # Table 3, w/o F_inst
        ([("user", "image", "")], True, "<image><|im_start|>"),
        ([("user", "", "Look.")], True, "<|im_start|>Look. "),
        (
            [("system", "", "Be brief."), ("user", "image", "Look."), ("assistant", "", " Clear. ")],
            True,
            "<image><|im_start|>Be brief. Look.  Clear. <|im_end|>",  # the image first, the answer as it is
        ),
        ([("user", "image", "Look."), ("assistant", "", "Clear.")], False, "<image><|im_start|>Clear.<|im_end|>"),
    ],
)
def test_chat_template(paper, chat, use_instruction, expected):
    assert DEFAULT_INSTRUCTION == T_INST
    messages = [
        {"role": role, "content": [{"type": "image"}] * bool(kind) + [{"type": "text", "text": text}]}
        for role, kind, text in chat
    ]
    template = make_chat_template(use_instruction)
    found = paper[1].apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert found == expected
    if all(not kind for _, kind, _ in chat):
        messages = [{"role": role, "content": text} for role, _, text in chat]
        assert paper[1].apply_chat_template(messages, chat_template=template, tokenize=False) == expected


# L_disease


def test_losses_decompose(paper):
    model, processor = paper
    inputs = encode(processor, QUESTIONS[:2], REPORTS)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    states = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1], [3, -100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]])
    plain = model(**inputs, labels=labels)
    assert plain.disease_loss is None and plain.disease_logits.shape == (2, 14, 4)
    both = model(**inputs, labels=labels, disease_labels=states)
    torch.testing.assert_close(both.loss, plain.loss + 1.0 * both.disease_loss)
    model.config.lambda_disease = 0.25
    torch.testing.assert_close(
        model(**inputs, labels=labels, disease_labels=states).loss, plain.loss + 0.25 * both.disease_loss
    )
    model.config.lambda_disease = 1.0
    chances = plain.disease_logits.softmax(-1)
    assert torch.equal(chances[:, 13, 2:], torch.zeros(2, 2)) and (chances[:, :13] > 0).all()
    each = [-chances[i, j, int(state)].log() for i in range(2) for j, state in enumerate(states[i]) if state >= 0]
    assert len(each) == 27
    torch.testing.assert_close(both.disease_loss, sum(each) / 27, atol=1e-5, rtol=1e-5)
    unknown = model(**inputs, labels=labels, disease_labels=torch.full((2, 14), -100))
    assert unknown.disease_loss == 0 and unknown.loss == plain.loss


@torch.no_grad()
@pytest.mark.parametrize(
    ("switch", "inputs"), [({}, 2 * D), ({"use_global_feature": False}, D), ({"use_region_features": False}, D)]
)
def test_diseases_are_read_before_vtrans(switch, inputs):
    model, processor = build(**switch)
    pixels = encode(processor)["pixel_values"]
    features = model.model.encode_images(pixels)[0]
    parts = [] if switch.get("use_global_feature") is False else [features[0]]
    parts += [] if switch.get("use_region_features") is False else [features[len(parts) :].mean(0)]
    head = model.model.visual_extractor.disease_head
    assert head.in_features == inputs and head.out_features == 13 * 4 + 2
    expected = head.weight @ torch.cat(parts) + head.bias
    found = model(**encode(processor)).disease_logits[0]
    torch.testing.assert_close(found[:13].flatten(), expected[:52], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[13, :2], expected[52:], atol=1e-5, rtol=1e-4)


def test_disease_loss_trains_e_alone(paper):
    model, processor = paper
    model(**encode(processor), disease_labels=torch.ones(1, 14, dtype=torch.long)).disease_loss.backward()
    moved = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"visual_extractor"}
    model.zero_grad()


def test_report_loss_reaches_the_image(paper):
    """No detector stands between report and pixels."""
    model, processor = paper
    inputs = encode(processor)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.visual_extractor.vision_model.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0
    model.zero_grad()


# Table 3


@torch.no_grad()
@pytest.mark.parametrize(
    ("switch", "visual", "asked", "absent"),
    [
        ({}, 1 + K, True, ()),  # LM-RRG
        ({"use_global_feature": False}, K, True, ()),  # w/o F_global
        ({"use_region_features": False}, 1, True, ("region_encoder", "region_features")),  # w/o F_region
        ({"region_prompt": "name"}, 1 + K, True, ()),  # text: descriptions -> names
        ({"use_instruction": False}, 1 + K, False, ()),  # w/o F_inst
        ({"lambda_disease": 0.0}, 1 + K, True, ("disease_head",)),  # w/o L_disease
    ],
)
def test_rows_of_table_3(switch, visual, asked, absent, tmp_path):
    model, processor = build(**switch)
    inputs = encode(processor, [DEFAULT_INSTRUCTION])
    words = len(processor.tokenizer(DEFAULT_INSTRUCTION)["input_ids"]) if asked else 0
    assert inputs["input_ids"].shape[1] == visual + 1 + words
    assert model.config.num_visual_tokens == processor.num_visual_tokens == visual
    names = {name.split(".")[2] for name in model.state_dict() if "visual_extractor" in name}
    everything = {"vision_model", "visual_projection", "region_encoder", "region_features", "region_mask"}
    gone = {*absent, *(("region_mask",) if "region_features" in absent else ())}
    assert names == (everything | {"disease_head"}) - gone
    regions = read_regions(REGIONS_FILE)
    prompt = switch.get("region_prompt", "description")
    assert model.config.region_texts == [region[prompt] for region in regions]
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    back = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    again = encode(AutoProcessor.from_pretrained(tmp_path), [DEFAULT_INSTRUCTION])
    assert torch.equal(back.generate(**again, max_new_tokens=3, do_sample=False), answer)


@torch.no_grad()
def test_names_and_descriptions_are_different_texts(paper):
    pixels = encode(paper[1])["pixel_values"]
    named, _ = build(region_prompt="name")
    extractor = paper[0].model.visual_extractor
    described, _ = extractor(pixels)
    kept, extractor.region_features = extractor.region_features, named.model.visual_extractor.region_features
    assert not torch.allclose(extractor(pixels)[0], described, atol=1e-2)
    extractor.region_features = kept


# Region descriptions


PUBLISHED = """right lung, right upper lung zone, right mid lung zone, right lower lung zone, right hilar structures,
right apical zone, right costophrenic angle, right hemidiaphragm, left lung, left upper lung zone, left mid lung zone,
left lower lung zone, left hilar structures, left apical zone, left costophrenic angle, left hemidiaphragm, trachea,
spine, right clavicle, left clavicle, aortic arch, mediastinum, upper mediastinum, svc, cardiac silhouette,
cavoatrial junction, right atrium, carina, abdomen"""  # Chest ImaGenome's, in the order of the detectors trained on it


def test_the_29_regions():
    regions = read_regions(REGIONS_FILE)
    names = [name.strip() for name in PUBLISHED.replace("\n", " ").split(",")]
    assert [region["name"] for region in regions] == list(REGION_NAMES) == names and len(set(names)) == K
    paper = {"left lung", "right lung", "cardiac silhouette", "mediastinum", "right hilar structures"}
    paper |= {"upper mediastinum", "left costophrenic angle", "aortic arch", "right hemidiaphragm", "right clavicle"}
    assert paper | {"trachea", "spine"} <= set(REGION_NAMES)  # the 12 of its supplement
    assert all(set(region) == {"name", "description", "origin"} for region in regions)
    for region in regions:
        words = region["description"].split()
        assert 35 <= len(words) <= 70, region["name"]  # the length of the paper's examples; 256 tokens are the limit
        sides = {"right": "left", "left": "right"}
        side = region["name"].split()[0]
        if side in sides and side == "left":
            assert " left " in f" {region['description'].lower()} ", region["name"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read as JSON"),
        ("[", "cannot be read as JSON"),
        ("[]", "must be a JSON list of regions"),
        ('{"trachea": "A band."}', "must be a JSON list of regions"),
        ('["trachea"]', "region 0 of .* needs a name that is a text"),
        ('[{"name": "trachea", "description": " "}]', "region 0 of .* needs a description that is a text"),
        ('[{"name": "spine", "description": "a"}, {"name": "spine", "description": "b"}]', "'spine' more than once"),
    ],
)
def test_bad_region_files(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "regions.json").write_text(content)
    with pytest.raises(ValueError, match=sentence) as error:
        read_regions(tmp_path / "regions.json")
    assert "\n" not in str(error.value)


# Batches and generation


@torch.no_grad()
def test_a_batch_as_one_by_one(mode):
    _, model, processor = mode
    inputs = encode(processor, QUESTIONS)
    together = model(**inputs).logits
    right = model(**encode(processor, QUESTIONS, padding_side="right")).logits
    for number, question in enumerate(QUESTIONS):
        alone = encode(processor, [question], seed=number)
        length = alone["input_ids"].shape[1]
        expected = model(**alone).logits[0]
        torch.testing.assert_close(together[number, -length:], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(right[number, :length], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_image_changes_the_answer_and_a_text_may_have_none(paper):
    model, processor = paper
    one, other = (model(**encode(processor, seed=seed)).logits[0, -1] for seed in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)
    texts = [IMAGE_TOKEN + "Look.", "Look."]
    inputs = processor(images=[[image(0)], []], text=texts, padding=True, padding_side="left", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    plain = model(**processor(text="Look.", return_tensors="pt")).logits[0, -1]
    torch.testing.assert_close(model(**inputs).logits[1, -1], plain, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_cache_is_generation_without(paper, beams):
    model, processor = paper
    inputs = encode(processor, QUESTIONS)
    calls = []
    handle = model.model.visual_extractor.register_forward_hook(lambda *args: calls.append(len(args[1][0])))
    options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False}
    cached = model.generate(**inputs, **options)
    handle.remove()
    assert calls == [4]  # each image once, for all beams
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))
    for number, question in enumerate(QUESTIONS):
        alone = encode(processor, [question], seed=number)
        answer = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
        together = cached[number, inputs["input_ids"].shape[1] :]
        assert together[: len(answer)].tolist() == answer.tolist()


@torch.no_grad()
def test_encoded_images_stand_for_images(paper):
    """Stage 2: E runs once an image batch, whatever is computed with it."""
    model, processor = paper
    inputs = encode(processor, QUESTIONS)
    features = model.model.encode_images(inputs["pixel_values"])
    assert features.shape == (4, 1 + K, D)
    expected, answers = model(**inputs), model.generate(**inputs, max_new_tokens=4, do_sample=False)
    calls = []
    handle = model.model.visual_extractor.register_forward_hook(lambda *args: calls.append(1))
    encoded = {**inputs, "pixel_values": features}
    found = model(**encoded)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.disease_logits, expected.disease_logits)
    assert torch.equal(model.generate(**encoded, max_new_tokens=4, do_sample=False), answers)
    prefix = {"image": model.model.get_image_features(features)}
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model(**text, mm_encoder_outputs=prefix).logits, expected.logits)
    handle.remove()
    assert not calls


def test_vtrans_learns_from_encoded_images(paper):
    model, processor = paper
    inputs = encode(processor)
    inputs["pixel_values"] = model.model.encode_images(inputs["pixel_values"]).detach()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    learns = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"visual_transfer", "language_model"} <= learns and "visual_extractor" not in learns
    model.zero_grad()


@torch.no_grad()
def test_one_state_per_position(paper):
    model, processor = paper
    inputs = encode(processor, QUESTIONS)
    states = model.base_model(**inputs).last_hidden_state
    assert type(model.base_model) is LMRRGModel and states.shape == (*inputs["input_ids"].shape, WIDTH)
    torch.testing.assert_close(model.get_output_embeddings()(states), model(**inputs).logits)


# L_region


WEIGHING = {name: MODES[name] for name in ("text_query", "text_attn")}


@pytest.fixture(scope="module", params=WEIGHING)
def weighing(request):
    return request.param, *build(**WEIGHING[request.param], lambda_region=0.5)


@torch.no_grad()
def test_attention_over_patches_by_torchs_own_layers(weighing):
    """text_query: torch's weights of each block and head, their mean; text_attn: the weights of the pool."""
    name, model, processor = weighing
    extractor = model.model.visual_extractor
    pixels = encode(processor, QUESTIONS[:2])["pixel_values"]
    output = model.model.get_image_features(pixels, region_attention=True)
    attention = output.attentions.exp()
    assert attention.shape == (2, K, N) and attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, K))
    assert torch.equal(output.last_hidden_state, model.model.encode_images(pixels))  # to the bit
    states = extractor.visual_projection(extractor.vision_model(pixels).last_hidden_state)
    for i, k in product(range(2), (0, 7, 28)):
        patches, text = states[i : i + 1, 1:], extractor.region_features[k : k + 1]
        features, maps = text if name == "text_query" else patches, []
        for block in extractor.region_encoder.blocks:
            keys = patches if name == "text_query" else text
            attended, weights = torchs_attention(block.cross_attention)(
                block.cross_norm(features), keys, keys, average_attn_weights=False
            )
            maps.append(weights[0])  # (heads, 1, N)
            features = torchs_layer(block)(attended + features)
        expected = torch.stack(maps).mean((0, 1))[0]
        if name == "text_attn":
            expected = (features[0] @ text[0, 0] / math.sqrt(D)).softmax(0)
        torch.testing.assert_close(attention[i, k], expected, atol=1e-5, rtol=1e-4)
    for size in (1, 7, 100):
        model.config.region_chunk_size = size
        again = model.model.get_image_features(pixels, region_attention=True).attentions
        torch.testing.assert_close(again, output.attentions, atol=1e-4, rtol=1e-4)
    model.config.region_chunk_size = None


def test_region_loss_by_hand(paper):
    """Of two images and three regions, two have boxes: half of four patches, and one patch."""
    cover = torch.zeros(2, 3, 4)
    cover[0, 0], cover[1, 2] = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.5, 1.0])
    logits = torch.zeros(2, 3, 4, requires_grad=True)
    loss = paper[0].model.locate(logits.log_softmax(-1), cover)
    assert float(loss) == pytest.approx((math.log(2) - math.log(1.5 / 4)) / 2)  # masses 1/2 and 0.25 x 0.5 + 0.25
    loss.backward()
    expected = torch.zeros(2, 3, 4)  # a (1 - c / m) / 2
    expected[0, 0] = torch.tensor([-1.0, -1.0, 1.0, 1.0]) / 8
    expected[1, 2] = torch.tensor([1.0, 1.0, 1 - 0.5 / 0.375, 1 - 1 / 0.375]) / 8
    torch.testing.assert_close(logits.grad, expected)  # no box, no gradient


def test_region_loss_at_its_optimum_and_far_from_it(paper):
    """0 where all attention is inside; finite, with a gradient, where float32 has none left inside."""
    cover = torch.tensor([[[0.0, 1.0, 0.3, 0.0]]])
    inside = torch.tensor([[[-torch.inf, 0.0, -torch.inf, -torch.inf]]])
    assert paper[0].model.locate(inside, cover) == 0
    logits = torch.tensor([[[300.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    loss = paper[0].model.locate(logits.log_softmax(-1), cover)
    loss.backward()
    assert float(loss) == pytest.approx(300 - math.log(1.3), rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[[1.0, -1 / 1.3, -0.3 / 1.3, 0.0]]]))
    assert paper[0].model.locate(logits.log_softmax(-1), torch.zeros(1, 1, 4)) == 0  # no box at all
    with pytest.raises(ValueError, match=r"region_cover must be \(1, 1, 4\), not \(1, 4\)"):
        paper[0].model.locate(inside, cover[0])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_steps_move_attention_into_the_boxes(checkpointing, weighing):
    """Gradient steps on L_region alone: attention goes where the boxes are, through E alone."""
    name, _, processor = weighing
    model, _ = build(**WEIGHING[name], lambda_region=0.5)
    if checkpointing:
        model.train().activation_checkpointing_enable({"use_reentrant": False})
    inputs = encode(processor, QUESTIONS[:2])
    cover = torch.zeros(2, K, N)
    cover[0, 3, :4], cover[1, 3, 12:], cover[0, 20, 5] = 1, 1, 1
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        output = model(**inputs, region_cover=cover)
        losses.append(output.region_loss.item())
        optimizer.zero_grad()
        output.region_loss.backward()
        optimizer.step()
    assert losses[1] < losses[0] and losses[-1] < 0.3 * losses[0]
    moved = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"visual_extractor"}
    with torch.no_grad():
        attention = model.eval().model.get_image_features(inputs["pixel_values"], region_attention=True).attentions
    mass = (attention.exp() * cover).sum(-1)
    assert mass[0, 3] > 0.5 and mass[1, 3] > 0.5 and mass[0, 20] > 0.3


def test_the_region_loss_counts_with_its_weight(weighing):
    _, model, processor = weighing
    inputs = encode(processor, QUESTIONS[:2], REPORTS)
    labels, cover = inputs["input_ids"], torch.rand(2, K, N)
    plain = model(**inputs, labels=labels)
    assert plain.region_loss is None
    both = model(**inputs, labels=labels, region_cover=cover)
    assert both.region_loss > 0
    torch.testing.assert_close(both.loss, plain.loss + 0.5 * both.region_loss)
    assert torch.equal(both.logits, plain.logits)
    model.config.lambda_region = 0.0
    assert model(**inputs, labels=labels, region_cover=cover).region_loss is None
    model.config.lambda_region = 0.5
    none = model(**inputs, labels=labels, region_cover=torch.zeros(2, K, N))
    assert none.region_loss == 0 and none.loss == plain.loss


def test_regions_that_weigh_no_patches_have_no_attention(paper):
    model, processor = paper
    with pytest.raises(ValueError, match="regions weigh patches with region_attn_mode text_query or region_pool"):
        model.model.get_image_features(encode(processor)["pixel_values"], region_attention=True)


PROCESSORS = {  # how the image processor changes a picture, before patches of 16 pixels
    "squashed": {"size": {"height": 64, "width": 64}, "do_center_crop": False},
    "cropped": {"size": {"shortest_edge": 64}, "crop_size": 64},  # BiomedCLIP's
    "padded": {"size": {"shortest_edge": 40}, "crop_size": 64},
    "untouched": {"do_resize": False, "crop_size": 64},
}


@pytest.mark.parametrize("size", [(200, 100), (90, 150), (64, 64), (61, 83)], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_boxes_go_where_the_image_processor_puts_them(name, size, paper):
    """The processor itself tells: a white box on black, as it comes out, has the brightness of the cover."""
    width, height = size
    box = {"region": "carina", "x0": 0.3 * width, "y0": 0.2 * height, "x1": 0.85 * width, "y1": 0.6 * height}
    box |= {side: round(value) for side, value in box.items() if side != "region"}
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[box["y0"] : box["y1"], box["x0"] : box["x1"]] = 255
    images = CLIPImageProcessor(image_mean=[0.0] * 3, image_std=[1.0] * 3, **PROCESSORS[name])
    shown = images(PILImage.fromarray(pixels), return_tensors="pt")["pixel_values"][0, 0]
    assert shown.shape == (64, 64)
    expected = shown.unfold(0, 16, 16).unfold(1, 16, 16).mean((2, 3)).flatten()
    processor = LMRRGProcessor(images, paper[1].tokenizer)
    cover = processor.cover_patches([box], size, ["svc", "carina"], 16)
    assert cover.shape == (2, 16) and not cover[0].any() and cover[1].max() == 1
    torch.testing.assert_close(cover[1], expected / expected.max(), atol=0.06, rtol=0)


def cover_of(paper, boxes, pixels, names=("carina", "svc"), **options) -> list:
    images = CLIPImageProcessor(**PROCESSORS["squashed"] | options)
    return LMRRGProcessor(images, paper[1].tokenizer).cover_patches(boxes, pixels, names, 16).view(-1, 4, 4).tolist()


def box_of(region: str, *sides: float) -> dict:
    return {"region": region, **dict(zip(("x0", "y0", "x1", "y1"), sides, strict=True))}


def test_cover_by_hand(paper):
    """200 x 100 pixels become 64 x 64: 50 across and 25 down are one patch."""
    empty = [[0.0] * 4] * 4
    carina, svc = cover_of(paper, [box_of("carina", 50, 25, 125, 50)], (200, 100))
    assert svc == empty and carina == [[0, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    small = [box_of("carina", 60, 30, 70, 35)]  # within one patch: a 25th of it, and yet all that there is
    assert cover_of(paper, small, (200, 100))[0] == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    two = [box_of("svc", 0, 0, 25, 25), box_of("svc", 25, 0, 50, 25), box_of("svc", 150, 0, 175, 25)]
    assert cover_of(paper, two, (200, 100))[1][0] == [1, 0, 0, 0.5]  # two halves, and a half
    assert cover_of(paper, [two[0], two[0], two[2]], (200, 100))[1][0] == [1, 0, 0, 0.5]  # counted twice: at most 1
    assert cover_of(paper, [box_of("left atrium", 0, 0, 50, 50)], (200, 100)) == [empty, empty]  # no such region
    assert cover_of(paper, [], (200, 100)) == [empty, empty]
    cropped = {"size": {"shortest_edge": 64}, "crop_size": 64, "do_center_crop": True}  # 100 x 200: 32 go at each end
    above, below = box_of("carina", 0, 0, 100, 40), box_of("svc", 0, 0, 100, 100)
    assert cover_of(paper, [above, below], (100, 200), **cropped) == [empty, [[1] * 4, [1] * 4, [0] * 4, [0] * 4]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"do_pad": True}, r"pads images \(do_pad\)"),
        ({"size": {"shortest_edge": 64, "longest_edge": 80}}, "resizes to .*: where boxes are then is not known"),
    ],
)
def test_image_processors_that_boxes_cannot_follow(options, sentence, paper):
    with pytest.raises(ValueError, match=sentence):
        cover_of(paper, [box_of("svc", 0, 0, 9, 9)], (100, 200), **options)


# Training


def rows() -> Dataset:
    data = [
        {
            "prompt": [{"role": "user", "content": DEFAULT_INSTRUCTION}],
            "completion": [{"role": "assistant", "content": REPORTS[i % 3]}],
            "images": [image(i)],
        }
        for i in range(4)
    ]
    return Dataset.from_list(data).cast_column("images", List(Image()))


def settings(tmp_path, kind=SFTConfig, **changes):
    values = {
        "output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2,
        "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "no", "disable_tqdm": True,
        "gradient_checkpointing": False, "logging_steps": 1, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return kind(**values | changes)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_stock_sft_trains_every_part(checkpointing, tmp_path):
    model, processor = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = settings(tmp_path, max_steps=15, gradient_checkpointing=checkpointing)
    trainer = SFTTrainer(model, args, train_dataset=rows(), processing_class=processor)
    batch = trainer.data_collator([dict(row) for row in rows()])
    learned = processor.batch_decode([row[row != -100] for row in batch["labels"]])
    assert learned == [f"{REPORTS[i % 3]}<|im_end|>" for i in range(4)]
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < 0.7 * losses[0]
    still = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    dead = {name for name in before if ".cross_attention.query." in name or ".cross_attention.key." in name}
    dead |= {name for name in before if "disease_head" in name or ".cross_norm." in name}  # one key; no labels here
    buffers = {"model.visual_extractor.region_features", "model.visual_extractor.region_mask"}
    assert buffers <= still and still - dead <= buffers


def test_trls_own_pass_has_the_disease_loss(tmp_path):
    """What stage 1 adds to SFTTrainer's loss comes from the pass that SFTTrainer makes."""
    model, processor = build()
    trainer = SFTTrainer(model, settings(tmp_path), train_dataset=rows(), processing_class=processor)
    batch = trainer.data_collator([dict(row) for row in rows()])
    batch["disease_labels"] = torch.ones(4, 14, dtype=torch.long)
    seen = []
    handle = model.base_model.register_forward_hook(lambda *args: seen.append(args[-1].disease_loss))
    report_loss = trainer.compute_loss(model, dict(batch))
    handle.remove()
    del model.forward  # TRL's fused head
    both = model(**batch)
    torch.testing.assert_close(both.loss, report_loss + seen[0], atol=1e-4, rtol=1e-4)
    assert len(seen) == 1 and seen[0].requires_grad


def test_lora_vtrans_and_e_train_alone(tmp_path):
    model, processor = build()
    lora = LoraConfig(
        r=2,
        target_modules=r".*language_model.*\.(q|v)_proj",
        modules_to_save=["visual_extractor", "visual_transfer"],
    )
    args = settings(tmp_path, gradient_checkpointing=True)  # TRL's default
    trainer = SFTTrainer(model, args, train_dataset=rows(), processing_class=processor, peft_config=lora)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or ".modules_to_save." in name for name in trained)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trained
    for part in ("lora_B", "vtrans", "region_encoder", "vision_model"):
        assert any(part in name for name in moved), part
    trainer.save_model(tmp_path / "adapter")
    back = PeftModel.from_pretrained(build()[0], tmp_path / "adapter").eval()
    inputs = encode(processor, QUESTIONS)
    with torch.no_grad():
        torch.testing.assert_close(back(**inputs).logits, trainer.model.eval()(**inputs).logits)


@pytest.mark.parametrize("lora", [False, True])
def test_stock_grpo_trains_it(lora, tmp_path):
    model, processor = build()
    model.save_pretrained(tmp_path / "model")  # TRL reads the reference model from there
    data = rows().select_columns(["prompt", "images"])
    args = settings(
        tmp_path, GRPOConfig, per_device_train_batch_size=4, num_generations=2, max_completion_length=4, max_steps=1,
        beta=0.04,
    )  # fmt: skip
    adapter = LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", modules_to_save=["visual_transfer"])
    reward = lambda completions, **_: [float(len(str(c)) + i) for i, c in enumerate(completions)]  # noqa: E731
    model = LMRRGForConditionalGeneration.from_pretrained(tmp_path / "model")
    trainer = GRPOTrainer(
        model, reward, args, train_dataset=data, processing_class=processor, peft_config=adapter if lora else None
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert any("vtrans" in name for name in moved) and any("vision_model" in name for name in moved) != lora
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-4)


@torch.no_grad()
def test_trls_log_probs_of_encoded_images(tmp_path):
    """TRL hands `pixel_values` on, slice by slice, so E's features can go through its passes in their place."""
    model, processor = build()
    data = rows().select_columns(["prompt", "images"])
    args = settings(tmp_path, GRPOConfig, num_generations=2, max_completion_length=4)
    reward = lambda completions, **_: [0.0 for _ in completions]  # noqa: E731
    trainer = GRPOTrainer(model, reward, args, train_dataset=data, processing_class=processor)
    batch = encode(processor, QUESTIONS, ["Clear."] * 4)
    texts, pixels = (batch["input_ids"], batch["attention_mask"], 3), batch["pixel_values"]
    options = {"batch_size": 3, "num_images": [1] * 4}
    expected, _, _ = trainer._get_per_token_logps_and_entropies(model, *texts, pixel_values=pixels, **options)
    pixels = model.model.encode_images(pixels)
    calls = []
    model.model.visual_extractor.register_forward_hook(lambda *args: calls.append(1))
    found, _, _ = trainer._get_per_token_logps_and_entropies(model, *texts, pixel_values=pixels, **options)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.shape == (4, 3) and not calls


def test_a_frozen_e_stays_as_it_is_to_the_bit(tmp_path):
    model, processor = build()
    model.save_pretrained(tmp_path / "model")
    model = LMRRGForConditionalGeneration.from_pretrained(tmp_path / "model", freeze_extractor=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    SFTTrainer(model, settings(tmp_path), train_dataset=rows(), processing_class=processor).train()
    still = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert still == {name for name in before if "visual_extractor" in name}
    assert model.training and not any(module.training for module in model.model.visual_extractor.modules())
    assert not model.model.encode_images(encode(processor)["pixel_values"]).requires_grad


def test_a_frozen_image_encoder():
    model, processor = build(freeze_vision=True)
    inputs = encode(processor)
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    extractor = model.model.visual_extractor
    assert extractor.region_encoder.blocks[0].self_attention.query.weight.grad.any()
    assert not extractor.vision_model.training and extractor.region_encoder.training
    frozen = [*extractor.vision_model.parameters(), *extractor.visual_projection.parameters()]
    assert all(p.grad is None for p in frozen)


# Saving


@torch.no_grad()
def test_saved_models_need_no_project(paper, tmp_path, run_without_project):
    """LM-RRG with either kind of region text, and a BiomedCLIP, in one process that cannot find the project."""
    expected = {}
    for name, (model, processor) in {"pooled": paper, "tokens": build(region_text="tokens")}.items():
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        inputs = encode(processor, QUESTIONS)
        images = [[np.asarray(image(0).convert("RGB"))]]
        again = processor(images=images, text=[IMAGE_TOKEN + "Look."], return_tensors="pt")
        logits = model(**inputs).logits
        expected[name] = {"inputs": dict(inputs), "logits": logits, "images": images, "again": dict(again)}
        back = LMRRGForConditionalGeneration.from_pretrained(tmp_path / name)
        assert all(torch.equal(back.state_dict()[key], value) for key, value in model.state_dict().items())
        assert back.lm_head.weight is back.get_input_embeddings().weight
        assert back.config.region_texts == [region["description"] for region in read_regions(REGIONS_FILE)]
    clip, _, _ = build_biomedclip(["lung"])
    clip.save_pretrained(tmp_path / "clip")
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "pixel_values": torch.randn(1, 3, 64, 64)}
    expected["clip"] = {"inputs": inputs, "logits": clip(**inputs).logits_per_image}
    torch.save(expected, tmp_path / "expected.pt")
    run_without_project("""
from transformers import AutoModelForImageTextToText, AutoProcessor
expected = torch.load("expected.pt", weights_only=False)
for name in ("pooled", "tokens"):
    model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    with torch.no_grad():
        logits = model(**expected[name]["inputs"]).logits
    assert type(model).__name__ == "LMRRGForConditionalGeneration" and torch.equal(logits, expected[name]["logits"])
    again = processor(images=expected[name]["images"], text=["<image>Look."], return_tensors="pt")
    known = expected[name]["again"]
    assert set(again) == set(known) and all(torch.equal(again[key], value) for key, value in known.items())
clip = AutoModel.from_pretrained("clip", trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(clip(**expected["clip"]["inputs"]).logits_per_image, expected["clip"]["logits"])
""")


def test_registered(paper):
    assert type(AutoConfig.for_model("lmrrg")) is LMRRGConfig
    assert type(AutoModelForImageTextToText.from_config(paper[0].config)) is LMRRGForConditionalGeneration


def test_defaults_are_the_papers_sizes():
    config = LMRRGConfig()
    assert (config.num_visual_tokens, config.projection_dim, config.num_region_layers) == (1 + 29, 512, 3)
    assert (config.region_attn_mode, config.region_pool, config.region_prompt) == (
        "image_query",
        "mean",
        "description",
    )
    vision, decoder = config.vision_config, config.text_config
    assert (vision.hidden_size, (vision.image_size // vision.patch_size) ** 2) == (768, 196)  # ViT-B/16, N
    assert (decoder.hidden_size, decoder.num_hidden_layers, config.decoder_width) == (2560, 32, 2560)  # OPT-2.7B
    with torch.device("meta"):
        model = LMRRGForConditionalGeneration(config)
    blocks = sum(p.numel() for p in model.model.visual_extractor.region_encoder.parameters())
    vtrans = sum(p.numel() for p in model.model.visual_transfer.vtrans.parameters())
    width = 512  # cross- and self-attention have 4 D^2 + 4 D each, the network 8 D^2 + 5 D, three norms 2 D each
    assert blocks == 3 * (16 * width**2 + 19 * width)
    width = 2560
    assert vtrans == 3 * (12 * width**2 + 13 * width)


def test_tiny_is_seeded():
    one, same, other = (build_lmrrg(TEXTS, vocab_size=400, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(
        one["model.visual_extractor.region_features"], other["model.visual_extractor.region_features"]
    )
    with pytest.raises(ValueError, match=r"image_size .60. must be a multiple of 16"):
        build_lmrrg(TEXTS, image_size=60)
    coarse, _ = build_lmrrg(TEXTS, image_size=56, patch_size=28)
    assert coarse.model.visual_extractor.vision_model.embeddings.position_embeddings.shape[1] == 1 + 2 * 2
    with pytest.raises(ValueError, match=r"image_size .64. must be a multiple of 28"):
        build_lmrrg(TEXTS, patch_size=28)
    with pytest.raises(ValueError, match=r"hidden_size .40. must be a multiple of 16"):
        build_lmrrg(TEXTS, hidden_size=40)


@torch.no_grad()
def test_runs_in_bfloat16(paper):
    model, processor = build()
    inputs = encode(processor, QUESTIONS)
    found = model.to(torch.bfloat16)(**inputs, disease_labels=torch.ones(4, 14, dtype=torch.long))
    assert found.logits.dtype == torch.bfloat16 and found.logits.isfinite().all() and found.disease_loss.isfinite()
    assert nn.functional.cosine_similarity(found.logits.float(), paper[0](**inputs).logits, dim=-1).min() > 0.95


# The processor


@pytest.mark.parametrize("text", ["The heart is normal.", "  two  spaces\n\nand lines ", "<b>é 心脏</b>", ""])
def test_text_round_trips(paper, text):
    ids = paper[1](text=text)["input_ids"][0]
    assert paper[1].decode(ids, skip_special_tokens=True) == text


def test_one_image_or_a_flat_list_will_do(paper):
    processor = paper[1]
    one = processor(images=image(1), text=IMAGE_TOKEN)
    assert one["pixel_values"].shape == (1, 3, 64, 64) and one["input_ids"] == [[processor.image_token_id] * (1 + K)]
    flat = processor(images=[image(1), image(2)], text=[IMAGE_TOKEN] * 2)["pixel_values"]
    assert flat.shape == (2, 3, 64, 64) and torch.equal(flat[:1], one["pixel_values"])
    chat = [{"role": "user", "content": [{"type": "image", "image": image(1)}, {"type": "text", "text": "Look."}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], one["pixel_values"])


# Bad input


@pytest.mark.parametrize(
    ("images", "text", "sentence"),
    [
        ([[image(0)] * 2], IMAGE_TOKEN * 2, "text 0 has 2 images; LM-RRG reads one, the frontal view"),
        ([[image(0)]], "Look.", "text 0 has 0 <image> markers and 1 images"),
        (None, IMAGE_TOKEN, "text 0 has 1 <image> markers and 0 images"),
        ([[image(0)], []], [IMAGE_TOKEN] * 2, "text 1 has 1 <image> markers and 0 images"),
        ([image(0)] * 3, [IMAGE_TOKEN] * 2, "images of 3 studies for 2 texts"),
    ],
)
def test_the_processor_refuses(paper, images, text, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        paper[1](images=images, text=text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pixel_values": torch.zeros(2, 64, 64, 3, 1)}, r"pixel_values must be \(n, 3, height, width\)"),
        ({"pixel_values": torch.zeros(2, 7, D)}, r"encoded images must be \(n, 30, 32\), not \(2, 7, 32\)"),
        ({"input_ids": torch.zeros(2, 5, dtype=torch.long)}, "0 placeholders for 60 visual features: were they cut"),
        (
            {"disease_labels": torch.zeros(2, 13, dtype=torch.long)},
            r"disease_labels must be CheXpert states \(2, 14\)",
        ),
        ({"disease_labels": torch.full((2, 14), 2)}, "the last .No Finding. 0, 1 or -100"),
    ],
)
def test_the_model_refuses(paper, change, sentence):
    model, processor = paper
    inputs = dict(encode(processor, QUESTIONS[:2])) | change
    if "input_ids" in change:
        inputs["attention_mask"] = torch.ones(2, 5)
    with pytest.raises(ValueError, match=sentence):
        model(**inputs)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"region_pool": "max"}, "region_pool must be one of mean, text_attn, cls, not 'max'"),
        ({"region_attn_mode": "both"}, "region_attn_mode must be one of image_query, text_query"),
        ({"region_attn_mode": "text_query", "region_pool": "cls"}, "text_query needs region_text pooled"),
        ({"region_prompt": "names"}, "region_prompt must be one of description, name"),
        ({"use_global_feature": False, "use_region_features": False}, "cannot both be false"),
        ({"region_chunk_size": 0}, "region_chunk_size must be at least 1, not 0"),
        ({"num_vtrans_layers": 0}, "num_vtrans_layers must be at least 1"),
        ({"lambda_disease": -1.0}, "lambda_disease must be 0 or more, not -1.0"),
        ({"lambda_region": -1.0}, "lambda_region must be 0 or more, not -1.0"),
        ({"lambda_region": 1.0}, "^lambda_region needs regions that weigh patches, by region_attn_mode text_query or"),
        ({"lambda_region": 1.0, "region_text": "tokens"}, "lambda_region needs regions that weigh patches"),
        ({"lambda_region": 1.0, "region_pool": "cls"}, "lambda_region needs regions that weigh patches"),
        (
            {"lambda_region": 1.0, "region_pool": "text_attn", "use_region_features": False},
            "lambda_region needs regions that weigh patches",
        ),
        ({"region_heads": 7}, r"region_heads \(7\) must divide the width 512"),
        ({"vtrans_heads": 7}, r"vtrans_heads \(7\) must divide the width 2560"),
    ],
)
def test_the_configuration_refuses(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        LMRRGConfig(**values)


# From parts

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DECODERS = {
    "opt": (OPTForCausalLM, OPTConfig, SMALL | {"ffn_dim": 64, "init_std": 0.1}),
    "opt-350m": (OPTForCausalLM, OPTConfig, SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 16, "init_std": 0.1}),
    "llama": (LlamaForCausalLM, LlamaConfig, SMALL | {"intermediate_size": 64, "initializer_range": 0.1}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.1}),
    "phi": (PhiForCausalLM, PhiConfig, SMALL | {"intermediate_size": 64, "initializer_range": 0.1}),  # untied, bias
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        SMALL
        | {
            "intermediate_size": 64,
            "head_dim": 16,
            "num_key_value_heads": 2,
            "final_logit_softcapping": 0.1,
            "initializer_range": 0.1,
        },
    ),
    "bert": (BertLMHeadModel, BertConfig, SMALL | {"intermediate_size": 64, "is_decoder": True}),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A converted BiomedCLIP, decoders of several families, a BLIP-2 and what is none, in folders as on the Hub."""
    folder = tmp_path_factory.mktemp("parts")
    texts = [region["description"] for region in read_regions(REGIONS_FILE)]
    clip, tokenizer, image_processor = build_biomedclip(texts, text_size=48, projection_dim=64, seed=5)
    for part in (clip, tokenizer, image_processor):
        part.save_pretrained(folder / "clip")
    (folder / "open_clip").mkdir()
    (folder / "open_clip/config.json").write_text('{"model_cfg": {}}')
    words = train_tokenizer(TEXTS, 399)  # without <image>, and without a padding token
    words.bos_token, words.pad_token = "<|im_start|>", None
    ids = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": words.eos_token_id, "pad_token_id": None}
    torch.manual_seed(3)
    for name, (kind, config, sizes) in DECODERS.items():
        kind(config(**sizes, **ids)).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    seen = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    blip = Blip2Config(
        vision_config=Blip2VisionConfig(**seen, image_size=28).to_dict(),
        qformer_config=Blip2QFormerConfig(**seen, encoder_hidden_size=16).to_dict(),
        text_config=OPTConfig(**DECODERS["opt"][2], **ids).to_dict(),
    )
    Blip2ForConditionalGeneration(blip).save_pretrained(folder / "blip2")
    words.save_pretrained(folder / "blip2")
    blip.text_config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    blip.save_pretrained(folder / "blip2-t5")
    T5Config().save_pretrained(folder / "t5")
    ViTConfig().save_pretrained(folder / "vit")
    for name in ("blip2-t5", "t5", "vit"):
        words.save_pretrained(folder / name)
    shutil.copytree(folder / "opt", folder / "weightless")
    (folder / "weightless/model.safetensors").unlink()
    return folder


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["blip2", "opt", "opt-350m", "llama", "gpt2", "phi"])
def test_from_pretrained_parts(parts, decoder, tmp_path):
    name = str(parts / decoder)
    text = "tokens" if decoder == "blip2" else "pooled"
    model, processor = LMRRGForConditionalGeneration.from_pretrained_parts(
        str(parts / "clip"), name, region_text=text, vtrans_heads=2
    )
    kind = Blip2ForConditionalGeneration if decoder == "blip2" else DECODERS[decoder][0]
    original = kind.from_pretrained(name)
    original = original.language_model if decoder == "blip2" else original
    ids = torch.tensor([processor.tokenizer("The heart is normal.")["input_ids"]])
    size = original.config.vocab_size  # <image> is one more, 48 rows have no token
    assert (size, model.config.text_config.vocab_size, model.config.image_token_id) == (399, 448, 399)
    torch.testing.assert_close(model(ids).logits[..., :size], original(ids).logits)
    mean = original.get_output_embeddings().weight.mean(0)
    torch.testing.assert_close(model.lm_head.weight[size:], mean.expand(49, -1), atol=1e-3, rtol=0)
    assert processor.tokenizer.pad_token == "<|im_end|>" and not model.training
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])

    clip = BiomedCLIPModel.from_pretrained(parts / "clip")
    inputs = encode(processor, QUESTIONS)
    patches = clip.get_image_features(inputs["pixel_values"]).last_hidden_state[:, 1:]
    features = model.model.encode_images(inputs["pixel_values"])
    torch.testing.assert_close(features[:, 0], patches.mean(1))
    cached = model.model.visual_extractor.region_features
    tokenizer = AutoTokenizer.from_pretrained(parts / "clip")
    for k, region in enumerate(read_regions(REGIONS_FILE)):
        encoded = tokenizer(region["description"], return_tensors="pt")
        read = clip.get_text_features(**encoded).last_hidden_state[0]
        read = read if text == "tokens" else read[:1]
        torch.testing.assert_close(cached[k, : len(read)], read, atol=1e-5, rtol=1e-4)
        assert model.model.visual_extractor.region_mask[k].sum() == len(read)

    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert not (answer[:, -4:] == model.config.image_token_id).any()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    back, loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loaded[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(back.eval()(**inputs).logits, model(**inputs).logits)
    assert (back.lm_head.bias is not None) == model.config.head_bias == (decoder == "phi")
    assert (back.lm_head.weight is back.get_input_embeddings().weight) == model.config.tie_word_embeddings
    assert back.lm_head.out_features == 448 and back.generation_config.suppress_tokens == list(range(399, 448))
    assert type(AutoProcessor.from_pretrained(tmp_path)) is LMRRGProcessor
    assert str(parts) not in (tmp_path / "config.json").read_text()


@torch.no_grad()
@pytest.mark.parametrize(("revision", "size"), [("old", 50272), ("new", 50304)])
def test_both_revisions_of_blip2(parts, revision, size, tmp_path):
    """Their decoder ends at a newline alone; a report ends at </s>, and it may have lines. No row is added."""
    blip = replicas.blip2_opt(tmp_path / "blip2", revision)
    assert find_unreadable(blip) is None
    model, processor = LMRRGForConditionalGeneration.from_pretrained_parts(
        str(parts / "clip"), str(blip), vtrans_heads=2
    )
    newline, end = 50118, 2
    assert processor.tokenizer("\n", add_special_tokens=False)["input_ids"] == [newline]
    assert len(processor.tokenizer) == 50266 and model.config.text_config.vocab_size == size
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    assert back.generation_config.eos_token_id == back.config.text_config.eos_token_id == end
    assert back.generation_config.suppress_tokens == list(range(50265, size))
    assert back.generation_config.pad_token_id == 1
    inputs = encode(processor)
    torch.testing.assert_close(back(**inputs).logits, model(**inputs).logits)

    forced = [newline, newline, end, newline]
    start = inputs["input_ids"].shape[1]
    answer = back.generate(
        **inputs, max_new_tokens=4, prefix_allowed_tokens_fn=lambda _, ids: [forced[len(ids) - start]]
    )
    assert answer[0, start:].tolist() == forced[:3]
    args = settings(tmp_path, GRPOConfig, num_generations=2)
    data = rows().select_columns(["prompt", "images"])
    trainer = GRPOTrainer(back, lambda completions, **_: [0.0], args, train_dataset=data, processing_class=processor)
    assert trainer.eos_token_ids == [end]  # TRL's, where completions of GRPO and episodes of PPO end


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"biomedclip": "no/such"}, "^biomedclip='no/such' cannot be loaded: .*; name a folder or a Hub id$"),
        ({"biomedclip": "open_clip"}, "is a open_clip model; convert BiomedCLIP with recipes/convert_biomedclip.py"),
        ({"biomedclip": "vit"}, "is a vit model; convert BiomedCLIP"),
        ({"decoder": "no/such"}, "^decoder='no/such' cannot be loaded: .*; name a folder or a Hub id$"),
        ({"decoder": "weightless"}, "^decoder='.*weightless' cannot be loaded: .*; name a folder or a Hub id$"),
        ({"decoder": "t5"}, r"is an encoder-decoder \(t5\); LM-RRG needs a causal language model"),
        ({"decoder": "blip2-t5"}, r"is an encoder-decoder \(t5\)"),  # Flan-T5's BLIP-2
        ({"decoder": "vit"}, "is a vit model, which is no causal language model"),
        ({"decoder": "bert"}, "is a bert model whose logits are not one linear layer of its states"),
        ({"decoder": "gemma2"}, "is a gemma2 model whose logits are not one linear layer of its states"),
        ({"region_descriptions": "no/such.json"}, "region_descriptions='no/such.json' cannot be read as JSON"),
        ({"region_descriptions": "long.json"}, "the region text 'lung lung .* has 302 tokens, more than the 256"),
    ],
)
def test_wrong_parts_are_refused(parts, changes, sentence):
    long = [{"name": "trachea", "description": "lung " * 300}]
    (parts / "long.json").write_text(json.dumps(long))
    values = {"biomedclip": "clip", "decoder": "opt", "region_descriptions": str(REGIONS_FILE)} | changes
    values = {key: str(parts / value) if (parts / value).exists() else value for key, value in values.items()}
    with pytest.raises(ValueError, match=sentence) as error:
        LMRRGForConditionalGeneration.from_pretrained_parts(**values)
    assert "\n" not in str(error.value)


def test_another_set_of_descriptions(parts, tmp_path):
    twelve = [{"name": name, "description": f"The {name} in words."} for name in REGION_NAMES[:12]]
    (tmp_path / "twelve.json").write_text(json.dumps(twelve))
    model, processor = LMRRGForConditionalGeneration.from_pretrained_parts(
        str(parts / "clip"), str(parts / "opt"), tmp_path / "twelve.json"
    )
    assert processor.num_visual_tokens == 13 and model.config.region_names == list(REGION_NAMES[:12])


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["description", "name"])
@pytest.mark.parametrize("region_text", ["pooled", "tokens"])
def test_each_region_has_the_features_of_its_text(parts, tmp_path, prompt, region_text):
    """In the order of the file, which is no order of the alphabet."""
    names, clip = [*REGION_NAMES[5::-1]], str(parts / "clip")
    regions = [{"name": name, "description": f"The {name} " + "in words " * i} for i, name in enumerate(names, 1)]
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    options = {"region_prompt": prompt, "region_text": region_text}
    model, _ = LMRRGForConditionalGeneration.from_pretrained_parts(
        clip, str(parts / "opt"), tmp_path / "regions.json", **options
    )
    encoder, tokenizer = load_biomedclip(clip)
    extractor, config = model.model.visual_extractor, model.config
    texts = [region[prompt] for region in read_regions(tmp_path / "regions.json")]
    assert (config.region_names, config.region_texts, config.region_prompt) == (names, texts, prompt)
    for i, text in enumerate(texts):
        ids = tokenizer([text], return_tensors="pt")
        alone = encoder.get_text_features(**ids).last_hidden_state[0]
        alone = alone if region_text == "tokens" else alone[:1]
        torch.testing.assert_close(extractor.region_features[i, : len(alone)], alone, atol=1e-5, rtol=1e-4)
        assert extractor.region_mask[i].sum() == len(alone) and extractor.region_mask[i, : len(alone)].all()
    pooled = extractor.region_features[:, 0]
    apart = torch.cdist(pooled, pooled) + torch.eye(len(names))
    assert apart.min() > 1e-3  # no two are alike, so that no other order would do


# The miniature learns


def test_it_tells_four_images_apart(tmp_path):
    """The same question for all four, so that only what E sees tells their reports apart."""
    reports = [f"There is {finding}." for finding in ("effusion", "edema", "consolidation", "atelectasis")]
    model, processor = build_lmrrg([*TEXTS, *reports] * 3, vocab_size=400)
    data = rows().to_list()
    for row, report in zip(data, reports, strict=True):
        row["completion"][0]["content"] = report
    data = Dataset.from_list(data).cast_column("images", List(Image()))
    args = settings(tmp_path, max_steps=40, learning_rate=3e-3)
    SFTTrainer(model, args, train_dataset=data, processing_class=processor).train()
    inputs = encode(processor, [DEFAULT_INSTRUCTION] * 4)
    answers = model.eval().generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(answers, skip_special_tokens=True) == reports
