"""evaluate --table: tables as Markdown, LaTeX and CSV, figures as PNG and SVG. The same runs give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytomil.evaluation.config import EvaluateConfig
from cytomil.evaluation.plots import DASHED, GREY, new_figure, save_png, save_svg, style
from cytomil.experiments.blocks import CEILING, Block, format_rate, make_blocks, title_of
from cytomil.experiments.bootstrap import METRICS, Estimate
from cytomil.experiments.runs import Runs, read_runs
from cytomil.experiments.tables import Entry, Table, make_table, published
from cytomil.files import write_text
from cytomil.tables import csv_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours. Marks and dashes differ too, so that rows are never distinguished by colour alone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
_WIDTH_INCHES = 9.0
_SHOWN = (("f1", "bag F1"), ("recall_at_40pct", "Recall@40 %"), ("recall_at_5pct", "Recall@5 %"))
_PERCENTS = tuple(n / 100 for n in range(1, 101))
_POINTS_PER_MARK = 5
_CHANCE = {"recall_at_40pct": 0.40, "recall_at_5pct": 0.05}


def plot_by_rate(table: Table, judge: str) -> Figure:
    """Draw bag F1, Recall@40 % and Recall@5 % of every method by witness rate, as means over seeds.

    The bars are the bootstrap intervals of the tables, over seeds and patients or bags. A mark is hollow if at least one
    run collapsed.
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
        axes.set_xticks(list(places), [format_rate(rate) for rate in table.rates])
        axes.set_xlabel("witness rate", fontsize=10)
        axes.set_title(title, fontsize=11, loc="left")
        style(axes, tick_size=9)
    _explain(figure, table, judge)
    return figure


