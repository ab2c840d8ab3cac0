"""Labels that a person gives to cells: matched by id and by place, and what is said of those that fit no cell."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cytomil.bags.bag_file import BagInfo, Instance, open_bag, write_bag
from cytomil.bags.whole_slides import cell_id
from cytomil.errors import CytomilError, TableError
from cytomil.evaluation.cell_labels import MIN_LABELLED, read_cell_labels
from cytomil.slides import Cutting

CUTTING = Cutting(crop_um=12.0, crop_px=32, diameter_um=7.0)
MPP, SPACING_PX, SIDE = 0.1, 100, 8
RADIUS_PX = CUTTING.diameter_um / MPP / 2


def image():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = image()


def write_slide_bag(path, label=1, origin=(0, 0)):
    """A bag as of a whole slide: cells on a grid, 100 px apart."""
    half = CUTTING.crop_um / MPP / 2
    centres = [(SPACING_PX * (1 + i % SIDE), SPACING_PX * (1 + i // SIDE)) for i in range(SIDE * SIDE)]
    cells = [
        Instance(cell_id(x, y), IMAGE, (round(x - half) + origin[0], round(y - half) + origin[1])) for x, y in centres
    ]
    write_bag(path, BagInfo("smear", label, cutting=CUTTING), cells)
    return open_bag(path), centres


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_slide_bag(tmp_path_factory.mktemp("bag") / "smear.h5")


def table(path, *lines, header="slide,x,y,verdict"):
    path.write_text("\n".join((header, *lines)) + "\n")
    return read_cell_labels(path)


def by_place(path, centres, shift=(0, 0), n_abnormal=4, name="smear.tif"):
    lines = [
        f"{name},{x + shift[0]},{y + shift[1]},{'abnormal' if i < n_abnormal else 'normal'}"
        for i, (x, y) in enumerate(centres)
    ]
    return table(path, *lines)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.99), st.floats(0, 2 * np.pi))
def test_a_place_within_a_cells_radius_is_that_cell(bag, tmp_path_factory, share, angle):
    found, centres = bag
    chosen = centres[5:25]
    shift = share * RADIUS_PX * np.cos(angle), share * RADIUS_PX * np.sin(angle)
    problems = []
    labels = by_place(tmp_path_factory.mktemp("labels") / "l.csv", chosen, shift).of_bag(found, problems)
    assert problems == []
    assert labels.tolist() == [-1] * 5 + [1] * 4 + [0] * 16 + [-1] * (len(centres) - 25)


def test_labels_beside_every_cell_are_listed(bag, tmp_path):
    found, centres = bag
    problems = []
    labels = by_place(tmp_path / "l.csv", [*centres[:20], (150, 150), (5000, 3)]).of_bag(found, problems)
    assert (labels >= 0).sum() == 20
    ((where, reason),) = [(one.where, one.reason) for one in problems]
    assert where == "smear" and "2 labels ((150, 150), (5000, 3))" in reason


def test_ids_and_places_mean_the_same_cells(bag, tmp_path):
    found, centres = bag
    lines = [f"smear,{cell_id(*place)},{'abnormal' if i % 2 else 'not a cell'}" for i, place in enumerate(centres[:12])]
    by_id = table(tmp_path / "a.csv", *lines, header="slide,instance_id,verdict").of_bag(found, [])
    lines = [f"smear,{x},{y},{'abnormal' if i % 2 else 'normal'}" for i, (x, y) in enumerate(centres[:12])]
    assert by_id.tolist() == table(tmp_path / "b.csv", *lines).of_bag(found, []).tolist()


def test_geojson_of_the_slide_gives_the_same_labels(bag, tmp_path):
    found, centres = bag
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x - 9, y - 9], [x + 9, y - 9], [x + 9, y + 9], [x - 9, y + 9]]],
            },
            "properties": {"classification": {"name": "Positive" if i < 3 else "normal"}},
        }
        for i, (x, y) in enumerate(centres[:15])
    ]
    path = tmp_path / "smear.tif.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    problems = []
    labels = read_cell_labels(path).of_bag(found, problems)
    assert (problems, labels[:16].tolist()) == ([], [1] * 3 + [0] * 12 + [-1])


@pytest.mark.parametrize(
    ("n", "n_abnormal", "said"),
    [
        (MIN_LABELLED - 1, 4, f"only {MIN_LABELLED - 1} of its cells are labelled"),
        (MIN_LABELLED, 0, "all 10 labelled cells are normal"),
        (MIN_LABELLED, MIN_LABELLED, "all 10 labelled cells are abnormal"),
    ],
)
def test_too_few_labels_give_no_figures_and_say_so(bag, tmp_path, n, n_abnormal, said):
    found, centres = bag
    problems = []
    assert by_place(tmp_path / "l.csv", centres[:n], n_abnormal=n_abnormal).of_bag(found, problems) is None
    assert said in problems[0].reason


def test_a_contradiction_does_not_count_and_is_listed(bag, tmp_path):
    found, centres = bag
    (x, y), problems = centres[0], []
    lines = [f"smear,{a},{b},{'abnormal' if i < 3 else 'normal'}" for i, (a, b) in enumerate(centres[:15])]
    labels = table(tmp_path / "l.csv", *lines, f"smear,{x + 1},{y},normal").of_bag(found, problems)
    assert labels[:3].tolist() == [-1, 1, 1]
    assert f"1 cell ({cell_id(x, y)}) with contradictory labels" in problems[0].reason


def test_abnormal_cells_of_a_negative_slide_are_told(tmp_path):
    found, centres = write_slide_bag(tmp_path / "smear.h5", label=0)
    problems = []
    assert by_place(tmp_path / "l.csv", centres[:20]).of_bag(found, problems) is None
    assert "its label is 0, but 4 of its cells" in problems[0].reason


def test_without_known_places_ids_are_wanted(tmp_path):
    """An origin of the slide's picture is not in the bag, so nobody knows how large a pixel is."""
    found, centres = write_slide_bag(tmp_path / "smear.h5", origin=(4000, 900))
    problems = []
    assert by_place(tmp_path / "l.csv", centres[:20]).of_bag(found, problems) is None
    assert "give the instance_id of each label" in problems[0].reason


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("s,1,2,malignant", "malignant"),
        ("s,,2,normal", "instance_id"),
        ("s,1,nan,normal", "instance_id"),
        ("s,1,two,normal", "instance_id"),
    ],
)
def test_a_line_that_names_no_cell_is_refused(tmp_path, line, said):
    with pytest.raises(TableError, match=f"line 2.*{said}"):
        table(tmp_path / "l.csv", line)


def test_a_missing_file_is_one_line(tmp_path):
    for name in ("none.csv", "none.geojson"):
        with pytest.raises(CytomilError, match="none"):
            read_cell_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("slide", "bags", "unknown"),
    [
        ("smear", ["smear.tif", "other"], {}),
        ("smear.tif", ["smear", "other"], {}),
        ("smear", ["smear", "smear.tif"], None),
        ("7", ["7.2"], {"7": 1}),
        ("smear.svs", ["smear.tif"], {"smear.svs": 1}),
        ("smear", ["smear.svs", "smear.tif"], None),
    ],
)
def test_a_slide_may_be_named_without_its_suffix(tmp_path, slide, bags, unknown):
    labels = table(tmp_path / "l.csv", f"{slide},1,2,normal")
    if unknown is None:
        with pytest.raises(TableError, match="matches the bags smear"):
            labels.without_bag(bags)
    else:
        assert labels.without_bag(bags) == unknown
