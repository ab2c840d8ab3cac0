"""verify: finds what cytomil wrote below a folder, and checks it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cytomil.bags.made import RECORD_NAME as MADE_NAME
from cytomil.bags.manifest import MANIFEST_NAME
from cytomil.encoders import bundle
from cytomil.errors import NotFoundError, require_folder
from cytomil.evaluation.record import RECORD_NAME as EVALUATED_NAME
from cytomil.features.index import INDEX_NAME
from cytomil.features.origin import RECORD_NAME as EMBED_NAME
from cytomil.file_manifest import require_signature
from cytomil.mil import triage_model
from cytomil.progress import Listener, Problem
from cytomil.triage.write import CSV_NAME, REPORT_NAME
from cytomil.validation.write import RECORD_NAME as VALIDATION_NAME
from cytomil.verification.checked import Checked, attempt
from cytomil.verification.inputs import check_bags, check_encoder, check_features, check_model
from cytomil.verification.results import check_reports, check_validation, check_worklist

_CHECKS: tuple[tuple[tuple[str, ...], Callable[[Path], Iterator[Checked]]], ...] = (
    ((MANIFEST_NAME, MADE_NAME), check_bags),
    ((bundle.CARD_NAME, bundle.WEIGHTS_NAME), check_encoder),
    ((INDEX_NAME, EMBED_NAME), check_features),
    ((triage_model.WEIGHTS_NAME,), check_model),
    ((EVALUATED_NAME,), check_reports),
    ((CSV_NAME, REPORT_NAME), check_worklist),
    ((VALIDATION_NAME,), check_validation),
)
"""Files by which a kind of folder is known, any of them, and its check. A triage model and a worklist share triage.json."""


@dataclass(frozen=True)
class Verified:
    """How many files were read, and what does not fit, each with its file and what to do."""

    n_files: int
    findings: tuple[Problem, ...]


def verify(folder: Path, listener: Listener, public_key: Path | None = None) -> Verified:
    """Check every folder of bags, features, encoder, triage model, reports, worklist or validation in ``folder`` and below.

    Hidden folders are passed over. With ``public_key``, every triage model must be signed with that key. Nothing is written.

    Raises:
        NotFoundError: there is no such folder, or it holds none of these.
    """
    require_folder(folder, "cytomil init")
    found = [(place, check) for place in _folders(folder) for check in _checks_of(place)]
    if not found:
        raise NotFoundError(
            f"{folder} holds no bags, features, encoder, triage model, reports, worklist or validation of cytomil."
        )
    files: set[Path] = set()
    findings: dict[Problem, None] = {}
    for place, check in listener.track(found, "verifying", unit="folders"):
        checked = list(check(place))
        if check is check_model and public_key is not None:
            checked.append(attempt(place, lambda: require_signature(place, public_key))[1])  # noqa: B023 called at once
        files |= {one.file for one in checked if one.file != place}
        findings |= {Problem(str(one.file), one.fault): None for one in checked if one.fault}
    return Verified(len(files), tuple(findings))


def _folders(folder: Path) -> Iterator[Path]:
    for place, below, _ in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(place)


def _checks_of(place: Path) -> list[Callable[[Path], Iterator[Checked]]]:
    return [check for names, check in _CHECKS if any((place / name).is_file() for name in names)]
