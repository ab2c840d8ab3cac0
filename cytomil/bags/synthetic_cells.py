"""Draw synthetic blood cells with a May-Grünwald-Giemsa-like stain.

A cell is drawn as two fields of dye (azure and eosin). Beer-Lambert absorption turns them into light. Stain variation is
therefore a change of dye, as on a glass slide, and not a tint of the picture. Background, stain, light and focus do not
depend on the kind of cell.

Lengths are fractions of the picture's side, and coordinates run from -0.5 to 0.5 from its centre.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cytomil.bags.bag_file import Instance
from cytomil.bags.images import encode_image

Field = NDArray[np.floating]  # one value per pixel, (size, size)
Point = NDArray[np.floating]  # x and y, (2,)
Points = NDArray[np.floating]  # (n, 2)

MIN_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Morphology:
    """The morphology of one cell. Every field is a number, so that two cells can be blended."""

    cell_radius: float
    cytoplasm_azure: float
    cytoplasm_eosin: float
    vacuoles: float = 0.0  # number
    nucleus_ratio: float  # radius of a disc of the nucleus's area, over the cell's radius
    nucleus_roughness: float  # contour wobble, in lobe radii
    eccentricity: float  # 0 centred, 1 touching the cell's edge
    lobes: float = 1.0  # number
    lobe_spacing: float = 0.0  # between neighbouring lobes, in lobe radii
    lobe_bend: float = 0.0  # turn at each lobe, in radians
    chromatin: float  # mean dye in the nucleus
    clump_size: float
    clump_contrast: float  # relative standard deviation of the nuclear dye
    nucleoli: float = 0.0  # number
    granules: float  # number
    granule_radius: float
    granule_azure: float
    granule_eosin: float
    granules_on_nucleus: float = 0.0  # 0 hidden by the nucleus, 1 lying over it


# fmt: off
_NORMAL: dict[str, Morphology] = {
    "lymphocyte-like": Morphology(
        cell_radius=0.245, cytoplasm_azure=0.34, cytoplasm_eosin=0.03,
        nucleus_ratio=0.84, nucleus_roughness=0.05, eccentricity=0.4,
        chromatin=1.10, clump_size=0.055, clump_contrast=0.26,
        granules=2, granule_radius=0.010, granule_azure=0.5, granule_eosin=0.5,
    ),
    "neutrophil-like": Morphology(
        cell_radius=0.310, cytoplasm_azure=0.07, cytoplasm_eosin=0.17,
        nucleus_ratio=0.60, nucleus_roughness=0.10, eccentricity=0.2, lobes=3.6, lobe_spacing=1.75, lobe_bend=1.1,
        chromatin=1.15, clump_size=0.050, clump_contrast=0.28,
        granules=130, granule_radius=0.008, granule_azure=0.10, granule_eosin=0.22,
    ),
    "eosinophil-like": Morphology(
        cell_radius=0.315, cytoplasm_azure=0.06, cytoplasm_eosin=0.20,
        nucleus_ratio=0.58, nucleus_roughness=0.08, eccentricity=0.4, lobes=2.2, lobe_spacing=1.80, lobe_bend=0.6,
        chromatin=1.05, clump_size=0.050, clump_contrast=0.26,
        granules=150, granule_radius=0.013, granule_azure=0.05, granule_eosin=0.85, granules_on_nucleus=0.1,
    ),
    "basophil-like": Morphology(
        cell_radius=0.290, cytoplasm_azure=0.12, cytoplasm_eosin=0.16,
        nucleus_ratio=0.64, nucleus_roughness=0.12, eccentricity=0.2, lobes=2.2, lobe_spacing=1.20, lobe_bend=0.7,
        chromatin=0.85, clump_size=0.060, clump_contrast=0.20,
        granules=50, granule_radius=0.017, granule_azure=1.05, granule_eosin=0.65, granules_on_nucleus=0.8,
    ),
    "monocyte-like": Morphology(
        cell_radius=0.355, cytoplasm_azure=0.30, cytoplasm_eosin=0.12, vacuoles=2.5,
        nucleus_ratio=0.68, nucleus_roughness=0.13, eccentricity=0.3, lobes=4.5, lobe_spacing=0.80, lobe_bend=0.75,
        chromatin=0.85, clump_size=0.045, clump_contrast=0.22,
        granules=60, granule_radius=0.007, granule_azure=0.15, granule_eosin=0.22, granules_on_nucleus=0.1,
    ),
}
_ABNORMAL: dict[str, Morphology] = {
    "blast-like": Morphology(
        cell_radius=0.300, cytoplasm_azure=0.52, cytoplasm_eosin=0.04,
        nucleus_ratio=0.88, nucleus_roughness=0.05, eccentricity=0.5,
        chromatin=0.70, clump_size=0.024, clump_contrast=0.10, nucleoli=2.2,
        granules=3, granule_radius=0.010, granule_azure=0.5, granule_eosin=0.5,
    ),
    "promyelocyte-like": Morphology(
        cell_radius=0.335, cytoplasm_azure=0.36, cytoplasm_eosin=0.10,
        nucleus_ratio=0.70, nucleus_roughness=0.06, eccentricity=0.9,
        chromatin=0.70, clump_size=0.024, clump_contrast=0.12, nucleoli=1.5,
        granules=120, granule_radius=0.013, granule_azure=0.75, granule_eosin=0.80, granules_on_nucleus=0.8,
    ),
    "dysplastic-like": Morphology(
        cell_radius=0.310, cytoplasm_azure=0.16, cytoplasm_eosin=0.09, vacuoles=0.6,
        nucleus_ratio=0.65, nucleus_roughness=0.28, eccentricity=0.4, lobes=1.7, lobe_spacing=0.95, lobe_bend=0.5,
        chromatin=1.00, clump_size=0.065, clump_contrast=0.50,
        granules=12, granule_radius=0.008, granule_azure=0.10, granule_eosin=0.20,
    ),
}
# fmt: on
_LOOKALIKE = {
    "blast-like": "lymphocyte-like",
    "promyelocyte-like": "monocyte-like",
    "dysplastic-like": "neutrophil-like",
}

NORMAL_KINDS: tuple[str, ...] = tuple(_NORMAL)
ABNORMAL_KINDS: tuple[str, ...] = tuple(_ABNORMAL)

_FIELDS = tuple(field.name for field in fields(Morphology))
_VECTORS = {kind: np.array(astuple(cell)) for kind, cell in (_NORMAL | _ABNORMAL).items()}
_SPREAD = 0.12  # relative standard deviation of a field within a kind
# The nucleus-to-cytoplasm ratio varies least within a kind. With the spread of the others, nuclei would fill every cell.
_RELATIVE_SPREAD = np.array([0.4 if name == "nucleus_ratio" else 1.0 for name in _FIELDS])
_OVERLAP = 0.65  # mean fraction by which an abnormal cell is blended with its lookalike at difficulty 1

_AZURE = np.array([0.95, 0.78, 0.24])  # absorbance of a unit of dye in red, green and blue
_EOSIN = np.array([0.09, 0.72, 0.55])


class _Dyes(NamedTuple):
    """The amount of each dye at every point."""

    azure: Field
    eosin: Field

    def beneath(self, cover: Field, azure: Field | float, eosin: Field | float) -> _Dyes:
        """These dyes under another layer, which is opaque where `cover` is 1."""
        return _Dyes(self.azure + cover * (azure - self.azure), self.eosin + cover * (eosin - self.eosin))


class _Shapes(NamedTuple):
    """The centre of a cell, and signed distances to the edges of its body and nucleus, negative inside."""

    centre: Point
    body: Field
    nucleus: Field


def render_cell(kind: str, rng: np.random.Generator, *, size: int = 72, difficulty: float = 0.5) -> NDArray[np.uint8]:
    """Draw one stained cell among red cells.

    Args:
        kind: one of NORMAL_KINDS or ABNORMAL_KINDS.
        rng: the only source of randomness. The same state gives the same bytes on the same machine.
        size: side of the picture in pixels, at least 16. The whole scene scales with it.
        difficulty: from 0 to 1. At 0, abnormal cells are easy to recognise. With rising difficulty, each abnormal cell
            is blended with a normal lookalike by a random fraction. The spread within every kind, the stain variation and
            the defocus grow too. At 1, abnormal and normal cells overlap heavily.

    Returns:
        The picture, (size, size, 3), RGB, uint8.

    Raises:
        ValueError: the kind is unknown, the size is not a whole number of at least 16, or the difficulty is outside
            [0, 1].
    """
    _check(kind, size, difficulty)
    cell = _sample(kind, rng, difficulty)
    shapes = _outline(cell, rng, size)
    dyes = _surroundings(shapes.body, rng)
    for paint in (_paint_cytoplasm, _paint_nucleus, _paint_granules):
        dyes = paint(dyes, cell, shapes, rng)
    return _photograph(dyes, rng, difficulty)


def _check(kind: str, size: int, difficulty: float) -> None:
    if kind not in _VECTORS:
        raise ValueError(f"unknown kind of cell {kind!r}: expected one of {', '.join(_VECTORS)}")
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < MIN_SIZE:
        raise ValueError(f"size must be a whole number of at least {MIN_SIZE} pixels, got {size!r}")
    if not 0.0 <= difficulty <= 1.0:
        raise ValueError(f"difficulty must lie between 0 and 1, got {difficulty!r}")


def _sample(kind: str, rng: np.random.Generator, difficulty: float) -> Morphology:
    values = _VECTORS[kind]
    blend = _OVERLAP * difficulty * rng.uniform(0.6, 1.4)
    if kind in _LOOKALIKE:
        values = values + blend * (_VECTORS[_LOOKALIKE[kind]] - values)
    spread = _RELATIVE_SPREAD * _SPREAD * (0.6 + 0.6 * difficulty)
    values = values * np.exp(spread * rng.standard_normal(values.size))
    return Morphology(**dict(zip(_FIELDS, values.tolist(), strict=True)))


@lru_cache(maxsize=8)
def _axis(size: int) -> Field:
    """Pixel centres along one side, shape (size,)."""
    return ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)


def _distance(size: int, centre: Point) -> Field:
    across, down = (_axis(size) - np.float32(place) for place in centre)
    return np.sqrt(across[None, :] ** 2 + down[:, None] ** 2)


def _cover(signed_distance: Field) -> Field:
    """1 inside a shape, 0 outside, with a ramp 1.3 pixels wide, which avoids jagged edges."""
    return np.clip(0.5 - signed_distance * (signed_distance.shape[0] / 1.3), 0.0, 1.0)


def _noise(rng: np.random.Generator, size: int, scale: float) -> Field:
    """Smooth noise of unit variance with features of about size `scale`."""
    scale = max(scale, 1.0 / size)
    knots = np.arange(-0.5 - scale, 0.5 + 2 * scale, scale, dtype=np.float32)
    weights = np.exp(-(((_axis(size)[:, None] - knots) / (0.8 * scale)) ** 2))
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    return weights @ rng.standard_normal((knots.size, knots.size), dtype=np.float32) @ weights.T


def _dots(centres: Points, radii: NDArray[np.floating], size: int) -> Field:
    """Soft round dots with half of their strength at their radius. Overlapping dots add up to 1 at most."""
    offsets = (_axis(size)[None, :, None] - centres[:, None, :]) / radii[:, None, None]
    bumps = np.exp2(-(offsets**2)).astype(np.float32)
    return np.minimum(bumps[:, :, 1].T @ bumps[:, :, 0], 1.0)


def _polar(length: NDArray[np.floating] | float, angle: NDArray[np.floating] | float) -> NDArray[np.floating]:
    return np.stack([length * np.cos(angle), length * np.sin(angle)], axis=-1)


def _within_disc(rng: np.random.Generator, count: int, centre: Point, radius: float) -> Points:
    return centre + _polar(radius * np.sqrt(rng.random(count)), rng.uniform(0.0, 2 * np.pi, count))


def _whole(expected: float, rng: np.random.Generator) -> int:
    """A random whole number with the mean `expected`."""
    return int(expected + rng.random())


def _outline(cell: Morphology, rng: np.random.Generator, size: int) -> _Shapes:
    centre = rng.normal(0.0, 0.015, 2)
    body = _distance(size, centre) - np.float32(min(cell.cell_radius, 0.40))
    body += np.float32(0.035 * cell.cell_radius) * _noise(rng, size, 0.22)
    lobes, radius = _lobes(cell, rng)
    radii = radius * rng.normal(1.0, 0.10, len(lobes))
    # A smooth union, because neighbouring lobes must not meet in a sharp crease.
    sharpness = np.float32(6.0 / radius)
    depths = np.stack([r - _distance(size, centre + p) for p, r in zip(lobes, radii.astype(np.float32), strict=True)])
    union = np.log(np.exp(sharpness * depths).sum(axis=0) + np.float32(1e-12)) / sharpness
    wobble = _noise(rng, size, 0.13) * np.float32(cell.nucleus_roughness * radius)
    return _Shapes(centre, body, np.maximum(wobble - union, body + np.float32(0.012)))


def _lobes(cell: Morphology, rng: np.random.Generator) -> tuple[Points, float]:
    """Centres of the lobes of the nucleus along a bent chain, relative to the cell's centre, and their mean radius."""
    count = max(_whole(cell.lobes, rng), 1)
    spacing = cell.lobe_spacing if count > 1 else 0.0
    disc_radius = min(cell.nucleus_ratio, 0.92) * cell.cell_radius
    radius = disc_radius / np.sqrt(1.0 + (count - 1) * min(spacing / 1.6, 1.0))
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(cell.lobe_bend * rng.normal(1.0, 0.45, count))
    chain = np.cumsum(_polar(spacing * radius, headings), axis=0)
    chain -= chain.mean(axis=0)
    extent = float(np.hypot(*chain.T).max()) + radius
    margin = max(0.95 * cell.cell_radius - extent, 0.0)
    offset = _polar(cell.eccentricity * margin, rng.uniform(0, 2 * np.pi))
    return chain * min(1.0, 0.92 * cell.cell_radius / extent) + offset, radius


