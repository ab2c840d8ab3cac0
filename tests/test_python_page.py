"""The scripts of docs/how-to/python.md, run from the page's own text."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import cytomil

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "python.md").read_text(encoding="utf-8")
TOUR, TEN_MOST_SUSPICIOUS, METHOD, TRAINING = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(ENTRY_POINT,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
(COMMAND,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
TINY = {"arch": "test_resnet", "weights": "none", "image_size": 24, "epochs": 1, "batch_size": 16, "engine": "none"}


def run(line, folder, *paths):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), *sys.path]), "COLUMNS": "120"}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_script(code, folder, *paths):
    return run([sys.executable, "-c", code], folder, *paths)


@pytest.mark.parametrize("code", [TEN_MOST_SUSPICIOUS, METHOD])
def test_the_scripts_are_about_ten_statements(code):
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 12


@pytest.mark.long
def test_the_tour_and_the_ten_most_suspicious_cells(tmp_path):
    assert re.fullmatch(r"AUROC of bags: [01]\.\d\d\n", run_script(TOUR, tmp_path))
    bag = cytomil.open_bags(tmp_path / "data" / "bags")[0]
    (tmp_path / "new-slide" / "part").mkdir(parents=True)
    for number, image in enumerate(bag):
        Image.fromarray(image).save(tmp_path / "new-slide" / ("part" if number % 2 else ".") / f"cell-{number}.png")
    first, *rows = run_script(TEN_MOST_SUSPICIOUS, tmp_path).splitlines()
    assert re.fullmatch(r"20 cells; probability that the slide is positive: [01]\.\d\d", first)
    scores = [float(row.split()[0]) for row in rows]
    assert len(rows) == 10
    assert scores == sorted(scores, reverse=True)
    assert len({row.split()[1] for row in rows}) == 10
    in_one_step = cytomil.load_model(tmp_path / "models" / "triage").score(tmp_path / "new-slide")
    assert [name.split("/")[-1] for name, _ in in_one_step.top(10)] == [row.split()[1] for row in rows]


@pytest.fixture
def package(tmp_path):
    """The page's method as an installed package, with the entry point that a wheel would carry."""
    ((name, place),) = tomllib.loads(ENTRY_POINT)["project"]["entry-points"]["cytomil.methods"].items()
    site = tmp_path / "site"
    (site / "my_package").mkdir(parents=True)
    (site / "my_package" / "__init__.py").touch()
    (site / "my_package" / "decorrelated.py").write_text(METHOD)
    info = site / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cytomil.methods]\n{name} = {place}\n")
    return site


@pytest.mark.long
def test_a_loss_with_its_own_setting_trains_by_name(package, tmp_path):
    cytomil.make_bags("synthetic", tmp_path / "data" / "bags", bag_size=24, train_bags=4, test_bags=2, cell_size=32)
    rows = run_script(TRAINING, tmp_path, package).splitlines()
    assert len(rows) == 2
    assert all(float(number) > 0 for row in rows for number in row.split())
    card = cytomil.load_encoder(tmp_path / "models" / "decorrelated").card
    assert card["settings"]["options"] == {"decorrelated": {"decorrelation": 0.5}}
    assert "decorrelated" in run_script("import cytomil; print(cytomil.methods())", tmp_path, package)


def test_its_setting_counts_and_a_wrong_one_is_refused(package, tmp_path, bags_folder):
    shutil.copytree(bags_folder, tmp_path / "bags")
    code = f"""
import cytomil
last = lambda **own: cytomil.pretrain("bags", "e", "decorrelated", **own, **{TINY}).card["history"][-1]
assert last(decorrelation=0.0)["loss_correlation"] == 0 < last(decorrelation=9.0)["loss_correlation"]
for wrong in ({{"decorelation": 1.0}}, {{"decorrelation": "much"}}):
    try:
        last(**wrong)
    except cytomil.SettingsError as error:
        print(error)
"""
    misspelt, wrong = run_script(code, tmp_path, package).splitlines()
    assert misspelt == "method 'decorrelated' has no setting 'decorelation'. Did you mean 'decorrelation'?"
    assert wrong.startswith("method 'decorrelated': decorrelation: ")


@pytest.mark.long
def test_its_setting_is_an_option_of_the_command(package, tmp_path):
    name, *words = COMMAND.split()
    assert name == "cytomil"
    assert "--decorrelation" in run([sys.executable, "-m", "cytomil", *words], tmp_path, package)
