"""Plots of the curves, readable at a width of 640 pixels and by colour-blind readers.

Figures use the object interface of matplotlib, which has no global state. The colours are from Okabe and Ito, "Color
Universal Design" (2008).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytomil.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#595959"
WIDTH_INCHES = 6.4
DOTS_PER_INCH = 200
FEW_EPOCHS = 30
DASHED = (0, (5, 4))
ANNOTATED_FRACTIONS = (0.10, 0.40)


@dataclass(frozen=True)
class _Line:
    key: str
    label: str = ""
    colour: str = BLUE
    is_reference: bool = False


@dataclass(frozen=True)
class _Panel:
    title: str
    unit: str
    lines: tuple[_Line, ...]
    zero_label: str = ""


_LOSSES = {
    "loss_similarity": ("Similarity loss", "loss"),
    "loss_nt_xent": ("NT-Xent loss", "loss (nats)"),
    "loss_info_nce": ("InfoNCE loss", "loss (nats)"),
    "loss_supcon": ("SupCon loss", "loss (nats)"),
    "loss_classification": ("Classification loss", "loss (nats)"),
    "loss_distance": ("Squared distance from the centre", "loss"),
}
_CHANCE = {"loss_nt_xent": "chance,\nln(2N − 1)", "loss_info_nce": "chance,\nln B"}
_OTHER_PANELS = (
    _Panel("Mean cosine of negatives", "cosine", (_Line("negatives_mean_cosine"),)),
    _Panel("Effective rank", "dimensions", (_Line("effective_rank"),)),
    _Panel("Spread of embeddings", "spread", (_Line("spread"),)),
    _Panel("Cosine between gradients", "cosine", (_Line("gradient_cosine"),), zero_label="conflict\nbelow 0"),
    _Panel(
        "Gradient norm",
        "norm",
        (_Line("gradient_norm_negative", "negative"), _Line("gradient_norm_positive", "positive", VERMILION)),
    ),
    _Panel("Learning rate", "rate", (_Line("learning_rate"),)),
    _Panel("Throughput", "images per second", (_Line("images_per_second"),)),
)


def plot_roc(rows: Sequence[Mapping[str, float]], auroc: float | None) -> Figure:
    """Draw the ROC curve of the bags with the diagonal of chance.

    Args:
        rows: from `curves.roc_curve_points`.
        auroc: area in 0..1; None if it is undefined.
    """
    figure, axes = _unit_square(
        "False positive rate (fraction of negative bags)", "True positive rate (fraction of positive bags)"
    )
    _draw_reference(axes, (0, 1), (0, 1))
    _explain_diagonal(axes, "dashed: chance, AUROC 0.5")
    if auroc is None:
        return _say_undefined(figure, axes, "ROC curve", "undefined: one class only")
    axes.plot([row["fpr"] for row in rows], [row["tpr"] for row in rows], color=BLUE, linewidth=2, clip_on=False)
    _set_title(axes, f"ROC curve: AUROC {auroc:.2f}")
    return figure


def plot_pr(rows: Sequence[Mapping[str, float]], auprc: float | None, prevalence: float | None) -> Figure:
    """Draw the precision-recall curve of the bags, as steps, with the prevalence as chance.

    Args:
        rows: from `curves.pr_curve_points`.
        auprc: average precision in 0..1; None if it is undefined.
        prevalence: fraction of bags that are positive; None to omit the chance line.
    """
    figure, axes = _unit_square(
        "Recall (fraction of positive bags called positive)", "Precision (fraction of calls that are right)"
    )
    if auprc is None:
        return _say_undefined(figure, axes, "Precision-recall curve", "undefined: one class only")
    if prevalence is not None:
        _draw_reference(axes, (0, 1), (prevalence, prevalence))
        side = -5 if prevalence > 0.5 else 5
        _label(axes, f"chance, prevalence {prevalence:.2f}", (0.02, prevalence), (0, side), GREY)
    recall, precision = _steps(rows)
    axes.plot(recall, precision, color=BLUE, linewidth=2, drawstyle="steps-pre", clip_on=False)
    _set_title(axes, f"Precision-recall curve: AUPRC {auprc:.2f}")
    return figure


def plot_calibration(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the fraction of positive bags against the model's probability, with 95 % intervals.

    Args:
        rows: from `calibration.calibration_points`; if empty, the figure says that the curve is undefined.
    """
    figure, axes = _unit_square("Probability given by the model", "Fraction of these bags that are positive")
    _draw_reference(axes, (0, 1), (0, 1))
    _explain_diagonal(axes, "dashed: perfect calibration")
    if not rows:
        return _say_undefined(figure, axes, "Calibration", "undefined: no bags")
    x, y = [row["probability"] for row in rows], [row["positive"] for row in rows]
    reach = [[row["positive"] - row["low"] for row in rows], [row["high"] - row["positive"] for row in rows]]
    axes.errorbar(x, y, yerr=reach, color=BLUE, linewidth=1.6, marker="o", markersize=6, capsize=4, clip_on=False)
    bags = sorted({int(row["n_bags"]) for row in rows})
    each = f"{bags[0]}" if len(bags) == 1 else f"{bags[0]} to {bags[-1]}"
    _set_title(axes, f"Calibration: {each} bags per point, 95 % intervals")
    return figure


