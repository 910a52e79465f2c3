"""Times the rewards in the shape of a GRPO step against `radeval` and against one text at a time, and their memory.

    python tests/bench/reward_speed.py            # BERT-base, at most 8 minutes on 2 idle cores
    python tests/bench/reward_speed.py --quick    # tiny encoders, one minute: the bars are not meant for it

A step is 16 prompts x 4 completions; each prompt's reference stands beside its four completions. The policy repeats
itself: a completion is, with probability 0.3, a copy of one drawn uniformly from all earlier completions of the run
(copies among them), and else a text that the run has not seen; references are new in every step. Texts are the Open-i
reports (findings and impression) of the installed torchxrayvision, or phantom reports where a row says so.

Per step all rewards score the same texts, one after the other in an order that rotates, with the same random weights:
a CheXbert of BERT-base size, and for BERTScore a distilroberta-base, both with a vocabulary made from the reports.
Nothing is computed ahead but in the row "reference labels known": there the references were labelled before, as
recipes/grpo_mrgr1.py does for its column `labels`. Elsewhere they are texts, which our rewards label, too, once each.
radeval (2.2.1) is its
TRL reward function on its own classes, unchanged: it scores all 128 texts of a step, and its RadCliQ reads the
BERTScore encoder anew at every call. Replaced is only what it would download: weights, tokenizers, and RadGraph, for
which both sides have the graphs of LexicalGraph. Steps are added until BUDGET seconds have passed.

Memory is the growth of a fresh process over 10,000 completions that all differ: reports in which 15 % of the words are
replaced by random ones, so that sentences differ too. Writes outputs/bench/reward_speed/results.json (with --quick:
reward_speed_quick). A figure is not a test: exits 0 whether or not the bars hold.
"""

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, RobertaTokenizer, set_seed
from transformers.utils import logging

from modeling import CheXbertConfig, CheXbertModel
from modeling.tiny import build_chexbert
from recipes.cli import parse, report, run
from recipes.data.openi import read_studies, text_columns
from recipes.data.phantom import make_study, sample_states, write_report
from recipes.data.samples import write_answer
from rewards import format_reward, make_mccs_reward, make_radcliq_reward, make_rouge_reward
from rewards.bertscore import BERTScore, make_bertscore_reward
from rewards.chexbert import CheXbertLabeler, encode
from rewards.labels import to_binary
from rewards.lexical_graph import LexicalGraph
from rewards.mccs import mccs
from rewards.radcliq import make_semb_part
from rewards.radgraph import make_radgraph_part

logging.disable_progress_bar()
logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parents[2]
PROMPTS, GROUP, REPEATS = 16, 4, 0.3
STEP = PROMPTS * GROUP
BUDGET = 240  # seconds; no step of all rewards (about 80 s) starts after them
DEMO_STEP = 2.7  # seconds of a GRPO step of `make demo`, 64 completions, as measured there
OURS, ALONE, RADEVAL = "MCCS, CheXbert", "MCCS, CheXbert, one text at a time", "radeval F1CheXbert"
KNOWN = "MCCS, CheXbert, reference labels known"
OUR_RADCLIQ, RADEVAL_RADCLIQ = "RadCliQ", "radeval RadCliQ"
OPPONENT = ("radeval", "appdirs", "six")
HOW_TO_GET = "radeval is not installed: make .venv/oracles"


@dataclass
class BenchArguments:
    quick: bool = field(default=False, metadata={"help": "Tiny encoders and few steps, to see that all of it runs."})


# --- texts -------------------------------------------------------------------------------------------------------


def openi_reports() -> list[str]:
    """The distinct Open-i reports, shuffled by a fixed seed."""
    texts = [text_columns(study, "findings+impression", "plain")["report"] for study in read_studies()[0]]
    distinct = list(dict.fromkeys(filter(None, texts)))
    return [distinct[i] for i in np.random.default_rng(0).permutation(len(distinct))]


def grpo_steps(fresh: Iterator[str], seed: int = 0) -> Iterator[tuple[list[str], list[str]]]:
    """Completions and references, 64 each, of step after step, as the module says; new texts come from `fresh`."""
    rng, said = np.random.default_rng(seed), []
    while True:
        references = list(islice(fresh, PROMPTS))
        for _ in range(STEP):
            copied = said and rng.random() < REPEATS
            said.append(said[rng.integers(len(said))] if copied else next(fresh))
        yield said[-STEP:], [text for text in references for _ in range(GROUP)]


