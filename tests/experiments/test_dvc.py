"""A grid run by DVC, and gone on with in a fresh clone."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.projects import commit, run

ROOT = Path(__file__).parents[2]
AXES = {
    "seeds": [0],
    "witness_rates": [0.25],
    "methods": ["weakly-supervised", "no-such-method"],
    "aggregators": ["pamil"],
}


@pytest.fixture
def project(tmp_path, params):
    """A repository with the CPU grid, its axes and settings made tiny."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "cytomil", root / "cytomil", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "experiments", root / "experiments", ignore=shutil.ignore_patterns("__pycache__", "*.lock"))
    for place in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "params.yaml", "data/.gitignore"):
        (root / place).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / place, root / place)
    grid = root / "experiments" / "cpu"
    shutil.rmtree(grid / "runs", ignore_errors=True)
    (grid / "grid.yaml").write_text(yaml.safe_dump(yaml.safe_load((grid / "grid.yaml").read_text()) | AXES))
    (grid / "params.yaml").write_text(yaml.safe_dump(params))
    run(root, "git", "init", "-q")
    commit(root)
    return root


@pytest.mark.nightly  # `test_side_by_side` has failing cells, and `test_pipeline` has DVC
def test_a_failed_cell_does_not_end_the_grid_and_a_fresh_clone_goes_on(project, tmp_path):
    grid = ("dvc", "repro", "-k", "experiments/cpu/dvc.yaml")
    first = run(project, *grid)
    assert first.returncode != 0, first.stdout
    runs = project / "experiments" / "cpu" / "runs"
    done, failed = (runs / f"0-0.25-{name}.json" for name in AXES["methods"])
    assert json.loads(done.read_text())["failed"] is None, first.stderr
    assert "no-such-method" in json.loads(failed.read_text())["failed"]
    commit(project, "experiments/cpu/runs")

    clone = tmp_path / "clone"
    assert run(project, "git", "clone", "-q", str(project), str(clone)).returncode == 0
    assert "weakly-supervised: already done" in run(clone, *grid).stderr
    assert (clone / done.relative_to(project)).read_bytes() == done.read_bytes()
    assert run(clone, "git", "status", "--porcelain").stdout.split() == ["??", "experiments/cpu/dvc.lock"]
