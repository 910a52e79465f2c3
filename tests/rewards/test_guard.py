"""`check_reward` over every reward that is shipped, and over one broken reward for each of its rules.

The rewards with an encoder go through it in the files that build one.
"""

import asyncio
import math
import random
from functools import partial

import numpy as np
import pytest

from rewards import ce_f1_reward, format_reward, mccs_reward
from rewards.bleu import bleu_reward, make_bleu_reward
from rewards.cider import make_cider_reward
from rewards.completions import completion_text
from rewards.guard import STRANGE, check_reward
from rewards.inputs import score_texts
from rewards.labelers import LexicalLabeler
from rewards.radcliq import radcliq_lite_reward
from rewards.radgraph import radgraph_reward
from rewards.rouge import rouge_reward

EFFUSION = "There is a small left pleural effusion. The heart is normal in size. No pneumothorax."
CLEAR = "The lungs are clear. No pleural effusion or pneumothorax. The heart is normal in size."
EDEMA = "Cardiomegaly with mild pulmonary edema."
REPORTS = [EFFUSION, CLEAR, EDEMA, CLEAR]
COLUMNS = {
    "completions": [
        f"<think>Blunted angle.</think><report>{EFFUSION}</report>",
        f"<think>Nothing.</think>{EDEMA} The lungs are clear.",
        "<report>Mild pulmonary edema.</report>",
        CLEAR,
    ],
    "report": REPORTS,
    "labels": LexicalLabeler()(REPORTS).tolist(),
}
TEXTS = {"completions": COLUMNS["completions"], "report": REPORTS}


def shipped():
    yield "format", format_reward, COLUMNS
    yield "mccs", mccs_reward, COLUMNS
    yield "mccs on texts", mccs_reward, TEXTS
    yield "ce_f1", ce_f1_reward, COLUMNS
    yield "bleu", bleu_reward, TEXTS
    yield "bleu of pycocoevalcap", make_bleu_reward(smoothing=0), TEXTS
    yield "bleu without tags", make_bleu_reward(order=2, untagged="zero"), TEXTS
    yield "rouge", rouge_reward, TEXTS
    yield "cider", make_cider_reward(REPORTS), TEXTS
    yield "radgraph", radgraph_reward, TEXTS
    yield "radcliq_lite", radcliq_lite_reward, TEXTS


@pytest.mark.parametrize(("reward", "examples"), [pytest.param(r, c, id=name) for name, r, c in shipped()])
def test_shipped_rewards_pass(reward, examples):
    assert "passed: 4 rows" in check_reward(reward, examples)


# --- rewards that break one rule each -------------------------------------------------------------------------------


def overlap(generated: list[str], references: list[str]) -> list[float]:
    """Share of the reference's words that the report has: a sound score to spoil."""
    words = [(set(a.split()), set(b.split())) for a, b in zip(generated, references, strict=True)]
    return [len(a & b) / len(b) for a, b in words]


def sound(completions, *, report=None, **kwargs):
    return score_texts("sound", overlap, completions, report)


def short(completions, **columns):
    return sound(completions, **columns)[:-1]


def array(completions, **columns):
    return np.array(sound(completions, **columns))


def typed(completions, **columns):
    return [np.float32(value) for value in sound(completions, **columns)]


def nan(completions, **columns):
    return [value or math.nan for value in sound(completions, **columns)]


def flat(completions, **columns):
    return [0.5] * len(completions)


def narrow(completions, report):
    return sound(completions, report=report)


def positional(completions, *, report, **kwargs):
    return [value + 0.1 * row if value else value for row, value in enumerate(sound(completions, report=report))]


def bordered(completions, **columns):
    """The two ends of a batch keep their scores when it is turned round."""
    values = sound(completions, **columns)
    return [value and value + 0.1 * (row in (0, len(values) - 1)) for row, value in enumerate(values)]


def relative(completions, **columns):
    values = sound(completions, **columns)
    known = [value for value in values if value is not None]
    return [value and value - sum(known) / len(known) for value in values]


def novel(completions, **columns):
    texts = list(map(completion_text, completions))
    return [value and value / texts.count(text) for value, text in zip(sound(texts, **columns), texts, strict=True)]