def distinct_texts(reports: list[str], count: int) -> Iterator[str]:
    """`count` texts, all different: reports with 15 % of their words replaced by words of other reports."""
    rng, seen = np.random.default_rng(1), set()
    words = np.array(sorted({word for text in reports for word in text.split()}))
    while len(seen) < count:
        text = np.array(reports[rng.integers(len(reports))].split(), dtype=words.dtype)
        swapped = rng.random(len(text)) < 0.15
        text[swapped] = rng.choice(words, swapped.sum())
        text = " ".join(text.tolist())
        if text not in seen:
            seen.add(text)
            yield text


# --- models ------------------------------------------------------------------------------------------------------


def save_models(folder: Path, reports: list[str], quick: bool) -> None:
    """Random weights: ours as `chexbert` and `tiny-chexbert`; `distilroberta-base`, which both sides read; and what
    radeval looks for, `chexbert.pth` and `bert-base-uncased`."""
    tiny, tokenizer = build_chexbert(reports, vocab_size=4000)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size") if quick else ()
    config = CheXbertConfig(vocab_size=len(tokenizer), **{name: getattr(tiny.config, name) for name in names})
    config.initializer_range = 1.5 * config.hidden_size**-0.5  # labels and embeddings differ from text to text
    set_seed(0)
    model = CheXbertModel(config)
    for name, each in (("tiny-chexbert", tiny), ("chexbert", model)):
        each.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    bert = BertConfig(**{name: value for name, value in config.to_dict().items() if name != "model_type"})
    bert.save_pretrained(folder / "bert-base-uncased")
    tokenizer.save_pretrained(folder / "bert-base-uncased")
    pooler = BertModel(bert).pooler.state_dict()  # the published checkpoint has one
    weights = model.state_dict() | {f"bert.pooler.{name}": tensor for name, tensor in pooler.items()}
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in weights.items()}}, folder / "chexbert.pth")

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        reports,
        trainers.BpeTrainer(vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    spec = json.loads(bpe.to_str())["model"]
    roberta = RobertaTokenizer(
        vocab=spec["vocab"], merges=[tuple(pair) for pair in spec["merges"]], model_max_length=512
    )
    small = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 192} if quick else {}
    config = RobertaConfig(
        vocab_size=len(roberta), num_hidden_layers=6, max_position_embeddings=514, type_vocab_size=1, **small
    )
    RobertaModel(config).save_pretrained(folder / "distilroberta-base")
    roberta.save_pretrained(folder / "distilroberta-base")


# --- the sides ---------------------------------------------------------------------------------------------------


def label_alone(labeler: CheXbertLabeler, texts: list[str]) -> list[np.ndarray]:
    """States of each text by a pass of its own."""
    with torch.inference_mode():
        ids = (encode(labeler.tokenizer, [text], labeler.max_tokens) for text in texts)
        return [labeler.model(torch.tensor(each)).labels[0].numpy() for each in ids]


class GraphOfEach:
    """In the place of radeval's RadGraph model: LexicalGraph, one text after the other, graphs by their number."""

    def __init__(self, model_type: str):
        self.parser = LexicalGraph()

    def __call__(self, texts: list[str]) -> dict[str, dict]:
        return {str(i): self.parser([text])[0] for i, text in enumerate(texts)}


def radeval_rewards() -> tuple[dict[str, Callable], list[dict]]:
    """radeval's two TRL reward functions on the weights in the working directory, and the list to which its RadCliQ
    adds the parts of each call; both empty where it or what it imports is not installed.

    Its package imports nltk and a dozen others on the way to metrics that are not used here, so it is entered without
    its __init__; the metrics' own files are as published.
    """
    if not all(map(importlib.util.find_spec, OPPONENT)):
        return {}, []
    package = ModuleType("radeval")
    package.__path__ = list(importlib.util.find_spec("radeval").submodule_search_locations)
    radgraph = ModuleType("radeval.metrics.radgraph")
    radgraph.RadGraph = GraphOfEach
    sys.modules |= {"radeval": package, "radeval.metrics.radgraph": radgraph}
    warnings.filterwarnings("ignore", module="sklearn|radeval")  # of labels that no text of a batch has, and such
    base = importlib.import_module("radeval.metrics._chexbert_base")
    check = base._check_targets  # scikit-learn's: since 1.9 the labels stand before the two matrices that are wanted
    base._check_targets = lambda *targets: [each for each in check(*targets) if not isinstance(each, np.ndarray)]
    chexbert = importlib.import_module("radeval.metrics.f1chexbert.f1chexbert")
    chexbert.hf_hub_download = lambda **where: "chexbert.pth"
    chexbert.F1CheXbert.__init__.__kwdefaults__["device"] = "cpu"  # "cuda", which fails where there is none
    composite = importlib.import_module("radeval.metrics.RadCliQv1.radcliq").CompositeMetric
    compute, parts = composite._compute_sub_metrics, []

    def keep(self, refs: list[str], hyps: list[str]) -> dict:
        parts.append(compute(self, refs, hyps))
        return parts[-1]

    composite._compute_sub_metrics = keep
    make = importlib.import_module("radeval.rewards").make_reward_fn
    functions = {
        RADEVAL: make("f1chexbert", "report", key="f1chexbert_sample_acc_all"),
        RADEVAL_RADCLIQ: make("radcliq", "report"),
    }
    return functions, parts


