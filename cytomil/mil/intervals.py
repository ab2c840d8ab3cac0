"""95 % intervals of figures measured on few bags: closed forms that stay honest where every bag was called right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_NEARLY = 1e-9

Interval = tuple[float, float]


def proportion_interval(share: float, n: float) -> Interval:
    """Wilson's score interval of a share (0 to 1) seen over ``n`` > 0 independent cases (JASA 22, 1927).

    It holds for the mean of any n numbers from 0 to 1 as well: their variance is at most that of a proportion.
    """
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def auroc_interval(auroc: float, n_positive: int, n_negative: int) -> Interval:
    """Newcombe's score interval of an AUROC (Statistics in Medicine 25, 2006, method 5).

    It does not shrink to a point at 1.0, as a bootstrap does. The numbers are of independent cases: patients, where one
    gives several bags.
    """
    return _lower_auroc(auroc, n_positive, n_negative), 1 - _lower_auroc(1 - auroc, n_positive, n_negative)


def _lower_auroc(auroc: float, n_positive: int, n_negative: int) -> float:
    """The least AUROC from which the one that was seen is not more than 1.96 standard errors away."""
    from scipy.optimize import brentq

    spread = (n_positive + n_negative) / 2 - 1

    def variance(theta: float) -> float:
        shape = 1 + spread * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return theta * (1 - theta) * shape / (n_positive * n_negative)

    def beyond(theta: float) -> float:
        return (theta - auroc) ** 2 - _Z**2 * variance(theta)

    highest = min(auroc, 1 - _NEARLY)  # at 1 itself the standard error is 0, which is no answer
    return float(brentq(beyond, 0.0, highest)) if highest > _NEARLY else 0.0


def f1_interval(f1: float, n_called_or_positive: int) -> Interval:
    """Interval of an F1 through the share TP / (TP + FP + FN), of which F1 is a rising function.

    ``n_called_or_positive`` is TP + FP + FN > 0: the cases that are positive or called so.
    """
    share = f1 / (2 - f1)
    low, high = proportion_interval(share, n_called_or_positive)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's interval of the mean of numbers from 0 to 1, kept within them; None of fewer than two.

    Where all are equal their spread is not known: Wilson's interval of as many cases stands in.
    """
    n = len(values)
    if n < 2:
        return None
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    if std < 1e-12:
        return proportion_interval(min(1.0, max(0.0, mean)), n)
    half = student_half_width(values)
    return max(0.0, mean - half), min(1.0, mean + half)


def student_half_width(values: Sequence[float]) -> float:
    """Half of Student's 95 % interval of the mean; not a number of fewer than two values, whose spread is not known."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def n_independent(labels: Sequence[int], patients: Sequence[str]) -> tuple[int, int]:
    """How many patients stand behind the positive and the negative bags; a bag of unknown patient ("") is one of its own."""
    named = [(label, patient or f"bag {i}") for i, (label, patient) in enumerate(zip(labels, patients, strict=True))]
    return len({patient for label, patient in named if label}), len({patient for label, patient in named if not label})