def plot_by_fraction(table: Table, judge: str) -> Figure:
    """Draw the fraction of witnesses found by the fraction of cells reviewed, as means over seeds.

    There is one panel per witness rate. Marks are hollow if at least one run collapsed.
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
        axes.set_title(f"witness rate {format_rate(rate)}", fontsize=11, loc="left")
        style(axes, tick_size=9)
    figure.axes[0].set_ylabel("witnesses found", fontsize=10)
    _explain(figure, table, judge)
    return figure


def _draw_curve(axes: Axes, entry: Entry, row: int, title: str) -> None:
    colour, mark, line = _line_style(row)
    fractions, found = list(entry.recall_by_fraction), list(entry.recall_by_fraction.values())
    # Few marks, at different fractions per row. Otherwise the marks of close curves would form a band.
    marks: dict[str, Any] = {"marker": mark, "markersize": 5, "markevery": (row % _POINTS_PER_MARK, _POINTS_PER_MARK)}
    axes.plot(fractions, found, color=colour, linestyle=line, linewidth=1.6, label=title, **marks)
    if entry.n_collapsed:
        axes.plot(fractions, found, linestyle="none", zorder=3, **marks, **_hollow(colour))


def _draw_row(axes: Axes, table: Table, judge: str, name: str, key: str, shift: float) -> None:
    row = table.names.index(name)
    colour, mark, line = _line_style(row)
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
    """The number of seeds of the means; the min and max number if runs are missing."""
    measured = [table.at(judge, name, rate).n_done for name in table.names for rate in table.rates]
    wanted, low, high = len(table.seeds), min(measured), max(measured)
    if low == wanted:
        return f"{wanted} seeds"
    return f"{high if low == high else f'{low} to {high}'} of {wanted} seeds"


def _hollow(colour: str) -> dict[str, Any]:
    return {"markerfacecolor": "white", "markeredgecolor": colour}


def _line_style(row: int) -> tuple[str, str, object]:
    return _COLOURS[row % len(_COLOURS)], _MARKS[row % len(_MARKS)], _STYLES[row // len(_COLOURS) % len(_STYLES)]


def _shift(row: int, n_rows: int) -> float:
    """Horizontal offset of a row at a witness rate, so that intervals do not overlap."""
    return 0.5 * (row / max(1, n_rows - 1) - 0.5)


FOLDER = "table"
_COLUMNS = (
    "judge",
    "method",
    "uses_instance_labels",
    "witness_rate",
    "figure",
    "state",
    "n_runs",
    "n_failed",
    "n_collapsed",
    "effective_rank",
    "mean",
    "sd",
    "low",
    "high",
    "against",
    "difference",
    "difference_sd",
    "difference_low",
    "difference_high",
    "paper_mean",
    "paper_sd",
    "aggregators",
)


def write_tables(settings: EvaluateConfig) -> tuple[Runs, Table, tuple[Block, ...], Path]:
    """Read the runs of ``settings.table`` and write their tables and figures.

    Returns:
        The runs, the table, its blocks, and the folder of the files.

    Raises:
        NotFoundError, EvaluationError: see `read_runs`.
    """
    runs = read_runs([Path(folder) for folder in settings.table])
    table = make_table(runs, settings.against, settings.resamples, settings.seed)
    blocks = make_blocks(table)
    out = settings.out / FOLDER
    write_text(out / "table.md", markdown(blocks))
    write_text(out / "table.tex", latex(blocks))
    write_text(out / "table.csv", csv_of(table))
    for judge in table.judges:
        name = judge.replace(" ", "-")
        for figure, stem in (
            (plot_by_rate(table, judge), "by-witness-rate"),
            (plot_by_fraction(table, judge), "by-fraction"),
        ):
            save_png(figure, out / f"{stem}-{name}.png")
            save_svg(figure, out / f"{stem}-{name}.svg")
    return runs, table, blocks, out


def markdown(blocks: Sequence[Block]) -> str:
    """All tables as Markdown."""
    parts = []
    for block in blocks:
        lines = [f"### {block.title}", "", _bar(block.columns), _bar(["---"] * len(block.columns))]
        lines += [_bar(["<br>".join(place) for place in row]) for row in block.rows]
        lines += ["", *(f"{note}  " for note in block.notes)]
        parts.append("\n".join(lines).rstrip())
    return "\n\n".join(parts) + "\n"


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_TEX = {"\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_TEX |= {"±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}", "×": r"$\times$", "–": "--"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def latex(blocks: Sequence[Block]) -> str:
    """All tables as LaTeX, which needs the package booktabs."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for block in blocks:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(block.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(block.columns) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(_tex, block.columns)) + r" \\", r"\midrule"]
        for row in block.rows:
            for number, line in enumerate(zip_longest(*row, fillvalue="")):
                cells = [_tex(cell) for cell in line]
                small = [rf"{{\footnotesize {cell}}}" if cell and number else cell for cell in cells]
                # LaTeX would parse a [ after \\ as an argument of that command.
                lines.append(" & ".join(small) + r" \\{}")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {_tex(note)}" for note in block.notes]
        lines += [r"\end{table}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def csv_of(table: Table) -> str:
    """One line per judge, method, witness rate and metric. Values are fractions, and blank if undefined."""
    rows = (row for entry in table.entries.values() for row in _csv_rows(table, entry))
    return csv_text(_COLUMNS, rows, ("judge", "method"))


def _csv_rows(table: Table, entry: Entry) -> Iterator[dict[str, str]]:
    for metric in METRICS:
        claimed = published(metric.key, entry.name, entry.witness_rate) or (None, None)
        yield {
            "judge": entry.judge,
            "method": entry.name,
            "uses_instance_labels": str(int(entry.name in table.ceilings)),
            "witness_rate": "" if entry.witness_rate < 0 else f"{entry.witness_rate:g}",
            "figure": metric.key,
            "state": entry.state,
            "n_runs": str(entry.n_done),
            "n_failed": str(entry.n_failed),
            "n_collapsed": str(entry.n_collapsed),
            "effective_rank": _number(entry.effective_rank),
            **_numbers(entry.estimates.get(metric.key), ("mean", "sd", "low", "high")),
            "against": table.against or "" if entry.differences else "",
            **_numbers(
                entry.differences.get(metric.key),
                ("difference", "difference_sd", "difference_low", "difference_high"),
            ),
            "paper_mean": _number(claimed[0]),
            "paper_sd": _number(claimed[1]),
            "aggregators": ", ".join(f"{name} {n}" for name, n in entry.aggregators.items()),
        }


def _numbers(estimate: Estimate | None, names: tuple[str, str, str, str]) -> dict[str, str]:
    values = (estimate.mean, estimate.sd, estimate.low, estimate.high) if estimate else (None,) * 4
    return {name: _number(value) for name, value in zip(names, values, strict=True)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
