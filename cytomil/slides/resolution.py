"""The files of each slide of a folder, their resolution, and the areas that were not scanned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cytomil.errors import PixelsNotSquareError, ResolutionError, TableError
from cytomil.litter import SNIFFED_BYTES, is_dicom
from cytomil.pixels import PICTURE_SUFFIXES
from cytomil.slides.open import SLIDE_SUFFIXES, Slide, open_slide
from cytomil.slides.tiles import Floats, Mask
from cytomil.tables import Column, composed, read_table

_MAX_INDEX_BYTES = 4_000_000
_INDEX_SUFFIXES = frozenset({".vms", ".vmu"})


@dataclass(frozen=True)
class DicomSeries:
    """One DICOM slide. ``parts`` are all of its files, and ``file`` is the largest of them, which is opened."""

    file: Path
    parts: tuple[Path, ...]


def companions_of(path: Path) -> set[Path]:
    """Files and folders next to ``path`` that are parts of the same slide: image tiles, maps, label and macro images."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        return {path.with_suffix("")}
    if suffix == ".vsi":
        return {path.with_name(f"_{path.stem}_")}
    if suffix in _INDEX_SUFFIXES:
        return {path.with_name(name) for name in _names_in_index(path)} - {path}
    return set()


def _names_in_index(path: Path) -> set[str]:
    """The file names in a Hamamatsu index, which has lines such as ``ImageFile(1,0)=name.jpg``."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_INDEX_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return set()
    values = (line.partition("=")[2].strip() for line in text.splitlines())
    return {name for name in values if name and name == Path(name).name and "\0" not in name}


def is_dicom_file(path: Path) -> bool:
    """Whether ``path`` is a DICOM file, whatever its suffix. Files with the suffix of a picture are not checked."""
    try:
        # There may be many pictures, and opening each one takes time.
        if path.suffix.lower() in PICTURE_SUFFIXES or not path.is_file():
            return False
        with path.open("rb") as file:
            return is_dicom(file.read(SNIFFED_BYTES))
    except OSError:
        return False


def dicom_series(files: Iterable[Path], identity: Callable[[Path], str]) -> list[DicomSeries]:
    """The slides in these DICOM files. A file without an identity counts as one slide, so that opening it reports the fault.

    ``identity`` is `dicom_identity`, which may run in another process.
    """
    by_identity: dict[str, list[Path]] = {}
    for file in sorted(files):
        by_identity.setdefault(identity(file) or f"unknown: {file}", []).append(file)
    return [DicomSeries(max(parts, key=_size), tuple(parts)) for parts in by_identity.values()]


def dicom_identity(file: Path) -> str:
    """The identifier of the series of a DICOM file; "" if OpenSlide cannot open it.

    OpenSlide finds the other files of a series from any one of them.
    """
    import openslide

    try:
        with openslide.OpenSlide(file) as slide:
            properties = slide.properties
            return str(properties.get("dicom.SeriesInstanceUID") or properties[openslide.PROPERTY_NAME_QUICKHASH1])
    except (openslide.OpenSlideError, OSError, KeyError):
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size


_OPAQUE = 128  # resampling averages pixels at the slide's edge with transparent ones
_RIM_PX = 2  # resampling and JPEG mix this rim of a gap with the picture
_BACKGROUND_RANK = 95  # percentile; the background is the brightest part of a slide
_BRIGHT, _GREY_WITHIN = 200, 24  # of 255; empty areas of a slide are bright and nearly grey
_SATURATED = 248
_MIN_BACKGROUND = 0.2  # of the pixels outside gaps; with less background, a gap cannot be distinguished from it


def is_scanned(rgb: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8], diameter_px: float) -> Mask:
    """Whether each pixel of a tile, RGB (h, w, 3) with its alpha channel (h, w), was scanned; bool (h, w).

    Transparent areas were not scanned, and neither were areas that a scanner or converter filled. These are areas of pure
    black or pure white, at least ``diameter_px`` wide. White areas count as filled only if the slide's background is
    darker. In an overexposed slide the background itself is pure white, mixed with slightly darker shades.
    """
    transparent = alpha < _OPAQUE
    black = _filled((rgb == 0).all(2), diameter_px)
    white = _filled((rgb == 255).all(2) & ~transparent, diameter_px)
    if white.any() and not _is_background_darker(rgb, transparent | black | white):
        white[:] = False
    return ~(transparent | black | white)


def with_background(rgb: npt.NDArray[np.uint8], scanned: Mask) -> npt.NDArray[np.uint8]:
    """The tile (h, w, 3), with pixels that were not scanned (h, w) replaced by the slide's background."""
    if scanned.all() or not scanned.any():
        return rgb
    filled = rgb.copy()
    filled[~scanned] = np.percentile(rgb[scanned], _BACKGROUND_RANK, axis=0).round().astype(np.uint8)
    return filled


