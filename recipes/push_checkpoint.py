"""Pushes a trained checkpoint to the Hub, private, in one commit, with code, settings and card.

    python recipes/push_checkpoint.py --model outputs/phantom/grpo --repo NAME/mrgr1
    python recipes/push_checkpoint.py --model outputs/phantom/grpo --repo NAME/mrgr1-merged --merge

It is what a training recipe does with `--push_to_hub`, for afterwards: when recipes/evaluate.py has written the card
with its figures (`--write_model_card`), or when a push failed. `--merge` merges a LoRA adapter into its base model, to
`--out`, and pushes that. Pickles (training_args.bin, optimizer.pt) and logs never go up. A checkpoint whose data are
MIMIC's, or not known, is public only with `--public_because`. recipes/sharing.md says more.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from recipes.cli import parse, run  # before peft, whose import recipes/__init__.py quiets

# isort: split
from peft import PeftModel
from transformers import AutoModelForImageTextToText

import modeling  # noqa: F401  (registers our own systems)
from recipes.data.model_files import read_adapter
from recipes.data.privacy import WHY_PUBLIC
from recipes.data.processors import load_processor
from recipes.files import InputError, replacing
from recipes.hub.push import open_repository, push_checkpoint, sources_of


@dataclass
class PushArguments:
    model: str = field(metadata={"help": "Folder that a training recipe wrote."})
    repo: str = field(metadata={"help": "Repository of the Hub, NAME/x; made where there is none."})
    merge: bool = field(default=False, metadata={"help": "Merge a LoRA adapter into its base model before the push."})
    out: str | None = field(
        default=None, metadata={"help": "Folder of the merged model; when not given that of --model with _merged."}
    )
    public_because: str | None = field(default=None, metadata={"help": WHY_PUBLIC})


def main() -> None:
    (args,) = parse(PushArguments)
    folder = Path(args.model)
    if not folder.is_dir():
        raise InputError(f"--model {args.model}: there is no such folder; name the one that a recipe ended in")
    adapter = read_adapter(args.model)
    if args.merge and not adapter:
        raise InputError(f"--merge: {args.model} is no LoRA adapter (no adapter_config.json); leave --merge out")
    starts = [args.model, *([adapter["base_model_name_or_path"]] if adapter else [])]
    public = bool(args.public_because)
    repository = open_repository(args.repo, "model", sources_of(None, *starts), public, args.public_because)

    ################
    # Merging
    ################
    if args.merge:
        folder = Path(args.out or f"{args.model.rstrip('/')}_merged")
        try:
            base = AutoModelForImageTextToText.from_pretrained(adapter["base_model_name_or_path"], dtype="auto")
            processor = load_processor(args.model, needs_template=False)
        except (OSError, ValueError) as error:
            raise InputError(f"--merge: {args.model} cannot be merged: {str(error).splitlines()[0]}") from error
        with replacing(folder, marker="config.json") as out:
            PeftModel.from_pretrained(base, args.model).merge_and_unload().save_pretrained(out)
            processor.save_pretrained(out)
            for name in ("run_config.json", "trainer_state.json", "metrics.json"):
                if (Path(args.model) / name).is_file():
                    shutil.copy(Path(args.model) / name, out / name)

    ################
    # Pushing
    ################
    push_checkpoint(repository, folder)


if __name__ == "__main__":
    run(main)
