"""Which sentences of a report weigh more in training (LLM-RG4, Algorithm 1): those that a CheXbert's positive and
uncertain labels rest on, found by integrated gradients (Sundararajan et al. 2017, Eq. 1).

What the paper leaves open (A-41): the logit of the predicted state is
attributed to the word embeddings against a report of padding that keeps [CLS] and [SEP]; the dimensions of an
embedding are summed with their signs, and each label's map is divided by its largest magnitude. The maximum over
labels is smoothed (sigma 1, radius 3), divided by its largest magnitude, and compared with the threshold.
"""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from modeling.modeling_chexbert import FINDINGS
from recipes.data.model_files import check_folder, check_vocabulary
from recipes.data.schema import FEATURES, read_build
from recipes.files import InputError, replacing
from recipes.rg4.rules import split_sentences
from rewards.chexbert import CheXbertLabeler, clean_text
from rewards.encoders import pass_cost, plan_batches
from rewards.labels import CONDITIONS, CheXpertState

THRESHOLD = 0.4  # "threshold is set to 0.4", Implementation Details
FIRST_NODES = 5
MAX_NODES, MAX_NODES_BF16 = 1025, 65  # bfloat16 tells f to two or three digits: what 65 points miss, more would too
CANCELLING = 16  # so many tolerances the errors of single intervals may have together, before they cancel out
SHORTEST = 1e-6  # of the path: an interval that is not halved, as where rounding makes f jump
SMALL_GAP = 0.1  # logits: where f(x) and f(baseline) differ by less, the error is compared with this
SIGMA, RADIUS = 1.0, 3  # tokens
SHARD = 256  # reports that an interruption can cost; the more, the fuller the batches


@dataclass
class Weighed:
    """`spans`: [start, end) characters of the key sentences, sorted, apart. `sentences`: how many sentences the text
    has, how many of them are key sentences, and how many lie past the tokens that CheXbert reads (unread, so never
    lifted). `truncated`: whether it did not read all tokens. `labels`: of each label that was weighed its condition,
    its state, and what its `Attribution` says: nodes, error, met."""

    spans: list[list[int]] = field(default_factory=list)
    sentences: tuple[int, int, int] = (0, 0, 0)
    truncated: bool = False
    labels: list[tuple[str, str, int, float, bool]] = field(default_factory=list)


@dataclass
class Attribution:
    """Of one logit f: `tokens` (length,) float64; `nodes`, how many points of the path were looked at; `error`,
    |sum of tokens - gap| / max(|gap|, 0.1), where gap = f(x) - f(baseline); and whether the tolerance was `met`."""

    tokens: np.ndarray
    nodes: int
    error: float
    met: bool


