from __future__ import annotations

import shutil
import threading
from dataclasses import replace

import h5py
import numpy as np
import pytest

from cytomil import progress as disk
from cytomil.bags import open_bag, read_manifest
from cytomil.bags.bag_file import BagInfo, Instance, write_bag
from cytomil.bags.manifest import BagRow, write_manifest
from cytomil.errors import BagFileError, EncoderBundleError, NotFoundError, SettingsError
from cytomil.features import embed as module
from cytomil.features import open_features
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import Embedder, embed
from cytomil.features.index import INDEX_NAME, read_index
from cytomil.progress import Silent
from tests.altered import altering
from tests.counting import Counting


@pytest.fixture
def run(encoder_folder, bags_folder, tmp_path):
    """Embed the synthetic bags into tmp_path/features, unless told otherwise."""

    def embed_with(listener=None, **changes):
        chosen = {"bags": bags_folder, "encoder": encoder_folder, "out": tmp_path / "features", "device": "cpu"}
        chosen |= {"layer": "z", "orientations": 1}
        return embed(EmbedConfig(**(chosen | changes)), listener or Silent())

    return embed_with


@pytest.fixture
def copied(features_folder, tmp_path):
    """Finished caches that this test may spoil."""
    return shutil.copytree(features_folder, tmp_path / "features")


def stamps(folder):
    """What changes when a file is written anew."""
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.glob("*.h5")}


def spoil_cells(bags, bag_id, garbage):
    """Rewrite a bag so that the cells at these places are no images, and list it in the manifest."""
    rows = list(read_manifest(bags).rows)
    at = next(i for i, row in enumerate(rows) if row.bag_id == bag_id)
    bag = open_bag(bags / rows[at].path)
    cells = [
        Instance(name, b"not an image" if i in garbage else image)
        for i, (name, image) in enumerate(zip(bag.instance_ids, bag.images(), strict=True))
    ]
    sha256, n = write_bag(bag.path, bag.info, cells)
    rows[at] = replace(rows[at], sha256=sha256, n_instances=n)
    write_manifest(bags, rows)
    return [bag.instance_ids[i] for i in garbage]


def test_the_next_bag_is_begun_while_one_is_embedded(run, bags_folder, monkeypatch):
    ids = [row.bag_id for row in read_manifest(bags_folder).rows]
    begun = {bag_id: threading.Event() for bag_id in ids}
    seen = []
    blocks, finish = module.bag_blocks, Embedder.embed

    def told(bag, *rest):
        for block in blocks(bag, *rest):
            begun[bag.info.bag_id].set()
            yield block

    def wait_for_next(self, path, bag_id, *rest):
        after = ids.index(bag_id) + 1
        if after < len(ids):
            seen.append(begun[ids[after]].wait(30))
            # No bag farther on: what is decoded ahead is bounded.
            seen.append(not any(begun[other].is_set() for other in ids[after + 1 :]))
        return finish(self, path, bag_id, *rest)

    monkeypatch.setattr(module, "bag_blocks", told)
    monkeypatch.setattr(Embedder, "embed", wait_for_next)
    run()
    assert len(seen) == 2 * (len(ids) - 1) and all(seen)


