"""The review page's server in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from cytomil.review.log import ReviewLog
from cytomil.review.server import create_app, listen
from cytomil.review.slides import FollowedTriage


@contextmanager
def serving(triage: Path, token: str) -> Iterator[int]:
    """Serve a ranked folder until the block ends. Yields the port."""
    with listen(0) as listening:
        port = int(listening.getsockname()[1])
        app = create_app(FollowedTriage(triage), ReviewLog(triage), token, port)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(10)
