"""Real slides, with a CSV that gives each slide's label and patient; and those of them that are folders of cell images."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import Instance
from cytomil.bags.cell_folder import list_cell_files
from cytomil.bags.images import read_image
from cytomil.bags.manifest import SPLITS
from cytomil.errors import BagFileError, ImageUnreadableError, NotFoundError, require_file
from cytomil.progress import Problem
from cytomil.slides.resolution import parse_mpp
from cytomil.text import printable


@dataclass(frozen=True)
class LabelledSlide:
    """One row of the labels file. ``split`` and ``patient_id`` are empty where the file does not give them.

    ``mpp`` is in µm per level-0 pixel of a whole slide; None where the slide's own file is to be believed.
    """

    slide: str
    label: int
    patient_id: str = ""
    split: str = ""
    mpp: float | None = None


def read_labels(path: Path) -> list[LabelledSlide]:
    """Read a CSV with the columns slide and label (0 or 1) and, optionally, patient, split (train or test) and mpp.

    Raises `BagFileError` naming file and line for anything else, and for a patient in two splits; `SettingsError` for an
    mpp that is no number.
    """
    require_file(path, "a spreadsheet: columns slide, label, patient")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"slide", "label"} <= set(reader.fieldnames or ()):
                raise BagFileError(f"{path} needs the columns slide and label, and may have patient, split and mpp.")
            slides = [_parse(path, line, number) for number, line in enumerate(reader, start=2)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BagFileError(f"{path} is not a CSV file in UTF-8 ({error}).") from None
    if not slides:
        raise BagFileError(f"{path} lists no slides.")
    names = [slide.slide for slide in slides]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BagFileError(f"{path} lists {', '.join(twice)} twice. Give every slide one line.")
    if any(slide.split for slide in slides) and not all(slide.split for slide in slides):
        raise BagFileError(f"{path}: some lines have a split and some have none. Fill all of them or none.")
    split_of: dict[str, str] = {}
    for slide in slides:
        if slide.patient_id and split_of.setdefault(slide.patient_id, slide.split) != slide.split:
            raise BagFileError(
                f"{path}: patient '{slide.patient_id}' stands in both train and test. "
                "Put all slides of a patient on one side of the split."
            )
    return slides


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
        self._split_of: dict[bytes, str] = {}

    def cells(self, slide: LabelledSlide) -> Iterator[Instance]:
        """The readable cells of one slide, in the order of their names; byte-identical ones once.

        Raises `NotFoundError` where the folder holds no images.
        """
        folder = self._root / slide.slide
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
            split = self._split_of.setdefault(digest, slide.split)
            if split != slide.split:
                self.problems.append(Problem(name, f"the same image stands in a {split} slide; left out here"))
                continue
            yield Instance(printable(file.relative_to(folder).as_posix()), image, source=name)


def _parse(path: Path, line: dict[str, str], number: int) -> LabelledSlide:
    slide = LabelledSlide(
        (line["slide"] or "").strip(),
        {"0": 0, "1": 1}.get((line["label"] or "").strip(), -1),
        (line.get("patient") or "").strip(),
        (line.get("split") or "").strip(),
        parse_mpp(line["mpp"], f"{path}, line {number}") if (line.get("mpp") or "").strip() else None,
    )
    if not slide.slide:
        raise BagFileError(f"{path}, line {number}: the slide's name is empty.")
    if Path(slide.slide).name != slide.slide or slide.slide == "..":
        raise BagFileError(f"{path}, line {number}: slide '{slide.slide}' must be a name in that folder, not a path.")
    if slide.label < 0:
        raise BagFileError(f"{path}, line {number}: label '{line['label']}' is neither 0 (healthy) nor 1 (diseased).")
    if slide.split and slide.split not in SPLITS:
        raise BagFileError(f"{path}, line {number}: split '{slide.split}' is none of {', '.join(SPLITS)}.")
    return slide
