import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytomil.encoders.architecture import Standardise, make_projector
from cytomil.errors import SettingsError


@given(seed=st.integers(0, 99), scale=st.floats(1e-2, 1e3), shift=st.floats(-1e3, 1e3))
def test_training_brings_every_dimension_to_mean_0_and_variance_1(seed, scale, shift):
    rows = torch.randn(64, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift
    seen = Standardise(5).double()(rows)
    assert torch.allclose(seen.mean(dim=0), torch.zeros(5, dtype=torch.float64), atol=1e-6)
    # The variance is kept off zero by 1e-5, so a tiny scale falls short of 1.
    expected = rows.var(dim=0, unbiased=False) / (rows.var(dim=0, unbiased=False) + 1e-5)
    assert torch.allclose(seen.var(dim=0, unbiased=False), expected, atol=1e-6)


def test_evaluation_uses_what_training_saw_and_rows_do_not_touch_each_other():
    generator = torch.Generator().manual_seed(0)
    standardise = Standardise(3)
    for _ in range(200):
        standardise(torch.randn(500, 3, generator=generator) * 4 + 7)
    standardise.eval()
    rows = torch.randn(6, 3, generator=generator) * 4 + 7
    assert torch.allclose(standardise(rows), (rows - 7) / 4, atol=0.05)
    assert torch.equal(standardise(rows[:1]), standardise(rows)[:1])


def test_one_point_is_not_to_be_had():
    """Rows that all but coincide are as far apart after it as any."""
    rows = torch.ones(256, 8) + 0.1 * torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    cosines = torch.nn.functional.normalize(Standardise(8)(rows), dim=1)
    assert (cosines @ cosines.T).mean() < 0.01


@pytest.mark.parametrize("kind", ["plain", "standardised"])
def test_shapes(kind):
    projector, standardise = make_projector(kind, 12, 5)
    assert standardise(projector(torch.randn(4, 12))).shape == (4, 5)


def test_without_a_projection_z_is_h():
    projector, standardise = make_projector("standardised", 12, 0)
    h = torch.randn(4, 12)
    assert standardise(projector(h)) is h


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(SettingsError, match="no projector 'quadratic'"):
        make_projector("quadratic", 12, 5)


@pytest.mark.parametrize("forwards", [1, 3])
def test_running_statistics_follow_a_batch_once_however_often_it_is_seen(forwards):
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(2)) * 4 + 7
    standardise = Standardise(3)
    seen = [standardise(rows, update_statistics=i == 0) for i in range(forwards)]
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert torch.allclose(standardise.mean, 0.1 * rows.mean(dim=0))
    assert torch.allclose(standardise.variance, 0.9 + 0.1 * rows.var(dim=0))
