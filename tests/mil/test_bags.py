"""Bags of embeddings, standardised and spread over folds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytomil.mil.bags import Standardiser, TrainingBag, draw_cells, split, spread_folds


def bags(values):
    return [TrainingBag("a", values[:50], 0, "p"), TrainingBag("b", values[50:], 1, "q")]


def test_training_cells_get_mean_0_and_variance_1():
    values = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3, 0.5, 2]) + 5
    seen = Standardiser.of(bags(values))(values)
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(dim=0, correction=0), torch.ones(4))


def test_a_dimension_that_was_silent_in_training_does_not_outshout_the_others_when_it_wakes():
    values = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    values[:, 3] = 0
    standardise = Standardiser.of(bags(values))
    woken = torch.zeros(1, 16)
    woken[0, 3] = 1  # as far as any other dimension goes
    assert 1 < float(standardise(woken)[0, 3]) < 15


def test_cells_that_are_all_the_same_stay_finite():
    standardise = Standardiser.of(bags(torch.ones(100, 4)))
    assert torch.isfinite(standardise(torch.randn(5, 4) * 1e6)).all()


def test_each_group_of_columns_is_measured_by_itself():
    values = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e3, 1e3, 1.0, 1.0, 1e-3])
    grouped = Standardiser.of([TrainingBag("a", values, 0, "p", groups=(2, 3))])
    by_parts = [Standardiser.of([TrainingBag("a", part, 0, "p")]).std for part in (values[:, :2], values[:, 2:])]
    assert torch.equal(grouped.std, torch.cat(by_parts))
    assert Standardiser.of([TrainingBag("a", values, 0, "p")]).std[2] > 50 * grouped.std[2]


def test_a_split_is_joined_to_what_it_was():
    values = torch.arange(20.0).reshape(2, 10)
    for groups in ((), (10,), (6, 4), (1, 2, 7)):
        parts = split(values, groups)
        assert tuple(part.shape[1] for part in parts) == (groups or (10,))
        assert torch.equal(torch.cat(parts, dim=1), values)


def test_features_are_kept_in_half_precision_and_read_in_single():
    stored = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).half()
    bag = TrainingBag("a", stored, 0, "p", standardise=Standardiser(torch.ones(3), torch.full((3,), 2.0)))
    assert bag.values.dtype == torch.float32
    torch.testing.assert_close(bag.values, (stored.float() - 1) / 2)
    torch.testing.assert_close(bag.select(torch.tensor([4, 2])), bag.values[[4, 2]])


def test_the_spread_of_what_lies_far_from_nought_is_not_lost():
    values = 1e4 + torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Standardiser.of(bags(values)).std, values.double().std(dim=0, correction=0).float())


@pytest.mark.parametrize("most", [1, 37, 100, 500])
def test_cells_are_drawn_from_all_bags_together(most):
    some = [TrainingBag(str(i), torch.arange(10.0 * i, 10 * i + 10)[:, None], 0, "p") for i in range(10)]
    some.insert(3, TrainingBag("empty", torch.zeros(0, 1), 0, "p"))
    drawn = draw_cells(some, most, 0)
    assert drawn.shape == (min(most, 100), 1)
    assert len(set(drawn.flatten().tolist())) == len(drawn)
    assert torch.equal(drawn, draw_cells(some, most, 0))
    assert most != 37 or not torch.equal(drawn, draw_cells(some, most, 1))


def bags_of(labelled):
    return [TrainingBag(f"b{i}", torch.zeros(1, 1), label, patient) for i, (label, patient) in enumerate(labelled)]


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abcdef")), min_size=2, max_size=14), st.integers(1, 5))
def test_bags_of_both_labels_lie_outside_of_each_fold_and_a_negative_one_within(labelled, most):
    bags = bags_of(labelled)
    if len({bag.label for bag in bags}) < 2:
        return
    fold, by_patient = spread_folds(bags, most)
    numbers = set(fold.tolist())
    assert numbers == set(range(len(numbers)))
    assert len(numbers) <= most
    for number in numbers:
        assert 0 in {bag.label for bag, own in zip(bags, fold, strict=True) if own == number}
        if len(numbers) > 1:
            assert {bag.label for bag, own in zip(bags, fold, strict=True) if own != number} == {0, 1}
    if by_patient:
        for bag, own in zip(bags, fold, strict=True):
            assert all(own == other for one, other in zip(bags, fold, strict=True) if one.patient == bag.patient)


def test_patients_come_before_bags():
    labelled = [(0, "a"), (1, "b"), (0, "c"), (1, "b"), (1, "d"), (0, "a")]
    fold, by_patient = spread_folds(bags_of(labelled), 4)
    assert fold.tolist() == [0, 0, 1, 0, 1, 0]
    assert by_patient


def test_one_patient_of_a_label_has_bags_held_out():
    fold, by_patient = spread_folds(bags_of([(0, "a"), (1, "b"), (0, "a"), (1, "c")]), 4)
    assert fold.tolist() == [0, 0, 1, 1]
    assert not by_patient
