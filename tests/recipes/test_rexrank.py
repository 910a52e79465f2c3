"""ReXrank's seven metrics by their names and definitions, its files, and what is said of stand-ins."""

import json
import math

import numpy as np
import pytest
import torch
from ratescore_networks import save_networks
from rg4_server import serve

from modeling.tiny_crepe import build_crepe
from recipes.evaluate import main
from recipes.evaluation.bootstrap import bootstrap, draw_counts
from recipes.evaluation.figures import BOARD, BOARD_METRICS, PRESETS, STAND_IN, describe
from recipes.evaluation.rexrank import board_part, board_reference, read_board
from recipes.files import InputError
from rewards.radcliq import radcliq_score

PUBLISHED = [  # rows of ReXrank's result files (8152f99, MIT): BLEU, BertScore, SembScore, RadGraph, RadCliQ-v1
    (0.193, 0.430, 0.315, 0.273, 1.088),  # MIMIC-CXR, MedVersa
    (0.195, 0.518, 0.601, 0.244, 0.692),  # IU X-ray, MedVersa
    (0.102, 0.380, 0.494, 0.157, 1.137),  # IU X-ray, CheXagent
    (0.192, 0.390, 0.605, 0.200, 0.956),  # IU X-ray, Cvt2distilgpt2
    (0.065, 0.204, 0.190, 0.085, 1.819),  # MIMIC-CXR, GPT-4V
]
BOARD_FILE = {
    "10": {"section_findings": "There is a small effusion.", "section_impression": "Effusion.", "split": "test",
           "context": "Age:50-60.Gender:M.", "image_path": ["a.png"],
           "report": "There is a small effusion."},
    "2": {"section_findings": "The lungs are clear.", "section_impression": math.nan, "split": "test",
          "context": "", "image_path": ["b.png"], "report": "The lungs are clear."},
    "30": {"section_findings": math.nan, "section_impression": "No edema.", "split": "test", "context": "",
           "image_path": ["c.png"], "report": "No edema."},
}  # fmt: skip
REPORTS = {"10": "There is an effusion.", "2": "Clear lungs.", "30": "Pulmonary edema."}
QUICK = ["--meteor", "no", "--resamples", "100", "--preset", "rexrank"]


@pytest.mark.parametrize("row", PUBLISHED, ids=str)
def test_the_board_inverts_the_mean(row):
    """The published parts of a system, as means of two reports that differ, give its published RadCliQ."""
    *means, radcliq = row
    names = ("bleu", "bertscore", "semb", "radgraph")
    values = {name: np.array([mean + 0.05, mean - 0.05]) for name, mean in zip(names, means, strict=True)}
    part = board_part(values, ())
    figures = part.figures(part.statistics.sum(0)[None])
    assert list(figures) == [BOARD + name for name in BOARD_METRICS[:5]]
    assert 1 / figures[BOARD + "1/RadCliQ-v1"][0] == pytest.approx(radcliq, abs=0.002)
    assert [figures[BOARD + name][0] for name in BOARD_METRICS[1:5]] == pytest.approx(means)


def test_it_is_not_the_mean_of_inverses_and_its_interval_is_drawn_so():
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(0, 0.5, 6) for name in ("bleu", "bertscore", "semb", "radgraph")}
    scores = radcliq_score(**values)
    part = board_part(values, ())
    first = BOARD + BOARD_METRICS[0]
    counts = draw_counts(6, 20, 0)
    drawn = bootstrap(part, np.arange(6), counts)[first]
    assert drawn[0] == pytest.approx(1 / scores.mean()) and drawn[0] != pytest.approx((1 / scores).mean())
    assert drawn[1:] == pytest.approx([6 / (scores * row).sum() for row in counts])
    assert part.reports[first].argmax() == scores.argmin()  # in tests of pairs, more is better


def test_names_say_what_stands_in():
    values = {name: np.zeros(2) for name in ("bleu", "bertscore", "semb", "radgraph")}
    part = board_part(values, {"semb"})
    assert set(part.figures(part.statistics.sum(0)[None])) == {
        BOARD + "1/RadCliQ-v1 (stand-in)", BOARD + "BLEU", BOARD + "BertScore", BOARD + "SembScore (stand-in)",
        BOARD + "RadGraph",
    }  # fmt: skip
    assert "stand in for" in describe(BOARD + "SembScore" + STAND_IN)["title"]
    assert describe(BOARD + "BLEU")["title"] == "BLEU of ReXrank's board, mean over reports"
    assert "one by the mean" in describe(BOARD + "1/RadCliQ-v1")["title"]
    assert all(describe(name)["better"] == "higher" for name in PRESETS["rexrank"]["figures"])


def test_references_are_the_boards():
    texts = [board_reference(study) for study in BOARD_FILE.values()]
    assert texts == [
        "Findings: There is a small effusion. Impression: Effusion.",
        "Findings: The lungs are clear. Impression: None",  # the board scores the word
        "Findings: None Impression: No edema.",
    ]


