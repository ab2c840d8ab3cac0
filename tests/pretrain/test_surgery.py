import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cytomil.pretrain.surgery import adaptive_gradient_surgery, pcgrad


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
