"""Factories that all tests share: tiny bags, class folders, an untrained encoder and its features."""

from __future__ import annotations

import io
import os
import shutil
import signal

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from PIL import Image

from tests.shared import Shared

hypothesis_settings.register_profile("cytomil", derandomize=True, deadline=None, database=None)
hypothesis_settings.load_profile("cytomil")

# A compiled encoder takes half a minute, and most tests do not look at it.
os.environ.setdefault("CYTOMIL_PRETRAIN__ENGINE", "none")

IMAGE_SIZE = 24


def pytest_configure():
    """Where the tests run in the background, SIGINT is ignored, and the commands that tests interrupt would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def disk():
    """No test cuts the power, and waiting for the disk after every file took a large part of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """What is made once for all processes of this run (tests/shared.py): read it, never write to it."""
    found = Shared.of_run(tmp_path_factory)
    yield found
    assert found.altered() == [], "a test wrote to what is made once for all tests"


def _cell_image(seed, size=8, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def cell_image():
    """``cell_image(seed, size=8, kind="PNG")``: the encoded bytes of a small image of noise, one of its own per seed."""
    return _cell_image


@pytest.fixture(scope="session")
def make_class_folders():
    """``make_class_folders(root, {"LYT": 20, "BLA": 5})``: class folders of distinct cell images, half of them nested."""

    def make(root, counts):
        for number, (name, count) in enumerate(counts.items()):
            for i in range(count):
                folder = root / name / "0001-1000" if i % 2 else root / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}_{i:05d}.png").write_bytes(_cell_image([number, i]))
        return root

    return make


@pytest.fixture(scope="session")
def make_slide_folders():
    """``make_slide_folders(root, ["s1", "s2"], cells=4)``: slides as folders of distinct cell images."""

    def make(root, names, cells=4):
        for number, name in enumerate(names):
            (root / name).mkdir(parents=True)
            for i in range(cells):
                (root / name / f"cell-{i}.png").write_bytes(_cell_image([1000 + number, i]))
        return root

    return make


@pytest.fixture(scope="session")
def make_synthetic_bags():
    """``make_synthetic_bags(folder, **settings)``: six training and four test bags of ten small synthetic cells."""
    from cytomil.bags.config import MakeBagsConfig
    from cytomil.bags.make import make_bags
    from cytomil.progress import Silent

    def make(folder, **changes):
        chosen = {"bag_size": 10, "witness_rate": 0.3, "train_bags": 6, "test_bags": 4, "cell_size": IMAGE_SIZE}
        make_bags(MakeBagsConfig(out=folder, **(chosen | changes)), Silent())
        return folder

    return make


@pytest.fixture(scope="session")
def bags_folder(make_synthetic_bags, shared):
    """Made once a run: read it, never write to it (see ``bags_copy``)."""
    return shared.folder("synthetic", lambda root: make_synthetic_bags(root / "bags")) / "bags"


@pytest.fixture
def bags_copy(bags_folder, tmp_path):
    """The synthetic bags in a folder that this test may spoil."""
    return shutil.copytree(bags_folder, tmp_path / "bags")


@pytest.fixture(scope="session")
def make_encoder():
    """``make_encoder(folder, seed=0, image_size=24, projection_dim=16, **facts)``: the saved bundle of an untrained encoder.

    Its encoder.json holds what pretrain writes there and what the higher packages read. The network is timm's smallest
    ResNet, since two hundred tests write, hash and read one: 1.5 MB, where a ResNet-18 has 46 MB.
    """
    import torch

    from cytomil.encoders.architecture import Encoder, resolve_architecture
    from cytomil.encoders.bundle import save_bundle
    from cytomil.encoders.transform import CellTransform

    def make(folder, seed=0, image_size=IMAGE_SIZE, projection_dim=16, arch="test_resnet", **facts):
        torch.manual_seed(seed)
        encoder = Encoder(resolve_architecture(arch, "auto", projection_dim, image_size, "plain"))
        return save_bundle(folder, encoder, CellTransform(image_size, 0.8), encoder_facts() | facts)

    return make


def encoder_facts():
    """What a training run of two epochs says of itself in encoder.json."""
    epochs = [
        {
            "epoch": epoch,
            "loss_similarity": 0.5 / epoch,
            "loss_nt_xent": 3.0 - 0.5 * epoch,
            "chance": 3.4,
            "learning_rate": 0.01,
            "effective_rank": 20.0,
            "effective_rank_z": 9.0,
            "spread": 0.6,
            "negatives_mean_cosine": 0.2,
        }
        for epoch in (1, 2)
    ]
    return {
        "method": "slam-ags",
        "settings": {"method": "slam-ags", "epochs": 2, "seed": 0},
        "data": {"fingerprint": "0" * 64, "n_bags": 6, "n_cells": 60, "sources": ["synthetic"]},
        "history": epochs,
        "collapsed": False,
        "collapse_reason": "",
        "synthetic": True,
        "effective_rank": 20.0,
        "nt_xent_margin": 1.4,
    }


@pytest.fixture(scope="session")
def encoder_folder(make_encoder, shared):
    """An untrained encoder's bundle, made once a run: read it, never write to it."""
    return shared.folder("models", lambda root: make_encoder(root / "encoder")) / "encoder"


@pytest.fixture(scope="session")
def features_folder(bags_folder, encoder_folder, shared):
    """The synthetic bags embedded by the untrained encoder, layer z, made once a run: read it, never write to it."""
    from cytomil.features.config import EmbedConfig
    from cytomil.features.embed import embed
    from cytomil.progress import Silent

    def make(root):
        chosen = {"layer": "z", "orientations": 1, "device": "cpu"}
        embed(EmbedConfig(bags=bags_folder, encoder=encoder_folder, out=root / "features", **chosen), Silent())

    return shared.folder("embedded", make) / "features"
