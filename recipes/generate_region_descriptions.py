"""Has a language model describe the regions of a chest X-ray (LM-RRG's supplement), as JSON.

With a server that speaks OpenAI's protocol, or a model in this process (a folder or a Hub id):

    vllm serve Qwen/Qwen2.5-7B-Instruct --port 8000
    python recipes/generate_region_descriptions.py --llm Qwen/Qwen2.5-7B-Instruct --endpoint http://127.0.0.1:8000/v1
    python recipes/generate_region_descriptions.py --llm Qwen/Qwen2.5-0.5B-Instruct

`--region_descriptions FILE` of the LM-RRG recipes reads the file. The prompt is the paper's to the letter, with its
"description" for "describe"; `--prompt FILE` names another. No patient data are sent, so any endpoint will do. Answers
are kept in OUT.answers.sqlite: after an interruption the same command asks only for what is missing.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from modeling.configuration_lmrrg import REGION_NAMES
from recipes.cli import parse, run
from recipes.files import InputError, read_prompt, replacing
from recipes.rg4.llm import Answers, Endpoint, InProcess, Refused

FIELD = "{region name}"
MAX_WORDS = 150  # BiomedCLIP reads 256 tokens


def read(answer: str) -> dict[str, str]:
    """A region's description in an answer; raises Refused where there is none, or one too long for BiomedCLIP."""
    words = answer.split()
    if not words or len(words) > MAX_WORDS:
        raise Refused(f"it has {len(words)} words, and 1 to {MAX_WORDS} are allowed")
    return {"description": " ".join(words)}


@dataclass
class GenerateArguments:
    written_files: ClassVar[tuple[str, ...]] = ("out",)

    llm: str = field(metadata={"help": "LLM: its name at --endpoint, or else a folder or a Hub id."})
    out: str = field(default="outputs/region_descriptions.json", metadata={"help": "JSON file to write."})
    endpoint: str | None = field(
        default=None,
        metadata={"help": "URL of a server, as http://127.0.0.1:8000/v1; without it the LLM runs in this process."},
    )
    prompt: str = field(
        default="prompts/lmrrg_region_description.txt", metadata={"help": f"File of the question, with {FIELD} in it."}
    )
    regions: list[str] = field(
        default_factory=lambda: list(REGION_NAMES), metadata={"help": "Names of the regions to describe."}
    )


def main() -> None:
    (args,) = parse(GenerateArguments)
    prompt, out = read_prompt(args.prompt), Path(args.out)
    if FIELD not in prompt:
        raise InputError(f"--prompt {args.prompt} has no {FIELD}, so every region would get the same question")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file")
    if repeated := sorted({name for name in args.regions if args.regions.count(name) > 1}):
        raise InputError(f"--regions names {repeated[0]!r} more than once")

    # Asking
    chat = Endpoint(args.endpoint, args.llm) if args.endpoint else InProcess(args.llm)
    answers = Answers(chat, out.with_name(f"{out.name}.answers.sqlite"))
    questions = [[{"role": "user", "content": prompt.replace(FIELD, name)}] for name in args.regions]
    regions = answers.all([(question, read) for question in questions], "asking")
    descriptions = dict(zip(args.regions, regions, strict=True))
    if missing := [name for name, region in descriptions.items() if isinstance(region, str)]:
        raise InputError(
            f"{len(missing)} of {len(descriptions)} regions have no description, such as {missing[0]} "
            f"({descriptions[missing[0]]}); the others are kept: run the same command again, or name another --llm "
            "or --prompt"
        )

    # Saving
    origin = f"{args.llm}, prompt: {prompt}"
    regions = [{"name": name, **region, "origin": origin} for name, region in descriptions.items()]
    with replacing(out) as file:
        file.write_text(json.dumps(regions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{out}: {len(regions)} regions; {answers.asked} questions asked, {answers.recalled} answers recalled")


if __name__ == "__main__":
    run(main)