def integrated_gradients(
    model: torch.nn.Module,
    pad: int,
    ids: Sequence[Sequence[int]],
    targets: Sequence[Sequence[tuple[int, int]]],
    tolerance: float,
    max_nodes: int,
    token_budget: int,
) -> list[list[Attribution]]:
    """Attributions of n reports' tokens, for each of a report's (condition, state) in `targets`.

    `ids` are tokens with [CLS] and [SEP] at their ends. The integral over the path from the baseline is that of the
    natural cubic spline through the gradients at 5 points. Between two points the attributions should sum to what f
    changes by, and f is known where the gradient is: the intervals in which they do so least are halved, which needs a
    point more each, until the error of the whole is at most `tolerance` of |f(x) - f(baseline)|, or `max_nodes` points
    are used up. Where errors of either sign cancel, the whole can be right by chance, so the intervals' errors
    together may be sixteen times as large at most, and so many are halved at once that those of the rest together are.
    A point of the path is one forward pass for all of the report's labels that are not done; they share all points.
    """
    nodes = [[step / (FIRST_NODES - 1) for step in range(FIRST_NODES)] for _ in targets]
    evaluated = [{} for _ in targets]  # report, node, label: f there, and the products of its gradients
    pending = [list(labels) for labels in targets]
    attributions = {}
    while any(pending):
        rows = [
            (i, share) for i, labels in enumerate(pending) if labels for share in nodes[i] if share not in evaluated[i]
        ]
        results = gradients_on_path(model, pad, [(ids[i], share, pending[i]) for i, share in rows], token_budget)
        for (i, share), (values, products) in zip(rows, results, strict=True):
            evaluated[i][share] = dict(zip(pending[i], zip(values, products, strict=True), strict=True))
        for i, labels in enumerate(pending):
            places, halved, pending[i] = nodes[i], set(), []
            for label in labels:
                values, products = map(np.array, zip(*(evaluated[i][share][label] for share in places), strict=True))
                # Completeness (Sundararajan et al., Proposition 1) holds on each interval as on the whole path: what
                # the attributions miss of the logit's change there is that interval's error.
                parts, changes = spline_integrals(np.array(places), products), np.diff(values)
                gap, total = float(values[-1] - values[0]), parts.sum(axis=0)
                if not np.isfinite(gap + total.sum()):
                    raise InputError("the CheXbert's logits are no finite numbers: are its weights damaged?")
                errors, scale = np.abs(parts.sum(axis=1) - changes), max(abs(gap), SMALL_GAP)
                error, most = abs(float(total.sum()) - gap) / scale, CANCELLING * tolerance * scale
                met = error <= tolerance and float(errors.sum()) <= most
                attributions[i, label] = Attribution(total, len(places), error, met)
                if not met:
                    pending[i].append(label)
                    rest = np.cumsum(np.sort(errors))  # of the best interval, of the best two, ...
                    halved.update(np.argsort(-errors)[: max(1, int((rest > most).sum()))])
            middles = [(places[j] + places[j + 1]) / 2 for j in halved if places[j + 1] - places[j] > SHORTEST]
            nodes[i] = sorted([*places, *middles[: max_nodes - len(places)]])
            if len(nodes[i]) == len(places):
                pending[i] = []
    return [[attributions[i, label] for label in labels] for i, labels in enumerate(targets)]


