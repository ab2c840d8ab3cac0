"""Start-up time of the command line: `cytomil --help` and the help of each verb.

This must not import PyTorch. The start-up time of Python alone is shown for comparison.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

from bench.tables import Measured, Table
from bench.timing import interleaved


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=9)


def measure(options: argparse.Namespace) -> Measured:
    lines = {"python -c pass": ["-c", "pass"], "cytomil --help": ["-m", "cytomil", "--help"]}
    lines |= {f"cytomil {verb} --help": ["-m", "cytomil", verb, "--help"] for verb in verbs()}
    timings = interleaved({line: _caller(words) for line, words in lines.items()}, options.repeats)
    table = Table.of(*({"command": name, "seconds": timing.spread.shown()} for name, timing in timings.items()))
    return Measured({"seconds": {name: timing.seconds for name, timing in timings.items()}}, (table,))


def verbs() -> list[str]:
    from cytomil.app.cli.app import app

    return sorted(command.name for command in app.registered_commands if command.name)


def _caller(words: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