def _surroundings(body: Field, rng: np.random.Generator) -> _Dyes:
    """Plasma, and red cells at the border of the picture. The cell covers them."""
    size = body.shape[0]
    unevenness = 1.0 + 0.25 * _noise(rng, size, 0.35)
    dyes = _Dyes(0.035 * unevenness, 0.05 * unevenness)
    clear = _cover(0.02 - body)
    for _ in range(rng.integers(1, 6)):
        radius = rng.uniform(0.15, 0.19)
        distance = _distance(size, _polar(rng.uniform(0.46, 0.66), rng.uniform(0, 2 * np.pi)))
        pallor = 0.45 + 0.55 * np.minimum(distance / radius, 1.0) ** 2
        dyes = dyes.beneath(_cover(distance - radius) * clear, 0.05, rng.uniform(0.45, 0.62) * pallor)
    return dyes


def _paint_cytoplasm(dyes: _Dyes, cell: Morphology, shapes: _Shapes, rng: np.random.Generator) -> _Dyes:
    size = shapes.body.shape[0]
    mottle = 1.0 + 0.10 * _noise(rng, size, 0.05)
    rim = 1.0 + 0.25 * np.exp2(-((shapes.body / 0.03) ** 2))
    count = _whole(cell.vacuoles, rng)
    places = _within_disc(rng, count, shapes.centre, 0.85 * cell.cell_radius)
    full = 1.0 - 0.8 * _dots(places, rng.uniform(0.012, 0.028, count), size)
    return dyes.beneath(_cover(shapes.body) * full, cell.cytoplasm_azure * mottle * rim, cell.cytoplasm_eosin * mottle)


