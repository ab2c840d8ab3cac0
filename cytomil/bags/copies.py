"""Finds byte-identical copies of slides under other names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path

from cytomil.files import sha256_of_file


def copies(places: Mapping[str, Path]) -> dict[str, str]:
    """Map the name of each slide that is a copy of an earlier one to the earlier one's name.

    ``places`` maps names to slide files or folders of cell images; the first of several copies is the original. In a
    folder, the bytes of the images are compared, not their names. Files are read only if all their sizes are equal.
    """
    first: dict[str, str] = {}
    filled = {name: place for name, place in places.items() if next(_files_of(place), None)}
    for group in _alike(filled, _sizes):
        if len(group) > 1:
            for same in _alike({name: places[name] for name in group}, _contents):
                first |= dict.fromkeys(same[1:], same[0])
    return first


def _alike(places: Mapping[str, Path], key: Callable[[Path], Hashable]) -> list[list[str]]:
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name, place in places.items():
        groups[key(place)].append(name)
    return list(groups.values())


def _sizes(place: Path) -> Hashable:
    return place.is_dir(), tuple(sorted(file.stat().st_size for file in _files_of(place)))


def _contents(place: Path) -> Hashable:
    try:
        return tuple(sorted(map(sha256_of_file, _files_of(place))))
    except OSError:
        return place  # a slide that cannot be read is no copy; it is reported when its bag is made


def _files_of(place: Path) -> Iterator[Path]:
    """The files of a slide, including the companion folder of an .mrxs file."""
    if place.is_file():
        yield place
    folder = place.with_suffix("") if place.suffix.lower() == ".mrxs" else place
    if folder.is_dir():
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
