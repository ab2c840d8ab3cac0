import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cytomil.mil.unit_hidden import UnitHidden


def layer(n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, 5), (7, 5), (7,))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def written_out(x, weight, bias):
    return F.normalize(F.relu(F.linear(x, weight, bias)), dim=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 999))
def test_values_and_gradients_are_those_of_the_parts(n, seed):
    given_to_it, given_to_parts = layer(n, seed), layer(n, seed)
    found, expected = UnitHidden.apply(*given_to_it), written_out(*given_to_parts)
    torch.testing.assert_close(found, expected)
    seen = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    (found * seen).sum().backward()
    (expected * seen).sum().backward()
    for one, other in zip(given_to_it, given_to_parts, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradients_are_the_differences_quotients():
    torch.autograd.gradcheck(UnitHidden.apply, layer(4))


def test_a_row_that_the_relu_cuts_off_whole_stays_nought_and_passes_nothing_on():
    x, weight, bias = layer(3)
    with torch.no_grad():
        bias.fill_(-1e6)
    UnitHidden.apply(x, weight, bias).sum().backward()
    for tensor in (x, weight, bias):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_computes_in_the_instances_format_and_gradients_are_in_the_weights(dtype):
    x, weight, bias = layer(40, dtype=torch.float32)
    exact = written_out(x, weight, bias)
    found = UnitHidden.apply(x.detach().to(dtype), weight, bias)
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)
    found.float().square().mul(torch.arange(7)).sum().backward()
    assert weight.grad.dtype is bias.grad.dtype is torch.float32
    reached = weight.grad, bias.grad
    expected = torch.autograd.grad(exact.square().mul(torch.arange(7)).sum(), (weight, bias))
    for one, other in zip(reached, expected, strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99
