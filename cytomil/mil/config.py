"""How `fit-mil` fits a triage model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from cytomil.config import Config


class Prototypes(StrEnum):
    """How PAMIL's prototypes start."""

    RANDOM = "random"
    KMEANS = "kmeans"


class InstanceScore(StrEnum):
    """What an aggregator says of one instance."""

    EVIDENCE = "evidence"
    ATTENTION = "attention"


class FitMilConfig(Config):
    """From feature caches to the triage model."""

    features: Path = Field(Path("data/features"), description="folder of feature caches")
    encoder: Path = Field(Path("models/encoder"), description="encoder bundle that made them; copied into the model")
    out: Path = Field(Path("models/triage"), description="folder for the triage model")
    aggregator: str = Field(
        "self-paced",
        description="self-paced, density-ratio, pamil, abmil, dtfd-mil, clam, transmil, mean, max, top-k; "
        "one-class: knn, mahalanobis, ocsvm, gaussian",
    )
    n_prototypes: int = Field(10, ge=1, description="PAMIL's prototypes")
    prototypes: Prototypes = Field(Prototypes.RANDOM, description="how PAMIL's prototypes start")
    prototype_branch: bool = Field(
        False, description="PAMIL: the original's prototypes classify the bag along with attention"
    )
    instance_branch: bool = Field(False, description="PAMIL: the original's pseudo labels of instances train it too")
    epochs: int = Field(60, ge=1, description="most epochs; cross-validation chooses how many of them")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate of Adam")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of Adam")
    cluster_weight: float = Field(0.005, ge=0, description="weight of each of PAMIL's two cluster losses")
    top_share: float = Field(
        0.03,
        gt=0,
        le=1,
        description="share of a bag's cells that top-k, density-ratio, self-paced and one-class scorers pool",
    )
    cells_per_bag: int = Field(
        2000, ge=0, description="cells of each bag that fitting reads, drawn by seed; 0: all of them"
    )
    folds: int = Field(4, ge=2, description="cross-validation folds, by patient where known")
    ensemble: int = Field(3, ge=1, description="models from different seeds, averaged")
    instance_score: InstanceScore = Field(
        InstanceScore.EVIDENCE,
        description="what ranks cells: evidence, the odds of a bag of that cell alone; or attention",
    )
    sensitivity: float = Field(
        0.95, gt=0, le=1, description="share of positive held-out bags kept out of 'low priority'"
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="format of PAMIL's matrix products in fitting; auto: bf16 where the processor has it, else float32",
    )
    workers: int = Field(0, ge=0, description="fits side by side; 0: one per core; the result is the same")
    seed: int = Field(0, ge=0, description="seed of folds, weights and order")
