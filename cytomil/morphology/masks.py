"""Cell, nucleus and cytoplasm as masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.hulls import Spans, hulls
from cytomil.morphology.stacks import Masks, Parts, depths, filled, opened, parts

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


REACH = 0.19
"""Of the side: how far from its nucleus' hull a cell may reach, so that a neighbour stays out."""
_CENTRAL = 0.62  # of half the side: a nucleus whose middle lies farther out belongs to a neighbour
_LEAST_NUCLEUS = 0.002  # of the picture's area; less is a grain of dirt
_LEAST_OTHER = 0.005  # the same of what is held for a neighbour's nucleus
_STAND_IN = 0.4  # of half the side: the disc taken where no nucleus is found

Pictures = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Nuclei:
    """The nucleus in the middle, its convex hull, and all other nuclei, bool (N, S, S); only ``others`` may be empty.

    Where no nucleus stands out near the centre, ``own`` is a disc about it. Others that reach into the disc end at it.
    """

    own: Masks
    hull: Spans
    others: Masks


@dataclass(frozen=True)
class CellMasks:
    """Nucleus, its convex hull, the whole cell with the nucleus: bool (N, S, S), none empty."""

    nucleus: Masks
    hull: Masks
    cell: Masks


def find_nuclei(red: Pictures) -> Nuclei:
    """Nuclei, from optical density in red light, (N, S ≥ 16, S), smoothed.

    Blue to violet stain, the nucleus', is what red light shows: Otsu's threshold (1979) parts it from everything else.
    """
    dark, own = _dark_and_own(red)
    large = dark.area >= _LEAST_OTHER * red.shape[1] ** 2
    return Nuclei(own, hulls(own), dark.keep(large) & ~own)


def find_masks(red: Pictures, green: Pictures) -> CellMasks:
    """Masks of the cell in the middle, from its optical density in red and in green light, (N, S ≥ 16, S), smoothed.

    The nucleus as `find_nuclei` has it; around it, Otsu's threshold in green, where all stains show, parts cell from
    background.
    """
    _, nucleus = _dark_and_own(red)
    hull = hulls(nucleus)
    stained = green > thresholds(green, ~nucleus)[:, None, None]
    stained &= hull.near(REACH * red.shape[1]).masks
    cell = parts(opened(filled(stained | nucleus), steps=2) | nucleus)
    return CellMasks(nucleus, hull.masks, cell.keep(cell.among(nucleus)))


def _dark_and_own(red: Pictures) -> tuple[Parts, Masks]:
    """All that is dark, and of it what is large enough and lies about the centre, holes filled, or a disc."""
    side = red.shape[1]
    out = _distance_from_centre(side)
    among = np.broadcast_to(out < 1, red.shape)
    dark = parts(opened(red > thresholds(red, among)[:, None, None]))
    off = np.hypot(*(dark.middles() - (side - 1) / 2).T)
    central = (dark.area >= _LEAST_NUCLEUS * side**2) & (off < _CENTRAL * side / 2)
    own = filled(dark.keep(central))
    own[~own.any(axis=(1, 2))] = out < _STAND_IN
    return dark, own


def _distance_from_centre(side: int) -> npt.NDArray[np.float64]:
    """Distance of each pixel from the centre, 1 at the middle of an edge."""
    axis = (np.arange(side) - (side - 1) / 2) / (side / 2)
    return np.hypot(axis[:, None], axis)


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
