"""One cell alone: the background's own tint taken off, neighbours and what lies far off left out."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.masks import REACH, find_nuclei
from cytomil.morphology.stacks import Masks, depths

_BACKGROUND = 0.1  # of the pixels, the lightest in green, which all stains darken
_MARGIN = 2 / 64  # of the side: so that the cell's edge stands before empty background

Images = npt.NDArray[np.float32]


def isolate(density: Images, smooth: Images) -> Images:
    """Optical density of the cell in the middle over the background's, 0 away from it, (N, S ≥ 16, S, 3).

    ``smooth``: the same pictures', smoothed. The background is what the lightest tenth of the pixels show. Away is what
    lies beyond a cytoplasm's usual width from the nucleus, or nearer to another nucleus. It takes no threshold to part
    cytoplasm from background: where that is pale, a threshold finds red cells in its place.
    """
    red, green = (np.ascontiguousarray(smooth[..., i]) for i in range(2))
    own: Images = np.zeros_like(density)
    about = _about(red).view(np.uint8)
    for picture, background, mask, result in zip(density, _backgrounds(density, green), about, own, strict=True):
        over = cv2.subtract(picture, background)
        cv2.copyTo(cv2.threshold(over, 0, 0, cv2.THRESH_TOZERO)[1], mask, dst=result)
    return own


def _backgrounds(density: Images, green: Images) -> npt.NDArray[np.float64]:
    """Of each picture the median of its lightest pixels in each colour, and a 0, as OpenCV wants it: (N, 4)."""
    values = green.reshape(len(green), -1)
    nth = int(_BACKGROUND * (values.shape[1] - 1))
    light = values <= np.partition(values, nth, axis=1)[:, nth, None]
    found = np.zeros((len(density), 4))
    for background, picture, at in zip(found, density.reshape(*values.shape, 3), light, strict=True):
        ordered = np.sort(picture.take(np.flatnonzero(at), axis=0).T, axis=1)
        n = ordered.shape[1]
        background[:3] = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    return found


def _about(red: Images) -> Masks:
    nuclei = find_nuclei(red)
    near = nuclei.hull.near((REACH + _MARGIN) * red.shape[1]).masks
    crowded = nuclei.others.any(axis=(1, 2))
    near[crowded] &= depths(~nuclei.own[crowded]) < depths(~nuclei.others[crowded])
    return near | nuclei.own
