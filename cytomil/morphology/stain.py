"""Colour and grain of a cell's regions."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.masks import CellMasks
from cytomil.morphology.stacks import Masks, eroded, grown

_RIM = 3  # pixels of cytoplasm about the nucleus
_LEAST_REGION = 6  # pixels; where there are fewer, the whole cell stands in
_LEAST_GRAIN = 0.01  # optical density: less is the camera's and the file format's
_SHARES = np.array([0.02, 0.05, 0.95, 0.98])  # of a region's pixels, in order
_COLOURS, _BANDS = 3, 3
_CHANNELS = _COLOURS * (1 + _BANDS)  # of a pixel: its colours, then the bands of each scale in all colours
_ORDERED = [0, 1, 2, 7]  # the channels that percentiles are taken of: the colours, and the middle band in green

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]


def regions(masks: CellMasks) -> Masks:
    """Nucleus, cytoplasm, its rim about the nucleus, the nucleus' core without its blurred edge: bool (N, 4, S, S)."""
    cytoplasm = masks.cell & ~masks.nucleus
    rim = grown(masks.nucleus, _RIM) & cytoplasm
    found = np.stack([masks.nucleus, cytoplasm, rim, eroded(masks.nucleus)], axis=1)
    few = np.count_nonzero(found, axis=(2, 3)) < _LEAST_REGION
    found[few] = masks.cell[np.nonzero(few)[0]]
    return found


def stains(found: Masks, layers: list[Images]) -> Floats:
    """Regions of N cells, (N, R, S, S), none empty → float64 (N, R · 23), region by region.

    ``layers``: the cells' optical density, (N, S, S, 3), and the same smoothed more and more, three times. What one layer
    has over the next is a band. Of each region the mean of each colour; the 5th, then the 95th percentile of each; the
    logarithms of the spread of each colour, of each colour's bands, and of the middle band's 2nd and 98th percentile in
    green, which all stains darken.
    """
    n, n_regions = found.shape[:2]
    place = (np.count_nonzero(found, axis=(2, 3))[..., None] - 1) * _SHARES
    below = place.astype(np.intp)
    around = np.concatenate([below, np.ceil(place).astype(np.intp)], axis=2)
    means, spreads = np.empty((2, n, n_regions, _CHANNELS))
    values = np.empty((n, n_regions, len(_ORDERED), 2 * len(_SHARES)))
    for i in range(n):
        bands = [cv2.subtract(fine[i], coarse[i]) for fine, coarse in pairwise(layers)]
        channels = cv2.merge([layers[0][i], *bands]).reshape(-1, _CHANNELS)
        for j in range(n_regions):
            within = channels.take(np.flatnonzero(found[i, j]), axis=0)
            mean, spread = cv2.meanStdDev(within[:, None])
            means[i, j], spreads[i, j] = mean.ravel(), spread.ravel()
            ordered = cv2.transpose(within)[_ORDERED]
            ordered.sort(axis=1)
            values[i, j] = ordered.take(around[i, j], axis=1)
    lower, upper = np.split(values, 2, axis=3)
    percentiles = lower + (upper - lower) * (place - below)[:, :, None]
    tails = percentiles[:, :, :_COLOURS, 1:3].swapaxes(2, 3)
    extremes = np.abs(percentiles[:, :, _COLOURS, [0, 3]])
    grain = spreads[:, :, _COLOURS:].reshape(n, n_regions, _BANDS, _COLOURS).swapaxes(2, 3)
    rough = [spreads[:, :, :_COLOURS], grain.reshape(n, n_regions, -1), extremes]
    parted = [means[:, :, :_COLOURS], tails.reshape(n, n_regions, -1)]
    return np.concatenate([*parted, np.log(np.concatenate(rough, axis=2) + _LEAST_GRAIN)], axis=2).reshape(n, -1)
