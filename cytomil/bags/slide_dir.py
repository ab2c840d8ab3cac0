"""List a folder of slides: which entries are slides, and which are parts, notes or output of cytomil.

rank and make-bags both use this module, so that they find the same slides.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from cytomil.bags.patients import LabelledSlide
from cytomil.errors import BagFileError, NotFoundError
from cytomil.litter import is_litter, is_note, is_own_output
from cytomil.slides.resolution import DicomSeries, companions_of, dicom_identity, dicom_series, is_dicom_file
from cytomil.text import printable
from cytomil.workers.apart import EndedError, ProcessApart
from cytomil.workers.local import JobContext


def split_by_patient(slides: list[LabelledSlide], test_fraction: float, seed: int) -> list[LabelledSlide]:
    """Assign a split to every slide: a fraction of about ``test_fraction`` is for testing.

    Both splits get both labels, and no patient is in both. Slides that have a split keep it. Each slide without a patient
    counts as its own patient. Raises `BagFileError` if one label has fewer than two patients.
    """
    if all(slide.split for slide in slides):
        return slides
    patients = [slide.patient_id or f"slide:{slide.slide}" for slide in slides]
    labels = np.array([slide.label for slide in slides])
    n_folds = max(2, round(1 / min(test_fraction, 1 - test_fraction)))
    for label in (0, 1):
        n = len({p for p, other in zip(patients, labels, strict=True) if other == label})
        if n < 2:
            raise BagFileError(
                f"{n} patient{'s' * (n != 1)} with label {label}: at least 2 are needed, one for training and one for "
                "testing. Add slides, or a column 'split'."
            )
        n_folds = min(n_folds, n)
    chosen = next(
        c for c in _candidates(labels, patients, n_folds, seed) if len({*labels[c]}) == len({*labels[~c]}) == 2
    )
    is_test = chosen if test_fraction <= 0.5 else ~chosen
    return [replace(slide, split="test" if test else "train") for slide, test in zip(slides, is_test, strict=True)]


def _candidates(labels: np.ndarray, patients: list[str], n_folds: int, seed: int) -> Iterator[np.ndarray]:
    """Possible test sets of whole patients, as masks, best first.

    A fold may lack a label if a patient has slides of both labels. The slides of such a patient alone are then a valid test
    set. Single patients are therefore the last candidates.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    everyone = np.arange(len(labels))
    for n in range(n_folds, 1, -1):
        folds = StratifiedGroupKFold(n, shuffle=True, random_state=seed)
        for _, chosen in folds.split(everyone, labels, patients):
            yield np.isin(everyone, chosen)
    for patient in sorted(set(patients)):
        yield np.array(patients) == patient


class SharedCells:
    """Finds cells of a slide that are also in earlier slides. Training slides must be added first."""

    def __init__(self) -> None:
        self._owner: dict[bytes, LabelledSlide] = {}

    def add(self, slide: LabelledSlide, digests: Sequence[bytes]) -> tuple[list[LabelledSlide | None], str]:
        """Compare one slide, given the digests of its images, with all earlier ones, and add it unless it is a copy.

        Returns:
            For each cell, the slide of the other split that contains it, or None. Also the reason why the slide is a copy
            of an earlier one, which contains more than half of its cells; empty if the slide is not a copy.
        """
        owners = [self._owner.get(digest, slide) for digest in digests]
        shared = Counter(owner for owner in owners if owner is not slide)
        (owner, n_shared), *_ = shared.most_common(1) or [(slide, 0)]
        if 2 * n_shared > len(digests):
            reason = f"a copy: {n_shared} of its {len(digests)} cells are in the {owner.split} slide {owner.slide}"
            return [], reason + copy_warning(slide, owner)
        self._owner |= {digest: slide for digest, owner in zip(digests, owners, strict=True) if owner is slide}
        return [owner if owner.split != slide.split else None for owner in owners], ""


def copy_warning(slide: LabelledSlide, other: LabelledSlide) -> str:
    """A warning if label or patient of a copy differ from the original's, to append to the reason; else empty."""
    found = [f"label {other.label}, here {slide.label}"] if other.label != slide.label else []
    if other.patient_id != slide.patient_id:
        found.append("another patient")  # not named, because make-bags.json keeps this message
    return f". WARNING: the original differs ({'; '.join(found)}). Correct the labels file" if found else ""


_OWN_FOLDERS = frozenset(
    {"cache", "cells", "geojson", "heatmaps", "images", "made-from", "plots", "qc", "report_files", "summaries"}
)


