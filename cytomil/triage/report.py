"""HTML pages that need no network, no server and no JavaScript: the report, and one page per slide to print."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cytomil import files
from cytomil.files import replacing_folder, safe_name
from cytomil.triage import pictures as score_chart
from cytomil.triage.pictures import ScoreChart
from cytomil.triage.worklist import Call, SlideResult, Worklist, in_reading_order

_TEMPLATES = "templates"
_UNCOUNTED = 1_000_000  # a larger score is only shown to be larger than this


def storable(page: str) -> str:
    """The page with lone surrogates escaped: a name that is not UTF-8 contains them, and no file can hold them."""
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
    """The style sheet or script as it is in the page, with the line ends that a browser hashes."""
    loader = environment().loader
    assert loader is not None
    source, _, _ = loader.get_source(environment(), name)
    return "\n".join(source.splitlines())


def source_hash(text: str) -> str:
    """How a content security policy names an inline style sheet or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_uri(image: bytes) -> str:
    """The address of a JPEG that is embedded in the page."""
    return "data:image/jpeg;base64," + base64.b64encode(image).decode()


def _threshold(value: float) -> str:
    two = f"{value:.2f}"
    return two if abs(float(two) - value) < 1e-9 else f"{value:.3f}"


def probability_text(value: float, thresholds: Sequence[float]) -> str:
    """Two digits, or more if rounding would move it to the other side of a threshold; never 0.00 or 1.00."""
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
    """An ISO 8601 moment by this machine's clock, with its distance from UTC; any other text unchanged."""
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


_FILE_KINDS = {
    "heatmap": "map of high scores",
    "geojson": "all cells, for QuPath",
    "cells_csv": "all cells, as a table",
    "qc_picture": "quality check, larger",
    "summary": "summary on one page, to print",
}


def render_report(worklist: Worklist) -> str:
    """The worklist as one HTML document with its pictures inside."""
    return _render(worklist, data_uri, img_src="data:")


def write_report(worklist: Worklist, path: Path, *, split_images: bool = False) -> None:
    """Write the report to ``path``, whole or not at all.

    With ``split_images`` the pictures go to the folder ``<stem>_files`` beside it, which is replaced as a whole, and
    the page links them. This is for worklists that are too long for one file.
    """
    if not split_images:
        files.write_text(path, render_report(worklist))
        return
    folder = pictures_folder(path)
    with files.replacing_folder(folder) as partial:

        def store(image: bytes) -> str:
            # The name depends on the content. An older page may lack a picture after its folder was replaced, but never
            # shows a wrong cell.
            name = f"{hashlib.sha256(image).hexdigest()[:32]}.jpg"
            (partial / name).write_bytes(image)
            return f"{quote(folder.name)}/{name}"

        page = _render(worklist, store, img_src="'self' file: data:")
    files.write_text(path, page)


def pictures_folder(report: Path) -> Path:
    """The folder of the pictures of a report that does not contain them itself."""
    return report.with_name(f"{report.stem}_files")


@dataclass(frozen=True)
class _View:
    """A slide as the page shows it.

    ``order`` is its place in the worklist, from 1; ``why`` is the sentence that applies to all its cells; ``rare`` is
    `ScoreChart.rare_scores` of the slide.
    """

    order: int
    slide: SlideResult
    look_at: str
    why: str
    curve: str
    rare: tuple[float, float, float] | None


def _render(worklist: Worklist, source: Callable[[bytes], str], img_src: str) -> str:
    slides = in_reading_order([without_unusable_numbers(slide) for slide in worklist.slides])
    chart = score_chart.make_chart(
        worklist.score_bin_edges, worklist.reference_shares, [slide.score_shares for slide in slides]
    )
    style, script = part("report.css"), part("report.js")
    policy = (
        f"default-src 'none'; img-src {img_src}; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return render(
        "report.html.j2",
        worklist,
        views=[_view(order, slide, chart) for order, slide in enumerate(slides, 1)],
        counts=Counter(slide.call for slide in slides),
        chart=chart,
        frame=score_chart,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        source=source,
        file_kinds=_FILE_KINDS,
    )


def _view(order: int, slide: SlideResult, chart: ScoreChart | None) -> _View:
    whys = {cell.why for cell in slide.key_instances}
    look_at = slide.look_at
    if slide.call is not Call.NOT_ASSESSED and slide.cautions:
        # The caution has a column of its own beside this one.
        look_at = " ".join(["Read the caution first.", replace(slide, cautions=()).look_at]).strip()
    return _View(
        order=order,
        slide=slide,
        look_at=look_at,
        why=whys.pop() if len(whys) == 1 and len(slide.key_instances) > 1 else "",
        curve=chart.path(slide.score_shares) if chart else "",
        rare=chart.rare_scores(slide.score_shares) if chart else None,
    )


FOLDER = "summaries"
_MAX_CELLS = 12  # as many as leave room on the page for long cautions
_MEANINGS = {
    Call.NOT_ASSESSED: "The model says nothing about this slide, neither for nor against disease. Read it without its help.",
    Call.REVIEW_FIRST: "To the model, this slide looks like the diseased slides that it learned from.",
    Call.REVIEW: "The model puts this slide neither with the diseased nor with the healthy slides that it learned from.",
    Call.LOW_PRIORITY: (
        "To the model, this slide looks like the healthy slides that it learned from. It can still hold disease."
    ),
}
_UNLIKE = "This slide is unlike those that the model learned from. Read it as you would without the model."


def write_summaries(worklist: Worklist, out: Path) -> Worklist:
    """Write ``summaries/NAME.html`` of each slide into ``out``, replacing the folder as a whole.

    Returns the worklist in which each slide's ``files`` name its summary.
    """
    slides = []
    with replacing_folder(out / FOLDER) as partial:
        for slide in worklist.slides:
            name = f"{safe_name(slide.slide)}.html"
            (partial / name).write_text(render_summary(worklist, slide), encoding="utf-8", newline="")
            slides.append(replace(slide, files=slide.files | {"summary": f"{FOLDER}/{name}"}))
    return replace(worklist, slides=tuple(slides))


def render_summary(worklist: Worklist, slide: SlideResult) -> str:
    """The summary of one slide of ``worklist`` as one HTML document with its pictures inside."""
    slide = without_unusable_numbers(slide)
    style = part("summary.css")
    return render(
        "summary.html.j2",
        worklist,
        slide=slide,
        cells=slide.key_instances[:_MAX_CELLS],
        meaning=_UNLIKE if slide.is_unlike and slide.call is Call.REVIEW else _MEANINGS[slide.call],
        policy=f"default-src 'none'; img-src data:; style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        source=data_uri,
    )
