"""Every verb, given bad input: one clear line, the documented exit status, no traceback, nothing half-written."""

import json
import shutil
from pathlib import Path

import h5py
import pytest
import yaml
from typer.testing import CliRunner

from cytomil.app.cli.app import app

BAGS = ["--bag-size", "12", "--train-bags", "6", "--test-bags", "4", "--cell-size", "24", "--difficulty", "0"]
TRAIN = ["--epochs", "1", "--batch-size", "16", "--image-size", "16", "--weights", "none", "--method", "simclr"]
TRAIN += ["--arch", "test_resnet"]  # small, since each test has a copy of everything
FIT = ["--epochs", "2", "--folds", "2", "--ensemble", "1"]
EVERY_VERB = (
    ["make-bags", *BAGS],
    ["pretrain", *TRAIN],
    ["embed"],
    ["fit-mil", *FIT],
    ["evaluate"],
    ["rank", "data/bags"],
)


def run(*line):
    return CliRunner().invoke(app, [str(word) for word in line])


def assert_refused(result, *words, status=1):
    assert result.exit_code == status, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0], lines[0]


def run_every_verb(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for line in EVERY_VERB:
            result = run(*line)
            assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def finished(shared):
    return shared.folder("finished", run_every_verb)


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(root):
    return {path.relative_to(root): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


VERBS = {
    "pretrain": (["pretrain", *TRAIN], "--bags"),
    "embed": (["embed"], "--bags"),
    "fit-mil": (["fit-mil", *FIT], "--features"),
    "evaluate": (["evaluate"], "--features"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_a_missing_or_empty_folder_or_a_file_in_its_place(here, verb, kind):
    line, option = VERBS[verb]
    given = here / "given"
    if kind == "empty":
        given.mkdir()
    elif kind == "file":
        given.write_text("words")
    before = snapshot(here)
    assert_refused(run(*line, option, given), "given", "cytomil ")
    assert snapshot(here) == before


@pytest.mark.parametrize(
    "line", [["make-bags", "nowhere"], ["rank", "nowhere"], ["rank", "data/bags", "--model", "nowhere"]]
)
def test_a_missing_source(here, line):
    before = snapshot(here)
    assert_refused(run(*line), "nowhere", "does not exist")
    assert snapshot(here) == before


def test_empty_folders_for_make_bags_and_rank(here):
    (here / "void").mkdir()
    assert_refused(run("make-bags", "void"), "no class folders")
    assert_refused(run("rank", "void"), "holds no slides")


@pytest.mark.parametrize(
    "line", [["make-bags"], *(line for line, _ in VERBS.values()), ["rank", "data/bags"], ["doctor"]]
)
def test_an_unknown_key_in_params_yaml(here, line):
    (here / "params.yaml").write_text("pretrain: {epoch: 3}\n")
    before = snapshot(here)
    assert_refused(run(*line), "params.yaml", "pretrain.epoch", "epochs")
    assert snapshot(here) == before


def test_a_params_file_that_is_not_there(here):
    assert_refused(run("embed", "--params", "other.yaml"), "other.yaml")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_schema(path):
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = "somebody.else/9"


def words(path):
    path.write_text("these are words")


@pytest.mark.parametrize("spoil", [truncate, other_schema, words])
def test_a_spoilt_bag(here, spoil):
    shutil.rmtree(here / "data/features")
    spoil(here / "data/bags/train-02.h5")
    assert_refused(run("pretrain", *TRAIN, "--out", "models/other"), "train-02.h5", "make-bags")
    assert not (here / "models/other").exists()
    embedded = run("embed", "--json")
    assert embedded.exit_code == 3, embedded.output
    (left_out,) = json.loads(embedded.stdout)["left_out"]
    assert left_out["which"] == "train-02"
    assert not (here / "data/features/train-02.h5").exists()
    ranked = run("rank", "data/bags", "--json")
    assert ranked.exit_code == 3
    top = json.loads(ranked.stdout)["slides"][0]
    assert top["slide"] == "train-02.h5"
    assert top["call"] == "not assessed"


@pytest.mark.parametrize("spoil", [truncate, other_schema, words])
def test_a_spoilt_feature_cache(here, spoil):
    spoil(here / "data/features/train-02.h5")
    spoil(here / "data/features/test-01.h5")
    before = snapshot(here)
    assert_refused(run("fit-mil", *FIT), "train-02.h5", "cytomil embed")
    assert_refused(run("evaluate"), "test-01.h5", "cytomil embed")
    assert snapshot(here) == before
    again = run("embed", "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["embedded_now"] == 2
    assert run("evaluate").exit_code == 0


@pytest.mark.parametrize("spoil", [truncate, words])
@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
def test_a_spoilt_encoder(here, spoil, name):
    spoil(here / "models/encoder" / name)
    assert_refused(run("embed", "--out", "data/other"), name)
    assert not (here / "data/other").exists()


def test_an_encoder_or_model_of_another_schema(here):
    for path in ("models/encoder/encoder.json", "models/triage/triage.json"):
        card = json.loads((here / path).read_text()) | {"schema": "somebody.else/9"}
        (here / path).write_text(json.dumps(card))
    assert_refused(run("embed"), "encoder.json", "somebody.else/9")
    assert_refused(run("evaluate"), "triage.json", "somebody.else/9")
    assert_refused(run("rank", "data/bags"), "triage.json", "somebody.else/9")


def test_features_of_another_encoder_are_refused(here):
    assert run("pretrain", *TRAIN, "--seed", "5").exit_code == 0
    assert_refused(run("fit-mil", *FIT), "another encoder", "cytomil embed")


def test_unreadable_images_are_left_out_and_listed(here):
    for name in ("A", "B"):
        (here / "cells" / name).mkdir(parents=True)
    with h5py.File(here / "data/bags/train-01.h5") as one, h5py.File(here / "data/bags/train-02.h5") as other:
        for name, file in (("A", one), ("B", other)):
            for i, image in enumerate(file["images"][:]):
                (here / "cells" / name / f"{i}.jpg").write_bytes(image.tobytes())
    (here / "cells/A/0.jpg").write_bytes((here / "cells/A/0.jpg").read_bytes()[:300])
    (here / "cells/A/words.jpg").write_text("these are words")
    line = ["make-bags", "cells", "--normal", "A", "--abnormal", "B", "--out", "made", "--witness-rate", "0.5"]
    made = run(*line, "--bag-size", "4", "--train-bags", "2", "--test-bags", "1", "--json")
    document = json.loads(made.stdout)
    assert len(document["bags"]) == 3
    assert made.exit_code == (3 if document["left_out"] else 0)
    refused = run(*line, "--bag-size", "4", "--train-bags", "20", "--test-bags", "0")
    assert_refused(refused, "A 13", "B 12", "60 normal", "20 abnormal")


def test_values_out_of_range_name_the_setting(here):
    assert_refused(run("pretrain", "--epochs", "0"), "pretrain.epochs")
    assert_refused(run("make-bags", "--witness-rate", "2"), "make_bags.witness_rate")
    assert_refused(run("embed", "--device", "quantum"), "quantum")


def test_make_bags_leaves_a_foreign_folder_alone(here):
    (here / "mine").mkdir()
    (here / "mine/thesis.txt").write_text("years of work")
    assert_refused(run("make-bags", *BAGS, "--out", "mine"), "mine", "was not changed")
    assert (here / "mine/thesis.txt").read_text() == "years of work"


def test_json_is_one_document_on_standard_output(here):
    for line in (["evaluate", "--json"], ["rank", "data/bags", "--json"], ["doctor", "--json"], ["embed", "--json"]):
        result = run(*line)
        assert result.exit_code == 0, result.output
        json.loads(result.stdout)


def test_the_verbs_hand_on_to_each_other_by_their_defaults(finished):
    metrics = json.loads((finished / "reports/metrics.json").read_text())
    assert set(metrics) == {"bag", "instance", "intervals", "collapsed", "uses_instance_labels"}
    assert {"f1", "auroc", "auprc", "sensitivity", "specificity"} <= set(metrics["bag"])
    wanted = {"recall_at_k", "k", "recall_at_1pct", "recall_at_5pct", "recall_at_10pct", "recall_at_40pct"}
    assert wanted | {"average_precision", "auroc", "review_until_first"} <= set(metrics["instance"])
    for name in ("triage.csv", "triage.json", "report.html"):
        assert (finished / "triage" / name).stat().st_size > 0
    assert not list(finished.rglob(".*partial*"))


def test_the_pipelines_outputs_are_what_the_verbs_write_by_default(finished):
    stages = yaml.safe_load((Path(__file__).parents[3] / "dvc.yaml").read_text())["stages"]
    for name in ("make-bags", "pretrain", "embed", "fit-mil", "evaluate"):
        for out in (*stages[name]["outs"], *stages[name].get("metrics", ())):
            assert (finished / next(iter([out] if isinstance(out, str) else out))).exists(), f"{name}: {out}"


@pytest.mark.parametrize("line", [["pretrain", *TRAIN, "--epochs", "1"], ["fit-mil", *FIT]])
def test_a_mistyped_out_never_replaces_somebody_elses_folder(here, line):
    before = snapshot(here)
    assert_refused(run(*line, "--out", "models"), "models", "was not changed")
    assert snapshot(here) == before
