"""Figures with published parts or stand-ins, by their names; presets; tables; what the command line loads."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from modeling.tiny import build_chexbert
from recipes.data.labels import load_labeler
from recipes.evaluation.comparisons import too_few_resamples
from recipes.evaluation.figures import HEADLINE, PRESETS, SHOWN, describe
from recipes.evaluation.inputs import load_metrics, name_files
from recipes.evaluation.judges import Scores, answered_part
from recipes.evaluation.references import Truth
from recipes.evaluation.score_tables import _latex, cell, make_tables, write_latex, write_markdown
from recipes.evaluation.scores import Metrics, lengths, measure_systems, summarise
from recipes.files import InputError
from rewards.clinical_efficacy import clinical_efficacy
from rewards.labelers import LexicalLabeler
from rewards.radcliq import bleu2, make_lexical_parts, radcliq_score
from rewards.rouge import rouge_l

REFERENCES = ["There is pulmonary edema.", "The heart is enlarged. No pneumothorax.", "Lungs are clear."]
REPORTS = ["Possible pulmonary edema.", "No pneumothorax. Left pleural effusion.", ""]


def part(name: str, value: float, lite: bool = False):
    def score(generated, references):
        return np.full(len(generated), value)

    score.name, score.lite = name, lite
    return score


class Parser:
    """A graph of one entity: all reports agree."""

    name, lite = "radgraph", False

    def __call__(self, texts):
        entity = {"tokens": "edema", "label": "Observation::definitely present", "start_ix": 0, "end_ix": 0}
        return [{"text": "edema", "entities": {"1": {**entity, "relations": []}}} for _ in texts]


def measured(metrics: Metrics, reports=tuple(REPORTS)):
    labeler = LexicalLabeler()
    truth = Truth(list("abc"), REFERENCES, labeler(REFERENCES), [None] * 3, np.arange(3))
    given = {
        "ours": {"completions": {study: [text] for study, text in zip("abc", reports, strict=True)}, "kind": "model"}
    }
    systems, notes = measure_systems(truth, given, metrics)
    return truth, systems, summarise(systems, truth, 100, 0)["ours"], notes


def test_radcliq_of_the_published_parts():
    metrics = Metrics(
        LexicalLabeler(), radgraph=Parser(), bertscore=part("bertscore", 0.4), semb=part("semb", 0.6), meteor=False
    )
    _, _, ours, _ = measured(metrics)
    figures = {name: each["value"] for name, each in ours["figures"].items()}
    bleu = np.array(bleu2(REPORTS, REFERENCES)) * [1, 1, 0]
    said = np.array([1, 1, 0])  # an empty report has four zeros
    for version in ("v0", "v1"):
        expected = radcliq_score(0.5 * said, 0.4 * said, 0.6 * said, bleu, version).mean()  # no relations: half
        assert figures[f"radcliq-{version}"] == pytest.approx(expected)
        assert f"radcliq_lite-{version}" not in figures
    assert figures["bertscore"] == pytest.approx(0.8 / 3) and "lexical_words" not in figures
    assert figures["radgraph/simple"] == figures["radgraph/complete"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "given",
    [
        {"bertscore": part("bertscore", 0.4), "semb": part("semb", 0.6)},  # no RadGraph
        {"radgraph": Parser(), "semb": part("semb", 0.6)},
        {"radgraph": Parser(), "bertscore": part("bertscore_other", 0.4, lite=True), "semb": part("semb", 0.6)},
        {},
    ],
)
def test_one_stand_in_makes_radcliq_lite(given):
    _, _, ours, _ = measured(Metrics(LexicalLabeler(), meteor=False, **given))
    assert {name for name in ours["figures"] if name.startswith("radcliq")} == {"radcliq_lite-v0", "radcliq_lite-v1"}


def test_lexical_stand_ins_are_the_rewards_own():
    _, _, ours, _ = measured(Metrics(LexicalLabeler(), meteor=False))
    parts = {name: np.asarray(each(REPORTS, REFERENCES)) * [1, 1, 0] for name, each in make_lexical_parts().items()}
    assert ours["figures"]["radcliq_lite-v1"]["value"] == pytest.approx(radcliq_score(**parts).mean())
    assert ours["figures"]["lexical_words"]["value"] == pytest.approx(parts["bertscore"].mean())


@pytest.mark.parametrize("seed", [0, 5])
def test_the_seed_draws_the_studies_of_each_scenario(seed):
    reports = ["Edema.", "There is edema.", "There is no edema.", "Clear."] * 2
    labeler, references = LexicalLabeler(), ["There is pulmonary edema."] * 8
    truth = Truth(list("abcdefgh"), references, labeler(references), ["sn"] * 4 + ["mw"] * 4, np.arange(8))
    completions = {study: [text] for study, text in zip(truth.ids, reports, strict=True)}
    systems, _ = measure_systems(
        truth, {"ours": {"completions": completions, "kind": "model"}}, Metrics(labeler, meteor=False)
    )
    ours = summarise(systems, truth, 120, seed)["ours"]
    values = np.array(rouge_l(reports[:4], references[:4]))
    assert len(set(values)) == 4
    draws = np.random.default_rng(seed)
    low, high = np.percentile([values[draws.integers(4, size=4)].mean() for _ in range(120)], [2.5, 97.5])
    for scenario in ("sn", "mw"):
        interval = ours["by_scenario"][scenario]["figures"]["rouge-l"]
        assert interval == pytest.approx({"value": values.mean(), "low": low, "high": high})
    draws = np.random.default_rng(seed)
    low, high = np.percentile([np.tile(values, 2)[draws.integers(8, size=8)].mean() for _ in range(120)], [2.5, 97.5])
    assert ours["figures"]["rouge-l"] == pytest.approx({"value": values.mean(), "low": low, "high": high})


def test_per_label_is_clinical_efficacys():
    truth, systems, ours, _ = measured(Metrics(LexicalLabeler(), meteor=False))
    for key, positive in (("per_label", True), ("per_label_uncertain_as_negative", False)):
        expected = clinical_efficacy(systems["ours"].states, truth.states, "14", positive)
        for label, found in ours[key].items():
            values = {name: found[name]["value"] for name in ("precision", "recall", "f1")}
            assert {**values, "support": found["support"]} == pytest.approx(expected[label])
    assert ours["per_label"]["Edema"]["f1"]["value"] == 1  # possible edema counts
    assert ours["per_label_uncertain_as_negative"]["Edema"]["f1"]["value"] == 0


def test_every_figure_is_described():
    _, _, ours, _ = measured(Metrics(LexicalLabeler(), radgraph=Parser(), meteor=False))
    for name in [*ours["figures"], *SHOWN, "original/cider"]:
        what = describe(name)
        assert what["title"] and what["short"] and what["better"] in ("higher", "lower", None)
        assert what["group"] in ("ce", "nlg", "graph", "radcliq", "errors", "other", "original")
    assert set(HEADLINE) <= set(SHOWN)
    assert describe("ce/5/negative/example/recall")["title"] == "Recall, example, 5 labels, uncertain as negative"
    assert {describe(name)["better"] for name in ("hall", "radcliq-v1", "errors/omission")} == {"lower"}


def expand(pattern: str) -> set[str]:
    """The names that a pattern with {a,b} stands for."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return {pattern}
    choices, _, after = rest.partition("}")
    return {before + choice + tail for choice in choices.split(",") for tail in expand(after)}


