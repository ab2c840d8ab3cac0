"""cytomil compare."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytomil.app.cli.console import RichListener, plain_errors
from cytomil.app.cli.evaluate import show_tables
from cytomil.app.cli.options import AcceptLeftOut, AsJson, ParamsFile, Profile
from cytomil.app.settings import Settings, load
from cytomil.locks import output_folder
from cytomil.mil.aggregators.registry import AGGREGATORS
from cytomil.registry import METHODS, Registry

if TYPE_CHECKING:
    from cytomil.experiments.planned import Stages

_RECORDS, _WORK = "runs", "work"


def compare(
    methods: Annotated[str, typer.Option(help="pretraining methods, comma-separated", show_default=False)],
    seeds: Annotated[int, typer.Option(help="number of seeds: 0, 1, 2, …", min=1, max=1000)] = 3,
    aggregators: Annotated[
        str,
        typer.Option(
            help="aggregators that evaluate each encoder, comma-separated: the first one, and the best of the others; "
            "'own': that of the settings"
        ),
    ] = "own",
    bags: Annotated[
        Path | None, typer.Option(help="folder of bags", show_default="pretrain.bags in the settings, or data/bags")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for runs, table and pictures")] = Path("comparison"),
    against: Annotated[
        str | None, typer.Option(help="method with which all others are compared", show_default="simclr, or the first")
    ] = None,
    params: ParamsFile = None,
    profile: Profile = None,
    accept_left_out: AcceptLeftOut = False,
    as_json: AsJson = False,
) -> None:
    """Compare pretraining methods over several seeds on the same bags, with a table and pictures at the end.

    Each method and seed is one run: pretrain, embed, fit-mil and evaluate, with the settings file's settings. Finished runs
    are not repeated.
    """
    rows = _names(methods, "--methods", METHODS)
    judges = _names(aggregators, "--aggregators", AGGREGATORS, "own")
    with plain_errors(kept="Finished runs are kept. Run the same command again to continue."):
        settings = load({}, params, profile)
        from cytomil.bags.manifest import read_manifest, witness_rate_of
        from cytomil.experiments.planned import PlannedRun, run_all
        from cytomil.experiments.runs import Cell

        source = bags or settings.pretrain.bags
        rate = witness_rate_of(read_manifest(source))
        planned = [
            PlannedRun(
                Cell(name, -1.0 if rate is None else round(rate, 6), seed),
                source,
                out / _RECORDS / f"{seed}-{name}.json",
                partial(_stages, name, seed, judges, source, out / _WORK / f"{seed}-{name}", params, profile),
            )
            for seed, name in product(range(seeds), rows)
        ]
        listener = RichListener()
        with output_folder(out, listener.note, replaced=False):
            run_all(planned, listener)
            other = against or _usual(rows, settings)
            table = {"table": (str(out / _RECORDS),), "out": out, "against": other}
            show_tables(settings.evaluate.model_copy(update=table), as_json, accept_left_out)


def _names(text: str, option: str, known: Registry, *more: str) -> tuple[str, ...]:
    """The names in ``text``, each once. Raises `typer.BadParameter` for an unknown one, or for none."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise typer.BadParameter("name at least one.", param_hint=option)
    for name in names:
        try:
            if name not in more:
                known.known(name)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from None
    return names


def _usual(methods: Sequence[str], settings: Settings) -> str:
    """The row that others are compared with: that of the settings where it is among ``methods``, else the first."""
    usual = settings.evaluate.against
    return usual if usual and usual in methods else methods[0]


def _stages(
    method: str,
    seed: int,
    aggregators: tuple[str, ...],
    bags: Path,
    work: Path,
    params: Path | None,
    profile: str | None,
) -> Stages:
    """The configurations of one run, whose outputs lie in ``work``."""
    from cytomil.experiments.planned import Stages

    encoder, features, model = work / "encoder", work / "features", work / "model"
    options: dict[str, dict[str, Any]] = {
        "pretrain": {"method": method, "seed": seed, "bags": bags, "out": encoder},
        "embed": {"bags": bags, "encoder": encoder, "out": features},
        "fit_mil": {"features": features, "encoder": encoder, "out": model, "seed": seed},
        "evaluate": {"features": features, "model": model, "bags": bags, "name": method},
    }
    settings = load(options, params, profile)
    return Stages(settings.pretrain, settings.embed, settings.fit_mil, settings.evaluate, aggregators)
