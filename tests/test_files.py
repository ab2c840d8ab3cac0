from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cytomil.errors import CytomilError, NotFoundError, require_file, require_folder, require_replaceable
from cytomil.files import (
    host,
    put_back,
    replacing,
    replacing_folder,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
)


class BrokenOffError(Exception):
    """Stands for whatever goes wrong while a file is being written."""


@pytest.fixture(scope="module")
def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def live_process():
    """The number of another process that runs."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture
def synced(monkeypatch):
    """``synced(path)``: a list of what is put on disk from now on, by inode, and whether ``path`` was there then."""

    def watch(path):
        seen = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append((os.fstat(descriptor).st_ino, path.exists())))
        return seen

    return watch


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestReplacing:
    def test_success_puts_the_new_content_in_place(self, tmp_path):
        path = tmp_path / "a" / "b" / "file.txt"
        with replacing(path) as partial:
            partial.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new"
        assert names_in(path.parent) == {"file.txt"}

    def test_content_is_on_disk_before_it_takes_the_name_and_the_name_afterwards(self, tmp_path, synced):
        path = tmp_path / "file.txt"
        seen = synced(path)
        with replacing(path) as partial:
            partial.write_text("new")
        assert seen == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]

    def test_success_replaces_the_old_content(self, tmp_path):
        path = tmp_path / "file.txt"
        path.write_text("old")
        with replacing(path) as partial:
            partial.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"

    @pytest.mark.parametrize("old", [None, "old"])
    @pytest.mark.parametrize("error", [BrokenOffError, KeyboardInterrupt])
    def test_exception_leaves_what_was_there_and_nothing_else(self, tmp_path, old, error):
        path = tmp_path / "file.txt"
        if old is not None:
            path.write_text(old)
        with pytest.raises(error), replacing(path) as partial:
            partial.write_text("half")
            raise error
        assert names_in(tmp_path) == ({"file.txt"} if old else set())
        if old:
            assert path.read_text() == old

    def test_body_that_writes_nothing_changes_nothing(self, tmp_path):
        path = tmp_path / "file.txt"
        path.write_text("old")
        with pytest.raises(FileNotFoundError), replacing(path):
            pass
        assert path.read_text() == "old"
        assert names_in(tmp_path) == {"file.txt"}


class TestReplacingFolder:
    def test_content_is_on_disk_before_it_takes_the_name_and_the_name_afterwards(self, tmp_path, synced):
        path = tmp_path / "out"
        seen = synced(path)
        with replacing_folder(path) as partial:
            (partial / "a").mkdir()
            (partial / "a" / "b.txt").write_text("new")
        before = {inode for inode, is_named in seen if not is_named}
        assert {child.stat().st_ino for child in path.rglob("*")} <= before
        assert seen[-1] == (tmp_path.stat().st_ino, True)

    def test_success_replaces_the_folder_whole(self, tmp_path):
        path = tmp_path / "out"
        path.mkdir()
        (path / "stale.txt").write_text("old")
        with replacing_folder(path) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / "new.txt").write_text("new")
            assert names_in(path) == {"stale.txt"}
        assert names_in(path) == {"sub"}
        assert (path / "sub" / "new.txt").read_text() == "new"
        assert names_in(tmp_path) == {"out"}

    def test_exception_leaves_the_old_folder_and_nothing_else(self, tmp_path):
        path = tmp_path / "out"
        path.mkdir()
        (path / "old.txt").write_text("old")
        with pytest.raises(BrokenOffError), replacing_folder(path) as partial:
            (partial / "half.txt").write_text("half")
            raise BrokenOffError
        assert names_in(tmp_path) == {"out"}
        assert names_in(path) == {"old.txt"}

    def test_link_to_a_folder_stays_a_link(self, tmp_path):
        """A data folder is often a link to a larger disk."""
        target = tmp_path / "disk" / "bags"
        target.mkdir(parents=True)
        (target / "old.txt").write_text("old")
        link = tmp_path / "bags"
        link.symlink_to(target)
        with replacing_folder(link) as partial:
            (partial / "new.txt").write_text("new")
        assert link.is_symlink()
        assert names_in(target) == names_in(link) == {"new.txt"}
        assert names_in(target.parent) == {"bags"}

    def test_dangling_link_is_filled(self, tmp_path):
        link = tmp_path / "bags"
        link.symlink_to(tmp_path / "disk" / "bags")
        with replacing_folder(link) as partial:
            (partial / "new.txt").write_text("new")
        assert names_in(tmp_path / "disk" / "bags") == {"new.txt"}


class TestLeftovers:
    def write_all(self, path: Path) -> None:
        """Replace a file and a folder of that name."""
        with replacing(path.with_name("file")) as partial:
            partial.write_text("new")
        with replacing_folder(path.with_name("folder")) as partial:
            (partial / "new.txt").write_text("new")

    def test_of_a_dead_process_are_removed(self, tmp_path, dead_process):
        (tmp_path / f".file.{host()}-{dead_process}-0a1b2c3d.partial").write_text("half")
        half = tmp_path / f".folder.{host()}-{dead_process}-0a1b2c3d.partial"
        half.mkdir()
        (half / "half.txt").write_text("half")
        self.write_all(tmp_path / "x")
        assert names_in(tmp_path) == {"file", "folder"}
        assert names_in(tmp_path / "folder") == {"new.txt"}

    def test_of_a_live_process_are_left_alone(self, tmp_path, live_process):
        (tmp_path / f".file.{host()}-{live_process}-0a1b2c3d.partial").write_text("half")
        (tmp_path / f".folder.{host()}-{live_process}-0a1b2c3d.partial").mkdir()
        self.write_all(tmp_path / "x")
        left = {f".file.{host()}-{live_process}-0a1b2c3d.partial", f".folder.{host()}-{live_process}-0a1b2c3d.partial"}
        assert names_in(tmp_path) == {"file", "folder"} | left

    def test_of_a_predecessor_with_the_same_number_are_removed(self, tmp_path):
        """In a container, every run may be process 1."""
        (tmp_path / f".file.{host()}-{os.getpid()}-0a1b2c3d.partial").write_text("half")
        half = tmp_path / f".folder.{host()}-{os.getpid()}-0a1b2c3d.partial"
        half.mkdir()
        (half / "half.txt").write_text("half")
        self.write_all(tmp_path / "x")
        assert names_in(tmp_path) == {"file", "folder"}
        assert names_in(tmp_path / "folder") == {"new.txt"}

    def test_of_other_paths_are_left_alone(self, tmp_path, live_process, dead_process):
        """``folder.5``'s partial folder is not one of ``folder``, whatever process 5 is."""
        others = {
            f".folder.{host()}-{dead_process}-0a1b2c3d.{host()}-{live_process}-0a1b2c3d.partial",
            f".folder.h5.{host()}-{dead_process}-0a1b2c3d.partial",
            f".Folder.{host()}-{dead_process}-0a1b2c3d.partial",
            ".folder.partial",
            ".folder.99999999999999999999.partial",
        }
        for name in others:
            (tmp_path / name).mkdir()
        with replacing_folder(tmp_path / "folder"):
            pass
        assert names_in(tmp_path) == {"folder"} | others

    def test_names_with_wildcards_match_themselves_only(self, tmp_path, dead_process):
        (tmp_path / f".x.{host()}-{dead_process}-0a1b2c3d.partial").write_text("another's")
        (tmp_path / f".[x].{host()}-{dead_process}-0a1b2c3d.partial").write_text("half")
        write_text(tmp_path / "[x]", "new")
        assert names_in(tmp_path) == {"[x]", f".x.{host()}-{dead_process}-0a1b2c3d.partial"}

    def test_killed_between_its_two_renames_what_stood_there_comes_back(self, tmp_path, dead_process):
        old = tmp_path / f".out.{host()}-{dead_process}-0a1b2c3d.old.partial"
        old.mkdir()
        (old / "precious.txt").write_text("old")
        (tmp_path / f".out.{host()}-{dead_process}-0a1b2c3d.partial").mkdir()
        with pytest.raises(BrokenOffError), replacing_folder(tmp_path / "out"):
            raise BrokenOffError
        assert names_in(tmp_path) == {"out"}
        assert names_in(tmp_path / "out") == {"precious.txt"}

    def test_killed_after_its_two_renames_the_new_folder_stays(self, tmp_path, dead_process):
        (tmp_path / f".out.{host()}-{dead_process}-0a1b2c3d.old.partial").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "new.txt").write_text("new")
        with pytest.raises(BrokenOffError), replacing_folder(tmp_path / "out"):
            raise BrokenOffError
        assert names_in(tmp_path) == {"out"}
        assert names_in(tmp_path / "out") == {"new.txt"}

    @pytest.mark.parametrize(("hours", "is_removed"), [(0.1, False), (24, True)])
    def test_of_another_host_are_removed_when_long_untouched(
        self, tmp_path, dead_process, monkeypatch, hours, is_removed
    ):
        """Its processes cannot be seen from here."""
        other = tmp_path / f".folder.ffffffff-{dead_process}-0a1b2c3d.partial"
        other.mkdir()
        (other / "half.txt").write_text("half")
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + hours * 3600)
        with replacing_folder(tmp_path / "folder"):
            pass
        assert other.exists() != is_removed

    def test_nested_use_in_one_process_keeps_both(self, tmp_path):
        with replacing(tmp_path / "file") as outer:
            outer.write_text("outer")
            write_text(tmp_path / "file", "inner")
        assert (tmp_path / "file").read_text() == "outer"

    def test_former_folder_is_put_back_for_a_reader(self, tmp_path, dead_process):
        old = tmp_path / f".out.{host()}-{dead_process}-0a1b2c3d.old.partial"
        old.mkdir()
        (old / "precious.txt").write_text("old")
        put_back(tmp_path / "out")
        assert names_in(tmp_path) == {"out"}
        assert names_in(tmp_path / "out") == {"precious.txt"}

    def test_former_folder_of_who_may_still_run_is_named(self, tmp_path, live_process):
        old = tmp_path / f".out.{host()}-{live_process}-0a1b2c3d.old.partial"
        old.mkdir()
        with pytest.raises(CytomilError, match=f"left the previous one at .*{live_process}"):
            put_back(tmp_path / "out")
        assert names_in(tmp_path) == {old.name}

    def test_of_a_process_killed_while_writing_are_removed_by_the_next(self, tmp_path):
        code = (
            "import os, signal, sys; from pathlib import Path; from cytomil.files import replacing_folder\n"
            "with replacing_folder(Path(sys.argv[1])) as folder:\n"
            "    (folder / 'half.txt').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
        )
        path = tmp_path / "out"
        assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode < 0
        assert not path.exists()
        assert len(names_in(tmp_path)) == 1
        with replacing_folder(path) as folder:
            (folder / "whole.txt").write_text("whole")
        assert names_in(tmp_path) == {"out"}
        assert names_in(path) == {"whole.txt"}


