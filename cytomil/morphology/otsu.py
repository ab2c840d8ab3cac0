"""Otsu's threshold (1979) in many pictures, each by itself."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.stacks import Masks

_BINS = 256
_A_LITTLE_MORE = 1 + 1e-6
_LEAST_CONTRAST = 1e-4  # optical density: values that differ by less all but agree; float32 has no bins between them


def thresholds(values: npt.NDArray[np.float32], among: Masks) -> npt.NDArray[np.float32]:
    """The value in each picture that best parts the dark from the light of its pixels ``among``, both (N, S, S).

    Values are not negative. Of 256 bins between least and greatest it is the middle of the last light one. It is the
    greatest value where all but agree, so that nothing lies above it, and 0 where there are no pixels.
    """
    counts = np.empty((len(values), _BINS), np.float64)
    ends = np.empty((len(values), 2), np.float64)
    for i, (picture, mask) in enumerate(zip(values, among.view(np.uint8), strict=True)):
        least, greatest, *_ = cv2.minMaxLoc(picture, mask)
        beyond = max(greatest * _A_LITTLE_MORE, least + _LEAST_CONTRAST)  # the last bin has the greatest value in it
        counts[i] = cv2.calcHist([picture], [0], mask, [_BINS], [least, beyond]).ravel()
        ends[i] = least, greatest
    light = np.cumsum(counts, axis=1)
    summed = np.cumsum(counts * np.arange(_BINS), axis=1)
    apart = summed[:, -1:] * light - summed * light[:, -1:]  # the two means' difference, times what stands below
    last = (apart**2 / np.maximum(light * (light[:, -1:] - light), 1)).argmax(axis=1)
    width = ends[:, 1] - ends[:, 0]
    found = np.where(width < _LEAST_CONTRAST, ends[:, 1], ends[:, 0] + (last + 0.5) * width / _BINS)
    return found.astype(np.float32)
