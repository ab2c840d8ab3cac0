"""Gaps in a slide: told from its background, and without effect on what lies beside them."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cytomil.slides import CellFinding, find_cells
from cytomil.slides.resolution import is_scanned, reaches_unscanned, with_background

OPAQUE = np.full((120, 120), 255, np.uint8)


def field(level, noise=2.0, seed=0):
    """A bright field (120, 120, 3) with a dark cell in its middle."""
    rng = np.random.default_rng(seed)
    image = rng.normal(level, noise, (120, 120, 3))
    image[50:70, 50:70] = (150, 90, 160)
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("colour", [0, 255])
def test_a_filled_area_of_pure_colour_is_a_gap(colour):
    image = field(232)
    image[:, 80:] = colour
    scanned = is_scanned(image, OPAQUE, 20)
    assert not scanned[:, 82:].any()
    assert scanned[:, :76].all()


def test_an_overexposed_background_is_no_gap():
    assert is_scanned(field(258, noise=4), OPAQUE, 20).all()


def test_small_pure_spots_are_no_gap():
    image = field(232)
    image[10:25, 10:25] = 255
    image[90:100, 90:100] = 0
    assert is_scanned(image, OPAQUE, 20).all()


def test_what_is_transparent_was_not_scanned():
    alpha = OPAQUE.copy()
    alpha[30:40] = 0
    assert (is_scanned(field(232), alpha, 20) == (alpha > 0)).all()


def test_a_gap_gets_the_colour_of_the_background():
    image = field(232, noise=0)
    scanned = np.ones((120, 120), bool)
    scanned[:, 100:] = False
    image[~scanned] = 255
    filled = with_background(image, scanned)
    assert (filled[~scanned] == 232).all()
    assert (filled[scanned] == image[scanned]).all()
    assert with_background(image, np.zeros((120, 120), bool)) is image


@given(st.integers(0, 2**31), st.floats(0.5, 15))
def test_a_square_reaches_what_was_not_scanned_where_it_holds_such_a_pixel(seed, half):
    rng = np.random.default_rng(seed)
    scanned = rng.random((40, 50)) > 0.01
    centres = rng.uniform(0, (50, 40), (20, 2))
    told = reaches_unscanned(centres, half, scanned)
    for (x, y), reaches in zip(centres, told, strict=True):
        left, top = (max(0, int(np.floor(v - half))) for v in (x, y))
        right, bottom = (int(np.ceil(v + half)) for v in (x, y))
        assert reaches == (not scanned[top:bottom, left:right].all())


@pytest.mark.parametrize("fill", [255, 0])
def test_a_gap_does_not_change_what_is_found_beside_it(tmp_path: Path, render, write_pyramid, grid_of_discs, fill):
    image = render((240.0, 160.0), grid_of_discs, 0.25).copy()
    gap_from = 500  # px: 125 µm
    without = image.copy()
    without[:, gap_from:] = (236, 232, 238)
    with_gap = image.copy()
    with_gap[:, gap_from:] = fill
    crop_um = 12.0
    plain = find_cells(write_pyramid(tmp_path / "plain.tif", without, 0.25), CellFinding(), crop_um=crop_um)
    gapped = find_cells(write_pyramid(tmp_path / "gap.tif", with_gap, 0.25), CellFinding(), crop_um=crop_um)
    clear = gap_from - crop_um / 0.25 / 2 - 4
    assert gapped.whole.centres[:, 0].max() < gap_from - crop_um / 0.25 / 2 + 4
    expected = plain.whole[plain.whole.centres[:, 0] < clear].centres
    assert len(expected) > 20
    found = gapped.whole[gapped.whole.centres[:, 0] < clear].centres
    assert np.allclose(found, expected, atol=0.5)


def test_cells_whose_crop_leaves_the_slide_are_marked(make_slide):
    discs = [(60.0, 60.0, 4.0), (5.0, 60.0, 4.0), (60.0, 6.5, 4.0), (237.0, 80.0, 4.0), (100.0, 155.5, 4.0)]
    cells = find_cells(make_slide(discs), CellFinding(), crop_um=12.0)
    at_edge = {
        tuple(np.round(centre * 0.25 / 5).astype(int)): edge
        for centre, edge in zip(cells.centres, cells.at_edge, strict=True)
    }
    assert at_edge == {(12, 12): False, (1, 12): True, (12, 1): False, (47, 16): True, (20, 31): True}
    assert not find_cells(make_slide(discs), CellFinding()).at_edge.any()


@pytest.mark.parametrize("tile_px", [200, 1280])
def test_edges_do_not_depend_on_the_tiles(make_slide, grid_of_discs, tile_px):
    cells = find_cells(make_slide(grid_of_discs), CellFinding(tile_px=tile_px), crop_um=30.0)
    half = 30.0 / 0.25 / 2
    outside = ((cells.centres < half) | (cells.centres > np.array((960, 640)) - half)).any(1)
    assert 5 < outside.sum() < 55
    assert (cells.at_edge == outside).all()


def bounded(path, image, x, y):
    """A Leica-like slide (OpenSlide's bounds, transparent around them), written as its format wants."""
    height, width = image.shape[:2]
    canvas = 3000, 2000
    description = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="u">'
        f'<collection name="c" uuid="u" sizeX="{canvas[0] * 250}" sizeY="{canvas[1] * 250}">'
        '<image name="i" uuid="u"><creationDate>2020-01-01T00:00:00Z</creationDate><device model="m" version="1"/>'
        f'<pixels sizeX="{width}" sizeY="{height}"><dimension sizeX="{width}" sizeY="{height}" r="0" ifd="0"/></pixels>'
        f'<view sizeX="{width * 250}" sizeY="{height * 250}" offsetX="{x * 250}" offsetY="{y * 250}"/>'
        "<scanSettings><objectiveSettings><objective>40</objective></objectiveSettings>"
        "<illuminationSettings><numericalAperture>1</numericalAperture><illuminationSource>brightfield"
        "</illuminationSource></illuminationSettings></scanSettings></image></collection></scn>"
    )
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            image,
            tile=(256, 256),
            photometric="rgb",
            description=description,
            metadata=None,
            resolution=(40000, 40000),
            resolutionunit="CENTIMETER",
        )
    return path


def test_places_count_from_the_corner_of_the_slides_bounds(tmp_path: Path, render, grid_of_discs):
    from cytomil.bags.whole_slides import cut_cells
    from cytomil.slides import Cutting, open_slide

    image = render((240.0, 160.0), grid_of_discs, 0.25)
    path = bounded(tmp_path / "s.scn", image, 1500, 1000)
    with open_slide(path) as slide:
        assert slide.origin == (1500, 1000)
        assert slide.dimensions == (960, 640)
        assert np.abs(slide.read(0, 0, 960, 640, 0.25).astype(int) - image).max() <= 1
        cells = find_cells(path, CellFinding(), crop_um=12.0)
        assert len(cells) == 60
        cutting = Cutting(12.0, 48)
        instance = next(cut_cells(slide, cells.whole, cutting))
        x, y = cells.whole.centres[0]
        assert instance.instance_id == f"x{x:.0f}y{y:.0f}"
        assert np.abs(np.array(instance.coords) - (x + 1500 - 24, y + 1000 - 24)).max() <= 1
        thumbnail = Image.fromarray(slide.thumbnail(240))
        assert thumbnail.size == (240, 160)
