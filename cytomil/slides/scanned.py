"""Which pixels of a slide were scanned, so that a gap changes nothing of what is found and cut out beside it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cytomil.slides.tiles import Floats, Mask

_OPAQUE = 128  # a pixel at the slide's very edge is averaged with what lies beyond it
_RIM_PX = 2  # around a gap, where resampling and JPEG mix it with the picture
_BACKGROUND_RANK = 95  # percentile: the background is the brightest part of a slide
_BRIGHT, _GREY_WITHIN = 200, 24  # of 255: an empty place on a slide is bright and nearly grey
_SATURATED = 248
_LEAST_BACKGROUND = 0.2  # of the pixels outside of a gap; less is no background to tell a gap from


def is_scanned(rgb: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8], diameter_px: float) -> Mask:
    """Whether each pixel of a tile, RGB (h, w, 3) with its alpha channel (h, w), was scanned; bool (h, w).

    Not scanned is what is transparent, and what a scanner or a converter filled up: areas of pure black, and areas of pure
    white where the slide's own background is darker than that, each at least ``diameter_px`` wide. In an overexposed slide
    the background itself is pure white, with shades just below it; such white counts as scanned.
    """
    transparent = alpha < _OPAQUE
    black = _filled((rgb == 0).all(2), diameter_px)
    white = _filled((rgb == 255).all(2) & ~transparent, diameter_px)
    if white.any() and not _is_background_darker(rgb, transparent | black | white):
        white[:] = False
    return ~(transparent | black | white)


def with_background(rgb: npt.NDArray[np.uint8], scanned: Mask) -> npt.NDArray[np.uint8]:
    """The tile (h, w, 3) with the slide's background where nothing was scanned (h, w)."""
    if scanned.all() or not scanned.any():
        return rgb
    filled = rgb.copy()
    filled[~scanned] = np.percentile(rgb[scanned], _BACKGROUND_RANK, axis=0).round().astype(np.uint8)
    return filled


def reaches_unscanned(centres: Floats, half_side: float, scanned: Mask) -> Mask:
    """Whether the square around each centre (n, 2), in px as (x, y), holds a pixel that was not scanned; bool (n,).

    The part of a square beyond ``scanned`` (h, w) is not looked at.
    """
    if scanned.all() or not half_side:
        return np.zeros(len(centres), bool)
    # Sums over all pixels above and left: any square's count is then four look-ups.
    sums = np.pad(np.cumsum(np.cumsum(~scanned, axis=0), axis=1), ((1, 0), (1, 0)))
    height, width = scanned.shape
    left, top = np.clip(np.floor(centres - half_side), 0, (width, height)).astype(int).T
    right, bottom = np.clip(np.ceil(centres + half_side), 0, (width, height)).astype(int).T
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] > 0


def _filled(pure: Mask, side: float) -> Mask:
    """The part of ``pure`` (h, w) that whole squares of this side cover, and a rim around it."""
    from scipy import ndimage as ndi

    size = max(2, round(side))
    if pure.sum() < size**2:
        return np.zeros_like(pure)
    inner = ndi.minimum_filter(pure.view(np.uint8), size, mode="nearest")
    if not inner.any():
        return np.zeros_like(pure)
    return ndi.maximum_filter(inner, size + 1 - size % 2 + 2 * _RIM_PX, mode="nearest").astype(bool)


def _is_background_darker(rgb: npt.NDArray[np.uint8], gap: Mask) -> bool:
    rest = rgb[~gap]
    if len(rest) == 0:
        return False
    darkest, brightest = rest.min(1).astype(int), rest.max(1).astype(int)
    background = (darkest >= _BRIGHT) & (brightest - darkest <= _GREY_WITHIN)
    n_saturated = int((darkest >= _SATURATED).sum())
    return bool(background.sum() >= _LEAST_BACKGROUND * len(rest) and 10 * n_saturated < background.sum())
