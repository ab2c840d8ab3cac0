from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from cytomil.encoders.architecture import Architecture, Encoder, resolve_architecture
from cytomil.encoders.stages import Layers, default_layer, layer_dim, layer_groups, layer_of, stages_of
from cytomil.errors import SettingsError
from cytomil.layer import Layer

SIZES = {"tf_efficientnet_lite0": 64, "test_vit": 32, "resnet10t": 64, "convnext_atto": 64}


def make(name, projection_dim=5):
    torch.manual_seed(0)
    return Encoder(resolve_architecture(name, "auto", projection_dim, SIZES.get(name, 32))).eval()


def pixels_for(name):
    size = SIZES.get(name, 32)
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def statistics(maps):
    """Mean, maximum and standard deviation over places, from maps (N, C, H, W)."""
    return [maps.mean((2, 3)), maps.amax((2, 3)), maps.flatten(2).std(2, correction=0)]


def run(encoder, layers, pixels):
    with torch.no_grad():
        return Layers(encoder, layers)(pixels)


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 1344), ("resnet50", 5376)])
def test_a_resnets_stages_are_its_layers(name, dim):
    encoder, pixels = make(name), pixels_for(name)
    names = ("layer1", "layer2", "layer3")
    with torch.no_grad():
        maps = create_feature_extractor(encoder.backbone, list(names))((pixels - encoder.mean) / encoder.std)
        wanted = torch.cat([one for each in names for one in statistics(maps[each])], dim=1)
    layer = default_layer(encoder)
    assert str(layer) == "stages:1,2,3:mean,max,spread"
    (found,) = run(encoder, [layer], pixels)
    assert found.shape == (3, dim) == (3, layer_dim(encoder, layer))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_efficientnets_stages_are_its_blocks_one_after_another():
    encoder, pixels = make("tf_efficientnet_lite0"), pixels_for("tf_efficientnet_lite0")
    network, wanted = encoder.backbone, []
    with torch.no_grad():
        maps = network.bn1(network.conv_stem((pixels - encoder.mean) / encoder.std))
        for number, block in enumerate(network.blocks):
            maps = block(maps)
            if number in (1, 4, 5, 6):
                wanted += statistics(maps)
    layer = default_layer(encoder)
    assert str(layer) == "stages:1,4,5,6:mean,max,spread"
    (found,) = run(encoder, [layer], pixels)
    assert found.shape == (3, 1944) == (3, layer_dim(encoder, layer))
    torch.testing.assert_close(found, torch.cat(wanted, dim=1), rtol=1e-4, atol=1e-5)
    assert stages_of(encoder) == tuple(range(7))


def test_a_transformers_stages_are_its_blocks_without_the_class_token():
    encoder, pixels = make("test_vit"), pixels_for("test_vit")
    kept = []
    hooks = [block.register_forward_hook(lambda _, __, out: kept.append(out)) for block in encoder.backbone.blocks]
    with torch.no_grad():
        encoder(pixels)
    for hook in hooks:
        hook.remove()
    patches = [kept[number][:, encoder.backbone.num_prefix_tokens :] for number in (2, 3, 4)]
    wanted = [one for part in patches for one in (part.mean(1), part.amax(1), part.std(1, correction=0))]
    (found,) = run(encoder, [default_layer(encoder)], pixels)
    torch.testing.assert_close(found, torch.cat(wanted, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", *SIZES])
def test_layers_together_are_what_each_is_alone(name):
    encoder, pixels = make(name), pixels_for(name)
    last = stages_of(encoder)[-1]
    layers = [Layer("z"), default_layer(encoder), Layer("h"), Layer("stages", (last,), ("max",))]
    together = run(encoder, layers, pixels)
    for layer, values in zip(layers, together, strict=True):
        assert values.shape == (3, layer_dim(encoder, layer))
        torch.testing.assert_close(values, run(encoder, [layer], pixels)[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        h, z = encoder(pixels)
    torch.testing.assert_close(together[2], h, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[0], z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", *SIZES])
def test_a_layers_groups_are_its_stages_in_order(name):
    encoder = make(name)
    layer = default_layer(encoder)
    alone = [layer_dim(encoder, Layer("stages", (number,), layer.statistics)) for number in layer.stages]
    assert list(layer_groups(encoder, layer)) == alone
    assert sum(alone) == layer_dim(encoder, layer)
    assert layer_groups(encoder, Layer("z")) == (5,)


@pytest.mark.parametrize(("name", "behind"), [("resnet18", "layer4"), ("tf_efficientnet_lite0", "conv_head")])
def test_what_lies_behind_the_last_stage_is_not_computed(name, behind):
    encoder = make(name)

    def refuse(*_):
        raise AssertionError(f"{behind} ran")

    for module in encoder.backbone.get_submodule(behind).modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(refuse)
    run(encoder, [default_layer(encoder)], pixels_for(name))
    with pytest.raises(AssertionError, match="ran"):
        run(encoder, [Layer("h")], pixels_for(name))


def test_a_stage_that_is_not_there_is_told_with_those_that_are():
    encoder = Encoder(Architecture(projection_dim=5))
    with pytest.raises(SettingsError, match=r"resnet18 has no stage 9; it has stages 1 to 4"):
        layer_of("stages:2,9", encoder)
    with pytest.raises(SettingsError, match="there is no layer 'multi'"):
        layer_of("multi", encoder)


def test_the_encoder_keeps_its_mode_and_weights():
    encoder = make("tf_efficientnet_lite0").train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    layer_dim(encoder, default_layer(encoder))
    assert encoder.training
    assert encoder.backbone.training
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
