"""Every layout holds the content it is measured with, and the layouts in use are among those measured."""

import h5py
import numpy as np

from bench import hdf5


def test_layouts_hold_what_was_written_and_are_told_with_their_size(tmp_path):
    values = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    layouts = {f"{chunk} × {name}": (chunk, kept) for chunk in (64, 256) for name, kept in hdf5._COMPRESSIONS.items()}
    found = hdf5.compare(tmp_path, layouts, hdf5.write_values, hdf5.read_values, values, values.nbytes, repeats=1)
    assert list(found) == list(layouts)
    for i, (chunk, kept) in enumerate(layouts.values()):
        with h5py.File(tmp_path / f"{i}.h5") as file:
            np.testing.assert_array_equal(file["features"][:], values)
            assert file["features"].chunks == (chunk, 8) and file["features"].compression == kept.get("compression")
    assert all(one["size"] > 0.3 and one["write"]["median"] > 0 for one in found.values())


def test_cells_of_any_length_survive(tmp_path):
    cells = [bytes(range(n % 250)) for n in range(1, 150)]
    hdf5.write_cells(tmp_path / "bag.h5", cells, 64, {})
    with h5py.File(tmp_path / "bag.h5") as file:
        assert [cell.tobytes() for cell in file["images"][:]] == cells


def test_the_layouts_in_use_are_measured():
    assert hdf5.FEATURE_CHUNK in hdf5._FEATURE_CHUNKS and hdf5.BAG_CHUNK in hdf5._BAG_CHUNKS
