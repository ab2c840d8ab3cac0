"""Open a whole slide and read any region of it at any resolution.

OpenSlide reads whole slides (https://openslide.org/formats/), and Pillow reads plain images of one field. The label and
macro images of a slide (OpenSlide's associated images) are never read, because they may show patient names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cytomil.errors import PictureError, PixelsNotSquareError, ResolutionError, SlideUnreadableError, why_unreadable
from cytomil.limits import progress
from cytomil.litter import SNIFFED_BYTES, foreign_content, is_dicom, is_litter
from cytomil.pixels import PICTURE_SUFFIXES, TiffPage, pages_of_full_size, read_picture, read_tiff_pages

WHOLE_SLIDE_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".vms", ".vmu", ".mrxs", ".scn", ".bif", ".svslide", ".czi", ".dcm", ".tif", ".tiff"}
)
PLAIN_IMAGE_SUFFIXES = PICTURE_SUFFIXES - WHOLE_SLIDE_SUFFIXES
SLIDE_SUFFIXES: frozenset[str] = WHOLE_SLIDE_SUFFIXES | PICTURE_SUFFIXES
WHOLE_SLIDE_ONLY_SUFFIXES: frozenset[str] = WHOLE_SLIDE_SUFFIXES - PICTURE_SUFFIXES

MPP_LOWEST, MPP_HIGHEST = 0.05, 2.0
_MAX_FIELD_PX = 80_000_000  # a plain picture is decoded as a whole, at up to 11 bytes per pixel
_MAX_TILE_PX = 1 << 26  # scanners write tiles of 240 to 4096 px
_MAX_LEVEL_PX, _MAX_SIDE_PX = 1 << 42, 1 << 24  # 0.8 m at the finest resolution
# A thumbnail of a slide with a single level reads the whole level. This limits the pixels decoded at once, 4 bytes each.
_SOURCE_PX_AT_ONCE = 16_000_000
_CONVERT = "Export it as a pyramidal tiled TIFF with JPEG compression, 8 bits per channel."
_COPY = "The file is damaged or truncated; copy it again from the scanner."
_TILE_CACHE_BYTES = 64 << 20
_SAME_SHAPE_WITHIN = 0.05  # max relative difference of a level's two downsampling factors
_SQUARE_WITHIN = 0.01  # max relative difference of the axes; scanners differ by less, and cells would look stretched
_MICROMETRES_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}


def is_slide_file(path: Path) -> bool:
    """Whether ``path`` is a file with the suffix of a slide. System files and the folder of an ``.mrxs`` are excluded."""
    return path.suffix.lower() in SLIDE_SUFFIXES and not is_litter(path.name) and path.is_file()


class Slide:
    """One open slide, read by level-0 position and resolution. A context manager, made by `open_slide`.

    Positions count from the upper left corner of the scanned part, as in QuPath. OpenSlide's bounds
    define this part if the file states them (MIRAX, Leica, Ventana). Otherwise it is all of level 0. Threads must not share
    a slide. Each must open its own.

    Attributes:
        path: the file.
        mpp: micrometres per level-0 pixel.
        mpp_source: ``"file"`` or ``"given"``.
        dimensions: level-0 (width, height) of the scanned part, in px.
        origin: the corner (x, y) of the scanned part in px of the file's own level 0, the coordinates of TRIDENT and CLAM.
    """

    def __init__(self, path: Path, handle: Any, mpp: float, mpp_source: str) -> None:
        self.path = path
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.origin, self.dimensions = _bounds(handle)
        self._handle = handle
        self._levels = _levels_of_slide(handle)

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._handle.close()

    def read(self, x: float, y: float, width_px: int, height_px: int, mpp: float) -> npt.NDArray[np.uint8]:
        """The region whose top-left corner is level-0 (``x``, ``y``), as RGB uint8 (height_px, width_px, 3).

        It is resampled with antialiasing from the coarsest level whose resolution suffices. It is white outside the slide
        and in gaps of the scan. The value of a pixel does not depend on the extent of the region.

        Args:
            x: level-0 px.
            y: level-0 px.
            width_px: width of the result.
            height_px: height of the result.
            mpp: resolution of the result, µm per pixel.

        Raises:
            SlideUnreadableError: the slide is damaged, or memory is insufficient.
        """
        return self.read_with_alpha(x, y, width_px, height_px, mpp)[0]

    def read_with_alpha(
        self, x: float, y: float, width_px: int, height_px: int, mpp: float
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Like `read`, with the alpha channel as a second array, uint8 (height_px, width_px).

        Alpha is 0 outside the slide and in areas that the file marks as not scanned, and 255 in scanned areas.
        """
        scale = mpp / self.mpp
        downsamples = self._handle.level_downsamples
        level = max(i for i in self._levels if i == 0 or downsamples[i] <= scale * 1.01)
        step = scale / downsamples[level]
        side = max(1, math.floor(math.sqrt(_SOURCE_PX_AT_ONCE) / step))
        rgb, alpha = np.empty((height_px, width_px, 3), np.uint8), np.empty((height_px, width_px), np.uint8)
        for top in range(0, height_px, side):
            for left in range(0, width_px, side):
                progress()
                size = (min(side, width_px - left), min(side, height_px - top))
                here = slice(top, top + size[1]), slice(left, left + size[0])
                block = self._read_block(x + left * scale, y + top * scale, size, level, step)
                rgb[here], alpha[here] = (np.asarray(one) for one in block)
        return rgb, alpha

    def _read_block(
        self, x: float, y: float, size: tuple[int, int], level: int, step: float
    ) -> tuple[Image.Image, Image.Image]:
        from openslide import OpenSlideError

        downsample = self._handle.level_downsamples[level]
        left, top = (x + self.origin[0]) / downsample, (y + self.origin[1]) / downsample
        # Pillow's bilinear filter uses one output pixel on each side. Without this border, seams would be visible.
        border = math.ceil(max(step, 1.0)) + 1
        x0, y0 = math.floor(left) - border, math.floor(top) - border
        x1 = math.ceil(left + size[0] * step) + border
        y1 = math.ceil(top + size[1] * step) + border
        try:
            rgba = self._handle.read_region((round(x0 * downsample), round(y0 * downsample)), level, (x1 - x0, y1 - y0))
        except (OpenSlideError, OSError, ValueError) as error:
            raise SlideUnreadableError(
                f"{self.path}: {_fault(self.path, error, f'cannot be read at level-0 ({x:.0f}, {y:.0f})')}"
            ) from error
        except MemoryError:
            raise SlideUnreadableError(f"{self.path}: needs more memory than is available. {_CONVERT}") from None
        alpha = rgba.getchannel("A")
        rgb = Image.new("RGB", rgba.size, "white")
        rgb.paste(rgba, mask=alpha)
        box = (left - x0, top - y0, left - x0 + size[0] * step, top - y0 + size[1] * step)
        resized_rgb, resized_alpha = (one.resize(size, Image.Resampling.BILINEAR, box=box) for one in (rgb, alpha))
        return resized_rgb, resized_alpha

    def thumbnail(self, max_px: int) -> npt.NDArray[np.uint8]:
        """The whole slide as RGB uint8 (h, w, 3). Its longer side has at most ``max_px`` pixels."""
        width, height = self.dimensions
        scale = max(1.0, max(width, height) / max_px)
        return self.read(0, 0, max(1, round(width / scale)), max(1, round(height / scale)), self.mpp * scale)


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open the slide at ``path``.

    Args:
        path: the file.
        mpp: µm per level-0 pixel from the user (``--mpp`` or a row of the CSV). It takes precedence over a plausible value
            in the file, because the user may know that this is wrong.

    Raises:
        SlideUnreadableError: the slide cannot be opened.
        ResolutionError: the resolution is missing, or outside 0.05-2 µm/px. Light microscopes do not resolve finer details,
            and coarser resolutions do not show the details of a cell.
    """
    _require_content(path)
    handle = _open_plain(path) if path.suffix.lower() in PLAIN_IMAGE_SUFFIXES else _open_whole_slide(path)
    try:
        chosen, source = _resolution(path, handle.properties, mpp)
        return Slide(path, handle, chosen, source)
    except ResolutionError:
        handle.close()
        raise


def _require_content(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise SlideUnreadableError(f"{path}: a link to a file that does not exist. Fix the link or remove it.")
    if path.is_dir():
        raise SlideUnreadableError(f"{path}: is a folder, not a slide file. Give the file inside or next to it.")
    if not path.exists():
        raise SlideUnreadableError(f"{path}: does not exist. Check the path.")
    if not path.is_file():
        raise SlideUnreadableError(f"{path}: is not a regular file.")
    if path.stat().st_size == 0:
        raise SlideUnreadableError(f"{path}: is empty (0 bytes). Copy it again from the scanner.")


def _open_whole_slide(path: Path) -> Any:
    import openslide

    try:
        with path.open("rb") as file:
            head, pages = file.read(SNIFFED_BYTES), read_tiff_pages(file)
        _require_plausible_tiles(path, pages)
        vendor = openslide.OpenSlide.detect_format(path)
        if vendor is None and path.suffix.lower() in WHOLE_SLIDE_ONLY_SUFFIXES:
            what = foreign_content(head) or "not a whole slide that OpenSlide can read. Export it as SVS or tiled TIFF"
            raise SlideUnreadableError(f"{path}: is {what}.")
        # OpenSlide refuses TIFFs without tiles, and always reads 16 bits per channel as if they were scaled.
        if vendor is None or (vendor == "generic-tiff" and pages and pages[0].bits == 16):
            return _open_plain(path)
        if vendor == "generic-tiff":
            _require_one_picture(path, pages)
        handle = openslide.OpenSlide(path)
        _require_plausible_size(path, *handle.dimensions)
        handle.set_cache(openslide.OpenSlideCache(_TILE_CACHE_BYTES))
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideUnreadableError(f"{path}: {_fault(path, error, 'cannot be opened')}") from error
    return handle


def _require_plausible_tiles(path: Path, pages: tuple[TiffPage, ...]) -> None:
    """Refuse implausible sizes in the header.

    OpenSlide allocates memory for them without a check. If memory is insufficient, the process ends.

    Raises `SlideUnreadableError`.
    """
    for page in pages:
        if page.tile and (min(page.tile) < 1 or page.tile[0] * page.tile[1] > _MAX_TILE_PX):
            raise SlideUnreadableError(
                f"{path}: its header gives an impossible tile size, {page.tile[0]:,}×{page.tile[1]:,} px. {_COPY}"
            )
        _require_plausible_size(path, page.width, page.height)
        if page.tile and page.n_tiles < (needed := math.prod(map(_tiles_across, (page.width, page.height), page.tile))):
            # OpenSlide would show the missing tiles as gaps, regardless of their number.
            raise SlideUnreadableError(
                f"{path}: its header lists {page.n_tiles:,} tiles, but {page.width:,}×{page.height:,} px need "
                f"{needed:,}. {_COPY}"
            )


def _require_plausible_size(path: Path, width: int, height: int) -> None:
    if width * height > _MAX_LEVEL_PX or max(width, height) > _MAX_SIDE_PX:
        raise SlideUnreadableError(f"{path}: its header gives an impossible size, {width:,}×{height:,} px. {_COPY}")


def _tiles_across(side: int, tile: int) -> int:
    return -(-side // tile)


def _require_one_picture(path: Path, pages: tuple[TiffPage, ...]) -> None:
    if pages and (n := pages_of_full_size(pages)) > 1:
        raise SlideUnreadableError(
            f"{path}: holds {n} pages of full size, which may be colours, focus planes or several slides. "
            "Export one RGB slide per file."
        )


def _fault(path: Path, error: Exception, what_failed: str) -> str:
    """Why OpenSlide or the disk failed to read this file, and the remedy."""
    if isinstance(error, PermissionError):
        return why_unreadable(path, error)
    try:
        with path.open("rb") as file:
            head, pages = file.read(SNIFFED_BYTES), read_tiff_pages(file)
    except OSError as unreadable:
        return why_unreadable(path, unreadable)
    if pages and (peculiarity := pages[0].peculiarity()):
        return f"a TIFF with {peculiarity}, which OpenSlide cannot read. {_CONVERT}"
    if (foreign := foreign_content(head)) and not is_dicom(head):
        return f"is {foreign}."
    return f"{what_failed}: {str(error).rstrip('.')}. {_COPY}"


def _open_plain(path: Path) -> Any:
    import openslide

    def require_size(width: int, height: int) -> None:
        if width * height > _MAX_FIELD_PX:
            raise PictureError(
                f"{width:,}×{height:,} px is too large for a plain picture (at most {_MAX_FIELD_PX / 1e6:.0f} "
                "megapixels). Save it as a pyramidal tiled TIFF."
            )

    try:
        picture = read_picture(path, require_size)
        field = openslide.ImageSlide(picture.image.convert("RGBA"))
    except PictureError as error:
        raise SlideUnreadableError(f"{path}: {error}") from None
    except MemoryError:
        raise SlideUnreadableError(f"{path}: needs more memory than is available. {_CONVERT}") from None
    except OSError as error:
        raise SlideUnreadableError(f"{path}: {why_unreadable(path, error)}") from None
    dots = zip("XY", picture.dpi or (), strict=False)
    resolution = {f"tiff.{axis}Resolution": str(float(per_inch)) for axis, per_inch in dots}
    return _PlainField(field, resolution | {"tiff.ResolutionUnit": "inch"} if resolution else {})


class _PlainField:
    """A plain image with the part of OpenSlide's interface that `Slide` uses. The resolution comes from its tag."""

    def __init__(self, field: Any, properties: Mapping[str, str]) -> None:
        self.properties = properties
        self.dimensions = field.dimensions
        self.level_downsamples = field.level_downsamples
        self.level_dimensions = field.level_dimensions
        self.read_region = field.read_region
        self.close = field.close


