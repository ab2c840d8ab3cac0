"""Tables of many runs, with one row per method and one column per witness rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from cytomil.experiments.bootstrap import Estimate, estimate, estimate_differences
from cytomil.experiments.runs import Cell, Run, Runs
from cytomil.mil.thresholds import best_f1_threshold

SOURCE = "arXiv 2511.14639"
_RATES = (0.1, 0.05, 0.01, 0.005)
_F1 = {
    "weakly-supervised": ((92.0, 11.0), (53.4, 29.8), (53.3, 18.3), (52.7, 19.2)),
    "simclr": ((80.0, 11.2), (84.3, 10.3), (51.0, 17.5), (50.0, 9.7)),
    "weaksupcon": ((60.0, 14.9), (84.6, 2.6), (55.6, 9.6), (49.5, 9.7)),
    "slam-ags-never": ((66.0, 10.6), (60.0, 9.1), (54.1, 16.9), (46.0, 18.9)),
    "slam-ags": ((97.1, 6.4), (96.0, 8.9), (56.7, 14.9), (66.4, 6.3)),
}
_RECALL = {
    "weakly-supervised": ((49.3, 15.7), (43.6, 21.8), (43.3, 3.3), (46.7, 12.5)),
    "simclr": ((48.9, 11.4), (60.9, 14.1), (40.7, 22.4), (45.3, 15.9)),
    "weaksupcon": ((41.4, 3.0), (63.3, 5.7), (54.2, 10.0), (45.3, 14.5)),
    "slam-ags-never": ((50.7, 13.9), (43.7, 14.9), (47.3, 13.2), (46.7, 19.4)),
    "slam-ags": ((64.3, 7.3), (63.9, 8.8), (62.0, 19.4), (65.3, 11.9)),
}
_TABLES = {"f1": _F1, "recall_at_40pct": _RECALL}

# In the order of the paper, then related methods, then the ceiling.
TITLES = {
    "weakly-supervised": "weakly supervised",
    "simclr": "SimCLR",
    "weaksupcon": "WeakSupCon",
    "slam-ags-never": "SLAM-AGS, never",
    "slam-ags": "SLAM-AGS",
    "slam-ags-always": "SLAM-AGS, always",
    "slam-ags-stable": "SLAM-AGS, stable",
    "supcon": "SupCon",
    "moco-v3": "MoCo v3",
    "its2clr": "ItS2CLR",
    "dsvdd": "DSVDD",
    "droc": "DROC",
    "none": "no pretraining",
    "fully-supervised": "fully supervised",
}


def published(figure: str, name: str, witness_rate: float) -> tuple[float, float] | None:
    """Mean and standard deviation in the paper, as fractions; None if it has none."""
    by_rate = _TABLES.get(figure, {}).get(name)
    found = next((pair for rate, pair in zip(_RATES, by_rate or (), strict=False) if is_near(rate, witness_rate)), None)
    return None if found is None else (found[0] / 100, found[1] / 100)


def is_near(rate: float, other: float) -> bool:
    """Whether two witness rates differ only by rounding to whole cells. For example, 3 of 260 cells count as 1 %."""
    return other > 0 and abs(rate - other) <= 0.16 * rate


def sort_key(name: str) -> tuple[int, str]:
    """Sort key of rows: the order of `TITLES`, with unknown names just before the ceiling."""
    known = list(TITLES)
    return (known.index(name) if name in TITLES else len(known) - 2, name)


@dataclass(frozen=True)
class PooledF1:
    """F1 over the redrawn bags of all runs: ``f1`` by each model's own threshold, ``best`` by the best common one."""

    f1: float
    best: float
    n_runs: int


def pool_f1(runs: Sequence[Run]) -> PooledF1 | None:
    """Pooled F1 of the runs whose records have the probabilities of redrawn bags; None if there are none."""
    from sklearn.metrics import f1_score

    redrawn = [found for run in runs if (found := run.record.metrics.redrawn) and found.probabilities]
    if not redrawn:
        return None
    probabilities = np.concatenate([found.probabilities for found in redrawn])
    labels = np.concatenate([found.labels for found in redrawn])
    thresholds = np.concatenate([[found.bag.threshold] * len(found.labels) for found in redrawn])
    best = best_f1_threshold(probabilities, labels)
    own, common = (float(f1_score(labels, probabilities >= limit)) for limit in (thresholds, best))
    return PooledF1(own, common, len(redrawn))


NOT_RUN, FAILED, DONE = "not run", "failed", "done"
# A row without a record is recognised by its name.
_CEILING_BY_NAME = "fully-supervised"
# Settings that may differ between the runs of a row: paths and hardware. Initial weights are compared by their hash.
_IGNORED_SETTINGS = {"seed", "bags", "out", "weights", "device", "precision", "compile", "cache"}


@dataclass(frozen=True)
class Entry:
    """One method at one witness rate under one judge, over seeds.

    Args:
        name: the method.
        judge: the judge.
        witness_rate: the witness rate; -1: unknown.
        state: ``done`` if at least one run is done, ``failed`` or ``not run``.
        n_done: number of runs done.
        n_wanted: number of seeds in the whole set of runs.
        n_failed: number of failed runs.
        n_collapsed: number of runs whose encoder collapsed.
        effective_rank: the mean over runs.
        aggregators: number of runs per aggregator.
        estimates: by key of the metric.
        differences: from the reference row, by key of the metric; empty for the reference row, and if no seed has both.
        pooled_f1: F1 over the redrawn bags of all runs.
        recall_by_fraction: fraction of cells reviewed → mean recall.
    """

    name: str
    judge: str
    witness_rate: float
    state: str
    n_done: int
    n_wanted: int
    n_failed: int
    n_collapsed: int
    effective_rank: float | None
    aggregators: dict[str, int]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)
    pooled_f1: PooledF1 | None = None
    recall_by_fraction: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """All entries and their axes.

    ``against`` is the reference row of differences; None if it has no run. ``ceilings`` are the rows trained on instance
    labels.
    """

    names: tuple[str, ...]
    judges: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    against: str | None
    ceilings: frozenset[str]
    entries: dict[tuple[str, str, float], Entry]
    notes: tuple[str, ...]

    def at(self, judge: str, name: str, rate: float) -> Entry:
        """The entry of one method and rate under one judge."""
        return self.entries[judge, name, rate]


