"""What the report and the summaries share: templates, escaping, and how numbers are shown."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cytomil.triage.worklist import Call, SlideResult, Worklist

_TEMPLATES = "templates"
_UNCOUNTED = 1_000_000  # beyond it a score is only said to be beyond it


def storable(page: str) -> str:
    """The page without what no file can hold: lone surrogates, by which a name that is not UTF-8 arrives, are escaped."""
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def without_unusable_numbers(slide: SlideResult) -> SlideResult:
    """A slide whose probability is missing or not a number from 0 to 1 counts as not assessed, whatever its call."""
    if slide.call is Call.NOT_ASSESSED:
        return slide if slide.reason else replace(slide, reason="No reason was recorded.")
    if slide.probability is not None and 0 <= slide.probability <= 1:
        return slide
    given = "no probability" if slide.probability is None else f"{slide.probability}, which is not a probability"
    reason = f"The model gave {given}; its call, “{slide.call.value}”, is not used."
    return replace(slide, call=Call.NOT_ASSESSED, probability=None, reason=reason)


@cache
def environment() -> Environment:
    """The templates, with escaping and the filters and tests that they use."""
    made = Environment(
        loader=PackageLoader("cytomil.triage", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "threshold": _threshold,
        "times": _times,
        "percent": _percent,
        "plain": _plain,
        "local_time": _local_time,
    }
    made.tests |= {"finite": _is_finite, "listing": _is_listing, "records": _is_records}
    return made


def render(template: str, worklist: Worklist, **more: Any) -> str:
    """A page of ``worklist``. ``more`` is what the template shows besides the worklist, calls, probabilities and scores."""
    thresholds = (worklist.low_threshold, worklist.threshold)
    page = (
        environment()
        .get_template(template)
        .render(
            worklist=worklist,
            calls=list(Call),
            probability=lambda value: probability_text(value, thresholds),
            score_unit=worklist.score_meaning.removeprefix("× "),
            **more,
        )
    )
    return storable(page)


def part(name: str) -> str:
    """The style sheet or script as it stands in the page: with the line ends that a browser hashes."""
    loader = environment().loader
    assert loader is not None
    source, _, _ = loader.get_source(environment(), name)
    return "\n".join(source.splitlines())


def source_hash(text: str) -> str:
    """How a content security policy names an inline style sheet or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_uri(image: bytes) -> str:
    """The address of a JPEG that stands in the page itself."""
    return "data:image/jpeg;base64," + base64.b64encode(image).decode()


def _threshold(value: float) -> str:
    two = f"{value:.2f}"
    return two if abs(float(two) - value) < 1e-9 else f"{value:.3f}"


def probability_text(value: float, thresholds: Sequence[float]) -> str:
    """Two digits, or as many as it takes not to look as if on the other side of a threshold; never 0.00 or 1.00."""
    for digits in range(2, 7):
        end = 10.0**-digits
        if value > 1 - end and max(thresholds) <= 1 - end:
            return f"> {1 - end:.{digits}f}"
        if value < end and min(thresholds) >= end:
            return f"< {end:.{digits}f}"
        text = f"{value:.{digits}f}"
        sides = [(float(text) >= float(_threshold(t))) == (value >= t) for t in thresholds]
        if all(sides) and 0 < float(text) < 1:
            break
    return text


def _local_time(moment: str) -> str:
    """An ISO 8601 moment by this machine's clock, with its distance from UTC; whatever else as it is."""
    try:
        read = datetime.fromisoformat(moment)
    except ValueError:
        return moment
    return moment if read.tzinfo is None else read.astimezone().strftime("%Y-%m-%d %H:%M (UTC%z)")


def _times(score: float) -> str:
    if not math.isfinite(score):
        return "not known"
    if score > _UNCOUNTED:
        return f"more than {_UNCOUNTED:,} ×"
    return f"{score:,.0f} ×" if score >= 9.95 else f"{score:.2g} ×"


def _percent(share: float) -> str:
    if share <= 0:
        return "none"
    if share < 1e-4:
        return "under 0.01 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"


def _plain(value: object) -> str:
    if value is None or value == "":
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _is_listing(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _is_records(value: Any) -> bool:
    return _is_listing(value) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)
