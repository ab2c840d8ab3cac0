"""A listener that remembers what it was told of a command's whole work."""

from __future__ import annotations

from contextlib import contextmanager

from cytomil.progress import Silent


class Counting(Silent):
    """Keeps the work, and the units of each step and of what was skipped."""

    def __init__(self):
        self.work = None
        self.steps = []
        self.skipped = []

    @contextmanager
    def whole(self, work):
        self.work = work
        yield self

    def step(self, units):
        self.steps.append(units)

    def skip(self, units):
        self.skipped.append(units)
