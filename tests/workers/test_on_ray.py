from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime

import psutil
import pytest
import torch

pytest.importorskip("ray", reason="Ray is not installed: pip install 'cytomil[ray]'")

from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.errors import NoCellsError, TriageModelError, WorkersError
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import embed
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.progress import Silent
from cytomil.triage.config import RankConfig
from cytomil.triage.rank import rank
from cytomil.triage.worklist import Call
from cytomil.triage.write import write_worklist
from cytomil.workers import WorkerFailure, open_workers
from cytomil.workers.on_ray import connected
from tests.workers.jobs import Square


class Noting(Silent):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for the module, because it starts slowly; and as many threads here as a worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(path for path in sys.path if path)
        )  # so that a worker finds the jobs
        with connected("local", Silent()) as ray:
            yield ray
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder_folder(make_encoder, shared):
    """A ResNet-18 takes its time, so that there is a worker at work to be killed."""
    return shared.folder("ray-models", lambda root: make_encoder(root / "encoder", arch="resnet18")) / "encoder"


@pytest.fixture(scope="module")
def features_folder(bags_folder, encoder_folder, shared):
    def make(root):
        chosen = {"layer": "z", "orientations": 1, "device": "cpu"}
        embed(EmbedConfig(bags=bags_folder, encoder=encoder_folder, out=root / "features", **chosen), Silent())

    return shared.folder("ray-embedded", make) / "features"


