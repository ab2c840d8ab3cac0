"""Figures of a set of runs: each method by witness rate, as the paper's Fig. 1, and by share of cells reviewed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cytomil.evaluate.blocks import CEILING, said_rate, title_of
from cytomil.evaluate.plots import DASHED, GREY, new_figure, style
from cytomil.evaluate.table import Entry, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, then the same with other marks and dashes: never colour alone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_WIDTH_INCHES = 9.0
_SHOWN = (("f1", "bag F1"), ("recall_at_40pct", "Recall@40 %"), ("recall_at_5pct", "Recall@5 %"))
_PERCENTS = tuple(n / 100 for n in range(1, 101))
_POINTS_A_MARK = 5
_CHANCE = {"recall_at_40pct": 0.40, "recall_at_5pct": 0.05}


def plot_by_rate(table: Table, judge: str) -> Figure:
    """Draw bag F1 and Recall@40 % and @5 % of every method by witness rate, means over seeds.

    The bars are the tables' bootstrap intervals, over seeds, and patients or bags. A hollow mark is a mean over runs of
    which at least one collapsed.
    """
    figure = new_figure(4.8, _WIDTH_INCHES)
    places = range(len(table.rates))
    for number, (key, title) in enumerate(_SHOWN, start=1):
        axes = figure.add_subplot(1, len(_SHOWN), number)
        for row, name in enumerate(table.names):
            _draw_row(axes, table, judge, name, key, _shift(row, len(table.names)))
        if key in _CHANCE:
            axes.axhline(_CHANCE[key], color=GREY, linewidth=1.2, linestyle=DASHED, zorder=1)
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(table.rates) - 0.5))
        axes.set_xticks(list(places), [said_rate(rate) for rate in table.rates])
        axes.set_xlabel("witness rate", fontsize=10)
        axes.set_title(title, fontsize=11, loc="left")
        style(axes, tick_size=9)
    _explain(figure, table, judge)
    return figure


def plot_by_share(table: Table, judge: str) -> Figure:
    """Draw the share of witnesses found against the share of cells reviewed, one panel a witness rate, means over seeds.

    Marks are hollow on a mean over runs of which at least one collapsed.
    """
    figure = new_figure(4.8, _WIDTH_INCHES)
    for number, rate in enumerate(table.rates, start=1):
        axes = figure.add_subplot(1, max(2, len(table.rates)), number)
        axes.plot(_PERCENTS, _PERCENTS, color=GREY, linewidth=1.2, linestyle=DASHED)
        for row, name in enumerate(table.names):
            _draw_curve(axes, table.at(judge, name, rate), row, title_of(table, name))
        axes.set_xscale("log")
        axes.set(xlim=(0.01, 1), ylim=(0, 1.02))
        axes.set_xticks([0.01, 0.05, 0.1, 0.4, 1], ["1 %", "5", "10", "40", "100"])
        axes.minorticks_off()
        axes.set_xlabel("cells reviewed", fontsize=10)
        axes.set_title(f"witness rate {said_rate(rate)}", fontsize=11, loc="left")
        style(axes, tick_size=9)
    figure.axes[0].set_ylabel("witnesses found", fontsize=10)
    _explain(figure, table, judge)
    return figure


def _draw_curve(axes: Axes, entry: Entry, row: int, title: str) -> None:
    colour, mark, line = _look(row)
    shares, found = list(entry.recall_by_share), list(entry.recall_by_share.values())
    # Few marks, and rows' at different shares, or curves that lie close would be a band of them.
    marks: dict[str, Any] = {"marker": mark, "markersize": 5, "markevery": (row % _POINTS_A_MARK, _POINTS_A_MARK)}
    axes.plot(shares, found, color=colour, linestyle=line, linewidth=1.6, label=title, **marks)
    if entry.n_collapsed:
        axes.plot(shares, found, linestyle="none", zorder=3, **marks, **_hollow(colour))


def _draw_row(axes: Axes, table: Table, judge: str, name: str, key: str, shift: float) -> None:
    row = table.names.index(name)
    colour, mark, line = _look(row)
    entries = [table.at(judge, name, rate) for rate in table.rates]
    points = [(i + shift, entry, entry.estimates[key]) for i, entry in enumerate(entries) if key in entry.estimates]
    known = [(x, entry, e, e.mean) for x, entry, e in points if e.mean is not None]
    axes.plot(
        [x for x, *_ in known],
        [mean for *_, mean in known],
        color=colour,
        linestyle=line,
        linewidth=1.4,
        marker=mark,
        markersize=5,
        label=title_of(table, name),
    )
    for x, entry, estimate, mean in known:
        if estimate.low is not None and estimate.high is not None:
            axes.vlines(x, estimate.low, estimate.high, color=colour, linewidth=0.8, alpha=0.6)
        if entry.n_collapsed:
            axes.plot([x], [mean], marker=mark, markersize=5, zorder=3, **_hollow(colour))


def _explain(figure: Figure, table: Table, judge: str) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    ceiling = f"; {CEILING} trained on instance labels" if table.ceilings else ""
    caption = f"{_seeds(table, judge)}, judged by {judge}; dashed: random order; hollow: an encoder collapsed{ceiling}"
    figure.suptitle(caption, fontsize=10, x=0.01, ha="left", color=GREY)


def _seeds(table: Table, judge: str) -> str:
    """How many seeds the means are over, where runs are still missing from the fewest to the most."""
    measured = [table.at(judge, name, rate).n_done for name in table.names for rate in table.rates]
    wanted, fewest, most = len(table.seeds), min(measured), max(measured)
    if fewest == wanted:
        return f"{wanted} seeds"
    return f"{most if fewest == most else f'{fewest} to {most}'} of {wanted} seeds"


def _hollow(colour: str) -> dict[str, Any]:
    return {"markerfacecolor": "white", "markeredgecolor": colour}


def _look(row: int) -> tuple[str, str, object]:
    return _COLOURS[row % len(_COLOURS)], _MARKS[row % len(_MARKS)], _STYLES[row // len(_COLOURS) % len(_STYLES)]


def _shift(row: int, n_rows: int) -> float:
    """Rows side by side at a witness rate, so that their intervals do not cover each other."""
    return 0.5 * (row / max(1, n_rows - 1) - 0.5)
