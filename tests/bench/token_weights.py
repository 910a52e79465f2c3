"""Times the search for key sentences against captum, and compares what they find.

    python tests/bench/token_weights.py            # at most 5 minutes on 2 idle cores; needs captum

Three CheXberts: of BERT-base size and of the demo's, both with random weights (heads scaled up; the first two are told
to say positive or uncertain, so that a report has two labels, as a real one has on average), and one of the demo's
size that learns from LexicalLabeler for TEACHING steps. Each reads Open-i reports (findings and impression) of the
installed torchxrayvision that it calls positive or uncertain for something, the one of BERT-base size short ones only,
the trained one as many as recipes/weigh_tokens.py takes at a time.

captum is called as its users call it: LayerIntegratedGradients at the word embeddings with its defaults (50 points,
Gauss-Legendre), one report and one label at a time, all points of a label in one batch. It is told the labels; ours
finds them in the time that is measured. Both run on the same weights and two threads, after a first report that is not
counted. Where 50 points leave captum's error above the tolerance of ours, a second ratio counts the fewest of 50, 100,
200, ... that do not (or 1600), and key sentences are compared with those of these maps. Errors are |sum of
attributions - gap| / max(|gap|, 0.1) where gap = f(x) - f(baseline). The distance of two
maps is the sum over tokens of |ours - captum's| by that of |captum's|. Spans are compared report by report, those of
bf16 with those of float32 on the trained model. A figure is not a test: exits 0 whether or not the bars hold.
Writes outputs/bench/token_weights/results.json.
"""

import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerIntegratedGradients

from modeling import CheXbertConfig, CheXbertModel
from modeling.tiny import build_chexbert
from recipes.cli import report, run
from recipes.data.openi import read_studies, text_columns
from recipes.rg4.token_weights import (
    SHARD,
    TokenWeigher,
    find_key_sentences,
    join_spans,
    original_places,
    score_tokens,
    sentence_spans,
)
from recipes.trainers.evidence import mix
from rewards.chexbert import clean_text, encode
from rewards.labelers import LexicalLabeler

ROOT = Path(__file__).resolve().parents[2]
TEACHING = 3000  # steps of 16 texts: about the 45 seconds that it had before
REPORTS = {"base, random": 4, "tiny, random": 30, "tiny, trained": SHARD}  # that have a label
STEPS = 50  # captum's default
MOST_STEPS = 1600  # captum finds the points as eigenvalues of a matrix of so many rows


def build_base(tokenizer) -> CheXbertModel:
    torch.manual_seed(0)
    return CheXbertModel(CheXbertConfig(vocab_size=len(tokenizer)))