@pytest.fixture(scope="module")
def model(features_folder, encoder_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "triage"
    chosen = {"epochs": 3, "folds": 2, "ensemble": 1}
    fit_mil(FitMilConfig(features=features_folder, encoder=encoder_folder, out=folder, **chosen), Silent())
    return folder


@pytest.fixture
def slides(bags_folder, tmp_path):
    folder = shutil.copytree(bags_folder, tmp_path / "slides", ignore=shutil.ignore_patterns("train*"))
    (folder / "words.svs").write_text("these are words")
    return folder


@pytest.mark.long
def test_an_address_where_nobody_listens_is_one_line():
    for address in ("127.0.0.1:1", "nonsense"):
        with (
            pytest.raises(WorkersError, match=f"{address}: Ray cannot be reached"),
            connected(address, Silent()),
        ):
            pass


@pytest.mark.usefixtures("ray_here")
class TestMap:
    def run(self, job, numbers, listener=None, **more):
        return open_workers("local").map(job, numbers, listener or Silent(), "squares", "numbers", **more)

    @pytest.mark.long
    def test_results_come_in_order_from_workers_that_start_once_with_their_cores(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        listener = Noting()
        results = self.run(Square(tmp_path), list(range(20)), listener)
        assert results == [(number**2, str(tmp_path / "relative")) for number in range(20)]
        starts = [line.split() for line in (tmp_path / "starts").read_text().splitlines()]
        assert len({process for process, *_ in starts}) == len(starts) <= 20
        assert str(os.getpid()) not in {process for process, *_ in starts}
        assert {threads for _, _, threads in starts} == {"1"}
        assert all(int(cores) >= 1 for _, cores, _ in starts)
        assert listener.notes == ["started"]

    @pytest.mark.long
    def test_the_beginning_is_told_once_and_not_if_no_worker_starts(self, tmp_path):
        begun = []
        self.run(Square(tmp_path), [1, 2, 3], on_begin=lambda: begun.append(1))
        with pytest.raises(TriageModelError):
            self.run(Square(tmp_path, broken="start"), [1, 2], on_begin=lambda: begun.append(2))
        assert begun == [1]

    @pytest.mark.long
    def test_a_lost_worker_costs_nothing(self, tmp_path):
        listener = Noting()
        results = self.run(Square(tmp_path, deadly=(2, 5)), list(range(6)), listener)
        assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
        assert sum("a worker failed" in note for note in listener.notes) == 2

    @pytest.mark.long
    def test_what_kills_every_worker_is_given_up_with_the_reason(self, tmp_path):
        results = self.run(Square(tmp_path, deadly=(1,), times=9), [0, 1, 2, 3])
        assert [result[0] for i, result in enumerate(results) if i != 1] == [0, 4, 9]
        assert isinstance(results[1], WorkerFailure)
        assert "3 times" in results[1].reason
        assert "\n" not in results[1].reason
        assert (tmp_path / "deaths-1").read_text() == "xxx"

    @pytest.mark.long
    def test_a_users_mistake_is_raised_as_it_is(self, tmp_path):
        with pytest.raises(NoCellsError, match=r"^no cells there\.$"):
            self.run(Square(tmp_path, broken="work"), [1, 2])
        with pytest.raises(TriageModelError, match=r"^no model there\.$"):
            self.run(Square(tmp_path, broken="start"), [1, 2])
        with pytest.raises(WorkersError, match="--device cuda"):
            self.run(Square(tmp_path, device="cuda:1"), [1])


def kill_at_work(times, until=lambda: True):
    """A running thread that kills ``times`` workers, each at an item, once ``until()``; and the list of the killed."""
    killed = []

    def run():
        deadline = time.monotonic() + 240
        while len(killed) < times and time.monotonic() < deadline:
            time.sleep(0.002)
            for process in psutil.Process().children(recursive=True) if until() else []:
                if process.pid not in killed and _line_of(process)[:1] == ["ray::_Worker.do"]:
                    process.kill()
                    killed.append(process.pid)
                    break

    thread = threading.Thread(target=run)
    thread.start()
    return thread, killed


def contents(folder):
    """Every file's bytes by name, but for the moment that triage.json and the report name, and the audit log."""
    found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    found = {name: content for name, content in found.items() if "audit.jsonl" not in name}
    if "triage.json" in found:
        document = json.loads(found["triage.json"])
        moment = document["created"]
        del document["files_sha256"]["report.html"], document["sha256_of_this"]
        found["triage.json"] = json.dumps(document, ensure_ascii=False).encode()
        shown = datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M (UTC%z)")
        for name, told in (("triage.json", moment), ("report.html", shown)):
            assert told.encode() in found[name]
            found[name] = found[name].replace(told.encode(), b"")
    return found


@pytest.mark.usefixtures("ray_here")
class TestSameAsOneProcess:
    def rank(self, slides, model, ray_address, batch_size=1):
        settings = RankConfig(model=model, out="triage", top=5, batch_size=batch_size, ray_address=ray_address)
        worklist = rank(slides, settings, Silent())
        write_worklist(worklist, settings.out)
        return worklist

    @pytest.mark.parametrize(
        "threads", [pytest.param(1, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.nightly)]
    )
    def test_embed_to_the_byte_with_any_number_of_threads(self, threads, bags_folder, encoder_folder, tmp_path):
        torch.set_num_threads(threads)
        try:
            for name, address in (("here", ""), ("there", "local")):
                settings = EmbedConfig(
                    bags=bags_folder, encoder=encoder_folder, out=tmp_path / name, device="cpu", ray_address=address
                )
                done = embed(settings, Silent())
                assert (done.n_new, done.n_kept, done.problems) == (10, 0, ())
        finally:
            torch.set_num_threads(1)
        assert contents(tmp_path / "there") == contents(tmp_path / "here")

    @pytest.mark.long
    def test_make_bags_to_the_byte_though_a_worker_is_killed_at_work(self, make_slide_folders, tmp_path):
        slides = make_slide_folders(tmp_path / "slides", ["a", "b", "c", "d"], cells=800)
        (tmp_path / "labels.csv").write_text("slide,label,split\na,0,train\nb,1,train\nc,0,test\nd,1,test\n")
        chosen = {"source": str(slides), "labels": tmp_path / "labels.csv"}
        make_bags(MakeBagsConfig(out=tmp_path / "here", **chosen), Silent())
        killer, killed = kill_at_work(1)
        make_bags(MakeBagsConfig(out=tmp_path / "there", ray_address="local", **chosen), Silent())
        killer.join()
        assert len(killed) == 1
        # The record names its moment.
        here, there = (
            {k: v for k, v in contents(tmp_path / x).items() if k != "make-bags.json"} for x in ("here", "there")
        )
        assert there == here

    @pytest.mark.long
    def test_rank_to_the_byte_though_a_worker_is_killed_at_work(self, slides, model, tmp_path, monkeypatch):
        killed = []
        # Both runs write to the same relative folder, which the worklist names.
        for name, address in (("here", ""), ("there", "local")):
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            if address:
                killer, killed = kill_at_work(1)
            worklist = self.rank(slides, model, address)
        killer.join()
        assert len(killed) == 1
        assert [slide.slide for slide in worklist.slides if slide.call is Call.NOT_ASSESSED] == ["words.svs"]
        assert len(worklist.slides) == 5
        assert contents(tmp_path / "there" / "triage") == contents(tmp_path / "here" / "triage")

    @pytest.mark.nightly
    def test_rank_to_the_byte_with_two_threads_a_worker(self, make_slide_folders, model, tmp_path, monkeypatch):
        # Of the batch sizes tried, seven is the one whose embeddings differ between one thread and two.
        slides = make_slide_folders(tmp_path / "slides", ["a", "b"], cells=70)
        torch.set_num_threads(2)
        try:
            for name, address in (("here", ""), ("there", "local")):
                (tmp_path / name).mkdir()
                monkeypatch.chdir(tmp_path / name)
                self.rank(slides, model, address, batch_size=7)
        finally:
            torch.set_num_threads(1)
        assert contents(tmp_path / "there" / "triage") == contents(tmp_path / "here" / "triage")


@pytest.mark.nightly
def test_a_slide_that_costs_three_workers_is_not_assessed_and_the_others_are(make_slide_folders, model, tmp_path):
    slides = make_slide_folders(tmp_path / "slides", ["a-sound"])
    make_slide_folders(slides, ["b-deadly"], cells=2000)  # long at work, so that it is this one that is killed
    finished = tmp_path / "triage" / "cache"
    # A second later the sound slide's worker has nothing more to do with it.
    killer, killed = kill_at_work(
        3, lambda: any(file.stat().st_mtime < time.time() - 1 for file in finished.glob("*.json"))
    )
    # A process of its own: what Ray says of lost workers reaches a program that stays connected whenever it likes.
    line = [sys.executable, "-m", "cytomil", "rank", str(slides), "--model", str(model), "--ray-address", "local"]
    command = subprocess.run(
        [*line, "--batch-size", "1", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False
    )
    killer.join()
    assert len(killed) == 3
    assert command.returncode == 3
    found = {slide["slide"]: slide for slide in json.loads(command.stdout)["slides"]}
    assert found["b-deadly"]["call"] == Call.NOT_ASSESSED.value
    assert "the worker failed 3 times" in found["b-deadly"]["reason"]
    assert found["a-sound"]["probability"] is not None


@pytest.mark.long
def test_ctrl_c_leaves_no_process_behind(slides, model, tmp_path):
    line = [sys.executable, "-m", "cytomil", "rank", str(slides), "--model", str(model), "--out", "triage"]
    command = subprocess.Popen(
        [*line, "--ray-address", "local", "--batch-size", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    parent = psutil.Process(command.pid)
    deadline = time.monotonic() + 90
    started = []
    while not any("ray::" in " ".join(_line_of(one)) for one in started):
        assert command.poll() is None, command.stderr.read()
        assert time.monotonic() < deadline
        started = parent.children(recursive=True)
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []


def _line_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
