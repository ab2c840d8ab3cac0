from __future__ import annotations

import io
import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from cytomil.bags.images import encode_image, find_images, open_image, printable, read_image
from cytomil.errors import ImageUnreadableError

FORMATS = ["JPEG", "PNG", "TIFF", "BMP"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_opens_as_rgb(cell_image, kind):
    image = open_image(cell_image(0, 9, kind), "cell")
    assert image.mode == "RGB"
    assert image.size == (9, 9)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_opens_as_rgb(mode):
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (200, 200, 200)).convert(mode).save(buffer, "TIFF")
    assert np.asarray(open_image(buffer.getvalue(), "cell")).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not a JPEG"),
        (b"\xff\xd8\xff", "not a JPEG"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG"),
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
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
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
        # A foreign format is another matter: here only JPEG, PNG, TIFF and BMP are read.
        assert expected is None or np.array_equal(opened, expected)


def test_a_decompression_bomb_is_refused():
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "BMP")
    header = bytearray(buffer.getvalue())
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(ImageUnreadableError, match="cell: damaged"):
        open_image(bytes(header), "cell")


def test_reading_gives_the_bytes_as_they_are(tmp_path, cell_image):
    (tmp_path / "a.png").write_bytes(cell_image(1))
    assert read_image(tmp_path / "a.png", "a.png") == cell_image(1)


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(ImageUnreadableError, match=r"^a\.png: cannot be read"):
        read_image(tmp_path / "a.png", "a.png")


def test_encoding_keeps_shape_and_nearly_the_pixels():
    across = np.linspace(0, 255, 20, dtype=np.uint8)
    pixels = np.broadcast_to(across[None, :, None], (16, 20, 3)).copy()
    decoded = np.asarray(open_image(encode_image(pixels), "cell")).astype(int)
    assert decoded.shape == (16, 20, 3)
    assert np.abs(decoded - pixels).mean() < 3


def test_finding_looks_at_any_depth_and_only_at_images(tmp_path):
    wanted = ["b.PNG", "a/x.jpg", "a/deep/er/y.jpeg", "a/z.TIFF", "c.tif", "d.bmp"]
    others = ["notes.txt", ".hidden.png", "a/._x.jpg", "e.png.part", "f", "g.gif"]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = find_images(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in found} == set(wanted)
    assert found == sorted(found)


def test_printable_names():
    assert printable("Zelle-ü 1.png") == "Zelle-ü 1.png"
    escaped = printable(os.fsdecode(b"Zelle-\xfc.png"))
    assert escaped == "Zelle-\\xfc.png"
    escaped.encode("utf-8")
