"""`cytomil init` starts a project outside of the repository."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.app.settings import Settings, load

ROOT = Path(__file__).parents[3]


def init(*words):
    return CliRunner().invoke(app, ["init", *map(str, words)])


@pytest.fixture
def project(tmp_path):
    done = init(tmp_path / "new" / "project")
    assert done.exit_code == 0, done.output
    return tmp_path / "new" / "project"


def test_params_yaml_is_the_repositorys_and_holds_the_defaults(project):
    assert (project / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert load({}, project / "params.yaml").make_bags == Settings().make_bags


def test_dvc_yaml_is_the_repositorys_without_cytomils_source(project):
    mine, theirs = (yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8")) for root in (project, ROOT))
    for stage in theirs["stages"].values():
        if "deps" in stage:
            stage["deps"] = [one for one in stage["deps"] if not one.startswith("cytomil/")]
            assert stage["deps"]
    assert mine == theirs
    assert (project / "dvc.yaml").read_text().startswith("# ")


def test_it_says_what_to_do_next_in_one_line(tmp_path):
    done = init(tmp_path)
    assert "dvc repro" in done.output
    assert "cytomil make-bags" in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_it_writes_into_the_working_folder_unless_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert init().exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.yaml", "params.yaml"]


def test_it_overwrites_nothing_without_force(tmp_path):
    (tmp_path / "dvc.yaml").write_text("mine")
    done = init(tmp_path)
    assert done.exit_code == 1
    assert "dvc.yaml" in done.output
    assert "--force" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["dvc.yaml"]
    assert (tmp_path / "dvc.yaml").read_text() == "mine"
    assert init(tmp_path, "--force").exit_code == 0
    assert "stages" in (tmp_path / "dvc.yaml").read_text()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    done = init(tmp_path / "file")
    assert done.exit_code == 1
    assert "Name a folder" in done.output