def _resolution(path: Path, properties: Mapping[str, str], given: float | None) -> tuple[float, str]:
    mpp, source = (given, "given") if given is not None else (_mpp_in_file(path, properties), "file")
    remedy = "Give it with `--mpp 0.25` (the scanner's µm per pixel) or in a row of the resolution CSV."
    if mpp is None:
        raise ResolutionError(f"{path}: the file does not state its resolution. {remedy}")
    if not MPP_LOWEST <= mpp <= MPP_HIGHEST:
        where = "was given" if source == "given" else "is in the file"
        raise ResolutionError(
            f"{path}: a resolution of {mpp:.4g} µm/px {where}, outside {MPP_LOWEST}-{MPP_HIGHEST:g} µm/px. {remedy}"
        )
    return mpp, source


def _mpp_in_file(path: Path, properties: Mapping[str, str]) -> float | None:
    mpp_x, mpp_y = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    if mpp_x is None:
        unit = _MICROMETRES_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
        per_unit = (_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
        mpp_x, mpp_y = (unit / pixels if unit and pixels else None for pixels in per_unit)
    if mpp_x is None or mpp_y is None:
        return mpp_x
    if abs(mpp_x - mpp_y) > _SQUARE_WITHIN * min(mpp_x, mpp_y):
        raise PixelsNotSquareError(
            f"{path}: the file states {mpp_x:.4g} µm/px across and {mpp_y:.4g} µm/px down, so its cells would be stretched. "
            "Export it again with square pixels. If the file is wrong, give the true value in a row of the resolution CSV."
        )
    return mpp_x


def _bounds(handle: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Corner (x, y) and size (width, height) of the scanned part in the file's own level 0, in px."""
    whole = int(handle.dimensions[0]), int(handle.dimensions[1])
    stated = [_number(handle.properties.get(f"openslide.bounds-{name}")) for name in ("width", "height")]
    if None in stated:
        return (0, 0), whole
    # _number refuses 0, which is valid for a corner.
    corner = [_number(handle.properties.get(f"openslide.bounds-{axis}")) or 0.0 for axis in "xy"]
    x, y, width, height = (round(number) for number in (*corner, *stated) if number is not None)
    if x + width > whole[0] or y + height > whole[1]:
        return (0, 0), whole
    return (x, y), (width, height)


def _levels_of_slide(handle: Any) -> list[int]:
    """The levels of the pyramid, which are those with the same aspect ratio as level 0.

    OpenSlide treats every tiled page of a plain TIFF as a level. Label and macro images have other aspect ratios.
    """
    width, height = handle.level_dimensions[0]
    levels = []
    for level, (w, h) in enumerate(handle.level_dimensions):
        across, down = width / max(w, 1), height / max(h, 1)
        # Sides are rounded to whole pixels, and some scanners pad them to whole tiles.
        tolerance = max(_SAME_SHAPE_WITHIN, 2 / max(min(w, h), 1))
        if abs(across - down) <= tolerance * min(across, down):
            levels.append(level)
    return levels


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


class Handles:
    """A pool of handles of one slide. Each thread gets its own handle, and a new one is opened if none is free."""

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self._path, self._mpp = path, mpp
        self._free: SimpleQueue[Slide] = SimpleQueue()

    @contextmanager
    def lend(self) -> Iterator[Slide]:
        """Yield the open slide. Raises the errors of `open_slide`."""
        try:
            slide = self._free.get_nowait()
        except Empty:
            slide = open_slide(self._path, self._mpp)
        try:
            yield slide
        finally:
            self._free.put(slide)

    def close(self) -> None:
        """Close the handles that are not in use."""
        while not self._free.empty():
            self._free.get_nowait().close()
