"""The aggregators and one-class scorers by name. To add one: a file here and an entry below.

A package of its own adds one by an entry point in the group ``cytomil.aggregators`` that names a subclass of `Aggregator`.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

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
from cytomil.mil.aggregators.transmil import TransMIL
from cytomil.mil.pamil import PAMIL
from cytomil.settings import InstanceScore

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
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        known = [*AGGREGATORS, *installed]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(known)}."
        raise SettingsError(f"there is no aggregator '{name}'. {hint}")
    try:
        found = installed[name].load()
    except Exception as error:  # whatever a foreign package does at import is one line for the user
        raise SettingsError(f"the aggregator '{name}' ({installed[name].value}) cannot be loaded: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Aggregator)):
        raise SettingsError(
            f"the aggregator '{name}' ({installed[name].value}) is no cytomil.mil.aggregators.Aggregator."
        )
    return found


def require_score(name: str, kind: InstanceScore) -> None:
    """Raise `SettingsError` unless the aggregator gives instance scores of this kind."""
    meaning = find_aggregator(name).meaning
    if kind not in meaning:
        others = " or ".join(f"--instance-score {one.value}" for one in meaning)
        raise SettingsError(f"the aggregator '{name}' gives no instance score '{kind.value}'. Use {others}.")
