import json
import shutil

import pytest

from cytomil.bags.make import make_bags
from cytomil.experiments.planned import choose_best_other, do_run, is_done
from cytomil.experiments.runs import Cell, read_runs
from cytomil.progress import Silent

CELL = Cell("simclr", 0.25, 0)


@pytest.fixture
def grid(tiny_grid):
    grid = tiny_grid()
    make_bags(grid.settings_of(CELL).make_bags, Silent())
    return grid


def test_a_cell_is_run_once_and_leaves_a_record(grid):
    assert not is_done(grid.planned(CELL))
    record = do_run(grid.planned(CELL), Silent())
    assert record["failed"] is None
    assert is_done(grid.planned(CELL))
    assert grid.record_of(CELL).stat().st_size < 30_000
    runs = read_runs([grid.folder])
    (run,) = runs.done
    assert (run.cell, run.judge, len(run.record.bags)) == (CELL, "pamil", 4)
    assert runs.planned == {CELL, Cell("weakly-supervised", 0.25, 0)}


class Watching(Silent):
    """Keeps what is trained, and interrupts it in the middle of an epoch if told which."""

    def __init__(self, interrupt=""):
        self.interrupt, self.epochs, self.notes = interrupt, [], []

    def note(self, message):
        self.notes.append(message)

    def track(self, items, description, total=None, unit=""):
        if description.startswith("epoch "):
            self.epochs.append(description)
        for item in items:
            yield item
            if description == self.interrupt:
                raise KeyboardInterrupt


def test_a_cell_interrupted_in_pretraining_goes_on_from_its_checkpoint(tiny_grid, params):
    grid = tiny_grid(params=params | {"pretrain": params["pretrain"] | {"epochs": 3}})
    make_bags(grid.settings_of(CELL).make_bags, Silent())
    broken = Watching(interrupt="epoch 2/3")
    with pytest.raises(KeyboardInterrupt):
        do_run(grid.planned(CELL), broken)
    assert broken.epochs == ["epoch 1/3", "epoch 2/3"]
    assert not grid.record_of(CELL).exists()
    assert len(list(grid.work_of(CELL).rglob("checkpoints/*.pt"))) == 1

    resumed = Watching()
    record = do_run(grid.planned(CELL), resumed)
    assert resumed.epochs == ["epoch 2/3", "epoch 3/3"]
    assert "resuming after epoch 1 of 3" in resumed.notes
    assert record["failed"] is None
    assert is_done(grid.planned(CELL))

    shutil.rmtree(grid.work_of(CELL))
    unbroken = do_run(grid.planned(CELL), Silent())
    shas = {one["evaluations"][0]["encoder_sha256"] for one in (record, unbroken)}
    assert len(shas) == 1


def test_other_aggregators_are_fitted_to_the_encoder_that_is_there(grid, tiny_grid):
    record = do_run(grid.planned(CELL), Silent())
    again = Watching()
    other = do_run(tiny_grid(aggregators=["pamil", "mean"]).planned(CELL), again)
    assert not any(epoch.endswith("/1") for epoch in again.epochs)
    assert set(other["candidates"]) == {"pamil", "mean"}
    assert other["evaluations"][0]["encoder_sha256"] == record["evaluations"][0]["encoder_sha256"]


def test_a_finished_encoder_of_other_settings_is_trained_anew(grid, tiny_grid, params):
    record = do_run(grid.planned(CELL), Silent())
    changed = do_run(
        tiny_grid(params=params | {"pretrain": params["pretrain"] | {"epochs": 2}}).planned(CELL), Silent()
    )
    assert changed["failed"] is None
    assert changed["evaluations"][0]["encoder_sha256"] != record["evaluations"][0]["encoder_sha256"]


def test_a_record_of_other_settings_other_bags_or_half_a_record_is_run_again(grid, tiny_grid):
    file = grid.record_of(CELL)
    do_run(grid.planned(CELL), Silent())
    whole = file.read_text()
    for spoil in ({"identity": "other"}, {"bags_fingerprint": "other"}, {"failed": "why"}, {"schema": "older/1"}):
        file.write_text(json.dumps(json.loads(whole) | spoil))
        assert not is_done(grid.planned(CELL))
    file.write_text(whole[: len(whole) // 2])
    assert not is_done(grid.planned(CELL))
    file.write_text(whole)
    assert is_done(grid.planned(CELL))
    assert not is_done(tiny_grid(aggregators=["pamil", "mean"]).planned(CELL))
    changed = grid.settings_of(Cell("simclr", 0.25, 1)).make_bags.model_copy(update={"out": grid.bags_of(CELL)})
    make_bags(changed, Silent())
    assert not is_done(grid.planned(CELL))


def test_a_cell_that_fails_says_why_and_is_tried_again(grid, monkeypatch):
    def fall_over(*_, **__):
        raise RuntimeError("no luck\ntoday")

    with monkeypatch.context() as context:
        context.setattr("cytomil.training.loop.pretrain", fall_over)
        record = do_run(grid.planned(CELL), Silent())
    assert record["failed"] == "RuntimeError: no luck today"
    assert not is_done(grid.planned(CELL))
    assert read_runs([grid.folder]).failed == {CELL: "RuntimeError: no luck today"}
    assert do_run(grid.planned(CELL), Silent())["failed"] is None
    assert read_runs([grid.folder]).failed == {}


def test_an_aggregator_that_fails_leaves_the_others(tiny_grid):
    grid = tiny_grid(aggregators=["pamil", "there is none such"])
    make_bags(grid.settings_of(CELL).make_bags, Silent())
    record = do_run(grid.planned(CELL), Silent())
    assert record["failed"] is None
    assert "there is none such" in record["candidates"]["there is none such"]["failed"]
    assert [one["judge"] for one in record["evaluations"]] == ["pamil"]


def test_rows_can_be_judged_by_their_own_aggregators(tiny_grid):
    recipe = {"method": "simclr", "fit_mil": {"aggregator": "mean"}}
    grid = tiny_grid(methods=["recipe"], variants={"recipe": recipe}, aggregators=["own"])
    cell = Cell("recipe", 0.25, 0)
    make_bags(grid.settings_of(cell).make_bags, Silent())
    assert do_run(grid.planned(cell), Silent())["failed"] is None
    (run,) = read_runs([grid.folder]).done
    assert (run.judge, run.record.aggregator.name) == ("own", "mean")


def test_the_best_other_is_chosen_by_held_out_bags_alone():
    held_out = {
        "mean": {"auroc": 0.7, "log_loss": 0.1},
        "max": {"auroc": 0.8, "log_loss": 0.6},
        "knn": {"auroc": 0.8, "log_loss": 0.5},
    }
    assert choose_best_other(held_out) == "knn"
    assert choose_best_other({}) is None
