"""cytomil feedback."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytomil.app.cli.console import RichListener, console, finish, plain_errors, print_table
from cytomil.app.cli.options import AsJson
from cytomil.errors import ReviewError
from cytomil.locks import output_folder
from cytomil.progress import Problem

if TYPE_CHECKING:
    from cytomil.review.slides import Triage
    from cytomil.review.summary import CellsVerdict


def feedback(
    triage: Annotated[
        Path, typer.Argument(help="folder that `cytomil rank` wrote and `cytomil review` added to")
    ] = Path("triage"),
    out: Annotated[Path, typer.Option(help="CSV for `fit-mil --feedback`")] = Path("feedback.csv"),
    geojson: Annotated[
        list[Path] | None,
        typer.Option(
            help="GeoJSON file of a slide that came back from QuPath with classes; may be given several times"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Summarise a review: precision at the top, agreement, time; write the verdicts that fit-mil can use."""
    with plain_errors(), output_folder(out, RichListener().note, replaced=True):
        from cytomil.files import write_bytes
        from cytomil.review.log import NAME, ReviewLog, of_other_versions, of_these_versions
        from cytomil.review.slides import Triage
        from cytomil.review.summary import agreements, summarise, verdicts
        from cytomil.tables import csv_text
        from cytomil.text import ENCODING

        shown, log = Triage(triage), ReviewLog(triage)
        entries = of_these_versions(log.entries(), shown.sha256_of)
        problems = [Problem(NAME, fault) for fault in log.faults()]
        earlier = [
            one for one in summarise(of_other_versions(log.entries(), shown.sha256_of)) if one.judged or one.verdict
        ]
        problems += [
            Problem(
                one.slide, f"what {one.reader} said of another version of its file does not count (cells: {one.judged})"
            )
            for one in earlier
        ]
        found = verdicts(entries)
        for path in geojson or ():
            found = _with_classes(found, path, shown, problems)
        if not found:
            which = " of the present version" if earlier else ""
            raise ReviewError(
                f"{triage} has no verdicts on cells{which} yet. Review it first: `cytomil review {triage}`."
            )
        summaries, agreed = summarise(entries), agreements(entries)
        rows = [
            (
                one.slide,
                one.reader,
                one.judged,
                f"{one.key_abnormal} of {one.key_judged}",
                f"{one.judged / one.abnormal:.1f}" if one.abnormal else "–",
                f"{one.minutes:.1f}",
                one.verdict,
            )
            for one in summaries
            if one.judged or one.verdict
        ]
        columns = ("slide", "reader", "cells", "abnormal key cells", "cells per find", "minutes", "verdict")
        print_table(f"review of {triage}", columns, rows, right=("cells", "cells per find", "minutes"))
        for pair in agreed:
            kappa = "not defined: one verdict throughout" if pair.kappa is None else f"{pair.kappa:.2f}"
            console.print(f"{' and '.join(pair.readers)}: {pair.n} cells judged by both, Cohen's kappa {kappa}")
        usable = [one for one in found if one.verdict is not None]
        lines = [{"slide": one.slide, "instance_id": one.cell, "verdict": one.verdict} for one in usable]
        names = ("slide", "instance_id")
        write_bytes(out, csv_text((*names, "verdict"), lines, names).encode(ENCODING))
        left = (
            f"; {len(found) - len(usable)} unsure or contradictory ones are left out"
            if len(found) > len(usable)
            else ""
        )
        console.print(
            f"{out}: {len(usable)} verdicts{left}. Use them: `cytomil fit-mil --feedback {out}`", soft_wrap=True
        )
    document = {
        "feedback": out,
        "verdicts": len(usable),
        "left_out": len(found) - len(usable),
        "slides": [asdict(one) for one in summaries],
        "agreement": [asdict(one) for one in agreed],
    }
    finish(document, problems, as_json)


def _with_classes(found: list[CellsVerdict], path: Path, triage: Triage, problems: list[Problem]) -> list[CellsVerdict]:
    """The verdicts, and those of a GeoJSON file, named as its slide is. Both must agree, or neither is used."""
    from cytomil.files import safe_name
    from cytomil.review.summary import CellsVerdict, read_classes

    fitting = [
        i for i, one in enumerate(triage.slides) if path.stem in (safe_name(one.slide), one.slide, Path(one.slide).stem)
    ]
    if len(fitting) != 1:
        raise ReviewError(
            f"{path} must be named as one slide of the worklist is, such as {triage.slides[0].slide}.geojson."
        )
    (number,) = fitting
    slide = triage.slides[number].slide
    returned = read_classes(path, triage.shown(number).cells)
    if returned.unknown:
        problems.append(Problem(path.name, f"{returned.unknown} classified objects are none of the slide's cells"))
    for name, n in returned.other_classes.items():
        problems.append(Problem(path.name, f"class '{name}' of {n} objects is no verdict"))
    merged = {(one.slide, one.cell): one for one in found}
    for cell, verdict in returned.verdicts.items():
        before = merged.get((slide, cell))
        one = verdict if before is None or before.verdict == verdict else None
        merged[slide, cell] = CellsVerdict(slide, cell, one if verdict != "unsure" else None)
    return list(merged.values())
