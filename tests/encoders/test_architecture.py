from __future__ import annotations

import pytest
import torch

from cytomil.encoders.architecture import Architecture, Encoder, resolve_stem


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("stem", ["small", "standard"])
@pytest.mark.parametrize("size", [16, 24, 33, 64])
def test_shapes_for_every_stem_and_size(stem, size):
    encoder = Encoder(Architecture(stem=stem, projection_dim=8)).eval()
    with torch.inference_mode():
        h, z = encoder(torch.rand(2, 3, size, size))
    assert h.shape == (2, encoder.embedding_dim) == (2, 512)
    assert z.shape == (2, 8)
    assert torch.isfinite(h).all()
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("projection_dim", [2, 128, 512])
def test_the_projection_is_as_long_as_asked(projection_dim):
    encoder = Encoder(Architecture(projection_dim=projection_dim)).eval()
    with torch.inference_mode():
        _, z = encoder(torch.rand(1, 3, 16, 16))
    assert z.shape == (1, projection_dim)


def test_the_small_stem_keeps_more_of_a_small_image():
    """ImageNet's stem leaves a single position of a 32-pixel cell."""
    positions = {}
    for stem in ("small", "standard"):
        backbone = Encoder(Architecture(stem=stem)).backbone.eval()
        kept = []
        backbone.layer4.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output.shape[-1]))
        with torch.inference_mode():
            backbone(torch.rand(1, 3, 32, 32))
        positions[stem] = kept[0]
    assert positions == {"small": 2, "standard": 1}


@pytest.mark.parametrize(
    ("stem", "size", "resolved"),
    [
        ("auto", 16, "small"),
        ("auto", 64, "small"),
        ("auto", 65, "standard"),
        ("auto", 224, "standard"),
        ("small", 224, "small"),
        ("standard", 32, "standard"),
    ],
)
def test_auto_chooses_the_stem_by_size(stem, size, resolved):
    assert resolve_stem(stem, size) == resolved


def test_channel_statistics_are_part_of_the_weights():
    encoder = Encoder(Architecture()).eval()
    assert {"mean", "std"} <= set(encoder.state_dict())
    pixels = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        before = encoder(pixels)[0]
        encoder.mean += 0.1
        shifted = encoder(pixels + 0.1)[0]
    torch.testing.assert_close(before, shifted, rtol=1e-4, atol=1e-5)


def test_weights_come_from_the_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return Encoder(Architecture()).state_dict()

    first, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])
