import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.training.methods.base import balanced_batches


def epoch_batches(is_positive, batch_size, generator):
    pools = [torch.nonzero(is_positive == side).flatten() for side in (False, True)]
    return balanced_batches(pools, batch_size, generator)


def sides(n_negative, n_positive):
    return torch.tensor([False] * n_negative + [True] * n_positive)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.sampled_from([4, 8, 16]), st.integers(0, 99))
def test_half_of_each_batch_comes_from_either_side_and_no_cell_is_missed(n_negative, n_positive, batch_size, seed):
    is_positive = sides(n_negative, n_positive)
    batches = epoch_batches(is_positive, batch_size, torch.Generator().manual_seed(seed))
    assert len(batches) == max(1, round(max(n_negative, n_positive) / (batch_size // 2)))
    for batch in batches:
        n_positive_here = int(is_positive[batch].sum())
        assert n_positive_here * 2 == len(batch)
    counts = torch.bincount(torch.cat(batches), minlength=len(is_positive))
    assert int(counts.min()) >= 1
    larger = counts[is_positive == (n_positive >= n_negative)]
    assert (larger == 1).all()
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 2


def test_equal_sides_give_every_cell_exactly_once():
    is_positive = sides(40, 40)
    batches = epoch_batches(is_positive, 16, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(80))


def test_order_follows_the_seed():
    is_positive = sides(20, 20)
    one, same, other = (
        torch.cat(epoch_batches(is_positive, 8, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([4, 8, 16]), st.integers(1, 60))
def test_a_given_length_fixes_the_number_of_steps_whatever_the_pools_hold(n_first, n_second, batch_size, length):
    pools = [torch.arange(n_first), 100 + torch.arange(n_second)]
    batches = balanced_batches(pools, batch_size, torch.Generator().manual_seed(0), length)
    assert len(batches) == max(1, round(2 * length / batch_size))
    dealt = torch.cat(batches)
    assert int((dealt < 100).sum()) == int((dealt >= 100).sum()) == length
    counts = torch.bincount(dealt[dealt < 100], minlength=n_first)
    assert int(counts.max()) - int(counts.min()) <= 1


def test_one_pool_deals_each_of_its_cells_once():
    batches = balanced_batches([torch.tensor([3, 5, 8, 9, 11])], 4, torch.Generator().manual_seed(0))
    assert torch.cat(batches).sort().values.tolist() == [3, 5, 8, 9, 11]
