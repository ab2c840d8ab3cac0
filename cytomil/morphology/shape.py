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
    """Shape descriptors of N cells, float64 (N, 17).

    - the logarithms of the areas of nucleus, hull and cell
    - the area of the nucleus as a fraction of the cell's and of the hull's
    - the eccentricity of hull and cell
    - the logarithm of the number of lobes, and the fraction of the nucleus that the largest one is
    - the logarithm of edge² / area of nucleus and cell
    - the logarithms of max and mean depth of the nucleus, and the spread of the depth over its mean
    - the logarithms of the hull's axes
    - the distance between the centroids of hull and cell, over the square root of the cell's area
    """
    nucleus, hull, cell = masks.nucleus, masks.hull, masks.cell
    hull_area, hull_centroid, hull_axes = _ellipses(hull)
    cell_area, cell_centroid, cell_axes = _ellipses(cell)
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
            np.hypot(*(hull_centroid - cell_centroid).T) / np.sqrt(cell_area),
        ]
    )


def _edge(masks: Masks) -> Floats:
    """Number of edge pixels of each mask."""
    return np.count_nonzero(masks & ~eroded(masks), axis=(1, 2)).astype(np.float64)


def _ellipses(masks: Masks) -> tuple[Floats, Floats, Floats]:
    """Areas (N,), centroids (N, 2), and major and minor axes (N, 2) of the ellipses with the masks' moments, in pixels."""
    moments = [cv2.moments(mask, binaryImage=True) for mask in masks.view(np.uint8)]
    area, *rest = np.array([[one[name] for name in _MOMENTS] for one in moments]).T
    across, down, wide, high, mixed = np.array(rest) / area
    mean, difference = (wide + high) / 2, np.hypot((wide - high) / 2, mixed)
    # The variance of a pixel, a square of side 1, is 1/12 per axis. Without it, a line of pixels would have no width.
    spread = np.maximum(np.column_stack([mean + difference, mean - difference]), 0) + 1 / 12
    return area, np.column_stack([down, across]), 4 * np.sqrt(spread)


def _eccentricity(axes: Floats) -> Floats:
    eccentricity: Floats = np.sqrt(np.maximum(0, 1 - (axes[:, 1] / axes[:, 0]) ** 2))
    return eccentricity
