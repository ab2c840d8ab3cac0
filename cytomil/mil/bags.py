"""Bags of embeddings for fitting: their standardisation, their folds, and readers' verdicts on single cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cytomil.errors import TableError
from cytomil.tables import Column, read_table

ABNORMAL, NOT_ABNORMAL, UNKNOWN = 1, 0, -1
VERDICTS = {"abnormal": ABNORMAL, "normal": NOT_ABNORMAL, "not a cell": NOT_ABNORMAL}
COLUMNS = ("slide", "instance_id", "verdict")


@dataclass(frozen=True)
class Feedback:
    """Readers' verdicts on cells: slide → instance id → 1 abnormal, 0 not abnormal."""

    cells: dict[str, dict[str, int]]

    def of_bag(self, bag_id: str) -> dict[str, int]:
        """The verdicts on a bag's cells. A slide's file may be named with or without its suffix."""
        found: dict[str, int] = {}
        for slide, verdicts in self.cells.items():
            if bag_id in (slide, Path(slide).stem):
                found |= verdicts
        return found

    def codes(self, bag_id: str, instance_ids: Sequence[str]) -> np.ndarray:
        """The verdict on each of a bag's cells, int8 (N,); -1 for cells without a verdict."""
        verdicts = self.of_bag(bag_id)
        return np.array([verdicts.get(name, UNKNOWN) for name in instance_ids], np.int8)

    def note_unused(self, bag_ids: Iterable[str], note: Callable[[str], None]) -> None:
        """Send ``note`` one line if there are verdicts on slides that match none of the bags."""
        known = set(bag_ids)
        unused = [slide for slide in self.cells if not {slide, Path(slide).stem} & known]
        if unused:
            n = sum(len(self.cells[slide]) for slide in unused)
            note(f"{n} verdicts are not used, because these slides are not training bags: {', '.join(sorted(unused))}")


NO_FEEDBACK = Feedback({})


def informative_cells(scores: np.ndarray, n_top: int, n: int) -> np.ndarray:
    """Choose further cells, so that verdicts also cover less suspicious cells.

    Their ranks are spread over all cells below the top ones, in equal steps of the logarithm. Most of them are near the
    top, where the model is least certain. `python -m bench feedback` measures their benefit.

    Args:
        scores: of all cells of a slide, (N,).
        n_top: number of cells with the highest scores, which are shown in any case.
        n: number of cells to choose.

    Returns:
        Indices of at most ``n`` cells, in order of descending score.
    """
    ranks = np.argsort(-scores, kind="stable")[n_top:]
    if not n or not len(ranks):
        return ranks[:0]
    positions = np.geomspace(n_top + 1, n_top + len(ranks), min(n, len(ranks))).round().astype(int) - n_top - 1
    return ranks[np.unique(positions)]


def read_feedback(path: Path) -> Feedback:
    """Read a table with the columns slide, instance_id and verdict.

    Raises:
        NotFoundError: the file is missing.
        TableError: a verdict is not one of abnormal, normal and not a cell, or a cell has two verdicts.
    """
    columns = [Column(name, required=True) for name in COLUMNS]
    cells: dict[str, dict[str, int]] = {}
    for row in read_table(path, columns, "cytomil feedback"):
        verdict = row["verdict"].lower()
        if verdict not in VERDICTS:
            raise TableError(f"{row.where}: '{row['verdict']}' is not one of {', '.join(VERDICTS)}.")
        own = cells.setdefault(row["slide"], {})
        if own.setdefault(row["instance_id"], VERDICTS[verdict]) != VERDICTS[verdict]:
            raise TableError(f"{row.where}: cell {row['instance_id']} has two verdicts. Keep one line.")
    return Feedback(cells)


_MAX_VALUE = 1e12
# Relative to the group's typical spread. A dimension that hardly varied in training must not dominate if it varies later.
_MIN_RELATIVE_SPREAD = 0.1


