"""The tables in words: what stands in each place, ready for a terminal, Markdown or LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cytomil.experiments.bootstrap import LEVEL, Estimate
from cytomil.experiments.figures import FIGURES, Figure
from cytomil.experiments.runs import OWN
from cytomil.experiments.tables import DONE, SOURCE, TITLES, Entry, Table, published

COLLAPSED, FAILED_SOME, CEILING = "†", "‡", "§"
MAIN_FIGURES = ("f1", "recall_at_40pct")


@dataclass(frozen=True)
class Block:
    """One table. Each place holds its lines, the first of them the one that counts; ``is_main``: of the paper's kind."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...]
    is_main: bool


def make_blocks(table: Table) -> tuple[Block, ...]:
    """All tables: for each judge every figure that the runs have and its differences, then the encoders' state."""
    blocks = []
    for judge in table.judges:
        for figure in FIGURES:
            if not _has(table, judge, figure):
                continue
            blocks.append(_figure_block(table, judge, figure))
            if table.against:
                blocks.append(_difference_block(table, judge, figure))
        if any(entry.pooled_f1 for entry in table.entries.values() if entry.judge == judge):
            blocks.append(_pooled_block(table, judge))
    if table.judges:
        blocks.append(_encoder_block(table, table.judges[0]))
    return tuple(blocks)


def _has(table: Table, judge: str, figure: Figure) -> bool:
    """Whether any run has it; of what every evaluation has, a table of dashes says that it is not defined."""
    found = (entry.estimates.get(figure.key) for entry in table.entries.values() if entry.judge == judge)
    return figure.by_bags or any(one is not None and one.mean is not None for one in found)


def title_of(table: Table, name: str) -> str:
    """A row's name as people read it, marked where it trained on instance labels."""
    return TITLES.get(name, name) + (f" {CEILING}" if name in table.ceilings else "")


def said_rate(rate: float) -> str:
    """A witness rate as a column's head."""
    return "rate unknown" if rate < 0 else f"{100 * rate:.3g} %"


def _figure_block(table: Table, judge: str, figure: Figure) -> Block:
    def lines(entry: Entry) -> tuple[str, ...]:
        found = _measured(entry, entry.estimates.get(figure.key))
        claimed = published(figure.key, entry.name, entry.witness_rate)
        return found if claimed is None else (*found, f"paper {_mean_sd(*claimed)}")

    title = f"{figure.title}, %, judged by {judge}"
    return _block(table, judge, title, lines, figure.key in MAIN_FIGURES, differs=False)


def _difference_block(table: Table, judge: str, figure: Figure) -> Block:
    def lines(entry: Entry) -> tuple[str, ...]:
        if entry.name == table.against:
            return ("–",)
        return _measured(entry, entry.differences.get(figure.key), signed=True)

    title = f"{figure.title}, points more than {TITLES.get(str(table.against), table.against)}, judged by {judge}"
    return _block(table, judge, title, lines, figure.key in MAIN_FIGURES, differs=True)


def _pooled_block(table: Table, judge: str) -> Block:
    def lines(entry: Entry) -> tuple[str, ...]:
        if entry.state != DONE or entry.pooled_f1 is None:
            return _unmeasured(entry)
        found = entry.pooled_f1
        return (f"{100 * found.f1:.1f}{_of_wanted(found.n_runs, entry)}", f"best {100 * found.best:.1f}")

    title = f"bag F1, redrawn bags of all seeds together, %, judged by {judge}"
    return _block(table, judge, title, lines, is_main=False, differs=False)


def _encoder_block(table: Table, judge: str) -> Block:
    def lines(entry: Entry) -> tuple[str, ...]:
        if entry.state != DONE or entry.effective_rank is None:
            return _unmeasured(entry)
        said = f"{entry.effective_rank:.1f}"
        return (f"{said}, {entry.n_collapsed} of {entry.n_done} collapsed" if entry.n_collapsed else said,)

    return _block(table, judge, "effective rank of h, and collapsed encoders", lines, is_main=True, differs=False)


def _block(
    table: Table, judge: str, title: str, lines: Callable[[Entry], tuple[str, ...]], is_main: bool, differs: bool
) -> Block:
    rows = tuple(
        ((title_of(table, name),), *(lines(table.at(judge, name, rate)) for rate in table.rates))
        for name in table.names
    )
    columns = ("method", *map(said_rate, table.rates))
    return Block(title, columns, rows, _notes(table, judge, rows, differs), is_main)


def _measured(entry: Entry, estimate: Estimate | None, signed: bool = False) -> tuple[str, ...]:
    if entry.state != DONE or estimate is None or estimate.mean is None:
        return _unmeasured(entry)
    marks = "".join(mark for mark, there in ((COLLAPSED, entry.n_collapsed), (FAILED_SOME, entry.n_failed)) if there)
    n_runs = sum(value is not None for value in estimate.by_run)
    first = f"{_mean_sd(estimate.mean, estimate.sd, signed)}{marks}{_of_wanted(n_runs, entry)}"
    if estimate.low is None or estimate.high is None:
        return (first,)
    sign = "+" if signed else ""
    return (first, f"[{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]")


def _unmeasured(entry: Entry) -> tuple[str, ...]:
    return (entry.state if entry.state != DONE else "–",)


def _of_wanted(n_runs: int, entry: Entry) -> str:
    return f" ({n_runs}/{entry.n_wanted})" if n_runs < entry.n_wanted else ""


def _mean_sd(mean: float, sd: float | None, signed: bool = False) -> str:
    said = f"{100 * mean:{'+' if signed else ''}.1f}"
    return said if sd is None else f"{said}±{100 * sd:.1f}"


def _notes(table: Table, judge: str, rows: tuple[tuple[tuple[str, ...], ...], ...], differs: bool) -> tuple[str, ...]:
    shown = " ".join(line for row in rows for place in row for line in place)
    notes = []
    if "±" in shown:
        what = "paired difference" if differs else "figure"
        notes.append(
            f"mean ± sd of the {what} over {len(table.seeds)} seeds; "
            f"[{LEVEL:.0%} bootstrap interval over seeds (where there are several), and patients or bags]"
        )
    if _without_width(shown):
        notes.append(
            "an interval without width: every draw of so few bags gave this figure; it is not certain for that"
        )
    explained = {
        "paper ": f"paper: {SOURCE}, other cells and bags",
        "best ": "each model's bags called by its own threshold; best: by the one threshold that is best for all of them",
        COLLAPSED: f"{COLLAPSED} the encoder of at least one run collapsed",
        FAILED_SOME: f"{FAILED_SOME} at least one run failed",
        CEILING: f"{CEILING} trained on instance labels: the ceiling, not a rival",
        "/": "(n/m) runs measured of those wanted",
    }
    notes += [text for mark, text in explained.items() if mark in shown]
    chosen = _chosen(table, judge)
    return (*notes, *([chosen] if chosen else []), *table.notes)


def _without_width(shown: str) -> bool:
    return any(low == high for low, high in re.findall(r"\[([^],]+), ([^],]+)\]", shown))


def _chosen(table: Table, judge: str) -> str:
    """Which aggregators stand behind a judge that is not one of them, such as the best other."""
    counts: dict[str, int] = {}
    for (by, _, _), entry in table.entries.items():
        for name, n in entry.aggregators.items() if by == judge else ():
            counts[name] = counts.get(name, 0) + n
    if set(counts) <= {judge}:
        return ""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    how = "each row's own aggregator" if judge == OWN else "chosen on held-out training bags"
    return f"{judge}: {how}: " + ", ".join(f"{name} {n}×" for name, n in ranked)
