"""A network's weights in one contiguous buffer, so that an update or a task's whole gradient is one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class FlatWeights:
    """Moves parameters into one buffer (they become views of it) and keeps a gradient a task beside it.

    ``values``, shape (P,), is what the optimiser steps; ``gradients``, shape (T, P), is what was written last. Each
    parameter keeps its shape and memory format. The module must not be moved to another device afterwards.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        n = sum(parameter.numel() for parameter in self.parameters)
        self.values = nn.Parameter(torch.empty(n, dtype=first.dtype, device=first.device))
        self.gradients = torch.empty(0, n, dtype=first.dtype, device=first.device)
        self._windows: list[list[Tensor]] = []
        for parameter, window in zip(self.parameters, self._windows_of(self.values.detach()), strict=True):
            window.copy_(parameter.detach())
            parameter.data = window

    def write_gradients(self, tasks: Sequence[Sequence[Tensor]]) -> Tensor:
        """Copy one gradient a parameter for each task into the buffer kept for them: shape (T, P), reused every step."""
        if len(tasks) != len(self.gradients):
            self.gradients = self.gradients.new_empty(len(tasks), self.values.numel())
            self._windows = [self._windows_of(row) for row in self.gradients]
        for windows, gradients in zip(self._windows, tasks, strict=True):
            torch._foreach_copy_(windows, list(gradients))
        return self.gradients

    def _windows_of(self, flat: Tensor) -> list[Tensor]:
        start, windows = flat.storage_offset(), []
        for parameter in self.parameters:
            windows.append(flat.as_strided(parameter.shape, parameter.stride(), start))
            start += parameter.numel()
        return windows
