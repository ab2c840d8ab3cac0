import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cytomil import __version__
from cytomil.app.cli.app import app
from cytomil.app.settings import Settings

SECTIONS = ("make_bags", "pretrain", "compile", "embed", "fit_mil", "evaluate", "rank")


def help_of(*command):
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0
    return re.sub(r"[│╭╮╰╯─\s]+", " ", result.stdout)


@pytest.mark.parametrize("section", SECTIONS)
def test_help_names_every_setting_with_its_default_and_meaning(section):
    shown = help_of(section.replace("_", "-"))
    for key, field in Settings.model_fields[section].annotation.model_fields.items():
        if key == "options":
            continue
        name = key.upper() if (section, key) == ("make_bags", "source") else f"--{key.replace('_', '-')}"
        assert name in shown, f"{name} is not an option of {section}"
        assert field.description.split(",")[0].split(";")[0][:30] in shown
        default = field.default
        text = "none" if default in (None, ()) else str(getattr(default, "value", default))
        assert f"({text})" in shown, f"{name}'s default {text} is not shown"


@pytest.mark.parametrize(
    ("verb", "flag", "name", "own"),
    [
        ("pretrain", "--method", "slam-ags", "--objective"),
        ("pretrain", "--method", "simclr", ""),
        ("fit-mil", "--aggregator", "pamil", "--n-prototypes"),
        ("fit-mil", "--aggregator", "mean", ""),
        ("compile", "--engine", "openvino", "--calibration-cells"),
        ("compile", "--engine", "ncnn", ""),
    ],
)
def test_help_lists_the_own_settings_of_what_the_line_names(verb, flag, name, own):
    shown = help_of(verb, flag, name)
    assert (own or f"{name} has no settings of its own") in shown
    assert "NAME has of its own" in help_of(verb)


def test_the_top_help_lists_the_verbs_and_the_exit_statuses():
    shown = help_of()
    for verb in ("make-bags", "pretrain", "embed", "fit-mil", "evaluate", "rank", "doctor"):
        assert verb in shown
    assert "params.yaml" in shown
    assert "Exit status" in shown


def test_version_and_module():
    run = subprocess.run([sys.executable, "-m", "cytomil", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"cytomil {__version__}"


@pytest.mark.parametrize(
    "line", [["pretrain", "--method", "magic"], ["embed", "--no-such-option"], ["rank"], ["nonsense"]]
)
def test_wrong_usage_has_exit_status_2(line):
    assert CliRunner().invoke(app, line).exit_code == 2
