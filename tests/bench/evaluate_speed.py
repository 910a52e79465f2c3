"""Times recipes/evaluate.py's figures: 3,000 pairs without weights, and CheXbert with RadCliQ against `radeval`.

    python tests/bench/evaluate_speed.py                 # 500 pairs against radeval: 20 minutes on 2 idle cores
    python tests/bench/evaluate_speed.py --pairs 100     # fewer, and said so in the results
    python tests/bench/evaluate_speed.py --quick         # tiny encoders, one minute: the bars are not meant for it

Reports are the Open-i reports of the installed torchxrayvision, each against the next one, so that no text stands on
both sides twice. Without weights: every figure of metrics.json but METEOR (LexicalLabeler, lexical graphs), the errors
by kind, and 1,000 resamples; the resamples of clinical efficacy and BLEU are timed by themselves, too. Against radeval
(2.2.1, replaced as in tests/bench/reward_speed.py is only what it would download): labels and RadCliQ v1 of the same
pairs by the same random weights, a CheXbert of BERT-base size and a distilroberta-base. radeval scores all pairs in
one call of each of its two metrics; ours shares the CheXbert's passes between them. Writes
outputs/bench/evaluate_speed/results.json (with --quick: evaluate_speed_quick). A figure is not a test: exits 0 whether
or not the bars hold.
"""

import contextlib
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from reward_speed import HOW_TO_GET, RADEVAL, RADEVAL_RADCLIQ, ROOT, openi_reports, radeval_rewards, save_models

from recipes.cli import parse, report, run
from recipes.evaluation.bootstrap import Part, bootstrap, draw_counts, efficacy_part
from recipes.evaluation.references import Truth
from recipes.evaluation.scores import Metrics, measure_systems, summarise
from rewards.bertscore import BERTScore
from rewards.bleu import bleu_of_sums, match_statistics
from rewards.chexbert import CheXbertLabeler
from rewards.labelers import LexicalLabeler
from rewards.labels import to_binary
from rewards.lexical_graph import LexicalGraph
from rewards.radcliq import bleu2, make_semb_part, radcliq_score
from rewards.radgraph import make_radgraph_part

PAIRS, RESAMPLES = 3000, 1000


@dataclass
class BenchArguments:
    pairs: int = field(default=500, metadata={"help": "Pairs that both sides score."})
    quick: bool = field(default=False, metadata={"help": "Tiny encoders and few pairs, to see that all of it runs."})


def lexical_rows(reports: list[str]) -> tuple[dict, list[dict]]:
    """All figures of 3,000 pairs that need no weights, and the resamples of two families alone."""
    references, generated = reports[:PAIRS], [*reports[1:PAIRS], reports[0]]
    labeler = LexicalLabeler()
    start, used = time.perf_counter(), time.process_time()
    ids = [str(number) for number in range(PAIRS)]
    states = labeler(references)
    truth = Truth(ids, references, states, [None] * PAIRS, np.arange(PAIRS))
    given = {"ours": {"completions": dict(zip(ids, ([text] for text in generated), strict=True)), "kind": "model"}}
    systems, _ = measure_systems(truth, given, Metrics(labeler, meteor=False))
    summarise(systems, truth, RESAMPLES, seed=0)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used

    counts, studies = draw_counts(PAIRS, RESAMPLES), np.arange(PAIRS)
    families = {
        "clinical efficacy": efficacy_part(labeler(generated), states),
        "BLEU": Part(match_statistics(generated, references), lambda sums: {"bleu": bleu_of_sums(sums)}, {}),
    }
    resampled = {}
    for name, part in families.items():
        start = time.perf_counter()
        bootstrap(part, studies, counts)
        resampled[name] = time.perf_counter() - start
    both = sum(resampled.values())
    figures = {"pairs": PAIRS, "resamples": RESAMPLES, "seconds": seconds, "cpu_seconds": cpu, "bootstrap": resampled}
    return figures, [
        {"name": "3,000 pairs, no weights, no METEOR: s", "value": seconds, "bar": "<= 60", "holds": seconds <= 60},
        {"name": "1,000 resamples of CE and BLEU: s", "value": both, "bar": "<= 30", "holds": both <= 30},
    ]


def radeval_rows(reports: list[str], pairs: int) -> tuple[dict, list[dict]]:
    """Labels and RadCliQ of the same pairs on both sides, ours first; then whether they did the same work."""
    references, generated = reports[:pairs], [*reports[1:pairs], reports[0]]
    labeler, encoder = CheXbertLabeler("chexbert", "cpu"), BERTScore("distilroberta-base", device="cpu")
    labeler.cache.size = 2 * pairs
    radgraph, semb = make_radgraph_part(LexicalGraph()), make_semb_part(labeler.embed, lite=False)
    functions, kept = radeval_rewards()
    for function in functions.values():  # loads what is loaded lazily
        function(["Clear.", "No effusion."], report=["Clear lungs.", "Clear lungs."])
    kept.clear()

    seconds, start = {}, time.perf_counter()
    states = labeler([*generated, *references])
    parts = {name: part(generated, references) for name, part in (("radgraph", radgraph), ("bertscore", encoder),
                                                                  ("semb", semb), ("bleu", bleu2))}  # fmt: skip
    radcliq_score(**parts)
    seconds["ours: labels and RadCliQ"] = time.perf_counter() - start
    figures = {"pairs": pairs, "seconds": seconds}
    name = f"labels and RadCliQ of {pairs} pairs: radeval's time / ours"
    if not functions:
        figures["skipped"] = HOW_TO_GET
        return figures, [{"name": name, "value": f"skipped: {HOW_TO_GET}", "bar": ">= 2", "holds": False}]
    rewards = {}
    for opponent in (RADEVAL, RADEVAL_RADCLIQ):
        start = time.perf_counter()
        rewards[opponent] = functions[opponent](generated, report=references)
        seconds[opponent] = time.perf_counter() - start
    ratio = (seconds[RADEVAL] + seconds[RADEVAL_RADCLIQ]) / seconds["ours: labels and RadCliQ"]
    found, truth = to_binary(states[:pairs]), to_binary(states[pairs:])
    differences = {
        "accuracy of the labels": np.abs((found == truth).mean(1) - np.array(rewards[RADEVAL])).max(),
        "cosine": np.abs(np.asarray(parts["semb"]) - np.concatenate([each["semb_score"] for each in kept])).max(),
    }
    figures["largest_difference"] = {each: float(value) for each, value in differences.items()}
    worst = max(figures["largest_difference"].values())
    same = {"name": "same labels and cosines: largest difference", "value": worst, "bar": "<= 0.001"}
    return figures, [
        {"name": name, "value": ratio, "bar": ">= 2", "holds": ratio >= 2},
        same | {"holds": worst <= 1e-3},
    ]


def main() -> None:
    (args,) = parse(BenchArguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    reports = openi_reports()
    lexical, checks = lexical_rows(reports)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        save_models(Path(folder), reports, args.quick)
        against, checks_of_radeval = radeval_rows(reports, 20 if args.quick else args.pairs)
    report(
        ROOT / "outputs" / "bench" / ("evaluate_speed_quick" if args.quick else "evaluate_speed"),
        {"threads": torch.get_num_threads(), "lexical": lexical, "radeval": against, "load": os.getloadavg()},
        [*checks, *checks_of_radeval],
    )


if __name__ == "__main__":
    run(main)
