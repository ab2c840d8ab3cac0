"""Training curves for DVC: one point per epoch, written by DVCLive."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from cytomil.full_disk import naming_full_disk


def has_dvclive() -> bool:
    """Whether DVCLive is installed. Its extra is ``cytomil[dvc]``."""
    return find_spec("dvclive") is not None


class Curves:
    """A DVCLive run in ``folder``.

    It replaces an earlier one. It also works outside a DVC or git repository. Without DVCLive, nothing is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._live: Any = None

    def __enter__(self) -> Curves:
        return self

    def log(self, record: dict[str, Any]) -> None:
        """Log one epoch's numbers. ``record`` is the training loop's record of the epoch."""
        if not has_dvclive():
            return
        with naming_full_disk(self._folder):
            live = self._live or self._start()
            live.step = record["epoch"]
            for name, value in record.items():
                if name != "epoch":
                    live.log_metric(name, value)
            live.make_summary()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            with naming_full_disk(self._folder):
                self._live.end()

    def _start(self) -> Any:
        # DVCLive warns about a missing repository. Users without DVC need no repository.
        logging.getLogger("dvclive").setLevel(logging.ERROR)
        from dvclive.live import Live

        self._live = Live(str(self._folder), save_dvc_exp=False, dvcyaml=None)
        return self._live
