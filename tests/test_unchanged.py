"""The same inputs give what they gave before: tests/unchanged.json, which this file, run as a script, has written.

The script refuses other figures under the same version: what an earlier version left behind would be used again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from cytomil.training.checkpoint import TRAINING_VERSION
from cytomil.triage.result_cache import RESULT_VERSION

EXPECTED = Path(__file__).with_name("unchanged.json")
AGGREGATORS = ("self-paced", "pamil", "mahalanobis")
VERSIONS = {"TRAINING_VERSION": TRAINING_VERSION, "RESULT_VERSION": RESULT_VERSION}
TRAINED = ["--method", "slam-ags", "--epochs", "2", "--batch-size", "16"]
TINY = ["--weights", "none", "--image-size", "32", "--engine", "none", "--device", "cpu", "--precision", "float32"]


def cytomil(*line: object) -> None:
    from cytomil.app.cli.app import app

    done = CliRunner().invoke(app, [str(word) for word in line])
    assert done.exit_code == 0, done.output


def run(root: Path) -> dict[str, Any]:
    """A small fixed run of every verb: digests where bytes must agree, figures where a processor may round otherwise."""
    from cytomil.features import open_features

    bags, random, trained, features = (root / name for name in ("bags", "random", "trained", "features"))
    size = ["--bag-size", "24", "--train-bags", "8", "--test-bags", "4", "--cell-size", "40", "--seed", "3"]
    cytomil("make-bags", "synthetic", "--out", bags, *size)
    cytomil("pretrain", "--bags", bags, "--out", random, *TINY)
    cytomil("pretrain", "--bags", bags, "--out", trained, *TINY, *TRAINED)
    cytomil("embed", "--bags", bags, "--encoder", random, "--out", features, "--layer", "h", "--device", "cpu")
    found: dict[str, Any] = {"bags": (bags / "bags.csv").read_text(encoding="utf-8").splitlines()[1:4]}
    weights = load_file(trained / "encoder.safetensors")
    layers = ("backbone.conv1.weight", "backbone.layer1.0.bn1.weight", "backbone.layer1.0.bn2.weight")
    found["weights"] = {name: float(weights[name].double().norm()) for name in layers}
    first = json.loads((trained / "encoder.json").read_text(encoding="utf-8"))["history"][0]
    found["losses"] = {name: value for name, value in first.items() if name.startswith("loss_")}
    caches = sorted(features.glob("*.h5"))
    found["features"] = {path.name: np.abs(open_features(path).load()).mean().item() for path in caches[:3]}
    for aggregator in AGGREGATORS:
        model, triage, reports = (root / f"{kind}-{aggregator}" for kind in ("model", "triage", "reports"))
        fitted = ["--features", features, "--encoder", random, "--aggregator", aggregator, "--epochs", "8"]
        cytomil("fit-mil", *fitted, "--ensemble", "2", "--precision", "float32", "--out", model)
        cytomil("evaluate", "--features", features, "--model", model, "--bags", bags, "--out", reports)
        cytomil("rank", bags, "--model", model, "--out", triage, "--device", "cpu", "--accept-left-out")
        metrics = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))
        worklist = json.loads((triage / "triage.json").read_text(encoding="utf-8"))
        found[aggregator] = {
            "metrics": dict(numbers(metrics)),
            "worklist": {slide["slide"]: slide["probability"] for slide in worklist["slides"]},
        }
    return found


def numbers(document: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """Every number in it that is no whole one, by its path."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from numbers(value, f"{at}/{key}")
    elif isinstance(document, float):
        yield at, document


def changed(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The parts whose figures are others than expected."""
    parts = {
        "bags": found["bags"] == expected["bags"],
        "features": found["features"] == pytest.approx(expected["features"], rel=0.02),
        # Rounding grows from step to step: one thread and two, or two processors, already differ by some five percent.
        "losses": found["losses"] == pytest.approx(expected["losses"], rel=0.1, abs=0.03),
        "weights": found["weights"] == pytest.approx(expected["weights"], rel=0.05),
    }
    for aggregator in AGGREGATORS:
        now, before = found[aggregator], expected[aggregator]
        same = list(now["worklist"]) == list(before["worklist"])
        for part in ("metrics", "worklist"):
            parts[f"{aggregator} {part}"] = same and now[part] == pytest.approx(before[part], rel=0.02, abs=0.005)
    return [part for part, same in parts.items() if not same]


def to_be_raised(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The versions that ought to be raised before ``found``, of the versions in the code, replaces ``expected``."""
    parts = changed(found, expected)
    due = set()
    if {"losses", "weights"} & set(parts):
        due.add("TRAINING_VERSION")
    if any(part == "features" or part.endswith("worklist") for part in parts):
        due.add("RESULT_VERSION")
    return sorted(name for name in due if found["versions"][name] <= expected["versions"][name])


def expected() -> dict[str, Any]:
    """What tests/unchanged.json holds."""
    document: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))
    return document


@pytest.mark.long
def test_a_small_run_gives_what_it_gave(tmp_path):
    assert changed(run(tmp_path), expected()) == []


def test_the_figures_are_of_the_versions_in_the_code():
    assert expected()["versions"] == VERSIONS, "raised? Then run `python -m tests.test_unchanged`"


@pytest.mark.parametrize(
    ("part", "name", "versions"),
    [
        ("losses", "loss_similarity", ["TRAINING_VERSION"]),
        ("weights", "backbone.conv1.weight", ["TRAINING_VERSION"]),
        ("features", "test-01.h5", ["RESULT_VERSION"]),
    ],
)
def test_other_figures_ask_for_another_version(part, name, versions):
    before = expected()
    name = next(key for key in before[part] if key == name or part == "features")
    found = before | {part: before[part] | {name: before[part][name] + 1}}
    assert to_be_raised(found, before) == versions
    assert to_be_raised(found | {"versions": {key: n + 1 for key, n in VERSIONS.items()}}, before) == []
    assert to_be_raised(before, before) == []


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = {"versions": VERSIONS} | run(Path(folder))
    if due := to_be_raised(made, expected()):
        sys.exit(
            f"The figures changed. Raise {' and '.join(due)} first, so that nothing of the former version is used."
        )
    EXPECTED.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
