from typing import ClassVar

import numpy as np
import pytest
import torch

from cytomil.mil.aggregators.discriminant import Discriminant, shrunk
from cytomil.mil.aggregators.pacing import SHARES, Paced, learn_paced


def make_bags(n, seed, witnesses=0, size=50, d=4):
    values = torch.randn(n, size, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[:, :witnesses, 0] += 5
    return list(values)


def folds(n_negatives, n_positives):
    n = min(5, n_negatives, n_positives)
    return [i % n for i in range(n_negatives)], [i % n for i in range(n_positives)]


@pytest.mark.parametrize(("n_negatives", "n_positives"), [(7, 6), (3, 8), (1, 1)])
def test_it_equals_pacing_written_out(n_negatives, n_positives):
    negatives, positives = make_bags(n_negatives, 0), make_bags(n_positives, 1, witnesses=3)
    n_folds = min(5, n_negatives, n_positives)
    n, p = ([bag.numpy() for bag in side] for side in (negatives, positives))

    def weight(some, suspects):
        some, suspects = np.vstack(some), np.vstack(suspects)
        return np.linalg.inv(shrunk(torch.from_numpy(np.cov(some.T, ddof=0))).numpy()) @ (
            suspects.mean(0) - some.mean(0)
        )

    suspects = p
    for share in (0.3, 0.2, 0.12, 0.08, 0.06):
        scores = []
        for i, bag in enumerate(p):
            of_fold = [j % n_folds == i % n_folds for j in range(10)]
            single = n_folds == 1
            w = weight(
                [one for j, one in enumerate(n) if single or not of_fold[j]],
                [one for j, one in enumerate(suspects) if single or not of_fold[j]],
            )
            usual = np.vstack([one for j, one in enumerate(n) if of_fold[j]]) @ w
            scores.append((bag @ w - usual.mean()) / usual.std())
        threshold = np.quantile(np.concatenate(scores), 1 - share)
        suspects = [bag[score >= threshold] for bag, score in zip(p, scores, strict=True)]
    found = learn_paced(Discriminant, negatives, positives, folds(n_negatives, n_positives), 0)
    for held, score in zip(found.positives, scores, strict=True):
        np.testing.assert_allclose(held, score, rtol=1e-6)
    np.testing.assert_allclose(found.scorer.weight, weight(n, suspects), rtol=1e-6)


class Recorder(Paced):
    """Cells are (score, bag). Notes which bags each scorer has seen, and which it is then asked about."""

    asked: ClassVar = []
    n_suspects: ClassVar = []

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    @classmethod
    def study(cls, negatives, seed):
        return set(negatives[:, 1].tolist())

    @classmethod
    def against(cls, known, suspects):
        cls.n_suspects.append(len(suspects))
        return cls(known | set(suspects[:, 1].tolist()))

    def forward(self, cells):
        self.asked.append((self.seen, set(cells[:, 1].tolist())))
        return cells[:, 0]


@pytest.fixture
def recorder():
    class Fresh(Recorder):
        asked: ClassVar = []
        n_suspects: ClassVar = []

    return Fresh


def numbered(n, start, seed=0):
    scores = torch.randn(n, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [torch.stack([score, torch.full_like(score, start + i)], dim=1) for i, score in enumerate(scores)]


def test_no_bag_is_judged_by_a_scorer_that_has_seen_it(recorder):
    learn_paced(recorder, numbered(6, 0), numbered(7, 100), folds(6, 7), 0)
    assert set.union(*(bags for _, bags in recorder.asked)) == {*range(6), *range(100, 107)}
    assert all(not seen & bags for seen, bags in recorder.asked)


def test_nor_where_all_suspects_lie_in_the_bag_that_is_held_out(recorder):
    positives = numbered(4, 100)
    positives[0][:, 0] += 100
    learn_paced(recorder, numbered(4, 0), positives, folds(4, 4), 0)
    assert all(not seen & bags for seen, bags in recorder.asked)


def test_at_last_six_cells_in_a_hundred_are_suspects(recorder):
    model = learn_paced(recorder, numbered(5, 0), numbered(10, 100), folds(5, 10), 0)
    assert recorder.n_suspects[-1] == pytest.approx(SHARES[-1] * 1000, abs=1)
    assert model.scorer.seen >= set(range(5))


def test_whose_bags_are_held_out_together_is_the_callers_to_say(recorder):
    learn_paced(recorder, numbered(4, 0), numbered(4, 100), ([0, 0, 1, 1], [0, 0, 1, 1]), 0)
    first, second = {0, 1, 100, 101}, {2, 3, 102, 103}
    assert all(not (seen & first and bags & first) for seen, bags in recorder.asked)
    assert all(not (seen & second and bags & second) for seen, bags in recorder.asked)
