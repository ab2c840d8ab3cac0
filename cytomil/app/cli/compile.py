"""cytomil compile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cytomil.app.cli.console import RichListener, console, finish, plain_errors, print_table
from cytomil.app.cli.options import AsJson, ParamsFile, Profile, given, option
from cytomil.app.settings import load
from cytomil.encoders.engines.config import CompiledEngine, Precision
from cytomil.errors import require_folder
from cytomil.layer import known_layers
from cytomil.locks import output_folder


def compile_(
    encoder: Annotated[Path | None, option("compile", "encoder")] = None,
    bags: Annotated[Path | None, option("compile", "bags")] = None,
    engine: Annotated[CompiledEngine | None, option("compile", "engine")] = None,
    precision: Annotated[Precision | None, option("compile", "precision")] = None,
    layer: Annotated[str | None, option("compile", "layer", check=known_layers)] = None,
    cells: Annotated[int | None, option("compile", "cells")] = None,
    seed: Annotated[int | None, option("compile", "seed")] = None,
    device: Annotated[str | None, option("compile", "device")] = None,
    params: ParamsFile = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Compile the encoder for this machine, so that embed and rank run faster; it is kept only if it agrees with eager."""
    options = given("compile", locals())
    with plain_errors(kept="No engine was stored."):
        settings = load(options, params, profile).compile
        from cytomil.encoders.engines.compile import compile_engine

        require_folder(settings.encoder, "cytomil pretrain")
        listener = RichListener()
        with output_folder(settings.encoder, listener.note, replaced=False):
            record = compile_engine(settings, listener)
        rows = [
            (
                name,
                f"{figures['least_cosine']:.6f}",
                f"{figures['mean_cosine']:.6f}",
                f"{figures['top_overlap']:.3f}",
            )
            for name, figures in record.agreement.items()
        ]
        n = next(iter(record.agreement.values()))["cells"]
        columns = ("layer", "least cosine", "mean cosine", "top-5 % overlap")
        print_table(f"{record.name} against eager, {n:.0f} training cells", columns, rows, right=columns[1:])
        console.print(
            f"{record.images_per_second:,.0f} images/s, eager {record.eager_images_per_second:,.0f} ({record.gain:.2f}×). "
            f"Stored in {settings.encoder / 'engines' / record.name}; embed and rank take the fastest one.",
            soft_wrap=True,
        )
    finish({"name": record.name, "gain": record.gain, **asdict(record)}, (), as_json)
