"""How far a compiled engine may stray from eager, on real cells, before it is refused."""

from __future__ import annotations

import math

import numpy as np

LEAST_CELLS = 40
LEAST_COSINE_FLOAT = 0.999
LEAST_MEAN_COSINE_INT8 = 0.98
LEAST_OVERLAP_INT8 = 0.95
_TOP_SHARE = 0.05
_MOST_AXES = 8


def agreement(eager: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Compare two engines' embeddings (N, D) of the same cells: least and mean cosine, and `top_overlap`.

    All NaN, which `refusal` refuses, where the other's are not finite.
    """
    if not np.isfinite(other).all():
        return {"cells": len(eager)} | dict.fromkeys(("least_cosine", "mean_cosine", "top_overlap"), math.nan)
    norms = np.linalg.norm(eager, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (eager * other).sum(1, dtype=np.float64) / np.maximum(norms, np.finfo(np.float32).tiny)
    return {
        "cells": len(eager),
        "least_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "top_overlap": top_overlap(eager, other),
    }


def refusal(figures: dict[str, float], precision: str) -> str:
    """Why an engine of this precision with these figures is refused; empty where it is not. NaN is refused."""
    if precision == "int8":
        if not figures["mean_cosine"] >= LEAST_MEAN_COSINE_INT8:
            return f"mean cosine {figures['mean_cosine']:.4f}, at least {LEAST_MEAN_COSINE_INT8} is asked for"
        if not figures["top_overlap"] >= LEAST_OVERLAP_INT8:
            return f"top-5 % overlap {figures['top_overlap']:.3f}, at least {LEAST_OVERLAP_INT8} is asked for"
        return ""
    if not figures["least_cosine"] >= LEAST_COSINE_FLOAT:
        return f"least cosine {figures['least_cosine']:.6f}, at least {LEAST_COSINE_FLOAT} is asked for"
    return ""


def top_overlap(eager: np.ndarray, other: np.ndarray) -> float:
    """Share of the cells that stand in the top 5 % of both engines, mean over scores that a triage model may rank by.

    What rank shows of a slide is the few per cent of its cells with the highest score, so that is the retrieval which has to
    survive. No aggregator need exist yet; in its place stand the Mahalanobis distance to the cells themselves, which finds
    what is unlike the rest (Ledoit-Wolf covariance), and both ends of up to eight principal axes, along which embeddings
    differ most. Each score is fitted to eager's embeddings (N, D) and applied to both.
    """
    from sklearn.covariance import LedoitWolf

    distance = LedoitWolf().fit(eager).mahalanobis
    overlaps = [_shared_top(distance(eager), distance(other))]
    centre = eager.mean(0)
    axes = np.linalg.svd(eager - centre, full_matrices=False)[2][:_MOST_AXES]
    for axis in axes:
        ours, theirs = (eager - centre) @ axis, (other - centre) @ axis
        overlaps += [_shared_top(ours, theirs), _shared_top(-ours, -theirs)]
    return float(np.mean(overlaps))


def _shared_top(ours: np.ndarray, theirs: np.ndarray) -> float:
    k = math.ceil(_TOP_SHARE * len(ours))
    tops = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (ours, theirs)]
    return len(tops[0] & tops[1]) / k