def reaches_unscanned(centres: Floats, half_side: float, scanned: Mask) -> Mask:
    """Whether the square around each centre (n, 2), in px as (x, y), contains a pixel that was not scanned; bool (n,).

    The part of a square outside ``scanned`` (h, w) is ignored.
    """
    if scanned.all() or not half_side:
        return np.zeros(len(centres), bool)
    # A summed-area table: the count in any square then takes four look-ups.
    sums = np.pad(np.cumsum(np.cumsum(~scanned, axis=0), axis=1), ((1, 0), (1, 0)))
    height, width = scanned.shape
    left, top = np.clip(np.floor(centres - half_side), 0, (width, height)).astype(int).T
    right, bottom = np.clip(np.ceil(centres + half_side), 0, (width, height)).astype(int).T
    return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left] > 0


def _filled(pure: Mask, side: float) -> Mask:
    """The part of ``pure`` (h, w) that is covered by squares of this side within it, and a rim around it."""
    from scipy import ndimage as ndi

    size = max(2, round(side))
    if pure.sum() < size**2:
        return np.zeros_like(pure)
    inner = ndi.minimum_filter(pure.view(np.uint8), size, mode="nearest")
    if not inner.any():
        return np.zeros_like(pure)
    return ndi.maximum_filter(inner, size + 1 - size % 2 + 2 * _RIM_PX, mode="nearest").astype(bool)


def _is_background_darker(rgb: npt.NDArray[np.uint8], gap: Mask) -> bool:
    rest = rgb[~gap]
    if len(rest) == 0:
        return False
    darkest, brightest = rest.min(1).astype(int), rest.max(1).astype(int)
    background = (darkest >= _BRIGHT) & (brightest - darkest <= _GREY_WITHIN)
    n_saturated = int((darkest >= _SATURATED).sum())
    return bool(background.sum() >= _MIN_BACKGROUND * len(rest) and 10 * n_saturated < background.sum())


SLIDE = Column(
    "slide",
    ("slide_id", "slideid", "slide_name"),
    ("file", "filename", "file_name", "image", "name", "path", "id"),
    required=True,
)
MPP = Column(
    "mpp",
    ("um_per_px", "um_per_pixel", "microns_per_pixel"),
    ("mpp_x", "mpp_y", "resolution", "pixel_size", "pixelsize"),
)


@dataclass(frozen=True)
class Resolutions:
    """The user's resolutions, in µm per level-0 pixel.

    Args:
        by_slide: file name of a slide, with or without suffix → its resolution, which takes precedence over that in the
            file.
        fallback: for slides whose file has no plausible value. It is not used if the file has one.
    """

    by_slide: Mapping[str, float] = field(default_factory=dict)
    fallback: float | None = None

    def of(self, path: Path) -> float | None:
        """The user's resolution of this slide; None if there is none."""
        name, stem = composed(path.name), composed(path.stem)
        return self.by_slide.get(name, self.by_slide.get(stem))

    def open(self, path: Path) -> Slide:
        """Open a slide with the first available resolution: its row, a plausible value in the file, the fallback.

        Raises:
            SlideUnreadableError: the slide cannot be opened.
            ResolutionError: no resolution is plausible. The message names the remedy.
        """
        row = self.of(path)
        try:
            return open_slide(path, row)
        except PixelsNotSquareError:
            raise
        except ResolutionError:
            if row is not None or self.fallback is None:
                raise
        return open_slide(path, self.fallback)


def read_resolutions(path: Path) -> dict[str, float]:
    """Read a table with the columns slide and mpp.

    Raises:
        NotFoundError: there is no such file.
        TableError: a row is invalid. The message names file and line.
    """
    given: dict[str, float] = {}
    for row in read_table(path, (SLIDE, replace(MPP, required=True)), "a spreadsheet: columns slide, mpp"):
        slide = row["slide"]
        if not slide:
            raise TableError(f"{row.where}: the slide's name is empty.")
        if slide in given:
            raise TableError(f"{row.where}: slide '{slide}' is listed twice. Keep one line.")
        given[slide] = parse_mpp(row["mpp"], row.where)
    for slide, mpp in given.items():
        stem = Path(slide).stem
        if Path(slide).suffix.lower() in SLIDE_SUFFIXES and given.get(stem, mpp) != mpp:
            raise TableError(f"{path} gives {slide} {mpp:g} µm/px and {stem} {given[stem]:g}. Keep one line.")
    return given


def parse_mpp(text: str, where: str) -> float:
    """Parse µm per pixel in a table, with decimal point or comma. `open_slide` checks whether the value is plausible.

    Raises:
        TableError: it is not a number above 0. The message names ``where``.
    """
    try:
        mpp = float(text.replace(",", ".", 1))
    except ValueError:
        mpp = math.nan
    if not (mpp > 0 and math.isfinite(mpp)):
        raise TableError(f"{where}: '{text}' is not a number of µm per pixel, such as 0.25.")
    return mpp
