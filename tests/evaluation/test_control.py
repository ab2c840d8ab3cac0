import numpy as np
import pytest
import torch

from cytomil.errors import FeatureFileError, TableError
from cytomil.evaluation.control import permuted_labels, read_sites, without_witnesses
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitMilConfig
from cytomil.progress import Silent

SETTINGS = FitMilConfig(aggregator="mahalanobis", folds=3, workers=1)
N, WITNESSES = 40, 4


def people(shift=0.0, n=24, seed=0):
    """Bags of 40 cells in 5 dimensions, a person each; witnesses lie far out, and positive people's cells ``shift`` away."""
    rng = np.random.default_rng(seed)
    bags, labels = [], []
    for i in range(n):
        values, witness = rng.standard_normal((N, 5)), np.zeros(N, dtype=int)
        values[:, 0] += shift * (i % 2)
        if i % 2:
            witness[rng.permutation(N)[:WITNESSES]] = 1
            values[witness == 1, 1] += 6.0
        bags.append(TrainingBag(f"bag-{i}", torch.tensor(values, dtype=torch.float32), i % 2, f"person-{i}"))
        labels.append(witness)
    return bags, labels


def test_cells_that_alone_tell_leave_a_control_near_half():
    bags, labels = people()
    found = without_witnesses(bags, labels.__getitem__, SETTINGS, Silent())
    assert found.real.auroc > 0.95
    assert found.control.interval[0] < 0.5 < found.control.interval[1]
    assert not found.differs
    assert found.n_removed == 12 * WITNESSES
    assert (found.control.n_positive_patients, found.control.n_negative_patients) == (12, 12)


def test_people_that_differ_are_told_apart_without_a_witness():
    bags, labels = people(shift=2.0)
    found = without_witnesses(bags, labels.__getitem__, SETTINGS, Silent())
    assert found.control.interval[0] > 0.5
    assert found.differs and found.to_dict()["differs"]


def test_labels_of_negative_bags_are_not_asked_for_and_nothing_of_the_bags_changes():
    bags, labels = people()
    before = [bag.values.clone() for bag in bags]
    asked = []

    def labels_of(i):
        asked.append(i)
        return labels[i]

    without_witnesses(bags, labels_of, SETTINGS, Silent())
    assert all(bags[i].label == 1 for i in asked)
    assert all(torch.equal(bag.values, values) for bag, values in zip(bags, before, strict=True))


def test_negative_bags_lose_as_large_a_share_of_their_cells(monkeypatch):
    bags, labels = people()
    sizes = []

    def watch(given, settings, listener):
        sizes.append({bag.label: len(bag.values) for bag in given})
        return real(given, settings, listener)

    from cytomil.evaluation import control

    real = control.cross_validate
    monkeypatch.setattr(control, "cross_validate", watch)
    without_witnesses(bags, labels.__getitem__, SETTINGS, Silent())
    assert sizes == [{0: N, 1: N}, {0: N - WITNESSES, 1: N - WITNESSES}]


def test_bags_whose_witnesses_are_not_known_are_left_out_of_both_and_listed():
    bags, labels = people()
    labels[1], labels[3] = None, np.where(labels[3] == 1, 1, -1)
    labels[5] = np.ones(N, dtype=int)
    found = without_witnesses(bags, labels.__getitem__, SETTINGS, Silent())
    assert {problem.where for problem in found.problems} == {"bag-1", "bag-3", "bag-5"}
    assert found.real.n_bags == found.control.n_bags == 21


def test_without_any_known_witness_permuted_labels_are_proposed():
    bags, _ = people()
    with pytest.raises(FeatureFileError, match="--permutations"):
        without_witnesses(bags, lambda i: None, SETTINGS, Silent())
    with pytest.raises(FeatureFileError, match="--permutations"):
        without_witnesses(bags, lambda i: np.zeros(N, dtype=int), SETTINGS, Silent())


def test_permuted_labels_are_told_apart_by_chance():
    bags, _ = people()
    found = permuted_labels(bags, {}, 6, SETTINGS, Silent())
    assert found.real.auroc > 0.95
    assert len(found.aurocs) == 6 and found.control.auroc == pytest.approx(np.mean(found.aurocs))
    assert max(found.aurocs) < found.real.auroc
    assert not found.differs


def test_labels_permuted_within_sites_that_differ_are_still_told_apart():
    bags, _ = people(shift=3.0, n=32)
    # Three in four patients of either site have its label, so that a permutation within it leaves the site's cells telling.
    site_of = {bag.patient: f"site {bag.label}" for bag in bags}
    swapped = [bags[i] for i in (0, 1, 2, 3, 4, 5)]
    site_of |= {bag.patient: f"site {1 - bag.label}" for bag in swapped}
    found = permuted_labels(bags, site_of, 4, SETTINGS, Silent())
    assert found.n_sites == 2
    assert found.differs


def test_a_patients_bags_change_labels_together(monkeypatch):
    from cytomil.evaluation import control

    bags, _ = people(n=24)
    pairs = [TrainingBag(bag.bag_id, bag.values, (i // 2) % 2, f"person-{i // 2}") for i, bag in enumerate(bags)]
    given = []
    real = control.cross_validate
    monkeypatch.setattr(control, "cross_validate", lambda bags, *rest: (given.append(list(bags)), real(bags, *rest))[1])
    permuted_labels(pairs, {}, 3, SETTINGS, Silent())
    orders = [[bag.label for bag in one] for one in given]
    assert any(order != orders[0] for order in orders[1:])
    for order in orders:
        assert order[::2] == order[1::2]
        assert sum(order) == 12


def test_a_table_of_sites(tmp_path):
    table = tmp_path / "sites.csv"
    table.write_text("Patient;Centre\nA;north\nB;south\n")
    assert read_sites(table) == {"A": "north", "B": "south"}
    table.write_text("patient,site\nA,north\nA,south\n")
    with pytest.raises(TableError, match="another site"):
        read_sites(table)
    table.write_text("patient,site\nA,\n")
    with pytest.raises(TableError, match="line 2"):
        read_sites(table)
