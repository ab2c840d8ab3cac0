"""The audit log of rank: one line per run and one per slide, only ever appended to; see `cytomil.chained_log`."""

from __future__ import annotations

from pathlib import Path

from cytomil import __version__
from cytomil.chained_log import ChainedEntry, ChainedLog
from cytomil.errors import AuditLogError
from cytomil.triage.worklist import SlideResult

NAME = "audit.jsonl"


class AuditEntry(ChainedEntry):
    """One line: of a run if ``slide`` is empty, else of a slide in that run.

    Args:
        model_sha256: of the triage model's card.
        cytomil: the version.
        n_slides: number of slides that the run found.
        slide: the slide's name in the worklist.
        slide_sha256: of the slide's content; empty if it was not assessed.
        call: what the worklist says of it.
        probability: the model's probability; None if it was not assessed.
    """

    model_sha256: str
    cytomil: str = ""
    n_slides: int = 0
    slide: str = ""
    slide_sha256: str = ""
    call: str = ""
    probability: float | None = None


class AuditLog(ChainedLog[AuditEntry]):
    """The log in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / NAME, AuditEntry, AuditLogError)

    def begin(self, model_sha256: str, n_slides: int) -> None:
        """Append the line of a run. Raises `AuditLogError` if it cannot be written."""
        self.append_fields({"model_sha256": model_sha256, "cytomil": __version__, "n_slides": n_slides})

    def add(self, model_sha256: str, result: SlideResult) -> None:
        """Append the line of a slide. Raises `AuditLogError` if it cannot be written."""
        self.append_fields(
            {
                "model_sha256": model_sha256,
                "slide": result.slide,
                "slide_sha256": result.sha256,
                "call": result.call.value,
                "probability": result.probability,
            }
        )
