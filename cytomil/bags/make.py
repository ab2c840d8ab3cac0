"""make-bags: choose where cells come from, and replace the folder of bags as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import BagInfo, write_bag
from cytomil.bags.class_folders import CellDraw, open_class_folders, require_enough
from cytomil.bags.images import printable
from cytomil.bags.manifest import MANIFEST_NAME, BagRow, write_manifest
from cytomil.bags.simulate import make_plan, write_simulated_bags
from cytomil.bags.slide_folders import SlideFolderReader, read_labels, split_by_patient
from cytomil.bags.synthetic import SOURCE as SYNTHETIC
from cytomil.bags.synthetic import synthetic_abnormal, synthetic_normal
from cytomil.errors import BagFileError, NotFoundError, SettingsError, require_folder, require_replaceable
from cytomil.files import replacing_folder, write_json
from cytomil.progress import Listener, Problem
from cytomil.provenance import now, versions
from cytomil.settings import MakeBagsSettings

RECORD_NAME = "make-bags.json"


@dataclass(frozen=True)
class MadeBags:
    """What make-bags wrote, and what it had to leave out."""

    folder: Path
    rows: tuple[BagRow, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def make_bags(settings: MakeBagsSettings, listener: Listener) -> MadeBags:
    """Make the bags and their manifest; the folder is replaced whole, or left as it was if anything fails.

    Raises `NotFoundError`, `NotEnoughCellsError`, `BagFileError` or `SettingsError`, each with what to do.
    """
    require_replaceable(settings.out, MANIFEST_NAME)
    make = _choose(settings)
    with replacing_folder(settings.out) as folder:
        made = make(folder, settings, listener)
        write_manifest(folder, made.rows)
        record = {
            "settings": settings.model_dump(mode="json", exclude={"out"}),
            "made": now(),
            "versions": versions(),
            "notes": made.notes,
            "left_out": [[problem.where, problem.reason] for problem in made.problems],
        }
        write_json(folder / RECORD_NAME, record)
    return made


def _choose(settings: MakeBagsSettings) -> Callable[[Path, MakeBagsSettings, Listener], MadeBags]:
    if settings.source == SYNTHETIC:
        return _from_synthetic
    require_folder(Path(settings.source), "make-bags synthetic")
    return _from_slide_folders if settings.labels else _from_class_folders


def _from_synthetic(folder: Path, settings: MakeBagsSettings, listener: Listener) -> MadeBags:
    _require_bags(settings)
    rng = np.random.default_rng(settings.seed)
    plan = make_plan(settings.bag_size, settings.witness_rate, settings.train_bags, settings.test_bags, rng)
    normal = synthetic_normal(settings.seed, settings.cell_size, settings.difficulty)
    abnormal = synthetic_abnormal(settings.seed, settings.cell_size, settings.difficulty)
    rows = write_simulated_bags(folder, plan, normal, abnormal, SYNTHETIC, rng, listener)
    return MadeBags(settings.out, tuple(rows), (), ("These cells are synthetic: drawn by a program, of no patient.",))


def _from_class_folders(folder: Path, settings: MakeBagsSettings, listener: Listener) -> MadeBags:
    _require_bags(settings)
    root = Path(settings.source)
    classes = open_class_folders(root, settings.normal, settings.abnormal)
    rng = np.random.default_rng(settings.seed)
    plan = make_plan(settings.bag_size, settings.witness_rate, settings.train_bags, settings.test_bags, rng)
    require_enough(classes, plan)
    draw = CellDraw(classes, plan, rng)
    rows = write_simulated_bags(folder, plan, draw.normal, draw.abnormal, root.name, rng, listener)
    notes = (f"{draw.n_duplicates} byte-identical images left out.",) if draw.n_duplicates else ()
    return MadeBags(settings.out, tuple(rows), tuple(draw.problems), notes)


def _from_slide_folders(folder: Path, settings: MakeBagsSettings, listener: Listener) -> MadeBags:
    root, labels = Path(settings.source), settings.labels
    assert labels is not None
    slides = split_by_patient(read_labels(labels), settings.test_share, settings.seed)
    # Training slides first, so that it is the test slide that gives up an image that stands in both.
    slides = sorted(slides, key=lambda slide: (slide.split != "train", slide.slide))
    reader = SlideFolderReader(root)
    problems, rows = [], []
    for slide in listener.track(slides, "making bags", unit="slides"):
        info = BagInfo(slide.slide, slide.label, slide.patient_id, source=f"{root.name}/{slide.slide}")
        path = folder / f"{slide.slide}.h5"
        try:
            sha256, n = write_bag(path, info, reader.cells(slide))
        except NotFoundError as error:
            problems.append(Problem(slide.slide, str(error)))
            continue
        if n == 0:
            path.unlink()
            problems.append(Problem(slide.slide, "none of its images can be read"))
            continue
        rows.append(BagRow(slide.slide, path.name, slide.patient_id, slide.split, slide.label, n, None, sha256))
    listed = {slide.slide for slide in slides}
    unlisted = sorted(
        printable(c.name) for c in root.iterdir() if c.is_dir() and not c.name.startswith(".") and c.name not in listed
    )
    problems += [Problem(name, f"has no line in {labels.name}") for name in unlisted]
    if not rows:
        raise BagFileError(f"none of the slides in {labels} could be read: {problems[0].where}: {problems[0].reason}")
    return MadeBags(settings.out, tuple(rows), (*problems, *reader.problems), ())


def _require_bags(settings: MakeBagsSettings) -> None:
    if settings.train_bags + settings.test_bags == 0:
        raise SettingsError("train_bags and test_bags are both 0: nothing to make. Raise one of them.")
