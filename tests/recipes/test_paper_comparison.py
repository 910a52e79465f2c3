"""recipes/paper_results.json against the papers' figures, and how they are set beside ours."""

from collections import Counter

import pytest

from recipes.evaluation.figures import PRESETS
from recipes.evaluation.paper_comparison import compare_with_papers, read_results

RESULTS = read_results()
ROWS = RESULTS["rows"]


def find(paper: str, table: str, name: str, data: str | None = None, setting: str | None = None) -> dict:
    (row,) = (
        row
        for row in ROWS
        if (row["paper"], row["table"], row["row"]) == (paper, table, name)
        and data in (None, row["data"])
        and setting in (None, row["setting"])
    )
    return row


# One or two literals of every table, read in the papers.
@pytest.mark.parametrize(
    ("where", "source", "values"),
    [
        (("mrgr1", "Table I", "MRG-R1 (ours)", "IU X-Ray"), "own", [50.86, 52.98, 51.88]),
        (("mrgr1", "Table I", "MRG-R1 (ours)", "MIMIC-CXR"), "own", [45.32, 37.70, 40.39]),
        (("mrgr1", "Table I", "R2Gen", "IU X-Ray"), "reproduced", [50.60, 48.76, 46.99]),
        (("mrgr1", "Table I", "R2Gen", "MIMIC-CXR"), "quoted", [33.30, 27.30, 27.60]),  # no asterisk
        (("mrgr1", "Table I", "MedGemma-4B", "MIMIC-CXR"), "reproduced", [40.77, 41.40, 41.08]),
        (("mrgr1", "Table II", "Base + CE F1 + reasoning", "MIMIC-CXR"), "own", [33.00, 28.87, 29.50]),
        (("mrgr1", "Table II", "Base + NLG", "IU X-Ray"), "own", [41.19, 15.93, 22.97]),
        (("lmrrg", "Table 1", "LM-RRG (Ours)"), "own", [0.122, 0.165, 0.296, 0.500, 0.500, 0.484, 0.865]),
        (("lmrrg", "Table 1", "R2Gen"), "not said", [0.103, 0.142, 0.277, 0.333, 0.273, 0.276, 1.552]),
        (("lmrrg", "Table 1", "UAR"), "not said", [0.107, 0.157, 0.289]),
        (("lmrrg", "Table 2", "UAR"), "not said", [0.200, 0.218, 0.405]),
        (("lmrrg", "Table 3", "LM-RRG"), "own", [0.122, 0.165, 0.296, 0.496, 0.495, 0.484, 0.865]),
        (("lmrrg", "Table 3", "reward: RadCliQ → BLEU4"), "own", [0.127, 0.163, 0.291, 0.486, 0.484, 0.471, 1.102]),
        (("llmrg4", "Table 1", "MIMIC-CXR test 0.1K"), "own", [65.63, 25.78, 3.13, 10.16]),
        (
            ("llmrg4", "Table 2", "Ours"),
            "own",
            [0.583, 0.593, 0.588, 0.498, 0.203, 0.387, 0.377, 0.144, 0.318, 0.015],
        ),
        (("llmrg4", "Table 2", "MAIRA-1 (7B)"), "quoted", [0.553, 0.392, 0.142, 0.289]),
        (
            ("llmrg4", "Table 3", "Ours", None, "mw"),
            "own",
            [0.560, 0.565, 0.563, 0.461, 0.331, 0.250, 0.197, 0.401, 0.204, 0.002],
        ),
        (
            ("llmrg4", "Table 3", "RadFM", None, "sn"),
            "reproduced",
            [0.413, 0.303, 0.350, 0.188, 0.090, 0.048, 0.028, 0.190, 0.094, 0.737],
        ),
        (("llmrg4", "Table 4", "stage 2, ATF on, TLW off"), "own", [0.556, 0.580, 0.467, 0.205]),
        (
            ("llmrg4", "Table 5", "trained on this setting", None, "mn"),
            "own",
            [0.526, 0.531, 0.528, 0.464, 0.202, 0.384],
        ),
    ],
)
def test_literals(where, source, values):
    row = find(*where)
    assert list(row["values"].values()) == values
    assert row["source"] == source


def test_every_row_is_there():
    assert Counter((row["paper"], row["table"]) for row in ROWS) == {
        ("mrgr1", "Table I"): 14 + 11,  # 14 systems, three without IU X-Ray
        ("mrgr1", "Table II"): 16,  # 8 rows, two data sets
        ("lmrrg", "Table 1"): 8,
        ("lmrrg", "Table 2"): 5,
        ("lmrrg", "Table 3"): 9,
        ("llmrg4", "Table 1"): 6,
        ("llmrg4", "Table 2"): 14,
        ("llmrg4", "Table 3"): 12,
        ("llmrg4", "Table 4"): 6,
        ("llmrg4", "Table 5"): 8,
    }
    for name, paper in RESULTS["papers"].items():
        columns = {column for row in ROWS if row["paper"] == name for column in row["values"]}
        judged = {"prior_comparison", "prior_procedure", "view", "communication"}  # Table 1 of LLM-RG4: no system's
        assert columns - judged == set(paper["figures"])
        own = {figure for figures in paper["figures"].values() for figure in figures}
        assert own == set(PRESETS[name]["figures"])  # the preset has what the paper has, and no more


