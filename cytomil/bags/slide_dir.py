"""What stands in a folder of slides: which entries are slides, and which are parts, notes or other programs' work.

rank and make-bags both come here, so that they speak of the same slides.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from cytomil.bags.own_output import is_own_output
from cytomil.errors import NotFoundError
from cytomil.litter import is_litter, is_note
from cytomil.slides.multi_file import companions_of, dicom_series, is_dicom_file
from cytomil.text import printable

_OWN_FOLDERS = frozenset({"cache", "cells", "geojson", "heatmaps", "images", "made-from", "qc"})


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a folder.

    ``path`` is what to open: a file, or a folder of cells. ``name`` is printable. ``parts`` are further files whose
    change changes the slide.
    """

    name: str
    path: Path
    parts: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SlideDir:
    """``slides`` by name; ``aside`` are the printable names of entries that are no slides: notes, parts, own output."""

    slides: tuple[SlideEntry, ...]
    aside: tuple[str, ...] = field(default=())


def list_slide_dir(folder: Path, outputs: Collection[Path] = ()) -> SlideDir:
    """List the slides that stand directly in ``folder``, and in its folders of one DICOM series each.

    Litter is not spoken of. ``outputs`` are folders that the caller writes into. Raises OSError where ``folder`` cannot
    be listed.
    """
    entries = sorted(entry for entry in folder.iterdir() if not is_litter(entry.name))
    written = {Path(os.path.realpath(output)) for output in outputs}
    own = _OWN_FOLDERS if is_own_output(folder) or Path(os.path.realpath(folder)) in written else frozenset()
    parts = {part for entry in entries for part in companions_of(entry)}
    series = dicom_series(entry for entry in entries if is_dicom_file(entry))
    in_series = {part: one for one in series for part in one.parts}
    slides, aside = [], []
    for entry in entries:
        if entry in in_series:
            one = in_series[entry]
            if one.file == entry:
                slides.append(SlideEntry(printable(entry.name), entry, one.parts))
            else:
                aside.append(entry)
        elif entry in parts or (is_note(entry.name) and not entry.is_dir()):
            aside.append(entry)
        elif entry.is_dir():
            if entry.name in own or is_own_output(entry) or Path(os.path.realpath(entry)) in written:
                aside.append(entry)
            else:
                slides += _slides_of_folder(entry)
        else:
            slides.append(SlideEntry(printable(entry.name), entry))
    return SlideDir(tuple(sorted(slides, key=lambda slide: slide.name)), tuple(printable(one.name) for one in aside))


def _slides_of_folder(folder: Path) -> list[SlideEntry]:
    """A folder is a slide of cell images, or holds DICOM series: one slide, or several with names of their own."""
    series = dicom_series_in(folder)
    if not series:
        return [SlideEntry(printable(folder.name), folder)]
    if len(series) == 1:
        return [SlideEntry(printable(folder.name), series[0].path, series[0].parts)]
    return [SlideEntry(f"{printable(folder.name)}/{one.name}", one.path, one.parts) for one in series]


def dicom_series_in(folder: Path) -> list[SlideEntry]:
    """The DICOM slides directly in ``folder``; none where it is another kind of folder, or cannot be listed."""
    try:
        files = sorted(entry for entry in folder.iterdir() if not is_litter(entry.name) and is_dicom_file(entry))
    except OSError:
        return []
    return [SlideEntry(printable(one.file.name), one.file, one.parts) for one in dicom_series(files)] if files else []


def slide_file_of(folder: Path) -> Path:
    """The file by which the one DICOM slide in ``folder`` is opened, or ``folder`` itself where it holds cells.

    Raises `NotFoundError` where it holds several slides.
    """
    series = dicom_series_in(folder)
    if len(series) > 1:
        raise NotFoundError(f"{folder} holds {len(series)} DICOM slides. Give each a folder of its own.")
    return series[0].path if series else folder
