"""What is costly to make is made once for the whole run: pytest-xdist runs a session's fixtures in each of its processes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


class Shared:
    """Folders and objects below one folder that all processes of a run know, each made by whichever asks first.

    Tests only read them. Who runs as root could write to any file, so no permissions keep tests from it; `altered` tells.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._asked: list[str] = []

    @classmethod
    def of_run(cls, paths: pytest.TempPathFactory) -> Shared:
        """The folder of this run, which ends with it."""
        base = paths.getbasetemp()
        # Each of pytest-xdist's processes has a folder of its own in the run's.
        return cls((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared")

    def folder(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder that ``make(folder)`` filled; where it raises, the next to ask tries again."""
        folder = self._root / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._beside(name, "lock")):
            # In its place from the start, because cards name where things lie; hence a mark of its own that it is whole.
            if not self._beside(name, "whole").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                self._beside(name, "whole").write_text(json.dumps(_state(folder)))
        self._asked.append(name)
        return folder

    def object(self, name: str, make: Callable[[], Any]) -> Any:
        """A copy of this process's own of what ``make()`` gave, which pickle must know."""
        folder = self.folder(name, lambda folder: (folder / "object.pickle").write_bytes(pickle.dumps(make())))
        return pickle.loads((folder / "object.pickle").read_bytes())

    def altered(self) -> list[str]:
        """Files that were written, added or removed since they were made, of the folders this process asked for."""
        found: set[str] = set()
        for name in self._asked:
            now, made = _state(self._root / name), json.loads(self._beside(name, "whole").read_text())
            found |= {f"{name}/{file}" for file in now.keys() | made.keys() if now.get(file) != made.get(file)}
        return sorted(found)

    def _beside(self, name: str, what: str) -> Path:
        return self._root / f"{name}.{what}"


def _state(folder: Path) -> dict[str, list[int]]:
    """Size and time of each file. JSON has lists only, so that what was read compares with what is found."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
