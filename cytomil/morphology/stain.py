"""Colour and texture of the regions of cells."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.masks import CellMasks
from cytomil.morphology.stacks import Masks, dilated, eroded

_RIM = 3  # pixels of cytoplasm around the nucleus
_MIN_REGION = 6  # pixels; a smaller region is replaced by the whole cell
_MIN_TEXTURE = 0.01  # optical density; smaller differences come from the camera and the file format
_QUANTILES = np.array([0.02, 0.05, 0.95, 0.98])
_COLOURS, _BANDS = 3, 3
_CHANNELS = _COLOURS * (1 + _BANDS)  # per pixel: its colours, then the bands of each scale in all colours
_ORDERED = [0, 1, 2, 7]  # channels whose quantiles are used: the colours, and the middle band in green

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]


def regions(masks: CellMasks) -> Masks:
    """Nucleus, cytoplasm, its rim around the nucleus, and the nucleus without its blurred edge: bool (N, 4, S, S)."""
    cytoplasm = masks.cell & ~masks.nucleus
    rim = dilated(masks.nucleus, _RIM) & cytoplasm
    found = np.stack([masks.nucleus, cytoplasm, rim, eroded(masks.nucleus)], axis=1)
    small = np.count_nonzero(found, axis=(2, 3)) < _MIN_REGION
    found[small] = masks.cell[np.nonzero(small)[0]]
    return found


def stains(found: Masks, layers: list[Images]) -> Floats:
    """Stain descriptors of the regions ``found`` of N cells, (N, R, S, S), none empty → float64 (N, R · 23).

    The difference between two successive layers is a band. Each region has:

    - the mean of each colour
    - the 5th percentile of each colour, then the 95th
    - the logarithms of the spread of each colour, and of each band in each colour
    - the logarithms of the 2nd and 98th percentile of the middle band in green, which all stains absorb

    Args:
        found: the regions.
        layers: the optical density of the cells, (N, S, S, 3), and three increasingly smoothed versions.
    """
    n, n_regions = found.shape[:2]
    place = (np.count_nonzero(found, axis=(2, 3))[..., None] - 1) * _QUANTILES
    below = place.astype(np.intp)
    around = np.concatenate([below, np.ceil(place).astype(np.intp)], axis=2)
    means, spreads = np.empty((2, n, n_regions, _CHANNELS))
    values = np.empty((n, n_regions, len(_ORDERED), 2 * len(_QUANTILES)))
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
    texture = spreads[:, :, _COLOURS:].reshape(n, n_regions, _BANDS, _COLOURS).swapaxes(2, 3)
    variations = [spreads[:, :, :_COLOURS], texture.reshape(n, n_regions, -1), extremes]
    colours = [means[:, :, :_COLOURS], tails.reshape(n, n_regions, -1)]
    return np.concatenate([*colours, np.log(np.concatenate(variations, axis=2) + _MIN_TEXTURE)], axis=2).reshape(n, -1)
