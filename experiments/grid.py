"""A grid: which methods, witness rates and seeds, with which settings, and where its runs are kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from cytomil.app.settings import Settings, load
from cytomil.errors import SettingsError, require_file
from cytomil.experiments.planned import PlannedRun, Stages
from cytomil.experiments.runs import GRID_NAME, Cell

_KEYS = {"params", "profile", "methods", "variants", "witness_rates", "seeds", "aggregators", "work"}


@dataclass(frozen=True)
class Grid:
    """grid.yaml. ``variants`` give a method's name in the tables its settings, where the name is not enough.

    They are pretraining's, and under ``embed`` and ``fit_mil`` those stages' own. Among the ``aggregators``, ``own`` is
    that of the row's own fit_mil settings, so that whole recipes can be compared.

    Every method of one witness rate and seed has the same bags; ``work`` holds what can be made again, ``runs`` what is kept.
    """

    folder: Path
    params: Path
    profile: str
    methods: tuple[str, ...]
    variants: dict[str, dict[str, Any]]
    witness_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    aggregators: tuple[str, ...]
    work: Path

    @property
    def runs(self) -> Path:
        """The folder of the records, kept in git."""
        return self.folder / "runs"

    @property
    def cells(self) -> list[Cell]:
        """Every cell, in the order of running: all methods of a witness rate and seed, then the next rate, then seed."""
        axes = product(self.seeds, self.witness_rates, self.methods)
        return [Cell(name, witness_rate, seed) for seed, witness_rate, name in axes]

    def record_of(self, cell: Cell) -> Path:
        """Where a cell's record lies."""
        return self.runs / f"{self.name_of(cell)}.json"

    def bags_of(self, cell: Cell) -> Path:
        """Where the bags lie that all methods of the cell's witness rate and seed share."""
        return self.work / "bags" / f"{cell.witness_rate:g}-{cell.seed}"

    def work_of(self, cell: Cell) -> Path:
        """Where a cell's encoder, features and models lie until it is done."""
        return self.work / "cells" / self.name_of(cell)

    @staticmethod
    def name_of(cell: Cell) -> str:
        """A file name that sorts as the grid runs."""
        return f"{cell.seed}-{cell.witness_rate:g}-{cell.name}"

    def settings_of(self, cell: Cell) -> Settings:
        """All settings of a cell's run. Raises `SettingsError` where grid.yaml or params.yaml ask for what there is not."""
        bags, work = self.bags_of(cell), self.work_of(cell)
        encoder, features, model = work / "encoder", work / "features", work / "model"
        pretrain = dict(self.variants.get(cell.name, {"method": cell.name}))
        own = {stage: pretrain.pop(stage, {}) for stage in ("embed", "fit_mil")}
        options = {
            "make_bags": {"out": bags, "witness_rate": cell.witness_rate, "seed": cell.seed},
            "pretrain": {**pretrain, "bags": bags, "out": encoder, "seed": cell.seed},
            "embed": {**own["embed"], "bags": bags, "encoder": encoder, "out": features},
            "fit_mil": {**own["fit_mil"], "features": features, "encoder": encoder, "out": model, "seed": cell.seed},
            "evaluate": {"features": features, "model": model, "bags": bags, "name": cell.name},
        }
        return load(options, self.params, self.profile)

    def planned(self, cell: Cell) -> PlannedRun:
        """The run of a cell."""
        return PlannedRun(cell, self.bags_of(cell), self.record_of(cell), partial(self._stages_of, cell))

    def _stages_of(self, cell: Cell) -> Stages:
        settings = self.settings_of(cell)
        return Stages(settings.pretrain, settings.embed, settings.fit_mil, settings.evaluate, self.aggregators)


def read_grid(folder: Path) -> Grid:
    """Read ``folder``'s grid.yaml. Raises `NotFoundError` or `SettingsError`."""
    path = require_file(folder / GRID_NAME, "an editor, after experiments/cpu/grid.yaml")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        unknown = set(document) - _KEYS
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return Grid(
            folder=folder,
            params=Path(document["params"]),
            profile=str(document.get("profile", "default")),
            methods=tuple(map(str, document["methods"])),
            variants=dict(document.get("variants") or {}),
            witness_rates=tuple(map(float, document["witness_rates"])),
            seeds=tuple(map(int, document["seeds"])),
            aggregators=tuple(map(str, document["aggregators"])),
            work=Path(document["work"]),
        )
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(f"{path} is not a grid ({error}). See experiments/README.md.") from None
