"""All aggregators and one-class scorers by name. None of them is imported before it is used.

To add one to cytomil, write one file and one line below. Another package adds one by an entry point of the group
``cytomil.aggregators`` that names a subclass of `Aggregator`; docs/aggregators.md shows how.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from cytomil.config import Config
from cytomil.errors import SettingsError
from cytomil.mil.config import InstanceScore
from cytomil.plugins import find_foreign, load_kind

if TYPE_CHECKING:
    from cytomil.mil.aggregators.base import Aggregator

GROUP = "cytomil.aggregators"

_BUILT_IN = {
    "pamil": "pamil:PAMIL",
    "abmil": "aggregators.gated_attention:ABMIL",
    "dtfd-mil": "aggregators.dtfd:DTFDMIL",
    "clam": "aggregators.gated_attention:CLAM",
    "transmil": "aggregators.transmil:TransMIL",
    "mean": "aggregators.pooling:MeanPooling",
    "max": "aggregators.pooling:MaxPooling",
    "top-k": "aggregators.pooling:TopPooling",
    "density-ratio": "aggregators.neighbours:DensityRatio",
    "self-paced": "aggregators.self_paced:SelfPaced",
    "knn": "aggregators.neighbours:NearestNeighbours",
    "mahalanobis": "aggregators.one_class:Mahalanobis",
    "ocsvm": "aggregators.one_class:OneClassSVM",
    "gaussian": "aggregators.one_class:GaussianDensity",
}
AGGREGATORS = {name: EntryPoint(name, f"cytomil.mil.{place}", GROUP) for name, place in _BUILT_IN.items()}


def known_aggregator(name: str) -> str:
    """``name``, if there is an aggregator of this name; it is not imported. Raises `ValueError` with a list of names."""
    _entry(name)
    return name


def find_aggregator(name: str) -> type[Aggregator]:
    """The aggregator of this name, cytomil's own or an installed package's. Raises `SettingsError` if there is none."""
    from cytomil.mil.aggregators.base import Aggregator

    try:
        entry = _entry(name)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return load_kind("aggregator", entry, Aggregator)  # type: ignore[type-abstract]


def own_config(name: str, options: Mapping[str, Any]) -> Config:
    """The aggregator's own settings, validated.

    Args:
        name: the aggregator's.
        options: key → value. Missing keys take their defaults.

    Raises:
        SettingsError: there is no such aggregator, it has no such setting, or a value is out of range.
    """
    kind = find_aggregator(name).Config
    try:
        return kind(**options)
    except ValidationError as error:
        raise SettingsError(_one_line(name, kind, error)) from None


def require_score(name: str, kind: InstanceScore) -> None:
    """Raise `SettingsError` unless the aggregator gives instance scores of this kind."""
    meaning = find_aggregator(name).meaning
    if kind not in meaning:
        others = " or ".join(f"--instance-score {one.value}" for one in meaning)
        raise SettingsError(f"the aggregator '{name}' gives no instance score '{kind.value}'. Use {others}.")


def _entry(name: str) -> EntryPoint:
    return AGGREGATORS[name] if name in AGGREGATORS else find_foreign("aggregator", GROUP, name, AGGREGATORS)


def _one_line(name: str, kind: type[Config], error: ValidationError) -> str:
    # An unknown key comes first: it is often the cause of the others.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        place = f"the aggregator '{name}': {key}: " if key else f"the aggregator '{name}': "
        return f"{place}{message[0].lower()}{message[1:]} (it is {first['input']!r})."
    if not kind.model_fields:
        return f"the aggregator '{name}' has no setting '{key}', and none of its own at all. Remove it."
    close = difflib.get_close_matches(key, kind.model_fields, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"the aggregator '{name}' has no setting '{key}'. {hint}There are: {', '.join(kind.model_fields)}."
