"""Nucleus and cell in pictures of one cell each, by their own darkness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytomil.morphology.hulls import Spans, hulls
from cytomil.morphology.otsu import thresholds
from cytomil.morphology.stacks import Masks, Parts, filled, opened, parts

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
