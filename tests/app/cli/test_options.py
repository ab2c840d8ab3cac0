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
