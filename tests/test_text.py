from __future__ import annotations

import os

from cytomil.errors import CytomilError
from cytomil.text import printable


def test_printable_names():
    assert printable("Zelle-ü 1.png") == "Zelle-ü 1.png"
    escaped = printable(os.fsdecode(b"Zelle-\xfc.png"))
    assert escaped == "Zelle-\\xfc.png"
    escaped.encode("utf-8")


def test_a_terminal_finds_nothing_to_obey():
    assert printable("a\x1b[31mb\x07\n\x9b2J\u202e") == "a\\x1b[31mb\\x07\\n\\x9b2J\\u202e"
    assert str(CytomilError("a\x1b[2J\nb  c")) == "a\\x1b[2J b c"
