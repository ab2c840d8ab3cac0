"""A server that forks commands, and inputs for all of them, made once a run."""

import pytest

from bench.fault_commands import make_inputs
from bench.faults import Trial
from bench.forked import Forks


@pytest.fixture(scope="session")
def forks():
    with Forks() as server:
        yield server


@pytest.fixture(scope="session")
def inputs(shared, forks):
    return shared.folder("fault-inputs", lambda root: make_inputs(forks, root))


@pytest.fixture(scope="session")
def trial(forks, inputs, tmp_path_factory):
    """``trial(command)``: its unbroken runs, made once in each process."""
    made = {}

    def of(command):
        if command not in made:
            made[command] = Trial.prepare(forks, command, inputs, tmp_path_factory.mktemp("trial"))
        return made[command]

    return of