class TestCaches:
    def test_every_bag_has_one_and_the_index_lists_them(self, bags_folder, features_folder):
        manifest, index = read_manifest(bags_folder), read_index(features_folder)
        assert [(r.bag_id, r.split, r.label, r.patient_id, r.n_instances) for r in index.rows] == [
            (r.bag_id, r.split, r.label, r.patient_id, r.n_instances) for r in manifest.rows
        ]
        for row, features in index.open("all"):
            bag = open_bag(bags_folder / f"{row.bag_id}.h5")
            assert features.bag_id == row.bag_id
            assert features.instance_ids == bag.instance_ids
            assert np.array_equal(features.coords, bag.coords)
            assert features.shape == (10, 16)
            assert features.key.bag_sha256 == bag.sha256
            assert features.key.layer == "z"

    def test_report_counts_what_was_done(self, run):
        done = run(split="train")
        assert (done.n_new, done.n_kept, done.n_instances, done.problems) == (6, 0, 60, ())
        done = run(split="all")
        assert (done.n_new, done.n_kept, done.n_instances, done.problems) == (4, 6, 100, ())
        done = run(split="test")
        assert (done.n_new, done.n_kept, done.n_instances, done.problems) == (0, 4, 40, ())

    def test_hold_no_instance_labels(self, features_folder):
        with h5py.File(features_folder / "train-01.h5", "r") as file:
            assert set(file) == {"features", "coords", "instance_id", "unreadable"}
            assert not [name for name in file.attrs if "label" in name]

    @pytest.mark.parametrize("batch_size", [1, 3, 7])
    def test_do_not_depend_on_batch_size(self, run, features_folder, tmp_path, batch_size):
        run(batch_size=batch_size, split="test")
        for row, features in read_index(tmp_path / "features").open("test"):
            at_once = open_features(features_folder / row.path)
            assert features.instance_ids == at_once.instance_ids
            # Rounding may tip the last of float16's eleven bits.
            np.testing.assert_allclose(features.load(), at_once.load(), rtol=2**-10, atol=1e-5)

    @pytest.mark.parametrize(
        ("asked", "layer", "dim"),
        [
            *(("h", "h", 96), ("z", "z", 16), ("auto", "stages:1,2,3:mean,max,spread", 816)),
            ("stages:3,1:spread,mean", "stages:1,3:mean,spread", 448),
            ("morphology", "stages:1,2,3:mean,max,spread+morphology", 925),
            ("h+morphology", "h+morphology", 205),
        ],
    )
    def test_hold_the_asked_layer(self, run, tmp_path, asked, layer, dim):
        assert run(layer=asked, split="test").layer == layer
        assert {f.key.layer for _, f in read_index(tmp_path / "features").open("test")} == {layer}
        assert {f.shape for _, f in read_index(tmp_path / "features").open("test")} == {(10, dim)}

    def test_half_precision_is_close(self, run, features_folder, tmp_path):
        run(dtype="float16", split="test")
        for row, half in read_index(tmp_path / "features").open("test"):
            with h5py.File(half.path, "r") as file:
                assert file["features"].dtype == np.float16
            single = open_features(features_folder / row.path)
            np.testing.assert_allclose(half.load(), single.load(), rtol=2e-3, atol=1e-3)

    @pytest.mark.parametrize("batch_size", [2, 256])
    def test_coords_and_mpp_come_along(self, run, bags_copy, tmp_path, batch_size):
        cells = open_bag(bags_copy / "test-01.h5").images()[:3]
        sha256, n = write_bag(
            bags_copy / "slide.h5",
            BagInfo("slide", 1, mpp=0.5),
            [Instance(f"c{i}", image, (100 * i, 7)) for i, image in enumerate(cells)],
        )
        write_manifest(bags_copy, [BagRow("slide", "slide.h5", "", "test", 1, n, None, sha256)])
        run(bags=bags_copy, batch_size=batch_size)
        features = open_features(tmp_path / "features" / "slide.h5")
        assert features.coords.tolist() == [[0, 7], [100, 7], [200, 7]]
        assert features.mpp == 0.5


