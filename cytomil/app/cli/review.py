"""cytomil review."""

from __future__ import annotations

import secrets
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from cytomil.app.cli.console import console, plain_errors


def review(
    triage: Annotated[Path, typer.Argument(help="folder that `cytomil rank` wrote")] = Path("triage"),
    port: Annotated[int, typer.Option(help="port on this machine; 0 takes a free one", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open the page in a browser")] = True,
) -> None:
    """Look at a ranked folder in the browser: slides, cells, verdicts. The page is for this machine only."""
    with plain_errors(kept="All judgements are in the review log."):
        from cytomil.review.log import ReviewLog, require_log_folder
        from cytomil.review.server import HOST, listen, serve
        from cytomil.review.slides import FollowedTriage

        folder = FollowedTriage(triage)
        require_log_folder(triage)
        log = ReviewLog(triage)
        for fault in log.faults():
            console.print(f"note: {fault}", soft_wrap=True)
        token = secrets.token_urlsafe(24)
        with listen(port) as listening:
            address = f"http://{HOST}:{listening.getsockname()[1]}/?token={token}"
            console.print(f"review of {triage}: {address}", soft_wrap=True)
            console.print(f"Every judgement is kept in {log.path} at once. Ctrl-C ends the server.", soft_wrap=True)
            console.print("Decision support, not a diagnosis.", style="bold")
            if browser:
                threading.Timer(0.5, webbrowser.open, (address,)).start()
            serve(folder, log, token, listening)
