"""The encoder as training runs it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.errors import SettingsError
from cytomil.pretrain.compiled import Network, compiled
from cytomil.pretrain.processes import Processes
from cytomil.pretrain.small_maps import replace_convolutions


class TrainingEncoder(Encoder):
    """In training mode each process runs its share of the rows, in ``precision``, and returns the whole in float32.

    In evaluation mode it is the plain encoder. Weights have the same names as the plain encoder's. Raises
    `SettingsError` for an architecture whose batch norms several processes cannot share.
    """

    def __init__(self, architecture: Architecture, precision: torch.dtype, processes: Processes) -> None:
        super().__init__(architecture)
        if processes.count > 1:
            _require_plain_batch_norms(self)
        self._precision, self._processes = precision, processes
        processes.share_statistics(self)
        replace_convolutions(self)
        self._network: Network = Encoder.project  # type: ignore[assignment]

    def use_compiler(self, note: Callable[[str], None]) -> None:
        """Train by torch.compile's code from now on, where it works; one line to ``note`` where it does not."""
        if self._processes.count > 1:
            note("the network is not compiled: several processes train it")
            return
        self._network = compiled(self._network, note)

    def project(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The whole batch's pixels (N, 3, S, S) in 0 to 1 → its h, and its z before standardising."""
        if not self.training:
            return super().project(pixels)
        own = self._processes.share(pixels)
        reduced = self._precision is not torch.float32
        with torch.autocast(pixels.device.type, dtype=self._precision, enabled=reduced):
            h, raw = self._network(self, own)
        if reduced:
            h, raw = h.float(), raw.float()
        return self._processes.gather(h, len(pixels)), self._processes.gather(raw, len(pixels))


def _require_plain_batch_norms(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm) and type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            # Putting another kind in its place would drop what else it does, such as the activation of timm's.
            raise SettingsError(
                f"{encoder.architecture.name} has batch norms of its own kind ({type(module).__name__}), whose statistics "
                "several processes cannot share. Train it in one process, or use another --arch."
            )
