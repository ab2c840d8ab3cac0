from __future__ import annotations

import numpy as np
import pytest
import torch

from cytomil.encoders.bundle import load_bundle
from cytomil.encoders.engines import open_engine
from cytomil.encoders.stages import layer_groups, layer_of
from cytomil.errors import FeatureFileError
from cytomil.features import open_features
from cytomil.features.cells import CellBlock
from cytomil.features.embed import Embedder
from cytomil.morphology.measure import N_DESCRIPTORS
from cytomil.progress import Problem


@pytest.fixture
def bundle(encoder_folder):
    return load_bundle(encoder_folder)


def make_embedder(bundle, layer, dtype):
    layer = layer_of(layer, bundle.encoder)
    return Embedder(bundle, open_engine(bundle, layer.embedded, "eager", "cpu", print), layer, dtype)


def block(n, start=0, problems=(), described=0):
    pixels = np.random.default_rng(start).integers(0, 256, (n, 24, 24, 3), np.uint8)
    ids = [f"cell-{i}" for i in range(start, start + n)]
    return CellBlock(ids, np.full((n, 2), start), pixels, np.full((n, described), start, np.float32), list(problems))


def test_the_key_names_everything_that_shapes_the_features(bundle, make_encoder, tmp_path):
    base = make_embedder(bundle, "z", "float32").key("source")
    assert (base.bag_sha256, base.encoder_sha256, base.transform_sha256) == (
        "source",
        bundle.sha256,
        bundle.transform.sha256,
    )
    others = [
        make_embedder(bundle, "h", "float32").key("source"),
        make_embedder(bundle, "auto", "float32").key("source"),
        make_embedder(bundle, "morphology", "float32").key("source"),
        make_embedder(bundle, "z", "float16").key("source"),
        make_embedder(bundle, "z", "float32").key("another source"),
        make_embedder(make_encoder(tmp_path / "a", seed=1), "z", "float32").key("source"),
        make_embedder(make_encoder(tmp_path / "b", image_size=32), "z", "float32").key("source"),
    ]
    assert len({base, *others}) == 8


@pytest.mark.parametrize(("layer", "dim"), [("h", 96), ("z", 16)])
def test_blocks_become_one_cache(bundle, tmp_path, layer, dim):
    embedder = make_embedder(bundle, layer, "float32")
    faults = [Problem("bad-1", "why")]
    problems = embedder.embed(tmp_path / "x.h5", "x", "s", [block(3), block(0, 3, faults), block(2, 3)], mpp=0.5)
    features = open_features(tmp_path / "x.h5")
    assert features.shape == (5, dim)
    assert features.instance_ids == tuple(f"cell-{i}" for i in range(5))
    assert features.coords[:, 0].tolist() == [0, 0, 0, 3, 3]
    assert features.key == embedder.key("s")
    assert features.mpp == 0.5
    assert features.unreadable == ("bad-1: why",)
    assert problems == faults


def test_morphology_follows_the_encoders_columns(bundle, tmp_path):
    parts = [(3, 0), (2, 3)]
    for layer, described in (("auto", 0), ("morphology", N_DESCRIPTORS)):
        cells = [block(n, start, described=described) for n, start in parts]
        make_embedder(bundle, layer, "float32").embed(tmp_path / f"{layer}.h5", "x", "s", cells)
    alone, both = (open_features(tmp_path / f"{layer}.h5").load() for layer in ("auto", "morphology"))
    assert np.array_equal(both[:, :-N_DESCRIPTORS], alone)
    assert both[:, -N_DESCRIPTORS:].tolist() == [[start] * N_DESCRIPTORS for n, start in parts for _ in range(n)]


def test_a_cache_knows_the_widths_of_its_stages_and_of_the_morphology(bundle, tmp_path):
    of_stages = layer_groups(bundle.encoder, layer_of("auto", bundle.encoder))
    assert len(of_stages) > 1
    wanted = {"z": (16,), "auto": of_stages, "morphology": (*of_stages, N_DESCRIPTORS)}
    for layer, groups in wanted.items():
        cells = [block(2, described=N_DESCRIPTORS if layer == "morphology" else 0)]
        make_embedder(bundle, layer, "float32").embed(tmp_path / f"{layer}.h5", "x", "s", cells)
        features = open_features(tmp_path / f"{layer}.h5")
        assert features.groups == groups
        assert features.shape == (2, sum(groups))


def test_embeddings_that_are_not_finite_are_refused(bundle, tmp_path):
    with torch.no_grad():
        bundle.encoder.projector[2].bias.fill_(1e6)
    with pytest.raises(FeatureFileError, match=r"x: embeddings are not finite in float16.*float32"):
        make_embedder(bundle, "z", "float16").embed(tmp_path / "x.h5", "x", "s", [block(2)])
    assert list(tmp_path.iterdir()) == []
    make_embedder(bundle, "z", "float32").embed(tmp_path / "x.h5", "x", "s", [block(2)])
    assert np.isfinite(open_features(tmp_path / "x.h5").load()).all()
