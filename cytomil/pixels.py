"""What the header and the pixels of an image file mean: 8-bit RGB, or a reason why that would be a guess.

Cells and fields are read by the same code, so a picture has the same pixels wherever it is read:

- Transparent pixels become white, like the background of a slide.
- 16 bits per channel are scaled to 8 by their upper byte. Cameras of 10 to 14 bits often store unscaled values in 16
  bits, and no entry of the file says so. Such an image is nearly black. A twentieth of the pixels must therefore be in
  the upper half, as the background of a bright field is. Otherwise the image is refused, even if it is rightly dark.
- Floating-point, signed and 32-bit pixels are refused, because the file does not define which value is white.
- Several pages of full size are refused: they may be colours, focus planes or other fields.
- Rows are taken as stored. Like OpenSlide and QuPath, cytomil ignores orientation tags, so that positions agree.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from cytomil.errors import PictureError
from cytomil.litter import SNIFFED_BYTES, foreign_content

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_PAGES = 1000
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
    """One page as its tags describe it; sizes in px, ``tile`` is (width, height) or None for strips.

    ``n_tiles`` is the number of tiles whose places the page lists.
    """

    width: int
    height: int
    bits: int
    sample_format: int
    compression: int
    photometric: int
    separate_planes: bool
    tile: tuple[int, int] | None
    n_tiles: int
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
        """The property of the pixels that few programs can read, as a noun; None for a plain page."""
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
        while (offset := directory.next) and offset not in seen and len(pages) < _MAX_PAGES:
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
        n_tiles=_count(directory.get(324)),
        is_reduced=bool(_number(directory, 254, 0) & 1),
    )


def _number(directory: TiffImagePlugin.ImageFileDirectory_v2, tag: int, default: int) -> int:
    value: Any = directory.get(tag, default)
    return max(map(int, value)) if isinstance(value, tuple) else int(value)


def _count(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else int(value is not None)


PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".webp", ".jp2"}
    | {".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".avif", ".mpo"}
)
PICTURE_KINDS = "JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000 or AVIF"

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "JPEG2000", "AVIF")
# What Pillow raises for damaged files.
_FAULTS = (OSError, SyntaxError, ValueError, IndexError, TypeError, KeyError, OverflowError, struct.error)
_FIRST_IS_THE_PICTURE = {"JPEG", "MPO"}  # the other pictures in a JPEG are previews of the first
_MIN_IN_UPPER_HALF = 0.05
_CURE = "Export it as 8-bit RGB PNG or TIFF."
_JPEG2000_SIZES = b"\xff\x4f\xff\x51"
_JPEG2000_BITS = 42  # bytes from there to the depth of the first channel


@dataclass(frozen=True)
class Picture:
    """A decoded picture: ``image`` is 8-bit RGB; ``dpi`` is pixels per inch (x, y), if the file states it."""

    image: Image.Image
    dpi: tuple[float, float] | None


def read_picture(source: Path | bytes, require_size: Callable[[int, int], None]) -> Picture:
    """Decode a picture file, or the bytes of one. Its content decides the format, not its name.

    ``require_size`` is called with width and height before anything is decoded, and may raise. Raises `PictureError` if
    the picture is damaged, of an unsupported kind, or the meaning of its pixels is unclear. The message gives the
    reason and does not name the file. Raises `OSError` if the file cannot be opened.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head = file.read(SNIFFED_BYTES)
        if not head:
            raise PictureError("the file is empty.")
        pages = read_tiff_pages(file)
        try:
            if pages:
                require_size(pages[0].width, pages[0].height)
                _require_sure_pages(pages)
            file.seek(0)
            with Image.open(file, formats=_FORMATS) as image:
                require_size(*image.size)
                dpi = image.info.get("dpi")
                return Picture(_to_rgb(image, pages[0] if pages else None, head), (dpi[0], dpi[1]) if dpi else None)
        except UnidentifiedImageError:
            raise PictureError(_why_unidentified(head, pages)) from None
        except Image.DecompressionBombError:
            raise PictureError(
                "it has more pixels than can be read at once. Save it as a pyramidal tiled TIFF."
            ) from None
        except MemoryError:
            raise PictureError("it needs more memory than there is. Cut it into smaller pictures.") from None
        except _FAULTS as error:
            raise PictureError(f"damaged image ({str(error).rstrip('.')}).") from None


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height that a picture file states, px, without decoding it; None for another file."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.size
    except (*_FAULTS, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def is_picture(path: Path) -> bool:
    """Whether the content of a file begins like that of a picture. Its name does not matter."""
    return picture_size(path) is not None


def _require_sure_pages(pages: tuple[TiffPage, ...]) -> None:
    first = pages[0]
    n = pages_of_full_size(pages)
    if n > 1:
        raise PictureError(
            f"it holds {n} pages, which may be colours, focus planes or several pictures. Export one RGB picture a file."
        )
    if first.separate_planes and first.bits > 8:
        raise PictureError(f"it holds {first.bits} bits a channel in separate planes. {_CURE}")
    if what := first.peculiarity():
        raise PictureError(f"it is a TIFF with {what}. {_CURE}")


def _to_rgb(image: Image.Image, page: TiffPage | None, head: bytes) -> Image.Image:
    n = getattr(image, "n_frames", 1)
    if page is None and n > 1 and image.format not in _FIRST_IS_THE_PICTURE:
        raise PictureError(f"it is an animation of {n} pictures. Export one picture a file.")
    is_deep, is_12_bit = _is_deep(image, page, head), page is not None and page.bits == 12
    if image.mode.startswith("I;16"):
        image = _grey_of_16_bits(image, is_12_bit, page is not None and page.is_white_zero)
        is_deep = False  # judged already
    elif image.mode in ("I", "F"):
        raise PictureError(f"the file does not state which value of its 32-bit pixels is white. {_CURE}")
    elif image.mode == "LAB":
        raise PictureError(f"its colours are given as Lab. {_CURE}")
    if not image.has_transparency_data:
        rgb = image.convert("RGB")
        _require_full_range(np.asarray(rgb).max(axis=2, initial=0), is_deep)
        return rgb
    rgba = image.convert("RGBA")
    values = np.asarray(rgba)
    _require_full_range(values[..., :3].max(axis=2, initial=0)[values[..., 3] > 0], is_deep)
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _is_deep(image: Any, page: TiffPage | None, head: bytes) -> bool:
    """Whether the file has 16 bits per channel. Of coloured pictures, Pillow keeps only the upper 8 bits."""
    if page is not None:
        return page.bits == 16
    if image.format == "JPEG2000":
        place = head.find(_JPEG2000_SIZES) + _JPEG2000_BITS
        return place >= _JPEG2000_BITS and place < len(head) and (head[place] & 0x7F) + 1 == 16
    return any(";16" in str(tile.args) for tile in image.tile)


def _grey_of_16_bits(image: Image.Image, is_12_bit: bool, is_white_zero: bool) -> Image.Image:
    values = np.asarray(image).astype(np.uint16)
    grey = (values >> (4 if is_12_bit else 8)).astype(np.uint8)
    if is_white_zero:
        grey = 255 - grey
    _require_full_range(grey, not is_12_bit)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _require_full_range(levels: np.ndarray, is_deep: bool) -> None:
    """Raise `PictureError` if 16-bit values may have fewer bits that were never scaled. ``levels``: their upper bytes."""
    if is_deep and levels.size and np.mean(levels >= 128) < _MIN_IN_UPPER_HALF:
        raise PictureError(
            "it has 16 bits a channel and hardly a pixel in the upper half, so its values may be of 10 to 15 bits. "
            "Which of them is white would be a guess. Scale it to 8 bits where it was taken."
        )


def _why_unidentified(head: bytes, pages: tuple[TiffPage, ...]) -> str:
    if foreign := foreign_content(head):
        return f"it is {foreign}."
    if pages:
        return f"it is a TIFF of a kind that is not read ({pages[0].bits} bits, compression {pages[0].compression}). {_CURE}"
    return f"not a {PICTURE_KINDS} image, or cut off at its very start."


def optical_density(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """-log((v + 1) / 256) of every value v, shape kept: 0 for white, 5.5 for black (Beer and Lambert's law)."""
    table: npt.NDArray[np.float32] = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    return table.take(pixels)
