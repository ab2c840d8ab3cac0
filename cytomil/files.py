"""Writes files completely or not at all: write a temporary file, fsync it, rename it. Also JSON and checksums."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from cytomil.errors import CytomilError
from cytomil.full_disk import naming_full_disk
from cytomil.limits import progress

SEAL = "sha256_of_this"
_FORGOTTEN_S = 12 * 3600
_RENAMES_S = 60
_HERE = -100  # AT_FDCWD: relative paths start at the working folder
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_ours: set[str] = set()
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``. On success, fsync it and rename it to ``path``.

    If the body raises an error, the temporary file is removed and ``path`` is unchanged. Temporary files of killed
    processes are removed first.
    """
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        partial = _partial(path)
        try:
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
        finally:
            _ours.discard(partial.name)
            partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``. On success, rename it to ``path`` and remove the previous folder.

    If ``path`` is a link to a folder, that folder is replaced and the link is kept.
    """
    path = path.resolve()
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        partial = _partial(path)
        partial.mkdir()
        try:
            yield partial
            for child in partial.rglob("*"):
                sync(child)
            _put_in_place(partial, path)
            sync(path.parent)
        finally:
            _ours.discard(partial.name)
            shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename ``partial`` to ``path``. If ``path`` existed, ``partial`` then holds the former folder, or is removed."""
    if not path.exists():
        partial.rename(path)
    elif not _exchange(partial, path):
        # Between the two renames there is no folder. `put_back` restores the previous one if the process is killed there.
        old = partial.with_name(partial.name.removesuffix(".partial") + ".old.partial")
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step. Returns False, and changes nothing, where that is not possible.

    Linux and macOS can do it on most local file systems, but not on NFS.
    """
    if os.name != "posix":
        return False
    system = ctypes.CDLL(None)
    names = os.fsencode(first), os.fsencode(second)
    if hasattr(system, "renameat2"):
        return bool(system.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)
    return hasattr(system, "renamex_np") and bool(system.renamex_np(*names, _EXCHANGE) == 0)


def put_back(path: Path) -> None:
    """Restore the previous folder of ``path`` if a process was killed between the two renames of `replacing_folder`.

    Raises `CytomilError`, which names the folder, if the process may still run or renaming fails.
    """
    path = path.resolve()
    for old in [] if path.exists() else _leftovers(path, r"\.old"):
        if _is_abandoned(old, _RENAMES_S):
            with suppress(OSError):
                old.rename(path)
                return
        raise CytomilError(
            f"{path} does not exist: an interrupted run left the previous one at {old}. If no run is active, rename it back."
        )


def sync(path: Path) -> None:
    """Make the operating system write a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path`` completely or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` completely or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def safe_name(name: str) -> str:
    """A file name for any ``name``: its safe characters, and a hash that makes it unique."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name).strip('._')[:60]}-{digest}"


def relative_path(path: Path, folder: Path) -> str:
    """``path`` relative to ``folder``, with forward slashes; "" if they are on different drives."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return ""


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` as indented JSON. Raises ValueError for NaN or infinity, which JSON does not have."""
    write_text(path, json_text(document))


def json_text(document: Any) -> str:
    """The text of a JSON file as `write_json` writes it."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # A path that is not UTF-8 contains lone surrogates, which must be escaped in JSON.
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the SHA-256 of its other keys under `SEAL`, so that `is_sealed` can detect changes."""
    content = json.loads(json.dumps({key: value for key, value in document.items() if key != SEAL}, allow_nan=False))
    return content | {SEAL: sha256_of_json(content)}


def is_sealed(document: Any) -> bool:
    """Whether a document read from disk is unchanged since it was sealed."""
    if not isinstance(document, dict):
        return False
    try:
        return document.get(SEAL) == sha256_of_json({key: value for key, value in document.items() if key != SEAL})
    except RecursionError:  # cytomil writes no document that is nested so deep
        return False


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, is nested too deep, or holds NaN, infinity or a number too large for a float.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def write_json_card(path: Path, document: dict[str, Any]) -> None:
    """Seal the JSON card of a folder and write it."""
    write_json(path, sealed(document))


def read_json_card(path: Path, schema: str, error: type[CytomilError], made_by: str) -> dict[str, Any]:
    """Read the JSON card of a folder and remove its seal.

    Raises ``error`` if the card is missing, damaged or altered, or has another schema.
    """
    try:
        card = read_json(path)
    except FileNotFoundError:
        raise error(f"{path.parent} has no {path.name}. Make it with `{made_by}`.") from None
    except ValueError as fault:
        raise error(f"{path} is damaged ({str(fault)[:200]}). Make it again with `{made_by}`.") from None
    found = card.get("schema") if isinstance(card, dict) else None
    if found != schema:
        shown = repr(found)[:60]
        raise error(
            f"{path} has schema {shown}; this version of cytomil reads {schema!r}. Make it again with `{made_by}`."
        )
    if not is_sealed(card):
        raise error(f"{path} was altered or damaged: its checksum does not match. Make it again with `{made_by}`.")
    del card[SEAL]
    return card


def sha256_of_file(path: Path, start: int = 0) -> str:
    """SHA-256 of a file's bytes from ``start`` on, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while n := file.readinto(block):
            digest.update(block[:n])
            progress()
    return digest.hexdigest()


def sha256_of_json(document: Any) -> str:
    """SHA-256 of a document's canonical JSON. It does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def _partial(path: Path) -> Path:
    partial = path.with_name(f".{path.name}.{host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    _ours.add(partial.name)
    return partial


@cache
def host() -> str:
    """Eight letters that identify one boot of a machine or container, in which process ids are comparable."""
    known = [platform.node()]
    with suppress(OSError):
        known += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:8]


def _leftovers(path: Path, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.[0-9a-f]{{8}}-[0-9]{{1,9}}-[0-9a-f]{{8}}{kind}\.partial")
    found = path.parent.glob(f".{glob.escape(path.name)}.*partial")
    return sorted(one for one in found if pattern.fullmatch(one.name[len(path.name) + 1 :]))


def _remove_leftovers(path: Path) -> None:
    for old in _leftovers(path, r"\.old"):
        if not path.exists() and _is_abandoned(old, _RENAMES_S):
            old.rename(path)  # killed between the two renames: restore the previous folder
    for leftover in _leftovers(path, r"(\.old)?"):
        # The previous folder is the only copy until the new one is in place.
        if (leftover.name.endswith(".old.partial") and not path.exists()) or not _is_abandoned(leftover, _FORGOTTEN_S):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_abandoned(leftover: Path, age_s: float) -> bool:
    """Whether the process that made ``leftover`` has ended.

    A process of another host counts as ended if its files did not change for ``age_s`` seconds.
    """
    made_by, process = _maker(leftover)
    if leftover.name.replace(".old.partial", ".partial") in _ours:
        return False
    if made_by == host():
        # In a container, every process may have the same id. Its own id then belongs to an earlier process that has ended.
        return process == os.getpid() or not _is_running(process)
    touched = 0.0
    for one in (leftover, *leftover.rglob("*")):
        with suppress(OSError):
            found = one.stat()
            touched = max(touched, found.st_mtime, found.st_ctime)
    return time.time() - touched > age_s


def _maker(leftover: Path) -> tuple[str, int]:
    made_by, process, _ = leftover.name.removesuffix(".partial").removesuffix(".old").rpartition(".")[2].split("-")
    return made_by, int(process)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
