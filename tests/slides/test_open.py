from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from cytomil.errors import PixelsNotSquareError, ResolutionError, SlideUnreadableError
from cytomil.slides import CellFinding, Resolutions, find_cells, is_slide_file, iter_crops, open_slide, qc_thumbnail

MakeSlide = Callable[..., Path]
Write = Callable[..., Path]


def test_resolution_comes_from_the_file(make_slide: MakeSlide) -> None:
    with open_slide(make_slide([], mpp=0.25)) as slide:
        assert slide.mpp == pytest.approx(0.25)
        assert slide.mpp_source == "file"
        assert slide.dimensions == (960, 640)


def test_a_given_resolution_wins_over_the_files(make_slide: MakeSlide) -> None:
    with open_slide(make_slide([], mpp=0.25), mpp=0.5) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.5, "given")


@pytest.mark.parametrize("tag", [None, 1000.0, 0.01])
def test_absent_or_implausible_resolution_names_the_cure(make_slide: MakeSlide, tag: float | None) -> None:
    path = make_slide([], tag=tag)
    with pytest.raises(ResolutionError, match=r"slide\.tif.*--mpp 0\.25.*CSV"):
        open_slide(path)
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25


def test_an_implausible_given_resolution_is_refused(make_slide: MakeSlide) -> None:
    with pytest.raises(ResolutionError, match="25 µm/px was given"):
        open_slide(make_slide([]), mpp=25)


def test_a_plain_field_needs_a_given_resolution(tmp_path: Path) -> None:
    path = tmp_path / "field.png"
    Image.new("RGB", (50, 40), (10, 20, 30)).save(path)
    with pytest.raises(ResolutionError, match="does not state its resolution"):
        open_slide(path)
    with open_slide(path, mpp=0.25) as slide:
        assert slide.dimensions == (50, 40)
        assert slide.read(10, 10, 4, 4, 0.25).tolist() == np.full((4, 4, 3), (10, 20, 30)).tolist()


def test_a_screen_resolution_in_a_photo_is_implausible(tmp_path: Path) -> None:
    path = tmp_path / "field.jpg"
    Image.new("RGB", (50, 40)).save(path, dpi=(300, 300))
    with pytest.raises(ResolutionError, match="84"):
        open_slide(path)


def test_an_untiled_tiff_is_a_plain_field(tmp_path: Path) -> None:
    path = tmp_path / "field.tif"
    tifffile.imwrite(path, np.zeros((40, 50, 3), np.uint8), resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.svs", b"", "is empty"),
        ("text.svs", b"patient,label\n1,0\n", "not a whole slide"),
        ("text.tif", b"patient,label\n1,0\n", "not a JPEG, PNG, TIFF"),
        ("text.png", b"patient,label\n1,0\n", "not a JPEG, PNG, TIFF"),
        ("text.mrxs", b"patient,label\n1,0\n", "text.mrxs"),
        ("text.dcm", b"patient,label\n1,0\n", "not a whole slide"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SlideUnreadableError, match=why) as error:
        open_slide(path, mpp=0.25)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_and_a_missing_file_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "case.mrxs").mkdir()
    with pytest.raises(SlideUnreadableError, match="is a folder"):
        open_slide(tmp_path / "case.mrxs")
    with pytest.raises(SlideUnreadableError, match="does not exist"):
        open_slide(tmp_path / "other.svs")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_a_tiff_cut_before_its_directory(make_slide: MakeSlide) -> None:
    path = make_slide([(20, 20, 4)])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SlideUnreadableError, match=r"slide\.tif"), open_slide(path, mpp=0.25) as slide:
        slide.thumbnail(100)


def test_a_slide_that_opens_but_cannot_be_read(make_slide: MakeSlide) -> None:
    path = make_slide([(20, 20, 4)])
    with tifffile.TiffFile(path) as tiff:
        offsets = tiff.pages[0].tags["TileOffsets"]
        entry, count = offsets.valueoffset, offsets.count
    data = bytearray(path.read_bytes())
    data[entry : entry + 4 * count] = struct.pack("<I", len(data) + 1000) * count
    path.write_bytes(bytes(data))
    with open_slide(path) as slide, pytest.raises(SlideUnreadableError, match=r"cannot be read at level-0 \(0, 0\)"):
        slide.read(0, 0, 10, 10, slide.mpp)
    for workers in (1, 2):
        with pytest.raises(SlideUnreadableError, match=r"slide\.tif"):
            find_cells(path, CellFinding(tile_px=256), workers=workers)


def test_slide_files_are_told_by_name_and_kind(tmp_path: Path) -> None:
    (tmp_path / "A.SVS").touch()
    (tmp_path / "._A.svs").touch()
    (tmp_path / "cells.csv").touch()
    (tmp_path / "folder.mrxs").mkdir()
    assert [p.name for p in sorted(tmp_path.iterdir()) if is_slide_file(p)] == ["A.SVS"]


