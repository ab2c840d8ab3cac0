"""Which slides of a folder can be measured: those with a label that the model was not fitted to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cytomil.bags.bag_file import BagInfo, open_bag, sha256_of_cells
from cytomil.bags.copies import copies
from cytomil.bags.fitted import Fitted
from cytomil.bags.patients import LabelledSlide
from cytomil.bags.whole_slides import folder_cells
from cytomil.errors import CytomilError, TableError
from cytomil.mil.triage_model import TriageModel
from cytomil.progress import Problem
from cytomil.tables import composed
from cytomil.triage.sources import Found


@dataclass(frozen=True)
class Labelled:
    """A slide of the folder, and its line in the labels file."""

    found: Found
    line: LabelledSlide


def join(labels: Path, lines: Sequence[LabelledSlide], found: Sequence[Found]) -> tuple[list[Labelled], list[Problem]]:
    """The slides that have a label, in the order of ``lines``, and the slides and lines left out.

    A line names a slide as the worklist does, or its file without suffix. Byte-identical copies of a slide are left out.

    Raises:
        TableError: two lines mean one slide, or copies of a slide have different labels.
    """
    by_name: dict[str, list[Found]] = defaultdict(list)
    by_stem: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        by_name[composed(one.name)].append(one)
        if not one.path.is_dir():
            by_stem[composed(one.path.stem)].append(one)
    problems = []
    of: dict[Path, Labelled] = {}
    for line in lines:
        name = composed(line.slide)
        fitting = by_name[name] or by_stem[name]
        if len(fitting) != 1:
            either = " or ".join(one.name for one in fitting)
            reason = f"is {either}: write the suffix in {labels.name}" if fitting else "is not in the folder of slides"
            problems.append(Problem(line.slide, reason))
            continue
        labelled = of.setdefault(fitting[0].path, Labelled(fitting[0], line))
        if labelled.line is not line:
            raise TableError(
                f"{labels}: {labelled.line.slide} and {line.slide} are the same slide, {fitting[0].name}. "
                "Give every slide one line."
            )
    problems += [Problem(one.name, f"has no line in {labels.name}") for one in found if one.path not in of]
    copied = _copies(labels, list(of.values()))
    kept = [one for one in of.values() if one.found.name not in copied]
    return kept, [*problems, *(Problem(name, f"a byte-identical copy of {first}") for name, first in copied.items())]


def _copies(labels: Path, slides: Sequence[Labelled]) -> dict[str, str]:
    """Copy → the slide that it is a copy of."""
    label_of = {one.found.name: one.line.label for one in slides}
    copied = copies({one.found.name: one.found.path for one in slides})
    for name, first in copied.items():
        if label_of[name] != label_of[first]:
            raise TableError(
                f"{labels}: {first} and {name} are the same slide, byte for byte, and have different labels. "
                "Remove one or correct its label."
            )
    return copied


class TrainingSlides:
    """Recognises slides that had a part in fitting a model or its encoder.

    A bag file and a folder of cells are recognised by content, any slide by its patient. A whole slide without a patient
    cannot be recognised, because training kept a hash of its cells only.
    """

    def __init__(self, model: TriageModel) -> None:
        self.are_known = bool(model.card.fitted_to)
        """False for a model of an earlier version, which does not list its training slides."""
        self._fitted = {
            "model": Fitted(model.card.fitted_to),
            "encoder": Fitted(model.encoder.card.data.fitted_to),
        }

    def part_of(self, slide: Labelled) -> str:
        """Why the slide must not be measured; "" if nothing is known against it."""
        identities = list(_identities(slide))
        for what, fitted in self._fitted.items():
            for sha256, patient in identities:
                if seen := fitted.seen(sha256, patient):
                    return f"{seen} had a part in fitting the {what}: left out"
        return ""

    def can_tell(self, slide: Labelled) -> bool:
        """Whether `part_of` would recognise the slide."""
        return self.are_known and (bool(slide.line.patient_id) or _is_folder_or_bag(slide.found))


def _is_folder_or_bag(found: Found) -> bool:
    return found.path.is_dir() or _is_bag(found)


def _is_bag(found: Found) -> bool:
    return found.path.suffix.lower() in (".h5", ".hdf5")


def _identities(slide: Labelled) -> Iterator[tuple[str, str]]:
    """The hash of the bag that training may have had of this slide, "" if unknown, and its patient."""
    line, place = slide.line, slide.found.path
    yield "", line.patient_id
    with suppress(CytomilError):  # rank says what is wrong with the slide
        if place.is_dir():
            info = BagInfo(line.slide, line.label, line.patient_id)
            yield sha256_of_cells(info, folder_cells(place, [])), ""
        elif _is_bag(slide.found):
            bag = open_bag(place)
            yield bag.sha256, bag.info.patient_id
