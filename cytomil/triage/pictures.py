"""What a person sees of a whole slide: which cells were found, which are marked, where the scores are high."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cytomil.slides import Cells, Slide, qc_thumbnail

REPORT_PX = 480  # with 24 cells a slide, 500 slides stay under 60 MB in one file
FILE_PX = 1200
CONTEXT_PX = 320
_CONTEXT_CROPS = 5
_HEATMAP_BLOCK_PX = 8
_HIGHEST_SCORE = 30.0
_LEGEND_PX, _LEGEND_FONT_PX = 32, 16


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


def context(slide: Slide, centre: np.ndarray, crop_um: float) -> Image.Image:
    """What lies around one cell, five crops wide, with the crop framed; ``centre`` (2,) in px of the slide."""
    mpp = _CONTEXT_CROPS * crop_um / CONTEXT_PX
    half = CONTEXT_PX * mpp / slide.mpp / 2
    picture = Image.fromarray(slide.read(centre[0] - half, centre[1] - half, CONTEXT_PX, CONTEXT_PX, mpp))
    inner = CONTEXT_PX / _CONTEXT_CROPS / 2
    corners = [CONTEXT_PX / 2 - inner, CONTEXT_PX / 2 - inner, CONTEXT_PX / 2 + inner, CONTEXT_PX / 2 + inner]
    ImageDraw.Draw(picture).rectangle(corners, outline=(220, 0, 0), width=2)
    return picture


def heatmap(slide: Slide, centres: np.ndarray, scores: np.ndarray) -> Image.Image:
    """The slide under a veil of colour where scores are above 1, the average: yellow, then red from 30 times on.

    Below it stands a legend. ``centres`` (N, 2) in px of the slide, ``scores`` (N,). Every patch shows its highest cell, since
    the cells that matter are rare: a mean over their neighbours would hide them.
    """
    picture = Image.fromarray(slide.thumbnail(FILE_PX))
    columns, rows = (-(-side // _HEATMAP_BLOCK_PX) for side in picture.size)
    scale = picture.width / slide.dimensions[0] / _HEATMAP_BLOCK_PX
    at = np.clip((centres * scale).astype(int), 0, (columns - 1, rows - 1))
    heat = np.zeros((rows, columns))
    np.maximum.at(heat, (at[:, 1], at[:, 0]), np.clip(np.log(np.maximum(scores, 1)) / np.log(_HIGHEST_SCORE), 0, 1))
    layer = Image.fromarray((heat * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    veiled = _veiled(np.asarray(picture), np.asarray(layer, np.float64) / 255)
    return _with_legend(Image.fromarray(veiled))


def _veiled(picture: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) uint8 under the colour of ``strength`` (h, w), 0 to 1."""
    strength = strength[..., None]
    colour = np.concatenate([np.full_like(strength, 230), 200 * (1 - strength), np.zeros_like(strength)], axis=2)
    veil = 0.75 * np.sqrt(strength)
    return ((1 - veil) * picture + veil * colour).astype(np.uint8)


def _with_legend(picture: Image.Image) -> Image.Image:
    """The picture with a strip below it that says which colour is which score."""
    font = ImageFont.load_default(_LEGEND_FONT_PX)
    whole = Image.new("RGB", (picture.width, picture.height + _LEGEND_PX), "white")
    whole.paste(picture)
    strength = np.linspace(0, 1, max(2, picture.width // 3))[None].repeat(_LEGEND_FONT_PX, axis=0)
    bar = Image.fromarray(_veiled(np.full((*strength.shape, 3), 235, np.uint8), strength))
    draw = ImageDraw.Draw(whole)
    low, high = "score 1: average", f"{_HIGHEST_SCORE:.0f} or more"
    top = picture.height + (_LEGEND_PX - _LEGEND_FONT_PX) // 2
    left = round(draw.textlength(low, font)) + 12
    draw.text((4, top), low, "black", font)
    whole.paste(bar, (left, top))
    draw.text((left + bar.width + 8, top), high, "black", font)
    return whole
