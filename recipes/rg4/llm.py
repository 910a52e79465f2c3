"""A language model for LLM-RG4's loop: one behind an OpenAI-compatible endpoint, or one in this process.

Every valid answer is kept in a file at once, under a digest of its prompt: whatever ends a run, the next one asks only
for what is missing, and the same prompts give the same answers.
"""

import hashlib
import ipaddress
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from recipes.files import InputError
from recipes.progress import follow
from rewards.scenarios import CATEGORIES

ASKS = 3  # how often one question is put until its answer has the right form
KEY = "LLM_API_KEY"  # of the environment: what a server started with a key wants
FAILURES = 5  # different requests in a row that get no answer: then the server is at fault, and the run ends
BUSY = (408, 429, 500, 502, 503, 504)
Messages = list[dict[str, str]]


class Refused(ValueError):
    """One question without a usable answer; the sentence says why."""


class Unanswered(InputError):
    """One request that timed out, kept failing or met a closed door, all its retries long."""


def check_url(url: str) -> None:
    """Raises InputError unless `url` is one that an endpoint can have."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise InputError(f"--endpoint must be a URL such as http://127.0.0.1:8000/v1, not {url!r}")


def is_loopback(url: str) -> bool:
    """Whether the host of `url` is this machine: localhost, 127.0.0.0/8 or ::1. Nothing is looked up."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Endpoint:
    """A chat model behind an OpenAI-compatible server, such as vLLM's at http://127.0.0.1:8000/v1.

    A request that times out, fails to connect or is told to wait (429, 5xx) is sent again up to `retries` times, the
    waits doubling from `backoff` seconds on, or as long as the server asks for. No redirect is followed and no proxy
    used: the text goes to the named host only.
    """

    def __init__(
        self,
        url: str,
        model: str,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 1.0,
        concurrency: int = 16,
        max_tokens: int = 1024,
        temperature: float = 0.0,
    ):
        check_url(url)
        self.url, self.name, self.timeout, self.concurrency = url.rstrip("/"), model, timeout, concurrency
        self.settings = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        retry_policy = Retry(
            total=retries, backoff_factor=backoff, status_forcelist=BUSY, allowed_methods=None, redirect=False
        )
        self.session = requests.Session()
        self.session.trust_env = False
        if KEY in os.environ:
            self.session.headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retry_policy, pool_maxsize=concurrency))

    def __call__(self, messages: Messages) -> str:
        """The answer to `messages`. Raises Refused where the server says that this request is at fault (400, 413,
        422), Unanswered where it cannot be reached or stays busy, InputError where it answers otherwise."""
        where = f"the endpoint {self.url}"
        try:
            response = self.session.post(
                f"{self.url}/chat/completions",
                json={**self.settings, "messages": messages},
                timeout=self.timeout,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            reason = "cannot be reached"
            if isinstance(error, requests.exceptions.RetryError):
                reason = "kept failing"
            elif "timed out" in str(error):
                reason = "timed out"
            raise Unanswered(
                f"{where} {reason} ({type(error).__name__}); every answer so far is kept: see to the server and run "
                "the same command again"
            ) from error
        if response.status_code in (400, 413, 422):
            raise Refused(
                f"the endpoint refused the request ({response.status_code}): {' '.join(response.text.split())[:120]}"
            )
        if response.status_code != 200:
            raise InputError(
                f"{where} answered {response.status_code}: check the URL, --llm {self.name} and, if a key is needed, "
                f"the environment's {KEY}"
            )
        try:
            return response.json()["choices"][0]["message"]["content"] or ""
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"{where} does not answer as an OpenAI-compatible server does; check the URL") from error


