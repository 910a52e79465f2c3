"""LLM-RG4's loop, its guard and its script; an LLM is a scripted server on this machine (tests/rg4_server.py)."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from recipes import build_mimic_rg4
from recipes.data.schema import read_dataset, write_dataset
from recipes.files import InputError
from recipes.rg4 import pipeline as rg4
from recipes.rg4.llm import InProcess, Refused, is_loopback, read_sections, read_verdict
from rewards.labelers import LexicalLabeler
from rewards.labels import CONDITIONS, CheXpertState
from rewards.scenarios import ALLOWED, CATEGORIES, FORBIDDEN

sys.path.insert(0, str(Path(__file__).parents[1]))
from rg4_server import DIE, serve

PC, PP, VIEW, COMM = CATEGORIES


def png(value: int) -> dict:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def row(study: str, findings: str | None, impression: str | None, scenario: str = "mw", **changes) -> dict:
    """A row with a lateral image first stored second, and a prior report."""
    return {
        "study_id": study,
        "subject_id": study,
        "images": [png(10), png(200)],
        "views": ["PA", "LATERAL"],
        "prior_report": "Earlier report.",
        "findings": findings,
        "impression": impression,
        "report": " ".join(filter(None, (findings, impression))),
        "scenario": scenario,
        "labels": [0] * 14,
        "source": "test",
        "license": "none",
    } | changes


ROWS = [
    row("clean", "Lungs are clear.", "No effusion."),
    row("stable", "Unchanged small effusion. The nurse was notified.", "Small effusion, stable."),
    row("views", "PA and lateral views were obtained. Heart is enlarged.", None, scenario="mn"),
    row("alone", None, "Status post CABG. No new edema.", scenario="sn", views=["AP"], images=[png(30)]),
]


@pytest.fixture
def dataset(tmp_path) -> Path:
    return build(tmp_path / "data", ROWS)


def build(folder: Path, rows: list[dict], **note) -> Path:
    write_dataset({"train": lambda: iter(rows)}, folder, {"labeler": "lexical", **note})
    return folder


# --- tables ------------------------------------------------------------------------------------------------------


def test_what_each_scenario_forbids():
    assert set(FORBIDDEN["sn"]) == {PC, PP, VIEW, COMM}
    assert set(FORBIDDEN["sw"]) == {PP, VIEW, COMM}
    assert set(FORBIDDEN["mn"]) == {PC, PP, COMM}
    assert set(FORBIDDEN["mw"]) == {PP, COMM}
    assert all(set(ALLOWED[each]) | set(FORBIDDEN[each]) == set(CATEGORIES) for each in ALLOWED)


@pytest.mark.parametrize(
    ("own", "served"),
    [("sn", "sn"), ("sw", "sn sw"), ("mn", "sn mn"), ("mw", "sn sw mn mw"), (None, "")],  # w: with the prior report
)
def test_which_scenarios_a_row_can_serve(own, served):
    assert [each for each in ALLOWED if rg4.can_serve(own, each)] == served.split()


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.1.2.3/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.0.0.5:8000/v1", False),
        ("http://localhost.example.org/v1", False),
        ("http://127.0.0.1.example.org/v1", False),
        ("http://127.0.0.1@example.org/v1", False),  # the host is what follows the @
        ("https://api.example.org/v1", False),
    ],
)
def test_loopback(url, here):
    assert is_loopback(url) is here


# --- the loop ----------------------------------------------------------------------------------------------------


class StubJudge:
    """Finds a prior comparison as long as the text ends in "!"."""

    name = "stub"

    def __call__(self, texts):
        return np.array([[text.endswith("!"), 0, 0, 0] for text in texts], dtype=np.int8)


def peel(cases):
    """Takes off one "!"."""
    return [{name: text.removesuffix("!") for name, text in case.texts[-1].items()} for case in cases]


@pytest.mark.parametrize(
    ("text", "rounds", "satisfied", "last"),
    [
        ("a", 0, True, "a"),
        ("a!", 1, True, "a"),
        ("a!!!", 3, True, "a"),  # the third rewrite is judged too
        ("a!!!!", 3, False, "a!"),  # never satisfied: kept as it is
    ],
)
def test_rounds(text, rounds, satisfied, last):
    (case,) = rg4.run_loop([{"report": text}], "sn", StubJudge(), peel)
    assert (case.rounds, case.satisfied, case.texts[-1]["report"]) == (rounds, satisfied, last)
    assert len(case.judged) == rounds + 1 and case.failed is None


def test_what_the_scenario_allows_is_not_rewritten():
    (case,) = rg4.run_loop([{"report": "a!"}], "sw", StubJudge(), peel)
    assert case.rounds == 0 and case.satisfied and case.judged == [()]


def test_either_judge():
    class Other(StubJudge):
        name = "other"

        def __call__(self, texts):
            return np.array([[0, 0, "view" in text, 0] for text in texts], dtype=np.int8)

    judge = rg4.EitherJudge(StubJudge(), Other())
    assert judge(["view!", "view", "a"]).tolist() == [[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert judge.name == "stub+other"


@pytest.mark.parametrize(
    ("judged", "failed", "satisfied"),
    [
        ([()], None, True),
        ([(PC,)], None, False),
        ([(PC,), ()], None, True),
        ([(PC,), ()], "the labels changed", False),  # left out, whatever its last judgement was
        ([], "the judge gave no answer", False),  # never judged
    ],
)
def test_which_case_is_satisfied(judged, failed, satisfied):
    case = rg4.Case("sn", [{"report": "a"}] * max(len(judged), 1), judged, failed)
    assert case.satisfied is satisfied and case.rounds == max(len(judged), 1) - 1


def test_counts_and_provenance_of_each_outcome(tmp_path):
    """Of rounds, an outcome and a reason; a case that failed is discarded, however it was judged."""
    text = {"report": "a"}
    cases = [
        rg4.Case("sn", [text], [()]),
        rg4.Case("sn", [text] * 2, [(PC,), ()]),
        rg4.Case("sn", [text] * 4, [(PC,)] * 4),
        rg4.Case("sn", [text] * 2, [(PC,), ()], failed="why"),
        rg4.Case("sn", [text], [], failed="why"),
        rg4.Case("sw", [text], [], failed="no"),
    ]
    names = {"judge": "j", "rewriter": "r", "labeler": "l"}
    with rg4.Notes(tmp_path, names) as notes:
        notes.add({"study_id": [*"abcdef"]}, cases, "train")
    assert notes.counts == {
        "sn": {"satisfied": 2, "unsatisfied": 1, "discarded": 2, "rewritten": 3},
        "sw": {"discarded": 1, "rewritten": 0},
    }
    assert notes.why() == ": of 2 reports, why"
    table = Dataset.from_parquet(str(tmp_path / "provenance.parquet"), cache_dir=str(tmp_path / "cache"))
    assert [(row["study_id"], row["rounds"], row["satisfied"], row["discarded"]) for row in table] == [
        ("a", 0, True, None), ("b", 1, True, None), ("c", 3, False, None), ("d", 1, False, "why"),
        ("e", 0, False, "why"), ("f", 0, False, "no"),
    ]  # fmt: skip
    assert {tuple(row[name] for name in names) for row in table} == {("j", "r", "l")}
    assert discarded(tmp_path) == {("sn", "d"): "why", ("sn", "e"): "why", ("sw", "f"): "no"}


def test_the_rewriter_sees_all_that_went_before():
    seen = []

    def rewriter(cases):
        seen.append([(list(case.texts), list(case.judged)) for case in cases])
        return peel(cases)

    rg4.run_loop([{"report": "a!!"}, {"report": "b"}], "sn", StubJudge(), rewriter)
    first = ([{"report": "a!!"}], [(PC,)])
    second = ([{"report": "a!!"}, {"report": "a!"}], [(PC,), (PC,)])
    assert seen == [[first], [second]]


def test_failures_are_named():
    class Mute(StubJudge):
        def __call__(self, texts):
            return np.array([[-1] * 4 if "mute" in text else [text.endswith("!"), 0, 0, 0] for text in texts])

    answers = {"a!": "no answer", "b!": {"report": " "}}
    cases = rg4.run_loop(
        [{"report": text} for text in ("mute", "a!", "b!")],
        "sn",
        Mute(),
        lambda cases: [answers[case.texts[0]["report"]] for case in cases],
    )
    assert [case.failed for case in cases] == [
        "the judge stub gave no valid answer",
        "no answer",
        "nothing is left of the report",
    ]


BOTH = {"findings": "effusion", "impression": "edema"}


@pytest.mark.parametrize(
    ("before", "after", "section", "failed"),
    [
        (BOTH, {"findings": "", "impression": "edema"}, "impression", False),
        ({"findings": "x", "impression": "edema"}, {"findings": "x", "impression": ""}, "impression", True),
        ({"findings": "edema"}, {"findings": ""}, "impression", True),  # without an impression the findings
        ({"findings": "x", "impression": "edema"}, {"findings": "x", "impression": ""}, "findings", False),
        (BOTH, {"findings": "", "impression": "edema"}, "report", True),
        (BOTH, {"findings": "effusion", "impression": ""}, "report", True),
        ({"report": "edema"}, {"report": ""}, "impression", True),
    ],
)
def test_guard(before, after, section, failed):
    def labeler(texts):
        return [["edema" in text, "effusion" in text, *[0] * 12] for text in texts]

    case = rg4.Case("sn", [before, after], [(PC,), ()])
    untouched = rg4.Case("sn", [before], [()])
    rg4.guard([case, untouched], labeler, section)
    assert (case.failed is not None) is failed and untouched.failed is None
    if failed:
        assert re.search(r"labels of the \w+ changed: [\w ]+ positive -> blank", case.failed)


@pytest.mark.parametrize(
    ("rewrites", "failed"),
    [
        (["edema", "", "edema"], False),  # lost and found again: the last rewrite is what is written
        (["edema", "edema", ""], True),
        (["", "", "edema"], True),  # and the original is what it is compared with
    ],
)
def test_guard_compares_the_last_rewrite_with_the_original(rewrites, failed):
    case = rg4.Case("sn", [{"impression": text} for text in rewrites], [(PC,), (PC,), ()])
    rg4.guard([case], lambda texts: [["edema" in text, *[0] * 13] for text in texts])
    assert (case.failed is not None) is failed


def test_guard_leaves_other_failures_as_they_are():
    case = rg4.Case("sn", [{"report": "edema"}, {"report": ""}], [(PC,)], failed="no answer")
    rg4.guard([case], lambda texts: [["edema" in text, *[0] * 13] for text in texts])
    assert case.failed == "no answer"


# --- the script --------------------------------------------------------------------------------------------------


def run(call, dataset, out, **arguments) -> dict:
    """Runs the script; returns scenario -> study -> row."""
    given = {"dataset": dataset, "out": out, **arguments}
    call(build_mimic_rg4.main, *(word for name, value in given.items() for word in (f"--{name}", *str(value).split())))
    return {
        folder.name: {each["study_id"]: each for each in read_dataset(str(folder))["train"]}
        for folder in sorted(out.iterdir())
        if folder.is_dir()
    }


def discarded(out: Path) -> dict[tuple[str, str], str]:
    with (out / "discarded.csv").open(newline="") as file:
        return {(row["scenario"], row["study_id"]): row["reason"] for row in csv.DictReader(file)}


def test_four_scenarios_by_rules(dataset, tmp_path, call):
    made = run(call, dataset, tmp_path / "rg4")
    assert {name: set(rows) for name, rows in made.items()} == {
        "sn": {"clean", "stable", "views", "alone"},
        "sw": {"clean", "stable"},
        "mn": {"clean", "stable", "views"},
        "mw": {"clean", "stable"},
    }
    assert made["sn"]["stable"]["report"] == "Small effusion. Small effusion."
    assert made["sw"]["stable"]["report"] == "Unchanged small effusion. Small effusion, stable."  # PC is allowed
    assert made["mn"]["views"]["report"] == ROWS[2]["report"] and made["sn"]["views"]["report"] == "Heart is enlarged."
    assert made["sn"]["alone"]["impression"] == "No edema." and made["sn"]["alone"]["findings"] is None
    effusion, edema = CONDITIONS.index("Pleural Effusion"), CONDITIONS.index("Edema")
    assert made["sn"]["stable"]["labels"][effusion] == CheXpertState.POSITIVE  # made anew, not copied
    assert made["sn"]["alone"]["labels"][edema] == CheXpertState.NEGATIVE
    for name, rows in made.items():
        for each in rows.values():
            assert each["scenario"] == name
            frontal, *lateral = each["views"]
            assert frontal in ("PA", "AP") and lateral == (["LATERAL"] if name[0] == "m" else [])
            assert len(each["images"]) == len(each["views"])
            assert each["prior_report"] == ("Earlier report." if name[1] == "w" else None)
    notes = Dataset.from_parquet(str(tmp_path / "rg4/provenance.parquet"), cache_dir=str(tmp_path / "cache"))
    (note,) = [each for each in notes if each["study_id"] == "stable" and each["scenario"] == "sn"]
    assert (note["rounds"], note["satisfied"], note["judge"], note["rewriter"]) == (1, True, "rule", "rule")
    history = json.loads(note["history"])
    assert history[0] == [{"findings": ROWS[1]["findings"], "impression": ROWS[1]["impression"]}, [PC, COMM]]
    build_note = json.loads((tmp_path / "rg4/build.json").read_text())
    assert build_note["judge"] == build_note["rewriter"] == "rule" and build_note["rows"]["sn"] == {"train": 4}
    assert build_note["reports"] == {
        "sn": {"satisfied": 4, "rewritten": 3},  # all but the clean one
        "sw": {"satisfied": 2, "rewritten": 1},  # "stable" tells of a call
        "mn": {"satisfied": 3, "rewritten": 1},  # "views" may name its views
        "mw": {"satisfied": 2, "rewritten": 1},
    }
    assert discarded(tmp_path / "rg4") == {}


def test_rows_without_a_frontal_view(tmp_path, call):
    dataset = build(tmp_path / "data", [*ROWS, row("side", "Clear.", None, scenario=None, views=["LATERAL"])])
    made = run(call, dataset, tmp_path / "rg4")
    assert all("side" not in rows for rows in made.values())
    assert discarded(tmp_path / "rg4") == {("none", "side"): "it has no scenario: no frontal view"}


def test_the_frontal_image_wherever_it_stands(tmp_path, call):
    """Builders store it first; a data set of another make may not."""
    views = ["LATERAL", "AP", "LL", "PA"]
    dataset = build(tmp_path / "data", [row("a", "Clear.", None, views=views, images=[*map(png, (0, 80, 160, 240))])])
    made = run(call, dataset, tmp_path / "rg4")
    shades = {
        name: [
            (view, image.getpixel((0, 0))) for view, image in zip(rows["a"]["views"], rows["a"]["images"], strict=True)
        ]
        for name, rows in made.items()
    }
    one, two = [("AP", 80)], [("AP", 80), ("LATERAL", 0)]
    assert shades == {"sn": one, "sw": one, "mn": two, "mw": two}


def test_key_spans_of_the_original_are_not_kept(tmp_path, call):
    """They are characters of a text that is written no more."""
    dataset = build(tmp_path / "data", [ROWS[1] | {"key_spans": [[0, 9]]}])
    assert all(rows["stable"]["key_spans"] is None for rows in run(call, dataset, tmp_path / "rg4").values())


def test_limit(dataset, tmp_path, call):
    assert set(run(call, dataset, tmp_path / "rg4", limit=2)["sn"]) == {"clean", "stable"}


def test_text_without_images(tmp_path, call):
    rows = [each | {"images": []} for each in ROWS]  # the views are known from the metadata
    made = run(call, build(tmp_path / "data", rows), tmp_path / "rg4")
    assert made["mw"]["stable"]["views"] == ["PA", "LATERAL"] and made["mw"]["stable"]["images"] == []


def test_the_same_twice(dataset, tmp_path, call):
    first, second = (run(call, dataset, tmp_path / "rg4") for _ in range(2))  # the second replaces the first
    assert first == second


def test_unsatisfied_reports_are_kept_or_discarded(dataset, tmp_path, call, monkeypatch):
    monkeypatch.setattr(rg4.RuleRewriter, "__call__", lambda self, cases: [case.texts[-1] for case in cases])
    made = run(call, dataset, tmp_path / "kept", scenarios="sn")
    assert set(made["sn"]) == {"clean", "stable", "views", "alone"}
    notes = Dataset.from_parquet(str(tmp_path / "kept/provenance.parquet"), cache_dir=str(tmp_path / "cache"))
    assert {each["study_id"]: (each["rounds"], each["satisfied"]) for each in notes}["stable"] == (3, False)
    made = run(call, dataset, tmp_path / "rg4", scenarios="sn", on_max_rounds="discard")
    assert set(made["sn"]) == {"clean"}
    assert (
        "after 3 rewrites it is still judged to hold prior_comparison" in discarded(tmp_path / "rg4")["sn", "stable"]
    )


# --- with an LLM -------------------------------------------------------------------------------------------------

NOTHING = dict.fromkeys(CATEGORIES, False)


def is_judging(messages: list[dict]) -> bool:
    return "true or false" in messages[0]["content"]


def verdict(text: str) -> str:
    """What a perfect judge of ROWS says."""
    return json.dumps(NOTHING | {PC: bool(re.search("unchanged|stable|new", text, re.I))})


def rewritten(messages: list[dict]) -> str:
    sections = json.loads(messages[1]["content"].split("\nJudgement")[0])
    return json.dumps({name: re.sub("(?i)unchanged |, stable|new ", "", text) for name, text in sections.items()})


def well(messages: list[dict], times: int = 0) -> str:
    """A model that does as it is told."""
    return verdict(messages[-1]["content"]) if is_judging(messages) else rewritten(messages)


def llm(server, **changes) -> dict:
    fast = {"timeout": 0.5, "retries": 3, "backoff": 0.01, "concurrency": 4}
    return {
        "judge": "llm",
        "rewriter": "llm",
        "llm": "m",
        "endpoint": server.url,
        "scenarios": "sn",
        **fast,
        **changes,
    }


def test_llm(dataset, tmp_path, call):
    with serve(well) as server:
        made = run(call, dataset, tmp_path / "rg4", **llm(server))
    assert made["sn"]["stable"]["report"] == "small effusion. The nurse was notified. Small effusion."
    assert made["sn"]["clean"]["report"] == ROWS[0]["report"]
    assert len(server.asked) == 4 + 2 + 2  # four judgements, two rewrites, two more judgements
    notes = json.loads((tmp_path / "rg4/build.json").read_text())
    assert notes["judge"] == notes["rewriter"] == "llm:m"


def first_time(reply):
    """A server that answers each question with `reply` once, and well the next time."""
    return lambda messages, times: reply if times == 0 else well(messages)


@pytest.mark.parametrize(
    "reply",
    [429, 500, 503, 0.8],
    ids=["told to wait", "server error", "unavailable", "silent for longer than the timeout"],
)
def test_troubles_that_pass(dataset, tmp_path, call, reply):
    with serve(first_time(reply)) as server:
        made = run(call, dataset, tmp_path / "rg4", **llm(server))
    assert made["sn"]["stable"]["report"] == "small effusion. The nurse was notified. Small effusion."
    assert len(server.asked) == 2 * 8


@pytest.mark.parametrize("wrong", ["", "I cannot do that.", '{"prior_comparison": tru', "[1, 2]", '{"a": 1}'])
def test_a_malformed_answer_is_asked_for_again(dataset, tmp_path, call, wrong):
    def answer(messages, times):
        corrected = "no valid answer" in messages[-1]["content"]
        return well(messages[:-1] if messages[-2]["role"] == "user" else messages[:-2]) if corrected else wrong

    with serve(answer) as server:
        made = run(call, dataset, tmp_path / "rg4", **llm(server))
    assert made["sn"]["stable"]["report"] == "small effusion. The nurse was notified. Small effusion."
    assert len(server.asked) == 2 * 8


def test_answers_in_fences_and_prose_are_read(dataset, tmp_path, call):
    with serve(lambda messages, times: f"Here it is:\n```json\n{well(messages)}\n```\nDone.") as server:
        made = run(call, dataset, tmp_path / "rg4", **llm(server))
    assert set(made["sn"]) == {"clean", "stable", "views", "alone"} and len(server.asked) == 8


def replaced(find: str, by):
    """A model that does well, except that it rewrites the report with `find` into `by` (sections to anything)."""

    def answer(messages, times):
        if is_judging(messages) or find not in messages[1]["content"]:
            return well(messages)
        return by if isinstance(by, str | int) else json.dumps(by)

    return answer


@pytest.mark.parametrize(
    ("by", "reason"),
    [
        ({"findings": "x", "impression": "Small effusion and pneumonia."}, "Pneumonia blank -> positive"),
        ({"findings": "Small effusion.", "impression": "No effusion."}, "Pleural Effusion positive -> negative"),
        ({"findings": "", "impression": ""}, "nothing is left of the report"),
        ({"findings": "Small effusion."}, "in 3 asks: the object must have the keys findings, impression"),
        ({"findings": "x", "impression": None}, "each a text"),
        ("no", "no valid answer in 3 asks: it holds no JSON object"),
        ("", "no valid answer in 3 asks: it is empty"),
        (400, "refused the request (400)"),  # a report that is too long for the model
    ],
    ids=str,
)
def test_rewrites_that_cannot_be_used_are_discarded_with_their_reason(dataset, tmp_path, call, by, reason):
    with serve(replaced("Unchanged small", by)) as server:
        made = run(call, dataset, tmp_path / "rg4", **llm(server))
    assert set(made["sn"]) == {"clean", "views", "alone"}
    assert reason in discarded(tmp_path / "rg4")["sn", "stable"]


def test_a_judge_without_an_answer(dataset, tmp_path, call):
    answer = lambda messages, times: "hm" if "small effusion" in messages[1]["content"] else well(messages)  # noqa: E731
    with serve(answer) as server:
        made = run(call, dataset, tmp_path / "rg4", **llm(server))
    assert set(made["sn"]) == {"clean", "views", "alone"}
    assert discarded(tmp_path / "rg4")["sn", "stable"] == "the judge llm:m gave no valid answer"


def test_each_prompt_carries_the_history(dataset, tmp_path, call):
    def answer(messages, times):  # every rewrite is a little shorter, and none is good enough
        if is_judging(messages):
            return verdict("stable" if "effusion" in messages[1]["content"] else "")
        return json.dumps({"findings": f"Effusion {len(messages)}.", "impression": "Small effusion."})

    with serve(answer) as server:
        run(call, dataset, tmp_path / "rg4", **llm(server))
    prompts = [each for each in server.asked if not is_judging(each) and "Unchanged" in each[1]["content"]]
    assert [len(messages) for messages in prompts] == [2, 4, 6]  # three rewrites at most
    last = [message["content"] for message in prompts[2]]
    assert "Unchanged small effusion" in last[1] and "prior comparison" in last[1]
    assert "Effusion 2." in last[2] and "number 1" in last[3] and "prior comparison" in last[3]
    assert "Effusion 4." in last[4] and "number 2" in last[5]


def test_a_server_that_dies_midway(dataset, tmp_path, call, monkeypatch):
    with serve(well) as server:
        whole = run(call, dataset, tmp_path / "whole", **llm(server))
        needed = len(server.asked)

    def dying(messages, times):
        return DIE if len(server.asked) > 5 else well(messages)

    out = tmp_path / "rg4"
    with serve(dying) as server:
        with pytest.raises(InputError, match="every answer so far is kept") as stopped:
            run(call, dataset, out, **llm(server, concurrency=1))
        assert server.url in str(stopped.value) and "\n" not in str(stopped.value)
    assert not out.exists()  # nothing half-written
    assert [path.name for path in tmp_path.glob("rg4*")] == ["rg4.answers.sqlite"]
    with serve(well) as server:
        assert run(call, dataset, out, **llm(server)) == whole
        assert len(server.asked) == needed - 5  # the rest only
    with serve(well) as server:
        assert run(call, dataset, out, **llm(server)) == whole
        assert server.asked == []


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (404, "answered 404"),  # another path or model
        (401, "answered 401"),
        (307, "answered 307"),  # a redirect would carry the text elsewhere
        ({"other": 1}, "does not answer as an OpenAI-compatible server does"),
        (503, "kept failing"),
    ],
    ids=str,
)
def test_an_endpoint_that_cannot_be_used(dataset, tmp_path, call, reply, said):
    with serve(lambda messages, times: reply) as server, pytest.raises(InputError, match=said):
        run(call, dataset, tmp_path / "rg4", **llm(server, retries=1))
    assert not (tmp_path / "rg4").exists()


def test_dry_run_sends_nothing(dataset, tmp_path, call, capsys):
    with serve(well) as server:
        arguments = llm(server, dry_run="true", scenarios="sn mw")
        given = {"dataset": dataset, "out": tmp_path / "rg4", **arguments}
        call(build_mimic_rg4.main, *(word for n, v in given.items() for word in (f"--{n}", *str(v).split())))
        assert server.asked == []
    lines = capsys.readouterr().out.splitlines()
    sn = next(line.split() for line in lines if line.startswith("sn"))
    assert sn[1:3] == ["4", "75.0%"]  # three of four hold something
    assert sn[3:6] == ["10", "to", "22"]  # 4 judgements, then 3 rewrites and 3 judgements a round
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("text", "held"),  # the share to rewrite in sn, sw, mn, mw
    [
        ("Unchanged small effusion.", "1 0 1 0"),  # a comparison, which w allows
        ("PA and lateral views were obtained.", "1 1 0 0"),  # views, which m allows
        ("The nurse was notified.", "1 1 1 1"),
        ("Status post CABG.", "1 1 1 1"),
        ("No effusion.", "0 0 0 0"),
    ],
)
def test_an_estimate_counts_what_the_scenario_forbids(tmp_path, call, capsys, text, held):
    """Two of four reports hold something, or nothing that the scenario forbids; no request where rules do all."""
    rows = [row(str(i), text if i % 2 else "Clear.", None) for i in range(4)]
    call(
        build_mimic_rg4.main,
        "--dataset",
        build(tmp_path / "data", rows),
        "--out",
        tmp_path / "rg4",
        "--dry_run",
        "true",
    )
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    for scenario, share in zip(("sn", "sw", "mn", "mw"), held.split(), strict=True):
        assert lines[scenario][:5] == ["4", "50.0%" if share == "1" else "0.0%", "0", "to", "0"], scenario


def test_a_model_in_this_process(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from modeling.tiny import train_tokenizer

    tokenizer = train_tokenizer(["small effusion"], 400)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = InProcess(str(tmp_path / "model"), max_tokens=5)
    messages = [{"role": "user", "content": "Effusion?"}]
    assert isinstance(model(messages), str) and model(messages) == model(messages)  # greedy
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(InputError, match="has no chat template"):
        InProcess(str(tmp_path / "model"))


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dataset": "./absent"}, "there is no data set at ./absent"),
        ({"scenarios": "sn xx"}, "'xx'"),
        ({"judge": "nobody"}, "'nobody'; choose rule, discbert:MODEL"),
        ({"judge": "discbert:/no/such"}, "/no/such"),
        ({"judge": "llm"}, "need --llm"),
        ({"judge": "llm", "llm": "m", "endpoint": "localhost:8000"}, "must be a URL such as"),
        ({"rewriter": "llm", "llm": "./absent"}, "./absent cannot be loaded"),
        ({"rewriter": "poet"}, "rewriter"),
        ({"guard": "title"}, "guard"),
        ({"max_rounds": 0}, "--max_rounds must be 1 or more, not 0"),
        ({"labeler": "nlp"}, "'nlp'"),
        ({"published": "sn:x.json"}, "either --dataset"),
        ({"target": "findings"}, "--target is of --published"),
        ({"image_size": 518}, "--image_size is of --published"),
        ({"image_size_of": "shortest"}, "--image_size_of is of --published"),
        ({"image_root": "images"}, "--image_root is of --published"),
        ({"cleaning": "r2"}, "r2"),
        ({"dataset": "cleaned"}, "was built with --cleaning rg4, by which numbers lost their points"),
        ({"scenarios": "mw", "limit": 1, "dataset": "sn only"}, "no report of"),
    ],
    ids=str,
)
def test_mistakes(dataset, tmp_path, call, arguments, said):
    if arguments.get("dataset") == "sn only":
        arguments = arguments | {"dataset": build(tmp_path / "alone", ROWS[3:])}
    if arguments.get("dataset") == "cleaned":
        arguments = {"dataset": build(tmp_path / "cleaned", ROWS, cleaning="rg4")}
    with pytest.raises(InputError, match=re.escape(said)) as refused:
        run(call, **({"dataset": dataset, "out": tmp_path / "rg4"} | arguments))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "rg4").exists()


def test_another_folder_is_not_replaced(dataset, tmp_path, call):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="no earlier build"):
        run(call, dataset, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("endpoint", "mine", "refused"),
    [
        ("http://10.0.0.5:8000/v1", False, True),
        ("http://10.0.0.5:8000/v1", True, False),
        ("http://127.0.0.1:8000/v1", False, False),
    ],
)
def test_mimic_text_stays_on_this_machine(tmp_path, call, capsys, endpoint, mine, refused):
    dataset = build(tmp_path / "mimic", [each | {"source": "mimic-cxr"} for each in ROWS])
    arguments = [
        "--dataset",
        dataset,
        "--out",
        tmp_path / "rg4",
        "--rewriter",
        "llm",
        "--llm",
        "m",
        "--dry_run",
        "true",
    ]
    arguments += ["--endpoint", endpoint, *["--endpoint_is_mine"] * mine]
    if refused:
        with pytest.raises(InputError, match="source mimic-cxr goes to a model that runs locally only"):
            call(build_mimic_rg4.main, *arguments)
    else:
        call(build_mimic_rg4.main, *arguments)
        assert "nothing sent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("{}", "prior_comparison must be true or false"),
        ("[]", "holds no JSON object"),
        ('{"prior_comparison": 1}', "prior_comparison must be true or false"),
        (json.dumps(NOTHING | {VIEW: 1}), "view must be true or false"),
        ("nothing", "holds no JSON object"),
    ],
)
def test_verdicts_of_another_form(answer, said):
    with pytest.raises(Refused, match=said):
        read_verdict(answer)


def test_a_verdict():
    assert read_verdict(json.dumps(NOTHING | {VIEW: True})) == [0, 0, 1, 0]
    assert read_sections('{"findings": " a\\n b "}', ["findings"]) == {"findings": "a b"}


def test_cleaning_comes_after_the_rewriter(tmp_path, call, monkeypatch):
    """The rewriter reads "3.5 cm", the labeler capitals and commas, and only what is written is cleaned."""
    rewriter, labeler, texts = rg4.RuleRewriter(), LexicalLabeler(), {"rewriter": [], "labeler": []}

    def rewrite(cases):
        texts["rewriter"] += [case.texts[-1]["findings"] for case in cases]
        return rewriter(cases)

    def label(reports):
        texts["labeler"] += reports
        return labeler(reports)

    rewrite.name = label.name = "watched"
    monkeypatch.setattr(rg4, "RuleRewriter", lambda: rewrite)
    monkeypatch.setattr(build_mimic_rg4, "load_labeler", lambda name: label)
    rows = [
        row("a", "Mass of 3.5 cm, stable since yesterday. No edema.", "1. Mass.", prior_report="Heart: enlarged."),
        row("b", "No edema.", "XXXX."),  # its impression has no word
    ]
    written = run(
        call, build(tmp_path / "data", rows), tmp_path / "rg4", scenarios="sw sn", cleaning="rg4", guard="report"
    )
    assert any("3.5 cm" in text for text in texts["rewriter"])
    assert all("35 cm" not in text for text in texts["labeler"] + texts["rewriter"])
    sn, sw = (written[name]["a"] for name in ("sn", "sw"))
    assert sn["findings"].startswith("mass of 35 cm") and sn["findings"].endswith("no edema .")
    assert sn["impression"] == "mass ." and sn["report"] == f"{sn['findings']} mass ."
    assert (sn["prior_report"], sw["prior_report"]) == (None, "heart : enlarged .")
    assert written["sn"]["b"]["impression"] is None and written["sn"]["b"]["report"] == "no edema ."
    assert json.loads((tmp_path / "rg4/build.json").read_text())["cleaning"] == "rg4"


def test_a_report_of_which_cleaning_leaves_nothing_is_discarded(tmp_path, call):
    dataset = build(tmp_path / "data", [row("a", "XXXX.", None), row("b", "Clear.", None)])
    assert set(run(call, dataset, tmp_path / "rg4", scenarios="sn", cleaning="plain")["sn"]) == {"b"}
    assert discarded(tmp_path / "rg4") == {("sn", "a"): "nothing is left of the report"}


# --- the published data set (RG-102) -----------------------------------------------------------------

RECORD = {
    "id": "files/p10/p10000032/s50414267/a.jpg",
    "finding": "Small effusion.",
    "impression": "s",
    "history": 0,
    "indication": "Cough.",
    "APPA_flag": "PA",
    "APPA_imagepath": "files/p10/p10000032/s50414267/a.jpg",
    "lateral_imagepath": "files/p10/p10000032/s50414267/b.jpg",
    "last_finding": "s",
    "last_impression": "Clear.",
    "new_scores": [0.5, 1.0],
}


def published(folder: Path, record: dict, **splits) -> Path:
    file = folder / "published.json"
    file.write_text(json.dumps({"train": [record], "val": [], "test": []} | splits))
    return file


def import_(call, out: Path, *words) -> None:
    call(build_mimic_rg4.main, "--published", *map(str, words), "--out", str(out))


def test_import(tmp_path, call):
    file = published(tmp_path, RECORD)
    for name in ("a", "b"):
        path = tmp_path / f"jpg/files/p10/p10000032/s50414267/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(path)
    import_(call, tmp_path / "rg4", f"sn:{file}", f"mw:{file}", "--image_root", tmp_path / "jpg")
    (sn,), (mw,) = (read_dataset(str(tmp_path / "rg4" / name))["train"] for name in ("sn", "mw"))
    assert (sn["study_id"], sn["subject_id"], sn["source"]) == ("50414267", "10000032", "mimic-rg4")
    assert (sn["findings"], sn["impression"], sn["report"]) == ("Small effusion.", None, "Small effusion.")
    assert (sn["history"], sn["indication"]) == (None, "Cough.")
    assert (sn["prior_report"], mw["prior_report"]) == (None, "Clear.")
    assert sn["views"] == ["PA"] and mw["views"] == ["PA", "LATERAL"] and len(mw["images"]) == 2
    assert sn["key_spans"] is None and sn["labels"][CONDITIONS.index("Pleural Effusion")] == CheXpertState.POSITIVE


@pytest.mark.parametrize(
    ("arguments", "size"),  # of an image of 40 x 60; the shortest side is asked for, never enlarged
    [
        ((), (40, 60)),
        (("--image_size", 30), (20, 30)),
        (("--image_size", 30, "--image_size_of", "shortest"), (30, 45)),
        (("--image_size", 50, "--image_size_of", "shortest"), (40, 60)),
    ],
)
def test_size_of_imported_images(tmp_path, call, arguments, size):
    path = tmp_path / "jpg" / RECORD["APPA_imagepath"]
    path.parent.mkdir(parents=True)
    Image.new("L", (40, 60)).save(path)
    import_(call, tmp_path / "rg4", f"sn:{published(tmp_path, RECORD)}", "--image_root", tmp_path / "jpg", *arguments)
    assert read_dataset(str(tmp_path / "rg4/sn"))["train"][0]["images"][0].size == size
    note = json.loads((tmp_path / "rg4/build.json").read_text())
    assert note["image_size"] == (arguments[1] if arguments else 512)
    assert note["image_size_of"] == ("shortest" if "shortest" in arguments else "longest")


BOTH = {"finding": "Mass: 3.5 cm.", "impression": "Edema,  XXXX.", "last_finding": "Heart: large.", "id": "both"}
LONE = {"finding": "s", "impression": "1. Edema.", "APPA_imagepath": "x.jpg", "id": "lone"}  # no finding


@pytest.mark.parametrize(
    ("target", "cleaning", "reports", "prior"),
    [
        (None, "none", {"both": "Mass: 3.5 cm. Edema,  XXXX.", "lone": "1. Edema."}, "Heart: large. Clear."),
        ("findings", "none", {"both": "Mass: 3.5 cm."}, "Heart: large. Clear."),
        ("impression", "plain", {"both": "Edema, XXXX.", "lone": "Edema."}, "Heart: large. Clear."),
        ("findings", "rg4", {"both": "mass : 35 cm ."}, "heart : large . clear ."),
        ("findings+impression", "rg4", {"both": "mass : 35 cm . edema xxxx .", "lone": "edema ."},
         "heart : large . clear ."),
        ("findings", "r2gen", {"both": "mass 35 cm ."}, "heart large . clear ."),
    ],
)  # fmt: skip
def test_target_and_cleaning_of_the_published_files(tmp_path, call, target, cleaning, reports, prior):
    pair = [RECORD | BOTH | {"APPA_imagepath": "y.jpg"}, RECORD | LONE]
    file = published(tmp_path, RECORD, train=pair)
    import_(call, tmp_path / "rg4", f"sw:{file}", "--cleaning", cleaning, *(("--target", target) if target else ()))
    rows = {each["study_id"]: each for each in read_dataset(str(tmp_path / "rg4/sw"))["train"]}
    assert {study: each["report"] for study, each in rows.items()} == reports
    assert rows["both"]["prior_report"] == prior
    edema = rows["both"]["labels"][CONDITIONS.index("Edema")]  # of the report before it was cleaned
    assert edema == (CheXpertState.BLANK if target == "findings" else CheXpertState.POSITIVE)
    left_out = {} if "lone" in reports else {("sw", "lone"): f"it has no {target}"}
    assert discarded(tmp_path / "rg4") == left_out


def test_published_files_without_any_target(tmp_path, call):
    file = published(tmp_path, RECORD | LONE)
    with pytest.raises(InputError, match=r"no report of sn:.* is left.*it has no findings"):
        import_(call, tmp_path / "rg4", f"sn:{file}", "--target", "findings")
    assert not (tmp_path / "rg4").exists()


@pytest.mark.parametrize(("flag", "view"), [("PA", "PA"), ("AP", "AP"), ("", "FRONTAL"), (None, "FRONTAL")])
def test_view_of_an_imported_image(tmp_path, call, flag, view):
    import_(call, tmp_path / "rg4", f"sn:{published(tmp_path, RECORD | {'APPA_flag': flag})}")
    assert read_dataset(str(tmp_path / "rg4/sn"))["train"][0]["views"] == [view]


def test_import_without_images(tmp_path, call):
    import_(call, tmp_path / "rg4", f"sn:{published(tmp_path, RECORD)}")
    assert read_dataset(str(tmp_path / "rg4/sn"))["train"][0]["images"] == []


@pytest.mark.parametrize(
    ("changes", "word", "said"),
    [
        ({}, "xx:{}", "takes SCENARIO:FILE"),
        ({}, "sn:/no/such.json", "there is no file /no/such.json"),
        ({}, "sn:{0} sn:{0}", "two files of the scenario sn"),
        ({}, "sn:{} --target conclusion", "target.*invalid choice: 'conclusion'"),
        ({"finding": "s"}, "sn:{}", "record 0 of train has neither"),
        ({"history": None, "id": 7}, "sn:{} --image_root .", "there is no image"),
        ({"APPA_imagepath": "../../secret.jpg"}, "sn:{} --image_root .", "leaves --image_root"),
    ],
)
def test_bad_published_files(tmp_path, call, changes, word, said):
    file = published(tmp_path, RECORD | changes)
    with pytest.raises(InputError, match=said):
        import_(call, tmp_path / "rg4", *word.format(file).split())
    assert not (tmp_path / "rg4").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"other": []}', '{"train": [{"id": 1}]}'])
def test_files_that_are_not_the_published_ones(tmp_path, call, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        import_(call, tmp_path / "rg4", f"sn:{tmp_path / 'x.json'}")
