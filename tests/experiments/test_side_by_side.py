import json
from pathlib import Path

import pytest

from cytomil.errors import CytomilError
from cytomil.experiments.planned import is_done
from experiments.__main__ import main
from experiments.side_by_side import run_all

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Where ``python -m experiments`` is found."""
    monkeypatch.chdir(ROOT)


@pytest.mark.long
def test_every_cell_is_run_and_those_that_fail_are_named(tiny_grid, monkeypatch, capsys):
    grid = tiny_grid(methods=["weakly-supervised", "no-such-method"])
    monkeypatch.setattr("sys.argv", ["experiments", "all", str(grid.folder), "--jobs", "2"])
    assert main() == 1
    assert "no-such-method" in capsys.readouterr().err
    done, failed = grid.cells
    assert is_done(grid.planned(done))
    assert "no-such-method" in json.loads(grid.record_of(failed).read_text())["failed"]
    before = grid.record_of(done).read_bytes()
    assert run_all(grid, 1) == [failed]
    assert grid.record_of(done).read_bytes() == before


@pytest.mark.long
def test_bags_that_cannot_be_made_end_it_with_a_reason(tiny_grid, params, tmp_path):
    broken = params | {"make_bags": params["make_bags"] | {"source": str(tmp_path / "nowhere")}}
    with pytest.raises(CytomilError, match="could not be made"):
        run_all(tiny_grid(params=broken), 1)
