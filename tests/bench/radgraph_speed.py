"""Times RadGraphParser against the original RadGraph, which the test-only package radeval vendors.

    python tests/bench/radgraph_speed.py            # the published size, about 8 minutes on 2 idle cores
    python tests/bench/radgraph_speed.py --quick    # a tiny one, half a minute: the bars are not meant for it

Both have the same random weights, drawn such that they find about one entity for three words (how many the published
ones find was not at hand) and that spans which are entities survive the pruning; ours come from the original's archive
through recipes/convert_radgraph.py. Sizes: BERT-base and DyGIE++'s template. Reports and vocabulary are Open-i's
(findings and impression, of the installed torchxrayvision), so that lengths are mixed as they are there. The original
is as published: it parses one report after the other, and keeps what a gradient would need. The sides take turns, 128
reports each. Graphs are compared.

Encoder passes are those for 64 reports, as planned for a CPU, which gains nothing from padding, and for an
accelerator, where a pass costs more than the padding that it saves. Memory is the growth of a fresh process over a
report of 2,000 words. Writes outputs/bench/radgraph_speed/results.json (with --quick: radgraph_speed_quick). A figure
is not a test: exits 0 whether or not the bars hold.
"""

import contextlib
import importlib.util
import io
import multiprocessing
import os
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from recipes import convert_radgraph
from recipes.cli import parse, report, run
from recipes.data.openi import read_studies, text_columns
from rewards.encoders import ACCELERATOR_COST, PASS_COST, plan_batches
from rewards.radgraph_parser import RadGraphParser, split_words

logging.disable_progress_bar()
logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parents[2]
KIND, BATCH, TURN = "radgraph-xl", 64, 128
PUBLISHED = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
PUBLISHED |= {"vocab_size": 4000, "width": 8, "feature": 20, "layers": 2, "hidden": 150}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@dataclass
class BenchArguments:
    quick: bool = field(
        default=False, metadata={"help": "A tiny encoder and few reports, to see that all of it runs."}
    )


