"""The settings of `fit-mil`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from cytomil.config import Config, OwnOptions


class InstanceScore(StrEnum):
    """The quantity that an instance's score measures."""

    EVIDENCE = "evidence"
    ATTENTION = "attention"


class FitConfig(Config):
    """The settings of fitting that all aggregators share. The seed is a separate argument."""

    learning_rate: float = Field(1e-3, gt=0, description="learning rate of Adam")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of Adam")
    top_fraction: float = Field(
        0.03,
        gt=0,
        le=1,
        description="fraction of a bag's cells that top-k, density-ratio, self-paced and one-class scorers pool",
    )
    folds: int = Field(4, ge=2, description="cross-validation folds, by patient where known")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="number format of PAMIL's matrix products in fitting; auto: bf16 if the processor supports it, "
        "else float32",
    )
    workers: int = Field(
        0, ge=0, description="number of parallel fits; 0: one per core; the result does not depend on it"
    )


class FitMilConfig(FitConfig):
    """From feature caches to the triage model."""

    features: Path = Field(Path("data/features"), description="folder of feature caches")
    encoder: Path = Field(Path("models/encoder"), description="encoder bundle that made them; copied into the model")
    out: Path = Field(Path("models/triage"), description="folder for the triage model")
    aggregator: str = Field(
        "self-paced",
        description="self-paced, density-ratio, pamil, abmil, dtfd-mil, clam, transmil, mean, max, top-k; "
        "one-class: knn, mahalanobis, ocsvm, gaussian",
    )
    options: OwnOptions = Field(
        {},
        description="settings specific to an aggregator, such as pamil's n_prototypes, by its name; "
        "`fit-mil --aggregator NAME --help` lists them",
    )
    epochs: int = Field(60, ge=1, description="max number of epochs; cross-validation chooses the number")
    cells_per_bag: int = Field(2000, ge=0, description="cells per bag used for fitting, sampled with the seed; 0: all")
    feedback: Path | None = Field(
        None, description="CSV of cells that readers confirmed or rejected, as `cytomil feedback` writes it"
    )
    ensemble: int = Field(3, ge=1, description="number of models from different seeds whose scores are averaged")
    instance_score: InstanceScore = Field(
        InstanceScore.EVIDENCE,
        description="score that ranks cells: evidence, the odds of a bag of that cell alone; or attention",
    )
    sensitivity: float = Field(
        0.95, gt=0, le=1, description="fraction of positive held-out bags kept out of 'low priority'"
    )
    seed: int = Field(0, ge=0, description="seed of folds, weights and order")
