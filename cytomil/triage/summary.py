"""One page per slide, to print and sign: an HTML file that needs no network, no other file and no JavaScript."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from cytomil.files import replacing_folder, safe_name
from cytomil.triage.page import data_uri, part, render, source_hash, without_unusable_numbers
from cytomil.triage.worklist import Call, SlideResult, Worklist

FOLDER = "summaries"
_MOST_CELLS = 12  # as many as leave room on the page for long cautions
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
        cells=slide.key_instances[:_MOST_CELLS],
        meaning=_UNLIKE if slide.is_unlike and slide.call is Call.REVIEW else _MEANINGS[slide.call],
        policy=f"default-src 'none'; img-src data:; style-src '{source_hash(style)}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        source=data_uri,
    )
