import json

import numpy as np
import pytest
import torch

from cytomil import full_disk
from cytomil.bags.bag_file import open_bag
from cytomil.encoders.architecture import Encoder, resolve_architecture
from cytomil.encoders.bundle import load_bundle, save_bundle
from cytomil.encoders.engines import compile as compile_module
from cytomil.encoders.engines import open_engine, openvino
from cytomil.encoders.engines import record as record_module
from cytomil.encoders.engines.compile import compile_by_default, compile_engine, training_cells
from cytomil.encoders.engines.openvino import OpenVino
from cytomil.encoders.engines.record import read_record
from cytomil.encoders.engines.registry import CompileConfig
from cytomil.encoders.stages import default_layer, layer_dim
from cytomil.encoders.start import resolve_initialisation
from cytomil.encoders.transform import CellTransform
from cytomil.errors import EngineError, NotFoundError, SettingsError
from cytomil.layer import Layer
from cytomil.progress import Silent

LAYERS = ["h", "z", "stages:1,2,3:mean,max,spread"]


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (150, 24, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def larger_bags(make_synthetic_bags, shared):
    return shared.folder("larger", lambda root: make_synthetic_bags(root / "bags", bag_size=16)) / "bags"


def settings(encoder, bags, **changes):
    return CompileConfig(
        **{"encoder": encoder, "bags": bags, "cells": 48, "layer": "h z", "device": "cpu", "precision": "float32"}
        | changes
    )


def stored(encoder):
    folder = encoder / "engines"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def silence(message):
    raise AssertionError(f"nothing should be said, but: {message}")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_stored_engine_gives_what_eager_gives(compiled_folder, pixels, layer):
    bundle = load_bundle(compiled_folder)
    engine = open_engine(bundle, Layer.parse(layer), "openvino-float32", "cpu", silence)
    eager = open_engine(bundle, Layer.parse(layer), "eager", "cpu", silence)
    assert (engine.name, str(engine.layer), engine.dim) == ("openvino-float32", layer, eager.dim)
    values = engine.embed(pixels)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, eager.embed(pixels), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 64, 149])
