import subprocess
import sys

from bench.__main__ import benches, main


def test_every_bench_says_what_it_measures(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert {"road"} <= set(benches())
    for name, what in benches().items():
        assert what and what in listed and name in listed


def test_every_bench_has_help():
    for name in benches():
        done = subprocess.run(
            [sys.executable, "-m", "bench", name, "--help"], capture_output=True, text=True, check=True
        )
        assert "--json" in done.stdout and "--markdown" in done.stdout


def test_an_unknown_bench_is_one_line(capsys):
    assert main(["speed"]) == 2
    assert "no bench is called 'speed'" in capsys.readouterr().err


def test_missing_cells_skip_a_bench(capsys, tmp_path):
    assert main(["road", str(tmp_path / "none")]) == 0
    told = capsys.readouterr()
    assert "road skipped" in told.err and not told.out
