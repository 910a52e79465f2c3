"""Language models as judges of reports: GREEN, CRIMSON and RadFact, over a server on this machine or a model in it.

Every answer is kept on disk at once, so that a run that ends goes on where it was. A pair without a usable answer has
None, is counted, and is never a zero; a server that goes away costs its own figures and no other one. Prompts are in
recipes/prompts, in our words: a model that was trained on another prompt (GREEN's own, CRIMSON's MedGemma) wants that
one, in a file of the same name in the folder `--judge_prompts`.

As rewards, with one call or more of a language model for every completion, so slow and, on a rented machine, dear:

    JUDGE_ENDPOINT=http://127.0.0.1:8000/v1 JUDGE_LLM=Qwen/Qwen2.5-7B-Instruct accelerate launch \
        recipes/grpo_mrgr1.py --rewards recipes.evaluation.judges.green_reward --reward_weights 1 ...
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from recipes.data.privacy import private_among
from recipes.evaluation.bootstrap import Part, ratio
from recipes.files import InputError, read_prompt
from recipes.rg4.llm import Answers, Endpoint, InProcess, Messages, Refused, check_url, is_loopback, read_object
from rewards.inputs import known_rows, read_reports
from rewards.judge_scores import Green, crimson_score, entailed_share, green_score, read_green

logger = logging.getLogger(__name__)
WORDS = 300  # of each report, as GREEN cuts them
PHRASES = 100  # of a report, at most: more is an answer that repeats itself
LONGEST = 100_000  # characters of an answer that is read
MAX_TOKENS = 4096  # of an answer; CRIMSON's JSON of two long reports takes the most
WHY_MINE = (
    "The machine at --endpoint is run by people whom the data use agreement covers, and keeps nothing: reports of any "
    "source but phantom go to this machine only, unless that is said."
)


class Scores(NamedTuple):
    """Of n pairs: `values`, figures by their names, (n,) each, nan where there is none; `failed`, (n,) boolean;
    `reason`: why the first one failed, or ""."""

    values: dict[str, np.ndarray]
    failed: np.ndarray
    reason: str


class Steadfast:
    """`chat`, after whose first failure to reach its server nothing more is asked: every question is then refused."""

    def __init__(self, chat: Callable[[Messages], str]):
        self.chat, self.name, self.concurrency, self.failure = chat, chat.name, chat.concurrency, ""

    def __call__(self, messages: Messages) -> str:
        if not self.failure:
            try:
                return self.chat(messages)
            except InputError as error:
                self.failure = str(error)
        raise Refused(self.failure)


def _reading(read: Callable[[str], object]) -> Callable[[str], object]:
    """`read` of an answer as `Answers` wants it: what is wrong raises Refused, and one too long is not looked at."""

    def checked(answer: str) -> object:
        if len(answer) > LONGEST:
            raise Refused(f"it has {len(answer):,} characters, more than {LONGEST:,}")
        try:
            return read(answer)
        except Refused:
            raise
        except ValueError as error:
            raise Refused(str(error)) from error

    return checked


def _cut(report: str) -> str:
    return " ".join(report.split()[:WORDS])


def _ask(prompt: str, **texts: str) -> Messages:
    content = "\n\n".join(f"{title.replace('_', ' ').capitalize()}:\n{text}" for title, text in texts.items())
    return [{"role": "system", "content": prompt}, {"role": "user", "content": content}]


def judge_green(answers: Answers, prompts: str, generated: Sequence[str], references: Sequence[str]) -> Scores:
    """GREEN of n pairs, in [0, 1]; `answers` asks, `prompts` is the folder of the prompts."""
    prompt = read_prompt(f"{prompts}/judge_green.txt")
    questions = [
        (_ask(prompt, reference_report=_cut(reference), candidate_report=_cut(report)), _reading(read_green))
        for report, reference in zip(generated, references, strict=True)
    ]
    results = answers.all(questions, "GREEN")
    values = [green_score(result) if isinstance(result, Green) else np.nan for result in results]
    return _scores({"green": values}, results)


def judge_crimson(answers: Answers, prompts: str, generated: Sequence[str], references: Sequence[str]) -> Scores:
    """CRIMSON of n pairs, in (-1, 1]; the patient's age and indication are not told."""
    prompt = read_prompt(f"{prompts}/judge_crimson.txt")
    read = _reading(lambda answer: (crimson_score(read_object(answer)),))
    questions = [
        (_ask(prompt, reference_report=reference, predicted_report=report), read)
        for report, reference in zip(generated, references, strict=True)
    ]
    results = answers.all(questions, "CRIMSON")
    return _scores({"crimson": [np.nan if isinstance(result, str) else result[0] for result in results]}, results)


