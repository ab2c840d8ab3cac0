"""Pictures of the report: cells, thumbnails, and the distribution of scores."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cytomil.bags.images import open_image
from cytomil.slides import Cells, Slide, qc_thumbnail

REPORT_PX = 480  # with 24 cells per slide, 500 slides stay under 60 MB in one file
FILE_PX = 1200
CONTEXT_PX = 320
GALLERY_PX = 96
_GALLERY_QUALITY = 75
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


def gallery_image(encoded: bytes, name: str) -> bytes:
    """An encoded cell image as a small JPEG. ``name`` begins the error message if it cannot be decoded."""
    image = open_image(encoded, name)
    image.thumbnail((GALLERY_PX, GALLERY_PX))
    return jpeg(image, _GALLERY_QUALITY)


def marked_thumbnail(slide: Slide, cells: Cells, top: Sequence[int]) -> Image.Image:
    """The slide with only its top cells ringed and numbered; ``top`` are their indices, the highest first."""
    chosen = cells[list(top)]
    return qc_thumbnail(slide, chosen, REPORT_PX, range(len(top)))


def context(slide: Slide, centre: np.ndarray, crop_um: float) -> Image.Image:
    """The surroundings of one cell, five crops wide, with a frame around the crop; ``centre`` (2,) in px of the slide."""
    mpp = _CONTEXT_CROPS * crop_um / CONTEXT_PX
    half = CONTEXT_PX * mpp / slide.mpp / 2
    picture = Image.fromarray(slide.read(centre[0] - half, centre[1] - half, CONTEXT_PX, CONTEXT_PX, mpp))
    inner = CONTEXT_PX / _CONTEXT_CROPS / 2
    corners = [CONTEXT_PX / 2 - inner, CONTEXT_PX / 2 - inner, CONTEXT_PX / 2 + inner, CONTEXT_PX / 2 + inner]
    ImageDraw.Draw(picture).rectangle(corners, outline=(220, 0, 0), width=2)
    return picture


def heatmap(slide: Slide, centres: np.ndarray, scores: np.ndarray) -> Image.Image:
    """The slide with colours where scores are above 1, the average: yellow, then red from 30 times the average on.

    A legend is below it. ``centres`` (N, 2) in px of the slide, ``scores`` (N,). Every patch shows its highest score,
    because abnormal cells are rare and a mean over neighbours would hide them.
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
    """The picture with a strip below it that shows which colour stands for which score."""
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


WIDTH = 440
HEIGHT = 230
LEFT = 84
RIGHT = 416
TOP = 12
BOTTOM = 178
_LOWEST_SHARE = 1e-4
_RARE = 0.01


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis: its SVG coordinate and its text."""

    at: float
    label: str


@dataclass(frozen=True)
class ScoreChart:
    """The axes that all slides of a worklist share, so that two slides' charts can be compared by eye.

    The vertical axis is logarithmic because abnormal cells are rare: on a linear axis one cell in a thousand would be
    invisible. The horizontal axis is logarithmic wherever the bins allow it. ``reference`` is an SVG path, empty if no
    reference is known.
    """

    edges: tuple[float, ...]
    reference_shares: tuple[float, ...]
    x_positions: tuple[float, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lowest_share: float
    log_x: bool
    reference: str = ""

    def path(self, shares: Sequence[float]) -> str:
        """A step line over the bins, as the ``d`` of an SVG path; empty unless ``shares`` fit the bins."""
        if not _are_shares(shares, len(self.edges) - 1):
            return ""
        steps = [f"M{self.x_positions[0]:.1f} {BOTTOM}"]
        for share, right in zip(shares, self.x_positions[1:], strict=True):
            steps.append(f"V{_y(share, self.lowest_share):.1f}H{right:.1f}")
        return "".join(steps) + f"V{BOTTOM}"

    def rare_scores(self, shares: Sequence[float]) -> tuple[float, float, float] | None:
        """A score that few cells of normal slides reach, the share of ``shares`` from there up, and the reference's.

        "Few" is 1 % or less. None if the two cannot be compared.
        """
        if not self.reference or not _are_shares(shares, len(self.edges) - 1):
            return None
        first = next(
            (i for i in range(1, len(shares)) if sum(self.reference_shares[i:]) <= _RARE),
            len(shares) - 1,
        )
        return self.edges[first], sum(shares[first:]), sum(self.reference_shares[first:])


def make_chart(
    edges: Sequence[float], reference: Sequence[float], slides: Sequence[Sequence[float]]
) -> ScoreChart | None:
    """Axes for the slides' shares over the bins ``edges``; None if the bins make no axis.

    The first and last edge may be 0, or minus and plus infinity: such a bin is open and is drawn as wide as the others.
    """
    inner = [e for e in edges[1:-1] if math.isfinite(e)]
    rising = all(a < b for a, b in pairwise(edges))
    if len(inner) != len(edges) - 2 or not inner or not rising:
        return None
    log_x = inner[0] > 0 and (edges[0] >= 0 or math.isinf(edges[0]))
    scale: Callable[[float], float] = math.log10 if log_x else float
    places = [scale(e) for e in inner]
    usual_width = (places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else 1.0
    first_is_open = math.isinf(edges[0]) or (log_x and edges[0] == 0)
    first = places[0] - usual_width if first_is_open else scale(edges[0])
    last = places[-1] + usual_width if math.isinf(edges[-1]) else scale(edges[-1])

    def x(place: float) -> float:
        return LEFT + (place - first) / (last - first) * (RIGHT - LEFT)

    n_bins = len(edges) - 1
    known = [shares for shares in (reference, *slides) if _are_shares(shares, n_bins)]
    seen = [share for shares in known for share in shares if share > 0]
    lowest = max(_LOWEST_SHARE, 10.0 ** math.floor(math.log10(min([*seen, 0.099]))))
    bare = ScoreChart(
        edges=tuple(edges),
        reference_shares=tuple(reference),
        x_positions=tuple(x(place) for place in (first, *places, last)),
        x_ticks=tuple(Tick(x(scale(v)), f"{v:,.6g}") for v in _round_values(first, last, log_x)),
        y_ticks=tuple(
            Tick(_y(10.0**power, lowest), f"{100 * 10.0**power:g} %") for power in range(round(math.log10(lowest)), 1)
        ),
        lowest_share=lowest,
        log_x=log_x,
    )
    return ScoreChart(**(vars(bare) | {"reference": bare.path(reference)}))


def _are_shares(shares: Sequence[float], n_bins: int) -> bool:
    return len(shares) == n_bins and all(0 <= share <= 1 for share in shares)


def _y(share: float, lowest: float) -> float:
    height = 1 - math.log10(max(share, lowest)) / math.log10(lowest)
    return BOTTOM - height * (BOTTOM - TOP)


def _round_values(first: float, last: float, log_x: bool) -> list[float]:
    if not log_x:
        step = 10.0 ** math.floor(math.log10(last - first))
        return [i * step for i in range(math.ceil(first / step), math.floor(last / step) + 1)]
    multiples = (1, 2, 5) if last - first < 2.5 else (1,)
    powers = range(math.floor(first) - 1, math.ceil(last) + 1)
    values = [m * 10.0**power for power in powers for m in multiples]
    return [v for v in values if first - 1e-9 <= math.log10(v) <= last + 1e-9]
