"""Limits of a process that reads slides. A damaged or hostile file then ends that process, and not the whole run.

The kernel ends the process after `CPU_S` seconds of computing without `progress`, even if a library never returns. It
refuses memory beyond `MEMORY_BYTES`. Windows has neither limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

CPU_S = 15
"""Processor time without progress. A slow disk uses none, so it does not count."""
MEMORY_BYTES = 4 << 30
SIGNS_EVERY_S = 5.0
_RENEWED_EVERY_S = 1.0


class _Limits:
    """The limits of this process once they are imposed."""

    def __init__(self, on_sign: Callable[[], None]) -> None:
        self._on_sign, self._lock = on_sign, threading.Lock()
        self._renew_at, self._sign_at, self._until = 0.0, 0.0, 0.0

    def renew(self, seconds: float) -> None:
        used = time.process_time()
        if used >= self._renew_at or seconds > CPU_S:
            with self._lock:
                self._renew_at, self._until = used + _RENEWED_EVERY_S, max(self._until, used + seconds)
                if resource is not None:
                    _set_soft_limit(resource.RLIMIT_CPU, int(self._until) + 1)
        now = time.monotonic()
        if now >= self._sign_at:
            self._sign_at = now + SIGNS_EVERY_S
            self._on_sign()


_imposed: list[_Limits] = []


def impose(on_sign: Callable[[], None]) -> None:
    """Limit this process from now on. ``on_sign`` is called with `progress`, at most every `SIGNS_EVERY_S` seconds."""
    _imposed[:] = [_Limits(on_sign)]
    if resource is not None:
        _set_soft_limit(resource.RLIMIT_CORE, 0)  # a core dump would hold pictures of a patient's cells
        if hasattr(resource, "RLIMIT_DATA"):
            _set_soft_limit(resource.RLIMIT_DATA, MEMORY_BYTES)
    progress()


def are_imposed() -> bool:
    """Whether this process is limited."""
    return bool(_imposed)


def progress(allowed_s: float = 0.0) -> None:
    """Say that the work advances. It costs about a microsecond, and nothing happens without limits.

    Args:
        allowed_s: processor seconds that the next steps may take together, in addition to `CPU_S`.
    """
    for limits in _imposed:
        limits.renew(CPU_S + allowed_s)


def _set_soft_limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
