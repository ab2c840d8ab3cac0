"""cytomil evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytomil.app.cli.console import RichListener, console, finish, plain_errors, print_table, print_warning
from cytomil.app.cli.options import AcceptLeftOut, AsJson, Given, ParamsFile, Profile, generated, given_among
from cytomil.app.settings import load
from cytomil.config import note_unused
from cytomil.evaluation.config import EvaluateConfig
from cytomil.locks import output_folder
from cytomil.progress import Problem

if TYPE_CHECKING:
    from cytomil.evaluation.control import Control, CrossValidated, RedrawnMetrics
    from cytomil.evaluation.intervals import Bounds

FEW_BAGS = 30
_FOR_TABLES = ("table", "out", "against", "resamples", "seed")

_BAG_ROWS = (
    ("auroc", "AUROC", "0.5 is chance"),
    ("auprc", "AUPRC", "chance is the fraction of positive bags"),
    ("f1", "F1", "at the model's threshold"),
    ("sensitivity", "sensitivity", "positive bags called positive"),
    ("specificity", "specificity", "negative bags called negative"),
    ("brier", "Brier score", "of the probability: 0 is best, 0.25 is uninformative"),
)
_INSTANCE_ROWS = (
    ("recall_at_k", "recall at k", ""),
    ("recall_at_1pct", "recall at 1 %", "chance 0.01"),
    ("recall_at_5pct", "recall at 5 %", "chance 0.05"),
    ("recall_at_10pct", "recall at 10 %", "chance 0.10"),
    ("recall_at_40pct", "recall at 40 %", "chance 0.40"),
    ("average_precision", "average precision", "chance is the witness rate"),
    ("auroc", "AUROC", "0.5 is chance"),
    ("review_until_first", "cells to first", "cells to review until the first abnormal one"),
)


@generated("evaluate")
def evaluate(
    options: Given,
    folders: Annotated[list[str] | None, typer.Argument(help="further folders of reports, after --table")] = None,
    params: ParamsFile = None,
    profile: Profile = None,
    accept_left_out: AcceptLeftOut = False,
    as_json: AsJson = False,
) -> None:
    """Measure the triage model on the test bags: the calls of slides and the ranking of cells.

    With --table FOLDER …, measure nothing: make tables like the paper's from the reports in these folders.
    """
    table = options["evaluate"]["table"]
    if folders and not table:
        raise typer.BadParameter("folders are for tables: put --table before the first.", param_hint="FOLDERS")
    if folders:
        options["evaluate"]["table"] = ",".join([table, *folders])
    with plain_errors():
        settings = load(options, params, profile).evaluate
        listener = RichListener()
        _note_unused(options, settings, listener)
        if settings.table:
            show_tables(settings, as_json, accept_left_out)
            return
        from cytomil.evaluation.run import evaluate as run

        with output_folder(settings.out, listener.note, replaced=False):
            done = run(settings, listener)
        bag, instance = done.bag.to_dict(), done.instance.to_dict()
        columns = ("figure", "value", "meaning")
        title = f"bags ({bag['n_bags']}, {bag['n_positive']} positive)"
        print_table(title, columns, _rows(bag, _BAG_ROWS, done.intervals["bag"]))
        title = f"cells (means over {instance['n_bags']} positive bags{_labelled(done.labelled_cells)})"
        print_table(title, columns, _rows(instance, _INSTANCE_ROWS, done.intervals["instance"]))
        console.print("In brackets: 95 % intervals, by patient where patients are known.", style="dim")
        if done.labelled_cells:
            console.print(
                "Only labelled cells count: k and the percentages are of these. Cells that were labelled because the model "
                "showed them are no fair sample. Label all cells of a field, or cells drawn at random.",
                style="dim",
            )
        if bag["n_bags"] < FEW_BAGS:
            print_warning("FEW TEST BAGS", f"{bag['n_bags']} bags say little: trust no figure beyond its interval.")
        if done.redrawn:
            _show_redrawn(done.redrawn)
        if done.control:
            _show_control(done.control)
        console.print(f"metrics.json, predictions.csv and plots in {settings.out}")
        if done.uses_instance_labels:
            print_warning(
                "CEILING",
                "The encoder under this model was shown instance labels: these figures are the ceiling, not a rival of "
                "methods that learn from slide labels.",
            )
        if done.collapsed:
            print_warning(
                "COLLAPSED", "The encoder under this model collapsed: these figures say nothing of the method."
            )
    found = {
        "bag": bag,
        "instance": instance,
        "intervals": done.intervals,
        "collapsed": done.collapsed,
        "uses_instance_labels": done.uses_instance_labels,
    }
    if done.labelled_cells:
        found["labelled_cells"] = done.labelled_cells
    if done.redrawn:
        found["redrawn"] = done.redrawn.to_dict()
    if done.control:
        found["control"] = done.control.to_dict()
    finish(found, done.problems, as_json, accept_left_out)


def _note_unused(options: Given, settings: EvaluateConfig, listener: RichListener) -> None:
    if settings.table:
        names, where = [name for name in EvaluateConfig.model_fields if name not in _FOR_TABLES], "with --table"
    else:
        names, where = ["against", "resamples", *([] if settings.redraw else ["seed"])], "without --table"
    note_unused(given_among(options, "evaluate", names), where, listener.note)


def _labelled(counts: dict[str, Any] | None) -> str:
    return f"; {counts['n']:,} labelled cells, {counts['n_abnormal']:,} of them abnormal" if counts else ""


def _show_redrawn(redrawn: RedrawnMetrics) -> None:
    rows = [
        *_rows(redrawn.bag.to_dict(), _BAG_ROWS),
        (
            "best F1",
            f"{redrawn.best_f1:.3f}",
            f"at the threshold these bags would choose, {redrawn.best_threshold:.3f}",
        ),
    ]
    drawn = (
        f"{redrawn.bag.n_bags} bags redrawn from {redrawn.n_normal:,} normal and {redrawn.n_abnormal:,} abnormal cells"
    )
    print_table(drawn, ("figure", "value", "meaning"), rows)
    console.print(
        f"{redrawn.bag_size} cells a bag, {redrawn.n_witnesses} of them abnormal in a positive one. The same cells come again "
        "and again: it is no sample of new slides.",
        style="dim",
    )


def _show_control(control: Control) -> None:
    permuted = len(control.aurocs)
    if permuted:
        reached = sum(auroc >= control.real.auroc for auroc in control.aurocs)
        name = f"labels permuted {permuted} times"
        says = f"0.5 expected; {reached} of {permuted} reach the bags' own"
    else:
        name, says = "without their witnesses", f"0.5 expected; {control.n_removed:,} abnormal cells removed"
    real, again = control.real, control.control
    rows = [("as they are", _interval(real), "0.5 is chance"), (name, _interval(again), says)]
    bags = f"{real.n_bags} bags of {real.n_positive_patients} positive and {real.n_negative_patients} negative patients"
    print_table(f"control ({bags}, cross-validated)", ("bags", "AUROC", "meaning"), rows)
    if control.differs:
        kept = "with labels that say nothing of them" if permuted else "with no witness in any bag"
        print_warning(
            "CONTROL FAR FROM 0.5",
            f"Slides of the two labels differ by something other than the witnesses: {kept} they are told apart, AUROC "
            f"{_interval(again)}. It may be stain, focus, scanner, site or day. Figures of bags here do not say that disease "
            "is found. Take negatives and positives from the same site, days and kind of patient.",
        )


def _interval(figure: CrossValidated) -> str:
    return f"{figure.auroc:.2f} [{figure.interval[0]:.2f}, {figure.interval[1]:.2f}]"


def show_tables(settings: EvaluateConfig, as_json: bool, accept_left_out: bool) -> None:
    """Print the main table of the runs in ``settings.table``, and write all tables and figures."""
    from cytomil.experiments.write_tables import write_tables

    with output_folder(settings.out, RichListener().note, replaced=False):
        runs, table, blocks, folder = write_tables(settings)
    for block in blocks:
        if block.is_main:
            rows = [["\n".join(place) for place in row] for row in block.rows]
            print_table(block.title, block.columns, rows)
            for note in block.notes:
                console.print(note, style="dim")
            console.print()
    if settings.against and table.against is None:
        console.print(f"no run is called '{settings.against}', so nothing is compared; name one with --against.")
    console.print(f"table.md, table.tex, table.csv with every figure, and curves as PNG and SVG, in {folder}")
    problems = [
        Problem(f"{cell.name}, {cell.witness_rate:.2%}, seed {cell.seed}", reason)
        for cell, reason in sorted(runs.failed.items())
    ]
    finish({"folder": folder, "runs": len(runs.done), "failed": len(runs.failed)}, problems, as_json, accept_left_out)


def _rows(
    figures: dict[str, Any], wanted: tuple[tuple[str, str, str], ...], intervals: Bounds | None = None
) -> list[tuple[str, str, str]]:
    rows = []
    for key, name, meaning in wanted:
        value = figures[key]
        if value is None:
            rows.append((name, "–", figures["undefined"].get(key, "undefined")))
            continue
        shown = (
            f"{value:.1f}" if key == "review_until_first" else f"{value:.3f}" if intervals is None else f"{value:.2f}"
        )
        if bounds := (intervals or {}).get(key):
            shown += f" [{bounds['low']:.2f}, {bounds['high']:.2f}]"
        k = f"k = {figures['k']} cells" if figures.get("k") else "k = 40 % of the bag; chance 0.40"
        rows.append((name, shown, k if key == "recall_at_k" else meaning))
    return rows
