"""All aggregators and one-class scorers by name. None of them is imported before it is used.

To add one to cytomil, write one file and one line below. Another package adds one by an entry point of the group
``cytomil.aggregators`` that names a subclass of `Aggregator`; docs/aggregators.md shows how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cytomil import config
from cytomil.errors import SettingsError
from cytomil.mil.config import FitMilConfig, InstanceScore
from cytomil.registry import Registry

if TYPE_CHECKING:
    from cytomil.mil.aggregators.base import Aggregator

AGGREGATORS = Registry(
    "aggregator",
    "cytomil.aggregators",
    "cytomil.mil",
    {
        "pamil": "pamil:PAMIL",
        "abmil": "aggregators.pooling:ABMIL",
        "dtfd-mil": "aggregators.pooling:DTFDMIL",
        "clam": "aggregators.pooling:CLAM",
        "transmil": "aggregators.transmil:TransMIL",
        "mean": "aggregators.pooling:MeanPooling",
        "max": "aggregators.pooling:MaxPooling",
        "top-k": "aggregators.pooling:TopPooling",
        "density-ratio": "aggregators.one_class:DensityRatio",
        "self-paced": "aggregators.self_paced:SelfPaced",
        "knn": "aggregators.one_class:NearestNeighbours",
        "mahalanobis": "aggregators.one_class:Mahalanobis",
        "ocsvm": "aggregators.one_class:OneClassSVM",
        "gaussian": "aggregators.one_class:GaussianDensity",
    },
)


def find_aggregator(name: str) -> type[Aggregator]:
    """The aggregator of this name, from cytomil or an installed package. Raises `SettingsError` if there is none."""
    from cytomil.mil.aggregators.base import Aggregator

    return AGGREGATORS.load(name, Aggregator)  # type: ignore[type-abstract]


def own_config(name: str, options: Mapping[str, Mapping[str, Any]]) -> config.Config:
    """The settings that only this aggregator has, validated.

    Args:
        name: the aggregator's.
        options: per aggregator, key → value. Only those of ``name`` are read; missing keys take their defaults.

    Raises:
        SettingsError: the aggregator or the setting does not exist, or a value is not allowed.
    """
    return config.own_config("aggregator", name, find_aggregator(name).Config, options, FitMilConfig.model_fields)


def require_score(name: str, kind: InstanceScore) -> None:
    """Raise `SettingsError` unless the aggregator gives instance scores of this kind."""
    meaning = find_aggregator(name).meaning
    if kind not in meaning:
        others = " or ".join(f"--instance-score {one.value}" for one in meaning)
        raise SettingsError(f"the aggregator '{name}' gives no instance score '{kind.value}'. Use {others}.")
