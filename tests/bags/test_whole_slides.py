import pytest

from cytomil.bags.whole_slides import cell_id, locate
from cytomil.errors import NotFoundError


@pytest.fixture
def root(tmp_path):
    for name in ("a.tif", "b.svs", "b.tif", "c.mrxs", "e.tif", "v1.2.svs"):
        (tmp_path / name).touch()
    for name in ("c", "cells", "e"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.tif", "a.tif"), ("a", "a.tif"), ("b.svs", "b.svs"), ("c", "c.mrxs"), ("cells", "cells"), ("v1.2", "v1.2.svs")],
)
def test_a_name_finds_its_slide_with_or_without_suffix_or_its_folder(root, name, expected):
    assert locate(root, name) == root / expected


@pytest.mark.parametrize(
    ("name", "message"),
    [("b", r"b\.svs or .*b\.tif"), ("d", "no such folder or slide"), ("e", r"e\.tif or the folder e.*rename one")],
)
def test_a_name_that_is_unclear_or_unknown_is_refused(root, name, message):
    with pytest.raises(NotFoundError, match=message):
        locate(root, name)


def test_cells_are_named_by_where_they_lie():
    assert cell_id(12.4, 7.6) == "x12y8"


@pytest.mark.parametrize(
    ("name", "close"), [("7", "007"), ("CELLS", "cells"), ("cell", "cells"), ("v1.3.svs", "v1.2.svs")]
)
def test_a_name_that_is_nearly_right_is_put_right(root, name, close):
    (root / "007").mkdir()
    with pytest.raises(NotFoundError, match=rf"Did you mean {close}\?"):
        locate(root, name)
