"""The page a reader opens after triage: one HTML file that needs no network, no server and no JavaScript."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from cytomil import files
from cytomil.triage import pictures as score_chart
from cytomil.triage.page import data_uri, part, render, source_hash, without_unusable_numbers
from cytomil.triage.pictures import ScoreChart
from cytomil.triage.worklist import Call, SlideResult, Worklist, in_reading_order

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
    the page links them: for worklists too long to carry in one file.
    """
    if not split_images:
        files.write_text(path, render_report(worklist))
        return
    folder = pictures_folder(path)
    with files.replacing_folder(folder) as partial:

        def store(image: bytes) -> str:
            # Named by content: an older page whose folder is replaced can miss a picture, but never shows another cell.
            name = f"{hashlib.sha256(image).hexdigest()[:32]}.jpg"
            (partial / name).write_bytes(image)
            return f"{quote(folder.name)}/{name}"

        page = _render(worklist, store, img_src="'self' file: data:")
    files.write_text(path, page)


def pictures_folder(report: Path) -> Path:
    """Where the pictures of a report lie that does not hold them itself."""
    return report.with_name(f"{report.stem}_files")


@dataclass(frozen=True)
class _View:
    """A slide as the page shows it.

    ``order`` is its place in the worklist, from 1; ``why`` is what all its cells share, said once; ``rare`` is
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