def plot_recall_by_k(rows: Sequence[Mapping[str, float]], n_bags: int) -> Figure:
    """Draw the mean fraction of witnesses found against the fraction of each bag reviewed.

    Args:
        rows: from `curves.recall_by_k_points`; if empty, the figure says that the curve is undefined.
        n_bags: number of bags in the mean.
    """
    figure, axes = _unit_square(
        "Instances reviewed, highest attention first (fraction of the bag)", "Witnesses found (fraction of the bag's)"
    )
    if not rows:
        return _say_undefined(figure, axes, "Recall by fraction reviewed", "undefined: no bag with known witnesses")
    fractions = [row["fraction_reviewed"] for row in rows]
    _draw_reference(axes, fractions, [row["random"] for row in rows])
    _explain_diagonal(axes, "dashed: random order")
    axes.plot(fractions, [row["recall"] for row in rows], color=BLUE, linewidth=2, clip_on=False)
    for row in rows:
        if row["fraction_reviewed"] in ANNOTATED_FRACTIONS:
            _mark_recall(axes, row["fraction_reviewed"], row["recall"])
    _set_title(axes, f"Recall by fraction reviewed: mean over {n_bags} bag{'' if n_bags == 1 else 's'}")
    return figure


def plot_training(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the history of a training run, with one panel per quantity.

    Args:
        history: a row per epoch, with any of `epoch` (otherwise rows count from 1), `loss_…` for each of the method's
            tasks, `chance` (the contrastive loss at chance level), `negatives_mean_cosine`, `effective_rank`, `spread`,
            `gradient_cosine`, `gradient_norm_negative`, `gradient_norm_positive`, `learning_rate` and
            `images_per_second`. Values that are missing, None or not finite are not drawn. Panels without values are
            omitted.
    """
    panels = [panel for panel in (*_loss_panels(history), *_OTHER_PANELS) if _has_values(panel, history)]
    n_columns = min(2, max(1, len(panels)))
    n_rows = max(1, math.ceil(len(panels) / n_columns))
    figure = new_figure(0.6 + 1.75 * n_rows)
    if not panels:
        figure.text(0.5, 0.5, "no training history", ha="center", va="center", fontsize=13, color=GREY)
        return figure
    for position, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(n_rows, n_columns, position)
        _draw_panel(axes, panel, history)
        if position > len(panels) - n_columns:
            axes.set_xlabel("epoch", fontsize=9)
    return figure


def _loss_panels(history: Sequence[Mapping[str, Any]]) -> list[_Panel]:
    """A panel per logged loss, including those of methods from other packages. The contrastive one also shows chance."""
    logged = dict.fromkeys(key for row in history for key in row if key.startswith("loss_"))
    ordered = [*(key for key in _LOSSES if key in logged), *(key for key in logged if key not in _LOSSES)]
    contrastive = [key for key in ordered if key in _CHANCE] or [key for key in ordered if key not in _LOSSES]
    panels = []
    for key in ordered:
        title, unit = _LOSSES.get(key, (f"Loss {key.removeprefix('loss_').replace('_', ' ')}", "loss"))
        guess = _Line("chance", _CHANCE.get(key, "chance"), GREY, is_reference=True)
        panels.append(_Panel(title, unit, (_Line(key), *([guess] if key in contrastive[:1] else []))))
    return panels


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, completely or not at all. The same figure gives the same bytes.

    Raises:
        OSError: the folder cannot be created or written. An existing file at `path` is then unchanged.
    """
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, with the same guarantees as `save_png`."""
    from matplotlib import rc_context

    # By default, matplotlib writes random ids and the current date.
    with replacing(path) as partial, rc_context({"svg.hashsalt": "cytomil"}):
        figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": None})


def new_figure(height_inches: float, width_inches: float = WIDTH_INCHES) -> Figure:
    """An empty white figure of the given size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width_inches, height_inches), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _unit_square(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = new_figure(5.2)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    style(axes, tick_size=11)
    return figure, axes


def style(axes: Axes, tick_size: float) -> None:
    """Apply the common style: a grid, ticks and no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=tick_size)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def _set_title(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=13, loc="left", pad=10)


def _say_undefined(figure: Figure, axes: Axes, title: str, reason: str) -> Figure:
    _set_title(axes, title)
    box = {"facecolor": "white", "edgecolor": GREY, "boxstyle": "round,pad=0.5"}
    axes.text(0.5, 0.5, reason, ha="center", va="center", fontsize=13, bbox=box)
    return figure


def _draw_reference(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    axes.plot(x, y, color=GREY, linewidth=1.2, linestyle=DASHED)


def _explain_diagonal(axes: Axes, text: str) -> None:
    # In the corner, because the curve of a model at chance level would cross a label along the diagonal.
    axes.text(0.98, 0.03, text, ha="right", va="bottom", fontsize=11, color=GREY)


def _label(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], colour: str) -> None:
    vertical = "bottom" if offset[1] > 0 else "top"
    axes.annotate(text, at, xytext=offset, textcoords="offset points", va=vertical, fontsize=11, color=colour)


def _label_right(axes: Axes, text: str, height: float, vertical: str, colour: str) -> None:
    """Label a line in the margin, so that the text hides no data."""
    axes.text(1.02, height, text, transform=axes.get_yaxis_transform(), va=vertical, fontsize=9, color=colour)


def _mark_recall(axes: Axes, fraction: float, recall: float) -> None:
    axes.plot([fraction], [recall], marker="o", markersize=6, color=BLUE, clip_on=False)
    _label(axes, f"{recall:.2f} at {fraction * 100:.0f} %", (fraction, recall), (7, -5), BLUE)


def _steps(rows: Sequence[Mapping[str, float]]) -> tuple[list[float], list[float]]:
    """Recall and best precision at each measured recall, without the conventional point at recall 0."""
    best = {row["recall"]: row["precision"] for row in reversed(rows) if row["recall"] > 0}
    recall, precision = list(best)[::-1], list(best.values())[::-1]
    return [0.0, *recall], [*precision[:1], *precision]


def _epoch(row: Mapping[str, Any], position: int) -> float:
    epoch = row.get("epoch")
    return float(position if epoch is None else epoch)


def _points(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and finite values of one quantity."""
    epochs, values = [], []
    for position, row in enumerate(history, start=1):
        value = row.get(key)
        if value is not None and math.isfinite(value):
            epochs.append(_epoch(row, position))
            values.append(float(value))
    return epochs, values


def _has_values(panel: _Panel, history: Sequence[Mapping[str, Any]]) -> bool:
    return any(_points(history, line.key)[1] for line in panel.lines if not line.is_reference)


def _draw_line(axes: Axes, line: _Line, epochs: list[float], values: list[float]) -> None:
    if not line.is_reference:
        marker = "o" if len(values) <= FEW_EPOCHS else None
        axes.plot(epochs, values, color=line.colour, linewidth=1.6, marker=marker, markersize=3)
    elif len(values) == 1:
        axes.axhline(values[0], color=GREY, linewidth=1.2, linestyle=DASHED)
    else:
        _draw_reference(axes, epochs, values)


def _set_epoch_limits(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Give every panel the same epochs, even if its quantity was logged only for some of them."""
    epochs = [_epoch(row, position) for position, row in enumerate(history, start=1)]
    pad = max(0.5, 0.02 * (max(epochs) - min(epochs)))
    axes.set_xlim(min(epochs) - pad, max(epochs) + pad)


def _draw_panel(axes: Axes, panel: _Panel, history: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = [(line, *_points(history, line.key)) for line in panel.lines]
    drawn = [(line, epochs, values) for line, epochs, values in drawn if values]
    highest = max(drawn, key=lambda item: item[2][-1])[0]
    axes.margins(y=0.12)
    for line, epochs, values in drawn:
        _draw_line(axes, line, epochs, values)
        side = "center" if line.is_reference else "bottom" if line is highest else "top"
        _label_right(axes, line.label, values[-1], side, line.colour)
    if panel.zero_label:
        axes.axhline(0, color=GREY, linewidth=1.2, linestyle=DASHED)
        _label_right(axes, panel.zero_label, 0, "center", GREY)
    axes.set_title(panel.title, fontsize=10.5, loc="left")
    axes.set_ylabel(panel.unit, fontsize=9)
    _set_epoch_limits(axes, history)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    style(axes, tick_size=8.5)
