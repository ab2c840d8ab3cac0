"""All descriptors of cells. This module loads OpenCV, so `cytomil.features` imports it only when it describes cells."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.masks import find_masks, isolate
from cytomil.morphology.shape import shapes
from cytomil.morphology.stain import regions, stains
from cytomil.pixels import optical_density

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

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]


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
