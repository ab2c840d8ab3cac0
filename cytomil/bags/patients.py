"""Tables of labels and patients, and simulated bags of real patients' cells.

Each simulated bag holds one patient's cells, and all bags of a patient are in one split. The label of a bag says whether it
holds abnormal cells, not whether the patient is ill. Negative bags also come from the normal cells of ill patients, so that
a model cannot predict the label from the patient.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cytomil.bags.bag_file import Instance
from cytomil.bags.class_folders import ClassFolders, Plan, Supply
from cytomil.bags.images import read_image
from cytomil.bags.manifest import SPLITS
from cytomil.errors import ImageUnreadableError, NotEnoughCellsError, SettingsError, TableError
from cytomil.progress import Problem
from cytomil.slides.resolution import MPP, SLIDE, parse_mpp
from cytomil.tables import Column, Row, as_number, composed, read_table, require_one_spelling
from cytomil.text import printable

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
    """One row of the labels file. ``split`` and ``patient_id`` are empty if the file does not give them.

    ``mpp`` is the resolution of a whole slide in µm per level-0 pixel; None: the value in the slide's file.
    """

    slide: str
    label: int
    patient_id: str = ""
    split: str = ""
    mpp: float | None = None


@dataclass(frozen=True)
class LabelWords:
    """The words in the label column that mean diseased (1) and healthy (0). Case does not matter.

    Raises `SettingsError` if one of the lists is empty, or a word is in both.
    """

    positive: tuple[str, ...] = ("1",)
    negative: tuple[str, ...] = ("0",)

    def __post_init__(self) -> None:
        if not self.positive or not self.negative:
            raise SettingsError("labels in words need both --positive and --negative. Add the missing one.")
        both = sorted(set(map(_word, self.positive)) & set(map(_word, self.negative)))
        if both:
            raise SettingsError(f"label '{both[0]}' is both positive and negative. Name each word once.")

    def label_of(self, text: str) -> int | None:
        """1 or 0; None if ``text`` is an unknown word."""
        word = _word(text)
        for label, words in ((1, self.positive), (0, self.negative)):
            if word in map(_word, words):
                return label
        return None


def label_words(positive: Sequence[str], negative: Sequence[str]) -> LabelWords:
    """The given words, or 1 and 0 by default."""
    return LabelWords(tuple(positive), tuple(negative)) if positive or negative else LabelWords()


def read_labels(path: Path, words: LabelWords | None = None) -> list[LabelledSlide]:
    """Read a labels file: a table with the columns slide and label, and optionally patient, split and mpp.

    Args:
        path: the table.
        words: the words in the label column; None: 1 is diseased and 0 is healthy.

    Returns:
        One entry per row, in the order of the table.

    Raises:
        TableError: the table cannot be read, a label is not among ``words``, a slide is listed twice, a split is neither
            train nor test, a patient is in two splits or has two spellings, or an mpp is not a number. The message names
            file and line.
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
                f"{path}: patient '{slide.patient_id}' is in both train and test. "
                "Put all slides of a patient into one split."
            )
    return slides


def _parse(row: Row, words: LabelWords) -> LabelledSlide:
    name, label, split = row["slide"], words.label_of(row["label"]), row["split"].casefold()
    if not name:
        raise TableError(f"{row.where}: the slide's name is empty.")
    if Path(name).name != name or name == "..":
        raise TableError(f"{row.where}: slide '{name}' must be a name in the folder of slides, not a path.")
    if label is None:
        raise TableError(f"{row.where}: label '{row['label']}' is {_why_invalid(words)}")
    if split and split not in SPLITS:
        raise TableError(f"{row.where}: split '{row['split']}' must be {' or '.join(SPLITS)}.")
    return LabelledSlide(name, label, row["patient"], split, parse_mpp(row["mpp"], row.where) if row["mpp"] else None)


def _why_invalid(words: LabelWords) -> str:
    if words == LabelWords():
        return (
            "neither 0 (healthy) nor 1 (diseased). To use words as labels, name them with "
            "--positive AML,APL --negative healthy."
        )
    return (
        f"neither positive ({', '.join(words.positive)}) nor negative ({', '.join(words.negative)}). "
        "Add it to one of them, or remove the line."
    )


def _word(text: str) -> str:
    return as_number(composed(text).casefold())


FOLDER = "folder"
_COLUMNS = (
    Column("image", ("cell", "file", "filename", "file_name", "path"), ("name", "slide"), required=True),
    Column(PATIENT.name, PATIENT.aliases, PATIENT.hints, required=True),
)


@dataclass
class PatientCells:
    """The image files of one patient's normal (0) and abnormal (1) cells."""

    files: tuple[list[Path], list[Path]] = field(default_factory=lambda: ([], []))


