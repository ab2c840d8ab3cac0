"""Labelled slides: which side of the split each stands on; and the cells of those that are folders of cell images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import Instance
from cytomil.bags.cell_folder import list_cell_files
from cytomil.bags.images import read_image
from cytomil.bags.labels import LabelledSlide
from cytomil.errors import BagFileError, ImageUnreadableError, NotFoundError
from cytomil.progress import Problem
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


class SlideFolderReader:
    """Reads slides' cells; unreadable cells and ones that already stand in the other split go to ``problems``."""

    def __init__(self, root: Path) -> None:
        self.problems: list[Problem] = []
        self._root = root
        self._owner: dict[bytes, LabelledSlide] = {}
        self._own: list[bytes] = []
        self._shared: Counter[LabelledSlide] = Counter()
        self._other_split: list[Problem] = []

    def cells(self, slide: LabelledSlide, folder: Path) -> Iterator[Instance]:
        """The readable cells of one slide's ``folder``, in the order of their names; byte-identical ones once.

        Raises `NotFoundError` where the folder holds no images.
        """
        self._own, self._shared, self._other_split = [], Counter(), []
        listed = list_cell_files(folder)
        if not listed.files:
            raise NotFoundError(f"{folder} {listed.why_none()}")
        of_root = printable(folder.relative_to(self._root).as_posix())
        self.problems += [Problem(f"{of_root}/{one.where}", one.reason) for one in listed.left_out]
        seen: set[bytes] = set()
        for file in listed.files:
            name = printable(file.relative_to(self._root).as_posix())
            try:
                image = read_image(file, name)
            except ImageUnreadableError as error:
                self.problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
                continue
            digest = hashlib.sha256(image).digest()
            if digest in seen:
                continue
            seen.add(digest)
            owner = self._owner.setdefault(digest, slide)
            if owner is slide:
                self._own.append(digest)
            else:
                self._shared[owner] += 1
            if owner.split != slide.split:
                reason = f"the same image stands in the {owner.split} slide {owner.slide}; left out here"
                self._other_split.append(Problem(name, reason))
                continue
            yield Instance(printable(file.relative_to(folder).as_posix()), image, source=name)

    def copy_of(self, slide: LabelledSlide) -> str:
        """Why the slide just read is a copy of an earlier one, or nothing: more than half of its cells are that one's."""
        n = len(self._own) + self._shared.total()
        (owner, n_shared), *_ = self._shared.most_common(1) or [(slide, 0)]
        if 2 * n_shared <= n:
            self.problems += self._other_split
            return ""
        for digest in self._own:
            del self._owner[digest]
        reason = f"a copy: {n_shared} of its {n} cells are those of the {owner.split} slide {owner.slide}"
        return reason + unlike(slide, owner)


def unlike(slide: LabelledSlide, other: LabelledSlide) -> str:
    """What the labels file says otherwise of a copy, to stand behind the reason for leaving it out."""
    found = [f"label {other.label}, here {slide.label}"] if other.label != slide.label else []
    if other.patient_id != slide.patient_id:
        found.append(f"patient '{other.patient_id}', here '{slide.patient_id}'")
    return f". BUT it is labelled otherwise there ({'; '.join(found)}): correct the labels file" if found else ""
