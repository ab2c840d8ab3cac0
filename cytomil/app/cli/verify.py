"""cytomil verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cytomil.app.cli.console import SOME_LEFT_OUT, RichListener, console, plain_errors
from cytomil.app.cli.options import AsJson
from cytomil.text import printable


def verify(
    folder: Annotated[
        Path,
        typer.Argument(
            help="folder of bags, features, encoder, triage model, reports, worklist or validation, or above"
        ),
    ] = Path(),
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file: triage models must be signed with its private key")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="private key, PEM file: sign the triage model FOLDER if nothing is found")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check files against their checksums, features against encoder and bags, and that no test bag was trained on."""
    with plain_errors():
        from cytomil.errors import TriageModelError
        from cytomil.file_manifest import sign_folder
        from cytomil.mil.triage_model import WEIGHTS_NAME
        from cytomil.verification import verify as run

        if sign is not None and not (folder / WEIGHTS_NAME).is_file():
            raise TriageModelError(f"{folder} is no triage model. Name the folder that `cytomil fit-mil` wrote.")
        found = run(folder, RichListener(), public_key)
        if sign is not None and not found.findings:
            sign_folder(folder, sign)
            console.print(f"{folder} is signed.", soft_wrap=True)
    if as_json:
        listed = [{"file": one.where, "what": one.reason} for one in found.findings]
        typer.echo(json.dumps({"n_files": found.n_files, "findings": listed}, indent=2))
    else:
        for one in found.findings:
            typer.echo(printable(f"{one.where}: {one.reason}"))
        if not found.findings:
            typer.echo(f"{found.n_files} files verified")
    if found.findings:
        raise typer.Exit(SOME_LEFT_OUT)
