from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cytomil.slides import CellFinding, Cells, find_cells, iter_crops, open_slide, qc_thumbnail

MakeSlide = Callable[..., Path]
Disc = tuple[float, float, float]  # x, y, radius in µm


@pytest.mark.parametrize("mpp", [0.125, 0.25, 0.5])
def test_crops_show_the_cell_at_the_models_size(make_slide: MakeSlide, mpp: float) -> None:
    discs = [(30.0, 40.0, 4.0), (100.0, 90.0, 3.0)]
    path = make_slide(discs, mpp=mpp)
    cells = Cells(np.array([d[:2] for d in discs]) / mpp, np.array([4.0, 3.0]) / mpp)
    with open_slide(path) as slide:
        crops = list(iter_crops(slide, cells, crop_um=16, crop_px=64))
    for (x, y, image), (disc_x, disc_y, radius) in zip(crops, discs, strict=True):
        assert abs(x - (disc_x - 8) / mpp) <= 0.5
        assert abs(y - (disc_y - 8) / mpp) <= 0.5
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        dark = image[..., 1] < 160
        assert dark.sum() == pytest.approx(np.pi * (radius * 4) ** 2, rel=0.06)
        rows, columns = np.nonzero(dark)
        assert abs(rows.mean() - 31.5) < 2
        assert abs(columns.mean() - 31.5) < 2


def test_a_crop_at_the_border_is_filled_with_white(make_slide: MakeSlide) -> None:
    with open_slide(make_slide([(2.0, 2.0, 4.0)])) as slide:
        [(x, y, image)] = iter_crops(slide, Cells(np.array([[8.0, 8.0]]), np.array([16.0])), crop_um=16, crop_px=64)
    assert (x, y) == (-24, -24)
    assert (image[:23] == 255).all()
    assert image[32, 32].tolist() == [150, 90, 160]


def test_crops_come_in_the_order_of_the_cells(make_slide: MakeSlide, grid_of_discs: list[Disc]) -> None:
    path = make_slide(grid_of_discs)
    cells = find_cells(path, CellFinding())
    with open_slide(path) as slide:
        corners = np.array([(x, y) for x, y, _ in iter_crops(slide, cells, crop_um=10, crop_px=16)])
    assert np.abs(corners + 20 - cells.centres).max() <= 0.5


def test_the_qc_picture_rings_all_cells_and_numbers_the_marked(
    make_slide: MakeSlide, grid_of_discs: list[Disc]
) -> None:
    path = make_slide(grid_of_discs)
    cells = find_cells(path, CellFinding())
    with open_slide(path) as slide:
        plain = np.asarray(slide.thumbnail(600)).astype(int)
        ringed = np.asarray(qc_thumbnail(slide, cells, max_px=600)).astype(int)
        marked = np.asarray(qc_thumbnail(slide, cells, max_px=600, marked=[5])).astype(int)
    assert ringed.shape == plain.shape == (400, 600, 3)
    rings = (ringed == (0, 230, 0)).all(-1)
    scale = 600 / 960
    for (x, y), radius in zip(cells.centres * scale, cells.radii * scale, strict=True):
        top, left = max(0, int(y - radius - 2)), max(0, int(x - radius - 2))
        assert rings[top : int(y + radius + 3), left : int(x + radius + 3)].any()
    rows, columns = np.nonzero((marked == (220, 0, 0)).all(-1))
    assert np.hypot(columns - cells.centres[5, 0] * scale, rows - cells.centres[5, 1] * scale).max() < 40


def test_the_qc_picture_is_made_without_cells(make_slide: MakeSlide) -> None:
    with open_slide(make_slide([])) as slide:
        picture = qc_thumbnail(slide, Cells(np.empty((0, 2)), np.empty(0)), max_px=300)
    assert picture.size == (300, 200)
