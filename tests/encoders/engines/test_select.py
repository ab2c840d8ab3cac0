import json
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from cytomil.encoders.bundle import keep_engines, load_bundle, save_bundle, stored_engines
from cytomil.encoders.engines import open_engine, openvino
from cytomil.encoders.engines import record as record_module
from cytomil.encoders.engines.record import read_record
from cytomil.errors import EncoderBundleError
from cytomil.files import sha256_of_file, write_json_card
from cytomil.layer import Layer

NAME = "openvino-float32"


@pytest.fixture
def opened(compiled):
    """Open an engine of the compiled bundle by name; gives the engine's name and what was said."""

    def run(name="auto", device="cpu"):
        said = []
        engine = open_engine(load_bundle(compiled), Layer("z"), name, device, said.append)
        return engine.name, said

    return run


def change(compiled, folder=NAME, /, **fields):
    file = compiled / "engines" / folder / "engine.json"
    write_json_card(file, json.loads(file.read_text()) | fields)


def fast(compiled, gain=3.0, name=NAME):
    change(compiled, name, images_per_second=gain * 100, eager_images_per_second=100.0)


def another(compiled, name, gain):
    """A second engine: the same compiled form under another precision's name."""
    shutil.copytree(compiled / "engines" / NAME, compiled / "engines" / name)
    change(compiled, name, name=name, precision=name.partition("-")[2])
    fast(compiled, gain, name)


def test_auto_takes_the_fastest_stored_engine_in_silence(compiled, opened, monkeypatch):
    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    fast(compiled)
    assert opened() == (NAME, [])
    another(compiled, "openvino-bf16", 4.0)
    assert opened() == ("openvino-bf16", [])
    assert opened("openvino") == ("openvino-bf16", [])
    assert opened(NAME) == (NAME, [])
    assert opened("eager") == ("eager", [])


def test_auto_keeps_to_eager_where_compiling_won_nothing_but_a_named_engine_runs(compiled, opened):
    fast(compiled, 0.8)
    assert opened() == ("eager", [])
    assert opened(NAME) == (NAME, [])
    assert opened("openvino") == (NAME, [])


def test_nothing_stored_is_silence_for_auto_and_a_line_for_a_name(encoder_folder):
    said = []
    bundle = load_bundle(encoder_folder)
    assert open_engine(bundle, Layer("z"), "auto", "cpu", said.append).name == "eager"
    assert said == []
    assert open_engine(bundle, Layer("z"), "openvino-int8", "cpu", said.append).name == "eager"
    (line,) = said
    assert "no engine openvino-int8 is stored" in line
    assert f"cytomil compile --encoder {encoder_folder}" in line


SPOILT = {
    "other weights": ({"weights_sha256": "0" * 64}, "compiled for other weights"),
    "other size": ({"image_size": 32}, "compiled for cells of 32 px"),
    "other version": ({"versions": {"openvino": "2020.1"}}, "compiled with openvino 2020.1, but "),
    "other schema": ({"schema": "somebody.else/9"}, "somebody.else/9"),
    "other name": ({"name": "openvino-int8"}, "holds openvino-int8"),
}


@pytest.mark.parametrize("asked", ["auto", NAME])
@pytest.mark.parametrize("kind", SPOILT)
def test_a_stale_engine_is_left_aside_with_one_line(compiled, opened, kind, asked):
    fields, reason = SPOILT[kind]
    fast(compiled)
    change(compiled, **fields)
    name, said = opened(asked)
    assert name == "eager"
    (line,) = said
    assert f"{NAME} (" in line
    assert reason in line
    assert "Running eager" in line
    assert f"`cytomil compile --encoder {compiled}`" in line
    assert "\n" not in line


def test_a_graph_from_another_machine_runs_where_it_agrees_with_eager(compiled, opened, monkeypatch):
    fast(compiled)
    change(compiled, machine={"processor": "another"})
    assert opened() == (NAME, [])
    monkeypatch.setattr(record_module, "MIN_COSINE_FLOAT", 1.1)
    name, (line,) = opened()
    assert name == "eager"
    assert "disagrees with eager here: min cosine" in line


def test_an_8_bit_graph_from_another_machine_is_left_aside(compiled, opened):
    another(compiled, "openvino-int8", 9.0)
    change(compiled, "openvino-int8", machine={"processor": "another"})
    name, (line,) = opened("openvino-int8")
    assert name == "eager"
    assert "compiled on another machine (another)" in line


def test_bfloat16_runs_where_the_processor_has_it(compiled, opened, monkeypatch):
    another(compiled, "openvino-bf16", 9.0)
    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    name, (line,) = opened("openvino-bf16")
    assert name == "eager"
    assert "this processor has no bfloat16" in line


