from __future__ import annotations

import re

import pytest
import timm

from cytomil.encoders.architecture import is_resnet, make_backbone
from cytomil.encoders.published import PUBLISHED, TimmWeights, find_published, is_published
from cytomil.errors import SettingsError


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_name_has_an_architecture_that_can_be_built_and_says_where_it_is_from(name):
    one = find_published(name)
    assert is_published(name)
    assert is_resnet(one.architecture) or timm.is_model(one.architecture)
    assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", one.sha256)
    assert bool(one.sha256) is bool(one.hash_from)
    assert one.licence
    assert str(one.source)


def test_the_normalisation_of_efficientnet_lite_is_what_timm_knows_too():
    one = find_published("efficientnet-lite0")
    backbone = make_backbone(one.architecture)
    assert (one.mean, one.std) == (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", ["dinobloom-s", "dinobloom-b", "dinobloom-l"])
def test_dinobloom_has_seen_the_bone_marrow_set(name):
    assert "bone-marrow" in find_published(name).caveats[0]


def test_timms_names_are_those_with_weights():
    one = find_published("timm/test_vit")
    assert (one.name, one.architecture) == ("timm/test_vit.r160_in1k", "test_vit")
    assert one.source == TimmWeights("test_vit.r160_in1k")
    assert find_published("timm/test_vit.r160_in1k") == one


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("efficientnet-lite", "efficientnet-lite0"),
        ("ResNet18", "resnet18"),
        ("dinobloom", "dinobloom-s"),
        ("non", "none"),
    ],
)
def test_a_name_nobody_has_is_one_line_with_the_nearest(name, meant):
    from cytomil.encoders.start import resolve_initialisation

    with pytest.raises(SettingsError) as caught:
        resolve_initialisation(name, "auto", "auto", 32, 0)
    assert meant in str(caught.value).partition("Did you mean")[2].partition("?")[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm/tset_vit", "timm/", "timm/hf-hub:owner/model", "timm/../resnet18"])
def test_a_name_timm_has_not_is_one_line(name):
    with pytest.raises(SettingsError, match="timm has no pretrained weights"):
        find_published(name)
