import pytest

from cytomil.errors import NoCellsError, TriageModelError, WorkersError
from cytomil.progress import Silent
from cytomil.workers import on_ray as cluster
from cytomil.workers import open_workers
from tests.workers.jobs import Square


def test_one_result_an_item_in_order_and_one_start(tmp_path):
    results = open_workers("").map(Square(tmp_path), [3, 1, 2], Silent(), "squares", "numbers")
    assert [value for value, _ in results] == [9, 1, 4]
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


def test_the_beginning_is_told_before_the_first_item_and_not_if_the_job_does_not_start(tmp_path):
    begun = []

    def begin():
        begun.append((tmp_path / "starts").read_text().count("\n"))
        raise WorkersError("no")

    for broken, error in (("start", TriageModelError), ("", WorkersError)):
        with pytest.raises(error):
            open_workers("").map(Square(tmp_path, (1,), broken=broken), [1], Silent(), "", "", begin)
    assert begun == [1]
    assert not (tmp_path / "deaths-1").exists()


def test_progress_is_told_item_by_item(tmp_path):
    told = []

    class Telling(Silent):
        def track(self, items, description, total=None, unit=""):
            for item in items:
                yield item
                told.append((description, unit))

    open_workers("").map(Square(tmp_path), [1, 2], Telling(), "squares", "numbers")
    assert told == [("squares", "numbers")] * 2


def test_a_users_mistake_ends_it(tmp_path):
    with pytest.raises(NoCellsError):
        open_workers("").map(Square(tmp_path, broken="work"), [1], Silent(), "", "")


def test_without_ray_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(cluster.util, "find_spec", lambda name: None)
    with pytest.raises(WorkersError, match=r"pip install 'cytomil\[ray\]'"):
        open_workers("local")


class FakeRay:
    def __init__(self, *resources):
        self._resources = resources

    def nodes(self):
        return [{"Alive": True, "Resources": one} for one in self._resources]


@pytest.mark.parametrize(
    ("machines", "n_items", "device", "threads", "expected"),
    [
        ([{"CPU": 2.0}], 10, "auto", 1, (2, 1, 0)),
        ([{"CPU": 2.0}], 10, "auto", 2, (1, 2, 0)),
        ([{"CPU": 8.0}], 2, "auto", 1, (2, 1, 0)),
        ([{"CPU": 8.0}], 9, "auto", 3, (2, 3, 0)),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 9, "cpu", 4, (3, 4, 0)),
        ([{"CPU": 4.0}, {"CPU": 4.0}], 9, "cpu", 16, (2, 4, 0)),
        ([{"CPU": 1.0}, {"CPU": 8.0}], 9, "cpu", 8, (1, 8, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 16.0}], 9, "auto", 1, (2, 4, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], 9, "cpu", 1, (8, 1, 0)),
        ([{"memory": 1.0}], 5, "auto", 2, (5, 2, 0)),
    ],
)
def test_a_cluster_is_divided_among_the_items(machines, n_items, device, threads, expected):
    found = cluster.allocate(FakeRay(*machines), n_items, device, threads)
    assert (found.workers, found.cores, found.gpus) == expected


def test_a_cluster_without_the_gpu_asked_for_is_refused():
    with pytest.raises(WorkersError, match="no GPU"):
        cluster.allocate(FakeRay({"CPU": 2.0}), 1, "cuda", 1)
