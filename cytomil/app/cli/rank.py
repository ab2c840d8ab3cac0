"""cytomil rank."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cytomil.app.cli.console import RichListener, console, finish, plain_errors, print_table, print_warning
from cytomil.app.cli.options import AcceptLeftOut, AsJson, Given, ParamsFile, Profile, generated, given_among
from cytomil.app.settings import load
from cytomil.config import note_unused
from cytomil.encoders.engines.registry import known_engine
from cytomil.locks import output_folder
from cytomil.progress import Problem

if TYPE_CHECKING:
    from cytomil.triage.config import RankConfig
    from cytomil.triage.worklist import Worklist

_STYLES = {"not assessed": "bold magenta", "review first": "bold red", "review": "yellow", "low priority": "dim"}


@generated("rank", checks={"engine": known_engine})
def rank(
    options: Given,
    slide_dir: Annotated[
        Path,
        typer.Argument(
            help="folder of whole slides, fields, folders of cell images, bag files",
            metavar="SLIDE_DIR",
        ),
    ],
    params: ParamsFile = None,
    profile: Profile = None,
    accept_left_out: AcceptLeftOut = False,
    as_json: AsJson = False,
) -> None:
    """Rank a folder of slides: which to read first, and which cells to look at."""
    with plain_errors(
        kept="The slides that were read are kept, and stand in report.html. Run the same command again to continue."
    ):
        settings = load(options, params, profile).rank
        if not settings.watch:
            note_unused(given_among(options, "rank", ("watch_s",)), "without --watch", RichListener().note)
        worklist = _watched(slide_dir, settings) if settings.watch else _ranked(slide_dir, settings)
    from cytomil.triage.write import to_document

    if worklist is None:
        console.print("Stopped before any slide was read. No worklist was written.")
        return
    problems = [
        Problem(s.slide, s.reason or next(one for one in s.cautions if "could not be read" in one))
        for s in worklist.slides
        if s.reason or s.n_unreadable
    ]
    if n := worklist.unread:
        problems.append(
            Problem(f"{n} more slide{'s' * (n != 1)}", "not read yet. Run the same command again to continue.")
        )
    finish(to_document(worklist), problems, as_json, accept_left_out)


def _ranked(slide_dir: Path, settings: RankConfig) -> Worklist:
    from cytomil.triage.rank import rank as run
    from cytomil.triage.write import GrowingReport, write_worklist

    growing = GrowingReport(settings.out, settings.split_images)
    listener = RichListener()
    with output_folder(settings.out, listener.note, replaced=False):
        worklist = run(slide_dir, settings, listener, growing.add)
        report = write_worklist(worklist, settings.out, settings.split_images, settings.summaries)
    _show(worklist, report)
    return worklist


def _watched(slide_dir: Path, settings: RankConfig) -> Worklist | None:
    """Follow the folder until Ctrl-C; returns the last worklist, which is then on disk, or None if there is none."""
    from cytomil.triage.watch import watch
    from cytomil.triage.write import GrowingReport, write_worklist

    growing = GrowingReport(settings.out, settings.split_images)
    listener = RichListener()
    last: Worklist | None = None

    def on_slide(worklist: Worklist) -> None:
        nonlocal last
        last = worklist
        growing.add(worklist)

    with output_folder(settings.out, listener.note, replaced=False):
        try:
            with closing(watch(slide_dir, settings, listener, on_slide)) as worklists:
                for worklist in worklists:
                    last = worklist
                    _show(worklist, write_worklist(worklist, settings.out, settings.split_images, settings.summaries))
        except KeyboardInterrupt:
            if last is not None:
                report = write_worklist(last, settings.out, settings.split_images, settings.summaries)
                console.print(f"Stopped. The worklist is complete as far as slides were read: {report}", soft_wrap=True)
    return last


def _show(worklist: Worklist, report: Path) -> None:
    """Print the worklist as a table, with notes."""
    rows = [
        (
            number,
            slide.slide,
            "–" if slide.probability is None or slide.is_unlike else f"{slide.probability:.3f}",
            Text(slide.call.value, style=_STYLES[slide.call.value]),
            f"{slide.n_instances:,}",
            slide.look_at,
        )
        for number, slide in enumerate(worklist.slides, start=1)
    ]
    for weakness in worklist.weaknesses:
        print_warning(weakness.title, weakness.text)
    columns = ("#", "slide", "prob.", "call", "cells", "look at")
    print_table(f"worklist of {worklist.folder}", columns, rows, right=("#", "prob.", "cells"))
    for line in _thresholds(worklist):
        console.print(line, soft_wrap=True)
    console.print(f"the model on training slides held out: {worklist.held_out}", soft_wrap=True)
    if n_at_edge := sum(slide.n_at_edge for slide in worklist.slides):
        console.print(f"{n_at_edge:,} cells at the edge of the scanned area were left out.")
    console.print(f"report: {report}", soft_wrap=True)
    console.print("Decision support, not a diagnosis.", style="bold")
    if worklist.synthetic:
        console.print("The model was trained on synthetic cells: its results do not apply to patients.", style="bold")
    if worklist.collapsed:
        print_warning("COLLAPSED", "The encoder under this model collapsed: this order cannot be trusted.")


def _thresholds(worklist: Worklist) -> list[str]:
    """The thresholds between the calls, and their ranges."""
    lines = []
    for name, value, reach in (
        ("review first from", worklist.threshold, worklist.threshold_range),
        ("low priority below", worklist.low_threshold, worklist.low_threshold_range),
    ):
        spread = f" (uncertain: {reach[0]:.3f} to {reach[1]:.3f})" if reach else ""
        lines.append(f"{name} {value:.3f}{spread}")
    return lines
