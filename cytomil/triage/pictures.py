"""What a person sees of a whole slide: which cells were found, which are marked, where the scores are high."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cytomil.slides import Cells, Slide, qc_thumbnail

REPORT_PX = 480  # with 24 cells a slide, 500 slides stay under 60 MB in one file
FILE_PX = 1200
_HEATMAP_BLOCK_PX = 8
_HIGHEST_SCORE = 30.0


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def png(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def marked_thumbnail(slide: Slide, cells: Cells, top: Sequence[int]) -> Image.Image:
    """The slide with only its top cells ringed and numbered; ``top`` are their indices, the highest first."""
    chosen = cells[list(top)]
    return qc_thumbnail(slide, chosen, REPORT_PX, range(len(top)))


def heatmap(slide: Slide, centres: np.ndarray, scores: np.ndarray) -> Image.Image:
    """The slide under a veil of colour where scores are above 1, the average: yellow, then red from 30 times on.

    ``centres`` (N, 2) in level-0 px, ``scores`` (N,). Every patch shows its highest cell, since the cells that matter are
    rare: a mean over their neighbours would hide them.
    """
    picture = Image.fromarray(slide.thumbnail(FILE_PX))
    columns, rows = (-(-side // _HEATMAP_BLOCK_PX) for side in picture.size)
    scale = picture.width / slide.dimensions[0] / _HEATMAP_BLOCK_PX
    at = np.clip((centres * scale).astype(int), 0, (columns - 1, rows - 1))
    heat = np.zeros((rows, columns))
    np.maximum.at(heat, (at[:, 1], at[:, 0]), np.clip(np.log(np.maximum(scores, 1)) / np.log(_HIGHEST_SCORE), 0, 1))
    layer = Image.fromarray((heat * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    strength = np.asarray(layer, np.float64)[..., None] / 255
    colour = np.concatenate([np.full_like(strength, 230), 200 * (1 - strength), np.zeros_like(strength)], axis=2)
    veil = 0.75 * np.sqrt(strength)
    return Image.fromarray(((1 - veil) * np.asarray(picture) + veil * colour).astype(np.uint8))
