"""Bags of labelled slides: plan them, have them read, and put together what belongs in the folder of bags."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cytomil.bags.bag_file import Bag, BagInfo, Instance, open_bag, write_bag
from cytomil.bags.cell_folder import LEAST_CELLS
from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.copies import copies
from cytomil.bags.finished_slides import FinishedSlide, FinishedSlides, files_of, key_of, put, unfinished
from cytomil.bags.made import MadeBags
from cytomil.bags.manifest import SPLITS, BagRow
from cytomil.bags.patients import LabelledSlide, label_words, read_labels
from cytomil.bags.slide_dir import SharedCells, list_slide_dir, split_by_patient, unlike
from cytomil.bags.whole_slides import ReadingSlides, SlideToRead, candidates, cell_source, locate
from cytomil.errors import BagFileError, NotFoundError, TableError
from cytomil.progress import Listener, Problem
from cytomil.slides import Cutting, Resolutions, read_resolutions
from cytomil.tables import composed
from cytomil.threads import usable_cores
from cytomil.workers import WorkerFailure, open_workers

_CELLS_AT_ONCE = 256
_WORTH_A_PROCESS = 4_000_000
"""Bytes of slides for which another process pays: it takes a second or two to start."""


def from_labelled_slides(folder: Path, settings: MakeBagsConfig, listener: Listener) -> MadeBags:
    """Make one bag a slide of ``settings.labels`` in ``folder``.

    Finished slides are kept in `unfinished` until the caller removes it, and those of an earlier run are not read again.
    Raises `NotFoundError`, `TableError` or `BagFileError` where no bag can be made at all.
    """
    root, labels = Path(settings.source), settings.labels
    assert labels is not None
    listed = read_labels(labels, label_words(settings.positive, settings.negative))
    places, problems = _places(root, listed)
    distinct, copied = _without_copies(labels, listed, places)
    problems += copied
    slides = split_by_patient(distinct, settings.test_share, settings.seed)
    # Training slides first, so that it is the test slide that gives up an image that stands in both.
    slides = sorted(slides, key=_training_first)
    given, unused = _resolutions(settings, listed, places)
    chosen = [slide for slide in slides if slide.slide in places]
    bags = _read_slides(chosen, places, Resolutions(given, settings.mpp), settings, listener)
    gathered = _Gathered(folder)
    for slide, bag in zip(chosen, listener.track(bags, "collecting bags", unit="bags"), strict=True):
        gathered.add(slide, bag)
    problems += gathered.problems
    problems += [Problem(name, f"has no line in {labels.name}") for name in _unlisted(root, listed)]
    problems += [Problem(name, f"its line in {unused[name]} fits no slide of {labels.name}") for name in sorted(unused)]
    rows = gathered.rows
    if not rows:
        raise BagFileError(f"none of the slides in {labels} could be read: {problems[0].where}: {problems[0].reason}")
    notes = (*_note_on_patients(slides), *_note_on_edges(gathered.n_at_edge))
    planned = listed if listed[0].split else slides
    problems += gathered.problems_of_cells
    return MadeBags(settings.out, tuple(rows), tuple(problems), notes, lost_labels(labels, planned, rows))


@dataclass(frozen=True)
class _SlideBag:
    """A slide that was read, now or before: where its files lie, and what its bag is to say."""

    place: Path
    info: BagInfo
    key: str | None
    finished: FinishedSlide
    lies_in: FinishedSlides


def _read_slides(
    slides: Sequence[LabelledSlide],
    places: Mapping[str, Path],
    resolutions: Resolutions,
    settings: MakeBagsConfig,
    listener: Listener,
) -> list[_SlideBag]:
    """Read the slides that no earlier run has finished; returns all of them."""
    root = Path(settings.source)
    cutting = Cutting(settings.crop_um, settings.crop_px, settings.diameter_um)
    here = FinishedSlides(unfinished(settings.out))
    parts = {entry.path: entry.parts for entry in list_slide_dir(root).slides}
    found: dict[str, _SlideBag] = {}
    to_read: list[SlideToRead] = []
    size = 0
    for slide in listener.track(slides, "looking for finished slides", unit="slides"):
        name, place = slide.slide, places[slide.slide]
        cut = None if place.is_dir() else cutting
        info = BagInfo(
            name, slide.label, slide.patient_id, None if cut is None else cut.mpp, f"{root.name}/{name}", cut
        )
        files, key = None, None
        # A slide that cannot be looked at is read all the same, so that its reason is told.
        with suppress(OSError):
            files = files_of(place, parts.get(place, ()))
            key = key_of(name, files, cut, resolutions.of(place) if cut else None)
        earlier = None if key is None else _earlier(name, key, settings.mpp, (here, FinishedSlides(settings.out)))
        if earlier is not None:
            found[name] = _SlideBag(place, info, key, *earlier)
        else:
            to_read.append(SlideToRead(place, info, key))
            size += files.size if files else 0
    if found:
        listener.note(f"{len(found)} of {len(slides)} slides were read before; {len(to_read)} are left to read")
    processes = settings.workers or min(usable_cores(), 1 + size // _WORTH_A_PROCESS)
    workers = open_workers(settings.ray_address, min(processes, len(to_read)))
    job = ReadingSlides(here, resolutions)
    answers = workers.map(job, to_read, listener, "making bags", "slides") if to_read else []
    for one, answer in zip(to_read, answers, strict=True):
        finished = FinishedSlide(reason=answer.reason) if isinstance(answer, WorkerFailure) else answer
        found[one.info.bag_id] = _SlideBag(one.place, one.info, one.key, finished, here)
    return [found[slide.slide] for slide in slides]


def _earlier(
    slide: str, key: str, fallback_mpp: float | None, folders: Sequence[FinishedSlides]
) -> tuple[FinishedSlide, FinishedSlides] | None:
    """A slide that an earlier run finished, and the first of ``folders`` in which it lies whole."""
    for folder in folders:
        finished = folder.read(slide, key, fallback_mpp)
        if finished is not None:
            return finished, folder
    return None


class _Gathered:
    """The folder of bags as it grows. Slides come one by one, training slides first."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[BagRow] = []
        self.problems: list[Problem] = []
        self.problems_of_cells: list[Problem] = []
        self.n_at_edge = 0
        self._into = FinishedSlides(folder)
        self._shared = SharedCells()

    def add(self, slide: LabelledSlide, bag: _SlideBag) -> None:
        """Put a slide's bag and picture into the folder, or say why it has no bag."""
        name, finished = slide.slide, bag.finished
        self.problems_of_cells += finished.problems
        self.n_at_edge += finished.n_at_edge
        if finished.has_picture:
            put(bag.lies_in.picture(name), self._into.picture(name))
        reason = finished.reason or self._add_bag(slide, bag)
        if reason:
            self.problems.append(Problem(name, reason))

    def _add_bag(self, slide: LabelledSlide, bag: _SlideBag) -> str:
        """Returns why there is no bag, or nothing."""
        name, read = slide.slide, open_bag(bag.lies_in.bag(slide.slide))
        target = self._into.bag(name)
        owners: list[LabelledSlide | None] = [None] * len(read)
        if bag.place.is_dir():
            digests = [hashlib.sha256(cell.image).digest() for cell in _cells(read)]
            owners, reason = self._shared.look(slide, digests)
            if reason:
                return reason
        for instance_id, owner in zip(read.instance_ids, owners, strict=True):
            if owner is not None:
                reason = f"the same image stands in the {owner.split} slide {owner.slide}; left out here"
                self.problems_of_cells.append(Problem(cell_source(bag.place, instance_id), reason))
        n = owners.count(None)
        if bag.place.is_dir() and n < LEAST_CELLS:
            return f"too few cells: {n}, at least {LEAST_CELLS} are needed" if n else "none of its images can be read"
        sha256 = read.sha256
        if n == len(read) and read.info == bag.info:
            put(read.path, target)
        else:
            left = (cell for cell, owner in zip(_cells(read), owners, strict=True) if owner is None)
            folder = bag.place if bag.place.is_dir() else None
            sourced = (replace(cell, source=cell_source(folder, cell.instance_id)) if folder else cell for cell in left)
            sha256, _ = write_bag(target, bag.info, sourced)
        if n == len(read) and bag.key is not None:
            self._into.write(name, bag.key, replace(bag.finished, sha256=sha256))
        self.rows.append(BagRow(name, target.name, slide.patient_id, slide.split, slide.label, n, None, sha256))
        return ""


def _cells(bag: Bag) -> Iterator[Instance]:
    """A read slide's cells, some in memory at a time, without where they came from."""
    for start in range(0, len(bag), _CELLS_AT_ONCE):
        for i, image in enumerate(bag.images(start, start + _CELLS_AT_ONCE), start=start):
            x, y = bag.coords[i]
            yield Instance(bag.instance_ids[i], image, (int(x), int(y)))


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
    settings: MakeBagsConfig, slides: Sequence[LabelledSlide], places: Mapping[str, Path]
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


def _unlisted(root: Path, slides: Sequence[LabelledSlide]) -> list[str]:
    """Slides in the folder that no line of the labels file speaks of."""
    listed = {path for slide in slides for path in candidates(root, slide.slide)}
    names = {composed(slide.slide) for slide in slides}
    return [
        one.name
        for one in list_slide_dir(root).slides
        if composed(one.name) not in names and listed.isdisjoint({one.path, one.path.parent, *one.parts})
    ]