class EveryJudge:
    """Says 0.5 of every pair, as each of the judges."""

    notes = ()

    def parts(self, system, generated, references):
        figures = {"green": ["green"], "crimson": ["crimson"], "radfact": ["radfact/precision", "radfact/recall"]}
        for name, own in figures.items():
            values = {each: np.full(len(generated), 0.5) for each in own}
            yield answered_part(name, Scores(values, np.zeros(len(generated), dtype=bool), ""))


def test_every_figure_is_documented():
    """The table of recipes/scoring.md has all names, and no others."""
    text = (Path(__file__).parents[2] / "recipes" / "scoring.md").read_text()
    rows = text.split("| figure in metrics.json |")[1].split("\n\n")[0].split("\n")[2:]
    documented = set().union(*(expand(row.split("`")[1]) for row in rows))
    judge = lambda texts: np.zeros((len(texts), 4), int)  # noqa: E731
    own = {prefix + name for prefix in ("", "original/") for name in ("meteor", "meteor_lite")}  # by or without Java
    for metrics in (
        Metrics(LexicalLabeler(), meteor=False, judge=judge, hall_mode="any", rexrank=True),
        Metrics(
            LexicalLabeler(),
            radgraph=Parser(),
            bertscore=part("bertscore", 0.4),
            semb=part("semb", 0.6),
            meteor=False,
            crepe=part("crepe", 2.0),
            ratescore=part("ratescore", 0.5),
            judges=EveryJudge(),
            rexrank=True,
        ),
    ):
        labeler = metrics.labeler
        truth = Truth(list("abc"), REFERENCES, labeler(REFERENCES), [None] * 3, np.arange(3))
        given = {"ours": {"completions": {study: ["Clear."] for study in "abc"}, "kind": "model"}}
        systems, _ = measure_systems(truth, given, metrics, REFERENCES)
        own |= set(summarise(systems, truth, 100, 0)["ours"]["figures"])
    assert documented == own


