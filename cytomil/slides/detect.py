"""Find the cells of one tile: local background, local threshold, and a distance transform that is split at waists.

Every step uses only a bounded neighbourhood of a pixel (`margin_px`). A tile with that margin therefore gives the same
cells as the whole slide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cytomil.pixels import optical_density

Levels = npt.NDArray[np.int16]

_STEPS_BETWEEN_CHECKS = 4  # comparing two images takes as long as a step


def reconstruct(seed: Levels, mask: Levels) -> Levels:
    """Reconstruct ``mask`` (h, w) from ``seed`` (h, w) by eight-connected dilation; ``seed`` ≤ ``mask`` everywhere.

    The result equals that of `skimage.morphology.reconstruction` (Vincent 1993), which first sorts all pixels. Here every
    step dilates the whole image by one pixel, until nothing changes. This is much faster if values spread over short
    distances, as within cells: it takes 20 to 50 steps, while sorting takes as long as about 2,000.
    """
    narrow = np.uint8 if mask.size and mask.min() >= 0 and mask.max() <= np.iinfo(np.uint8).max else mask.dtype
    limit = mask.astype(narrow)
    grown = seed.astype(narrow)
    while True:
        before = grown
        for _ in range(_STEPS_BETWEEN_CHECKS):
            grown = _dilated(grown)
            np.minimum(grown, limit, out=grown)
        if np.array_equal(before, grown):
            return grown.astype(mask.dtype)


def _dilated(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The maximum of each pixel and its eight neighbours."""
    across = image.copy()
    np.maximum(across[:, 1:], image[:, :-1], out=across[:, 1:])
    np.maximum(across[:, :-1], image[:, 1:], out=across[:, :-1])
    both = across.copy()
    np.maximum(both[1:], across[:-1], out=both[1:])
    np.maximum(both[:-1], across[1:], out=both[:-1])
    return both


FloatImage = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

BLOCK_PX = 8  # the background is estimated on blocks with this side, in detection pixels
_BACKGROUND_WINDOW = 2.0  # diameters; a closing removes cells, and keeps changes of the background wider than this
_BACKGROUND_RANK = 95  # percentile instead of the extreme, so that a single reflection or dust grain does not count
_MIN_CONTRAST = 0.05  # optical density; a fainter cell cannot be distinguished from noise
_CONTRAST_FRACTION = 0.45  # of the foreground's local mean contrast; near the half-height contour of an edge
_HOLE_AREA = 0.25  # of the expected cell's area; fills the pale centre of a red cell, not the gap between cells
_WAIST = 0.12  # a waist narrower than exp(-0.12) = 89 % of the smaller cell's radius separates two cells
_LOG_STEPS = 40  # grey levels per unit of log radius: small integers make the reconstruction faster
_NUCLEUS_FACTOR = 1.15  # a nucleus in a sheet of cytoplasm is darker than its surroundings by this factor
_DIAMETER_RANGE = (0.25, 3.0)  # of the expected diameter


