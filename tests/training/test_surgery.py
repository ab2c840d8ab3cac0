import math
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cytomil.errors import SettingsError
from cytomil.training.surgery import (
    CAGRAD_C,
    Rescale,
    Surgery,
    adaptive_gradient_surgery,
    combine,
    compute_gramian,
    find_weighting,
    pcgrad,
    priority_weights,
)


@st.composite
def two_gradients(draw):
    p = draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100_000)))
    gradients = torch.randn(2, p, generator=generator, dtype=torch.float64)
    gradients[1] *= draw(st.sampled_from([1e-3, 0.1, 1.0, 10.0, 1e3]))
    return gradients


def conflicts(gradients):
    return float(gradients[0] @ gradients[1]) < 0


@settings(max_examples=200, deadline=None)
@given(two_gradients(), st.sampled_from(["paper", "always", "never"]))
def test_the_update_conflicts_with_neither_task(gradients, rescale):
    update = adaptive_gradient_surgery(gradients, rescale)
    scale = float(update.norm()) * gradients.norm(dim=1)
    assert ((gradients @ update) >= -1e-9 * scale).all()


@settings(max_examples=100, deadline=None)
@given(two_gradients(), st.sampled_from(["paper", "always", "never"]))
def test_without_conflict_it_is_the_plain_sum(gradients, rescale):
    if conflicts(gradients):
        gradients[1] = -gradients[1]
    torch.testing.assert_close(adaptive_gradient_surgery(gradients, rescale), gradients.sum(dim=0))


@settings(max_examples=100, deadline=None)
@given(two_gradients())
def test_pcgrad_equals_the_closed_form_for_two_conflicting_tasks(gradients):
    assume(conflicts(gradients))
    a, b = gradients
    expected = a - (a @ b) / (b @ b) * b + b - (a @ b) / (a @ a) * a
    torch.testing.assert_close(pcgrad(gradients), expected)


@settings(max_examples=200, deadline=None)
@given(two_gradients())
def test_the_norm_rule_of_equation_6_in_both_directions(gradients):
    plain, projected = float(gradients.sum(dim=0).norm()), float(pcgrad(gradients).norm())
    assume(projected > 1e-6 * plain)
    never = float(adaptive_gradient_surgery(gradients, "never").norm())
    paper = float(adaptive_gradient_surgery(gradients, "paper").norm())
    always = float(adaptive_gradient_surgery(gradients, "always").norm())
    assert never == pytest.approx(projected)
    assert paper == pytest.approx(max(plain, projected))
    assert always == pytest.approx(plain)


def test_projection_can_shrink_and_lengthen():
    shrinks = torch.tensor([[10.0, 0.0], [-1.0, 0.1]])
    lengthens = torch.tensor([[1.0, 0.0], [-0.9, 0.1]])
    assert pcgrad(shrinks).norm() < shrinks.sum(dim=0).norm()
    assert pcgrad(lengthens).norm() > lengthens.sum(dim=0).norm()
    torch.testing.assert_close(adaptive_gradient_surgery(shrinks).norm(), shrinks.sum(dim=0).norm())
    torch.testing.assert_close(adaptive_gradient_surgery(lengthens), pcgrad(lengthens))


def test_equal_norms_make_rescaled_surgery_the_plain_sum():
    generator = torch.Generator().manual_seed(3)
    gradients = torch.nn.functional.normalize(torch.randn(2, 9, generator=generator), dim=1)
    gradients[1] = -gradients[1] if not conflicts(gradients) else gradients[1]
    torch.testing.assert_close(adaptive_gradient_surgery(gradients, "always"), gradients.sum(dim=0))


def test_two_tasks_may_be_swapped():
    gradients = torch.tensor([[1.0, 0.2, 0.0], [-3.0, 1.0, 0.5]])
    torch.testing.assert_close(pcgrad(gradients), pcgrad(gradients.flip(0)))


