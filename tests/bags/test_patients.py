"""Bags of real people: one patient a bag, and no patient in two splits."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.bags import open_bag
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.instance_labels import read_instance_labels, read_instance_sources
from cytomil.bags.make import make_bags
from cytomil.errors import NotEnoughCellsError, SettingsError, TableError
from cytomil.progress import Silent

N_NORMAL, N_ABNORMAL = 12, 4


@pytest.fixture
def cells(tmp_path, cell_image):
    """Class folders with two healthy (h…) and eight ill people (p…)."""
    root = tmp_path / "cells"
    seed = 0
    for patient in ("h0", "h1", *(f"p{i}" for i in range(8))):
        for name, n in (("sound", N_NORMAL), ("sick", N_ABNORMAL if patient[0] == "p" else 0)):
            for i in range(n):
                file = root / name / patient / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(cell_image(seed := seed + 1))
    return root


@pytest.fixture
def make(tmp_path):
    """Make bags of class folders whose people are known."""

    def run(root, patients="folder", **changes):
        chosen = {"bag_size": 10, "witness_rate": 0.2, "train_bags": 6, "test_bags": 2} | changes
        source = {"source": str(root), "normal": ("sound",), "abnormal": ("sick",)}
        return make_bags(MakeBagsConfig(**source, patients=patients, out=tmp_path / "bags", **chosen), Silent())

    return run


def people_in(made, row):
    return {source.split("/")[1] for source in read_instance_sources(made.folder / row.path).values()}


def sides(made):
    found = {}
    for row in made.rows:
        found.setdefault(row.patient_id, set()).add(row.split)
    return found


def test_a_bag_holds_one_patients_cells(make, cells):
    made = make(cells)
    assert [(row.split, row.n_instances) for row in made.rows] == [("train", 10)] * 6 + [("test", 10)] * 2
    for row in made.rows:
        assert people_in(made, row) == {row.patient_id}
        assert open_bag(made.folder / row.path).info.patient_id == row.patient_id
        labels = read_instance_labels(made.folder / row.path)
        assert sum(labels.values()) == 2 * row.label
        assert row.witness_rate == (0.2 if row.label else 0.0)
    assert len(sides(made)) == 8
    assert made.problems == ()


def test_ill_people_make_bags_of_either_label_before_healthy_ones_do(make, cells):
    made = make(cells)
    assert all(row.patient_id.startswith("p") for row in made.rows)
    assert any(
        "4 of 4 negative bags are normal cells of patients who have abnormal ones" in note for note in made.notes
    )
    more = make(cells, train_bags=7, test_bags=3)
    assert {row.patient_id for row in more.rows if not row.label} >= {"h0", "h1"}
    assert any(note.startswith("2 negative bags are of patients without any abnormal cell") for note in more.notes)


@given(bags=st.tuples(st.integers(1, 9), st.integers(1, 5)), size=st.integers(2, 6), seed=st.integers(0, 5))
@settings(max_examples=25)
def test_no_patient_stands_on_both_sides_and_no_cell_in_two_bags(tmp_path_factory, bags, size, seed):
    root = tmp_path_factory.getbasetemp() / "drawn-cells"
    if not root.exists():
        import io

        from PIL import Image

        for number in range(5 * 16):
            patient, i = divmod(number, 16)
            file = root / ("sound" if i < 12 else "sick") / f"p{patient}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            Image.new("RGB", (2, 2), (number, 0, 0)).save(buffer, "PNG")
            file.write_bytes(buffer.getvalue())
    chosen = MakeBagsConfig(
        source=str(root),
        normal=("sound",),
        abnormal=("sick",),
        patients="folder",
        out=tmp_path_factory.getbasetemp() / "drawn-bags",
        bag_size=size,
        witness_rate=0.2,
        train_bags=bags[0],
        test_bags=bags[1],
        seed=seed,
    )
    try:
        made = make_bags(chosen, Silent())
    except NotEnoughCellsError:
        return
    assert all(len(side) == 1 for side in sides(made).values())
    used = [source for row in made.rows for source in read_instance_sources(made.folder / row.path).values()]
    assert len(used) == len(set(used))
    assert all(people_in(made, row) == {row.patient_id} for row in made.rows)


def test_a_patient_gives_a_second_bag_only_where_none_is_left(make, cells):
    made = make(cells, bag_size=5, train_bags=14, test_bags=4)
    assert len(sides(made)) == 10
    assert all(len(side) == 1 for side in sides(made).values())


def test_the_same_seed_gives_the_same_bags(make, cells):
    first, second, third = (make(cells, seed=seed).rows for seed in (0, 0, 1))
    assert first == second != third


def test_a_table_gives_the_patients(make, cells, tmp_path):
    lines = [f"{file.relative_to(cells).as_posix()},{file.parent.name}" for file in sorted(cells.rglob("*.png"))]
    (tmp_path / "people.csv").write_text("\n".join(["Image,Patient ID", *lines[1:]]))
    made = make(cells, str(tmp_path / "people.csv"))
    assert {problem.where: problem.reason for problem in made.problems} == {
        lines[0].split(",")[0]: "has no line in people.csv"
    }
    assert all(people_in(made, row) == {row.patient_id} for row in made.rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,patient\n0.png,p0\n", "line 2: 18 files have the name '0.png'. Write the path"),
        ("image,patient\nsound/p0/0.png,p0\nsick/p0/0.png,P0\n", "'P0' is written 'p0'"),
        ("image,patient\nsound/p0/0.png,p0\nsound/p0/0.png,p1\n", "line 3: image 'sound/p0/0.png' has patient 'p0'"),
        ("image,patient\nsound/p0/0.png,\n", "line 2: image 'sound/p0/0.png' has no patient"),
        ("image,label\nsound/p0/0.png,1\n", "unknown column 'label'"),
    ],
)
def test_a_table_that_is_unclear_is_refused(make, cells, tmp_path, text, message):
    (tmp_path / "people.csv").write_text(text)
    with pytest.raises(TableError, match=message):
        make(cells, str(tmp_path / "people.csv"))


def test_a_cell_in_no_patients_folder_is_listed(make, cells, cell_image):
    (cells / "sound" / "stray.png").write_bytes(cell_image(999))
    (problem,) = make(cells).problems
    assert (problem.where, problem.reason) == ("sound/stray.png", "is in no patient's folder")


def test_a_patients_folder_in_two_spellings_is_refused(make, cells):
    (cells / "sick" / "p0").rename(cells / "sick" / "P0")
    with pytest.raises(TableError, match="is written"):
        make(cells)


def test_a_cell_of_two_patients_is_kept_once_and_said(make, cells):
    for patient in range(1, 8):
        shutil.copy(cells / "sound" / "p0" / "0.png", cells / "sound" / f"p{patient}" / "0.png")
    made = make(cells)
    assert len(made.problems) == 7
    assert all("the same image belongs to patient" in problem.reason for problem in made.problems)
    images = [image for row in made.rows for image in open_bag(made.folder / row.path).images()]
    assert images.count((cells / "sound" / "p0" / "0.png").read_bytes()) <= 1


def test_unreadable_cells_are_listed_and_another_patient_takes_the_place(make, cells):
    for file in sorted((cells / "sick" / "p3").glob("*.png")):
        file.write_text("no image")
    made = make(cells)
    assert {problem.where for problem in made.problems} == {f"sick/p3/{i}.png" for i in range(4)}
    assert not any(row.label and row.patient_id == "p3" for row in made.rows)


def test_too_few_cells_are_said_with_how_many_people_have_them(make, cells):
    with pytest.raises(
        NotEnoughCellsError, match="Of 10 patients, 0 have enough cells for a positive bag and 0 for a negative"
    ):
        make(cells, bag_size=20)


def test_patients_are_for_class_folders(tmp_path, cells):
    chosen = MakeBagsConfig(source=str(cells), labels=tmp_path / "l.csv", patients="folder", out=tmp_path / "bags")
    with pytest.raises(SettingsError, match="column 'patient'"):
        make_bags(chosen, Silent())
