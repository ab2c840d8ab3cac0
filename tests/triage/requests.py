"""What a reading process is asked to do, in a module that another process loads quickly."""

from __future__ import annotations

import os
import time

from cytomil import limits


def abort(*asked):
    os.abort()


def complain(served):
    os.write(2, b"libhostile: warning\n")
    return "done"


def leave(served):
    os._exit(7)


def take_memory(served):
    return len(bytearray(limits.MEMORY_BYTES + 1))


def allow_one_second():
    limits.CPU_S, limits._RENEWED_EVERY_S = 1, 0.2
    limits._imposed[0]._until = 0.0
    limits.progress(0.001)


def compute_for_ever(served):
    allow_one_second()
    while True:
        pass


def compute_with_progress(served):
    allow_one_second()
    started = time.process_time()
    while time.process_time() < started + 3:
        limits.progress()
    return "done"


def fail(served):
    raise FileNotFoundError(2, "no such file")


def answer(served):
    return 42


def own_pid(served):
    return os.getpid()
