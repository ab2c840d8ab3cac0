"""make-bags: choose where cells come from, and replace the folder of bags as a whole."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import BagInfo, write_bag
from cytomil.bags.cell_folder import LEAST_CELLS
from cytomil.bags.class_folders import CellDraw, ClassFolders, open_class_folders, require_enough
from cytomil.bags.copies import copies
from cytomil.bags.labels import LabelledSlide, label_words, read_labels
from cytomil.bags.manifest import MANIFEST_NAME, SPLITS, BagRow, write_manifest
from cytomil.bags.patients import PatientDraw, patients_cells
from cytomil.bags.simulate import Plan, Supply, make_plan, write_simulated_bags
from cytomil.bags.slide_dir import list_slide_dir
from cytomil.bags.slide_folders import SlideFolderReader, split_by_patient, unlike
from cytomil.bags.synthetic import SOURCE as SYNTHETIC
from cytomil.bags.synthetic import synthetic_abnormal, synthetic_normal
from cytomil.bags.whole_slides import candidates, cut_cells, locate
from cytomil.errors import (
    BagFileError,
    NoCellsError,
    NotFoundError,
    ResolutionError,
    SettingsError,
    SlideUnreadableError,
    TableError,
    require_replaceable,
)
from cytomil.files import replacing_folder, safe_name, write_bytes, write_json
from cytomil.progress import Listener, Problem
from cytomil.provenance import now, versions
from cytomil.settings import MakeBagsSettings
from cytomil.slides import (
    Cutting,
    Resolutions,
    find_cells,
    qc_thumbnail,
    read_resolutions,
    require_enough_cells,
)
from cytomil.tables import composed

RECORD_NAME = "make-bags.json"
QC_FOLDER = "qc"


@dataclass(frozen=True)
class MadeBags:
    """What make-bags wrote, and what it had to leave out."""

    folder: Path
    rows: tuple[BagRow, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def make_bags(settings: MakeBagsSettings, listener: Listener) -> MadeBags:
    """Make the bags and their manifest; the folder is replaced whole, or left as it was if anything fails.

    Raises `NotFoundError`, `NotEnoughCellsError`, `BagFileError` or `SettingsError`, each with what to do.
    """
    require_replaceable(settings.out, MANIFEST_NAME, _own_files(settings.out))
    make = _choose(settings)
    with replacing_folder(settings.out) as folder:
        made = make(folder, settings, listener)
        write_manifest(folder, made.rows)
        record = {
            "settings": settings.model_dump(mode="json", exclude={"out"}),
            "made": now(),
            "versions": versions(),
            "notes": made.notes,
            "warnings": made.warnings,
            "left_out": [[problem.where, problem.reason] for problem in made.problems],
        }
        write_json(folder / RECORD_NAME, record)
    return made


def _own_files(folder: Path) -> list[str]:
    """Patterns of what an earlier run wrote: bags that its manifest names, and what goes with them."""
    try:
        manifest = (folder / MANIFEST_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        manifest = ""
    bags = [glob.escape(path.name) for path in folder.glob("*.h5") if path.name in manifest]
    return [MANIFEST_NAME, RECORD_NAME, f"{QC_FOLDER}/*.jpg", *bags]


def _choose(settings: MakeBagsSettings) -> Callable[[Path, MakeBagsSettings, Listener], MadeBags]:
    if settings.source == SYNTHETIC:
        return _from_synthetic
    _require_source(Path(settings.source))
    if settings.labels is None and (settings.positive or settings.negative):
        raise SettingsError("--positive and --negative are words of a labels file: give it with --labels.")
    if settings.labels is not None and settings.patients is not None:
        raise SettingsError(
            "--patients is for class folders: labelled slides have a column 'patient' in the labels file."
        )
    return _from_labelled_slides if settings.labels else _from_class_folders


def _require_source(source: Path) -> None:
    if not source.is_dir():
        state = "is a file, not a folder" if source.exists() else "does not exist"
        raise NotFoundError(
            f"{source} {state}. Name a folder of class folders, of slides or of slide folders; or 'synthetic' for cells "
            "that a program draws."
        )


def _from_synthetic(folder: Path, settings: MakeBagsSettings, listener: Listener) -> MadeBags:
    _require_bags(settings)
    rng = np.random.default_rng(settings.seed)
    plan = make_plan(settings.bag_size, settings.witness_rate, settings.train_bags, settings.test_bags, rng)
    normal = synthetic_normal(settings.seed, settings.cell_size, settings.difficulty)
    abnormal = synthetic_abnormal(settings.seed, settings.cell_size, settings.difficulty)
    rows = write_simulated_bags(folder, plan, repeat(Supply(normal, abnormal)), SYNTHETIC, rng, listener)
    return MadeBags(settings.out, tuple(rows), (), ("These cells are synthetic: drawn by a program, of no patient.",))


def _from_class_folders(folder: Path, settings: MakeBagsSettings, listener: Listener) -> MadeBags:
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
    settings: MakeBagsSettings,
    classes: ClassFolders,
    plan: Plan,
    rng: np.random.Generator,
    listener: Listener,
) -> MadeBags:
    assert settings.patients is not None
    cells, problems = patients_cells(classes, settings.patients)
    draw = PatientDraw(classes.root, cells, rng)
    given = draw.assign(plan)
    rows = write_simulated_bags(folder, plan, draw.bags(given), classes.root.name, rng, listener)
    left_out = (*classes.left_out, *problems, *draw.problems)
    return MadeBags(settings.out, tuple(rows), left_out, draw.notes(plan, given))


def _from_labelled_slides(folder: Path, settings: MakeBagsSettings, listener: Listener) -> MadeBags:
    root, labels = Path(settings.source), settings.labels
    assert labels is not None
    listed = read_labels(labels, label_words(settings.positive, settings.negative))
    places, problems = _places(root, listed)
    distinct, copied = _without_copies(labels, listed, places)
    problems += copied
    slides = split_by_patient(distinct, settings.test_share, settings.seed)
    # Training slides first, so that it is the test slide that gives up an image that stands in both.
    slides = sorted(slides, key=_training_first)
    cutting = Cutting(settings.crop_um, settings.crop_px, settings.diameter_um)
    given, unused = _resolutions(settings, listed, places)
    resolutions = Resolutions(given, settings.mpp)
    reader = SlideFolderReader(root)
    rows = []
    n_at_edge = 0
    for slide in listener.track(slides, "making bags", unit="slides"):
        place = places.get(slide.slide)
        if place is None:
            continue
        info = BagInfo(slide.slide, slide.label, slide.patient_id, source=f"{root.name}/{slide.slide}")
        path = folder / f"{slide.slide}.h5"
        reason = ""
        try:
            if place.is_dir():
                sha256, n = write_bag(path, info, reader.cells(slide, place))
                reason = reader.copy_of(slide) or _too_few(n)
            else:
                sha256, n, at_edge = _write_whole_slide(
                    path, replace(info, mpp=cutting.mpp, cutting=cutting), place, resolutions
                )
                n_at_edge += at_edge
        except _FAULTS_OF_A_SLIDE as error:
            problems.append(Problem(slide.slide, str(error)))
            continue
        if reason:
            path.unlink()
            problems.append(Problem(slide.slide, reason))
            continue
        rows.append(BagRow(slide.slide, path.name, slide.patient_id, slide.split, slide.label, n, None, sha256))
    problems += [Problem(name, f"has no line in {labels.name}") for name in _unlisted(root, listed)]
    problems += [Problem(name, f"its line in {unused[name]} fits no slide of {labels.name}") for name in sorted(unused)]
    if not rows:
        raise BagFileError(f"none of the slides in {labels} could be read: {problems[0].where}: {problems[0].reason}")
    notes = (*_note_on_patients(slides), *_note_on_edges(n_at_edge))
    planned = listed if listed[0].split else slides
    return MadeBags(settings.out, tuple(rows), (*problems, *reader.problems), notes, lost_labels(labels, planned, rows))


def _too_few(n: int) -> str:
    if n >= LEAST_CELLS:
        return ""
    return f"too few cells: {n}, at least {LEAST_CELLS} are needed" if n else "none of its images can be read"


def _training_first(slide: LabelledSlide) -> tuple[bool, str]:
    return slide.split != "train", slide.slide


def _places(root: Path, slides: Sequence[LabelledSlide]) -> tuple[dict[str, Path], list[Problem]]:
    """Where each slide lies, and those of which there is none or more than one. Raises `TableError` for two of one place."""
    places: dict[str, Path] = {}
    problems = []
    name_of: dict[Path, str] = {}
    for slide in slides:
        try:
            place = locate(root, slide.slide)
        except NotFoundError as error:
            problems.append(Problem(slide.slide, str(error)))
            continue
        other = name_of.setdefault(place, slide.slide)
        if other != slide.slide:
            raise TableError(f"{other} and {slide.slide} are the same slide, {place}. Give every slide one line.")
        places[slide.slide] = place
    return places, problems


def _without_copies(
    labels: Path, slides: Sequence[LabelledSlide], places: Mapping[str, Path]
) -> tuple[list[LabelledSlide], list[Problem]]:
    """The slides but for byte-identical copies of others, test slides' first, and what was left out.

    Raises `TableError` where a copy has another label: nobody can say which is right.
    """
    by_name = {slide.slide: slide for slide in slides}
    ordered = [slide.slide for slide in sorted(slides, key=_training_first) if slide.slide in places]
    first = copies({name: places[name] for name in ordered})
    for name, other in first.items():
        if by_name[name].label != by_name[other].label:
            raise TableError(
                f"{labels}: {other} and {name} are the same slide, byte for byte, and are labelled "
                f"{by_name[other].label} and {by_name[name].label}. Remove one or correct its label."
            )
    problems = [
        Problem(
            name,
            f"a byte-identical copy of {f'the {by_name[other].split} slide ' if by_name[other].split else ''}{other}; "
            f"left out{unlike(by_name[name], by_name[other])}",
        )
        for name, other in sorted(first.items())
    ]
    return [slide for slide in slides if slide.slide not in first], problems


def _resolutions(
    settings: MakeBagsSettings, slides: Sequence[LabelledSlide], places: Mapping[str, Path]
) -> tuple[dict[str, float], dict[str, str]]:
    """µm per pixel by slide, of the labels file and of the table of resolutions; and lines of the latter that fit no slide.

    Raises `TableError` where the two differ.
    """
    given = {slide.slide: slide.mpp for slide in slides if slide.mpp is not None}
    if settings.mpp_csv is None:
        return given, {}
    table = Resolutions(read_resolutions(settings.mpp_csv))
    fitting = {composed(name) for place in places.values() for name in (place.name, place.stem)}
    for name, place in places.items():
        mpp = table.of(place)
        if mpp is not None and given.setdefault(name, mpp) != mpp:
            raise TableError(
                f"{settings.labels} gives {name} {given[name]:g} µm/px, {settings.mpp_csv} {mpp:g}. Leave one."
            )
    return given, {name: settings.mpp_csv.name for name in table.by_slide if name not in fitting}


def _note_on_edges(n: int) -> tuple[str, ...]:
    return (f"{n:,} cells at the edge of what was scanned left out.",) if n else ()


def _note_on_patients(slides: Sequence[LabelledSlide]) -> tuple[str, ...]:
    unknown = sum(not slide.patient_id for slide in slides)
    if not unknown:
        return ()
    which = "no slide has a patient" if unknown == len(slides) else f"{unknown} of {len(slides)} slides have no patient"
    return (f"{which}: each such slide counts as a person of its own. A column 'patient' keeps a person on one side.",)


_WITHOUT = {
    "train": "pretrain and fit-mil need both labels.",
    "test": "evaluate can give no AUROC without both.",
}


def lost_labels(labels: Path, slides: Sequence[LabelledSlide], rows: Sequence[BagRow]) -> tuple[str, ...]:
    """What a split lacks to be of use, one sentence each: all its bags, or all of one label."""
    found = []
    for split in SPLITS:
        lost = [label for label in (0, 1) if not any((row.split, row.label) == (split, label) for row in rows)]
        planned = {label: sum((s.split, s.label) == (split, label) for s in slides) for label in lost}
        what = "bag at all" if len(lost) == 2 else "".join(("negative bag", "positive bag")[label] for label in lost)
        if not lost:
            continue
        n = sum(planned.values())
        why = f"none of {n} could be used" if n else f"{labels.name} puts none there"
        found.append(f"The {split} split has no {what} (label {' or '.join(map(str, lost))}): {why}. {_WITHOUT[split]}")
    return tuple(found)


_FAULTS_OF_A_SLIDE = (NotFoundError, SlideUnreadableError, ResolutionError, NoCellsError)


def _write_whole_slide(path: Path, info: BagInfo, file: Path, resolutions: Resolutions) -> tuple[str, int, int]:
    """Write one slide's bag, and beside the bags the picture that shows which cells were found.

    Returns the bag's SHA-256, its number of cells, and how many more lie at the edge and were left out.
    """
    assert info.cutting is not None
    with resolutions.open(file) as slide:
        cells = find_cells(file, info.cutting.finding, slide.mpp, crop_um=info.cutting.crop_um)
        buffer = io.BytesIO()
        qc_thumbnail(slide, cells).save(buffer, "JPEG", quality=85)
        write_bytes(path.parent / QC_FOLDER / f"{safe_name(info.bag_id)}.jpg", buffer.getvalue())
        require_enough_cells(file, cells, info.cutting.finding)
        sha256, n = write_bag(path, info, cut_cells(slide, cells.whole, info.cutting))
        return sha256, n, int(cells.at_edge.sum())


def _unlisted(root: Path, slides: Sequence[LabelledSlide]) -> list[str]:
    """Slides in the folder that no line of the labels file speaks of."""
    listed = {path for slide in slides for path in candidates(root, slide.slide)}
    names = {composed(slide.slide) for slide in slides}
    return [
        one.name
        for one in list_slide_dir(root).slides
        if composed(one.name) not in names and listed.isdisjoint({one.path, one.path.parent, *one.parts})
    ]


def _require_bags(settings: MakeBagsSettings) -> None:
    if settings.train_bags + settings.test_bags == 0:
        raise SettingsError("train_bags and test_bags are both 0: nothing to make. Raise one of them.")
