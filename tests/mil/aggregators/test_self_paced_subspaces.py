"""What self-paced measures cells by: components, what is relative to a bag, and reading it in blocks."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from cytomil.mil.aggregators import self_paced_subspaces
from cytomil.mil.aggregators.self_paced_subspaces import Components, SubspacesReading, learn_subspaces
from cytomil.mil.bags import TrainingBag


def varied_cells(n=50, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 3, d) + 7


def test_they_are_scikit_learns_whitened_components():
    model = Components.learn(varied_cells(), 4)
    expected = PCA(4, whiten=True, svd_solver="covariance_eigh").fit(varied_cells().double().numpy())
    np.testing.assert_allclose(
        model(varied_cells(9, seed=1)),
        expected.transform(varied_cells(9, seed=1).double().numpy()),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(model(varied_cells()).var(dim=0), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0)


def test_there_are_no_more_than_the_cells_have_and_what_does_not_vary_stays_small():
    assert Components.learn(varied_cells(3), 64)(varied_cells()).shape == (50, 2)
    flat = torch.cat([varied_cells(), torch.ones(50, 2)], dim=1)
    model = Components.learn(flat, 64)
    assert model(flat).shape == (50, 8)
    assert model(flat).abs().max() < 10


def test_few_components_among_many_are_the_same_as_by_full_decomposition():
    many = varied_cells(120, 90)
    model = Components.learn(many, 5)
    expected = PCA(5, whiten=True, svd_solver="full").fit(many.double().numpy())
    np.testing.assert_allclose(model(many), expected.transform(many.double().numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 3])
def test_cells_that_vary_in_less_than_there_are_components_give_finite_ones(rank):
    flat = varied_cells(100, 90) * (torch.arange(90) < rank) + 5
    model = Components.learn(flat, 8)
    assert model(flat).isfinite().all()
    assert model(flat).abs().max() < 10


def cells_of_bags(n, seed, between=0.0, size=200, d=6):
    """Bags of one pool of cells, or each moved as a whole, as people's slides are."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, d, generator=generator) + between * torch.randn(d, generator=generator) for _ in range(n)]


def learnt(bags, start=0, stop=6, most=6):
    (view,), _ = learn_subspaces(training(bags), [(start, stop, most)], [torch.arange(len(bag)) for bag in bags], 0)
    return view


def training(bags):
    return [TrainingBag(str(i), bag, i % 2, str(i)) for i, bag in enumerate(bags)]


def taken_off(view, bag):
    """Which share of a bag's own offset is taken off, a component."""
    projected = view.project(bag)
    return (projected - view.relative(projected))[0] / (projected.median(dim=0).values - view.centre)


def test_bags_of_one_pool_keep_their_medians():
    shares = [taken_off(learnt(cells_of_bags(40, seed)), cells_of_bags(1, seed + 50)[0]) for seed in range(10)]
    assert torch.cat(shares).mean() < 0.1
    assert torch.cat(shares).median() == 0


def test_bags_of_people_lose_theirs():
    for seed in range(5):
        assert taken_off(learnt(cells_of_bags(40, seed, between=1.0)), cells_of_bags(1, seed + 50)[0]).min() > 0.9


def test_of_few_cells_less_is_taken_off_and_of_one_next_to_nothing_where_bags_differ_little():
    view, bag = learnt(cells_of_bags(40, 0, between=0.2)), cells_of_bags(1, 9)[0]
    shares = [float(taken_off(view, bag[:n]).mean()) for n in (1, 20, 200)]
    assert shares == sorted(shares)
    assert shares[0] < 0.2 < 0.6 < shares[-1]  # noqa: PLR0133


def test_a_shift_of_a_whole_slide_moves_its_cells_hardly_where_bags_differ():
    view, (bag,) = learnt(cells_of_bags(40, 0, between=1.0)), cells_of_bags(1, 9)
    here, there = (view.relative(view.project(cells)) for cells in (bag, bag + 2))
    assert (here - there).abs().max() < 0.2 * (view.project(bag) - view.project(bag + 2)).abs().max()


def test_it_sees_its_columns_alone():
    bags = cells_of_bags(4, 0)
    view, (bag,) = learnt(bags, 2, 5), cells_of_bags(1, 9)
    assert view.project(bag).shape == (200, 3)
    other = bag.clone()
    other[:, [0, 1, 5]] += 100
    assert torch.equal(view.project(other), view.project(bag))


@pytest.mark.parametrize("bags", [cells_of_bags(1, 0), cells_of_bags(2, 0, size=1), [torch.ones(20, 6)] * 3])
def test_what_cannot_be_measured_is_not_taken_off(bags):
    view, (bag,) = learnt(bags), cells_of_bags(1, 9)
    assert torch.equal(view.relative(view.project(bag)), view.project(bag))


def test_of_each_bag_the_cells_that_are_kept_come_back_relative_to_the_whole_bag():
    bags = cells_of_bags(6, 0, between=1.0)
    kept = [torch.arange(3, 200, 5), *[torch.tensor([0, 7])] * 5]
    views, seen = learn_subspaces(training(bags), [(0, 6, 4), (2, 5, 2)], kept, 0)
    for view, of_view in zip(views, seen, strict=True):
        for bag, cells, found in zip(bags, kept, of_view, strict=True):
            torch.testing.assert_close(found, view.relative(view.project(bag))[cells])


def cells(n, seed=0, shift=0.0):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture
def views():
    """Views of bags that differ as a whole, so that a bag's median matters."""
    bags = [TrainingBag(str(i), cells(60, i, shift=float(i)), i % 2, str(i)) for i in range(6)]
    found, _ = learn_subspaces(bags, [(0, 5, 2), (2, 5, 2)], [torch.arange(60)] * 6, 0)
    return found


def read(views, blocks):
    reading = SubspacesReading(
        views,
        lambda parts: (parts[0][:, 0].exp() + parts[1][:, 1].exp()).float(),
        lambda distances: float(distances.mean()),
    )
    for block in blocks:
        reading.add(block)
    return reading.result()


def by_definition(views, bag):
    first, second = (view.relative(view.project(bag)) for view in views)
    return (first[:, 0].exp() + second[:, 1].exp()).float().clamp(min=1e-6)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_whatever_the_blocks_cells_are_judged_relative_to_the_whole_bag(views, size):
    bag = cells(60, 9, shift=3)
    probability, distances = read(views, bag.split(size))
    torch.testing.assert_close(distances, by_definition(views, bag), rtol=1e-4, atol=1e-5)
    assert probability == float(distances.mean())


def test_a_large_bag_lies_in_a_file_and_is_judged_as_one_in_memory(views, monkeypatch):
    bag = cells(20_000, 9, shift=3)
    _, in_memory = read(views, bag.split(3_000))
    monkeypatch.setattr(self_paced_subspaces, "IN_MEMORY", 10_000)
    _, from_file = read(views, bag.split(3_000))
    torch.testing.assert_close(from_file, in_memory, rtol=0.1, atol=0)


def test_the_medians_of_a_large_bag_are_of_evenly_spread_cells(views, monkeypatch):
    monkeypatch.setattr(self_paced_subspaces, "IN_MEMORY", 100)
    bag = cells(250, 9, shift=3)
    medians = [view.project(bag)[::3].median(dim=0).values for view in views]
    first, second = (
        view.relative_to(view.project(bag), median, 250) for view, median in zip(views, medians, strict=True)
    )
    _, distances = read(views, bag.split(77))
    expected = (first[:, 0].exp() + second[:, 1].exp()).float()
    torch.testing.assert_close(distances, expected, rtol=1e-4, atol=1e-5)
