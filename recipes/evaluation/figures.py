"""What the figures of metrics.json are called, and which of them make up each paper's protocol."""

import re

from recipes.evaluation.bootstrap import QUANTITIES, efficacy_name

ORIGINAL = "original/"  # before the name of a figure against the original references
BOARD = "rexrank/"  # before a figure's name on ReXrank's board
STAND_IN = " (stand-in)"  # behind it where a part stands in for the published model
BOARD_METRICS = ("1/RadCliQ-v1", "BLEU", "BertScore", "SembScore", "RadGraph", "RaTEScore", "GREEN")
PRESETS = {
    "mrgr1": {
        "title": "MRG-R1",
        "figures": [efficacy_name("14", "positive", average, q) for average in ("micro", "macro") for q in QUANTITIES],
        "why": "14 CheXbert labels (section IV-C); uncertain as positive, as in its Eq. 3. Its averaging is not said "
        "and no single one fits its tables, so micro and macro stand side by side.",
    },
    "lmrrg": {
        "title": "LM-RRG",
        "figures": [
            *("bleu-4", "meteor", "rouge-l"),
            *(efficacy_name("14", "negative", "example", quantity) for quantity in QUANTITIES),
            "radcliq-v1",
        ],
        "why": "P = R = 0.500 with F1 = 0.484 rules out micro; its baseline PromptMRG averages over reports and "
        "counts certain positives only. Its RadCliQ is on the scale of version 1.",
    },
    "llmrg4": {
        "title": "LLM-RG4",
        "figures": [
            *(efficacy_name("14", "positive", "micro", quantity) for quantity in QUANTITIES),
            efficacy_name("5", "positive", "micro", "f1"),
            *("bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "meteor", "hall"),
            *(ORIGINAL + name for name in ("bleu-1", "bleu-4", "rouge-l")),
        ],
        "why": "Micro-averaged, 14 labels (Table 4 also 5), uncertain as positive as in its published code; "
        "NLG against the cleaned reports, and against the original ones with --original_references.",
    },
    "rexrank": {
        "title": "ReXrank",
        "figures": [BOARD + name + suffix for name in BOARD_METRICS for suffix in ("", STAND_IN)],
        "why": "The board's seven metrics by its names, in its order. 1/RadCliQ-v1 is one by the mean of RadCliQ-v1; "
        "the others are means over reports. What says stand-in cannot be set beside the board's rows.",
    },
}
HEADLINE = (
    efficacy_name("14", "positive", "micro", "f1"),
    efficacy_name("14", "positive", "macro", "f1"),
    efficacy_name("14", "negative", "example", "f1"),
    efficacy_name("13", "positive", "micro", "f1"),
    efficacy_name("5", "positive", "micro", "f1"),
    *("mccs", "bleu-1", "bleu-4", "meteor", "meteor_lite", "rouge-l", "cider"),
    *("radgraph/partial", "radgraph_lexical/partial", "bertscore", "lexical_words"),
    *("radcliq-v1", "radcliq_lite-v1", "hall", ORIGINAL + "bleu-4"),
    *("crepe", "ratescore", "green", "crimson", "radfact/f1"),
)


SHOWN = tuple(dict.fromkeys([*HEADLINE, *(name for preset in PRESETS.values() for name in preset["figures"])]))

_TITLES = {
    "mccs": ("MCCS, mean over reports", "MCCS", "higher", [0, 1], "other"),
    "format_rate": ("Share of completions in the format <think>, then <report>", "format", "higher", [0, 1], "other"),
    "words": ("Words of a report, mean", "words", None, None, "other"),
    "hall": ("Share of reports that say what their input cannot show", "hall.", "lower", [0, 1], "other"),
    "meteor": ("METEOR 1.5 of the corpus", "METEOR", "higher", [0, 1], "nlg"),
    "meteor_lite": (
        "METEOR of nltk, mean over reports (instead of METEOR 1.5)",
        "METEOR (nltk)",
        "higher",
        [0, 1],
        "nlg",
    ),
    "rouge-l": ("ROUGE-L, mean over reports", "ROUGE-L", "higher", [0, 1], "nlg"),
    "cider": ("CIDEr-D, mean over reports", "CIDEr", "higher", [0, 10], "nlg"),
    "bertscore": ("BERTScore F1, rescaled, mean over reports", "BERTScore", "higher", None, "graph"),
    "temporal_f1": ("Temporal F1 (words of change), mean over reports", "temporal F1", "higher", [0, 1], "other"),
    "crepe": ("CREPE, predicted errors, mean over reports", "CREPE", "lower", None, "other"),
    "ratescore": ("RaTEScore, mean over reports", "RaTEScore", "higher", None, "other"),
    "green": ("GREEN by a language model, mean over the reports with an answer", "GREEN", "higher", [0, 1], "other"),
    "crimson": (
        "CRIMSON by a language model, mean over the reports with an answer",
        "CRIMSON",
        "higher",
        [-1, 1],
        "other",
    ),
    "radfact/precision": ("RadFact, logical precision by a language model", "RadFact P", "higher", [0, 1], "other"),
    "radfact/recall": ("RadFact, logical recall by a language model", "RadFact R", "higher", [0, 1], "other"),
    "radfact/f1": ("RadFact, F1 of mean precision and mean recall", "RadFact F1", "higher", [0, 1], "other"),
    **{
        f"{name}/failed": (
            f"Share of reports without a usable answer for {name}",
            f"{name} failed",
            None,
            [0, 1],
            "other",
        )
        for name in ("green", "crimson", "radfact")
    },
    "lexical_words": ("F1 of words, mean over reports (instead of BERTScore)", "words F1", "higher", [0, 1], "graph"),
}


def describe(name: str) -> dict:
    """Title, short title, which way is better, range and group of a figure."""
    base = name.removeprefix(ORIGINAL)
    if match := re.fullmatch(r"ce/(\d+)/(\w+)/(\w+)/(\w+)", base):
        labels, reading, average, quantity = match.groups()
        quantity = {"f1": "F1"}.get(quantity, quantity.capitalize())
        title = f"{quantity}, {average}, {labels} labels, uncertain as {reading}"
        short = f"{average} {quantity if quantity == 'F1' else quantity[0]} {labels}"
        short += "" if reading == "positive" else ", unc. neg."
        entry = title, short, "higher", [0, 1], "ce"
    elif base.startswith("bleu-"):
        entry = f"BLEU-{base[5:]} of the corpus", f"BLEU-{base[5:]}", "higher", [0, 1], "nlg"
    elif base.startswith("errors/"):
        entry = f"Errors of the kind {base[7:]}, mean per report", base[7:], "lower", None, "errors"
    elif base.startswith(BOARD):
        short = base.removeprefix(BOARD)
        stand_in = ", of parts that stand in for the published ones" if short.endswith(STAND_IN) else ""
        metric = short.removesuffix(STAND_IN)
        mean = "one by the mean of RadCliQ-v1" if metric == BOARD_METRICS[0] else "mean over reports"
        entry = f"{metric} of ReXrank's board, {mean}{stand_in}", short, "higher", None, "other"
    elif base.startswith("radgraph"):
        parser, level = base.split("/")
        stand_in = "" if parser == "radgraph" else " (lexical graphs stand in for RadGraph's)"
        entry = f"RadGraph F1, {level}, mean over reports{stand_in}", f"{parser} {level}", "higher", [0, 1], "graph"
    elif base.startswith("radcliq"):
        kind, version = base.split("-")
        stand_in = "" if kind == "radcliq" else " (of parts that stand in for the published ones)"
        entry = f"RadCliQ {version}, mean over reports{stand_in}", base, "lower", None, "radcliq"
    else:
        entry = _TITLES.get(base) or (f"{base}, mean over reports", base, "higher", None, "graph")
    title, short, better, span, group = entry
    if base != name:
        title, short, group = f"{title}, against the original references", f"{short} (orig.)", "original"
    return {"title": title, "short": short, "better": better, "range": span, "group": group}
