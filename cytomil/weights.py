"""Files of weights: safetensors, no pickle."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def save_weights(tensors: dict[str, Tensor], path: Path) -> None:
    """Write contiguous tensors to ``path`` as safetensors, readable by the users whom the umask allows.

    safetensors' own ``save_file`` writes through a temporary file that only its owner can read, and renames it.
    """
    path.write_bytes(save(tensors))
