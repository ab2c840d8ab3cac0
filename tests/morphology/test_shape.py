import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.morphology.masks import CellMasks, hulls
from cytomil.morphology.measure import shapes

SIDE = 64
ROW, COLUMN = np.mgrid[:SIDE, :SIDE]
NAMES = [
    *("area", "hull_area", "cell_area", "share_of_cell", "share_of_hull", "hull_eccentricity", "cell_eccentricity"),
    *("lobes", "largest", "nucleus_outline", "cell_outline", "depth", "mean_depth", "depth_spread"),
    *("major", "minor", "apart"),
]


def ellipse(row, column, down, across):
    return ((ROW - row) / down) ** 2 + ((COLUMN - column) / across) ** 2 < 1


def shape(nucleus, cell):
    found = shapes(CellMasks(nucleus[None], hulls(nucleus[None]).masks, cell[None]))
    assert found.shape == (1, len(NAMES))
    return dict(zip(NAMES, found[0], strict=True))


def test_a_disc_has_a_discs_area_axes_and_depth():
    found = shape(ellipse(31.5, 31.5, 12, 12), ellipse(31.5, 31.5, 20, 20))
    assert np.exp([found["area"], found["cell_area"]]) == pytest.approx(np.pi * np.array([12, 20]) ** 2, rel=0.01)
    assert np.exp([found["major"], found["minor"]]) == pytest.approx([24, 24], rel=0.01)
    assert found["hull_eccentricity"] == found["cell_eccentricity"] == 0
    assert found["share_of_cell"] == pytest.approx(144 / 400, rel=0.02)
    assert (found["largest"], found["lobes"], found["apart"]) == (1, 0, 0)
    assert found["share_of_hull"] > 0.97
    # A cone over the disc: its mean is a third of its height.
    assert np.exp(found["depth"]) == pytest.approx(12, abs=1)
    assert np.exp(found["mean_depth"]) == pytest.approx(12 / 3, abs=1)
    assert found["depth_spread"] == pytest.approx(np.sqrt(1 / 2), abs=0.1)
    # Pixels that touch by their corners make a circle of 4·√2 radii, here through their middles.
    assert np.exp(found["nucleus_outline"]) == pytest.approx((4 * np.sqrt(2) * 11.5) ** 2 / (np.pi * 144), rel=0.05)


@settings(max_examples=20, deadline=None)
@given(st.integers(6, 12), st.floats(1, 2))
def test_an_ellipse_has_its_own_axes_and_eccentricity(minor, ratio):
    for found in (
        shape(ellipse(31.5, 31.5, minor, ratio * minor), ellipse(31.5, 31.5, 28, 28)),
        shape(ellipse(31.5, 31.5, ratio * minor, minor), ellipse(31.5, 31.5, 28, 28)),
    ):
        assert np.exp([found["major"], found["minor"]]) == pytest.approx([2 * ratio * minor, 2 * minor], rel=0.06)
        expected = np.sqrt(1 - (np.exp(found["minor"]) / np.exp(found["major"])) ** 2)
        assert found["hull_eccentricity"] == pytest.approx(expected, abs=1e-9)


def test_lobes_are_counted_and_the_largest_is_told():
    two = ellipse(20, 20, 8, 8) | ellipse(44, 44, 6, 6)
    found = shape(two, ellipse(31.5, 31.5, 30, 30))
    assert found["lobes"] == pytest.approx(np.log(2))
    assert found["largest"] == pytest.approx(64 / 100, abs=0.02)
    assert found["share_of_hull"] < 0.6


def test_a_nucleus_aside_lies_apart():
    found = shape(ellipse(31.5, 21.5, 8, 8), ellipse(31.5, 31.5, 20, 20))
    assert found["apart"] == pytest.approx(10 / np.sqrt(np.pi * 400), rel=0.02)


def test_a_single_pixel_and_a_line_have_finite_shapes():
    for nucleus in ((ROW == 31) & (COLUMN == 31), (ROW == 31) & (abs(COLUMN - 31) < 6)):
        found = shape(nucleus, nucleus)
        assert np.isfinite(list(found.values())).all()
        assert np.exp(found["minor"]) == pytest.approx(4 / np.sqrt(12))
