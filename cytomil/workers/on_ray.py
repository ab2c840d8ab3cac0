"""Items over the workers of a Ray cluster. A worker that is lost costs its item a try and nothing else."""

from __future__ import annotations

import os
import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytomil.errors import CytomilError, WorkersError
from cytomil.progress import Listener
from cytomil.provenance import code_fingerprint
from cytomil.workers.answers import TRIES, Notes, Raised, gave_up
from cytomil.workers.cluster import Share, connected, require_ray, share
from cytomil.workers.interrupts import kept_interrupts
from cytomil.workers.job import Item, Job, Lost, Place, Result

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