def test_an_engine_for_another_device_is_silence_for_auto_and_a_line_for_its_name(compiled, opened):
    change(compiled, device="cuda")
    assert opened() == ("eager", [])
    name, (line,) = opened(NAME)
    assert name == "eager"
    assert "compiled for cuda, not for cpu" in line


@pytest.mark.parametrize("spoil", ["truncate", "remove", "card"])
def test_a_damaged_engine_is_left_aside(compiled, opened, spoil):
    fast(compiled)
    file = compiled / "engines" / NAME / ("engine.json" if spoil == "card" else "encoder.bin")
    if spoil == "remove":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    name, (line,) = opened()
    assert name == "eager"
    assert file.name in line


def test_a_library_that_is_not_installed_is_named(compiled, opened, monkeypatch):
    fast(compiled)

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    name, (line,) = opened()
    assert name == "eager"
    assert "openvino is not installed; pip install openvino" in line


def test_a_form_that_its_library_refuses_is_left_aside(compiled, opened):
    fast(compiled)
    graph = compiled / "engines" / NAME / "encoder.xml"
    graph.write_text("<net/>")
    record = read_record(graph.parent)
    change(compiled, files=record.files | {"encoder.xml": sha256_of_file(graph)})
    name, (line,) = opened()
    assert name == "eager"
    assert "cannot be started" in line


def test_a_valid_engine_runs_though_another_is_stale(compiled, opened):
    fast(compiled)
    another(compiled, "openvino-bf16", 9.0)
    change(compiled, "openvino-bf16", weights_sha256="0" * 64)
    name, (line,) = opened()
    assert name == NAME
    assert "openvino-bf16 (compiled for other weights)" in line
    assert f"Running {NAME}" in line


def test_an_unknown_device_is_still_refused(compiled):
    with pytest.raises(EncoderBundleError, match="quantum"):
        open_engine(load_bundle(compiled), Layer("z"), "auto", "quantum", print)


def test_another_compiled_form_has_another_key(compiled):
    record = read_record(compiled / "engines" / NAME)
    other = record.model_copy(update={"files": record.files | {"encoder.bin": "0"}})
    assert record.key != other.key
    assert record.name == other.name == NAME


def test_writing_the_same_weights_again_keeps_their_engines_and_other_weights_do_not(compiled, make_encoder):
    bundle = load_bundle(compiled)
    save_bundle(compiled, bundle.encoder, bundle.transform, {"method": "simclr"})
    assert stored_engines(compiled) == [NAME]
    make_encoder(compiled, seed=1)
    assert stored_engines(compiled) == []


def test_engines_are_copied_only_to_their_own_weights_and_damaged_ones_not_at_all(compiled, make_encoder, tmp_path):
    same, other = make_encoder(tmp_path / "same").path, make_encoder(tmp_path / "other", seed=1).path
    for folder in (same, other):
        keep_engines(compiled, folder)
    assert stored_engines(same) == [NAME]
    assert stored_engines(other) == []
    (compiled / "engines" / NAME / "engine.json").write_text("{")
    fresh = make_encoder(tmp_path / "fresh").path
    keep_engines(compiled, fresh)
    assert stored_engines(fresh) == []


@pytest.mark.parametrize("asked", ["auto", NAME])
def test_an_engine_that_does_not_give_the_layer_is_left_aside(compiled, asked):
    card = compiled / "engines" / NAME / "engine.json"
    record = json.loads(card.read_text())
    record["layers"] = record["layers"][:2]
    write_json_card(card, record)
    said = []
    assert open_engine(load_bundle(compiled), Layer.parse("stages:1,2,3"), asked, "cpu", said.append).name == "eager"
    assert "openvino-float32 (does not compute layer stages:1,2,3:mean,max,spread). Running eager." in said[0]
    assert open_engine(load_bundle(compiled), Layer("z"), NAME, "cpu", said.append).name == NAME
    assert len(said) == 1


def test_ctrl_c_after_engines_were_released_is_an_interrupt_and_no_crash(compiled):
    pytest.importorskip("openvino")
    code = (
        "import gc, signal, sys\n"
        "from pathlib import Path\n"
        "from cytomil.encoders.bundle import load_bundle\n"
        "from cytomil.encoders.engines import open_engine\n"
        "from cytomil.layer import Layer\n"
        f"engines = [open_engine(load_bundle(Path(sys.argv[1])), Layer('z'), {NAME!r}, 'cpu', print) for _ in range(2)]\n"
        "while engines:\n"
        "    del engines[0]\n"
        "    gc.collect()\n"
        "try:\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(compiled)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr
