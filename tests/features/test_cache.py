from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.errors import FeatureFileError
from cytomil.features import open_features
from cytomil.features.cache import EmbeddedBlock, FeatureKey, bytes_needed, is_valid, write_features
from tests.altered import altering

KEY = FeatureKey("bag", "encoder", "z", "transform", "eager", "float32", "1")
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)


def blocks_of(n, dim=4, size=3, dtype=np.float32):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(n, dim)).astype(dtype)
    coords = rng.integers(-1, 10**6, (n, 2))
    ids = [f"cell-{i}" for i in range(n)]
    return [
        EmbeddedBlock(ids[at : at + size], coords[at : at + size], values[at : at + size]) for at in range(0, n, size)
    ]


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "bag.h5"
    write_features(path, "bag", KEY, 4, blocks_of(10), mpp=0.25, unreadable=["bad-1", "bad-2"], crop_px=40)
    return path


class TestRoundTrip:
    @given(
        n=st.integers(0, 12),
        dim=st.integers(1, 6),
        bag_id=TEXT,
        mpp=st.none() | st.floats(0.01, 10),
        unreadable=st.lists(TEXT, max_size=4),
        dtype=st.sampled_from(["float16", "float32"]),
    )
    @settings(max_examples=30)
    def test_what_is_written_is_read(self, tmp_path_factory, n, dim, bag_id, mpp, unreadable, dtype):
        path = tmp_path_factory.mktemp("cache") / "bag.h5"
        key = dataclasses.replace(KEY, dtype=dtype)
        blocks = blocks_of(n, dim, dtype=dtype)
        assert write_features(path, bag_id, key, dim, iter(blocks), mpp, unreadable) == n
        features = open_features(str(path))
        assert len(features) == n
        assert features.shape == (n, dim)
        assert features.key == key
        assert (features.bag_id, features.mpp, features.unreadable) == (bag_id, mpp, tuple(unreadable))
        assert features.instance_ids == tuple(name for block in blocks for name in block.instance_ids)
        assert features.coords.tolist() == [row for block in blocks for row in block.coords.tolist()]
        assert features.load().dtype == np.float32
        wanted = np.concatenate([np.zeros((0, dim)), *(block.values for block in blocks)])
        assert np.array_equal(features.load(), wanted.astype(np.float32))

    @pytest.mark.parametrize("groups", [(), (4,), (1, 3)])
    def test_groups_of_columns_are_read_as_written(self, tmp_path, groups):
        write_features(tmp_path / "bag.h5", "bag", KEY, 4, blocks_of(3), groups=groups)
        assert open_features(tmp_path / "bag.h5").groups == groups

    def test_a_cache_from_before_there_were_groups_has_a_single_one(self, cache):
        with altering(cache) as file:
            del file.attrs["groups"]
        assert open_features(cache).groups == ()

    def test_the_unreadable_may_become_known_while_writing(self, tmp_path):
        unreadable = []

        def blocks():
            for block in blocks_of(6):
                unreadable.append(f"bad-{len(unreadable)}")
                yield block

        write_features(tmp_path / "bag.h5", "bag", KEY, 4, blocks(), unreadable=unreadable)
        assert open_features(tmp_path / "bag.h5").unreadable == ("bad-0", "bad-1")

    def test_thousands_of_unreadable_cells_find_room(self, tmp_path):
        """An HDF5 attribute ends at 64 KB."""
        unreadable = [f"some/long/folder/cell-{i:08d}.png" for i in range(6000)]
        write_features(tmp_path / "bag.h5", "bag", KEY, 4, blocks_of(3), unreadable=unreadable)
        assert open_features(tmp_path / "bag.h5").unreadable == tuple(unreadable)

    def test_a_failure_leaves_the_old_cache_and_nothing_else(self, cache):
        def failing():
            yield blocks_of(3)[0]
            raise KeyboardInterrupt

        before = cache.read_bytes()
        with pytest.raises(KeyboardInterrupt):
            write_features(cache, "bag", KEY, 4, failing())
        assert cache.read_bytes() == before
        assert list(cache.parent.iterdir()) == [cache]


class TestLayout:
    """What the readers of TRIDENT and CLAM look for."""

    def test_datasets(self, cache):
        with h5py.File(cache, "r") as file:
            assert file["features"].shape == (10, 4)
            assert file["features"].dtype == np.float32
            assert file["coords"].shape == (10, 2)
            assert file["coords"].dtype == np.int64
            assert file["instance_id"].shape == (10,)

    def test_half_precision(self, tmp_path):
        key = dataclasses.replace(KEY, dtype="float16")
        write_features(tmp_path / "bag.h5", "bag", key, 4, blocks_of(5))
        with h5py.File(tmp_path / "bag.h5", "r") as file:
            assert file["features"].dtype == np.float16

    def test_geometry(self, cache):
        with h5py.File(cache, "r") as file:
            attributes = dict(file["coords"].attrs)
        assert attributes["patch_size"] == attributes["patch_size_level0"] == 40
        assert attributes["level0_magnification"] == attributes["target_magnification"] == 40
        assert attributes["overlap"] == 0
        assert attributes["name"] == "bag"
        assert "savetodir" in attributes

    def test_geometry_where_the_cells_are_images_of_their_own(self, tmp_path):
        write_features(tmp_path / "bag.h5", "bag", KEY, 4, blocks_of(2))
        with h5py.File(tmp_path / "bag.h5", "r") as file:
            assert file["coords"].attrs["patch_size"] == 0
            assert file["coords"].attrs["level0_magnification"] == 0
        assert open_features(tmp_path / "bag.h5").mpp is None

    def test_root_attributes(self, cache):
        with h5py.File(cache, "r") as file:
            attributes = dict(file.attrs)
        assert attributes["schema"] == "cytomil.features/1"
        assert dataclasses.asdict(KEY).items() <= attributes.items()


