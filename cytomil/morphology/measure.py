"""All that is measured of some cells at once. It loads OpenCV, so `descriptors` imports it only when cells are there."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cytomil.morphology.masks import find_masks, isolate
from cytomil.morphology.shape import shapes
from cytomil.morphology.stain import regions, stains
from cytomil.pixels import optical_density

DESCRIPTION = "one cell alone, 64 px, by OpenCV"
"""Names what `describe` does; any change of it must change the name, so that what others made is never taken for its own."""
SIDE = 64
"""Pixels a side that cells are described at."""
N_DESCRIPTORS = 17 + 4 * 23
"""Length of a cell's description: its shape, and the stain of four regions."""
_AT_ONCE = 64  # cells: more take more memory and are no faster


def describe(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Cells, uint8 (N, `SIDE`, `SIDE`, 3), each in the middle of its picture → float32 (N, `N_DESCRIPTORS`), finite.

    The cell is looked at alone (`isolate`). Sizes and grain as logarithms, colours as optical densities over the
    background's, so that all vary by tenths to ones. Turning or mirroring a cell changes nothing but rounding.
    """
    described = np.empty((len(pixels), N_DESCRIPTORS), np.float32)
    for start in range(0, len(pixels), _AT_ONCE):
        described[start : start + _AT_ONCE] = measure(pixels[start : start + _AT_ONCE])
    return described


_SCALES = (0.7, 1.4, 2.8)  # pixels: between them lie chromatin's grain, granules, lobes
_KERNEL_REACH = 3  # of the scale

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]


def measure(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Cells, uint8 (N ≥ 1, S ≥ 16, S, 3) → their shape, then their stain region by region, float64 (N, 109)."""
    seen = optical_density(pixels)
    density = isolate(seen, smoothed(seen, _SCALES[0]))
    layers = [density, *(smoothed(density, scale) for scale in _SCALES)]
    red, green = (np.ascontiguousarray(layers[1][..., colour]) for colour in range(2))
    masks = find_masks(red, green)
    return np.hstack([shapes(masks), stains(regions(masks), layers)])


def smoothed(images: Images, scale: float) -> Images:
    """Each image, (N, S, S, 3), by a Gaussian; beyond its border it is mirrored."""
    reach = int(_KERNEL_REACH * scale + 0.5)
    kernel = cv2.getGaussianKernel(2 * reach + 1, scale, cv2.CV_32F)
    found: Images = np.empty_like(images)
    for image, result in zip(images, found, strict=True):
        cv2.sepFilter2D(image, -1, kernel, kernel, dst=result, borderType=cv2.BORDER_REFLECT)
    return found
