import json
import shutil

import pytest

from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.instance_labels import read_instance_labels
from cytomil.bags.make import make_bags
from cytomil.bags.manifest import read_manifest
from cytomil.encoders.bundle import load_bundle
from cytomil.errors import FeatureFileError, SettingsError
from cytomil.evaluation.config import EvaluateConfig
from cytomil.evaluation.record import name_of
from cytomil.evaluation.run import evaluate
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import embed
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.progress import Silent
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain

BAGS = {"bag_size": 12, "train_bags": 6, "test_bags": 4, "cell_size": 24, "witness_rate": 0.25, "difficulty": 0.0}


def make_all(root):
    make_bags(MakeBagsConfig(out=root / "bags", **BAGS), Silent())
    small = {"method": "simclr", "epochs": 1, "batch_size": 32, "image_size": 16, "weights": "none"}
    small["arch"] = "test_resnet"
    pretrain(PretrainConfig(bags=root / "bags", out=root / "encoder", **small), Silent())
    embed(EmbedConfig(bags=root / "bags", encoder=root / "encoder", out=root / "features"), Silent())
    fit = {"epochs": 2, "folds": 2, "ensemble": 1}
    fit_mil(FitMilConfig(features=root / "features", encoder=root / "encoder", out=root / "model", **fit), Silent())


@pytest.fixture(scope="module")
def made(shared):
    return shared.folder("evaluated", make_all)


def settings(made, out, **changed):
    places = {"features": made / "features", "model": made / "model", "bags": made / "bags", "out": out}
    return EvaluateConfig(**(places | changed))


def test_every_promised_file_is_written(made, tmp_path):
    done = evaluate(settings(made, tmp_path), Silent())
    assert done.problems == ()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["bag"]["n_bags"] == 4
    assert metrics["instance"]["n_bags"] == 2
    assert isinstance(metrics["collapsed"], bool)
    for name in ("roc", "pr", "recall_by_k"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len((tmp_path / "plots" / f"{name}.csv").read_text().splitlines()) > 1
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 5
    record = json.loads((tmp_path / "evaluate.json").read_text())
    assert record["encoder_sha256"] == load_bundle(made / "encoder").sha256


def test_the_same_evaluation_gives_the_same_bytes(made, tmp_path):
    for name in ("a", "b"):
        evaluate(settings(made, tmp_path / name), Silent())
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file() and file.name != "evaluate.json":
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_redrawn_bags_are_measured_only_when_asked_for(made, tmp_path):
    assert evaluate(settings(made, tmp_path / "plain"), Silent()).redrawn is None
    done = evaluate(settings(made, tmp_path / "redrawn", redraw=50), Silent())
    metrics, plain = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("redrawn", "plain"))
    assert metrics["redrawn"] == done.redrawn.to_dict()
    assert metrics["redrawn"]["bag"]["n_bags"] == 50
    assert (metrics["redrawn"]["bag_size"], metrics["redrawn"]["n_witnesses"]) == (12, 3)
    assert {key: metrics[key] for key in plain} == plain


def test_k_is_what_was_asked_for(made, tmp_path):
    asked = evaluate(settings(made, tmp_path, k=3), Silent()).instance
    assert asked.k == 3
    assert evaluate(settings(made, tmp_path, k=12), Silent()).instance.recall_at_k == 1.0


def test_a_bag_without_instance_labels_is_listed_and_the_rest_goes_on(made, tmp_path):
    bags = tmp_path / "bags"
    shutil.copytree(made / "bags", bags)
    (bags / "test-01.h5").write_text("gone")
    (bags / "test-02.h5").write_text("gone")
    done = evaluate(settings(made, tmp_path / "out", bags=bags), Silent())
    assert {problem.where for problem in done.problems} == {"test-01", "test-02"}
    assert done.bag.n_bags == 4


@pytest.mark.parametrize("other", [{"layer": "h"}, {"orientations": 4}])
def test_features_of_another_layer_or_number_of_orientations_are_refused(made, tmp_path, other):
    embed(EmbedConfig(bags=made / "bags", encoder=made / "encoder", out=tmp_path / "other", **other), Silent())
    with pytest.raises(FeatureFileError, match="encoder, layer, engine, number of orientations or version"):
        evaluate(settings(made, tmp_path / "out", features=tmp_path / "other"), Silent())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"method": "simclr"}, "simclr"),
        ({"method": "slam-ags", "rescale": "paper", "arch": "resnet18", "weights": None}, "slam-ags"),
        ({"method": "slam-ags", "rescale": "never", "arch": "resnet50"}, "slam-ags-never resnet50"),
        ({"method": "slam-ags", "rescale": "paper", "surgery": "adaptive"}, "slam-ags"),
        ({"method": "slam-ags", "rescale": "paper", "surgery": "priority"}, "slam-ags-priority"),
        ({"method": "slam-ags", "rescale": "paper", "objective": "stable", "surgery": None}, "slam-ags-stable"),
        (
            {"method": "slam-ags", "rescale": "never", "objective": "stable", "surgery": "adaptive"},
            "slam-ags-stable-never",
        ),
        ({"method": "slam-ags", "rescale": "paper", "objective": "stable", "surgery": "sum"}, "slam-ags-stable-sum"),
        ({"method": "slam-ags", "rescale": "paper", "objective": "paper", "surgery": None}, "slam-ags"),
        ({"method": "none", "arch": "resnet18", "weights": "w/imagenet.pth"}, "none imagenet"),
        ({"method": "none", "arch": "auto", "weights": "efficientnet-lite0"}, "none efficientnet-lite0"),
        ({"method": "simclr", "arch": "auto", "weights": "none"}, "simclr"),
    ],
)
def test_runs_that_differ_in_surgery_encoder_or_start_weights_stand_in_different_rows(settings, name):
    assert name_of(settings) == name


