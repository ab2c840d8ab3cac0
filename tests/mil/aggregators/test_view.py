import pytest
import torch

from cytomil.mil.aggregators.view import learn_views
from cytomil.mil.bags import TrainingBag


def make_bags(n, seed, between=0.0, size=200, d=6):
    """Bags of one pool of cells, or each moved as a whole, as people's slides are."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, d, generator=generator) + between * torch.randn(d, generator=generator) for _ in range(n)]


def learnt(bags, start=0, stop=6, most=6):
    (view,), _ = learn_views(training(bags), [(start, stop, most)], [torch.arange(len(bag)) for bag in bags], 0)
    return view


def training(bags):
    return [TrainingBag(str(i), bag, i % 2, str(i)) for i, bag in enumerate(bags)]


def taken_off(view, bag):
    """Which share of a bag's own offset is taken off, a component."""
    projected = view.project(bag)
    return (projected - view.relative(projected))[0] / (projected.median(dim=0).values - view.centre)


def test_bags_of_one_pool_keep_their_medians():
    shares = [taken_off(learnt(make_bags(40, seed)), make_bags(1, seed + 50)[0]) for seed in range(10)]
    assert torch.cat(shares).mean() < 0.1
    assert torch.cat(shares).median() == 0


def test_bags_of_people_lose_theirs():
    for seed in range(5):
        assert taken_off(learnt(make_bags(40, seed, between=1.0)), make_bags(1, seed + 50)[0]).min() > 0.9


def test_of_few_cells_less_is_taken_off_and_of_one_next_to_nothing_where_bags_differ_little():
    view, bag = learnt(make_bags(40, 0, between=0.2)), make_bags(1, 9)[0]
    shares = [float(taken_off(view, bag[:n]).mean()) for n in (1, 20, 200)]
    assert shares == sorted(shares)
    assert shares[0] < 0.2 < 0.6 < shares[-1]  # noqa: PLR0133


def test_a_shift_of_a_whole_slide_moves_its_cells_hardly_where_bags_differ():
    view, (bag,) = learnt(make_bags(40, 0, between=1.0)), make_bags(1, 9)
    here, there = (view.relative(view.project(cells)) for cells in (bag, bag + 2))
    assert (here - there).abs().max() < 0.2 * (view.project(bag) - view.project(bag + 2)).abs().max()


def test_it_sees_its_columns_alone():
    bags = make_bags(4, 0)
    view, (bag,) = learnt(bags, 2, 5), make_bags(1, 9)
    assert view.project(bag).shape == (200, 3)
    other = bag.clone()
    other[:, [0, 1, 5]] += 100
    assert torch.equal(view.project(other), view.project(bag))


@pytest.mark.parametrize("bags", [make_bags(1, 0), make_bags(2, 0, size=1), [torch.ones(20, 6)] * 3])
def test_what_cannot_be_measured_is_not_taken_off(bags):
    view, (bag,) = learnt(bags), make_bags(1, 9)
    assert torch.equal(view.relative(view.project(bag)), view.project(bag))


def test_of_each_bag_the_cells_that_are_kept_come_back_relative_to_the_whole_bag():
    bags = make_bags(6, 0, between=1.0)
    kept = [torch.arange(3, 200, 5), *[torch.tensor([0, 7])] * 5]
    views, seen = learn_views(training(bags), [(0, 6, 4), (2, 5, 2)], kept, 0)
    for view, of_view in zip(views, seen, strict=True):
        for bag, cells, found in zip(bags, kept, of_view, strict=True):
            torch.testing.assert_close(found, view.relative(view.project(bag))[cells])
