import math

import pytest
import torch

from cytomil.pretrain.diagnostics import Health, effective_rank, mean_cosine, spread
from cytomil.pretrain.schedule import learning_rate_at


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
        (Health(300, 40, 0.6, 0.5), 1.0, False),
        (Health(300, 40, 0.05, 0.99), 1.0, True),
        (Health(1.5, 40, 0.6, 0.5), 1.0, True),
        (Health(300, 1.2, 0.6, 0.5), 1.0, True),
        (Health(300, 40, 0.6, 0.5), 0.001, True),
        (Health(300, 40, 0.6, 0.5), None, False),
    ],
)
def test_collapse_is_seen(health, margin, collapsed):
    chance = None if margin is None else math.log(255)
    assert bool(health.collapse_reason(margin, chance)) is collapsed


def test_schedule_warms_up_then_falls_to_nothing():
    rates = [learning_rate_at(step, 100, 10, 0.1) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert learning_rate_at(0, 100, 0, 0.1) == pytest.approx(0.1)
