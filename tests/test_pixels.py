from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from cytomil.errors import PictureError
from cytomil.pixels import read_picture

GREY = np.random.default_rng(3).integers(60, 250, (20, 24), np.uint8)
COLOUR = np.random.default_rng(4).integers(60, 250, (20, 24, 3), np.uint8)


def any_size(width, height):
    pass


def pixels(encoded):
    return np.asarray(read_picture(encoded, any_size).image)


def tiff(data, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, data, **options)
    return buffer.getvalue()


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_png(values, colour_type, chunks=b""):
    """A PNG of 16 bits a channel, which Pillow does not write in colour."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    more = chunk(b"tRNS", chunks) if chunks else b""
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def as_rgb(grey):
    return np.stack([grey] * 3, axis=-1)


@pytest.mark.parametrize("factor", [256, 257])
@pytest.mark.parametrize("kind", ["png", "tiff", "big-endian tiff", "packed tiff", "jpeg 2000"])
def test_grey_of_16_bits_is_the_grey_of_8(kind, factor):
    deep = GREY.astype(np.uint16) * factor
    encoded = {
        "png": lambda: saved(Image.fromarray(deep), "PNG"),
        "tiff": lambda: tiff(deep, photometric="minisblack"),
        "big-endian tiff": lambda: tiff(deep, photometric="minisblack", byteorder=">"),
        "packed tiff": lambda: tiff(deep, photometric="minisblack", compression="zlib", predictor=True),
        "jpeg 2000": lambda: saved(Image.fromarray(deep), "JPEG2000"),
    }[kind]()
    assert np.array_equal(pixels(encoded), as_rgb(GREY))


def test_white_as_zero_is_turned_round():
    assert np.array_equal(pixels(tiff(GREY, photometric="miniswhite")), as_rgb(255 - GREY))
    deep = GREY.astype(np.uint16) * 257
    assert np.array_equal(pixels(tiff(65535 - deep, photometric="miniswhite")), as_rgb(GREY))


@pytest.mark.parametrize("kind", ["png", "tiff", "big-endian tiff"])
def test_colours_of_16_bits_are_those_of_8(kind):
    deep = COLOUR.astype(np.uint16) * 257
    encoded = {
        "png": lambda: deep_png(deep, 2),
        "tiff": lambda: tiff(deep, photometric="rgb"),
        "big-endian tiff": lambda: tiff(deep, photometric="rgb", byteorder=">"),
    }[kind]()
    assert np.array_equal(pixels(encoded), COLOUR)


@pytest.mark.parametrize("bits", [10, 12, 14, 15])
@pytest.mark.parametrize("kind", ["grey png", "grey tiff", "colour png", "colour tiff"])
def test_fewer_bits_kept_in_16_are_refused(kind, bits):
    grey, colour = ((levels.astype(np.uint16) << 8) >> (16 - bits) for levels in (GREY, COLOUR))
    encoded = {
        "grey png": lambda: saved(Image.fromarray(grey), "PNG"),
        "grey tiff": lambda: tiff(grey, photometric="minisblack"),
        "colour png": lambda: deep_png(colour, 2),
        "colour tiff": lambda: tiff(colour, photometric="rgb"),
    }[kind]()
    with pytest.raises(PictureError, match="10 to 15 bits"):
        pixels(encoded)


def test_a_scale_bar_burnt_into_12_bits_does_not_make_them_16():
    grey = GREY.astype(np.uint16) * 16
    grey[-1, :10] = 65535
    with pytest.raises(PictureError, match="10 to 15 bits"):
        pixels(tiff(grey, photometric="minisblack"))


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (GREY.astype(np.float32) / 255, {"photometric": "minisblack"}, "floating-point"),
        (COLOUR.astype(np.float32) / 255, {"photometric": "rgb"}, "floating-point"),
        (GREY.astype(np.int16), {"photometric": "minisblack"}, "signed"),
        (GREY.astype(np.uint32), {"photometric": "minisblack"}, "32 bits"),
        (np.moveaxis(COLOUR.astype(np.uint16), 2, 0), {"photometric": "rgb", "planarconfig": "separate"}, "planes"),
        (np.moveaxis(COLOUR, 2, 0), {"photometric": "minisblack"}, "3 pages"),
        (np.stack([GREY, GREY]), {"photometric": "minisblack"}, "2 pages"),
    ],
)
def test_what_would_be_a_guess_is_refused(data, options, reason):
    with pytest.raises(PictureError, match=reason):
        pixels(tiff(data, **options))


def test_lab_colours_are_refused():
    lab = Image.merge("LAB", [Image.fromarray(COLOUR[..., i]) for i in range(3)])
    with pytest.raises(PictureError, match="Lab"):
        pixels(saved(lab, "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_refused(kind):
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    with pytest.raises(PictureError, match="animation of 2"):
        pixels(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


def test_smaller_copies_behind_a_tiff_are_no_pages_of_their_own():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(COLOUR, photometric="rgb")
        file.write(COLOUR[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(pixels(buffer.getvalue()), COLOUR)


def clear(mode):
    """A picture of this mode, transparent on its left half, where a dark colour lies hidden."""
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :12] = 0
    if mode == "RGBA":
        return Image.fromarray(np.dstack([COLOUR, alpha])), COLOUR
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]), as_rgb(GREY)
    flat = np.full(GREY.shape, 1, np.uint8)
    flat[:, :12] = 0
    image = Image.fromarray(flat, "P")
    image.putpalette([90, 20, 30, 200, 180, 190])
    return image, np.broadcast_to(np.array([200, 180, 190], np.uint8), COLOUR.shape)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGBA", "PNG", {}),
        ("RGBA", "TIFF", {}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("LA", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("P", "PNG", {"transparency": bytes([0, 255])}),
        ("P", "GIF", {"transparency": 0}),
    ],
)
def test_transparency_lies_on_white(mode, kind, options):
    image, colours = clear(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels(saved(image, kind, **options))
    assert (found[:, :12] == 255).all()
    assert np.array_equal(found[:, 12:], colours[:, 12:])


def test_a_transparent_level_of_deep_grey_lies_on_white():
    deep = GREY.astype(np.uint16) * 257
    deep[:, :12] = 40_000
    found = pixels(deep_png(deep, 0, chunks=struct.pack(">H", 40_000)))
    assert (found[:, :12] == 255).all()
    assert np.array_equal(found[:, 12:], as_rgb(GREY)[:, 12:])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_the_size_is_asked_about_before_anything_is_decoded(kind):
    def refuse(width, height):
        raise PictureError(f"{width}x{height}")

    whole = saved(Image.fromarray(COLOUR), kind)
    with pytest.raises(PictureError, match="24x20"):
        read_picture(whole[: len(whole) * 3 // 4] if kind != "TIFF" else whole, refuse)


def test_the_name_does_not_matter(tmp_path):
    (tmp_path / "cell.jpg").write_bytes(saved(Image.fromarray(COLOUR), "PNG"))
    assert np.array_equal(np.asarray(read_picture(tmp_path / "cell.jpg", any_size).image), COLOUR)
