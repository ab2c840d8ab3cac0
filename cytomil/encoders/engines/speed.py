"""Images a second of two engines, measured in turn, so that whatever else the machine does slows both."""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from cytomil.encoders.engines.engine import Engine

_REPEATS = 5


def images_per_second(engine: Engine, eager: Engine, pixels: np.ndarray) -> tuple[float, float]:
    """Medians over five turns on ``pixels``, uint8 (N, S, S, 3), after one that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS + 1):
        for runner, taken in zip((engine, eager), seconds, strict=True):
            start = time.perf_counter()
            runner.embed(pixels)
            taken.append(time.perf_counter() - start)
    ours, theirs = (len(pixels) / median(taken[1:]) for taken in seconds)
    return ours, theirs
