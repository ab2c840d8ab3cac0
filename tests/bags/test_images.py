from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from cytomil.bags.images import encode_image, open_image, read_image
from cytomil.errors import ImageUnreadableError

FORMATS = ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_opens_as_rgb(cell_image, kind):
    image = open_image(cell_image(0, 9, kind), "cell")
    assert image.mode == "RGB"
    assert image.size == (9, 9)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_opens_as_rgb(mode):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (200, 200, 200)).convert(mode).save(buffer, "TIFF")
    assert np.asarray(open_image(buffer.getvalue(), "cell")).shape == (8, 9, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not a JPEG"),
        (b"\xff\xd8\xff", "not a JPEG"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aaa\nsize 3\n", "git lfs pull"),
        (b"\r\n<!DOCTYPE html><html>login</html>", "web page"),
        (b"%PDF-1.4", "PDF"),
        (bytes(4000), "all zeros"),
    ],
)
def test_what_is_no_image_is_refused_by_name(content, reason):
    with pytest.raises(ImageUnreadableError, match=rf"^s1/cell\.jpg: .*{reason}"):
        open_image(content, "s1/cell.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_is_refused(cell_image, kind, share):
    whole = cell_image(0, 32, kind)
    with pytest.raises(ImageUnreadableError, match="cell"):
        open_image(whole[: int(share * len(whole))], "cell")


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    kind=st.sampled_from(FORMATS),
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(40, 3000), st.integers(1, 255)), max_size=3),
)
@settings(max_examples=150)
def test_damage_gives_an_image_or_the_one_exception(cell_image, kind, cut, flips):
    damaged = bytearray(cell_image(0, 24, kind))
    assume(cut < len(damaged))
    for place, flip in flips:
        damaged[place % len(damaged)] ^= flip
    try:
        assert open_image(bytes(damaged[: len(damaged) - cut]), "cell").mode == "RGB"
    except ImageUnreadableError as error:
        assert str(error).startswith("cell: ")


def by_pillow(encoded):
    """What Pillow makes of it, or None."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None


def jpeg(shape, seed, mode="RGB", **options):
    small = np.random.default_rng(seed).integers(0, 256, (1 + shape[1] // 5, 1 + shape[0] // 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(shape, Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@given(
    shape=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    quality=st.integers(5, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    orientation=st.sampled_from([None, 3, 6]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150)
def test_a_jpeg_of_any_kind_gives_the_pixels_that_pillow_gives(
    shape, mode, quality, subsampling, progressive, orientation, seed
):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive, "exif": exif}
    encoded = jpeg(shape, seed, mode, **options)
    assert np.array_equal(np.asarray(open_image(encoded, "cell")), by_pillow(encoded))


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(2, 3000), st.integers(1, 255)), max_size=2),
    progressive=st.booleans(),
)
@settings(max_examples=300)
def test_a_damaged_jpeg_is_judged_as_pillow_judges_it(cut, flips, progressive):
    damaged = bytearray(jpeg((31, 26), 1, progressive=progressive))
    for place, flip in flips:
        damaged[place % len(damaged)] ^= flip
    encoded = bytes(damaged[: len(damaged) - cut])
    expected = by_pillow(encoded)
    try:
        opened = np.asarray(open_image(encoded, "cell"))
    except ImageUnreadableError:
        assert expected is None
    else:
        # A foreign format is another matter: not all that Pillow knows are read.
        assert expected is None or np.array_equal(opened, expected)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1, 1), "1×1 px is too small"),
        ((7, 40), "too small"),
        ((640, 480), "whole field"),
        ((480, 640), "whole field"),
        ((1025, 900), "whole field"),
        ((1000, 20_000), "whole field"),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_that_is_no_single_cell_is_refused(size, reason, kind):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    with pytest.raises(ImageUnreadableError, match=rf"^cell: .*{reason}"):
        open_image(buffer.getvalue(), "cell")


@pytest.mark.parametrize("size", [(8, 8), (470, 640), (512, 512), (1024, 1024)])
def test_a_cell_may_be_large(size):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    assert open_image(buffer.getvalue(), "cell").size == size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_000, 60_000])
def test_an_image_bomb_is_refused_before_it_is_decoded(side):
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "BMP")
    header = bytearray(buffer.getvalue())
    header[18:26] = side.to_bytes(4, "little") * 2
    with pytest.raises(ImageUnreadableError, match=r"^cell: (it has more pixels|13000×13000 px)"):
        open_image(bytes(header), "cell")


def test_reading_gives_the_bytes_as_they_are(tmp_path, cell_image):
    (tmp_path / "a.png").write_bytes(cell_image(1))
    assert read_image(tmp_path / "a.png", "a.png") == cell_image(1)


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(ImageUnreadableError, match=r"^a\.png: cannot be read"):
        read_image(tmp_path / "a.png", "a.png")


def test_reading_without_permission_says_so(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ImageUnreadableError, match=r"^a\.png: no permission to read it"):
        read_image(tmp_path / "a.png", "a.png")


def test_encoding_keeps_shape_and_nearly_the_pixels():
    across = np.linspace(0, 255, 20, dtype=np.uint8)
    pixels = np.broadcast_to(across[None, :, None], (16, 20, 3)).copy()
    decoded = np.asarray(open_image(encode_image(pixels), "cell")).astype(int)
    assert decoded.shape == (16, 20, 3)
    assert np.abs(decoded - pixels).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_comment_is_not_passed_on(mode):
    encoded, saved = io.BytesIO(), io.BytesIO()
    Image.new(mode, (64, 64)).save(encoded, "JPEG", comment=b"PATIENT")
    open_image(encoded.getvalue(), "cell").save(saved, "JPEG")
    assert b"PATIENT" not in saved.getvalue()
