"""One number an instance, gathered while a bag is read block by block."""

from __future__ import annotations

import torch
from torch import Tensor


class Gathered:
    """Numbers that come in block by block, in one buffer that doubles when it is full.

    As a list of small pieces they would come to lie in the memory that large blocks leave free; the next block no longer
    fits there, and a slide's memory grows by a whole block for every few kilobytes kept.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._count = 0

    def add(self, numbers: Tensor) -> None:
        """Take the next numbers, (n,); all must be of the first ones' dtype. They are copied."""
        wanted = self._count + len(numbers)
        if self._buffer is None:
            self._buffer = torch.empty_like(numbers, memory_format=torch.contiguous_format)
        elif wanted > len(self._buffer):
            larger = self._buffer.new_empty(max(wanted, 2 * len(self._buffer)))
            larger[: self._count] = self._buffer[: self._count]
            self._buffer = larger
        self._buffer[self._count : wanted] = numbers
        self._count = wanted

    def all(self) -> Tensor:
        """All numbers so far, (N,), in the order they came. Raises `ValueError` where none has come."""
        if self._buffer is None:
            raise ValueError("nothing has been gathered")
        return self._buffer[: self._count]