def test_which_f1_is_no_harmonic_mean():
    """As the papers' contradictions are listed: where it is not, the averages are not micro."""
    odd = set()
    for row in ROWS:
        values = row["values"]
        if {"precision", "recall", "f1"} <= set(values):
            harmonic = 2 * values["precision"] * values["recall"] / (values["precision"] + values["recall"])
            if abs(harmonic - values["f1"]) > (0.02 if row["paper"] == "mrgr1" else 0.0011):
                odd.add((row["paper"], row["table"], row["row"], row["data"]))
    mrgr1 = {(name, data) for paper, table, name, data in odd if (paper, table) == ("mrgr1", "Table I")}
    assert mrgr1 == {
        *((name, "IU X-Ray") for name in ("R2Gen", "BioMedGPT", "CXRMate")),
        *(
            (name, "MIMIC-CXR")
            for name in ("R2Gen", "R2GenCMN", "BioMedGPT", "DTrace", "DCL", "GSKET", "CXRMate", "MRG-R1 (ours)")
        ),
    }
    assert {name for paper, _, name, _ in odd if paper == "llmrg4"} == {"KiUT", "RGRG"}


def test_arithmetic_of_the_claims():
    """LLM-RG4: Table 4's last row is the mean of Table 3; +72 % BLEU-4, +24.2 % BLEU-1; 3.95 % over cxrmate."""
    ours = [find("llmrg4", "Table 3", "Ours", None, setting)["values"] for setting in ("sn", "sw", "mn", "mw")]
    theirs = [find("llmrg4", "Table 3", "cxrmate", None, setting)["values"] for setting in ("sn", "sw", "mn", "mw")]
    last = find("llmrg4", "Table 4", "stage 2, ATF on, TLW on")["values"]
    for column in ("f1", "bleu-1", "bleu-4"):
        assert sum(row[column] for row in ours) / 4 == pytest.approx(last[column], abs=0.0006)
    assert sum(a["f1"] - b["f1"] for a, b in zip(ours, theirs, strict=True)) / 4 == pytest.approx(0.0395)
    table2 = find("llmrg4", "Table 2", "Ours")["values"]
    best = find("llmrg4", "Table 2", "R2GenGPT (7B)")["values"]
    assert table2["bleu-1"] / best["bleu-1"] - 1 == pytest.approx(0.242, abs=0.0005)
    assert table2["bleu-4"] / best["bleu-4"] - 1 == pytest.approx(0.72, abs=0.005)


def interval(value: float) -> dict:
    return {"value": value, "low": value, "high": value}


@pytest.fixture
def metrics():
    names = {figure for preset in PRESETS.values() for figure in preset["figures"]}
    figures = {name: interval(0.5) for name in names}
    system = {"kind": "model", "figures": figures, "by_scenario": {}}
    return {
        "source": "mimic-cxr",
        "dataset": "outputs/data/mimic_cxr",
        "labeler": "chexbert-1234",
        "protocol": {"hall_judge": "discbert:outputs/discbert"},
        "references": {"scenarios": {"sn": 3}},
        "figures": dict.fromkeys(names),
        "systems": {"ours": system, "template": {"kind": "baseline", "figures": figures}},
    }


def test_the_papers_own_rows(metrics):
    rows = compare_with_papers(metrics, "paper")
    assert {row["row"] for row in rows} == {"MRG-R1 (ours)", "LM-RRG (Ours)", "Ours"}
    assert {row["data"] for row in rows} == {"MIMIC-CXR", "MIMIC-RG4"}
    assert {row["setting"] for row in rows} == {None, "sn"}  # ours has no other scenario
    f1 = [row for row in rows if row["paper"] == "MRG-R1" and row["column"] == "f1"]
    assert [(row["figure"].split("/")[3], row["published"]) for row in f1] == [("micro", 0.4039), ("macro", 0.4039)]
    assert all(row["why_not"] == ["its averaging is not said"] for row in f1)
    others = [row for row in rows if row["paper"] != "MRG-R1"]
    assert all(row["comparable"] for row in others)
    assert set(rows[0]["ours"]) == {"ours"}


def test_all_rows_of_one_paper(metrics):
    rows = compare_with_papers(metrics, "lmrrg")
    assert {row["table"] for row in rows} == {"Table 1", "Table 3"}  # Table 2 is of other data


def test_what_cannot_be_compared(metrics):
    metrics |= {"labeler": "lexical", "source": "phantom", "protocol": {"hall_judge": "rule"}}
    del metrics["figures"]["radcliq-v1"]
    metrics["figures"]["radcliq_lite-v1"] = None
    metrics["systems"]["ours"]["figures"]["radcliq_lite-v1"] = interval(1.0)
    rows = compare_with_papers(metrics, "paper")
    assert not any(row["comparable"] for row in rows)
    reasons = {reason for row in rows for reason in row["why_not"]}
    for said in ("its data are IU X-Ray, ours phantom", "its labeler is CheXbert, ours lexical", "ours rule"):
        assert any(said in reason for reason in reasons)
    (radcliq,) = (row for row in rows if row["column"] == "radcliq")
    assert (
        radcliq["figure"] == "radcliq_lite-v1" and "RadCliQ is made of stand-ins for its parts" in radcliq["why_not"]
    )
