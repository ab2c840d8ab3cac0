from __future__ import annotations

import pytest

from cytomil.litter import is_litter, is_note


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._a.jpg", ".ipynb_checkpoints", "Thumbs.db", "THUMBS.DB", "desktop.ini", "Desktop.ini"),
        *("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "~$labels.xlsx", "System Volume Information", "lost+found"),
    ],
)
def test_what_systems_leave_behind(name):
    assert is_litter(name)


@pytest.mark.parametrize("name", ["a.jpg", "s1", "slide.svs", "~a.png", "@1.jpg", "#7.tif", "recycle", "$5.png"])
def test_what_may_be_a_slide_or_cell(name):
    assert not is_litter(name)
    assert not is_note(name)


@pytest.mark.parametrize("name", ["labels.csv", "Labels.XLSX", "notes.txt", "report.pdf", "letter.docx", "a.geojson"])
def test_notes(name):
    assert is_note(name)
