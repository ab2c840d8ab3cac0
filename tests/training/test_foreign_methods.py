"""A method from outside of the package, found by an entry point: the one that docs/methods.md shows."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cytomil.app.settings import load
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.errors import SettingsError
from cytomil.evaluation.config import EvaluateConfig
from cytomil.evaluation.run import evaluate
from cytomil.experiments.runs import read_runs
from cytomil.experiments.tables import make_table
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import embed
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.progress import Silent
from cytomil.registry import METHODS
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain
from cytomil.training.methods import load_method

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
CEILING = """
from cytomil.training.methods.classification import FullySupervised

class Ceiling(FullySupervised):
    pass
"""
SMALL = {"epochs": 1, "batch_size": 16, "image_size": 16, "projection_dim": 8, "arch": "test_resnet"}
SMALL |= {"weights": "none", "engine": "none"}


def snippet(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture
def package(tmp_path):
    """The documentation's method as an installed package: its code, and the entry point that a wheel would carry."""
    ((name, place),) = tomllib.loads(snippet("toml"))["project"]["entry-points"][METHODS.group].items()
    folder = tmp_path / "site"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "barlow.py").write_text(snippet("python"))
    (folder / "my_package" / "ceiling.py").write_text(CEILING)
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    broken = "broken = my_package.no_such_module:Method\nnot-a-method = my_package.barlow:torch\n"
    (info / "entry_points.txt").write_text(
        f"[{METHODS.group}]\n{name} = {place}\ntheir-ceiling = my_package.ceiling:Ceiling\n"
        f"{broken}simclr = my_package.barlow:BarlowTwins\n"
    )
    return folder


@pytest.fixture
def installed(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    yield package
    for module in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[module]


@pytest.fixture
def bags(tmp_path):
    make_bags(MakeBagsConfig(out=tmp_path / "bags", bag_size=12, train_bags=4, test_bags=2, cell_size=24), Silent())
    return tmp_path / "bags"


def test_the_documented_method_is_short():
    assert len(snippet("python").splitlines()) < 40


def test_the_documented_method_trains_by_its_name(installed, bags, tmp_path):
    assert load({"pretrain": {"method": "barlow-twins"}}).pretrain.method == "barlow-twins"
    records = []
    settings = PretrainConfig(method="barlow-twins", bags=bags, out=tmp_path / "e", **SMALL)
    done = pretrain(settings, Silent(), records.append)
    assert done.bundle.card.method == "barlow-twins"
    assert records[0]["loss_redundancy"] > 0
    assert done.bundle.card.nt_xent_margin is None
    code = installed / "my_package" / "barlow.py"
    assert pretrain(settings, Silent(), resume=True).already_done
    del sys.modules["my_package.barlow"]
    code.write_text(code.read_text().replace("0.005", "0.006"))
    assert not pretrain(settings, Silent(), resume=True).already_done


def test_a_ceiling_of_another_package_is_marked_to_the_end(installed, bags, tmp_path):
    chosen = SMALL | {"method": "their-ceiling", "bags": bags, "out": tmp_path / "e"}
    with pytest.raises(SettingsError, match="--with-instance-labels"):
        pretrain(PretrainConfig(**chosen), Silent())
    pretrain(PretrainConfig(with_instance_labels=True, **chosen), Silent())
    encoder, features, model = (tmp_path / name for name in ("e", "features", "model"))
    embed(EmbedConfig(bags=bags, encoder=encoder, out=features), Silent())
    fit_mil(FitMilConfig(features=features, encoder=encoder, out=model, epochs=1, folds=2, ensemble=1), Silent())
    evaluate(EvaluateConfig(features=features, model=model, bags=bags, out=tmp_path / "reports"), Silent())
    runs = read_runs([tmp_path / "reports"])
    assert runs.done[0].record.uses_instance_labels is True
    assert make_table(runs, None, 10, 0).ceilings == {"their-ceiling test_resnet"}


def test_the_command_line_finds_it(package, bags, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    line = [sys.executable, "-m", "cytomil", "pretrain", "--method", "barlow-twins", "--bags", bags, "--out", "e"]
    line += [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "e" / "encoder.json").read_text())["method"] == "barlow-twins"


def test_a_name_nobody_has_lists_those_there_are(installed):
    with pytest.raises(SettingsError, match="barlow-twins") as caught:
        load({"pretrain": {"method": "barlow"}})
    assert "command line: pretrain.method: there is no method 'barlow'. Did you mean 'barlow-twins'?" in str(
        caught.value
    )
    assert all(name in str(caught.value) for name in METHODS)


def test_cytomils_own_names_cannot_be_taken(installed):
    assert METHODS.find("simclr").value.startswith("cytomil.")


@pytest.mark.parametrize(("name", "reason"), [("broken", "no_such_module"), ("not-a-method", "not a subclass")])
def test_a_package_that_does_not_load_is_one_clear_line(installed, name, reason):
    with pytest.raises(SettingsError, match=reason):
        load_method(name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_lines_in_the_documentation(name):
    assert f"\n**{name}**\n" in PAGE
    assert load_method(name).__doc__