def models():
    """tests/radgraph_models.py; its folder has a `modeling` too, so it is not put on the path."""
    spec = importlib.util.spec_from_file_location("radgraph_models", ROOT / "tests/radgraph_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openi_reports() -> list[str]:
    """The distinct Open-i reports, shuffled by a fixed seed."""
    texts = [text_columns(study, "findings+impression", "plain")["report"] for study in read_studies()[0]]
    distinct = list(dict.fromkeys(filter(None, texts)))
    return [distinct[i] for i in np.random.default_rng(0).permutation(len(distinct))]


def convert(archive: Path, encoder: Path, out: Path) -> None:
    """What recipes/convert_radgraph.py does."""
    config, labels, weights = convert_radgraph.read_archive(archive)
    settings = convert_radgraph.read_config(config, labels, AutoConfig.from_pretrained(encoder))
    convert_radgraph.convert(weights, *settings).save_pretrained(out)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(out)


def speed_row(theirs, parser: RadGraphParser, texts: list[str]) -> tuple[dict, list[dict]]:
    """Reports per second of both sides, in turns of TURN reports, and how often their graphs differ."""
    sides = {"original": lambda batch: list(theirs(batch).values()), "RadGraphParser": parser}
    for side in sides.values():
        side(["The heart is normal in size. No effusion."] * 2)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    graphs: dict[str, list[dict]] = {name: [] for name in sides}
    names = list(sides)
    for start in range(0, len(texts), TURN):
        for name in names:
            began = time.perf_counter()
            graphs[name] += sides[name](texts[start : start + TURN])
            seconds[name].append(time.perf_counter() - began)
        names.reverse()
    pairs = list(zip(graphs["original"], graphs["RadGraphParser"], strict=True))
    different = sum(any(a[key] != b[key] for key in ("text", "entities")) for a, b in pairs)
    words = np.array([len(split_words(text)) for text in texts])
    entities = [entity for _, graph in pairs for entity in graph["entities"].values()]
    ratio = sum(seconds["original"]) / sum(seconds["RadGraphParser"])
    figures = {
        "reports": len(texts),
        "words": {"mean": float(words.mean()), "least": int(words.min()), "most": int(words.max())},
        "entities_per_word": len(entities) / int(words.sum()),
        "relations_per_entity": sum(len(entity["relations"]) for entity in entities) / max(1, len(entities)),
        "reports_per_second": {name: len(texts) / sum(each) for name, each in seconds.items()},
        "seconds_of_turns": seconds,
    }
    return figures, [
        {"name": "reports/s / those of the original", "value": ratio, "bar": ">= 1.5", "holds": ratio >= 1.5},
        {"name": "reports with another graph", "value": different, "bar": "0", "holds": different == 0},
    ]


def passes_row(parser: RadGraphParser, texts: list[str]) -> tuple[dict, list[dict]]:
    """Encoder passes and padding for one batch of reports, by the plan for each kind of device."""
    rows = [parser._rows(parser._tokens(split_words(text))) for text in texts]
    sizes = sorted(((len(each), len(each[0][0])) for each in rows), key=lambda size: -size[1])
    tokens, figures = sum(len(ids) for each in rows for ids, _ in each), {"original": {"passes": len(texts)}}
    for device, cost in (("cpu", PASS_COST["cpu"]), ("accelerator", ACCELERATOR_COST)):
        batches = plan_batches(sizes, parser.token_budget, cost)
        padded = sum(sum(sizes[i][0] for i in batch) * sizes[batch[0]][1] for batch in batches)
        figures[device] = {"passes": len(batches), "padding": 1 - tokens / padded}
        print(
            f"{len(texts)} reports: {len(batches)} encoder passes for the {device}, {1 - tokens / padded:.0%} padding"
        )
    ratio = len(texts) / figures["accelerator"]["passes"]
    name = f"encoder passes of the original / ours, {len(texts)} reports, accelerator"
    return figures, [{"name": name, "value": ratio, "bar": "> 1", "holds": ratio > 1}]


def peak() -> float:
    """MB that this process has held at most; resource.getrusage would count its parent's, too."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def growth(folder: str, text: str) -> tuple[float, float]:
    """MB by which the peak of this process grows over one long report, and seconds."""
    parser = RadGraphParser(folder, device="cpu")
    parser([text[:500]])
    before, began = peak(), time.perf_counter()
    parser([text])
    return peak() - before, time.perf_counter() - began


def memory_row(folder: Path, texts: list[str]) -> tuple[dict, list[dict]]:
    words, width = 2000, 2 * PUBLISHED["hidden_size"] + PUBLISHED["feature"]
    text = " ".join(" ".join(split_words(" ".join(texts)))[: 20 * words].split()[:words])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        megabytes, seconds = pool.apply(growth, (str(folder), text))
    theirs = (words // 2) ** 2 * 3 * width * 4 / 2**20  # its tensor of all pairs of spans, at the published size
    figures = {"words": len(text.split()), "growth_mb": megabytes, "seconds": seconds, "pairs_of_original_mb": theirs}
    name = f"MB for a report of {len(text.split())} words"
    return figures, [{"name": name, "value": megabytes, "bar": "< 1024", "holds": megabytes < 1024}]


def main() -> None:
    (args,) = parse(BenchArguments)
    began = time.perf_counter()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tests, texts = models(), openi_reports()
    core, figures, checks = tests.original(), {"threads": torch.get_num_threads()}, []
    if core is None:
        print(f"skipped: the original is not installed: {tests.HOW_TO_GET}")
        checks.append(
            {"name": "reports/s / those of the original", "value": "skipped", "bar": ">= 1.5", "holds": False}
        )
    else:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            out = Path(folder, "converted")
            theirs = tests.build(core, Path(folder), texts, KIND, **PUBLISHED | (TINY if args.quick else {}))
            convert(tests.pack(Path(folder, KIND), Path(folder, "model.tar")), Path(folder, "encoder"), out)
            parser = RadGraphParser(out, device="cpu")
            rows = {"passes": passes_row(parser, texts[:BATCH])}
            rows["speed"] = speed_row(theirs, parser, texts[: 32 if args.quick else 256])
            rows["memory"] = memory_row(out, texts)
        for name, (values, found) in rows.items():
            figures[name] = values
            checks += found
    figures["seconds"] = time.perf_counter() - began
    report(ROOT / "outputs" / "bench" / ("radgraph_speed_quick" if args.quick else "radgraph_speed"), figures, checks)


if __name__ == "__main__":
    run(main)
