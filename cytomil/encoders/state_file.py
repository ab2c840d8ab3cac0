"""Weights in a file: its tensors by name, and nothing that runs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cytomil.errors import NotFoundError, WeightsFileError

# Where training code keeps the weights inside what it saves; a DINO run's teacher is what it gives away.
_NESTED = ("teacher", "state_dict", "model")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, in the file's order: plain, or under ``teacher``, ``state_dict`` or ``model``.

    Raises `NotFoundError` where there is no such file, `WeightsFileError` for one that holds no tensors or more than tensors.
    """
    if not path.is_file():
        state = "is a folder" if path.exists() else "does not exist"
        raise NotFoundError(f"{path} {state}. Name a local weights file with --weights, or weights by their name.")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsFileError(
            f"{path} cannot be read as weights ({reason}). cytomil takes tensors alone and runs no pickled code: save the "
            "state dict with torch.save, or as safetensors."
        ) from None
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise WeightsFileError(
            f"{path} holds no state dict. Save the network's with torch.save(model.state_dict(), …)."
        )
    return tensors
