"""What computing LM-RRG's regions in parallel saves: against a loop over regions, and the memory of chunks of them.

    python tests/bench/lmrrg_regions.py

The three blocks of section 2.1 for all 29 regions, random weights, at two sizes: the tests' miniature (16 images of 16
patches, D 32) and the published one (1 image of 196 patches, D 512). A loop over regions is `region_chunk_size` 1.
Both are timed in turn within one process, the forward pass alone and a training step. Peak memory is that of a process
of its own for each chunk size, less what it had before; in training with gradient checkpointing, which recomputes one
chunk at a time, and once without. Writes outputs/bench/lmrrg_regions/results.json. A figure is not a test: exits 0
whether or not the bars hold.
"""

import multiprocessing
import resource
import statistics
import time

import numpy as np
import torch

from modeling import LMRRGConfig
from modeling.modeling_lmrrg import VisualExtractor
from recipes.cli import report, run

SIZES = {  # images, patches, D, heads, rounds
    "tiny": (16, 16, 32, 2, 20),
    "published": (1, 196, 512, 8, 4),
}
CHUNKS = (1, 4, 8, 15, 29)
ALIKE = 1e-4


def build(size: str) -> tuple[VisualExtractor, torch.Tensor]:
    """E with random weights and region texts, and the projected patches of images."""
    images, patches, width, heads, _ = SIZES[size]
    torch.manual_seed(0)
    vision = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LMRRGConfig(vision_config=vision, projection_dim=width, region_heads=heads)
    extractor = VisualExtractor(config).train()
    extractor.region_features.normal_()
    return extractor, torch.randn(images, patches, width)


def act(extractor: VisualExtractor, images: torch.Tensor, chunk: int, training: bool) -> torch.Tensor:
    """F_region; in training also the gradients of its mean square."""
    extractor.config.region_chunk_size = chunk
    with torch.set_grad_enabled(training):
        regions, _ = extractor.encode_regions(images)
        if training:
            regions.square().mean().backward()
            extractor.zero_grad()
    return regions.detach()


def peak(chunk: int, training: bool, checkpointing: bool, out: multiprocessing.Queue) -> None:
    """Puts the MiB that `act` needs at the published size on top of the model's."""
    extractor, images = build("published")
    if checkpointing:
        extractor.region_encoder.gradient_checkpointing = True
        extractor.region_encoder._gradient_checkpointing_func = lambda *args: torch.utils.checkpoint.checkpoint(
            *args, use_reentrant=False
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    act(extractor, images, chunk, training)
    out.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    context = multiprocessing.get_context("fork")  # before torch has threads, which a fork does not take along
    kinds = {"inference": (False, False), "training, checkpointed": (True, True), "training": (True, False)}
    memory: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
    for kind, settings in kinds.items():
        for chunk in CHUNKS if kind != "training" else CHUNKS[-1:]:
            queue = context.Queue()
            process = context.Process(target=peak, args=(chunk, *settings, queue))
            process.start()
            memory[kind][chunk] = queue.get()
            process.join()
        row = ", ".join(f"{chunk}: {value:.0f} MiB" for chunk, value in memory[kind].items())
        print(f"peak memory of one image at the published size, {kind}, by regions at once: {row}")

    ratios, differences = {}, []
    for size, (*_, rounds) in SIZES.items():
        extractor, images = build(size)
        results = [act(extractor, images, chunk, False) for chunk in CHUNKS]
        differences += [(result - results[-1]).abs().max().item() for result in results]
        for what in ("forward", "training step"):
            times: dict[int, list[float]] = {1: [], 29: []}
            act(extractor, images, 29, what != "forward")  # warms up
            for number in range(rounds):
                for chunk in list(times)[:: 1 if number % 2 == 0 else -1]:
                    start = time.perf_counter()
                    act(extractor, images, chunk, what != "forward")
                    times[chunk].append(time.perf_counter() - start)
            of_rounds = np.divide(times[29], times[1])
            resampled = np.median(np.random.default_rng(0).choice(of_rounds, (2000, rounds)), axis=1)
            low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
            parallel, loop = (statistics.median(times[chunk]) for chunk in (29, 1))
            ratio = float(np.median(of_rounds))
            ratios[f"{size}, {what}"] = {
                "median_seconds": {"parallel": parallel, "loop": loop},
                "ratio": ratio,
                "interval": [low, high],
            }
            print(
                f"{size}, {what}: parallel {1000 * parallel:.0f} ms, loop {1000 * loop:.0f} ms; ratio {ratio:.2f}, "
                f"95 % interval {low:.2f} to {high:.2f}"
            )

    checks = [
        {"name": f"parallel / loop over regions ({name})", "value": each["ratio"], "bar": "< 1"}
        for name, each in ratios.items()
    ]
    for check in checks:
        check["holds"] = check["value"] < 1
    checkpointed = memory["training, checkpointed"]
    share = checkpointed[CHUNKS[1]] / memory["training"][CHUNKS[-1]]
    checks += [
        {"name": "largest difference between chunk sizes", "value": max(differences), "bar": f"< {ALIKE}"},
        {"name": "peak memory of training, chunks of 4 checkpointed / all at once", "value": share, "bar": "< 0.5"},
    ]
    checks[-2]["holds"], checks[-1]["holds"] = max(differences) < ALIKE, share < 0.5
    memory_by_name = {kind: {str(chunk): value for chunk, value in each.items()} for kind, each in memory.items()}
    figures = {"threads": torch.get_num_threads(), "times": ratios, "peak_mib": memory_by_name}
    report("outputs/bench/lmrrg_regions", figures, checks)


if __name__ == "__main__":
    run(main)
