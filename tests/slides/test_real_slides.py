from __future__ import annotations

from pathlib import Path

import pytest

from bench.cells import labelled_centres, match
from cytomil.errors import ResolutionError
from cytomil.slides import CellFinding, find_cells, open_slide

SLIDES = Path(__file__).parents[3] / "shared" / "data" / "slides"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not SLIDES.is_dir(), reason="the real slides are not in ../shared/data/slides"),
]


@pytest.mark.parametrize("name", ["smear-normal-1", "smear-abnormal-4"])
def test_nine_of_ten_labelled_cells_are_found_once(name: str) -> None:
    labels = labelled_centres(SLIDES / "cells.csv")[name]
    hits, duplicates = match(labels, find_cells(SLIDES / f"{name}.tif", CellFinding(), mpp=0.1).centres)
    assert hits >= 0.9 * len(labels)
    assert duplicates <= 0.02 * hits


def test_the_wrong_tag_is_told_with_its_cure() -> None:
    with pytest.raises(ResolutionError, match=r"smear-abnormal-4\.tif.*1000 µm/px.*--mpp"):
        open_slide(SLIDES / "smear-abnormal-4.tif")


def test_a_scanners_file_of_tissue_is_processed() -> None:
    with open_slide(SLIDES / "CMU-1-Small-Region.svs") as slide:
        assert slide.mpp == pytest.approx(0.499)
    assert len(find_cells(SLIDES / "CMU-1-Small-Region.svs", CellFinding())) > 500


def test_a_slide_cut_in_the_middle_is_unreadable(tmp_path: Path) -> None:
    from cytomil.errors import SlideUnreadableError

    whole = (SLIDES / "CMU-1-Small-Region.svs").read_bytes()
    path = tmp_path / "cut.svs"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SlideUnreadableError, match=r"cut\.svs"):
        find_cells(path, CellFinding())
