"""Commands in a repository of a test's own: DVC and git, with this interpreter's tools and no one's settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(root: Path, *line: str) -> subprocess.CompletedProcess[str]:
    """Run a command in ``root``, whose own cytomil it finds, to its end, however it ends."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CYTOMIL_")}
    environment = clean | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }
    return subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, check=False)


def commit(root: Path, what: str = ".") -> None:
    """Commit ``what`` of ``root``, or nothing where nothing changed."""
    for line in (("git", "add", what), ("git", "commit", "-q", "-m", "state", "--allow-empty")):
        done = run(root, *line)
        assert done.returncode == 0, done.stdout + done.stderr
