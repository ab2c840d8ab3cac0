"""Many short strings in little memory: the ids of a slide's cells."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class Strings(Sequence[str]):
    """A sequence of strings as one block of UTF-8 text: 8 bytes per string and its own letters, where a list needs some 70.

    Reading an entry makes a new string. `extend` adds at the end; nothing else changes a sequence.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        self.extend(strings)

    def extend(self, strings: Iterable[str]) -> None:
        """Add strings at the end."""
        for one in strings:
            self._text += one.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(self._at(i) for i in range(*place.indices(len(self))))
        i = place + len(self) if place < 0 else place
        if not 0 <= i < len(self):
            raise IndexError(f"place {place} of {len(self)} strings")
        return self._at(i)

    def __iter__(self) -> Iterator[str]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return self._text == other._text and self._ends == other._ends
        return isinstance(other, list | tuple) and len(self) == len(other) and all(map(str.__eq__, self, other))

    def __hash__(self) -> int:
        return hash((bytes(self._text), self._ends.tobytes()))

    def __repr__(self) -> str:
        return f"Strings({list(self)!r})"

    def _at(self, i: int) -> str:
        return self._text[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogatepass")