def cells_by_patient(classes: ClassFolders, patients: str) -> tuple[dict[str, PatientCells], list[Problem]]:
    """The cells of each patient. Cells without a known patient are left out and returned as problems.

    Args:
        classes: the class folders.
        patients: `FOLDER` if each class folder has one folder per patient. Otherwise the path of a table with the columns
            image and patient. An image is given as a path below ``classes.root``, or as a file name that occurs only once.

    Raises:
        NotFoundError: the table does not exist.
        TableError: the table cannot be read, or a patient has two spellings.
    """
    files = [
        (label, file)
        for label, side in enumerate((classes.normal, classes.abnormal))
        for name in side
        for file in side[name]
    ]
    names = [_name(classes.root, file) for _, file in files]
    patient_of = _by_folder(names) if patients == FOLDER else _by_table(Path(patients), names)
    cells: dict[str, PatientCells] = defaultdict(PatientCells)
    problems = []
    for (label, file), name in zip(files, names, strict=True):
        if name in patient_of:
            cells[patient_of[name]].files[label].append(file)
        else:
            reason = "is in no patient's folder" if patients == FOLDER else f"has no line in {Path(patients).name}"
            problems.append(Problem(name, reason))
    return dict(cells), problems


def _name(root: Path, file: Path) -> str:
    return composed(printable(file.relative_to(root).as_posix()))


def _by_folder(names: Sequence[str]) -> dict[str, str]:
    """Map each image to the folder below its class, as in CLASS/PATIENT/…/cell.png."""
    patient_of = {name: name.split("/")[1] for name in names if name.count("/") >= 2}
    require_one_spelling(((patient, name.rpartition("/")[0]) for name, patient in patient_of.items()), "patient")
    return patient_of


def _by_table(path: Path, names: Sequence[str]) -> dict[str, str]:
    rows = read_table(path, _COLUMNS, "a spreadsheet: columns image, patient")
    require_one_spelling(((row["patient"], row.where) for row in rows), "patient")
    known = set(names)
    paths_of: dict[str, list[str]] = defaultdict(list)
    for name in names:
        paths_of[name.rpartition("/")[2]].append(name)
    patient_of: dict[str, str] = {}
    for row in rows:
        image = row["image"].replace("\\", "/").removeprefix("./")
        if not row["patient"]:
            raise TableError(f"{row.where}: image '{image}' has no patient. Fill it in or remove the line.")
        if image not in known and len(paths_of[image]) > 1:
            raise TableError(
                f"{row.where}: {len(paths_of[image])} files have the name '{image}'. Write the path, such as "
                f"{paths_of[image][0]}."
            )
        for name in [image] if image in known else paths_of[image]:
            if patient_of.setdefault(name, row["patient"]) != row["patient"]:
                raise TableError(
                    f"{row.where}: image '{image}' has patient '{patient_of[name]}' in an earlier line. Remove one line."
                )
    return patient_of