def read_phrases(answer: str) -> tuple[str, ...]:
    """The phrases of an answer {"phrases": [...]}; raises Refused on another form and on over 100 of them."""
    phrases = read_object(answer).get("phrases")
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
        raise Refused("phrases must be a list of texts")
    if len(phrases) > PHRASES:
        raise Refused(f"{len(phrases)} phrases are more than {PHRASES}")
    return tuple(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases))


def read_entailment(answer: str, premises: Sequence[str]) -> tuple[bool]:
    """Whether an answer {"status", "evidence"} says that the statement is entailed, which needs evidence among
    `premises`; raises Refused on another form."""
    content = read_object(answer)
    evidence = content.get("evidence", [])
    if content.get("status") not in ("entailment", "not_entailment") or not isinstance(evidence, list):
        raise Refused("status must be entailment or not_entailment, and evidence a list")
    entailed = content["status"] == "entailment"
    statements = {" ".join(premise.lower().split()).rstrip(".") for premise in premises}
    cited = {" ".join(str(text).lower().split()).rstrip(".") for text in evidence}
    if entailed and (not cited or cited - statements):
        raise Refused("an entailed statement needs evidence, word for word from the other report's statements")
    return (entailed,)


def judge_radfact(answers: Answers, prompts: str, generated: Sequence[str], references: Sequence[str]) -> Scores:
    """RadFact's logical precision and recall of n pairs, in [0, 1]; nan of a report without phrases.

    One question takes a report apart, and one more asks of each phrase whether the other report entails it.
    """
    apart, entail = (read_prompt(f"{prompts}/judge_radfact_{name}.txt") for name in ("phrases", "entailment"))
    reports = list(dict.fromkeys([*generated, *references]))
    questions = [(_ask(apart, report=report), _reading(read_phrases)) for report in reports]
    phrases = dict(zip(reports, answers.all(questions, "phrases"), strict=True))
    questions, places = [], []
    for row, pair in enumerate(zip(generated, references, strict=True)):
        sides = [phrases[report] for report in pair]
        if any(isinstance(side, str) for side in sides):
            continue
        for side, (statements, premises) in enumerate((sides, sides[::-1])):
            for phrase in statements:
                messages = _ask(entail, statement=phrase, statements_of_the_other_report=json.dumps(premises))
                questions.append((messages, _reading(partial(read_entailment, premises=premises))))
                places.append((row, side))
    verdicts: dict[tuple[int, int], list] = {}
    for place, verdict in zip(places, answers.all(questions, "entailment"), strict=True):
        verdicts.setdefault(place, []).append(verdict)
    values = {name: [] for name in ("radfact/precision", "radfact/recall")}
    results = []
    for row, pair in enumerate(zip(generated, references, strict=True)):
        answered = [verdicts.get((row, side), []) for side in range(2)]
        faults = [
            result
            for result in (*(phrases[report] for report in pair), *answered[0], *answered[1])
            if isinstance(result, str)
        ]
        results.append(faults[0] if faults else ())
        for name, side in zip(values, answered, strict=True):
            values[name].append(np.nan if faults else entailed_share([entailed for (entailed,) in side]))
    return _scores(values, results)


def _scores(values: dict[str, list[float]], results: Sequence[object]) -> Scores:
    failed = np.array([isinstance(result, str) for result in results], dtype=bool)
    reason = next((result for result in results if isinstance(result, str)), "")
    if reason.startswith("the endpoint refused"):
        reason = reason.partition(":")[0]  # what a server says of a request may quote the report
    return Scores({name: np.asarray(column, dtype=np.float64) for name, column in values.items()}, failed, reason)


JUDGES = {"green": judge_green, "crimson": judge_crimson, "radfact": judge_radfact}
PROMPTS = {
    "green": ("judge_green.txt",),
    "crimson": ("judge_crimson.txt",),
    "radfact": ("judge_radfact_phrases.txt", "judge_radfact_entailment.txt"),
}


