"""All descriptors of cells: size, shape, colour and texture of nucleus and cytoplasm.

This module loads OpenCV, so `cytomil.features` imports it only when it describes cells.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.masks import CellMasks, Masks, depths, dilated, eroded, find_masks, isolate, parts
from cytomil.pixels import optical_density

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


_RIM = 3  # pixels of cytoplasm around the nucleus
_MIN_REGION = 6  # pixels; a smaller region is replaced by the whole cell
_MIN_TEXTURE = 0.01  # optical density; smaller differences come from the camera and the file format
_QUANTILES = np.array([0.02, 0.05, 0.95, 0.98])
_COLOURS, _BANDS = 3, 3
_CHANNELS = _COLOURS * (1 + _BANDS)  # per pixel: its colours, then the bands of each scale in all colours
_ORDERED = [0, 1, 2, 7]  # channels whose quantiles are used: the colours, and the middle band in green

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


DESCRIPTION = "one cell alone, 64 px, by OpenCV"
"""Identifies the algorithm of `describe` in caches. Any change of the algorithm must change it."""
SIDE = 64
"""Side of the pictures in which cells are described, in pixels."""
N_DESCRIPTORS = 17 + 4 * 23
"""Number of descriptors: shape, and the stain of four regions."""
_BATCH = 64  # cells; larger batches take more memory and are no faster


def describe(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Describe cells, uint8 (N, `SIDE`, `SIDE`, 3), each centred in its picture → float32 (N, `N_DESCRIPTORS`), finite.

    Each cell is isolated first (`isolate`). Sizes and texture are logarithms, and colours are optical densities above the
    background, so that all vary by 0.1 to 1. Rotating or mirroring a cell changes only rounding.
    """
    described = np.empty((len(pixels), N_DESCRIPTORS), np.float32)
    for start in range(0, len(pixels), _BATCH):
        described[start : start + _BATCH] = measure(pixels[start : start + _BATCH])
    return described


_SCALES = (0.7, 1.4, 2.8)  # pixels; the bands between them show the texture of chromatin, granules and lobes
_KERNEL_RADIUS = 3  # of the scale


def measure(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Cells, uint8 (N ≥ 1, S ≥ 16, S, 3) → their shape, then the stain of each region, float64 (N, 109)."""
    whole = optical_density(pixels)
    density = isolate(whole, smoothed(whole, _SCALES[0]))
    layers = [density, *(smoothed(density, scale) for scale in _SCALES)]
    red, green = (np.ascontiguousarray(layers[1][..., colour]) for colour in range(2))
    masks = find_masks(red, green)
    return np.hstack([shapes(masks), stains(regions(masks), layers)])


def smoothed(images: Images, scale: float) -> Images:
    """Smooth each image (N, S, S, 3) with a Gaussian. Images are mirrored at their border."""
    radius = int(_KERNEL_RADIUS * scale + 0.5)
    kernel = cv2.getGaussianKernel(2 * radius + 1, scale, cv2.CV_32F)
    found: Images = np.empty_like(images)
    for image, result in zip(images, found, strict=True):
        cv2.sepFilter2D(image, -1, kernel, kernel, dst=result, borderType=cv2.BORDER_REFLECT)
    return found
