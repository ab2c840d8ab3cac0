"""Read damaged files: bags, feature caches and all files of a triage model, mutated at random.

A reader must not hang for ten seconds, crash, raise anything but a one-line error, or accept other content. The readers
run in a child process, which is restarted after a hang or a crash. The exit status is 1 if a reader fails.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bench.tables import Measured, Table

_LIMIT_S = 10.0
_KINDS = ("byte", "bytes", "zeroed", "cut")
REFUSED, SAME = "refused in one line", "accepted, same content"
_VIOLATIONS = ("accepted with other content", "another exception", "crashed", "hung")
_OUTCOMES = (REFUSED, SAME, *_VIOLATIONS)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mutations", type=int, default=2000, help="number for a bag, for a cache, and for all files of a model"
    )
    parser.add_argument("--seed", type=int, default=0)


def measure(options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_files(root)
        found = {
            "bag file": count(root / "bag.h5", root / "bag.h5", "bag", options.mutations, options.seed),
            "feature cache": count(root / "cache.h5", root / "cache.h5", "cache", options.mutations, options.seed),
        }
        files = sorted(file for file in (root / "model").rglob("*") if file.is_file())
        found["model's files"] = Counter()
        for i, file in enumerate(files):
            n = options.mutations // len(files) + (i < options.mutations % len(files))
            found["model's files"] += count(root / "model", file, "model", n, options.seed)
    rows = ({"outcome": what, **{name: found[name][what] for name in found}} for what in _OUTCOMES)
    table = Table.of(*rows)
    if wrong := sum(tally[what] for tally in found.values() for what in _VIOLATIONS):
        raise SystemExit(f"{table.markdown()}\n{wrong} mutations had a forbidden outcome.")
    text = (
        f"{options.mutations:,} mutations of each, alternating: one byte changed, eight bytes changed, up to 4,096 bytes "
        f"zeroed, the file truncated; seed {options.seed}."
    )
    return Measured({name: dict(tally) for name, tally in found.items()}, (text, table))


def make_files(root: Path) -> None:
    """Make a small bag, cache and triage model with the verbs."""
    from cytomil.bags.config import MakeBagsConfig
    from cytomil.bags.make import make_bags
    from cytomil.features.config import EmbedConfig
    from cytomil.features.embed import embed
    from cytomil.mil.config import FitMilConfig
    from cytomil.mil.fit import fit_mil
    from cytomil.progress import Silent
    from cytomil.training.config import PretrainConfig
    from cytomil.training.loop import pretrain

    silent = Silent()
    make_bags(MakeBagsConfig(out=root / "bags", train_bags=4, test_bags=0, bag_size=12, cell_size=32), silent)
    pretrain(
        PretrainConfig(method="none", bags=root / "bags", out=root / "encoder", image_size=16, weights="none"), silent
    )
    embed(EmbedConfig(bags=root / "bags", encoder=root / "encoder", out=root / "features", orientations=1), silent)
    fit = FitMilConfig(features=root / "features", encoder=root / "encoder", out=root / "model", folds=2, workers=1)
    fit_mil(fit, silent)
    shutil.copy(root / "bags" / "train-01.h5", root / "bag.h5")
    shutil.copy(root / "features" / "train-01.h5", root / "cache.h5")


def count(opened: Path, file: Path, kind: str, n: int, seed: int) -> Counter[str]:
    """Mutate ``file`` ``n`` times, open ``opened``, which is or contains it, each time, and count the outcomes."""
    whole = file.read_bytes()
    tally: Counter[str] = Counter()
    child = _Child(kind)
    try:
        right = child.ask(opened)
        if right.startswith(("error", "hung")):
            raise SystemExit(f"{opened} itself cannot be read: {right}")
        for content in mutations(whole, n, seed):
            # A new file each time, because cytomil replaces files and never writes in place.
            file.unlink()
            file.write_bytes(content)
            tally[_outcome(child.ask(opened), right)] += 1
    finally:
        child.kill()
        file.write_bytes(whole)
    return tally


def mutations(whole: bytes, n: int, seed: int) -> Iterator[bytes]:
    """``n`` damaged versions of a file's content, alternating between all kinds."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        content = bytearray(whole)
        kind = _KINDS[i % len(_KINDS)]
        start = int(rng.integers(len(content)))
        if kind == "byte":
            content[start] ^= int(rng.integers(1, 256))
        elif kind == "bytes":
            for at in rng.integers(len(content), size=8).tolist():
                content[at] ^= int(rng.integers(1, 256))
        elif kind == "zeroed":
            stop = min(len(content), start + int(rng.integers(1, 4097)))
            content[start:stop] = bytes(stop - start)
        else:
            del content[start:]
        if content == whole:  # the zeroed bytes were already zero
            content[start] ^= 1
        yield bytes(content)


