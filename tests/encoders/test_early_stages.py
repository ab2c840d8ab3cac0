"""Which parameters of a network belong to its early stages."""

from __future__ import annotations

import pytest

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.stages import default_frozen_stages, early_parameters
from cytomil.errors import SettingsError

LITE = "tf_efficientnet_lite0"


def names(encoder, stages):
    chosen = {id(parameter) for parameter in early_parameters(encoder, stages)}
    return {name for name, parameter in encoder.backbone.named_parameters() if id(parameter) in chosen}


@pytest.mark.parametrize(
    ("name", "stages", "last_frozen", "first_trained", "stem"),
    [
        ("resnet18", 2, "layer2.1.bn2.bias", "layer3.0.conv1.weight", "conv1.weight"),
        (LITE, 5, "blocks.4.2.bn3.bias", "blocks.5.0.conv_pw.weight", "conv_stem.weight"),
        ("test_vit", 4, "blocks.3.mlp.fc2.bias", "blocks.4.norm1.weight", "patch_embed.proj.weight"),
    ],
)
def test_the_stem_and_the_first_stages_are_early(name, stages, last_frozen, first_trained, stem):
    encoder = Encoder(Architecture(name, "standard", 8, 32 if name == "test_vit" else None))
    early = names(encoder, stages)
    assert {stem, last_frozen} <= early
    assert first_trained not in early
    assert names(encoder, stages - 1) < early
    assert default_frozen_stages(encoder) == stages


def test_none_are_early_where_no_stage_is_frozen():
    assert early_parameters(Encoder(Architecture()), 0) == []


@pytest.mark.parametrize(("name", "most"), [("resnet18", 3), (LITE, 6)])
def test_something_must_be_left_to_train(name, most):
    encoder = Encoder(Architecture(name, "standard", 8))
    assert names(encoder, most) != {name for name, _ in encoder.backbone.named_parameters()}
    with pytest.raises(SettingsError, match=f"Use {most} or fewer"):
        early_parameters(encoder, most + 1)


def test_a_network_whose_stages_are_not_known_is_refused_in_one_line(monkeypatch):
    encoder = Encoder(Architecture("test_vit", "standard", 8, 32))
    monkeypatch.delattr(type(encoder.backbone), "group_matcher")
    assert default_frozen_stages(encoder) == 0
    with pytest.raises(SettingsError, match="test_vit are not known"):
        early_parameters(encoder, 1)
