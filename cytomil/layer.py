"""The layer: the part of the encoder's output that is kept for each cell, with or without its description."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace

AUTO = "auto"
MORPHOLOGY = "morphology"
_DESCRIBED = f"+{MORPHOLOGY}"
_STAGES = "stages"
STATISTICS = ("mean", "max", "spread")
"""Statistics over the positions of a stage, per channel; spread is the standard deviation."""


@dataclass(frozen=True)
class Layer:
    """One layer, written ``h``, ``z`` or ``stages:1,2,4:mean,max,spread``, with ``+morphology`` if cells are ``described``.

    ``h`` is the encoder's output, ``z`` the projector's. ``stages`` are inner stages of the network, by number and in
    rising order. ``statistics`` are computed over the positions of each stage, in the order of `STATISTICS`. h and z
    have neither.
    """

    kind: str
    stages: tuple[int, ...] = ()
    statistics: tuple[str, ...] = ()
    described: bool = False

    def __str__(self) -> str:
        parts = [self.kind]
        if self.kind == _STAGES:
            parts += [",".join(map(str, self.stages)), ",".join(self.statistics)]
        return ":".join(parts) + (_DESCRIBED if self.described else "")

    @property
    def embedded(self) -> Layer:
        """The part that the encoder computes."""
        return replace(self, described=False)

    @classmethod
    def of_stages(cls, stages: tuple[int, ...]) -> Layer:
        """Every statistic of these stages."""
        return cls(_STAGES, tuple(sorted(set(stages))), STATISTICS)

    @classmethod
    def parse(cls, text: str) -> Layer:
        """The layer that ``text`` names. Without statistics it has all of them. Raises `ValueError` with the reason."""
        words = text.strip()
        described = words.endswith(_DESCRIBED)
        kind, *rest = words.removesuffix(_DESCRIBED).split(":")
        if kind in ("h", "z") and not rest:
            return cls(kind, described=described)
        if kind != _STAGES or not 1 <= len(rest) <= 2:
            near = difflib.get_close_matches(kind, (AUTO, "h", "z", _STAGES, MORPHOLOGY), n=1)
            meant = f" Did you mean {near[0]}?" if near and near[0] != kind else ""
            raise ValueError(
                f"there is no layer '{text}'.{meant} Write {AUTO}, h, z, {MORPHOLOGY}, or stages with their numbers and "
                f"statistics: stages:1,2,4:{','.join(STATISTICS)}"
            )
        numbers = [word.strip() for word in rest[0].split(",")]
        if not all(word.isascii() and word.isdigit() for word in numbers):
            raise ValueError(f"layer '{text}': stages are numbers with commas between them, such as stages:1,2,4")
        statistics = [word.strip() for word in rest[1].split(",")] if len(rest) > 1 else list(STATISTICS)
        if unknown := [word for word in statistics if word not in STATISTICS]:
            raise ValueError(f"layer '{text}': there is no statistic '{unknown[0]}'. There are {', '.join(STATISTICS)}")
        stages = tuple(sorted({int(word) for word in numbers}))
        return cls(_STAGES, stages, tuple(one for one in STATISTICS if one in statistics), described)


def known_layer(text: str) -> str:
    """``text`` if it names a layer, ``auto`` and ``morphology`` among them, in its canonical form. Raises `ValueError`."""
    return text.strip() if text.strip() in (AUTO, MORPHOLOGY) else str(Layer.parse(text))


def known_layers(text: str) -> str:
    """Several layers with spaces between them, each as `known_layer` returns it. Raises `ValueError`."""
    found = [known_layer(word) for word in text.split()]
    if not found:
        raise ValueError("name at least one layer, or auto")
    return " ".join(dict.fromkeys(found))


def resolve_layer(text: str, auto: Callable[[], Layer]) -> Layer:
    """The layer that a setting names. ``auto`` returns the encoder's default. Raises `ValueError`."""
    if text == AUTO:
        return auto()
    if text == MORPHOLOGY:
        return replace(auto(), described=True)
    return Layer.parse(text)
