from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cytomil.errors import ResolutionError, SettingsError
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
