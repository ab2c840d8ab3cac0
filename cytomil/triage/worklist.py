"""The result of triage for one slide and for a folder of slides: plain data, in reading order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cytomil.mil.triage_model import Weakness

GIVEN_SCALE = " (by the µm per pixel that you gave)"


class Call(StrEnum):
    """What a reader should do with a slide, in the order of the worklist."""

    NOT_ASSESSED = "not assessed"
    REVIEW_FIRST = "review first"
    REVIEW = "review"
    LOW_PRIORITY = "low priority"


@dataclass(frozen=True)
class KeyInstance:
    """One of a slide's most abnormal cells.

    ``score`` is above 0, in the unit that the model card's ``score_meaning`` names (1 = average).
    ``x_px`` and ``y_px`` are the crop's centre in level-0 pixels, ``x_um`` and ``y_um`` the same in µm; all None if the
    cell was a separate image. ``image`` is an encoded JPEG of the cell, ``context`` is one of its surroundings on the
    slide, None if it has none.
    """

    instance_id: str
    score: float
    image: bytes
    x_px: float | None = None
    y_px: float | None = None
    x_um: float | None = None
    y_um: float | None = None
    why: str = ""
    context: bytes | None = None


@dataclass(frozen=True)
class TeachingCell:
    """A cell that is shown for what its review teaches the model, and not because it is suspicious. ``score`` as above."""

    instance_id: str
    score: float


@dataclass(frozen=True)
class SlideResult:
    """What is known of one slide after triage.

    ``probability`` is None for a slide that was not assessed, and ``reason`` then says why. If the slide ``is_unlike``
    the training slides, its probability is not reliable. ``novelty_p`` is `SlideNovelty.p_value`. ``sha256`` identifies
    the slide's content; empty if it could not be read. ``cautions`` are sentences that a reader must see. ``n_at_edge``
    is how many cells of a whole slide were left out because their crops reach beyond what was scanned. ``mpp_given``
    means that the resolution is from the user, not from the slide's file. ``files`` are the paths of the slide's files
    beside the worklist, by kind, relative to its folder. ``score_shares`` is the share of the slide's cells in each of
    the model's score bins, comparable with `Worklist.reference_shares`. ``thumbnail`` and ``qc_picture`` are encoded
    JPEGs.
    """

    slide: str
    path: str
    call: Call
    probability: float | None = None
    reason: str = ""
    sha256: str = ""
    n_instances: int = 0
    n_unreadable: int = 0
    n_at_edge: int = 0
    mpp: float | None = None
    mpp_given: bool = False
    cautions: tuple[str, ...] = ()
    is_unlike: bool = False
    novelty_p: float | None = None
    key_instances: tuple[KeyInstance, ...] = ()
    to_teach: tuple[TeachingCell, ...] = ()
    score_shares: tuple[float, ...] = ()
    thumbnail: bytes | None = None
    qc_picture: bytes | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def look_at(self) -> str:
        """One short sentence: what a reader should look at first on this slide."""
        if self.call is Call.NOT_ASSESSED:
            return self.reason
        if self.cautions:
            return _first_sentence(self.cautions[0])
        top = self.key_instances[0] if self.key_instances else None
        if top is None:
            return ""
        if top.x_um is None or top.y_um is None:
            return top.instance_id
        return f"cell 1, at x {top.x_um:,.0f}, y {top.y_um:,.0f} µm{GIVEN_SCALE if self.mpp_given else ''}"


def _first_sentence(text: str) -> str:
    head, _, rest = text.partition(". ")
    return f"{head}." if rest else text


@dataclass(frozen=True)
class Patient:
    """The patient of a slide, as the user named it, and the accession number; "" if none was given."""

    name: str
    accession: str = ""


@dataclass(frozen=True)
class PatientSlides:
    """A patient's slides in reading order, and their highest call; `Call.NOT_ASSESSED` if no slide was assessed.

    ``accessions`` are by slide, "" where none was given. ``n_not_assessed`` is the number of slides without a call.
    """

    patient: str
    slides: tuple[str, ...]
    accessions: dict[str, str]
    call: Call
    n_not_assessed: int

    @property
    def said(self) -> str:
        """What to read beside each slide of the patient, such as "same patient: 2 other slides, highest call: review"."""
        n = len(self.slides) - 1
        if n == 0:
            return "no other slide of this patient"
        missing = (
            f"; {self.n_not_assessed} not assessed"
            if self.n_not_assessed and self.call is not Call.NOT_ASSESSED
            else ""
        )
        return f"same patient: {n} other slide{'s' * (n != 1)}, highest call: {self.call.value}{missing}"


@dataclass(frozen=True)
class Worklist:
    """A folder of slides in the order in which to read them.

    The two ranges are what the model itself and single folds of the cross-validation would have chosen for the thresholds.
    ``score_bin_edges`` has one more entry than each ``score_shares``; ``reference_shares`` are the mean shares over the
    negative training bags. ``model_card`` holds facts about the triage model for a reader. ``synthetic``, ``collapsed``
    and ``score_meaning`` change what the report shows. ``weaknesses`` is what a reader must know about the model before
    any call. ``held_out`` is its performance on held-out training slides. ``unread`` is how many slides of the folder
    are still to be read. ``patients`` is empty unless the user gave them; the one with the most urgent slide comes
    first.
    """

    folder: str
    created: str
    slides: tuple[SlideResult, ...]
    threshold: float
    low_threshold: float
    model_card: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    score_bin_edges: tuple[float, ...] = ()
    reference_shares: tuple[float, ...] = ()
    threshold_range: tuple[float, float] | None = None
    low_threshold_range: tuple[float, float] | None = None
    weaknesses: tuple[Weakness, ...] = ()
    held_out: str = ""
    unread: int = 0
    synthetic: bool = False
    collapsed: bool = False
    score_meaning: str = "× the average cell"
    patients: tuple[PatientSlides, ...] = ()

    def patient_of(self, slide: str) -> PatientSlides | None:
        """The patient of the slide of this name; None if not given."""
        return next((one for one in self.patients if slide in one.accessions), None)

    @property
    def all_assessed(self) -> bool:
        """True where no slide is missing and no cell was unreadable."""
        return self.unread == 0 and all(s.call is not Call.NOT_ASSESSED and s.n_unreadable == 0 for s in self.slides)


def in_reading_order(slides: Sequence[SlideResult]) -> tuple[SlideResult, ...]:
    """Slides that were not assessed come first, where nobody overlooks them; then by call, falling probability and name.

    Within *review*, slides unlike the training slides come first, because their probability is not reliable.
    """
    order = {call: i for i, call in enumerate(Call)}
    return tuple(
        sorted(
            slides,
            key=lambda s: (order[s.call], not s.is_unlike, -(s.probability or 0.0), s.slide),
        )
    )
