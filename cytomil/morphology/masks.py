"""Nucleus and cell in the picture of one cell, by their own darkness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

REACH = 0.19
"""Of the side: how far from its nucleus' hull a cell may reach, so that a neighbour stays out."""
_CENTRAL = 0.62  # of half the side: a nucleus whose middle lies farther out belongs to a neighbour
_LEAST_NUCLEUS = 0.002  # of the picture's area; less is a grain of dirt
_LEAST_OTHER = 0.005  # the same of what is held for a neighbour's nucleus
_STAND_IN = 0.4  # of half the side: the disc taken where no nucleus is found


@dataclass(frozen=True)
class Nuclei:
    """The nucleus in the middle, its convex hull, and all other nuclei, bool (S, S) each; only ``others`` may be empty.

    Where no nucleus stands out near the centre, ``own`` is a disc about it.
    """

    own: Mask
    hull: Mask
    others: Mask


@dataclass(frozen=True)
class CellMasks:
    """Nucleus, its convex hull, the whole cell with the nucleus: bool (S, S), none empty."""

    nucleus: Mask
    hull: Mask
    cell: Mask


def find_nuclei(red: npt.NDArray[np.floating]) -> Nuclei:
    """Nuclei, from optical density in red light, (S ≥ 16, S), smoothed.

    Blue to violet stain, the nucleus', is what red light shows: Otsu's threshold (1979) parts it from everything else.
    """
    from scipy import ndimage as ndi
    from skimage.morphology import convex_hull_image

    side = len(red)
    out = _distance_from_centre(side)
    dark = ndi.binary_opening(red > _otsu(red[out < 1]))
    own = _central_parts(dark, side)
    if own is None:
        own = out < _STAND_IN
    others = _large_parts(ndi.binary_opening(dark & ~own), _LEAST_OTHER * side**2)
    return Nuclei(own, convex_hull_image(own) | own, others)


def find_masks(red: npt.NDArray[np.floating], green: npt.NDArray[np.floating]) -> CellMasks:
    """Masks of the cell in the middle, from its optical density in red and in green light, (S ≥ 16, S) each, smoothed.

    The nucleus as `find_nuclei` has it; around it, Otsu's threshold in green, where all stains show, parts cell from
    background.
    """
    from scipy import ndimage as ndi

    nuclei = find_nuclei(red)
    nucleus = nuclei.own
    near = ndi.distance_transform_edt(~nuclei.hull) < REACH * len(red)
    stained = (green > _otsu(green[~nucleus])) & near
    cell = ndi.binary_opening(ndi.binary_fill_holes(stained | nucleus), iterations=2) | nucleus
    labels, _ = ndi.label(cell)
    return CellMasks(nucleus, nuclei.hull, np.isin(labels, np.unique(labels[nucleus])))


def _central_parts(dark: Mask, side: int) -> Mask | None:
    """The parts of ``dark`` that are large enough and lie about the centre, holes filled; None where there is none."""
    from scipy import ndimage as ndi

    labels, n = ndi.label(dark)
    if n == 0:
        return None
    numbers = np.arange(1, n + 1)
    areas = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    middles = np.array(ndi.center_of_mass(dark, labels, numbers)) - (side - 1) / 2
    kept = numbers[(areas >= _LEAST_NUCLEUS * side**2) & (np.hypot(*middles.T) < _CENTRAL * side / 2)]
    return ndi.binary_fill_holes(np.isin(labels, kept)) if len(kept) else None


def _large_parts(mask: Mask, least: float) -> Mask:
    from scipy import ndimage as ndi

    labels, _ = ndi.label(mask)
    large = np.bincount(labels.ravel()) >= least
    large[0] = False
    return large[labels]


def _distance_from_centre(side: int) -> npt.NDArray[np.float64]:
    """Distance of each pixel from the centre, 1 at the middle of an edge."""
    axis = (np.arange(side) - (side - 1) / 2) / (side / 2)
    return np.hypot(axis[:, None], axis)


def _otsu(values: npt.NDArray[np.floating]) -> float:
    from skimage.filters import threshold_otsu

    if not values.size:
        return 0.0
    try:
        return float(threshold_otsu(values))
    except ValueError:  # all but equal: the values differ by so little that no histogram has bins between them
        return float(values.max())
