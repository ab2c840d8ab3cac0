import json
import os
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.tables import WIDTH, Measured, Table, document

words = st.text(st.characters(categories=["Lu", "Ll", "Nd"]), max_size=9)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(words, min_size=n, max_size=n), min_size=2, max_size=6)))
def test_tables_are_aligned_and_narrow(lines):
    columns, *rows = lines
    shown = Table(tuple(columns), tuple(map(tuple, rows))).markdown().splitlines()
    assert len(shown) == len(rows) + 2
    assert len({len(line) for line in shown}) == 1
    assert len(shown[0]) <= WIDTH
    assert [cell.strip() for cell in shown[2].strip("| ").split(" | ")] == [
        cell.strip() for cell in rows[0]
    ] or "" in rows[0]


def test_numbers_stand_to_the_right():
    assert Table.of({"verb": "embed", "cells": "5,000"}, {"verb": "rank", "cells": "40"}).markdown() == (
        "| verb  | cells |\n| ----- | ----: |\n| embed | 5,000 |\n| rank  |    40 |"
    )


def test_a_wide_table_is_refused():
    with pytest.raises(ValueError, match="wide, more than 100"):
        Table.of({"x" * 60: "1", "y" * 60: "2"}).markdown()


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="1 cells under 2"):
        Table(("a", "b"), (("1",),))
    with pytest.raises(ValueError, match="different columns"):
        Table.of({"a": 1}, {"b": 1})


def test_paragraphs_are_filled():
    shown = Measured({}, ("word " * 60, Table.of({"a": 1}))).markdown()
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "word\n\n|   a |\n" in shown


def test_the_document_names_no_machine_and_no_place(tmp_path):
    options = {"data": tmp_path, "folders": [tmp_path], "json": tmp_path / "x.json", "markdown": "-", "repeats": 5}
    told = document("embed", Measured({"ratio": 2.5}, ()), options)
    assert told["options"] == {"repeats": 5}
    assert told["results"] == {"ratio": 2.5}
    assert told["machine"]["cores"] >= 1 and told["machine"]["memory_gb"] >= 1
    assert {"torch", "numpy"} <= set(told["machine"]["versions"])
    text = json.dumps(told)
    for secret in (platform.node(), str(tmp_path), str(Path.home()), str(Path.cwd()), os.environ.get("USER") or "/tmp"):
        assert secret not in text
    assert "/" not in text.replace("cytomil.bench/1", "")
