"""Bags of labelled slides: plan the splits, read the slides in parallel, and assemble the folder of bags."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cytomil.bags.bag_file import Bag, BagInfo, Instance, open_bag, write_bag
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.images import MIN_CELLS
from cytomil.bags.manifest import SPLITS, BagRow, MadeBags
from cytomil.bags.patients import LabelledSlide, label_words, read_labels
from cytomil.bags.slide_dir import SharedCells, copy_warning, list_slide_dir, split_by_patient
from cytomil.bags.whole_slides import (
    FinishedSlide,
    FinishedSlides,
    ReadingSlides,
    SlideToRead,
    candidates,
    cell_source,
    files_of,
    key_of,
    locate,
    put,
    unfinished,
)
from cytomil.errors import BagFileError, NotFoundError, TableError
from cytomil.files import sha256_of_file
from cytomil.progress import Listener, Problem
from cytomil.slides import Cutting, Resolutions, read_resolutions
from cytomil.tables import composed
from cytomil.threads import usable_cores
from cytomil.workers import WorkerFailure, open_workers


def copies(paths: Mapping[str, Path]) -> dict[str, str]:
    """Map the name of each slide that is a copy of an earlier one to the earlier one's name.

    ``paths`` maps names to slide files or folders of cell images; the first of several copies is the original. In a
    folder, the bytes of the images are compared, not their names. Files are read only if all their sizes are equal.
    """
    first: dict[str, str] = {}
    filled = {name: path for name, path in paths.items() if next(_files_of(path), None)}
    for group in _group_by(filled, _sizes):
        if len(group) > 1:
            for same in _group_by({name: paths[name] for name in group}, _contents):
                first |= dict.fromkeys(same[1:], same[0])
    return first


def _group_by(paths: Mapping[str, Path], key: Callable[[Path], Hashable]) -> list[list[str]]:
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name, path in paths.items():
        groups[key(path)].append(name)
    return list(groups.values())


def _sizes(path: Path) -> Hashable:
    return path.is_dir(), tuple(sorted(file.stat().st_size for file in _files_of(path)))


def _contents(path: Path) -> Hashable:
    try:
        return tuple(sorted(map(sha256_of_file, _files_of(path))))
    except OSError:
        return path  # an unreadable slide does not count as a copy; making its bag reports it


def _files_of(path: Path) -> Iterator[Path]:
    """The files of a slide, including the companion folder of an .mrxs file."""
    if path.is_file():
        yield path
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    if folder.is_dir():
        yield from sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


_CELLS_AT_ONCE = 256
_MIN_BYTES_PER_PROCESS = 4_000_000
"""Min bytes of slides per process. For fewer, starting a process, up to a second, takes longer than it saves."""


def from_labelled_slides(folder: Path, settings: MakeBagsConfig, listener: Listener) -> MadeBags:
    """Make one bag per slide of ``settings.labels`` in ``folder``.

    Finished slides are kept in `unfinished` until the caller removes it. Those of an earlier run are not read again.

    Raises `NotFoundError`, `TableError` or `BagFileError` if no bag can be made.
    """
    root, labels = Path(settings.source), settings.labels
    assert labels is not None
    listed = read_labels(labels, label_words(settings.positive, settings.negative))
    paths, problems = _paths(root, listed)
    distinct, copied = _without_copies(labels, listed, paths)
    problems += copied
    slides = split_by_patient(distinct, settings.test_fraction, settings.seed)
    # Training slides first: an image in both splits is then left out of the test slide.
    slides = sorted(slides, key=_training_first)
    given, unused = _resolutions(settings, listed, paths)
    chosen = [slide for slide in slides if slide.slide in paths]
    bags = _read_slides(chosen, paths, Resolutions(given, settings.mpp), settings, listener)
    collected = _BagFolder(folder)
    for slide, bag in zip(chosen, listener.track(bags, "collecting bags", unit="bags"), strict=True):
        collected.add(slide, bag)
    problems += collected.problems
    problems += [Problem(name, f"has no line in {labels.name}") for name in _unlisted(root, listed)]
    problems += [
        Problem(name, f"its line in {unused[name]} matches no slide of {labels.name}") for name in sorted(unused)
    ]
    rows = collected.rows
    if not rows:
        raise BagFileError(f"none of the slides in {labels} could be read: {problems[0].where}: {problems[0].reason}")
    notes = (*_note_on_patients(slides), *_note_on_edges(collected.n_at_edge))
    planned = listed if listed[0].split else slides
    problems += collected.problems_of_cells
    return MadeBags(settings.out, tuple(rows), tuple(problems), notes, unused_labels(labels, planned, rows))


@dataclass(frozen=True)
class _SlideBag:
    """A slide that this run or an earlier one has read, the metadata of its bag, and the folder that holds its files."""

    path: Path
    info: BagInfo
    key: str | None
    finished: FinishedSlide
    folder: FinishedSlides


def _read_slides(
    slides: Sequence[LabelledSlide],
    paths: Mapping[str, Path],
    resolutions: Resolutions,
    settings: MakeBagsConfig,
    listener: Listener,
) -> list[_SlideBag]:
    """Read the slides that no earlier run has finished. Returns all slides in the order of ``slides``."""
    root = Path(settings.source)
    cutting = Cutting(settings.crop_um, settings.crop_px, settings.diameter_um)
    here = FinishedSlides(unfinished(settings.out))
    parts = {entry.path: entry.parts for entry in list_slide_dir(root).slides}
    bags: dict[str, _SlideBag] = {}
    to_read: list[SlideToRead] = []
    size = 0
    for slide in listener.track(slides, "looking for finished slides", unit="slides"):
        name, path = slide.slide, paths[slide.slide]
        cut = None if path.is_dir() else cutting
        info = BagInfo(
            name, slide.label, slide.patient_id, None if cut is None else cut.mpp, f"{root.name}/{name}", cut
        )
        files, key = None, None
        # If the files cannot be listed, reading the slide fails too and reports the reason.
        with suppress(OSError):
            files = files_of(path, parts.get(path, ()))
            key = key_of(name, files, cut, resolutions.of(path) if cut else None)
        earlier = None if key is None else _earlier(name, key, settings.mpp, (here, FinishedSlides(settings.out)))
        if earlier is not None:
            bags[name] = _SlideBag(path, info, key, *earlier)
        else:
            to_read.append(SlideToRead(path, info, key))
            size += files.size if files else 0
    if bags:
        listener.note(f"{len(bags)} of {len(slides)} slides were read before, {len(to_read)} remain")
    processes = settings.workers or min(usable_cores(), 1 + size // _MIN_BYTES_PER_PROCESS)
    workers = open_workers(settings.ray_address, max(1, min(processes, len(to_read))))
    job = ReadingSlides(here, resolutions)
    answers = workers.map(job, to_read, listener, "making bags", "slides") if to_read else []
    for one, answer in zip(to_read, answers, strict=True):
        finished = FinishedSlide(reason=answer.reason) if isinstance(answer, WorkerFailure) else answer
        bags[one.info.bag_id] = _SlideBag(one.path, one.info, one.key, finished, here)
    return [bags[slide.slide] for slide in slides]


def _earlier(
    slide: str, key: str, fallback_mpp: float | None, folders: Sequence[FinishedSlides]
) -> tuple[FinishedSlide, FinishedSlides] | None:
    """A slide that an earlier run finished, and the first of ``folders`` with all its files. None if no folder has them."""
    for folder in folders:
        finished = folder.read(slide, key, fallback_mpp)
        if finished is not None:
            return finished, folder
    return None


class _BagFolder:
    """Assembles the folder of bags. Slides are added one by one, training slides first."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[BagRow] = []
        self.problems: list[Problem] = []
        self.problems_of_cells: list[Problem] = []
        self.n_at_edge = 0
        self._into = FinishedSlides(folder)
        self._shared = SharedCells()

    def add(self, slide: LabelledSlide, bag: _SlideBag) -> None:
        """Add a slide's bag and picture to the folder, or record why it has no bag."""
        name, finished = slide.slide, bag.finished
        self.problems_of_cells += finished.problems
        self.n_at_edge += finished.n_at_edge
        if finished.has_picture:
            put(bag.folder.picture(name), self._into.picture(name))
        reason = finished.reason or self._add_bag(slide, bag)
        if reason:
            self.problems.append(Problem(name, reason))

    def _add_bag(self, slide: LabelledSlide, bag: _SlideBag) -> str:
        """Add the slide's bag. Returns the reason if it cannot be added, else an empty text."""
        name, source = slide.slide, open_bag(bag.folder.bag(slide.slide))
        target = self._into.bag(name)
        owners: list[LabelledSlide | None] = [None] * len(source)
        if bag.path.is_dir():
            digests = [hashlib.sha256(cell.image).digest() for cell in _cells(source)]
            owners, reason = self._shared.add(slide, digests)
            if reason:
                return reason
        for instance_id, owner in zip(source.instance_ids, owners, strict=True):
            if owner is not None:
                reason = f"the same image is in the {owner.split} slide {owner.slide}; left out here"
                self.problems_of_cells.append(Problem(cell_source(bag.path, instance_id), reason))
        n = owners.count(None)
        if bag.path.is_dir() and n < MIN_CELLS:
            return f"too few cells: {n}, at least {MIN_CELLS} are needed" if n else "none of its images can be read"
        sha256 = source.sha256
        if n == len(source) and source.info == bag.info:
            put(source.path, target)
        else:
            kept = (cell for cell, owner in zip(_cells(source), owners, strict=True) if owner is None)
            folder = bag.path if bag.path.is_dir() else None
            sourced = (replace(cell, source=cell_source(folder, cell.instance_id)) if folder else cell for cell in kept)
            sha256, _ = write_bag(target, bag.info, sourced)
        if n == len(source) and bag.key is not None:
            self._into.write(name, bag.key, replace(bag.finished, sha256=sha256))
        self.rows.append(BagRow(name, target.name, slide.patient_id, slide.split, slide.label, n, None, sha256))
        return ""


