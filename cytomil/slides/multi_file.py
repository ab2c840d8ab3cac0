"""Slides of several files: assign files and folders to slides, so that each slide counts once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cytomil.litter import SNIFFED_BYTES, is_dicom
from cytomil.pixels import PICTURE_SUFFIXES

_MAX_INDEX_BYTES = 4_000_000
_INDEX_SUFFIXES = frozenset({".vms", ".vmu"})


@dataclass(frozen=True)
class DicomSeries:
    """One slide in DICOM. ``parts`` are all of its files, and ``file`` is the largest, which is opened."""

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


def dicom_series(files: Iterable[Path]) -> list[DicomSeries]:
    """The slides in these DICOM files. A file that OpenSlide cannot open counts as one slide, so that it is reported.

    OpenSlide finds the other files of a series from any one of them.
    """
    import openslide

    by_identity: dict[str, list[Path]] = {}
    for file in sorted(files):
        try:
            with openslide.OpenSlide(file) as slide:
                properties = slide.properties
                identity = properties.get("dicom.SeriesInstanceUID") or properties[openslide.PROPERTY_NAME_QUICKHASH1]
        except (openslide.OpenSlideError, OSError, KeyError):
            identity = f"unknown: {file}"
        by_identity.setdefault(identity, []).append(file)
    return [DicomSeries(max(parts, key=_size), tuple(parts)) for parts in by_identity.values()]


def _size(path: Path) -> int:
    return path.stat().st_size
