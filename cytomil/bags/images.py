"""One cell image: read as it came, decoded when needed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cytomil.errors import ImageUnreadableError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"})
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")
_JPEG_START = b"\xff\xd8\xff"
_PLAIN_COLOURS = frozenset({"YCbCr", "Gray"})
_MOST_PLAIN_PX = 50_000_000  # well below where Pillow warns of a decompression bomb


def find_images(folder: Path) -> list[Path]:
    """All image files below ``folder`` at any depth, by suffix, hidden ones left out, in a fixed order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def printable(name: str) -> str:
    """A file's name with what is not UTF-8 in it escaped, so that it can be stored and shown."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def open_image(encoded: bytes, name: str) -> Image.Image:
    """Decode an encoded image to RGB. Raises `ImageUnreadableError` naming ``name`` for damaged or foreign bytes."""
    if not encoded:
        raise ImageUnreadableError(f"{name}: the file is empty.")
    pixels = _decode_plain_jpeg(encoded)
    if pixels is not None:
        return Image.fromarray(pixels)
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            return image.convert("RGB")
    except Image.UnidentifiedImageError:
        raise ImageUnreadableError(f"{name}: not a JPEG, PNG, TIFF or BMP image.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageUnreadableError(f"{name}: damaged image ({error}).") from None


def _decode_plain_jpeg(encoded: bytes) -> np.ndarray | None:
    """Decode a sound colour or grey JPEG two to three times as fast as Pillow, to the same pixels, and in threads.

    None for whatever else, and for a JPEG with anything amiss (cut off, odd bytes): Pillow then says what it is worth.
    """
    import simplejpeg

    if not encoded.startswith(_JPEG_START):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in _PLAIN_COLOURS or height * width > _MOST_PLAIN_PX:
            return None
        return simplejpeg.decode_jpeg(encoded, "RGB", strict=True)
    except ValueError:
        return None


def read_image(path: Path, name: str) -> bytes:
    """A file's bytes, once they have been seen to decode. Raises `ImageUnreadableError` naming ``name`` if not."""
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise ImageUnreadableError(f"{name}: cannot be read ({error.strerror}).") from None
    open_image(encoded, name)
    return encoded


def encode_image(pixels: np.ndarray, quality: int = 92) -> bytes:
    """Encode RGB pixels, shape (height, width, 3) uint8, as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
