"""cytomil make-bags."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cytomil.app.cli.console import RichListener, console, finish, plain_errors, print_table, print_warning
from cytomil.app.cli.options import AcceptLeftOut, AsJson, Given, ParamsFile, Profile, generated
from cytomil.app.settings import load
from cytomil.locks import output_folder

_KEPT = (
    "The bags that stood there before are unchanged. Labelled slides that were finished are kept. The same line goes on from "
    "there."
)


@generated("make_bags", argument="source")
def make_bags(
    options: Given,
    fingerprint: Annotated[
        Path | None,
        typer.Option(
            "--fingerprint",
            help="write a hash of all that would be read to this file, and make nothing; for DVC",
            show_default="none",
        ),
    ] = None,
    params: ParamsFile = None,
    profile: Profile = None,
    accept_left_out: AcceptLeftOut = False,
    as_json: AsJson = False,
) -> None:
    """Make bags: simulated slides from class folders or synthetic cells, or one bag per labelled slide."""
    with plain_errors(kept=_KEPT):
        settings = load(options, params, profile).make_bags
        if fingerprint is not None:
            from cytomil.bags.make import write_fingerprint

            listener = RichListener()
            with output_folder(fingerprint, listener.note, replaced=True):
                inputs = write_fingerprint(fingerprint, settings, listener)
            console.print(
                f"{inputs['files']} files, {inputs['bytes']:,} bytes; {inputs['sha256'][:12]} in {fingerprint}"
            )
            finish(inputs, (), as_json)
            return
        from cytomil.bags.make import make_bags as run

        listener = RichListener()
        with output_folder(settings.out, listener.note, replaced=True):
            made = run(settings, listener)
        rates = sorted({row.witness_rate for row in made.rows if row.label and row.witness_rate is not None})
        rows = []
        for split in ("train", "test"):
            bags = [row for row in made.rows if row.split == split]
            n_positive = sum(row.label for row in bags)
            rows.append(
                (split, len(bags), n_positive, len(bags) - n_positive, f"{sum(row.n_instances for row in bags):,}")
            )
        columns = ("split", "bags", "positive", "negative", "cells")
        print_table(f"bags in {made.folder}", columns, rows, right=columns[1:])
        for rate in rates:
            console.print(f"true witness rate of the positive bags: {rate:.2%}")
        for note in made.notes:
            console.print(note, soft_wrap=True)
        if made.warnings:
            print_warning("A SPLIT IS INCOMPLETE", "\n".join(made.warnings))
    document = {
        "folder": made.folder,
        "bags": [asdict(row) for row in made.rows],
        "notes": made.notes,
        "warnings": made.warnings,
    }
    finish(document, made.problems, as_json, accept_left_out)
