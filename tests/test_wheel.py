"""The wheel, built and installed without the network: it holds what a user needs, and works outside of the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def run(*line, cwd=ROOT, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, line)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(shared):
    quiet = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    folder = shared.folder("wheel", lambda folder: run("-m", "pip", "wheel", ROOT, *quiet, "--wheel-dir", folder))
    (found,) = folder.glob("cytomil-*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel, shared):
    """The wheel, installed into a folder of its own."""
    quiet = ("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    return shared.folder("site", lambda folder: run("-m", "pip", "install", wheel, *quiet, "--target", folder))


def test_it_holds_the_types_the_templates_and_the_pipeline(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    stubs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cytomil").rglob("*.pyi")}
    other = {"cytomil/py.typed", "cytomil/app/pipeline/params.yaml", "cytomil/app/pipeline/dvc.yaml"}
    assert "cytomil/__init__.pyi" in stubs
    assert stubs | other | {"cytomil/triage/triage.schema.json"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cytomil"}


def test_its_names_are_there(site, tmp_path):
    code = "import cytomil; print(cytomil.__file__, *dir(cytomil)); cytomil.make_bags, cytomil.pretrain, cytomil.Method"
    # Without bytecode, since tests do not write to what is shared.
    out = run("-c", code, cwd=tmp_path, PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1").stdout.split()
    assert out[0] == str(site / "cytomil" / "__init__.py")
    assert {"open_bags", "pretrain", "rank", "nt_xent_loss"} <= set(out)


def test_init_works_from_it(site, tmp_path):
    run("-m", "cytomil", "init", "new", cwd=tmp_path, PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1")
    assert (tmp_path / "new" / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    stages = yaml.safe_load((tmp_path / "new" / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert not [dep for stage in stages.values() for dep in stage.get("deps", ()) if dep.startswith("cytomil")]


@pytest.mark.long  # DVC, in other processes
def test_dvc_reads_the_pipeline_that_init_wrote(site, tmp_path):
    quiet = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "DVC_NO_ANALYTICS": "1"}
    run("-m", "cytomil", "init", cwd=tmp_path, **quiet)
    run("-m", "dvc", "init", "--no-scm", "--quiet", cwd=tmp_path, **quiet)
    listed = run("-m", "dvc", "stage", "list", "--name-only", cwd=tmp_path, **quiet).stdout.split()
    assert listed == ["inputs", "make-bags", "pretrain", "embed", "fit-mil", "evaluate"]
    run("-m", "dvc", "repro", "--dry", "inputs", cwd=tmp_path, **quiet)
