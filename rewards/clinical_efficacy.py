"""Clinical efficacy: precision, recall and F1 of CheXpert labels over a corpus, in every averaging of the papers.

MRG-R1 section IV-C, LM-RRG section 3.1 and LLM-RG4 Table 2 average differently and do not always say how (A-14), so
all four averages, three label sets and both readings of `uncertain` are given side by side.
"""

import numpy as np

from rewards.labels import CONDITIONS, FINDINGS, FIVE, to_binary

LABEL_SETS = {"14": CONDITIONS, "13": FINDINGS, "5": FIVE}  # 13: without No Finding
AVERAGES = ("micro", "macro", "weighted", "example")


def clinical_efficacy(
    generated, reference, label_set: str = "14", uncertain_positive: bool = True
) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 in [0, 1] per average, and per label under its name (with its `support`).

    `generated`, `reference`: CheXpert states, shape (n, 14), n >= 1. A ratio 0/0 counts as 0. `example` averages the
    per-report values; the others are scikit-learn's. Raises ValueError on shapes that differ.
    """
    generated, reference = np.asarray(generated), np.asarray(reference)
    if generated.shape != reference.shape or generated.ndim != 2 or generated.shape[1] != 14 or not len(generated):
        raise ValueError(f"labels must have equal shapes (n, 14), n >= 1; got {generated.shape} and {reference.shape}")
    from sklearn.metrics import precision_recall_fscore_support  # a second to import, and `rewards` imports this file

    columns = [CONDITIONS.index(name) for name in LABEL_SETS[label_set]]
    predicted, truth = (to_binary(states, uncertain_positive)[:, columns] for states in (generated, reference))
    result = {}
    for average in AVERAGES:
        values = precision_recall_fscore_support(
            truth, predicted, average="samples" if average == "example" else average, zero_division=0
        )
        result[average] = dict(zip(("precision", "recall", "f1"), map(float, values[:3]), strict=True))
    per_label = precision_recall_fscore_support(truth, predicted, average=None, zero_division=0)
    for i, name in enumerate(LABEL_SETS[label_set]):
        precision, recall, f1, support = (float(values[i]) for values in per_label)
        result[name] = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    return result
