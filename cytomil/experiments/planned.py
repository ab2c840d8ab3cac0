"""One run of a comparison: an encoder, judged by its own aggregator or by given ones, and the record of it."""

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
_TRAINS_NOTHING = {
    *("bags", "out", "features", "encoder", "model", "name", "table", "against"),
    *("device", "workers", "cache", "ray_address"),
}
T = TypeVar("T")


@dataclass(frozen=True)
class Stages:
    """The configurations of a run. Each of ``aggregators`` judges the encoder; `OWN` is that of ``fit_mil``."""

    pretrain: PretrainConfig
    embed: EmbedConfig
    fit_mil: FitMilConfig
    evaluate: EvaluateConfig
    aggregators: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Names what shapes a run's result, but for its bags and the code: a record of another identity is run again.

        Only settings that were stated count. A new setting in cytomil or another default therefore repeats no run.
        """
        stages = {"pretrain": self.pretrain, "embed": self.embed, "fit_mil": self.fit_mil, "evaluate": self.evaluate}
        sections = {
            name: {
                key: value
                for key, value in stage.model_dump(mode="json", exclude_unset=True).items()
                if key not in _TRAINS_NOTHING
            }
            for name, stage in stages.items()
        }
        return sha256_of_json({"settings": sections, "aggregators": self.aggregators})


@dataclass(frozen=True)
class PlannedRun:
    """A run that is to be done: its cell, its bags, the file of its record.

    ``stages`` may raise a `CytomilError`, which is then the reason of the run's failure.
    """

    cell: Cell
    bags: Path
    record: Path
    stages: Callable[[], Stages]


def run_all(runs: Sequence[PlannedRun], listener: Listener) -> None:
    """Do all runs that have no record yet. A run that fails leaves a record with the reason, and the others go on."""
    with listener.whole(Work(len(runs), "runs")) as count:
        for number, run in enumerate(runs, start=1):
            what = f"run {number} of {len(runs)}, {run.cell.name}, seed {run.cell.seed}"
            if is_done(run):
                listener.note(f"{what}: done before")
                count.skip(1)
                continue
            listener.note(what)
            failed = do_run(run, _Within(listener))["failed"]
            if failed:
                listener.note(f"{what}: failed: {failed}")
            (count.skip if failed else count.step)(1)


class _Within:
    """Shows the progress of a stage, but not its forecast of the whole, because the whole is that of all runs."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def track(self, items: Iterable[T], description: str, total: int | None = None, unit: str = "") -> Iterator[T]:
        return self._listener.track(items, description, total, unit)

    def whole(self, work: Work) -> AbstractContextManager[Count]:
        return nullcontext(Uncounted())

    def note(self, message: str) -> None:
        self._listener.note(message)


def is_done(run: PlannedRun) -> bool:
    """Whether the run's record is there, whole, without failure, and of these settings and bags."""
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
    """Do a run to its end and write its record. An interrupted one goes on from its last checkpoint.

    Encoder and features stay in their folders, so that a run with other aggregators need not make them again. Its
    ``seconds`` are then of what was left to do. Whatever goes wrong is kept in the record under ``failed``.
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
    except Exception as error:  # whatever fails in one run, the others go on and the table shows it
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
        judged = {name: _judge(stages, name, listener) for name in stages.aggregators}
    first = next((name for name in (OWN, PAMIL) if name in judged), stages.aggregators[0])
    if "failed" in judged[first]:
        raise CytomilError(f"{first}: {judged[first]['failed']}")
    evaluations = [judged[first]["record"] | {"judge": first}]
    others = {name: one["held_out"] for name, one in judged.items() if name != first and "held_out" in one}
    best = choose_best_other(others)
    if best is not None:
        evaluations.append(judged[best]["record"] | {"judge": BEST_OTHER})
    return {
        "candidates": {name: {key: one[key] for key in one if key != "record"} for name, one in judged.items()},
        # A bag holds whole cells, so 3 of 260 stand for the 1 % that was asked for.
        "evaluations": [one | {"witness_rate": _rate(cell)} for one in evaluations],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def _train(settings: PretrainConfig, listener: Listener) -> None:
    """Train the encoder, or go on, or leave it where it is finished: other aggregators may want it again."""
    from cytomil.training.loop import pretrain

    try:
        pretrain(settings, listener, resume=True)
    except ResumeError:  # what lies there is another run's
        pretrain(settings, listener)


def _judge(stages: Stages, aggregator: str, listener: Listener) -> dict[str, Any]:
    """Fit one aggregator, or the run's `OWN`, and measure it. One that fails is reported, and is no candidate."""
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
    """The aggregator with the highest AUROC of held-out training bags; the lower log loss breaks ties. None without any.

    No test bag has a part in it.
    """
    return min(sorted(held_out), key=lambda name: (-held_out[name]["auroc"], held_out[name]["log_loss"]), default=None)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
