import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.training import training_encoder as small_maps
from cytomil.training.processes import OneProcess
from cytomil.training.training_encoder import SmallMapConv, TrainingEncoder

CONVOLUTIONS = [
    # side, kernel, stride, padding
    (1, 3, 1, 1),
    (2, 3, 1, 1),
    (3, 3, 2, 1),
    (4, 3, 2, 1),
    (4, 1, 2, 0),
    (2, 1, 1, 0),
    (3, 3, 1, 0),
    (4, 3, 1, 1),
]


@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_the_convolutions(shape, layout):
    side, kernel, stride, padding = shape
    torch.manual_seed(side)
    conv = SmallMapConv(5, 7, kernel, stride, padding, bias=False).double().to(memory_format=layout)
    x = torch.randn(3, 5, side, side, dtype=torch.double).to(memory_format=layout)
    found = []
    for run in (conv, lambda maps: F.conv2d(maps, conv.weight, None, stride, padding)):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        weight = torch.linspace(-1, 1, y.numel(), dtype=torch.double).view(y.shape)
        found.append((y, *torch.autograd.grad((y * weight).sum(), (leaf, conv.weight))))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_training_encoder_has_the_plain_ones_names_outputs_and_gradients():
    torch.manual_seed(0)
    encoder = TrainingEncoder(Architecture(), torch.float32, OneProcess(torch.device("cpu"))).double()
    assert sum(isinstance(module, SmallMapConv) for module in encoder.modules()) == 20
    plain = Encoder(Architecture()).double()
    plain.load_state_dict(encoder.state_dict())
    pixels = torch.rand(4, 3, 32, 32, dtype=torch.double)
    found = []
    for network in (encoder, plain):
        _, z = network.train()(pixels)
        found.append((z, *torch.autograd.grad(z.square().sum(), list(network.parameters()))))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_convolution_that_is_none_of_the_plain_ones_stays():
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 1, padding=1, bias=False),
    )
    small_maps.replace_convolutions(network)
    assert [type(module) for module in network] == [nn.Conv2d, nn.Conv2d, SmallMapConv, nn.Conv2d, nn.Conv2d]


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])
def test_reduced_precision_gives_the_weights_gradient_in_their_own_format(given):
    torch.manual_seed(0)
    conv = SmallMapConv(16, 16, 3, 1, 1, bias=False)
    x = torch.randn(8, 16, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x.to(given))
    assert y.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(y.float().square().sum(), conv.weight)
    (expected,) = torch.autograd.grad(F.conv2d(x, conv.weight, padding=1).square().sum(), conv.weight)
    assert gradient.dtype == torch.float32
    assert float((gradient - expected).norm() / expected.norm()) < 0.02
