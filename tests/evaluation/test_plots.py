from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import cytomil
from cytomil.evaluation import plots
from cytomil.evaluation.intervals import calibration_points
from cytomil.evaluation.record import pr_curve_points, recall_by_k_points, roc_curve_points

PROBABILITIES, LABELS = [0.1, 0.4, 0.35, 0.8, 0.7, 0.2], [0, 0, 1, 1, 1, 0]
QUANTITIES = [
    "loss_similarity",
    "loss_nt_xent",
    "loss_classification",
    "negatives_mean_cosine",
    "effective_rank",
    "spread",
    "gradient_cosine",
    "gradient_norm_negative",
    "gradient_norm_positive",
    "learning_rate",
    "images_per_second",
]


def recall_rows() -> list[dict[str, float]]:
    return recall_by_k_points([(np.arange(40)[::-1], np.arange(40) < 3)])


def history(n_epochs: int, keys: list[str]) -> list[dict[str, float | None]]:
    return [{"epoch": epoch, **{key: math.exp(-epoch / 5) for key in keys}} for epoch in range(1, n_epochs + 1)]


def texts(figure: Figure) -> str:
    artists = [*figure.texts, *(text for axes in figure.axes for text in [*axes.texts, axes.title])]
    labels = [label for axes in figure.axes for label in (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel())]
    return " | ".join([*(text.get_text() for text in artists), *labels])


def titles(figure: Figure) -> list[str]:
    return [axes.get_title("left") for axes in figure.axes]


FIGURES = {
    "roc": lambda: plots.plot_roc(roc_curve_points(PROBABILITIES, LABELS), 0.889),
    "roc, one class": lambda: plots.plot_roc([], None),
    "pr": lambda: plots.plot_pr(pr_curve_points(PROBABILITIES, LABELS), 0.917, 0.5),
    "pr, one class": lambda: plots.plot_pr([], None, None),
    "calibration": lambda: plots.plot_calibration(calibration_points(PROBABILITIES * 3, LABELS * 3)),
    "calibration, no bags": lambda: plots.plot_calibration([]),
    "recall": lambda: plots.plot_recall_by_k(recall_rows(), 1),
    "recall, no bags": lambda: plots.plot_recall_by_k([], 0),
    "training": lambda: plots.plot_training(history(3, [*QUANTITIES, "chance"])),
    "training, empty": lambda: plots.plot_training([]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_png_is_whole_not_blank_and_the_same_twice(name: str, tmp_path: Path) -> None:
    plots.save_png(FIGURES[name](), tmp_path / "one.png")
    plots.save_png(FIGURES[name](), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]
    with Image.open(tmp_path / "one.png") as image:
        assert image.width == 1280
        assert "Software" not in image.info
        pixels = np.asarray(image.convert("L"))
    assert pixels.min() < 130
    assert 0.001 < (pixels < 250).mean() < 0.5
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == 255).all() for edge in edges), "something is cut off at the edge"


def test_curves_say_their_figure_and_name_the_line_of_chance() -> None:
    assert "AUROC 0.89" in texts(FIGURES["roc"]())
    assert "chance" in texts(FIGURES["roc"]())
    assert "AUPRC 0.92" in texts(FIGURES["pr"]())
    assert "prevalence 0.50" in texts(FIGURES["pr"]())
    recall = texts(FIGURES["recall"]())
    assert "mean over 1 bag" in recall
    assert "random order" in recall
    assert "1.00 at 10 %" in recall
    assert "1.00 at 40 %" in recall


@pytest.mark.parametrize("name", ["roc, one class", "pr, one class"])
def test_one_class_is_said_to_be_undefined(name: str) -> None:
    assert "undefined: one class only" in texts(FIGURES[name]())


def test_recall_without_bags_says_so() -> None:
    assert "undefined: no bag with known witnesses" in texts(FIGURES["recall, no bags"]())