@dataclass(frozen=True)
class TrainingBag:
    """One bag's features, its label and its patient.

    Args:
        bag_id: the bag's name.
        stored: (N, D), the features in memory, float16 or float32.
        label: 0 or 1.
        patient: the patient's name; if unknown, a name that only this bag has.
        groups: widths of groups of columns that belong together, such as an encoder's stages. Empty: one group.
        standardise: applied to the features whenever they are read.
        verdicts: int8 (N,), the readers' verdict on each cell: 1 abnormal, 0 not abnormal, -1 none. None: there are no
            verdicts in this bag.
    """

    bag_id: str
    stored: Tensor
    label: int
    patient: str
    groups: tuple[int, ...] = ()
    standardise: Standardiser | None = None
    verdicts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def dim(self) -> int:
        """The number of features D."""
        return self.stored.shape[1]

    @property
    def values(self) -> Tensor:
        """The features, float32 (N, D), standardised if ``standardise`` is set. Computed at each access, to save memory."""
        return self.select(slice(None))

    def have_verdict(self, verdict: int) -> Tensor:
        """Whether readers gave each cell this verdict, 1 abnormal or 0 not abnormal: bool (N,)."""
        return torch.zeros(len(self), dtype=torch.bool) if self.verdicts is None else self.verdicts == verdict

    def select(self, cells: slice | Tensor) -> Tensor:
        """`values` of some cells."""
        kept = self.stored[cells].float()
        return kept if self.standardise is None else self.standardise(kept)


def draw_cells(bags: Sequence[TrainingBag], max_cells: int, seed: int) -> Tensor:
    """Draw up to ``max_cells`` of all the bags' cells without replacement: float32 (≤ max_cells, D)."""
    sizes = [len(bag) for bag in bags]
    drawn = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))[:max_cells].sort().values
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    bounds = torch.searchsorted(drawn, torch.tensor(starts)).tolist()
    return torch.cat(
        [
            bag.select(drawn[first:last] - start)
            for bag, start, first, last in zip(bags, starts, bounds, bounds[1:], strict=False)
        ]
    )


def split(columns: Tensor, groups: Sequence[int]) -> tuple[Tensor, ...]:
    """Split columns into groups: (…, D) → one (…, width) per group. Without groups, all columns are one group."""
    return columns.split(list(groups), dim=-1) if groups else (columns,)


def min_spread(std: Tensor) -> float:
    """The lower limit of a dimension's standard deviation, given those of its whole group, (d,)."""
    return max(_MIN_RELATIVE_SPREAD * float(std.square().mean().sqrt()) if len(std) else 0.0, 1e-6)


@dataclass(frozen=True)
class Standardiser:
    """Scales each dimension to zero mean and unit variance over the training bags. ``mean`` and ``std`` are (D,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, bags: Sequence[TrainingBag]) -> Standardiser:
        """Measure mean and standard deviation over all instances of ``bags``.

        The lower limit of a standard deviation is a tenth of the root mean square of its group. Some dimensions of a network
        are constant in training, but may vary on a new slide.
        """
        n = sum(len(bag) for bag in bags)
        # One bag at a time, about the mean. A plain sum of squares would be imprecise for values far from 0.
        mean = sum((bag.values.double().sum(dim=0) for bag in bags), start=torch.zeros(bags[0].dim).double()) / n
        squares = ((bag.values.double() - mean).square().sum(dim=0) for bag in bags)
        std = (sum(squares, start=torch.zeros_like(mean)) / n).sqrt().float()
        return cls(
            mean.float(),
            torch.cat([part.clamp(min=min_spread(part)) for part in split(std, bags[0].groups)]),
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Standardise embeddings, (N, D) → (N, D), clipped to ±1e12 so that squares do not overflow float32."""
        return ((values - self.mean) / self.std).clamp_(-_MAX_VALUE, _MAX_VALUE)


def spread_folds(bags: Sequence[TrainingBag], max_folds: int) -> tuple[np.ndarray, bool]:
    """Spread bags over folds, by patient where possible.

    Every fold holds a negative bag, and outside each fold there are bags of both labels. If a label has only one patient,
    bags are held out instead of patients. If it has only one bag, nothing can be held out, and all bags are in one fold.

    Args:
        bags: of both labels.
        max_folds: maximum number of folds, ≥ 1.

    Returns:
        Each bag's fold, (n_bags,), counted from 0, and whether each patient is in one fold only.
    """
    for group_of in (attrgetter("patient"), attrgetter("bag_id")):
        groups = [list(dict.fromkeys(group_of(bag) for bag in bags if bag.label == label)) for label in (0, 1)]
        n_folds = min(max_folds, *map(len, groups))
        # A patient with bags of both labels keeps the fold of its negative bags.
        fold_of = {group: i % n_folds for side in reversed(groups) for i, group in enumerate(side)}
        fold = np.array([fold_of[group_of(bag)] for bag in bags])
        if n_folds > 1 and all(
            len({bag.label for bag, other in zip(bags, fold, strict=True) if other != number}) == 2
            for number in range(n_folds)
        ):
            return fold, all(len(set(fold[[bag.patient == one.patient for bag in bags]])) == 1 for one in bags)
    return np.zeros(len(bags), dtype=int), False