def teach(model: CheXbertModel, tokenizer, reports: list[str]) -> None:
    """A short version of recipes/train_chexbert.py, without its lessons on evidence."""
    teacher, rng = LexicalLabeler(), random.Random(0)
    texts = mix(reports, 12_000, teacher, rng)
    labels = torch.tensor(teacher(texts))
    ids = encode(tokenizer, texts)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    for done in range(TEACHING):
        if done % 32 == 0:
            drawn = sorted(rng.sample(range(len(texts)), 512), key=lambda i: len(ids[i]))
            batches = [drawn[i : i + 16] for i in range(0, 512, 16)]
            rng.shuffle(batches)
        rows = batches[done % 32]
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, done / 100) * (1 - done / TEACHING)
        batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
        optimizer.zero_grad()
        model(**batch, labels=labels[rows]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def compare(model: CheXbertModel, tokenizer, reports: list[str], count: int, folder: Path) -> dict:
    """Rates, errors and agreement on the first `count` of `reports` that have a label."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weigher = TokenWeigher(folder)
    model, pad = CheXbertModel.from_pretrained(folder).eval(), weigher.tokenizer.pad_token_id
    captum = LayerIntegratedGradients(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits, model.get_input_embeddings()
    )
    chosen, labels, rows, offsets = [], [], [], []
    for text in reports:
        encoded = weigher.tokenizer(clean_text(text), return_offsets_mapping=True)
        (states,) = weigher._label([encoded["input_ids"]])
        own = [(i, state) for i, state in enumerate(states[:13]) if state in (1, 3)]
        if own:
            chosen.append(text)
            labels.append(own)
            rows.append(encoded["input_ids"])
            offsets.append(encoded["offset_mapping"])
        if len(chosen) == count:
            break

    weigher(reports[-1:])
    captum.attribute(torch.tensor(rows[:1]), pad, labels[0][0], additional_forward_args=(torch.ones(1, len(rows[0])),))
    start = time.perf_counter()
    ours = weigher(chosen)
    our_seconds = time.perf_counter() - start
    maps, errors = [], []
    start = time.perf_counter()
    for row, own in zip(rows, labels, strict=True):
        tokens = torch.tensor([row])
        baseline = torch.full_like(tokens, pad)
        baseline[:, [0, -1]] = tokens[:, [0, -1]]
        mask = torch.ones_like(tokens)
        given = [captum.attribute(tokens, baseline, label, additional_forward_args=(mask,)) for label in own]
        maps.append([each.sum(-1)[0].numpy() for each in given])
    captum_seconds = time.perf_counter() - start
    exact_seconds, same, distances = 0.0, [], []
    our_maps = [[each.tokens for each in own.values()] for own in weigher.attribute(rows)]
    for text, row, own, their, places, mine, drawn in zip(
        chosen, rows, labels, maps, offsets, ours, our_maps, strict=True
    ):
        tokens = torch.tensor([row])
        baseline = torch.full_like(tokens, pad)
        baseline[:, [0, -1]] = tokens[:, [0, -1]]
        with torch.no_grad():
            gaps = model(input_ids=tokens).logits[0] - model(input_ids=baseline).logits[0]
        mask, exact = torch.ones_like(tokens), []
        for label, each in zip(own, their, strict=True):
            gap = float(gaps[label])
            errors.append(abs(float(each.sum()) - gap) / max(abs(gap), 0.1))
            steps, error = STEPS // 2, 1.0
            while error > weigher.tolerance and steps < MOST_STEPS:  # what captum needs to be as exact
                steps *= 2
                start = time.perf_counter()
                given = captum.attribute(
                    tokens, baseline, label, additional_forward_args=(mask,), n_steps=steps, internal_batch_size=STEPS
                )
                spent = time.perf_counter() - start
                error = abs(float(given.sum()) - gap) / max(abs(gap), 0.1)
            exact_seconds += spent
            exact.append(given.sum(-1)[0].numpy())
        distances += [np.abs(a - b).sum() / np.abs(b).sum() for a, b in zip(drawn, exact, strict=True)]
        characters, sentences = original_places(text), sentence_spans(text)
        scores = score_tokens(np.array([each[1:-1] for each in exact], dtype=float))
        keys = find_key_sentences(sentences, [characters[a] for a, _ in places[1:-1]], scores, weigher.threshold)
        same.append(join_spans(sentences, keys) == mine.spans)
    own_errors = [label[3] for each in ours for label in each.labels]
    return {
        "reports": len(chosen),
        "labels": len(errors),
        "tokens_per_report": float(np.mean([len(row) for row in rows])),
        "captum_reports_per_second": len(chosen) / captum_seconds,
        "reports_per_second": len(chosen) / our_seconds,
        "ratio": captum_seconds / our_seconds,
        "ratio_at_our_tolerance": exact_seconds / our_seconds,
        "mean_nodes": float(np.mean([label[2] for each in ours for label in each.labels])),
        "mean_error": float(np.mean(own_errors)),
        "largest_error": max(own_errors),
        "captum_mean_error": float(np.mean(errors)),
        "captum_largest_error": max(errors),
        "median_map_distance": float(np.median(distances)),
        "90th_percentile_of_map_distance": float(np.percentile(distances, 90)),
        "same_spans": float(np.mean(same)),
    }


def main() -> None:
    torch.set_num_threads(2)
    sections = [text_columns(study, "findings+impression", "plain") for study in read_studies()[0]]
    reports = list(dict.fromkeys(each["report"] for each in sections if each["report"]))
    random.Random(0).shuffle(reports)
    tested, taught = reports[:800], [clean_text(text) for text in reports[800:]]
    figures, checks = {}, []
    for name, count in REPORTS.items():
        model, tokenizer = build_chexbert(taught)
        if name.startswith("base"):
            model = build_base(tokenizer)
        if name.endswith("trained"):
            teach(model, tokenizer, taught)
        else:
            for i, head in enumerate(model.linear_heads):
                head.weight.data *= 20
                head.bias.data[:3:2] -= 1000 if i < 2 else -1000  # blank and negative
        with tempfile.TemporaryDirectory() as folder:
            short = [text for text in tested if len(text.split()) < 30] if name.startswith("base") else tested
            row = figures[name] = compare(model.eval(), tokenizer, short, count, Path(folder))
            if name.endswith("trained"):
                options = ({}, {"bf16": True, "tolerance": 0.05})
                exact, rough = (TokenWeigher(folder, **each)(tested[:60]) for each in options)
                pairs = [(a.spans, b.spans) for a, b in zip(exact, rough, strict=True) if a.labels]
                row["bf16_same_spans"] = sum(a == b for a, b in pairs) / len(pairs)
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
        error, same = row["largest_error"], row["same_spans"]
        equal = "_at_our_tolerance" if row["captum_largest_error"] > 0.01 else ""
        ratio, title = row["ratio" + equal], "captum of equal error" if equal else "captum"
        checks += [
            {"name": f"{name}: reports/s, ours / {title}", "value": ratio, "bar": ">= 4", "holds": ratio >= 4},
            {"name": f"{name}: largest error", "value": error, "bar": "<= 0.01", "holds": error <= 0.01},
            {"name": f"{name}: reports of the same spans", "value": same, "bar": ">= 0.95", "holds": same >= 0.95},
        ]
    report(ROOT / "outputs" / "bench" / "token_weights", figures, checks)


if __name__ == "__main__":
    run(main)