def time_sides(sides: dict[str, Callable], steps: Iterable[tuple], least: int) -> dict[str, list[float]]:
    """Seconds of each side at each step; steps are taken until BUDGET seconds have passed, `least` at any rate."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names, began = list(sides), time.perf_counter()
    for completions, references in steps:
        for name in names:
            start = time.perf_counter()
            sides[name](completions, report=references)
            seconds[name].append(time.perf_counter() - start)
        names = names[1:] + names[:1]
        if len(seconds[names[0]]) >= least and time.perf_counter() - began > BUDGET:
            break
    return seconds


# --- rows --------------------------------------------------------------------------------------------------------


def bert_rows(reports: list[str], quick: bool) -> tuple[dict, list[dict]]:
    """The rows on CheXbert-based MCCS and on RadCliQ. Each of our three rewards has a labeler of its own."""
    labeler, third, other = (CheXbertLabeler("chexbert", "cpu") for _ in range(3))
    states: list[list[np.ndarray]] = []  # of completions and references, by turns

    def alone(completions: list[str], report: list[str]) -> list[float]:
        states.extend(label_alone(labeler, texts) for texts in (completions, report))
        return mccs(states[-2], states[-1]).tolist()

    known: dict[str, list[int]] = {}  # the column `labels` by its reference
    with_column = make_mccs_reward(labeler=third)
    radgraph, semb = make_radgraph_part(LexicalGraph()), make_semb_part(other.embed, lite=False)
    rewards: dict[str, list] = {}
    functions = {
        OURS: make_mccs_reward(labeler=labeler),
        KNOWN: lambda completions, report: with_column(completions, labels=[known[text] for text in report]),
        ALONE: alone,
        OUR_RADCLIQ: make_radcliq_reward(radgraph, BERTScore("distilroberta-base", device="cpu"), semb),
    }
    theirs, parts = radeval_rewards()
    functions |= theirs
    known["Clear lungs."] = third(["Clear lungs."])[0].tolist()
    for function in functions.values():  # loads what is loaded lazily
        function(["Clear.", "No effusion."], report=["Clear lungs.", "Clear lungs."])
    states.clear()
    parts.clear()

    def kept(name: str) -> Callable:
        def side(completions: list[str], report: list[str]) -> None:
            rewards[name] = [*rewards.get(name, []), *functions[name](completions, report=report)]

        return side

    drawn: list[tuple] = []

    def prepared() -> Iterator[tuple]:
        steps = grpo_steps(iter(reports))
        for completions, references in islice(steps, 2) if quick else steps:
            drawn.append((completions, references))
            known.update(zip(references, third(references).tolist(), strict=True))
            yield drawn[-1]

    seconds = time_sides({name: kept(name) for name in functions}, prepared(), least=2)
    total = {name: sum(values) for name, values in seconds.items()}

    ids = [encode(labeler.tokenizer, completions) for completions, _ in drawn]
    figures = {
        "steps": len(drawn),
        "tokens_of_a_completion": float(np.mean([len(each) for batch in ids for each in batch])),
        "copies_among_completions": 1 - len({text for batch, _ in drawn for text in batch}) / (STEP * len(drawn)),
        "completions_per_second": {name: STEP * len(drawn) / value for name, value in total.items()},
        "seconds_of_steps": seconds,
        "largest_difference": {
            name: float(np.abs(np.subtract(rewards[OURS], rewards[name])).max()) for name in (KNOWN, ALONE)
        },
        "skipped": {} if theirs else dict.fromkeys((RADEVAL, RADEVAL_RADCLIQ), HOW_TO_GET),
    }
    checks = []
    pairs = ((OURS, RADEVAL, 4.5), (KNOWN, RADEVAL, 4.5), (OURS, ALONE, 2.5), (OUR_RADCLIQ, RADEVAL_RADCLIQ, 2.0))
    for ours, opponent, bar in pairs:
        name = f"{ours}: throughput / that of {opponent}"
        if opponent in total:
            ratio = total[opponent] / total[ours]
            figures.setdefault("ratios_of_steps", {})[f"{ours} / {opponent}"] = [
                a / b for a, b in zip(seconds[opponent], seconds[ours], strict=True)
            ]
            checks.append({"name": name, "value": ratio, "bar": f">= {bar}", "holds": ratio >= bar})
        else:
            checks.append({"name": name, "value": f"skipped: {HOW_TO_GET}", "bar": f">= {bar}", "holds": False})
    if theirs:  # the opponent did the same work: our labels give its accuracy, our embeddings its cosine
        found, truth = (to_binary(np.concatenate(states[i::2])) for i in (0, 1))
        figures["largest_difference"][RADEVAL] = float(
            np.abs((found == truth).mean(1) - np.array(rewards[RADEVAL])).max()
        )
        cosines = np.concatenate([semb(*step) for step in drawn])
        theirs_cosines = np.concatenate([each["semb_score"] for each in parts])
        figures["largest_difference"][RADEVAL_RADCLIQ] = float(np.abs(cosines - theirs_cosines).max())
    figures["distinct_label_rows"] = len(np.unique(np.concatenate(states), axis=0))
    worst = max(figures["largest_difference"].values())
    name = "same labels and cosines on all sides: largest difference"
    checks.append({"name": name, "value": worst, "bar": "<= 0.001", "holds": worst <= 1e-3})
    return figures, checks


def shared_pass(reports: list[str]) -> tuple[dict, list[dict]]:
    """How often a text goes through a CheXbert that MCCS and RadCliQ share; counted, so a tiny one will do."""
    labeler, rows = CheXbertLabeler("tiny-chexbert", "cpu"), []
    labeler.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    both = make_mccs_reward(labeler=labeler), make_radcliq_reward(semb=make_semb_part(labeler.embed, lite=False))
    seen = set()
    for completions, references in islice(grpo_steps(iter(reports)), 4):
        for reward in both:
            reward(completions, report=references)
        seen |= {tuple(ids) for ids in encode(labeler.tokenizer, completions + references)}
    ratio = sum(rows) / len(seen)
    check = {"name": "MCCS + RadCliQ: CheXbert passes of a distinct text", "value": ratio, "bar": "<= 1"}
    return {"rows": sum(rows), "distinct_texts": len(seen)}, [check | {"holds": ratio <= 1}]


def lexical_row(steps: int) -> tuple[dict, list[dict]]:
    """MCCS with the LexicalLabeler and the format reward on the demo's answers; CPU time, for one thread does it."""
    rng = np.random.default_rng(0)
    labels: dict[str, list[int]] = {}

    def answers() -> Iterator[str]:
        while True:
            study = make_study(sample_states(rng, abnormal=0.6), rng)
            answer = write_answer(list(study.states), write_report(study, rng))
            labels[answer] = list(study.states)
            yield answer

    reward, milliseconds = make_mccs_reward(), []
    for completions, references in list(islice(grpo_steps(answers()), steps)):
        messages = [[{"role": "assistant", "content": text}] for text in completions]
        columns = {"labels": [labels[text] for text in references], "log_metric": lambda name, value: None}
        start = time.process_time()
        reward(messages, **columns)
        format_reward(messages, **columns)
        milliseconds.append(1000 * (time.process_time() - start))
    mean = float(np.mean(milliseconds))
    share = mean / 1000 / DEMO_STEP
    figures = {"steps": steps, "mean_ms": mean, "median_ms": float(np.median(milliseconds)), "demo_step_s": DEMO_STEP}
    return figures, [
        {"name": "MCCS (lexical) + format: ms per 64 completions", "value": mean, "bar": "< 2", "holds": mean < 2},
        {
            "name": f"MCCS (lexical) + format: share of a demo step of {DEMO_STEP} s",
            "value": share,
            "bar": "< 0.01",
            "holds": share < 0.01,
        },
    ]


