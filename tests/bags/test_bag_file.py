from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.bags import Bag, BagInfo, Instance, open_bag, write_bag
from cytomil.bags.bag_file import SCHEMA, content_sha256
from cytomil.bags.instance_labels import read_instance_labels, read_instance_sources
from cytomil.errors import BagFileError
from cytomil.hdf5 import seal_hdf5
from tests.altered import altering

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
INT64 = st.integers(-(2**63), 2**63 - 1)
INSTANCES = st.lists(
    st.builds(
        Instance,
        instance_id=TEXT,
        image=st.binary(max_size=200),
        coords=st.tuples(INT64, INT64),
        label=st.sampled_from([-1, 0, 1]),
        source=TEXT,
    ),
    max_size=8,
    unique_by=lambda instance: instance.instance_id,
)
INFO = st.builds(
    BagInfo,
    bag_id=TEXT,
    label=st.sampled_from([0, 1]),
    patient_id=TEXT,
    mpp=st.none() | st.floats(0.01, 100),
    source=TEXT,
)


def some_instances(n, label=0, source="somewhere"):
    rng = np.random.default_rng(n)
    return [
        Instance(f"cell-{i}", rng.bytes(40 + i), (i, 10 * i), label if i % 2 else 1 - label, f"{source}/{i}")
        for i in range(n)
    ]


@pytest.fixture
def bag_file(tmp_path):
    path = tmp_path / "bag.h5"
    write_bag(path, BagInfo("bag", 1, "patient", 0.25, "source"), some_instances(70))
    return path


class TestRoundTrip:
    @given(info=INFO, instances=INSTANCES)
    @settings(max_examples=30)
    def test_what_is_written_is_read(self, tmp_path_factory, info, instances):
        path = tmp_path_factory.mktemp("bag") / "bag.h5"
        sha256, n = write_bag(path, info, instances)
        bag = open_bag(path)
        assert n == len(bag) == len(instances)
        assert bag.info == info
        assert bag.sha256 == content_sha256(bag) == sha256
        assert bag.instance_ids == tuple(instance.instance_id for instance in instances)
        assert bag.coords.dtype == np.int64
        assert bag.coords.shape == (n, 2)
        assert [tuple(row) for row in bag.coords.tolist()] == [instance.coords for instance in instances]
        assert bag.images() == [instance.image for instance in instances]
        assert read_instance_labels(path) == {i.instance_id: i.label for i in instances}
        assert read_instance_sources(path) == {i.instance_id: i.source for i in instances}

    @pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 130])
    def test_over_the_borders_of_a_block(self, tmp_path, n):
        instances = some_instances(n)
        write_bag(tmp_path / "bag.h5", BagInfo("bag", 0), iter(instances))
        bag = open_bag(tmp_path / "bag.h5")
        assert bag.images() == [instance.image for instance in instances]
        assert list(bag.instance_ids) == [instance.instance_id for instance in instances]
        assert content_sha256(bag) == bag.sha256

    def test_a_slice_of_the_images(self, bag_file):
        bag = open_bag(str(bag_file))
        everything = bag.images()
        assert bag.images(60, 66) == everything[60:66]
        assert bag.images(68, 100) == everything[68:]

    def test_no_coords_and_no_mpp_where_unknown(self, tmp_path):
        write_bag(tmp_path / "bag.h5", BagInfo("bag", 0), [Instance("a", b"x")])
        bag = open_bag(tmp_path / "bag.h5")
        assert bag.coords.tolist() == [[-1, -1]]
        assert bag.info.mpp is None

    def test_numpys_numbers_are_numbers(self, tmp_path):
        """Coordinates and mpp come from arrays when a slide is cropped."""
        info = BagInfo("bag", np.int64(1), mpp=np.float64(0.25))
        write_bag(tmp_path / "bag.h5", info, [Instance("a", b"x", tuple(np.array([3, 4])))])
        bag = open_bag(tmp_path / "bag.h5")
        assert content_sha256(bag) == bag.sha256
        plain, _ = write_bag(tmp_path / "plain.h5", BagInfo("bag", 1, mpp=0.25), [Instance("a", b"x", (3, 4))])
        assert plain == bag.sha256


