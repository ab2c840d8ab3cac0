"""Training curves, with DVCLive and without it."""

import pytest

from cytomil.training import curves
from cytomil.training.curves import Curves, has_dvclive


def test_each_epoch_is_a_point_and_none_is_lost_by_going_on(tmp_path):
    pytest.importorskip("dvclive")
    assert has_dvclive()
    with Curves(tmp_path / "live", resume=False) as first:
        first.log({"epoch": 1, "loss": 2.0})
    with Curves(tmp_path / "live", resume=True) as second:
        second.log({"epoch": 2, "loss": 1.0})
    points = (tmp_path / "live" / "plots" / "metrics" / "loss.tsv").read_text().splitlines()
    assert [line.split("\t")[-1] for line in points] == ["loss", "2.0", "1.0"]


def test_without_dvclive_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    with Curves(tmp_path / "live", resume=False) as live:
        live.log({"epoch": 1, "loss": 2.0})
    assert not (tmp_path / "live").exists()
