"""Options as people give them: lists in either way, several folders behind one --table, exit 3 taken for done."""

import json

import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app

SMALL = ["--bag-size", "4", "--witness-rate", "0.5", "--train-bags", "2", "--test-bags", "2"]
LABELS = "slide,label,split\ns1,sound,train\ns2,aml,train\ns3,Sound,test\ns4,APL,test\n"


def run(*line):
    return CliRunner().invoke(app, [str(word) for word in line], env={"COLUMNS": "200"})


@pytest.fixture
def slides(tmp_path, make_slide_folders):
    (tmp_path / "labels.csv").write_text(LABELS)
    return make_slide_folders(tmp_path / "slides", ["s1", "s2", "s3", "s4"])


@pytest.mark.parametrize(
    "names",
    [
        ["--normal", "A,B", "--abnormal", "C"],
        ["--normal", "A", "--normal", "B", "--abnormal", "C"],
        ["--normal", "A, B,", "--abnormal", "C", "--abnormal", "D"],
    ],
)
def test_a_list_may_be_given_twice_or_with_commas(tmp_path, make_class_folders, names):
    root = make_class_folders(tmp_path / "cells", {"A": 6, "B": 6, "C": 4, "D": 4})
    done = run("make-bags", root, *names, *SMALL, "--out", tmp_path / "bags")
    assert done.exit_code == 0, done.output
    settings = json.loads((tmp_path / "bags" / "make-bags.json").read_text())["settings"]
    assert settings["normal"] == ["A", "B"]
    assert settings["abnormal"] == [name for name in "CD" if name in names]


@pytest.mark.parametrize("positive", [["--positive", "AML,APL"], ["--positive", "AML", "--positive", "APL"]])
def test_labels_in_words(tmp_path, slides, positive):
    line = ["make-bags", slides, "--labels", tmp_path / "labels.csv", *positive, "--negative", "sound", "--json"]
    done = run(*line, "--out", tmp_path / "bags")
    assert done.exit_code == 0, done.output
    assert [bag["label"] for bag in json.loads(done.stdout)["bags"]] == [0, 1, 0, 1]


def test_a_split_that_loses_a_label_is_in_a_box(tmp_path, slides):
    (slides / "s4").rename(tmp_path / "elsewhere")
    line = ["make-bags", slides, "--labels", tmp_path / "labels.csv", "--positive", "AML,APL", "--negative", "sound"]
    done = run(*line, "--out", tmp_path / "bags", "--json")
    assert done.exit_code == 3
    assert "A SPLIT IS INCOMPLETE" in done.stderr
    assert "The test split has no positive bag (label 1)" in done.stderr
    assert len(json.loads(done.stdout)["warnings"]) == 1


def test_what_was_left_out_may_be_accepted_but_not_what_is_wrong(tmp_path, slides):
    (slides / "s1" / "cell-0.png").write_text("no image")
    line = ["make-bags", slides, "--labels", tmp_path / "labels.csv", "--negative", "sound", "--out", tmp_path / "bags"]
    assert run(*line, "--positive", "AML,APL").exit_code == 3
    accepted = run(*line, "--positive", "AML,APL", "--accept-left-out", "--json")
    assert accepted.exit_code == 0
    assert "s1/cell-0.png" in accepted.stderr
    assert [one["which"] for one in json.loads(accepted.stdout)["left_out"]] == ["s1/cell-0.png"]
    assert run(*line, "--positive", "AML", "--accept-left-out").exit_code == 1
    assert run(*line, "--positively", "AML", "--accept-left-out").exit_code == 2


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (["fit-mil", "--aggregator", "magic"], "self-paced"),
        (["pretrain", "--method", "magic"], "simclr"),
        (["compile", "--engine", "magic"], "openvino"),
        (["embed", "--engine", "magic"], "eager"),
    ],
)
def test_a_name_that_does_not_exist_is_wrong_usage(line, known):
    done = run(*line)
    assert done.exit_code == 2
    assert "'magic'" in done.stderr
    assert known in done.stderr


@pytest.mark.parametrize(("place", "state"), [("nowhere", "does not exist"), ("labels.csv", "is a file")])
def test_a_source_that_is_no_folder_is_not_said_to_be_made(tmp_path, slides, place, state):
    done = run("make-bags", tmp_path / place, "--out", tmp_path / "bags")
    assert done.exit_code == 1
    assert state in done.stderr
    assert "Make it with" not in done.stderr


def test_folders_without_a_table_are_wrong_usage(tmp_path):
    done = run("evaluate", tmp_path)
    assert done.exit_code == 2
    assert "--table" in done.stderr


