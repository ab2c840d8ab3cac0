"""Limits are renewed by progress, and nothing happens without them."""

from __future__ import annotations

import sys

import pytest

from cytomil import limits


@pytest.fixture
def soft(monkeypatch):
    """The soft limits that would have been set, by kind."""
    if limits.resource is None:
        pytest.skip("this system has no limits")
    found = {}
    monkeypatch.setattr(limits, "_imposed", [])
    monkeypatch.setattr(limits.resource, "setrlimit", lambda kind, pair: found.update({kind: pair[0]}))
    return found


@pytest.fixture
def clock(monkeypatch):
    """Processor time, to be set."""
    now = [0.0]
    monkeypatch.setattr(limits.time, "process_time", lambda: now[0])
    return now


def test_without_limits_progress_does_nothing(soft):
    limits.progress(1000.0)
    assert soft == {}


def test_progress_moves_the_limit_on(soft, clock):
    limits.impose(lambda: None)
    assert soft[limits.resource.RLIMIT_CPU] == limits.CPU_S + 1
    clock[0] = 7.5
    limits.progress()
    assert soft[limits.resource.RLIMIT_CPU] == 7 + limits.CPU_S + 1


def test_an_allowance_lasts_over_several_steps(soft, clock):
    limits.impose(lambda: None)
    limits.progress(100.0)
    clock[0] = 50.0
    limits.progress()
    assert soft[limits.resource.RLIMIT_CPU] == 100 + limits.CPU_S + 1
    clock[0] = 110.0
    limits.progress()
    assert soft[limits.resource.RLIMIT_CPU] == 110 + limits.CPU_S + 1


def test_memory_and_core_dumps_are_limited(soft):
    limits.impose(lambda: None)
    assert soft[limits.resource.RLIMIT_CORE] == 0
    if sys.platform == "linux":
        assert soft[limits.resource.RLIMIT_DATA] == limits.MEMORY_BYTES


def test_signs_are_rare(soft, monkeypatch):
    signs, now = [], [100.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    limits.impose(lambda: signs.append(now[0]))
    for now[0] in (101.0, 104.0, 105.5, 106.0, 111.0):
        limits.progress()
    assert signs == [100.0, 105.5, 111.0]
