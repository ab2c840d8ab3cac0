import re
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from bench.__main__ import PAGE, benches, main


def test_every_bench_says_what_it_measures(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert {"speed", "cohort", "recipe", "startup"} <= set(benches())
    for name, what in benches().items():
        assert what and what in listed and name in listed


def test_without_a_name_the_page_is_printed_bench_by_bench(monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command[3:]) or Namespace(returncode=0))
    assert main([]) == 0
    assert [name for name, *_ in ran] == [name for name, _ in PAGE]
    assert {name for name, _ in PAGE} <= set(benches())


@pytest.mark.parametrize("name", benches())
def test_every_bench_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--json" in told and "--markdown" in told


def test_an_unknown_bench_is_one_line(capsys):
    assert main(["fastness"]) == 2
    assert "there is no bench 'fastness'" in capsys.readouterr().err


def test_missing_cells_skip_a_bench(capsys, tmp_path):
    assert main(["speed", "--data", str(tmp_path / "none")]) == 0
    told = capsys.readouterr()
    assert "speed skipped" in told.err and not told.out


def test_the_page_of_figures_has_a_section_for_every_bench_and_no_others():
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## .+\n\n    python -m bench (\w+)", page, re.MULTILINE)) == set(benches())
