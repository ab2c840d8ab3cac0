"""Files that are either whole or not there: write aside, fsync, rename."""

from __future__ import annotations

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

SEAL = "sha256_of_this"
_FORGOTTEN_S = 12 * 3600
_RENAMES_S = 60
_ours: set[str] = set()
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it onto ``path``.

    If the body raises, the temporary file is removed and ``path`` is left as it was. What a killed process left of
    an earlier attempt is removed first.
    """
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
    """Yield a temporary folder beside ``path``; on success rename it onto ``path``, removing what stood there.

    Where ``path`` is a link to a folder, that folder is replaced and the link stays.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        for child in partial.rglob("*"):
            sync(child)
        if path.exists():
            old = partial.with_name(partial.name.removesuffix(".partial") + ".old.partial")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)
        sync(path.parent)
    finally:
        _ours.discard(partial.name)
        shutil.rmtree(partial, ignore_errors=True)


def put_back(path: Path) -> None:
    """Put back the folder that stood at ``path`` where a process was killed between renaming it and its successor.

    Raises `CytomilError` naming the folder where it is not sure that the process is dead, or renaming fails.
    """
    path = path.resolve()
    for old in [] if path.exists() else _leftovers(path, r"\.old"):
        if _is_abandoned(old, _RENAMES_S):
            with suppress(OSError):
                old.rename(path)
                return
        raise CytomilError(
            f"{path} is not there: a run that was replacing it left the former one at {old}. If none runs, rename it back."
        )


def sync(path: Path) -> None:
    """Ask the operating system to put a file's or folder's content on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path`` whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def safe_name(name: str) -> str:
    """A file name for whatever ``name`` is: readable letters of it, and a hash that keeps two names apart."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name).strip('._')[:60]}-{digest}"


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` as indented JSON. Raises ValueError for NaN or infinity, which JSON does not have."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    # A path that is not UTF-8 has halves of surrogate pairs in it, which only JSON's own escapes can hold.
    write_text(path, _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the SHA-256 of the rest of it under `SEAL`, by which `is_sealed` tells whether it was altered."""
    content = json.loads(json.dumps({key: value for key, value in document.items() if key != SEAL}, allow_nan=False))
    return content | {SEAL: sha256_of_json(content)}


def is_sealed(document: Any) -> bool:
    """Whether a document read from disk says what was written."""
    if not isinstance(document, dict):
        return False
    try:
        return document.get(SEAL) == sha256_of_json({key: value for key, value in document.items() if key != SEAL})
    except RecursionError:  # deeper than anything that was ever sealed
        return False


def read_json(path: Path) -> Any:
    """Read a JSON document. Raises `ValueError` for whatever is none, however deep or long, and OSError.

    NaN and infinity, which Python writes and JSON does not have, are refused, and so is a number too large for a float.
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
    """Write a folder's JSON card, sealed."""
    write_json(path, sealed(document))


def read_json_card(path: Path, schema: str, error: type[CytomilError], made_by: str) -> dict[str, Any]:
    """Read a folder's JSON card, without its seal.

    Raises ``error`` where it is missing, damaged, altered or of another schema.
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
        raise error(
            f"{path} was altered or damaged after it was written: its checksum is another. Make it again with `{made_by}`."
        )
    del card[SEAL]
    return card


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(document: Any) -> str:
    """SHA-256 of a document's canonical JSON: the same content gives the same fingerprint, whatever the key order."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def _partial(path: Path) -> Path:
    partial = path.with_name(f".{path.name}.{host()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    _ours.add(partial.name)
    return partial


@cache
def host() -> str:
    """Eight letters that processes share whose numbers are comparable: those of one start of a machine or container."""
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
            old.rename(path)  # killed between its two renames: what stood there before is put back
    for leftover in _leftovers(path, r"(\.old)?"):
        # A former folder is the only copy while its successor is not in place.
        if (leftover.name.endswith(".old.partial") and not path.exists()) or not _is_abandoned(leftover, _FORGOTTEN_S):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_abandoned(leftover: Path, age_s: float) -> bool:
    """Whether its process is surely dead: one of this host that is gone, or another host's untouched for ``age_s``."""
    made_by, process = _maker(leftover)
    if leftover.name.replace(".old.partial", ".partial") in _ours:
        return False
    if made_by == host():
        # In a container every process may have the same number, so one's own names a dead predecessor too.
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
