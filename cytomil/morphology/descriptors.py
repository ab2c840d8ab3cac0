"""A cell in numbers: how large, of what shape, how dark and how coarse nucleus and cytoplasm are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cytomil.morphology.isolate import isolate
from cytomil.morphology.masks import CellMasks, Mask, find_masks
from cytomil.optical_density import optical_density

DESCRIPTION = "one cell alone, 64 px"
"""Names what `describe` does; any change of it must change the name, so that what others made is never taken for its own."""
SIDE = 64
"""Pixels a side that cells are described at."""
_SCALES = (0.7, 1.4, 2.8)  # pixels: between them lie chromatin's grain, granules, lobes
_LEAST_GRAIN = 0.01  # optical density: less is the camera's and the file format's
_RIM = 3  # pixels of cytoplasm about the nucleus
_CORE = 1  # pixels of the nucleus left off, where its edge is blurred

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]


def describe(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Cells, uint8 (N, `SIDE`, `SIDE`, 3), each in the middle of its picture → float32 (N, `N_DESCRIPTORS`), finite.

    The cell is looked at alone (`isolate`). Sizes and grain as logarithms, colours as optical densities over the
    background's, so that all vary by tenths to ones. Turning or mirroring a cell changes nothing but rounding.
    """
    seen = optical_density(pixels)
    density = np.array([isolate(*pair) for pair in zip(seen, _smooth(seen, _SCALES[0]), strict=True)], np.float32)
    density = density.reshape(seen.shape)
    smooth = [_smooth(density, scale) for scale in _SCALES]
    bands = np.stack([density - smooth[0], smooth[0] - smooth[1], smooth[1] - smooth[2]], axis=-1)
    rows = [_describe_one(density[i], smooth[0][i], bands[i]) for i in range(len(pixels))]
    return np.array(rows, np.float32).reshape(len(pixels), N_DESCRIPTORS)


def _describe_one(density: Images, smooth: Images, bands: Images) -> Floats:
    masks = find_masks(smooth[..., 0], smooth[..., 1])
    return np.concatenate([_shape(masks), *(_stain(region, density, bands) for region in _regions(masks))])


def _smooth(density: Images, scale: float) -> Images:
    from scipy import ndimage as ndi

    smoothed: Images = ndi.gaussian_filter(density, (0, scale, scale, 0), truncate=3)
    return smoothed


def _regions(masks: CellMasks) -> list[Mask]:
    """Nucleus, cytoplasm, its rim about the nucleus, the nucleus' core; the whole cell for one that is hardly there."""
    from scipy import ndimage as ndi

    cytoplasm = masks.cell & ~masks.nucleus
    rim = ndi.binary_dilation(masks.nucleus, iterations=_RIM) & cytoplasm
    core = ndi.binary_erosion(masks.nucleus, iterations=_CORE)
    return [region if region.sum() > 5 else masks.cell for region in (masks.nucleus, cytoplasm, rim, core)]


def _shape(masks: CellMasks) -> Floats:
    from scipy import ndimage as ndi

    nucleus, hull, cell = masks.nucleus, masks.hull, masks.cell
    area, hull_area, cell_area = (float(mask.sum()) for mask in (nucleus, hull, cell))
    depth = ndi.distance_transform_edt(nucleus)[nucleus]
    depth_spread = depth.std() / depth.mean()
    labels, n_lobes = ndi.label(nucleus)
    largest = np.bincount(labels.ravel())[1:].max()
    hull_axes, cell_axes = _axes(hull), _axes(cell)
    apart = np.hypot(*(_middle(hull) - _middle(cell)))
    return np.array(
        [
            *np.log([area, hull_area, cell_area]),
            area / cell_area,
            area / hull_area,
            _eccentricity(hull_axes),
            _eccentricity(cell_axes),
            np.log(n_lobes),
            largest / area,
            np.log(_edge(nucleus) ** 2 / area),
            np.log(_edge(cell) ** 2 / cell_area),
            *np.log([depth.max(), depth.mean()]),
            depth_spread,
            *np.log(hull_axes),
            apart / np.sqrt(cell_area),
        ]
    )


def _stain(region: Mask, density: Images, bands: Images) -> Floats:
    """Mean, spread, 5th and 95th percentile of each colour; each band's spread a colour; the middle band's extremes."""
    colours, grain = density[region].astype(np.float64), bands[region].astype(np.float64)
    tails = np.percentile(colours, [5, 95], axis=0)
    extremes = np.abs(np.percentile(grain[:, 1, 1], [2, 98]))  # in green, which all stains darken
    rough = np.log(np.concatenate([colours.std(0), grain.std(0).ravel(), extremes]) + _LEAST_GRAIN)
    return np.concatenate([colours.mean(0), tails.ravel(), rough])


def _edge(mask: Mask) -> float:
    """Number of the mask's pixels at its edge."""
    from scipy import ndimage as ndi

    return float((mask & ~ndi.binary_erosion(mask)).sum())


def _middle(mask: Mask) -> Floats:
    return np.argwhere(mask).mean(axis=0)


def _axes(mask: Mask) -> Floats:
    """Major and minor axis of the ellipse with the mask's second moments, in pixels."""
    places = np.argwhere(mask).astype(np.float64)
    # A pixel is a square, not a point: a twelfth keeps a line of pixels from being no ellipse at all.
    spread = np.cov(places.T, bias=True).reshape(2, 2) + np.eye(2) / 12 if len(places) > 1 else np.eye(2) / 12
    return 4 * np.sqrt(np.linalg.eigvalsh(spread)[::-1])


def _eccentricity(axes: Floats) -> float:
    return float(np.sqrt(max(0.0, 1 - (axes[1] / axes[0]) ** 2)))


_N_SHAPE, _N_STAIN, _N_REGIONS = 17, 23, 4
N_DESCRIPTORS = _N_SHAPE + _N_REGIONS * _N_STAIN
"""Length of a cell's description."""
