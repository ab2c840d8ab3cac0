import numpy as np
import torch

from cytomil.mil.aggregators.matched_contrast import SHARES, MatchedContrast


def make(n, seed, oddness=1.5, witnesses=0, d=6):
    """Cells whose first coordinate is how odd they are; witnesses are as odd as the oddest, and far out in the second."""
    cells = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cells[:, 0] *= oddness
    if witnesses:
        cells[:witnesses, 0] = 3.0 * oddness
        cells[:witnesses, 1] += 4.0
    return cells


def learn(negatives, positives, penalty=0.0):
    suspicion = torch.cat(negatives)[:, 0], torch.cat(positives)[:, 0]
    return MatchedContrast.learn(negatives, positives, suspicion, torch.full((6,), penalty, dtype=torch.float64))


def test_it_equals_the_formula_written_out():
    negatives, positives = [make(80, 0), make(120, 1)], [make(100, 2, witnesses=4)]
    found = learn(negatives, positives, penalty=0.7)
    n, p = torch.cat(negatives).numpy(), torch.cat(positives).numpy()
    weight = np.zeros(6)
    for share in SHARES:
        threshold = np.quantile(n[:, 0], 1 - share)
        difference = p[p[:, 0] >= threshold].mean(0) - n[n[:, 0] >= threshold].mean(0)
        direction = np.linalg.inv(np.cov(n.T, ddof=0) + 0.7 * np.eye(6)) @ difference
        weight += direction / (n @ direction).std() / len(SHARES)
    np.testing.assert_allclose(found.weight, weight, rtol=1e-8)
    cells = make(20, 9)
    expected = np.maximum((cells.numpy() - n.mean(0)) @ weight, 0)
    np.testing.assert_allclose(found(cells), expected, rtol=1e-8, atol=1e-12)


def test_what_odd_cells_of_both_labels_share_counts_for_little():
    model = learn([make(4_000, 0)], [make(4_000, 1, witnesses=60)])
    assert abs(model.weight[1]) > 5 * abs(model.weight[0])


def test_a_greater_penalty_changes_the_direction_not_the_scale():
    negatives, positives = [make(500, 0)], [make(500, 1, witnesses=20)]
    cells = make(5_000, 5)
    spreads = [
        float(((cells - m.middle) @ m.weight).std()) for m in (learn(negatives, positives, x) for x in (0.0, 50.0))
    ]
    assert 0.5 < spreads[0] / spreads[1] < 2


def test_without_suspects_past_the_negatives_it_says_nothing():
    model = learn([make(100, 0)], [make(100, 1) - 100])
    assert not model(make(10, 3)).any()