class TestWhatTrainingSees:
    def test_the_bag_has_no_place_for_instance_labels(self, bag_file):
        bag = open_bag(bag_file)
        assert {field.name for field in dataclasses.fields(Bag)} == {
            "path",
            "info",
            "sha256",
            "instance_ids",
            "coords",
        }
        assert {field.name for field in dataclasses.fields(BagInfo)} == {
            "bag_id",
            "label",
            "patient_id",
            "mpp",
            "source",
            "cutting",
        }
        assert set(vars(bag)) == {field.name for field in dataclasses.fields(Bag)}
        assert not [name for name in dir(bag) if "label" in name or "source" in name]
        with pytest.raises(dataclasses.FrozenInstanceError):
            bag.instance_labels = np.zeros(70)

    def test_bags_that_differ_in_instance_labels_alone_look_the_same(self, tmp_path):
        seen = []
        for label, source in ((0, "LYT"), (1, "BLA")):
            path = tmp_path / "bag.h5"
            write_bag(path, BagInfo("bag", 1), some_instances(5, label, source))
            bag = open_bag(path)
            seen.append((bag.info, bag.sha256, bag.instance_ids, bag.coords.tolist(), bag.images(), repr(bag)))
        assert seen[0] == seen[1]


class TestContentSha256:
    def test_tells_bags_apart(self, tmp_path):
        """Whatever training sees counts: ids, order, coords, bytes, label, patient, mpp."""
        base = [Instance("a", b"xy", (1, 2)), Instance("b", b"z", (3, 4))]
        info = BagInfo("bag", 1, "p", 0.5)
        variants = [
            (info, base),
            (info, base[::-1]),
            (info, base[:1]),
            (info, [Instance("c", b"xy", (1, 2)), base[1]]),
            (info, [Instance("a", b"xz", (1, 2)), base[1]]),
            (info, [Instance("a", b"xy", (2, 1)), base[1]]),
            (info, [Instance("a", b"x", (1, 2)), Instance("b", b"yz", (3, 4))]),
            (dataclasses.replace(info, bag_id="other"), base),
            (dataclasses.replace(info, label=0), base),
            (dataclasses.replace(info, patient_id="q"), base),
            (dataclasses.replace(info, mpp=None), base),
        ]
        digests = [write_bag(tmp_path / "bag.h5", *variant)[0] for variant in variants]
        assert len(set(digests)) == len(variants)

    def test_changes_with_one_byte_of_an_image(self, bag_file):
        with altering(bag_file) as file:
            image = file["images"][3]
            image[7] ^= 1
            file["images"][3] = image
        bag = open_bag(bag_file)
        assert content_sha256(bag) != bag.sha256

    def test_changes_with_one_byte_of_the_file_within_an_image(self, bag_file):
        image = open_bag(bag_file).images(3, 4)[0]
        content = bytearray(bag_file.read_bytes())
        content[content.index(image) + 7] ^= 1
        bag_file.write_bytes(content)
        with pytest.raises(BagFileError, match="truncated or damaged"):
            open_bag(bag_file)
        seal_hdf5(bag_file)
        bag = open_bag(bag_file)
        assert content_sha256(bag) != bag.sha256