def test_the_control_is_measured_only_when_asked_for_and_stands_in_the_record(made, tmp_path):
    done = evaluate(settings(made, tmp_path / "control", control=True), Silent())
    metrics, record = (
        json.loads((tmp_path / "control" / name).read_text()) for name in ("metrics.json", "evaluate.json")
    )
    assert metrics["control"] == record["metrics"]["control"] == json.loads(json.dumps(done.control.to_dict()))
    assert metrics["control"]["real"]["n_bags"] == 10
    assert metrics["control"]["n_removed"] == 5 * 3
    again = evaluate(settings(made, tmp_path / "permuted", control=True, permutations=2), Silent()).control
    assert len(again.aurocs) == 2
    assert again.real == done.control.real
    assert evaluate(settings(made, tmp_path / "plain"), Silent()).control is None


def test_options_of_a_control_that_nobody_asked_for_are_refused(made, tmp_path):
    with pytest.raises(SettingsError, match="--control"):
        evaluate(settings(made, tmp_path / "out", permutations=2), Silent())
    with pytest.raises(SettingsError, match="--permutations"):
        evaluate(settings(made, tmp_path / "out", control=True, sites=tmp_path / "sites.csv"), Silent())


def test_bags_that_lost_their_instance_labels_are_left_out_of_the_control_and_listed(made, tmp_path):
    bags = tmp_path / "bags"
    shutil.copytree(made / "bags", bags)
    positive = next(row.bag_id for row in read_manifest(bags).rows if row.label and row.split == "train")
    (bags / f"{positive}.h5").write_text("gone")
    done = evaluate(settings(made, tmp_path / "out", bags=bags, control=True), Silent())
    assert {problem.where for problem in done.problems} == {positive}
    assert done.control.real.n_bags == 9


def label_cells(made, path, more=()):
    """Label all cells of the test bags but the last three of each, by their true labels."""
    manifest = read_manifest(made / "bags")
    lines = ["slide,instance_id,verdict"]
    for row in manifest.select("test"):
        labels = list(read_instance_labels(manifest.file_of(row)).items())[:-2]
        lines += [f"{row.bag_id},{name},{'abnormal' if label else 'normal'}" for name, label in labels]
    path.write_text("\n".join([*lines, *more]) + "\n")
    return path


def test_only_cells_with_given_labels_count(made, tmp_path):
    cells = label_cells(made, tmp_path / "cells.csv")
    done = evaluate(settings(made, tmp_path / "given", cells=cells), Silent())
    own = evaluate(settings(made, tmp_path / "own"), Silent())
    assert done.problems == ()
    assert (done.instance.n_bags, done.labelled_cells["n"]) == (2, 20)
    assert own.labelled_cells is None
    assert done.bag == own.bag
    record, plain = (json.loads((tmp_path / name / "evaluate.json").read_text()) for name in ("given", "own"))
    assert {bag.get("n_labelled") for bag in record["bags"] if bag["label"]} == {10}
    assert record["bags_fingerprint"] != plain["bags_fingerprint"]
    predictions = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("given", "own")]
    assert predictions[0] == predictions[1]


def test_given_labels_that_fit_nothing_are_listed(made, tmp_path):
    bag = read_manifest(made / "bags").select("test")[1].bag_id
    more = ["elsewhere.svs,c1,normal", f"{bag},no-such-cell,normal"]
    done = evaluate(settings(made, tmp_path / "r", cells=label_cells(made, tmp_path / "c.csv", more)), Silent())
    told = {one.where: one.reason for one in done.problems}
    assert set(told) == {"elsewhere.svs", bag}
    assert "no bag has this name" in told["elsewhere.svs"] and "1 label (no-such-cell)" in told[bag]


@pytest.mark.parametrize("more", [{"redraw": 10}, {"control": True}])
def test_what_needs_every_cells_label_is_refused_with_labels_of_some(made, tmp_path, more):
    with pytest.raises(SettingsError, match="--cells"):
        evaluate(settings(made, tmp_path / "r", cells=label_cells(made, tmp_path / "c.csv"), **more), Silent())
