"""The encoder as training runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.early_stages import early_parameters, usual_frozen_stages
from cytomil.errors import SettingsError
from cytomil.pretrain.compiled import Network, compiled
from cytomil.pretrain.processes import Processes
from cytomil.pretrain.small_maps import replace_convolutions


class TrainingEncoder(Encoder):
    """In training mode each process runs its share of the rows, in ``precision``, and returns the whole in float32.

    In evaluation mode it is the plain encoder. Weights have the same names as the plain encoder's.

    With ``from_weights`` the backbone is to start from others' weights. Its stem and first ``frozen_stages`` stages are then
    not trained, and all its batch norms keep the statistics that they came with. Raises `SettingsError` for stages that it
    has not, and for an architecture whose batch norms several processes cannot share where they follow the batches.
    """

    def __init__(
        self,
        architecture: Architecture,
        precision: torch.dtype,
        processes: Processes,
        from_weights: bool = False,
        frozen_stages: int | None = None,
    ) -> None:
        super().__init__(architecture)
        self._precision, self._processes = precision, processes
        self._keeps_statistics = from_weights
        follows: nn.Module = self.projector if self._keeps_statistics else self
        if processes.count > 1:
            _require_plain_batch_norms(follows, architecture)
        processes.share_statistics(follows)
        replace_convolutions(self)
        if frozen_stages is None:
            frozen_stages = usual_frozen_stages(self) if from_weights else 0
        self.frozen_stages = frozen_stages
        for parameter in early_parameters(self, frozen_stages):
            parameter.requires_grad_(False)
        self._network: Network = Encoder.project  # type: ignore[assignment]

    def train(self, mode: bool = True) -> Self:
        """What is frozen stays in evaluation mode: batch norms and, in frozen stages, whatever else training changes."""
        super().train(mode)
        if mode and self._keeps_statistics:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm) or _is_frozen(module):
                    module.eval()
        return self

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


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _require_plain_batch_norms(part: nn.Module, architecture: Architecture) -> None:
    for module in part.modules():
        if isinstance(module, _BatchNorm) and type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            # Putting another kind in its place would drop what else it does, such as the activation of timm's.
            raise SettingsError(
                f"{architecture.name} has batch norms of its own kind ({type(module).__name__}), whose statistics "
                "several processes cannot share. Train it in one process, start from weights, or use another --arch."
            )
