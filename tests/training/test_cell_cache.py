import pytest
import torch

from cytomil.bags.manifest import fingerprint, read_manifest
from cytomil.encoders.transform import CellTransform
from cytomil.errors import CytomilError, SettingsError
from cytomil.progress import Silent
from cytomil.training import cells as memory
from cytomil.training import loop
from cytomil.training.cells import cell_cache_path, load_training_cells, open_cell_cache, write_cell_cache
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain

TRANSFORM = CellTransform(16, 0.8)


@pytest.fixture
def written(bags_folder, tmp_path):
    manifest = read_manifest(bags_folder)
    rows = manifest.select("train")
    path = cell_cache_path(tmp_path / "encoder", fingerprint(rows), TRANSFORM)
    write_cell_cache(path, manifest, rows, TRANSFORM, Silent())
    return path, manifest, rows


def test_cells_from_disk_are_those_from_memory(written):
    path, manifest, rows = written
    in_memory = load_training_cells(manifest, rows, TRANSFORM, Silent())
    on_disk = open_cell_cache(path, manifest, rows)
    assert torch.equal(on_disk.pixels, in_memory.pixels)
    assert torch.equal(on_disk.is_positive, in_memory.is_positive)
    assert torch.equal(on_disk.bag, in_memory.bag)
    assert torch.equal(on_disk.patient, in_memory.patient)
    assert on_disk.problems == in_memory.problems


def test_other_bags_or_another_transform_have_another_file(tmp_path):
    paths = {
        cell_cache_path(tmp_path / "e", data, CellTransform(size, crop))
        for data in ("a", "b")
        for size in (16, 32)
        for crop in (0.8, 1.0)
    }
    assert len(paths) == 8


def test_a_damaged_file_is_one_clear_line(written):
    path, manifest, rows = written
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CytomilError, match=r"truncated or damaged.*Delete it"):
        open_cell_cache(path, manifest, rows)


def test_a_flipped_pixel_is_one_clear_line(written):
    path, manifest, rows = written
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CytomilError, match=r"damaged.*Delete it"):
        open_cell_cache(path, manifest, rows)


def test_the_next_run_uses_the_file_again_and_ends_with_the_same_weights(bags_folder, tmp_path, monkeypatch):
    chosen = {"bags": bags_folder, "epochs": 1, "batch_size": 20, "image_size": 16, "projection_dim": 8}
    chosen |= {"weights": "none"}
    in_memory = pretrain(PretrainConfig(out=tmp_path / "ram", **chosen), Silent())
    on_disk = pretrain(PretrainConfig(out=tmp_path / "disk", cache="disk", **chosen), Silent())
    assert on_disk.bundle.sha256 == in_memory.bundle.sha256
    monkeypatch.setattr(loop, "write_cell_cache", None)
    again = pretrain(PretrainConfig(out=tmp_path / "disk", cache="disk", **chosen), Silent())
    assert again.bundle.sha256 == in_memory.bundle.sha256


def test_too_little_memory_or_disk_says_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match="--cache disk"):
        memory.require_memory(10**15, "cells", 1, Silent())
    with pytest.raises(SettingsError, match="another disk"):
        memory.require_disk(10**18, "cells", tmp_path / "cache" / "cells.h5", Silent())


def test_what_each_process_takes_is_counted(tmp_path):
    told = []
    listener = Silent()
    listener.note = told.append
    memory.require_memory(10**6, "7 cells", 3, listener)
    assert told == ["7 cells: 1 MB of memory in each of 3 processes"]