def _outcome(answer: str, right: str) -> str:
    if answer.startswith("content "):
        return SAME if answer == right else _VIOLATIONS[0]
    return {"one line": REFUSED, "crashed": "crashed", "hung": "hung"}.get(answer, _VIOLATIONS[1])


class _Child:
    """Reads files in a separate process, which is restarted after a crash or a hang."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._process: Any = None
        self._end: Connection | None = None

    def ask(self, path: Path) -> str:
        """The outcome of reading ``path``: a hash of its content, "one line", "error …", "crashed" or "hung"."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._end, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._kind, other), daemon=True)
            self._process.start()
            other.close()
            assert self._end.recv() == "ready"
        assert self._end is not None
        self._end.send(path)
        begun = time.monotonic()
        try:
            if self._end.poll(_LIMIT_S):
                return str(self._end.recv())
            answer = "hung"
        except EOFError:
            answer = "crashed"
        assert time.monotonic() - begun < 2 * _LIMIT_S
        self.kill()
        return answer

    def kill(self) -> None:
        """Kill the process. The next call of `ask` starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None


def _serve(kind: str, end: Connection) -> None:
    from cytomil.errors import CytomilError

    read = _READERS[kind]()
    end.send("ready")
    while True:
        path = end.recv()
        try:
            digest = hashlib.sha256()
            for part in read(path):
                digest.update(part)
            answer = f"content {digest.hexdigest()}"
        except CytomilError as error:
            answer = "one line" if "\n" not in str(error) else f"error of several lines {error}"
        except Exception as error:
            answer = f"error {type(error).__name__}: {error}"
        end.send(answer)


def _bag_reader() -> Callable[[Path], Iterator[bytes]]:
    from cytomil.bags.bag_file import open_bag
    from cytomil.bags.instance_labels import read_instance_labels, read_instance_sources

    def read(path: Path) -> Iterator[bytes]:
        bag = open_bag(path)
        yield repr((bag.info, bag.sha256, bag.instance_ids, bag.coords.tolist())).encode()
        yield from bag.images()
        yield repr((read_instance_labels(path), read_instance_sources(path))).encode()

    return read


def _cache_reader() -> Callable[[Path], Iterator[bytes]]:
    from cytomil.features.cache import open_features

    def read(path: Path) -> Iterator[bytes]:
        found = open_features(path)
        yield repr((found.bag_id, found.key, found.mpp, found.instance_ids, found.coords.tolist())).encode()
        yield repr((found.shape, found.unreadable)).encode()
        yield found.load().tobytes()

    return read


def _model_reader() -> Callable[[Path], Iterator[bytes]]:
    from cytomil.mil.triage_model import load_triage_model

    def read(path: Path) -> Iterator[bytes]:
        model = load_triage_model(path)
        yield repr((model.card, model.encoder.card, model.encoder.transform)).encode()
        states = [model.encoder.encoder.state_dict(), model.novelty.tensors()]
        states += [member.aggregator.state_dict() for member in model.ensemble.members]
        for state in states:
            for name, tensor in state.items():
                yield name.encode() + tensor.numpy().tobytes()

    return read


_READERS: dict[str, Callable[[], Callable[[Path], Iterator[bytes]]]] = {
    "bag": _bag_reader,
    "cache": _cache_reader,
    "model": _model_reader,
}