def test_two_encoders_side_by_side_have_curves_of_their_own(tmp_path, bags_folder):
    for name, method in (("one", "none"), ("two", "simclr")):
        line = ["--epochs", "1", "--batch-size", "16", "--image-size", "16", "--weights", "none", "--bags", bags_folder]
        line += ["--arch", "test_resnet", "--engine", "none"]
        assert run("pretrain", "--method", method, *line, "--out", tmp_path / name).exit_code == 0
    assert {path.parent.name for path in (tmp_path / "dvclive").rglob("metrics.json")} == {"one", "two"}
    one, two = (set((tmp_path / "dvclive" / name / "plots" / "metrics").iterdir()) for name in ("one", "two"))
    assert not any(path.stem == "loss_nt_xent" for path in one)
    assert any(path.stem == "loss_nt_xent" for path in two)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--ray-address", "local"], "--ray-address: no effect on synthetic cells"),
        (["--mpp", 0.25, "--normal", "LYT"], "--normal, --mpp: no effect on synthetic cells"),
        (["--difficulty", 0.5], ""),
    ],
)
def test_settings_that_synthetic_cells_do_not_have_are_named(tmp_path, given, said):
    done = run("make-bags", "--out", tmp_path / "bags", *SMALL, *given)
    assert done.exit_code == 0, done.output
    assert said in done.output if said else "no effect" not in done.output


def test_settings_that_class_folders_do_not_have_are_named(tmp_path, make_class_folders):
    make_class_folders(tmp_path / "cells", {"LYT": 20, "BLA": 10})
    line = ["--normal", "LYT", "--abnormal", "BLA", *SMALL, "--ray-address", "local", "--workers", 2]
    done = run("make-bags", tmp_path / "cells", "--out", tmp_path / "bags", *line)
    assert done.exit_code == 0, done.output
    assert "--workers, --ray-address: no effect on class folders" in done.output


def test_settings_that_labelled_slides_do_not_have_are_named(tmp_path, slides):
    done = run(
        "make-bags",
        tmp_path / "slides",
        "--labels",
        tmp_path / "labels.csv",
        "--witness-rate",
        0.1,
        "--out",
        tmp_path / "b",
    )
    assert "--witness-rate: no effect on labelled slides" in done.output


@pytest.mark.parametrize("table", ["labels", "patients"])
def test_a_table_for_synthetic_cells_is_refused(tmp_path, table):
    (tmp_path / "table.csv").write_text("slide,label\na,0\n")
    done = run("make-bags", f"--{table}", tmp_path / "table.csv", "--out", tmp_path / "bags")
    assert done.exit_code == 1
    assert f"--{table} is not for synthetic cells. Name the folder of your slides or cells as SOURCE" in done.output
    assert not (tmp_path / "bags").exists()


def test_training_that_does_not_train_names_what_it_ignores(tmp_path, bags_folder, monkeypatch):
    common = ["pretrain", "--bags", bags_folder, "--image-size", 16, "--weights", "none", "--device", "cpu"]
    given = ["--epochs", 50, "--temperature", 0.5, "--crop-scale", 0.9, "--batch-size", 8, "--projection-dim", 4]
    weights = []
    for name, more in (("a", []), ("b", given)):
        done = run(*common, "--out", tmp_path / name, *more)
        assert done.exit_code == 0, done.output
        weights.append((tmp_path / name / "encoder.safetensors").read_bytes())
        said = "--epochs, --batch-size, --crop-scale, --projection-dim, --temperature: no effect with method 'none'"
        assert (said in done.output) == bool(more)
    assert weights[0] == weights[1]


def test_fitting_names_what_the_aggregator_ignores(tmp_path, features_folder, encoder_folder):
    line = ["--features", features_folder, "--encoder", encoder_folder, "--out", tmp_path / "model"]
    done = run(
        "fit-mil", *line, "--aggregator", "knn", "--folds", 2, "--epochs", 3, "--ensemble", 1, "--top-fraction", 0.1
    )
    assert done.exit_code == 0, done.output
    assert "--epochs, --ensemble: no effect with aggregator 'knn'" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["evaluate", "--resamples", 300, "--seed", 2], "--resamples, --seed: no effect without --table"),
        (["evaluate", "--redraw", 9, "--seed", 2], ""),
        (["evaluate", "--table", "reports", "--control"], "--control: no effect with --table"),
        (["rank", "slides", "--watch-s", 3], "--watch-s: no effect without --watch"),
    ],
)
def test_settings_of_another_mode_are_named(tmp_path, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    done = run(*line)
    assert done.exit_code == 1  # there are no features, reports or slides
    assert said in done.output if said else "no effect" not in done.output
