import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.mil.bags import TrainingBag
from cytomil.mil.novelty import MANY_CELLS, MAX_SHIFT, UNLIKE_BELOW, Novelty, fit_novelty

DIM = 12
STRETCH = np.diag(np.linspace(0.5, 3, DIM))


def cells(rng, size=200, between=0.0, shift=0.0):
    """One slide's embeddings (size, 12); ``between`` moves the slide as a whole, as no two real slides are alike."""
    centre = rng.normal(size=DIM) * between
    return ((rng.normal(size=(size, DIM)) + centre + shift) @ STRETCH).astype(np.float32)


def bags_of(n, seed, **how):
    rng = np.random.default_rng(seed)
    return [TrainingBag(str(i), torch.from_numpy(cells(rng, **how)), i % 2, str(i)) for i in range(n)]


def fitted(n=18, seed=0, folds=3, **how):
    return fit_novelty(bags_of(n, seed, **how), np.arange(n) % folds)


@pytest.fixture(scope="module")
def novelty() -> Novelty:
    return fitted()


def test_about_one_held_out_cell_in_a_hundred_is_beyond(novelty):
    slide = cells(np.random.default_rng(99), size=20_000)
    assert novelty.measure([slide]).is_beyond.mean() == pytest.approx(0.01, abs=0.008)


@pytest.mark.parametrize("between", [0.0, 0.3])
@pytest.mark.parametrize("n", [6, 18])
def test_slides_like_the_training_ones_are_flagged_at_most_once_in_ten(n, between):
    flagged = []
    for seed in range(20):
        novelty = fitted(n, seed, between=between)
        rng = np.random.default_rng([seed, 1])
        flagged += [novelty.measure([cells(rng, between=between)]).is_unlike for _ in range(10)]
    assert np.mean(flagged) <= 0.1


@pytest.mark.parametrize("n", [6, 18])
@pytest.mark.parametrize("between", [0.0, 0.3])
def test_another_specimen_is_flagged_however_few_the_training_slides(n, between):
    for seed in range(5):
        judged = fitted(n, seed, between=between).measure([cells(np.random.default_rng(seed), shift=2.5)])
        assert judged.is_unlike
        assert judged.p_value < UNLIKE_BELOW
        assert judged.farther_than_all


def test_a_small_shift_of_all_cells_is_seen_though_no_cell_is_extreme(novelty):
    rng = np.random.default_rng(3)
    judged = novelty.measure([cells(rng, shift=0.4)])
    assert judged.is_unlike
    assert judged.is_beyond.mean() < 0.05


def test_a_few_strange_cells_do_not_make_a_slide_strange(novelty):
    slide = cells(np.random.default_rng(8))
    slide[:4] += 50
    judged = novelty.measure([slide])
    assert judged.is_beyond[:4].all()
    assert not judged.is_unlike


def test_training_slides_that_differ_without_bound_do_not_silence_it():
    wild = [bag for seed, between in enumerate((0, 0, 0, 40)) for bag in bags_of(1, seed, between=between)]
    judged = fit_novelty(wild, np.arange(4) % 2).measure([cells(np.random.default_rng(1), shift=500.0)])
    assert judged.shift > MAX_SHIFT
    assert judged.is_unlike


def test_cells_outside_of_all_directions_of_the_training_cells_are_beyond():
    bags = bags_of(8, 0)
    for bag in bags:
        bag.values[:, 6:] *= 1e-3
    novelty = fit_novelty(bags, np.arange(8) % 2)
    slide = cells(np.random.default_rng(5))
    assert novelty.measure([slide]).is_beyond.mean() > 0.9


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_the_scale_of_the_embeddings_does_not_matter(scale, seed):
    slide = cells(np.random.default_rng(seed), size=60, shift=0.2)
    plain = fitted(6, 1, size=60).measure([slide])
    bags = [TrainingBag(b.bag_id, b.values * scale, b.label, b.patient) for b in bags_of(6, 1, size=60)]
    scaled = fit_novelty(bags, np.arange(6) % 3).measure([slide * np.float32(scale)])
    assert scaled.p_value == pytest.approx(plain.p_value, rel=0.05, abs=1e-6)


def test_a_larger_bag_of_the_same_cells_is_as_usual_as_a_small_one():
    novelty = fitted(size=30)
    rng = np.random.default_rng(2)
    assert sum(novelty.measure([cells(rng, size=3000)]).is_unlike for _ in range(20)) <= 2


def test_a_direction_that_never_varied_does_no_harm():
    bags = bags_of(6, 0)
    for bag in bags:
        bag.values[:, 2] = 1.0
    judged = fit_novelty(bags, np.arange(6) % 2).measure([bags[0].values.numpy()])
    assert np.isfinite(judged.p_value)
    assert not judged.is_unlike


def test_one_cell_of_identical_cells_gives_numbers():
    bags = [TrainingBag(str(i), torch.ones(1, 3), i % 2, str(i)) for i in range(4)]
    judged = fit_novelty(bags, np.arange(4) % 2).measure([np.ones((1, 3), np.float32)])
    assert np.isfinite([judged.p_value, judged.shift]).all()
    assert not judged.is_unlike


def test_a_group_of_many_columns_does_not_drown_one_of_few():
    rng = np.random.default_rng(0)

    def slide(shift):
        return np.hstack([rng.normal(size=(300, 200)), rng.normal(size=(300, 4)) + shift]).astype(np.float32)

    bags = [TrainingBag(str(i), torch.from_numpy(slide(0.0)), i % 2, str(i), (200, 4)) for i in range(12)]
    assert fit_novelty(bags, np.arange(12) % 3).measure([slide(1.5)]).is_unlike


def test_blocks_of_any_size_give_what_the_whole_bag_gives(novelty):
    slide = cells(np.random.default_rng(4), shift=0.2)
    blocks = (slide[start : start + 7] for start in range(0, len(slide), 7))
    parted, whole = novelty.measure(blocks), novelty.measure([slide])
    assert parted.p_value == pytest.approx(whole.p_value, rel=1e-6)
    assert (parted.is_beyond == whole.is_beyond).all()


def test_the_same_bags_give_the_same_limits():
    for name, tensor in fitted(seed=5).tensors().items():
        assert torch.equal(tensor, fitted(seed=5).tensors()[name]), name


def test_the_average_cell_of_a_large_slide_is_that_of_every_eighth_whatever_the_blocks(novelty):
    slide = cells(np.random.default_rng(5), size=MANY_CELLS + 100, shift=0.2)
    found = novelty.measure([slide[:300], slide[300:1111], slide[1111:]])
    sample = novelty.measure([slide[::8]])
    assert found.shift == pytest.approx(sample.shift)
    assert found.p_value == pytest.approx(sample.p_value)
    assert len(found.is_beyond) == len(slide)
    assert np.array_equal(found.is_beyond[::8], sample.is_beyond)
