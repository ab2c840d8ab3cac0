"""An engine from outside of the package, found by an entry point: the one that docs/how-to/extend.md shows."""

import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.app.settings import load
from cytomil.encoders.bundle import load_bundle
from cytomil.encoders.engines import compile as compile_module
from cytomil.encoders.engines import open_engine
from cytomil.encoders.engines.compile import compile_engine
from cytomil.encoders.engines.registry import ENGINES, CompileConfig, load_backend
from cytomil.errors import EngineError, SettingsError
from cytomil.layer import Layer
from cytomil.progress import Silent

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
OTHERS = '''
from pydantic import Field

from cytomil.config import Config
from cytomil.encoders.engines import Backend
from cytomil.encoders.engines.engine import EagerEngine


class WrapConfig(Config):
    """Settings of the wrapped engine."""

    colour: int = Field(3, ge=1, description="a number that it writes into a file")


class Wrapped(Backend):
    """Eager under another name, with a file and a setting of its own. Its name has a hyphen."""

    Config = WrapConfig
    precisions = ("float32", "int8")

    def calibration_cells(self, precision):
        return 40 if precision == "int8" else 0

    def build(self, form, calibration):
        (form.folder / "colour.txt").write_text(str(self.own.colour))
        return {"calibration": len(calibration)}

    def start(self, form, layer):
        int((form.folder / "colour.txt").read_text())
        return EagerEngine(form.encoder, layer, form.device).embed


class Fails(Wrapped):
    def build(self, form, calibration):
        raise KeyError("a library's own error\\nwith a second line")


class Needs(Wrapped):
    libraries = ("no-such-library",)
    install = "their-package[fast]"
'''


def snippet(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The documentation's engine, and others, as an installed package."""
    ((name, place),) = tomllib.loads(snippet("toml"))["project"]["entry-points"][ENGINES.group].items()
    folder = tmp_path / "site"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "autocast.py").write_text(snippet("python"))
    (folder / "my_package" / "others.py").write_text(OTHERS)
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENGINES.group}]\n{name} = {place}\nwrapped-eager = my_package.others:Wrapped\n"
        "fails = my_package.others:Fails\nneeds = my_package.others:Needs\n"
        "broken = my_package.no_such_module:Backend\nopenvino = my_package.others:Wrapped\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for module in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[module]


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(compile_module, "images_per_second", lambda *_: (200.0, 100.0))


@pytest.fixture
def encoder(make_encoder, tmp_path):
    return make_encoder(tmp_path / "encoder").path


@pytest.fixture
def compiled_by(encoder, bags_folder, fast, installed):
    """Compile the encoder with a named backend; gives the record."""

    def run(engine, **changes):
        chosen = {"cells": 48, "layer": "h z", "device": "cpu"} | changes
        return compile_engine(CompileConfig(encoder=encoder, bags=bags_folder, engine=engine, **chosen), Silent())

    return run


def run(*line):
    return CliRunner().invoke(app, [str(word) for word in line], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})


def plain(text):
    return re.sub(r"[│╭╮╰╯─\s]+", " ", text)


def silence(message):
    raise AssertionError(f"nothing should be said, but: {message}")


def test_the_documented_engine_is_short():
    assert len(snippet("python").splitlines()) < 40


@pytest.mark.parametrize("name", ["autocast", "autocast-bf16", "auto"])
def test_the_documented_engine_is_compiled_stored_and_selected(compiled_by, encoder, name):
    record = compiled_by("autocast")
    assert (record.name, record.engine, record.precision) == ("autocast-bf16", "autocast", "bf16")
    assert [path.name for path in (encoder / "engines").iterdir()] == ["autocast-bf16"]
    bundle = load_bundle(encoder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), np.uint8)
    engine = open_engine(bundle, Layer("z"), name, "cpu", silence)
    eager = open_engine(bundle, Layer("z"), "eager", "cpu", silence)
    assert (engine.name, engine.dim) == ("autocast-bf16", eager.dim)
    assert not np.array_equal(engine.embed(pixels), eager.embed(pixels))
    np.testing.assert_allclose(engine.embed(pixels), eager.embed(pixels), rtol=0.2, atol=0.1)


