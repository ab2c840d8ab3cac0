"""The points of the curves, as rows for CSV files and plots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cytomil.evaluation.metrics import (
    ScoredBag,
    bags_with_witness,
    checked_probabilities,
    expected_recall,
    n_in_fraction,
)

# The first tenth is ten times finer, because early recall matters most to a reviewer with little time.
SHARES_REVIEWED = tuple(step / 1000 for step in range(100)) + tuple(step / 100 for step in range(10, 101))


def roc_curve_points(probabilities: ArrayLike, labels: ArrayLike) -> list[dict[str, float]]:
    """Corners of the ROC curve, from (0, 0) to (1, 1). No rows if the bags are of one class.

    Args:
        probabilities: of being positive, shape (B,), each in 0..1.
        labels: shape (B,), 1 positive and 0 negative.

    Returns:
        Rows with `fpr` and `tpr`, both fractions in 0..1 in ascending order.

    Raises:
        ValueError: the lengths differ, a probability is outside 0..1, or a label is neither 0 nor 1.
    """
    from sklearn.metrics import roc_curve

    checked, positive = checked_probabilities(probabilities, labels)
    if positive.all() or not positive.any():
        return []
    fpr, tpr, _ = roc_curve(positive, checked)
    return [{"fpr": float(x), "tpr": float(y)} for x, y in zip(fpr, tpr, strict=True)]


def pr_curve_points(probabilities: ArrayLike, labels: ArrayLike) -> list[dict[str, float]]:
    """Points of the precision-recall curve in order of recall. No rows if the bags are of one class.

    The first row, recall 0 at precision 1, is a convention of scikit-learn and not a measurement. Between two rows, the
    curve is a step at the precision of the later row. The area under the steps is the average precision.

    Args:
        probabilities: of being positive, shape (B,), each in 0..1.
        labels: shape (B,), 1 positive and 0 negative.

    Returns:
        Rows with `recall` and `precision`, both fractions in 0..1.

    Raises:
        ValueError: as `roc_curve_points`.
    """
    from sklearn.metrics import precision_recall_curve

    checked, positive = checked_probabilities(probabilities, labels)
    if positive.all() or not positive.any():
        return []
    precision, recall, _ = precision_recall_curve(positive, checked)
    pairs = zip(recall[::-1], precision[::-1], strict=True)
    return [{"recall": float(x), "precision": float(y)} for x, y in pairs]


def recall_by_k_points(bags: Sequence[ScoredBag]) -> list[dict[str, float]]:
    """Mean recall of witnesses by the fraction of each bag that is reviewed. No rows without a usable bag.

    Bags are chosen as in `instance_metrics`, and cells are counted as in `recall_at_fraction`. The rows at 1, 5, 10 and 40 %
    therefore equal those figures.

    Args:
        bags: per bag the attention scores and the instance labels (1 abnormal, 0 normal, -1 unknown), each (N,).

    Returns:
        Rows with `share_reviewed` (0 to 1, in steps of 0.1 % up to 10 % and of 1 % above), `recall`, and `random`, the
        expected recall of a random order. It lies slightly above the diagonal, because only whole instances are reviewed.

    Raises:
        ValueError: in a bag, the lengths differ, a score is not finite, or a label is not 1, 0 or -1.
    """
    usable, _ = bags_with_witness(bags)
    if not usable:
        return []
    recalls, randoms = [], []
    for scores, witness in usable:
        counts = [n_in_fraction(witness.size, share) for share in SHARES_REVIEWED]
        recalls.append(expected_recall(scores, witness, counts))
        randoms.append(np.asarray(counts) / witness.size)
    columns = zip(SHARES_REVIEWED, np.mean(recalls, axis=0), np.mean(randoms, axis=0), strict=True)
    return [{"share_reviewed": share, "recall": float(mean), "random": float(luck)} for share, mean, luck in columns]
