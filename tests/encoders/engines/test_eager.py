from __future__ import annotations

import numpy as np
import pytest
import torch

from cytomil.encoders.bundle import load_bundle
from cytomil.encoders.engines.engine import EagerEngine, to_unit_range
from cytomil.layer import Layer


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), np.uint8)


@pytest.fixture(params=["h", "z"])
def engine(request, encoder_folder):
    return EagerEngine(load_bundle(encoder_folder).encoder, Layer(request.param), torch.device("cpu"))


def test_gives_the_asked_layer(encoder_folder, pixels):
    encoder = load_bundle(encoder_folder).encoder
    with torch.inference_mode():
        h, z = encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() / 255)
    for layer, wanted, dim in (("h", h, 96), ("z", z, 16)):
        engine = EagerEngine(encoder, Layer(layer), torch.device("cpu"))
        values = engine.embed(pixels)
        assert values.dtype == np.float32
        assert values.shape == (9, dim)
        assert engine.dim == dim
        np.testing.assert_allclose(values, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_a_cells_embedding_does_not_depend_on_its_company(engine, pixels, batch_size):
    whole = engine.embed(pixels)
    parts = [engine.embed(pixels[start : start + batch_size]) for start in range(0, 9, batch_size)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-5)


def test_order_is_kept(engine, pixels):
    turned = engine.embed(pixels[::-1].copy())
    np.testing.assert_allclose(turned[::-1], engine.embed(pixels), rtol=1e-4, atol=1e-5)


def test_no_cells_give_no_embeddings(engine):
    values = engine.embed(np.zeros((0, 24, 24, 3), np.uint8))
    assert values.shape == (0, engine.dim)
    assert values.dtype == np.float32


def test_embedding_does_not_change_the_encoder(encoder_folder, pixels):
    encoder = load_bundle(encoder_folder).encoder
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    EagerEngine(encoder.train(), Layer("z"), torch.device("cpu")).embed(pixels)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_unit_range_is_exact_and_channels_last(pixels):
    scaled = to_unit_range(pixels, torch.device("cpu"))
    assert scaled.shape == (9, 3, 24, 24)
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(scaled, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    assert to_unit_range(
        torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8), torch.device("cpu")
    ).flatten().tolist() == [
        0.0,
        pytest.approx(128 / 255),
        1.0,
    ]
