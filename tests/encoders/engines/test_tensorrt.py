"""TensorRT needs a GPU. What is around it runs with a stand-in for torch_tensorrt that records how it was called."""

import sys
import types
from importlib import metadata

import numpy as np
import pytest
import torch

from cytomil.encoders.bundle import load_bundle
from cytomil.encoders.engines import open_engine, tensorrt
from cytomil.encoders.engines import record as record_module
from cytomil.encoders.engines.compile import compile_engine
from cytomil.encoders.engines.engine import CompiledForm, start_engine
from cytomil.encoders.engines.record import EngineRecord
from cytomil.encoders.engines.registry import CompileConfig, load_backend
from cytomil.encoders.engines.tensorrt import MAX_CELLS
from cytomil.errors import CytomilError, EngineError
from cytomil.files import sha256_of_file
from cytomil.layer import Layer
from cytomil.progress import Silent

CPU = torch.device("cpu")
LAYERS = [Layer("h"), Layer("z"), Layer.parse("stages:1,2,3")]


class Noting(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def form(encoder, precision, folder):
    return CompiledForm(f"tensorrt-{precision}", encoder, tuple(LAYERS), 24, precision, CPU, folder)


def build(form):
    return load_backend("tensorrt").build(form, None)


@pytest.fixture
def library(monkeypatch):
    """torch_tensorrt's four names that are used; the "compiled" module is the one it was given."""
    fake = types.ModuleType("torch_tensorrt")
    fake.calls, modules = [], {}

    def compile_(module, **options):
        fake.calls.append(("compile", module, options))
        return module

    def save(module, path, **options):
        fake.calls.append(("save", path, options))
        modules[path] = module
        with open(path, "wb") as file:  # noqa: PTH123 the library is given a string
            file.write(b"compiled")

    def load(path):
        fake.calls.append(("load", path, {}))
        return types.SimpleNamespace(module=lambda: next(iter(modules.values())))

    fake.Input = types.SimpleNamespace
    fake.compile, fake.save, fake.load = compile_, save, load
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake)
    return fake


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("float32", torch.float32)])
def test_the_model_itself_is_cast_and_the_batch_is_dynamic(library, encoder_folder, tmp_path, precision, dtype):
    encoder = load_bundle(encoder_folder).encoder
    build(form(encoder, precision, tmp_path))
    (_, module, options), (_, path, saved) = library.calls
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    assert not module.training
    (given,) = options["arg_inputs"]
    assert options["ir"] == "dynamo"
    assert given.min_shape == (1, 3, 24, 24)
    assert given.max_shape == (MAX_CELLS, 3, 24, 24)
    assert given.min_shape[0] < given.opt_shape[0] < given.max_shape[0]
    assert given.dtype == dtype
    # Both are swallowed without effect by this version, and leave float32.
    assert not {"enabled_precisions", "use_explicit_typing"} & set(options)
    assert saved["arg_inputs"] == options["arg_inputs"]
    assert path == str(tmp_path / tensorrt.MODEL_NAME)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_cells_go_through_in_pieces_that_fit(library, encoder_folder, tmp_path, monkeypatch, layer):
    monkeypatch.setattr(tensorrt, "MAX_CELLS", 4)
    bundle = load_bundle(encoder_folder)
    eager = open_engine(bundle, layer, "eager", "cpu", print)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), np.uint8)
    wanted = eager.embed(pixels)
    made = form(bundle.encoder, "float32", tmp_path)
    build(made)
    engine = start_engine(load_backend("tensorrt"), made, layer, "key")
    assert (engine.name, engine.key, engine.dim) == ("tensorrt-float32", "key", eager.dim)
    np.testing.assert_allclose(engine.embed(pixels), wanted, rtol=1e-3, atol=1e-4)
    assert engine.embed(pixels[:0]).shape == (0, eager.dim)


