"""Figures of labelled slides, against hand-counted ones."""

import pytest

from cytomil.triage.worklist import Call
from cytomil.validation.figures import MeasuredSlide, calls_by_label, figures_of, local_thresholds, too_few


def slide(probability, label, call=Call.REVIEW, patient="", is_unlike=False):
    return MeasuredSlide(f"s{probability}", "", label, patient, probability, call, is_unlike)


SLIDES = [
    slide(0.9, 1, Call.REVIEW_FIRST),
    slide(0.7, 1, Call.REVIEW_FIRST),
    slide(0.4, 1),
    slide(0.6, 0, Call.REVIEW_FIRST),
    slide(0.3, 0),
    slide(0.1, 0, Call.LOW_PRIORITY),
    slide(0.05, 0, Call.REVIEW, is_unlike=True),
]


def test_sensitivity_and_specificity_at_both_thresholds():
    found = {one.key: one for one in figures_of(SLIDES, decision=0.5, low=0.2)}
    assert {key: (one.hits, one.n) for key, one in found.items() if one.n} == {
        "sensitivity_review_first": (2, 3),
        "specificity_review_first": (3, 4),
        "sensitivity_low_priority": (3, 3),
        "specificity_low_priority": (2, 4),
    }
    assert all(one.value == pytest.approx(one.hits / one.n) for one in found.values() if one.n)
    assert found["auroc"].value == pytest.approx(11 / 12)
    errors = [0.1, 0.3, 0.6, 0.6, 0.3, 0.1, 0.05]
    assert found["brier"].value == pytest.approx(sum(error**2 for error in errors) / 7)
    assert all(one.interval[0] <= one.value <= one.interval[1] for one in found.values())


def test_slides_of_one_patient_widen_the_interval():
    many = [slide(0.9, 1, patient=f"p{i}") for i in range(8)] + [slide(0.1, 0, patient=f"q{i}") for i in range(8)]
    one = [slide(0.9, 1, patient="p") for _ in range(8)] + [slide(0.1, 0, patient="q") for _ in range(8)]
    low = [figures_of(slides, 0.5, 0.2)[0].interval[0] for slides in (many, one)]
    assert low[1] < low[0]


def test_one_label_leaves_figures_undefined_with_a_reason():
    found = {one.key: one for one in figures_of(SLIDES[:3], 0.5, 0.2)}
    assert found["sensitivity_review_first"].value == pytest.approx(2 / 3)
    for key in ("auroc", "specificity_review_first", "specificity_low_priority"):
        assert (found[key].value, found[key].interval) == (None, None)
        assert found[key].reason
    assert local_thresholds(SLIDES[:3], 0.95) is None


def test_calls_are_those_of_the_worklist():
    counts = calls_by_label(SLIDES)
    assert list(counts[1].values()) == [2, 1, 0]
    assert list(counts[0].values()) == [1, 2, 1]


def test_proposed_thresholds_have_the_sensitivity_asked_for():
    found = local_thresholds(SLIDES, 0.95)
    assert found.low <= 0.4
    assert found.low <= found.decision
    assert found.sensitivities[1] == 1
    assert found.specificities[1] == 0.75


@pytest.mark.parametrize(
    ("diseased", "healthy", "is_warned"), [(5, 25, False), (4, 26, True), (26, 4, True), (14, 15, True)]
)
def test_few_slides_are_warned_of(diseased, healthy, is_warned):
    slides = [slide(0.9, 1)] * diseased + [slide(0.1, 0)] * healthy
    assert (too_few(slides) is not None) is is_warned