class TestText:
    @given(text=st.text())
    @hypothesis_settings(max_examples=25)
    def test_round_trip_keeps_every_character(self, tmp_path_factory, text):
        path = tmp_path_factory.mktemp("text") / "t.txt"
        if any("\ud800" <= c <= "\udfff" for c in text):
            with pytest.raises(UnicodeEncodeError):
                write_text(path, text)
            assert not any(path.parent.iterdir())
        else:
            write_text(path, text)
            assert path.read_bytes() == text.encode()


class TestJson:
    def test_round_trip_keeps_umlauts_readable(self, tmp_path):
        document = {"stain": "May-Grünwald", "values": [1, 0.5, None, True]}
        write_json(tmp_path / "d.json", document)
        text = (tmp_path / "d.json").read_text(encoding="utf-8")
        assert json.loads(text) == document
        assert "Grünwald" in text
        assert text.endswith("\n")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_json_does_not_have_is_refused_and_the_old_file_kept(self, tmp_path, value):
        write_json(tmp_path / "d.json", {"auroc": None})
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "d.json", {"deep": [{"auroc": value}]})
        assert json.loads((tmp_path / "d.json").read_text()) == {"auroc": None}
        assert names_in(tmp_path) == {"d.json"}


class TestFingerprints:
    def test_of_a_file_is_its_sha256(self, tmp_path):
        (tmp_path / "f").write_bytes(b"abc")
        assert sha256_of_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    @given(document=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=6))
    @hypothesis_settings(max_examples=25)
    def test_of_json_do_not_depend_on_key_order(self, document):
        turned = dict(reversed(document.items()))
        assert sha256_of_json(document) == sha256_of_json(turned)
        assert sha256_of_json(document) != sha256_of_json([document])


