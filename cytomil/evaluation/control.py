"""The control: how well slides of the two labels are told apart where their cells can give no reason to.

What such a model tells apart is stain, focus, site or day. Nothing that is fitted here is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cytomil.bags.patients import PATIENT
from cytomil.errors import FeatureFileError, TableError
from cytomil.evaluation.metrics import instance_auroc
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig
from cytomil.mil.cross_validate import cross_validate
from cytomil.mil.intervals import Interval, auroc_interval, mean_interval, n_independent
from cytomil.progress import Listener, Problem
from cytomil.tables import Column, read_table, require_one_spelling

WITHOUT_WITNESSES, PERMUTED = "without witnesses", "permuted labels"
_COLUMNS = (replace(PATIENT, required=True), Column("site", ("centre", "center", "hospital", "scanner"), required=True))
InstanceLabels = Callable[[int], np.ndarray | None]


@dataclass(frozen=True)
class CrossValidated:
    """The AUROC of bags held out, 0 to 1, with its 95 % interval, and how many bags and patients stand behind it."""

    auroc: float
    interval: Interval
    n_bags: int
    n_positive_patients: int
    n_negative_patients: int

    def to_dict(self) -> dict[str, Any]:
        """Plain types that `json` can write."""
        return {
            "auroc": self.auroc,
            "interval": {"low": self.interval[0], "high": self.interval[1]},
            "n_bags": self.n_bags,
            "n_positive_patients": self.n_positive_patients,
            "n_negative_patients": self.n_negative_patients,
        }


@dataclass(frozen=True)
class Control:
    """``control`` beside ``real``, the same cross-validation of the same bags as they are.

    ``kind``: `WITHOUT_WITNESSES` or `PERMUTED`. ``n_removed``: cells taken out of the bags, 0 where labels were permuted.
    ``aurocs``: of each permutation; ``control`` is then their mean, with the interval of that mean. ``n_sites``: within so
    many sites labels were permuted.
    """

    kind: str
    real: CrossValidated
    control: CrossValidated
    n_removed: int = 0
    aurocs: tuple[float, ...] = ()
    n_sites: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether slides of the two labels differ by something else than witnesses: 0.5 lies outside of the interval.

        Permuted labels that are told apart worse than by chance do not say so: cross-validation itself leans that way.
        """
        low, high = self.control.interval
        return low > 0.5 or (self.kind == WITHOUT_WITNESSES and high < 0.5)

    def to_dict(self) -> dict[str, Any]:
        """Plain types that `json` can write."""
        return {
            "kind": self.kind,
            "real": self.real.to_dict(),
            "control": self.control.to_dict(),
            "differs": self.differs,
            "n_removed": self.n_removed,
            "permutations": list(self.aurocs),
            "n_sites": self.n_sites,
        }


def without_witnesses(
    bags: Sequence[TrainingBag], instance_labels: InstanceLabels, settings: FitMilConfig, listener: Listener
) -> Control:
    """Cross-validate over the bags as they are, and again over the same bags without their abnormal cells.

    Negative bags lose as large a share of their cells, drawn at random, so that size tells nothing. Both times it is the
    same bags: one whose cells' labels are not all known is left out and listed, as is one that would be empty.

    Args:
        bags: of both labels.
        instance_labels: a bag's place in ``bags`` → its instances' labels, (N,): 1 abnormal, 0 normal, -1 unknown; or None.
            Asked for positive bags alone.
        settings: of the aggregator.
        listener: is told of the fits.

    Raises:
        FeatureFileError: too few bags are left, or no positive bag holds a witness of known label.
    """
    normal: dict[int, np.ndarray] = {}
    problems = []
    for i, bag in enumerate(bags):
        labels = instance_labels(i) if bag.label else None
        if not bag.label:
            normal[i] = np.ones(len(bag), dtype=bool)
        elif labels is None or (labels < 0).any():
            problems.append(
                Problem(bag.bag_id, "left out of the control: which of its cells are abnormal is not known")
            )
        elif (labels == 1).all():
            problems.append(Problem(bag.bag_id, "left out of the control: all of its cells are abnormal"))
        else:
            normal[i] = labels == 0
    shares = [1 - float(kept.mean()) for i, kept in normal.items() if bags[i].label]
    if not any(shares):
        raise FeatureFileError(
            "no positive bag has cells that are known to be abnormal, so that there is no control without them. Permute the "
            "labels instead: --control --permutations 10 (with --sites where slides come from several)."
        )
    rng = np.random.default_rng(settings.seed)
    share = float(np.mean(shares))
    kept_bags = []
    for i, kept in normal.items():
        cells = np.flatnonzero(kept)
        if not bags[i].label:
            cells = np.sort(rng.permutation(cells)[: max(1, round(len(cells) * (1 - share)))])
        kept_bags.append(replace(bags[i], stored=bags[i].stored[cells]))
    n_removed = sum(int((~kept).sum()) for kept in normal.values())
    real = _cross_validated([bags[i] for i in normal], settings, listener)
    control = _cross_validated(kept_bags, settings, listener)
    return Control(WITHOUT_WITNESSES, real, control, n_removed, problems=tuple(problems))


