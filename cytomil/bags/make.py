"""make-bags: choose where cells come from, and replace the folder of bags as a whole."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import BagInfo, write_bag
from cytomil.bags.cell_folder import LEAST_CELLS
from cytomil.bags.class_folders import CellDraw, open_class_folders, require_enough
from cytomil.bags.manifest import MANIFEST_NAME, BagRow, write_manifest
from cytomil.bags.simulate import make_plan, write_simulated_bags
from cytomil.bags.slide_dir import list_slide_dir
from cytomil.bags.slide_folders import LabelledSlide, SlideFolderReader, read_labels, split_by_patient
from cytomil.bags.synthetic import SOURCE as SYNTHETIC
from cytomil.bags.synthetic import synthetic_abnormal, synthetic_normal
from cytomil.bags.whole_slides import cut_cells, locate
from cytomil.errors import (
    BagFileError,
    NoCellsError,
    NotFoundError,
    ResolutionError,
    SettingsError,
    SlideUnreadableError,
    require_folder,
    require_replaceable,
)
from cytomil.files import replacing_folder, safe_name, write_bytes, write_json
from cytomil.progress import Listener, Problem
from cytomil.provenance import now, versions
from cytomil.settings import MakeBagsSettings
from cytomil.slides import Cutting, Resolutions, find_cells, qc_thumbnail, require_enough_cells
from cytomil.text import printable

RECORD_NAME = "make-bags.json"
QC_FOLDER = "qc"


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
    return _from_labelled_slides if settings.labels else _from_class_folders


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


def _from_labelled_slides(folder: Path, settings: MakeBagsSettings, listener: Listener) -> MadeBags:
    root, labels = Path(settings.source), settings.labels
    assert labels is not None
    slides = split_by_patient(read_labels(labels), settings.test_share, settings.seed)
    # Training slides first, so that it is the test slide that gives up an image that stands in both.
    slides = sorted(slides, key=lambda slide: (slide.split != "train", slide.slide))
    cutting = Cutting(settings.crop_um, settings.crop_px, settings.diameter_um)
    given = {slide.slide: slide.mpp for slide in slides if slide.mpp is not None}
    resolutions = Resolutions(given, settings.mpp)
    reader = SlideFolderReader(root)
    problems, rows, used = [], [], set()
    for slide in listener.track(slides, "making bags", unit="slides"):
        info = BagInfo(slide.slide, slide.label, slide.patient_id, source=f"{root.name}/{slide.slide}")
        path = folder / f"{slide.slide}.h5"
        try:
            place = locate(root, slide.slide)
            used.add(place.name)
            if place.is_dir():
                sha256, n = write_bag(path, info, reader.cells(slide))
            else:
                sha256, n = _write_whole_slide(
                    path, replace(info, mpp=cutting.mpp, cutting=cutting), place, resolutions
                )
        except _FAULTS_OF_A_SLIDE as error:
            problems.append(Problem(slide.slide, str(error)))
            continue
        if n < LEAST_CELLS:
            path.unlink()
            few = f"too few cells: {n}, at least {LEAST_CELLS} are needed" if n else "none of its images can be read"
            problems.append(Problem(slide.slide, few))
            continue
        rows.append(BagRow(slide.slide, path.name, slide.patient_id, slide.split, slide.label, n, None, sha256))
    problems += [Problem(name, f"has no line in {labels.name}") for name in _unlisted(root, slides, used)]
    if not rows:
        raise BagFileError(f"none of the slides in {labels} could be read: {problems[0].where}: {problems[0].reason}")
    return MadeBags(settings.out, tuple(rows), (*problems, *reader.problems), ())


_FAULTS_OF_A_SLIDE = (NotFoundError, SlideUnreadableError, ResolutionError, NoCellsError)


def _write_whole_slide(path: Path, info: BagInfo, file: Path, resolutions: Resolutions) -> tuple[str, int]:
    """Write one slide's bag, and beside the bags the picture that shows which cells were found."""
    assert info.cutting is not None
    with resolutions.open(file) as slide:
        cells = find_cells(file, info.cutting.finding, slide.mpp)
        buffer = io.BytesIO()
        qc_thumbnail(slide, cells).save(buffer, "JPEG", quality=85)
        write_bytes(path.parent / QC_FOLDER / f"{safe_name(info.bag_id)}.jpg", buffer.getvalue())
        require_enough_cells(file, cells, info.cutting.finding)
        return write_bag(path, info, cut_cells(slide, cells, info.cutting))


def _unlisted(root: Path, slides: Sequence[LabelledSlide], used: Collection[str]) -> list[str]:
    """Slides in the folder that no line of the labels file speaks of."""
    listed = {printable(name) for name in (*(slide.slide for slide in slides), *used)}
    return [
        one.name
        for one in list_slide_dir(root).slides
        if listed.isdisjoint({one.name, *(printable(part.name) for part in one.parts)})
    ]


def _require_bags(settings: MakeBagsSettings) -> None:
    if settings.train_bags + settings.test_bags == 0:
        raise SettingsError("train_bags and test_bags are both 0: nothing to make. Raise one of them.")
