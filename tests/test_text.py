import pytest

from cytomil.text import is_file_name, is_inside


@pytest.mark.parametrize("text", ["a", "a.h5", "ü", "..a", "a..", "-"])
def test_names_of_files(text):
    assert is_file_name(text)
    assert is_inside(f"folder/{text}")


@pytest.mark.parametrize("text", ["", ".", "..", "/", "/a", "a/..", "../a", "a\0"])
def test_what_leaves_a_folder_or_names_nothing(text):
    assert not is_file_name(text)
    assert not is_inside(text)


def test_a_path_is_no_name():
    assert not is_file_name("a/b")
