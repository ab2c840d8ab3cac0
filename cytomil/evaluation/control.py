"""Figures on modified bags: redrawn from the cells of the evaluated bags, without witnesses, or with permuted labels.

A model that predicts the labels of slides without witnesses, or permuted labels, can only use stain, focus, site or day.
The models that are fitted for the control are discarded.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cytomil.bags.patients import PATIENT
from cytomil.errors import FeatureFileError, TableError
from cytomil.evaluation.metrics import BagMetrics, bag_metrics, instance_auroc
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig
from cytomil.mil.cross_validate import cross_validate
from cytomil.mil.intervals import Interval, auroc_interval, mean_interval, n_independent
from cytomil.mil.thresholds import best_f1_threshold
from cytomil.progress import Listener, Problem
from cytomil.tables import Column, read_table, require_one_spelling

Call = Callable[[np.ndarray], float]
"""Maps a bag's embeddings, float32 (N, D), to its probability."""


@dataclass(frozen=True)
class RedrawnMetrics:
    """Figures of a model on redrawn bags.

    The bags are not a sample of new slides, because they repeat the same cells. More bags reduce only the error of the
    draw, not that of the choice of cells.

    Args:
        bag: figures at the model's own threshold.
        best_f1: F1 at ``best_threshold``. Its difference from ``bag.f1`` is the cost of a threshold from training bags.
        best_threshold: the threshold with the highest F1 on these bags.
        bag_size: cells per bag.
        n_witnesses: witnesses per positive bag.
        n_normal: number of normal cells to draw from.
        n_abnormal: number of abnormal cells to draw from.
        probabilities: of each bag, so that runs can be combined.
        labels: of each bag.
    """

    bag: BagMetrics
    best_f1: float
    best_threshold: float
    bag_size: int
    n_witnesses: int
    n_normal: int
    n_abnormal: int
    probabilities: list[float]
    labels: list[int]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain types for `json`."""
        return dataclasses.asdict(self)


def redrawn_metrics(
    bags: Sequence[tuple[np.ndarray, np.ndarray]], call: Call, threshold: float, n: int, seed: int
) -> RedrawnMetrics:
    """Draw ``n`` bags from the cells of ``bags``, half of them positive, and compute the figures of ``call`` on them.

    A drawn bag has the median number of cells of ``bags``. A positive one has their mean number of witnesses, at least one.
    No cell is drawn twice for a bag, unless there are too few.

    Args:
        bags: embeddings, float32 (N, D), and instance labels (N,) of each: 1 abnormal, 0 normal; others are left out.
        call: the model.
        threshold: the model calls a bag positive from this probability on.
        n: bags to draw, ≥ 2.
        seed: of the draw.

    Raises:
        ValueError: the bags hold no normal or no abnormal cell.
    """
    from sklearn.metrics import f1_score

    values, labels = np.concatenate([bag[0] for bag in bags]), np.concatenate([bag[1] for bag in bags])
    normal, abnormal = (np.flatnonzero(labels == kind) for kind in (0, 1))
    if not len(normal) or not len(abnormal):
        raise ValueError("redrawing bags needs normal and abnormal cells of known label")
    size = int(np.median([len(bag[1]) for bag in bags]))
    counts = [int((bag[1] == 1).sum()) for bag in bags]
    n_witnesses = max(1, round(float(np.mean([count for count in counts if count]))))
    rng = np.random.default_rng(seed)

    def drawn(of: np.ndarray, count: int) -> np.ndarray:
        return rng.choice(of, count, replace=count > len(of))

    truth, probabilities = [], []
    for i in range(n):
        witnesses = n_witnesses * (i % 2)
        cells = np.concatenate([drawn(normal, size - witnesses), drawn(abnormal, witnesses)])
        truth.append(i % 2)
        probabilities.append(call(values[cells]))
    metrics = bag_metrics(probabilities, truth, threshold)
    scores = np.array(probabilities)
    best_threshold = best_f1_threshold(scores, np.array(truth))
    best = float(f1_score(truth, scores >= best_threshold))
    return RedrawnMetrics(
        metrics, best, best_threshold, size, n_witnesses, len(normal), len(abnormal), probabilities, truth
    )


WITHOUT_WITNESSES, PERMUTED = "without witnesses", "permuted labels"
_COLUMNS = (replace(PATIENT, required=True), Column("site", ("centre", "center", "hospital", "scanner"), required=True))
InstanceLabels = Callable[[int], np.ndarray | None]


@dataclass(frozen=True)
class CrossValidated:
    """The AUROC on held-out bags, 0 to 1, with its 95 % interval and the numbers of bags and patients."""

    auroc: float
    interval: Interval
    n_bags: int
    n_positive_patients: int
    n_negative_patients: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain types for `json`."""
        return {
            "auroc": self.auroc,
            "interval": {"low": self.interval[0], "high": self.interval[1]},
            "n_bags": self.n_bags,
            "n_positive_patients": self.n_positive_patients,
            "n_negative_patients": self.n_negative_patients,
        }