class TestValid:
    def test_its_own_key(self, cache):
        assert is_valid(cache, KEY)

    @pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(FeatureKey)])
    def test_any_other_key_is_not(self, cache, field):
        assert not is_valid(cache, dataclasses.replace(KEY, **{field: "other"}))

    @pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
    def test_a_truncated_cache_is_not(self, cache, share):
        content = cache.read_bytes()
        cache.write_bytes(content[: int(share * len(content))])
        assert not is_valid(cache, KEY)

    def test_a_missing_one_is_not(self, tmp_path):
        assert not is_valid(tmp_path / "none.h5", KEY)


class TestDamage:
    def test_truncated_anywhere_is_refused(self, cache, tmp_path):
        content = cache.read_bytes()
        n = len(content)
        for length in sorted({*range(0, n, n // 40), n - 1}):
            (tmp_path / "cut.h5").write_bytes(content[:length])
            with pytest.raises(FeatureFileError, match=r"cut\.h5 .*cytomil embed"):
                open_features(tmp_path / "cut.h5")

    @pytest.mark.parametrize("structure", [b"TREE", b"SNOD", b"HEAP", b"GCOL"])
    def test_damaged_inside_never_ends_in_another_exception(self, cache, structure):
        before = open_features(cache).load()
        content = cache.read_bytes()
        assert structure in content
        cache.write_bytes(content.replace(structure, b"\0\0\0\0"))
        with pytest.raises(FeatureFileError):
            assert not np.array_equal(open_features(cache).load(), before)

    @pytest.mark.parametrize("content", [b"", b"bag_id,path\n", b"\x89HDF\r\n\x1a\n"])
    def test_not_hdf5_is_refused(self, tmp_path, content):
        (tmp_path / "bag.h5").write_bytes(content)
        with pytest.raises(FeatureFileError, match="of cytomil"):
            open_features(tmp_path / "bag.h5")

    def test_a_bag_file_is_no_cache(self, bags_folder):
        with pytest.raises(FeatureFileError, match=r"schema 'cytomil.bag/1', expected 'cytomil.features/1'"):
            open_features(next(bags_folder.glob("*.h5")))

    def test_another_programs_features_are_refused(self, tmp_path):
        with h5py.File(tmp_path / "trident.h5", "w") as file:
            file["features"], file["coords"] = np.zeros((3, 8)), np.zeros((3, 2), int)
        with pytest.raises(FeatureFileError, match="has no checksum"):
            open_features(tmp_path / "trident.h5")

    @pytest.mark.parametrize("name", ["features", "coords", "instance_id", "unreadable"])
    def test_a_missing_dataset(self, cache, name):
        with altering(cache) as file:
            del file[name]
        with pytest.raises(FeatureFileError, match=f"lacks {name}"):
            open_features(cache)

    @pytest.mark.parametrize("name", ["bag_id", "mpp", "n_instances", "encoder_sha256", "layer", "dtype"])
    def test_a_missing_attribute(self, cache, name):
        with altering(cache) as file:
            del file.attrs[name]
        with pytest.raises(FeatureFileError, match=f"lacks {name}"):
            open_features(cache)

    @pytest.mark.parametrize("name", ["features", "coords", "instance_id"])
    @pytest.mark.parametrize("n", [0, 9, 11])
    def test_lengths_that_contradict_each_other(self, cache, name, n):
        with altering(cache) as file:
            file[name].resize(n, axis=0)
        with pytest.raises(FeatureFileError, match=f"is inconsistent: 10 .*{name}"):
            open_features(cache)

    @pytest.mark.parametrize("groups", [(1, 2), (4, 1), (5, -1)])
    def test_groups_that_are_not_the_columns(self, cache, groups):
        with altering(cache) as file:
            file.attrs["groups"] = np.array(groups)
        with pytest.raises(
            FeatureFileError, match=r"is inconsistent: it lists groups of .* columns, but has 4 columns"
        ):
            open_features(cache)

    def test_deleted_after_opening(self, cache):
        features = open_features(cache)
        cache.unlink()
        with pytest.raises(FeatureFileError):
            features.load()


@pytest.mark.parametrize(("n", "dim", "dtype"), [(0, 8, "float16"), (10, 3000, "float16"), (257, 64, "float32")])
def test_the_size_on_disk_is_known_beforehand(tmp_path, n, dim, dtype):
    path = tmp_path / "bag.h5"
    write_features(path, "bag", dataclasses.replace(KEY, dtype=dtype), dim, blocks_of(n, dim, 64, dtype))
    assert bytes_needed(n, dim, dtype) == pytest.approx(path.stat().st_size, rel=0.05, abs=13_000)
