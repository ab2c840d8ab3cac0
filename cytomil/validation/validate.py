"""validate: rank labelled slides, and compare the model's probabilities and calls with their labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cytomil.bags.bag_file import BagInfo, open_bag, sha256_of_cells
from cytomil.bags.labelled_slides import copies
from cytomil.bags.manifest import Fitted
from cytomil.bags.patients import LabelledSlide, LabelWords, read_labels
from cytomil.bags.whole_slides import folder_cells
from cytomil.errors import CytomilError, EvaluationError, SettingsError, TableError
from cytomil.evaluation.intervals import calibration_points
from cytomil.evaluation.record import roc_curve_points
from cytomil.files import sha256_of_file, write_text
from cytomil.mil.intervals import n_independent
from cytomil.mil.triage_model import TriageCard, TriageModel, Weakness, load_triage_model
from cytomil.progress import Listener, Problem
from cytomil.tables import composed, csv_text
from cytomil.text import printable
from cytomil.triage.config import RankConfig
from cytomil.triage.rank import rank
from cytomil.triage.sources import SlideEntry, discover
from cytomil.triage.worklist import Worklist
from cytomil.validation.figures import (
    Figure,
    LocalThresholds,
    MeasuredSlide,
    figures_of,
    local_thresholds,
    too_few,
)


@dataclass(frozen=True)
class Labelled:
    """A slide of the folder, and its line in the labels file."""

    found: SlideEntry
    line: LabelledSlide


def join(
    labels: Path, lines: Sequence[LabelledSlide], found: Sequence[SlideEntry]
) -> tuple[list[Labelled], list[Problem]]:
    """The slides that have a label, in the order of ``lines``, and the slides and lines left out.

    A line names a slide as the worklist does, or its file without suffix. Byte-identical copies of a slide are left out.

    Raises:
        TableError: two lines mean one slide, or copies of a slide have different labels.
    """
    by_name: dict[str, list[SlideEntry]] = defaultdict(list)
    by_stem: dict[str, list[SlideEntry]] = defaultdict(list)
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


def _is_folder_or_bag(found: SlideEntry) -> bool:
    return found.path.is_dir() or _is_bag(found)


def _is_bag(found: SlideEntry) -> bool:
    return found.path.suffix.lower() in (".h5", ".hdf5")


def _identities(slide: Labelled) -> Iterator[tuple[str, str]]:
    """The hash of the bag that training may have had of this slide, "" if unknown, and its patient."""
    line, place = slide.line, slide.found.path
    yield "", line.patient_id
    with suppress(CytomilError):  # rank reports the fault of the slide
        if place.is_dir():
            info = BagInfo(line.slide, line.label, line.patient_id)
            yield sha256_of_cells(info, folder_cells(place, [])), ""
        elif _is_bag(slide.found):
            bag = open_bag(place)
            yield bag.sha256, bag.info.patient_id


_SENSITIVITY = 0.95  # for models without a record of the sensitivity that their low threshold was chosen for
_MPP_NAME = "mpp.csv"


@dataclass(frozen=True)
class Validation:
    """A model measured on labelled slides.

    Args:
        worklist: of the slides that were ranked.
        card: of the model.
        model: folder of the model, as text.
        labels: the labels file, as text, and ``labels_sha256`` its hash.
        slides: those that were measured.
        left_out: slides, and lines of the labels file, that were not.
        figures: with intervals.
        proposed: thresholds that would suit the slides; None if they have one label only.
        roc: rows of `roc_curve_points`.
        calibration: rows of `calibration_points`.
        warnings: what a reader must know before any figure, worst first.
        uncompared: number of measured slides that would not be recognised as training slides.
    """

    worklist: Worklist
    card: TriageCard
    model: str
    labels: str
    labels_sha256: str
    slides: tuple[MeasuredSlide, ...]
    left_out: tuple[Problem, ...]
    figures: tuple[Figure, ...]
    proposed: LocalThresholds | None
    roc: list[dict[str, float]]
    calibration: list[dict[str, float]]
    warnings: tuple[Weakness, ...]
    uncompared: int

    @property
    def n_diseased(self) -> int:
        """The number of measured slides with label 1."""
        return sum(one.label for one in self.slides)

    @property
    def n_unlike(self) -> int:
        """The number of measured slides that are unlike the training slides."""
        return sum(one.is_unlike for one in self.slides)

    @property
    def unreadable_cells(self) -> tuple[Problem, ...]:
        """The measured slides of which some cells could not be read."""
        return tuple(
            Problem(one.slide, f"{one.n_unreadable} of its cells could not be read")
            for one in self.worklist.slides
            if one.n_unreadable and one.probability is not None
        )

    @property
    def patients(self) -> tuple[int, int]:
        """The number of diseased and of healthy patients. A slide of unknown patient counts as one."""
        return n_independent([one.label for one in self.slides], [one.patient_id for one in self.slides])


def validate(slide_dir: Path, labels: Path, words: LabelWords, settings: RankConfig, listener: Listener) -> Validation:
    """Measure the model of ``settings`` on the slides in ``slide_dir`` that have a line in ``labels``.

    Training slides of the model, their patients' slides, and byte-identical copies are left out. Ranked slides are kept
    in ``settings.out``, as `rank` does.

    Raises:
        NotFoundError: a file or folder does not exist.
        TableError: the labels cannot be used.
        TriageModelError: the model cannot be used.
        SettingsError: the settings of rank do not suit.
        EvaluationError: no slide could be measured.
    """
    if settings.pseudonymise is not None:
        raise SettingsError("validate joins labels to slides by name. Unset rank.pseudonymise for it.")
    lines = read_labels(labels, words)
    found, _ = discover(slide_dir, settings.out)
    labelled, left_out = join(labels, lines, found)
    model = load_triage_model(settings.model)
    training = TrainingSlides(model)
    measurable = []
    for one in listener.track(labelled, "looking for training slides", unit="slides"):
        if reason := training.part_of(one):
            left_out.append(Problem(one.found.name, reason))
        else:
            measurable.append(one)
    _require_some(measurable, left_out, labels)
    settings = _with_resolutions(settings, labels, [one.line for one in measurable])
    worklist = rank(slide_dir, settings, listener, only={one.found.name for one in measurable})
    slides = _measured(worklist, measurable)
    left_out += [
        Problem(one.slide, f"not assessed: {one.reason}") for one in worklist.slides if one.probability is None
    ]
    _require_some(slides, left_out, labels)
    thresholds = model.card.thresholds
    probabilities, truth = [one.probability for one in slides], [one.label for one in slides]
    few = too_few(slides)
    return Validation(
        worklist,
        model.card,
        printable(str(settings.model)),
        printable(str(labels)),
        sha256_of_file(labels),
        tuple(slides),
        tuple(left_out),
        figures_of(slides, thresholds.decision, thresholds.low),
        local_thresholds(slides, thresholds.sensitivity_wanted or _SENSITIVITY),
        roc_curve_points(probabilities, truth),
        calibration_points(probabilities, truth),
        (*_of_model(worklist), *([few] if few else [])),
        sum(not training.can_tell(one) for one in measurable),
    )


def _require_some(slides: Sequence[object], left_out: Sequence[Problem], labels: Path) -> None:
    if not slides:
        first = f" First: {left_out[0].where}: {left_out[0].reason}" if left_out else ""
        raise EvaluationError(f"none of the slides in {labels} can be measured.{first}")


def _with_resolutions(settings: RankConfig, labels: Path, lines: Sequence[LabelledSlide]) -> RankConfig:
    """The settings, with the labels file's column mpp written to a table that rank reads."""
    rows = [{"slide": line.slide, "mpp": line.mpp} for line in lines if line.mpp is not None]
    if not rows:
        return settings
    if settings.mpp_csv is not None:
        raise SettingsError(f"{labels} and {settings.mpp_csv} both give resolutions. Remove one of them.")
    path = settings.out / _MPP_NAME
    write_text(path, csv_text(("slide", "mpp"), rows))
    return settings.model_copy(update={"mpp_csv": path})


def _measured(worklist: Worklist, labelled: Sequence[Labelled]) -> list[MeasuredSlide]:
    line_of = {one.found.name: one.line for one in labelled}
    return [
        MeasuredSlide(
            one.slide,
            one.sha256,
            line_of[one.slide].label,
            line_of[one.slide].patient_id,
            one.probability,
            one.call,
            one.is_unlike,
        )
        for one in worklist.slides
        if one.probability is not None
    ]


def _of_model(worklist: Worklist) -> tuple[Weakness, ...]:
    """Warnings about the model itself."""
    found = []
    if worklist.collapsed:
        found.append(Weakness("COLLAPSED", "The encoder under this model collapsed: no figure can be trusted."))
    if worklist.synthetic:
        found.append(
            Weakness("SYNTHETIC", "The model was trained on synthetic cells: its results do not apply to patients.")
        )
    return (*found, *worklist.weaknesses)
