"""cytomil rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cytomil.cli.console import RichListener, console, finish, plain_errors, print_table, print_warning
from cytomil.cli.options import AsJson, ParamsFile, Profile, given, option
from cytomil.progress import Problem
from cytomil.settings import load

_STYLES = {"not assessed": "bold magenta", "review first": "bold red", "review": "yellow", "low priority": "dim"}


def rank(
    slide_dir: Annotated[
        Path, typer.Argument(help="folder of slides: folders of cell images, bag files", metavar="SLIDE_DIR")
    ],
    model: Annotated[Path | None, option("rank", "model")] = None,
    out: Annotated[Path | None, option("rank", "out")] = None,
    top: Annotated[int | None, option("rank", "top")] = None,
    batch_size: Annotated[int | None, option("rank", "batch_size")] = None,
    device: Annotated[str | None, option("rank", "device")] = None,
    params: ParamsFile = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Rank a folder of slides: which to read first, and which cells to look at."""
    options = given("rank", locals())
    with plain_errors():
        settings = load(options, params, profile).rank
        from cytomil.triage.rank import rank as run
        from cytomil.triage.write import to_document, write_worklist

        worklist = run(slide_dir, settings, RichListener())
        report = write_worklist(worklist, settings.out)
        rows = [
            (
                number,
                slide.slide,
                "–" if slide.probability is None else f"{slide.probability:.3f}",
                Text(slide.call.value, style=_STYLES[slide.call.value]),
                f"{slide.n_instances:,}",
                slide.look_at,
            )
            for number, slide in enumerate(worklist.slides, start=1)
        ]
        columns = ("#", "slide", "prob.", "call", "cells", "look at")
        print_table(f"worklist of {slide_dir}", columns, rows, right=("#", "prob.", "cells"))
        console.print(f"report: {report}", soft_wrap=True)
        console.print("Decision support, not a diagnosis.", style="bold")
        if worklist.model_card["synthetic"]:
            console.print("The model was trained on synthetic cells: it says nothing about patients.", style="bold")
        if worklist.model_card["collapsed"]:
            print_warning("COLLAPSED", "The encoder under this model collapsed: this order cannot be trusted.")
        problems = [
            Problem(s.slide, s.reason or f"{s.n_unreadable} cells could not be read")
            for s in worklist.slides
            if s.reason or s.n_unreadable
        ]
    finish(to_document(worklist), problems, as_json)
