"""The command line: one command per verb, each in its own file."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

import typer

from cytomil import __version__
from cytomil.app.cli import (
    compare,
    doctor,
    embed,
    evaluate,
    feedback,
    fit_mil,
    init,
    make_bags,
    pretrain,
    rank,
    review,
    validate,
    verify,
)
from cytomil.app.cli import compile as compile_command
from cytomil.app.cli.console import console
from cytomil.app.cli.options import EngineCommand
from cytomil.errors import DEBUG
from cytomil.threads import let_waiting_threads_sleep

INTERNAL_FAULT = 70  # EX_SOFTWARE of sysexits.h

app = typer.Typer(
    name="cytomil",
    epilog="An option takes precedence over the environment (CYTOMIL_PRETRAIN__EPOCHS=20), then params.yaml, then the "
    "default that the command's --help shows. Exit status: 0 done; 1 the input is at fault; 2 wrong usage; 3 done, but "
    "some slides, cells or runs could not be used, or verify found a fault; 70 a fault of cytomil itself.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("make-bags")(make_bags.make_bags)
_OTHER_FLAGS = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command("pretrain", cls=pretrain.PretrainCommand, context_settings=_OTHER_FLAGS)(pretrain.pretrain)
app.command("compile", cls=compile_command.CompileCommand, context_settings=_OTHER_FLAGS)(compile_command.compile_)
app.command("embed", cls=EngineCommand)(embed.embed)
app.command("fit-mil", cls=fit_mil.FitMilCommand, context_settings=_OTHER_FLAGS)(fit_mil.fit_mil)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("rank", cls=EngineCommand)(rank.rank)
app.command("review")(review.review)
app.command("feedback")(feedback.feedback)
app.command("validate")(validate.validate)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
app.command("init")(init.init)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cytomil {__version__}")
        raise typer.Exit


@app.callback()
def cytomil(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="print the version"),
) -> None:
    """Find the diseased slide and its abnormal cells, learning from slide labels only."""


def main() -> None:
    """Run the command line. A fault of cytomil itself gives one line and a separate exit status."""
    let_waiting_threads_sleep()
    is_debugging = bool(os.environ.get(DEBUG))
    if not is_debugging:
        _silence_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except MemoryError:
        console.print("error: there is not enough memory for this. Close other programs, or use a larger machine.")
        sys.exit(1)
    except Exception as error:
        if is_debugging:
            raise
        console.print(f"internal error: {_told(error)}", soft_wrap=True)
        console.print(
            f"This is a fault of cytomil, not of your input. Please report this line with `cytomil --version` and the "
            f"command to whoever gave you cytomil; {DEBUG}=1 before the command shows more.",
            soft_wrap=True,
        )
        sys.exit(INTERNAL_FAULT)


def _told(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(place.filename).name}, line {place.lineno})"


def _silence_libraries() -> None:
    """Keep libraries' warnings, which a user can do nothing about, off the screen; other processes inherit it."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
