"""Run a job on a Ray cluster. If a worker fails, only its current item must be tried again."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from cytomil.cards import code_fingerprint
from cytomil.errors import CytomilError, WorkersError
from cytomil.progress import Listener
from cytomil.threads import usable_cores
from cytomil.workers.local import (
    MAX_TRIES,
    Item,
    Job,
    JobContext,
    Notes,
    Raised,
    Result,
    WorkerFailure,
    do_nothing,
    failure_reason,
)


@contextmanager
def watch_interrupts() -> Iterator[Callable[[], None]]:
    """Provide a function that raises `KeyboardInterrupt` if Ctrl-C was pressed within the context.

    The previous handler stays in effect. The function is needed because Ray may swallow its exception. Only the main
    thread handles signals in Python, so another thread gets a function that does nothing.
    """
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def check() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    def note(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        if callable(before):
            before(number, frame)

    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


LOCAL = "local"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # GPUs are hidden from a worker without one. This is Ray's default, but unset it makes Ray print a warning.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}
_CONNECT_S = 10.0
_END_S = 5.0
_OBJECT_STORE_BYTES = 200_000_000  # results are small, because large data is exchanged in files


@dataclass(frozen=True)
class Allocation:
    """The division of a cluster: the number of workers, and the number of cores and GPUs per worker."""

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
    """Provide the ``ray`` module, connected. On exit, all processes that were started here are ended.

    An existing connection of the program is used and stays open.

    Raises:
        WorkersError: the cluster cannot be reached.
    """
    # Ray reads them when it is imported, and so does every process it starts.
    os.environ.update(_ENVIRONMENT)
    import ray

    # Ray reports failed workers on standard output, which may have to be one JSON document.
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
            # Listed before the shutdown, because processes that outlive it are no longer descendants.
            started = _descendants() - before
            try:
                ray.shutdown()
            finally:
                _end(started)


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end(processes: set[psutil.Process]) -> None:
    """Kill the processes that still run. Ray's agents outlive their cluster by up to a minute."""
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
            _require_listener(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise WorkersError(
            f"--ray-address {address}: Ray cannot be reached ({reason}). Give HOST:PORT of a running cluster, auto, or local."
        ) from None


def _require_listener(address: str) -> None:
    """Raise OSError or ValueError if nothing listens at the address.

    Ray would try for two minutes and then end the program.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


def allocate(ray: Any, n_items: int, device: str, threads: int) -> Allocation:
    """Divide the cluster into as many workers as fit, at most ``n_items``, with one core per thread.

    If no machine has that many cores, a worker gets all cores of one machine. If the cluster has GPUs and ``device`` is
    not ``cpu``, each worker gets one GPU and an equal part of its machine's cores.

    Raises:
        WorkersError: ``device`` is ``cuda`` and the cluster has no GPU.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [one for one in machines if one.get("GPU", 0) >= 1 and one.get("CPU", 0) >= 1]
    if device != "cpu" and with_gpus:
        cores = max(1, min(int(one["CPU"] // one["GPU"]) for one in with_gpus))
        return Allocation(min(n_items, sum(int(one["GPU"]) for one in with_gpus)), cores, 1)
    if device == "cuda":
        raise WorkersError("--device cuda: the Ray cluster has no GPU. Use --device auto or cpu.")
    counts = [int(one["CPU"]) for one in machines if one.get("CPU", 0) >= 1]
    if not counts:  # an autoscaling cluster that has no machines yet
        return Allocation(n_items, threads, 0)
    cores = min(threads, max(counts))
    return Allocation(min(n_items, sum(count // cores for count in counts)), cores, 0)


_NOTE_AFTER_S = 30.0


class RayWorkers:
    """Workers on Ray. Each is a process that loads the job once and then processes one item at a time."""

    def __init__(self, address: str) -> None:
        require_ray()
        self._address = address

    def map(
        self,
        job: Job[Item, Result],
        items: Sequence[Item],
        listener: Listener,
        description: str,
        unit: str,
        on_begin: Callable[[], None] = do_nothing,
    ) -> list[Result | WorkerFailure]:
        """See `Workers.map`. Raises `WorkersError` if the cluster cannot be reached or none of its workers starts."""
        if job.device.startswith("cuda:"):
            raise WorkersError(f"--device {job.device}: Ray assigns one GPU to each worker. Use --device cuda.")
        with watch_interrupts() as check, connected(self._address, listener) as ray:
            run = _Run(ray, job, items, listener, check, on_begin)
            try:
                results = dict(listener.track(run.results(), description, len(items), unit))
            finally:
                run.close()
        return [results[index] for index in range(len(items))]


@dataclass(frozen=True)
class _WorkerSetup:
    """What a worker needs to start."""

    job: bytes
    folder: Path
    environment: dict[str, str]
    cores: int
    code: str


class _Worker:
    """A Ray actor, which has a process of its own."""

    def begin(self, setup: _WorkerSetup) -> Raised | list[str]:
        """Load the job. Returns its notes."""
        # Set before the job imports PyTorch, which reads them once.
        os.environ.update(setup.environment)
        notes = Notes()
        try:
            os.chdir(setup.folder)  # the user's relative paths must stay valid
        except OSError as error:
            return Raised(
                WorkersError(
                    f"{setup.folder}: {error.strerror} on {os.uname().nodename}. The slides, the model, the output and the "
                    "folder that cytomil is started in must be on a file system that all machines share."
                )
            )
        if code_fingerprint() != setup.code:
            return Raised(
                WorkersError(f"{os.uname().nodename} has another version of cytomil. Install the same one everywhere.")
            )
        try:
            self._work: Callable[[list[Any]], Iterator[Any]] = pickle.loads(setup.job).start(
                JobContext(notes, setup.cores)
            )
        except CytomilError as error:
            return Raised(error)
        return notes.messages

    def do(self, item: Any) -> Any:
        """Process one item."""
        try:
            return next(self._work([item]))
        except CytomilError as error:
            return Raised(error)


class _Run:
    """One job over its items, its workers, and the item that each worker processes."""

    def __init__(
        self,
        ray: Any,
        job: Job[Item, Result],
        items: Sequence[Item],
        listener: Listener,
        check: Callable[[], None],
        on_begin: Callable[[], None],
    ) -> None:
        import torch

        self._ray, self._items, self._listener = ray, items, listener
        self._check, self._on_begin = check, on_begin
        # The same number of threads as here, because the last bits of PyTorch's results depend on it.
        threads = torch.get_num_threads()
        self._allocation = allocate(ray, len(items), job.device, threads)
        environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        setup = _WorkerSetup(pickle.dumps(job), Path.cwd(), environment, self._allocation.cores, code_fingerprint())
        self._setup = ray.put(setup)
        self._waiting = deque(range(len(items)))
        self._tries: Counter[int] = Counter()
        self._pending: dict[Any, tuple[Any, int | None]] = {}  # None: the worker is starting
        self._idle: list[Any] = []
        self._workers: list[Any] = []
        self._failed_starts = 0
        self._noted: set[str] = set()

    def results(self) -> Iterator[tuple[int, Any]]:
        """Index and result of each item, in order of completion. Raises the job's errors and `WorkersError`."""
        for _ in range(self._allocation.workers):
            self._start_worker()
        unfinished = len(self._items)
        timeout: float | None = _NOTE_AFTER_S
        while unfinished:
            self._check()
            ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=timeout)
            timeout = None
            if not ready:
                if all(index is None for _, index in self._pending.values()):
                    self._listener.note("waiting for free cores on the Ray cluster …")
                continue
            worker, index = self._pending.pop(ready[0])
            answer = self._answer(ready[0])
            if isinstance(answer, Raised):
                raise answer.error
            if isinstance(answer, WorkerFailure):
                if index is not None and self._give_up(index, answer):
                    unfinished -= 1
                    yield index, WorkerFailure(failure_reason(answer.reason))
                self._replace(answer, at_start=index is None)
                continue
            if index is None:
                self._failed_starts = 0
                self._note(answer)
            else:
                unfinished -= 1
                yield index, answer
            self._next(worker)

    def close(self) -> None:
        """Kill the workers, so that their cores are free for other users of the cluster."""
        for worker in self._workers:
            self._ray.kill(worker)

    def _answer(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error  # a bug of cytomil, not a failure of the worker
        except self._ray.exceptions.RayError as error:
            return WorkerFailure(_first_line(error))

    def _give_up(self, index: int, failure: WorkerFailure) -> bool:
        """Count a try. Requeue the item if it has tries left, otherwise return True."""
        self._tries[index] += 1
        if self._tries[index] >= MAX_TRIES:
            return True
        self._waiting.append(index)
        self._listener.note(f"a worker failed ({failure.reason}); another one takes over its work")
        return False

    def _replace(self, failure: WorkerFailure, at_start: bool) -> None:
        self._failed_starts += at_start
        if not self._waiting:
            return
        if self._idle:
            self._next(self._idle.pop())
        elif self._failed_starts < MAX_TRIES:
            self._start_worker()
        elif not self._pending and not self._idle:
            raise WorkersError(
                f"Ray's workers do not start: {failure.reason}. Remove --ray-address to work without Ray."
            )

    def _start_worker(self) -> None:
        remote = self._ray.remote(_Worker)
        allocation = self._allocation
        worker = remote.options(num_cpus=allocation.cores, num_gpus=allocation.gpus, max_restarts=0).remote()
        self._workers.append(worker)
        self._pending[worker.begin.remote(self._setup)] = (worker, None)

    def _next(self, worker: Any) -> None:
        if not self._waiting:
            self._idle.append(worker)
            return
        self._on_begin()
        self._on_begin = do_nothing
        index = self._waiting.popleft()
        self._pending[worker.do.remote(self._items[index])] = (worker, index)

    def _note(self, notes: list[str]) -> None:
        for message in notes:
            if message not in self._noted:
                self._noted.add(message)
                self._listener.note(message)


def _first_line(error: Exception) -> str:
    """The reason in Ray's message, in one line. Ray's messages may be a page long."""
    text = str(error)
    if "memory" in type(error).__name__.lower():
        return "its machine ran out of memory"
    for key in ("Worker exit detail: ", "The actor is dead because "):
        if key in text:
            return text.partition(key)[2].partition(". ")[0].partition("\n")[0].strip().rstrip(".")
    return text.strip().partition("\n")[0].rstrip(".")
