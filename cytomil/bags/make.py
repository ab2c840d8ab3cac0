"""make-bags: make bags from one of three sources and replace the output folder."""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from cytomil.bags.class_folders import (
    CellDraw,
    ClassFolders,
    Plan,
    Supply,
    make_plan,
    open_class_folders,
    require_enough,
    write_simulated_bags,
)
from cytomil.bags.config import EXECUTION_SETTINGS, MakeBagsConfig
from cytomil.bags.labelled_slides import from_labelled_slides
from cytomil.bags.manifest import CARDS_FOLDER, MANIFEST_NAME, QC_FOLDER, RECORD_NAME, MadeBags, write_manifest
from cytomil.bags.patients import FOLDER, PatientDraw, cells_by_patient
from cytomil.bags.synthetic_cells import SOURCE as SYNTHETIC
from cytomil.bags.synthetic_cells import synthetic_abnormal, synthetic_normal
from cytomil.bags.whole_slides import unfinished
from cytomil.cards import now, versions
from cytomil.config import changed, note_unused
from cytomil.errors import NotFoundError, SettingsError, require_replaceable
from cytomil.files import replacing_folder, sha256_of_file, sha256_of_json, write_json, write_json_card
from cytomil.progress import Listener
from cytomil.text import printable

SCHEMA = "cytomil.inputs/1"
_SETTLED_SECONDS = 2.0  # a second write within the clock resolution of the disk does not change the file's time


def write_fingerprint(file: Path, settings: MakeBagsConfig, listener: Listener) -> dict[str, Any]:
    """Write and return a summary of the input of ``make_bags``.

    The summary holds settings, number of files and bytes, and one SHA-256 over names and contents. It does not depend on
    the location of the files. A hidden file beside ``file`` keeps the hash of each file, so that large slides are not
    read every time. A kept hash is used while size, times and inode are unchanged.

    Raises `NotFoundError` if the source or a table does not exist.
    """
    kept_file = file.with_name(f".{file.name}.hashes")
    kept, hashes = _read(kept_file), {}
    found: list[tuple[str, str]] = []
    size = 0
    leave_out = {file.resolve(), kept_file.resolve()}
    for name, path in listener.track(list(_files(settings, leave_out)), "reading inputs", unit="files"):
        status = path.stat()
        size += status.st_size
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        key = printable(str(path.absolute()))
        kept_state, digest = kept.get(key, (None, ""))
        if kept_state != state:
            digest = sha256_of_file(path)
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
            hashes[key] = (state, digest)
        found.append((printable(name), digest))
    document = {
        "schema": SCHEMA,
        "settings": settings.model_dump(mode="json", exclude={"out", *EXECUTION_SETTINGS}),
        "files": len(found),
        "bytes": size,
        "sha256": sha256_of_json(sorted(found)),
    }
    write_json(file, document)
    write_json(kept_file, hashes)
    return document


def _files(settings: MakeBagsConfig, leave_out: set[Path]) -> Iterator[tuple[str, Path]]:
    """Every file that may be read, with a name that does not depend on its location."""
    tables = {"labels": settings.labels, "mpp_csv": settings.mpp_csv}
    if settings.patients not in (None, FOLDER):
        tables["patients"] = Path(settings.patients)
    for name, table in tables.items():
        if table is None:
            continue
        if not table.is_file():
            raise NotFoundError(f"make_bags.{name}: {table} does not exist.")
        yield name, table
    if settings.source == SYNTHETIC:
        return
    root = Path(settings.source)
    if not root.is_dir():
        raise NotFoundError(f"make_bags.source: {root} is not a folder.")
    seen = {settings.out.resolve()}
    for folder, names, files in os.walk(root, followlinks=True):
        if Path(folder).resolve() in seen:  # the bags themselves, or a circular link
            names.clear()
            continue
        seen.add(Path(folder).resolve())
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file() and path.resolve() not in leave_out:
                yield f"source/{path.relative_to(root).as_posix()}", path


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}  # all files are then hashed again


def make_bags(settings: MakeBagsConfig, listener: Listener) -> MadeBags:
    """Make the bags and their manifest. The output folder is replaced completely, or not changed if anything fails.

    Finished labelled slides are kept until all are finished, so that an interrupted run can continue.

    Raises `NotFoundError`, `NotEnoughCellsError`, `BagFileError`, `TableError` or `SettingsError`.
    """
    require_replaceable(settings.out, MANIFEST_NAME, _own_files(settings.out))
    make, used, what = _choose(settings)
    note_unused((name for name in changed(settings) if name not in used), what, listener.note)
    with replacing_folder(settings.out) as folder:
        made = make(folder, settings, listener)
        write_manifest(folder, made.rows)
        record = {
            "settings": settings.model_dump(mode="json", exclude={"out", *EXECUTION_SETTINGS}),
            "made": now(),
            "versions": versions(),
            "notes": made.notes,
            "warnings": made.warnings,
            "left_out": [[problem.where, problem.reason] for problem in made.problems],
        }
        write_json_card(folder / RECORD_NAME, record)
    shutil.rmtree(unfinished(settings.out), ignore_errors=True)
    return made


