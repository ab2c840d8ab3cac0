"""Checkpoints: what a killed run needs to go on as if nothing had happened.

They lie beside the bundle, not in it (DVC deletes a stage's outputs before it runs), and are named by a fingerprint of
the settings, the data, `TRAINING_VERSION` and the libraries, so that a run never goes on with the weights of another.
"""

from __future__ import annotations

import glob
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cytomil.errors import ResumeError
from cytomil.files import replacing, sha256_of_json

TRAINING_VERSION = 1
"""Raise it with every change that gives other weights, losses or draws from the same settings and bags.

A checkpoint of another version is not continued. `tests/unchanged.json` holds the version that its figures are of.
"""
LIBRARIES = ("torch", "torchvision", "torchjd", "numpy", "pillow")
"""Those that shape the weights of every encoder. timm shapes those of its own networks."""

_NOT_SHAPING = frozenset({"out", "bags", "device", "cache"})


@dataclass(frozen=True)
class RunIdentity:
    """All that shapes a run's weights.

    ``data`` names the bags. ``made_by``: `TRAINING_VERSION` and the versions of libraries, by name, and the hash of a
    method's source where another package brings it.
    """

    settings: dict[str, Any]
    data: str
    made_by: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it, except where the files lie and which device is used."""
        shaping = {key: value for key, value in self.settings.items() if key not in _NOT_SHAPING}
        return sha256_of_json({"settings": shaping, "data": self.data, "made_by": self.made_by})

    def difference(self, other: RunIdentity) -> str:
        """In words, what ``other`` has that this one has not."""
        changed = _changes(other.settings, self.settings)
        if self.data != other.data:
            changed.append("other bags")
        return ", ".join(changed + _changes(other.made_by, self.made_by))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    keys = sorted((set(before) | set(now)) - _NOT_SHAPING)
    return [f"{key} {before.get(key)} → {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


@dataclass
class Checkpoint:
    """Everything that changes while training, after ``epoch`` whole epochs."""

    epoch: int
    model: dict[str, Any]
    method: dict[str, Any]
    optimizer: dict[str, Any]
    loss_scale: dict[str, Any]
    history: list[dict[str, Any]]


def checkpoint_path(out: Path, identity: RunIdentity) -> Path:
    """Where the run that writes the bundle ``out`` keeps its checkpoint."""
    return out.parent / "checkpoints" / f"{out.name}-{identity.fingerprint[:16]}.pt"


def save_checkpoint(path: Path, identity: RunIdentity, checkpoint: Checkpoint) -> None:
    """Write the checkpoint whole or not at all, replacing the last one."""
    with replacing(path) as partial:
        torch.save({"identity": vars(identity), **vars(checkpoint)}, partial)


def load_checkpoint(out: Path, identity: RunIdentity, insist: bool) -> Checkpoint | None:
    """The checkpoint of this very run; None where no such run was interrupted.

    With ``insist``, raises `ResumeError` if the only interrupted runs for ``out`` had other settings, data or versions.
    Raises `ResumeError` if the checkpoint is damaged.
    """
    path = checkpoint_path(out, identity)
    if path.is_file():
        content = _read(path)
        content.pop("identity")
        return Checkpoint(**content)
    others = sorted(path.parent.glob(f"{glob.escape(out.name)}-*.pt"), key=lambda other: other.stat().st_mtime)
    if insist and others:
        stored = _read(others[-1])["identity"]
        known = stored.keys() == vars(identity).keys()
        difference = identity.difference(RunIdentity(**stored)) if known else "of an earlier version of cytomil"
        raise ResumeError(
            f"the interrupted run of {out} was another one ({difference}). "
            f"Give its settings to go on with it, or start anew without --resume."
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResumeError(f"{path} is damaged ({reason}). Delete it and start anew.") from None
