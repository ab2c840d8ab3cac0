"""One run of a comparison: train an encoder, evaluate it with its own or with given aggregators, and record the result."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cytomil.bags.manifest import fingerprint, read_manifest
from cytomil.errors import CytomilError, ResumeError
from cytomil.evaluation.config import EvaluateConfig
from cytomil.experiments.runs import OWN, RUN_SCHEMA, Cell
from cytomil.features.config import EmbedConfig
from cytomil.files import sha256_of_json, write_json
from cytomil.mil.config import FitMilConfig
from cytomil.progress import Count, Listener, Uncounted, Work
from cytomil.training.config import PretrainConfig

PAMIL = "pamil"
BEST_OTHER = "best other"
_WITHOUT_EFFECT = {
    *("bags", "out", "features", "encoder", "model", "name", "table", "against"),
    *("device", "workers", "cache", "ray_address"),
}
T = TypeVar("T")


@dataclass(frozen=True)
class Stages:
    """The settings of a run. The encoder is evaluated with each of ``aggregators``; `OWN` is the aggregator of ``fit_mil``."""

    pretrain: PretrainConfig
    embed: EmbedConfig
    fit_mil: FitMilConfig
    evaluate: EvaluateConfig
    aggregators: tuple[str, ...]

    @property
    def identity(self) -> str:
        """SHA-256 over the settings that determine a run's result, without its bags and the code.

        A run whose record has another identity is repeated. Only explicit settings count. A new setting of cytomil or
        another default therefore does not repeat runs.
        """
        stages = {"pretrain": self.pretrain, "embed": self.embed, "fit_mil": self.fit_mil, "evaluate": self.evaluate}
        sections = {
            name: {
                key: value
                for key, value in stage.model_dump(mode="json", exclude_unset=True).items()
                if key not in _WITHOUT_EFFECT
            }
            for name, stage in stages.items()
        }
        return sha256_of_json({"settings": sections, "aggregators": self.aggregators})


@dataclass(frozen=True)
class PlannedRun:
    """A planned run: its cell in the grid, its bags, and the file of its record.

    If ``stages`` raises a `CytomilError`, the run fails for this reason.
    """

    cell: Cell
    bags: Path
    record: Path
    stages: Callable[[], Stages]


def run_all(runs: Sequence[PlannedRun], listener: Listener) -> None:
    """Do all runs that have no record yet. The record of a failed run states the reason, and the other runs continue."""
    with listener.whole(Work(len(runs), "runs")) as count:
        for number, run in enumerate(runs, start=1):
            what = f"run {number} of {len(runs)}, {run.cell.name}, seed {run.cell.seed}"
            if is_done(run):
                listener.note(f"{what}: already done")
                count.skip(1)
                continue
            listener.note(what)
            failed = do_run(run, _StageListener(listener))["failed"]
            if failed:
                listener.note(f"{what}: failed: {failed}")
            (count.skip if failed else count.step)(1)


class _StageListener:
    """Shows the progress of a stage, but not its forecast, because the forecast shown is that of all runs."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        return self._listener.track(items, description, total, unit)

    def whole(self, work: Work) -> AbstractContextManager[Count]:
        return nullcontext(Uncounted())

    def note(self, message: str) -> None:
        self._listener.note(message)


def is_done(run: PlannedRun) -> bool:
    """Whether a complete record without failure exists for these settings and bags."""
    try:
        record = json.loads(run.record.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return (
        isinstance(record, dict)
        and record.get("schema") == RUN_SCHEMA
        and not record.get("failed")
        and record.get("identity") == run.stages().identity
        and record.get("bags_fingerprint") == fingerprint(read_manifest(run.bags).rows)
    )


def do_run(run: PlannedRun, listener: Listener) -> dict[str, Any]:
    """Do a run and write its record. An interrupted run continues after its last checkpoint.

    Encoder and features remain in their folders, so that a run with other aggregators can use them. ``seconds`` of such a
    run are those of the remaining work. If an error occurs, the record has its message under ``failed``.
    """
    cell = run.cell
    record: dict[str, Any] = {
        "schema": RUN_SCHEMA,
        "cell": {"name": cell.name, "witness_rate": _rate(cell), "seed": cell.seed},
        "bags_fingerprint": fingerprint(read_manifest(run.bags).rows),
        "failed": None,
    }
    try:
        stages = run.stages()
        record["identity"] = stages.identity
        record |= _measure(stages, cell, listener)
    except Exception as error:  # the other runs continue, and the table shows the failure
        record["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    write_json(run.record, record)
    return record


def _rate(cell: Cell) -> float | None:
    return None if cell.witness_rate < 0 else cell.witness_rate


def _measure(stages: Stages, cell: Cell, listener: Listener) -> dict[str, Any]:
    from cytomil.features.embed import embed

    seconds: dict[str, float] = {}
    with _timed(seconds, "pretrain"):
        _train(stages.pretrain, listener)
    with _timed(seconds, "embed"):
        embed(stages.embed, listener)
    with _timed(seconds, "judge"):
        results = {name: _evaluate(stages, name, listener) for name in stages.aggregators}
    first = next((name for name in (OWN, PAMIL) if name in results), stages.aggregators[0])
    if "failed" in results[first]:
        raise CytomilError(f"{first}: {results[first]['failed']}")
    evaluations = [results[first]["record"] | {"judge": first}]
    others = {name: one["held_out"] for name, one in results.items() if name != first and "held_out" in one}
    best = choose_best_other(others)
    if best is not None:
        evaluations.append(results[best]["record"] | {"judge": BEST_OTHER})
    return {
        "candidates": {name: {key: one[key] for key in one if key != "record"} for name, one in results.items()},
        # The requested rate. Bags have whole cells, so 3 of 260 cells represent 1 %.
        "evaluations": [one | {"witness_rate": _rate(cell)} for one in evaluations],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def _train(settings: PretrainConfig, listener: Listener) -> None:
    """Train the encoder, or continue its training. A finished encoder is kept, because other aggregators may need it."""
    from cytomil.training.loop import pretrain

    try:
        pretrain(settings, listener, resume=True)
    except ResumeError:  # the folder holds the checkpoint of another run
        pretrain(settings, listener)


def _evaluate(stages: Stages, aggregator: str, listener: Listener) -> dict[str, Any]:
    """Fit and evaluate one aggregator, or the run's `OWN`. If it fails, the reason is returned, and it is not a candidate."""
    from cytomil.evaluation.run import measure
    from cytomil.mil.fit import fit_mil

    try:
        section = stages.fit_mil
        chosen = section.aggregator if aggregator == OWN else aggregator
        fitted = type(section)(**(section.model_dump() | {"aggregator": chosen}))
        model = fit_mil(fitted, listener)
        record = measure(stages.evaluate, listener).record
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    bag, instance = record["metrics"]["bag"], record["metrics"]["instance"]
    test = {f"bag_{key}": bag[key] for key in ("f1", "auroc")}
    test |= {f"instance_{key}": instance[key] for key in ("auroc", "recall_at_5pct", "recall_at_40pct")}
    shutil.rmtree(model.path)
    return {"held_out": record["held_out"], "test": test, "record": record}


def choose_best_other(held_out: dict[str, dict[str, float]]) -> str | None:
    """The aggregator with the highest AUROC on held-out training bags. Lower log loss breaks ties. None if there are none.

    Test bags are not used.
    """
    return min(sorted(held_out), key=lambda name: (-held_out[name]["auroc"], held_out[name]["log_loss"]), default=None)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