def noisy(completions, **columns):
    return [value and value + random.random() for value in sound(completions, **columns)]


def cached(completions, *, report, **kwargs):
    once = dict(zip(map(completion_text, completions), sound(completions, report=report), strict=True))
    return [once[completion_text(completion)] for completion in completions]


def refuses_empty(completions, *, report, **kwargs):
    if any(not completion_text(completion) for completion in completions):
        raise ZeroDivisionError("no words")
    return sound(completions, report=report)


def drops_empty(completions, **columns):
    texts = map(completion_text, completions)
    return [value if text.strip() else None for value, text in zip(sound(completions, **columns), texts, strict=True)]


def impatient(completions, *, report, **kwargs):
    if any(len(completion_text(completion).split()) > 5_000 for completion in completions):
        raise RuntimeError("longer than the encoder's 512 positions")
    return sound(completions, report=report)


def matching_tags(completions, *, report, **kwargs):
    for completion in map(completion_text, completions):
        if "</report>" in completion:
            completion.index("<report>", 0, completion.index("</report>"))
    return sound(completions, report=report)


def encoded(completions, *, report, **kwargs):
    return sound([completion_text(completion).encode().decode() for completion in completions], report=report)


def c_strings(completions, *, report, **kwargs):
    nul = ["\0" in completion_text(completion) for completion in completions]
    return [math.inf if bad else value for bad, value in zip(nul, sound(completions, report=report), strict=True)]


def latin(completions, *, report, **kwargs):
    for completion in completions:
        completion_text(completion).replace("\ud800", "").encode("latin-1")
    return sound(completions, report=report)


def contagious(completions, *, report, **kwargs):
    blank = any(not completion_text(completion).strip() for completion in completions)
    return [0.0 if blank else value for value in sound(completions, report=report)]


def strings_only(completions, *, report, **kwargs):
    return sound([str(completion) for completion in completions], report=report)


def messages_only(completions, *, report, **kwargs):
    return sound([completion[-1]["content"] if completion else "" for completion in completions], report=report)


def null_is_empty(completions, *, report, **kwargs):
    return [value or 0.0 for value in sound(completions, report=report)]


def null_fails(completions, *, report, **kwargs):
    return sound(completions, report=[text.strip() for text in report])


def null_spreads(completions, *, report, **kwargs):
    values = sound(completions, report=report)
    return [None] * len(values) if None in values else values


def zips(completions, *, report, **kwargs):
    pairs = [(c, r) for c, r in zip(completions, report, strict=False)]
    return sound([c for c, _ in pairs], report=[r for _, r in pairs])


def pads(completions, *, report, **kwargs):
    missing = len(completions) - len(report)
    if missing < 0:
        raise ValueError("too many references")
    return sound(completions, report=[*report, *report[:1] * missing])


@pytest.mark.parametrize(
    ("reward", "finding"),
    [
        (short, "the examples as they are: 3 values come back for 4 completions"),
        (array, "a ndarray comes back, not a list"),
        (typed, "row 0 scores .*, a float32, not a float or None"),
        (nan, "row . scores nan"),
        (flat, "all rows score 0.5"),
        (narrow, "raises TypeError: .* unexpected keyword"),  # no **kwargs: TRL passes more than the columns
        (positional, "in reverse order: row"),
        (bordered, "in another order: row"),
        (relative, "one by one: row"),
        (relative, "in two halves: row"),
        (novel, "with every row twice: row 0 scores"),
        (noisy, "called again: row"),
        (cached, "one completion in every row: row"),
        (refuses_empty, "an empty completion: raises ZeroDivisionError: no words"),
        (drops_empty, "a blank completion: row ., which has a reference, scores None"),
        (impatient, "a completion of 10,000 tokens: raises RuntimeError"),
        (matching_tags, "tags out of order: raises ValueError: substring not found"),
        (encoded, "a lone surrogate: raises UnicodeEncodeError"),
        (c_strings, "NUL characters: row 0 scores inf"),
        (latin, "emoji: raises UnicodeEncodeError"),
        (latin, "text from right to left: raises UnicodeEncodeError"),
        (contagious, "an empty completion beside the examples: row 0 scores 0.0, elsewhere 1.0"),
        (strings_only, "as chat messages: row"),
        (null_is_empty, "null in every row of 'report': row 0 scores 0.0, not None"),
        (null_fails, "null in every row of 'report': raises AttributeError"),
        (null_spreads, "null in row 0 of 'report': row 1 scores None"),
        (zips, "5 rows of 'report' for 4 completions are scored, not refused"),
        (zips, "3 rows of 'report' for 4 completions are scored, not refused"),
        (pads, "3 rows of 'report' for 4 completions are scored, not refused"),
    ],
)
def test_broken_rewards_are_caught(reward, finding):
    with pytest.raises(AssertionError, match=rf"{reward.__name__} breaks \d+ rule\(s\):(.|\n)*{finding}"):
        check_reward(reward, TEXTS)