class InProcess:
    """A chat model of transformers in this process, a folder or a Hub id; greedy, one question at a time."""

    concurrency = 1

    def __init__(self, model: str, max_tokens: int = 1024):
        from transformers import pipeline

        try:
            self.pipeline = pipeline("text-generation", model=model)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"--llm {model} cannot be loaded: {str(error).splitlines()[0]}") from error
        if self.pipeline.tokenizer.chat_template is None:
            raise InputError(f"--llm {model} has no chat template; name an instruction-tuned model")
        self.name, self.max_tokens = model, max_tokens

    def __call__(self, messages: Messages) -> str:
        """The answer to `messages`."""
        answer = self.pipeline(messages, max_new_tokens=self.max_tokens, do_sample=False, return_full_text=False)
        return answer[0]["generated_text"]


class Answers:
    """`chat` with a memory on disk, `file`, and a form that each answer must have.

    `asked` and `recalled` count the requests sent and the answers found in the file. A request that gets no answer
    after its retries is one without a usable answer, and asked again by the next run; `FAILURES` of them in a row, or
    all of fewer, mean that the server is gone. Those that a server left open while it answered others are kept, too:
    in the next run, which may have nothing else left to ask, they say nothing of the server.
    """

    def __init__(self, chat: Callable[[Messages], str], file: str | Path):
        self.chat, self.file, self.asked, self.recalled, self.failures = chat, file, 0, 0, 0
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
            self.database.execute("CREATE TABLE IF NOT EXISTS answers (question BLOB PRIMARY KEY, answer TEXT)")
            self.database.execute("CREATE TABLE IF NOT EXISTS unanswered (question BLOB PRIMARY KEY)")
            self.hopeless = {key for (key,) in self.database.execute("SELECT question FROM unanswered")}
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{file} is no file of kept answers ({error}); name another --out or move it away"
            ) from error
        self.lock, self.unanswered = threading.Lock(), []

    def all(self, questions: Sequence[tuple[Messages, Callable[[str], Any]]], title: str) -> list[Any]:
        """`read(answer)` for each (messages, read) of `questions`, or the sentence that says why there is none.

        `read` raises Refused on an answer of the wrong form: the model is then told so and asked again, `ASKS` times
        in all. An InputError of the endpoint ends the whole call, an Unanswered only where the server is gone.
        """
        self.failures, self.most_failures = 0, min(FAILURES, len(questions))
        pool = ThreadPoolExecutor(self.chat.concurrency)
        try:
            futures = [pool.submit(self._one, *question) for question in questions]
            return [future.result() for future in (futures if len(futures) < 100 else follow(futures, title))]
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, messages: Messages, read: Callable[[str], Any]) -> Any:
        key = hashlib.blake2b(json.dumps([self.chat.name, messages]).encode(), digest_size=16).digest()
        with self.lock:
            row = self.database.execute("SELECT answer FROM answers WHERE question = ?", (key,)).fetchone()
        if row:
            with suppress(Refused):  # one that was kept under other rules is asked again
                result = read(row[0])
                with self.lock:
                    self.recalled += 1
                return result
        asked, fault = messages, ""
        for _ in range(ASKS):
            with self.lock:
                self.asked += 1
            try:
                answer = self.chat(asked)
            except Refused as error:
                self._server_is_there()
                return str(error)
            except Unanswered as error:
                with self.lock:
                    self.unanswered.append((key,))
                    self.failures += key not in self.hopeless
                    if self.failures >= self.most_failures:
                        raise
                return f"no answer after all retries: {str(error).partition('; every answer')[0]}"
            self._server_is_there()
            try:
                result = read(answer)
            except Refused as error:
                fault = str(error)
                turn = [{"role": "assistant", "content": answer}] if answer.strip() else []
                correction = f"That is no valid answer: {fault}. Answer again, in the form that was asked for."
                asked = [*messages, *turn, {"role": "user", "content": correction}]
                continue
            with self.lock:
                self._keep("INSERT OR REPLACE INTO answers VALUES (?, ?)", [(key, answer)])
            return result
        return f"{self.chat.name} gave no valid answer in {ASKS} asks: {fault}"

    def _server_is_there(self) -> None:
        """Notes that the server has replied, and so that the fault is of those requests that it left open before."""
        with self.lock:
            self.failures = 0
            if self.unanswered:
                self._keep("INSERT OR IGNORE INTO unanswered VALUES (?)", self.unanswered)
                self.unanswered = []

    def _keep(self, statement: str, rows: list[tuple]) -> None:
        try:
            self.database.executemany(statement, rows)
        except sqlite3.OperationalError as error:  # a full disk, or another run with the same file
            raise InputError(f"an answer cannot be kept in {self.file}: {error}") from error