def test_gradients_that_cancel_give_zero_not_nan():
    gradients = torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    for rescale in ("paper", "always", "never"):
        assert torch.equal(adaptive_gradient_surgery(gradients, rescale), torch.zeros(2))


def test_zero_gradients_and_a_single_task_pass_through():
    assert torch.equal(adaptive_gradient_surgery(torch.zeros(2, 3)), torch.zeros(3))
    single = torch.tensor([[1.0, -2.0]])
    assert torch.equal(adaptive_gradient_surgery(single), single[0])


@pytest.mark.parametrize("rescale", ["paper", "always", "never"])
@pytest.mark.parametrize("opposed", [-1.0, -0.37])
def test_long_gradients_that_cancel_but_for_rounding_are_not_blown_up(rescale, opposed):
    generator = torch.Generator().manual_seed(5)
    gradient = torch.randn(100_003, generator=generator)
    update = adaptive_gradient_surgery(torch.stack([gradient, opposed * gradient]), rescale)
    assert float(update.norm()) < 1e-5 * float(gradient.norm())


@pytest.mark.parametrize("p", [1, 511, 512, 513, 100_003])
def test_inner_products_are_those_of_double_precision(p):
    gradients = torch.randn(3, p, generator=torch.Generator().manual_seed(p))
    exact = gradients.double() @ gradients.double().T
    scale = exact.diagonal().sqrt()
    assert float(((compute_gramian(gradients) - exact) / (scale[:, None] * scale)).abs().max()) < 5e-7


def by_priority(gradients):
    return combine(gradients, priority_weights(compute_gramian(gradients)))


@settings(max_examples=100, deadline=None)
@given(two_gradients())
def test_priority_keeps_the_last_tasks_gradient_whole_and_takes_from_the_other_what_opposes_it(gradients):
    a, b = gradients
    kept = a - min(0.0, float(a @ b)) / (b @ b) * b
    torch.testing.assert_close(by_priority(gradients), kept + b)
    along = float(by_priority(gradients) @ b / (b @ b))
    assert along >= 1 - 1e-9
    assert along == pytest.approx(max(1.0, 1 + float(a @ b / (b @ b))))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5))
def test_priority_of_many_tasks_takes_each_by_itself(seed, n_tasks):
    gradients = torch.randn(n_tasks, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    last = gradients[-1]
    kept = [g - min(0.0, float(g @ last)) / (last @ last) * last for g in gradients[:-1]]
    torch.testing.assert_close(by_priority(gradients), last + sum(kept, torch.zeros(7, dtype=torch.float64)))


def test_priority_over_nothing_is_nothing():
    gradients = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    assert torch.equal(by_priority(gradients), gradients[0])


def test_arguments_are_left_as_they_were():
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    before = gradients.clone()
    adaptive_gradient_surgery(gradients)
    assert torch.equal(gradients, before)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="shape"):
        pcgrad(torch.zeros(3))
    with pytest.raises(ValueError, match="shape"):
        adaptive_gradient_surgery(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="rescale"):
        adaptive_gradient_surgery(torch.zeros(2, 3), "sometimes")


BY_TORCHJD = [Surgery.CAGRAD, Surgery.MGDA, Surgery.IMTL_G]


def operate(surgery, gradients):
    return combine(gradients, find_weighting(surgery, Rescale.PAPER)(compute_gramian(gradients)))


@settings(max_examples=30, deadline=None)
@given(two_gradients())
def test_pcgrad_of_two_tasks_agrees_with_torchjds(gradients):
    from torchjd.aggregation import PCGrad

    torch.testing.assert_close(pcgrad(gradients), PCGrad()(gradients))
    torch.testing.assert_close(adaptive_gradient_surgery(gradients, "never"), PCGrad()(gradients))


