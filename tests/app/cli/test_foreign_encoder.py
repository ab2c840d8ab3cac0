"""The whole road with an encoder that others have trained, and what a user sees where it cannot be had."""

import json

import h5py
import pytest
import timm
import torch
from torchvision.models import resnet18
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.files import sha256_of_file

NONE = ["pretrain", "--method", "none", "--image-size", "32", "--device", "cpu"]
SEEN = "DinoBloom was pretrained on the bone-marrow set"


def run(*line):
    return CliRunner().invoke(app, [str(word) for word in line])


def words(result):
    """Standard error without the breaks and frames that a terminal's width makes."""
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.fixture
def here(bags_copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    bags_copy.rename("data/bags")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), "DinoBloom-tiny.pth")
    return tmp_path


def test_from_a_weights_file_to_a_worklist(here):
    made = run(*NONE, "--arch", "test_vit", "--weights", "DinoBloom-tiny.pth", "--json")
    assert made.exit_code == 0, made.output
    assert SEEN in words(made)
    card = json.loads(made.stdout)
    path = here / "DinoBloom-tiny.pth"
    n_tensors = len(torch.load(path, weights_only=True)) - 2  # but the classifier's
    weights = {"file": path.name, "sha256": sha256_of_file(path), "tensors": n_tensors}
    assert card["start_weights"] == weights

    embedded = run("embed")
    assert embedded.exit_code == 0, embedded.output
    assert SEEN in words(embedded)
    with h5py.File(next((here / "data/features").glob("train-*.h5"))) as file:
        assert file["features"].shape[1] == 3 * 3 * 64
        assert file.attrs["layer"] == "stages:2,3,4:mean,max,spread"
        made_of = json.loads(file.attrs["encoder"])
        assert made_of["start_weights"] == weights
        assert made_of["architecture"]["name"] == "test_vit"
        assert made_of["weights_sha256"] == file.attrs["encoder_sha256"] == card["weights_sha256"]

    for line in (["fit-mil", "--epochs", "2", "--folds", "2", "--ensemble", "1"], ["evaluate"], ["rank", "data/bags"]):
        done = run(*line)
        assert done.exit_code == 0, done.output
        assert (SEEN in words(done)) is (line[0] == "evaluate")
    assert any(SEEN in limit for limit in json.loads((here / "models/triage/triage.json").read_text())["limits"])
    assert SEEN in (here / "triage/report.html").read_text()
    record = json.loads((here / "reports/evaluate.json").read_text())
    assert record["name"] == "none test_vit DinoBloom-tiny"
    assert record["encoder"]["start_weights"] == weights


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights", "none", "--arch", "resnet19"], "there is no arch 'resnet19'. Available: resnet18, resnet50"),
        (
            ["--weights", "none", "--arch", "test_vit", "--image-size", "40"],
            "not a multiple of it. Use --image-size 32 or 48",
        ),
        (["--weights", "efficientnet-lite0", "--arch", "resnet50"], "are for tf_efficientnet_lite0, not for resnet50"),
        (["--weights", "efficientnet-light0"], "Did you mean efficientnet-lite0"),
        (["--weights", "timm/test_viT"], "Did you mean timm/test_vit"),
        (["--weights", "nowhere.pth"], "nowhere.pth does not exist. Name a local weights file"),
        (["--weights", "imagenet.pth"], "119 of 120 tensors match, the first mismatch is conv1.weight"),
        (["--weights", "notes.txt"], "notes.txt cannot be read as weights"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(here, options, said):
    torch.save(resnet18(weights=None).state_dict(), "imagenet.pth")
    (here / "notes.txt").write_text("words")
    result = run(*NONE, *options)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not (here / "models").exists()


def test_the_default_start_is_told_with_its_source_and_needs_no_network(here):
    made = run(*NONE, "--json")
    assert made.exit_code == 0, made.output
    card = json.loads(made.stdout)
    assert card["architecture"]["name"] == "tf_efficientnet_lite0"
    start = card["start_weights"]
    assert (start["name"], start["licence"]) == ("efficientnet-lite0", "Apache-2.0")
    assert start["sha256"].startswith("57934424")
    assert "started from efficientnet-lite0" in words(made)
    embedded = run("embed", "--split", "test", "--orientations", "1")
    assert embedded.exit_code == 0, embedded.output
    with h5py.File(next((here / "data/features").glob("test-*.h5"))) as file:
        assert file.attrs["layer"] == "stages:1,4,5,6:mean,max,spread"
        assert file["features"].shape[1] == 1944
