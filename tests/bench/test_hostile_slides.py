"""The bench reads what is sound, sees what is not, and lists only what has another outcome."""

from __future__ import annotations

import pytest

from bench import hostile_slides
from bench.slide_formats import tiff, tiff_pages


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    with hostile_slides._Reader(tmp_path_factory.mktemp("hostile")) as reader:
        yield reader


@pytest.mark.parametrize("name", hostile_slides.sound())
def test_the_sound_slide_of_each_format_is_read(reader, name):
    assert reader.read(hostile_slides.sound()[name])[:2] == (hostile_slides.READ, [])


def test_a_cut_slide_is_refused(reader):
    slide = hostile_slides.sound()["SVS"]
    outcome, marks, said = reader.read(slide.with_file("a.svs", slide.files["a.svs"][:2000]))
    assert (outcome, marks) == (hostile_slides.REFUSED, [])
    assert "a.svs" in said


def test_a_crash_and_a_traceback_are_told_apart(reader, monkeypatch):
    slide = tiff(tiff_pages(), "a.tif")
    crashing = hostile_slides.dicom(hostile_slides.deep_dicom())
    assert reader.read(crashing)[0] == hostile_slides.ENDED

    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(reader, "_read_all", fail)
    assert reader.read(slide)[0] == hostile_slides.FAULT


def test_hostile_slides_come_of_the_seed():
    made = [list(hostile_slides.hostile(["NDPI"], 3, seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert {kind for _, kind, _ in made[0]} == {"cut off", "header bytes", "pixel bytes", "wrong tags"}
