"""A small run of the mutation bench, and that it sees what it is there to see."""

import shutil

import numpy as np
import pytest

from bench import mutate
from cytomil.features.cache import open_features
from tests.altered import altering


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("mutate")
    mutate.make_files(root)
    return root


@pytest.mark.parametrize("kind", ["bag", "cache"])
def test_no_mutation_of_a_file_is_believed(files, kind):
    tally = mutate.count(files / f"{kind}.h5", files / f"{kind}.h5", kind, 40, seed=1)
    assert tally == {mutate.REFUSED: 40}


@pytest.mark.nightly
def test_no_mutation_of_a_model_is_believed(files):
    for name in ("triage.json", "aggregator.safetensors", "encoder/encoder.json"):
        tally = mutate.count(files / "model", files / "model" / name, "model", 8, seed=1)
        assert tally[mutate.REFUSED] + tally[mutate.SAME] == 8
        assert tally[mutate.REFUSED] >= 6


def test_other_numbers_under_a_checksum_that_fits_would_be_seen(files, tmp_path, monkeypatch):
    path = shutil.copy(files / "cache.h5", tmp_path / "cache.h5")
    with altering(path) as file:
        file["features"][0, 0] += 3
    other = path.read_bytes()
    shutil.copy(files / "cache.h5", path)
    monkeypatch.setattr(mutate, "mutations", lambda whole, n, seed: [other])
    assert mutate.count(path, path, "cache", 1, 0) == {"accepted with other content": 1}


def test_mutations_are_of_all_kinds_and_come_of_the_seed():
    whole = bytes(np.random.default_rng(0).integers(1, 256, 5000, np.uint8))
    made = list(mutate.mutations(whole, 40, seed=3))
    assert made == list(mutate.mutations(whole, 40, seed=3))
    assert made != list(mutate.mutations(whole, 40, seed=4))
    assert sum(len(one) < len(whole) for one in made) == 10
    assert all(one != whole for one in made)


def test_what_was_mutated_is_whole_again(files):
    mutate.count(files / "cache.h5", files / "cache.h5", "cache", 4, seed=2)
    assert len(open_features(files / "cache.h5")) == 12