class Judges:
    """The judges of a run, which share a language model and a file of kept answers.

    `notes` collects sentences on what failed: of each judge and system how many pairs, and why the first one did.
    """

    def __init__(self, names: Sequence[str], chat: Callable[[Messages], str], file: str, prompts: str = "prompts"):
        self.names, self.prompts, self.notes = tuple(names), prompts, []
        self.chat = Steadfast(chat)
        self.answers = Answers(self.chat, file)

    def __call__(self, name: str, generated: Sequence[str], references: Sequence[str]) -> Scores:
        """What the judge `name` says of n pairs."""
        return JUDGES[name](self.answers, self.prompts, generated, references)

    def parts(self, system: str, generated: Sequence[str], references: Sequence[str]) -> list[Part]:
        """The figures of one system: means over the pairs that have an answer, and the share that has none."""
        parts = []
        for name in self.names:
            calls = "one call a pair" if name != "radfact" else "one call a report and one a phrase"
            print(f"{name} asks {self.chat.name} about {len(generated)} pairs of {system}: {calls}", flush=True)
            scores = self(name, generated, references)
            failed = int(scores.failed.sum())
            if failed:
                self.notes.append(
                    f"{name}: {failed} of {len(generated)} pairs of {system} have no usable answer and are left out; "
                    f"the first: {scores.reason}"
                )
            if failed < len(generated):
                parts.append(answered_part(name, scores))
        return parts


def answered_part(name: str, scores: Scores) -> Part:
    """Means over the reports that have a value, each figure over its own; of RadFact also the F1 of the two means, as
    its authors take it."""
    columns = [column for values in scores.values.values() for column in (np.nan_to_num(values), ~np.isnan(values))]
    statistics = np.stack([*columns, scores.failed, np.ones(len(scores.failed))], axis=1).astype(np.float64)
    names = list(scores.values)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        means = {figure: ratio(sums[..., 2 * i], sums[..., 2 * i + 1]) for i, figure in enumerate(names)}
        if name == "radfact":
            precision, recall = means.values()
            means["radfact/f1"] = ratio(2 * precision * recall, precision + recall)
        return means | {f"{name}/failed": ratio(sums[..., -2], sums[..., -1])}

    reports = dict(scores.values)
    if name == "radfact":
        reports["radfact/f1"] = pair_scores(scores)
    return Part(statistics, figures, reports)


def pair_scores(scores: Scores) -> np.ndarray:
    """One number for each pair, nan without an answer: GREEN, CRIMSON, or the F1 of RadFact's precision and recall."""
    first, *others = scores.values.values()
    if not others:
        return first
    total = first + others[0]
    return np.where(
        total > 0, 2 * first * others[0] / np.where(total > 0, total, 1), np.where(np.isnan(total), np.nan, 0)
    )


def load_judges(args, file: str) -> Judges | None:
    """The judges that `args` (EvaluateArguments) names, whose answers are kept in `file`; None where it names none.

    Raises InputError on a judge that does not exist, without --llm, and on a URL that is none.
    """
    if not args.judge:
        return None
    if unknown := [name for name in args.judge if name not in JUDGES]:
        raise InputError(f"--judge takes some of {', '.join(JUDGES)}, not {unknown[0]!r}")
    for file_name in (prompt for name in args.judge for prompt in PROMPTS[name]):
        read_prompt(f"{args.judge_prompts}/{file_name}")  # a missing one is told before anything is asked
    if not args.llm:
        raise InputError("--judge needs --llm, the language model's name (and --endpoint, its server)")
    if args.endpoint:
        check_url(args.endpoint)
        chat = Endpoint(args.endpoint, args.llm, retries=args.judge_retries, max_tokens=MAX_TOKENS)
    else:
        chat = InProcess(args.llm, MAX_TOKENS)
    return Judges(dict.fromkeys(args.judge), chat, file, args.judge_prompts)


def check_sources(args, sources: Iterable[str | None]) -> None:
    """Raises InputError where reports of `sources` that are not known to be free would go to another machine."""
    private = private_among(sources)
    if args.judge and args.endpoint and private and not is_loopback(args.endpoint) and not args.endpoint_is_mine:
        raise InputError(
            f"--endpoint {args.endpoint} is another machine, and reports of the source {private[0]} may go to none: "
            "serve the model on this one (http://127.0.0.1:...), or give --endpoint_is_mine if people whom the data's "
            "agreement covers run that machine and it keeps nothing"
        )


