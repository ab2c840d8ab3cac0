from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from cytomil.encoders.architecture import Architecture, Encoder, make_backbone, require_image_size, resolve_architecture
from cytomil.errors import SettingsError


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "dim", "size"),
    [
        ("resnet50", 2048, 32),
        ("resnet10t", 512, 33),
        ("test_vit", 64, 32),
        ("mobilenetv3_small_050", 1024, 32),
    ],
)
def test_h_is_as_long_as_the_architecture_makes_it(name, dim, size):
    torch.manual_seed(0)
    encoder = Encoder(resolve_architecture(name, "auto", 8, size)).eval()
    with torch.inference_mode():
        h, z = encoder(torch.rand(2, 3, size, size))
    assert h.shape == (2, encoder.dim_of("h")) == (2, dim)
    assert z.shape == (2, encoder.dim_of("z")) == (2, 8)
    require_image_size(name, encoder.backbone, encoder.embedding_dim, size)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_small_stem_is_the_same_for_either_resnet(name):
    kept = []
    network = make_backbone(name, "small").network.eval()
    network.layer1.register_forward_hook(lambda module, inputs, output: kept.append(output.shape[-1]))
    with torch.inference_mode():
        network(torch.rand(1, 3, 32, 32))
    assert network.conv1.weight.shape == (64, 3, 3, 3)
    assert isinstance(network.maxpool, nn.Identity)
    assert kept == [16]


def test_without_projector_z_is_h():
    encoder = Encoder(Architecture(projection_dim=0)).eval()
    with torch.inference_mode():
        h, z = encoder(torch.rand(2, 3, 16, 16))
    assert torch.equal(h, z)
    assert encoder.dim_of("z") == encoder.dim_of("h") == 512


def test_a_network_built_for_one_size_says_so_and_others_do_not():
    assert resolve_architecture("test_vit", "auto", 8, 32) == Architecture("test_vit", "standard", 8, 32)
    assert resolve_architecture("resnet10t", "auto", 8, 32) == Architecture("resnet10t", "standard", 8, None)
    assert resolve_architecture("resnet50", "auto", 8, 32) == Architecture("resnet50", "small", 8, None)


@pytest.mark.parametrize(
    ("name", "meant"), [("resnet19", "resnet18"), ("vit_small_patch14_dinov3", "vit_small_patch1")]
)
def test_a_name_nobody_has_says_what_there_is(name, meant):
    with pytest.raises(SettingsError, match=r"resnet18, resnet50, and the names of timm\.list_models\(\)") as caught:
        resolve_architecture(name, "auto", 8, 32)
    assert f"Did you mean '{meant}" in one_line(caught)


@pytest.mark.parametrize("name", ["hf-hub:timm/test_vit", "hf_hub:timm/test_vit", "local-dir:/tmp"])
def test_a_name_that_leads_to_a_download_is_no_name(name):
    with pytest.raises(SettingsError, match="there is no arch"):
        resolve_architecture(name, "auto", 8, 32)


def test_a_small_stem_is_for_resnets():
    with pytest.raises(SettingsError, match="the first layers of test_vit are fixed"):
        resolve_architecture("test_vit", "small", 8, 32)


@pytest.mark.parametrize(("size", "cure"), [(40, "32 or 48"), (20, "16 or 32")])
def test_cells_that_patches_do_not_tile_are_refused(size, cure):
    backbone = make_backbone("test_vit", image_size=size)
    with pytest.raises(SettingsError, match=f"patches of 16 px.*--image-size {cure}.*trained at 160") as caught:
        require_image_size("test_vit", backbone.network, backbone.dim, size)
    one_line(caught)


def test_a_network_that_does_not_run_at_this_size_is_refused():
    backbone = make_backbone("resnet10t")
    backbone.network.layer4 = nn.Conv2d(256, 1, 64)
    with pytest.raises(SettingsError, match=r"resnet10t does not run on cells of 32 px.*--image-size") as caught:
        require_image_size("resnet10t", backbone.network, backbone.dim, 32)
    one_line(caught)
    with pytest.raises(SettingsError, match="instead of an embedding of length 7"):
        require_image_size("resnet18", make_backbone("resnet18").network, 7, 32)


def test_the_network_is_left_in_the_mode_it_was_in():
    backbone = make_backbone("resnet18", "small")
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    require_image_size("resnet18", backbone.network, backbone.dim, 16)
    assert backbone.network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.network.state_dict().items())


def test_torchvision_alone_is_loaded_for_a_resnet():
    assert importlib.import_module("cytomil.encoders.architecture").make_backbone("resnet18").library == "torchvision"
