from __future__ import annotations

import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from cytomil.weights import save_weights


@pytest.fixture(params=[0o022, 0o007])
def umask(request):
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def test_the_umask_decides_who_can_read_weights(tmp_path, umask):
    """A colleague must be able to use a model that lies in a shared folder."""
    path = tmp_path / "weights.safetensors"
    save_weights({"a": torch.ones(2)}, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_round_trip(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {"a.b": torch.arange(6.0).reshape(2, 3), "c": torch.tensor(1.5, dtype=torch.float64)}
    save_weights(tensors, path)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