@dataclass(frozen=True)
class SlideEntry:
    """One slide of a folder.

    Args:
        name: a printable name.
        path: the file or folder of cells to open.
        parts: further files that belong to the slide.
    """

    name: str
    path: Path
    parts: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SlideDir:
    """``slides`` in order of name, and ``ignored``: the printable names of other entries (notes, parts, own output)."""

    slides: tuple[SlideEntry, ...]
    ignored: tuple[str, ...] = field(default=())


def list_slide_dir(folder: Path, outputs: Collection[Path] = ()) -> SlideDir:
    """List the slides directly in ``folder``, and those in its folders of DICOM series.

    Litter is ignored silently. ``outputs`` are folders that the caller writes into. Raises OSError if ``folder`` cannot be
    listed.
    """
    entries = sorted(entry for entry in folder.iterdir() if not is_litter(entry.name))
    written = {Path(os.path.realpath(output)) for output in outputs}
    own = _OWN_FOLDERS if is_own_output(folder) or Path(os.path.realpath(folder)) in written else frozenset()
    parts = {part for entry in entries for part in companions_of(entry)}
    series = _find_series([entry for entry in entries if is_dicom_file(entry)])
    in_series = {part: one for one in series for part in one.parts}
    slides, ignored = [], []
    for entry in entries:
        if entry in in_series:
            one = in_series[entry]
            if one.file == entry:
                slides.append(SlideEntry(printable(entry.name), entry, one.parts))
            else:
                ignored.append(entry)
        elif entry in parts or (is_note(entry.name) and not entry.is_dir()):
            ignored.append(entry)
        elif entry.is_dir():
            if entry.name in own or is_own_output(entry) or Path(os.path.realpath(entry)) in written:
                ignored.append(entry)
            else:
                slides += _slides_of_folder(entry)
        else:
            slides.append(SlideEntry(printable(entry.name), entry))
    return SlideDir(tuple(sorted(slides, key=lambda slide: slide.name)), tuple(printable(one.name) for one in ignored))


def _slides_of_folder(folder: Path) -> list[SlideEntry]:
    """The slides of a folder, which holds either the cell images of one slide or DICOM series of one or more slides."""
    series = dicom_series_in(folder)
    if not series:
        return [SlideEntry(printable(folder.name), folder)]
    if len(series) == 1:
        return [SlideEntry(printable(folder.name), series[0].path, series[0].parts)]
    return [SlideEntry(f"{printable(folder.name)}/{one.name}", one.path, one.parts) for one in series]


def dicom_series_in(folder: Path) -> list[SlideEntry]:
    """The DICOM slides directly in ``folder``. Empty if there are none or the folder cannot be listed."""
    try:
        files = sorted(entry for entry in folder.iterdir() if not is_litter(entry.name) and is_dicom_file(entry))
    except OSError:
        return []
    return [SlideEntry(printable(one.file.name), one.file, one.parts) for one in _find_series(files)]


# A watched folder is listed often. These many take some 50 MB, and a folder with more files would be opened anew each time.
_IDENTITIES = 100_000


@dataclass(frozen=True)
class _Identify:
    """The job of a process that opens DICOM files, which may crash it."""

    device: str = "cpu"

    def start(self, context: JobContext) -> Callable[[Iterable[Path]], Iterator[str]]:
        """See `cytomil.workers.Job`."""
        return partial(map, dicom_identity)


@lru_cache(maxsize=_IDENTITIES)
def _identity_apart(file: Path, size: int, mtime_ns: int) -> str:
    """See `dicom_identity`; "" for a file that ends its process."""
    with ProcessApart(_Identify()) as process:
        try:
            return str(process.ask(file))
        except (EndedError, MemoryError, RecursionError, OSError):
            return ""


def _find_series(files: Sequence[Path]) -> list[DicomSeries]:
    """The DICOM slides in these files, each opened in another process. A file that ends its process counts as one slide."""

    def identity(file: Path) -> str:
        state = file.stat()
        return _identity_apart(file.absolute(), state.st_size, state.st_mtime_ns)

    return dicom_series(files, identity)


def slide_file_of(folder: Path) -> Path:
    """The file that opens the DICOM slide in ``folder``, or ``folder`` itself if it holds cells.

    Raises `NotFoundError` if ``folder`` holds several slides.
    """
    series = dicom_series_in(folder)
    if len(series) > 1:
        raise NotFoundError(f"{folder} holds {len(series)} DICOM slides. Put each into its own folder.")
    return series[0].path if series else folder
