"""The tables of a set of runs: every method at every witness rate, as measured, before anything is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from cytomil.evaluate.bootstrap import Estimate, estimate, estimate_differences
from cytomil.evaluate.paper import TITLES, sort_key
from cytomil.evaluate.pooled import PooledF1, pool_f1
from cytomil.evaluate.runs import Cell, Run, Runs

NOT_RUN, FAILED, DONE = "not run", "failed", "done"
# A row that has no record yet is known by its name alone.
_CEILING_BY_NAME = "fully-supervised"
# What may differ between the runs of a row: it says where things lie and what does the work. Start weights count by content.
_NOT_OF_THE_RECIPE = {"seed", "bags", "out", "weights", "device", "precision", "compile", "cache"}


@dataclass(frozen=True)
class Entry:
    """One method at one witness rate under one judge, over seeds.

    ``state`` is ``done`` as soon as one run is. ``estimates`` and ``differences`` are by figure key; the latter is empty for
    the row compared with, and where no seed has both. ``n_wanted`` counts the seeds that the set of runs has.
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
    recall_by_share: dict[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """All entries, and the axes they lie on.

    ``against`` is None where no run of that name is there. ``ceilings`` are the rows that trained on instance labels.
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
    """Put the runs on their axes and estimate what is measured. ``against`` names the row that differences are taken to."""
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
    recorded = {run.cell.name for run in runs.done if run.record.get("uses_instance_labels")}
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
    ranks = [run.record["encoder"].get("effective_rank") for run in here]
    known_ranks = [float(rank) for rank in ranks if rank is not None]
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
        aggregators=dict(sorted(Counter(str(run.record["aggregator"]["name"]) for run in here).items())),
        estimates=estimate(here, *bootstrap) if here else {},
        differences=estimate_differences(pairs, *bootstrap) if pairs else {},
        pooled_f1=pool_f1(here),
        recall_by_share=_mean_curve(here),
    )


def _pairs(runs: Runs, here: Sequence[Run], against: str | None) -> list[tuple[Run, Run]]:
    """Each run with that of the row compared with, of the same judge, witness rate and seed, hence on the same bags."""
    others = {(run.judge, run.cell): run for run in runs.done if run.cell.name == against}
    wanted = [(run, (run.judge, Cell(str(against), run.cell.witness_rate, run.cell.seed))) for run in here]
    return [(run, others[key]) for run, key in wanted if key in others]


def _mean_curve(here: Sequence[Run]) -> dict[float, float]:
    curves = [run.record.get("recall_by_share") or {} for run in here]
    shares = set(curves[0]).intersection(*curves[1:]) if curves else set()
    return {float(share): fmean(curve[share] for curve in curves) for share in sorted(shares, key=float)}


def _notes(runs: Runs) -> tuple[str, ...]:
    """What a reader must know of where the runs came from."""
    codes = {run.record.get("versions", {}).get("code") for run in runs.done}
    found = []
    if len(codes) > 1:
        found.append(f"These runs were made by {len(codes)} states of the code; each record names its own.")
    rows: dict[tuple[str, str], list[Run]] = {}
    for run in runs.done:
        rows.setdefault((run.cell.name, run.judge), []).append(run)
    found += [
        f"{TITLES.get(name, name)}: its runs were pretrained with different settings: {said}."
        for (name, _), here in rows.items()
        if (said := _said_differences(here))
    ]
    # Judges judge the same encoders.
    return tuple(dict.fromkeys(found))


def _said_differences(here: Sequence[Run]) -> str:
    """The settings of pretraining that differ, with their values; what not every record states is compared where it is."""
    values: dict[str, set[str]] = {}
    for run in here:
        for key, value in _recipe(run).items():
            values.setdefault(key, set()).add("none" if value is None else str(value))
    return "; ".join(f"{key} {', '.join(sorted(said))}" for key, said in sorted(values.items()) if len(said) > 1)


def _recipe(run: Run) -> dict[str, Any]:
    encoder = run.record["encoder"]
    settings = {key: value for key, value in (encoder.get("settings") or {}).items() if key not in _NOT_OF_THE_RECIPE}
    weights = encoder.get("start_weights")
    return settings | {"start weights": weights["sha256"][:12] if weights else None}
