"""A grid run by DVC, and gone on with in a fresh clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
    for place in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "params.yaml"):
        (root / place).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / place, root / place)
    grid = root / "experiments" / "cpu"
    shutil.rmtree(grid / "runs", ignore_errors=True)
    (grid / "grid.yaml").write_text(yaml.safe_dump(yaml.safe_load((grid / "grid.yaml").read_text()) | AXES))
    (grid / "params.yaml").write_text(yaml.safe_dump(params))
    run(root, "git", "init", "-q")
    commit(root)
    return root


def run(root, *line):
    """Run a command there, with this interpreter's tools and no one's settings; returns (exit status, what it said)."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CYTOMIL_")}
    environment = clean | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }
    done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def commit(root, what="."):
    for line in (("git", "add", what), ("git", "commit", "-q", "-m", "state")):
        assert run(root, *line)[0] == 0


@pytest.mark.slow
def test_a_failed_cell_does_not_end_the_grid_and_a_fresh_clone_goes_on(project, tmp_path):
    grid = ("dvc", "repro", "-k", "experiments/cpu/dvc.yaml")
    status, said = run(project, *grid)
    assert status != 0, said
    runs = project / "experiments" / "cpu" / "runs"
    done, failed = (runs / f"0-0.25-{name}.json" for name in AXES["methods"])
    assert json.loads(done.read_text())["failed"] is None, said
    assert "no-such-method" in json.loads(failed.read_text())["failed"]
    commit(project, "experiments/cpu/runs")

    clone = tmp_path / "clone"
    assert run(project, "git", "clone", "-q", str(project), str(clone))[0] == 0
    _, said = run(clone, *grid)
    assert "weakly-supervised: done before" in said
    assert (clone / done.relative_to(project)).read_bytes() == done.read_bytes()
    assert run(clone, "git", "status", "--porcelain")[1].split() == ["??", "experiments/cpu/dvc.lock"]
