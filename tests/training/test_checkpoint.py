"""Checkpoints on disk: read as they were written, or refused."""

import pytest
import torch

from cytomil.errors import ResumeError
from cytomil.training.checkpoint import Checkpoint, RunIdentity, checkpoint_path, load_checkpoint, save_checkpoint

IDENTITY = RunIdentity({"epochs": 2}, "bags", {"torch": "2"})


@pytest.fixture
def written(tmp_path):
    state = {"weight": torch.arange(4096.0), "steps": torch.tensor(7), "half": torch.ones(3, dtype=torch.bfloat16)}
    optimizer = {"state": {0: {"momentum": torch.ones(2)}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    checkpoint = Checkpoint(2, state, {}, optimizer, {"scale": 1.0}, [{"epoch": 1, "loss": 0.1 + 0.2}])
    out = tmp_path / "encoder"
    save_checkpoint(checkpoint_path(out, IDENTITY), IDENTITY, checkpoint)
    return out, checkpoint


def test_what_was_saved_is_loaded(written):
    out, checkpoint = written
    loaded = load_checkpoint(out, IDENTITY, must_match=True)
    assert torch.equal(loaded.model["weight"], checkpoint.model["weight"])
    assert (loaded.epoch, loaded.history, loaded.optimizer["groups"]) == (
        2,
        checkpoint.history,
        checkpoint.optimizer["groups"],
    )


@pytest.mark.parametrize("part", ["weight", "lr"])
def test_another_value_in_a_readable_file_is_refused(written, part):
    out, _ = written
    path = checkpoint_path(out, IDENTITY)
    content = torch.load(path, weights_only=True)
    if part == "weight":
        content["model"]["weight"][100] += 1e-3
    else:
        content["optimizer"]["groups"][0]["lr"] = 0.2
    torch.save(content, path)
    with pytest.raises(ResumeError, match=r"damaged \(its checksum does not match\).*Delete it"):
        load_checkpoint(out, IDENTITY, must_match=False)


def test_a_checkpoint_without_threads_and_checksum_is_read(written):
    out, _ = written
    path = checkpoint_path(out, IDENTITY)
    content = torch.load(path, weights_only=True)
    del content["sha256"], content["threads"]
    torch.save(content, path)
    assert load_checkpoint(out, IDENTITY, must_match=True).threads == 0
