"""evaluate --table: tables as Markdown, LaTeX and CSV, figures as PNG and SVG. The same runs give the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from cytomil.evaluate.blocks import Block, make_blocks
from cytomil.evaluate.bootstrap import Estimate
from cytomil.evaluate.config import EvaluateConfig
from cytomil.evaluate.figures import FIGURES
from cytomil.evaluate.paper import published
from cytomil.evaluate.plots import save_png, save_svg
from cytomil.evaluate.runs import Runs, read_runs
from cytomil.evaluate.table import Entry, Table, make_table
from cytomil.evaluate.table_plots import plot_by_rate, plot_by_share
from cytomil.files import write_text

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
    """Read the runs of ``settings.table``, write their tables and figures, and give both back with the folder.

    Raises `NotFoundError` or `EvaluationError`, each with what to do.
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
            (plot_by_share(table, judge), "by-share"),
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
    """All tables as LaTeX; they need the package booktabs."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for block in blocks:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(block.title)}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(block.columns) - 1)}}}", r"\toprule"]
        lines += [" & ".join(map(_tex, block.columns)) + r" \\", r"\midrule"]
        for row in block.rows:
            for number, line in enumerate(zip_longest(*row, fillvalue="")):
                cells = [_tex(cell) for cell in line]
                small = [rf"{{\footnotesize {cell}}}" if cell and number else cell for cell in cells]
                # A line that opens with [ right after \\ would be taken for that command's argument.
                lines.append(" & ".join(small) + r" \\{}")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\footnotesize {_tex(note)}" for note in block.notes]
        lines += [r"\end{table}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def csv_of(table: Table) -> str:
    """One line a judge, method, witness rate and figure; shares of 1, blank where not defined."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in table.entries.values():
        writer.writerows(_csv_rows(table, entry))
    return buffer.getvalue()


def _csv_rows(table: Table, entry: Entry) -> Iterator[dict[str, str]]:
    for figure in FIGURES:
        claimed = published(figure.key, entry.name, entry.witness_rate) or (None, None)
        yield {
            "judge": entry.judge,
            "method": entry.name,
            "uses_instance_labels": str(int(entry.name in table.ceilings)),
            "witness_rate": "" if entry.witness_rate < 0 else f"{entry.witness_rate:g}",
            "figure": figure.key,
            "state": entry.state,
            "n_runs": str(entry.n_done),
            "n_failed": str(entry.n_failed),
            "n_collapsed": str(entry.n_collapsed),
            "effective_rank": _number(entry.effective_rank),
            **_numbers(entry.estimates.get(figure.key), ("mean", "sd", "low", "high")),
            "against": table.against or "" if entry.differences else "",
            **_numbers(
                entry.differences.get(figure.key),
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
