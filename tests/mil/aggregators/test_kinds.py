import pytest
import torch

from cytomil.mil.aggregators.kinds import find_kinds, squared_to_each


def cells(n, seed, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kinds_far_apart_are_found():
    centres = torch.tensor([[0.0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 20]], dtype=torch.float64)
    found = find_kinds(torch.cat([cells(100, i) + centre for i, centre in enumerate(centres)]), 0)
    assert (squared_to_each(found.means, centres).amin(dim=0) < 0.5).all()
    torch.testing.assert_close(found.shares, torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(found.covariance, torch.eye(3, dtype=torch.float64), atol=0.2, rtol=0)
    assert found.belongs.shape == (len(found.cells), 4)


@pytest.mark.parametrize(("n", "n_kinds"), [(1, 1), (2, 1), (39, 1), (40, 2), (500, 4)])
def test_few_cells_are_of_few_kinds(n, n_kinds):
    assert len(find_kinds(cells(n, 0), 0).means) == n_kinds


def test_of_many_cells_six_thousand_are_drawn():
    assert len(find_kinds(cells(7_000, 0), 0).cells) == 6_000


def test_squared_distances_are_exact_far_from_the_origin():
    at = torch.full((1, 3), 1e8, dtype=torch.float64)
    assert float(squared_to_each(at, at + 1)) == pytest.approx(3)