def _cells(bag: Bag) -> Iterator[Instance]:
    """The cells of a slide's bag, without their sources, `_CELLS_AT_ONCE` in memory at a time."""
    for start in range(0, len(bag), _CELLS_AT_ONCE):
        for i, image in enumerate(bag.images(start, start + _CELLS_AT_ONCE), start=start):
            x, y = bag.coords[i]
            yield Instance(bag.instance_ids[i], image, (int(x), int(y)))


def _training_first(slide: LabelledSlide) -> tuple[bool, str]:
    return slide.split != "train", slide.slide


def _paths(root: Path, slides: Sequence[LabelledSlide]) -> tuple[dict[str, Path], list[Problem]]:
    """The path of each slide, and the slides with no path or several. Raises `TableError` if two slides share a path."""
    paths: dict[str, Path] = {}
    problems = []
    name_of: dict[Path, str] = {}
    for slide in slides:
        try:
            path = locate(root, slide.slide)
        except NotFoundError as error:
            problems.append(Problem(slide.slide, str(error)))
            continue
        other = name_of.setdefault(path, slide.slide)
        if other != slide.slide:
            raise TableError(f"{other} and {slide.slide} are the same slide, {path}. Give every slide one line.")
        paths[slide.slide] = path
    return paths, problems


def _without_copies(
    labels: Path, slides: Sequence[LabelledSlide], paths: Mapping[str, Path]
) -> tuple[list[LabelledSlide], list[Problem]]:
    """The slides without byte-identical copies, and the copies that are left out.

    If a training slide and a test slide are copies of each other, the test slide is left out.

    Raises `TableError` if a copy has another label, because either label may be wrong.
    """
    by_name = {slide.slide: slide for slide in slides}
    ordered = [slide.slide for slide in sorted(slides, key=_training_first) if slide.slide in paths]
    first = copies({name: paths[name] for name in ordered})
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
            f"left out{copy_warning(by_name[name], by_name[other])}",
        )
        for name, other in sorted(first.items())
    ]
    return [slide for slide in slides if slide.slide not in first], problems


