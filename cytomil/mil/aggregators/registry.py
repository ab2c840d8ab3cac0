"""The aggregators and one-class scorers by name. To add one: a file here and an entry below.

A package of its own adds one by an entry point in the group ``cytomil.aggregators`` that names a subclass of `Aggregator`.
"""

from __future__ import annotations

from cytomil.errors import SettingsError
from cytomil.mil.aggregators.abmil import ABMIL
from cytomil.mil.aggregators.base import Aggregator
from cytomil.mil.aggregators.clam import CLAM
from cytomil.mil.aggregators.density_ratio import DensityRatio
from cytomil.mil.aggregators.dtfd import DTFDMIL
from cytomil.mil.aggregators.gaussian import GaussianDensity
from cytomil.mil.aggregators.knn import NearestNeighbours
from cytomil.mil.aggregators.mahalanobis import Mahalanobis
from cytomil.mil.aggregators.ocsvm import OneClassSVM
from cytomil.mil.aggregators.pooling import MaxPooling, MeanPooling, TopPooling
from cytomil.mil.aggregators.self_paced import SelfPaced
from cytomil.mil.aggregators.transmil import TransMIL
from cytomil.mil.config import InstanceScore
from cytomil.mil.pamil import PAMIL
from cytomil.plugins import find_foreign, load_kind

AGGREGATORS: dict[str, type[Aggregator]] = {
    "pamil": PAMIL,
    "abmil": ABMIL,
    "dtfd-mil": DTFDMIL,
    "clam": CLAM,
    "transmil": TransMIL,
    "mean": MeanPooling,
    "max": MaxPooling,
    "top-k": TopPooling,
    "density-ratio": DensityRatio,
    "self-paced": SelfPaced,
    "knn": NearestNeighbours,
    "mahalanobis": Mahalanobis,
    "ocsvm": OneClassSVM,
    "gaussian": GaussianDensity,
}
ENTRY_POINTS = "cytomil.aggregators"


def find_aggregator(name: str) -> type[Aggregator]:
    """The aggregator of this name, ours or an installed package's. Raises `SettingsError` where there is none."""
    if name in AGGREGATORS:
        return AGGREGATORS[name]
    try:
        entry = find_foreign("aggregator", ENTRY_POINTS, name, AGGREGATORS)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return load_kind("aggregator", entry, Aggregator)  # type: ignore[type-abstract]


def require_score(name: str, kind: InstanceScore) -> None:
    """Raise `SettingsError` unless the aggregator gives instance scores of this kind."""
    meaning = find_aggregator(name).meaning
    if kind not in meaning:
        others = " or ".join(f"--instance-score {one.value}" for one in meaning)
        raise SettingsError(f"the aggregator '{name}' gives no instance score '{kind.value}'. Use {others}.")
