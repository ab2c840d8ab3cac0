"""The pipeline as it is written down; tests/test_pipeline.py has DVC run it."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cytomil.app.cli.app import app

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
VERBS = [name for name in STAGES if name != "inputs"]


def outs(stage):
    """What a stage makes, by path, with what DVC is told of it."""
    listed = [*stage.get("outs", ()), *stage.get("metrics", ())]
    return {path: how for out in listed for path, how in ([(out, {})] if isinstance(out, str) else out.items())}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_command_that_exists(name):
    command, verb, *options = STAGES[name]["cmd"].split()
    assert command == "cytomil"
    assert verb == ("make-bags" if name == "inputs" else name)
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).stdout
    assert all(option in shown for option in options if option.startswith("--"))


def test_a_stage_depends_on_code_that_is_there_and_on_what_an_earlier_one_makes():
    made = set()
    for name, stage in STAGES.items():
        for needed in stage.get("deps", ()):
            assert needed in made or (needed.startswith("cytomil/") and (ROOT / needed).exists()), (name, needed)
        made |= set(outs(stage))


@pytest.mark.parametrize("name", VERBS)
def test_each_setting_of_a_verb_makes_its_stage_run_again(name):
    section = name.replace("-", "_")
    assert set(STAGES[name]["params"]) == {"profile", section, f"profiles.paper.{section}"}
    assert section in PARAMS
    assert section in PARAMS["profiles"]["paper"]


def test_changed_slides_and_labels_are_seen_and_finished_slides_are_kept():
    assert STAGES["inputs"]["always_changed"]
    assert outs(STAGES["inputs"]) == {"data/inputs.json": {"cache": False}}
    assert "data/inputs.json" in STAGES["make-bags"]["deps"]
    assert outs(STAGES["make-bags"]) == {"data/bags": {"persist": True}}


@pytest.mark.parametrize("name", [name for name in VERBS if name != "fit-mil"])
def test_a_cell_that_cannot_be_read_does_not_end_it(name):
    assert STAGES[name]["cmd"].split()[2:] == ["--accept-left-out"]