def spline_integrals(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integrals (n - 1, m) between neighbouring points of the m natural cubic splines through `y` (n, m) at `x` (n,).

    As scipy's CubicSpline has them; a quarter of its time, which labels of a dozen points each would feel.
    """
    widths = np.diff(x)
    system = np.diag(2 * (widths[:-1] + widths[1:])) + np.diag(widths[1:-1], 1) + np.diag(widths[1:-1], -1)
    widths = widths[:, None]
    curvatures = np.zeros_like(y)  # none at the ends
    curvatures[1:-1] = np.linalg.solve(system, 6 * np.diff(np.diff(y, axis=0) / widths, axis=0))
    return widths / 2 * (y[:-1] + y[1:]) - widths**3 / 24 * (curvatures[:-1] + curvatures[1:])


def gradients_on_path(
    model: torch.nn.Module,
    pad: int,
    rows: Sequence[tuple[Sequence[int], float, Sequence[tuple[int, int]]]],
    token_budget: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each row (token ids, share, labels): the labels' logits at the embeddings baseline + share (x - baseline),
    (labels,), and their gradients there times x - baseline, summed over each embedding, (labels, length).

    Labels share a forward pass and have a pass back each; so rows with equally many labels share batches, of at most
    `token_budget` tokens. The result does not depend on what shares a batch, but for rounding.
    """
    device = next(model.parameters()).device
    embed = model.get_input_embeddings()
    results = {}
    for number in sorted({len(labels) for _, _, labels in rows}):
        order = sorted((i for i in range(len(rows)) if len(rows[i][2]) == number), key=lambda i: -len(rows[i][0]))
        for batch in plan_batches([(1, len(rows[i][0])) for i in order], token_budget, 4 * pass_cost(device)):
            members = order[batch.start : batch.stop]
            ids, shares, labels = zip(*(rows[i] for i in members), strict=True)
            tokens, mask, baseline = _pad(ids, pad, device)
            with torch.no_grad():
                start = embed(baseline)
                change = embed(tokens) - start
                path = start + torch.tensor(shares, dtype=change.dtype, device=device)[:, None, None] * change
            logits = model(inputs_embeds=path.requires_grad_(), attention_mask=mask).logits
            indices = torch.tensor(labels, device=device)
            values = logits.flatten(1).gather(1, indices[..., 0] * logits.shape[-1] + indices[..., 1]).float()
            products = []
            for label in range(number):
                (gradient,) = torch.autograd.grad(values[:, label].sum(), path, retain_graph=label + 1 < number)
                # The embedding is a token's only input, so the sum over its dimensions is the token's attribution.
                products.append((gradient.float() * change.float()).sum(-1))
            products = torch.stack(products, dim=1).double().cpu().numpy()
            for i, value, product in zip(members, values.detach().double().cpu().numpy(), products, strict=True):
                results[i] = value, product[:, : len(rows[i][0])]
    return [results[i] for i in range(len(rows))]


def _pad(ids: list[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, attention mask and the baseline's tokens of a batch, each (n, length)."""
    tokens = pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in ids])[:, None]
    places = torch.arange(tokens.shape[1])
    ends = (places == 0) | (places == lengths - 1)
    return tokens.to(device), (places < lengths).long().to(device), torch.where(ends, tokens, pad).to(device)


def smooth(scores: np.ndarray, sigma: float = SIGMA, radius: int = RADIUS) -> np.ndarray:
    """`scores` (n,) under the Gaussian kernel of Algorithm 1, line 7, which sums to 1 at the ends as well."""
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    padded, inside = np.pad(scores, radius), np.pad(np.ones(len(scores)), radius)
    return np.convolve(padded, kernel, "valid") / np.convolve(inside, kernel, "valid")


def score_tokens(maps: np.ndarray) -> np.ndarray:
    """Scores of n tokens, at most 1, from the attributions (labels, n) of a report (Algorithm 1, lines 3 to 7)."""
    # A token counts by the label that it matters most to: a sum would favour what many labels share. Each map is
    # divided by its largest magnitude first, since logits of different labels have different scales.
    scores = smooth(_normalised(maps).max(axis=0))
    return _normalised(scores[None])[0]


def _normalised(maps: np.ndarray) -> np.ndarray:
    largest = np.abs(maps).max(axis=1, keepdims=True)
    return maps / np.where(largest > 0, largest, 1)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) of each sentence of `text`, without the white space around it."""
    spans, end = [], 0
    for sentence in split_sentences(text):
        start = text.index(sentence.strip(), end)
        end = start + len(sentence.strip())
        spans.append((start, end))
    return spans


def original_places(text: str) -> list[int]:
    """Where each character of `clean_text(text)` stands in `text`; a space where its white space begins."""
    places, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        places += [end] * bool(places) + list(range(start, start + len(word)))
        end = start + len(word)
    return places


def find_key_sentences(
    sentences: Sequence[tuple[int, int]], places: Sequence[int], scores: np.ndarray, threshold: float
) -> list[bool]:
    """Whether each sentence holds a token whose score is above `threshold` (Algorithm 1, lines 8 to 13).

    `sentences` are characters [start, end), `places` those at which the scored tokens begin.
    """
    # Tokens belong to the cleaned text and spans to the original, so both are compared as places in the original.
    high = [place for place, score in zip(places, scores, strict=True) if score > threshold]
    return [any(start <= place < end for place in high) for start, end in sentences]


def join_spans(sentences: Sequence[tuple[int, int]], keys: Sequence[bool]) -> list[list[int]]:
    """[start, end) of the key sentences; those that follow each other are one."""
    spans, before = [], False
    for (start, end), key in zip(sentences, keys, strict=True):
        if key and before:
            spans[-1][1] = end
        elif key:
            spans.append([start, end])
        before = key
    return spans


class TokenWeigher:
    """Finds the key sentences of reports by a CheXbert.

    `model` is a folder or a Hub id; `tolerance` and `max_nodes` are those of `integrated_gradients` (`max_nodes` None:
    1025, or 65 with `bf16`). Labels are computed in float32, attributions with `bf16` by a copy of the model in
    bfloat16. `settings` is what decides on the result. Raises InputError where the model cannot be loaded or its
    tokenizer tells no offsets, and on settings out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        threshold: float = THRESHOLD,
        tolerance: float = 0.01,
        max_nodes: int | None = None,
        token_budget: int = 4096,
        bf16: bool = False,
        device: str | torch.device | None = None,
    ):
        if not 0 <= threshold < 1:
            raise InputError(f"--threshold must be at least 0 and below 1, the largest score, not {threshold}")
        if tolerance <= 0:
            raise InputError(f"--tolerance must be above 0, not {tolerance}")
        if max_nodes is None:
            max_nodes = MAX_NODES_BF16 if bf16 else MAX_NODES
        if max_nodes < FIRST_NODES or token_budget < 1:
            raise InputError(f"--max_nodes must be at least {FIRST_NODES}, and --token_budget at least 1")
        try:
            check_folder(str(model))
            check_vocabulary(str(model))
            labeler = CheXbertLabeler(model, device, token_budget)
        except ValueError as error:
            raise InputError(f"--model: {error}") from error
        if not labeler.tokenizer.is_fast:
            raise InputError(f"--model {model}: its tokenizer tells no offsets, which key_spans need; save a fast one")
        self.tokenizer, self.device = labeler.tokenizer, labeler.device
        self.model = self.differentiated = labeler.model
        if bf16:
            self.differentiated = copy.deepcopy(self.model).to(torch.bfloat16)
        elif self.device.type == "cpu":  # a tenth faster than SDPA's kernels at the length of most reports
            self.model.set_attn_implementation("eager")
        self.max_tokens, self.token_budget = labeler.max_tokens, token_budget
        self.threshold, self.tolerance, self.max_nodes = threshold, tolerance, max_nodes
        weights = hashlib.blake2b(digest_size=8)
        for name, value in sorted(self.model.state_dict().items()):
            weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        self.settings = {
            "labeler": labeler.name,
            "weights": weights.hexdigest(),
            "threshold": threshold,
            "tolerance": tolerance,
            "max_nodes": max_nodes,
            "token_budget": token_budget,
            "bf16": bf16,
        }

    def __call__(self, texts: Iterable[str]) -> list[Weighed]:
        """What is found in each text. Any string is weighed; equal texts once."""
        texts = list(texts)
        distinct = list(dict.fromkeys(texts))
        return list(map(dict(zip(distinct, self._weigh(distinct), strict=True)).get, texts))

    def attribute(self, ids: list[list[int]]) -> list[dict[tuple[int, int], Attribution]]:
        """Of each row of tokens the attributions of its positive and uncertain (condition, state)."""
        states = (CheXpertState.POSITIVE, CheXpertState.UNCERTAIN)
        targets = [[(i, s) for i, s in enumerate(row[:FINDINGS]) if s in states] for row in self._label(ids)]
        pad, options = self.tokenizer.pad_token_id, (self.tolerance, self.max_nodes, self.token_budget)
        attributions = integrated_gradients(self.differentiated, pad, ids, targets, *options)
        return [dict(zip(*pair, strict=True)) for pair in zip(targets, attributions, strict=True)]

    def _weigh(self, texts: list[str]) -> list[Weighed]:
        if not texts:
            return []
        encoded = self.tokenizer([clean_text(text) for text in texts], return_offsets_mapping=True, verbose=False)
        all_ids = encoded["input_ids"]
        ids = [row if len(row) <= self.max_tokens else [*row[: self.max_tokens - 1], row[-1]] for row in all_ids]
        results = []
        for text, every, row, offsets, attributions in zip(
            texts, all_ids, ids, encoded["offset_mapping"], self.attribute(ids), strict=True
        ):
            characters, sentences = original_places(text), sentence_spans(text)
            places = [characters[start] for start, _ in offsets[1:-1]]
            read, unread = places[: len(row) - 2], places[len(row) - 2 :]
            keys = [False] * len(sentences)
            if attributions and read:
                scores = score_tokens(np.array([attribution.tokens[1:-1] for attribution in attributions.values()]))
                keys = find_key_sentences(sentences, read, scores, self.threshold)
            past = sum(start >= unread[0] for start, _ in sentences) if unread else 0
            labels = [
                (
                    CONDITIONS[condition],
                    CheXpertState(state).name.lower(),
                    attribution.nodes,
                    attribution.error,
                    attribution.met,
                )
                for (condition, state), attribution in attributions.items()
            ]
            counts = (len(sentences), sum(keys), past)
            results.append(Weighed(join_spans(sentences, keys), counts, len(every) > len(row), labels))
        return results

    @torch.inference_mode()
    def _label(self, ids: list[list[int]]) -> list[list[int]]:
        """States of the 14 conditions in each row of tokens."""
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        labels = {}
        for batch in plan_batches([(1, len(ids[i])) for i in order], self.token_budget, pass_cost(self.device)):
            members = order[batch.start : batch.stop]
            tokens, mask, _ = _pad([ids[i] for i in members], self.tokenizer.pad_token_id, self.device)
            labels |= zip(members, self.model(input_ids=tokens, attention_mask=mask).labels.tolist(), strict=True)
        return [labels[i] for i in range(len(ids))]

    def weigh_shard(self, texts: list[str], folder: Path) -> dict[str, Weighed]:
        """What is found in each of `texts`: read from `folder` where an earlier run left it there, else left there."""
        code = Path(__file__).read_bytes()
        name = hashlib.sha256(repr((code, self.settings, texts)).encode(errors="surrogatepass")).hexdigest()[:32]
        file = folder / f"{name}.json"
        if not file.is_file():
            with replacing(file) as temporary:
                temporary.write_text(json.dumps([asdict(result) for result in self(texts)]))
        return dict(zip(texts, (Weighed(**result) for result in json.loads(file.read_text())), strict=True))