def make_table(runs: Runs, against: str | None, resamples: int, seed: int) -> Table:
    """Arrange the runs in a table and estimate the metrics. ``against`` is the reference row of differences."""
    cells = {run.cell for run in runs.done} | set(runs.failed) | runs.planned
    names = tuple(sorted({cell.name for cell in cells}, key=sort_key))
    rates = tuple(sorted({cell.witness_rate for cell in cells}, reverse=True))
    seeds = tuple(sorted({cell.seed for cell in cells}))
    judges = tuple(sorted({run.judge for run in runs.done}, key=lambda judge: (judge != "pamil", judge)))
    reference = against if any(run.cell.name == against for run in runs.done) else None
    entries = {
        (judge, name, rate): _entry(runs, judge, name, rate, seeds, reference, (resamples, seed))
        for judge in judges
        for name in names
        for rate in rates
    }
    return Table(names, judges, rates, seeds, reference, _ceilings(runs, names), entries, _notes(runs))


def _ceilings(runs: Runs, names: Sequence[str]) -> frozenset[str]:
    without_record = set(names) - {run.cell.name for run in runs.done}
    recorded = {run.cell.name for run in runs.done if run.record.uses_instance_labels}
    return frozenset(recorded | ({_CEILING_BY_NAME} & without_record))


def _entry(
    runs: Runs,
    judge: str,
    name: str,
    rate: float,
    seeds: Sequence[int],
    against: str | None,
    bootstrap: tuple[int, int],
) -> Entry:
    here = [run for run in runs.done if (run.judge, run.cell.name, run.cell.witness_rate) == (judge, name, rate)]
    failed = [cell for cell in runs.failed if (cell.name, cell.witness_rate) == (name, rate)]
    ranks = [run.record.encoder.effective_rank for run in here]
    known_ranks = [rank for rank in ranks if rank is not None]
    pairs = [] if name == against else _pairs(runs, here, against)
    return Entry(
        name=name,
        judge=judge,
        witness_rate=rate,
        state=DONE if here else FAILED if failed else NOT_RUN,
        n_done=len(here),
        n_wanted=len(seeds),
        n_failed=len(failed),
        n_collapsed=sum(run.collapsed for run in here),
        effective_rank=fmean(known_ranks) if known_ranks else None,
        aggregators=dict(sorted(Counter(run.record.aggregator.name for run in here).items())),
        estimates=estimate(here, *bootstrap) if here else {},
        differences=estimate_differences(pairs, *bootstrap) if pairs else {},
        pooled_f1=pool_f1(here),
        recall_by_fraction=_mean_curve(here),
    )


def _pairs(runs: Runs, here: Sequence[Run], against: str | None) -> list[tuple[Run, Run]]:
    """Each run with the reference run of the same judge, witness rate and seed, which has the same bags."""
    others = {(run.judge, run.cell): run for run in runs.done if run.cell.name == against}
    wanted = [(run, (run.judge, Cell(str(against), run.cell.witness_rate, run.cell.seed))) for run in here]
    return [(run, others[key]) for run, key in wanted if key in others]


def _mean_curve(here: Sequence[Run]) -> dict[float, float]:
    curves = [run.record.recall_by_share for run in here]
    fractions = set(curves[0]).intersection(*curves[1:]) if curves else set()
    return {one: fmean(curve[one] for curve in curves) for one in sorted(fractions)}


def _notes(runs: Runs) -> tuple[str, ...]:
    """Notes on differences in code or settings between the runs."""
    codes = {run.record.versions.get("code") for run in runs.done}
    found = []
    if len(codes) > 1:
        found.append(f"These runs were made by {len(codes)} versions of the code; each record names its own.")
    rows: dict[tuple[str, str], list[Run]] = {}
    for run in runs.done:
        rows.setdefault((run.cell.name, run.judge), []).append(run)
    found += [
        f"{TITLES.get(name, name)}: its runs were pretrained with different settings: {differences}."
        for (name, _), here in rows.items()
        if (differences := _describe_differences(here))
    ]
    # All judges have the same encoders, so their notes are duplicates.
    return tuple(dict.fromkeys(found))


def _describe_differences(here: Sequence[Run]) -> str:
    """The pretraining settings that differ, with their values. Settings missing in a record are ignored there."""
    values: dict[str, set[str]] = {}
    for run in here:
        for key, value in _recipe(run).items():
            values.setdefault(key, set()).add("none" if value is None else str(value))
    return "; ".join(f"{key} {', '.join(sorted(found))}" for key, found in sorted(values.items()) if len(found) > 1)


def _recipe(run: Run) -> dict[str, Any]:
    encoder = run.record.encoder
    settings = {key: value for key, value in encoder.settings.items() if key not in _IGNORED_SETTINGS}
    weights = encoder.start_weights
    return settings | {"start weights": weights.sha256[:12] if weights else None}