@pytest.fixture
def gradient(tmp_path: Path, write_pyramid: Write) -> Path:
    y, x = np.mgrid[:512, :640]
    image = np.stack([x / 4, y / 4, np.full_like(x, 77)], axis=-1).astype(np.uint8)
    return write_pyramid(tmp_path / "gradient.tif", image, 0.25)


def test_read_gives_the_pixels_of_the_file(gradient: Path) -> None:
    with open_slide(gradient) as slide:
        region = slide.read(200, 100, 30, 20, 0.25)
    assert region.shape == (20, 30, 3)
    assert region.dtype == np.uint8
    assert region[3, 8].tolist() == [52, 25, 77]


@pytest.mark.parametrize("mpp", [0.2, 0.25, 0.4, 0.5, 0.7, 1.0, 1.9])
def test_read_at_any_resolution_shows_the_same_place(gradient: Path, mpp: float) -> None:
    with open_slide(gradient) as slide:
        region = slide.read(120, 160, 20, 16, mpp)
    scale = mpp / 0.25
    assert abs(float(region[..., 0].mean()) - (120 + 10 * scale) / 4) < 1
    assert abs(float(region[..., 1].mean()) - (160 + 8 * scale) / 4) < 1


def test_outside_the_slide_is_white(gradient: Path) -> None:
    with open_slide(gradient) as slide:
        region = slide.read(-10, -10, 20, 20, 0.25)
        beyond = slide.read(5000, 5000, 8, 8, 0.25)
    assert (region[:9] == 255).all()
    assert (region[:, :9] == 255).all()
    assert region[15, 15, 2] == 77
    assert (beyond == 255).all()


def test_a_region_does_not_depend_on_what_is_read_around_it(gradient: Path) -> None:
    with open_slide(gradient) as slide:
        wide = slide.read(0, 0, 200, 160, 0.7)
        scale = 0.7 / 0.25
        part = slide.read(50 * scale, 40 * scale, 60, 50, 0.7)
    assert np.abs(wide[40:90, 50:110].astype(int) - part).max() <= 1


def test_thumbnail_fits_and_never_enlarges(gradient: Path) -> None:
    with open_slide(gradient) as slide:
        assert slide.thumbnail(100).shape == (80, 100, 3)
        assert slide.thumbnail(9000).shape == (512, 640, 3)


