"""One job over many items: here, one after another, or over the workers of a Ray cluster. The caller need not know which."""

from __future__ import annotations

from cytomil.workers.here import Here
from cytomil.workers.job import Job, Lost, Place, Workers

__all__ = ["Job", "Lost", "Place", "Workers", "open_workers"]


def open_workers(ray_address: str) -> Workers:
    """Who does the work: this process where ``ray_address`` is empty, else Ray (``local``, or a running cluster's address).

    Raises `WorkersError` where Ray is not installed.
    """
    if not ray_address:
        return Here()
    from cytomil.workers.on_ray import OnRay

    return OnRay(ray_address)
