"""A compiled bundle, made once a run, and copies of it to spoil."""

import shutil

import pytest

LAYERS = "h z stages:1,2,3"


@pytest.fixture(scope="session", autouse=True)
def short_timing():
    """Speed is measured on a batch, not on eight: what is measured is not these tests' matter, and took most of their time."""
    from cytomil.encoders.engines import compile as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TIMED_BATCHES", 1)
        yield


@pytest.fixture(scope="session")
def compiled_folder(make_encoder, bags_folder, shared, short_timing):
    """An untrained encoder's bundle with a float32 engine of OpenVINO, of layers h, z and auto. Read it, never write to it."""
    from cytomil.encoders.engines.compile import compile_engine
    from cytomil.encoders.engines.registry import CompileConfig
    from cytomil.progress import Silent

    def make(root):
        encoder = make_encoder(root / "encoder").path
        chosen = {"cells": 48, "layer": LAYERS, "device": "cpu", "precision": "float32"}
        compile_engine(CompileConfig(encoder=encoder, bags=bags_folder, **chosen), Silent())

    return shared.folder("compiled", make) / "encoder"


@pytest.fixture
def compiled(compiled_folder, tmp_path):
    """That bundle in a folder that this test may spoil."""
    return shutil.copytree(compiled_folder, tmp_path / "encoder")
