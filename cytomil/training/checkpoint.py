"""Checkpoints: what a killed run needs to go on as if nothing had happened.

They lie beside the bundle, not in it (DVC deletes a stage's outputs before it runs), and are named by a fingerprint of
the settings and data, so that a run never goes on with the weights of another.
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

_NOT_SHAPING = frozenset({"out", "bags", "device", "cache"})


@dataclass(frozen=True)
class RunIdentity:
    """The settings and data that shape a run's weights."""

    settings: dict[str, Any]
    data: str
    code: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 over settings, data and code; where the files lie and which device is used do not count."""
        shaping = {key: value for key, value in self.settings.items() if key not in _NOT_SHAPING}
        return sha256_of_json({"settings": shaping, "data": self.data, "code": self.code})

    def difference(self, other: RunIdentity) -> str:
        """In words, what ``other`` has that this one has not."""
        keys = sorted((set(self.settings) | set(other.settings)) - _NOT_SHAPING)
        changed = [
            f"{k} {other.settings.get(k)} → {self.settings.get(k)}"
            for k in keys
            if self.settings.get(k) != other.settings.get(k)
        ]
        if self.data != other.data:
            changed.append("other bags")
        if self.code != other.code:
            changed.append("another version of cytomil's code")
        return ", ".join(changed)


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

    With ``insist``, raises `ResumeError` if the only interrupted runs for ``out`` had other settings, data or code.
    Raises `ResumeError` if the checkpoint is damaged.
    """
    path = checkpoint_path(out, identity)
    if path.is_file():
        content = _read(path)
        content.pop("identity")
        return Checkpoint(**content)
    others = sorted(path.parent.glob(f"{glob.escape(out.name)}-*.pt"), key=lambda other: other.stat().st_mtime)
    if insist and others:
        difference = identity.difference(RunIdentity(**_read(others[-1])["identity"]))
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
