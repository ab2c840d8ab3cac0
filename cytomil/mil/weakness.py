"""What a reader must know of a triage model before its calls: it may be no better than chance, or know few slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FEW_BAGS = 30
_CHANCE = 0.5


@dataclass(frozen=True)
class Weakness:
    """One thing that makes a model's calls doubtful: a short ``title``, and a sentence or two of ``text``."""

    title: str
    text: str


def held_out_auroc(card: dict[str, Any]) -> str:
    """How well the model that ``card`` describes told training slides apart that were held out, with the interval."""
    held_out = card["held_out"]
    low, high = held_out["auroc_interval"]
    return f"AUROC {held_out['auroc']:.2f}, 95 % interval {low:.2f} to {high:.2f}; 0.5 is chance"


def weaknesses(card: dict[str, Any]) -> tuple[Weakness, ...]:
    """The weaknesses of the model that ``card`` (triage.json) describes, the worst first; none of a sound one."""
    found = []
    n = int(card["trained_on"]["bags"])
    low, high = card["held_out"]["auroc_interval"]
    measured = held_out_auroc(card)
    if high < _CHANCE:
        found.append(
            Weakness(
                "WORSE THAN CHANCE",
                f"On training slides held out, the model put healthy slides before diseased ones ({measured}). "
                "Do not use its order or its calls.",
            )
        )
    elif low <= _CHANCE:
        found.append(
            Weakness(
                "MAY BE NO BETTER THAN CHANCE",
                f"On training slides held out, the model could not be shown to tell diseased from healthy ({measured}). "
                "Do not rely on its order or its calls.",
            )
        )
    if n < FEW_BAGS:
        found.append(
            Weakness(
                f"LEARNT FROM {n} SLIDES",
                f"That is few: with fewer than {FEW_BAGS}, its thresholds and figures may be far off ({measured}). "
                "Read every slide as if it had no call.",
            )
        )
    return tuple(found)
