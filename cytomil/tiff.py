"""What the header of a TIFF says of its pages, read without a decoder that could stumble over it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import TiffImagePlugin

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_PAGES = 1000
_FLOAT, _SIGNED = 3, 2
_SEPARATE_PLANES = 2
_WHITE_IS_ZERO = 0
_SAME_SHAPE = 1.05  # sides of smaller copies are rounded
_COMPRESSIONS = {
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}


@dataclass(frozen=True)
class TiffPage:
    """One page as its tags describe it; sizes in px, ``tile`` is (width, height) or None for strips."""

    width: int
    height: int
    bits: int
    sample_format: int
    compression: int
    photometric: int
    separate_planes: bool
    tile: tuple[int, int] | None
    is_reduced: bool

    @property
    def is_white_zero(self) -> bool:
        """Whether 0 stands for white."""
        return self.photometric == _WHITE_IS_ZERO

    @property
    def has_several_tiles(self) -> bool:
        """Whether the page is cut into more than one tile."""
        return self.tile is not None and (self.width > self.tile[0] or self.height > self.tile[1])

    def peculiarity(self) -> str | None:
        """What about the pixels few programs can read, as a noun; None for a plain page."""
        if self.sample_format == _FLOAT:
            return "floating-point pixels"
        if self.sample_format == _SIGNED:
            return "signed pixels"
        if self.compression in _COMPRESSIONS:
            return f"{_COMPRESSIONS[self.compression]} compression (number {self.compression})"
        if self.bits > 16:
            return f"{self.bits} bits a channel"
        return None


def read_tiff_pages(file: BinaryIO) -> tuple[TiffPage, ...]:
    """The pages of a TIFF or BigTIFF from its start on, as far as they can be read; none for another file."""
    pages: list[TiffPage] = []
    try:
        file.seek(0)
        header = file.read(8)
        if not header.startswith(_STARTS):
            return ()
        if header[2] == 43 or header[3] == 43:
            header += file.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        seen: set[int] = set()
        while (offset := directory.next) and offset not in seen and len(pages) < _MOST_PAGES:
            seen.add(offset)
            file.seek(offset)
            directory = TiffImagePlugin.ImageFileDirectory_v2(header)
            directory.load(file)
            pages.append(_page(directory))
    except (OSError, ValueError, TypeError, KeyError, IndexError, SyntaxError, OverflowError, struct.error):
        pass
    return tuple(pages)


def pages_of_full_size(pages: tuple[TiffPage, ...]) -> int:
    """How many pages are pictures of their own, not smaller copies of the first."""
    first = pages[0]
    return sum(not _is_smaller_copy(page, first) for page in pages)


def _is_smaller_copy(page: TiffPage, first: TiffPage) -> bool:
    if page is first:
        return False
    is_smaller = page.width < first.width and page.height < first.height
    shapes = page.width * first.height, page.height * first.width
    return page.is_reduced or (is_smaller and max(shapes) <= min(shapes) * _SAME_SHAPE)


def _page(directory: TiffImagePlugin.ImageFileDirectory_v2) -> TiffPage:
    tile = _number(directory, 322, 0), _number(directory, 323, 0)
    return TiffPage(
        width=_number(directory, 256, 0),
        height=_number(directory, 257, 0),
        bits=_number(directory, 258, 1),
        sample_format=_number(directory, 339, 1),
        compression=_number(directory, 259, 1),
        photometric=_number(directory, 262, 1),
        separate_planes=_number(directory, 284, 1) == _SEPARATE_PLANES,
        tile=tile if all(tile) else None,
        is_reduced=bool(_number(directory, 254, 0) & 1),
    )


def _number(directory: TiffImagePlugin.ImageFileDirectory_v2, tag: int, default: int) -> int:
    value: Any = directory.get(tag, default)
    return max(map(int, value)) if isinstance(value, tuple) else int(value)
