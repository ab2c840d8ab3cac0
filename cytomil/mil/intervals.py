"""95 % intervals of figures measured on few bags, in closed form. They are valid even if every call was correct."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_NEARLY = 1e-9

Interval = tuple[float, float]


def proportion_interval(fraction: float, n: float) -> Interval:
    """Wilson's score interval of a fraction (0 to 1) of ``n`` > 0 independent cases (JASA 22, 1927).

    It also holds for the mean of any n numbers from 0 to 1, since their variance is at most that of a proportion.
    """
    centre = (fraction + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(fraction * (1 - fraction) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def auroc_interval(auroc: float, n_positive: int, n_negative: int) -> Interval:
    """Newcombe's score interval of an AUROC (Statistics in Medicine 25, 2006, method 5).

    It does not shrink to a point at 1.0, as a bootstrap does. Numbers count independent cases: patients, if one has
    several bags.
    """
    return _lower_auroc(auroc, n_positive, n_negative), 1 - _lower_auroc(1 - auroc, n_positive, n_negative)


def _lower_auroc(auroc: float, n_positive: int, n_negative: int) -> float:
    """The lowest AUROC that is at most 1.96 standard errors below the measured one."""
    from scipy.optimize import brentq

    spread = (n_positive + n_negative) / 2 - 1

    def variance(theta: float) -> float:
        shape = 1 + spread * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return theta * (1 - theta) * shape / (n_positive * n_negative)

    def beyond(theta: float) -> float:
        return (theta - auroc) ** 2 - _Z**2 * variance(theta)

    highest = min(auroc, 1 - _NEARLY)  # at 1 itself the standard error is 0
    return float(brentq(beyond, 0.0, highest)) if highest > _NEARLY else 0.0


def f1_interval(f1: float, n_called_or_positive: int) -> Interval:
    """Interval of an F1 from that of the fraction TP / (TP + FP + FN), of which F1 is an increasing function.

    ``n_called_or_positive`` is TP + FP + FN > 0: the cases that are positive or called so.
    """
    fraction = f1 / (2 - f1)
    low, high = proportion_interval(fraction, n_called_or_positive)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's interval of the mean of numbers from 0 to 1, clipped to that range; None for fewer than two.

    If all are equal, their spread is unknown, and Wilson's interval of as many cases is returned.
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
    """Half the width of Student's 95 % interval of the mean; NaN for fewer than two values."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def n_independent(labels: Sequence[int], patients: Sequence[str]) -> tuple[int, int]:
    """The number of patients with positive and with negative bags. A bag of unknown patient ("") counts as one."""
    named = [(label, patient or f"bag {i}") for i, (label, patient) in enumerate(zip(labels, patients, strict=True))]
    return len({patient for label, patient in named if label}), len({patient for label, patient in named if not label})
