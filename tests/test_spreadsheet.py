from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.text import as_text_cell, from_text_cell


@pytest.mark.parametrize("name", ["=SUM(1+1)", "+1", "-1", "@a", "\t=1", "\r=1"])
def test_no_name_is_a_formula(name):
    assert as_text_cell(name) == f"'{name}"


def test_other_names_stay_as_they_are():
    assert as_text_cell("slide 1") == "slide 1"
    assert as_text_cell("") == ""


@given(st.text(max_size=8) | st.text("'=+-@", max_size=5))
def test_names_come_back(name):
    assert from_text_cell(as_text_cell(name)) == name
