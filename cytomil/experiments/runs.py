"""Read evaluations from disk: single reports, or the runs of a grid, including failed and planned ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cytomil.cards import Card, Count, Fraction, Text, as_card
from cytomil.encoders.bundle import TrainingData
from cytomil.errors import EvaluationError, NotFoundError
from cytomil.evaluation.record import RECORD_NAME, SCHEMA, EvaluationRecord
from cytomil.files import SEAL, is_sealed, read_json

GRID_NAME = "grid.yaml"
RUN_SCHEMA = "cytomil.run/1"
OWN = "own"
_REMEDY = "Run `cytomil evaluate` again."


@dataclass(frozen=True, order=True)
class Cell:
    """A cell of the grid: method, witness rate (-1 if unknown) and seed."""

    name: str
    witness_rate: float
    seed: int


class _CellCard(Card):
    """A `Cell` in the record of a grid."""

    name: Text
    witness_rate: Fraction | None
    seed: Count


class _GridRecord(Card):
    """The part of a record of schema cytomil.run/1 that the tables read."""

    cell: _CellCard
    failed: Text | None = None
    evaluations: tuple[EvaluationRecord, ...] = ()


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Args:
        cell: its cell in the grid.
        judge: the name of the aggregator, ``best other``, or `OWN`: each row has its own aggregator.
        fingerprint: identifies the bags.
        record: the content of evaluate.json.
        file: the file of the record.
    """

    cell: Cell
    judge: str
    fingerprint: str
    record: EvaluationRecord
    file: Path

    @property
    def collapsed(self) -> bool:
        """Whether the encoder of this run collapsed."""
        return self.record.encoder.collapsed


@dataclass(frozen=True)
class Runs:
    """All runs in the folders. ``failed`` maps cells to reasons. ``planned`` holds the cells of each grid.yaml."""

    done: tuple[Run, ...]
    failed: dict[Cell, str]
    planned: frozenset[Cell]


def read_runs(folders: Sequence[Path]) -> Runs:
    """Read every report (evaluate.json) and every grid record (schema cytomil.run/1) in ``folders`` and below.

    Raises:
        NotFoundError: a folder does not exist, or there is no record in any of them.
        EvaluationError: a record is damaged, two records are of the same run, or runs cannot be compared. Runs with the same
            witness rate need bags made with the same settings. With the same seed, they need the same bags.
    """
    done: list[Run] = []
    failed: dict[Cell, str] = {}
    planned: set[Cell] = set()
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise NotFoundError(f"{folder} is not a folder. Give folders with reports of `cytomil evaluate`.")
        for file in sorted(folder.rglob("*.json")):
            if file.resolve() in seen:  # a folder may be inside another, or given twice
                continue
            seen.add(file.resolve())
            document = _read(file)
            if document is None:
                continue
            if document["schema"] == SCHEMA:
                record = as_card(document, EvaluationRecord, str(file), EvaluationError, _REMEDY)
                done.append(_run(record, file))
                continue
            grid = as_card(document, _GridRecord, str(file), EvaluationError, _REMEDY)
            done += [_run(evaluation, file) for evaluation in grid.evaluations]
            if grid.failed:
                failed[_cell(grid.cell)] = grid.failed
        for file in sorted(folder.rglob(GRID_NAME)):
            planned |= _planned(file)
    if not done and not failed:
        where = ", ".join(map(str, folders))
        raise NotFoundError(f"{where}: no {RECORD_NAME} of this version. Make one with `cytomil evaluate`.")
    _refuse_duplicates(done)
    _refuse_other_bags(done)
    _refuse_other_protocols(done)
    return Runs(tuple(sorted(done, key=lambda run: (run.cell, run.judge))), failed, frozenset(planned))


def _read(file: Path) -> dict[str, Any] | None:
    """The document, or None if the file is not a record."""
    try:
        document = read_json(file)
    except ValueError as error:
        raise EvaluationError(f"{file} is damaged ({error}). Remove it and run `cytomil evaluate` again.") from None
    known = isinstance(document, dict) and document.get("schema") in (SCHEMA, RUN_SCHEMA)
    if not known and file.name == RECORD_NAME:
        raise EvaluationError(f"{file} was written by another version of cytomil. Run `cytomil evaluate` again.")
    if known and (SEAL in document or "files" in document) and not is_sealed(document):
        raise EvaluationError(f"{file} was altered or damaged: its checksum does not match. {_REMEDY}")
    return document if known else None


def _run(record: EvaluationRecord, file: Path) -> Run:
    return Run(_cell(record), record.judge, record.bags_fingerprint, record, file)


def _cell(card: EvaluationRecord | _CellCard) -> Cell:
    rate = card.witness_rate
    return Cell(card.name, -1.0 if rate is None else round(rate, 6), card.seed)


def _planned(file: Path) -> set[Cell]:
    try:
        grid = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {
            Cell(str(name), round(float(rate), 6), int(seed))
            for name in grid["methods"]
            for rate in grid["witness_rates"]
            for seed in grid["seeds"]
        }
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{file} does not list methods, witness_rates and seeds ({error}). Correct it or remove it."
        ) from None


def _refuse_duplicates(runs: Sequence[Run]) -> None:
    seen: dict[tuple[Cell, str], Run] = {}
    for run in runs:
        other = seen.setdefault((run.cell, run.judge), run)
        if other is not run:
            raise EvaluationError(
                f"{other.file} and {run.file} are both of {_describe(run)}, judged by {run.judge}. Remove one, or evaluate "
                "one again with --name."
            )


def _refuse_other_bags(runs: Sequence[Run]) -> None:
    first: dict[tuple[float, int], Run] = {}
    for run in runs:
        other = first.setdefault((run.cell.witness_rate, run.cell.seed), run)
        if other.fingerprint != run.fingerprint:
            raise EvaluationError(
                f"{other.file} and {run.file} have the same witness rate and seed but were made on different bags, so they "
                "cannot be compared. Remove one, or run both on the same bags."
            )


def _refuse_other_protocols(runs: Sequence[Run]) -> None:
    """Refuse bags made with different settings. Each seed has its own bags, but a mean over seeds needs equal settings."""
    first: dict[tuple[float, str], tuple[Run, str]] = {}
    for run in runs:
        rate = run.cell.witness_rate
        for what, value in _protocol(run).items():
            other, others = first.setdefault((rate, what), (run, value))
            if others != value:
                raise EvaluationError(
                    f"{other.file} and {run.file} have the same witness rate but differ in {what} ({others} and {value}), so "
                    "they cannot be in one table. Remove one, or run both on bags made with the same settings."
                )


def _protocol(run: Run) -> dict[str, str]:
    """The properties of the bags that do not depend on the seed, if the record has them."""
    data, tested = run.record.data or TrainingData(), run.record.bags
    found = {"sources": ", ".join(data.sources)} if data.sources else {}
    if run.cell.witness_rate < 0:
        # Whole slides have any size, and a split may get one more because patients are kept together.
        return found
    splits = {"test": (len(tested), sum(bag.n_instances for bag in tested))}
    if data.n_bags:
        splits["training"] = (data.n_bags, data.n_cells)
    for split, (n_bags, n_cells) in splits.items():
        # Rounded, so that an unreadable cell makes no difference.
        found |= {f"{split} bags": str(n_bags), f"cells per {split} bag": f"{n_cells / max(1, n_bags):.0f}"}
    return found


def _describe(run: Run) -> str:
    rate = "" if run.cell.witness_rate < 0 else f", witness rate {run.cell.witness_rate:.1%}"
    return f"{run.cell.name}{rate}, seed {run.cell.seed}"
