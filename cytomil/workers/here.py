"""Items one after another in this process."""

from __future__ import annotations

from collections.abc import Sequence

from cytomil.progress import Listener
from cytomil.workers.job import Item, Job, Lost, Place, Result


class Here:
    """The process that asks, with all of the machine's cores."""

    def map(
        self, job: Job[Item, Result], items: Sequence[Item], listener: Listener, description: str, unit: str
    ) -> list[Result | Lost]:
        """See `Workers.map`."""
        work = job.start(Place(listener))
        return list(listener.track(work(items), description, len(items), unit))
