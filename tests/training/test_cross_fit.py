import numpy as np
import pytest
import torch

from cytomil.errors import BagFileError
from cytomil.training.methods.its2clr import cross_fitted_scores, top_fraction


def slides(n_bags=8, size=40, n_abnormal=8, dim=6, seed=0):
    """Cells of ``n_bags`` bags, every second positive; abnormal ones lie off along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    bag = torch.arange(n_bags).repeat_interleave(size)
    x = torch.randn(n_bags * size, dim, generator=generator)
    is_positive = bag % 2 == 1
    is_abnormal = is_positive & (torch.arange(len(bag)) % size < n_abnormal)
    x[is_abnormal, 0] += 4
    return x, is_positive, bag, is_abnormal


def test_slide_labels_alone_find_what_sets_positive_slides_apart():
    x, is_positive, bag, is_abnormal = slides()
    scores = cross_fitted_scores(x, is_positive, bag)
    assert scores[~is_positive].isnan().all()
    found = scores[is_abnormal][:, None] > scores[is_positive & ~is_abnormal][None, :]
    assert float(found.float().mean()) > 0.95


def test_a_patients_own_cells_have_no_part_in_its_scores():
    x, is_positive, bag, _ = slides()
    scores = cross_fitted_scores(x, is_positive, bag)
    peculiar = x.clone()
    peculiar[bag == 1, 3] += torch.linspace(0, 50, 40)
    again = cross_fitted_scores(peculiar, is_positive, bag)
    # The same direction scores them, so that scores move by one multiple of what was added.
    ratio = (again - scores)[bag == 1][1:] / torch.linspace(0, 50, 40)[1:]
    torch.testing.assert_close(ratio, ratio[:1].expand(39))
    assert not torch.allclose(again[bag == 3], scores[bag == 3])


def test_the_direction_is_the_closed_form():
    x, is_positive, bag, _ = slides(n_bags=4)
    scores = cross_fitted_scores(x, is_positive, bag)
    negative, positive = x[~is_positive].double().numpy(), x[bag == 3].double().numpy()
    pooled = (np.cov(negative.T, bias=True) + np.cov(positive.T, bias=True)) / 2
    pooled += 0.1 * np.trace(pooled) / len(pooled) * np.eye(len(pooled))
    expected = x[bag == 1].double().numpy() @ np.linalg.inv(pooled) @ (positive.mean(0) - negative.mean(0))
    np.testing.assert_allclose(scores[bag == 1].numpy(), expected, rtol=1e-9)


def test_one_positive_patient_cannot_be_scored_by_others():
    x, is_positive, _, _ = slides(n_bags=2)
    with pytest.raises(BagFileError, match="two patients"):
        cross_fitted_scores(x, is_positive, torch.zeros(len(x), dtype=torch.int64))


def test_top_share_takes_the_best_of_each_bag_and_at_least_one():
    scores = torch.tensor([0.1, 0.9, 0.5, float("nan"), 3.0, 1.0, 2.0, 0.0])
    bag = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    assert top_fraction(scores, bag, 0.5).tolist() == [1, 2, 4, 6]
    assert top_fraction(scores, bag, 0.01).tolist() == [1, 4]
    assert top_fraction(scores, bag, 1.0).tolist() == [0, 1, 2, 4, 5, 6, 7]