def permuted_labels(
    bags: Sequence[TrainingBag], site_of: Mapping[str, str], n: int, settings: FitMilConfig, listener: Listener
) -> Control:
    """Cross-validate over the bags as they are, and ``n`` times with labels permuted between the patients of a site.

    A patient's bags stay together: patients change labels with others of as many bags. A site whose patients are all of
    one label keeps it, so that what differs between sites is told apart still.

    Args:
        bags: of both labels.
        site_of: patient → site; those who are not there are of one site together.
        n: permutations, ≥ 1.
        settings: of the aggregator.
        listener: is told of the fits.

    Raises:
        FeatureFileError: too few patients of a label.
    """
    rng = np.random.default_rng(settings.seed)
    real = _cross_validated(bags, settings, listener)
    aurocs = [_cross_validated(_permuted(bags, site_of, rng), settings, listener).auroc for _ in range(n)]
    mean = float(np.mean(aurocs))
    # One permutation has the interval of its patients; of several the mean's own spread is seen.
    interval = mean_interval(aurocs) or auroc_interval(mean, real.n_positive_patients, real.n_negative_patients)
    n_sites = len({site_of.get(bag.patient, "") for bag in bags})
    control = replace(real, auroc=mean, interval=interval)
    return Control(PERMUTED, real, control, aurocs=tuple(aurocs), n_sites=n_sites)


def read_sites(path: Path) -> dict[str, str]:
    """Patient → site, from a CSV. Raises `TableError` or `NotFoundError`; a patient stands at one site."""
    rows = read_table(path, _COLUMNS, "a spreadsheet: columns patient, site")
    for column in ("patient", "site"):
        require_one_spelling(((row[column], row.where) for row in rows), column)
    found: dict[str, str] = {}
    for row in rows:
        if not row["patient"] or not row["site"]:
            raise TableError(f"{row.where}: a patient and a site are wanted. Fill both in or remove the line.")
        if found.setdefault(row["patient"], row["site"]) != row["site"]:
            raise TableError(f"{row.where}: patient '{row['patient']}' stands at another site in an earlier line.")
    return found


def _cross_validated(bags: Sequence[TrainingBag], settings: FitMilConfig, listener: Listener) -> CrossValidated:
    probabilities = cross_validate(bags, settings, listener).probabilities
    labels = [bag.label for bag in bags]
    auroc = instance_auroc(probabilities, labels)
    assert auroc is not None  # cross_validate refuses bags of one label
    n_positive, n_negative = n_independent(labels, [bag.patient for bag in bags])
    interval = auroc_interval(auroc, n_positive, n_negative)
    return CrossValidated(auroc, interval, len(bags), n_positive, n_negative)


def _permuted(bags: Sequence[TrainingBag], site_of: Mapping[str, str], rng: np.random.Generator) -> list[TrainingBag]:
    bags_of: dict[str, list[int]] = defaultdict(list)
    for i, bag in enumerate(bags):
        bags_of[bag.patient].append(i)
    alike: dict[tuple[str, int], list[str]] = defaultdict(list)
    for patient, own in bags_of.items():
        alike[site_of.get(patient, ""), len(own)].append(patient)
    label_of: dict[int, int] = {}
    for patients in alike.values():
        for patient, other in zip(patients, rng.permutation(len(patients)), strict=True):
            given = [bags[i].label for i in bags_of[patients[other]]]
            label_of |= dict(zip(bags_of[patient], rng.permutation(given).tolist(), strict=True))
    return [replace(bag, label=label_of[i]) for i, bag in enumerate(bags)]
