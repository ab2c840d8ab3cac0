"""What another process sends back besides results: what was raised there, and what the job said while it started."""

from __future__ import annotations

from dataclasses import dataclass

from cytomil.progress import Silent

TRIES = 3
"""How many workers an item may cost before it is given up."""


@dataclass(frozen=True)
class Raised:
    """An exception on its way from a worker, to be raised by the process that asks."""

    error: Exception


class Notes(Silent):
    """Keeps what a job says while it starts."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        """Keep the message."""
        self.said.append(message)


def gave_up(reason: str) -> str:
    """Why an item has no result, in a line for the user."""
    return f"the worker was lost {TRIES} times while on it ({reason})."
