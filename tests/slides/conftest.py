from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

Disc = tuple[float, float, float]  # x, y, radius in µm


def _render(size_um: tuple[float, float], discs: list[Disc], mpp: float) -> np.ndarray:
    """A pale field (h, w, 3) with a purple disc at each place, drawn four times finer and averaged."""
    fine = mpp / 4
    width, height = (round(side / mpp) for side in size_um)
    image = Image.new("RGB", (width * 4, height * 4), (236, 232, 238))
    draw = ImageDraw.Draw(image)
    for x, y, radius in discs:
        box = [(x - radius) / fine, (y - radius) / fine, (x + radius) / fine, (y + radius) / fine]
        draw.ellipse(box, fill=(150, 90, 160))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def _write_pyramid(path: Path, image: np.ndarray, mpp: float | None, levels: int = 3) -> Path:
    tags = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            step = 2**level
            h, w = (side // step * step for side in image.shape[:2])
            part = image[:h, :w].reshape(h // step, step, w // step, step, 3).mean((1, 3)).astype(np.uint8)
            tiff.write(part, tile=(128, 128), photometric="rgb", subfiletype=1 if level else 0, **tags)
            tags = {}
    return path


@pytest.fixture
def render() -> Callable[..., np.ndarray]:
    return _render


@pytest.fixture
def write_pyramid() -> Callable[..., Path]:
    return _write_pyramid


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    def make(
        discs: list[Disc],
        size_um: tuple[float, float] = (240.0, 160.0),
        mpp: float = 0.25,
        tag: float | None = -1.0,
        name: str = "slide.tif",
    ) -> Path:
        return _write_pyramid(tmp_path / name, _render(size_um, discs, mpp), mpp if tag == -1.0 else tag)

    return make


@pytest.fixture
def grid_of_discs() -> list[Disc]:
    """Sixty cells of 6 to 9 µm, 20 µm apart, none on a regular grid; the outermost ones near the slide's border."""
    shift = np.random.default_rng(7)
    return [
        (14.0 + 22 * col + shift.uniform(-4, 4), 14.0 + 22 * row + shift.uniform(-4, 4), shift.uniform(3.0, 4.5))
        for row in range(6)
        for col in range(10)
    ]
