from pathlib import Path

import pytest
import yaml

from cytomil.errors import NotFoundError, SettingsError
from cytomil.experiments.runs import Cell
from experiments.grid import read_grid

ROOT = Path(__file__).parents[2]
CELL = Cell("simclr", 0.25, 0)


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_every_cell_of_the_grids_kept_here_has_settings(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = read_grid(Path("experiments") / name)
    cells = grid.cells
    assert len({grid.record_of(cell) for cell in cells}) == len(cells)
    assert len({grid.bags_of(cell) for cell in cells}) == len(grid.witness_rates) * len(grid.seeds)
    assert len({grid.planned(cell).stages().identity for cell in cells}) == len(grid.methods) * len(grid.seeds)
    for cell in cells:
        settings = grid.settings_of(cell)
        assert (settings.make_bags.witness_rate, settings.make_bags.seed) == (cell.witness_rate, cell.seed)
        assert settings.pretrain.seed == settings.fit_mil.seed == cell.seed
        assert settings.evaluate.name == cell.name


@pytest.mark.parametrize("name", ["cpu", "paper"])
def test_dvc_s_matrix_runs_every_method_of_a_rate_and_seed_before_the_next(name):
    stages = yaml.safe_load((ROOT / "experiments" / name / "dvc.yaml").read_text())["stages"]
    assert list(stages["run"]["matrix"]) == ["seed", "rate", "method"]


def test_methods_share_bags_and_nothing_else(tiny_grid):
    grid = tiny_grid()
    other = Cell("weakly-supervised", 0.25, 0)
    assert grid.bags_of(CELL) == grid.bags_of(other)
    assert grid.work_of(CELL) != grid.work_of(other)
    assert grid.planned(CELL).stages().identity != grid.planned(other).stages().identity


def test_a_variant_is_a_method_with_settings_of_its_own(tiny_grid):
    grid = tiny_grid(
        methods=["plain"], variants={"plain": {"method": "slam-ags", "options": {"slam-ags": {"rescale": "never"}}}}
    )
    pretrain = grid.settings_of(Cell("plain", 0.25, 0)).pretrain
    assert (pretrain.method, pretrain.options["slam-ags"]) == ("slam-ags", {"rescale": "never"})


def test_a_variant_may_be_a_whole_recipe(tiny_grid):
    recipe = {"method": "simclr", "embed": {"layer": "h"}, "fit_mil": {"aggregator": "mean"}}
    grid = tiny_grid(methods=["recipe", "simclr"], variants={"recipe": recipe})
    cell = Cell("recipe", 0.25, 0)
    settings = grid.settings_of(cell)
    assert (settings.pretrain.method, settings.embed.layer, settings.fit_mil.aggregator) == ("simclr", "h", "mean")
    assert settings.embed.out == settings.fit_mil.features == grid.work_of(cell) / "features"
    assert grid.settings_of(CELL).embed.layer == "z"
    assert grid.planned(cell).stages().identity != grid.planned(CELL).stages().identity


@pytest.mark.parametrize(
    "section, key, value", [("pretrain", "epochs", 2), ("fit_mil", "folds", 3), ("embed", "layer", "h")]
)
def test_what_shapes_a_result_shapes_its_identity(tiny_grid, params, section, key, value):
    before = tiny_grid().planned(CELL).stages().identity
    changed = params | {section: params[section] | {key: value}}
    assert tiny_grid(params=changed).planned(CELL).stages().identity != before
    assert tiny_grid(aggregators=["pamil", "mean"]).planned(CELL).stages().identity != before
    assert tiny_grid().planned(CELL).stages().identity == before


def test_where_things_lie_and_who_does_the_work_do_not(tiny_grid, params, tmp_path):
    before = tiny_grid().planned(CELL).stages().identity
    stated = params | {"pretrain": params["pretrain"] | {"cache": "disk"}}
    assert tiny_grid(params=stated, work=str(tmp_path / "elsewhere")).planned(CELL).stages().identity == before


@pytest.mark.parametrize("text", ["methods: [a]", "- 1", "methods: {", "params: p\nsseeds: [1]"])
def test_a_file_that_is_no_grid_is_named(tmp_path, text):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"grid\.yaml is not a grid"):
        read_grid(tmp_path)


def test_a_folder_without_a_grid_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"grid\.yaml does not exist"):
        read_grid(tmp_path)
