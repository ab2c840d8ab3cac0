"""Losses scaled so that float16 holds their gradients, which it would round to zero (Micikevicius et al., ICLR 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The scale begins at 2^16 and is halved where a gradient overflows: below this, not the scale is at fault.
_LEAST = 2.0**-10


class LossScale:
    """PyTorch's gradient scaler around one optimiser, where ``precision`` is float16; otherwise it changes nothing.

    Nothing but `is_spent` waits for the device.
    """

    def __init__(self, device: torch.device, precision: torch.dtype) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
        self._one = torch.ones((), device=device)

    @property
    def used(self) -> bool:
        """Whether losses are scaled at all."""
        return self._scaler.is_enabled()

    def value(self) -> Tensor:
        """By what losses, and with them gradients, are multiplied now: a scalar of its own."""
        return self._scaler.scale(self._one)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradients float16 holds."""
        return self._scaler.scale(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """One step by scaled gradients, or none where one of them is not finite; then the scale of the next step.

        Returns a scalar, 1 where the step was skipped, else 0; None where losses are not scaled.
        """
        if not self.used:
            optimizer.step()
            return None
        before = self.value()
        self._scaler.step(optimizer)
        self._scaler.update()
        return (self.value() < before).float()

    def is_spent(self) -> bool:
        """Whether gradients overflow at any scale; waits for the device."""
        return self.used and self._scaler.get_scale() < _LEAST

    def state_dict(self) -> dict[str, Any]:
        """What the next step's scale depends on; empty where losses are not scaled."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, or from the first scale where it was made without scaling."""
        if state:
            self._scaler.load_state_dict(state)
