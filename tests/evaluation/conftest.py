"""Runs as `cytomil evaluate` and a grid would have left them, made up in milliseconds."""

from __future__ import annotations

import json

import numpy as np
import pytest


def bag(number, label, rng, lift, threshold=0.5):
    probability = float(np.clip(0.5 + (lift if label else -lift) + 0.2 * rng.standard_normal(), 0, 1))
    found = {"recall_at_5pct": 0.1 + lift / 2, "recall_at_40pct": 0.4 + lift, "auroc": 0.5 + lift}
    spread = {key: float(np.clip(value + 0.1 * rng.standard_normal(), 0, 1)) for key, value in found.items()}
    return {
        "bag_id": f"test-{number:02d}",
        "patient_id": f"test-{number:02d}",
        "label": label,
        "probability": probability,
        "called_positive": probability >= threshold,
        "n_instances": 260,
        **(spread if label else dict.fromkeys(spread)),
    }


def record(name="simclr", rate=0.1, seed=0, judge="pamil", lift=0.2, collapsed=False, **changes):
    """An evaluation as evaluate.json holds it: six bags, half positive, better the higher ``lift`` (0 to 0.5) is."""
    rng = np.random.default_rng([sum(map(ord, name + judge)), int(rate * 1000), seed])
    shares = (0.01, 0.05, 0.1, 0.4, 1.0)
    return {
        "schema": "cytomil.evaluation/1",
        "name": name,
        "method": name,
        "uses_instance_labels": name == "fully-supervised",
        "judge": judge,
        "aggregator": {"name": judge if judge != "best other" else "mahalanobis"},
        "seed": seed,
        "witness_rate": rate,
        "bags_fingerprint": f"bags-{rate}-{seed}",
        "metrics": {},
        "recall_by_share": {str(share): share ** (1 - lift) for share in shares},
        "bags": [bag(i, i % 2, rng, lift) for i in range(6)],
        "encoder": {"collapsed": collapsed, "effective_rank": 40.0 + seed, "nt_xent_margin": 1.0, "settings": {}},
        "versions": {"code": "abc"},
    } | changes


@pytest.fixture(scope="session")
def make_record():
    """``make_record(name, rate, seed, judge, lift, collapsed, **changes)``: see `record`."""
    return record


@pytest.fixture
def write_reports(tmp_path):
    """``write_reports(records, folder="runs")``: each record in a folder of its own, as `cytomil evaluate` leaves it."""

    def write(records, folder="runs"):
        for number, one in enumerate(records):
            place = tmp_path / folder / f"{number:03d}"
            place.mkdir(parents=True)
            (place / "evaluate.json").write_text(json.dumps(one))
        return tmp_path / folder

    return write
