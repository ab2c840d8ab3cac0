"""Cells sorted into class folders, at any depth below, as single-cell data sets are unpacked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import Instance
from cytomil.bags.cell_folder import list_cell_files
from cytomil.bags.images import read_image
from cytomil.bags.simulate import Plan
from cytomil.errors import ImageUnreadableError, NotEnoughCellsError, NotFoundError
from cytomil.litter import is_litter
from cytomil.progress import Problem
from cytomil.tables import composed
from cytomil.text import printable


@dataclass(frozen=True)
class ClassFolders:
    """The files that may be cells of the classes asked for, and what else lies there that cannot be one."""

    root: Path
    normal: dict[str, list[Path]]
    abnormal: dict[str, list[Path]]
    left_out: tuple[Problem, ...] = ()


def open_class_folders(root: Path, normal: Sequence[str], abnormal: Sequence[str]) -> ClassFolders:
    """List the images of the named classes.

    Raises `NotFoundError` where a class is not there, none was named, or one is named on both sides.
    """
    present = sorted(child.name for child in root.iterdir() if child.is_dir() and not is_litter(child.name))
    if not present:
        raise NotFoundError(f"{root} has no class folders. Name a folder with one sub-folder of images per class.")
    listing = f"{root} has the class folders {', '.join(present)}"
    if not normal or not abnormal:
        raise NotFoundError(f"{listing}. Say which are which with --normal A,B and --abnormal C.")
    on_disk = {composed(name): name for name in present}
    normal, abnormal = tuple(map(composed, normal)), tuple(map(composed, abnormal))
    for name in (*normal, *abnormal):
        if name not in on_disk:
            raise NotFoundError(f"{listing}; there is no '{name}'.")
    both = sorted(set(normal) & set(abnormal))
    if both:
        raise NotFoundError(f"class {', '.join(both)} is named both normal and abnormal. Name each class once.")
    listed = {name: list_cell_files(root / on_disk[name]) for name in (*normal, *abnormal)}
    return ClassFolders(
        root,
        {name: list(listed[name].files) for name in normal},
        {name: list(listed[name].files) for name in abnormal},
        tuple(Problem(f"{name}/{one.where}", one.reason) for name in listed for one in listed[name].left_out),
    )


def require_enough(classes: ClassFolders, plan: Plan, left_out: int = 0) -> None:
    """Raise `NotEnoughCellsError`, with the count per class, if the plan needs more cells than there are."""
    n_normal = sum(map(len, classes.normal.values()))
    n_abnormal = sum(map(len, classes.abnormal.values()))
    if left_out == 0 and n_normal >= plan.n_normal and n_abnormal >= plan.n_abnormal:
        return
    spoilt = f", of which {left_out} are unreadable or duplicates" if left_out else ""
    raise NotEnoughCellsError(
        f"{classes.root}: these bags need {plan.n_normal:,} normal and {plan.n_abnormal:,} abnormal cells; there are "
        f"{n_normal:,} normal ({_counts(classes.normal)}) and {n_abnormal:,} abnormal ({_counts(classes.abnormal)})"
        f"{spoilt}. Lower --bag-size, --train-bags, --test-bags or --witness-rate."
    )


class CellDraw:
    """Draws readable, distinct cells in random order; what it had to leave out is kept in ``problems``."""

    def __init__(self, classes: ClassFolders, plan: Plan, rng: np.random.Generator) -> None:
        self.problems = list(classes.left_out)
        self.n_duplicates = 0
        self._n_unreadable = 0
        self._classes = classes
        self._plan = plan
        self._seen: set[bytes] = set()
        self.normal = self._draw(classes.normal, 0, rng.permutation(sum(map(len, classes.normal.values()))))
        self.abnormal = self._draw(classes.abnormal, 1, rng.permutation(sum(map(len, classes.abnormal.values()))))

    def _draw(self, classes: dict[str, list[Path]], label: int, order: np.ndarray) -> Iterator[Instance]:
        files = [file for name in classes for file in classes[name]]
        for i in order:
            name = printable(files[i].relative_to(self._classes.root).as_posix())
            try:
                image = read_image(files[i], name)
            except ImageUnreadableError as error:
                self.problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
                self._n_unreadable += 1
                continue
            digest = hashlib.sha256(image).digest()
            if digest in self._seen:
                self.n_duplicates += 1
                continue
            self._seen.add(digest)
            # A name such as BLA/BLA_00017 would tell training what the cell is.
            yield Instance(digest.hex()[:16], image, label=label, source=name)
        require_enough(self._classes, self._plan, left_out=self._n_unreadable + self.n_duplicates)


def _counts(classes: dict[str, list[Path]]) -> str:
    return ", ".join(f"{name} {len(files):,}" for name, files in classes.items())
