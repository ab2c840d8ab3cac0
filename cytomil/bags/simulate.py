"""Simulated slides: bags of a chosen size and witness rate, drawn from a pool of normal and one of abnormal cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import BagInfo, Instance, write_bag
from cytomil.bags.manifest import BagRow
from cytomil.progress import Listener


@dataclass(frozen=True)
class Plan:
    """What the simulated bags are to be. ``n_witnesses`` stand in each positive bag."""

    bag_size: int
    n_witnesses: int
    train_labels: tuple[int, ...]
    test_labels: tuple[int, ...]

    @property
    def witness_rate(self) -> float:
        """The true rate: whole cells over the bag's size."""
        return self.n_witnesses / self.bag_size

    @property
    def n_abnormal(self) -> int:
        """Abnormal cells needed in all."""
        return self.n_witnesses * (sum(self.train_labels) + sum(self.test_labels))

    @property
    def n_normal(self) -> int:
        """Normal cells needed in all."""
        return self.bag_size * (len(self.train_labels) + len(self.test_labels)) - self.n_abnormal


def make_plan(bag_size: int, witness_rate: float, train_bags: int, test_bags: int, rng: np.random.Generator) -> Plan:
    """Half of each split positive, in random order; a rate that is no whole number of cells becomes at least one."""
    n_witnesses = max(1, round(witness_rate * bag_size))
    orders = [rng.permutation([1] * (n // 2) + [0] * (n - n // 2)) for n in (train_bags, test_bags)]
    train, test = (tuple(int(label) for label in order) for order in orders)
    return Plan(bag_size, n_witnesses, train, test)


def write_simulated_bags(
    folder: Path,
    plan: Plan,
    normal: Iterator[Instance],
    abnormal: Iterator[Instance],
    source: str,
    rng: np.random.Generator,
    listener: Listener,
) -> list[BagRow]:
    """Write the planned bags to ``folder``, taking every cell once; each simulated slide is a patient of its own."""
    jobs = [("train", i, label) for i, label in enumerate(plan.train_labels, start=1)]
    jobs += [("test", i, label) for i, label in enumerate(plan.test_labels, start=1)]
    rows = []
    for split, number, label in listener.track(jobs, "making bags", unit="bags"):
        bag_id = f"{split}-{number:02d}"
        is_witness = np.zeros(plan.bag_size, dtype=bool)
        if label:
            is_witness[rng.choice(plan.bag_size, plan.n_witnesses, replace=False)] = True
        cells = (next(abnormal if witness else normal) for witness in is_witness)
        info = BagInfo(bag_id=bag_id, label=label, patient_id=bag_id, source=source)
        sha256, n = write_bag(folder / f"{bag_id}.h5", info, cells)
        rate = plan.witness_rate if label else 0.0
        rows.append(BagRow(bag_id, f"{bag_id}.h5", bag_id, split, label, n, rate, sha256))
    return rows
