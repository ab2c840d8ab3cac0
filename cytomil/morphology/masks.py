"""Masks of nucleus and cell."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.hulls import Spans, hulls
from cytomil.morphology.stacks import Masks, Parts, depths, filled, opened, parts

_BINS = 256
_SLIGHTLY_MORE = 1 + 1e-6
_MIN_CONTRAST = 1e-4  # optical density; smaller differences count as equal, because float32 has no bins between them


def thresholds(values: npt.NDArray[np.float32], among: Masks) -> npt.NDArray[np.float32]:
    """Otsu's threshold (1979) of the pixels ``among`` of each picture, both (N, S, S) → (N,).

    Values must not be negative. The threshold is the centre of the last light bin, of 256 bins between min and max. If
    all values are nearly equal, it is the max, so that no pixel is above it. It is 0 if there are no pixels.
    """
    counts = np.empty((len(values), _BINS), np.float64)
    ends = np.empty((len(values), 2), np.float64)
    for i, (picture, mask) in enumerate(zip(values, among.view(np.uint8), strict=True)):
        low, high, *_ = cv2.minMaxLoc(picture, mask)
        end = max(
            high * _SLIGHTLY_MORE, low + _MIN_CONTRAST
        )  # the range excludes its end, and the last bin must hold max
        counts[i] = cv2.calcHist([picture], [0], mask, [_BINS], [low, end]).ravel()
        ends[i] = low, high
    light = np.cumsum(counts, axis=1)
    summed = np.cumsum(counts * np.arange(_BINS), axis=1)
    # The difference of the two means, times the denominator in the next line.
    difference = summed[:, -1:] * light - summed * light[:, -1:]
    last = (difference**2 / np.maximum(light * (light[:, -1:] - light), 1)).argmax(axis=1)
    width = ends[:, 1] - ends[:, 0]
    found = np.where(width < _MIN_CONTRAST, ends[:, 1], ends[:, 0] + (last + 0.5) * width / _BINS)
    return found.astype(np.float32)


MAX_CYTOPLASM = 0.19
"""Max distance of a cell's pixels from the hull of its nucleus, as a fraction of the side. It excludes neighbours."""
_CENTRAL = 0.62  # of half the side; a nucleus whose centroid is farther out belongs to a neighbour
_MIN_NUCLEUS = 0.002  # of the picture's area; smaller parts are dirt
_MIN_OTHER = 0.005  # of the picture's area; the same for nuclei of neighbours
_FALLBACK_RADIUS = 0.4  # of half the side; radius of the disc that is used if no nucleus is found

Pictures = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Nuclei:
    """The central nucleus, its convex hull, and all other nuclei, bool (N, S, S). Only ``others`` may be empty.

    If there is no nucleus near the centre, ``own`` is a disc around it. The disc is cut out of the others.
    """

    own: Masks
    hull: Spans
    others: Masks


@dataclass(frozen=True)
class CellMasks:
    """Nucleus, its convex hull, and the whole cell including the nucleus: bool (N, S, S), none empty."""

    nucleus: Masks
    hull: Masks
    cell: Masks


def find_nuclei(red: Pictures) -> Nuclei:
    """Find nuclei in the smoothed optical density in red, (N, S ≥ 16, S).

    The blue to violet stain of nuclei absorbs red light. Otsu's threshold separates it from everything else.
    """
    dark, own = _dark_and_own(red)
    large = dark.area >= _MIN_OTHER * red.shape[1] ** 2
    return Nuclei(own, hulls(own), dark.keep(large) & ~own)


def find_masks(red: Pictures, green: Pictures) -> CellMasks:
    """Masks of the central cell, from the smoothed optical density in red and green, (N, S ≥ 16, S).

    The nucleus is that of `find_nuclei`. Around it, Otsu's threshold in green separates the cell from the background,
    because all stains absorb green light.
    """
    _, nucleus = _dark_and_own(red)
    hull = hulls(nucleus)
    stained = green > thresholds(green, ~nucleus)[:, None, None]
    stained &= hull.dilated(MAX_CYTOPLASM * red.shape[1]).masks
    cell = parts(opened(filled(stained | nucleus), steps=2) | nucleus)
    return CellMasks(nucleus, hull.masks, cell.keep(cell.touches(nucleus)))


def _dark_and_own(red: Pictures) -> tuple[Parts, Masks]:
    """All dark parts, and the mask of the large central ones with holes filled; a disc if there are none."""
    side = red.shape[1]
    radius = _distance_from_centre(side)
    among = np.broadcast_to(radius < 1, red.shape)
    dark = parts(opened(red > thresholds(red, among)[:, None, None]))
    offset = np.hypot(*(dark.centroids() - (side - 1) / 2).T)
    central = (dark.area >= _MIN_NUCLEUS * side**2) & (offset < _CENTRAL * side / 2)
    own = filled(dark.keep(central))
    own[~own.any(axis=(1, 2))] = radius < _FALLBACK_RADIUS
    return dark, own


def _distance_from_centre(side: int) -> npt.NDArray[np.float64]:
    """Distance of each pixel from the centre, (side, side), in units of half the side."""
    axis = (np.arange(side) - (side - 1) / 2) / (side / 2)
    return np.hypot(axis[:, None], axis)


_BACKGROUND = 0.1  # of the pixels; the lightest in green, because all stains absorb green
_MARGIN = 2 / 64  # of the side; leaves empty background around the edge of the cell

Images = npt.NDArray[np.float32]


def isolate(density: Images, smooth: Images) -> Images:
    """Optical density of the central cell above the background, 0 outside the cell's region, (N, S ≥ 16, S, 3).

    The background is the median of the lightest tenth of the pixels. The region ends at the usual width of a cytoplasm,
    and where another nucleus is closer. No threshold separates cytoplasm from background, because a threshold would find
    red cells instead of pale cytoplasm.

    Args:
        density: optical density, (N, S, S, 3).
        smooth: the same, smoothed.
    """
    red, green = (np.ascontiguousarray(smooth[..., i]) for i in range(2))
    own: Images = np.zeros_like(density)
    regions = _regions(red).view(np.uint8)
    for picture, background, mask, result in zip(density, _backgrounds(density, green), regions, own, strict=True):
        over = cv2.subtract(picture, background)
        cv2.copyTo(cv2.threshold(over, 0, 0, cv2.THRESH_TOZERO)[1], mask, dst=result)
    return own


def _backgrounds(density: Images, green: Images) -> npt.NDArray[np.float64]:
    """The median of the lightest pixels of each picture in each colour, followed by a 0 that OpenCV needs: (N, 4)."""
    values = green.reshape(len(green), -1)
    nth = int(_BACKGROUND * (values.shape[1] - 1))
    light = values <= np.partition(values, nth, axis=1)[:, nth, None]
    found = np.zeros((len(density), 4))
    for background, picture, at in zip(found, density.reshape(*values.shape, 3), light, strict=True):
        ordered = np.sort(picture.take(np.flatnonzero(at), axis=0).T, axis=1)
        n = ordered.shape[1]
        background[:3] = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    return found


def _regions(red: Images) -> Masks:
    nuclei = find_nuclei(red)
    near = nuclei.hull.dilated((MAX_CYTOPLASM + _MARGIN) * red.shape[1]).masks
    crowded = nuclei.others.any(axis=(1, 2))
    near[crowded] &= depths(~nuclei.own[crowded]) < depths(~nuclei.others[crowded])
    return near | nuclei.own