class Fragile:
    __name__ = "fragile"

    def __init__(self, what):
        self.what = what

    def __call__(self, completions, *, report, **kwargs):
        if STRANGE[self.what] in map(completion_text, completions):
            raise ValueError("not this one")
        return sound(completions, report=report)


@pytest.mark.parametrize("what", STRANGE)
def test_each_strange_completion_is_tried(what):
    with pytest.raises(AssertionError, match="fragile breaks 1 rule") as error:
        check_reward(Fragile(what), TEXTS)
    assert str(error.value).endswith(f"\n- {what}: raises ValueError: not this one")


async def later(completions, **columns):
    await asyncio.sleep(0)
    return sound(completions, **columns)


def test_the_sound_one_passes_in_every_form():
    rows = [{"completion": c, "report": r} for c, r in zip(COLUMNS["completions"], REPORTS, strict=True)]
    chats = [[{"role": "assistant", "content": completion}] for completion in COLUMNS["completions"]]
    for reward in (sound, later):
        summary = check_reward(reward, TEXTS)
        assert summary == check_reward(reward, rows) == check_reward(reward, {**TEXTS, "completions": chats})
        assert summary.startswith(f"{reward.__name__} passed: 4 rows, ") and summary.endswith(
            " calls, scores from 0.2857 to 1"
        )


def test_a_reward_must_go_to_another_process():
    """TRL's asynchronous trainer pickles its rewards, and every trainer logs them by their names."""

    def local(completions, **columns):
        return sound(completions, **columns)

    with pytest.raises(AssertionError, match=r"local breaks 1 rule\(s\):\n- pickle refuses it: Can't pickle local"):
        check_reward(local, TEXTS)
    with pytest.raises(AssertionError, match=r"partial breaks 1 rule.*\n- it has no __name__, by which TRL logs it"):
        check_reward(partial(sound), TEXTS)

    class Forgetful:  # its pickle is another reward
        __name__ = "forgetful"

        def __call__(self, completions, **columns):
            return sound(completions, **columns)

        def __reduce__(self):
            return partial, (flat,)

    with pytest.raises(AssertionError, match=r"forgetful breaks 1 rule\(s\):\n- after pickle: row . scores 0.5"):
        check_reward(Forgetful(), TEXTS)


def test_strings_are_expected_where_messages_were_given():
    chats = [[{"role": "assistant", "content": completion}] for completion in COLUMNS["completions"]]
    with pytest.raises(AssertionError, match="as strings: raises TypeError"):
        check_reward(messages_only, {**TEXTS, "completions": chats})


def test_all_violations_are_listed():
    with pytest.raises(AssertionError, match=r"\Arelative breaks \d+ rule\(s\):\n- ") as error:
        check_reward(relative, TEXTS)
    assert str(error.value).count("\n- ") == int(str(error.value).split()[2]) > 3


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"report": REPORTS}, "at least two"),
        ([], "at least two"),
        ([{"completion": CLEAR, "report": CLEAR}], "at least two"),
        ([{"completion": CLEAR, "report": CLEAR}, {"completion": CLEAR}], "row 1 .* other columns"),
        ({"completions": [CLEAR] * 2, "report": [CLEAR]}, "'report' .* not as long"),
    ],
)
def test_unusable_examples_are_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        check_reward(sound, examples)
