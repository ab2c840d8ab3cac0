"""What reaches a user's screen: whole JSON, no library's warnings, no tracebacks, nothing that a terminal obeys."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
import typer

from cytomil.app.cli import app as cli
from cytomil.app.cli.console import finish, plain_errors, print_table
from cytomil.progress import Problem


def cytomil(*words, encoding="utf-8", cwd=None):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "cytomil", *words]
    return subprocess.run(command, capture_output=True, env=environment, cwd=cwd, timeout=120, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_is_shown_in_any_encoding(encoding):
    shown = cytomil("rank", "--help", encoding=encoding)
    assert shown.returncode == 0
    assert b"SLIDE_DIR" in shown.stdout
    assert not shown.stderr


def test_json_is_ascii(capsys):
    with pytest.raises(typer.Exit):
        finish({"slide": "日本é"}, [Problem("é", "why")], as_json=True)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {"slide": "日本é", "left_out": [{"which": "é", "why": "why"}]}


def test_names_are_neither_obeyed_nor_taken_for_markup(capsys):
    print_table("of [bold]\x1b[2J", ("which",), [("a\x1b]0;title\x07",), ("[red]b[/red]",)])
    shown = capsys.readouterr().err
    assert "\x1b]0" not in shown
    assert "\x1b[2J" not in shown
    assert "[red]b[/red]" in shown
    assert "[bold]" in shown


@pytest.fixture
def failing(monkeypatch):
    def set_error(error):
        def fail():
            raise error

        monkeypatch.setattr(cli, "app", fail)
        monkeypatch.setattr(cli, "_silence_libraries", lambda: None)
        with pytest.raises((SystemExit, type(error))) as caught:
            cli.main()
        return caught.value

    return set_error


def test_an_internal_fault_has_a_status_of_its_own_and_no_traceback(failing, capsys, monkeypatch):
    monkeypatch.delenv(cli.DEBUG, raising=False)
    assert failing(KeyError("a bug")).code == cli.INTERNAL_FAULT
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert shown.startswith("internal error: KeyError: 'a bug' (test_screen.py, line ")
    assert "Please report" in shown


def test_debugging_shows_the_traceback(failing, monkeypatch):
    monkeypatch.setenv(cli.DEBUG, "1")
    assert isinstance(failing(KeyError("a bug")), KeyError)


def test_too_little_memory_is_no_fault_of_cytomil(failing, capsys, monkeypatch):
    monkeypatch.delenv(cli.DEBUG, raising=False)
    assert failing(MemoryError()).code == 1
    assert "not enough memory" in capsys.readouterr().err


def test_libraries_warnings_stay_off_the_screen():
    code = (
        "from cytomil.app.cli import app\napp._silence_libraries()\nimport logging, os, warnings\n"
        "warnings.warn('a warning')\nlogging.getLogger('PIL').error('an error')\nprint(os.environ['PYTHONWARNINGS'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True, text=True)
    assert (shown.stdout, shown.stderr) == ("ignore\n", "")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(28, "No space left on device", "data/bags"), "data/bags: No space left on device. Free space on"),
        (OSError(5, "Input/output error", "data/bags"), "data/bags: Input/output error.\n"),
    ],
)
def test_an_error_of_the_disk_names_the_file_and_a_full_disk_the_cure(error, shown, capsys):
    with pytest.raises(typer.Exit) as ended, plain_errors():
        raise error
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err.startswith(f"error: {shown}")


def test_standard_output_that_cannot_be_written_is_one_line(capsys, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(typer.Exit) as ended:
        finish({"found": 1}, (), as_json=True)
    assert ended.value.exit_code == 1
    assert "standard output cannot be written (No space left on device)" in capsys.readouterr().err
