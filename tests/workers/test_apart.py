"""A bag file or feature cache made to do harm, with a checksum that fits, costs no command more than that file."""

from __future__ import annotations

import shutil
import sys
import time
from functools import partial

import h5py
import pytest
from typer.testing import CliRunner

from cytomil import hdf5
from cytomil.app.cli.app import app
from cytomil.bags import BagInfo, Instance, open_bag, write_bag
from cytomil.errors import BagFileError, FeatureFileError
from cytomil.features import open_features
from cytomil.hdf5 import SEAL_BYTES, read_all, seal_hdf5
from cytomil.workers import apart
from tests.altered import altering
from tests.workers.jobs import FatalFile

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit processor time in this way")


@pytest.fixture
def make_bag(cell_image):
    def make(path, n=20):
        write_bag(path, BagInfo(path.stem, 0), [Instance(f"c{i}", cell_image(i)) for i in range(n)])
        return path

    return make


@pytest.fixture
def endless(make_bag, tmp_path):
    """A bag whose heap points to itself, which HDF5 follows for ever. The checksum fits."""
    path = make_bag(tmp_path / "endless.h5", 400)
    content = bytearray(path.read_bytes())
    content[25088 : 25088 + 4096] = bytes(4096)
    path.write_bytes(content)
    seal_hdf5(path)
    return path


@pytest.fixture
def fatal(monkeypatch):
    """``fatal(name)``: the process that reads a file of this name is killed, as by a crash of HDF5."""
    return lambda name: monkeypatch.setattr(apart, "_ReadAll", partial(FatalFile, name))


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    return lambda *line: CliRunner().invoke(app, [str(one) for one in line])


def said(done):
    """The output in one line, because the terminal may break lines anywhere."""
    return " ".join(done.output.split())


def touch_all(folder):
    """Give every file another time, because files that were read before are not read apart again."""
    for path in folder.glob("*.h5"):
        path.touch()


def test_a_bag_that_ends_its_reader_costs_embed_that_bag_alone(command, fatal, bags_copy, encoder_folder, tmp_path):
    touch_all(bags_copy)
    name = sorted(bags_copy.glob("train*.h5"))[1].name
    fatal(name)
    done = command(
        *("embed", "--bags", bags_copy, "--encoder", encoder_folder, "--out", tmp_path / "features"),
        *("--device", "cpu", "--layer", "z", "--orientations", 1),
    )
    assert done.exit_code == 3, done.output
    assert len(list((tmp_path / "features").glob("*.h5"))) == 9
    assert f"{name}: its reader stopped (killed by signal 9). The file is damaged, or made to do harm." in said(done)


def test_pretrain_and_verify_name_such_a_bag(command, fatal, bags_copy, tmp_path):
    touch_all(bags_copy)
    name = sorted(bags_copy.glob("train*.h5"))[1].name
    fatal(name)
    pretrain = ["pretrain", "--bags", bags_copy, "--out", tmp_path / "encoder", "--device", "cpu"]
    for line, status in ((pretrain, 1), (["verify", bags_copy], 3)):
        done = command(*line)
        assert done.exit_code == status, done.output
        assert f"{name}: its reader stopped" in said(done)
        assert "Traceback" not in done.output


def test_fit_mil_names_such_a_cache(command, fatal, features_folder, encoder_folder, tmp_path):
    features = shutil.copytree(features_folder, tmp_path / "features")
    touch_all(features)
    name = sorted(features.glob("train*.h5"))[1].name
    fatal(name)
    done = command(
        *("fit-mil", "--features", features, "--encoder", encoder_folder, "--out", tmp_path / "model"),
    )
    assert done.exit_code == 1, done.output
    assert f"{name}: its reader stopped" in said(done)
    assert not (tmp_path / "model").exists()


def test_a_refused_file_is_not_tried_again_and_a_mended_one_is(fatal, make_bag, tmp_path, monkeypatch):
    path = make_bag(tmp_path / "a.h5")
    path.touch()
    fatal("a.h5")
    for _ in range(2):
        with pytest.raises(BagFileError, match="killed by signal 9"):
            open_bag(path)
        monkeypatch.setattr(apart, "_ReadAll", partial(FatalFile, "none"))
    path.touch()
    assert len(open_bag(path)) == 20


