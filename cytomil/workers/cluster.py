"""A Ray cluster, silent and alone: this machine for as long as it is needed, or one that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import psutil

from cytomil.errors import WorkersError
from cytomil.progress import Listener
from cytomil.threads import usable_cores

LOCAL = "local"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU of its own sees none; Ray warns of a change to come
}
_CONNECT_S = 10.0
_END_S = 5.0
_OBJECT_STORE_BYTES = 200_000_000  # results are small: what is large goes through files


@dataclass(frozen=True)
class Share:
    """How a cluster is divided: so many workers with so many cores and GPUs each."""

    workers: int
    cores: int
    gpus: int


def require_ray() -> None:
    """Raise `WorkersError` unless Ray is installed."""
    if util.find_spec("ray") is None:
        raise WorkersError(
            "--ray-address needs Ray, which is not installed. Install it with: pip install 'cytomil[ray]'"
        )


@contextlib.contextmanager
def connected(address: str, listener: Listener) -> Iterator[Any]:
    """The ``ray`` module, connected; whatever this started has ended when the body has, however it ends.

    A connection that the program has already is used and left as it is. Raises `WorkersError` where none can be made.
    """
    # Read when Ray is imported, and by every process it starts.
    os.environ.update(_ENVIRONMENT)
    import ray

    # Ray prints the end of every lost worker to standard output, where one JSON document may be due.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        if ray.is_initialized():
            yield ray
            return
        before = _descendants()
        try:
            if address == LOCAL:
                listener.note("starting Ray on this machine …")
            _connect(ray, address)
            yield ray
        finally:
            # Seen while the cluster stands: what its processes leave behind is nobody's child any more.
            started = _descendants() - before
            try:
                ray.shutdown()
            finally:
                _end(started)


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end(processes: set[psutil.Process]) -> None:
    """Kill those that still run: Ray's agents outlive their cluster by up to a minute."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, _END_S)


def _connect(ray: Any, address: str) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if address == LOCAL:
        quiet |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        if address not in (LOCAL, "auto"):
            _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise WorkersError(
            f"--ray-address {address}: Ray cannot be reached ({reason}). Give HOST:PORT of a running cluster, auto, or local."
        ) from None


def _knock(address: str) -> None:
    """Raise OSError or ValueError where nobody listens: Ray itself would try for two minutes, and end the program."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


def share(ray: Any, n_items: int, device: str, threads: int) -> Share:
    """Divide the cluster among ``n_items``: as many workers as there is room for, each with a core for each of ``threads``.

    Where no machine has so many cores, a worker has all of one. Where there are GPUs and ``device`` is not ``cpu``, each
    worker has one, and an even part of its machine's cores.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [one for one in machines if one.get("GPU", 0) >= 1 and one.get("CPU", 0) >= 1]
    if device != "cpu" and with_gpus:
        cores = max(1, min(int(one["CPU"] // one["GPU"]) for one in with_gpus))
        return Share(min(n_items, sum(int(one["GPU"]) for one in with_gpus)), cores, 1)
    if device == "cuda":
        raise WorkersError("--device cuda: the Ray cluster has no GPU. Use --device auto or cpu.")
    counts = [int(one["CPU"]) for one in machines if one.get("CPU", 0) >= 1]
    if not counts:  # a cluster that grows when asked
        return Share(n_items, threads, 0)
    cores = min(threads, max(counts))
    return Share(min(n_items, sum(count // cores for count in counts)), cores, 0)
