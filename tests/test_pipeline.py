"""The DVC pipeline, run for real at the smallest size."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.projects import commit, run

ROOT = Path(__file__).parents[1]
TINY = {
    "make_bags": {"bag_size": 8, "train_bags": 6, "test_bags": 4, "cell_size": 24, "witness_rate": 0.25},
    "pretrain": {"epochs": 1, "batch_size": 16, "image_size": 16},
    "fit_mil": {"epochs": 2, "folds": 2, "ensemble": 1},
}
STAGES = ("make-bags", "pretrain", "embed", "fit-mil", "evaluate")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "cytomil", root / "cytomil", ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, root / ".dvc")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, keys in TINY.items():
        params[section] |= keys
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(root, "git", "init", "-q")
    commit(root)
    return root


def dvc(root, *line):
    done = run(root, "dvc", *line)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ran(output):
    return tuple(stage for stage in STAGES if f"Running stage '{stage}'" in output)


def change(root, section, **keys):
    params = yaml.safe_load((root / "params.yaml").read_text())
    params[section] |= keys
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_the_pipeline_from_first_run_to_experiment(project):
    assert ran(dvc(project, "repro")) == STAGES
    assert ran(dvc(project, "repro")) == ()
    commit(project)

    change(project, "fit_mil", seed=1)
    assert ran(dvc(project, "repro")) == ("fit-mil", "evaluate")
    assert "fit_mil.seed" in dvc(project, "params", "diff")
    change(project, "evaluate", k=2)
    assert ran(dvc(project, "repro")) == ("evaluate",)

    metrics = json.loads(dvc(project, "metrics", "show", "--json"))
    shown = metrics[""]["data"]["reports/metrics.json"]["data"]
    assert shown["instance"]["k"] == 2
    assert "collapsed" in shown
    assert "models/dvclive/metrics.json" in metrics[""]["data"]

    dvc(project, "plots", "show", "--out", "plots-page")
    page = (project / "plots-page" / "index.html").read_text()
    for title in ("ROC of the test bags", "NT-Xent and chance by epoch", "Witnesses found"):
        assert title in page

    commit(project)
    dvc(project, "exp", "run", "-S", "pretrain.method=simclr")
    card = json.loads((project / "models/encoder/encoder.json").read_text())
    assert card["method"] == "simclr"
