import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from cytomil.threads import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def fill():
    for _ in range(20):
        block = np.empty(8 * 2**20, np.uint8)
        block[::4096] = 1
        del block
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told")
def test_freed_memory_is_used_again_without_being_mapped_anew():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "returned")
    }
    assert faults["kept"] < 2_048  # the pages of one block
    assert faults["kept"] < faults["returned"] or faults["returned"] < 2_048
