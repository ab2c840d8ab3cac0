import numpy as np
import pytest
import torch

from cytomil.encoders.architecture import Encoder, resolve_architecture
from cytomil.encoders.bundle import load_bundle, save_bundle
from cytomil.encoders.engines import compile as compile_module
from cytomil.encoders.engines import open_engine
from cytomil.encoders.engines.compile import compile_engine
from cytomil.encoders.engines.record import read_record
from cytomil.encoders.engines.registry import CompileConfig
from cytomil.encoders.start import resolve_initialisation
from cytomil.encoders.transform import CellTransform
from cytomil.errors import EngineError
from cytomil.layer import Layer
from cytomil.progress import Silent

pytest.importorskip("ncnn", reason="this engine needs the extra: pip install 'cytomil[ncnn]'")


@pytest.fixture(scope="module", autouse=True)
def no_timing():
    """What an engine is measured at is not these tests' matter, and takes most of a minute on cells as small as theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_module, "images_per_second", lambda *_: (200.0, 100.0))
        yield


def compiled(folder, bags, layer="h z stages:1,2,3"):
    record = compile_engine(CompileConfig(encoder=folder, bags=bags, cells=48, engine="ncnn", layer=layer), Silent())
    return load_bundle(folder), record


def silence(message):
    raise AssertionError(f"nothing should be said, but: {message}")


@pytest.fixture(scope="module")
def bundle(make_encoder, bags_folder, shared):
    made = shared.folder("ncnn", lambda root: compiled(make_encoder(root / "encoder").path, bags_folder))
    return load_bundle(made / "encoder")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (30, 24, 24, 3), np.uint8)


@pytest.mark.parametrize("layer", ["h", "z", "stages:1,2,3:mean,max,spread"])
def test_it_gives_what_eager_gives_whatever_the_company(bundle, pixels, layer):
    engine = open_engine(bundle, Layer.parse(layer), "ncnn", "cpu", silence)
    eager = open_engine(bundle, Layer.parse(layer), "eager", "cpu", silence)
    assert (engine.name, str(engine.layer), engine.dim) == ("ncnn-float32", layer, eager.dim)
    values = engine.embed(pixels)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, eager.embed(pixels), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(engine.embed(pixels[::-1])[::-1], values)
    np.testing.assert_array_equal(engine.embed(pixels[7:8]), values[7:8])
    assert engine.embed(pixels[:0]).shape == (0, engine.dim)


def test_its_record_names_its_files_and_both_libraries(bundle):
    record = read_record(bundle.path / "engines" / "ncnn-float32")
    assert set(record.files) == {"encoder.param", "encoder.bin"}
    assert set(record.versions) == {"ncnn", "pnnx"}
    assert record.agreement["h"]["min_cosine"] > 0.9999


@pytest.mark.parametrize(
    ("arch", "projection_dim"), [("resnet18", 0), pytest.param("resnet50", 8, marks=pytest.mark.nightly)]
)
def test_other_networks_with_and_without_projector(bags_folder, tmp_path, pixels, arch, projection_dim):
    torch.manual_seed(0)
    encoder = Encoder(resolve_architecture(arch, "auto", projection_dim, 24, "standardised"))
    save_bundle(tmp_path / "encoder", encoder, CellTransform(24, 0.8), {"method": "none"})
    made, record = compiled(tmp_path / "encoder", bags_folder)
    for layer in ("h", "z"):
        engine = open_engine(made, Layer(layer), "ncnn", "cpu", silence)
        assert engine.dim == encoder.dim_of(layer)
        assert engine.embed(pixels[:3]).shape == (3, engine.dim)
        assert record.agreement[layer]["min_cosine"] > 0.9999


def test_an_efficientnets_inner_stages(bags_folder, tmp_path):
    start = resolve_initialisation("efficientnet-lite0", "auto", "auto", 64, 0)
    encoder = Encoder(start.architecture)
    start.weights.load_into(encoder)
    save_bundle(tmp_path / "encoder", encoder, CellTransform(64, 0.8), {"method": "none"})
    made, record = compiled(tmp_path / "encoder", bags_folder, "auto")
    assert record.layers == ["stages:1,4,5,6:mean,max,spread"]
    cells = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    engine, eager = (
        open_engine(made, Layer.parse(record.layers[0]), name, "cpu", silence) for name in ("ncnn", "eager")
    )
    np.testing.assert_allclose(engine.embed(cells), eager.embed(cells), rtol=1e-3, atol=1e-3)


def test_a_network_it_cannot_run_is_said_in_one_line_and_not_stored(bags_folder, tmp_path):
    encoder = Encoder(resolve_architecture("test_vit", "auto", 8, 32))
    save_bundle(tmp_path / "encoder", encoder, CellTransform(32, 0.8), {"method": "none"})
    with pytest.raises(EngineError, match=r"test_vit.*Use --engine openvino"):
        compiled(tmp_path / "encoder", bags_folder)
    assert not list((tmp_path / "encoder" / "engines").glob("*"))
