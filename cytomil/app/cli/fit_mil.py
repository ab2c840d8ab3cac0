"""cytomil fit-mil."""

from __future__ import annotations

from cytomil.app.cli.console import RichListener, finish, plain_errors, print_table, print_warning
from cytomil.app.cli.options import AsJson, Given, OwnSettings, ParamsFile, Profile, generated
from cytomil.app.settings import load
from cytomil.config import Config
from cytomil.locks import output_folder
from cytomil.mil.aggregators.registry import AGGREGATORS, find_aggregator


class FitMilCommand(OwnSettings):
    """`fit-mil`, with the aggregator's own settings in its help."""

    chosen_by = "--aggregator"

    def configuration(self, name: str) -> type[Config]:
        """See `OwnSettings`."""
        return find_aggregator(name).Config


@generated("fit_mil", checks={"aggregator": AGGREGATORS.known}, chosen_by="aggregator")
def fit_mil(
    options: Given,
    params: ParamsFile = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Fit the aggregator on the training bags and choose its thresholds on held-out training bags."""
    with plain_errors(kept="No model was written; one that stood there before is unchanged."):
        settings = load(options, params, profile).fit_mil
        from cytomil.mil.fit import fit_mil as run
        from cytomil.mil.triage_model import weaknesses

        listener = RichListener()
        with output_folder(settings.out, listener.note, replaced=True):
            model = run(settings, listener)
        held_out, thresholds = model.card.held_out, model.card.thresholds
        low, high = thresholds.decision_range
        epochs = model.card.epochs_chosen
        rows = [
            *([("epochs", str(epochs), "least log loss on held-out training bags")] if epochs else []),
            (
                "AUROC",
                f"{held_out.auroc:.2f}",
                "held-out training bags, 95 % interval {:.2f} to {:.2f}; 0.5 is chance".format(
                    *held_out.auroc_interval
                ),
            ),
            ("F1", f"{held_out.f1:.2f}", "held-out training bags, at the chosen threshold"),
            (
                "threshold",
                f"{thresholds.decision:.3f}",
                f"'review first' from here; uncertain: {low:.3f} to {high:.3f}",
            ),
            (
                "low threshold",
                f"{thresholds.low:.3f}",
                f"'low priority' below; keeps {settings.sensitivity:.0%} of positives",
            ),
        ]
        if (learnt := model.card.feedback) is not None:
            n = f"{learnt.confirmed} confirmed, {learnt.rejected} rejected"
            rows.append(("feedback", n, f"cells; {learnt.unused} verdicts not used"))
            rows.append(
                ("without it", f"{learnt.auroc_without:.2f}", "AUROC of the same fit on held-out training bags")
            )
        print_table(f"triage model in {settings.out}", ("figure", "value", "meaning"), rows)
        for weakness in weaknesses(model.card.trained_on.bags, held_out):
            print_warning(weakness.title, weakness.text)
        if model.card.uses_instance_labels:
            print_warning(
                "CEILING",
                "The encoder under this model was shown instance labels: compare with it, never rank slides with it.",
            )
        if model.card.collapsed:
            print_warning("COLLAPSED", "The encoder under this model collapsed: its ranking cannot be trusted.")
    finish({"model": settings.out, **model.card.to_json()}, (), as_json)
