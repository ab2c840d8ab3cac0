"""A folder that is ranked again whenever slides arrive: what is read, when, and what the logs and the worklist say."""

import shutil
from contextlib import suppress

import pytest

from cytomil.bags import read_manifest
from cytomil.errors import NotFoundError, SettingsError
from cytomil.progress import Silent
from cytomil.triage.rank import rank
from cytomil.triage.watch import WatchedFolder, watch
from cytomil.triage.worklist import Call
from cytomil.triage.write import AuditLog
from tests.triage.test_rank import make_road, settings


@pytest.fixture(scope="module")
def road(shared):
    return shared.folder("road", make_road)


@pytest.fixture
def bags(road):
    manifest = read_manifest(road / "bags")
    return [manifest.file_of(row) for row in manifest.select("test")]


class Told(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


class EndOfTestError(Exception):
    """Ends a watch that would go on for ever."""


def followed(folder, chosen, *steps, listener=None):
    """All worklists of a watch in which each wait does the next of ``steps``; the watch ends after the last one."""
    left = list(steps)

    def wait(seconds):
        if not left:
            raise EndOfTestError
        left.pop(0)()

    found = []
    with suppress(EndOfTestError):
        found.extend(watch(folder, chosen, listener or Silent(), wait=wait))
    return found


def nothing():
    pass


def slides_of(out):
    return [entry.slide for entry in AuditLog(out).entries() if entry.slide]


def names(worklist):
    return sorted(slide.slide for slide in worklist.slides)


def test_slides_are_ranked_as_they_arrive_and_only_these_are_read_and_logged(road, bags, tmp_path):
    folder, out, told = tmp_path / "slides", tmp_path / "out", Told()
    folder.mkdir()

    def arrive(i):
        shutil.copy(bags[i], folder)

    steps = [nothing, lambda: arrive(0), nothing, nothing, lambda: arrive(1), nothing, nothing]
    worklists = followed(folder, settings(road, out), *steps, listener=told)
    first, second = bags[0].name, bags[1].name
    assert [(names(one), one.unread) for one in worklists] == [
        ([first], 0),
        ([first], 1),
        (sorted([first, second]), 0),
    ]
    assert slides_of(out) == [first, second]
    assert worklists[-1].slides == rank(folder, settings(road, tmp_path / "at once"), Silent()).slides
    assert told.notes == [
        "Waiting for new slides; Ctrl-C ends.",
        f"Waiting until copied completely: {first}; Ctrl-C ends.",
        "Waiting for new slides; Ctrl-C ends.",
        f"Waiting until copied completely: {second}; Ctrl-C ends.",
        "Waiting for new slides; Ctrl-C ends.",
    ]


def test_a_file_that_grows_is_not_read(road, bags, tmp_path):
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    whole = bags[0].read_bytes()

    def copy(share):
        (folder / "a.h5").write_bytes(whole[: int(share * len(whole))])

    steps = [lambda share=share: copy(share) for share in (0.2, 0.4, 0.6, 0.8, 1)]
    (worklist,) = followed(folder, settings(road, out), *steps, nothing, nothing)
    assert worklist.slides[0].call is not Call.NOT_ASSESSED
    assert slides_of(out) == ["a.h5"]


def test_a_slide_that_changes_is_read_again_and_one_that_goes_leaves_the_worklist(road, bags, tmp_path):
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    for bag in bags[:2]:
        shutil.copy(bag, folder)
    altered = folder / bags[0].name

    steps = [nothing, lambda: shutil.copy(bags[2], altered), nothing, (folder / bags[1].name).unlink]
    before, after, at_last = followed(folder, settings(road, out), *steps)
    hashes = [{slide.slide: slide.sha256 for slide in one.slides} for one in (before, after)]
    assert hashes[0][altered.name] != hashes[1][altered.name]
    assert hashes[0][bags[1].name] == hashes[1][bags[1].name]
    assert names(at_last) == [altered.name]
    assert len(slides_of(out)) == 3


def test_a_folder_that_is_away_for_a_while_loses_no_slide(road, bags, tmp_path):
    folder, away, told = tmp_path / "slides", tmp_path / "away", Told()
    folder.mkdir()
    shutil.copy(bags[0], folder)
    steps = [nothing, lambda: folder.rename(away), nothing, lambda: away.rename(folder), nothing]
    (worklist,) = followed(folder, settings(road, tmp_path / "out"), *steps, listener=told)
    assert names(worklist) == [bags[0].name]
    assert "The folder of slides cannot be read at present. Waiting for it; Ctrl-C ends." in told.notes


def test_a_folder_of_cells_is_settled_when_all_its_files_are(tmp_path):
    cells = tmp_path / "slides" / "s" / "below"
    cells.mkdir(parents=True)
    folder = WatchedFolder(tmp_path / "slides", tmp_path / "out")
    (cells / "a.png").write_bytes(b"1")
    assert folder.look().settled == set()
    (cells / "b.png").write_bytes(b"1")
    assert folder.look().settled == set()
    assert folder.look().settled == {"s"}
    (cells / "b.png").write_bytes(b"12")
    assert folder.look().settled == set()


def test_the_files_beside_a_slide_are_part_of_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"1")
    folder = WatchedFolder(tmp_path, tmp_path / "out")
    folder.look()
    assert folder.look().settled == {"a.mrxs"}
    (tmp_path / "a" / "Data0001.dat").write_bytes(b"1")
    assert folder.look().settled == set()


def test_pseudonyms_hold_while_watching(road, bags, tmp_path):
    folder, told = tmp_path / "slides", Told()
    folder.mkdir()
    shutil.copy(bags[0], folder / "Müller.h5")
    chosen = settings(road, tmp_path / "out", pseudonymise=tmp_path / "vault" / "key")
    (worklist,) = followed(folder, chosen, nothing, nothing, listener=told)
    assert worklist.slides[0].slide.startswith("S-")
    assert "Müller" not in " ".join([*told.notes, *(str(slide) for slide in worklist.slides)])


def test_what_cannot_be_watched_is_one_clear_error(road, tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        followed(tmp_path / "nowhere", settings(road, tmp_path / "out"))
    with pytest.raises(SettingsError, match="does not work over Ray"):
        followed(tmp_path, settings(road, tmp_path / "out", ray_address="local"))
