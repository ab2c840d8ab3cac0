"""How far the embeddings of a compiled engine may differ from eager's, on real cells, before it is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

MIN_CELLS = 40
MIN_COSINE_FLOAT = 0.999
MIN_COSINE_BF16 = 0.99
MIN_MEAN_COSINE_INT8 = 0.98
MIN_OVERLAP_INT8 = 0.95
_TOP_FRACTION = 0.05
_NEIGHBOURS = 5  # as in the aggregator knn


def agreement(eager: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Compare two engines' embeddings (N, D) of the same cells: min and mean cosine, and `top_overlap`.

    All are NaN, which `refusal` refuses, if the other's embeddings are not finite.
    """
    if not np.isfinite(other).all():
        return {"cells": len(eager)} | dict.fromkeys(("min_cosine", "mean_cosine", "top_overlap"), math.nan)
    norms = np.linalg.norm(eager, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (eager * other).sum(1, dtype=np.float64) / np.maximum(norms, np.finfo(np.float32).tiny)
    return {
        "cells": len(eager),
        "min_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "top_overlap": top_overlap(eager, other),
    }


def refusal(figures: dict[str, float], precision: str) -> str:
    """Why an engine of this precision with these figures is refused; empty if it is not. NaN is refused."""
    if precision == "int8":
        if not figures["mean_cosine"] >= MIN_MEAN_COSINE_INT8:
            return f"mean cosine {figures['mean_cosine']:.4f}, the minimum is {MIN_MEAN_COSINE_INT8}"
        if not figures["top_overlap"] >= MIN_OVERLAP_INT8:
            return f"top-5 % overlap {figures['top_overlap']:.3f}, the minimum is {MIN_OVERLAP_INT8}"
        return ""
    minimum = MIN_COSINE_BF16 if precision == "bf16" else MIN_COSINE_FLOAT
    if not figures["min_cosine"] >= minimum:
        return f"min cosine {figures['min_cosine']:.6f}, the minimum is {minimum}"
    return ""


def top_overlap(eager: np.ndarray, other: np.ndarray) -> float:
    """Fraction of the top 5 % cells that both engines have in common, as the mean over two scores that need no labels.

    `rank` shows the few per cent of a slide's cells with the highest score, so these must stay the same. The scores are the
    Mahalanobis distance from the cells (Ledoit-Wolf covariance) and the mean distance to the five nearest other cells. Both
    are fitted to eager's embeddings (N, D) and applied to either engine's, because a triage model may be older than the
    engine.
    """
    scores = (_distance_from(eager), lambda cells: _neighbour_distance(cells, eager))
    return float(np.mean([_shared_top(score(eager), score(other)) for score in scores]))


def _distance_from(eager: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Squared Mahalanobis distances (M,) of cells (M, D) from ``eager``'s (N, D), whose covariance is shrunk.

    It uses the singular values of the few cells. The D × D covariance would be large for layers of some thousand numbers.
    Along the cells' axes a variance is (1 - s) λ + s μ, and across them s μ (Ledoit and Wolf, 2004). Axes whose variance is
    below the rounding of the embeddings' precision do not count, as in scikit-learn's pseudo-inverse. Along them the
    rounding of an engine would outweigh all differences between cells.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = eager.mean(axis=0, dtype=np.float64)
    centred = eager - mean
    shrinkage = ledoit_wolf_shrinkage(centred, assume_centered=True)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    eigenvalues = singular**2 / len(eager)
    floor = shrinkage * eigenvalues.sum() / eager.shape[1]
    variances = (1 - shrinkage) * eigenvalues + floor
    rounding = np.finfo(eager.dtype).eps * eager.shape[1] * variances.max()

    def distance(cells: np.ndarray) -> np.ndarray:
        apart = cells - mean
        along = (apart @ axes.T) ** 2
        across = np.maximum((apart**2).sum(axis=1) - along.sum(axis=1), 0)
        return along @ _inverse(variances, rounding) + across * _inverse(floor, rounding)

    return distance


def _inverse(variance: np.ndarray | float, rounding: float) -> np.ndarray:
    """1 / variance; 0 if the variance is not above ``rounding``, as in a pseudo-inverse."""
    return np.divide(
        1.0, variance, out=np.zeros_like(variance, dtype=np.float64), where=np.asarray(variance) > rounding
    )


def _neighbour_distance(cells: np.ndarray, eager: np.ndarray) -> np.ndarray:
    """Mean distance (N,) of each of ``cells`` to its nearest in ``eager``, both (N, D), its own counterpart left out."""
    from scipy.spatial.distance import cdist

    distances = cdist(cells, eager)
    np.fill_diagonal(distances, np.inf)
    return np.partition(distances, _NEIGHBOURS - 1, axis=1)[:, :_NEIGHBOURS].mean(axis=1)


def _shared_top(ours: np.ndarray, theirs: np.ndarray) -> float:
    k = math.ceil(_TOP_FRACTION * len(ours))
    tops = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (ours, theirs)]
    return len(tops[0] & tops[1]) / k
