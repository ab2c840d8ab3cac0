from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cytomil.errors import ResolutionError, SettingsError, TableError
from cytomil.slides import Cutting, Resolutions, read_resolutions

MakeSlide = Callable[..., Path]


@pytest.mark.parametrize(
    ("tag", "row", "fallback", "expected"),
    [
        (0.25, None, None, 0.25),
        (0.25, None, 0.5, 0.25),
        (0.25, 0.4, 0.5, 0.4),
        (None, None, 0.5, 0.5),
        (1000.0, None, 0.5, 0.5),
        (1000.0, 0.4, None, 0.4),
    ],
)
def test_row_then_file_then_fallback(
    make_slide: MakeSlide, tag: float | None, row: float | None, fallback: float | None, expected: float
) -> None:
    resolutions = Resolutions({"slide": row} if row else {}, fallback)
    with resolutions.open(make_slide([], tag=tag)) as slide:
        assert slide.mpp == pytest.approx(expected)


def test_an_implausible_row_is_not_passed_over_in_silence(make_slide: MakeSlide) -> None:
    with pytest.raises(ResolutionError, match="25 µm/px was given"):
        Resolutions({"slide.tif": 25.0}, 0.5).open(make_slide([]))


def test_the_csv_takes_names_with_and_without_suffix(tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("\ufeffslide,mpp\na.tif, 0.25 \nb,0.5\n", encoding="utf-8")
    resolutions = Resolutions(read_resolutions(tmp_path / "mpp.csv"))
    assert [resolutions.of(Path(name)) for name in ("a.tif", "b.svs", "a.svs", "c")] == [0.25, 0.5, None, None]


@pytest.mark.parametrize(
    ("values", "name"), [((0.1, 64), "crop_um"), ((12, 4), "crop_px"), ((12, 64, 0), "diameter_um")]
)
def test_a_cutting_out_of_range_is_refused(values: tuple[float, ...], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Cutting(*values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,mpp\na,0.2\na,0.3\n", "line 3: slide 'a' is listed twice"),
        ("slide,mpp\na.tif,0.2\na,0.3\n", "a.tif 0.2 µm/px and a 0.3"),
        ("slide,mpp\na,\n", "line 2: '' is not a number"),
        ("slide,mpp\na,0\n", "line 2: '0' is not a number"),
        ("slide,mpp\na,inf\n", "line 2: 'inf' is not a number"),
        ("slide,resolution\na,1\n", "unknown column 'resolution'. Did you mean mpp"),
        ("slide\na\n", "needs the columns slide and mpp"),
    ],
)
def test_a_table_that_cannot_be_believed_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mpp.csv").write_text(text)
    with pytest.raises(TableError, match=message):
        read_resolutions(tmp_path / "mpp.csv")


def test_a_table_of_a_spreadsheet_with_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("Slide;MPP\na.tif;0,25\n;\n")
    assert read_resolutions(tmp_path / "mpp.csv") == {"a.tif": 0.25}


def test_names_are_the_same_in_either_unicode_form() -> None:
    assert Resolutions({"\u00e9": 0.25}).of(Path("e\u0301.tif")) == 0.25
