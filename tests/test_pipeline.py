"""The DVC pipeline, run for real at the smallest size."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from cytomil.bags.manifest import read_manifest
from tests.projects import commit, run

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
TINY = {
    "make_bags": {"bag_size": 8, "train_bags": 6, "test_bags": 4, "cell_size": 24, "witness_rate": 0.25},
    "pretrain": {"epochs": 1, "batch_size": 16, "image_size": 16, "arch": "test_resnet", "weights": "none"},
    "fit_mil": {"epochs": 2, "folds": 2, "ensemble": 1},
}
LABELS = "slide,label,split\ns1,0,train\ns2,1,train\ns3,0,test\ns4,1,test\n"
STAGES = ("make-bags", "pretrain", "embed", "fit-mil", "evaluate")


def new_project(root, **sections):
    """A repository with the default pipeline at the smallest size, and what ``sections`` say otherwise."""
    (root / "data").mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "data/.gitignore", "data/README.md"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "cytomil", root / "cytomil", ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, root / ".dvc")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, keys in (*TINY.items(), *sections.items()):
        params[section] |= keys
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(root, "git", "init", "-q")
    commit(root)
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return new_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def labelled(tmp_path, make_slide_folders):
    """A pipeline on labelled slides that lie outside of the repository."""
    make_slide_folders(tmp_path / "slides", ["s1", "s2", "s3", "s4"])
    (tmp_path / "labels.csv").write_text(LABELS)
    (tmp_path / "project").mkdir()
    source = {"source": str(tmp_path / "slides"), "labels": str(tmp_path / "labels.csv")}
    return new_project(tmp_path / "project", make_bags=source)


def bags(root):
    return {row.bag_id: (row.label, row.n_instances) for row in read_manifest(root / "data" / "bags").rows}


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
    assert "models/dvclive/encoder/metrics.json" in metrics[""]["data"]

    dvc(project, "plots", "show", "--out", "plots-page")
    page = (project / "plots-page" / "index.html").read_text()
    for name in ("roc", "pr", "recall_by_k", "training"):
        assert f"reports_plots_{name}.png" in page or f"{name}.png" in page
    # Nothing of the page is fetched: it shows in a laboratory without a network too.
    assert not re.findall(r"(?:src|href)=.?(?:https?:)?//", page)
    for picture in re.findall(r'<img src="([^"]+)"', page):
        assert (project / "plots-page" / picture).stat().st_size > 1000
    assert "<img" in page
    assert run(project, "git", "status", "--porcelain", "data").stdout == ""

    commit(project)
    dvc(project, "exp", "run", "-S", "pretrain.method=simclr")
    card = json.loads((project / "models/encoder/encoder.json").read_text())
    assert card["method"] == "simclr"


def test_changed_slides_and_labels_make_the_bags_anew(labelled):
    """Never stale labels: neither by skipping the stage nor out of DVC's cache of earlier runs."""
    outside = labelled.parent
    assert ran(dvc(labelled, "repro", "make-bags")) == ("make-bags",)
    assert ran(dvc(labelled, "repro", "make-bags")) == ()
    assert bags(labelled) == {"s1": (0, 4), "s2": (1, 4), "s3": (0, 4), "s4": (1, 4)}

    (outside / "labels.csv").write_text(LABELS.replace("s3,0", "s3,1"))
    (outside / "slides" / "s1" / "cell-0.png").unlink()
    corrected = {"s1": (0, 3), "s2": (1, 4), "s3": (1, 4), "s4": (1, 4)}
    dvc(labelled, "repro", "make-bags")
    assert bags(labelled) == corrected
    for seed in (1, 0):
        change(labelled, "make_bags", seed=seed)
        dvc(labelled, "repro", "make-bags")
        assert bags(labelled) == corrected

    (outside / "labels.csv").write_text(LABELS)
    dvc(labelled, "repro", "make-bags")
    assert bags(labelled)["s3"] == (0, 4)


def test_slides_that_were_read_are_not_read_again_though_the_stage_was_killed(labelled):
    """DVC neither deletes nor keeps what a killed run had finished."""
    dvc(labelled, "repro", "make-bags")
    bags_folder, unfinished = labelled / "data" / "bags", labelled / "data" / ".bags.unfinished"
    content = (bags_folder / "bags.csv").read_bytes()
    bags_folder.rename(unfinished)  # as a run leaves it that is killed while it reads the last slides
    for name in ("bags.csv", "make-bags.json", "s4.h5"):
        (unfinished / name).unlink()
    done = run(labelled, "dvc", "repro", "make-bags")
    assert done.returncode == 0, done.stderr
    assert "3 of 4 slides were read before, 1 remain" in " ".join(done.stderr.split())
    assert (bags_folder / "bags.csv").read_bytes() == content
    assert not unfinished.exists()

    (labelled.parent / "labels.csv").write_text(LABELS.replace("s3,0", "s3,1"))
    done = run(labelled, "dvc", "repro", "make-bags")
    assert "4 of 4 slides were read before, 0 remain" in " ".join(done.stderr.split())
    assert bags(labelled)["s3"] == (1, 4)
    assert run(labelled, "git", "status", "--porcelain", "data").stdout == ""


def test_a_cell_that_cannot_be_read_is_listed_and_the_pipeline_goes_on(labelled):
    (labelled.parent / "slides" / "s1" / "cell-0.png").write_text("no image")
    done = run(labelled, "dvc", "repro", "make-bags")
    assert done.returncode == 0
    assert "s1/cell-0.png" in done.stderr
    assert (labelled / "dvc.lock").exists()
    record = json.loads((labelled / "data/bags/make-bags.json").read_text())
    assert [where for where, _ in record["left_out"]] == ["s1/cell-0.png"]

    (labelled.parent / "labels.csv").write_text("slide,label\ns1,maybe\n")
    assert run(labelled, "dvc", "repro", "make-bags").returncode != 0


def test_raw_cells_are_kept_under_dvc_with_a_remote(labelled, tmp_path):
    """The steps of data/README.md."""
    shutil.copytree(labelled.parent / "slides", labelled / "data" / "raw" / "slides")
    dvc(labelled, "add", "data/raw/slides")
    assert run(labelled, "git", "add", "data/raw/slides.dvc").returncode == 0
    assert run(labelled, "git", "status", "--porcelain", "data").stdout == "A  data/raw/slides.dvc\n"
    dvc(labelled, "remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc(labelled, "push")
    commit(labelled)
    clone = tmp_path / "clone"
    assert run(labelled, "git", "clone", "-q", str(labelled), str(clone)).returncode == 0
    dvc(clone, "pull", "data/raw/slides.dvc")
    assert len(list((clone / "data/raw/slides").rglob("*.png"))) == 16
