"""Single cell images: list those of a folder, and read, decode and encode them.

Bags keep the original bytes, which are decoded when needed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cytomil.errors import ImageUnreadableError, PictureError, why_unreadable
from cytomil.limits import progress
from cytomil.litter import is_litter, is_note, is_own_output
from cytomil.pixels import PICTURE_KINDS, read_picture
from cytomil.progress import Problem
from cytomil.slides import WHOLE_SLIDE_ONLY_SUFFIXES
from cytomil.text import printable

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
    # Pillow would copy a comment into the next file, and it may contain a patient's name.
    image.info = {}
    return image


def looks_like_field(width: int, height: int) -> bool:
    """Whether a picture of this size (px) may be a field instead of a cell: both sides have at least 480 px."""
    return min(width, height) >= _FIELD_PX


def _require_cell_size(width: int, height: int) -> None:
    """Raise `PictureError` if a picture is too small for a cell, or has the size of a camera field or a slide."""
    shorter, longer = min(width, height), max(width, height)
    if shorter < CELL_PX[0]:
        raise PictureError(f"{width}×{height} px is too small for a cell.")
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
            raise ImageUnreadableError(f"{name}: {size / 1e6:,.0f} MB is too large for a cell image.")
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


MIN_CELLS = 2
"""A slide with fewer cells is used neither for ranking nor for training."""

_BAG_SUFFIXES = frozenset({".h5", ".hdf5"})


@dataclass(frozen=True)
class CellFiles:
    """The files of a folder of cells, at any depth and through links, in a fixed order.

    Args:
        files: every file that may be a cell, whatever its name. Only decoding shows whether it is one.
        left_out: files that cannot be cells, named by their path in the folder, with the reason.
    """

    files: tuple[Path, ...]
    left_out: tuple[Problem, ...]

    def why_none(self) -> str:
        """Why the folder holds no cells, as the end of a sentence that begins with the folder's name."""
        if not self.left_out:
            return f"holds no cell images ({PICTURE_KINDS})."
        first, n = self.left_out[0], len(self.left_out)
        return f"holds no cell images; {first.where} is {first.reason}" + (f" So are {n - 1} more." if n > 1 else "")


def list_cell_files(folder: Path) -> CellFiles:
    """List a folder of cells. Litter, notes and the output of cytomil are ignored silently."""
    files: list[Path] = []
    left_out: list[Problem] = []

    def leave_out(path: Path, reason: str) -> None:
        left_out.append(Problem(printable(path.relative_to(folder).as_posix()), reason))

    def failed(error: OSError) -> None:
        path = Path(error.filename)
        leave_out(path, f"a folder that cannot be listed: {why_unreadable(path, error)}")

    for path in _walk(folder, failed):
        if path.suffix.lower() in WHOLE_SLIDE_ONLY_SUFFIXES:
            leave_out(path, "a whole slide, not a cell. Put it directly into the folder of slides.")
        elif path.suffix.lower() in _BAG_SUFFIXES:
            leave_out(path, "an HDF5 file, not a cell. Put a bag file directly into the folder of slides.")
        elif path.is_file():
            files.append(path)
        elif path.is_symlink():
            leave_out(path, "a link to a file that does not exist. Correct the link or remove it.")
        else:
            leave_out(path, "not a regular file.")
    return CellFiles(tuple(sorted(files)), tuple(sorted(left_out, key=lambda problem: problem.where)))


def _walk(folder: Path, failed: Callable[[OSError], None]) -> Iterator[Path]:
    """Every file below ``folder``. Links to folders are followed, and each real folder is read once."""
    # A link to a parent folder would add the cells of other slides.
    entered = {_identity(above) for above in folder.resolve().parents}
    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        if _identity(Path(place)) in entered:
            folders.clear()
            continue
        entered.add(_identity(Path(place)))
        inside = Path(place)
        folders[:] = sorted(name for name in folders if not is_litter(name) and not is_own_output(inside / name))
        yield from (inside / name for name in sorted(names) if not is_litter(name) and not is_note(name))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
