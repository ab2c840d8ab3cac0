"""The reference loop computes what it is compared with, and the targets are read off the right timings."""

import numpy as np
import pytest
import torch

from bench.embed import Size, cells, mean_cosine, targets
from bench.engines import CPU, eager_reference, open_engines, settled_bundle
from bench.one_at_a_time import embed_one_at_a_time
from bench.timing import Timing
from cytomil.bags.make import make_bags
from cytomil.encoders.bundle import load_bundle
from cytomil.encoders.engines.eager import to_unit_range
from cytomil.encoders.transform import CellTransform
from cytomil.progress import Silent
from cytomil.settings import MakeBagsSettings


@pytest.fixture(scope="module")
def bags_of_files(make_class_folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    data = make_class_folders(root / "cells", {"LYT": 30, "BLA": 10})
    settings = MakeBagsSettings(
        source=str(data), out=root / "bags", normal=("LYT",), abnormal=("BLA",), bag_size=8, train_bags=2, test_bags=0
    )
    make_bags(settings, Silent())
    return root / "bags", data


def test_the_loop_and_the_engines_embed_the_same_cells_alike(bags_of_files, tmp_path):
    bags, data = bags_of_files
    files, pixels = cells(bags, data, CellTransform(24, 0.8), 10)
    assert len(files) == len(pixels) == 10 and all(file.is_file() for file in files)
    bundle = settled_bundle(tmp_path / "encoder", 24, pixels)
    refused = {"openvino-int8": "not here"}
    engines = open_engines(bundle.path, "z", ["eager", "openvino-int8"], refused)
    assert set(engines) == {"eager"}
    expected = embed_one_at_a_time(files, eager_reference(load_bundle(bundle.path)), bundle.transform, "z")
    np.testing.assert_allclose(engines["eager"].embed(pixels), expected, atol=1e-4)
    assert mean_cosine(engines["eager"].embed(pixels), expected) == pytest.approx(1, abs=1e-5)


def test_batch_norms_settle_on_the_cells(tmp_path):
    pixels = np.random.default_rng(0).integers(180, 256, (64, 24, 24, 3), dtype=np.uint8)
    encoder = settled_bundle(tmp_path / "encoder", 24, pixels).encoder
    assert not encoder.training
    with torch.no_grad():
        seen = encoder.backbone.conv1((to_unit_range(pixels, CPU) - encoder.mean) / encoder.std)
    torch.testing.assert_close(encoder.backbone.bn1.running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_targets_take_the_fastest_float32_engine_and_int8():
    def timing(rate):
        return Timing((1 / rate,) * 3)

    whole = {"eager": timing(50), "openvino-float32": timing(60), "openvino-int8": timing(190)}
    alone = {"eager": timing(55), "openvino-float32": timing(80), "openvino-int8": timing(200)}
    told = targets(Size(224, 3.6, timing(250), timing(25), alone, whole, {}, {}))
    assert [(row["what"], row["wanted"], round(row["measured"]["median"], 2)) for row in told] == [
        ("openvino-float32, whole, to the loop", 2.3, 2.4),
        ("openvino-float32, whole, to alone", 0.85, 0.75),
        ("openvino-int8, whole, to the loop", 7.0, 7.6),
        ("openvino-int8, whole, to alone", 0.85, 0.95),
    ]