class PatientDraw:
    """Assigns a patient to each bag, and draws the patient's readable, distinct cells in random order.

    ``problems`` lists unreadable cells, and cells that an earlier patient has too.
    """

    def __init__(self, root: Path, cells: Mapping[str, PatientCells], rng: np.random.Generator) -> None:
        self.problems: list[Problem] = []
        self.n_duplicates = 0
        self._root = root
        self._cells = cells
        names = sorted(cells)
        self._order = [names[i] for i in rng.permutation(len(names))]
        self._seed_of = dict(zip(self._order, rng.integers(2**63, size=len(names)), strict=True))
        self._readable: dict[str, tuple[list[tuple[bytes, Path]], list[tuple[bytes, Path]]]] = {}
        self._owner: dict[bytes, str] = {}

    def assign(self, plan: Plan) -> list[str]:
        """The patient of every bag of ``plan.jobs``. A patient gets a second bag only if no other patient has enough cells.

        Only the cells of chosen patients are read. If some are unreadable, the choice is repeated with the new counts.
        Raises `NotEnoughCellsError` if there are too few patients with enough cells.
        """
        counts = {name: tuple(map(len, self._cells[name].files)) for name in self._order}
        while True:
            given = _assign(self._root, plan, counts)
            unread = [name for name in dict.fromkeys(given) if name not in self._readable]
            if not unread:
                return given
            for name in unread:
                self._readable[name] = self._read(name)
                counts[name] = tuple(map(len, self._readable[name]))

    def bags(self, given: Sequence[str]) -> Iterator[Supply]:
        """The patient's cells for each bag. Bags of the same patient have no cell in common."""
        supplies = {name: Supply(self._draw(name, 0), self._draw(name, 1), name) for name in set(given)}
        return (supplies[name] for name in given)

    def notes(self, plan: Plan, given: Sequence[str]) -> tuple[str, ...]:
        """Notes on the patients that readers of figures on these bags must know."""
        most = max(Counter(given).values())
        negative = [name for name, (_, _, label) in zip(given, plan.jobs, strict=True) if not label]
        healthy = sum(not self._readable[name][1] for name in negative)
        notes = [
            f"each bag holds one patient's cells: {len(given)} bags of {len(set(given))} patients, at most {most} per "
            "patient. No patient is in both splits.",
            "a bag's label says whether it holds abnormal cells, not whether the patient is ill: "
            f"{len(negative) - healthy} of {len(negative)} negative bags are normal cells of patients who have abnormal ones.",
        ]
        if healthy:
            notes.append(
                f"{healthy} negative bags are of patients without any abnormal cell. If these patients differ from the others "
                "in site, stain or day, the figures are too optimistic."
            )
        if self.n_duplicates:
            notes.append(f"{self.n_duplicates} byte-identical images left out.")
        return tuple(notes)

    def _read(self, patient: str) -> tuple[list[tuple[bytes, Path]], list[tuple[bytes, Path]]]:
        found: tuple[list[tuple[bytes, Path]], list[tuple[bytes, Path]]] = ([], [])
        for label, files in enumerate(self._cells[patient].files):
            for file in files:
                name = printable(file.relative_to(self._root).as_posix())
                try:
                    digest = hashlib.sha256(read_image(file, name)).digest()
                except ImageUnreadableError as error:
                    self.problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
                    continue
                owner = self._owner.get(digest)
                if owner == patient:
                    self.n_duplicates += 1
                elif owner:
                    self.problems.append(Problem(name, f"the same image belongs to patient {owner}; left out here"))
                else:
                    self._owner[digest] = patient
                    found[label].append((digest, file))
        return found

    def _draw(self, patient: str, label: int) -> Iterator[Instance]:
        cells = self._readable[patient][label]
        rng = np.random.default_rng([int(self._seed_of[patient]), label])
        for i in rng.permutation(len(cells)):
            digest, file = cells[i]
            name = printable(file.relative_to(self._root).as_posix())
            # A name such as BLA/BLA_00017 would reveal the cell's class to training.
            yield Instance(digest.hex()[:16], read_image(file, name), label=label, source=name)


def _assign(root: Path, plan: Plan, counts: Mapping[str, Sequence[int]]) -> list[str]:
    """Assign a patient to each of ``plan.jobs``.

    ``counts`` maps each patient to the numbers of normal and abnormal cells. Earlier patients are preferred.
    """
    needs = {1: (plan.bag_size - plan.n_witnesses, plan.n_witnesses), 0: (plan.bag_size, 0)}
    left = {name: list(count) for name, count in counts.items()}

    def has_enough(name: str, label: int) -> bool:
        return all(have >= need for have, need in zip(left[name], needs[label], strict=True))

    capable = {label: [name for name in counts if has_enough(name, label)] for label in (0, 1)}
    others = [name for name in capable[0] if name not in set(capable[1])]
    split_of = _assign_splits(capable[1], plan) | _assign_splits(others, plan)
    n_bags: Counter[str] = Counter()
    given: dict[int, str] = {}
    jobs = plan.jobs
    # Positive bags first, because fewer patients have enough cells for them.
    for i in sorted(range(len(jobs)), key=lambda i: -jobs[i][2]):
        split, _, label = jobs[i]
        candidates = [name for name in split_of if split_of[name] == split and has_enough(name, label)]
        if not candidates:
            raise NotEnoughCellsError(
                f"{root}: there are not enough patients. The settings ask for {len(plan.train_labels)} training and "
                f"{len(plan.test_labels)} test bags of {plan.bag_size} cells, each of one patient, with {plan.n_witnesses} "
                f"abnormal cells per positive bag. Of {len(counts)} patients, {len(capable[1])} have enough cells for a "
                f"positive bag and {len(capable[0])} for a negative one. Lower --bag-size, --witness-rate, --train-bags or "
                "--test-bags."
            )
        # Patients with abnormal cells first, for both labels. Otherwise the patient would reveal the label.
        given[i] = min(candidates, key=lambda name: (n_bags[name], counts[name][1] == 0))
        n_bags[given[i]] += 1
        left[given[i]] = [have - need for have, need in zip(left[given[i]], needs[label], strict=True)]
    return [given[i] for i in range(len(jobs))]


def _assign_splits(names: Sequence[str], plan: Plan) -> dict[str, str]:
    """Map each patient to a split, in the proportion of the bags. A split that has bags gets at least one patient."""
    n_train, n_test = len(plan.train_labels), len(plan.test_labels)
    n = round(len(names) * n_test / (n_train + n_test))
    if n_train and n_test and len(names) > 1:
        n = min(max(n, 1), len(names) - 1)
    train, test = SPLITS
    return {name: test if i < n else train for i, name in enumerate(names)}