def test_what_this_process_wrote_or_reads_with_limits_is_not_read_twice(fatal, make_bag, tmp_path, monkeypatch):
    fatal("a.h5")
    path = make_bag(tmp_path / "a.h5")
    assert len(open_bag(path)) == 20
    path.touch()
    monkeypatch.setattr(apart, "are_imposed", lambda: True)
    assert len(open_bag(path)) == 20


@LINUX_ONLY
@pytest.mark.long
def test_a_bag_that_keeps_hdf5_busy_for_ever(command, endless, bags_copy, encoder_folder, tmp_path):
    listed = sorted(bags_copy.glob("train*.h5"))[1]
    shutil.copy(endless, listed)
    started = time.monotonic()
    done = command(
        *("embed", "--bags", bags_copy, "--encoder", encoder_folder, "--out", tmp_path / "features"),
        *("--device", "cpu", "--layer", "z", "--orientations", 1),
    )
    assert done.exit_code == 3, done.output
    assert f"{listed.name}: its reader stopped (it computed for 15 s without progress)" in said(done)
    assert len(list((tmp_path / "features").glob("*.h5"))) == 9
    assert time.monotonic() - started < 100


@pytest.mark.parametrize("n", [2_000_000_000, 1 << 60])
def test_a_bag_that_announces_cells_that_it_does_not_hold(make_bag, tmp_path, n):
    path = make_bag(tmp_path / "a.h5")
    with altering(path) as file:
        for dataset in file.values():
            dataset.resize(n, axis=0)
        file.attrs["n_instances"] = n
    with pytest.raises(BagFileError, match=rf"announces {n} entries as \w+, but does not hold them"):
        open_bag(path)


def test_a_cache_that_announces_features_that_it_does_not_hold(features_folder, tmp_path):
    path = shutil.copy(sorted(features_folder.glob("*.h5"))[0], tmp_path / "a.h5")
    with altering(path) as file:
        for name in ("features", "coords", "instance_id"):
            file[name].resize(2_000_000_000, axis=0)
        file.attrs["n_instances"] = 2_000_000_000
    with pytest.raises(FeatureFileError, match="announces 2000000000 entries as features, but does not hold them"):
        open_features(path)


def test_a_bag_whose_cells_are_the_same_bytes_again_and_again(cell_image, tmp_path):
    path = tmp_path / "a.h5"
    cells = [Instance(f"c{i}", cell_image(i, 100 if i == 0 else 8)) for i in range(500)]
    write_bag(path, BagInfo("a", 0), cells)
    assert read_all(path) == ""
    with h5py.File(path) as file:
        of = file["images"].id
        chunks = [of.get_chunk_info(i) for i in range(of.get_num_chunks())]
    content = bytearray(path.read_bytes())
    size = len(cells[0].image).to_bytes(4, "little")
    base = next(base for base in (0, SEAL_BYTES) if content[chunks[0].byte_offset + base :].startswith(size))
    start = chunks[0].byte_offset + base
    reference = content[start : start + 16]
    for chunk in chunks:
        start = chunk.byte_offset + base
        content[start : start + chunk.size] = reference * (chunk.size // 16)
    path.write_bytes(content)
    seal_hdf5(path)
    with pytest.raises(BagFileError, match=r"a\.h5: its entries have more bytes than the file\. The file is damaged"):
        open_bag(path)


def test_reading_a_sound_file_allows_as_much_time_as_its_size_needs(make_bag, tmp_path, monkeypatch):
    path = make_bag(tmp_path / "a.h5")
    signs = []
    monkeypatch.setattr(hdf5, "progress", lambda: signs.append(1))
    assert read_all(path) == ""
    assert len(signs) > 9
    signs.clear()
    monkeypatch.setattr(hdf5, "_BYTES_PER_S", -1.0)  # all time is used up
    assert read_all(path) == ""
    assert signs == []