@dataclass(frozen=True)
class Control:
    """The result of a control.

    Args:
        kind: `WITHOUT_WITNESSES` or `PERMUTED`.
        real: cross-validation of the unchanged bags.
        control: the same cross-validation of the changed bags. With permutations, the mean AUROC and its interval.
        n_removed: number of cells removed from the bags; 0 with permutations.
        aurocs: AUROC of each permutation.
        n_sites: number of sites within which labels were permuted.
        problems: bags that were left out.
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
        """Whether the labels can be predicted without witnesses: 0.5 lies outside the interval.

        With permuted labels, an AUROC below 0.5 does not count, because cross-validation itself is biased that way.
        """
        low, high = self.control.interval
        return low > 0.5 or (self.kind == WITHOUT_WITNESSES and high < 0.5)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain types for `json`."""
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
    """Cross-validate on the unchanged bags, and on the same bags without their abnormal cells.

    Negative bags lose the same fraction of random cells, so that bag size does not reveal the label. Bags with unknown
    instance labels, and bags that would be empty, are left out of both runs and listed.

    Args:
        bags: of both labels.
        instance_labels: maps an index in ``bags`` to the instance labels, (N,): 1 abnormal, 0 normal, -1 unknown; or to
            None. Called only for positive bags.
        settings: of the aggregator.
        listener: shows progress of the fits.

    Raises:
        FeatureFileError: too few bags are left, or no positive bag holds a known witness.
    """
    normal: dict[int, np.ndarray] = {}
    problems = []
    for i, bag in enumerate(bags):
        labels = instance_labels(i) if bag.label else None
        if not bag.label:
            normal[i] = np.ones(len(bag), dtype=bool)
        elif labels is None or (labels < 0).any():
            problems.append(Problem(bag.bag_id, "left out of the control: some of its instance labels are unknown"))
        elif (labels == 1).all():
            problems.append(Problem(bag.bag_id, "left out of the control: all of its cells are abnormal"))
        else:
            normal[i] = labels == 0
    fractions = [1 - float(kept.mean()) for i, kept in normal.items() if bags[i].label]
    if not any(fractions):
        raise FeatureFileError(
            "no positive bag has cells that are known to be abnormal, so the control cannot remove them. Permute the labels "
            "instead: --control --permutations 10 (with --sites if slides come from several sites)."
        )
    rng = np.random.default_rng(settings.seed)
    fraction = float(np.mean(fractions))
    kept_bags = []
    for i, kept in normal.items():
        cells = np.flatnonzero(kept)
        if not bags[i].label:
            cells = np.sort(rng.permutation(cells)[: max(1, round(len(cells) * (1 - fraction)))])
        kept_bags.append(replace(bags[i], stored=bags[i].stored[cells]))
    n_removed = sum(int((~kept).sum()) for kept in normal.values())
    real = _cross_validated([bags[i] for i in normal], settings, listener)
    control = _cross_validated(kept_bags, settings, listener)
    return Control(WITHOUT_WITNESSES, real, control, n_removed, problems=tuple(problems))


def permuted_labels(
    bags: Sequence[TrainingBag], site_of: Mapping[str, str], n: int, settings: FitMilConfig, listener: Listener
) -> Control:
    """Cross-validate on the unchanged bags, and ``n`` times with labels permuted between the patients of a site.

    Patients exchange labels only with patients who have the same number of bags. A site with one label keeps it, so
    that differences between sites still count.

    Args:
        bags: of both labels.
        site_of: patient → site. Patients without a site form one site.
        n: permutations, ≥ 1.
        settings: of the aggregator.
        listener: shows progress of the fits.

    Raises:
        FeatureFileError: a label has too few patients.
    """
    rng = np.random.default_rng(settings.seed)
    real = _cross_validated(bags, settings, listener)
    aurocs = [_cross_validated(_permuted(bags, site_of, rng), settings, listener).auroc for _ in range(n)]
    mean = float(np.mean(aurocs))
    # The interval of several permutations follows from their spread, that of a single one from its patients.
    interval = mean_interval(aurocs) or auroc_interval(mean, real.n_positive_patients, real.n_negative_patients)
    n_sites = len({site_of.get(bag.patient, "") for bag in bags})
    control = replace(real, auroc=mean, interval=interval)
    return Control(PERMUTED, real, control, aurocs=tuple(aurocs), n_sites=n_sites)


def read_sites(path: Path) -> dict[str, str]:
    """Patient → site, from a CSV.

    Raises:
        NotFoundError: the file does not exist.
        TableError: the file cannot be read, a cell is empty, or a patient has two sites.
    """
    rows = read_table(path, _COLUMNS, "a spreadsheet: columns patient, site")
    for column in ("patient", "site"):
        require_one_spelling(((row[column], row.where) for row in rows), column)
    found: dict[str, str] = {}
    for row in rows:
        if not row["patient"] or not row["site"]:
            raise TableError(f"{row.where}: patient or site is empty. Fill in both or remove the line.")
        if found.setdefault(row["patient"], row["site"]) != row["site"]:
            raise TableError(
                f"{row.where}: patient '{row['patient']}' has another site in an earlier line. Remove one line."
            )
    return found


def _cross_validated(bags: Sequence[TrainingBag], settings: FitMilConfig, listener: Listener) -> CrossValidated:
    probabilities = cross_validate(bags, settings, listener).probabilities
    labels = [bag.label for bag in bags]
    auroc = instance_auroc(probabilities, labels)
    assert auroc is not None  # cross_validate raises an error for bags of one label
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
