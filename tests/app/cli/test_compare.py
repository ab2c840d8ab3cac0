"""cytomil compare: a small grid from the command line, gone on with, and with a method that fails."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from cytomil.app.cli.app import app

PARAMS = {
    "pretrain": {"epochs": 1, "batch_size": 16, "image_size": 16, "weights": "none", "arch": "test_resnet"},
    "embed": {"device": "cpu", "engine": "eager", "layer": "z", "orientations": 1},
    "fit_mil": {"epochs": 1, "folds": 2, "ensemble": 1, "aggregator": "mean"},
    "evaluate": {"resamples": 100},
}


@pytest.fixture
def compare(tmp_path, bags_folder, monkeypatch):
    """``compare(*words)``: the exit status, what stands on the screen, and the JSON document."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))

    def run(*words):
        result = CliRunner().invoke(app, ["compare", "--bags", str(bags_folder), "--json", *words])
        return result.exit_code, result.stderr, result.stdout

    return run


def test_runs_end_in_one_table_and_finished_ones_are_not_repeated(compare, tmp_path):
    status, screen, printed = compare("--methods", "none,simclr", "--seeds", "1")
    assert status == 0, screen
    assert json.loads(printed) == {"folder": "comparison/table", "runs": 2, "failed": 0, "left_out": []}
    records, table = tmp_path / "comparison" / "runs", tmp_path / "comparison" / "table"
    assert {file.name for file in records.iterdir()} == {"0-none.json", "0-simclr.json"}
    assert {"table.md", "table.csv", "by-fraction-own.png"} <= {file.name for file in table.iterdir()}
    before = {file.name: file.stat().st_mtime_ns for file in records.iterdir()}

    status, screen, printed = compare("--methods", "none", "--seeds", "2")
    assert status == 0, screen
    assert "run 1 of 2, none, seed 0: already done" in screen
    assert json.loads(printed)["runs"] == 3  # the table is of all runs in the folder
    after = {file.name: file.stat().st_mtime_ns for file in records.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"1-none.json"}
    assert "SimCLR" in (table / "table.md").read_text()


def test_a_run_that_fails_is_listed_and_the_others_go_on(compare):
    # The ceiling is refused unless instance labels are asked for.
    status, screen, printed = compare("--methods", "fully-supervised,none", "--seeds", "1")
    assert status == 3, screen
    document = json.loads(printed)
    assert (document["runs"], document["failed"]) == (1, 1)
    assert document["left_out"][0]["which"].startswith("fully-supervised")
    assert "instance" in document["left_out"][0]["why"]


def test_given_aggregators_judge_in_their_order(compare, tmp_path):
    status, screen, _ = compare("--methods", "none", "--seeds", "1", "--aggregators", "knn,mean")
    assert status == 0, screen
    record = json.loads((tmp_path / "comparison" / "runs" / "0-none.json").read_text())
    assert [one["judge"] for one in record["evaluations"]] == ["knn", "best other"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "simclrr"), "Did you mean 'simclr'"),
        (("--methods", ","), "name at least one"),
        (("--methods", "none", "--aggregators", "median"), "no aggregator 'median'"),
        (("--methods", "none", "--seeds", "0"), "--seeds"),
    ],
)
def test_what_there_is_not_is_refused_before_any_work(compare, tmp_path, words, said):
    status, screen, _ = compare(*words)
    assert status == 2
    assert said in " ".join(screen.replace("│", " ").split())
    assert not (tmp_path / "comparison").exists()


def test_bags_that_are_not_there_are_one_line(compare, tmp_path):
    status, screen, _ = compare("--methods", "none", "--bags", "nowhere")
    assert status == 1
    assert "nowhere" in screen
    assert not (tmp_path / "comparison").exists()
