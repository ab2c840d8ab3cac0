"""Run one job over many items: in this process, over processes of this machine, or over Ray.

All workers have the same interface, `Workers`.
"""

from __future__ import annotations

from cytomil.workers.local import InProcess, Job, JobContext, ProcessPool, WorkerFailure, Workers

__all__ = ["Job", "JobContext", "WorkerFailure", "Workers", "open_workers"]


def open_workers(ray_address: str, processes: int = 0) -> Workers:
    """The workers that run a job.

    Args:
        ray_address: ``local``, the address of a running Ray cluster, or empty: without Ray.
        processes: without Ray, the number of other processes of this machine, with the limits of `cytomil.limits`; 0: this
            process.

    Raises:
        WorkersError: a Ray address is given and Ray is not installed.
    """
    if ray_address:
        from cytomil.workers.on_ray import RayWorkers

        return RayWorkers(ray_address)
    return ProcessPool(processes) if processes else InProcess()