def test_a_module_that_computes_in_float32_in_silence_is_refused(library, encoder_folder, tmp_path):
    bundle = load_bundle(encoder_folder)
    made = form(bundle.encoder, "fp16", tmp_path)
    build(made)
    library.calls[0][1].forward = lambda pixels: (torch.zeros(len(pixels), 96), torch.zeros(len(pixels), 16))
    engine = start_engine(load_backend("tensorrt"), made, Layer("z"), "key")
    with pytest.raises(EngineError, match=r"tensorrt-fp16 computes in torch.float32, not in torch.float16"):
        engine.embed(np.zeros((2, 24, 24, 3), np.uint8))


@pytest.fixture
def stored(make_encoder, tmp_path, monkeypatch):
    """A bundle with a TensorRT engine as it would lie there, made for the GPU that is said to be here."""
    versions = {"torch-tensorrt": "2.14.0", "torch": "2.14.1"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    bundle = make_encoder(tmp_path / "encoder")

    def write(**changes):
        folder = bundle.path / "engines" / "tensorrt-fp16"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / tensorrt.MODEL_NAME).write_bytes(b"compiled")
        fields = {
            "name": "tensorrt-fp16",
            "engine": "tensorrt",
            "precision": "fp16",
            "weights_sha256": bundle.sha256,
            "image_size": 24,
            "device": "cuda",
            "machine": {"gpu": "A GPU"},
            "versions": versions,
            "files": {tensorrt.MODEL_NAME: sha256_of_file(folder / tensorrt.MODEL_NAME)},
            "layers": ["z"],
            "agreement": {},
            "images_per_second": 2000.0,
            "eager_images_per_second": 1000.0,
        }
        record = EngineRecord(**fields | changes)
        record.write(folder)
        return bundle, record, folder

    return write


def test_a_stored_engine_fits_the_gpu_it_was_made_on(stored):
    bundle, record, folder = stored()
    record_module.require_valid(record, folder, bundle, torch.device("cuda"))
    assert record.gain == 2


def test_whoever_uses_it_reads_that_it_has_never_been_run(tmp_path):
    backend = load_backend("tensorrt")
    assert "never been run on a GPU" in backend.caveat
    assert backend.caveat in backend.describe()
    assert "never been run on a GPU" in CompileConfig.model_fields["engine"].description
    said = Noting()
    line = CompileConfig(encoder=tmp_path, bags=tmp_path, engine="tensorrt")
    with pytest.raises(CytomilError):
        compile_engine(line, said)
    assert said.notes == [backend.caveat]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"machine": {"gpu": "Another GPU"}}, r"compiled on another machine \(Another GPU\)"),
        ({"versions": {"torch-tensorrt": "2.13.0"}}, "compiled with torch-tensorrt 2.13.0, but 2.14.0 is installed"),
        ({"weights_sha256": "0"}, "compiled for other weights"),
    ],
)
def test_one_made_for_another_gpu_version_or_encoder_is_stale(stored, changes, reason):
    bundle, record, folder = stored(**changes)
    with pytest.raises(EngineError, match=reason):
        record_module.require_valid(record, folder, bundle, torch.device("cuda"))


def test_without_a_gpu_eager_runs_and_says_why(stored):
    bundle, _, _ = stored()
    said = []
    assert open_engine(bundle, Layer("z"), "tensorrt", "cpu", said.append).name == "eager"
    (line,) = said
    assert "tensorrt-fp16 (compiled for cuda, not for cpu)" in line
    assert "cytomil compile" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp16", "float32"])
def test_on_a_gpu_it_agrees_with_eager(make_encoder, bags_folder, tmp_path, precision):
    pytest.importorskip("torch_tensorrt")
    folder = make_encoder(tmp_path / "encoder").path
    line = CompileConfig(encoder=folder, bags=bags_folder, engine="tensorrt", precision=precision, layer="z", cells=48)
    assert compile_engine(line, Silent()).agreement["z"]["min_cosine"] >= 0.999
    engine = open_engine(load_bundle(folder), Layer("z"), f"tensorrt-{precision}", "cuda", print)
    assert engine.name == f"tensorrt-{precision}"
