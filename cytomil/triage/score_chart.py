"""Where a slide's scores lie beside those of normal training slides: the geometry of a small chart, as SVG paths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH = 440
HEIGHT = 230
LEFT = 84
RIGHT = 416
TOP = 12
BOTTOM = 178
_LOWEST_SHARE = 1e-4
_RARE = 0.01


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis: its SVG coordinate and its text."""

    at: float
    label: str


@dataclass(frozen=True)
class ScoreChart:
    """The axes that all slides of a worklist share, so that two slides' charts can be compared by eye.

    The vertical axis is logarithmic because the cells that matter are rare: on a plain axis one cell in a thousand
    would not show. The horizontal axis is logarithmic wherever the bins allow it. ``reference`` is an SVG path, empty
    where no reference is known.
    """

    edges: tuple[float, ...]
    reference_shares: tuple[float, ...]
    x_positions: tuple[float, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lowest_share: float
    log_x: bool
    reference: str = ""

    def path(self, shares: Sequence[float]) -> str:
        """A step line over the bins, as the ``d`` of an SVG path; empty unless ``shares`` fit the bins."""
        if not _are_shares(shares, len(self.edges) - 1):
            return ""
        steps = [f"M{self.x_positions[0]:.1f} {BOTTOM}"]
        for share, right in zip(shares, self.x_positions[1:], strict=True):
            steps.append(f"V{_y(share, self.lowest_share):.1f}H{right:.1f}")
        return "".join(steps) + f"V{BOTTOM}"

    def rare_scores(self, shares: Sequence[float]) -> tuple[float, float, float] | None:
        """A score that few cells of normal slides reach, the share of ``shares`` from there up, and the reference's.

        "Few" is 1 % or less. None where the two cannot be compared.
        """
        if not self.reference or not _are_shares(shares, len(self.edges) - 1):
            return None
        first = next(
            (i for i in range(1, len(shares)) if sum(self.reference_shares[i:]) <= _RARE),
            len(shares) - 1,
        )
        return self.edges[first], sum(shares[first:]), sum(self.reference_shares[first:])


def make_chart(
    edges: Sequence[float], reference: Sequence[float], slides: Sequence[Sequence[float]]
) -> ScoreChart | None:
    """Axes for the slides' shares over the bins ``edges``; None where the bins make no axis.

    The first and last edge may be 0, or minus and plus infinity: such a bin is open and is drawn as wide as the others.
    """
    inner = [e for e in edges[1:-1] if math.isfinite(e)]
    rising = all(a < b for a, b in pairwise(edges))
    if len(inner) != len(edges) - 2 or not inner or not rising:
        return None
    log_x = inner[0] > 0 and (edges[0] >= 0 or math.isinf(edges[0]))
    scale: Callable[[float], float] = math.log10 if log_x else float
    places = [scale(e) for e in inner]
    usual_width = (places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else 1.0
    first_is_open = math.isinf(edges[0]) or (log_x and edges[0] == 0)
    first = places[0] - usual_width if first_is_open else scale(edges[0])
    last = places[-1] + usual_width if math.isinf(edges[-1]) else scale(edges[-1])

    def x(place: float) -> float:
        return LEFT + (place - first) / (last - first) * (RIGHT - LEFT)

    n_bins = len(edges) - 1
    known = [shares for shares in (reference, *slides) if _are_shares(shares, n_bins)]
    seen = [share for shares in known for share in shares if share > 0]
    lowest = max(_LOWEST_SHARE, 10.0 ** math.floor(math.log10(min([*seen, 0.099]))))
    bare = ScoreChart(
        edges=tuple(edges),
        reference_shares=tuple(reference),
        x_positions=tuple(x(place) for place in (first, *places, last)),
        x_ticks=tuple(Tick(x(scale(v)), f"{v:,.6g}") for v in _round_values(first, last, log_x)),
        y_ticks=tuple(
            Tick(_y(10.0**power, lowest), f"{100 * 10.0**power:g} %") for power in range(round(math.log10(lowest)), 1)
        ),
        lowest_share=lowest,
        log_x=log_x,
    )
    return ScoreChart(**(vars(bare) | {"reference": bare.path(reference)}))


def _are_shares(shares: Sequence[float], n_bins: int) -> bool:
    return len(shares) == n_bins and all(0 <= share <= 1 for share in shares)


def _y(share: float, lowest: float) -> float:
    height = 1 - math.log10(max(share, lowest)) / math.log10(lowest)
    return BOTTOM - height * (BOTTOM - TOP)


def _round_values(first: float, last: float, log_x: bool) -> list[float]:
    if not log_x:
        step = 10.0 ** math.floor(math.log10(last - first))
        return [i * step for i in range(math.ceil(first / step), math.floor(last / step) + 1)]
    multiples = (1, 2, 5) if last - first < 2.5 else (1,)
    powers = range(math.floor(first) - 1, math.ceil(last) + 1)
    values = [m * 10.0**power for power in powers for m in multiples]
    return [v for v in values if first - 1e-9 <= math.log10(v) <= last + 1e-9]
