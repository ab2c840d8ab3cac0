"""make-bags on whole slides, killed after the first one: the same line goes on and ends with an unbroken run's bytes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

LABELS = "slide,label,split\ns1,0,train\ns2,1,train\ns3,0,test\ns4,1,test\n"


def write_slide(path, seed, side=1600):
    """Cells on a pale field, 0.25 µm per pixel, many enough for a slide to take some tenths of a second."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (236, 232, 238))
    pen = ImageDraw.Draw(image)
    for x in range(60, side - 60, 60):
        for y in range(60, side - 60, 60):
            dx, dy = rng.uniform(-6, 6, 2)
            pen.ellipse((x + dx - 14, y + dy - 14, x + dx + 14, y + dy + 14), fill=(150, 90, 160))
    with tifffile.TiffWriter(path) as tiff:
        tags = {"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER"}
        tiff.write(np.asarray(image), tile=(128, 128), photometric="rgb", **tags)


@pytest.mark.nightly  # `tests/faults` kills make-bags too
def test_a_killed_run_goes_on_and_reads_no_finished_slide_again(tmp_path):
    (tmp_path / "slides").mkdir()
    for number in range(1, 5):
        write_slide(tmp_path / "slides" / f"s{number}.tif", number)
    (tmp_path / "labels.csv").write_text(LABELS)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def line(out, workers=1):
        chosen = ["--labels", "labels.csv", "--out", out, "--workers", str(workers), "--crop-px", "48"]
        return [sys.executable, "-m", "cytomil", "make-bags", "slides", *chosen]

    quiet = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line("killed"), **quiet)
    kept = tmp_path / ".killed.unfinished"
    deadline = time.monotonic() + 120
    while not list(kept.glob("made-from/[!.]*.json")):
        assert process.poll() is None, "make-bags ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    finished = len(list(kept.glob("made-from/[!.]*.json")))
    assert 1 <= finished < 4
    first = kept / "s1.h5"
    identity = first.stat().st_ino

    again = subprocess.run(line("killed"), cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert f"{finished} of 4 slides were read before, {4 - finished} remain" in " ".join(again.stderr.split())
    assert (tmp_path / "killed" / "s1.h5").stat().st_ino == identity
    assert not kept.exists()

    for out, workers in (("unbroken", 1), ("two", 2)):
        subprocess.run(line(out, workers), check=True, **quiet)
        names = [
            "bags.csv",
            *(f"s{n}.h5" for n in range(1, 5)),
            *(f"qc/{file.name}" for file in tmp_path.glob("killed/qc/*")),
        ]
        for name in names:
            assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / out / name).read_bytes()
        # And no more than that, no unfinished file of the killed process among it.
        assert sorted(path.name for path in (tmp_path / "killed").rglob("*")) == sorted(
            path.name for path in (tmp_path / out).rglob("*")
        )