@pytest.fixture
def files(tmp_path):
    """The board's file, and predictions of `recipes/generate.py` for it in another order."""
    (tmp_path / "board.json").write_text(json.dumps(BOARD_FILE))
    lines = [{"study_id": study, "completion": f"<report>{REPORTS[study]}</report>"} for study in sorted(REPORTS)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_a_submission_is_the_boards_file_with_predictions(files, call, capsys):
    """Keys, order and NaN of the board; scored against its own references, with stand-ins that say so."""
    call(main, *QUICK, "--references", files / "board.json", "--predictions", f"mine={files / 'mine.jsonl'}",
         "--out", files / "out")  # fmt: skip
    written = json.loads((files / "out/submission_mine.json").read_text())
    assert list(written) == ["10", "2", "30"]
    assert {study: what["model_prediction"] for study, what in written.items()} == REPORTS
    assert list(written["10"]) == [*BOARD_FILE["10"], "model_prediction"]
    assert math.isnan(written["2"]["section_impression"])
    metrics = json.loads((files / "out/metrics.json").read_text())
    board = [name for name in metrics["figures"] if name.startswith(BOARD)]
    stand_ins = [BOARD + name + STAND_IN for name in ("1/RadCliQ-v1", "BertScore", "SembScore", "RadGraph")]
    assert set(board) == {*stand_ins, BOARD + "BLEU"}
    preset = metrics["protocol"]["presets"]["rexrank"]
    assert preset["figures"][0] == stand_ins[0]  # what the board ranks by
    assert set(preset["absent"]) == {BOARD + name for name in BOARD_METRICS if name != "BLEU"}
    figures = metrics["systems"]["mine"]["figures"]
    lite = figures["radcliq_lite-v1"]["value"]
    assert figures[stand_ins[0]]["value"] == pytest.approx(1 / lite)
    (note,) = [note for note in metrics["notes"] if "None there" in note]
    assert note.startswith("2 of 3 studies of") and "'2' first" in note
    assert "ReXrank" in (files / "out/tables.md").read_text()
    capsys.readouterr()
    # and what was written is read again, with the same figures
    call(main, *QUICK, "--predictions", f"mine={files / 'out/submission_mine.json'}", "--out", files / "again")
    again = json.loads((files / "again/metrics.json").read_text())["systems"]["mine"]["figures"]
    assert {name: again[name]["value"] for name in board} == {name: figures[name]["value"] for name in board}
    assert not (files / "again/submission_mine.json").exists()  # no file of the board was given


def test_other_presets_do_without(files, call):
    call(main, "--meteor", "no", "--resamples", "100", "--references", files / "board.json",
         "--predictions", f"mine={files / 'mine.jsonl'}", "--out", files / "out")  # fmt: skip
    metrics = json.loads((files / "out/metrics.json").read_text())
    assert not [name for name in metrics["figures"] if name.startswith(BOARD)]


def test_crepe_ratescore_and_green_are_the_boards_too(files, call, tmp_path):
    torch.manual_seed(0)
    model, tokenizer = build_crepe(list(REPORTS.values()) * 3, vocab_size=80, hidden_size=16, heads=4, layers=1)
    model.save_pretrained(tmp_path / "crepe")
    tokenizer.save_pretrained(tmp_path / "crepe")
    save_networks(tmp_path, list(REPORTS.values()))
    answer = "[Clinically Significant Errors]:\n(a) x: 1. y\n[Clinically Insignificant Errors]:\nNo errors\n" \
             "[Matched Findings]:\n1. z"  # fmt: skip
    with serve(lambda messages, times: answer) as server:
        call(main, *QUICK, "--references", files / "board.json", "--predictions", f"mine={files / 'mine.jsonl'}",
             "--out", files / "out", "--crepe", tmp_path / "crepe", "--ratescore_ner", tmp_path / "ner",
             "--ratescore_encoder", tmp_path / "encoder", "--judge", "green", "--endpoint", server.url,
             "--llm", "m")  # fmt: skip
    metrics = json.loads((files / "out/metrics.json").read_text())
    figures = metrics["systems"]["mine"]["figures"]
    assert figures[BOARD + "GREEN"] == figures["green"] and figures["green"]["value"] == 0.5
    assert figures[BOARD + "RaTEScore"] == figures["ratescore"] and figures["crepe"]["value"] >= 0
    assert metrics["protocol"]["crepe"].startswith("crepe-") and metrics["protocol"]["ratescore"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--ratescore_ner", "/no/such"], "needs both --ratescore_ner and --ratescore_encoder"),
        (["--ratescore_ner", "/no/such", "--ratescore_encoder", "/no"], "RaTEScore cannot load /no/such"),
        (["--crepe", "/no/such"], "no CREPE could be loaded from /no/such"),
    ],
)
def test_missing_networks(files, call, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        call(main, *QUICK, "--predictions", f"mine={files / 'mine.jsonl'}", "--references", files / "board.json",
             "--out", files / "out", *arguments)  # fmt: skip


def test_what_is_no_file_of_the_board(tmp_path):
    for number, content in enumerate(("[]", "{}", '{"a": {"report": "x"}}', "not JSON", '{"a": 1}', "{" * 100_000)):
        (tmp_path / f"{number}.json").write_text(content)
        assert read_board(tmp_path / f"{number}.json") is None
    with pytest.raises(InputError, match="no predictions file"):
        read_board(tmp_path / "none.json")
