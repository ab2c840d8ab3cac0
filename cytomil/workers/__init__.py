"""One job over many items: one after another, over processes of this machine, or over Ray. The caller need not know which."""

from __future__ import annotations

from cytomil.workers.job import Here, Job, Lost, Place, Workers
from cytomil.workers.side_by_side import SideBySide

__all__ = ["Job", "Lost", "Place", "Workers", "open_workers"]


def open_workers(ray_address: str, processes: int = 1) -> Workers:
    """Who does the work: Ray where ``ray_address`` is given (``local``, or a running cluster's address), else this machine.

    Without Ray, several ``processes`` work side by side; with one, this process does the work itself.
    Raises `WorkersError` where Ray is asked for and not installed.
    """
    if ray_address:
        from cytomil.workers.on_ray import OnRay

        return OnRay(ray_address)
    return SideBySide(processes) if processes > 1 else Here()