def _paint_nucleus(dyes: _Dyes, cell: Morphology, shapes: _Shapes, rng: np.random.Generator) -> _Dyes:
    size = shapes.nucleus.shape[0]
    clumps = np.tanh(1.3 * _noise(rng, size, cell.clump_size))
    membrane = np.exp2(-((shapes.nucleus / 0.016) ** 2))
    dye = cell.chromatin * (1.0 + cell.clump_contrast * clumps + 0.12 * membrane)
    count = _whole(cell.nucleoli, rng)
    deepest = shapes.nucleus.min()
    deep = np.argwhere(shapes.nucleus <= deepest + 0.4 * abs(deepest))
    places = (deep[rng.integers(0, len(deep), count)][:, ::-1] + 0.5) / size - 0.5
    pale = _dots(places, rng.uniform(0.025, 0.045, count), size)
    return dyes.beneath(_cover(shapes.nucleus), dye * (1.0 - 0.40 * pale), 0.55 * dye * (1.0 - 0.65 * pale))


def _paint_granules(dyes: _Dyes, cell: Morphology, shapes: _Shapes, rng: np.random.Generator) -> _Dyes:
    count = _whole(cell.granules, rng)
    places = _within_disc(rng, count, shapes.centre, 0.95 * cell.cell_radius)
    dots = _dots(places, cell.granule_radius * rng.uniform(0.7, 1.3, count), shapes.body.shape[0])
    hidden = (1.0 - min(cell.granules_on_nucleus, 1.0)) * _cover(shapes.nucleus)
    cover = 0.85 * dots * _cover(shapes.body + 0.01) * (1.0 - hidden)
    return dyes.beneath(cover, cell.granule_azure, cell.granule_eosin)


