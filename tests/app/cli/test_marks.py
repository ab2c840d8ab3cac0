"""What must be known of an encoder stands beside every figure that was made with it."""

import json

import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app

CEILING = {"uses_instance_labels": True}
COLLAPSED = {"collapsed": True, "collapse_reason": "one point"}
MARKS = {"plain": {}, "ceiling": CEILING, "collapsed": COLLAPSED, "both": CEILING | COLLAPSED}


def run(*line):
    done = CliRunner().invoke(app, [*line, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("facts", MARKS.values(), ids=MARKS)
def test_fit_mil_and_evaluate_say_so(facts, bags_copy, make_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    bags_copy.rename("data/bags")
    make_encoder(tmp_path / "models" / "encoder", **facts)
    run("embed", "--layer", "z")
    for line in (["fit-mil", "--epochs", "1", "--folds", "2", "--ensemble", "1"], ["evaluate"]):
        found, shown = run(*line)
        assert found["uses_instance_labels"] is ("uses_instance_labels" in facts)
        assert found["collapsed"] is ("collapsed" in facts)
        assert ("CEILING" in shown, "COLLAPSED" in shown) == (found["uses_instance_labels"], found["collapsed"])
    metrics = json.loads((tmp_path / "reports" / "metrics.json").read_text())
    assert {key: found[key] for key in metrics} == metrics
