"""The labels file: a table that gives each slide its label, and where known its patient, split and resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cytomil.bags.manifest import SPLITS
from cytomil.errors import SettingsError, TableError
from cytomil.slides.resolution import MPP, SLIDE, parse_mpp
from cytomil.tables import Column, Row, as_number, composed, read_table, require_one_spelling

PATIENT = Column(
    "patient", ("patient_id", "patientid"), ("pat", "pid", "subject", "donor", "person", "case", "individual")
)
COLUMNS = (
    SLIDE,
    Column("label", ("slide_label",), ("diagnosis", "class", "target", "status", "disease", "y"), required=True),
    PATIENT,
    Column("split", (), ("set", "subset", "partition", "fold")),
    MPP,
)


@dataclass(frozen=True)
class LabelledSlide:
    """One row of the labels file. ``split`` and ``patient_id`` are empty where the file does not give them.

    ``mpp`` is in µm per level-0 pixel of a whole slide; None where the slide's own file is to be believed.
    """

    slide: str
    label: int
    patient_id: str = ""
    split: str = ""
    mpp: float | None = None


@dataclass(frozen=True)
class LabelWords:
    """Which words of the label column mean diseased (1) and which healthy (0). Case does not matter.

    Raises `SettingsError` where only one side is named, or a word stands on both.
    """

    positive: tuple[str, ...] = ("1",)
    negative: tuple[str, ...] = ("0",)

    def __post_init__(self) -> None:
        if not self.positive or not self.negative:
            raise SettingsError("labels in words need both sides: --positive AML,APL --negative healthy.")
        both = sorted(set(map(_word, self.positive)) & set(map(_word, self.negative)))
        if both:
            raise SettingsError(f"label '{both[0]}' is named both positive and negative. Name each word once.")

    def label_of(self, text: str) -> int | None:
        """1, 0, or None where ``text`` is none of the words."""
        word = _word(text)
        for label, words in ((1, self.positive), (0, self.negative)):
            if word in map(_word, words):
                return label
        return None


def label_words(positive: Sequence[str], negative: Sequence[str]) -> LabelWords:
    """The words that were given, or 1 and 0 where none were."""
    return LabelWords(tuple(positive), tuple(negative)) if positive or negative else LabelWords()


def read_labels(path: Path, words: LabelWords | None = None) -> list[LabelledSlide]:
    """Read a table with the columns slide and label and, optionally, patient, split (train or test) and mpp.

    Raises `TableError` naming file and line for anything else, for a label that is none of ``words`` (0 and 1 where not
    given), a slide listed twice, a patient in two splits or under two spellings, and an mpp that is no number.
    """
    words = words or LabelWords()
    rows = read_table(path, COLUMNS, "a spreadsheet: columns slide, label, patient")
    if not rows:
        raise TableError(f"{path} lists no slides.")
    slides = [_parse(row, words) for row in rows]
    line_of: dict[str, int] = {}
    for slide, row in zip(slides, rows, strict=True):
        first = line_of.setdefault(slide.slide, row.number)
        if first != row.number:
            raise TableError(
                f"{path} lists {slide.slide} twice (lines {first}, {row.number}). Give every slide one line."
            )
    require_one_spelling(((slide.patient_id, row.where) for slide, row in zip(slides, rows, strict=True)), "patient")
    if any(slide.split for slide in slides) and not all(slide.split for slide in slides):
        raise TableError(f"{path}: some lines have a split and some have none. Fill all of them or none.")
    split_of: dict[str, str] = {}
    for slide in slides:
        if slide.patient_id and split_of.setdefault(slide.patient_id, slide.split) != slide.split:
            raise TableError(
                f"{path}: patient '{slide.patient_id}' stands in both train and test. "
                "Put all slides of a patient on one side of the split."
            )
    return slides


def _parse(row: Row, words: LabelWords) -> LabelledSlide:
    name, label, split = row["slide"], words.label_of(row["label"]), row["split"].casefold()
    if not name:
        raise TableError(f"{row.where}: the slide's name is empty.")
    if Path(name).name != name or name == "..":
        raise TableError(f"{row.where}: slide '{name}' must be a name in that folder, not a path.")
    if label is None:
        raise TableError(f"{row.where}: label '{row['label']}' is {_neither(words)}")
    if split and split not in SPLITS:
        raise TableError(f"{row.where}: split '{row['split']}' is none of {', '.join(SPLITS)}.")
    return LabelledSlide(name, label, row["patient"], split, parse_mpp(row["mpp"], row.where) if row["mpp"] else None)


def _neither(words: LabelWords) -> str:
    if words == LabelWords():
        return (
            "neither 0 (healthy) nor 1 (diseased). Words are taken where both sides are named: "
            "--positive AML,APL --negative healthy."
        )
    return (
        f"neither positive ({', '.join(words.positive)}) nor negative ({', '.join(words.negative)}). "
        "Name it on one side, or remove the line."
    )


def _word(text: str) -> str:
    return as_number(composed(text).casefold())