class TestRequired:
    def test_what_is_there_is_returned(self, tmp_path):
        (tmp_path / "f").touch()
        assert require_folder(tmp_path, "x") == tmp_path
        assert require_file(tmp_path / "f", "x") == tmp_path / "f"

    def test_message_names_path_fault_and_command(self, tmp_path):
        (tmp_path / "f").touch()
        for missing, fault in ((tmp_path / "none", "does not exist"), (tmp_path / "f", "is a file, not a folder")):
            with pytest.raises(NotFoundError, match=f"{missing.name} {fault}.*`cytomil embed`"):
                require_folder(missing, "cytomil embed")
        for missing, fault in ((tmp_path / "none", "does not exist"), (tmp_path, "is a folder, not a file")):
            with pytest.raises(NotFoundError, match=f"{missing.name} {fault}.*`cytomil embed`"):
                require_file(missing, "cytomil embed")

    def test_messages_are_one_line(self):
        assert str(CytomilError("one\n  two\tthree")) == "one two three"


class TestReplaceable:
    def test_free_empty_and_own_folders_may_be_replaced(self, tmp_path):
        for name in ("empty", "own"):
            (tmp_path / name).mkdir()
        (tmp_path / "own" / "bags.csv").touch()
        (tmp_path / "own" / "another.txt").touch()
        for name in ("free", "empty", "own"):
            require_replaceable(tmp_path / name, "bags.csv")

    @pytest.mark.parametrize("name", ["notes.txt", "qc/notes.txt", "my.h5", ".hidden"])
    def test_a_file_of_the_users_own_is_refused_by_name(self, tmp_path, name):
        own = ("bags.csv", "qc/*.jpg", "a.h5")
        (tmp_path / "qc").mkdir()
        for one in (*("bags.csv", "qc/a.jpg", "a.h5"), "Thumbs.db", "qc/.DS_Store"):
            (tmp_path / one).touch()
        require_replaceable(tmp_path, "bags.csv", own)
        (tmp_path / name).touch()
        with pytest.raises(CytomilError, match=f"{name} was not written by cytomil"):
            require_replaceable(tmp_path, "bags.csv", own)

    def test_a_file_and_a_folder_of_other_things_may_not(self, tmp_path):
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "thesis.txt").touch()
        for path in (tmp_path / "work", tmp_path / "work" / "thesis.txt"):
            with pytest.raises(CytomilError, match=f"{path.name} .*--out"):
                require_replaceable(path, "bags.csv")

    @pytest.mark.parametrize("path", [".", "..", "../here"])
    def test_the_working_folder_and_those_above_it_may_not(self, tmp_path, monkeypatch, path):
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "bags.csv").touch()
        (tmp_path / "bags.csv").touch()
        monkeypatch.chdir(tmp_path / "here")
        with pytest.raises(CytomilError, match="working folder"):
            require_replaceable(Path(path), "bags.csv")
