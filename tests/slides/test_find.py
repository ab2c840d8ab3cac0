from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from cytomil.errors import NoCellsError, SettingsError
from cytomil.slides import CellFinding, Cells, find_cells, require_enough_cells

MakeSlide = Callable[..., Path]
Render = Callable[..., np.ndarray]
Write = Callable[..., Path]
Disc = tuple[float, float, float]  # x, y, radius in µm


def assert_each_found_once(cells: Cells, discs: list[Disc], mpp: float) -> None:
    assert len(cells) == len(discs)
    found, drawn = cells.centres * mpp, np.array([d[:2] for d in discs])
    distance = np.linalg.norm(drawn[:, None] - found[None], axis=-1)
    rows, columns = linear_sum_assignment(distance)
    assert distance[rows, columns].max() < 0.5
    radii = np.array([d[2] for d in discs])
    assert np.abs(cells.radii[columns] * mpp / radii[rows] - 1).max() < 0.15


@pytest.mark.parametrize("tile_px", [pytest.param(64, marks=pytest.mark.nightly), 96, 200, 331, 512, 4096])
def test_each_cell_is_found_once_whatever_the_tiles(
    make_slide: MakeSlide, grid_of_discs: list[Disc], tile_px: int
) -> None:
    path = make_slide(grid_of_discs)
    assert_each_found_once(find_cells(path, CellFinding(tile_px=tile_px)), grid_of_discs, 0.25)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(x=st.floats(28, 36), y=st.floats(28, 36), radius=st.floats(2.5, 6.0))
def test_a_cell_on_the_corner_of_four_tiles_is_found_once(
    tmp_path: Path, x: float, y: float, radius: float, render: Render, write_pyramid: Write
) -> None:
    path = write_pyramid(tmp_path / "slide.tif", render((70, 70), [(x, y, radius)], 0.25), 0.25)
    # 128 px of 0.25 µm: the four tiles meet at (32, 32) µm.
    assert_each_found_once(find_cells(path, CellFinding(tile_px=128), workers=1), [(x, y, radius)], 0.25)


def test_touching_cells_are_split(make_slide: MakeSlide) -> None:
    discs = [(30.0, 30.0, 4.0), (37.5, 30.0, 4.0), (34.0, 36.8, 4.0), (60.0, 40.0, 3.0), (66.0, 40.0, 4.0)]
    assert len(find_cells(make_slide(discs), CellFinding())) == 5


def test_a_ring_shaped_cell_is_one_cell(tmp_path: Path, render: Render, write_pyramid: Write) -> None:
    image = render((60, 60), [(30, 30, 4)], 0.25)
    hole = render((60, 60), [(30, 30, 1.5)], 0.25) < 200
    path = write_pyramid(tmp_path / "slide.tif", np.where(hole, np.uint8(234), image), 0.25)
    assert len(find_cells(path, CellFinding())) == 1


def test_the_number_of_workers_changes_nothing(make_slide: MakeSlide, grid_of_discs: list[Disc]) -> None:
    path = make_slide(grid_of_discs)
    one = find_cells(path, CellFinding(tile_px=200), workers=1)
    two = find_cells(path, CellFinding(tile_px=200), workers=2)
    assert np.array_equal(one.centres, two.centres)
    assert np.array_equal(one.radii, two.radii)


def test_the_same_scene_gives_the_same_cells_at_any_resolution(
    make_slide: MakeSlide, grid_of_discs: list[Disc]
) -> None:
    for mpp in (0.125, 0.25, 0.5):
        path = make_slide(grid_of_discs, mpp=mpp, name=f"{mpp}.tif")
        assert_each_found_once(find_cells(path, CellFinding()), grid_of_discs, mpp)


def test_a_stepped_background_hides_no_cell(tmp_path: Path, render: Render, write_pyramid: Write) -> None:
    discs = [(20.0 + 20 * i, 30.0, 4.0) for i in range(5)]
    image = render((120, 60), discs, 0.25).copy()
    image[:, 280:] = image[:, 280:] // 2
    found = find_cells(write_pyramid(tmp_path / "slide.tif", image, 0.25), CellFinding()).centres * 0.25
    distance = np.linalg.norm(found[:, None] - np.array([d[:2] for d in discs])[None], axis=-1)
    assert ((distance < 0.5).sum(0) == 1).all()


@pytest.mark.parametrize("colour", [255, 128])
def test_a_blank_slide_has_no_cells_and_says_so(tmp_path: Path, colour: int, write_pyramid: Write) -> None:
    path = write_pyramid(tmp_path / "blank.tif", np.full((512, 512, 3), colour, np.uint8), 0.25)
    cells = find_cells(path, CellFinding(tile_px=256))
    assert cells.centres.shape == (0, 2)
    with pytest.raises(NoCellsError, match=r"blank\.tif: no cells found, at least 10"):
        require_enough_cells(path, cells, CellFinding())


def test_a_noisy_empty_slide_has_no_cells(tmp_path: Path, write_pyramid: Write) -> None:
    noise = np.random.default_rng(0).normal(225, 4, (512, 512, 3)).clip(0, 255).astype(np.uint8)
    assert len(find_cells(write_pyramid(tmp_path / "noise.tif", noise, 0.25), CellFinding())) == 0


def test_too_few_cells_are_told_with_their_number(make_slide: MakeSlide) -> None:
    path = make_slide([(30, 30, 4), (60, 30, 4)])
    cells = find_cells(path, CellFinding())
    with pytest.raises(NoCellsError, match="2 cells found"):
        require_enough_cells(path, cells, CellFinding())
    require_enough_cells(path, cells, CellFinding(min_cells=2))


def test_progress_reaches_the_end(make_slide: MakeSlide) -> None:
    calls: list[tuple[int, int]] = []
    find_cells(make_slide([]), CellFinding(tile_px=320), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 6) for i in range(1, 7)]


def test_the_setting_goes_to_json_and_back() -> None:
    finding = CellFinding(diameter_um=12.0)
    assert CellFinding(**json.loads(json.dumps(asdict(finding)))) == finding


@pytest.mark.parametrize("wrong", [{"diameter_um": 0.1}, {"tile_px": 1}, {"min_cells": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        CellFinding(**wrong)