def overlap_row(reports: list[str], texts: int, repeats: int) -> dict:
    """Time of two rewards side by side in threads over that of one after the other, for texts that are new to both."""
    labeler, encoder = CheXbertLabeler("chexbert", "cpu"), {"encoder": "distilroberta-base", "device": "cpu"}
    slow = make_mccs_reward(labeler=labeler)
    lexical = (make_radcliq_reward(), make_rouge_reward())
    pairs = {
        "CheXbert MCCS beside BERTScore": (slow, make_bertscore_reward(**encoder)),
        "CheXbert MCCS beside RadCliQ (lite) and ROUGE": (
            slow,
            lambda completions, report: [reward(completions, report=report) for reward in lexical],
        ),
    }

    async def together(rewards: tuple, completions: list[str], references: list[str]) -> None:
        await asyncio.gather(*(asyncio.to_thread(each, completions, report=references) for each in rewards))

    figures, number = {}, 0
    for name, rewards in pairs.items():
        seconds: dict[str, list[float]] = {"sequential": [], "overlapped": []}
        for turn in range(repeats):
            for way in sorted(seconds, reverse=bool(turn % 2)):
                number += 1
                completions = [f"{number} {text}" for text in reports[:texts]]
                references = [f"{number} {text}" for text in reports[texts : 2 * texts]]
                start = time.perf_counter()
                if way == "overlapped":
                    asyncio.run(together(rewards, completions, references))
                else:
                    for each in rewards:
                        each(completions, report=references)
                seconds[way].append(time.perf_counter() - start)
        figures[name] = {"seconds": seconds, "ratio": sum(seconds["overlapped"]) / sum(seconds["sequential"])}
    best = min(each["ratio"] for each in figures.values())
    conclusion = (
        f"Overlapping saves {1 - best:.0%} at best, so slow rewards are worth an async wrapper."
        if best < 0.9
        else f"Overlapping takes {best:.2f} of the sequential time at best: one reward keeps the cores busy, so there "
        "are no async variants."
    )
    print(conclusion)
    return {**figures, "conclusion": conclusion}


