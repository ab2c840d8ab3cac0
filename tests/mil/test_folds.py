import torch
from hypothesis import given
from hypothesis import strategies as st

from cytomil.mil.bags import TrainingBag
from cytomil.mil.folds import spread_folds


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
