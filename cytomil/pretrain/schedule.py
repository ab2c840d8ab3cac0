"""The learning rate over a run."""

from __future__ import annotations

import math

_FROM_RANDOM, _FROM_WEIGHTS = 0.06, 0.01


def usual_peak(from_weights: bool) -> float:
    """The peak learning rate where none is chosen: lower where training goes on from others' weights."""
    return _FROM_WEIGHTS if from_weights else _FROM_RANDOM


def learning_rate_at(step: int, n_steps: int, warmup_steps: float, peak: float) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to 0 at ``n_steps`` (SGDR without restarts, 1608.03983)."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1.0, n_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