def check_out(out: Path, dataset: str, settings: dict) -> None:
    """Raises InputError where `out` is the data set itself, or holds anything but an earlier result of `settings`."""
    if out.resolve() == Path(dataset).resolve():
        raise InputError(f"--out {out} is the data set itself; name another folder")
    if not out.exists():
        return
    earlier = read_build(out).get("key_spans")
    if earlier is None:
        raise InputError(f"--out {out} exists and is no earlier result of this command; name another folder")
    if changed := [name for name in settings if earlier.get(name) != settings[name]]:
        was, now = earlier.get(changed[0]), settings[changed[0]]
        raise InputError(
            f"--out {out} holds the result of another run ({changed[0]} {was} there, {now} here); "
            "name another folder, or delete that one"
        )


def with_spans(rows: Dataset, weighed: dict[str, Weighed]) -> Dataset:
    """`rows` whose column `key_spans` is what was found in their reports."""
    names = rows.column_names if "key_spans" in rows.column_names else [*rows.column_names, "key_spans"]
    spans = [weighed[text].spans for text in rows["report"]]
    if "key_spans" in rows.column_names:
        rows = rows.remove_columns("key_spans")
    return rows.add_column("key_spans", spans, feature=FEATURES["key_spans"]).select_columns(names)


def summarise(reports: list[str], weighed: dict[str, Weighed]) -> dict[str, int | float]:
    """Figures of `reports`, of equal ones each. Shares are 0 to 1, errors as in `Attribution`."""
    results = [weighed[text] for text in reports]
    labels = [label for result in results for label in result.labels]
    sentences = [result.sentences for result in results]
    lifted = [
        sum(end - start for start, end in result.spans) / max(len(text), 1)
        for text, result in zip(reports, results, strict=True)
    ]
    return {
        "reports": len(reports),
        "distinct_reports": len(set(reports)),
        "reports_with_labels": sum(bool(result.labels) for result in results),
        "labels": len(labels),
        "sentences": sum(all_ for all_, _, _ in sentences),
        "sentences_lifted": sum(keys for _, keys, _ in sentences),
        "mean_share_of_characters_lifted": sum(lifted) / len(results),
        "mean_nodes": sum(label[2] for label in labels) / max(len(labels), 1),
        "mean_error": sum(label[3] for label in labels) / max(len(labels), 1),
        "largest_error": max((label[3] for label in labels), default=0.0),
        "labels_that_missed_the_tolerance": sum(not label[4] for label in labels),
        "reports_truncated": sum(result.truncated for result in results),
        "sentences_past_the_last_token": sum(past for _, _, past in sentences),
    }
