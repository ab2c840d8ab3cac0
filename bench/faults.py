"""Kill every command with SIGKILL at file operations and at random times, look at its output, and run it again.

After a kill, the output must be the former one or the new one, whole; or, where a command writes file by file, each file
must be. After the same line was run again, all files must equal those of an unbroken run, and no other may be left. The
exit status is 1 if one of this does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fault_commands import COMMANDS, COMPILE, Command, contents, make_inputs
from bench.forked import Ended, Forks
from bench.tables import Measured, Table

FORMER, NEW, BETWEEN = "former", "new", "between"
WRONG, LEFT, DIFFERS = "wrong", "leftovers", "rerun differs"
_COLUMNS = (FORMER, NEW, BETWEEN, WRONG, LEFT, DIFFERS)
_FAULTS = (WRONG, LEFT, DIFFERS)
_TRIES = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=300, help="number of kills, over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="also kill compile, which takes a minute")


def measure(options: argparse.Namespace) -> Measured:
    commands = (*COMMANDS, COMPILE) if options.compile else COMMANDS
    rng = random.Random(options.seed)
    found: dict[str, Counter[str]] = {}
    details: list[str] = []
    for number, trial in enumerate(trials(commands)):
        share = options.kills // len(commands) + (number < options.kills % len(commands))
        name = trial.command.name
        found[name] = Counter(kills=share)
        for outcome in trial.kills(share, rng):
            found[name].update(outcome.kinds)
            details += [f"{name}, {outcome.place}: {line}" for line in outcome.faults]
    table = table_of(found | {"all": sum(found.values(), Counter())}, ("kills", *_COLUMNS), details)
    text = (
        f"{options.kills} kills, every second one before a file operation and the others at a random time; seed "
        f"{options.seed}. Every other run has a former output to replace."
    )
    return Measured({name: dict(tally) for name, tally in found.items()}, (text, table))


def trials(commands: Sequence[Command]) -> Iterator[Trial]:
    """Prepare each command in turn, in a temporary folder with the same inputs for all."""
    with tempfile.TemporaryDirectory() as folder, Forks() as forks:
        inputs = Path(folder) / "inputs"
        inputs.mkdir()
        make_inputs(forks, inputs)
        for command in commands:
            yield Trial.prepare(forks, command, inputs, Path(folder) / command.name.replace(" ", ""))


def table_of(found: Mapping[str, Counter[str]], columns: Sequence[str], details: Sequence[str]) -> Table:
    """One row per command with its tally. Raises `SystemExit` with the table and the faults if there are ``details``."""
    table = Table.of(*({"command": name, **{kind: tally[kind] for kind in columns}} for name, tally in found.items()))
    if details:
        raise SystemExit("\n".join([table.markdown(), *details]))
    return table


@dataclass(frozen=True)
class Outcome:
    """What one kill led to: kinds to count, where the kill was, and one line for each fault."""

    kinds: tuple[str, ...]
    place: str
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """One command, and the folders in which it is killed.

    Args:
        forks: runs it.
        command: the command.
        starts: working folders before it, without and with a former output.
        before: what these folders hold, by file.
        unbroken: what they hold after an unbroken run.
        operations: number of file operations of each unbroken run.
        seconds: that each unbroken run took.
        work: the working folder of the kills. It has the same path each time.
    """

    forks: Forks
    command: Command
    starts: tuple[Path, ...]
    before: tuple[dict[str, bytes], ...]
    unbroken: tuple[dict[str, bytes], ...]
    operations: tuple[int, ...]
    seconds: tuple[float, ...]
    work: Path

    @classmethod
    def prepare(cls, forks: Forks, command: Command, inputs: Path, root: Path) -> Trial:
        """Make the former output, and run the command unbroken with and without it."""
        fresh, replacing, work = root / "fresh", root / "replacing", root / "work"
        shutil.copytree(inputs, fresh)
        shutil.copytree(inputs, work)
        _require_done(forks, command.former, work)
        work.rename(replacing)
        unbroken, operations, seconds = [], [], []
        for start in (fresh, replacing):
            shutil.copytree(start, work)
            ended = _require_done(forks, command.line, work)
            unbroken.append(contents(work))
            operations.append(ended[0])
            seconds.append(ended[1])
            shutil.rmtree(work)
        starts = (fresh, replacing)
        before = tuple(contents(start) for start in starts)
        return cls(forks, command, starts, before, tuple(unbroken), tuple(operations), tuple(seconds), work)

    def kills(self, n: int, rng: random.Random) -> Iterator[Outcome]:
        """Kill the command ``n`` times, alternately at file operations and at random times."""
        for number in range(n):
            which, at_operation = number // 2 % 2, number % 2 == 0
            for _ in range(_TRIES):
                outcome = self.kill(
                    which,
                    rng.randint(1, self.operations[which]) if at_operation else None,
                    rng.uniform(0, self.seconds[which]),
                )
                if outcome is not None:
                    yield outcome
                    break
            else:
                raise RuntimeError(f"{self.command.name} always ended before it could be killed")

    def kill(self, which: int, operation: int | None, seconds: float) -> Outcome | None:
        """Kill one run, before a file operation or after a time, and run it again. None if it ended before.

        Args:
            which: 0 without a former output, 1 with one.
            operation: number of the file operation, from 1.
            seconds: used if ``operation`` is None.
        """
        with self.working(which):
            at = {"kill_at": operation} if operation else {"kill_after": seconds}
            if not self.run(**at).is_killed:
                return None
            place = f"operation {operation}" if operation else f"{seconds:.3f} s"
            kind, faults = self.judged(which)
            again = self.run()
            kinds = [kind]
            if again.status:
                kinds.append(DIFFERS)
                faults.append(f"the second run ended with status {again.status}: {again.output.strip()}")
            now, right = contents(self.work), self.unbroken[which]
            if extra := sorted(now.keys() - right.keys()):
                kinds.append(LEFT)
                faults.append(f"left: {', '.join(extra)}")
            if other := sorted(name for name in right if now.get(name) != right[name]):
                kinds.append(DIFFERS)
                faults.append(f"differs: {', '.join(other)}")
            return Outcome(tuple(dict.fromkeys(kinds)), place, tuple(faults))

    @contextmanager
    def working(self, which: int) -> Iterator[None]:
        """Fill the working folder with one of the starts, and remove it afterwards."""
        shutil.copytree(self.starts[which], self.work)
        try:
            yield
        finally:
            shutil.rmtree(self.work)

    def run(self, **options: Any) -> Ended:
        """Run the command in the working folder. ``options`` are those of `bench.forked.Order`."""
        return self.forks.run(self.command.line, self.work, **options)

    def judged(self, which: int) -> tuple[str, list[str]]:
        """Whether the output is the former one, the new one or between them, and one line for each fault."""
        output = self.command.output
        now = _part(contents(self.work), output)
        former, new = _part(self.before[which], output), _part(self.unbroken[which], output)
        if now == former:
            return FORMER, []
        if now == new:
            return NEW, []
        if self.command.is_replaced_whole:
            return WRONG, [f"{output} is neither the former nor the new one"]
        wrong = [
            name
            for name, content in now.items()
            if content not in (former.get(name), new.get(name)) and not _is_growing(name, content)
        ]
        return (WRONG, [f"half-written: {', '.join(wrong)}"]) if wrong else (BETWEEN, [])


def _part(files: dict[str, bytes], output: str) -> dict[str, bytes]:
    """The files of the output, without temporary ones, which the next run removes, locks and empty folders."""
    return {
        name: content
        for name, content in files.items()
        if (name == output or (name.startswith(f"{output}/") and not name.endswith("/")))
        and not Path(name).name.startswith(".")
        and "/." not in name
    }


def _is_growing(name: str, content: bytes) -> bool:
    """Whether it is a whole file that `rank` writes after each slide, with fewer slides in it."""
    if name.endswith("triage.json"):
        return json.loads(content)["n_unread"] > 0
    return (name.endswith("report.html") and content.endswith(b"</html>")) or (
        name.endswith("triage.csv") and content.endswith(b"\n")
    )


def _require_done(forks: Forks, line: tuple[str, ...], folder: Path) -> tuple[int, float]:
    ended = forks.run(line, folder)
    if ended.status:
        raise RuntimeError(f"cytomil {' '.join(line)} ended with status {ended.status}: {ended.output}")
    return ended.operations, ended.seconds