def test_label_and_macro_pictures_are_never_read(gradient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("a label or macro picture was asked for: patient names stand there")

    monkeypatch.setattr(openslide.AbstractSlide, "associated_images", property(refuse))
    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refuse))
    with open_slide(gradient) as slide:
        cells = find_cells(gradient, CellFinding())
        qc_thumbnail(slide, cells)
        list(iter_crops(slide, cells, crop_um=10, crop_px=32))
    sources = Path(open_slide.__code__.co_filename).parent.glob("*.py")
    assert not [path.name for path in sources if "associated_images" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(("ratio", "is_square"), [(1.0, True), (1.005, True), (1.1, False), (2.0, False)])
def test_unequal_resolutions_are_refused_and_no_fallback_cures_them(
    tmp_path: Path, render: Callable[..., np.ndarray], ratio: float, is_square: bool
) -> None:
    path = tmp_path / "s.tif"
    resolution = (1e4 / 0.25, 1e4 / (0.25 * ratio))
    tifffile.imwrite(
        path, render((40, 40), [], 0.25), tile=(128, 128), resolution=resolution, resolutionunit="CENTIMETER"
    )
    if is_square:
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx(0.25)
        return
    with pytest.raises(PixelsNotSquareError, match=r"s\.tif: the file states 0\.25 µm/px across"):
        Resolutions(fallback=0.3).open(path)
    with Resolutions({"s": 0.25}).open(path) as slide:
        assert slide.mpp == 0.25


FIELD = np.random.default_rng(5).integers(60, 250, (96, 128, 3), np.uint8)


def retagged(path: Path, **tags: int) -> Path:
    """A small tiled TIFF with these tags overwritten, which this machine's writers would not write."""
    tifffile.imwrite(path, FIELD, tile=(32, 32), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name, value in tags.items():
            tiff.pages[0].tags[name].overwrite(value, dtype="I")
    return path


@pytest.mark.parametrize(
    ("compression", "named"),
    [(34712, "JPEG 2000"), (50001, "WebP"), (50000, "Zstandard"), (34887, "LERC")],
)
def test_a_compression_that_openslide_lacks_is_named(tmp_path: Path, compression: int, named: str) -> None:
    with pytest.raises(SlideUnreadableError, match=rf"{named} compression .*pyramidal tiled TIFF") as error:
        open_slide(retagged(tmp_path / "a.tif", Compression=compression), mpp=0.25).thumbnail(50)
    assert "damaged" not in str(error.value)


def test_floating_point_is_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", FIELD.astype(np.float32), tile=(32, 32), photometric="rgb")
    with pytest.raises(SlideUnreadableError, match="floating-point"), open_slide(tmp_path / "a.tif", mpp=0.25) as slide:
        slide.thumbnail(50)


@pytest.mark.parametrize("tags", [{"TileWidth": 0x7FFFFFFF}, {"TileLength": 0x10000000}, {"TileWidth": 0xFFFFFFFF}])
def test_an_absurd_tile_is_refused_before_openslide_asks_for_its_memory(tmp_path: Path, tags: dict[str, int]) -> None:
    with pytest.raises(SlideUnreadableError, match="impossible tile size"):
        open_slide(retagged(tmp_path / "a.tif", **tags), mpp=0.25)


def test_an_absurd_size_is_refused(tmp_path: Path) -> None:
    for absurd in ({"ImageWidth": 0x7FFFFFFF, "ImageLength": 0x7FFFFFFF}, {"ImageLength": 0x7FFFFFFF}):
        with pytest.raises(SlideUnreadableError, match="impossible size"):
            open_slide(retagged(tmp_path / "a.tif", **absurd), mpp=0.25)


def test_a_size_for_which_the_file_lists_too_few_tiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SlideUnreadableError, match=r"lists \d+ tiles, but [\d,×]+ px need [\d,]+\. The file is damaged"
    ):
        open_slide(retagged(tmp_path / "a.tif", ImageLength=1_000_000), mpp=0.25)


def test_several_full_pages_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for plane in np.moveaxis(FIELD, 2, 0):
            tiff.write(plane, tile=(32, 32), photometric="minisblack")
    with pytest.raises(SlideUnreadableError, match="3 pages of full size"):
        open_slide(tmp_path / "a.tif", mpp=0.25)


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32)}])
def test_grey_of_16_bits_is_read_as_that_of_8_or_refused(tmp_path: Path, options: dict[str, object]) -> None:
    grey, path = FIELD[..., 0], tmp_path / "a.tif"
    shown = []
    for data in (grey, grey.astype(np.uint16) * 257):
        tifffile.imwrite(path, data, photometric="minisblack", **options)
        with open_slide(path, mpp=0.25) as slide:
            shown.append(slide.read(0, 0, 128, 96, 0.25))
    assert np.array_equal(*shown)
    tifffile.imwrite(path, grey.astype(np.uint16) * 16, photometric="minisblack", **options)
    with pytest.raises(SlideUnreadableError, match="10 to 15 bits"):
        open_slide(path, mpp=0.25)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"<html>log in</html>", "a web page"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")],
)
@pytest.mark.parametrize("name", ["a.svs", "a.tif", "a.png", "a.ndpi"])
def test_what_lies_there_in_a_slides_place_is_named(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideUnreadableError, match=why) as error:
        open_slide(tmp_path / name, mpp=0.25)
    assert ".." not in str(error.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (15_000, 15_000)])
def test_a_plain_picture_above_the_limit_says_what_to_do(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "a.png")
    with pytest.raises(SlideUnreadableError, match=r"Save it as a pyramidal tiled TIFF\.$"):
        open_slide(tmp_path / "a.png", mpp=0.25)


@pytest.mark.parametrize("name", ["a.png", "a.svs"])
def test_no_permission_and_a_broken_link_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SlideUnreadableError, match="a link to a file that does not exist"):
        open_slide(tmp_path / "link", mpp=0.25)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SlideUnreadableError, match="no permission to read it"):
        open_slide(tmp_path / name, mpp=0.25)


def test_transparency_of_a_field_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (40, 30), 0)
    image.putpalette([90, 20, 30])
    image.save(tmp_path / "a.png", transparency=0)
    with open_slide(tmp_path / "a.png", mpp=0.25) as slide:
        assert (slide.read(0, 0, 40, 30, 0.25) == 255).all()


@pytest.mark.parametrize("size", [(128, 128), (256, 96), (64, 200)])
def test_a_label_among_the_pages_of_a_tiff_is_never_shown(tmp_path, size):
    """OpenSlide takes any smaller tiled page for a level of the pyramid."""
    path, secret = tmp_path / "slide.tif", np.array([250, 3, 3], np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        level = np.full((600, 800, 3), (120, 130, 140), np.uint8)
        tiff.write(level, tile=(128, 128), photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
        tiff.write(np.tile(secret, (*size, 1)), tile=(64, 64), photometric="rgb", subfiletype=1)
    with open_slide(path) as slide:
        for px in (800, 400, 160, 40):
            assert np.abs(slide.thumbnail(px).astype(int) - secret).sum(axis=2).min() > 200
