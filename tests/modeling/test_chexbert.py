"""CheXbert against the two published classes where they are installed, and always against BERT written out by hand."""

import importlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BertModel, Trainer, TrainingArguments

from modeling import CheXbertConfig, CheXbertModel
from modeling.tiny import build_chexbert

CONFIG = CheXbertConfig(
    vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40
)
IDS = torch.tensor([[2, 9, 8, 7, 3, 0], [2, 30, 3, 0, 0, 0], [2, 59, 58, 57, 56, 3]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def model() -> CheXbertModel:
    """Random weights, large enough that every part shows in the output."""
    torch.manual_seed(0)
    model = CheXbertModel(CONFIG).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def by_hand(w: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list]:
    """BERT's encoder (Devlin et al. 2019: post-norm, GELU) from a state dict: the [CLS] state and 14 heads' logits."""

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    tables = [w[f"bert.embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    x = norm(tables[0][ids] + tables[1][: ids.shape[1]] + tables[2][0], "bert.embeddings.LayerNorm")
    n, length, hidden = x.shape
    for layer in range(CONFIG.num_hidden_layers):
        at = f"bert.encoder.layer.{layer}"
        split = (n, length, CONFIG.num_attention_heads, -1)
        q, k, v = (
            linear(x, f"{at}.attention.self.{p}").view(split).transpose(1, 2) for p in ("query", "key", "value")
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
        context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, hidden)
        x = norm(x + linear(context, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        h = linear(x, f"{at}.intermediate.dense")
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        x = norm(x + linear(h, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x[:, 0], [linear(x[:, 0], f"linear_heads.{i}") for i in range(14)]


def check_same(output, cls: torch.Tensor, heads: list[torch.Tensor]) -> None:
    """The same [CLS] state, logits and labels, to 1e-5."""
    torch.testing.assert_close(output.embedding, cls, atol=1e-5, rtol=0)
    for i, head in enumerate(heads):
        torch.testing.assert_close(output.logits[:, i, : head.shape[1]], head, atol=1e-5, rtol=0)
    assert torch.equal(output.labels, torch.stack([head.argmax(1) for head in heads], 1))


@torch.no_grad()
def test_same_as_bert_by_hand(model):
    output = model(IDS, attention_mask=MASK)
    check_same(output, *by_hand(model.state_dict(), IDS, MASK))
    assert output.logits.shape == (3, 14, 4) and output.labels.shape == (3, 14) and output.embedding.shape == (3, 24)


def original_weights(model: CheXbertModel) -> tuple[BertModel, dict[str, torch.Tensor]]:
    """The published models' encoder, which has a pooler, and all weights for the class around it."""
    bert = BertModel(CONFIG)
    pooler = {f"bert.{name}": tensor for name, tensor in bert.state_dict().items() if name.startswith("pooler.")}
    return bert, {**model.state_dict(), **pooler}


@torch.no_grad()
def test_same_as_radeval(model):
    spec = importlib.util.find_spec("radeval")
    if spec is None:
        pytest.skip("needs radeval: make .venv/oracles")
    file = Path(spec.origin).parent / "metrics/_chexbert_base.py"  # the package itself imports a dozen others
    spec = importlib.util.spec_from_file_location("radeval_chexbert_base", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bert, weights = original_weights(model)
    theirs = module.BaseBertLabeler(device="cpu", backbone=bert, num_4way_heads=13, state_dict=weights).eval()
    check_same(model(IDS, attention_mask=MASK), theirs.cls_embeddings(IDS), theirs.cls_logits(IDS))


@torch.no_grad()
def test_same_as_f1chexbert(model, monkeypatch):
    if importlib.util.find_spec("f1chexbert") is None or importlib.util.find_spec("appdirs") is None:
        pytest.skip("needs f1chexbert and appdirs: make .venv/oracles")
    package = importlib.import_module("f1chexbert.f1chexbert")
    bert, weights = original_weights(model)
    monkeypatch.setattr(package.BertModel, "from_pretrained", lambda path: bert)
    theirs = package.bert_labeler(pretrain_path="the fixture")
    theirs.load_state_dict(weights)
    theirs.eval()
    mask = package.generate_attention_masks(IDS, MASK.sum(1).tolist(), "cpu")
    cls = theirs.bert(IDS, attention_mask=mask)[0][:, 0]
    check_same(model(IDS, attention_mask=MASK), cls, theirs(IDS, mask))


def test_dropout_stands_before_the_heads():
    """All of [CLS] dropped, a head says its bias; the embedding, which RadCliQ compares, is not dropped."""
    assert CheXbertConfig().hidden_dropout_prob == 0.1  # BERT's, as published
    model = CheXbertModel(CONFIG).train()
    assert model.dropout.p == CONFIG.hidden_dropout_prob
    model.bert.eval()
    with torch.no_grad():
        for head in model.linear_heads:
            head.bias.normal_()
        model.dropout.p = 1.0
        dropped = model(IDS, attention_mask=MASK)
        for i, head in enumerate(model.linear_heads):
            assert torch.equal(dropped.logits[:, i, : len(head.bias)], head.bias.expand(3, -1))
        kept = model.eval()(IDS, attention_mask=MASK)
        assert torch.equal(dropped.embedding, kept.embedding) and not torch.equal(dropped.logits, kept.logits)


def test_no_finding_is_blank_or_positive(model):
    output = model(torch.randint(5, 60, (64, 8)))
    assert output.labels[:, 13].max() <= 1 and output.labels[:, :13].max() == 3
    assert (output.logits.softmax(-1)[:, 13, 2:] == 0).all()


def test_loss_is_the_mean_over_known_labels(model):
    labels = torch.randint(0, 2, (3, 14))
    labels[0, :5] = -100
    output = model(IDS, attention_mask=MASK, labels=labels)
    known = [(i, j) for i in range(3) for j in range(14) if labels[i, j] >= 0]
    sizes = [4] * 13 + [2]
    terms = [F.cross_entropy(output.logits[i, j, : sizes[j]], labels[i, j]) for i, j in known]
    assert output.loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    model.zero_grad()


@torch.no_grad()
def test_embeddings_instead_of_ids(model):
    words = model.get_input_embeddings()(IDS)  # what an attribution method differentiates
    torch.testing.assert_close(model(inputs_embeds=words, attention_mask=MASK).logits, model(IDS, MASK).logits)


@torch.no_grad()
def test_padding_changes_nothing(model):
    alone = model(IDS[1:2, :3])
    assert torch.allclose(alone.embedding, model(IDS, attention_mask=MASK).embedding[1:2], atol=1e-5)


def test_registered(model):
    assert type(AutoConfig.for_model("chexbert")) is CheXbertConfig
    assert type(AutoModel.from_config(CONFIG)) is CheXbertModel


@torch.no_grad()
def test_saved_model_needs_no_project(model, tmp_path, run_without_project):
    model.save_pretrained(tmp_path / "saved")
    files = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"model.safetensors", "modeling_chexbert.py", "configuration_chexbert.py"} <= files
    torch.save({"ids": IDS, "mask": MASK, "logits": model(IDS, attention_mask=MASK).logits}, tmp_path / "expected.pt")
    run_without_project("""
model = AutoModel.from_pretrained("saved", trust_remote_code=True)
expected = torch.load("expected.pt")
with torch.no_grad():
    logits = model(expected["ids"], attention_mask=expected["mask"]).logits
assert type(model).__name__ == "CheXbertModel" and torch.equal(logits, expected["logits"])
""")
    back = CheXbertModel.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_trainer_trains_it(tmp_path):
    texts = ["no effusion", "effusion"] * 9
    model, tokenizer = build_chexbert(texts, vocab_size=60, hidden_size=16, heads=4, layers=1)
    rows = [
        {"input_ids": tokenizer(text)["input_ids"], "labels": [state] * 13 + [0]}
        for text, state in (("no effusion", 2), ("effusion", 1), ("", 0))
    ]

    def collate(batch: list[dict]) -> dict:
        padded = tokenizer.pad([{"input_ids": row["input_ids"]} for row in batch], return_tensors="pt")
        return {**padded, "labels": torch.tensor([row["labels"] for row in batch])}

    args = TrainingArguments(
        output_dir=tmp_path,
        max_steps=40,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model, args, train_dataset=rows, data_collator=collate)
    assert trainer.train().training_loss < 1
    with torch.no_grad():
        found = model.eval()(**{name: tensor for name, tensor in collate(rows).items() if name != "labels"}).labels
    assert found.tolist() == [row["labels"] for row in rows]


def test_tiny_is_seeded():
    texts = ["There is a small pleural effusion.", "The heart is normal."] * 3
    (one, tokenizer), (other, _) = build_chexbert(texts, 120), build_chexbert(texts, 120)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert tokenizer.tokenize("Pleural EFFUSION") == ["pleural", "effusion"]
    with pytest.raises(ValueError, match="multiple of heads"):
        build_chexbert(texts, hidden_size=30, heads=4)
