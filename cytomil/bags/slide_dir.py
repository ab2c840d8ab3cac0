"""What stands in a folder of slides: which entries are slides, and which are parts, notes or other programs' work.

rank and make-bags both come here, so that they speak of the same slides.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cytomil.bags.own_output import is_own_output
from cytomil.bags.patients import LabelledSlide
from cytomil.errors import BagFileError, NotFoundError
from cytomil.litter import is_litter, is_note
from cytomil.slides.multi_file import companions_of, dicom_series, is_dicom_file
from cytomil.text import printable


def split_by_patient(slides: list[LabelledSlide], test_share: float, seed: int) -> list[LabelledSlide]:
    """Give every slide a split, about ``test_share`` of them test, both labels in both, no patient in two splits.

    Slides that carry a split keep it; slides without a patient each count as a patient of their own. Raises
    `BagFileError` where one label has too few patients to stand on both sides.
    """
    if all(slide.split for slide in slides):
        return slides
    patients = [slide.patient_id or f"slide:{slide.slide}" for slide in slides]
    labels = np.array([slide.label for slide in slides])
    n_folds = max(2, round(1 / min(test_share, 1 - test_share)))
    for label in (0, 1):
        n = len({p for p, other in zip(patients, labels, strict=True) if other == label})
        if n < 2:
            raise BagFileError(
                f"{n} patient{'s' * (n != 1)} with label {label}: at least 2 are needed to have one for training and "
                "one for testing. Add slides, or give a split column."
            )
        n_folds = min(n_folds, n)
    chosen = next(
        c for c in _candidates(labels, patients, n_folds, seed) if len({*labels[c]}) == len({*labels[~c]}) == 2
    )
    is_test = chosen if test_share <= 0.5 else ~chosen
    return [replace(slide, split="test" if test else "train") for slide, test in zip(slides, is_test, strict=True)]


def _candidates(labels: np.ndarray, patients: list[str], n_folds: int, seed: int) -> Iterator[np.ndarray]:
    """Ways to set whole patients apart, as masks, the most fitting first.

    A fold may lack a label where a patient has slides of both. Such a patient alone is then a choice that always serves.
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
    """Tells which cells of a slide stand in slides before it; training slides are to come first."""

    def __init__(self) -> None:
        self._owner: dict[bytes, LabelledSlide] = {}

    def look(self, slide: LabelledSlide, digests: Sequence[bytes]) -> tuple[list[LabelledSlide | None], str]:
        """For each cell of one slide, by its image's digest: the slide of the other split that has it, or None.

        And why the slide is a copy of an earlier one, or nothing: more than half of its cells are that one's.
        """
        owners = [self._owner.get(digest, slide) for digest in digests]
        shared = Counter(owner for owner in owners if owner is not slide)
        (owner, n_shared), *_ = shared.most_common(1) or [(slide, 0)]
        if 2 * n_shared > len(digests):
            reason = (
                f"a copy: {n_shared} of its {len(digests)} cells are those of the {owner.split} slide {owner.slide}"
            )
            return [], reason + unlike(slide, owner)
        self._owner |= {digest: slide for digest, owner in zip(digests, owners, strict=True) if owner is slide}
        return [owner if owner.split != slide.split else None for owner in owners], ""


def unlike(slide: LabelledSlide, other: LabelledSlide) -> str:
    """What the labels file says otherwise of a copy, to stand behind the reason for leaving it out."""
    found = [f"label {other.label}, here {slide.label}"] if other.label != slide.label else []
    if other.patient_id != slide.patient_id:
        found.append(f"patient '{other.patient_id}', here '{slide.patient_id}'")
    return f". BUT it is labelled otherwise there ({'; '.join(found)}): correct the labels file" if found else ""


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