def test_the_command_line_compiles_it_and_embeds_with_it(installed, fast, encoder, bags_folder, tmp_path):
    line = ["--engine", "wrapped-eager", "--precision", "float32", "--colour", "7", "--cells", "48", "--layer", "h"]
    done = run("compile", "--encoder", encoder, "--bags", bags_folder, *line, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["name"] == "wrapped-eager-float32"
    assert (encoder / "engines" / "wrapped-eager-float32" / "colour.txt").read_text() == "7"
    line = ["--encoder", encoder, "--bags", bags_folder, "--layer", "h", "--out", tmp_path / "features", "--json"]
    for name in ("wrapped-eager", "wrapped-eager-float32"):
        done = run("embed", *line, "--engine", name)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["engine"].startswith("wrapped-eager-float32@")


@pytest.mark.parametrize("verb", ["compile", "embed", "rank"])
def test_the_help_lists_it(installed, verb, monkeypatch):
    # Typer reads the terminal's width once, when it is imported.
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    shown = plain(run(verb, "--help").stdout)
    listed = re.search(r"<([^>]*\|openvino\|[^>]*|openvino\|[^>]*)>", shown.replace(" ", "")).group(1)
    assert {"openvino", "torch-compile", "autocast", "wrapped-eager"} <= set(listed.split("|"))


def test_the_help_lists_its_own_settings(installed, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    shown = plain(run("compile", "--engine", "wrapped-eager", "--help").stdout)
    assert "--colour 3 a number that it writes into a file" in shown


@pytest.mark.parametrize("verb", ["compile", "embed", "rank"])
def test_a_misspelt_name_is_wrong_usage_and_names_it(installed, verb):
    done = run(verb, *(["slides"] if verb == "rank" else []), "--engine", "autocats")
    assert done.exit_code == 2
    assert "there is no engine 'autocats'. Did you mean 'autocast'?" in plain(done.stderr)
    assert "wrapped-eager" in done.stderr
    with pytest.raises(SettingsError, match=rf"{verb}.engine: there is no engine 'autocats'. Did you mean 'autocast'"):
        load({verb: {"engine": "autocats"}})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("autocast-int8", "There are: autocast, autocast-bf16."),
        ("wrapped-eager-fp16", "There are: wrapped-eager, wrapped-eager-float32, wrapped-eager-int8."),
        ("openvino-fp16", "There are: openvino, openvino-float32, openvino-bf16, openvino-int8."),
        ("torch-compile-float32", "Did you mean 'torch-compile'?"),
        ("broken-int8", "no_such_module"),
        ("wrapped", "wrapped-eager"),
    ],
)
def test_a_precision_that_an_engine_does_not_offer_is_refused_with_those_it_does(installed, name, words):
    with pytest.raises(SettingsError) as caught:
        load({"embed": {"engine": name}})
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["auto", "eager", "ncnn", "torch-compile", "tensorrt-fp16", "wrapped-eager-int8"])
def test_names_of_backends_and_of_stored_engines_are_settings(installed, name):
    assert load({"rank": {"engine": name}}).rank.engine == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colours": 3}, "engine 'wrapped-eager' has no setting 'colours'. Did you mean 'colour'?"),
        ({"presicion": "int8"}, "Did you mean 'precision'?"),
        ({"colour": 0}, "engine 'wrapped-eager': colour: "),
    ],
)
def test_its_own_settings_are_checked(compiled_by, options, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        compiled_by("wrapped-eager", options={"wrapped-eager": options})


def test_it_gets_the_calibration_cells_that_it_asks_for(compiled_by):
    assert compiled_by("wrapped-eager").facts["calibration"] == 0
    with pytest.raises(EngineError, match="60 readable cells in training bags; compiling needs at least 80"):
        compiled_by("wrapped-eager", precision="int8")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("fails", "fails-float32 cannot be compiled (KeyError: \"a library's own error"),
        ("needs", "no-such-library is not installed; pip install their-package[fast]."),
    ],
)
def test_one_that_cannot_be_compiled_is_one_line_and_not_stored(compiled_by, encoder, engine, words):
    with pytest.raises(EngineError, match=re.escape(words)):
        compiled_by(engine)
    assert not list((encoder / "engines").glob("*"))


def test_one_that_does_not_load_or_start_is_one_clear_line(compiled_by, encoder, installed):
    with pytest.raises(SettingsError, match=r"engine 'broken' cannot be loaded from my_package\.no_such_module"):
        compiled_by("broken")
    compiled_by("wrapped-eager")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_backend("wrapped-eager").__class__, "start", lambda *_: {}["missing"])
        assert open_engine(load_bundle(encoder), Layer("z"), "wrapped-eager", "cpu", said.append).name == "eager"
    assert "wrapped-eager-float32 (cannot be started (KeyError: 'missing'))" in said[0]


def test_without_its_package_eager_runs_and_says_why(compiled_by, encoder, installed):
    compiled_by("wrapped-eager")
    (installed / "my_package-1.0.dist-info" / "entry_points.txt").unlink()
    said = []
    assert open_engine(load_bundle(encoder), Layer("z"), "auto", "cpu", said.append).name == "eager"
    assert "wrapped-eager-float32 (its backend cannot be loaded: there is no engine 'wrapped-eager'" in said[0]


def test_cytomils_own_names_cannot_be_taken(installed):
    assert ENGINES.find("openvino").value.startswith("cytomil.")


def test_doctor_lists_every_backend_and_what_it_lacks(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = plain(run("doctor").output)
    assert "engine autocast " in shown
    assert "bf16 on a processor or an NVIDIA GPU" in shown
    assert "no-such-library is not installed" in shown
    assert "engine broken not usable" in shown