def test_a_cells_embedding_is_the_same_to_the_byte_in_any_company(compiled_folder, pixels, size):
    engine = open_engine(load_bundle(compiled_folder), Layer("z"), "openvino", "cpu", silence)
    whole = engine.embed(pixels)
    parts = [engine.embed(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(engine.embed(pixels[::-1])[::-1], whole)
    assert engine.embed(pixels[:0]).shape == (0, engine.dim)


def test_the_record_says_what_was_compiled_and_measured(compiled_folder):
    record = read_record(compiled_folder / "engines" / "openvino-float32")
    bundle = load_bundle(compiled_folder)
    assert record.weights_sha256 == bundle.sha256
    assert record.image_size == 24
    assert (record.engine, record.precision, record.device) == ("openvino", "float32", "cpu")
    assert set(record.files) == {"encoder.xml", "encoder.bin"}
    assert set(record.versions) == {"openvino"}
    assert record.machine["processor"]
    assert record.layers == LAYERS
    assert set(record.agreement) == set(LAYERS)
    for figures in record.agreement.values():
        assert figures["cells"] == 48
        assert 0.999 <= figures["min_cosine"] <= figures["mean_cosine"] <= 1.0001
    assert record.images_per_second > 0 < record.eager_images_per_second
    assert record.facts["made"]
    assert stored(compiled_folder) == ["openvino-float32"]


def test_int8_is_calibrated_and_judged_on_different_training_cells(
    make_encoder, larger_bags, tmp_path, monkeypatch, capfd
):
    pytest.importorskip("nncf", reason="int8 needs nncf: pip install 'cytomil[int8]'")
    # What agreement an untrained encoder reaches in 8 bits is not this test's matter.
    monkeypatch.setattr(record_module, "MIN_OVERLAP_INT8", 0.0)
    bundle = make_encoder(tmp_path / "encoder")
    seen = {}
    build = OpenVino.build

    def watched(self, form, calibration):
        seen["calibration"] = calibration
        return build(self, form, calibration)

    monkeypatch.setattr(OpenVino, "build", watched)
    record = compile_engine(settings(bundle.path, larger_bags, precision="int8"), Silent())
    assert capfd.readouterr().out == "", "nncf's own bars"
    assert record.facts["calibration"]["cells"] == len(seen["calibration"]) == 48
    every = training_cells(larger_bags, bundle.transform, 1000, 40, 0)
    assert len(every) == 96
    held_back = {cell.tobytes() for cell in every} - {cell.tobytes() for cell in seen["calibration"]}
    assert len(held_back) == 48
    assert record.agreement["h"]["cells"] == 48
    assert 0.98 <= record.agreement["h"]["mean_cosine"] < 1
    engine = open_engine(bundle, Layer("h"), "openvino-int8", "cpu", silence)
    float32 = open_engine(bundle, Layer("h"), "eager", "cpu", silence)
    assert engine.key.startswith("openvino-int8@")
    assert not np.array_equal(engine.embed(every[:9]), float32.embed(every[:9]))
    assert (bundle.path / "engines/openvino-int8/encoder.bin").stat().st_size < 0.4 * 4 * sum(
        parameter.numel() for parameter in bundle.encoder.parameters()
    )


def test_int8_of_inner_stages_alone(make_encoder, bags_folder, tmp_path, monkeypatch):
    pytest.importorskip("nncf", reason="int8 needs nncf: pip install 'cytomil[int8]'")
    monkeypatch.setattr(record_module, "MIN_OVERLAP_INT8", 0.0)
    monkeypatch.setattr(compile_module, "MIN_CELLS", 12)
    bundle = make_encoder(tmp_path / "encoder")
    record = compile_engine(
        settings(bundle.path, bags_folder, precision="int8", layer="stages:1:mean,spread"), Silent()
    )
    assert record.agreement["stages:1:mean,spread"]["mean_cosine"] >= 0.98


def test_cells_come_from_training_bags_alone_and_from_the_seed(bags_folder, encoder_folder):
    transform = load_bundle(encoder_folder).transform
    cells = training_cells(bags_folder, transform, 1000, 40, 0)
    assert len(cells) == 60
    test_images = {image for path in bags_folder.glob("test-*.h5") for image in open_bag(path).images()}
    train_images = {image for path in bags_folder.glob("train-*.h5") for image in open_bag(path).images()}
    assert not test_images & train_images
    from cytomil.encoders.transform import decode_cells

    allowed = decode_cells(sorted(train_images), ["x"] * len(train_images), transform)[0]
    assert {cell.tobytes() for cell in cells} <= {cell.tobytes() for cell in allowed}
    few, again, other = (training_cells(bags_folder, transform, 40, 40, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(few, again)
    assert not np.array_equal(few, other)
    assert len({cell.tobytes() for cell in few}) == 40


def test_an_engine_that_disagrees_is_refused_with_the_figure_and_nothing_is_stored(
    make_encoder, bags_folder, tmp_path, monkeypatch
):
    bundle = make_encoder(tmp_path / "encoder")
    monkeypatch.setattr(record_module, "MIN_COSINE_FLOAT", 1.1)
    with pytest.raises(
        EngineError, match=r"openvino-float32 disagrees.*layer h: min cosine [01]\.\d+.*nothing is stored"
    ):
        compile_engine(settings(bundle.path, bags_folder), Silent())
    assert stored(bundle.path) == []


def test_a_refused_engine_leaves_the_one_before_it(compiled, bags_folder, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in compiled.rglob("*") if path.is_file()}
    monkeypatch.setattr(record_module, "MIN_COSINE_FLOAT", 1.1)
    with pytest.raises(EngineError):
        compile_engine(settings(compiled, bags_folder), Silent())
    assert {path: path.stat().st_mtime_ns for path in compiled.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "openvino", "precision": "fp16"}, "no precision fp16. Use --precision float32 or bf16 or int8"),
        ({"engine": "torch-compile", "precision": "int8"}, "Use --precision float32"),
        ({"engine": "tensorrt", "precision": "fp16"}, "needs an NVIDIA GPU"),
        ({"precision": "int8"}, "60 readable cells in training bags; compiling needs at least 80"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(encoder_folder, bags_folder, changes, words):
    with pytest.raises(EngineError, match=words):
        compile_engine(settings(encoder_folder, bags_folder, **changes), Silent())
    assert stored(encoder_folder) == []


def test_missing_bags_or_encoder(encoder_folder, bags_folder, tmp_path):
    with pytest.raises(NotFoundError, match="make-bags"):
        compile_engine(settings(encoder_folder, tmp_path / "none"), Silent())
    with pytest.raises(NotFoundError, match="pretrain"):
        compile_engine(settings(tmp_path / "none", bags_folder), Silent())


@pytest.mark.parametrize(("ours", "kept"), [(200.0, True), (99.0, False)])
def test_torch_compile_is_kept_only_where_it_is_faster(make_encoder, bags_folder, tmp_path, monkeypatch, ours, kept):
    bundle = make_encoder(tmp_path / "encoder")
    monkeypatch.setattr(
        torch, "compile", lambda module, **_: module
    )  # inductor takes a minute; what is around it does not
    monkeypatch.setattr(compile_module, "images_per_second", lambda *_: (ours, 100.0))
    line = settings(bundle.path, bags_folder, engine="torch-compile")
    if not kept:
        with pytest.raises(EngineError, match=r"no faster here than eager \(99 images/s against 100\)"):
            compile_engine(line, Silent())
        assert stored(bundle.path) == []
        return
    record = compile_engine(line, Silent())
    assert record.gain == 2
    assert json.loads((bundle.path / "engines/torch-compile/engine.json").read_text())["files"] == {}
    assert open_engine(bundle, Layer("z"), "auto", "cpu", silence).name == "torch-compile"


@pytest.mark.parametrize("projection_dim", [8, pytest.param(0, marks=pytest.mark.nightly)])
def test_a_vision_transformer_compiles_with_and_without_projector(bags_folder, tmp_path, projection_dim):
    pytest.importorskip("openvino", reason="compiled engines need the extra: pip install 'cytomil[int8]'")
    torch.manual_seed(0)
    encoder = Encoder(resolve_architecture("test_vit", "auto", projection_dim, 32))
    bundle = save_bundle(tmp_path / "encoder", encoder, CellTransform(32, 0.8), {"method": "none"})
    record = compile_engine(settings(bundle.path, bags_folder, layer="h z auto"), Silent())
    assert record.agreement["h"]["min_cosine"] > 0.9999
    cells = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    for layer in (Layer("h"), Layer("z"), default_layer(bundle.encoder)):
        engine = open_engine(bundle, layer, "openvino-float32", "cpu", silence)
        eager = open_engine(bundle, layer, "eager", "cpu", silence)
        assert engine.dim == eager.dim == layer_dim(bundle.encoder, layer)
        np.testing.assert_allclose(engine.embed(cells), eager.embed(cells), rtol=1e-3, atol=1e-4)


def test_an_efficientnets_inner_stages_compile_and_those_alone_are_computed(bags_folder, tmp_path):
    pytest.importorskip("openvino", reason="compiled engines need the extra: pip install 'cytomil[int8]'")
    start = resolve_initialisation("efficientnet-lite0", "auto", "auto", 64, 0)
    encoder = Encoder(start.architecture)
    start.weights.load_into(encoder)
    bundle = save_bundle(tmp_path / "encoder", encoder, CellTransform(64, 0.8), {"method": "none"})
    record = compile_engine(settings(bundle.path, bags_folder, layer="stages:1,2,4+morphology"), Silent())
    assert record.layers == ["stages:1,2,4:mean,max,spread"]
    # The blocks behind stage 4 hold most of the weights.
    assert (bundle.path / "engines/openvino-float32/encoder.bin").stat().st_size < 6e6
    cells = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    layer = Layer.parse("stages:1,2,4")
    engine, eager = (open_engine(bundle, layer, name, "cpu", silence) for name in ("openvino", "eager"))
    np.testing.assert_allclose(engine.embed(cells), eager.embed(cells), rtol=1e-3, atol=1e-3)


def test_a_layer_that_the_encoder_has_not_is_refused_before_compiling(encoder_folder, bags_folder):
    with pytest.raises(SettingsError, match=r"test_resnet has no stage 5; it has stages 0 to 4"):
        compile_engine(settings(encoder_folder, bags_folder, layer="h stages:5:mean"), Silent())


@pytest.mark.parametrize(
    ("has_bf16", "least", "wanted"), [(False, 0.0, "float32"), (True, 0.0, "bf16"), (True, 1.1, "float32")]
)
def test_auto_is_bfloat16_where_the_processor_has_it_and_it_agrees(
    make_encoder, bags_folder, tmp_path, monkeypatch, has_bf16, least, wanted
):
    bundle = make_encoder(tmp_path / "encoder")
    monkeypatch.setattr(openvino, "has_bf16", lambda: has_bf16)
    monkeypatch.setattr(record_module, "MIN_COSINE_BF16", least)
    record = compile_engine(settings(bundle.path, bags_folder, precision="auto", layer="z"), Silent())
    assert (record.precision, stored(bundle.path)) == (wanted, [f"openvino-{wanted}"])


class Noting(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_a_finished_encoder_is_compiled_for_a_processor_alone(make_encoder, bags_folder, tmp_path, monkeypatch):
    bundle, listener = make_encoder(tmp_path / "encoder"), Noting()
    monkeypatch.setattr(compile_module, "pick_device", lambda device: torch.device("cuda"))
    assert compile_by_default(bundle.path, bags_folder, 0, "auto", listener) is None
    monkeypatch.undo()
    assert stored(bundle.path) == listener.notes == []
    record = compile_by_default(bundle.path, bags_folder, 0, "cpu", listener)
    assert stored(bundle.path) == [record.name]
    assert record.layers == [str(default_layer(bundle.encoder))]


def test_full_disk_is_said_and_does_no_harm(make_encoder, bags_folder, tmp_path, monkeypatch):
    bundle, listener = make_encoder(tmp_path / "encoder"), Noting()
    genuine = full_disk.shutil.disk_usage
    monkeypatch.setattr(full_disk.shutil, "disk_usage", lambda path: genuine(path)._replace(free=1000))
    assert compile_by_default(bundle.path, bags_folder, 0, "cpu", listener) is None
    (line,) = listener.notes
    assert "engines" in line and "No space left on device. embed and rank use the eager engine" in line
    assert stored(bundle.path) == []


def test_one_that_cannot_be_compiled_is_said_and_does_no_harm(make_encoder, bags_folder, tmp_path, monkeypatch):
    bundle, listener = make_encoder(tmp_path / "encoder"), Noting()
    monkeypatch.setattr(compile_module, "MIN_CELLS", 1000)
    assert compile_by_default(bundle.path, bags_folder, 0, "cpu", listener) is None
    (line,) = listener.notes
    assert "60 readable cells" in line
    assert "eager" in line
    assert stored(bundle.path) == []