def _photograph(dyes: _Dyes, rng: np.random.Generator, difficulty: float) -> NDArray[np.uint8]:
    """Turn dyes into a picture, with random stain strength, hue, light, focus and sensor noise."""
    size = dyes.azure.shape[0]
    strength = np.exp((0.12 + 0.10 * difficulty) * rng.standard_normal((2, 1)))
    hue = np.exp(0.06 * rng.standard_normal((2, 3)))
    absorbance = np.stack([_AZURE, _EOSIN]) * hue * strength
    density = np.stack(dyes, axis=-1).astype(np.float32) @ absorbance.astype(np.float32)
    lamp = rng.normal(240.0, 6.0) * rng.normal(1.0, 0.012, 3)
    tilt = _axis(size)[:, None] * rng.normal(0.0, 0.05, 2)
    evenness = 1.0 + tilt[:, None, 0] + tilt[None, :, 1]
    light = np.exp(-density) * (evenness[:, :, None] * lamp).astype(np.float32)
    light = _defocus(light, rng.uniform(0.005, 0.009 + 0.008 * difficulty))
    light += rng.uniform(1.0, 3.5) * rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def _defocus(light: NDArray[np.floating], sigma: float) -> NDArray[np.floating]:
    """Gaussian blur of (size, size, 3). Two matrix products are faster than a filter at this size."""
    axis = _axis(light.shape[0])
    kernel = np.exp(-0.5 * ((axis[:, None] - axis) / np.float32(sigma)) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    rows = np.tensordot(kernel, light, axes=(1, 0))
    return np.tensordot(kernel, rows, axes=(1, 1)).transpose(1, 0, 2)


SOURCE = "synthetic"


def synthetic_normal(seed: int, size: int, difficulty: float) -> Iterator[Instance]:
    """An endless series of cells of all normal kinds, the same for the same arguments."""
    return _render(NORMAL_KINDS, 0, seed, size, difficulty)


def synthetic_abnormal(seed: int, size: int, difficulty: float) -> Iterator[Instance]:
    """An endless series of cells of all abnormal kinds, the same for the same arguments."""
    return _render(ABNORMAL_KINDS, 1, seed, size, difficulty)


def _render(kinds: Sequence[str], label: int, seed: int, size: int, difficulty: float) -> Iterator[Instance]:
    rng = np.random.default_rng([seed, label])
    while True:
        kind = kinds[int(rng.integers(len(kinds)))]
        image = encode_image(render_cell(kind, rng, size=size, difficulty=difficulty))
        yield Instance(hashlib.sha256(image).hexdigest()[:16], image, label=label, source=f"{SOURCE}/{kind}")
