from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from slide_scenes import Disc, render, write_pyramid


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    def make(
        discs: list[Disc],
        size_um: tuple[float, float] = (240.0, 160.0),
        mpp: float = 0.25,
        tag: float | None = -1.0,
        name: str = "slide.tif",
    ) -> Path:
        return write_pyramid(tmp_path / name, render(size_um, discs, mpp), mpp if tag == -1.0 else tag)

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
