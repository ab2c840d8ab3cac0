import shutil
from functools import partial

import pytest
import torch
from torch import nn

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.training.processes import OneProcess
from cytomil.training.training_encoder import TrainingEncoder, replace_convolutions

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def forgotten():
    """Nothing of the compiler's state and settings outlives a test."""
    import torch._functorch.config as of_autograd

    with of_autograd.patch(donated_buffer=of_autograd.donated_buffer):
        torch.compiler.reset()
        yield
        torch.compiler.reset()


def small_encoder(precision=torch.float32, processes=None):
    """Convolution, batch norm and a convolution that becomes matrix products: what compiles in seconds."""
    torch.manual_seed(0)
    encoder = TrainingEncoder(Architecture(projection_dim=8), precision, processes or OneProcess(CPU))
    encoder.backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 512, 3, 4, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    replace_convolutions(encoder.backbone)
    return encoder.to(memory_format=torch.channels_last).train()


def train(encoder, sizes=(8, 8)):
    """A few steps of plain descent, two tasks each through one graph as surgery takes them. Returns the outputs."""
    generator, weights, outputs = torch.Generator().manual_seed(1), list(encoder.parameters()), []
    for n in sizes:
        _, z = encoder(torch.rand(n, 3, 16, 16, generator=generator))
        outputs.append(z.detach())
        first = torch.autograd.grad(z.square().mean(), weights, retain_graph=True)
        second = torch.autograd.grad(z[0].sum() / 10, weights)
        outputs += [*first, *second]
        with torch.no_grad():
            for gradients in (first, second):
                torch._foreach_add_(weights, gradients, alpha=-0.01)
    return outputs


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[needs_compiler, pytest.mark.nightly])]
)
def test_the_compiled_network_trains_to_the_same_weights(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    notes, outputs, states = [], [], []
    for compiled in (False, True):
        encoder = small_encoder()
        if compiled:
            encoder.use_compiler(notes.append)
        outputs.append(train(encoder))
        states.append(encoder.state_dict())
    assert notes == []
    for plain, fast in zip(*outputs, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)
    assert states[0].keys() == states[1].keys()
    for name, weights in states[0].items():
        torch.testing.assert_close(states[1][name], weights, rtol=1e-3, atol=1e-4, msg=name)


@needs_compiler
def test_it_is_the_compiler_that_computes_and_only_in_training(monkeypatch):
    seen = []

    def counting(graph, inputs):
        seen.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    encoder = small_encoder()
    encoder.use_compiler(pytest.fail)
    encoder.eval()(torch.rand(4, 3, 16, 16))
    assert not seen
    train(encoder.train(), (8,))
    assert seen


def test_without_a_compiler_there_is_one_note_and_the_plain_networks_weights(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no working C++ compiler found\nand more lines")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    plain, fallen, notes = small_encoder(), small_encoder(), []
    fallen.use_compiler(notes.append)
    train(plain)
    train(fallen)
    (note,) = notes
    assert "uncompiled" in note
    assert "no working C++ compiler found" in note
    assert "\n" not in note
    for name, weights in plain.state_dict().items():
        assert torch.equal(fallen.state_dict()[name], weights), name


def test_several_processes_are_not_compiled_and_told_so():
    class Two(OneProcess):
        count = 2

    encoder, notes = small_encoder(processes=Two(CPU)), []
    encoder.use_compiler(notes.append)
    assert encoder._network is Encoder.project
    assert "several processes" in notes[0]