class TestAgain:
    def test_valid_caches_are_kept(self, run, copied):
        before, index = stamps(copied), (copied / INDEX_NAME).read_text()
        done = run()
        assert (done.n_new, done.n_kept) == (0, 10)
        assert stamps(copied) == before
        assert (copied / INDEX_NAME).read_text() == index

    @pytest.mark.parametrize("damage", ["truncated", "text", "missing", "lengths"])
    def test_damaged_ones_are_made_anew(self, run, copied, features_folder, damage):
        victim = copied / "train-02.h5"
        before = stamps(copied)
        if damage == "truncated":
            victim.write_bytes(victim.read_bytes()[:-200])
        elif damage == "text":
            victim.write_text("not a cache")
        elif damage == "missing":
            victim.unlink()
        else:
            with altering(victim) as file:
                file["instance_id"].resize(9, axis=0)
        done = run()
        assert (done.n_new, done.n_kept) == (1, 9)
        assert {name for name, stamp in stamps(copied).items() if stamp != before[name]} == {"train-02.h5"}
        redone, original = open_features(victim), open_features(features_folder / "train-02.h5")
        assert redone.key == original.key
        np.testing.assert_array_equal(redone.load(), original.load())

    @pytest.mark.parametrize("change", [{"layer": "h"}, {"dtype": "float32"}, {"encoder": 1}, {"image_size": 32}])
    def test_ones_of_another_key_are_made_anew(self, run, copied, make_encoder, tmp_path, change):
        if "encoder" in change:
            change = {"encoder": make_encoder(tmp_path / "other", seed=1).path}
        elif "image_size" in change:
            change = {"encoder": make_encoder(tmp_path / "other", image_size=32).path}
        done = run(**change)
        assert (done.n_new, done.n_kept) == (10, 0)
        done = run(**change)
        assert (done.n_new, done.n_kept) == (0, 10)

    def test_one_of_another_bag_is_made_anew(self, run, copied, bags_copy):
        spoil_cells(bags_copy, "train-02", [0])
        done = run(bags=bags_copy)
        assert (done.n_new, done.n_kept) == (1, 9)

    def test_batch_size_is_no_reason_to_do_it_again(self, run, copied):
        assert run(batch_size=3).n_kept == 10

    def test_after_an_interruption_what_was_finished_is_kept(self, run, features_folder, tmp_path):
        class Impatient(Silent):
            def track(self, items, description, total=None, unit=""):
                for n, item in enumerate(items):
                    if n == 4:
                        raise KeyboardInterrupt
                    yield item

        with pytest.raises(KeyboardInterrupt):
            run(listener=Impatient())
        assert not (tmp_path / "features" / INDEX_NAME).exists()
        done = run()
        assert (done.n_new, done.n_kept) == (5, 5)
        for row, features in read_index(tmp_path / "features").open("all"):
            np.testing.assert_array_equal(features.load(), open_features(features_folder / row.path).load())


class TestSplits:
    def test_one_after_the_other_keeps_both_in_the_index(self, run, tmp_path):
        run(split="train")
        assert {row.split for row in read_index(tmp_path / "features").rows} == {"train"}
        run(split="test")
        index = read_index(tmp_path / "features")
        assert sorted(row.split for row in index.rows) == ["test"] * 4 + ["train"] * 6
        assert len(index.open("train")) == 6

    def test_the_other_splits_caches_of_another_encoder_leave_the_index(self, run, make_encoder, tmp_path):
        run(split="train")
        run(split="test", encoder=make_encoder(tmp_path / "other", seed=1).path)
        assert {row.split for row in read_index(tmp_path / "features").rows} == {"test"}

    def test_a_split_without_bags_is_refused(self, run, make_synthetic_bags, tmp_path):
        bags = make_synthetic_bags(tmp_path / "bags", train_bags=2, test_bags=0)
        with pytest.raises(BagFileError, match="no bags in split 'test'"):
            run(bags=bags, split="test")


