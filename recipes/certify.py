"""Checks environment, published checkpoints and all systems on one GPU, and certifies them.

    python recipes/certify.py                                       # about 15 minutes once the checkpoints are here
    python recipes/certify.py --llmrg4 LLM-RG4.pth --discbert DiscBERT.pth
    python recipes/certify.py --only chexbert radgraph              # these rows alone
    python recipes/certify.py --replicas                            # on a CPU, on miniatures in the published form

What is absent, a checkpoint, a package or the GPU, is a row that says so; the others are run. The certificate,
outputs/certificate/certificate.json with the same as a Markdown table, names the machine's GPU and versions and
nothing of a patient: all X-rays are drawn. The exit status is 1 where a row does not hold. See recipes/certificate.md.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from recipes.certificate import checkpoints, environment, systems
from recipes.certificate.laboratory import Lab
from recipes.certificate.table import format_value, in_words, make_certificate, run_row, write_certificate
from recipes.cli import parse, run
from recipes.files import InputError

ROWS: dict[str, Callable[[Lab], tuple]] = {
    "packages": environment.packages,
    "gpu": environment.gpu,
    "attention": environment.attention,
    "flash_attention": environment.flash_attention,
    "adamw_8bit": environment.adamw_8bit,
    "chexbert": checkpoints.chexbert,
    "radgraph": checkpoints.radgraph,
    "radgraph_xl": checkpoints.radgraph_xl,
    "modern_radgraph_xl": checkpoints.modern_radgraph_xl,
    "crepe": checkpoints.crepe,
    "radcliq": checkpoints.radcliq,
    "biomedclip": checkpoints.biomedclip,
    "discbert": checkpoints.discbert,
    "llmrg4": checkpoints.llmrg4_published,
    "llmrg4_decoder": systems.make_row(systems.decoder, "llmrg4"),
    "llmrg4_step": systems.make_row(systems.step, "llmrg4"),
    "llmrg4_reload": systems.make_row(systems.reload, "llmrg4"),
    "lmrrg_decoder": systems.make_row(systems.decoder, "lmrrg"),
    "lmrrg_step": systems.make_row(systems.step, "lmrrg"),
    "lmrrg_reload": systems.make_row(systems.reload, "lmrrg"),
    "qwen_batch": systems.qwen_batch,
    "grpo_steps": systems.grpo_steps,
    "grpo_memory": systems.grpo_memory,
    "grpo_seconds": systems.grpo_seconds,
}


@dataclass
class Checkpoints:
    """Where the checkpoints are: a folder or file here, or its name on the Hub."""

    chexbert: str = field(
        default="StanfordAIMI/RRG_scorers/chexbert.pth", metadata={"help": "CheXbert's published file."}
    )
    radgraph: str = field(
        default="StanfordAIMI/RRG_scorers/radgraph.tar.gz", metadata={"help": "Archive of the first RadGraph."}
    )
    radgraph_xl: str = field(
        default="StanfordAIMI/RRG_scorers/radgraph-xl.tar.gz", metadata={"help": "Archive of RadGraph-XL."}
    )
    modern_radgraph_xl: str = field(
        default="StanfordAIMI/RRG_scorers/modern-radgraph-xl.tar.gz",
        metadata={"help": "Archive of Modern-RadGraph-XL."},
    )
    bert: str = field(
        default="google-bert/bert-base-uncased", metadata={"help": "BERT that CheXbert and DiscBERT are made of."}
    )
    crepe: str = field(default="gihuncho/crepe-biomedbert", metadata={"help": "CREPE as its authors publish it."})
    biomedclip: str = field(
        default="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        metadata={"help": "BiomedCLIP in open_clip's form."},
    )
    discbert: str | None = field(default=None, metadata={"help": "DiscBERT of LLM-RG4's authors (.pth)."})
    llmrg4: str | None = field(default=None, metadata={"help": "Model of LLM-RG4's authors (.pth)."})
    vision: str = field(default="microsoft/rad-dino", metadata={"help": "Image encoder of LLM-RG4."})
    text: str = field(
        default="microsoft/BiomedVLP-CXR-BERT-specialized", metadata={"help": "Encoder of LLM-RG4 for prior reports."}
    )
    decoder: str = field(default="lmsys/vicuna-7b-v1.5", metadata={"help": "Decoder of LLM-RG4."})
    opt: str = field(default="Salesforce/blip2-opt-2.7b", metadata={"help": "Decoder of LM-RRG."})
    qwen: str = field(
        default="FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL",
        metadata={"help": "Qwen2.5-VL that MRG-R1 starts from."},
    )


@dataclass
class CertifyArguments:
    out: str = field(default="outputs/certificate", metadata={"help": "Folder of the certificate."})
    work: str | None = field(
        default=None, metadata={"help": "Folder for 35 GB of temporary files; beside the certificate when not given."}
    )
    only: list[str] | None = field(
        default=None, metadata={"help": f"Rows to run, all when not given, of {', '.join(ROWS)}."}
    )
    replicas: bool = field(
        default=False, metadata={"help": "Use miniatures of the checkpoints, which tests/ builds, on any machine."}
    )


def main() -> None:
    args, places = parse(CertifyArguments, Checkpoints)
    names = list(ROWS) if args.only is None else args.only
    if unknown := [name for name in names if name not in ROWS]:
        raise InputError(f"--only has no row {unknown[0]!r}; rows are {', '.join(ROWS)}")
    if torch.cuda.device_count() > 1:
        raise InputError(
            f"a certificate is of one GPU, and here are {torch.cuda.device_count()}: set CUDA_VISIBLE_DEVICES=0"
        )
    out, rows, stopped = Path(args.out).absolute(), [], None
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "certificate.json").is_file()):
        raise InputError(f"--out {args.out} exists and is no earlier certificate; name another folder")
    beside = Path(args.work).absolute() if args.work else out.parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".certify.") as folder, contextlib.ExitStack() as stack:
        lab = Lab(vars(places), Path(folder) / "work")
        lab.work.mkdir()
        try:
            if args.replicas:
                lab.use_replicas(stack, Path(folder) / "shelf")
            for name in names:
                print(f"{name} ...", flush=True)
                rows.append(row := run_row(name, ROWS[name], lab))
                print(f"{name}: {format_value(row['value'])}; bar {row['bar'] or 'none'}; {in_words(row['holds'])}")
        except KeyboardInterrupt:
            stopped = names[len(rows)]
    for row in rows:
        print(f"{in_words(row['holds']):4}{row['name']:20}{format_value(row['value'])}")
    if stopped:
        print(f"stopped in {stopped}; no certificate is written: go on with --only {' '.join(names[len(rows) :])}")
        sys.exit(130)
    write_certificate(out, make_certificate(rows, args.replicas))
    print(f"{args.out}/certificate.md and certificate.json: {len(rows)} rows")
    if failed := [row["name"] for row in rows if row["holds"] is False]:
        sys.exit(f"{len(failed)} of them do not hold: {', '.join(failed)}")


if __name__ == "__main__":
    run(main)
