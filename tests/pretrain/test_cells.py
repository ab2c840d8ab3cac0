import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytomil.pretrain.cells import epoch_batches, steps_per_epoch


def sides(n_negative, n_positive):
    return torch.tensor([False] * n_negative + [True] * n_positive)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.sampled_from([4, 8, 16]), st.integers(0, 99))
def test_half_of_each_batch_comes_from_either_side_and_no_cell_is_missed(n_negative, n_positive, batch_size, seed):
    is_positive = sides(n_negative, n_positive)
    batches = list(epoch_batches(is_positive, batch_size, torch.Generator().manual_seed(seed)))
    assert len(batches) == steps_per_epoch(is_positive, batch_size)
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
    batches = list(epoch_batches(is_positive, 16, torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(80))


def test_order_follows_the_seed():
    is_positive = sides(20, 20)
    one, same, other = (
        torch.cat(list(epoch_batches(is_positive, 8, torch.Generator().manual_seed(seed)))) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
