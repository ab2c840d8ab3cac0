from __future__ import annotations

import shutil

from cytomil.bags.labelled_slides import copies


def places(root, *names):
    return {name: root / name for name in names}


def test_files_are_told_by_content_not_by_size(tmp_path):
    for name, content in (("a.tif", b"one"), ("b.tif", b"two"), ("c.tif", b"one"), ("d.tif", b"one")):
        (tmp_path / name).write_bytes(content)
    assert copies(places(tmp_path, "a.tif", "b.tif", "c.tif", "d.tif")) == {"c.tif": "a.tif", "d.tif": "a.tif"}
    assert copies(places(tmp_path, "c.tif", "a.tif")) == {"a.tif": "c.tif"}


def test_folders_are_told_by_their_images_whatever_their_names(tmp_path, make_slide_folders):
    make_slide_folders(tmp_path, ["a", "b"])
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    (tmp_path / "c" / "cell-0.png").rename(tmp_path / "c" / "z.png")
    assert copies(places(tmp_path, "a", "b", "c")) == {"c": "a"}


def test_a_slide_is_what_its_companion_folder_holds(tmp_path):
    for name, part in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / f"{name}.mrxs").write_bytes(b"the same picture of the label")
        (tmp_path / name).mkdir()
        (tmp_path / name / "Data0000.dat").write_bytes(part)
    assert copies(places(tmp_path, "a.mrxs", "b.mrxs", "c.mrxs")) == {"c.mrxs": "a.mrxs"}


def test_two_empty_folders_are_not_said_to_be_one_slide(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert copies(places(tmp_path, "a", "b")) == {}
