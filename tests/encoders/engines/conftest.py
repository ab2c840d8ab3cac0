"""A compiled bundle, made once a session, and copies of it to spoil."""

import shutil

import pytest

LAYERS = "h z stages:1,2,3"


@pytest.fixture(scope="session")
def compiled_folder(make_encoder, bags_folder, tmp_path_factory):
    """An untrained encoder's bundle with a float32 engine of OpenVINO, of layers h, z and auto. Read it, never write to it."""
    from cytomil.encoders.engines.compile import compile_engine
    from cytomil.progress import Silent
    from cytomil.settings import CompileSettings

    folder = make_encoder(tmp_path_factory.mktemp("compiled") / "encoder").path
    settings = CompileSettings(
        encoder=folder, bags=bags_folder, cells=48, layer=LAYERS, device="cpu", precision="float32"
    )
    compile_engine(settings, Silent())
    return folder


@pytest.fixture
def compiled(compiled_folder, tmp_path):
    """That bundle in a folder that this test may spoil."""
    return shutil.copytree(compiled_folder, tmp_path / "encoder")
