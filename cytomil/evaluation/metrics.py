"""Metrics of bag classification, and of how early the ranking of a bag shows its witnesses.

A figure that is not defined is None and has a reason. It is never 0 or NaN, because these look like measurements. If
scores are tied, recall and the count until the first witness are expected values over every order of the tied instances.
They therefore do not depend on file order or chance.

AUROC and average precision are those of scikit-learn (Pedregosa et al., JMLR 12, 2011).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
ScoredBag: TypeAlias = tuple[ArrayLike, ArrayLike]
"""One bag: its attention scores, shape (N,), and instance labels, shape (N,): 1 abnormal, 0 normal, -1 unknown."""

DEFAULT_SHARE = 0.40


@dataclass(frozen=True)
class BagMetrics:
    """Figures over bags, each a fraction in 0..1 or None. `undefined` gives the reason for every None.

    `brier` is the mean squared difference between probability and label (Brier, Monthly Weather Review 78, 1950). 0 is
    perfect, and a constant probability p of positive bags has p (1 − p).
    """

    n_bags: int
    n_positive: int
    threshold: float
    f1: float | None
    auroc: float | None
    auprc: float | None
    sensitivity: float | None
    specificity: float | None
    brier: float | None
    undefined: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain types for `json`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class InstanceMetrics:
    """Means over the `n_bags` bags that hold a witness and whose instance labels are all known.

    `k` and `review_until_first` are in cells, the other figures are fractions in 0..1. If `k` is None, `recall_at_k` is at
    40 % of each bag. `auroc` is the mean over bags that also hold a normal instance. `undefined` gives the reason for every
    figure that is None. If `left_out` bags have unknown instance labels, its entry "left_out" gives their number.
    """

    n_bags: int
    k: int | None
    recall_at_k: float | None
    recall_at_1pct: float | None
    recall_at_5pct: float | None
    recall_at_10pct: float | None
    recall_at_40pct: float | None
    average_precision: float | None
    auroc: float | None
    review_until_first: float | None
    undefined: dict[str, str] = field(default_factory=dict)
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain types for `json`, without `left_out`, whose number is in `undefined`."""
        plain = dataclasses.asdict(self)
        del plain["left_out"]
        return plain


def recall_at_k(scores: ArrayLike, instance_labels: ArrayLike, k: int) -> float:
    """Fraction of the bag's witnesses among its k highest-scored instances.

    With ties, the expected value over random orders of the tied instances. A constant score gives k / N.

    Args:
        scores: attention scores, shape (N,), higher means more abnormal.
        instance_labels: shape (N,), 1 for a witness and 0 for a normal instance.
        k: instances reviewed; more than N counts as N.

    Raises:
        ValueError: there is no witness, k is not a whole number of at least 1, the lengths differ, a score is not finite,
            or a label is neither 0 nor 1.
    """
    checked_scores, witness = _checked_bag(scores, instance_labels)
    _check_k(k)
    return float(expected_recall(checked_scores, witness, [k])[0])


def recall_at_fraction(scores: ArrayLike, instance_labels: ArrayLike, fraction: float) -> float:
    """Fraction of the bag's witnesses in its top `fraction`: `recall_at_k` at k = ceil(fraction * N).

    Args:
        scores: attention scores, shape (N,).
        instance_labels: shape (N,), 1 for a witness and 0 for a normal instance.
        fraction: fraction of the bag reviewed, above 0 and at most 1.

    Raises:
        ValueError: as `recall_at_k`, or `fraction` is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, not {fraction}")
    checked_scores, witness = _checked_bag(scores, instance_labels)
    return float(expected_recall(checked_scores, witness, [n_in_fraction(witness.size, fraction)])[0])


def n_in_fraction(n_instances: int, fraction: float) -> int:
    """Number of instances in the fraction `fraction` (0..1) of a bag of `n_instances`, rounded up."""
    # 0.07 * 100 is 7.000000000000001 in floating point, which ceil alone would turn into 8.
    return math.ceil(round(fraction * n_instances, 9))


def expected_recall(scores: ArrayLike, instance_labels: ArrayLike, counts: Sequence[int]) -> Floats:
    """Recall after each of several counts of reviewed instances, with ties as in `recall_at_k`.

    Args:
        scores: attention scores, shape (N,).
        instance_labels: shape (N,), 1 for a witness and 0 for a normal instance.
        counts: instances reviewed, shape (C,); 0 gives 0 and more than N counts as N.

    Returns:
        Fractions in 0..1, shape (C,).

    Raises:
        ValueError: as `recall_at_k`, but a count may be 0.
    """
    sizes, witnesses = _tie_groups(*_checked_bag(scores, instance_labels))
    # Linear inside a tie, because every further instance is a witness with the same probability.
    reviewed = np.concatenate(([0], np.cumsum(sizes)))
    found = np.concatenate(([0], np.cumsum(witnesses)))
    return np.asarray(np.interp(counts, reviewed, found / found[-1]), dtype=np.float64)


def review_until_first(scores: ArrayLike, instance_labels: ArrayLike) -> float:
    """Number of instances reviewed, in descending order of score, until the first witness is found. The min is 1.

    If the first witnesses are m of t tied instances, the expected value over random orders of the tie is used. It adds
    (t + 1) / (m + 1) to the instances above the tie: the first order statistic of m draws from t.

    Args:
        scores: attention scores, shape (N,).
        instance_labels: shape (N,), 1 for a witness and 0 for a normal instance.

    Raises:
        ValueError: as `recall_at_k`.
    """
    sizes, witnesses = _tie_groups(*_checked_bag(scores, instance_labels))
    first = int(np.flatnonzero(witnesses)[0])
    return float(sizes[:first].sum() + (sizes[first] + 1) / (witnesses[first] + 1))


def instance_average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision of one bag's ranking: the step-wise sum of scikit-learn, with one threshold per tie.

    Args:
        scores: attention scores, shape (N,).
        labels: shape (N,), 1 for a witness and 0 for a normal instance.

    Raises:
        ValueError: as `recall_at_k`.
    """
    from sklearn.metrics import average_precision_score

    checked_scores, witness = _checked_bag(scores, labels)
    return float(average_precision_score(witness, checked_scores))


