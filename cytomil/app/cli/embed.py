"""cytomil embed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cytomil.app.cli.console import RichListener, console, finish, plain_errors
from cytomil.app.cli.options import AcceptLeftOut, AsJson, ParamsFile, Profile, given, option
from cytomil.app.settings import load
from cytomil.encoders.engines.config import EngineName
from cytomil.features.config import Split
from cytomil.layer import known_layer
from cytomil.locks import output_folder


def embed(
    bags: Annotated[Path | None, option("embed", "bags")] = None,
    encoder: Annotated[Path | None, option("embed", "encoder")] = None,
    out: Annotated[Path | None, option("embed", "out")] = None,
    layer: Annotated[str | None, option("embed", "layer", check=known_layer)] = None,
    split: Annotated[Split | None, option("embed", "split")] = None,
    orientations: Annotated[int | None, option("embed", "orientations")] = None,
    batch_size: Annotated[int | None, option("embed", "batch_size")] = None,
    dtype: Annotated[str | None, option("embed", "dtype")] = None,
    workers: Annotated[int | None, option("embed", "workers")] = None,
    engine: Annotated[EngineName | None, option("embed", "engine")] = None,
    device: Annotated[str | None, option("embed", "device")] = None,
    ray_address: Annotated[str | None, option("embed", "ray_address")] = None,
    params: ParamsFile = None,
    profile: Profile = None,
    accept_left_out: AcceptLeftOut = False,
    as_json: AsJson = False,
) -> None:
    """Turn the bags' cells into embeddings; finished bags are not done again."""
    options = given("embed", locals())
    with plain_errors(kept="Bags that were finished are kept. The same line goes on from there."):
        settings = load(options, params, profile).embed
        from cytomil.features.embed import embed as run

        listener = RichListener()
        with output_folder(settings.out, listener.note, replaced=False):
            done = run(settings, listener)
        console.print(
            f"{done.n_instances:,} cells of {done.n_new + done.n_kept} bags in {done.folder} "
            f"(layer {done.layer}, engine {done.engine}; {done.n_new} embedded now, {done.n_kept} done before)",
            soft_wrap=True,
        )
    document = {
        "folder": done.folder,
        "embedded_now": done.n_new,
        "done_before": done.n_kept,
        "cells": done.n_instances,
        "engine": done.engine,
    }
    finish(document, done.problems, as_json, accept_left_out)
