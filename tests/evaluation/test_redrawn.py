import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.evaluation.control import redrawn_metrics


def bags(n=4, size=30, witnesses=3, seed=0):
    """Embeddings (N, 2): a cell's own number, and its instance label."""
    rng = np.random.default_rng(seed)
    made, number = [], 0
    for i in range(n):
        labels = rng.permutation(np.arange(size) < witnesses * (i % 2)).astype(int)
        made.append((np.stack([np.arange(number, number + size), labels], axis=1).astype(np.float32), labels))
        number += size
    return made


def by_share(values):
    return float(values[:, 1].mean())


def test_a_model_that_sees_the_witnesses_is_perfect_and_one_that_sees_nothing_is_chance():
    perfect = redrawn_metrics(bags(), by_share, 0.05, 200, 0)
    assert (perfect.bag.auroc, perfect.bag.f1, perfect.best_f1) == (1, 1, 1)
    assert np.array_equal(np.array(perfect.probabilities) >= 0.05, np.array(perfect.labels) == 1)
    assert perfect.bag.n_bags == 2 * perfect.bag.n_positive == 200
    blind = redrawn_metrics(bags(), lambda values: 0.5, 0.6, 200, 0)
    assert blind.bag.auroc == 0.5
    assert blind.bag.f1 == 0
    assert (blind.best_f1, blind.best_threshold) == (pytest.approx(2 / 3), 0.25)


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 40), st.integers(1, 4), st.integers(0, 999))
def test_every_drawn_bag_has_the_size_and_witnesses_of_the_measured_and_no_cell_twice(size, witnesses, seed):
    seen = []
    redrawn_metrics(bags(size=size, witnesses=witnesses), lambda values: seen.append(values) or 0.5, 0.5, 6, seed)
    assert [len(values) for values in seen] == [size] * 6
    assert [int(values[:, 1].sum()) for values in seen] == [0, witnesses] * 3
    assert all(len(np.unique(values[:, 0])) == size for values in seen)


def test_the_best_threshold_is_the_one_of_greatest_f1():
    rng = np.random.default_rng(0)
    found = redrawn_metrics(
        bags(), lambda values: float(np.clip(by_share(values) + rng.normal(0.3, 0.1), 0, 1)), 0.2, 80, 0
    )
    assert found.bag.f1 < found.best_f1 < 1
    assert 0.2 < found.best_threshold < 0.6


def test_the_same_seed_draws_the_same_bags():
    def drawn(seed):
        seen = []
        redrawn_metrics(bags(), lambda values: seen.append(values[:, 0]) or 0.5, 0.5, 4, seed)
        return np.concatenate(seen)

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))


def test_cells_of_unknown_label_are_left_out_and_without_either_kind_there_is_nothing_to_draw():
    unknown = [(values, np.where(values[:, 0] % 5 == 0, -1, labels)) for values, labels in bags()]
    found = redrawn_metrics(unknown, lambda values: float((values[:, 0] % 5 == 0).any()), 0.5, 20, 0)
    assert found.bag.f1 == 0
    with pytest.raises(ValueError, match="abnormal"):
        redrawn_metrics(bags(witnesses=0), by_share, 0.5, 4, 0)