def instance_auroc(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Area under the ROC curve of one bag's instances; a tie counts one half. None if they are of one class.

    Args:
        scores: attention scores, shape (N,).
        labels: shape (N,), 1 for a witness and 0 for a normal instance.

    Raises:
        ValueError: the lengths differ, a score is not finite, or a label is neither 0 nor 1.
    """
    from sklearn.metrics import roc_auc_score

    checked_scores, witness = checked_binary(scores, labels)
    if witness.all() or not witness.any():
        return None
    return float(roc_auc_score(witness, checked_scores))


def bag_metrics(probabilities: ArrayLike, labels: ArrayLike, threshold: float) -> BagMetrics:
    """Figures over bags. A bag is called positive if its probability is at or above the threshold.

    AUPRC is the average precision. AUROC and AUPRC need bags of both classes. Sensitivity needs a positive bag,
    specificity a negative bag, and F1 a bag that is positive or called positive.

    Args:
        probabilities: of being positive, shape (B,), each in 0..1.
        labels: shape (B,), 1 positive and 0 negative.
        threshold: any finite number; above 1 calls every bag negative.

    Raises:
        ValueError: the lengths differ, a probability is outside 0..1, a label is neither 0 nor 1, or the threshold is not
            finite.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, not {threshold}")
    checked, positive = checked_probabilities(probabilities, labels)
    called = checked >= threshold
    hits, n_positive = int((called & positive).sum()), int(positive.sum())
    n_called, n_negative = int(called.sum()), positive.size - n_positive
    figures: dict[str, Callable[[], float | None]] = {
        "f1": lambda: 2 * hits / (n_called + n_positive),
        "auroc": lambda: instance_auroc(checked, positive),
        "auprc": lambda: instance_average_precision(checked, positive),
        "sensitivity": lambda: hits / n_positive,
        "specificity": lambda: (n_negative - n_called + hits) / n_negative,
        "brier": lambda: float(np.mean((checked - positive) ** 2)),
    }
    undefined = _undefined_bag_figures(n_positive, n_negative, n_called)
    return BagMetrics(
        n_bags=positive.size,
        n_positive=n_positive,
        threshold=float(threshold),
        **{name: None if name in undefined else figure() for name, figure in figures.items()},
        undefined=undefined,
    )


def instance_metrics(bags: Sequence[ScoredBag], k: int | None = None) -> InstanceMetrics:
    """Means, over bags that hold a witness, of how early the ranking shows the witnesses.

    A bag with an unknown instance label is left out and counted, because figures over the known instances alone would
    describe a different bag. A bag without a witness is ignored.

    Args:
        bags: per bag the attention scores and the instance labels (1 abnormal, 0 normal, -1 unknown), each (N,).
        k: instances reviewed in every bag; None reviews 40 % of each bag.

    Raises:
        ValueError: k is not a whole number of at least 1; or, in a bag, the lengths differ, a score is not finite, or a
            label is not 1, 0 or -1.
    """
    if k is not None:
        _check_k(k)
    usable, left_out = bags_with_witness(bags)
    values: dict[str, list[float | None]] = {
        "recall_at_k": [
            recall_at_fraction(*bag, DEFAULT_SHARE) if k is None else recall_at_k(*bag, k) for bag in usable
        ],
        "recall_at_1pct": [recall_at_fraction(*bag, 0.01) for bag in usable],
        "recall_at_5pct": [recall_at_fraction(*bag, 0.05) for bag in usable],
        "recall_at_10pct": [recall_at_fraction(*bag, 0.10) for bag in usable],
        "recall_at_40pct": [recall_at_fraction(*bag, 0.40) for bag in usable],
        "average_precision": [instance_average_precision(*bag) for bag in usable],
        "auroc": [instance_auroc(*bag) for bag in usable],
        "review_until_first": [review_until_first(*bag) for bag in usable],
    }
    means = {name: _mean_of_defined(per_bag) for name, per_bag in values.items()}
    undefined = {name: _no_mean_reason(usable, left_out) for name, mean in means.items() if mean is None}
    if left_out:
        undefined["left_out"] = f"bags left out because instance labels are unknown: {left_out} of {len(bags)}"
    return InstanceMetrics(
        n_bags=len(usable), k=None if k is None else int(k), **means, undefined=undefined, left_out=left_out
    )


def bags_with_witness(bags: Sequence[ScoredBag]) -> tuple[list[tuple[Floats, Bools]], int]:
    """Choose the bags that hold a witness and whose instance labels are all known.

    Returns:
        These bags as (scores, is-witness) pairs, in order, and the number of bags left out for an unknown label.

    Raises:
        ValueError: in a bag, the lengths differ, a score is not finite, or a label is not 1, 0 or -1.
    """
    usable, left_out = [], 0
    for scores, labels in bags:
        unknown = np.asarray(labels) == -1
        checked_scores, witness = checked_binary(scores, np.where(unknown, 0, labels))
        if unknown.any():
            left_out += 1
        elif witness.any():
            usable.append((checked_scores, witness))
    return usable, left_out


def checked_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    """As `checked_binary`. Also raises ValueError if a probability is outside 0..1."""
    checked, positive = checked_binary(probabilities, labels)
    if ((checked < 0) | (checked > 1)).any():
        raise ValueError("probabilities must lie between 0 and 1")
    return checked, positive


def checked_binary(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    """Scores as float64 and labels as booleans, both (N,).

    Raises:
        ValueError: the arrays are not one-dimensional, the lengths differ, a score is not finite, or a label is neither 0
            nor 1.
    """
    checked, raw_labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if checked.ndim != 1 or checked.shape != raw_labels.shape:
        raise ValueError(f"scores and labels need the same shape (N,): {checked.shape}, {raw_labels.shape}")
    if not np.isfinite(checked).all():
        raise ValueError("scores must be finite")
    if not np.isin(raw_labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return checked, raw_labels.astype(bool)


def _checked_bag(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Bools]:
    checked, witness = checked_binary(scores, labels)
    if not witness.any():
        raise ValueError("the bag holds no witness")
    return checked, witness


def _check_k(k: int) -> None:
    if k < 1 or k != int(k):
        raise ValueError(f"k must be a whole number of at least 1, not {k}")


def _tie_groups(scores: Floats, witness: Bools) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Size and number of witnesses of each group of equal scores, highest score first."""
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    witnesses = np.bincount(group[witness], minlength=sizes.size)
    return sizes[::-1], witnesses[::-1]


def _mean_of_defined(per_bag: Sequence[float | None]) -> float | None:
    defined = [value for value in per_bag if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _no_mean_reason(usable: Sequence[tuple[Floats, Bools]], left_out: int) -> str:
    if usable:
        return "one class only: every instance of these bags is a witness"
    return "no bag with a witness and all instance labels known" if left_out else "no bag with a witness"


def _undefined_bag_figures(n_positive: int, n_negative: int, n_called: int) -> dict[str, str]:
    if n_positive + n_negative == 0:
        return dict.fromkeys(("f1", "auroc", "auprc", "sensitivity", "specificity", "brier"), "no bags")
    undefined = {}
    if n_positive == 0:
        undefined = dict.fromkeys(("auroc", "auprc"), "one class only: no positive bag")
        undefined["sensitivity"] = "no positive bag"
    if n_negative == 0:
        undefined = dict.fromkeys(("auroc", "auprc"), "one class only: no negative bag")
        undefined["specificity"] = "no negative bag"
    if n_positive + n_called == 0:
        undefined["f1"] = "no positive bag and none called positive"
    return undefined
