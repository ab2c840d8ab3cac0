"""Training curves, with DVCLive and without it."""

import pytest

from cytomil.app.cli import pretrain as curves
from cytomil.app.cli.pretrain import Curves, has_dvclive


def test_each_epoch_is_a_point_and_another_run_replaces_them(tmp_path):
    pytest.importorskip("dvclive")
    assert has_dvclive()
    with Curves(tmp_path / "live") as first:
        first.log({"epoch": 1, "loss": 3.0})
    with Curves(tmp_path / "live") as second:
        second.log({"epoch": 1, "loss": 2.0})
        second.log({"epoch": 2, "loss": 1.0})
    points = (tmp_path / "live" / "plots" / "metrics" / "loss.tsv").read_text().splitlines()
    assert [line.split("\t")[-1] for line in points] == ["loss", "2.0", "1.0"]


def test_without_dvclive_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    with Curves(tmp_path / "live") as live:
        live.log({"epoch": 1, "loss": 2.0})
    assert not (tmp_path / "live").exists()


def test_full_disk_is_named(tmp_path, monkeypatch):
    pytest.importorskip("dvclive.live")
    live = Curves(tmp_path / "live")

    def fail():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live, "_start", fail)
    with pytest.raises(OSError) as full:
        live.log({"epoch": 1})
    assert full.value.filename == str(tmp_path / "live")
