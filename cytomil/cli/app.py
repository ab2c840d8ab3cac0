"""The command line: one command a verb, each in a file of its own."""

from __future__ import annotations

import typer

from cytomil import __version__
from cytomil.cli import compile as compile_command
from cytomil.cli import doctor, embed, evaluate, fit_mil, make_bags, pretrain, rank
from cytomil.threads import let_waiting_threads_sleep

app = typer.Typer(
    name="cytomil",
    epilog="An option wins over the environment (CYTOMIL_PRETRAIN__EPOCHS=20), which wins over params.yaml, which wins "
    "over the defaults shown by each command's --help. Exit status: 0 done; 1 the input is at fault; 2 wrong usage; "
    "3 done, but some slides or cells could not be used.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("make-bags")(make_bags.make_bags)
app.command("pretrain")(pretrain.pretrain)
app.command("compile")(compile_command.compile_)
app.command("embed")(embed.embed)
app.command("fit-mil")(fit_mil.fit_mil)
app.command("evaluate")(evaluate.evaluate)
app.command("rank")(rank.rank)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cytomil {__version__}")
        raise typer.Exit


@app.callback()
def cytomil(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="print the version"),
) -> None:
    """Find the diseased slide, and in it the few cells that say so, having learnt from slide labels alone."""


def main() -> None:
    """Run the command line."""
    let_waiting_threads_sleep()
    app()
