"""The processes that train together: which share of a batch is whose, and how their shares become one result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from cytomil.encoders.bundle import pick_device


class Processes(Protocol):
    """Every process calls the same methods in the same order. Only the first one writes, prints and checkpoints."""

    count: int
    is_first: bool
    device: torch.device
    on_this_machine: int

    def share(self, rows: Tensor) -> Tensor:
        """Own part of the whole, along the first axis."""
        ...

    def gather(self, own: Tensor, n: int) -> Tensor:
        """The whole, ``n`` rows, from every process's own part; gradients flow back to the part.

        Each process must take the same loss of the whole: each then holds the gradient of its own part's share, and
        `add_up` makes the gradient of it.
        """
        ...

    def add_up(self, gradients: Tensor) -> None:
        """Replace, in place, each process's gradients by their sum."""
        ...

    def agree(self, *tensors: Tensor) -> None:
        """Replace, in place, each process's tensors by the first one's."""
        ...

    def share_statistics(self, module: nn.Module) -> None:
        """Make the module's batch norms take their statistics over every process's part."""
        ...

    def wait(self) -> None:
        """Go on when all have come here."""
        ...


class OneProcess:
    """The usual case: one process has the whole. Nothing of PyTorch's distributed package is started."""

    count = 1
    is_first = True
    on_this_machine = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def share(self, rows: Tensor) -> Tensor:
        """The whole."""
        return rows

    def gather(self, own: Tensor, n: int) -> Tensor:
        """The whole."""
        return own

    def add_up(self, gradients: Tensor) -> None:
        """Nothing to add."""

    def agree(self, *tensors: Tensor) -> None:
        """Nothing to agree on."""

    def share_statistics(self, module: nn.Module) -> None:
        """Nothing to share."""

    def wait(self) -> None:
        """Nobody to wait for."""


@contextmanager
def training_processes(device: str) -> Iterator[Processes]:
    """The processes that torchrun started, where it did; else this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield OneProcess(pick_device(device))
        return
    from cytomil.pretrain.torchrun import joined

    with joined(device) as processes:
        yield processes
