"""The review log: appended to, never rewritten, read by several at once."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cytomil.errors import ReviewLogError
from cytomil.review.log import Action, CellVerdict, Judgements, ReviewLog, SlideVerdict, others


def judge(log, cell, value, reader="AB", slide="s"):
    return log.append(reader, Action.CELL, slide, cell=cell, value=value)


def test_what_was_appended_is_read_by_another_process_at_once(tmp_path):
    log, other = ReviewLog(tmp_path), ReviewLog(tmp_path)
    judge(log, "c1", "abnormal")
    judge(other, "c2", "normal", reader="CD")
    judge(log, "c3", "unsure")
    for one in (log, other, ReviewLog(tmp_path)):
        assert [(entry.n, entry.reader, entry.cell) for entry in one.entries()] == [
            (1, "AB", "c1"),
            (2, "CD", "c2"),
            (3, "AB", "c3"),
        ]
        assert one.faults() == []


def _append_many(folder, reader, n):
    log = ReviewLog(folder)
    for i in range(n):
        judge(log, f"c{i}", "normal", reader)


def test_two_processes_at_once_lose_nothing(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(_append_many, tmp_path, reader, 30) for reader in ("AB", "CD")]:
            done.result()
    log = ReviewLog(tmp_path)
    assert sorted(entry.n for entry in log.entries()) == list(range(1, 61))
    assert log.faults() == []


def test_a_torn_line_stays_and_costs_no_other(tmp_path):
    log = ReviewLog(tmp_path)
    judge(log, "c1", "abnormal")
    with log.path.open("ab") as file:
        file.write(b'{"n":2,"time":"2026')
    again = ReviewLog(tmp_path)
    assert len(again.faults()) == 1
    judge(again, "c2", "normal")
    assert [entry.cell for entry in ReviewLog(tmp_path).entries()] == ["c1", "c2"]
    assert len(log.path.read_bytes().splitlines()) == 3
    assert [entry.cell for entry in log.entries()] == ["c1", "c2"]


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_line_that_was_changed_later_shows(tmp_path, changed):
    log = ReviewLog(tmp_path)
    for i in range(4):
        judge(log, f"c{i}", "abnormal")
    lines = log.path.read_bytes().splitlines(keepends=True)
    lines[changed] = lines[changed].replace(b"abnormal", b"normal")
    log.path.write_bytes(b"".join(lines))
    assert any("was changed or removed" in fault for fault in ReviewLog(tmp_path).faults())


def test_a_line_that_was_removed_shows(tmp_path):
    log = ReviewLog(tmp_path)
    for i in range(4):
        judge(log, f"c{i}", "abnormal")
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:1] + lines[2:]))
    assert len(ReviewLog(tmp_path).faults()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"reader": "a name that is long"},
        {"reader": "A<"},
        {"reader": ""},
        {"value": "malignant"},
        {"cell": ""},
        {"value": "x" * 5000},
    ],
)
def test_what_is_no_judgement_is_refused_and_not_kept(tmp_path, fields):
    log = ReviewLog(tmp_path)
    with pytest.raises(ReviewLogError) as caught:
        log.append(**{"reader": "AB", "action": Action.CELL, "slide": "s", "cell": "c", "value": "normal"} | fields)
    assert "\n" not in str(caught.value)
    assert log.entries() == []


_ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["AB", "CD"]),
        st.one_of(
            st.tuples(st.just(Action.CELL), st.sampled_from("xyz"), st.sampled_from([*CellVerdict])),
            st.tuples(st.just(Action.SLIDE), st.just(""), st.sampled_from([*SlideVerdict])),
            st.tuples(st.just(Action.UNDO), st.just(""), st.just("")),
        ),
    ),
    max_size=25,
)


@given(_ACTIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_judgements_are_those_of_a_stack_of_actions(tmp_path_factory, actions):
    log = ReviewLog(tmp_path_factory.mktemp("log"))
    stacks = {"AB": [], "CD": []}
    for reader, (action, cell, value) in actions:
        if action is not Action.UNDO:
            log.append(reader, action, "s", cell=cell, value=value)
            stacks[reader].append((action, cell, value))
        elif (last := Judgements.of(log.entries(), reader, "s").last) is not None:
            log.append(reader, action, "s", of=last)
            stacks[reader].pop()
    for reader, stack in stacks.items():
        found = Judgements.of(log.entries(), reader, "s")
        assert found.cells == {cell: value for action, cell, value in stack if action is Action.CELL}
        assert found.verdict == next((v for action, _, v in reversed(stack) if action is Action.SLIDE), None)
    assert log.faults() == []


def test_others_are_hidden_until_ones_own_verdict(tmp_path):
    log = ReviewLog(tmp_path)
    judge(log, "c1", "abnormal", reader="AB")
    judge(log, "c1", "normal", reader="CD")
    assert others(log.entries(), "CD", "s") == {}
    log.append("CD", Action.SLIDE, "s", value="negative")
    assert others(log.entries(), "CD", "s")["AB"].cells == {"c1": "abnormal"}
    assert others(log.entries(), "AB", "s") == {}


def test_entries_name_slide_and_model(tmp_path):
    log = ReviewLog(tmp_path)
    log.append("AB", Action.OPEN, "s", slide_sha256="1" * 64, model_sha256="2" * 64)
    (line,) = log.path.read_text().splitlines()
    kept = json.loads(line)
    assert (kept["slide_sha256"], kept["model_sha256"], kept["previous"]) == ("1" * 64, "2" * 64, "0" * 64)


def test_a_last_line_that_was_changed_shows_and_a_log_without_hashes_is_read(tmp_path):
    log = ReviewLog(tmp_path)
    judge(log, "c1", "abnormal")
    content = log.path.read_text()
    log.path.write_text(content.replace("abnormal", "normal"))
    assert any("line 1, was changed" in fault for fault in ReviewLog(tmp_path).faults())
    document = json.loads(content)
    del document["sha256"]
    log.path.write_text(json.dumps(document) + "\n")
    assert ReviewLog(tmp_path).faults() == []
