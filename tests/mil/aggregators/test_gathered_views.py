import pytest
import torch

from cytomil.mil.aggregators import gathered_views
from cytomil.mil.aggregators.gathered_views import ViewsReading
from cytomil.mil.aggregators.view import learn_views
from cytomil.mil.bags import TrainingBag


def cells(n, seed=0, shift=0.0):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture
def views():
    """Views of bags that differ as a whole, so that a bag's median matters."""
    bags = [TrainingBag(str(i), cells(60, i, shift=float(i)), i % 2, str(i)) for i in range(6)]
    found, _ = learn_views(bags, [(0, 5, 2), (2, 5, 2)], [torch.arange(60)] * 6, 0)
    return found


def read(views, blocks):
    reading = ViewsReading(
        views,
        lambda parts: parts[0][:, 0].exp() + parts[1][:, 1].exp(),
        lambda distances: float(distances.mean()),
    )
    for block in blocks:
        reading.add(block)
    return reading.result()


def by_definition(views, bag):
    first, second = (view.relative(view.project(bag)) for view in views)
    return (first[:, 0].exp() + second[:, 1].exp()).clamp(min=1e-6)


@pytest.mark.parametrize("size", [1, 7, 60])
def test_whatever_the_blocks_cells_are_judged_relative_to_the_whole_bag(views, size):
    bag = cells(60, 9, shift=3)
    probability, distances = read(views, bag.split(size))
    torch.testing.assert_close(distances, by_definition(views, bag), rtol=1e-4, atol=1e-5)
    assert probability == float(distances.mean())


def test_a_large_bag_lies_in_a_file_and_is_judged_as_one_in_memory(views, monkeypatch):
    bag = cells(20_000, 9, shift=3)
    _, in_memory = read(views, bag.split(3_000))
    monkeypatch.setattr(gathered_views, "IN_MEMORY", 10_000)
    _, from_file = read(views, bag.split(3_000))
    torch.testing.assert_close(from_file, in_memory, rtol=0.1, atol=0)


def test_the_medians_of_a_large_bag_are_of_evenly_spread_cells(views, monkeypatch):
    monkeypatch.setattr(gathered_views, "IN_MEMORY", 100)
    bag = cells(250, 9, shift=3)
    medians = [view.project(bag)[::3].median(dim=0).values for view in views]
    first, second = (
        view.relative_to(view.project(bag), median, 250) for view, median in zip(views, medians, strict=True)
    )
    _, distances = read(views, bag.split(77))
    torch.testing.assert_close(distances, first[:, 0].exp() + second[:, 1].exp(), rtol=1e-4, atol=1e-5)
