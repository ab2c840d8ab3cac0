"""What can be chosen by name: cytomil's own classes, and entry points of other packages. All are loaded on first use.

A method is one file in ``cytomil.training.methods`` and one line below. docs/methods.md shows how another package adds
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from cytomil.errors import SettingsError
from cytomil.text import did_you_mean

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Registry(Mapping[str, EntryPoint]):
    """The names of cytomil's own classes of one kind. `find` also looks in the entry points of ``group``.

    ``kind`` is the word in messages. ``places`` are name → ``module:Class`` below ``package``.
    """

    kind: str
    group: str
    package: str
    places: Mapping[str, str]

    def __getitem__(self, name: str) -> EntryPoint:
        return EntryPoint(name, f"{self.package}.{self.places[name]}", self.group)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def find(self, name: str) -> EntryPoint:
        """The entry of this name, not loaded; cytomil's own come first. Raises `ValueError` with the known names."""
        if name in self.places:
            return self[name]
        if name in (foreign := self._foreign()):
            return foreign[name]
        raise self.unknown(name, self.names())

    def unknown(self, name: str, known: Sequence[str]) -> ValueError:
        """The error for a name that is none of the ``known`` ones."""
        hint = " ".join(filter(None, [did_you_mean(name, known), f"There are: {', '.join(known)}."]))
        return ValueError(f"there is no {self.kind} '{name}'. {hint}")

    def names(self) -> tuple[str, ...]:
        """Cytomil's own names, then those that other installed packages bring."""
        return (*self.places, *sorted(self._foreign().keys() - self.places.keys()))

    def _foreign(self) -> dict[str, EntryPoint]:
        # Reading the entry points of every installed package takes a moment: only on demand.
        return {found.name: found for found in entry_points(group=self.group)}

    def known(self, name: str) -> str:
        """``name``, if there is such an entry. Raises `ValueError` with the known names."""
        self.find(name)
        return name

    def load(self, name: str, base: type[Kind]) -> type[Kind]:
        """The class of this name. Raises `SettingsError` if there is none, it does not load, or is no subclass of ``base``."""
        try:
            entry = self.find(name)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        try:
            found = entry.load()
        except Exception as error:  # another package's code may fail in any way
            raise SettingsError(
                f"{self.kind} '{name}' cannot be loaded from {entry.value} ({type(error).__name__}: {error}). "
                "Repair or remove the package that brings it."
            ) from error
        if not (isinstance(found, type) and issubclass(found, base)):
            raise SettingsError(
                f"{self.kind} '{name}': {entry.value} is not a subclass of {base.__module__}.{base.__name__}."
            )
        return found


METHODS = Registry(
    "method",
    "cytomil.methods",
    "cytomil.training.methods",
    {
        "slam-ags": "multi_task:SlamAgs",
        "weaksupcon": "multi_task:WeakSupCon",
        "simclr": "contrastive:SimCLR",
        "supcon": "contrastive:SupCon",
        "moco-v3": "contrastive:MoCoV3",
        "its2clr": "its2clr:ItS2CLR",
        "weakly-supervised": "classification:WeaklySupervised",
        "dsvdd": "one_class:DeepSVDD",
        "droc": "one_class:DROC",
        "fully-supervised": "classification:FullySupervised",
        "none": "none:NoPretraining",
    },
)
