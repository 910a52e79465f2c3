"""A page on this computer: drop a chest X-ray, read what one model or two write about it.

    python recipes/app.py --models outputs/phantom/grpo
    python recipes/app.py --models outputs/demo/phantom/seed0/sft outputs/demo/phantom/seed0/grpo

    python recipes/app.py --models outputs/phantom/grpo --dataset outputs/data/phantom      # its studies and boxes

Any model that recipes/generate.py can load, asked in the same words. The prompt and the views are those that the
model's run_config.json names; a model from elsewhere needs them:

    python recipes/app.py --models Qwen/Qwen2.5-VL-3B-Instruct --prompt_files prompts/zero_shot.txt --views frontal

Nothing leaves this computer and nothing is kept: an uploaded file is deleted once it is read. `--host 0.0.0.0` lets in
whoever reaches this computer, without a password. Ctrl-C ends it. Research use, not for clinical use.
"""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from threading import Event
from types import SimpleNamespace
from typing import ClassVar

import torch
from datasets import Image, List

from recipes.cli import parse, run
from recipes.data.labels import load_labeler
from recipes.data.schema import read_split
from recipes.data.settings import COUNT, Range
from recipes.evaluation.decoding import DecodingArguments
from recipes.evaluation.generation import usual_dtype
from recipes.files import InputError
from recipes.viewer.page import build_page, check_address, serve
from recipes.viewer.systems import load_system


@dataclass
class AppArguments(DecodingArguments):
    """Arguments of the page."""

    ranges: ClassVar[dict[str, Range]] = {"max_upload": COUNT, "image_size": Range(64, 4096), "port": Range(1, 65535)}

    models: list[str] = field(
        metadata={"help": "Checkpoint to try, or two side by side: folders or Hub ids, adapters too."}
    )
    prompt_files: list[str] = field(
        default_factory=list,
        metadata={"help": "Prompt file of each model; the prompt of its training when not given."},
    )
    views: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Views of each model: frontal, each (the frontal one), all, frontal+lateral; none: as in training."
        },
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Data set whose studies can be opened, with their boxes: a folder or Hub id."}
    )
    split: str = field(default="test", metadata={"help": "Split of the data set."})
    labeler: str = field(
        default="lexical", metadata={"help": "Labeler of the findings: lexical, chexbert or chexbert:MODEL."}
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; 127.0.0.1 accepts this computer only."}
    )
    port: int = field(default=7860, metadata={"help": "Port to listen on."})
    max_upload: int = field(default=32, metadata={"help": "Largest size of an uploaded file, in MB."})
    image_size: int = field(
        default=512, metadata={"help": "Pixels of the longest side of an X-ray, to which it is shrunk."}
    )


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGINT and SIGTERM end the process in order, in the background too, where a shell ignores SIGINT."""

    def end(number: int, frame) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@ended_by_signals()
def main() -> None:
    (args,) = parse(AppArguments)
    if len(args.models) > 2:
        raise InputError(f"--models takes one checkpoint or two, not {len(args.models)}")
    for name in ("prompt_files", "views"):
        if len(getattr(args, name)) not in (0, len(args.models)):
            raise InputError(f"--{name} needs one for each of --models ({len(args.models)})")
    check_address(args.host, args.port)
    rows = read_split(args.dataset, args.split, ("study_id", "images"), bare=True) if args.dataset else None

    ################
    # Models
    ################
    labeler = load_labeler(args.labeler)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ending = Event()
    systems = []
    for number, model in enumerate(args.models):
        settings = {"model": model, "prompt_file": (*args.prompt_files, None, None)[number], "num_beams": 1}
        settings |= {"views": (*args.views, None, None)[number], "length_penalty": 1.0}
        settings |= {"dtype": args.dtype or usual_dtype()}
        systems.append(load_system(SimpleNamespace(**vars(args) | settings), device, ending))

    ################
    # Serving
    ################
    if rows is not None:
        rows = rows.cast_column("images", List(Image(decode=False)))
    page_of = lambda folder: build_page(systems, labeler, folder, args.image_size, rows)  # noqa: E731
    with closing(serve(page_of, args.host, args.port, args.max_upload)) as server:
        print(f"{next(server)} is the page; Ctrl-C ends it. Research use, not for clinical use.", flush=True)
        if args.host not in ("127.0.0.1", "localhost"):
            print(f"Whoever reaches {args.host} can use the page: it asks for no password.", flush=True)
        try:
            Event().wait()
        finally:
            ending.set()


if __name__ == "__main__":
    run(main)
