import numpy as np
import pytest

from cytomil.mil.novelty import LEAST_SHARE, TIMES_GREATEST, Novelty, fit_novelty


def bags_of(n, seed, size=200, shift=0.0):
    rng = np.random.default_rng(seed)
    stretch = np.diag(np.linspace(0.5, 3, 6))
    return [(rng.normal(size=(size, 6)) @ stretch + shift).astype(np.float32) for _ in range(n)]


@pytest.fixture(scope="module")
def novelty() -> Novelty:
    return fit_novelty(bags_of(9, 0), np.arange(9) % 3)


def share(novelty, bag):
    return float(novelty.is_beyond([bag]).mean())


def test_about_one_training_cell_in_a_hundred_is_beyond(novelty):
    assert share(novelty, np.concatenate(bags_of(9, 0))) == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("seed", range(1, 6))
def test_slides_like_the_training_ones_are_within_what_is_allowed(novelty, seed):
    assert all(share(novelty, bag) <= novelty.greatest_allowed for bag in bags_of(4, seed))


def test_a_shifted_slide_is_beyond_what_is_allowed(novelty):
    (bag,) = bags_of(1, 7, shift=4.0)
    assert share(novelty, bag) > novelty.greatest_allowed


def test_a_few_strange_cells_do_not_make_a_slide_strange(novelty):
    (bag,) = bags_of(1, 8)
    bag[:4] += 50
    assert novelty.is_beyond([bag])[:4].all()
    assert share(novelty, bag) <= novelty.greatest_allowed


def test_the_allowance_follows_the_slide_held_out_that_lay_farthest(novelty):
    assert novelty.greatest_allowed == max(LEAST_SHARE, TIMES_GREATEST * novelty.greatest_held_out_share)
    one_apart = [*bags_of(8, 0), *bags_of(1, 9, shift=1.5)]
    wide = fit_novelty(one_apart, np.arange(9) % 3)
    assert wide.greatest_held_out_share == pytest.approx(
        share(fit_novelty([b for i, b in enumerate(one_apart) if i % 3 != 2], np.array([0, 1] * 3)), one_apart[8])
    )
    assert wide.greatest_allowed > novelty.greatest_allowed


def test_a_direction_that_never_varied_does_no_harm():
    bags = bags_of(4, 0)
    for bag in bags:
        bag[:, 2] = 1.0
    assert np.isfinite(fit_novelty(bags, np.arange(4) % 2).limit)


def test_blocks_of_any_size_give_what_the_whole_bag_gives(novelty):
    (bag,) = bags_of(1, 8, shift=2.0)
    blocks = (bag[start : start + 7] for start in range(0, len(bag), 7))
    assert (novelty.is_beyond(blocks) == novelty.is_beyond([bag])).all()
