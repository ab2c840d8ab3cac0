"""cytomil review: what it refuses, in one line."""

import json
import os
import socket

import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app


def told(*line):
    result = CliRunner().invoke(app, ["review", *map(str, line), "--no-browser"])
    return result.exit_code, " ".join(result.output.split())


def test_a_folder_that_was_never_ranked(tmp_path):
    status, said = told(tmp_path)
    assert status == 1
    assert "triage.json does not exist" in said
    assert "cytomil rank" in said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": "other/1"}', "[" * 5000, '{"slides": 3}', "1" * 5000]
)
def test_a_damaged_worklist(tmp_path, text):
    (tmp_path / "triage.json").write_text(text)
    status, said = told(tmp_path)
    assert status == 1, said
    assert "triage.json" in said
    assert "Traceback" not in said


def write_worklist(folder):
    document = {"schema": "cytomil.triage/1", "created": "", "notice": "", "slides": [], "model_card": {}}
    (folder / "triage.json").write_text(json.dumps(document))


def test_a_port_that_is_taken(tmp_path):
    write_worklist(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, said = told(tmp_path, "--port", taken.getsockname()[1])
    assert status == 1
    assert "--port 0" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    write_worklist(tmp_path)
    tmp_path.chmod(0o500)
    status, said = told(tmp_path)
    assert status == 1
    assert "cannot be written" in said
