"""One hash of all input of make-bags, for DVC. Images and tables may lie anywhere and are not outputs of a stage."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cytomil.bags.config import WHERE_WORK_IS_DONE, MakeBagsConfig
from cytomil.bags.patients import FOLDER
from cytomil.bags.synthetic_cells import SOURCE as SYNTHETIC
from cytomil.errors import NotFoundError
from cytomil.files import sha256_of_file, sha256_of_json, write_json
from cytomil.progress import Listener
from cytomil.text import printable

SCHEMA = "cytomil.inputs/1"
_SETTLED_SECONDS = 2.0  # a second write within the clock resolution of the disk does not change the file's time


def write_fingerprint(file: Path, settings: MakeBagsConfig, listener: Listener) -> dict[str, Any]:
    """Write and return a summary of the input of ``make_bags``.

    The summary holds settings, number of files and bytes, and one SHA-256 over names and contents. It does not depend on
    where the files lie. A hidden file beside ``file`` keeps the hash of each file, so that large slides are not read each
    time. A kept hash is used while size, times and inode are unchanged.

    Raises `NotFoundError` if the source or a table does not exist.
    """
    kept_file = file.with_name(f".{file.name}.hashes")
    kept, hashes = _read(kept_file), {}
    found: list[tuple[str, str]] = []
    size = 0
    leave_out = {file.resolve(), kept_file.resolve()}
    for name, path in listener.track(list(_files(settings, leave_out)), "reading inputs", unit="files"):
        status = path.stat()
        size += status.st_size
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        key = printable(str(path.absolute()))
        state_then, digest = kept.get(key, (None, ""))
        if state_then != state:
            digest = sha256_of_file(path)
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
            hashes[key] = (state, digest)
        found.append((printable(name), digest))
    document = {
        "schema": SCHEMA,
        "settings": settings.model_dump(mode="json", exclude={"out", *WHERE_WORK_IS_DONE}),
        "files": len(found),
        "bytes": size,
        "sha256": sha256_of_json(sorted(found)),
    }
    write_json(file, document)
    write_json(kept_file, hashes)
    return document


def _files(settings: MakeBagsConfig, leave_out: set[Path]) -> Iterator[tuple[str, Path]]:
    """Every file that may be read, with a name that does not depend on its location."""
    tables = {"labels": settings.labels, "mpp_csv": settings.mpp_csv}
    if settings.patients not in (None, FOLDER):
        tables["patients"] = Path(settings.patients)
    for name, table in tables.items():
        if table is None:
            continue
        if not table.is_file():
            raise NotFoundError(f"make_bags.{name}: {table} does not exist.")
        yield name, table
    if settings.source == SYNTHETIC:
        return
    root = Path(settings.source)
    if not root.is_dir():
        raise NotFoundError(f"make_bags.source: {root} is not a folder.")
    seen = {settings.out.resolve()}
    for folder, names, files in os.walk(root, followlinks=True):
        if Path(folder).resolve() in seen:  # the bags themselves, or a circular link
            names.clear()
            continue
        seen.add(Path(folder).resolve())
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file() and path.resolve() not in leave_out:
                yield f"source/{path.relative_to(root).as_posix()}", path


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}  # all files are then hashed again
