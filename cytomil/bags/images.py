"""Reads, decodes and encodes single cell images. Bags keep the original bytes; they are decoded when needed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cytomil.errors import ImageUnreadableError, PictureError, why_unreadable
from cytomil.limits import progress
from cytomil.pixels import read_picture

CELL_PX = (8, 1024)
"""Min and max side of a cell image, px. The crops that make-bags cuts from whole slides have the same limits."""

_FIELD_PX = 480  # no public cell data set has larger images that are not square; small camera fields are 640×480
_FIELD_ASPECT = 1.2
_MAX_BYTES = 64_000_000
_JPEG_START = b"\xff\xd8\xff"
_PLAIN_COLOURS = frozenset({"YCbCr", "Gray"})


def open_image(encoded: bytes, name: str) -> Image.Image:
    """Decode a cell image to RGB; `cytomil.pixels` documents the accepted formats.

    Raises `ImageUnreadableError`, which names ``name``, if the bytes are damaged or are not an image of a single cell.
    """
    try:
        pixels = _decode_plain_jpeg(encoded)
        image = read_picture(encoded, _require_cell_size).image if pixels is None else Image.fromarray(pixels)
    except PictureError as error:
        raise ImageUnreadableError(f"{name}: {error}") from None
    # Pillow would save a comment again, and a patient's name may be in it.
    image.info = {}
    return image


def looks_like_field(width: int, height: int) -> bool:
    """Whether a picture of this size may be a whole field instead of a cell: both sides have at least 480 px."""
    return min(width, height) >= _FIELD_PX


def _require_cell_size(width: int, height: int) -> None:
    """Raise `PictureError` if a picture is too small for a cell, or has the size of a camera field or a slide."""
    shorter, longer = min(width, height), max(width, height)
    if shorter < CELL_PX[0]:
        raise PictureError(f"{width}×{height} px are too few for a cell.")
    if longer > CELL_PX[1] or (shorter >= _FIELD_PX and longer >= _FIELD_ASPECT * shorter):
        raise PictureError(
            f"{width}×{height} px: this looks like a whole field or slide, not a cell. Put it directly into the folder of "
            "slides."
        )


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray | None:
    """Decode an intact colour or grey JPEG to the same pixels as Pillow, two to three times as fast, without the GIL.

    None for all other files and for a damaged JPEG (truncated, extra bytes). Pillow then decodes or refuses the file.
    """
    import simplejpeg

    if not encoded.startswith(_JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in _PLAIN_COLOURS:
            return None
        _require_cell_size(width, height)
        return simplejpeg.decode_jpeg(encoded, "RGB", strict=True)
    except ValueError:
        return None


def read_encoded(path: Path, name: str) -> bytes:
    """The bytes of a cell file, not decoded. Raises `ImageUnreadableError` with ``name`` and the cause."""
    progress()
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ImageUnreadableError(f"{name}: {size / 1e6:,.0f} MB are too many for a cell image.")
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadableError(f"{name}: {why_unreadable(path, error)}") from None


def read_image(path: Path, name: str) -> bytes:
    """The bytes of a cell file that can be decoded. Raises `ImageUnreadableError` with ``name`` and the cause otherwise."""
    encoded = read_encoded(path, name)
    open_image(encoded, name)
    return encoded


def encode_image(pixels: np.ndarray, quality: int = 92) -> bytes:
    """Encode RGB pixels, shape (height, width, 3) uint8, as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
