"""cytomil fit-mil."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cytomil.app.cli.console import RichListener, finish, plain_errors, print_table, print_warning
from cytomil.app.cli.options import AsJson, ParamsFile, Profile, given, option
from cytomil.app.settings import load
from cytomil.errors import SettingsError
from cytomil.locks import output_folder
from cytomil.mil.config import InstanceScore, Prototypes


def _known_aggregator(name: str) -> str:
    """``name``, if an aggregator has it. Raises `ValueError` naming those there are."""
    from cytomil.mil.aggregators.registry import find_aggregator

    try:
        find_aggregator(name)
    except SettingsError as error:
        raise ValueError(str(error)) from None
    return name


def fit_mil(
    features: Annotated[Path | None, option("fit_mil", "features")] = None,
    encoder: Annotated[Path | None, option("fit_mil", "encoder")] = None,
    out: Annotated[Path | None, option("fit_mil", "out")] = None,
    aggregator: Annotated[str | None, option("fit_mil", "aggregator", check=_known_aggregator)] = None,
    n_prototypes: Annotated[int | None, option("fit_mil", "n_prototypes")] = None,
    prototypes: Annotated[Prototypes | None, option("fit_mil", "prototypes")] = None,
    prototype_branch: Annotated[bool | None, option("fit_mil", "prototype_branch")] = None,
    instance_branch: Annotated[bool | None, option("fit_mil", "instance_branch")] = None,
    epochs: Annotated[int | None, option("fit_mil", "epochs")] = None,
    learning_rate: Annotated[float | None, option("fit_mil", "learning_rate")] = None,
    weight_decay: Annotated[float | None, option("fit_mil", "weight_decay")] = None,
    cluster_weight: Annotated[float | None, option("fit_mil", "cluster_weight")] = None,
    top_share: Annotated[float | None, option("fit_mil", "top_share")] = None,
    cells_per_bag: Annotated[int | None, option("fit_mil", "cells_per_bag")] = None,
    folds: Annotated[int | None, option("fit_mil", "folds")] = None,
    ensemble: Annotated[int | None, option("fit_mil", "ensemble")] = None,
    instance_score: Annotated[InstanceScore | None, option("fit_mil", "instance_score")] = None,
    sensitivity: Annotated[float | None, option("fit_mil", "sensitivity")] = None,
    precision: Annotated[str | None, option("fit_mil", "precision")] = None,
    workers: Annotated[int | None, option("fit_mil", "workers")] = None,
    seed: Annotated[int | None, option("fit_mil", "seed")] = None,
    params: ParamsFile = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Fit the aggregator on the training bags and choose its thresholds by held-out ones among them."""
    options = given("fit_mil", locals())
    with plain_errors(kept="No model was written; one that stood there before is unchanged."):
        settings = load(options, params, profile).fit_mil
        from cytomil.mil.fit import fit_mil as run
        from cytomil.mil.weakness import weaknesses

        listener = RichListener()
        with output_folder(settings.out, listener.note, replaced=True):
            model = run(settings, listener)
        held_out, thresholds = model.card["held_out"], model.card["thresholds"]
        low, high = thresholds["decision_range"]
        epochs = model.card["epochs_chosen"]
        rows = [
            *([("epochs", str(epochs), "least log loss on held-out training bags")] if epochs else []),
            (
                "AUROC",
                f"{held_out['auroc']:.2f}",
                "held-out training bags, 95 % interval {:.2f} to {:.2f}; 0.5 is chance".format(
                    *held_out["auroc_interval"]
                ),
            ),
            ("F1", f"{held_out['f1']:.2f}", "held-out training bags, at the chosen threshold"),
            (
                "threshold",
                f"{thresholds['decision']:.3f}",
                f"'review first' from here; uncertain: {low:.3f} to {high:.3f}",
            ),
            (
                "low threshold",
                f"{thresholds['low']:.3f}",
                f"'low priority' below; keeps {settings.sensitivity:.0%} of positives",
            ),
        ]
        print_table(f"triage model in {settings.out}", ("figure", "value", "what it says"), rows)
        for weakness in weaknesses(model.card):
            print_warning(weakness.title, weakness.text)
        if model.card["uses_instance_labels"]:
            print_warning(
                "CEILING",
                "The encoder under this model was shown instance labels: compare with it, never rank slides with it.",
            )
        if model.card["collapsed"]:
            print_warning("COLLAPSED", "The encoder under this model collapsed: its ranking cannot be trusted.")
    finish({"model": settings.out, **model.card}, (), as_json)
