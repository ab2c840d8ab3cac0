"""Checkpoints, from which an interrupted run continues with identical results.

They lie beside the bundle and not in it, because DVC deletes the outputs of a stage before it runs. Their names hold a
fingerprint of settings, data, `TRAINING_VERSION` and libraries, so that a run never continues with the weights of another.
"""

from __future__ import annotations

import glob
import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cytomil.errors import ResumeError
from cytomil.files import replacing, sha256_of_json
from cytomil.full_disk import enduring

TRAINING_VERSION = 1
"""Raise it with every change of the weights, losses or draws for the same settings and bags.

A run never continues from a checkpoint of another version. `tests/unchanged.json` names the version of its figures.
"""
LIBRARIES = ("torch", "torchvision", "torchjd", "numpy", "pillow")
"""Libraries that affect the weights of every encoder. timm affects only its own networks."""

_WITHOUT_EFFECT = frozenset({"out", "bags", "device", "cache"})


@dataclass(frozen=True)
class RunIdentity:
    """Everything that determines the weights of a run.

    Args:
        settings: of the run.
        data: fingerprint of the bags.
        made_by: `TRAINING_VERSION` and library versions by name. If the method is from another package, also the hash of
            its source.
    """

    settings: dict[str, Any]
    data: str
    made_by: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all fields, except the settings for paths, device and cache."""
        settings = {key: value for key, value in self.settings.items() if key not in _WITHOUT_EFFECT}
        return sha256_of_json({"settings": settings, "data": self.data, "made_by": self.made_by})

    def difference(self, other: RunIdentity) -> str:
        """A description of how this run differs from ``other``."""
        changed = _changes(other.settings, self.settings)
        if self.data != other.data:
            changed.append("other bags")
        return ", ".join(changed + _changes(other.made_by, self.made_by))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    keys = sorted((set(before) | set(now)) - _WITHOUT_EFFECT)
    return [f"{key} {before.get(key)} → {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


@dataclass
class Checkpoint:
    """Everything that changes during training, after ``epoch`` complete epochs.

    ``threads`` is PyTorch's number of threads on a processor, which changes the last bits of weights; 0 if unknown.
    """

    epoch: int
    model: dict[str, Any]
    method: dict[str, Any]
    optimizer: dict[str, Any]
    loss_scale: dict[str, Any]
    history: list[dict[str, Any]]
    threads: int = 0


_ENTRIES = {"identity", *Checkpoint.__dataclass_fields__}
# Errors of PyTorch for a damaged file, and errors that a file with other content causes.
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)


def checkpoint_path(out: Path, identity: RunIdentity) -> Path:
    """Path of the checkpoint of the run that writes the bundle ``out``."""
    return out.parent / "checkpoints" / f"{out.name}-{identity.fingerprint[:16]}.pt"


def save_checkpoint(path: Path, identity: RunIdentity, checkpoint: Checkpoint) -> None:
    """Write the checkpoint completely or not at all. It replaces the previous one."""
    content = {"identity": vars(identity), **vars(checkpoint)}
    with replacing(path) as partial, enduring(partial) as file:
        torch.save({**content, "sha256": _sha256_of(content)}, file)


def load_checkpoint(out: Path, identity: RunIdentity, must_match: bool) -> Checkpoint | None:
    """The checkpoint of this run. None if no such run was interrupted.

    Raises:
        ResumeError: the checkpoint is damaged; or, with ``must_match``, the only interrupted runs for ``out`` had other
            settings, data or versions.
    """
    path = checkpoint_path(out, identity)
    if path.is_file():
        content = _read(path)
        content.pop("identity")
        return Checkpoint(**content)
    others = sorted(path.parent.glob(f"{glob.escape(out.name)}-*.pt"), key=lambda other: other.stat().st_mtime)
    if must_match and others:
        stored = _read(others[-1])["identity"]
        known = stored.keys() == vars(identity).keys()
        difference = identity.difference(RunIdentity(**stored)) if known else "of an earlier version of cytomil"
        raise ResumeError(
            f"the interrupted run of {out} is not this one ({difference}). "
            "Use its settings to continue it, or start again without --resume."
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        sha256 = content.pop("sha256", None)  # None: an earlier version wrote it
        is_known = _ENTRIES - {"threads"} <= content.keys() <= _ENTRIES
        if not is_known or sha256 not in (None, _sha256_of(content)):
            raise ValueError("its checksum does not match")
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResumeError(f"{path} is damaged ({reason}). Delete it and start again.") from None
    return content


def _sha256_of(content: Any) -> str:
    """SHA-256 over all tensors and values of a checkpoint, in their order."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            digest.update(repr((part.dtype, part.shape)).encode())
            digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        elif isinstance(part, dict):
            for key, value in part.items():
                digest.update(repr(key).encode())
                add(value)
        elif isinstance(part, list | tuple):
            digest.update(f"{len(part)} entries".encode())
            for value in part:
                add(value)
        else:
            digest.update(repr(part).encode())

    add(content)
    return digest.hexdigest()