class TestDamage:
    def test_truncated_anywhere_is_refused(self, bag_file, tmp_path):
        content = bag_file.read_bytes()
        n = len(content)
        cut = tmp_path / "cut.h5"
        for length in sorted({*range(0, n, n // 60), *range(0, 128, 8), n - 1, n - 2, n - 64, n - 512}):
            cut.write_bytes(content[:length])
            with pytest.raises(BagFileError, match=r"cut\.h5 .*make-bags"):
                open_bag(cut)

    @pytest.mark.parametrize("structure", [b"TREE", b"SNOD", b"HEAP", b"GCOL"])
    def test_damaged_inside_never_ends_in_another_exception(self, bag_file, structure):
        """HDF5's own structures overwritten: read in vain, or read as it was."""
        before = open_bag(bag_file).images()
        content = bag_file.read_bytes()
        assert structure in content
        bag_file.write_bytes(content.replace(structure, b"\0\0\0\0"))
        with pytest.raises(BagFileError):
            assert open_bag(bag_file).images() != before

    @pytest.mark.parametrize("content", [b"", b"bag_id,label\nbag,1\n", b"\x89HDF\r\n\x1a\n", b"\x89PNG\r\n\x1a\n"])
    def test_not_hdf5_is_refused(self, tmp_path, content):
        (tmp_path / "bag.h5").write_bytes(content)
        with pytest.raises(BagFileError, match="of cytomil"):
            open_bag(tmp_path / "bag.h5")

    def test_missing_is_refused(self, tmp_path):
        with pytest.raises(BagFileError, match="does not exist"):
            open_bag(tmp_path / "none.h5")

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(BagFileError):
            open_bag(tmp_path)

    def test_deleted_after_opening(self, bag_file):
        bag = open_bag(bag_file)
        bag_file.unlink()
        with pytest.raises(BagFileError):
            bag.images()


class TestForeignFiles:
    @pytest.mark.parametrize("schema", ["cytomil.bag/2", "cytomil.features/1", "", 1, np.arange(3)])
    def test_another_schema(self, bag_file, schema):
        with altering(bag_file) as file:
            file.attrs["schema"] = schema
        with pytest.raises(BagFileError, match=r"bag\.h5"):
            open_bag(bag_file)

    def test_the_message_names_both_schemas(self, bag_file):
        with altering(bag_file) as file:
            file.attrs["schema"] = "cytomil.bag/2"
        with pytest.raises(BagFileError, match=f"'cytomil.bag/2', expected '{SCHEMA}'"):
            open_bag(bag_file)

    def test_no_schema_at_all(self, tmp_path):
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["features"] = np.zeros((3, 4))
        with pytest.raises(BagFileError, match="has no checksum"):
            open_bag(tmp_path / "other.h5")

    @pytest.mark.parametrize("name", ["images", "instance_id", "coords", "instance_label", "instance_source"])
    def test_a_missing_dataset(self, bag_file, name):
        with altering(bag_file) as file:
            del file[name]
        with pytest.raises(BagFileError, match=f"lacks {name}"):
            open_bag(bag_file)

    @pytest.mark.parametrize("name", ["images", "coords"])
    def test_a_group_in_a_datasets_place(self, bag_file, name):
        with altering(bag_file) as file:
            del file[name]
            file.create_group(name)
        with pytest.raises(BagFileError, match=f"lacks {name}"):
            open_bag(bag_file)

    @pytest.mark.parametrize("name", ["bag_id", "patient_id", "label", "mpp", "source", "n_instances", "sha256"])
    def test_a_missing_attribute(self, bag_file, name):
        with altering(bag_file) as file:
            del file.attrs[name]
        with pytest.raises(BagFileError, match=f"lacks {name}"):
            open_bag(bag_file)

    @pytest.mark.parametrize("name", ["images", "instance_id", "coords", "instance_label", "instance_source"])
    @pytest.mark.parametrize("n", [0, 69, 71])
    def test_lengths_that_contradict_each_other(self, bag_file, name, n):
        with altering(bag_file) as file:
            file[name].resize(n, axis=0)
        with pytest.raises(BagFileError, match=f"is inconsistent: 70 instances.*{name}"):
            open_bag(bag_file)

    def test_coords_of_another_shape(self, bag_file):
        with altering(bag_file) as file:
            del file["coords"]
            file["coords"] = np.zeros((70, 3), np.int64)
        with pytest.raises(BagFileError, match=r"is inconsistent.*coords"):
            open_bag(bag_file)

    @pytest.mark.parametrize(("name", "value"), [("label", "one"), ("mpp", "fine"), ("n_instances", "many")])
    def test_an_attribute_of_another_type(self, bag_file, name, value):
        with altering(bag_file) as file:
            file.attrs[name] = value
        with pytest.raises(BagFileError):
            open_bag(bag_file)


class TestInterrupted:
    @pytest.mark.parametrize("after", [0, 1, 64, 100])
    def test_write_leaves_nothing(self, tmp_path, after):
        def failing():
            yield from some_instances(after)
            raise OSError("the disk is full")

        with pytest.raises(OSError, match="the disk is full"):
            write_bag(tmp_path / "bag.h5", BagInfo("bag", 1), failing())
        assert list(tmp_path.iterdir()) == []

    def test_rewrite_leaves_the_old_bag(self, bag_file):
        def failing():
            yield from some_instances(3)
            raise KeyboardInterrupt

        before = bag_file.read_bytes()
        with pytest.raises(KeyboardInterrupt):
            write_bag(bag_file, BagInfo("bag", 1), failing())
        assert bag_file.read_bytes() == before
        assert list(bag_file.parent.iterdir()) == [bag_file]
