"""One cell image: read as it came, decoded when needed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cytomil.errors import ImageUnreadableError, PictureError, why_unreadable
from cytomil.pixels import read_picture

CELL_PX = (8, 1024)
"""The least and the greatest side of a cell's image, px; make-bags cuts cells of whole slides in the same range."""

_FIELD_PX = 480  # no cell set has larger images that are not square; a camera's smallest field is 640×480
_FIELD_SHAPE = 1.2
_MOST_BYTES = 64_000_000
_JPEG_START = b"\xff\xd8\xff"
_PLAIN_COLOURS = frozenset({"YCbCr", "Gray"})


def open_image(encoded: bytes, name: str) -> Image.Image:
    """Decode a cell's encoded image to RGB; see `cytomil.pixels` for what its pixels mean.

    Raises `ImageUnreadableError` naming ``name`` for damaged or foreign bytes, and for a picture that is no single cell's.
    """
    try:
        pixels = _decode_plain_jpeg(encoded)
        return read_picture(encoded, _require_cell_size).image if pixels is None else Image.fromarray(pixels)
    except PictureError as error:
        raise ImageUnreadableError(f"{name}: {error}") from None


def looks_like_field(width: int, height: int) -> bool:
    """Whether a picture of this size may be a whole field rather than a cell. From 480 px on it may, if it is square."""
    return min(width, height) >= _FIELD_PX


def _require_cell_size(width: int, height: int) -> None:
    """Raise `PictureError` for a picture that no single cell has: one of a few pixels, or a camera's or scanner's."""
    least, most = min(width, height), max(width, height)
    if least < CELL_PX[0]:
        raise PictureError(f"{width}×{height} px are too few for a cell.")
    if most > CELL_PX[1] or (least >= _FIELD_PX and most >= _FIELD_SHAPE * least):
        raise PictureError(
            f"{width}×{height} px: this looks like a whole field or slide, not a cell. Put it directly into the folder of "
            "slides."
        )


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray | None:
    """Decode a sound colour or grey JPEG two to three times as fast as Pillow, to the same pixels, and in threads.

    None for whatever else, and for a JPEG with anything amiss (cut off, odd bytes): Pillow then says what it is worth.
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
    """A cell file's bytes, not yet decoded. Raises `ImageUnreadableError` naming ``name`` with the cause."""
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ImageUnreadableError(f"{name}: {size / 1e6:,.0f} MB are too many for a cell's image.")
        return path.read_bytes()
    except OSError as error:
        raise ImageUnreadableError(f"{name}: {why_unreadable(path, error)}") from None


def read_image(path: Path, name: str) -> bytes:
    """A file's bytes, once they have been seen to decode. Raises `ImageUnreadableError` naming ``name`` if not."""
    encoded = read_encoded(path, name)
    open_image(encoded, name)
    return encoded


def encode_image(pixels: np.ndarray, quality: int = 92) -> bytes:
    """Encode RGB pixels, shape (height, width, 3) uint8, as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