def test_pr_steps_start_at_the_first_measured_precision() -> None:
    figure = plots.plot_pr(pr_curve_points([0.9, 0.8, 0.1], [0, 1, 1]), 0.58, None)
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == pytest.approx([0.0, 0.5, 1.0])
    assert list(line.get_ydata()) == pytest.approx([0.5, 0.5, 2 / 3])


def test_every_quantity_has_its_panel() -> None:
    figure = FIGURES["training"]()
    assert len(figure.axes) == 10
    assert all(text in texts(figure) for text in ["chance,\nln(2N − 1)", "negative", "positive", "epoch"])


@pytest.mark.parametrize(
    ("keys", "drawn"),
    [
        (["loss_supcon"], ["SupCon loss"]),
        (["loss_info_nce", "chance"], ["InfoNCE loss"]),
        (["loss_distance"], ["Squared distance from the centre"]),
        (["loss_similarity", "loss_nt_xent", "chance"], ["Similarity loss", "NT-Xent loss"]),
        (["loss_of_another_package", "chance"], ["Loss of another package"]),
    ],
)
def test_every_methods_losses_are_drawn(keys: list[str], drawn: list[str]) -> None:
    figure = plots.plot_training(history(4, keys))
    assert titles(figure) == drawn
    assert len(figure.axes[-1].lines) == 1 + ("chance" in keys)
    assert ("chance" in texts(figure)) == ("chance" in keys)


def test_every_built_in_method_names_its_losses_panel() -> None:
    methods = Path(cytomil.__file__).parent / "training" / "methods"
    logged = {
        name
        for file in methods.glob("*.py")
        for name in re.findall(r'^\s+(?:return \{)?"(\w+)": ', file.read_text(), re.M)
    }
    assert {"nt_xent", "supcon", "info_nce", "similarity", "classification", "distance"} <= logged
    assert {f"loss_{name}" for name in logged} <= set(plots._LOSSES)


@pytest.mark.parametrize("key", QUANTITIES)
def test_one_quantity_alone_makes_one_panel(key: str, tmp_path: Path) -> None:
    figure = plots.plot_training(history(4, [key]))
    assert len(figure.axes) == 1
    assert figure.axes[0].get_xlabel() == "epoch"
    assert figure.axes[0].get_ylabel()


def test_chance_alone_is_no_panel() -> None:
    assert titles(plots.plot_training(history(4, ["chance", "spread"]))) == ["Spread of embeddings"]
    assert "no training history" in texts(plots.plot_training(history(4, ["chance"])))


def test_values_that_are_absent_none_or_not_finite_are_skipped(tmp_path: Path) -> None:
    rows: list[dict[str, float | None]] = [
        {"epoch": 1, "spread": 0.1, "learning_rate": None},
        {"epoch": 2, "spread": None},
        {"epoch": 3, "spread": math.nan},
        {"epoch": 4, "spread": 0.4, "effective_rank": math.inf},
    ]
    figure = plots.plot_training(rows)
    assert titles(figure) == ["Spread of embeddings"]
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [1, 4]
    plots.save_png(figure, tmp_path / "training.png")


def test_rows_without_epoch_count_from_one() -> None:
    figure = plots.plot_training([{"spread": 0.1}, {"epoch": None, "spread": 0.2}])
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2]


@pytest.mark.parametrize("n_epochs", [1, 2, 200])
def test_short_and_long_runs_are_drawn_on_whole_epochs(n_epochs: int, tmp_path: Path) -> None:
    figure = plots.plot_training(history(n_epochs, ["loss_nt_xent", "chance", "gradient_cosine"]))
    plots.save_png(figure, tmp_path / "training.png")
    low, high = figure.axes[0].get_xlim()
    ticks = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roc.png"
    path.write_bytes(b"old")
    figure = FIGURES["roc"]()

    def fail(file: object, **_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save_png(figure, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["roc.png"]


def test_drawing_needs_no_display_and_leaves_no_global_figure(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cytomil.evaluation import plots; "
        f"plots.save_png(plots.plot_training([]), Path({str(tmp_path / 'x.png')!r})); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cytomil.__file__).parents[1])