def test_lengths():
    found = lengths(["one two", "", "one two", "<b>x</b> " * 2000], list("abcd"))
    assert found == {
        "samples": 4, "mean_words": 501, "median_words": 2, "longest_words": 2000, "longest_study": "d", "empty": 1,
        "distinct": 3, "with_html_tags": 1, "over_10000_characters": 1,
    }  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------------------------


def test_cells():
    assert cell({"value": 0.12345, "low": 0.1, "high": 0.2}) == "0.123 (0.100–0.200)"
    assert cell({"value": 1.0, "low": None, "high": None}, "‡") == "1.000‡"
    assert cell(None) == ""


@pytest.fixture
def metrics():
    def interval(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    names = ["ce/14/positive/micro/f1", "bleu-4"]
    errors = {
        "Edema": dict.fromkeys(
            ("polarity flip", "omission", "hallucination", "uncertainty mismatch", "side swapped", "severity changed"),
            1,
        )
    }
    size = {"empty": 0, "distinct": 1, "mean_words": 5.0, "longest_words": 6, "longest_study": "a_1"}

    def system(kind, value):
        figures = {name: interval(value) for name in names}
        own = {"kind": kind, "figures": figures, "by_scenario": {}, "consistency": None, "cost": None}
        return {**own, "errors": errors, "lengths": size}

    p_values = {"p_bootstrap": 0.001, "p_holm": 0.01, "p_wilcoxon": 0.0002, "p_wilcoxon_holm": 0.04}
    difference = {"system": "my_model", "minus": "a|b", "figure": "bleu-4", "difference": 0.1, "low": 0.0, "high": 0.2}
    return {
        "protocol": {
            "preset": "mrgr1",
            "presets": {"mrgr1": {**PRESETS["mrgr1"], "figures": names[:1], "absent": ["meteor"]}},
        },
        "figures": {name: describe(name) for name in names},
        "labeler": "lexical", "studies": 3, "notes": ["50 % & more"], "references": {}, "paper": [],
        "image_reliance": {},
        "systems": {"a|b": system("baseline", 0.3), "my_model": system("model", 0.4)},
        "differences": [{**difference, **p_values}],
    }  # fmt: skip


def test_markers_of_significance(metrics):
    """LLM-RG4's double dagger stands by the other system, where Wilcoxon's adjusted p-value is below 0.05."""
    others = next(table for table in make_tables(metrics) if table.title.startswith("Other"))
    assert others.rows == [["a|b", "0.300‡ (0.200–0.400)"], ["my_model", "0.400 (0.300–0.500)"]]
    assert others.notes == ["‡ differs from my_model: p < 0.05 by Wilcoxon's signed-rank test, Holm-adjusted"]
    metrics["differences"][0]["p_wilcoxon_holm"] = 0.06
    others = next(table for table in make_tables(metrics) if table.title.startswith("Other"))
    assert others.rows[0] == ["a|b", "0.300 (0.200–0.400)"] and not others.notes


def test_markdown_and_latex(metrics):
    markdown = write_markdown(metrics)
    assert r"| a\|b | 0.300‡ (0.200–0.400) |" in markdown and "Not computed: meteor" in markdown
    latex = write_latex(metrics)
    assert r"my\_model & 0.400 (0.300--0.500) \\" in latex and latex.count(r"\begin{table}") == latex.count(
        r"\end{table}"
    )
    assert _latex("a_b & 5 % ‡ ~ \\") == r"a\_b \& 5 \% $^\ddagger$ \textasciitilde{} \textbackslash{}"


@pytest.mark.parametrize(
    ("differences", "resamples", "said"),
    [
        (0, 100, False),
        (10, 400, False),  # 10 * 2 / 401 is just below 0.05
        (10, 399, True),
    ],
)
def test_too_few_resamples(differences, resamples, said):
    assert bool(too_few_resamples([{}] * differences, resamples)) == said


# --- arguments ------------------------------------------------------------------------------------------------------


def test_names_of_systems():
    found = name_files(["a=x.jsonl", "b=y=z.jsonl", "b.shuffled=u"], ["a=v"], reserved=("t",))
    assert found == {
        "a": {"file": "x.jsonl", "kind": "model", "of": None},
        "b": {"file": "y=z.jsonl", "kind": "model", "of": None},
        "b.shuffled": {"file": "u", "kind": "control", "of": "b"},
        "a.shuffled": {"file": "v", "kind": "control", "of": "a"},
    }


ARGUMENTS = {"margin": 0.2, "hall_mode": "scenario", "hall_judge": None, "meteor": "no", "resamples": 100,
             "radgraph": None, "bertscore": None, "semb": None, "crepe": None, "ratescore_ner": None,
             "ratescore_encoder": None, "preset": "all", "judge": [], "out": "outputs/none"}  # fmt: skip


def test_a_chexbert_labels_and_embeds_in_one_pass(tmp_path):
    model, tokenizer = build_chexbert(REFERENCES + REPORTS, vocab_size=200)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    labeler = load_labeler(f"chexbert:{tmp_path}")
    metrics = load_metrics(SimpleNamespace(**ARGUMENTS), labeler)
    passes = []
    labeler.model.register_forward_pre_hook(lambda *args, **kwargs: passes.append(1), with_kwargs=True)
    labeler([*REPORTS, *REFERENCES])
    before = len(passes)
    cosines = metrics.semb(REPORTS, REFERENCES)
    assert len(passes) == before and cosines.shape == (3,) and not metrics.semb.lite
    assert load_metrics(SimpleNamespace(**ARGUMENTS), LexicalLabeler()).semb is None


def test_a_missing_encoder():
    with pytest.raises(InputError, match="no/such"):
        load_metrics(SimpleNamespace(**{**ARGUMENTS, "bertscore": "no/such"}), LexicalLabeler())


def test_metrics_are_json(tmp_path):
    """No NaN, no numpy: any reader takes it."""
    _, _, ours, _ = measured(Metrics(LexicalLabeler(), meteor=False), ("", "", ""))
    assert json.loads(json.dumps(ours, allow_nan=False)) == ours
