import math

import pytest
import torch

from cytomil.training.run import Health, effective_rank, examine, learning_rate_at, mean_cosine, spread, variation


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_closed_forms():
    assert effective_rank(torch.ones(20, 5)) == 1.0
    line = torch.linspace(0, 1, 30).unsqueeze(1) * torch.tensor([[1.0, -2.0, 3.0]])
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-6)
    simplex = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(simplex) == pytest.approx(4.0)


def test_effective_rank_ignores_scale_and_shift_and_turns():
    embeddings = normal(50, 6)
    turn, _ = torch.linalg.qr(normal(6, 6, seed=1))
    assert effective_rank(embeddings @ turn * 7 + 3) == pytest.approx(effective_rank(embeddings), rel=1e-4)


def test_spread_is_one_on_the_sphere_and_zero_in_a_point():
    assert spread(normal(4000, 32)) == pytest.approx(1.0, abs=0.02)
    assert spread(torch.ones(10, 8)) == pytest.approx(0.0, abs=1e-9)


def test_mean_cosine_closed_forms():
    assert mean_cosine(torch.ones(5, 3)) == pytest.approx(1.0)
    assert mean_cosine(torch.eye(4)) == pytest.approx(0.0, abs=1e-12)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("health", "margin", "collapsed"),
    [
        (Health(300, 40, 0.6, 0.5, 0.5), 1.0, False),
        (Health(300, 40, 0.05, 0.99, 0.5), 1.0, True),
        (Health(1.5, 40, 0.6, 0.5, 0.5), 1.0, True),
        (Health(300, 1.2, 0.6, 0.5, 0.5), 1.0, True),
        (Health(300, 40, 0.6, 0.5, 0.5), 0.001, True),
        (Health(300, 40, 0.6, 0.5, 0.5), None, False),
        (Health(300, 40, 0.6, 0.5, 1e-4), None, True),
    ],
)
def test_collapse_is_seen(health, margin, collapsed):
    chance = None if margin is None else math.log(255)
    assert bool(health.collapse_reason(margin, chance)) is collapsed


def test_two_classes_told_apart_perfectly_are_a_line_and_no_collapse():
    told_apart = Health(1.2, 1.1, 0.8, 1.0, 0.9)
    assert not told_apart.collapse_reason(None, None, may_be_line=True)
    assert told_apart.collapse_reason(None, None)
    assert Health(1.2, 1.1, 0.01, 1.0, 0.9).collapse_reason(None, None, may_be_line=True)


def test_variation_closed_forms():
    assert variation(torch.ones(10, 3)) == 0.0
    assert variation(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(1.0)
    assert variation(5 + 0.05 * normal(20_000, 4)) == pytest.approx(0.01, rel=0.02)


class _Echo(torch.nn.Module):
    """An encoder whose z is the cell's first pixel, scaled to 0 to 1, so that a test decides what it gives."""

    mean = torch.zeros(1)

    def forward(self, pixels):
        z = pixels[:, :, 0, 0]
        return z, z


def test_directions_are_read_from_the_origin():
    pixels = torch.full((8, 1, 1, 3), 200, dtype=torch.uint8)
    pixels[::2, 0, 0, 0] = 202
    pixels[1::2, 0, 0, 0] = 198
    is_positive = torch.arange(8) >= 4
    assert examine(_Echo(), pixels, is_positive).spread < 0.02
    centred = examine(_Echo(), pixels, is_positive, torch.full((3,), 200 / 255))
    assert centred.spread > 0.5
    assert centred.negatives_mean_cosine == pytest.approx(-1 / 3, abs=1e-4)


def test_schedule_warms_up_then_falls_to_nothing():
    rates = [learning_rate_at(step, 100, 10, 0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert learning_rate_at(0, 100, 0, 0.1) == pytest.approx(0.1)