class JudgeReward:
    """The reward that `make_judge_reward` returns; the network connections are made anew in another process."""

    def __init__(self, name: str, endpoint: str, llm: str, file: str, prompts: str, untagged: str):
        self.__name__ = f"{name}_reward"
        self.name, self.settings, self.untagged = name, (endpoint, llm, file, prompts), untagged
        self.judges = self._make()

    def _make(self) -> Judges:
        endpoint, llm, file, prompts = self.settings
        return Judges([self.name], Endpoint(endpoint, llm, max_tokens=MAX_TOKENS), file, prompts)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "judges"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self.judges = self._make()

    def __call__(
        self,
        completions: list,
        *,
        report: list[str | None] | None = None,
        log_metric: Callable | None = None,
        **kwargs,
    ) -> list[float | None]:
        """The judge's score of each completion's report against the column `report`; None where there is no reference
        or no usable answer, which TRL leaves out. Logs the share of pairs without an answer."""
        rows = known_rows(self.__name__, completions, report)
        texts, _ = read_reports(completions, self.untagged)
        rewards: list[float | None] = [None] * len(completions)
        if not rows:
            return rewards
        self.judges.chat.failure = ""  # a server that was away may be back
        scores = self.judges(self.name, [texts[row] for row in rows], [report[row] for row in rows])
        for row, value in zip(rows, pair_scores(scores), strict=True):
            rewards[row] = None if np.isnan(value) else float(value)
        if scores.reason:
            counted = f"{scores.failed.sum()} of {len(rows)}"
            logger.warning("%s: %s pairs have no usable answer; the first: %s", self.__name__, counted, scores.reason)
        if log_metric:
            log_metric(f"{self.name}/failed", float(scores.failed.mean()))
        return rewards


def make_judge_reward(
    name: str,
    endpoint: str,
    llm: str,
    file: str = "outputs/judge.answers.sqlite",
    prompts: str = "prompts",
    untagged: str = "whole",
) -> JudgeReward:
    """Returns a TRL reward function: what a language model says of each completion's report, higher is better.

    `name`: green, in [0, 1], crimson, in (-1, 1], or radfact, the F1 of a pair's precision and recall, in [0, 1].
    `endpoint`: an OpenAI-compatible server on this machine, since training reports may go to no other; `llm`: its
    model. Answers are kept in `file`. Cost: GREEN and CRIMSON one call for each new pair, RadFact one for each new
    text and one for each phrase; at GREEN's published 2.2 s a pair a step of 64 completions waits for minutes, of
    which a warning is logged. Raises InputError on another judge and on a server elsewhere.

        reward = make_judge_reward("green", "http://127.0.0.1:8000/v1", "Qwen/Qwen2.5-7B-Instruct")
    """
    if name not in JUDGES:
        raise InputError(f"there is no judge {name!r}; choose among {', '.join(JUDGES)}")
    check_url(endpoint)
    if not is_loopback(endpoint):
        raise InputError(f"the judge's endpoint {endpoint} is another machine: training reports go to this one only")
    logger.warning("%s_reward asks the language model %s for every new completion: slow, and dear where it is rented",
                   name, llm)  # fmt: skip
    return JudgeReward(name, endpoint, llm, file, prompts, untagged)


@lru_cache(maxsize=3)
def _from_environment(name: str) -> JudgeReward:
    """The reward of the server that the environment names."""
    endpoint, llm = (os.environ.get(variable) for variable in ("JUDGE_ENDPOINT", "JUDGE_LLM"))
    if not endpoint or not llm:
        raise InputError(
            f"{name}_reward needs JUDGE_ENDPOINT (as http://127.0.0.1:8000/v1) and JUDGE_LLM, the model's name, in "
            "the environment"
        )
    return make_judge_reward(name, endpoint, llm, os.environ.get("JUDGE_ANSWERS", "outputs/judge.answers.sqlite"))


def green_reward(completions: list, **kwargs) -> list[float | None]:
    """GREEN by the language model at JUDGE_ENDPOINT, JUDGE_LLM; see `make_judge_reward`."""
    return _from_environment("green")(completions, **kwargs)


def crimson_reward(completions: list, **kwargs) -> list[float | None]:
    """CRIMSON by the language model at JUDGE_ENDPOINT, JUDGE_LLM; see `make_judge_reward`."""
    return _from_environment("crimson")(completions, **kwargs)


def radfact_reward(completions: list, **kwargs) -> list[float | None]:
    """RadFact by the language model at JUDGE_ENDPOINT, JUDGE_LLM; see `make_judge_reward`."""
    return _from_environment("radfact")(completions, **kwargs)
