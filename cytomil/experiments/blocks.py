"""Tables as text, ready for a terminal, Markdown or LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cytomil.experiments.bootstrap import LEVEL, METRICS, Estimate, Metric
from cytomil.experiments.runs import OWN
from cytomil.experiments.tables import DONE, SOURCE, TITLES, Entry, Table, published

COLLAPSED, FAILED_SOME, CEILING = "†", "‡", "§"
MAIN_METRICS = ("f1", "recall_at_40pct")


@dataclass(frozen=True)
class Block:
    """One table.

    Args:
        title: its title.
        columns: the heads of its columns.
        rows: the lines of each entry of each row. The first line is the main one.
        notes: lines below the table.
        is_main: whether the paper has a table like this.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    notes: tuple[str, ...]
    is_main: bool


def make_blocks(table: Table) -> tuple[Block, ...]:
    """All tables: for each judge every available metric and its differences, then the state of the encoders."""
    blocks = []
    for judge in table.judges:
        for metric in METRICS:
            if not _has(table, judge, metric):
                continue
            blocks.append(_metric_block(table, judge, metric))
            if table.against:
                blocks.append(_difference_block(table, judge, metric))
        if any(entry.pooled_f1 for entry in table.entries.values() if entry.judge == judge):
            blocks.append(_pooled_block(table, judge))
    if table.judges:
        blocks.append(_encoder_block(table, table.judges[0]))
    return tuple(blocks)


def _has(table: Table, judge: str, metric: Metric) -> bool:
    """Whether to show a metric. If it is by bags, every evaluation has it, and dashes show that it is undefined."""
    found = (entry.estimates.get(metric.key) for entry in table.entries.values() if entry.judge == judge)
    return metric.by_bags or any(one is not None and one.mean is not None for one in found)


def title_of(table: Table, name: str) -> str:
    """The title of a row, with a mark if it was trained on instance labels."""
    return TITLES.get(name, name) + (f" {CEILING}" if name in table.ceilings else "")


def format_rate(rate: float) -> str:
    """A witness rate as the head of a column."""
    return "rate unknown" if rate < 0 else f"{100 * rate:.3g} %"


def _metric_block(table: Table, judge: str, metric: Metric) -> Block:
    def lines(entry: Entry) -> tuple[str, ...]:
        found = _measured(entry, entry.estimates.get(metric.key))
        claimed = published(metric.key, entry.name, entry.witness_rate)
        return found if claimed is None else (*found, f"paper {_format_mean(*claimed)}")

    title = f"{metric.title}, %, judged by {judge}"
    return _block(table, judge, title, lines, metric.key in MAIN_METRICS, differs=False)


def _difference_block(table: Table, judge: str, metric: Metric) -> Block:
    def lines(entry: Entry) -> tuple[str, ...]:
        if entry.name == table.against:
            return ("–",)
        return _measured(entry, entry.differences.get(metric.key), signed=True)

    title = f"{metric.title}, points more than {TITLES.get(str(table.against), table.against)}, judged by {judge}"
    return _block(table, judge, title, lines, metric.key in MAIN_METRICS, differs=True)


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
        rank = f"{entry.effective_rank:.1f}"
        return (f"{rank}, {entry.n_collapsed} of {entry.n_done} collapsed" if entry.n_collapsed else rank,)

    return _block(table, judge, "effective rank of h, and collapsed encoders", lines, is_main=True, differs=False)


def _block(
    table: Table, judge: str, title: str, lines: Callable[[Entry], tuple[str, ...]], is_main: bool, differs: bool
) -> Block:
    rows = tuple(
        ((title_of(table, name),), *(lines(table.at(judge, name, rate)) for rate in table.rates))
        for name in table.names
    )
    columns = ("method", *map(format_rate, table.rates))
    return Block(title, columns, rows, _notes(table, judge, rows, differs), is_main)


def _measured(entry: Entry, estimate: Estimate | None, signed: bool = False) -> tuple[str, ...]:
    if entry.state != DONE or estimate is None or estimate.mean is None:
        return _unmeasured(entry)
    marks = "".join(mark for mark, there in ((COLLAPSED, entry.n_collapsed), (FAILED_SOME, entry.n_failed)) if there)
    n_runs = sum(value is not None for value in estimate.by_run)
    first = f"{_format_mean(estimate.mean, estimate.sd, signed)}{marks}{_of_wanted(n_runs, entry)}"
    if estimate.low is None or estimate.high is None:
        return (first,)
    sign = "+" if signed else ""
    return (first, f"[{100 * estimate.low:{sign}.1f}, {100 * estimate.high:{sign}.1f}]")


def _unmeasured(entry: Entry) -> tuple[str, ...]:
    return (entry.state if entry.state != DONE else "–",)


def _of_wanted(n_runs: int, entry: Entry) -> str:
    return f" ({n_runs}/{entry.n_wanted})" if n_runs < entry.n_wanted else ""


def _format_mean(mean: float, sd: float | None, signed: bool = False) -> str:
    text = f"{100 * mean:{'+' if signed else ''}.1f}"
    return text if sd is None else f"{text}±{100 * sd:.1f}"


def _notes(table: Table, judge: str, rows: tuple[tuple[tuple[str, ...], ...], ...], differs: bool) -> tuple[str, ...]:
    shown = " ".join(line for row in rows for place in row for line in place)
    notes = []
    if "±" in shown:
        what = "paired difference" if differs else "figure"
        notes.append(
            f"mean ± sd of the {what} over {len(table.seeds)} seeds; "
            f"[{LEVEL:.0%} bootstrap interval over seeds (if there are several), and patients or bags]"
        )
    if differs and (n := shown.count("[")) > 1:
        notes.append(
            f"{n} comparisons: even if no method differed, {1 - LEVEL:.0%} of such intervals would exclude zero"
        )
    if _without_width(shown):
        notes.append(
            "an interval of zero width: every draw from these few bags gave the same figure, so its uncertainty is unknown"
        )
    explained = {
        "paper ": f"paper: {SOURCE}, other cells and bags",
        "best ": "each model at its own threshold; best: all models at the best common threshold",
        COLLAPSED: f"{COLLAPSED} the encoder of at least one run collapsed",
        FAILED_SOME: f"{FAILED_SOME} at least one run failed",
        CEILING: f"{CEILING} trained on instance labels: an upper bound, not a competitor",
        "/": "(n/m) n of m planned runs were measured",
    }
    notes += [text for mark, text in explained.items() if mark in shown]
    chosen = _chosen(table, judge)
    return (*notes, *([chosen] if chosen else []), *table.notes)


def _without_width(shown: str) -> bool:
    return any(low == high for low, high in re.findall(r"\[([^],]+), ([^],]+)\]", shown))


def _chosen(table: Table, judge: str) -> str:
    """The aggregators that a judge uses if it is not an aggregator itself, such as the best other."""
    counts: dict[str, int] = {}
    for (by, _, _), entry in table.entries.items():
        for name, n in entry.aggregators.items() if by == judge else ():
            counts[name] = counts.get(name, 0) + n
    if set(counts) <= {judge}:
        return ""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    how = "each row's own aggregator" if judge == OWN else "chosen on held-out training bags"
    return f"{judge}: {how}: " + ", ".join(f"{name} {n}×" for name, n in ranked)