def test_each_choice_is_the_operation_it_names():
    gradients = torch.tensor([[10.0, 0.0], [-1.0, 0.1]])
    assert find_weighting(Surgery.SUM, Rescale.ALWAYS) is None
    assert torch.equal(operate(Surgery.PCGRAD, gradients), pcgrad(gradients))
    for rescale in Rescale:
        expected = adaptive_gradient_surgery(gradients, rescale.value)
        weights = find_weighting(Surgery.ADAPTIVE, rescale)(compute_gramian(gradients))
        assert torch.equal(combine(gradients, weights), expected)


@settings(max_examples=60, deadline=None)
@given(two_gradients())
def test_mgda_is_the_shortest_convex_combination_and_conflicts_with_none(gradients):
    update = operate(Surgery.MGDA, gradients)
    weights = torch.linspace(0, 1, 2001, dtype=torch.float64).unsqueeze(1)
    shortest = float((weights * gradients[0] + (1 - weights) * gradients[1]).norm(dim=1).min())
    assert float(update.norm()) <= shortest * (1 + 1e-9)
    assert ((gradients @ update) >= float(update @ update) * (1 - 1e-6) - 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(two_gradients())
def test_imtl_g_has_equal_projections_on_every_task(gradients):
    update = operate(Surgery.IMTL_G, gradients)
    first, second = (gradients / gradients.norm(dim=1, keepdim=True)) @ update
    assert float(first) == pytest.approx(float(second), rel=1e-6, abs=1e-9 * float(update.norm()))
    a, b = gradients / gradients.norm(dim=1, keepdim=True)
    bisector = (a + b) / (a + b).norm()
    assert abs(float(update @ bisector)) == pytest.approx(float(update.norm()), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(two_gradients())
def test_cagrad_stays_within_its_bound_and_serves_the_worst_off_task_best(gradients):
    pytest.importorskip("cvxpy")
    update, mean = operate(Surgery.CAGRAD, gradients), gradients.mean(dim=0)
    radius = CAGRAD_C * float(mean.norm())
    assert float((update - mean).norm()) <= radius * (1 + 1e-3)
    worst = float((gradients @ update).min())
    # No other point of the ball, sampled in the plane of both gradients, serves the worst-off task better.
    basis, _ = torch.linalg.qr(gradients.T)
    angles = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64).unsqueeze(1)
    rim = mean + radius * (angles.cos() * basis[:, 0] + angles.sin() * basis[:, 1])
    best = float((rim @ gradients.T).min(dim=1).values.max())
    scale = float(gradients.norm(dim=1).max()) * float(mean.norm())
    assert worst >= best - 1e-3 * scale


@pytest.mark.parametrize("surgery", BY_TORCHJD)
def test_torchjds_choices_take_tasks_of_very_different_norms_in_single_precision(surgery):
    if surgery is Surgery.CAGRAD:
        pytest.importorskip("cvxpy")
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(2, 500, generator=generator) * torch.tensor([[1e-3], [1e-7]])
    update = operate(surgery, gradients)
    assert update.dtype == torch.float32
    assert torch.isfinite(update).all()
    assert float(update.norm()) > 0


@pytest.mark.parametrize("surgery", BY_TORCHJD)
def test_gradients_that_diverged_pass_through_for_the_loop_to_tell(surgery):
    if surgery is Surgery.CAGRAD:
        pytest.importorskip("cvxpy")
    assert not torch.isfinite(operate(surgery, torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))).all()


def test_cagrad_without_its_solver_is_one_clear_line(monkeypatch):
    from torchjd.aggregation import _cagrad

    monkeypatch.setattr(_cagrad.CAGradWeighting, "_REQUIRED_DEPS", ["no_such_solver_anywhere"])
    assert "no_such_solver_anywhere" not in sys.modules
    with pytest.raises(SettingsError, match=r"cytomil\[surgery\]"):
        find_weighting(Surgery.CAGRAD, Rescale.PAPER)


@pytest.mark.parametrize("surgery", BY_TORCHJD)
def test_torchjds_choices_without_torchjd_are_one_clear_line(surgery, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(SettingsError, match=rf"--surgery {surgery.value} .*cytomil\[surgery\]"):
        find_weighting(surgery, Rescale.PAPER)
