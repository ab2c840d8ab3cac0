"""Sizes and shapes of nucleus and cell."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.masks import CellMasks
from cytomil.morphology.stacks import Masks, depths, eroded, parts

_MOMENTS = ("m00", "m10", "m01", "mu20", "mu02", "mu11")

Floats = npt.NDArray[np.float64]


def shapes(masks: CellMasks) -> Floats:
    """N cells → float64 (N, 17).

    Of nucleus, its hull and cell the logarithms of the areas; the nucleus' share of the cell and of its hull; the hull's
    and the cell's eccentricity; the logarithm of the number of lobes, and the largest one's share; the logarithm of
    edge² / area of nucleus and of cell; of the nucleus' depth the logarithms of maximum and mean, and spread over mean;
    the logarithms of the hull's axes; how far hull and cell lie apart, in roots of the cell's area.
    """
    nucleus, hull, cell = masks.nucleus, masks.hull, masks.cell
    hull_area, hull_middle, hull_axes = _ellipses(hull)
    cell_area, cell_middle, cell_axes = _ellipses(cell)
    pixels = np.count_nonzero(nucleus, axis=(1, 2))
    area = pixels.astype(np.float64)
    begin = np.cumsum(pixels) - pixels
    depth = depths(nucleus)[nucleus].astype(np.float64)
    deepest, mean_depth = np.maximum.reduceat(depth, begin), np.add.reduceat(depth, begin) / area
    depth_spread = np.sqrt(np.add.reduceat((depth - np.repeat(mean_depth, pixels)) ** 2, begin) / area)
    lobes = parts(nucleus)
    largest = np.zeros(len(nucleus))
    np.maximum.at(largest, lobes.picture, lobes.area)
    return np.column_stack(
        [
            *np.log([area, hull_area, cell_area]),
            area / cell_area,
            area / hull_area,
            _eccentricity(hull_axes),
            _eccentricity(cell_axes),
            np.log(np.bincount(lobes.picture, minlength=len(nucleus))),
            largest / area,
            np.log(_edge(nucleus) ** 2 / area),
            np.log(_edge(cell) ** 2 / cell_area),
            *np.log([deepest, mean_depth]),
            depth_spread / mean_depth,
            np.log(hull_axes),
            np.hypot(*(hull_middle - cell_middle).T) / np.sqrt(cell_area),
        ]
    )


def _edge(masks: Masks) -> Floats:
    """Number of each mask's pixels at its edge."""
    return np.count_nonzero(masks & ~eroded(masks), axis=(1, 2)).astype(np.float64)


def _ellipses(masks: Masks) -> tuple[Floats, Floats, Floats]:
    """Areas (N,), middles (N, 2), and major and minor axes (N, 2) of the ellipses with the masks' moments, in pixels."""
    moments = [cv2.moments(mask, binaryImage=True) for mask in masks.view(np.uint8)]
    area, *rest = np.array([[one[name] for name in _MOMENTS] for one in moments]).T
    across, down, wide, high, mixed = np.array(rest) / area
    half, swing = (wide + high) / 2, np.hypot((wide - high) / 2, mixed)
    # A pixel is a square, not a point: a twelfth keeps a line of pixels from being no ellipse at all.
    spread = np.maximum(np.column_stack([half + swing, half - swing]), 0) + 1 / 12
    return area, np.column_stack([down, across]), 4 * np.sqrt(spread)


def _eccentricity(axes: Floats) -> Floats:
    eccentricity: Floats = np.sqrt(np.maximum(0, 1 - (axes[:, 1] / axes[:, 0]) ** 2))
    return eccentricity
