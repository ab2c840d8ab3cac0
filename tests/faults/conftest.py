"""A server that forks commands, and inputs for all of them, made once a run."""

import pytest

from bench.fault_commands import make_inputs
from bench.forked import Forks


@pytest.fixture(scope="session")
def forks():
    with Forks() as server:
        yield server


@pytest.fixture(scope="session")
def inputs(shared, forks):
    return shared.folder("fault-inputs", lambda root: make_inputs(forks, root))
