"""What can be chosen by name: pretraining methods and aggregators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cytomil.registry import METHODS

if TYPE_CHECKING:
    from cytomil.mil.aggregators.base import Aggregator
    from cytomil.training.methods import Method


def methods() -> tuple[str, ...]:
    """The names of the pretraining methods: cytomil's own, then those of other installed packages.

    >>> import cytomil
    >>> "slam-ags" in cytomil.methods()
    True
    """
    return METHODS.names()


def aggregators() -> tuple[str, ...]:
    """The names of the aggregators and one-class scorers: cytomil's own, then those of other installed packages.

    >>> import cytomil
    >>> "self-paced" in cytomil.aggregators()
    True
    """
    from cytomil.mil.aggregators.registry import AGGREGATORS

    return AGGREGATORS.names()


def get_method(name: str) -> type[Method]:
    """The class of a pretraining method, to use it or to derive another from it.

    Raises:
        SettingsError: there is no such method, or the package that brings it does not load.

    >>> import cytomil
    >>> cytomil.get_method("simclr").__name__
    'SimCLR'
    """
    from cytomil.training.methods import load_method

    return load_method(name)


def get_aggregator(name: str) -> type[Aggregator]:
    """The class of an aggregator.

    Raises:
        SettingsError: there is no such aggregator, or the package that brings it does not load.

    >>> import cytomil
    >>> cytomil.get_aggregator("pamil").__name__
    'PAMIL'
    """
    from cytomil.mil.aggregators.registry import find_aggregator

    return find_aggregator(name)