def read_object(answer: str) -> dict:
    """The last JSON object in an answer: others, a model's thoughts, or a code fence may stand before or around it."""
    text = answer.rpartition("</think>")[2]
    decoder, last, start = json.JSONDecoder(), None, text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        last, start = value, text.find("{", end)
    if last is None:
        raise Refused("it holds no JSON object" if answer.strip() else "it is empty")
    return last


def read_verdict(answer: str) -> list[int]:
    """Four of 0 and 1 in the order of `CATEGORIES`; raises Refused where a category is missing or no true or false."""
    verdict = read_object(answer)
    for category in CATEGORIES:
        if not isinstance(verdict.get(category), bool):
            raise Refused(f"{category} must be true or false")
    return [int(verdict[category]) for category in CATEGORIES]


def read_sections(answer: str, names: Sequence[str]) -> dict[str, str]:
    """The rewritten sections; raises Refused where they are not exactly `names`, or no texts."""
    sections = read_object(answer)
    if set(sections) != set(names) or not all(isinstance(text, str) for text in sections.values()):
        raise Refused(f"the object must have the keys {', '.join(names)}, each a text")
    return {name: " ".join(sections[name].split()) for name in names}


class LLMJudge:
    """A language model as a judge; `prompt` is the instruction, the report follows as the user's message."""

    def __init__(self, answers: Answers, prompt: str):
        self.answers, self.prompt, self.name = answers, prompt, f"llm:{answers.chat.name}"

    def question(self, text: str) -> Messages:
        """What is sent for one report."""
        return [{"role": "system", "content": self.prompt}, {"role": "user", "content": text}]

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """1 (present), 0 (absent) or -1 (no valid answer), int8, shape (n, 4). Of equal texts one is asked about."""
        texts = list(texts)
        distinct = list(dict.fromkeys(texts))
        answers = self.answers.all([(self.question(text), read_verdict) for text in distinct], "judging")
        by_text = dict(zip(distinct, answers, strict=True))
        rows = [[-1] * len(CATEGORIES) if isinstance(by_text[text], str) else by_text[text] for text in texts]
        return np.array(rows, dtype=np.int8).reshape(len(texts), len(CATEGORIES))


class LLMRewriter:
    """A language model as a rewriter. The conversation of a case carries all its earlier rewrites and judgements."""

    def __init__(self, answers: Answers, prompt: str):
        self.answers, self.prompt, self.name = answers, prompt, f"llm:{answers.chat.name}"

    def question(self, case) -> Messages:
        """What is sent for one `recipes.rg4.pipeline.Case`."""
        messages = [{"role": "system", "content": self.prompt}]
        for i, (text, judged) in enumerate(zip(case.texts, case.judged, strict=True)):
            sections = json.dumps(text, ensure_ascii=False)
            categories = ", ".join(category.replace("_", " ") for category in judged)
            if i == 0:
                messages.append(
                    {"role": "user", "content": f"{sections}\nJudgement: it contains {categories}. Remove that."}
                )
                continue
            messages.append({"role": "assistant", "content": sections})
            request = f"Judgement of this rewrite, number {i}: it still contains {categories}. Rewrite it again."
            messages.append({"role": "user", "content": request})
        return messages

    def __call__(self, cases: Sequence) -> list[dict[str, str] | str]:
        """The new sections of each case, or the sentence that says why there are none."""
        questions = [(self.question(case), partial(read_sections, names=tuple(case.texts[0]))) for case in cases]
        return self.answers.all(questions, "rewriting")