REWARDS = {
    "MCCS (lexical)": lambda folder: make_mccs_reward(),
    "radcliq_lite": lambda folder: make_radcliq_reward(),
    "MCCS (tiny CheXbert)": lambda folder: make_mccs_reward(labeler=CheXbertLabeler(folder, "cpu")),
}


def memory_growth(name: str, folder: str, count: int) -> float:
    """MB by which this process grows over `count` distinct completions, after a first step."""
    reports = openi_reports()
    fresh, reward = distinct_texts(reports, count + STEP), REWARDS[name](folder)
    before = 0
    for number in range(count // STEP + 1):
        references = [text for text in reports[16 * (number % 100) :][:PROMPTS] for _ in range(GROUP)]
        reward(list(islice(fresh, STEP)), report=references)
        if number == 0:
            gc.collect()
            before = psutil.Process().memory_info().rss
    gc.collect()
    return (psutil.Process().memory_info().rss - before) / 2**20


def memory_row(folder: str, count: int) -> tuple[dict, list[dict]]:
    """Growth over `count` completions of each reward in a process of its own."""
    growth = {}
    for name in REWARDS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            growth[name] = pool.apply(memory_growth, (name, folder, count))
    return {"completions": count, "growth_mb": growth}, [
        {"name": f"{name}: MB over {count} completions", "value": value, "bar": "< 50", "holds": value < 50}
        for name, value in growth.items()
    ]


def main() -> None:
    (args,) = parse(BenchArguments)
    began = time.perf_counter()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    reports = openi_reports()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        save_models(Path(folder), reports, args.quick)
        memory, checks_of_memory = memory_row(f"{folder}/tiny-chexbert", 1_000 if args.quick else 10_000)
        lexical, checks_of_lexical = lexical_row(20 if args.quick else 200)
        shared, checks_of_shared = shared_pass(reports)
        bert, checks = bert_rows(reports, args.quick)
        overlap = overlap_row(reports[::-1], texts=8, repeats=4)
    report(
        ROOT / "outputs" / "bench" / ("reward_speed_quick" if args.quick else "reward_speed"),
        {
            "threads": torch.get_num_threads(),
            "bert": bert,
            "shared_labeler": shared,
            "lexical": lexical,
            "overlap": overlap,
            "memory": memory,
            "seconds": time.perf_counter() - began,
        },
        [*checks, *checks_of_shared, *checks_of_lexical, *checks_of_memory],
    )


if __name__ == "__main__":
    run(main)
