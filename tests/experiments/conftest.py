"""A grid of four small cells on synthetic bags."""

from __future__ import annotations

import pytest
import yaml

from experiments.grid import read_grid

PARAMS = {
    "make_bags": {"source": "synthetic", "bag_size": 12, "train_bags": 6, "test_bags": 4, "cell_size": 24},
    "pretrain": {
        "epochs": 1,
        "batch_size": 32,
        "image_size": 16,
        "arch": "test_resnet",
        "weights": "none",
        "device": "cpu",
    },
    "embed": {"device": "cpu", "layer": "z", "orientations": 1},
    "fit_mil": {"epochs": 2, "folds": 2, "ensemble": 1},
}


@pytest.fixture
def params():
    """What the grid's params.yaml holds."""
    return PARAMS


@pytest.fixture
def tiny_grid(tmp_path):
    """``tiny_grid(**changes)``: the grid in a folder of its own, grid.yaml changed as asked."""

    def make(params=PARAMS, **changes):
        folder = tmp_path / "tiny"
        folder.mkdir(exist_ok=True)
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        axes = {
            "params": str(folder / "params.yaml"),
            "work": str(tmp_path / "work"),
            "seeds": [0],
            "witness_rates": [0.25],
            "methods": ["simclr", "weakly-supervised"],
            "aggregators": ["pamil"],
        }
        (folder / "grid.yaml").write_text(yaml.safe_dump(axes | changes))
        return read_grid(folder)

    return make