def margin_px(diameter_px: float) -> int:
    """Radius of the neighbourhood that the detection uses, in px, a multiple of the block."""
    return -(-int(4 * diameter_px) // BLOCK_PX) * BLOCK_PX


def has_foreground(rgb: npt.NDArray[np.uint8]) -> bool:
    """Whether a low-power tile (h, w, 3) contains anything darker than its background."""
    density = optical_density(rgb)
    return bool((density.max((0, 1)) - density.min((0, 1))).max() > _MIN_CONTRAST / 3)


def detect(rgb: npt.NDArray[np.uint8], diameter_px: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The cells of a tile (h, w, 3): centres (N, 2) as (x, y) and radii (N,), in px of the tile.

    The radius of a cell is that of the disc with equal area. Cells from 0.25 to 3 times ``diameter_px`` are found. In
    wider foreground (tissue, a sheet of cytoplasm), nuclei are found instead.
    """
    from scipy import ndimage as ndi

    contrast = _contrast(rgb, diameter_px)
    foreground = _foreground(contrast, diameter_px)
    if not foreground.any():
        return np.empty((0, 2)), np.empty(0)
    distance = ndi.distance_transform_edt(foreground).astype(np.float32)
    labels, count = _split(foreground, distance, diameter_px)
    inside = np.flatnonzero(labels)
    owner = labels.ravel()[inside] - 1
    area = np.bincount(owner, minlength=count)
    y, x = np.divmod(inside, labels.shape[1])
    sums = np.column_stack([np.bincount(owner, axis, count) for axis in (x, y)])
    # Pixel i covers i to i + 1, so its centre is i + 0.5.
    centre = sums / area[:, None] + 0.5
    radius = np.sqrt(area / np.pi)
    # Edges of dirt and scratches are long and thin: their inscribed circle is much smaller than their area.
    inscribed = np.zeros(count, np.float32)
    np.maximum.at(inscribed, owner, distance.ravel()[inside])
    low, high = (f * diameter_px / 2 for f in _DIAMETER_RANGE)
    keep = (radius >= low) & (radius <= high) & (inscribed >= low / 2)
    return centre[keep], radius[keep]


def _contrast(rgb: npt.NDArray[np.uint8], diameter_px: float) -> FloatImage:
    """Optical density above the local background, as the Euclidean norm over R, G and B, so that any stain counts."""
    from scipy import ndimage as ndi

    height, width = rgb.shape[:2]
    squared = np.zeros((height, width), np.float32)
    window = 2 * max(1, round(_BACKGROUND_WINDOW * diameter_px / BLOCK_PX / 2)) + 1
    padding = ((0, -height % BLOCK_PX), (0, -width % BLOCK_PX))
    for channel in range(3):
        density = optical_density(rgb[..., channel])
        blocks = np.pad(density, padding, mode="edge")
        blocks = blocks.reshape(blocks.shape[0] // BLOCK_PX, BLOCK_PX, -1, BLOCK_PX).mean((1, 3))
        blocks = ndi.gaussian_filter(blocks, 0.6, mode="nearest")
        blocks = ndi.percentile_filter(blocks, 100 - _BACKGROUND_RANK, size=window, mode="nearest")
        blocks = ndi.percentile_filter(blocks, _BACKGROUND_RANK, size=window, mode="nearest")
        background = ndi.zoom(blocks, BLOCK_PX, order=1, grid_mode=True, mode="nearest")[:height, :width]
        squared += np.square(np.maximum(density - background, 0))
    return ndi.gaussian_filter(np.sqrt(squared), 0.02 * diameter_px)


def _foreground(contrast: FloatImage, diameter_px: float) -> Mask:
    from scipy import ndimage as ndi
    from skimage.morphology import remove_small_holes

    sigma = diameter_px / 2
    stained = contrast > _MIN_CONTRAST
    if not stained.any():
        return stained
    weight = ndi.gaussian_filter(stained.astype(np.float32), sigma, truncate=2)
    local = ndi.gaussian_filter(contrast * stained, sigma, truncate=2) / np.maximum(weight, 1e-3)
    solid = contrast > np.maximum(_MIN_CONTRAST, _CONTRAST_FRACTION * local)
    solid = remove_small_holes(solid, max_size=int(_HOLE_AREA * np.pi * diameter_px**2 / 4), connectivity=1)
    max_radius = _DIAMETER_RANGE[1] * diameter_px / 2
    if _may_contain_disc(solid, max_radius):
        deep = ndi.distance_transform_edt(solid) > max_radius
        if deep.any():
            sheet = ndi.distance_transform_edt(~deep) <= max_radius
            solid &= ~sheet | (contrast > _NUCLEUS_FACTOR * local)
    return ndi.binary_opening(solid)


def _may_contain_disc(mask: Mask, radius: float) -> bool:
    """False only if no disc of this radius (px) fits into ``mask``. A hundred times faster than a distance transform.

    A disc at any position covers a square of whole blocks.
    """
    from scipy import ndimage as ndi

    blocks_per_side = int(radius * np.sqrt(2) / BLOCK_PX) - 1
    height, width = (n // BLOCK_PX * BLOCK_PX for n in mask.shape)
    if blocks_per_side < 1 or min(height, width) == 0:
        return True
    blocks = mask[:height, :width].reshape(height // BLOCK_PX, BLOCK_PX, -1, BLOCK_PX).all((1, 3))
    return bool(ndi.minimum_filter(blocks.view(np.uint8), blocks_per_side, mode="nearest").any())


def _split(foreground: Mask, distance: FloatImage, diameter_px: float) -> tuple[npt.NDArray[np.int32], int]:
    """Label the cells by a watershed from the h-maxima of the log distance, which makes waists relative to cell size."""
    from scipy import ndimage as ndi
    from skimage.segmentation import watershed

    smooth = ndi.gaussian_filter(distance, 0.03 * diameter_px) * foreground
    level = np.round(_LOG_STEPS * np.log(np.maximum(smooth, 0.5) / 0.5)).astype(np.int16)
    drop = round(_WAIST * _LOG_STEPS)
    peaks = level - reconstruct(np.maximum(level - drop, 0), level) >= drop
    markers, count = ndi.label(peaks & foreground, np.ones((3, 3)))
    return watershed(-level, markers, mask=foreground), count
