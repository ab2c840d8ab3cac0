"""Items over the workers of a Ray cluster. A worker that is lost costs its item a try and nothing else."""

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

from cytomil.errors import CytomilError, WorkersError
from cytomil.progress import Listener
from cytomil.provenance import code_fingerprint
from cytomil.threads import usable_cores
from cytomil.workers.job import TRIES, Item, Job, Lost, Notes, Place, Raised, Result, gave_up


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Within, Ctrl-C does what it did before, and the function given raises `KeyboardInterrupt` if it ever came.

    Python handles signals in its main thread alone; in another nothing is changed.
    """
    came = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    def note(number: int, frame: FrameType | None) -> None:
        came.set()
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


_PATIENCE_S = 30.0


class OnRay:
    """Ray's workers, each a process that loads its job once and then does one item at a time."""

    def __init__(self, address: str) -> None:
        require_ray()
        self._address = address

    def map(
        self, job: Job[Item, Result], items: Sequence[Item], listener: Listener, description: str, unit: str
    ) -> list[Result | Lost]:
        """See `Workers.map`. Raises `WorkersError` where the cluster cannot be reached or none of its workers starts."""
        if job.device.startswith("cuda:"):
            raise WorkersError(f"--device {job.device}: Ray gives each worker a GPU of its own. Use --device cuda.")
        with kept_interrupts() as check, connected(self._address, listener) as ray:
            crew = _Crew(ray, job, items, listener, check)
            try:
                results = dict(listener.track(crew.results(), description, len(items), unit))
            finally:
                crew.dismiss()
        return [results[index] for index in range(len(items))]


@dataclass(frozen=True)
class _Orders:
    """What a worker is told before it begins."""

    job: bytes
    folder: Path
    environment: dict[str, str]
    cores: int
    code: str


class _Worker:
    """Lives in a process of Ray's."""

    def begin(self, orders: _Orders) -> Raised | list[str]:
        """Load the job; returns what it has to say."""
        # Before the job brings in PyTorch, which reads them once.
        os.environ.update(orders.environment)
        notes = Notes()
        try:
            os.chdir(orders.folder)  # so that the user's relative paths mean the same here
        except OSError as error:
            return Raised(
                WorkersError(
                    f"{orders.folder}: {error.strerror} on {os.uname().nodename}. The slides, the model, the output and the "
                    "folder that cytomil is started in must be on a file system that all machines share."
                )
            )
        if code_fingerprint() != orders.code:
            return Raised(
                WorkersError(f"{os.uname().nodename} has another version of cytomil. Install the same one everywhere.")
            )
        try:
            self._work: Callable[[list[Any]], Iterator[Any]] = pickle.loads(orders.job).start(
                Place(notes, orders.cores)
            )
        except CytomilError as error:
            return Raised(error)
        return notes.said

    def do(self, item: Any) -> Any:
        """Do one item."""
        try:
            return next(self._work([item]))
        except CytomilError as error:
            return Raised(error)


class _Crew:
    """The workers of one job and which of its items each has in hand."""

    def __init__(
        self, ray: Any, job: Job[Item, Result], items: Sequence[Item], listener: Listener, check: Callable[[], None]
    ) -> None:
        import torch

        self._ray, self._items, self._listener, self._check = ray, items, listener, check
        # As many threads as here: the last bits of PyTorch's results depend on their number, and the results must be the same.
        threads = torch.get_num_threads()
        self._share: Share = share(ray, len(items), job.device, threads)
        environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        orders = _Orders(pickle.dumps(job), Path.cwd(), environment, self._share.cores, code_fingerprint())
        self._orders = ray.put(orders)
        self._waiting = deque(range(len(items)))
        self._tries: Counter[int] = Counter()
        self._in_hand: dict[Any, tuple[Any, int | None]] = {}  # None: the worker has yet to begin
        self._idle: list[Any] = []
        self._hired: list[Any] = []
        self._failed_starts = 0
        self._said: set[str] = set()

    def results(self) -> Iterator[tuple[int, Any]]:
        """Each item's number and result as they come. Raises what the job raises, and `WorkersError`."""
        for _ in range(self._share.workers):
            self._hire()
        unfinished, patient = len(self._items), True
        while unfinished:
            self._check()
            ready, _ = self._ray.wait(list(self._in_hand), num_returns=1, timeout=_PATIENCE_S if patient else None)
            patient = False
            if not ready:
                if all(index is None for _, index in self._in_hand.values()):
                    self._listener.note("waiting for free cores on the Ray cluster …")
                continue
            worker, index = self._in_hand.pop(ready[0])
            answer = self._answer(ready[0])
            if isinstance(answer, Raised):
                raise answer.error
            if isinstance(answer, Lost):
                if index is not None and self._give_up(index, answer):
                    unfinished -= 1
                    yield index, Lost(gave_up(answer.reason))
                self._replace(answer, at_start=index is None)
                continue
            if index is None:
                self._failed_starts = 0
                self._tell(answer)
            else:
                unfinished -= 1
                yield index, answer
            self._next(worker)

    def dismiss(self) -> None:
        """End the workers, whatever they are at: a cluster's cores are wanted by others."""
        for worker in self._hired:
            self._ray.kill(worker)

    def _answer(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error  # a fault of our own, not of the worker's
        except self._ray.exceptions.RayError as error:
            return Lost(_first_line(error))

    def _give_up(self, index: int, lost: Lost) -> bool:
        """Count a try; put the item back in line, unless it has had all of them."""
        self._tries[index] += 1
        if self._tries[index] >= TRIES:
            return True
        self._waiting.append(index)
        self._listener.note(f"a worker was lost ({lost.reason}); its work is given to another")
        return False

    def _replace(self, lost: Lost, at_start: bool) -> None:
        self._failed_starts += at_start
        if not self._waiting:
            return
        if self._idle:
            self._next(self._idle.pop())
        elif self._failed_starts < TRIES:
            self._hire()
        elif not self._in_hand and not self._idle:
            raise WorkersError(f"Ray's workers do not start: {lost.reason}. Leave out --ray-address to do without Ray.")

    def _hire(self) -> None:
        remote = self._ray.remote(_Worker)
        worker = remote.options(num_cpus=self._share.cores, num_gpus=self._share.gpus, max_restarts=0).remote()
        self._hired.append(worker)
        self._in_hand[worker.begin.remote(self._orders)] = (worker, None)

    def _next(self, worker: Any) -> None:
        if not self._waiting:
            self._idle.append(worker)
            return
        index = self._waiting.popleft()
        self._in_hand[worker.do.remote(self._items[index])] = (worker, index)

    def _tell(self, notes: list[str]) -> None:
        for message in notes:
            if message not in self._said:
                self._said.add(message)
                self._listener.note(message)


def _first_line(error: Exception) -> str:
    """Why a worker was lost, in one line of its own words: Ray's messages go on for a page."""
    text = str(error)
    if "memory" in type(error).__name__.lower():
        return "its machine ran out of memory"
    for key in ("Worker exit detail: ", "The actor is dead because "):
        if key in text:
            return text.partition(key)[2].partition(". ")[0].partition("\n")[0].strip().rstrip(".")
    return text.strip().partition("\n")[0].rstrip(".")
