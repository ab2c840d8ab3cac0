import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

BAGS = ["--bag-size", "40", "--train-bags", "12", "--test-bags", "4", "--cell-size", "24", "--difficulty", "0"]
TRAIN = ["--epochs", "1", "--batch-size", "64", "--image-size", "16", "--weights", "none", "--method", "simclr"]
TRAIN += ["--arch", "test_resnet", "--engine", "none"]
SLOWLY = ["--batch-size", "1", "--layer", "z", "--orientations", "1"]  # long enough to be killed, by one cell at a time


@pytest.mark.nightly  # `tests/faults` kills embed too
def test_a_killed_embed_goes_on_and_ends_with_the_features_of_an_unbroken_run(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def cytomil(*line):
        return [sys.executable, "-m", "cytomil", *line]

    for line in (["make-bags", *BAGS], ["pretrain", *TRAIN]):
        subprocess.run(cytomil(*line), cwd=tmp_path, env=environment, check=True, capture_output=True)
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    line = cytomil("embed", "--out", "killed", *SLOWLY)
    process = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(killed.glob("[!.]*.h5"))) < 2:
        assert process.poll() is None, "embed ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("[!.]*.h5")}
    assert 2 <= len(finished) < 16
    assert not (killed / "features.csv").exists()

    subprocess.run(line, cwd=tmp_path, env=environment, check=True, capture_output=True)
    subprocess.run(
        cytomil("embed", "--out", "unbroken", *SLOWLY),
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
    )
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert (killed / "features.csv").read_bytes() == (unbroken / "features.csv").read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in unbroken.iterdir())
    for path in unbroken.glob("*.h5"):
        with h5py.File(path) as whole, h5py.File(killed / path.name) as resumed:
            np.testing.assert_array_equal(whole["features"][:], resumed["features"][:])
            assert dict(whole.attrs).keys() == dict(resumed.attrs).keys()