def _resolutions(
    settings: MakeBagsConfig, slides: Sequence[LabelledSlide], paths: Mapping[str, Path]
) -> tuple[dict[str, float], dict[str, str]]:
    """µm per pixel by slide, from the labels file and ``settings.mpp_csv``.

    Also returns the slides of ``settings.mpp_csv`` that match no slide, each with the name of that file. Raises `TableError`
    if the two files differ.
    """
    given = {slide.slide: slide.mpp for slide in slides if slide.mpp is not None}
    if settings.mpp_csv is None:
        return given, {}
    table = Resolutions(read_resolutions(settings.mpp_csv))
    known_names = {composed(name) for path in paths.values() for name in (path.name, path.stem)}
    for name, path in paths.items():
        mpp = table.of(path)
        if mpp is not None and given.setdefault(name, mpp) != mpp:
            raise TableError(
                f"{settings.labels} gives {name} {given[name]:g} µm/px, {settings.mpp_csv} gives {mpp:g}. Remove one."
            )
    return given, {name: settings.mpp_csv.name for name in table.by_slide if name not in known_names}


def _note_on_edges(n: int) -> tuple[str, ...]:
    return (f"{n:,} cells at the edge of the scanned area left out.",) if n else ()


def _note_on_patients(slides: Sequence[LabelledSlide]) -> tuple[str, ...]:
    unknown = sum(not slide.patient_id for slide in slides)
    if not unknown:
        return ()
    which = "no slide has a patient" if unknown == len(slides) else f"{unknown} of {len(slides)} slides have no patient"
    return (
        f"{which}: each such slide counts as its own patient. Add a column 'patient' to keep each patient in one split.",
    )


_WITHOUT = {
    "train": "pretrain and fit-mil need both labels.",
    "test": "evaluate needs both labels for the AUROC.",
}


def unused_labels(labels: Path, slides: Sequence[LabelledSlide], rows: Sequence[BagRow]) -> tuple[str, ...]:
    """One message per split that has no bags, or no bags of one label."""
    found = []
    for split in SPLITS:
        lost = [label for label in (0, 1) if not any((row.split, row.label) == (split, label) for row in rows)]
        planned = {label: sum((s.split, s.label) == (split, label) for s in slides) for label in lost}
        what = "bag" if len(lost) == 2 else "".join(("negative bag", "positive bag")[label] for label in lost)
        if not lost:
            continue
        n = sum(planned.values())
        why = f"none of {n} could be used" if n else f"{labels.name} has none"
        found.append(f"The {split} split has no {what} (label {' or '.join(map(str, lost))}): {why}. {_WITHOUT[split]}")
    return tuple(found)


def _unlisted(root: Path, slides: Sequence[LabelledSlide]) -> list[str]:
    """Slides in the folder that have no line in the labels file."""
    listed = {entry for slide in slides for entry in candidates(root, slide.slide)}
    names = {composed(slide.slide) for slide in slides}
    return [
        one.name
        for one in list_slide_dir(root).slides
        if composed(one.name) not in names and listed.isdisjoint({one.path, one.path.parent, *one.parts})
    ]
