"""The models behind recipes/app.py: loaded and asked as generate.py does, and read while they write."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer

from modeling.processing_llmrg4 import PRIOR_END, PRIOR_START
from recipes.data.images import decode_image
from recipes.data.model_files import check_model, read_adapter
from recipes.data.samples import FIELD, VIEWS, samples_of
from recipes.evaluation.agreement import WORDS
from recipes.evaluation.decoding import ask_as_trained
from recipes.evaluation.error_taxonomy import Evidence
from recipes.evaluation.generation import TransformersEngine
from recipes.files import InputError, read_prompt
from rewards.completions import TAGS, parse_completion
from rewards.labels import CONDITIONS, CheXpertState

TYPED = ("indication", "history", "prior_report")
READ = ("age", "sex", *TYPED)  # what a prompt may have of the patient


@dataclass
class System:
    """A loaded model with the prompt and the views that it is asked with.

    `closing` ends whatever it is writing. `decoding`: how it writes, in words.
    """

    name: str
    engine: TransformersEngine
    prompt_file: str
    prompt: str
    views: str
    max_new_tokens: int
    seed: int
    closing: Event
    decoding: str = ""

    @property
    def fields(self) -> set[str]:
        """What its prompt has a place for: `view`, `sections`, and what is `READ` of the patient."""
        return set(FIELD.findall(self.prompt))

    @property
    def reads_lateral(self) -> bool:
        """Whether a second image reaches it."""
        return self.views in ("all", "frontal+lateral")

    def sample(self, study: dict) -> tuple[str, list[bytes]]:
        """The text that it is asked with, and its images; raises InputError on a mark of its own in a typed text."""
        tokenizer = self.engine.processor.tokenizer
        marks = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        for name in TYPED:
            collisions = [mark for mark in (*sorted(marks), PRIOR_START, PRIOR_END) if mark in (study[name] or "")]
            if collisions and name in self.fields:
                words = name.replace("_", " ")
                raise InputError(f"{self.name} reads {collisions[0]} as a mark of its own; take it out of the {words}")
        return samples_of(study, self.prompt, self.views)[0]

    def write(self, study: dict) -> Iterator[tuple[str, bool]]:
        """The completion so far, again and again, and at last the whole; with it whether it was cut off.

        Closing the iterator ends the writing at the next token. Raises InputError where the processor refuses `study`.
        """
        prompt, encoded = self.sample(study)
        images = [decode_image(image, "the X-ray") for image in encoded]
        stopped = Event()

        def is_stopped(tokens: torch.Tensor, scores: torch.Tensor, **ignored) -> torch.Tensor:
            return torch.full((len(tokens),), stopped.is_set() or self.closing.is_set(), device=tokens.device)

        tokenizer = self.engine.processor.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        watching = {"streamer": streamer, "stopping_criteria": StoppingCriteriaList([is_stopped])}
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.engine, [images], [prompt], self.seed, **watching)
            future.add_done_callback(lambda _: streamer.end())  # one that failed would never end
            try:
                text = ""
                for piece in streamer:
                    text += piece
                    yield text, False
            finally:
                stopped.set()
        try:
            ((completion, tokens, _),) = future.result()
        except ValueError as error:  # a processor's sentence: images and markers that do not fit
            raise InputError(f"{self.name}: {error}") from error
        yield completion, tokens >= self.max_new_tokens


def load_system(args, device: torch.device, closing: Event) -> System:
    """The model that `args` (those of recipes/generate.py) name.

    Where `args.prompt_file` or `args.views` are None, they are what the model was trained with. Raises InputError
    where nothing says what to ask it, and where it cannot be loaded.
    """
    if args.views not in (None, *VIEWS):
        raise InputError(f"--views must be of {', '.join(VIEWS)}, not {args.views!r}")
    check_model(args.model, args.trust_remote_code)
    adapter = read_adapter(args.model)
    if adapter and adapter.get("modules_to_save"):
        raise InputError(f"{args.model} is an adapter that transformers reads in part: name the run's own folder")
    for sentence in ask_as_trained(args):
        print(sentence, flush=True)
    prompt_file = args.prompt_file
    if prompt_file is None:
        raise InputError(
            f"{args.model} has no run_config.json that says what it was asked in training: name its prompt, such as "
            "--prompt_files prompts/zero_shot.txt"
        )
    prompt = read_prompt(prompt_file)
    try:
        engine = TransformersEngine(args, device, 2)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the model {args.model} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    of_its_own = "frontal+lateral" if engine.model.config.model_type == "llmrg4" else "frontal"
    views = args.views or of_its_own
    decoding = describe_decoding(engine.model.generation_config, args.seed)
    return System(args.model, engine, prompt_file, prompt, views, args.max_new_tokens, args.seed, closing, decoding)


def describe_decoding(config: GenerationConfig, seed: int) -> str:
    """How a model with that generation config writes.

    >>> describe_decoding(GenerationConfig(max_new_tokens=64), 0)
    'greedy search, at most 64 tokens'
    """
    words = [f"sampling, temperature {config.temperature:g}, top-p {config.top_p:g}, seed {seed}"]
    words = words if config.do_sample else ["greedy search"]
    words += [f"repetition penalty {config.repetition_penalty:g}"] * ((config.repetition_penalty or 1) != 1)
    words += [f"at least {config.min_new_tokens} tokens"] * bool(config.min_new_tokens)
    return ", ".join([*words, f"at most {config.max_new_tokens} tokens"])


def list_findings(report: str, labeler: Callable, evidence: Evidence) -> list[tuple[str, str, list[str]]]:
    """Of each condition that `labeler` finds mentioned in `report`: its name, its state in words, and the sentences.

    Sentences are those that say the state by `evidence`; where none does, those that speak of the condition.
    """
    rows = []
    mentions_by_label = evidence(report)
    for place, state in enumerate(labeler([report])[0]):
        if state == CheXpertState.BLANK:
            continue
        mentions = mentions_by_label.get(place, [])
        matches = [sentence for mention_state, sentence, _ in mentions if mention_state == state]
        sentences = matches or [sentence for _, sentence, _ in mentions]
        rows.append((CONDITIONS[place], WORDS[CheXpertState(state)], list(dict.fromkeys(sentences))))
    return rows


def read_completion(completion: str) -> tuple[str, str]:
    """Report and reasoning of a completion that may still be growing: half a tag at its end is not shown."""
    start = completion.rfind("<")
    if start >= 0 and any(tag != completion[start:] and tag.startswith(completion[start:]) for tag in TAGS):
        completion = completion[:start]
    parsed = parse_completion(completion)
    return parsed.report, parsed.think
