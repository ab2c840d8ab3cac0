"""Simulated slides: bags of a chosen size and witness rate, drawn from a pool of normal and one of abnormal cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

    @property
    def jobs(self) -> list[tuple[str, int, int]]:
        """Every bag's split, number in it from 1, and label, in the order of making."""
        return [
            (split, number, label)
            for split, labels in (("train", self.train_labels), ("test", self.test_labels))
            for number, label in enumerate(labels, start=1)
        ]


@dataclass(frozen=True)
class Supply:
    """Where a bag's cells come from. Without a patient, a simulated slide is a patient of its own."""

    normal: Iterator[Instance]
    abnormal: Iterator[Instance]
    patient_id: str = ""


def make_plan(bag_size: int, witness_rate: float, train_bags: int, test_bags: int, rng: np.random.Generator) -> Plan:
    """Half of each split positive, in random order; a rate that is no whole number of cells becomes at least one."""
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
    """Write the planned bags to ``folder``, each of the next of ``supplies``, which gives every cell once."""
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
