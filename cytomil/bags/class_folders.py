"""Simulated bags from class folders: one folder per class, with images at any depth, as in single-cell data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import BagInfo, Instance, write_bag
from cytomil.bags.images import list_cell_files, read_image
from cytomil.bags.manifest import BagRow
from cytomil.errors import ImageUnreadableError, NotEnoughCellsError, NotFoundError
from cytomil.litter import is_litter
from cytomil.progress import Listener, Problem
from cytomil.tables import composed
from cytomil.text import printable


@dataclass(frozen=True)
class ClassFolders:
    """The files of the requested classes that may be cells, and ``left_out``: the files that cannot be."""

    root: Path
    normal: dict[str, list[Path]]
    abnormal: dict[str, list[Path]]
    left_out: tuple[Problem, ...] = ()


def open_class_folders(root: Path, normal: Sequence[str], abnormal: Sequence[str]) -> ClassFolders:
    """List the images of the named classes.

    Raises `NotFoundError` if a class does not exist, no class is named, or a class is named both normal and abnormal.
    """
    present = sorted(child.name for child in root.iterdir() if child.is_dir() and not is_litter(child.name))
    if not present:
        raise NotFoundError(f"{root} has no class folders. Name a folder with one sub-folder of images per class.")
    listing = f"{root} has the class folders {', '.join(present)}"
    if not normal or not abnormal:
        raise NotFoundError(f"{listing}. Name the classes of each kind with --normal A,B and --abnormal C.")
    on_disk = {composed(name): name for name in present}
    normal, abnormal = tuple(map(composed, normal)), tuple(map(composed, abnormal))
    for name in (*normal, *abnormal):
        if name not in on_disk:
            raise NotFoundError(f"{listing}; there is no '{name}'.")
    both = sorted(set(normal) & set(abnormal))
    if both:
        raise NotFoundError(f"class {', '.join(both)} is both normal and abnormal. Name each class once.")
    listed = {name: list_cell_files(root / on_disk[name]) for name in (*normal, *abnormal)}
    return ClassFolders(
        root,
        {name: list(listed[name].files) for name in normal},
        {name: list(listed[name].files) for name in abnormal},
        tuple(Problem(f"{name}/{one.where}", one.reason) for name in listed for one in listed[name].left_out),
    )


def require_enough(classes: ClassFolders, plan: Plan, left_out: int = 0) -> None:
    """Raise `NotEnoughCellsError`, with the count per class, if the plan needs more cells than exist."""
    n_normal = sum(map(len, classes.normal.values()))
    n_abnormal = sum(map(len, classes.abnormal.values()))
    if left_out == 0 and n_normal >= plan.n_normal and n_abnormal >= plan.n_abnormal:
        return
    unusable = f", of which {left_out} are unreadable or duplicates" if left_out else ""
    raise NotEnoughCellsError(
        f"{classes.root}: these bags need {plan.n_normal:,} normal and {plan.n_abnormal:,} abnormal cells; there are "
        f"{n_normal:,} normal ({_counts(classes.normal)}) and {n_abnormal:,} abnormal ({_counts(classes.abnormal)})"
        f"{unusable}. Lower --bag-size, --train-bags, --test-bags or --witness-rate."
    )


class CellDraw:
    """Draws readable, distinct cells in random order. ``problems`` lists the files that were left out."""

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
            # A name such as BLA/BLA_00017 would reveal the cell's class to training.
            yield Instance(digest.hex()[:16], image, label=label, source=name)
        require_enough(self._classes, self._plan, left_out=self._n_unreadable + self.n_duplicates)


def _counts(classes: dict[str, list[Path]]) -> str:
    return ", ".join(f"{name} {len(files):,}" for name, files in classes.items())


@dataclass(frozen=True)
class Plan:
    """The simulated bags to make. Each positive bag holds ``n_witnesses`` abnormal cells."""

    bag_size: int
    n_witnesses: int
    train_labels: tuple[int, ...]
    test_labels: tuple[int, ...]

    @property
    def witness_rate(self) -> float:
        """The actual rate, because ``n_witnesses`` is a whole number."""
        return self.n_witnesses / self.bag_size

    @property
    def n_abnormal(self) -> int:
        """Total number of abnormal cells needed."""
        return self.n_witnesses * (sum(self.train_labels) + sum(self.test_labels))

    @property
    def n_normal(self) -> int:
        """Total number of normal cells needed."""
        return self.bag_size * (len(self.train_labels) + len(self.test_labels)) - self.n_abnormal

    @property
    def jobs(self) -> list[tuple[str, int, int]]:
        """Split, number within the split (from 1) and label of every bag, in the order in which they are made."""
        return [
            (split, number, label)
            for split, labels in (("train", self.train_labels), ("test", self.test_labels))
            for number, label in enumerate(labels, start=1)
        ]


@dataclass(frozen=True)
class Supply:
    """The sources of a bag's cells. Without a ``patient_id``, each simulated slide counts as its own patient."""

    normal: Iterator[Instance]
    abnormal: Iterator[Instance]
    patient_id: str = ""


def make_plan(bag_size: int, witness_rate: float, train_bags: int, test_bags: int, rng: np.random.Generator) -> Plan:
    """Plan bags: half of each split is positive, in random order. Witnesses are rounded to at least one cell."""
    n_witnesses = max(1, round(witness_rate * bag_size))
    orders = [rng.permutation([1] * (n // 2) + [0] * (n - n // 2)) for n in (train_bags, test_bags)]
    train, test = (tuple(int(label) for label in order) for order in orders)
    return Plan(bag_size, n_witnesses, train, test)


def write_simulated_bags(
    folder: Path,
    plan: Plan,
    supplies: Iterable[Supply],
    source: str,
    rng: np.random.Generator,
    listener: Listener,
) -> list[BagRow]:
    """Write the planned bags to ``folder``. Each bag takes the next of ``supplies``, and no cell is used twice."""
    rows = []
    jobs = zip(plan.jobs, supplies, strict=False)
    for (split, number, label), supply in listener.track(jobs, "making bags", len(plan.jobs), unit="bags"):
        bag_id = f"{split}-{number:02d}"
        patient = supply.patient_id or bag_id
        is_witness = np.zeros(plan.bag_size, dtype=bool)
        if label:
            is_witness[rng.choice(plan.bag_size, plan.n_witnesses, replace=False)] = True
        cells = _taken(supply, is_witness)
        info = BagInfo(bag_id=bag_id, label=label, patient_id=patient, source=source)
        sha256, n = write_bag(folder / f"{bag_id}.h5", info, cells)
        rate = plan.witness_rate if label else 0.0
        rows.append(BagRow(bag_id, f"{bag_id}.h5", patient, split, label, n, rate, sha256))
    return rows


def _taken(supply: Supply, is_witness: np.ndarray) -> Iterator[Instance]:
    for witness in is_witness:
        yield next(supply.abnormal if witness else supply.normal)
