"""LLM-RG4's requests under fire: 20,000 of them, 5 % of every fault, and the client killed twice (kill -9) on the way.

    python tests/bench/llm_faults.py [--requests 20000]

Of every hundred requests five each meet: 500, 503, 429, a closed connection, silence, an answer without an object, a
cut object, an empty one, a refusal (400), and an object behind thoughts. Nine in ten of these are gone when asked
again; the rest stay, and so does every 400. Checked is that no request is lost, that none that was answered is asked
again, but for those under way when the client was killed, and that exactly the hopeless ones are listed as failed.
Writes outputs/bench/llm_faults/results.json; exits 0 whether or not the bars hold.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from recipes.cli import report, run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from rg4_server import Server  # noqa: E402

from recipes.rg4.llm import Answers, Endpoint, read_verdict  # noqa: E402
from rewards.scenarios import CATEGORIES  # noqa: E402

VERDICT = json.dumps(dict.fromkeys(CATEGORIES, True))
TIMEOUT, CONCURRENCY = 5.0, 16
THOUGHTS = f"<think>{{</think>{VERDICT}"
FAULTS = (
    500,
    503,
    429,
    0.0,
    TIMEOUT + 1,
    "I think so.",
    VERDICT[:-3],
    "",
    400,
    THOUGHTS,
)  # a float: seconds of silence
SPACED = dict(zip(range(0, 20, 2), FAULTS, strict=True))  # by the number's rest of 20: each one in twenty
REFUSAL = FAULTS.index(400) * 2


def reply_to(number: int, again: bool) -> str | int | float:
    """What the server answers to request `number`, for the first time or `again`."""
    stays = is_lasting(number) or number % 20 == REFUSAL
    return SPACED.get(number % 20, VERDICT) if stays or not again else VERDICT


def is_lasting(number: int) -> bool:
    """Whether the fault of request `number` is there at every time."""
    return number // 20 % 10 == number % 20 // 2


def is_hopeless(number: int) -> bool:
    """Whether request `number` never gets a usable answer."""
    rest = number % 20
    return rest == REFUSAL or (SPACED.get(rest, VERDICT) not in (VERDICT, THOUGHTS) and is_lasting(number))


def ask(url: str, file: str, requests: int) -> dict:
    """What a client gets: numbers of the failed requests, and how many were asked and recalled."""
    answers = Answers(Endpoint(url, "m", TIMEOUT, 2, 0.0, CONCURRENCY), file)
    questions = [([{"role": "user", "content": f"report {number}"}], read_verdict) for number in range(requests)]
    results = answers.all(questions, "judging")
    failed = [number for number, result in enumerate(results) if isinstance(result, str)]
    return {"failed": failed, "asked": answers.asked, "recalled": answers.recalled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="Number of requests.")
    parser.add_argument("--client", nargs=2, help="URL and file of a client, which the bench starts itself.")
    arguments = parser.parse_args()
    if arguments.client:
        print(json.dumps(ask(*arguments.client, arguments.requests)))
        return
    usable, lock = Counter(), threading.Lock()  # answers that a client could keep, by request

    def answer(messages: list[dict], times: int) -> str | int | float:
        number = int(messages[0]["content"].split()[1])
        reply = reply_to(number, times > 0 or len(messages) > 1)  # longer: the client has said what was amiss
        with lock:
            usable[number] += reply in (VERDICT, THOUGHTS)
        return reply

    server, start, seconds = Server(answer), time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--requests", str(arguments.requests)]
        words += ["--client", server.url, f"{folder}/answers.sqlite"]
        for share in (0.3, 0.65):
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
            while sum(usable.values()) < share * arguments.requests and process.poll() is None:
                time.sleep(0.02)
            process.kill()
            process.wait()
            seconds.append(time.perf_counter() - start)
        kept = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        seconds.append(time.perf_counter() - start)
    last = json.loads(kept.splitlines()[-1])
    hopeless = [number for number in range(arguments.requests) if is_hopeless(number)]
    never = sum(not usable[number] for number in range(arguments.requests) if not is_hopeless(number))
    twice = sum(times - 1 for times in usable.values() if times > 1)
    figures = {"requests": arguments.requests, "sent": len(server.asked), "seconds": seconds, "last_run": {
        "asked": last["asked"], "recalled": last["recalled"], "failed": len(last["failed"])}}  # fmt: skip
    wrong = len(set(last["failed"]) ^ set(hopeless))
    checks = []
    for title, value, most in (
        ("requests without an answer that could have one", never, 0),
        ("requests listed as failed, or not, against what they are", wrong, 0),
        ("answers asked for twice, two clients killed", twice, 2 * 2 * CONCURRENCY),
    ):
        checks.append({"name": title, "value": value, "bar": f"<= {most}", "holds": value <= most})
    report(ROOT / "outputs" / "bench" / "llm_faults", figures, checks)


if __name__ == "__main__":
    run(main)
