"""One cell of a grid: an encoder, judged by PAMIL and the best other aggregator, or by its own; and the record of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cytomil.app.settings import Settings
from cytomil.bags.manifest import fingerprint, read_manifest
from cytomil.errors import CytomilError, ResumeError
from cytomil.experiments.runs import OWN, RUN_SCHEMA, Cell
from cytomil.files import write_json
from cytomil.progress import Listener
from cytomil.training.config import PretrainConfig
from experiments.grid import Grid

PAMIL = "pamil"
BEST_OTHER = "best other"


def is_done(grid: Grid, cell: Cell) -> bool:
    """Whether the cell's record is there, whole, without failure, and of these settings and bags."""
    try:
        record = json.loads(grid.record_of(cell).read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return (
        record.get("schema") == RUN_SCHEMA
        and not record.get("failed")
        and record.get("identity") == grid.identity_of(cell)
        and record.get("bags_fingerprint") == fingerprint(read_manifest(grid.bags_of(cell)).rows)
    )


def run_cell(grid: Grid, cell: Cell, listener: Listener) -> dict[str, Any]:
    """Run a cell to its end and write its record; an interrupted one goes on from its last checkpoint.

    Encoder and features stay in the working folder, so that a run with other aggregators need not make them again; its
    ``seconds`` are then of what was left to do.

    Whatever goes wrong is kept in the record under ``failed``, so that the table can say so, and the grid goes on.
    """
    record: dict[str, Any] = {
        "schema": RUN_SCHEMA,
        "cell": {"name": cell.name, "witness_rate": cell.witness_rate, "seed": cell.seed},
        "bags_fingerprint": fingerprint(read_manifest(grid.bags_of(cell)).rows),
        "failed": None,
    }
    try:
        record["identity"] = grid.identity_of(cell)
        record |= _measure(grid, cell, listener)
    except Exception as error:  # whatever fails in one cell, the grid goes on and the table shows it
        record["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    write_json(grid.record_of(cell), record)
    return record


def _measure(grid: Grid, cell: Cell, listener: Listener) -> dict[str, Any]:
    from cytomil.features.embed import embed

    settings = grid.settings_of(cell)
    seconds: dict[str, float] = {}
    with _timed(seconds, "pretrain"):
        _train(settings.pretrain, listener)
    with _timed(seconds, "embed"):
        embed(settings.embed, listener)
    with _timed(seconds, "judge"):
        judged = {name: _judge(settings, name, listener) for name in grid.aggregators}
    first = OWN if OWN in judged else PAMIL
    if first not in judged or "failed" in judged[first]:
        raise CytomilError(f"{first}: {judged.get(first, {}).get('failed', 'not among the aggregators')}")
    evaluations = [judged[first]["record"] | {"judge": first}]
    others = {name: one["held_out"] for name, one in judged.items() if name != first and "held_out" in one}
    best = choose_best_other(others)
    if best is not None:
        evaluations.append(judged[best]["record"] | {"judge": BEST_OTHER})
    return {
        "candidates": {name: {key: one[key] for key in one if key != "record"} for name, one in judged.items()},
        # A bag holds whole cells, so 3 of 260 stand for the 1 % that was asked for.
        "evaluations": [one | {"witness_rate": cell.witness_rate} for one in evaluations],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def _train(settings: PretrainConfig, listener: Listener) -> None:
    """Train the encoder, or go on, or leave it where it is finished: other aggregators may want it again."""
    from cytomil.training.loop import pretrain

    try:
        pretrain(settings, listener, resume=True)
    except ResumeError:  # what lies there is another run's
        pretrain(settings, listener)


def _judge(settings: Settings, aggregator: str, listener: Listener) -> dict[str, Any]:
    """Fit one aggregator, or the settings' `OWN`, and measure it. One that fails is said to, and is no candidate."""
    from cytomil.evaluation.run import measure
    from cytomil.mil.fit import fit_mil

    try:
        section = settings.fit_mil
        chosen = section.aggregator if aggregator == OWN else aggregator
        fitted = type(section)(**(section.model_dump() | {"aggregator": chosen}))
        model = fit_mil(fitted, listener)
        record = measure(settings.evaluate, listener).record
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    bag, instance = record["metrics"]["bag"], record["metrics"]["instance"]
    test = {f"bag_{key}": bag[key] for key in ("f1", "auroc")}
    test |= {f"instance_{key}": instance[key] for key in ("auroc", "recall_at_5pct", "recall_at_40pct")}
    shutil.rmtree(model.path)
    return {"held_out": record["held_out"], "test": test, "record": record}


def choose_best_other(held_out: dict[str, dict[str, float]]) -> str | None:
    """The aggregator with the highest AUROC of held-out training bags, of equals that of least log loss; None of none.

    No test bag has a part in it.
    """
    return min(sorted(held_out), key=lambda name: (-held_out[name]["auroc"], held_out[name]["log_loss"]), default=None)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