class TestProblems:
    @pytest.mark.parametrize("damage", ["truncated", "missing", "exchanged"])
    def test_a_damaged_bag_is_listed_and_the_others_go_on(self, run, bags_copy, tmp_path, damage):
        victim = bags_copy / "train-02.h5"
        if damage == "truncated":
            victim.write_bytes(victim.read_bytes()[:-300])
        elif damage == "missing":
            victim.unlink()
        else:
            shutil.copy(bags_copy / "train-01.h5", victim)
        done = run(bags=bags_copy)
        assert (done.n_new, done.n_kept, done.n_instances) == (9, 0, 90)
        assert [problem.where for problem in done.problems] == ["train-02"]
        assert "train-02.h5" in done.problems[0].reason
        assert "train-02" not in {row.bag_id for row in read_index(tmp_path / "features").rows}
        assert not (tmp_path / "features" / "train-02.h5").exists()

    def test_an_unreadable_cell_is_left_out_and_listed_both_times(self, run, bags_copy, tmp_path):
        bad = spoil_cells(bags_copy, "train-02", [0, 4])
        for kept in (0, 10):
            done = run(bags=bags_copy)
            assert done.n_kept == kept
            assert done.n_instances == 98
            assert [problem.where for problem in done.problems] == [f"train-02/{name}" for name in bad]
            assert all(problem.reason for problem in done.problems)
        features = open_features(tmp_path / "features" / "train-02.h5")
        assert [one.partition(": ")[0] for one in features.unreadable] == bad
        assert all(problem.reason in one for problem, one in zip(done.problems, features.unreadable, strict=True))
        assert not set(bad) & set(features.instance_ids)
        row = next(row for row in read_index(tmp_path / "features").rows if row.bag_id == "train-02")
        assert row.n_instances == len(features) == 8

    def test_the_readable_cells_beside_it_are_embedded_as_ever(self, run, bags_copy, features_folder, tmp_path):
        spoil_cells(bags_copy, "train-02", [3])
        run(bags=bags_copy, batch_size=2)
        whole, left = (open_features(folder / "train-02.h5") for folder in (features_folder, tmp_path / "features"))
        wanted = dict(zip(whole.instance_ids, whole.load(), strict=True))
        for name, values in zip(left.instance_ids, left.load(), strict=True):
            np.testing.assert_allclose(values, wanted[name], rtol=1e-3, atol=1e-4)

    def test_a_bag_of_unreadable_cells_alone_does_not_stop_what_follows(self, run, bags_copy, tmp_path):
        spoil_cells(bags_copy, "train-02", range(10))
        for _ in range(2):
            done = run(bags=bags_copy)
            assert (done.n_new + done.n_kept, done.n_instances) == (9, 90)
            assert ("train-02", "none of its cells can be read") in [(p.where, p.reason) for p in done.problems]
            assert len(read_index(tmp_path / "features").open("train")) == 5
        run(bags=bags_copy, split="test")
        assert len(read_index(tmp_path / "features").open("train")) == 5

    def test_no_bag_can_be_embedded(self, run, bags_copy, tmp_path):
        for file in bags_copy.glob("*.h5"):
            file.write_text("not a bag")
        with pytest.raises(BagFileError, match=r"none of the 10 bags .*not a file of cytomil's"):
            run(bags=bags_copy)
        assert not (tmp_path / "features" / INDEX_NAME).exists()

    def test_missing_inputs(self, run, tmp_path):
        with pytest.raises(NotFoundError, match="cytomil make-bags"):
            run(bags=tmp_path / "none")
        with pytest.raises(NotFoundError, match="cytomil pretrain"):
            run(encoder=tmp_path / "none")
        with pytest.raises(EncoderBundleError):
            run(device="no such device")
        assert not (tmp_path / "features").exists()


class TestToldBeforehand:
    def test_every_cell_of_the_run_is_counted_block_by_block(self, run):
        told = Counting()
        run(listener=told, batch_size=4)
        assert (told.work.total, told.work.unit) == (100, "cells")
        assert told.steps == [4, 4, 2] * 10
        assert not told.skipped

    def test_finished_bags_say_nothing_of_the_pace_and_take_no_disk(self, run, copied):
        (copied / "train-01.h5").unlink()
        told = Counting()
        run(listener=told)
        assert told.steps == [10]
        assert told.skipped == [10] * 9
        assert told.work.disk == pytest.approx((copied / "train-01.h5").stat().st_size, rel=0.1)

    def test_a_bag_that_cannot_be_read_is_skipped(self, run, bags_copy):
        (bags_copy / read_manifest(bags_copy).rows[0].path).write_bytes(b"no bag")
        told = Counting()
        run(listener=told, bags=bags_copy)
        assert (told.steps, told.skipped) == ([10] * 9, [10])

    def test_the_disk_that_is_told_is_what_is_written(self, run, tmp_path):
        told = Counting()
        run(listener=told, dtype="float32")
        written = sum(path.stat().st_size for path in (tmp_path / "features").glob("*.h5"))
        assert told.work.disk == pytest.approx(written, rel=0.05)

    def test_too_little_disk_ends_it_before_it_starts(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
        told = Counting()
        with pytest.raises(SettingsError, match=r"features need 1 MB of disk; .*another disk with --out"):
            run(listener=told)
        assert told.work is None
        assert not list(tmp_path.rglob("*.h5"))
