"""cytomil embed."""

from __future__ import annotations

from cytomil.app.cli.console import RichListener, console, finish, plain_errors
from cytomil.app.cli.options import AcceptLeftOut, AsJson, Given, ParamsFile, Profile, generated
from cytomil.app.settings import load
from cytomil.encoders.engines.registry import known_engine
from cytomil.layer import known_layer
from cytomil.locks import output_folder


@generated("embed", checks={"engine": known_engine, "layer": known_layer})
def embed(
    options: Given,
    params: ParamsFile = None,
    profile: Profile = None,
    accept_left_out: AcceptLeftOut = False,
    as_json: AsJson = False,
) -> None:
    """Compute the embeddings of all cells. Finished bags are skipped."""
    with plain_errors(kept="Bags that were finished are kept. Run the same command again to continue."):
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