def _own_files(folder: Path) -> list[str]:
    """Patterns of the files of an earlier run: bags in its manifest, pictures, cards and records."""
    try:
        manifest = (folder / MANIFEST_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        manifest = ""
    bags = [glob.escape(path.name) for path in folder.glob("*.h5") if path.name in manifest]
    return [MANIFEST_NAME, RECORD_NAME, f"{QC_FOLDER}/*.jpg", f"{CARDS_FOLDER}/*.json", *bags]


_ALWAYS_USED = {"source", "out", "seed"}
_SIMULATING = _ALWAYS_USED | {"bag_size", "witness_rate", "train_bags", "test_bags"}
_CUTTING = {"diameter_um", "crop_um", "crop_px", "mpp", "mpp_csv"}


def _choose(settings: MakeBagsConfig) -> tuple[Callable[[Path, MakeBagsConfig, Listener], MadeBags], set[str], str]:
    """The function that makes the bags, the names of the settings that it uses, and what the bags are made of."""
    if settings.source == SYNTHETIC:
        if settings.labels or settings.patients:
            raise SettingsError(
                f"--{'labels' if settings.labels else 'patients'} is not for synthetic cells. Name the folder of your slides "
                "or cells as SOURCE, or leave it out."
            )
        return _from_synthetic, _SIMULATING | {"cell_size", "difficulty"}, "on synthetic cells"
    _require_source(Path(settings.source))
    if settings.labels is None and (settings.positive or settings.negative):
        raise SettingsError("--positive and --negative are words in a labels file. Name the file with --labels.")
    if settings.labels is not None and settings.patients is not None:
        raise SettingsError(
            "--patients is for class folders. For labelled slides, add a column 'patient' to the labels file."
        )
    if settings.labels:
        own = {"labels", "positive", "negative", "test_fraction", *_CUTTING, "ray_address"}
        if not settings.ray_address:
            own.add("workers")
        return from_labelled_slides, _ALWAYS_USED | own, "on labelled slides"
    return _from_class_folders, _SIMULATING | {"normal", "abnormal", "patients"}, "on class folders"


def _require_source(source: Path) -> None:
    if not source.is_dir():
        state = "is a file, not a folder" if source.exists() else "does not exist"
        raise NotFoundError(
            f"{source} {state}. Name a folder of class folders, of slides or of slide folders, or 'synthetic' for "
            "synthetic cells."
        )


def _from_synthetic(folder: Path, settings: MakeBagsConfig, listener: Listener) -> MadeBags:
    _require_bags(settings)
    rng = np.random.default_rng(settings.seed)
    plan = make_plan(settings.bag_size, settings.witness_rate, settings.train_bags, settings.test_bags, rng)
    normal = synthetic_normal(settings.seed, settings.cell_size, settings.difficulty)
    abnormal = synthetic_abnormal(settings.seed, settings.cell_size, settings.difficulty)
    rows = write_simulated_bags(folder, plan, repeat(Supply(normal, abnormal)), SYNTHETIC, rng, listener)
    return MadeBags(
        settings.out,
        tuple(rows),
        (),
        ("These cells are synthetic: a program drew them. They do not come from any patient.",),
    )


def _from_class_folders(folder: Path, settings: MakeBagsConfig, listener: Listener) -> MadeBags:
    _require_bags(settings)
    root = Path(settings.source)
    classes = open_class_folders(root, settings.normal, settings.abnormal)
    rng = np.random.default_rng(settings.seed)
    plan = make_plan(settings.bag_size, settings.witness_rate, settings.train_bags, settings.test_bags, rng)
    if settings.patients is not None:
        return _from_patients(folder, settings, classes, plan, rng, listener)
    require_enough(classes, plan)
    draw = CellDraw(classes, plan, rng)
    rows = write_simulated_bags(folder, plan, repeat(Supply(draw.normal, draw.abnormal)), root.name, rng, listener)
    notes = (f"{draw.n_duplicates} byte-identical images left out.",) if draw.n_duplicates else ()
    return MadeBags(settings.out, tuple(rows), tuple(draw.problems), notes)


def _from_patients(
    folder: Path,
    settings: MakeBagsConfig,
    classes: ClassFolders,
    plan: Plan,
    rng: np.random.Generator,
    listener: Listener,
) -> MadeBags:
    assert settings.patients is not None
    cells, problems = cells_by_patient(classes, settings.patients)
    draw = PatientDraw(classes.root, cells, rng)
    given = draw.assign(plan)
    rows = write_simulated_bags(folder, plan, draw.bags(given), classes.root.name, rng, listener)
    left_out = (*classes.left_out, *problems, *draw.problems)
    return MadeBags(settings.out, tuple(rows), left_out, draw.notes(plan, given))


def _require_bags(settings: MakeBagsConfig) -> None:
    if settings.train_bags + settings.test_bags == 0:
        raise SettingsError("train_bags and test_bags are both 0. Raise one of them.")
